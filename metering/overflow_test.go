package metering_test

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/metering"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc/localpqc"
)

// consume asks for units of quota.
func consume(amount any) authz.Request {
	return authz.Request{Action: creto.ConsumeQuota, Resource: creto.Resource{Type: "Meter", ID: "m"}, Context: map[string]any{authz.AmountKey: amount}}
}

// An amount that no clock has room for does not empty the bucket backwards.
func TestRateOfHugeAmounts(t *testing.T) {
	h := open(t)
	s := metering.Subject{Agent: h.chain.Agent(), Action: metering.AnyAction}
	if err := h.quota.SetRate(t.Context(), s, metering.Rate{Count: 1, Period: time.Hour, Burst: 2}); err != nil {
		t.Fatal(err)
	}
	e, err := h.quota.Rates().Bind(t.Context(), h.chain)
	if err != nil {
		t.Fatal(err)
	}
	for n := int64(3); n > 0; n *= 2 {
		for _, n := range []int64{n, n - 1, n + 1, math.MaxInt64 - n, math.MaxInt64/int64(time.Hour) + n} {
			if n <= 2 {
				continue
			}
			if _, d, err := e.Evaluate(t.Context(), consume(n), true); err == nil && (d == nil || d.Kind != authz.Deny) {
				t.Fatalf("%d units = %+v, want deny", n, d)
			}
		}
	}
	for i := range 3 {
		if _, ok := pass(t, e, true); ok != (i < 2) {
			t.Errorf("call %d: %v", i, ok)
		}
	}
}

// What was used when nothing limited it cannot run over into room.
func TestUsedDoesNotOverflow(t *testing.T) {
	h := open(t)
	for range 2 {
		if _, err := h.log.Log(t.Context(), audit.Record{
			ID: creto.NewUUID(), Who: h.chain.Agent(), OnBehalfOf: h.chain.Human(), What: creto.ConsumeQuota, Resource: "Meter::tokens", Outcome: audit.Success,
			Stamp: creto.Timestamp{Physical: at.UnixNano()}, Detail: map[string]string{authz.AmountKey: "9223372036854775807"},
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.log.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := metering.Subject{Agent: h.chain.Agent(), Action: creto.ConsumeQuota}
	if err := h.quota.SetLimit(t.Context(), s, metering.Limit{Amount: 1, Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"at once", "after a restart"} {
		e := h.bind(t)
		if _, d, err := e.Evaluate(t.Context(), consume(1), true); err != nil || d == nil || d.Kind != authz.QuotaExceeded {
			t.Errorf("%s: %+v, %v; want quota exceeded", when, d, err)
		}
		h.reopen(t)
	}
}

// A window always ends, and later than it begins.
func TestWindowsHaveAnEnd(t *testing.T) {
	h := open(t)
	for _, years := range []time.Duration{1, 99, 101, 253, 292} {
		l := metering.Limit{Amount: 1, Window: years * 365 * 24 * time.Hour}
		if h.quota.SetLimit(t.Context(), h.subject(), l) != nil {
			if years < 100 {
				t.Errorf("%v is refused", l)
			}
			continue
		}
		if n := h.left(t); n != 1 {
			t.Errorf("%v leaves %d, want 1", l, n)
		}
		h.clear(t, 0)
	}
}

// Whatever a lender or an administrator says, to look at a rate is safe.
func TestRateBounds(t *testing.T) {
	for _, r := range []metering.Rate{
		{Count: math.MaxInt64, Period: math.MaxInt64, Burst: 1},
		{Count: 2, Period: math.MaxInt64, Burst: 1},
		{Count: 1, Period: math.MaxInt64, Burst: 1},
		{Count: math.MaxInt64, Period: math.MaxInt64, Burst: math.MaxInt64},
	} {
		if r.Validate() == nil {
			t.Errorf("%+v is a rate", r)
		}
	}
}

// Borrowers cannot claim so much that it runs over into room.
func TestLentDoesNotOverflow(t *testing.T) {
	h := open(t)
	h.limit(t, 10, time.Hour)
	l, err := h.quota.Lease(t.Context(), metering.LeaseRequest{Borrower: "honest", Sequence: 1, Subject: h.subject(), Window: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		_, _ = h.quota.Lease(t.Context(), metering.LeaseRequest{
			Borrower: name, Sequence: 1, Subject: h.subject(), Window: time.Hour, Start: l.Start, Had: 1 << 62, Held: 1 << 62,
		})
		if n := h.left(t); n > 10 {
			t.Fatalf("after %s there are %d left of 10", name, n)
		}
	}
}

// What is no amount is refused, whether there is a limit or not: its record could not
// say how much it was.
func TestAmountWithoutLimit(t *testing.T) {
	h := open(t)
	for _, amount := range []any{-1, 1e300, "7"} {
		if _, _, err := h.bind(t).Evaluate(t.Context(), consume(amount), true); !errors.Is(err, fault.AuthzInvalidRequest) {
			t.Errorf("Evaluate of %v = %v, want AuthzInvalidRequest", amount, err)
		}
	}
}

// Whom nobody asks for any more is forgotten.
func TestAccountsAreForgotten(t *testing.T) {
	h := open(t)
	p := localpqc.New()
	for i := range 20 {
		chain := nhitest.Chain(t, p, at, nhi.Everything(), "alice", fmt.Sprint("bot", i))
		if _, err := h.quota.Bind(t.Context(), chain); err != nil {
			t.Fatal(err)
		}
	}
	kept := h.bind(t)
	for range 100 {
		runtime.GC()
		if h.quota.Accounts() == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if n := h.quota.Accounts(); n != 1 {
		t.Errorf("%d accounts are known, want 1", n)
	}
	// Who is still bound hears of a change.
	h.limit(t, 1, time.Hour)
	for i := range 2 {
		if _, d, err := kept.Evaluate(t.Context(), modelCall, true); err != nil || (d != nil) != (i == 1) {
			t.Errorf("Evaluate = %+v, %v", d, err)
		}
	}
}

// Lives of nodes that have nothing any more are forgotten, before their window ends.
func TestBorrowersAreForgotten(t *testing.T) {
	h := open(t)
	h.limit(t, 1000, 24*time.Hour)
	lease := func(r metering.LeaseRequest) metering.Lease {
		t.Helper()
		r.Subject, r.Window = h.subject(), 24*time.Hour
		l, err := h.quota.Lease(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for i := range 10 {
		name := fmt.Sprint("node/", i)
		l := lease(metering.LeaseRequest{Borrower: name, Sequence: 1, Want: 1})
		lease(metering.LeaseRequest{Borrower: name, Sequence: 2, Start: l.Start, Had: l.Held})
	}
	l := lease(metering.LeaseRequest{Borrower: "dead", Sequence: 1, Want: 7})
	h.clock.Advance(2 * metering.LeaseTTL)
	lease(metering.LeaseRequest{Borrower: "last", Sequence: 1})
	if n := h.quota.Lines(h.subject(), 24*time.Hour); n != 2 {
		t.Errorf("%d borrowers are known, want who has something, and who asks", n)
	}
	if n := h.left(t); int64(n) != 1000-l.Held {
		t.Errorf("%d are left, want 1000 without the %d of who died", n, l.Held)
	}
}

// Who asks for more than there is does not keep others from what there is.
func TestTooMuchIsNotDry(t *testing.T) {
	h := open(t)
	s := metering.Subject{Agent: h.chain.Agent(), Action: metering.AnyAction}
	if err := h.quota.SetLimit(t.Context(), s, metering.Limit{Amount: 100, Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	b, wire := h.borrower("b")
	e, err := b.Bind(t.Context(), h.chain)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, d, err := e.Evaluate(t.Context(), consume(101), true); err != nil || d == nil {
			t.Errorf("Evaluate of 101 = %+v, %v", d, err)
		}
	}
	if n := wire.leases.Load(); n > 1 {
		t.Errorf("the lender was asked %d times for what it does not have", n)
	}
	if _, d, err := e.Evaluate(t.Context(), consume(1), true); err != nil || d != nil {
		t.Errorf("Evaluate of 1 = %+v, %v; there are 100", d, err)
	}
}
