package metering

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"creto.dev/authz"
)

// budget is a quota: its current window, and where the next one comes from. All
// who are bound to chains that it bounds share it.
type budget struct {
	Subject
	length  time.Duration // of its windows
	current atomic.Pointer[window]

	mu     sync.Mutex // held while current is replaced or its limit changes
	amount int64      // the limit of the next window

	lending lending // to other nodes; see lend.go
	loan    loan    // from another node; see borrow.go
}

// window is what may be used of a budget until it ends. It never comes back: who
// holds some of one that is over gives it back to nobody.
type window struct {
	start int64 // Unix nanoseconds
	end   atomic.Int64
	limit atomic.Int64
	used  atomic.Int64 // what is held included; it may be more than limit if that was lowered
	// said is what the node that lent this says of the whole; nil if it is no loan.
	said atomic.Pointer[said]
}

// said is what a budget came to, where it is kept.
type said struct {
	limit, used int64
	reset       time.Time
}

func newWindow(start, end, limit, used int64) *window {
	w := &window{start: start}
	w.end.Store(end)
	w.limit.Store(limit)
	w.used.Store(used)
	return w
}

// take takes n units, all or none, and says how many were used before.
func (w *window) take(n int64) (used int64, ok bool) {
	for {
		used := w.used.Load()
		if used > w.limit.Load()-n {
			return used, false
		}
		if w.used.CompareAndSwap(used, used+n) {
			return used, true
		}
	}
}

// try is take, or without reserve only a look whether it would.
func (w *window) try(r *request) (used int64, ok bool) {
	if !r.reserve {
		return 0, r.units <= w.left()
	}
	return w.take(r.units)
}

// left returns how many units may be taken.
func (w *window) left() int64 { return max(0, w.limit.Load()-w.used.Load()) }

// sum returns what the window came to, as people are told.
func (w *window) sum() said {
	if s := w.said.Load(); s != nil {
		return *s
	}
	return said{limit: w.limit.Load(), used: w.used.Load(), reset: time.Unix(0, w.end.Load()).UTC()}
}

// at returns the window of a time: the current one until it ends, also for a clock
// that went back.
func (b *budget) at(now int64) *window {
	if w := b.current.Load(); now < w.end.Load() {
		return w
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.current.Load()
	if now >= w.end.Load() {
		start := startOf(now, b.length)
		w = newWindow(start, start+int64(b.length), b.amount, 0)
		b.current.Store(w)
	}
	return w
}

// startOf returns when the window of that length began that now is in.
func startOf(now int64, length time.Duration) int64 {
	return time.Unix(0, now).UTC().Truncate(length).UnixNano()
}

// exceeded is the decision when what is asked for is not left.
func (b *budget) exceeded(w *window, r *request) authz.Decision {
	s := w.sum()
	whose := ""
	if !b.Human.IsZero() {
		whose = " on behalf of " + b.Human.Name
	}
	what := r.action
	if b.Action == AnyAction {
		what = "actions"
	}
	d := authz.Decision{Kind: authz.QuotaExceeded, Limit: s.limit, Used: s.used, ResetAt: s.reset}
	if s.limit-s.used > 0 {
		d.Reason = fmt.Sprintf("the quota of %d %s in %v%s has %d left, of which %s wants %d; it is reset at %s", s.limit, what, b.length, whose, s.limit-s.used, r.action, r.units, s.reset.Format(time.RFC3339))
		return d
	}
	d.Reason = fmt.Sprintf("the quota of %d %s in %v%s is used up until %s", s.limit, what, b.length, whose, s.reset.Format(time.RFC3339))
	return d
}
