package oversight_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/authz"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/gate/gatetest"
	"creto.dev/internal/db/dbtest"
	"creto.dev/internal/journal"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/oversight"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

var at = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

// groups of the humans of the tests.
var groups = map[string][]string{"bob": {"finance"}, "carol": {"finance"}, "alice": {"finance"}, "eve": {"sales"}, "robot": {"finance"}}

// auditLog is embedded under a name that is no method.
type auditLog = audit.Log

// log is an audit log that can be made to fail.
type log struct {
	auditLog
	down atomic.Bool
	// failing is an event that cannot be recorded, although the log seems up.
	failing atomic.Value
}

func (l *log) Log(ctx context.Context, r audit.Record) (audit.RecordID, error) {
	if failing, _ := l.failing.Load().(string); l.down.Load() || failing == r.What {
		return r.ID, fault.New("test", fault.AuditUnavailable, "the log was made to fail")
	}
	return l.auditLog.Log(ctx, r)
}

func (l *log) Ping(ctx context.Context) error {
	if l.down.Load() {
		return fault.New("test", fault.AuditUnavailable, "the log was made to fail")
	}
	return l.auditLog.Ping(ctx)
}

// house is a desk with what it stands on.
type house struct {
	desk  *oversight.Desk
	db    *sql.DB
	clock *consensustest.Manual
	log   *log
	chain nhi.VerifiedChain
}

func open(t testing.TB) *house {
	t.Helper()
	dir := t.TempDir()
	d := dbtest.OpenIn(t, dir)
	h := &house{db: d, clock: &consensustest.Manual{}}
	h.clock.Set(at)
	p := localpqc.New()
	signer, err := audittest.Signer(p, "test.local/log")
	if err != nil {
		t.Fatal(err)
	}
	l, err := localaudit.Open(t.Context(), localaudit.Config{Intake: intake.Config{Journal: journal.Config{Dir: dir, RingBytes: 1 << 20}}}, d, p, h.clock, signer, pqc.NewSymmetricKey(pqc.AES256GCM, make([]byte, pqc.SymmetricKeySize)), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), d.Close()); err != nil {
			t.Error(err)
		}
	})
	h.log = &log{auditLog: l}
	h.chain = nhitest.Chain(t, p, at, nhi.Everything(), "alice", "bot")
	h.desk = h.reopen(t)
	return h
}

// reopen returns the desk of a next life on the same data.
func (h *house) reopen(t testing.TB) *oversight.Desk {
	t.Helper()
	of := func(_ context.Context, id creto.ID) ([]string, error) { return groups[id.Name], nil }
	desk, err := oversight.Open(t.Context(), oversight.Config{}, h.db, h.clock, h.log, of, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return desk
}

func (h *house) question(args, approvers string) gate.Question {
	return gate.Question{
		Chain: h.chain, Approvers: approvers, Timeout: 30 * time.Minute,
		Action: creto.Action{
			Name: creto.HTTPRequest, Resource: creto.Resource{Type: "Url", ID: "http://shop.test/refunds"}, Args: []byte(args),
			Context: map[string]any{"method": "POST", "path": "/\xff", "body": map[string]any{"amount": int64(50)}},
		},
		Policy: authz.Policy{ID: "refund", Digest: creto.DigestOf([]byte("text"))},
	}
}

// pending puts a question on the desk, whose caller goes away, and returns its
// request.
func (h *house) pending(t testing.TB, args, approvers string) oversight.Request {
	t.Helper()
	return h.pend(t, h.question(args, approvers))
}

func (h *house) pend(t testing.TB, q gate.Question) oversight.Request {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	changed := h.desk.Changed()
	group.Go(func() { _, _ = h.desk.Await(ctx, q) })
	<-changed
	cancel()
	group.Wait()
	list, err := h.desk.List(t.Context(), oversight.Pending)
	for _, r := range list {
		if string(r.Args) == string(q.Action.Args) {
			return r
		}
	}
	t.Fatalf("List = %v, %v; want the question %q", list, err, q.Action.Args)
	return oversight.Request{}
}

func by(name string) oversight.Decision {
	return oversight.Decision{By: nhitest.ID(creto.KindHuman, name), Approve: true, Channel: oversight.ChannelCLI}
}

func (h *house) decide(t testing.TB, id string, d oversight.Decision) oversight.Request {
	t.Helper()
	r, err := h.desk.Decide(t.Context(), id, d)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// events returns what was recorded, the oldest first.
func (h *house) events(t testing.TB) []audit.Record {
	t.Helper()
	page, err := h.log.Query(t.Context(), audit.Filter{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var records []audit.Record
	for _, e := range page {
		records = append([]audit.Record{e.Record}, records...)
	}
	return records
}

func (h *house) what(t testing.TB) []string {
	t.Helper()
	var what []string
	for _, r := range h.events(t) {
		what = append(what, r.What+" by "+r.Who.Name)
	}
	return what
}

func TestApprover(t *testing.T) {
	gatetest.RunApprover(t, func(t *testing.T) gatetest.Approver {
		h := open(t)
		ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
		var group sync.WaitGroup
		group.Go(func() { _ = h.desk.Run(ctx) })
		t.Cleanup(func() { stop(); group.Wait() })
		pending := func(t *testing.T) []oversight.Request {
			list, err := h.desk.List(t.Context(), oversight.Pending)
			if err != nil {
				t.Error(err)
			}
			return list
		}
		return gatetest.Approver{
			Approver: h.desk, Chain: h.chain, Advance: h.clock.Advance,
			Pending: func(t *testing.T) int { return len(pending(t)) },
			Decide: func(t *testing.T, args string, approve bool) {
				for {
					changed := h.desk.Changed()
					for _, r := range pending(t) {
						if string(r.Args) == args {
							d := by("bob")
							d.Approve = approve
							h.decide(t, r.ID, d)
							return
						}
					}
					<-changed
				}
			},
		}
	})
}

// The first decision wins, however many come at once, and each transition is
// recorded once.
func TestFirstDecisionWins(t *testing.T) {
	h := open(t)
	r := h.pending(t, "50", "finance")
	const deciders = 32
	var won atomic.Int32
	var group sync.WaitGroup
	for i := range deciders {
		group.Go(func() {
			d := by([]string{"bob", "carol"}[i%2])
			d.Approve = i%3 == 0
			switch _, err := h.desk.Decide(t.Context(), r.ID, d); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, fault.FailedPrecondition):
				t.Errorf("Decide = %v, want FailedPrecondition", err)
			}
		})
	}
	group.Wait()
	if won.Load() != 1 || len(h.events(t)) != 2 {
		t.Errorf("%d of %d decisions won, and there are the records %q; want one of each", won.Load(), deciders, h.what(t))
	}
}

// Every transition from every state: only a pending request can be decided,
// only an approved one consumed.
func TestStates(t *testing.T) {
	for _, test := range []struct {
		state             oversight.State
		decidable, usable bool
	}{
		{oversight.Pending, true, false},
		{oversight.Approved, false, true},
		{oversight.Denied, false, false},
		{oversight.Expired, false, false},
		{oversight.Consumed, false, false},
	} {
		t.Run(string(test.state), func(t *testing.T) {
			h := open(t)
			for _, decide := range []bool{true, false} {
				r := h.pending(t, fmt.Sprint(decide), "finance")
				if _, err := h.db.ExecContext(t.Context(), "UPDATE oversight_request SET state = $1 WHERE id = $2", string(test.state), r.ID); err != nil {
					t.Fatal(err)
				}
				var err error
				want := test.usable
				if decide {
					want = test.decidable
					_, err = h.desk.Decide(t.Context(), r.ID, by("bob"))
				} else {
					err = h.desk.Consume(t.Context(), r.ID)
				}
				if (err == nil) != want || err != nil && !errors.Is(err, fault.FailedPrecondition) {
					t.Errorf("decide %v: %v; want it to pass: %v", decide, err, want)
				}
			}
		})
	}
}

func TestEligibility(t *testing.T) {
	agent := oversight.Decision{By: nhitest.ID(creto.KindAgent, "robot"), Approve: true, Channel: oversight.ChannelCLI}
	program := oversight.Decision{By: nhitest.ID(creto.KindWorkload, "robot"), Approve: true, Channel: oversight.ChannelAuto}
	posing := program
	posing.Channel = oversight.ChannelConsole
	elsewhere := by("bob")
	elsewhere.By.Tenant = "other"
	foreign := by("bob")
	foreign.By.TrustDomain = "evil.example"
	for _, test := range []struct {
		name      string
		approvers string
		decision  oversight.Decision
		want      fault.Code
	}{
		{"a member", "finance", by("bob"), fault.OK},
		{"of another group", "finance", by("eve"), fault.PermissionDenied},
		{"of no group", "finance", by("mallory"), fault.PermissionDenied},
		{"a member, but in the chain", "finance", by("alice"), fault.PermissionDenied},
		{"the principal", authz.Principal, by("alice"), fault.OK},
		{"not the principal", authz.Principal, by("bob"), fault.PermissionDenied},
		{"an agent in the group", "finance", agent, fault.PermissionDenied},
		{"a program that says so", "finance", program, fault.OK},
		{"a program that poses", "finance", posing, fault.PermissionDenied},
		{"of another tenant", "finance", elsewhere, fault.NotFound},
		{"of another trust domain", "finance", foreign, fault.NotFound},
		{"nobody", authz.Principal, oversight.Decision{Channel: oversight.ChannelCLI}, fault.NotFound},
		{"by no channel", "finance", oversight.Decision{By: by("bob").By, Channel: "pigeon"}, fault.InvalidArgument},
		{"with a novel for a reason", "finance", oversight.Decision{By: by("bob").By, Channel: oversight.ChannelCLI, Reason: strings.Repeat("x", 1001)}, fault.InvalidArgument},
		{"with noise for a reason", "finance", oversight.Decision{By: by("bob").By, Channel: oversight.ChannelCLI, Reason: "\xff"}, fault.InvalidArgument},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t)
			r := h.pending(t, "50", test.approvers)
			_, err := h.desk.Decide(t.Context(), r.ID, test.decision)
			if code := fault.CodeOf(err); code != test.want {
				t.Errorf("Decide = %v, want %v", err, test.want)
			}
			after, err := h.desk.Show(t.Context(), r.ID)
			if err != nil || (after.State == oversight.Approved) != (test.want == fault.OK) {
				t.Errorf("the request is %s (err %v)", after.State, err)
			}
		})
	}
	h := open(t)
	if _, err := h.desk.Decide(t.Context(), "no such", by("bob")); !errors.Is(err, fault.NotFound) {
		t.Errorf("Decide of nothing = %v, want NotFound", err)
	}
}

// A caller of another tenant learns nothing.
func TestTenants(t *testing.T) {
	h := open(t)
	r := h.pending(t, "50", "finance")
	other := nhitest.ID(creto.KindHuman, "bob")
	other.Tenant = "other"
	ctx := creto.WithCaller(t.Context(), other)
	if list, err := h.desk.List(ctx, ""); err != nil || len(list) != 0 {
		t.Errorf("List = %v, %v; want nothing", list, err)
	}
	if _, err := h.desk.Show(ctx, r.ID); !errors.Is(err, fault.NotFound) {
		t.Errorf("Show = %v, want NotFound", err)
	}
	if _, err := h.desk.Decide(ctx, r.ID, by("bob")); !errors.Is(err, fault.NotFound) {
		t.Errorf("Decide = %v, want NotFound", err)
	}
	if list, err := h.desk.List(creto.WithCaller(t.Context(), nhitest.ID(creto.KindHuman, "bob")), oversight.Pending); err != nil || len(list) != 1 {
		t.Errorf("List of its own tenant = %v, %v; want 1", list, err)
	}
}

// Silence is a denial: Run ends a request when its time is over, by the order
// of events and not by this machine's clock, and wakes who waits.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t)
		ctx, stop := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() { _ = h.desk.Run(ctx) })
		var answer gate.Answer
		group.Go(func() {
			var err error
			if answer, err = h.desk.Await(ctx, h.question("50", "finance")); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		approved := h.pending(t, "60", "finance")
		h.decide(t, approved.ID, by("bob"))
		time.Sleep(time.Hour) // the clock stands still, and so do the requests
		synctest.Wait()
		if answer.Reason != "" {
			t.Error("a request expired although its time is not over")
		}
		h.clock.Advance(30 * time.Minute)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if answer.Approved || answer.Reason == "" {
			t.Errorf("the answer is %+v, want a denial", answer)
		}
		if r, err := h.desk.Show(t.Context(), approved.ID); err != nil || r.State != oversight.Expired {
			t.Errorf("an approval that nobody used is %s (err %v), want expired", r.State, err)
		}
		if _, err := h.desk.Decide(t.Context(), answer.Consent.ID, by("bob")); !errors.Is(err, fault.FailedPrecondition) {
			t.Errorf("Decide of an expired request = %v, want FailedPrecondition", err)
		}
		stop()
		group.Wait()
		want := []string{"oversight_requested by bot", "oversight_requested by bot", "approved by bob", "oversight_expired by bot", "oversight_expired by bot"}
		if diff := cmp.Diff(want, h.what(t)); diff != "" {
			t.Errorf("the records (-want +got):\n%s", diff)
		}
	})
}

// A waiting question survives the end of its node: the caller comes back to the
// next life and finds the answer.
func TestRestart(t *testing.T) {
	h := open(t)
	r := h.pending(t, "50", "finance")
	h.desk = h.reopen(t)
	h.decide(t, r.ID, by("bob"))
	h.desk = h.reopen(t)
	answer, err := h.desk.Await(t.Context(), h.question("50", "finance"))
	if err != nil || !answer.Approved || answer.Consent.ID != r.ID {
		t.Errorf("Await = %+v, %v; want the approval %s", answer, err, r.ID)
	}
}

// A crash between the start of a consented action and its record leaves outcome
// unknown; one between the record and Finish leaves the record.
func TestRecover(t *testing.T) {
	for _, recorded := range []bool{false, true} {
		t.Run(fmt.Sprintf("recorded %v", recorded), func(t *testing.T) {
			h := open(t)
			first := h.pending(t, "50", "finance")
			h.decide(t, first.ID, by("bob"))
			if err := h.desk.Consume(t.Context(), first.ID); err != nil {
				t.Fatal(err)
			}
			if recorded {
				id, err := creto.ParseUUID(first.ID)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := h.log.auditLog.Log(t.Context(), audit.Record{ID: id, Who: h.chain.Agent(), What: creto.HTTPRequest, Outcome: audit.Success}); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 { // lives
				h.desk = h.reopen(t)
			}
			var outcomes []audit.Record
			for _, r := range h.events(t) {
				if r.What == creto.HTTPRequest {
					outcomes = append(outcomes, r)
				}
			}
			want := audit.Unknown
			if recorded {
				want = audit.Success
			}
			if len(outcomes) != 1 || outcomes[0].Outcome != want {
				t.Fatalf("the outcomes are %+v, want %s once", outcomes, want)
			}
			if r := outcomes[0]; !recorded && (r.CheckConsents() != nil || len(r.Consents) != 1 || r.Chain != h.chain.Digest() || r.Who != h.chain.Agent() || r.OnBehalfOf != h.chain.Human()) {
				t.Errorf("the record %+v is not of the action: %v", r, r.CheckConsents())
			}
			// The next attempt asks again.
			if r := h.pending(t, "50", "finance"); r.ID == first.ID {
				t.Error("the consumed approval is pending again")
			}
		})
	}
}

// What a crash left open used the units that it asked for.
func TestRecoverUnits(t *testing.T) {
	h := open(t)
	q := h.question("5000", "finance")
	q.Action.Name, q.Action.Resource, q.Action.Context = creto.ConsumeQuota, creto.Resource{Type: "Meter", ID: "tokens"}, map[string]any{authz.AmountKey: json.Number("5000")}
	r := h.pend(t, q)
	h.decide(t, r.ID, by("bob"))
	if err := h.desk.Consume(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	h.desk = h.reopen(t)
	units := int64(0)
	for _, r := range h.events(t) {
		if r.What == creto.ConsumeQuota {
			units += gate.Units(r)
		}
	}
	if units != 5000 {
		t.Errorf("%d units were used, want 5000", units)
	}
}

// The consents of one action have one outcome, after a crash too.
func TestRecoverTwoConsents(t *testing.T) {
	h := open(t)
	a, b := h.pending(t, "50", "finance"), h.pending(t, "60", "finance")
	h.decide(t, a.ID, by("bob"))
	h.decide(t, b.ID, by("bob"))
	if err := h.desk.Consume(t.Context(), a.ID, b.ID); err != nil {
		t.Fatal(err)
	}
	h.desk = h.reopen(t)
	n := 0
	for _, r := range h.events(t) {
		if r.Outcome == audit.Unknown {
			n++
		}
	}
	if n != 1 {
		t.Errorf("one action left %d outcomes, want 1", n)
	}
}

// What the log does not know of did not happen.
func TestLogFails(t *testing.T) {
	h := open(t)
	h.log.failing.Store(audit.EventOversightRequested)
	if _, err := h.desk.Await(t.Context(), h.question("40", "finance")); !errors.Is(err, fault.AuditUnavailable) {
		t.Errorf("Await = %v, want AuditUnavailable", err)
	}
	if list, err := h.desk.List(t.Context(), oversight.Pending); err != nil || len(list) != 0 {
		t.Errorf("a question without a record waits: %v, %v", list, err)
	}
	h.log.failing.Store("")
	r := h.pending(t, "50", "finance")
	state := func(want oversight.State) {
		t.Helper()
		if got, err := h.desk.Show(t.Context(), r.ID); err != nil || got.State != want || want == oversight.Pending && !got.DecidedBy.IsZero() {
			t.Errorf("the request is %+v (err %v), want %s", got, err, want)
		}
	}
	for _, arrange := range []func(){func() { h.log.down.Store(true) }, func() { h.log.failing.Store(audit.EventApproved) }} {
		arrange()
		if _, err := h.desk.Decide(t.Context(), r.ID, by("bob")); !errors.Is(err, fault.AuditUnavailable) {
			t.Errorf("Decide = %v, want AuditUnavailable", err)
		}
		h.log.down.Store(false)
		h.log.failing.Store("")
		state(oversight.Pending)
	}
	h.decide(t, r.ID, by("bob"))
	h.log.failing.Store(audit.EventConsentConsumed)
	if err := h.desk.Consume(t.Context(), r.ID); !errors.Is(err, fault.AuditUnavailable) {
		t.Errorf("Consume = %v, want AuditUnavailable", err)
	}
	h.log.failing.Store("")
	state(oversight.Approved)
	if err := h.desk.Consume(t.Context(), r.ID); err != nil {
		t.Errorf("Consume after that = %v, want it still good", err)
	}
}

// A row that does not hold what was asked cannot be answered, and is in nobody
// else's way.
func TestTampered(t *testing.T) {
	for name, change := range map[string]string{
		"digest":       "digest = identity",
		"body":         "body = identity",
		"expiry":       "expires_ns = expires_ns + 1",
		"id":           "id = 'f47ac10b-58cc-4372-a567-0e02b2c3d479'",
		"human":        "on_behalf_of = 'spiffe://test.local/default/human/mallory'",
		"decider":      "decided_by = 'somebody'",
		"another body": "",
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t)
			intact := h.pending(t, "40", "finance")
			h.clock.Advance(time.Second)
			r := h.pending(t, "50", "finance")
			if name == "another body" {
				change = "body = (SELECT o.body FROM oversight_request o WHERE o.id = '" + intact.ID + "')"
			}
			if _, err := h.db.ExecContext(t.Context(), "UPDATE oversight_request SET "+change+" WHERE id = $1", r.ID); err != nil {
				t.Fatal(err)
			}
			id := r.ID
			if name == "id" {
				id = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
			}
			if _, err := h.desk.Show(t.Context(), id); !errors.Is(err, fault.DataLoss) {
				t.Errorf("Show = %v, want DataLoss", err)
			}
			if _, err := h.desk.Decide(t.Context(), id, by("bob")); !errors.Is(err, fault.DataLoss) {
				t.Errorf("Decide = %v, want DataLoss", err)
			}
			if list, err := h.desk.List(t.Context(), ""); err != nil || len(list) != 1 || list[0].ID != intact.ID {
				t.Errorf("List = %v, %v; want the other request", list, err)
			}
			h.desk = h.reopen(t)
			h.decide(t, intact.ID, by("bob"))
		})
	}
}

// A human sees what was asked, and the record of an answer says how well it is
// known who gave it.
func TestShown(t *testing.T) {
	h := open(t)
	r := h.pending(t, `{"amount":50}`, "finance")
	if string(r.Args) != `{"amount":50}` || r.Context["method"] != "POST" || r.Context["path"] != "/\uFFFD" || r.Agent.Name != "bot" || r.OnBehalfOf.Name != "alice" || !r.Expires.Equal(at.Add(30*time.Minute)) {
		t.Errorf("the request is %+v", r)
	}
	for _, test := range []struct {
		decision oversight.Decision
		human    bool
	}{
		{by("bob"), true},
		{oversight.Decision{By: nhitest.ID(creto.KindHuman, "bob"), Approve: true, Channel: oversight.ChannelAuto}, false},
		{oversight.Decision{By: nhitest.ID(creto.KindWorkload, "robot"), Approve: true, Channel: oversight.ChannelAuto}, false},
	} {
		r := h.pending(t, fmt.Sprint(test), "finance")
		h.decide(t, r.ID, test.decision)
		answer, err := h.desk.Await(t.Context(), h.question(fmt.Sprint(test), "finance"))
		if err != nil || answer.Consent.Human != test.human || answer.Consent.Verification == "" || answer.Consent.Approver != test.decision.By.String() {
			t.Errorf("the consent of %+v is %+v (err %v); want human %v", test.decision, answer.Consent, err, test.human)
		}
	}
	large := h.question(strings.Repeat("x", 1<<20+1), "finance")
	if _, err := h.desk.Await(t.Context(), large); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("Await with arguments that nobody reads = %v, want InvalidArgument", err)
	}
}

// A decision wakes those who wait for its request and nobody else.
func TestWakesOnlyItsOwn(t *testing.T) {
	h := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	var answered atomic.Int32
	for i := range 20 {
		changed := h.desk.Changed()
		group.Go(func() {
			if _, err := h.desk.Await(ctx, h.question(fmt.Sprint(i), "finance")); err == nil {
				answered.Add(1)
			}
		})
		<-changed
	}
	list, err := h.desk.List(ctx, oversight.Pending)
	if err != nil || len(list) != 20 {
		t.Fatalf("%d questions wait (err %v), want 20", len(list), err)
	}
	for _, r := range list[:5] {
		h.decide(t, r.ID, by("bob"))
	}
	for answered.Load() < 5 {
		time.Sleep(time.Millisecond) // until the five have seen it
	}
	cancel()
	group.Wait()
	if answered.Load() != 5 {
		t.Errorf("%d of 20 were answered, want 5", answered.Load())
	}
}
