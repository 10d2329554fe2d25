package localauthz

import (
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// An index finds just what is in it, and the longest beginning of what is not, however
// long ids are and whatever they have in common.
func TestIndex(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	stems := []string{"", "a", "http://shop.test/orders/", "http://shop.test/orders/a-long-time-ago/", "é\x00", "aaaaaaaaaaaaaaaaaaaaaa"}
	text := func() string {
		s := stems[random.IntN(len(stems))]
		for range random.IntN(12) {
			s += string("ab\x00é/"[random.IntN(5)])
		}
		return s
	}
	for round := range 400 {
		known := make(map[string]*entry)
		var ids []string
		hashSeed := maphash.MakeSeed()
		for range random.IntN([]int{2, 12, 200, 3000}[round%4]) {
			if id := text(); id != "" && known[id] == nil {
				known[id], ids = &entry{id: id}, append(ids, id)
			}
		}
		hashes := make([]uint64, len(ids))
		for i, id := range ids {
			hashes[i] = maphash.String(hashSeed, id)
		}
		x := newIndex(hashes)
		for i, id := range ids {
			x.free(hashes[i]).set(tagOf(hashes[i]), known[id])
		}
		slices.Sort(ids)
		at := &actionTable{}
		at.begin(ids)
		for range 500 {
			id := text()
			if len(ids) > 0 && random.IntN(2) == 0 {
				id = ids[random.IntN(len(ids))]
			}
			var got *entry
			if s := x.find(maphash.String(hashSeed, id), id); s != nil {
				got = s.entry
			}
			if got != known[id] {
				t.Fatalf("seed %d, round %d: %q is found as %+v", seed, round, id, got)
			}
			want := -1
			for i, b := range ids {
				if strings.HasPrefix(id, b) && (want < 0 || len(b) > len(ids[want])) {
					want = i
				}
			}
			switch s := at.beginning(id); {
			case s == nil && want >= 0:
				t.Fatalf("seed %d, round %d: %q has no beginning, want %q", seed, round, id, ids[want])
			case s != nil && (want < 0 || s.entry.id != ids[want]):
				t.Fatalf("seed %d, round %d: %q begins with %q of %q", seed, round, id, s.entry.id, ids)
			}
		}
	}
}

// Resources whose hashes are the same are still two.
func TestIndexByID(t *testing.T) {
	for _, ids := range [][2]string{{"a", "b"}, {strings.Repeat("a", shortID+1), strings.Repeat("b", shortID+1)}, {"a", strings.Repeat("b", shortID+1)}} {
		x := newIndex([]uint64{7, 7})
		for _, id := range ids {
			x.free(7).set(tagOf(7), &entry{id: id})
		}
		for _, id := range ids {
			if s := x.find(7, id); s == nil || s.entry.id != id {
				t.Errorf("%q is found as %+v", id, s)
			}
		}
		if s := x.find(7, "c"); s != nil {
			t.Errorf("what is not there is found as %+v", s)
		}
	}
}

// What a check reads of a slot and of a part is one cache line each.
func TestLines(t *testing.T) {
	const line = 64
	if n, m := unsafe.Sizeof(slot{}), unsafe.Sizeof(part{}); n != line || m != line {
		t.Errorf("a slot has %d bytes and a part %d, want %d", n, m, line)
	}
}
