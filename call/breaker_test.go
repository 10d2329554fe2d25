package call_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev/call"
	"creto.dev/fault"
)

// once is a policy without retries around b.
func once(b *call.Breaker) call.Policy { return call.Policy{Attempts: 1, Breaker: b} }

// end makes a call that ends so, and returns whether the call was made and
// what Do returned.
func end(ctx context.Context, p call.Policy, with error) (made bool, err error) {
	_, err = call.Do(ctx, p, call.Read(op), func(context.Context) (int, error) { made = true; return 1, with })
	return made, err
}

// trip opens b with the default threshold.
func trip(t *testing.T, b *call.Breaker) {
	t.Helper()
	for range call.DefaultThreshold {
		if made, err := end(t.Context(), once(b), errDown); !made || !errors.Is(err, fault.Unavailable) {
			t.Fatalf("before it opens: %v", err)
		}
	}
	if b.State() != call.Open {
		t.Fatalf("after %d failures it is %s", call.DefaultThreshold, b.State())
	}
}

// R-PAT-2 with its defaults.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &call.Breaker{}
		for range 4 {
			_, _ = end(t.Context(), once(b), errDown)
		}
		if b.State() != call.Closed {
			t.Fatalf("after four failures it is %s", b.State())
		}
		_, _ = end(t.Context(), once(b), errDown)
		time.Sleep(10 * time.Second)
		made, err := end(t.Context(), once(b), nil)
		if made || fault.CodeOf(err) != fault.CircuitOpen || fault.CategoryOf(err) != fault.Degraded || fault.RetryAfter(err) != 20*time.Second {
			t.Errorf("open: made %v, %v, after %v", made, err, fault.RetryAfter(err))
		}
		time.Sleep(20*time.Second - 1)
		if made, _ := end(t.Context(), once(b), nil); made {
			t.Error("a call is let through before the reset time")
		}
		time.Sleep(time.Nanosecond)
		if made, _ := end(t.Context(), once(b), errDown); !made || b.State() != call.Open {
			t.Errorf("the probe failed (made: %v), and it is %s", made, b.State())
		}
		time.Sleep(call.DefaultReset)
		if made, err := end(t.Context(), once(b), nil); !made || err != nil || b.State() != call.Closed {
			t.Errorf("the probe succeeded (made: %v, %v), and it is %s", made, err, b.State())
		}
		// Nothing of before is counted (B-32).
		for range 4 {
			_, _ = end(t.Context(), once(b), errDown)
		}
		if b.State() != call.Closed {
			t.Errorf("four failures after recovery made it %s", b.State())
		}
	})
}

// What counts (B-31): every code by its category, in both states.
func TestBreakerCounts(t *testing.T) {
	for _, code := range fault.Codes()[1:] {
		synctest.Test(t, func(t *testing.T) {
			counts := code.Category() == fault.Transient || code.Category() == fault.Degraded
			b := &call.Breaker{}
			for range 2 * call.DefaultThreshold {
				_, _ = end(t.Context(), once(b), fault.New("dep.Call", code, "x"))
			}
			if got := b.State() == call.Open; got != counts {
				t.Errorf("calls that end with %v (%v) make it %s", code, code.Category(), b.State())
			}
			b = &call.Breaker{}
			trip(t, b)
			time.Sleep(call.DefaultReset)
			_, _ = end(t.Context(), once(b), fault.New("dep.Call", code, "x"))
			want := call.Closed
			switch {
			case counts:
				want = call.Open
			case code == fault.Canceled: // tells nothing
				want = call.HalfOpen
			}
			if b.State() != want {
				t.Errorf("a probe that ends with %v (%v) makes it %s, want %s", code, code.Category(), b.State(), want)
			}
		})
	}
}

// The end of time: the attempt's counts, the caller's does where there is no
// other, and that the caller left never.
func TestBreakerTime(t *testing.T) {
	for _, test := range []struct {
		name    string
		timeout time.Duration // of an attempt
		ctx     func(context.Context) (context.Context, context.CancelFunc)
		want    call.State
	}{
		{"the attempt's", time.Second, func(ctx context.Context) (context.Context, context.CancelFunc) { return ctx, func() {} }, call.Open},
		{"the caller's alone", 0, func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, call.Open},
		{"an impatient caller's", time.Second, func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Millisecond)
		}, call.Closed},
		{"the caller left", 0, func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Millisecond, cancel)
			return ctx, cancel
		}, call.Closed},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &call.Breaker{}
				for range 2 * call.DefaultThreshold {
					ctx, cancel := test.ctx(t.Context())
					p := once(b)
					p.Timeout = test.timeout
					_, _ = call.Do(ctx, p, call.Read(op), hang)
					cancel()
				}
				if b.State() != test.want {
					t.Errorf("it is %s, want %s", b.State(), test.want)
				}
			})
		})
	}
}

func TestBreakerWindow(t *testing.T) {
	for _, test := range []struct {
		name    string
		breaker *call.Breaker
		run     func(*testing.T, *call.Breaker)
		want    call.State
	}{
		{"failures too far apart", &call.Breaker{}, func(t *testing.T, b *call.Breaker) {
			for range 20 {
				_, _ = end(t.Context(), once(b), errDown)
				time.Sleep(8 * time.Second)
			}
		}, call.Closed},
		{"failures near enough", &call.Breaker{}, func(t *testing.T, b *call.Breaker) {
			for range 5 {
				_, _ = end(t.Context(), once(b), errDown)
				time.Sleep(6 * time.Second)
			}
		}, call.Open},
		{"few of many", &call.Breaker{}, func(t *testing.T, b *call.Breaker) {
			for range 100 {
				_, _ = end(t.Context(), once(b), nil)
				_, _ = end(t.Context(), once(b), nil)
				_, _ = end(t.Context(), once(b), errDown)
			}
		}, call.Closed},
		{"half", &call.Breaker{}, func(t *testing.T, b *call.Breaker) {
			for range 5 {
				_, _ = end(t.Context(), once(b), nil)
				_, _ = end(t.Context(), once(b), errDown)
			}
		}, call.Open},
		{"below the minimum", &call.Breaker{Minimum: 20}, func(t *testing.T, b *call.Breaker) {
			for range 19 {
				_, _ = end(t.Context(), once(b), errDown)
			}
		}, call.Closed},
		{"at the minimum", &call.Breaker{Minimum: 20}, func(t *testing.T, b *call.Breaker) {
			for range 20 {
				_, _ = end(t.Context(), once(b), errDown)
			}
		}, call.Open},
		{"a threshold of one", &call.Breaker{Threshold: 1}, func(t *testing.T, b *call.Breaker) {
			_, _ = end(t.Context(), once(b), errDown)
		}, call.Open},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if test.run(t, test.breaker); test.breaker.State() != test.want {
					t.Errorf("it is %s, want %s", test.breaker.State(), test.want)
				}
			})
		})
	}
}

// One probe at a time (B-30); one that hangs loses its place, and its late end
// changes nothing; one whose caller left gives it back.
func TestBreakerProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &call.Breaker{}
		trip(t, b)
		time.Sleep(call.DefaultReset)
		begin := func(release <-chan error) {
			go func() {
				_, _ = call.Do(t.Context(), once(b), call.Read(op), func(context.Context) (int, error) { return 0, <-release })
			}()
			synctest.Wait()
		}
		hung := make(chan error, 1)
		begin(hung)
		for range 10 {
			if made, err := end(t.Context(), once(b), nil); made || fault.CodeOf(err) != fault.CircuitOpen || b.State() != call.HalfOpen {
				t.Fatalf("a second probe: made %v, %v, %s", made, err, b.State())
			}
		}
		time.Sleep(call.DefaultReset)
		left := make(chan error, 1)
		begin(left)
		if made, _ := end(t.Context(), once(b), nil); made {
			t.Error("a third probe was let through")
		}
		hung <- errDown
		synctest.Wait()
		if b.State() != call.HalfOpen {
			t.Errorf("the late end of a hung probe made it %s", b.State())
		}
		left <- context.Canceled
		synctest.Wait()
		if made, err := end(t.Context(), once(b), nil); !made || err != nil || b.State() != call.Closed {
			t.Errorf("after a probe was given up: made %v, %v, %s", made, err, b.State())
		}
	})
}

// A call of before the change says nothing of after it (B-32).
func TestBreakerLateResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &call.Breaker{}
		late := make(chan error)
		for range 10 {
			go func() {
				_, _ = call.Do(t.Context(), once(b), call.Read(op), func(context.Context) (int, error) { return 0, <-late })
			}()
		}
		synctest.Wait()
		trip(t, b)
		late <- nil
		synctest.Wait()
		if b.State() != call.Open {
			t.Errorf("a late success made it %s", b.State())
		}
		time.Sleep(call.DefaultReset)
		if made, _ := end(t.Context(), once(b), nil); !made || b.State() != call.Closed {
			t.Fatalf("the probe left it %s", b.State())
		}
		for range 9 {
			late <- errDown
		}
		synctest.Wait()
		if b.State() != call.Closed {
			t.Errorf("late failures made it %s", b.State())
		}
	})
}

// A panic says nothing of the dependency, and gives the probe back.
func TestBreakerPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &call.Breaker{}
		trip(t, b)
		time.Sleep(call.DefaultReset)
		func() {
			defer func() { _ = recover() }()
			_, _ = call.Do(t.Context(), once(b), call.Read(op), func(context.Context) (int, error) { panic("boom") })
		}()
		if made, _ := end(t.Context(), once(b), nil); !made || b.State() != call.Closed {
			t.Errorf("after a probe that panicked: made %v, %s", made, b.State())
		}
	})
}

// The breaker sits inside of the retries: each attempt counts, and none waits for
// an open circuit.
func TestBreakerInsideRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &call.Breaker{Threshold: 3}
		var log bytes.Buffer
		p := call.Policy{Attempts: 10, Breaker: b, Budget: new(call.Budget), Observer: call.Observer{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))}}
		calls := 0
		down := func(context.Context) (int, error) { calls++; return 0, errDown }
		_, err := call.Do(t.Context(), p, call.Read(op), down)
		if calls != 3 || fault.CodeOf(err) != fault.Unavailable {
			t.Errorf("%d calls, %v; want 3 and the fault itself", calls, err)
		}
		start := time.Now()
		_, err = call.Do(t.Context(), p, call.Read(op), down)
		if calls != 3 || fault.CodeOf(err) != fault.CircuitOpen || time.Since(start) != 0 {
			t.Errorf("%d calls, %v after %v; want none more, at once", calls, err, time.Since(start))
		}
		if got := strings.Count(log.String(), "circuit opened"); got != 1 || strings.Contains(log.String(), "circuit_open") {
			t.Errorf("the log says %d times that the circuit opened, want once and no rejections:\n%s", got, log.String())
		}
		time.Sleep(call.DefaultReset)
		_, _ = call.Do(t.Context(), p, call.Read(op), func(context.Context) (int, error) { return 1, nil })
		if !strings.Contains(log.String(), "circuit closed") {
			t.Error("the log does not say that the circuit closed")
		}

		// Others' failures open it while this call waits to try again.
		b = &call.Breaker{Threshold: 2}
		p.Breaker = b
		go func() { _, _ = end(t.Context(), once(b), errDown) }()
		first := true
		_, err = call.Do(t.Context(), p, call.Read(op), func(context.Context) (int, error) {
			if !first {
				t.Error("a call went through an open circuit")
			}
			first = false
			return 0, fault.After(fault.New("a.B", fault.RateLimited, "slower"), time.Second)
		})
		if !errors.Is(err, fault.RateLimited) {
			t.Errorf("the error is %v, want one that knows why the first attempt failed", err)
		}
	})
}

// naive is the breaker written for the reader: it keeps every call's end.
type naive struct {
	b     *call.Breaker
	state call.State
	since time.Time
	epoch int // of the state
	probe int // which probe may speak; 0 is none
	ends  []outcome
}

type outcome struct {
	at     time.Time
	failed bool
}

type ticket struct{ epoch, probe int }

func (n *naive) enter(now time.Time, next int) (ticket, bool) {
	switch {
	case n.state == call.Closed:
		return ticket{n.epoch, 0}, true
	case n.state == call.HalfOpen && n.probe != 0 && now.Sub(n.since) < n.b.Reset, n.state == call.Open && now.Sub(n.since) < n.b.Reset:
		return ticket{}, false
	}
	if n.state == call.Open {
		n.epoch++
	}
	n.state, n.since, n.probe = call.HalfOpen, now, next
	return ticket{n.epoch, next}, true
}

func (n *naive) leave(now time.Time, k ticket, err error) {
	if k.epoch != n.epoch || k.probe != n.probe {
		return
	}
	to := func(s call.State) { n.state, n.since, n.probe, n.ends = s, now, 0, nil; n.epoch++ }
	category := fault.CategoryOf(err)
	failed := err != nil && (category == fault.Transient || category == fault.Degraded)
	switch {
	case errors.Is(err, context.Canceled):
		n.probe = 0
	case n.state == call.HalfOpen && failed:
		to(call.Open)
	case n.state == call.HalfOpen:
		to(call.Closed)
	default:
		n.ends = append(n.ends, outcome{now, failed})
		slice := n.b.Window / 10
		calls, failures := 0, 0
		for _, e := range n.ends {
			if now.Sub(n.ends[0].at)/slice-e.at.Sub(n.ends[0].at)/slice < 10 {
				calls++
				if e.failed {
					failures++
				}
			}
		}
		if failed && failures >= n.b.Threshold && calls >= n.b.Minimum && 2*failures >= calls {
			to(call.Open)
		}
	}
}

// Whatever calls begin and end in whatever order, the breaker does what the naive
// one does.
func TestBreakerModel(t *testing.T) {
	verdicts := []error{nil, nil, errDown, errDown, errDown, fault.New("a.B", fault.NotFound, "no"), fault.New("a.B", fault.AuthzDenied, "no"), context.Canceled}
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			b := &call.Breaker{Threshold: 1 + r.IntN(4), Window: 10 * time.Second, Reset: 5 * time.Second}
			b.Minimum = b.Threshold + r.IntN(4)
			n := &naive{b: b, state: call.Closed}
			type flight struct {
				ticket  ticket
				release chan error
			}
			var flying []flight
			opened := 0
			for step := range 400 {
				switch r.IntN(3) {
				case 0:
					k, want := n.enter(time.Now(), step+1)
					f := flight{k, make(chan error)}
					var made atomic.Bool
					go func() {
						_, _ = call.Do(t.Context(), once(b), call.Read(op), func(context.Context) (int, error) {
							made.Store(true)
							return 0, <-f.release
						})
					}()
					synctest.Wait()
					if made.Load() != want {
						t.Fatalf("seed %d, step %d: a call was made: %v, want %v", seed, step, made.Load(), want)
					}
					if want {
						flying = append(flying, f)
					}
				case 1:
					if len(flying) == 0 {
						continue
					}
					i := r.IntN(len(flying))
					with := verdicts[r.IntN(len(verdicts))]
					n.leave(time.Now(), flying[i].ticket, with)
					flying[i].release <- with
					flying = slices.Delete(flying, i, i+1)
					synctest.Wait()
				case 2:
					time.Sleep(time.Duration(r.Int64N(int64(2 * time.Second))))
				}
				if b.State() != n.state {
					t.Fatalf("seed %d, step %d: it is %s, want %s", seed, step, b.State(), n.state)
				}
				if n.state == call.Open {
					opened++
				}
			}
			for _, f := range flying {
				f.release <- nil
			}
			if opened == 0 {
				t.Errorf("seed %d never opened it", seed)
			}
		})
	}
}

// Many callers at once: nothing races, and the dependency sees one probe at a
// time while it is down.
func TestBreakerConcurrent(t *testing.T) {
	b := &call.Breaker{Reset: time.Microsecond}
	var down atomic.Bool
	down.Store(true)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for i := range 2000 {
				if i == 1500 {
					down.Store(false)
				}
				_, _ = call.Do(t.Context(), once(b), call.Read(op), func(context.Context) (int, error) {
					if down.Load() {
						return 0, errDown
					}
					return 1, nil
				})
			}
		})
	}
	group.Wait()
	for range 100 { // the last may have been rejected
		_, _ = end(t.Context(), once(b), nil)
	}
	if b.State() != call.Closed {
		t.Errorf("a dependency that is back leaves it %s", b.State())
	}
}

func TestBreakerValidate(t *testing.T) {
	p := call.Policy{Breaker: &call.Breaker{Threshold: -1, Minimum: -1, Window: -1, Reset: -1}}
	if err := p.Validate(); !errors.Is(err, fault.InvalidArgument) || strings.Count(fault.Message(err), "\n") != 3 {
		t.Errorf("Validate = %v, want InvalidArgument with four lines", err)
	}
	p.Breaker = &call.Breaker{}
	if err := p.Validate(); err != nil {
		t.Errorf("the zero breaker: %v", err)
	}
}

func BenchmarkBreaker(b *testing.B) {
	b.ReportAllocs()
	ctx, p := b.Context(), call.Policy{Breaker: &call.Breaker{}}
	for b.Loop() {
		_, _ = call.Do(ctx, p, call.Read(op), func(context.Context) (int, error) { return 1, nil })
	}
}
