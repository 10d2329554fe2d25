package call

import (
	"fmt"
	"sync"
	"time"

	"creto.dev/fault"
)

// The defaults of a [Breaker] (R-PAT-2; the window is ours).
const (
	DefaultThreshold = 5
	DefaultReset     = 30 * time.Second
	DefaultWindow    = 30 * time.Second
)

// State is that of a circuit breaker.
type State string

// The states. The zero State is none of them.
const (
	// Closed: calls go through and are counted.
	Closed State = "closed"
	// Open: calls are rejected until the reset time has passed.
	Open State = "open"
	// HalfOpen: one call at a time goes through, to find out.
	HalfOpen State = "half-open"
)

// Breaker keeps calls from a dependency that fails. It opens when the window holds
// at least Threshold failed calls, which are at least half of all calls there, of
// which there are at least Minimum; after Reset it lets one call through as a
// probe, and that one's end closes it, with nothing counted, or opens it for
// another Reset. A call that began before the state last changed changes nothing
// (B-32). A probe that does not end within Reset gives its place to another.
//
// The zero Breaker is ready; a nil one rejects nothing. Its fields are not changed
// once it is used, and it is not copied. Safe for concurrent use.
type Breaker struct {
	// Threshold is how many failed calls open it. 0 means DefaultThreshold.
	Threshold int
	// Minimum is how many calls the window must hold before it opens. 0 means
	// Threshold.
	Minimum int
	// Window is how far back calls count, to a tenth of it. 0 means
	// DefaultWindow.
	Window time.Duration
	// Reset is how long it stays open. 0 means DefaultReset.
	Reset time.Duration

	mu         sync.Mutex // guards what follows
	state      State      // the zero State is Closed
	generation uint64     // counts changes of state, and probes
	since      time.Time  // when it opened, or when the probe began
	probing    bool
	calls      window
}

// problems returns what is wrong with b's fields.
func (b *Breaker) problems() []error {
	if b == nil {
		return nil
	}
	var errs []error
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"threshold", int64(b.Threshold)}, {"minimum", int64(b.Minimum)}, {"window", int64(b.Window)}, {"reset", int64(b.Reset)},
	} {
		if n.value < 0 {
			errs = append(errs, fmt.Errorf("breaker: %s: is negative", n.name))
		}
	}
	return errs
}

func (b *Breaker) threshold() int {
	if b.Threshold > 0 {
		return b.Threshold
	}
	return DefaultThreshold
}

func (b *Breaker) minimum() int { return max(b.Minimum, b.threshold()) }

func (b *Breaker) window() time.Duration {
	if b.Window > 0 {
		return b.Window
	}
	return DefaultWindow
}

func (b *Breaker) reset() time.Duration {
	if b.Reset > 0 {
		return b.Reset
	}
	return DefaultReset
}

// State returns the state as the last call left it: an open breaker whose time
// has passed is Open until a call probes. That of a nil Breaker is Closed.
func (b *Breaker) State() State {
	if b == nil {
		return Closed
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == "" {
		return Closed
	}
	return b.state
}

// enter lets a call through, and returns the generation to [Breaker.leave] with.
//
// Errors: CircuitOpen (Degraded), with the time until the next probe where that is
// known.
func (b *Breaker) enter(now time.Time) (generation uint64, err error) {
	const op fault.Op = "call.Breaker"
	b.mu.Lock()
	defer b.mu.Unlock()
	left := b.reset() - now.Sub(b.since)
	switch b.state {
	case Open:
		if left > 0 {
			return 0, fault.After(fault.New(op, fault.CircuitOpen, "it failed too often; it is left alone for a while"), left)
		}
		b.state = HalfOpen
	case HalfOpen:
		if b.probing && left > 0 {
			return 0, fault.New(op, fault.CircuitOpen, "it failed too often; one call is finding out whether it is back")
		}
	default:
		return b.generation, nil
	}
	b.generation++
	b.probing, b.since = true, now
	return b.generation, nil
}

// verdict is what the end of a call tells of the dependency.
type verdict uint8

const (
	unknown verdict = iota
	alive
	failing
)

// leave counts the end of a call, and returns the state that it brought about, if
// any.
func (b *Breaker) leave(now time.Time, generation uint64, v verdict) State {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case generation != b.generation:
		return ""
	case v == unknown:
		b.probing = false // somebody else finds out
		return ""
	case b.state == HalfOpen:
		if v == alive {
			return b.change(Closed, now)
		}
		return b.change(Open, now)
	}
	calls, failed := b.calls.add(now, b.window(), v == failing)
	if v == failing && failed >= b.threshold() && calls >= b.minimum() && 2*failed >= calls {
		return b.change(Open, now)
	}
	return ""
}

// change begins a state, in which nothing is counted yet.
func (b *Breaker) change(to State, now time.Time) State {
	b.state, b.since, b.probing, b.calls = to, now, false, window{}
	b.generation++
	return to
}

// slices is how many parts of the window are counted by themselves.
const slices = 10

// window counts the calls of the last while.
type window struct {
	start time.Time // of all counting
	last  int64     // the slice that was counted in last, since start
	parts [slices]struct{ calls, failed int }
}

// add counts one call and returns the counts of the window.
func (w *window) add(now time.Time, size time.Duration, failed bool) (calls, failures int) {
	if w.start.IsZero() {
		w.start = now
	}
	at := max(w.last, int64(now.Sub(w.start)/max(1, size/slices)))
	for i := range min(at-w.last, slices) { // what is older than the window
		w.parts[(at-i)%slices] = struct{ calls, failed int }{}
	}
	w.last = at
	part := &w.parts[at%slices]
	part.calls++
	if failed {
		part.failed++
	}
	for _, p := range w.parts {
		calls += p.calls
		failures += p.failed
	}
	return calls, failures
}
