package gate_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/nhi"
	"creto.dev/oversight"
	"creto.dev/pqc/localpqc"
)

// Where policy asks for two humans, two different ones must consent to the same
// arguments, and the record has both consents.
func TestQuorum(t *testing.T) {
	h := build(t)
	h.legislate(t, strings.Replace(policies, `@timeout("30m")`, `@timeout("30m") @quorum("2")`, 1))
	c := h.caller(t)
	var acted atomic.Int32
	end := h.do(t.Context(), c, refund("50"), nothing(&acted))
	first := h.decide(t, "50", true)
	second := h.waiting(t, "50")
	if second.ID == first.ID || second.Quorum != 2 || len(second.Consented) != 1 || acted.Load() != 0 {
		t.Fatalf("behind the first consent %+v waits, acted %d times", second, acted.Load())
	}
	bob := h.authority.ID(creto.KindHuman, "bob")
	if _, err := h.desk.Decide(t.Context(), second.ID, oversight.Decision{By: bob, Approve: true, Channel: oversight.ChannelCLI}); !errors.Is(err, fault.PermissionDenied) {
		t.Errorf("the same human again = %v, want PermissionDenied", err)
	}
	h.decideAs(t, "carol", "50", true)
	if err := <-end; err != nil || acted.Load() != 1 {
		t.Fatalf("Do = %v, acted %d times", err, acted.Load())
	}
	records := h.records(t, creto.HTTPRequest)
	if len(records) != 1 || len(records[0].Consents) != 2 || records[0].CheckConsents() != nil || records[0].Consents[0].Approver == records[0].Consents[1].Approver {
		t.Errorf("the record is %+v", records)
	}

	// Who comes again finds the consent that there is, and it counts once.
	ctx, cancel := context.WithCancel(t.Context())
	end = h.do(ctx, c, refund("60"), nothing(&acted))
	h.decide(t, "60", true)
	waits := h.waiting(t, "60")
	cancel()
	<-end
	end = h.do(t.Context(), c, refund("60"), nothing(&acted))
	if again := h.waiting(t, "60"); again.ID != waits.ID {
		t.Errorf("the retry asks %s, want %s", again.ID, waits.ID)
	}
	h.decideAs(t, "carol", "60", true)
	if err := <-end; err != nil || acted.Load() != 2 {
		t.Fatalf("the retry = %v, acted %d times", err, acted.Load())
	}

	// One no is enough.
	end = h.do(t.Context(), c, refund("70"), nothing(&acted))
	h.decide(t, "70", true)
	h.waiting(t, "70")
	h.decideAs(t, "carol", "70", false)
	if err := <-end; !errors.Is(err, fault.AuthzDenied) || acted.Load() != 2 {
		t.Errorf("Do = %v, acted %d times; want a denial and 2", err, acted.Load())
	}
	h.check(t)
}

// credulous is an approver that takes one human for two.
type credulous struct{ gate.Approver }

func (c credulous) Await(ctx context.Context, q gate.Question) (gate.Answer, error) {
	consented := q.Consented
	q.Consented = nil
	answer, err := c.Approver.Await(ctx, q)
	if len(consented) > 0 {
		answer.Consent.ID = "another"
	}
	return answer, err
}

// The gate itself sees to it that different humans consent.
func TestQuorumOfOne(t *testing.T) {
	h := build(t)
	h.legislate(t, strings.Replace(policies, `@timeout("30m")`, `@timeout("30m") @quorum("2")`, 1))
	g := gate.New(h.authority, localpqc.New(), h.clock, h.authorizer, h.log, credulous{h.desk}, h.quota, nil)
	c, err := g.Open(t.Context(), nhi.Credential{Token: h.token(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	var acted atomic.Int32
	end := make(chan error, 1)
	go func() {
		_, err := g.Do(t.Context(), c, refund("50"), nothing(&acted))
		end <- err
	}()
	h.decide(t, "50", true)
	if err := <-end; !errors.Is(err, fault.AuthzEvaluationFailed) || acted.Load() != 0 {
		t.Errorf("Do = %v, acted %d times; want AuthzEvaluationFailed and 0", err, acted.Load())
	}
}

// waiting returns the pending request with these arguments.
func (h *house) waiting(t testing.TB, args string) oversight.Request {
	t.Helper()
	for {
		changed := h.desk.Changed()
		for _, r := range h.pending(t) {
			if string(r.Args) == args {
				return r
			}
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			return oversight.Request{}
		}
	}
}
