// Package consensustest is what every implementation of package consensus must
// do.
package consensustest

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
)

// Run tests a clock. Each call of open opens the same clock again, after the
// life before ended without a farewell.
func Run(t *testing.T, open func(*testing.T) consensus.Clock) {
	clock := open(t)
	t.Run("stamps increase", func(t *testing.T) { testIncrease(t, clock) })
	t.Run("stamps are unique across goroutines", func(t *testing.T) { testConcurrent(t, clock) })
	t.Run("stamps increase across a restart", func(t *testing.T) {
		before := now(t, clock)
		clock = open(t)
		if after := now(t, clock); creto.Order(before, after) >= 0 || after.Physical < before.Physical {
			t.Errorf("the stamp %+v of a new life is not after %+v", after, before)
		}
	})
	t.Run("events keep their first stamp", func(t *testing.T) { testEvents(t, clock) })
	if err := clock.Ping(t.Context()); err != nil {
		t.Errorf("Ping = %v", err)
	}
}

func now(t *testing.T, c consensus.Clock) creto.Timestamp {
	t.Helper()
	s, err := c.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testIncrease(t *testing.T, c consensus.Clock) {
	last := now(t, c)
	for range 10_000 {
		s := now(t, c)
		if creto.Order(last, s) >= 0 || creto.HappenedBefore(last, s) != creto.Yes || s.Physical < last.Physical {
			t.Fatalf("%+v is not after %+v", s, last)
		}
		last = s
	}
}

func testConcurrent(t *testing.T, c consensus.Clock) {
	const goroutines, each = 8, 1000
	var mu sync.Mutex
	seen := make(map[uint64]bool)
	var group sync.WaitGroup
	for range goroutines {
		group.Go(func() {
			for range each {
				s, err := c.Now(t.Context())
				mu.Lock()
				if err != nil || seen[s.Logical] {
					t.Errorf("stamp %+v, %v: repeated or failed", s, err)
				}
				seen[s.Logical] = true
				mu.Unlock()
			}
		})
	}
	group.Wait()
}

func testEvents(t *testing.T, c consensus.Clock) {
	var ids []consensus.EventID
	for _, name := range []string{"a", "b", "c"} {
		id := creto.DigestOf([]byte(name))
		first, err := c.Register(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := c.Register(t.Context(), id); err != nil || again != first {
			t.Errorf("Register again = %+v, %v; want %+v", again, err, first)
		}
		ids = append(ids, id)
	}
	shuffled := []consensus.EventID{ids[2], ids[0], ids[1]}
	ordered, err := c.OrderEvents(t.Context(), shuffled)
	if err != nil {
		t.Fatal(err)
	}
	var got []consensus.EventID
	for _, o := range ordered {
		got = append(got, o.ID)
	}
	if !slices.Equal(got, ids) {
		t.Errorf("OrderEvents = %v, want the order of registration %v", got, ids)
	}
	if _, err := c.OrderEvents(t.Context(), []consensus.EventID{creto.DigestOf([]byte("never"))}); !errors.Is(err, fault.ConsensusOrderingConflict) {
		t.Errorf("OrderEvents of an unknown event = %v, want ConsensusOrderingConflict", err)
	}
}
