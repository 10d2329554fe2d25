package metering_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/metering"
)

// rate sets a rate and returns its evaluator.
func (h *house) rate(t testing.TB, r metering.Rate) authz.Evaluator {
	t.Helper()
	if err := h.quota.SetRate(t.Context(), h.subject(), r); err != nil {
		t.Fatal(err)
	}
	e, err := h.quota.Rates().Bind(t.Context(), h.chain)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// pass asks for one, and says how long to wait if it may not.
func pass(t testing.TB, e authz.Evaluator, reserve bool) (time.Duration, bool) {
	t.Helper()
	held, d, err := e.Evaluate(t.Context(), modelCall, reserve)
	if err != nil {
		t.Fatal(err)
	}
	if held != (authz.Reservation{}) {
		t.Fatalf("a rate holds %+v", held)
	}
	if d == nil {
		return 0, true
	}
	if d.Kind != authz.RateLimited || d.RetryAfter <= 0 || d.Reason == "" {
		t.Fatalf("Evaluate = %+v, want how long to wait", d)
	}
	return d.RetryAfter, false
}

func TestRate(t *testing.T) {
	h := open(t)
	e := h.rate(t, metering.Rate{Count: 10, Period: time.Second, Burst: 3})
	for range 10 {
		if _, ok := pass(t, e, false); !ok {
			t.Fatal("a look is counted")
		}
	}
	for i := range 5 {
		if wait, ok := pass(t, e, true); ok != (i < 3) || !ok && wait != 100*time.Millisecond {
			t.Errorf("call %d: %v, %v", i, wait, ok)
		}
	}
	h.clock.Advance(100*time.Millisecond - 1)
	if wait, ok := pass(t, e, true); ok || wait != 1 {
		t.Errorf("a nanosecond early: %v, %v", wait, ok)
	}
	h.clock.Advance(1)
	if _, ok := pass(t, e, true); !ok {
		t.Error("after what it said to wait, it may not")
	}
	// A clock that goes back lets nothing pass twice.
	h.clock.Advance(-time.Hour)
	if _, ok := pass(t, e, true); ok {
		t.Error("a clock that went back lets one pass")
	}
	h.clock.Advance(2 * time.Hour)
	n := 0
	for ; n < 10; n++ {
		if _, ok := pass(t, e, true); !ok {
			break
		}
	}
	if n != 3 {
		t.Errorf("after a long time %d may pass at once, want the burst of 3", n)
	}
	h.clock.Fail(true)
	if _, d, err := e.Evaluate(t.Context(), modelCall, true); d != nil || !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("without time, Evaluate = %v, %v", d, err)
	}
	h.clock.Fail(false)
	if ok, err := h.quota.ClearRate(t.Context(), h.subject()); !ok || err != nil {
		t.Errorf("ClearRate = %v, %v", ok, err)
	}
	if _, ok := pass(t, e, true); !ok {
		t.Error("a rate that was removed is enforced")
	}
	h.rate(t, metering.Rate{Count: 1, Period: time.Hour, Burst: 2})
	h.reopen(t)
	_, rates, err := h.quota.Limits(t.Context())
	if err != nil || len(rates) != 1 || rates[0].Rate != (metering.Rate{Count: 1, Period: time.Hour, Burst: 2}) || rates[0].Left != 2 {
		t.Errorf("after a restart, the rates are %+v, %v", rates, err)
	}
}

// Of several rates all have room, or nothing passes through any.
func TestRates(t *testing.T) {
	h := open(t)
	e := h.rate(t, metering.Rate{Count: 1, Period: time.Second, Burst: 5})
	all := h.subject()
	all.Action = metering.AnyAction
	if err := h.quota.SetRate(t.Context(), all, metering.Rate{Count: 1, Period: time.Second, Burst: 2}); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, ok := pass(t, e, true); ok != (i < 2) {
			t.Errorf("call %d: %v", i, ok)
		}
	}
	_, rates, err := h.quota.Limits(t.Context())
	if err != nil || rates[0].Left != 0 || rates[1].Left != 3 {
		t.Errorf("the rates are %+v, %v; want what passed taken of both", rates, err)
	}
	// Whichever it is that has none.
	h.clock.Advance(time.Hour)
	h.rate(t, metering.Rate{Count: 1, Period: time.Second, Burst: 2})
	if err := h.quota.SetRate(t.Context(), all, metering.Rate{Count: 1, Period: time.Second, Burst: 5}); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, ok := pass(t, e, true); ok != (i < 2) {
			t.Errorf("call %d: %v", i, ok)
		}
	}
	if _, rates, err = h.quota.Limits(t.Context()); err != nil || rates[0].Left != 3 || rates[1].Left != 0 {
		t.Errorf("the rates are %+v, %v; want what passed taken of both", rates, err)
	}
	more := authz.Request{Action: creto.ConsumeQuota, Context: map[string]any{authz.AmountKey: 6}}
	if _, d, err := e.Evaluate(t.Context(), more, true); err != nil || d == nil || d.Kind != authz.Deny || !strings.Contains(d.Reason, "bursts of 5") {
		t.Errorf("more than a burst: %+v, %v; want a denial for good", d, err)
	}
}

// bucket is a token bucket, in exact arithmetic: what a rate is to be.
type bucket struct {
	interval, burst int64
	level           int64 // nanoseconds' worth of tokens
	at              int64
}

func (b *bucket) take(now, n int64) bool {
	if now > b.at {
		b.level = min(b.burst*b.interval, b.level+now-b.at)
		b.at = now
	}
	if b.level < n*b.interval {
		return false
	}
	b.level -= n * b.interval
	return true
}

// A rate decides as a token bucket does, and never lets more than burst + rate·t pass
// in any time t.
func TestRateIsATokenBucket(t *testing.T) {
	h := open(t)
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 3))
		rate := metering.Rate{Count: 1 + r.Int64N(1000), Period: time.Duration(1+r.Int64N(10_000)) * time.Millisecond, Burst: 1 + r.Int64N(50)}
		if _, err := h.quota.ClearRate(t.Context(), h.subject()); err != nil {
			t.Fatal(err)
		}
		e := h.rate(t, rate)
		interval := (int64(rate.Period) + rate.Count - 1) / rate.Count
		h.clock.Advance(time.Hour)
		now, err := h.clock.Now(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		oracle := bucket{interval: interval, burst: rate.Burst, level: rate.Burst * interval, at: now.Physical}
		var passed []int64
		for i := range 2000 {
			if r.IntN(3) > 0 {
				h.clock.Advance(time.Duration(r.Int64N(2 * interval)))
			}
			if r.IntN(200) == 0 {
				h.clock.Advance(time.Duration(r.Int64N(100 * interval)))
			}
			now, err := h.clock.Now(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, ok := pass(t, e, true)
			if want := oracle.take(now.Physical, 1); ok != want {
				t.Fatalf("seed %d, call %d, %+v: %v, want %v", seed, i, rate, ok, want)
			}
			if ok {
				passed = append(passed, now.Physical)
			}
		}
		for i := range passed {
			for j := i; j < len(passed); j += 1 + (j-i)/8 {
				d := passed[j] - passed[i]
				if n := int64(j - i + 1); n > rate.Burst+d/interval+1 || float64(n) > float64(rate.Burst)+float64(d)*float64(rate.Count)/float64(rate.Period)+1e-6 {
					t.Fatalf("seed %d, %+v: %d passed in %v", seed, rate, n, time.Duration(d))
				}
			}
		}
	}
}

// Many at once get no more than the burst.
func TestRateContention(t *testing.T) {
	h := open(t)
	e := h.rate(t, metering.Rate{Count: 1, Period: time.Hour, Burst: 1000})
	var group sync.WaitGroup
	var passed atomic.Int64
	for range 64 {
		group.Go(func() {
			for range 50 {
				if _, ok := pass(t, e, true); ok {
					passed.Add(1)
				}
			}
		})
	}
	group.Wait()
	if passed.Load() != 1000 {
		t.Errorf("%d passed of a burst of 1000", passed.Load())
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]metering.Rate{
		"10/s": {Count: 10, Period: time.Second, Burst: 10}, "100/5m": {Count: 100, Period: 5 * time.Minute, Burst: 100}, "1/1h30m": {Count: 1, Period: 90 * time.Minute, Burst: 1},
	} {
		got, err := metering.ParseRate(text, 0)
		if err != nil || got != want {
			t.Errorf("ParseRate(%q) = %+v, %v; want %+v", text, got, err, want)
		}
		if again, err := metering.ParseRate(got.String(), got.Burst); err != nil || again != got {
			t.Errorf("ParseRate(%q) = %+v, %v; want it back", got.String(), again, err)
		}
	}
	for _, text := range []string{"", "10", "/s", "10/", "x/s", "10/x", "0/s", "-1/s", "10/-1s", "2/1ns", "10/1us", "9999999999999999999/s", "9000000000000000000/s"} {
		if r, err := metering.ParseRate(text, 0); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("ParseRate(%q) = %+v, %v; want InvalidArgument", text, r, err)
		}
	}
	for _, burst := range []int64{-1, 1 << 62} {
		if r, err := metering.ParseRate("1/s", burst); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("ParseRate with a burst of %d = %+v, %v; want InvalidArgument", burst, r, err)
		}
	}
	for text, want := range map[string]string{"100/1h": "100/1h", "5/60m": "5/1h", "5/90m": "5/1h30m", "7/m": "7/1m", "7/24h": "7/24h", "1/10s": "1/10s", "1/1h10m": "1/1h10m"} {
		if l, err := metering.ParseLimit(text); err != nil || l.String() != want {
			t.Errorf("ParseLimit(%q) = %v, %v; want %s", text, l, err, want)
		}
	}
	for _, text := range []string{"lots", "0/1h", "-5/1h", "5/1ms", "5/", "/1h", "5/1h/1h", "5"} {
		if l, err := metering.ParseLimit(text); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("ParseLimit(%q) = %+v, %v; want InvalidArgument", text, l, err)
		}
	}
}

// What is left is told of the limit that has least, and nothing is taken by telling.
func TestLeft(t *testing.T) {
	h := open(t)
	left := func(want metering.Left) {
		t.Helper()
		for range 2 {
			got, err := h.quota.Left(t.Context(), h.chain.Agent(), h.chain.Human(), creto.CallModel)
			if at := got.ResetAt; want.Limit > 0 != !at.IsZero() {
				t.Errorf("it is reset at %v", at)
			}
			if got.ResetAt = (time.Time{}); err != nil || got != want {
				t.Errorf("Left = %+v, %v, want %+v", got, err, want)
			}
		}
	}
	left(metering.Left{})
	e := h.rate(t, metering.Rate{Count: 10, Period: time.Second, Burst: 3})
	left(metering.Left{Limit: 3, Units: 3})
	pass(t, e, true)
	left(metering.Left{Limit: 3, Units: 2, Reset: 100 * time.Millisecond})
	for range 2 {
		pass(t, e, true)
	}
	left(metering.Left{Limit: 3, Reset: 300 * time.Millisecond})
	// A quota beside it, which has less once the rate has recovered.
	if err := h.quota.SetLimit(t.Context(), h.subject(), metering.Limit{Amount: 1, Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	h.clock.Advance(300 * time.Millisecond)
	if got, err := h.quota.Left(t.Context(), h.chain.Agent(), h.chain.Human(), creto.CallModel); err != nil || got.Limit != 1 || got.Units != 1 || got.Reset <= 0 || got.Reset > time.Hour || got.ResetAt.Minute() != 0 {
		t.Errorf("Left = %+v, %v", got, err)
	}
	if got, err := h.quota.Left(t.Context(), h.chain.Agent(), h.chain.Human(), creto.CallTool); err != nil || got != (metering.Left{}) {
		t.Errorf("of another action: %+v, %v", got, err)
	}
}
