package metering_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/gate/gatetest"
	"creto.dev/internal/db/dbtest"
	"creto.dev/metering"
	"creto.dev/metering/meteringtest"
)

func TestLender(t *testing.T) {
	meteringtest.RunLender(t, func(t *testing.T) meteringtest.Lender { return open(t).lender(t) })
}

// lender is the house's quota for the suite.
func (h *house) lender(t testing.TB) meteringtest.Lender {
	t.Helper()
	h.limit(t, 1000, time.Hour)
	rate := metering.Rate{Count: 10, Period: time.Second, Burst: 20}
	if err := h.quota.SetRate(t.Context(), h.subject(), rate); err != nil {
		t.Fatal(err)
	}
	return meteringtest.Lender{
		Lender: h.quota, Agent: h.chain.Agent(), Human: h.chain.Human(), Limit: 1000, Rate: rate, Advance: h.clock.Advance, Fail: h.clock.Fail,
	}
}

// wire counts what goes to a lender, and can be cut.
type wire struct {
	metering.Lender
	leases atomic.Int64
	cut    atomic.Bool
	lost   atomic.Bool // the answers alone
}

func (w *wire) Terms(ctx context.Context, agent, human creto.ID) (metering.Terms, error) {
	if w.cut.Load() {
		return metering.Terms{}, fault.New("test", fault.AuthzUnavailable, "cut")
	}
	return w.Lender.Terms(ctx, agent, human)
}

func (w *wire) Lease(ctx context.Context, r metering.LeaseRequest) (metering.Lease, error) {
	w.leases.Add(1)
	if w.cut.Load() {
		return metering.Lease{}, fault.New("test", fault.AuthzUnavailable, "cut")
	}
	l, err := w.Lender.Lease(ctx, r)
	if w.lost.Load() {
		return metering.Lease{}, fault.New("test", fault.AuthzTimeout, "lost")
	}
	return l, err
}

func (h *house) borrower(name string) (*metering.Borrower, *wire) {
	w := &wire{Lender: h.quota}
	return metering.NewBorrower(w, h.clock, name), w
}

// evaluateOn reserves a model call on some extension.
func (h *house) evaluateOn(t testing.TB, e authz.Extension) (authz.Decision, error) {
	t.Helper()
	bound, err := e.Bind(t.Context(), h.chain)
	if err != nil {
		return authz.Decision{}, err
	}
	held, d, err := bound.Evaluate(t.Context(), modelCall, true)
	if d == nil {
		return authz.Decision{Reservation: held}, err
	}
	return *d, err
}

// A borrower is a meter like the lender's own.
func TestBorrowerMeter(t *testing.T) {
	gatetest.RunMeter(t, func(t *testing.T) gatetest.Meter {
		h := open(t)
		h.limit(t, 1000, time.Hour)
		b, _ := h.borrower("b")
		return gatetest.Meter{Extension: b, Meter: b, Chain: h.chain, Limit: 1000}
	})
}

// Nodes that share a quota use just what it is, in few trips, and however they
// share the work. The simulation has a million units and eight nodes.
func TestShare(t *testing.T) {
	const nodes = 8
	for name, limit := range map[string]int64{"in turn": 1_000_000, "at random": 100_000, "at once": 200_000} {
		t.Run(name, func(t *testing.T) {
			h := open(t)
			h.limit(t, limit, time.Hour)
			var granted atomic.Int64
			trips := int64(0)
			bound := make([]authz.Evaluator, nodes)
			borrowers := make([]*metering.Borrower, nodes)
			wires := make([]*wire, nodes)
			for i := range nodes {
				borrowers[i], wires[i] = h.borrower(fmt.Sprint(i))
				var err error
				if bound[i], err = borrowers[i].Bind(t.Context(), h.chain); err != nil {
					t.Fatal(err)
				}
			}
			use := func(i int) bool {
				held, d, err := bound[i].Evaluate(t.Context(), modelCall, true)
				if err != nil {
					t.Error(err)
					return false
				}
				if d != nil {
					return false
				}
				borrowers[i].Commit(held)
				granted.Add(1)
				return true
			}
			switch name {
			case "in turn":
				for denied := 0; denied < nodes; {
					denied = 0
					for i := range nodes {
						if !use(i) {
							denied++
						}
					}
				}
			case "at random":
				r := rand.New(rand.NewPCG(1, 2))
				for denied := 0; denied < 100*nodes; {
					if use(min(r.IntN(nodes), r.IntN(nodes))) { // some more than others
						denied = 0
					} else {
						denied++
					}
				}
				for i := range nodes { // who was hardly asked
					for use(i) {
						continue
					}
				}
			case "at once":
				var group sync.WaitGroup
				for i := range nodes {
					group.Go(func() {
						for use(i) {
							continue
						}
					})
				}
				group.Wait()
				for i := range nodes {
					for use(i) {
						continue
					}
				}
			}
			for _, w := range wires {
				trips += w.leases.Load()
			}
			if granted.Load() != limit {
				t.Errorf("%d nodes used %d of %d", nodes, granted.Load(), limit)
			}
			t.Logf("%d trips for %d units on %d nodes", trips, limit, nodes)
			if trips > 450 {
				t.Errorf("%d trips for %d units on %d nodes, want fewer than 450", trips, limit, nodes)
			}
			if d := h.evaluate(t, true); d.Kind != authz.QuotaExceeded {
				t.Errorf("the lender itself still has some: %+v", d)
			}
		})
	}
}

// Nodes that die, that lose answers and that are cut off never make more of a quota
// than it is; what is lost is no more than what they had.
func TestShareWithDeaths(t *testing.T) {
	const limit = 20_000
	for seed := range uint64(6) {
		h := open(t)
		h.limit(t, limit, time.Hour)
		r := rand.New(rand.NewPCG(seed, 7))
		type node struct {
			*metering.Borrower
			*wire
			held []authz.Reservation
		}
		start := func() *node {
			b, w := h.borrower("n")
			return &node{b, w, nil}
		}
		nodes := []*node{start(), start(), start(), nil} // nil is the lender itself
		granted, deaths := 0, 0
		for range 60_000 {
			i := r.IntN(len(nodes))
			n := nodes[i]
			if n == nil {
				if d := h.evaluate(t, true); d.Kind != authz.QuotaExceeded {
					h.quota.Commit(d.Reservation)
					granted++
				}
				continue
			}
			switch r.IntN(2000) {
			case 0: // kill -9; the owner may be told nothing
				nodes[i] = start()
				deaths++
				continue
			case 1:
				n.cut.Store(!n.cut.Load())
			case 2:
				n.lost.Store(!n.lost.Load())
			case 3:
				h.clock.Advance(time.Second)
			case 4, 5, 6, 7:
				if err := n.Renew(t.Context(), r.IntN(4) == 0); err != nil && !n.cut.Load() && !n.lost.Load() {
					t.Fatal(err)
				}
			}
			d, err := h.evaluateOn(t, n.Borrower)
			if err != nil {
				if !n.cut.Load() && !n.lost.Load() && !errors.Is(err, fault.AuthzUnavailable) && !errors.Is(err, fault.AuthzTimeout) {
					t.Fatal(err)
				}
				continue
			}
			if d.Kind == authz.QuotaExceeded {
				continue
			}
			granted++
			if r.IntN(10) == 0 {
				n.Refund(d.Reservation)
				granted--
			} else {
				n.Commit(d.Reservation)
			}
		}
		if granted > limit {
			t.Fatalf("seed %d: %d were granted of %d, with %d deaths", seed, granted, limit, deaths)
		}
		if granted < limit/8 {
			t.Fatalf("seed %d: only %d were granted of %d, with %d deaths: the test shows nothing", seed, granted, limit, deaths)
		}
	}
}

// A node that is cut off uses what it was lent, and is then denied, with the reason;
// when the time of the lease is over it is denied even if there is some left.
func TestCutOff(t *testing.T) {
	h := open(t)
	h.limit(t, 1000, time.Hour)
	b, w := h.borrower("b")
	if _, err := h.evaluateOn(t, b); err != nil {
		t.Fatal(err)
	}
	w.cut.Store(true)
	n := 1
	for {
		d, err := h.evaluateOn(t, b)
		if err != nil {
			if !errors.Is(err, fault.AuthzUnavailable) {
				t.Errorf("Evaluate = %v, want AuthzUnavailable", err)
			}
			break
		}
		if d.Kind == authz.QuotaExceeded {
			t.Fatalf("Evaluate = %+v without having asked", d)
		}
		n++
	}
	if n != 250 {
		t.Errorf("%d of the 250 that were lent could be used", n)
	}
	// It is asked seldom while it does not answer.
	trips := w.leases.Load()
	for range 100 {
		if _, err := h.evaluateOn(t, b); err == nil {
			t.Fatal("something is left")
		}
	}
	if w.leases.Load() != trips {
		t.Errorf("a node that does not answer was asked %d times more", w.leases.Load()-trips)
	}
	w.cut.Store(false)
	h.clock.Advance(time.Second)
	if _, err := h.evaluateOn(t, b); err != nil {
		t.Errorf("when it is back, Evaluate = %v", err)
	}
	w.cut.Store(true)
	h.clock.Advance(metering.LeaseTTL)
	if d, err := h.evaluateOn(t, b); !errors.Is(err, fault.AuthzUnavailable) {
		t.Errorf("with a lease that is over, Evaluate = %+v, %v; want AuthzUnavailable", d, err)
	}
	w.cut.Store(false)
	h.clock.Advance(time.Second)
	if d, err := h.evaluateOn(t, b); err != nil || d.Reservation == (authz.Reservation{}) {
		t.Errorf("afterwards, Evaluate = %+v, %v", d, err)
	}
	// Knowing the limits is not enough.
	w.lost.Store(true)
	h.clock.Advance(metering.LeaseTTL)
	if d, err := h.evaluateOn(t, b); !errors.Is(err, fault.AuthzTimeout) {
		t.Errorf("with a lease that is over, Evaluate = %+v, %v; want AuthzTimeout", d, err)
	}
}

// Each window is lent anew, whole, and what was held of the one before is none of
// it.
func TestBorrowWindows(t *testing.T) {
	h := open(t)
	h.limit(t, 1000, time.Hour)
	b, _ := h.borrower("b")
	for range 3 {
		n := 0
		var first authz.Reservation
		for {
			d, err := h.evaluateOn(t, b)
			if err != nil {
				t.Fatal(err)
			}
			if d.Kind == authz.QuotaExceeded {
				break
			}
			if n++; n == 1 {
				first = d.Reservation
			}
		}
		if n != 1000 {
			t.Errorf("%d were granted of a window of 1000", n)
		}
		h.clock.Advance(time.Hour)
		if _, err := h.evaluateOn(t, b); err != nil {
			t.Fatal(err)
		}
		b.Refund(first)
		h.clock.Advance(time.Hour)
	}
}

// What is not used is given back: by who has been idle, and by who leaves.
func TestGiveBack(t *testing.T) {
	h := open(t)
	h.limit(t, 1000, time.Hour)
	b, _ := h.borrower("b")
	used := func() int64 {
		t.Helper()
		limits, _, err := h.quota.Limits(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return limits[0].Used
	}
	d, err := h.evaluateOn(t, b)
	if err != nil || used() != 250 {
		t.Fatalf("%d are used, %v; want the 250 that are lent", used(), err)
	}
	renew := func(all bool) {
		t.Helper()
		if err := b.Renew(t.Context(), all); err != nil {
			t.Fatal(err)
		}
	}
	renew(false) // it was used since
	if used() != 250 {
		t.Errorf("%d are used of a lease in use, want 250", used())
	}
	renew(false)
	if used() != 1 {
		t.Errorf("%d are used of a lease without use, want 1", used())
	}
	if _, err := h.evaluateOn(t, b); err != nil || used() < 100 {
		t.Errorf("%d are used after it was needed again, %v", used(), err)
	}
	b.Refund(d.Reservation)
	renew(true)
	if used() != 1 {
		t.Errorf("%d are used by who left, want 1", used())
	}
}

// What limits change to reaches borrowers: at once where they ask, and within a
// moment where they do not.
func TestTermsChange(t *testing.T) {
	h := open(t)
	b, _ := h.borrower("b")
	bound, err := b.Bind(t.Context(), h.chain)
	if err != nil {
		t.Fatal(err)
	}
	kind := func() authz.Kind {
		t.Helper()
		_, d, err := bound.Evaluate(t.Context(), modelCall, true)
		if err != nil {
			t.Fatal(err)
		}
		if d == nil {
			return authz.Deny
		}
		return d.Kind
	}
	if k := kind(); k != authz.Deny { // it goes on
		t.Errorf("without a limit, Evaluate = %v", k)
	}
	h.limit(t, 1, time.Hour)
	h.clock.Advance(10 * time.Second)
	if k := kind(); k == authz.QuotaExceeded {
		t.Errorf("within the limit, Evaluate = %v", k)
	}
	if k := kind(); k != authz.QuotaExceeded {
		t.Errorf("beyond the limit, Evaluate = %v", k)
	}
	h.limit(t, 2, time.Hour)
	h.clock.Advance(time.Second)
	if k := kind(); k == authz.QuotaExceeded {
		t.Errorf("with a higher limit, Evaluate = %v", k)
	}
	h.clear(t, 0)
	h.clock.Advance(time.Second)
	if k := kind(); k == authz.QuotaExceeded {
		t.Errorf("after the limit was removed, Evaluate = %v", k)
	}
}

// A lender that starts again has lent what it had: to those who come back, and to
// those who do not.
func TestLenderRestarts(t *testing.T) {
	h := open(t)
	h.limit(t, 1000, time.Hour)
	b, w := h.borrower("b")
	gone, _ := h.borrower("gone")
	for _, x := range []*metering.Borrower{b, gone} {
		if _, err := h.evaluateOn(t, x); err != nil {
			t.Fatal(err)
		}
	}
	h.act(t, 5, audit.Success, nil)
	h.reopen(t)
	w.Lender = h.quota
	limits, _, err := h.quota.Limits(t.Context())
	if err != nil || limits[0].Used != 250+93+5 || limits[0].Lent != 250+93 {
		t.Fatalf("Limits = %+v, %v; want what was lent, and what the log has", limits, err)
	}
	if err := b.Renew(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if limits, _, err = h.quota.Limits(t.Context()); err != nil || limits[0].Used != 1+93+5 {
		t.Errorf("after one gave back, Limits = %+v, %v", limits, err)
	}
	h.clock.Advance(time.Hour)
	h.reopen(t)
	if limits, _, err = h.quota.Limits(t.Context()); err != nil || limits[0].Used != 0 {
		t.Errorf("in the next window, Limits = %+v, %v", limits, err)
	}
}

// What cannot be written down is not lent.
func TestLendDurably(t *testing.T) {
	h := open(t)
	h.limit(t, 1000, time.Hour)
	mend := dbtest.Break(t, h.db, "INSERT ON quota_lease")
	b, _ := h.borrower("b")
	if d, err := h.evaluateOn(t, b); err == nil {
		t.Errorf("Evaluate = %+v, want an error", d)
	}
	mend()
	if n := h.left(t); n != 1000 {
		t.Errorf("%d are left, want 1000", n)
	}
}

// What is known of limits counts for as long as a lease while the lender is away:
// also that there are none.
func TestTermsExpire(t *testing.T) {
	h := open(t)
	b, w := h.borrower("b")
	e, err := b.Bind(t.Context(), h.chain)
	if err != nil {
		t.Fatal(err)
	}
	w.cut.Store(true)
	evaluate := func() error {
		_, _, err := e.Evaluate(t.Context(), modelCall, true)
		return err
	}
	h.clock.Advance(metering.LeaseTTL - 1)
	if err := evaluate(); err != nil {
		t.Errorf("Evaluate = %v, want what is known to count", err)
	}
	h.clock.Advance(time.Second)
	if err := evaluate(); !errors.Is(err, fault.AuthzUnavailable) {
		t.Errorf("Evaluate = %v, want AuthzUnavailable", err)
	}
	w.cut.Store(false)
	if err := evaluate(); err != nil {
		t.Errorf("when the lender is back, Evaluate = %v", err)
	}
}
