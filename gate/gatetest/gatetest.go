// Package gatetest is what every gate.Approver and gate.Meter must do.
package gatetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/nhi"
)

// Approver is an approver with the means to arrange what the suite observes.
type Approver struct {
	Approver gate.Approver
	Chain    nhi.VerifiedChain
	// Decide answers the pending question about these arguments, waiting until
	// it is there.
	Decide func(t *testing.T, args string, approve bool)
	// Pending counts the questions that wait.
	Pending func(t *testing.T) int
	// Advance moves the approver's clock, and lets it notice.
	Advance func(time.Duration)
}

// timeout is how long the suite's questions wait, by the approver's clock.
const timeout = 30 * time.Minute

func (h Approver) question(args, key string) gate.Question {
	return gate.Question{
		Chain: h.Chain, Approvers: "finance", Timeout: timeout,
		Action: creto.Action{
			Name: creto.HTTPRequest, Resource: creto.Resource{Type: "Url", ID: "http://shop.test/refunds"},
			Args: []byte(args), IdempotencyKey: key,
		},
		Policy: authz.Policy{ID: "refund", Digest: creto.DigestOf([]byte("the policy's text"))},
	}
}

// ask awaits the answer to a question that a goroutine answers meanwhile.
func (h Approver) ask(t *testing.T, args string, approve bool) gate.Answer {
	t.Helper()
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { h.Decide(t, args, approve) })
	answer, err := h.Approver.Await(t.Context(), h.question(args, ""))
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// RunApprover tests the approvers that open returns, a fresh one a case.
func RunApprover(t *testing.T, open func(*testing.T) Approver) {
	for name, test := range map[string]func(*testing.T, Approver){
		"an approval is bound to its request": testBound,
		"a denial is an answer":               testDenial,
		"an approval counts once":             testOnce,
		"all or none are spent":               testAllOrNone,
		"an old approval is none":             testOld,
		"the caller may go away":              testGone,
		"nobody answers":                      testSilence,
		"who attaches to what":                testAttach,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func testBound(t *testing.T, h Approver) {
	answer := h.ask(t, "50", true)
	q := h.question("50", "")
	r := audit.Record{
		Who: h.Chain.Agent(), Chain: h.Chain.Digest(), What: q.Action.Name, Resource: q.Action.Resource.String(),
		Args: q.Action.ArgsDigest(), Consents: []audit.Consent{answer.Consent},
	}
	if err := r.CheckConsents(); !answer.Approved || err != nil {
		t.Errorf("the answer is %+v; its consent does not fit the action: %v", answer, err)
	}
	r.Args = creto.DigestOf([]byte("60"))
	if err := r.CheckConsents(); !errors.Is(err, fault.SecurityViolation) {
		t.Errorf("the consent fits other arguments: %v", err)
	}
}

func testDenial(t *testing.T, h Approver) {
	answer := h.ask(t, "50", false)
	if answer.Approved || answer.Reason == "" || answer.Consent.ID == "" {
		t.Errorf("the answer is %+v, want a denial with its reason", answer)
	}
	if err := h.Approver.Consume(t.Context(), answer.Consent.ID); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("Consume of a denial = %v, want FailedPrecondition", err)
	}
}

func testOnce(t *testing.T, h Approver) {
	id := h.ask(t, "50", true).Consent.ID
	const callers = 32
	var won atomic.Int32
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			switch err := h.Approver.Consume(t.Context(), id); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, fault.FailedPrecondition):
				t.Errorf("Consume = %v, want FailedPrecondition", err)
			}
		})
	}
	group.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of %d callers spent the approval, want 1", won.Load(), callers)
	}
	if err := h.Approver.Finish(t.Context(), id); err != nil {
		t.Errorf("Finish = %v", err)
	}
	if err := h.Approver.Consume(t.Context(), id); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("Consume of a finished one = %v, want FailedPrecondition", err)
	}
}

func testAllOrNone(t *testing.T, h Approver) {
	spent, good := h.ask(t, "50", true).Consent.ID, h.ask(t, "60", true).Consent.ID
	if err := h.Approver.Consume(t.Context(), spent); err != nil {
		t.Fatal(err)
	}
	if err := h.Approver.Consume(t.Context(), good, spent); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("Consume of a good and a spent one = %v, want FailedPrecondition", err)
	}
	if err := h.Approver.Consume(t.Context(), good); err != nil {
		t.Errorf("Consume of the good one after that = %v, want it still good", err)
	}
}

func testOld(t *testing.T, h Approver) {
	id := h.ask(t, "50", true).Consent.ID
	h.Advance(timeout)
	if err := h.Approver.Consume(t.Context(), id); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("Consume of an expired approval = %v, want FailedPrecondition", err)
	}
}

func testGone(t *testing.T, h Approver) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := h.Approver.Await(ctx, h.question("50", "")); !errors.Is(err, fault.DeadlineExceeded) {
		t.Errorf("Await = %v, want DeadlineExceeded", err)
	}
	if n := h.Pending(t); n != 1 {
		t.Errorf("after its caller went away %d questions wait, want 1", n)
	}
	if answer := h.ask(t, "50", true); !answer.Approved || h.Pending(t) != 0 {
		t.Errorf("the caller came back to %+v, with %d questions waiting", answer, h.Pending(t))
	}
}

func testSilence(t *testing.T, h Approver) {
	var group sync.WaitGroup
	var answer gate.Answer
	var err error
	group.Go(func() { answer, err = h.Approver.Await(t.Context(), h.question("50", "")) })
	for ticker := time.NewTicker(time.Millisecond); h.Pending(t) == 0; {
		<-ticker.C
	}
	h.Advance(timeout)
	group.Wait()
	if err != nil || answer.Approved || answer.Reason == "" {
		t.Errorf("Await = %+v, %v; silence is a denial", answer, err)
	}
}

func testAttach(t *testing.T, h Approver) {
	// Pending: two callers, one question.
	var group sync.WaitGroup
	ids := make([]string, 2)
	for i := range ids {
		group.Go(func() {
			answer, err := h.Approver.Await(t.Context(), h.question("50", fmt.Sprint("key", i)))
			if err != nil {
				t.Error(err)
			}
			ids[i] = answer.Consent.ID
		})
	}
	h.Decide(t, "50", true)
	group.Wait()
	if ids[0] != ids[1] || h.Pending(t) != 0 {
		t.Errorf("one approval answered %q, and %d questions wait; want the same one for both", ids, h.Pending(t))
	}
	// Approved and unused: at once. Other arguments: not at all.
	if answer, err := h.Approver.Await(t.Context(), h.question("50", "")); err != nil || answer.Consent.ID != ids[0] {
		t.Errorf("Await of an approved question = %+v, %v; want %s", answer, err, ids[0])
	}
	if answer := h.ask(t, "60", true); answer.Consent.ID == ids[0] {
		t.Error("other arguments attached to the approval")
	}
	// Consumed: never.
	if err := h.Approver.Consume(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	if answer := h.ask(t, "50", true); answer.Consent.ID == ids[0] {
		t.Error("a question attached to a consumed approval")
	}
	// Denied: by key alone.
	var denied gate.Answer
	group.Go(func() {
		var err error
		if denied, err = h.Approver.Await(t.Context(), h.question("70", "k")); err != nil {
			t.Error(err)
		}
	})
	h.Decide(t, "70", false)
	group.Wait()
	if answer, err := h.Approver.Await(t.Context(), h.question("70", "k")); err != nil || answer.Approved || answer.Consent.ID != denied.Consent.ID {
		t.Errorf("a retry with its key = %+v, %v; want the same denial", answer, err)
	}
	if answer := h.ask(t, "70", true); !answer.Approved {
		t.Errorf("the same question without the key = %+v, want it asked anew", answer)
	}
}

// Meter is a meter, as an extension of authorization, with a limit of Limit
// model calls of Chain's agent.
type Meter struct {
	Extension authz.Extension
	Meter     gate.Meter
	Chain     nhi.VerifiedChain
	Limit     int64
}

// reserve asks for one model call.
func (h Meter) reserve(t *testing.T, reserve bool) (authz.Reservation, bool) {
	t.Helper()
	r := authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "m"}}
	evaluator, err := h.Extension.Bind(t.Context(), h.Chain)
	if err != nil {
		t.Error(err)
		return authz.Reservation{}, false
	}
	held, d, err := evaluator.Evaluate(t.Context(), r, reserve)
	if err != nil {
		t.Error(err)
	}
	if d != nil && (d.Kind != authz.QuotaExceeded || d.Reason == "" || d.Limit != h.Limit || d.Used < d.Limit || d.ResetAt.IsZero()) {
		t.Errorf("Evaluate = %+v, want a decision that says what the quota is and when it is reset", d)
	}
	return held, d == nil
}

// RunMeter tests the meters that open returns, a fresh one a case.
func RunMeter(t *testing.T, open func(*testing.T) Meter) {
	t.Run("exact under contention", func(t *testing.T) {
		h := open(t)
		const callers = 64
		var granted atomic.Int64
		var group sync.WaitGroup
		for c := range callers {
			group.Go(func() {
				for i := range int(2*h.Limit) / callers * 2 {
					r, ok := h.reserve(t, true)
					switch {
					case !ok:
					case (c+i)%5 == 0:
						h.Meter.Refund(r)
					default:
						h.Meter.Commit(r)
						granted.Add(1)
					}
				}
			})
		}
		group.Wait()
		for { // refunds may have left some
			r, ok := h.reserve(t, true)
			if !ok {
				break
			}
			h.Meter.Commit(r)
			granted.Add(1)
		}
		if granted.Load() != h.Limit {
			t.Errorf("%d goroutines were granted %d, limit %d", callers, granted.Load(), h.Limit)
		}
	})
	t.Run("what is held counts", func(t *testing.T) {
		h := open(t)
		var held []authz.Reservation
		for range h.Limit {
			r, ok := h.reserve(t, true)
			if !ok || r.Amount != 1 {
				t.Fatalf("after %d of %d: %+v, %v", len(held), h.Limit, r, ok)
			}
			held = append(held, r)
		}
		if _, ok := h.reserve(t, true); ok {
			t.Error("more is held than the limit")
		}
		h.Meter.Refund(held[0])
		h.Meter.Refund(held[0]) // once is enough
		h.Meter.Commit(held[1])
		h.Meter.Refund(held[1]) // too late
		h.Meter.Refund(authz.Reservation{})
		h.Meter.Commit(authz.Reservation{ID: 1 << 60, Amount: 1})
		if _, ok := h.reserve(t, true); !ok {
			t.Error("a refund did not give back")
		}
		if _, ok := h.reserve(t, true); ok {
			t.Error("one refund gave back twice, or a committed one came back")
		}
	})
	t.Run("a look reserves nothing", func(t *testing.T) {
		h := open(t)
		for range 2 * h.Limit {
			if r, ok := h.reserve(t, false); !ok || r != (authz.Reservation{}) {
				t.Fatalf("Evaluate without reservation = %+v, %v", r, ok)
			}
		}
	})
}
