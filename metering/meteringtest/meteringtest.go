// Package meteringtest is what every implementation of metering.Lender must do.
package meteringtest

import (
	"errors"
	"sync"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/metering"
)

// Lender is a lender under test. It has one limit, of Limit model calls of Agent in
// each hour, for whoever that acts for; and one rate.
type Lender struct {
	metering.Lender
	Agent creto.ID
	Human creto.ID
	Limit int64
	Rate  metering.Rate
	// Advance moves the lender's clock; Fail has it fail, or not any more.
	Advance func(d time.Duration)
	Fail    func(bool)
}

// subject is model calls of the agent.
func (h Lender) subject() metering.Subject {
	return metering.Subject{Agent: h.Agent, Action: creto.CallModel}
}

// borrower is one that keeps its count.
type borrower struct {
	h        Lender
	name     string
	sequence uint64
	last     metering.Lease
}

// ask asks for at least want, keeping held.
func (b *borrower) ask(t *testing.T, held, want int64) metering.Lease {
	t.Helper()
	b.sequence++
	l, err := b.h.Lease(t.Context(), metering.LeaseRequest{
		Borrower: b.name, Sequence: b.sequence, Subject: b.h.subject(), Window: time.Hour, Start: b.last.Start, Had: max(held, b.last.Held), Held: held, Want: want,
	})
	if err != nil {
		t.Fatal(err)
	}
	if l.TTL <= 0 || l.TTL > metering.LeaseTTL || l.TTL > l.Reset || l.Reset > time.Hour || l.Limit != b.h.Limit {
		t.Fatalf("Lease = %+v; want one that ends with its window, or before", l)
	}
	b.last = l
	return l
}

// RunLender tests the lenders that open returns, a fresh one a case. Their clocks
// stand at the middle of an hour.
func RunLender(t *testing.T, open func(*testing.T) Lender) {
	t.Run("terms", func(t *testing.T) {
		h := open(t)
		got, err := h.Terms(t.Context(), h.Agent, h.Human)
		if err != nil || len(got.Limits) != 1 || len(got.Rates) != 1 {
			t.Fatalf("Terms = %+v, %v; want a limit and a rate", got, err)
		}
		if x := got.Limits[0]; x.Subject != h.subject() || x.Limit != (metering.Limit{Amount: h.Limit, Window: time.Hour}) {
			t.Errorf("the limit is %+v", x)
		}
		if x := got.Rates[0]; x.Subject != h.subject() || x.Rate != h.Rate {
			t.Errorf("the rate is %+v", x)
		}
		other := h.Agent
		other.Name = "other"
		if got, err := h.Terms(t.Context(), other, h.Human); err != nil || len(got.Limits)+len(got.Rates) != 0 {
			t.Errorf("Terms of another agent = %+v, %v; want none", got, err)
		}
	})
	t.Run("no more than there is", func(t *testing.T) {
		h := open(t)
		lent := make([]int64, 8)
		var group sync.WaitGroup
		for i := range lent {
			group.Go(func() {
				b := &borrower{h: h, name: string(rune('a' + i))}
				for {
					l := b.ask(t, lent[i], 1)
					if l.Held == lent[i] {
						return
					}
					lent[i] = l.Held
				}
			})
		}
		group.Wait()
		sum := int64(0)
		for _, n := range lent {
			sum += n
		}
		if sum != h.Limit {
			t.Errorf("%d are lent, limit %d", sum, h.Limit)
		}
	})
	t.Run("a share, but what is wanted", func(t *testing.T) {
		h := open(t)
		a, b := &borrower{h: h, name: "a"}, &borrower{h: h, name: "b"}
		if l := a.ask(t, 0, 1); l.Held != h.Limit/4 {
			t.Errorf("one borrower gets %d of %d, want a quarter", l.Held, h.Limit)
		}
		if l, want := b.ask(t, 0, 1), (h.Limit-h.Limit/4)/8; l.Held != want {
			t.Errorf("one of two gets %d, want %d", l.Held, want)
		}
		left := h.Limit - a.last.Held - b.last.Held
		if l := b.ask(t, b.last.Held, left+1); l.Held != b.last.Held || l.Used != h.Limit-left {
			t.Errorf("more than is left gives %+v, want nothing more", l)
		}
		held := b.last.Held
		if l := b.ask(t, held, left); l.Held != held+left || l.Used != h.Limit {
			t.Errorf("all that is left gives %+v", l)
		}
	})
	t.Run("what is given back is lent again", func(t *testing.T) {
		h := open(t)
		a, b := &borrower{h: h, name: "a"}, &borrower{h: h, name: "b"}
		a.ask(t, 0, h.Limit)
		if l := b.ask(t, 0, 1); l.Held != 0 || l.Used != h.Limit {
			t.Errorf("Lease = %+v, want nothing left", l)
		}
		if l := a.ask(t, 10, 0); l.Held != 10 || l.Used != 10 {
			t.Errorf("after giving back, Lease = %+v, want 10", l)
		}
		if l := b.ask(t, 0, h.Limit-10); l.Held != h.Limit-10 {
			t.Errorf("Lease = %+v, want all but 10", l)
		}
	})
	t.Run("an answer that was lost is taken back", func(t *testing.T) {
		h := open(t)
		a := &borrower{h: h, name: "a"}
		first := a.ask(t, 0, 10).Held
		a.ask(t, first, h.Limit/2) // its answer never comes
		if l := a.ask(t, first, 0); l.Held != first || l.Used != first {
			t.Errorf("Lease = %+v, want what the borrower knows of: %d", l, first)
		}
	})
	t.Run("a request that is late is refused", func(t *testing.T) {
		h := open(t)
		a := &borrower{h: h, name: "a"}
		a.ask(t, 0, 10)
		held := a.last.Held
		_, err := h.Lease(t.Context(), metering.LeaseRequest{Borrower: "a", Sequence: 1, Subject: h.subject(), Window: time.Hour, Start: a.last.Start})
		if !errors.Is(err, fault.FailedPrecondition) {
			t.Errorf("Lease = %v, want FailedPrecondition", err)
		}
		if l := a.ask(t, held, 0); l.Held != held || l.Used != held {
			t.Errorf("after that, Lease = %+v, want %d", l, held)
		}
		a.sequence++
		if _, err := h.Lease(t.Context(), metering.LeaseRequest{Borrower: "a", Sequence: a.sequence, Subject: h.subject(), Window: time.Hour, Start: a.last.Start, Had: held + 1, Held: held + 1}); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("Lease with more than was lent = %v, want InvalidArgument", err)
		}
	})
	t.Run("who is gone takes what they had with them", func(t *testing.T) {
		h := open(t)
		a, b := &borrower{h: h, name: "a"}, &borrower{h: h, name: "b"}
		a.ask(t, 0, 10)
		h.Advance(2 * metering.LeaseTTL)
		if l := b.ask(t, 0, h.Limit-a.last.Held); l.Held != h.Limit-a.last.Held {
			t.Errorf("Lease = %+v", l)
		}
		if l := b.ask(t, b.last.Held, 1); l.Used != h.Limit {
			t.Errorf("Lease = %+v, want everything used", l)
		}
		h.Advance(time.Hour)
		if l := b.ask(t, b.last.Held, h.Limit); l.Held != h.Limit {
			t.Errorf("in the next window, Lease = %+v, want all of it", l)
		}
	})
	t.Run("what a borrower says to have counts", func(t *testing.T) {
		h := open(t)
		a := &borrower{h: h, name: "a"}
		known := a.ask(t, 0, 1)
		b := &borrower{h: h, name: "b", last: known} // of a life of the lender that is forgotten
		if l := b.ask(t, 100, 0); l.Held != 100 || l.Used != known.Held+100 {
			t.Errorf("Lease = %+v, want 100 more used than %d", l, known.Held)
		}
	})
	t.Run("what cannot be lent", func(t *testing.T) {
		h := open(t)
		good := metering.LeaseRequest{Borrower: "a", Sequence: 1, Subject: h.subject(), Window: time.Hour, Want: 1}
		for name, change := range map[string]func(*metering.LeaseRequest){
			"by nobody":          func(r *metering.LeaseRequest) { r.Borrower = "" },
			"a negative amount":  func(r *metering.LeaseRequest) { r.Want = -1 },
			"a negative rest":    func(r *metering.LeaseRequest) { r.Held = -1 },
			"more than it had":   func(r *metering.LeaseRequest) { r.Had, r.Held = 1, 2 },
			"an enormous amount": func(r *metering.LeaseRequest) { r.Want = 1<<63 - 1 },
			"of no agent":        func(r *metering.LeaseRequest) { r.Agent = h.Human },
			"of no action":       func(r *metering.LeaseRequest) { r.Action = "fly" },
		} {
			r := good
			change(&r)
			if l, err := h.Lease(t.Context(), r); !errors.Is(err, fault.InvalidArgument) {
				t.Errorf("%s: Lease = %+v, %v; want InvalidArgument", name, l, err)
			}
		}
		for name, change := range map[string]func(*metering.LeaseRequest){
			"another window": func(r *metering.LeaseRequest) { r.Window = time.Minute },
			"another human":  func(r *metering.LeaseRequest) { r.Human = h.Human },
			"another action": func(r *metering.LeaseRequest) { r.Action = creto.CallTool },
		} {
			r := good
			change(&r)
			if l, err := h.Lease(t.Context(), r); !errors.Is(err, fault.NotFound) {
				t.Errorf("%s: Lease = %+v, %v; want NotFound", name, l, err)
			}
		}
	})
	t.Run("without time nothing is lent", func(t *testing.T) {
		h := open(t)
		if err := h.Ping(t.Context()); err != nil {
			t.Errorf("Ping = %v", err)
		}
		h.Fail(true)
		r := metering.LeaseRequest{Borrower: "a", Sequence: 1, Subject: h.subject(), Window: time.Hour, Want: 1}
		if l, err := h.Lease(t.Context(), r); !errors.Is(err, fault.ConsensusUnavailable) {
			t.Errorf("Lease = %+v, %v; want ConsensusUnavailable", l, err)
		}
		if err := h.Ping(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
			t.Errorf("Ping = %v, want ConsensusUnavailable", err)
		}
	})
}
