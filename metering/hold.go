package metering

import (
	"math/bits"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
)

// MaxBudgets is how many quotas, and how many rates, may bound one action of an
// agent for one human.
const MaxBudgets = 8

// The states of a hold, in the lowest bits of its word; above them is its
// generation, which tells the reservations apart that a hold had.
const (
	stateFree    = iota
	stateClaimed // somebody fills it, or gives back what it holds
	stateHeld
	stateLocked // somebody looks at it

	stateBits = 2
	stateMask = 1<<stateBits - 1
	wordMask  = 1<<(64-placeBits+stateBits) - 1 // a generation has the bits that an id has for it
)

// A reservation's id is a hold's generation and, below, its place.
const (
	placeBits  = 24
	placeMask  = 1<<placeBits - 1
	firstChunk = 64 // holds; each further chunk has twice as many
	maxChunks  = 18 // firstChunk<<maxChunks places are fewer than placeMask
	near       = 4  // how many holds in a row are tried, and then
	far        = 16 // how many anywhere, before there is another chunk
)

// hold is a reservation: what is taken of which windows. Its fields belong to who
// brought its state to claimed or locked.
type hold struct {
	state   atomic.Uint64
	amount  int64
	account *account
	action  int
	windows [MaxBudgets]*window // up to the first nil; what follows is old
	_       [32]byte            // two lines of a cache
}

// holds are the reservations, without a lock: where one begins to look for a free
// hold is given, and the next one's elsewhere, so that they seldom meet.
type holds struct {
	newest atomic.Pointer[chunk]
	chunks [maxChunks]atomic.Pointer[chunk]
	mu     sync.Mutex // held while a chunk is added
}

type chunk struct {
	number int
	base   uint64 // the first one's place
	mask   uint64
	list   []hold
}

// claim returns a free hold and its reservation's id, or nil if there is none
// left. The caller fills it and calls publish, or release.
func (h *holds) claim(seed uint64) (*hold, uint64) {
	for {
		c := h.newest.Load()
		if c != nil {
			for i := range uint64(near + far) {
				at := seed + i
				if i >= near { // those in a row may all be held for long
					at = rand.Uint64()
				}
				at &= c.mask
				x := &c.list[at]
				state := x.state.Load()
				if state&stateMask != stateFree {
					continue
				}
				next := (state + 1<<stateBits | stateClaimed) & wordMask
				if x.state.CompareAndSwap(state, next) {
					return x, next>>stateBits<<placeBits | c.base + at
				}
			}
		}
		if !h.grow(c) {
			return nil, 0
		}
	}
}

// grow adds a chunk behind c, unless somebody did.
func (h *holds) grow(c *chunk) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.newest.Load() != c {
		return true
	}
	number := 0
	if c != nil {
		number = c.number + 1
	}
	if number == maxChunks {
		return false
	}
	size := uint64(firstChunk) << number
	next := &chunk{number: number, base: size - firstChunk, mask: size - 1, list: make([]hold, size)}
	h.chunks[number].Store(next)
	h.newest.Store(next)
	return true
}

// publish has a claimed hold be held, release has it be free.
func (x *hold) publish() { x.state.Add(stateHeld - stateClaimed) }

func (x *hold) release() { x.state.Add(^uint64(stateClaimed - stateFree - 1)) }

// took returns the windows that the hold holds something of.
func (x *hold) took() []*window {
	for i, w := range x.windows {
		if w == nil {
			return x.windows[:i]
		}
	}
	return x.windows[:]
}

// put sets the windows that the hold holds something of.
func (x *hold) put(windows []*window) {
	if n := copy(x.windows[:], windows); n < len(x.windows) {
		x.windows[n] = nil
	}
}

// find returns the hold of a reservation and what its state is while it is held;
// nil for one that never was.
func (h *holds) find(id uint64) (*hold, uint64) {
	place := id & placeMask
	number := bits.Len64(place/firstChunk+1) - 1
	if number >= maxChunks {
		return nil, 0
	}
	c := h.chunks[number].Load()
	if c == nil {
		return nil, 0
	}
	return &c.list[place-c.base], id>>placeBits<<stateBits | stateHeld
}

// end brings a held reservation's hold to another state. It reports false if it is
// not held, or not any more.
func (h *holds) end(id uint64, to uint64) (*hold, bool) {
	x, held := h.find(id)
	if x == nil {
		return nil, false
	}
	for {
		if x.state.CompareAndSwap(held, held&^stateMask|to) {
			return x, true
		}
		switch x.state.Load() {
		case held: // it was looked at, and is not any more
		case held&^stateMask | stateLocked:
			runtime.Gosched()
		default:
			return nil, false
		}
	}
}

// each has visit look at every hold that is held, one after the other; what is
// being filled or given back is waited for.
func (h *holds) each(visit func(*hold)) {
	for number := range h.chunks {
		c := h.chunks[number].Load()
		if c == nil {
			return
		}
		for i := range c.list {
			x := &c.list[i]
			for {
				state := x.state.Load()
				if state&stateMask == stateFree {
					break
				}
				if state&stateMask == stateHeld && x.state.CompareAndSwap(state, state&^stateMask|stateLocked) {
					visit(x)
					x.state.Store(state)
					break
				}
				runtime.Gosched()
			}
		}
	}
}
