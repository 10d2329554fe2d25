// Package consensustest is what every implementation of package consensus must
// do, a clock that tests move by hand, and a checker of histories.
package consensustest

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/anishathalye/porcupine"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
)

// Run tests a clock. Each call of open opens the same clock again, after the
// life before ended without a farewell.
func Run(t *testing.T, open func(*testing.T) consensus.Clock) {
	reopen := func() consensus.Clock { return open(t) } // a life lasts for the whole test
	clock := reopen()
	t.Run("stamps increase", func(t *testing.T) { testIncrease(t, clock) })
	t.Run("stamps say who made them", func(t *testing.T) { testSource(t, clock) })
	t.Run("stamps of concurrent callers are unique and in the order of the calls", func(t *testing.T) { testConcurrent(t, clock) })
	t.Run("several stamps at once keep what one does", func(t *testing.T) { testBatch(t, clock) })
	t.Run("stamps increase across a restart", func(t *testing.T) {
		for range 3 {
			before := now(t, clock)
			clock = reopen()
			mustFollow(t, before, now(t, clock))
		}
	})
	t.Run("events keep their first stamp", func(t *testing.T) {
		id, first := testFirstStamp(t, clock)
		clock = reopen()
		if again, err := clock.Register(t.Context(), id); err != nil || again != first {
			t.Errorf("Register in another life = %+v, %v; want %+v", again, err, first)
		}
	})
	t.Run("registering at once gives one stamp", func(t *testing.T) { testRegisterAtOnce(t, clock) })
	t.Run("a registration takes its place among the stamps", func(t *testing.T) {
		before := now(t, clock)
		stamp, err := clock.Register(t.Context(), event(t, "between"))
		if err != nil {
			t.Fatal(err)
		}
		mustFollow(t, before, stamp)
		mustFollow(t, stamp, now(t, clock))
	})
	t.Run("events are ordered", func(t *testing.T) { testOrder(t, clock) })
	t.Run("unknown events are a conflict", func(t *testing.T) { testUnknown(t, clock) })
	t.Run("too much is refused", func(t *testing.T) {
		if _, err := clock.OrderEvents(t.Context(), make([]consensus.EventID, consensus.MaxEvents+1)); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("OrderEvents of too many = %v, want InvalidArgument", err)
		}
		for _, n := range []int{-1, 0, consensus.MaxBatch + 1} {
			if _, err := consensus.Stamps(t.Context(), clock, n); !errors.Is(err, fault.InvalidArgument) {
				t.Errorf("Stamps(%d) = %v, want InvalidArgument", n, err)
			}
		}
	})
	t.Run("ping takes no stamp", func(t *testing.T) { testPing(t, clock) })
	t.Run("the end of the caller's time is no fault of the clock", func(t *testing.T) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		before := now(t, clock)
		if s, err := clock.Now(ended); err != nil && !errors.Is(err, fault.Canceled) {
			t.Errorf("Now with a context that ended = %+v, %v; want a stamp or Canceled", s, err)
		}
		mustFollow(t, before, now(t, clock))
	})
}

func now(t *testing.T, c consensus.Clock) creto.Timestamp {
	t.Helper()
	s, err := c.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// event makes an id of this test's own, so that a suite can run twice on one
// clock.
func event(t *testing.T, name string) consensus.EventID {
	return creto.DigestOf([]byte(t.Name() + "\x00" + name + "\x00" + creto.NewUUID().String()))
}

// mustFollow fails the test unless b is a later stamp than a.
func mustFollow(t *testing.T, a, b creto.Timestamp) {
	t.Helper()
	if creto.Order(a, b) >= 0 || creto.HappenedBefore(a, b) != creto.Yes || b.Physical < a.Physical {
		t.Fatalf("%+v is not after %+v", b, a)
	}
}

func testIncrease(t *testing.T, c consensus.Clock) {
	last := now(t, c)
	for range 2000 {
		s := now(t, c)
		mustFollow(t, last, s)
		last = s
	}
}

func testSource(t *testing.T, c consensus.Clock) {
	s := now(t, c)
	if s.Source != creto.SourceConsensus || s.Node == "" || s.Uncertainty != 0 || s.Term() == 0 || s.Logical == 0 {
		t.Errorf("Now = %+v, want source consensus, a node, a term and no uncertainty", s)
	}
}

// testConcurrent has several callers take stamps at once: what they get is a
// history of one clock.
func testConcurrent(t *testing.T, c consensus.Clock) {
	const goroutines, each = 8, 500
	var order atomic.Int64 // of what callers see
	histories := make([][]Call, goroutines)
	var group sync.WaitGroup
	for client := range goroutines {
		group.Go(func() {
			for range each {
				began := order.Add(1)
				s, err := c.Now(t.Context())
				if err != nil {
					t.Errorf("Now = %v", err)
					return
				}
				histories[client] = append(histories[client], Call{Client: client, Began: began, Ended: order.Add(1), Stamp: s})
			}
		})
	}
	group.Wait()
	if got := CheckHistory(slices.Concat(histories...)); got != porcupine.Ok {
		t.Errorf("the history of %d callers is %v: a stamp came twice, or is no later than one that had been returned when it was asked for", goroutines, got)
	}
}

func testBatch(t *testing.T, c consensus.Clock) {
	last := now(t, c)
	for _, n := range []int{1, 2, 100, consensus.MaxBatch} {
		stamps, err := consensus.Stamps(t.Context(), c, n)
		if err != nil || len(stamps) != n {
			t.Fatalf("Stamps(%d) = %d stamps, %v", n, len(stamps), err)
		}
		for _, s := range stamps {
			mustFollow(t, last, s)
			last = s
		}
	}
	mustFollow(t, last, now(t, c))
}

func testFirstStamp(t *testing.T, c consensus.Clock) (consensus.EventID, creto.Timestamp) {
	id := event(t, "first")
	first, err := c.Register(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		now(t, c)
		if again, err := c.Register(t.Context(), id); err != nil || again != first {
			t.Errorf("Register again = %+v, %v; want %+v", again, err, first)
		}
	}
	return id, first
}

func testRegisterAtOnce(t *testing.T, c consensus.Clock) {
	id := event(t, "at once")
	var stamps [8]creto.Timestamp
	var group sync.WaitGroup
	for i := range stamps {
		group.Go(func() {
			var err error
			if stamps[i], err = c.Register(t.Context(), id); err != nil {
				t.Errorf("Register = %v", err)
			}
		})
	}
	group.Wait()
	for _, s := range stamps {
		if s != stamps[0] {
			t.Errorf("one event got %+v and %+v", stamps[0], s)
		}
	}
}

func testOrder(t *testing.T, c consensus.Clock) {
	var ids []consensus.EventID
	var want []consensus.Ordered
	for i := range 20 {
		id := event(t, strconv.Itoa(i))
		s, err := c.Register(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		ids, want = append(ids, id), append(want, consensus.Ordered{ID: id, Stamp: s})
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 5 {
		asked := append(slices.Clone(ids), ids[r.IntN(len(ids))], ids[r.IntN(len(ids))]) // some twice
		r.Shuffle(len(asked), func(i, j int) { asked[i], asked[j] = asked[j], asked[i] })
		before := slices.Clone(asked)
		got, err := c.OrderEvents(t.Context(), asked)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("OrderEvents = %v, %v; want each once, as registered: %v", got, err, want)
		}
		if !slices.Equal(asked, before) {
			t.Error("OrderEvents changed its argument")
		}
	}
	if got, err := c.OrderEvents(t.Context(), nil); err != nil || len(got) != 0 {
		t.Errorf("OrderEvents of nothing = %v, %v", got, err)
	}
}

func testUnknown(t *testing.T, c consensus.Clock) {
	known, unknown := event(t, "known"), event(t, "unknown")
	if _, err := c.Register(t.Context(), known); err != nil {
		t.Fatal(err)
	}
	for range 2 { // asking registers nothing
		got, err := c.OrderEvents(t.Context(), []consensus.EventID{known, unknown})
		if !errors.Is(err, fault.ConsensusOrderingConflict) || fault.CategoryOf(err) != fault.Permanent || fault.Retryable(err) || len(got) != 0 {
			t.Errorf("OrderEvents with an unknown event = %v, %v; want ConsensusOrderingConflict alone", got, err)
		}
	}
}

func testPing(t *testing.T, c consensus.Clock) {
	if err := c.Ping(t.Context()); err != nil {
		t.Fatalf("Ping = %v", err)
	}
	// A clock that is asked by nobody else counts by one, unless it counts in
	// batches; a thousand pings would show in either.
	before := now(t, c)
	for range 100 {
		if err := c.Ping(t.Context()); err != nil {
			t.Fatalf("Ping = %v", err)
		}
	}
	if after := now(t, c); after.Term() == before.Term() && after.Logical-before.Logical >= 100 {
		t.Errorf("100 pings took %d stamps", after.Logical-before.Logical-1)
	}
}
