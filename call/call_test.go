package call_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev/call"
	"creto.dev/fault"
)

const op fault.Op = "test.Op"

var errDown = fault.New("dep.Call", fault.Unavailable, "down")

// failing returns a call that fails with the given errors, one after the other,
// and then succeeds, and a count of how often it ran.
func failing(errs ...error) (fn func(context.Context) (int, error), calls *int) {
	calls = new(int)
	return func(context.Context) (int, error) {
		*calls++
		if *calls <= len(errs) {
			return -1, errs[*calls-1]
		}
		return *calls, nil
	}, calls
}

func repeat(err error, n int) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}

func TestDo(t *testing.T) {
	always := repeat(errDown, 1000)
	for _, tt := range []struct {
		name   string
		policy call.Policy
		op     call.Operation
		errs   []error
		calls  int
		want   fault.Code
	}{
		{name: "success", op: call.Read(op), calls: 1},
		{name: "success after one", op: call.Read(op), errs: always[:1], calls: 2},
		{name: "three attempts in total", op: call.Read(op), errs: always, calls: 3, want: fault.Unavailable},
		{name: "one attempt", policy: call.Policy{Attempts: 1}, op: call.Read(op), errs: always, calls: 1, want: fault.Unavailable},
		{name: "five attempts", policy: call.Policy{Attempts: 5}, op: call.Read(op), errs: always, calls: 5, want: fault.Unavailable},
		{name: "many attempts do not overflow the delay", policy: call.Policy{Attempts: 100}, op: call.Read(op), errs: always, calls: 100, want: fault.Unavailable},
		{name: "a write without a key is never repeated", op: call.Write(op, ""), errs: always, calls: 1, want: fault.Unavailable},
		{name: "a write with a key is repeated", op: call.Write(op, "k1"), errs: always, calls: 3, want: fault.Unavailable},
		{name: "the zero operation is never repeated", errs: always, calls: 1, want: fault.Unavailable},
		{name: "permanent", op: call.Read(op), errs: []error{fault.New("a.B", fault.NotFound, "no")}, calls: 1, want: fault.NotFound},
		{name: "security", op: call.Read(op), errs: []error{fault.New("a.B", fault.AuthzDenied, "no")}, calls: 1, want: fault.AuthzDenied},
		{name: "foreign", op: call.Read(op), errs: []error{errors.New("eof")}, calls: 1, want: fault.Internal},
		{name: "canceled by the callee", op: call.Read(op), errs: []error{context.Canceled}, calls: 1, want: fault.Canceled},
		{name: "transient then permanent", op: call.Read(op), errs: []error{errDown, fault.New("a.B", fault.NHINotFound, "no")}, calls: 2, want: fault.NHINotFound},
		{name: "again is asked", policy: call.Policy{Attempts: 9, Again: func(attempt int, err error) bool { return attempt < 2 && errors.Is(err, fault.Unavailable) }}, op: call.Read(op), errs: always, calls: 2, want: fault.Unavailable},
		{name: "again cannot allow more", policy: call.Policy{Again: func(int, error) bool { return true }}, op: call.Read(op), errs: always, calls: 3, want: fault.Unavailable},
		{name: "rate limited", op: call.Read(op), errs: repeat(fault.New("a.B", fault.InferenceRateLimited, "wait"), 1000), calls: 3, want: fault.InferenceRateLimited},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fn, calls := failing(tt.errs...)
				got, err := call.Do(t.Context(), tt.policy, tt.op, fn)
				if *calls != tt.calls || fault.CodeOf(err) != tt.want {
					t.Errorf("Do made %d calls and returned %v; want %d calls and %v", *calls, err, tt.calls, tt.want)
				}
				if want := map[bool]int{true: tt.calls, false: 0}[tt.want == fault.OK]; got != want {
					t.Errorf("result = %d, want %d", got, want)
				}
			})
		})
	}
}

// TestDelays measures the waits: within full jitter's bounds, and spread.
func TestDelays(t *testing.T) {
	for _, tt := range []struct {
		name   string
		policy call.Policy
		bounds []time.Duration
	}{
		{"defaults", call.Policy{Attempts: 7}, []time.Duration{100, 200, 400, 800, 1000, 1000}},
		{"of nhi", call.Policy{Attempts: 6, InitialDelay: 50 * time.Millisecond, MaxDelay: 500 * time.Millisecond}, []time.Duration{50, 100, 200, 400, 500}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				longest := make([]time.Duration, len(tt.bounds))
				for range 200 {
					var at []time.Time
					_, err := call.Do(t.Context(), tt.policy, call.Read(op), func(context.Context) (int, error) {
						at = append(at, time.Now())
						return 0, errDown
					})
					if !errors.Is(err, fault.Unavailable) || len(at) != len(tt.bounds)+1 {
						t.Fatalf("Do made %d calls: %v", len(at), err)
					}
					for i := range tt.bounds {
						wait := at[i+1].Sub(at[i])
						if wait > tt.bounds[i]*time.Millisecond {
							t.Fatalf("wait %d = %v, want at most %vms", i+1, wait, int64(tt.bounds[i]))
						}
						longest[i] = max(longest[i], wait)
					}
				}
				for i, got := range longest {
					if bound := tt.bounds[i] * time.Millisecond; got < bound*3/4 {
						t.Errorf("the longest of 200 waits %d is %v; full jitter reaches near %v", i+1, got, bound)
					}
				}
			})
		})
	}
}

// The longest waits that there are overflow nothing.
func TestLongestDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, p := range []call.Policy{
			{InitialDelay: math.MaxInt64, MaxDelay: math.MaxInt64}, {InitialDelay: 1, MaxDelay: math.MaxInt64, Attempts: 90},
		} {
			for _, asked := range []time.Duration{0, 30 * time.Second, math.MaxInt64} {
				start := time.Now()
				last := start
				_, err := call.Do(t.Context(), p, call.Read(op), func(context.Context) (int, error) {
					if now := time.Now(); now != start && now.Sub(last) < min(asked, time.Minute) {
						t.Errorf("a wait of %v where %v were asked for", now.Sub(last), asked)
					}
					last = time.Now()
					return 0, fault.After(fault.New("x", fault.Unavailable, "down"), asked)
				})
				if !errors.Is(err, fault.Unavailable) {
					t.Errorf("Do = %v", err)
				}
			}
		}
	})
}

func TestRetryAfter(t *testing.T) {
	limited := func(d time.Duration) error {
		return fault.After(fault.New("a.B", fault.RateLimited, "wait"), d)
	}
	for _, tt := range []struct {
		name     string
		deadline time.Duration
		asked    time.Duration
		calls    int
		min, max time.Duration
	}{
		{"honoured", time.Minute, 5 * time.Second, 2, 5 * time.Second, 5*time.Second + 100*time.Millisecond},
		{"longer than the deadline: at once", 3 * time.Second, 5 * time.Second, 1, 0, 0},
		{"no deadline, patient for a minute", 0, time.Minute, 2, time.Minute, time.Minute + 100*time.Millisecond},
		{"no deadline, no longer", 0, time.Hour, 1, 0, 0},
		{"absurd", time.Minute, 1<<63 - 1, 1, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fn, calls := failing(limited(tt.asked))
				start := time.Now()
				_, err := call.Do(t.Context(), call.Policy{Deadline: tt.deadline}, call.Read(op), fn)
				took := time.Since(start)
				if *calls != tt.calls || took < tt.min || took > tt.max {
					t.Errorf("Do made %d calls in %v; want %d in %v to %v", *calls, took, tt.calls, tt.min, tt.max)
				}
				if tt.calls == 1 && (!errors.Is(err, fault.RateLimited) || fault.RetryAfter(err) != tt.asked) {
					t.Errorf("error = %v, after %v; want the fault itself", err, fault.RetryAfter(err))
				}
			})
		})
	}
}

// hang is a call that waits for the end of its context.
func hang(ctx context.Context) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

func TestTimeoutOfAnAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		got, err := call.Do(t.Context(), call.Policy{Timeout: time.Second}, call.Read(op), func(ctx context.Context) (int, error) {
			if calls++; calls == 1 {
				return hang(ctx)
			}
			return 7, nil
		})
		if got != 7 || err != nil || calls != 2 {
			t.Errorf("Do = %d, %v after %d calls, want 7, nil after 2", got, err, calls)
		}
	})
}

func TestDeadline(t *testing.T) {
	for _, tt := range []struct {
		name   string
		policy call.Policy
		caller time.Duration
		most   time.Duration
	}{
		{"of the policy", call.Policy{Deadline: 300 * time.Millisecond, Timeout: 100 * time.Millisecond, Attempts: 100}, 0, 300 * time.Millisecond},
		{"of the caller", call.Policy{Timeout: 100 * time.Millisecond, Attempts: 100}, 250 * time.Millisecond, 250 * time.Millisecond},
		{"the earlier one", call.Policy{Deadline: time.Hour, Timeout: 100 * time.Millisecond, Attempts: 100}, 250 * time.Millisecond, 250 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if tt.caller > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.caller)
					defer cancel()
				}
				start := time.Now()
				_, err := call.Do(ctx, tt.policy, call.Read(op), hang)
				if took := time.Since(start); took > tt.most || !errors.Is(err, fault.DeadlineExceeded) {
					t.Errorf("Do took %v and returned %v; want at most %v and DeadlineExceeded", took, err, tt.most)
				}
			})
		})
	}
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		fn, calls := failing(fault.After(errDown, 30*time.Second))
		start := time.Now()
		_, err := call.Do(ctx, call.Policy{}, call.Read(op), fn)
		if took := time.Since(start); took != time.Second || *calls != 1 {
			t.Errorf("Do returned after %v and %d calls, want 1s and 1", took, *calls)
		}
		if fault.CodeOf(err) != fault.Canceled || !errors.Is(err, fault.Unavailable) {
			t.Errorf("error = %v, want Canceled that knows the last failure", err)
		}
		if _, err := call.Do(ctx, call.Policy{}, call.Read(op), fn); *calls != 1 || fault.CodeOf(err) != fault.Canceled {
			t.Errorf("with an ended context Do called, or returned %v", err)
		}
	})
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := call.Policy{Budget: new(call.Budget)}
		calls := 0
		const n = 1000
		for range n {
			_, _ = call.Do(t.Context(), p, call.Read(op), func(context.Context) (int, error) {
				calls++
				return 0, errDown
			})
		}
		// Ten saved, and one for each ten calls.
		if most := n + 10 + n/10; calls > most || calls < most-2 {
			t.Errorf("%d calls became %d, want %d", n, calls, most)
		}
	})
}

type recorder struct{ events []call.Event }

func (r *recorder) Record(_ context.Context, e call.Event) { r.events = append(r.events, e) }

func TestObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := &recorder{}
		p := call.Policy{Timeout: time.Second, Observer: call.Observer{
			Log:      slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			Recorder: r,
		}}
		fn, _ := failing(errDown, fault.New("a.B", fault.NHINotFound, "no agent"))
		_, _ = call.Do(t.Context(), p, call.Read("nhi.Resolve"), fn)
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if len(lines) != 2 ||
			!strings.Contains(lines[0], `"level":"WARN","msg":"call failed, trying again","op":"nhi.Resolve","code":"unavailable","category":"degraded","attempt":1`) ||
			!strings.Contains(lines[1], `"level":"DEBUG","msg":"call failed","op":"nhi.Resolve","code":"nhi.not_found"`) {
			t.Errorf("log:\n%s", log.String())
		}
		if len(r.events) != 2 || !r.events[0].Retry || r.events[1].Retry || r.events[1].Attempt != 2 {
			t.Errorf("events = %+v", r.events)
		}

		log.Reset()
		fn, _ = failing()
		_, _ = call.Do(t.Context(), p, call.Read("nhi.Resolve"), fn)
		if log.Len() != 0 || len(r.events) != 3 || r.events[2].Err != nil {
			t.Errorf("a success logged %q, events %+v", log.String(), r.events)
		}
		_, _ = call.Do(t.Context(), p, call.Read("nhi.Resolve"), func(context.Context) (int, error) { return 0, errors.New("nil map") })
		if !strings.Contains(log.String(), `"level":"ERROR"`) {
			t.Errorf("a defect logged %q, want an error", log.String())
		}
	})
}

func TestPanicPassesThrough(t *testing.T) {
	defer func() {
		if r := recover(); r != "boom" {
			t.Errorf("recovered %v, want boom", r)
		}
	}()
	_, _ = call.Do(t.Context(), call.Policy{}, call.Read(op), func(context.Context) (int, error) { panic("boom") })
}

func TestValidate(t *testing.T) {
	bad := call.Policy{Deadline: -1, Timeout: -1, Attempts: 101, InitialDelay: 2 * time.Second}
	err := bad.Validate()
	if !errors.Is(err, fault.InvalidArgument) || strings.Count(fault.Message(err), "\n") != 3 {
		t.Errorf("Validate = %v, want InvalidArgument with four lines", err)
	}
	if err := (call.Policy{}).Validate(); err != nil {
		t.Errorf("the zero policy: %v", err)
	}
}

func ExampleDo() {
	policy := call.Policy{Deadline: time.Second, Timeout: 100 * time.Millisecond}
	tries := 0
	greeting, err := call.Do(context.Background(), policy, call.Read("example.Greet"), func(context.Context) (string, error) {
		if tries++; tries < 2 {
			return "", fault.New("example.Greet", fault.Unavailable, "not yet")
		}
		return "hello", nil
	})
	fmt.Println(greeting, err, tries)
	// Output: hello <nil> 2
}

func BenchmarkDo(b *testing.B) {
	b.ReportAllocs()
	ctx := b.Context()
	for b.Loop() {
		_, _ = call.Do(ctx, call.Policy{}, call.Read(op), func(context.Context) (int, error) { return 1, nil })
	}
}
