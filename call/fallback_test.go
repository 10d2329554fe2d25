package call_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev/call"
	"creto.dev/fault"
)

// Every code falls back by its category (B-27): only what says that the
// dependency failed.
func TestFallbackByCode(t *testing.T) {
	for _, code := range fault.Codes()[1:] {
		primary := fault.New("dep.Call", code, "x")
		ran := false
		got, err := call.DoOr(t.Context(), call.Policy{Attempts: 1}, call.Read(op),
			func(context.Context) (int, error) { return 0, primary },
			func(_ context.Context, because error) (int, error) {
				if ran = true; !errors.Is(because, primary) {
					t.Errorf("the alternative to %v was told %v", primary, because)
				}
				return 7, nil
			})
		want := code.Category() == fault.Transient || code.Category() == fault.Degraded
		if ran != want || want && (got != 7 || err != nil) || !want && (got != 0 || fault.CodeOf(err) != code) {
			t.Errorf("%v (%v): ran %v, DoOr = %d, %v", code, code.Category(), ran, got, err)
		}
	}
}

func TestFallback(t *testing.T) {
	denied := fault.New("other.Call", fault.AuthzDenied, "no")
	for _, test := range []struct {
		name        string
		alternative error
		want        fault.Code
	}{
		{"both down", fault.New("other.Call", fault.NHITimeout, "slow"), fault.Unavailable},
		{"the alternative is wrong", fault.New("other.Call", fault.NotFound, "no"), fault.Unavailable},
		{"the alternative is foreign", errors.New("eof"), fault.Unavailable},
		{"the alternative denies", denied, fault.AuthzDenied},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := call.DoOr(t.Context(), call.Policy{Attempts: 1}, call.Read(op),
				func(context.Context) (int, error) { return 1, errDown },
				func(context.Context, error) (int, error) { return 2, test.alternative })
			if got != 0 || fault.CodeOf(err) != test.want || !errors.Is(err, errDown) || !errors.Is(err, test.alternative) {
				t.Errorf("DoOr = %d, %v; want %v that knows both", got, err, test.want)
			}
		})
	}
	t.Run("not needed", func(t *testing.T) {
		got, err := call.DoOr(t.Context(), call.Policy{}, call.Read(op),
			func(context.Context) (int, error) { return 1, nil },
			func(context.Context, error) (int, error) { t.Error("the alternative ran"); return 2, nil })
		if got != 1 || err != nil {
			t.Errorf("DoOr = %d, %v", got, err)
		}
	})
}

// The order of R-PAT-5: the deadline holds for all, the alternative comes after
// the last retry and for an open circuit at once, and is told of in the log.
func TestNesting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		rec := &recorder{}
		p := call.Policy{Deadline: time.Minute, Timeout: time.Second, Breaker: &call.Breaker{Threshold: 4}, Observer: call.Observer{
			Log: slog.New(slog.NewTextHandler(&log, nil)), Recorder: rec,
		}}
		calls, alternatives := 0, 0
		do := func() (int, error) {
			return call.DoOr(t.Context(), p, call.Read(op),
				func(ctx context.Context) (int, error) { calls++; return hang(ctx) },
				func(ctx context.Context, because error) (int, error) {
					alternatives++
					if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > p.Deadline {
						t.Error("the alternative has no deadline")
					}
					return -1, nil
				})
		}
		start := time.Now()
		if got, err := do(); got != -1 || err != nil || calls != 3 || alternatives != 1 || time.Since(start) < 3*time.Second {
			t.Errorf("DoOr = %d, %v after %d calls, %d alternatives and %v", got, err, calls, alternatives, time.Since(start))
		}
		if text := log.String(); strings.Count(text, "level=WARN msg=\"call failed, falling back\"") != 1 {
			t.Errorf("the log does not warn of the alternative:\n%s", text)
		}
		if e := rec.events[len(rec.events)-1]; !e.Fallback || !errors.Is(e.Err, fault.DeadlineExceeded) {
			t.Errorf("the last event is %+v", e)
		}
		_, _ = do() // opens the circuit with its first attempt
		start = time.Now()
		if got, err := do(); got != -1 || err != nil || calls != 4 || alternatives != 3 || time.Since(start) != 0 {
			t.Errorf("with an open circuit: DoOr = %d, %v after %d calls, %d alternatives and %v", got, err, calls, alternatives, time.Since(start))
		}
	})
}

// Nothing begins for a caller whose time is over, or who left.
func TestNoFallbackTooLate(t *testing.T) {
	for _, test := range []struct {
		name string
		ctx  func(context.Context) (context.Context, context.CancelFunc)
		p    call.Policy
		want fault.Code
	}{
		{"the policy's deadline", context.WithCancel, call.Policy{Deadline: time.Second}, fault.DeadlineExceeded},
		{"the caller's deadline", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, call.Policy{}, fault.DeadlineExceeded},
		{"the caller left", func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Second, cancel)
			return ctx, cancel
		}, call.Policy{}, fault.Canceled},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := test.ctx(t.Context())
				defer cancel()
				_, err := call.DoOr(ctx, test.p, call.Read(op), hang, func(context.Context, error) (int, error) {
					t.Error("the alternative ran")
					return 0, nil
				})
				if fault.CodeOf(err) != test.want {
					t.Errorf("DoOr = %v, want %v", err, test.want)
				}
			})
		})
	}
	t.Run("the caller leaves meanwhile", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_, err := call.DoOr(ctx, call.Policy{Attempts: 1}, call.Read(op),
				func(context.Context) (int, error) { return 0, errDown },
				func(ctx context.Context, _ error) (int, error) { cancel(); return hang(ctx) })
			if fault.CodeOf(err) != fault.Canceled || !errors.Is(err, errDown) {
				t.Errorf("DoOr = %v, want Canceled that knows the failure", err)
			}
		})
	})
}

func ExampleDoOr() {
	nearest := func(context.Context) (string, error) {
		return "", fault.New("example.Nearest", fault.Unavailable, "it does not answer")
	}
	cached := func(_ context.Context, because error) (string, error) {
		return "as of yesterday, because " + fault.Message(because), nil
	}
	policy := call.Policy{Attempts: 1, Breaker: &call.Breaker{}}
	answer, err := call.DoOr(context.Background(), policy, call.Read("example.Ask"), nearest, cached)
	fmt.Println(answer, err)
	// Output: as of yesterday, because it does not answer <nil>
}
