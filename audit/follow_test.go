package audit_test

import (
	"context"
	"errors"
	"testing"

	"creto.dev/audit"
)

// paged is a log of records that nobody looks into.
type paged struct {
	contract
	size int64
}

// contract is audit.Log: a field cannot have the name of one of its methods.
type contract interface{ audit.Log }

func (l paged) Wait(_ context.Context, size int64) (int64, error) {
	if size >= l.size {
		return 0, errors.New("all seen")
	}
	return l.size, nil
}

func (l paged) Query(_ context.Context, f audit.Filter) (page []audit.Entry, _ error) {
	for i := f.From; i < l.size && len(page) < min(f.Limit, audit.MaxPage); i++ {
		page = append(page, audit.Entry{Index: i})
	}
	return page, nil
}

// Whatever page is asked for, nothing is passed over.
func TestFollowSeesAll(t *testing.T) {
	const size = 2*audit.MaxPage + 17
	for _, limit := range []int{0, 1, 7, audit.MaxPage, audit.MaxPage + 1, 10 * audit.MaxPage} {
		next := int64(0)
		err := audit.Follow(t.Context(), paged{size: size}, audit.Filter{Limit: limit}, func(e audit.Entry) error {
			if e.Index != next {
				t.Fatalf("limit %d: record %d follows %d", limit, e.Index, next-1)
			}
			next++
			return nil
		})
		if next != size {
			t.Errorf("limit %d: Follow saw %d of %d: %v", limit, next, size, err)
		}
	}
}
