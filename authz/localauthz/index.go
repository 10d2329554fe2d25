package localauthz

import (
	"encoding/binary"
	"math"
	"strings"
	"sync/atomic"

	"creto.dev/authz"
	"creto.dev/authz/localauthz/program"
)

// index finds slots by the ids of their resources.
type index struct {
	slots []slot // a power of two of them, or none
	// shift says which bits of a hash are the place of a slot, so that few share one;
	// reach is how far behind its place a slot is at most. Most often that is nowhere,
	// and that a resource is there or not is all that a processor must guess.
	shift, reach uint32
}

// slot is one resource that policies name, or all that begin alike: one cache line.
type slot struct {
	tag uint32 // of the id's hash, never 0; 0 if the slot is empty
	// allows says, once the entry is compiled, that it is settled and allows, by
	// these policies.
	allows   atomic.Bool
	policies []authz.Policy
	entry    *entry
	// short is the id if it has room: length bytes, or longID.
	length uint8
	short  [shortID]byte
}

const (
	shortID = 23
	longID  = math.MaxUint8
)

// set gives an empty slot the resources of an entry.
func (s *slot) set(tag uint32, e *entry) {
	s.tag, s.entry, s.length = tag, e, longID
	if len(e.id) <= shortID {
		s.length = uint8(copy(s.short[:], e.id))
	}
}

// is reports whether a slot's id is this one.
func (s *slot) is(id string) bool {
	if s.length == longID {
		return s.entry.id == id
	}
	return string(s.short[:s.length]) == id
}

// begins reports whether an id begins with a slot's.
func (s *slot) begins(id string) bool {
	if s.length == longID {
		return strings.HasPrefix(id, s.entry.id)
	}
	return len(id) >= int(s.length) && id[:s.length] == string(s.short[:s.length])
}

// tagOf returns the part of a hash that a slot holds: not that which is its place.
func tagOf(hash uint64) uint32 { return uint32(hash>>32) | 1 }

// manySlots is from how many on an index takes the places of its slots as they come.
const manySlots = 1 << 10

// newIndex returns an index with room for resources with these hashes.
func newIndex(hashes []uint64) index {
	size := 2
	for size < 2*len(hashes) {
		size *= 2
	}
	x := index{slots: make([]slot, size)}
	x.reach = x.reachOf(hashes, make([]uint64, (size+63)/64))
	if size > manySlots {
		return x
	}
	best, taken := x, make([]uint64, (size+63)/64)
	for x.shift = 1; x.shift < 32 && best.reach > 0; x.shift++ {
		if x.reach = x.reachOf(hashes, taken); x.reach < best.reach {
			best = x
		}
	}
	return best
}

// reachOf returns how far behind its place a slot would be. taken is room for a bit of
// each slot.
func (x *index) reachOf(hashes, taken []uint64) (reach uint32) {
	clear(taken)
	mask := uint64(len(x.slots) - 1)
	for _, hash := range hashes {
		place, behind := hash>>x.shift&mask, uint32(0)
		for ; taken[place/64]&(1<<(place%64)) != 0; place = (place + 1) & mask {
			behind++
		}
		taken[place/64] |= 1 << (place % 64)
		reach = max(reach, behind)
	}
	return reach
}

// free returns an empty slot for a resource that has none.
func (x *index) free(hash uint64) *slot {
	mask := uint64(len(x.slots) - 1)
	i := hash >> x.shift & mask
	for x.slots[i].tag != 0 {
		i = (i + 1) & mask
	}
	return &x.slots[i]
}

// find returns the slot of a resource, or nil. There are slots.
func (x *index) find(hash uint64, id string) *slot {
	mask, tag := uint64(len(x.slots)-1), tagOf(hash)
	place := hash >> (x.shift & 63)
	for i := place; ; i++ {
		s := &x.slots[i&mask]
		if s.tag == tag && s.is(id) {
			return s
		}
		if i == place+uint64(x.reach) {
			return nil
		}
	}
}

// beginning is the slot of all resources that policies do not name and that begin
// with its id, and with no longer one. Beginnings are in the order of their ids.
type beginning struct {
	slot
	above int // the next shorter beginning of its id; -1 if there is none
}

// begin lays out the slots of beginnings, which are in order.
func (at *actionTable) begin(ids []string) {
	if len(ids) == 0 {
		return
	}
	at.beginnings, at.keys = make([]beginning, len(ids)), make([]uint64, len(ids))
	first, last := ids[0], ids[len(ids)-1] // what these have in common all have
	for at.common = first; !strings.HasPrefix(last, at.common); {
		at.common = at.common[:len(at.common)-1]
	}
	for i, id := range ids {
		b := &at.beginnings[i]
		b.set(1, &entry{id: id, scope: at.other.scope, of: program.SameBeginning})
		at.keys[i] = orderOf(id[len(at.common):])
		for b.above = i - 1; b.above >= 0 && !strings.HasPrefix(id, ids[b.above]); {
			b.above = at.beginnings[b.above].above
		}
	}
}

// orderOf returns the first eight bytes of a text, so that what has a lower key comes
// before what has a higher one.
func orderOf(text string) (key uint64) {
	var first [8]byte
	copy(first[:], text)
	return binary.BigEndian.Uint64(first[:])
}

// beginning returns the slot of the longest beginning of a resource that no policy
// names; nil if it has none.
func (at *actionTable) beginning(id string) *slot {
	if !strings.HasPrefix(id, at.common) {
		return nil
	}
	key := orderOf(id[len(at.common):])
	// The last that is not after id is the longest, or begins with it: both are
	// between that and id.
	low, high := 0, len(at.keys)
	for low < high {
		middle := (low + high) / 2
		if k := at.keys[middle]; k < key || k == key && at.beginnings[middle].entry.id <= id {
			low = middle + 1
		} else {
			high = middle
		}
	}
	for i := low - 1; i >= 0; i = at.beginnings[i].above {
		if b := &at.beginnings[i]; b.begins(id) {
			return &b.slot
		}
	}
	return nil
}
