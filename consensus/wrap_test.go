package consensus_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/consensus"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/health"
)

// broken is a clock that can be made to fail, hang or lie.
type broken struct {
	*consensustest.Manual
	mu    sync.Mutex // guards what follows
	fault error
	hang  bool
	lie   *creto.Timestamp
	calls int
	after func() // runs before Now returns
}

func (b *broken) set(change func(*broken)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(b)
}

func (b *broken) Now(ctx context.Context) (creto.Timestamp, error) {
	b.mu.Lock()
	b.calls++
	fail, hang, lie, after := b.fault, b.hang, b.lie, b.after
	b.mu.Unlock()
	switch {
	case hang:
		<-ctx.Done()
		return creto.Timestamp{}, fault.Wrap("broken.Now", ctx.Err())
	case fail != nil:
		return creto.Timestamp{}, fail
	case lie != nil:
		return *lie, nil
	}
	s, err := b.Manual.Now(ctx)
	if after != nil {
		after()
	}
	return s, err
}

func (b *broken) Ping(ctx context.Context) error {
	b.mu.Lock()
	hang := b.hang
	b.mu.Unlock()
	if hang {
		<-ctx.Done()
		return fault.Wrap("broken.Ping", ctx.Err())
	}
	return b.Manual.Ping(ctx)
}

func fallback(c consensus.Clock, report func(context.Context, consensus.Episode) error) *consensus.Fallback {
	return consensus.NewFallback(c, consensus.FallbackConfig{
		Node: "n1", Local: true, Report: report,
		Policy: call.Policy{Timeout: 50 * time.Millisecond, Attempts: 2, InitialDelay: 10 * time.Millisecond, MaxDelay: 100 * time.Millisecond},
	})
}

func must(t testing.TB, c consensus.Clock) creto.Timestamp {
	t.Helper()
	s, err := c.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Neither decorator changes what a clock promises.
func TestDecorated(t *testing.T) {
	var m consensustest.Manual
	t.Run("guard", func(t *testing.T) {
		consensustest.Run(t, func(*testing.T) consensus.Clock { return consensus.NewGuard(&m) })
	})
	t.Run("fallback", func(t *testing.T) {
		consensustest.Run(t, func(*testing.T) consensus.Clock { return fallback(&m, nil) })
	})
	t.Run("both", func(t *testing.T) {
		consensustest.Run(t, func(*testing.T) consensus.Clock { return fallback(consensus.NewGuard(&m), nil) })
	})
}

// R-CON-15: a clock that is slow is asked twice, 50 ms each; then a local stamp is
// given, which says so.
func TestFallbackOnTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &broken{Manual: &consensustest.Manual{}}
		b.Set(time.Now())
		f := fallback(b, nil)
		before := must(t, f)
		b.set(func(b *broken) { b.hang, b.calls = true, 0 })
		begin := time.Now()
		s := must(t, f)
		if took := time.Since(begin); b.calls != 2 || took < 100*time.Millisecond || took > 110*time.Millisecond {
			t.Errorf("%d calls in %v, want 2 in 100 to 110 ms", b.calls, took)
		}
		if s.Source != creto.SourceLocal || s.Node != "n1" || s.Uncertainty <= 0 || creto.HappenedBefore(before, s) != creto.Uncertain || creto.Order(before, s) >= 0 {
			t.Errorf("the stamp %+v after %+v", s, before)
		}
		// R-CON-17: slow is one thing, away another.
		slow := health.Of(f.Ping(t.Context()), "Consensus service slow", "Consensus service unavailable")
		b.set(func(b *broken) { b.hang = false })
		b.Fail(true)
		down := health.Of(f.Ping(t.Context()), "Consensus service slow", "Consensus service unavailable")
		b.Fail(false)
		well := health.Of(f.Ping(t.Context()), "Consensus service slow", "Consensus service unavailable")
		if slow.State != health.Degraded || slow.Reason != "Consensus service slow" || down.State != health.Unhealthy || well.State != health.Healthy {
			t.Errorf("health when slow, away and well: %+v, %+v, %+v", slow, down, well)
		}
	})
}

// What falls back and what does not.
func TestFallbackCodes(t *testing.T) {
	for code, falls := range map[fault.Code]bool{
		fault.ConsensusUnavailable: true, fault.ConsensusTimeout: true, fault.Unavailable: true, fault.CircuitOpen: true,
		fault.ConsensusOrderingConflict: false, fault.ConsensusInternal: false, fault.PermissionDenied: false, fault.SecurityViolation: false, fault.Unauthenticated: false,
	} {
		t.Run(code.String(), func(t *testing.T) {
			b := &broken{Manual: &consensustest.Manual{}, fault: fault.New("test", code, "broken")}
			s, err := fallback(b, nil).Now(t.Context())
			if falls && (err != nil || s.Source != creto.SourceLocal) || !falls && !errors.Is(err, code) {
				t.Errorf("Now = %+v, %v", s, err)
			}
			off := consensus.NewFallback(b, consensus.FallbackConfig{Node: "n1", Policy: call.Policy{Attempts: 1}})
			if s, err := off.Now(t.Context()); !errors.Is(err, code) { // R-CFG-22
				t.Errorf("without local stamps: Now = %+v, %v; want %v", s, err, code)
			}
		})
	}
	b := &broken{Manual: &consensustest.Manual{}, hang: true}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if s, err := fallback(b, nil).Now(ctx); !errors.Is(err, fault.DeadlineExceeded) {
		t.Errorf("when the caller's time ends first: %+v, %v; want DeadlineExceeded", s, err)
	}
	b.set(func(b *broken) { b.hang = false })
	b.Fail(true)
	f := fallback(b, nil)
	if _, err := f.Register(t.Context(), creto.DigestOf(nil)); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("Register = %v, want ConsensusUnavailable: a place is for consensus to give", err)
	}
	if _, err := f.OrderEvents(t.Context(), nil); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("OrderEvents = %v, want ConsensusUnavailable", err)
	}
	if err := f.Ping(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("Ping = %v, want ConsensusUnavailable: health tells of consensus, not of what stands in", err)
	}
}

// Local stamps follow consensus' time, never the system's clock, which may be set
// to anything; and say how far off they may be.
func TestFallbackHybrid(t *testing.T) {
	b := &broken{Manual: &consensustest.Manual{}}
	b.Set(time.Unix(5000, 0))
	f := fallback(b, nil)
	clock := time.Now()
	f.SetWall(func() time.Time { return clock })
	seen := must(t, f)
	b.Fail(true)
	clock = clock.Add(100 * time.Second) // passes on both clocks
	s := must(t, f)
	if s.Physical != seen.Physical+100*int64(time.Second) || s.Logical != seen.Logical || s.Uncertainty != 100*int64(time.Second)/1e6*200 {
		t.Errorf("100 s after %+v: %+v", seen, s)
	}
	again := must(t, f) // no time has passed
	if again.Physical != s.Physical+1 || again.Uncertainty != s.Uncertainty+1 || creto.Order(s, again) >= 0 {
		t.Errorf("right after %+v: %+v", s, again)
	}
	b.Fail(false)
	b.Set(time.Unix(5100, 0).Add(-5 * time.Second)) // consensus is behind what we gave
	if soon := must(t, f); soon.Source != creto.SourceLocal {
		t.Errorf("a service that was away a moment ago is asked again: %+v", soon)
	}
	again = must(t, f)
	clock = clock.Add(time.Second)
	back := must(t, f)
	if back.Source != creto.SourceConsensus || creto.Order(again, back) >= 0 {
		t.Errorf("consensus' own stamp %+v after %+v", back, again)
	}
	b.Fail(true)
	if s := must(t, f); creto.Order(back, s) >= 0 || s.Physical <= again.Physical || s.Uncertainty < 5*int64(time.Second) {
		t.Errorf("the next local stamp %+v after %+v and %+v", s, again, back)
	}
}

// While the machine sleeps the monotonic clock stands still.
func TestFallbackAfterSleep(t *testing.T) {
	b := &broken{Manual: &consensustest.Manual{}}
	b.Set(time.Unix(5000, 0))
	f := fallback(b, nil)
	clock := time.Now().Round(0) // without a monotonic reading every step shows
	f.SetWall(func() time.Time { return clock })
	seen := must(t, f)
	b.Fail(true)
	clock = clock.Add(8 * time.Hour)
	if s := must(t, f); s.Physical < seen.Physical+int64(8*time.Hour) {
		t.Errorf("after 8 h of sleep %v behind", time.Duration(seen.Physical+int64(8*time.Hour)-s.Physical))
	}
}

// B-12: a node that never reached consensus gives stamps that sort behind what an
// earlier life of it saw, and whose uncertainty is unknown.
func TestFallbackBeforeConsensus(t *testing.T) {
	b := &broken{Manual: &consensustest.Manual{}}
	b.Fail(true)
	f := fallback(b, nil)
	old := creto.Timestamp{Logical: creto.LogicalOf(7, 9), Physical: time.Now().Add(time.Hour).UnixNano(), Source: creto.SourceConsensus, Node: "c"}
	f.Observe(old)
	f.Observe(creto.Timestamp{Logical: creto.LogicalOf(6, 9), Physical: 1, Source: creto.SourceConsensus, Node: "c"})
	s := must(t, f)
	if creto.Order(old, s) >= 0 || s.Logical != old.Logical || s.Physical <= old.Physical || s.Uncertainty != creto.UncertaintyUnknown {
		t.Errorf("%+v after %+v", s, old)
	}
}

// One record says that a node gives local stamps, and one anchors them.
func TestFallbackEpisodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &broken{Manual: &consensustest.Manual{}}
		b.Set(time.Now())
		var mu sync.Mutex
		var told []consensus.Episode
		refuse := 2
		var f *consensus.Fallback
		f = fallback(b, func(ctx context.Context, e consensus.Episode) error {
			if _, err := f.Now(ctx); err != nil { // as a log does
				t.Errorf("Now in Report = %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if refuse > 0 {
				refuse--
				return fault.New("test", fault.AuditUnavailable, "full")
			}
			told = append(told, e)
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = f.Run(ctx) }()
		before := must(t, f)
		b.Fail(true)
		first := must(t, f)
		must(t, f)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		mu.Lock()
		if len(told) != 1 || told[0].First != first || !told[0].After.IsZero() || told[0].Before != before || told[0].Node != "n1" || told[0].Cause != fault.ConsensusUnavailable {
			t.Errorf("told %+v, want one beginning at %+v", told, first)
		}
		mu.Unlock()
		if e, ok := f.Degraded(); !ok || e.First != first {
			t.Errorf("Degraded = %+v, %v", e, ok)
		}
		last := must(t, f)
		b.Fail(false)
		time.Sleep(10 * time.Second) // nobody asks: Run notices
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(told) != 2 || told[1].First != first || told[1].Last != last || told[1].After.Source != creto.SourceConsensus || creto.Order(last, told[1].After) >= 0 || told[1].Count < 3 {
			t.Fatalf("told %+v, want an end with %+v to %+v", told, first, last)
		}
		if _, ok := f.Degraded(); ok {
			t.Error("still degraded")
		}
		next := must(t, f)
		if creto.HappenedBefore(told[1].After, next) != creto.Yes {
			t.Errorf("%+v is not after the anchor %+v", next, told[1].After)
		}
	})
}

// A stamp that was asked for before the last local one was given anchors nothing.
func TestFallbackAnchorIsAfter(t *testing.T) {
	b := &broken{Manual: &consensustest.Manual{}}
	var told []consensus.Episode
	f := fallback(b, func(_ context.Context, e consensus.Episode) error { told = append(told, e); return nil })
	clock := time.Now()
	f.SetWall(func() time.Time { clock = clock.Add(time.Second); return clock })
	b.Fail(true)
	must(t, f)
	b.Fail(false)
	var during creto.Timestamp
	b.set(func(b *broken) {
		b.after = func() { // another caller fails while this one's answer is on its way
			b.set(func(b *broken) { b.after, b.fault = nil, fault.New("test", fault.ConsensusUnavailable, "down") })
			during = must(t, f)
			b.set(func(b *broken) { b.fault = nil })
		}
	})
	early := must(t, f)
	if e, ok := f.Degraded(); !ok || e.Last != during {
		t.Errorf("the stamp %+v ended the episode with %+v, which was given later", early, during)
	}
	anchor := must(t, f)
	if _, ok := f.Degraded(); ok {
		t.Errorf("the stamp %+v did not end the episode", anchor)
	}
}

// Everything that one process sees is in creto.Order, whatever fails when.
func TestFallbackNeverGoesBack(t *testing.T) {
	b := &broken{Manual: &consensustest.Manual{}}
	f := fallback(b, nil)
	clock := time.Now()
	f.SetWall(func() time.Time { clock = clock.Add(200 * time.Millisecond); return clock })
	var all []creto.Timestamp
	for i := range 300 {
		b.Fail(i/7%2 == 1)
		b.Advance(time.Duration(i%5-2) * time.Millisecond)
		if i%11 == 0 && i/7%2 == 0 {
			s, err := f.Register(t.Context(), creto.DigestOf([]byte{byte(i)}))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		stamps, err := f.Stamps(t.Context(), 1+i%3)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, stamps...)
	}
	if !slices.IsSortedFunc(all, creto.Order) || len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Error("the stamps of one process are not in order")
	}
}

// Clients refuse regressions, and stamps that are none.
func TestGuardRefuses(t *testing.T) {
	b := &broken{Manual: &consensustest.Manual{}}
	b.Set(time.Unix(5000, 0))
	g := consensus.NewGuard(b)
	last := must(t, g)
	for name, lie := range map[string]creto.Timestamp{
		"the same stamp":          last,
		"an earlier place":        {Logical: last.Logical - 1, Physical: last.Physical, Source: creto.SourceConsensus, Node: "x"},
		"an earlier time":         {Logical: last.Logical + 9, Physical: last.Physical - 1, Source: creto.SourceConsensus, Node: "x"},
		"a local stamp":           {Logical: last.Logical + 9, Physical: last.Physical + 9, Source: creto.SourceLocal, Node: "x"},
		"no node":                 {Logical: last.Logical + 9, Physical: last.Physical + 9, Source: creto.SourceConsensus},
		"nothing":                 {},
		"one that doubts itself ": {Logical: last.Logical + 9, Physical: last.Physical + 9, Source: creto.SourceConsensus, Node: "x", Uncertainty: 1},
	} {
		b.set(func(b *broken) { b.lie = &lie })
		if s, err := g.Now(t.Context()); !errors.Is(err, fault.ConsensusOrderingConflict) {
			t.Errorf("%s: Now = %+v, %v; want ConsensusOrderingConflict", name, s, err)
		}
		if s, err := g.Stamps(t.Context(), 2); !errors.Is(err, fault.ConsensusOrderingConflict) {
			t.Errorf("%s: Stamps = %+v, %v; want ConsensusOrderingConflict", name, s, err)
		}
		if s, err := fallback(g, nil).Now(t.Context()); !errors.Is(err, fault.ConsensusOrderingConflict) { // R-CON-16
			t.Errorf("%s: behind a fallback: %+v, %v; want ConsensusOrderingConflict", name, s, err)
		}
	}
	b.set(func(b *broken) { b.lie = nil })
	must(t, g)
	g.Observe(creto.Timestamp{Logical: creto.LogicalOf(99, 0), Source: creto.SourceConsensus})
	if s, err := g.Now(t.Context()); !errors.Is(err, fault.ConsensusOrderingConflict) {
		t.Errorf("after another life saw more: Now = %+v, %v; want ConsensusOrderingConflict", s, err)
	}
}

// shuffler answers OrderEvents wrongly.
type shuffler struct {
	*consensustest.Manual
	answer []consensus.Ordered
}

func (s shuffler) OrderEvents(context.Context, []consensus.EventID) ([]consensus.Ordered, error) {
	return s.answer, nil
}

func TestGuardRefusesOrders(t *testing.T) {
	m := &consensustest.Manual{}
	a, b := creto.DigestOf([]byte("a")), creto.DigestOf([]byte("b"))
	first, second := must(t, m), must(t, m)
	for name, answer := range map[string][]consensus.Ordered{
		"backwards": {{ID: a, Stamp: second}, {ID: b, Stamp: first}}, "one short": {{ID: a, Stamp: first}}, "one twice": {{ID: a, Stamp: first}, {ID: a, Stamp: second}},
		"another": {{ID: a, Stamp: first}, {ID: creto.DigestOf([]byte("c")), Stamp: second}}, "one place for two": {{ID: a, Stamp: first}, {ID: b, Stamp: first}},
	} {
		if got, err := consensus.NewGuard(shuffler{m, answer}).OrderEvents(t.Context(), []consensus.EventID{a, b}); !errors.Is(err, fault.ConsensusOrderingConflict) {
			t.Errorf("%s: %v, %v; want ConsensusOrderingConflict", name, got, err)
		}
	}
}

// Answers that overtake each other are no regression.
func TestGuardAllowsOvertaking(t *testing.T) {
	b := &broken{Manual: &consensustest.Manual{}}
	g := consensus.NewGuard(b)
	b.set(func(b *broken) {
		b.after = func() {
			b.set(func(b *broken) { b.after = nil })
			must(t, g) // asked later, answered first
		}
	})
	must(t, g)
}
