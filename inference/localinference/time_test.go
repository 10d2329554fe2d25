package localinference_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/localinference"
)

// script fails with each of its errors, one after the other, and then not.
func script(errs ...error) func(context.Context, inference.Request) error {
	var mu sync.Mutex // guards errs
	return func(context.Context, inference.Request) error {
		mu.Lock()
		defer mu.Unlock()
		if len(errs) == 0 {
			return nil
		}
		err := errs[0]
		errs = errs[1:]
		return err
	}
}

// Who says to wait is waited for, unless another can be asked sooner (R-INF-39).
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := cloud("a", nil)
		a.complete = script(limited(20 * time.Second))
		r := router(t, localinference.Config{}, one(a, false))
		began := time.Now()
		_, served, err := complete(t, r, "")
		if took := time.Since(began); err != nil || took < 20*time.Second || took > 21*time.Second || served.Attempts != 2 {
			t.Errorf("it took %v: %v, %+v", took, err, served)
		}
		// With somebody else it is not, and the next request does not even try.
		b := cloud("b", nil)
		a.complete = script(limited(20 * time.Second))
		r = router(t, localinference.Config{}, one(a, false), one(b, false))
		before := len(a.asked())
		for range 3 {
			began = time.Now()
			if _, served, err = complete(t, r, ""); err != nil || time.Since(began) != 0 || served.Provider != "b" {
				t.Errorf("it took %v: %v, %+v", time.Since(began), err, served)
			}
		}
		if n := len(a.asked()) - before; n != 1 {
			t.Errorf("a, who said to wait, was asked %d times", n)
		}
		time.Sleep(20 * time.Second)
		if _, served, err = complete(t, r, ""); err != nil || served.Provider != "a" {
			t.Errorf("after the wait: %v, %+v", err, served)
		}
	})
}

// A storm of refusals is not multiplied: retries are a tenth of the calls and ten.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := cloud("a", fault.New(op, fault.InferenceRateLimited, "wait"))
		r := router(t, localinference.Config{}, one(a, false))
		const n = 200
		for range n {
			_, _, _ = complete(t, r, "")
			time.Sleep(2 * time.Second) // the key is awake again
		}
		if calls := len(a.asked()); calls < n || calls > n+n/10+10 {
			t.Errorf("%d requests became %d calls", n, calls)
		}
	})
}

// Keys share the calls; one that is limited or refused rests, alone and for its time.
func TestKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := []*stub{cloud("p", nil), cloud("p", nil), cloud("p", nil)}
		r := router(t, localinference.Config{}, localinference.Provider{Keys: []inference.Model{keys[0], keys[1], keys[2]}})
		counts := func(requests int) [3]int {
			for _, k := range keys {
				k.mu.Lock()
				k.calls = nil
				k.mu.Unlock()
			}
			for range requests {
				if _, _, err := complete(t, r, ""); err != nil {
					t.Error(err)
				}
			}
			return [3]int{len(keys[0].asked()), len(keys[1].asked()), len(keys[2].asked())}
		}
		if got := counts(30); got != [3]int{10, 10, 10} {
			t.Errorf("calls by key: %v", got)
		}
		keys[0].complete = script(limited(10 * time.Second))
		keys[1].complete = func(context.Context, inference.Request) error {
			return fault.Wrap(op, errors.Join(fault.New(op, fault.InferenceProviderError, "key"), inference.ErrKeyRefused))
		}
		if got := counts(30); got != [3]int{1, 1, 30} {
			t.Errorf("calls by key with two that rest: %v", got)
		}
		time.Sleep(10 * time.Second)
		if got := counts(30); got[0] < 10 || got[1] != 0 || got[0]+got[2] != 30 {
			t.Errorf("calls by key with one that rests: %v", got)
		}
		// Another model has limits of its own.
		keys[2].complete = script(limited(time.Minute))
		counts(2)
		q, _ := request("")
		q.Model = "other"
		before := len(keys[2].asked())
		for range 6 {
			if _, err := r.Complete(t.Context(), q); err != nil {
				t.Error(err)
			}
		}
		if n := len(keys[2].asked()) - before; n == 0 {
			t.Error("a key that is limited for one model is not used for another")
		}
	})
}

// All keys refused: the code says that, without a call, and the provider is tried
// again later.
func TestRefusedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := cloud("a", fault.Wrap(op, errors.Join(fault.New(op, fault.InferenceProviderError, "key"), inference.ErrKeyRefused)))
		r := router(t, localinference.Config{}, one(a, false))
		for range 3 {
			if _, _, err := complete(t, r, ""); fault.CodeOf(err) != fault.InferenceProviderError || fault.Retryable(err) {
				t.Errorf("Complete = %v", err)
			}
		}
		if n := len(a.asked()); n != 1 {
			t.Errorf("a refused key was used %d times", n)
		}
		a.complete = nil
		time.Sleep(time.Minute)
		if _, _, err := complete(t, r, ""); err != nil {
			t.Errorf("after a minute: %v", err)
		}
	})
}

// An attempt has its time while there is somebody else, and all the time while there
// is nobody.
func TestAttemptTimeout(t *testing.T) {
	hang := func(ctx context.Context, _ inference.Request) error {
		<-ctx.Done()
		if errors.Is(ctx.Err(), context.Canceled) {
			return fault.New(op, fault.Canceled, "canceled")
		}
		return timeout()
	}
	for _, streamed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, b := cloud("a", nil), cloud("b", nil)
			a.complete = hang
			r := router(t, localinference.Config{AttemptTimeout: 10 * time.Second}, one(a, false), one(b, false))
			q, served := request("")
			began := time.Now()
			var err error
			if streamed {
				var s inference.Stream
				if s, err = r.CompleteStream(t.Context(), q); err == nil {
					_ = s.Close()
				}
			} else {
				_, err = r.Complete(t.Context(), q)
			}
			// Once more, then elsewhere (R-INF-34).
			if took := time.Since(began); err != nil || took < 20*time.Second || took > 21*time.Second || served.Provider != "b" || served.Attempts != 3 {
				t.Errorf("streamed %v: it took %v: %v, %+v", streamed, took, err, *served)
			}
			alone := router(t, localinference.Config{AttemptTimeout: 10 * time.Second}, one(a, false))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			began = time.Now()
			if _, err := alone.Complete(ctx, q); fault.CodeOf(err) != fault.InferenceTimeout || time.Since(began) != time.Minute {
				t.Errorf("alone it took %v: %v", time.Since(began), err)
			}
			// Cancelled is over at once, and nobody else is asked.
			before := len(b.asked())
			ctx, cancel = context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			began = time.Now()
			if _, err := r.Complete(ctx, q); fault.CodeOf(err) != fault.Canceled || time.Since(began) != time.Second || len(b.asked()) != before {
				t.Errorf("canceled after %v: %v", time.Since(began), err)
			}
		})
	}
}

// A provider that fails is left alone, and found again.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := cloud("a", down()), cloud("b", nil)
		r := router(t, localinference.Config{}, one(a, false), one(b, false))
		for range 20 {
			if _, served, err := complete(t, r, ""); err != nil || served.Provider != "b" {
				t.Errorf("%v, %+v", err, served)
			}
		}
		if n := len(a.asked()); n > 6 {
			t.Errorf("a, who is down, was asked %d times", n)
		}
		if e := r.Explain(func() inference.Request { q, _ := request(""); return q }()); e.Choices[0].Circuit != "open" {
			t.Errorf("Explain = %+v", e)
		}
		a.complete = nil
		time.Sleep(30 * time.Second)
		if _, served, err := complete(t, r, ""); err != nil || served.Provider != "a" {
			t.Errorf("later: %v, %+v", err, served)
		}
		lone := router(t, localinference.Config{}, one(cloud("c", down()), false))
		for range 4 {
			began := time.Now()
			_, _, err := complete(t, lone, "")
			if fault.CodeOf(err) != fault.InferenceProviderUnavailable || time.Since(began) > time.Second {
				t.Errorf("it took %v: %v", time.Since(began), err)
			}
		}
	})
}

// A provider has as many calls at once as it may; the others wait, and then go
// elsewhere or are told so.
func TestConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := cloud("a", nil)
		var mu sync.Mutex // guards now, most
		now, most := 0, 0
		a.complete = func(context.Context, inference.Request) error {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(30 * time.Second)
			mu.Lock()
			defer mu.Unlock()
			now--
			return nil
		}
		limit := localinference.Provider{Keys: []inference.Model{a}, Concurrency: 2}
		r := router(t, localinference.Config{}, limit)
		var group sync.WaitGroup
		var failed int
		for range 8 {
			group.Go(func() {
				_, _, err := complete(t, r, "")
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failed++
					if fault.CodeOf(err) != fault.InferenceRateLimited {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
		// In a minute two places serve the first two, two more, and two begin.
		if most != 2 || failed < 2 || failed > 4 {
			t.Errorf("at most %d at once, %d failed", most, failed)
		}
		b := cloud("b", nil)
		r = router(t, localinference.Config{}, limit, one(b, false))
		for range 3 {
			group.Go(func() { _, _, _ = complete(t, r, "") })
		}
		synctest.Wait()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := len(b.asked()); n != 1 {
			t.Errorf("b was asked %d times, want the one that found no place", n)
		}
		group.Wait()
		// A stream has its place until it is over.
		a.complete = nil
		q, _ := request("")
		r = router(t, localinference.Config{}, localinference.Provider{Keys: []inference.Model{a}, Concurrency: 1})
		s, err := r.CompleteStream(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(10*time.Second, func() { _ = s.Close() })
		began := time.Now()
		if _, _, err := complete(t, r, ""); err != nil || time.Since(began) != 10*time.Second {
			t.Errorf("the next waited %v: %v", time.Since(began), err)
		}
	})
}

// The fastest is asked first, the unknown now and then, the slow last, and what is
// old is forgotten.
func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		takes := func(d *time.Duration) func(context.Context, inference.Request) error {
			return func(context.Context, inference.Request) error { time.Sleep(*d); return nil }
		}
		slow, fast := 300*time.Millisecond, 30*time.Millisecond
		a, b := cloud("a", nil), cloud("b", nil)
		a.complete, b.complete = takes(&slow), takes(&fast)
		r := router(t, localinference.Config{Strategy: localinference.LatencyOptimized, MaxLatencyMS: 200}, one(a, false), one(b, false))
		for range 20 {
			_, _, _ = complete(t, r, "") // too little is known of both
		}
		if len(a.asked()) != 20 {
			t.Fatalf("a was asked %d times of the first 20", len(a.asked()))
		}
		for range 25 {
			_, _, _ = complete(t, r, "") // a is known to be slower than it may be
		}
		if len(a.asked()) > 23 || len(b.asked()) < 22 {
			t.Errorf("asked were %d and %d", len(a.asked()), len(b.asked()))
		}
		before := len(b.asked())
		for range 20 {
			_, _, _ = complete(t, r, "")
		}
		if n := len(b.asked()) - before; n != 20 {
			t.Errorf("the fast one was asked %d times of 20", n)
		}
		slow, fast = fast, slow
		time.Sleep(6 * time.Minute)
		before = len(a.asked())
		for range 60 {
			_, _, _ = complete(t, r, "")
		}
		if n := len(a.asked()) - before; n < 50 {
			t.Errorf("the one that became fast was asked %d times of 60", n)
		}
	})
}

// Callers without time say nothing of a provider: its breaker stays closed. Those
// that gave it a fair time do.
func TestHurriedCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			patience time.Duration
			want     call.State
		}{{time.Millisecond, call.Closed}, {10 * time.Second, call.Open}} {
			slow := cloud("a", nil)
			slow.complete = func(ctx context.Context, _ inference.Request) error {
				<-ctx.Done()
				return fault.Wrap(op, fault.InferenceTimeout)
			}
			r := router(t, localinference.Config{}, one(slow, false))
			var group sync.WaitGroup
			for range 2 * call.DefaultThreshold {
				group.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), test.patience)
					defer cancel()
					q, _ := request("")
					if _, err := r.Complete(ctx, q); !errors.Is(err, fault.InferenceTimeout) {
						t.Errorf("%v: %v", test.patience, err)
					}
				})
			}
			group.Wait()
			if got := r.Standings()[0].Circuit; got != test.want {
				t.Errorf("after callers with %v: %s, %d calls", test.patience, got, len(slow.asked()))
			}
		}
	})
}

// A panic on its way through gives the slot back.
func TestPanicKeepsNoSlot(t *testing.T) {
	a := cloud("a", nil)
	a.complete = func(context.Context, inference.Request) error { panic("planted") }
	p := one(a, false)
	p.Concurrency = 1
	r := router(t, localinference.Config{}, p)
	for range 2 {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic did not pass through")
				}
			}()
			q, _ := request("")
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, _ = r.Complete(ctx, q)
		}()
	}
	if n := r.Standings()[0].Calls; n != 0 {
		t.Errorf("%d calls are under way", n)
	}
}
