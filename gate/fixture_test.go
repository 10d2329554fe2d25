package gate_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/authz"
	"creto.dev/authz/localauthz"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/internal/db/dbtest"
	"creto.dev/internal/journal"
	"creto.dev/metering"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/oversight"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
	"creto.dev/receipt"
)

var at = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

const origin = "test.local/log"

// policies are what the house begins with.
const policies = `
@id("humans") permit (principal is Creto::Human, action, resource);
@id("boss") permit (principal == Creto::Agent::"boss", action, resource);
@id("models") permit (principal == Creto::Agent::"bot", action == Creto::Action::"call_model", resource);
@id("refund") @oversight("finance") @timeout("30m")
permit (principal == Creto::Agent::"bot", action == Creto::Action::"http_request", resource == Creto::Url::"http://shop.test/refunds");
@id("spawn") permit (principal == Creto::Agent::"bot", action == Creto::Action::"spawn_sandbox", resource);
@id("walls") permit (principal == Creto::Agent::"bot", action == Creto::Action::"call_tool", resource) when { context.isolation == "gvisor" };
`

// house is a gate with everything real behind it, and the means to make the log
// fail and to watch the meter.
type house struct {
	gate         *gate.Gate
	authority    *localnhi.Authority
	clock        *consensustest.Manual
	policies     string // the directory
	authorizer   *localauthz.Authorizer
	log          *log
	desk         *oversight.Desk
	quota        *metering.Quota
	meter        *meter
	alice, bot   creto.ID
	chains       map[creto.Digest][]nhi.SignedLink
	certificates []nhi.SignedCertificate
}

type auditLog = audit.Log

// log can be made to fail.
type log struct {
	auditLog
	down  atomic.Bool
	pings atomic.Int32
}

func (l *log) Log(ctx context.Context, r audit.Record) (audit.RecordID, error) {
	if l.down.Load() {
		return r.ID, fault.New("test", fault.AuditUnavailable, "the log was made to fail")
	}
	return l.auditLog.Log(ctx, r)
}

func (l *log) Ping(ctx context.Context) error {
	l.pings.Add(1)
	if l.down.Load() {
		return fault.New("test", fault.AuditUnavailable, "the log was made to fail")
	}
	return l.auditLog.Ping(ctx)
}

// meter counts what becomes of reservations.
type meter struct {
	gate.Meter
	mu                  sync.Mutex // guards what follows
	committed, refunded int
	seen                map[uint64]int
}

func (m *meter) Commit(r authz.Reservation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.committed++
	m.seen[r.ID]++
	m.Meter.Commit(r)
}

func (m *meter) Refund(r authz.Reservation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refunded++
	m.seen[r.ID]++
	m.Meter.Refund(r)
}

func build(t testing.TB) *house {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, dir, p, silent := t.Context(), t.TempDir(), localpqc.New(), slog.New(slog.DiscardHandler)
	h := &house{clock: &consensustest.Manual{}, policies: filepath.Join(dir, "policies"), chains: make(map[creto.Digest][]nhi.SignedLink)}
	h.clock.Set(at)
	d := dbtest.OpenIn(t, dir)
	kek, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	must(err)
	h.authority, err = localnhi.Open(ctx, localnhi.Config{TrustDomain: "test.local", Tenant: creto.DefaultTenant}, d, p, h.clock, kek)
	must(err)
	signer, err := h.authority.CheckpointSigner(ctx, origin)
	must(err)
	certificates, err := h.authority.Certificates(ctx, origin)
	must(err)
	h.certificates = certificates
	local, err := localaudit.Open(ctx, localaudit.Config{Intake: intake.Config{Journal: journal.Config{Dir: dir, RingBytes: 1 << 20}}}, d, p, h.clock, signer, kek, silent)
	must(err)
	t.Cleanup(func() {
		if err := errors.Join(local.Close(), d.Close()); err != nil {
			t.Error(err)
		}
	})
	h.log = &log{auditLog: local}
	h.quota, err = metering.OpenQuota(ctx, d, h.clock, h.log)
	must(err)
	h.meter = &meter{Meter: h.quota, seen: make(map[uint64]int)}
	must(os.Mkdir(h.policies, 0o700))
	h.write(t, policies)
	h.authorizer, err = localauthz.Open(h.policies, creto.DefaultTenant, h.authority.Groups, []authz.Extension{h.quota}, func(context.Context, localauthz.Change) {})
	must(err)
	h.desk, err = oversight.Open(ctx, oversight.Config{}, d, h.clock, h.log, h.authority.Groups, silent)
	must(err)
	h.gate = gate.New(h.authority, p, h.clock, h.authorizer, h.log, h.desk, h.meter, nil)
	h.alice, h.bot = h.authority.ID(creto.KindHuman, "alice"), h.authority.ID(creto.KindAgent, "bot")
	must(h.authority.AddMember(ctx, h.alice))
	must(h.authority.AddMember(ctx, h.authority.ID(creto.KindHuman, "bob"), "finance"))
	must(h.authority.AddMember(ctx, h.authority.ID(creto.KindHuman, "carol"), "finance"))
	must(h.authority.AddAgent(ctx, h.bot))
	h.delegate(t, h.alice, h.bot, 24*time.Hour)
	return h
}

func (h *house) write(t testing.TB, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(h.policies, "all.cedar"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// legislate puts other policies into force.
func (h *house) legislate(t testing.TB, text string) {
	t.Helper()
	h.write(t, text)
	if err := h.authorizer.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (h *house) delegate(t testing.TB, from, to creto.ID, ttl time.Duration) {
	t.Helper()
	link, err := h.authority.Draft(t.Context(), from, to, nhi.Grant{Scope: nhi.Everything(), TTL: ttl, MaxDepth: nhi.DefaultMaxDepth})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := h.authority.Delegate(t.Context(), link, nhi.Proof{Kind: nhi.ProofBootstrap})
	if err != nil {
		t.Fatal(err)
	}
	h.chains[chain.Digest()] = chain.Links()
}

func (h *house) token(t testing.TB, sandbox string) string {
	t.Helper()
	token, _, err := h.authority.IssueToken(t.Context(), h.bot, localnhi.TokenRequest{Sandbox: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (h *house) caller(t testing.TB) *gate.Caller {
	t.Helper()
	c, err := h.gate.Open(t.Context(), nhi.Credential{Token: h.token(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// limit allows the bot that many of an action in an hour.
func (h *house) limit(t testing.TB, action string, amount int64) {
	t.Helper()
	if err := h.quota.SetLimit(t.Context(), metering.Subject{Agent: h.bot, Action: action}, metering.Limit{Amount: amount, Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
}

// decide answers the pending request with these arguments as bob.
func (h *house) decide(t testing.TB, args string, approve bool) oversight.Request {
	t.Helper()
	return h.decideAs(t, "bob", args, approve)
}

func (h *house) decideAs(t testing.TB, name, args string, approve bool) oversight.Request {
	t.Helper()
	for {
		changed := h.desk.Changed()
		for _, r := range h.pending(t) {
			if string(r.Args) != args {
				continue
			}
			by := creto.ID{TrustDomain: "test.local", Tenant: creto.DefaultTenant, Kind: creto.KindHuman, Name: name}
			r, err := h.desk.Decide(t.Context(), r.ID, oversight.Decision{By: by, Approve: approve, Channel: oversight.ChannelCLI})
			if err != nil {
				t.Error(err)
			}
			return r
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			return oversight.Request{}
		}
	}
}

func (h *house) pending(t testing.TB) []oversight.Request {
	t.Helper()
	list, err := h.desk.List(t.Context(), oversight.Pending)
	if err != nil {
		t.Error(err)
	}
	return list
}

// records returns the records of an action, or all, the oldest first.
func (h *house) records(t testing.TB, what string) []audit.Record {
	t.Helper()
	page, err := h.log.Query(t.Context(), audit.Filter{What: what, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var records []audit.Record
	for _, e := range page {
		records = append([]audit.Record{e.Record}, records...)
	}
	return records
}

// check holds the house to what must be true after anything: every reservation
// was settled once, and everything that was recorded can be proven.
func (h *house) check(t testing.TB) {
	t.Helper()
	h.meter.mu.Lock()
	defer h.meter.mu.Unlock()
	for id, n := range h.meter.seen {
		if n != 1 {
			t.Errorf("reservation %d was settled %d times, want once", id, n)
		}
	}
	page, err := h.log.Query(t.Context(), audit.Filter{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if len(page) == 0 {
		return
	}
	root, fingerprint, err := h.authority.Root()
	if err != nil {
		t.Fatal(err)
	}
	links := func(_ context.Context, _ creto.ID, digest creto.Digest) ([]nhi.SignedLink, error) {
		return h.chains[digest], nil
	}
	bundle, err := receipt.Make(t.Context(), h.log, links, receipt.Keys{Root: root, Certificates: h.certificates}, nil, page)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := receipt.Verify(t.Context(), localpqc.New(), bundle, fingerprint); err != nil || !v.Trusted || len(v.Records) != len(page) {
		t.Errorf("the receipt of all records: %d of %d, trusted %v, %v", len(v.Records), len(page), v.Trusted, err)
	}
}

func callModel() creto.Action {
	return creto.Action{Name: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "gpt-4o"}, Args: []byte(`{"model":"gpt-4o"}`)}
}

func refund(args string) creto.Action {
	return creto.Action{
		Name: creto.HTTPRequest, Resource: creto.Resource{Type: "Url", ID: "http://shop.test/refunds"}, Args: []byte(args),
		Context: map[string]any{"method": "POST"},
	}
}

// nothing is an act that succeeds, and counts.
func nothing(n *atomic.Int32) gate.Act {
	return func(context.Context) (gate.Result, error) {
		n.Add(1)
		return gate.Result{}, nil
	}
}

// request asks what gate asks for an action.
func request(a creto.Action) authz.Request {
	return authz.Request{Action: a.Name, Resource: a.Resource, Context: a.Context}
}
