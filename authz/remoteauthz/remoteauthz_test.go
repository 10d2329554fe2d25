package remoteauthz_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/authztest"
	"creto.dev/authz/localauthz"
	"creto.dev/authz/remoteauthz"
	"creto.dev/call"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/health"
	authzv1 "creto.dev/internal/gen/creto/authz/v1"
	"creto.dev/internal/wire"
	"creto.dev/internal/wire/wiretest"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// patience is for machines that are busy with other tests.
const patience = 10 * time.Second

// at is when the suite's chains are in force.
var at = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

// authority trusts the roots that it is shown, and counts revocations.
type authority struct {
	nhi.Authority
	mu      sync.Mutex // guards what follows
	roots   []pqc.PublicKey
	epoch   uint64
	revoked bool
}

func (a *authority) trust(c nhi.VerifiedChain) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roots = append(a.roots, c.Root())
}

func (a *authority) revoke() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.epoch, a.revoked = a.epoch+1, true
}

func (a *authority) Roots(context.Context) ([]pqc.PublicKey, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.roots, nil
}

func (a *authority) Epoch() (uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.epoch, nil
}

func (a *authority) Revoked(context.Context, []nhi.LinkRef) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.revoked {
		return 0, nil
	}
	return -1, nil
}

// counted counts what is asked of policies.
type counted struct {
	localauthz.PolicySet
	asked atomic.Int64
	hold  chan struct{} // if not nil, each waits for it
}

func (c *counted) Peek(ctx context.Context, s authz.Session, r authz.Request) (authz.Decision, error) {
	c.asked.Add(1)
	if c.hold != nil {
		select {
		case <-c.hold:
		case <-ctx.Done():
			return authz.Decision{}, ctx.Err()
		}
	}
	return c.PolicySet.Peek(ctx, s, r)
}

// house is a server and what it stands on.
type house struct {
	dir       string
	policies  *counted
	authority *authority
	clock     *consensustest.Manual

	mu     sync.Mutex // guards groups
	groups map[string][]string
}

func open(t testing.TB, policies string, groups map[string][]string) *house {
	t.Helper()
	h := &house{dir: t.TempDir(), authority: &authority{}, clock: &consensustest.Manual{}, groups: groups}
	h.clock.Set(at)
	h.write(t, policies)
	a, err := localauthz.Open(h.dir, creto.DefaultTenant, h.groupsOf, nil, func(context.Context, localauthz.Change) {})
	if err != nil {
		t.Fatal(err)
	}
	h.policies = &counted{PolicySet: localauthz.PolicySet{Authorizer: a}}
	return h
}

func (h *house) write(t testing.TB, policies string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, "suite.cedar"), []byte(policies), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (h *house) groupsOf(_ context.Context, id creto.ID) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.groups[id.Name], nil
}

func (h *house) serve(s grpc.ServiceRegistrar) {
	remoteauthz.Register(s, remoteauthz.Server{Authorizer: h.policies, Authority: h.authority, Provider: localpqc.New(), Clock: h.clock})
}

// client is a client whose server trusts each chain that it binds.
type client struct {
	*remoteauthz.Authorizer
	authority *authority
}

func (c client) Bind(ctx context.Context, chain nhi.VerifiedChain) (authz.Session, error) {
	if chain.Valid() {
		c.authority.trust(chain)
	}
	return c.Authorizer.Bind(ctx, chain)
}

func (h *house) client(conn grpc.ClientConnInterface, c remoteauthz.Config) client {
	c.Policy.Timeout = patience
	return client{remoteauthz.New(conn, c), h.authority}
}

func TestAuthorizer(t *testing.T) {
	for name, connect := range map[string]func(testing.TB, func(grpc.ServiceRegistrar)) *grpc.ClientConn{"in memory": wiretest.InMemory, "over TLS": wiretest.OverTLS} {
		for _, caching := range []bool{false, true} {
			t.Run(name+map[bool]string{true: ", keeping decisions"}[caching], func(t *testing.T) {
				authztest.Run(t, localpqc.New(), func(t *testing.T, policies string, groups map[string][]string, extensions ...authz.Extension) authz.Authorizer {
					h := open(t, policies, groups)
					a := h.client(connect(t, h.serve), remoteauthz.Config{Extensions: extensions})
					if caching {
						run(t, a.Authorizer)
					}
					return a
				})
			})
		}
	}
}

// run runs an authorizer until the test ends.
func run(t testing.TB, a *remoteauthz.Authorizer) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); group.Wait() })
}

const policies = `
@id("models") permit (principal, action == Creto::Action::"call_model", resource) when { !(context has amount) || context.amount < 10 };
@id("tools") permit (principal in Creto::Group::"bots", action == Creto::Action::"call_tool", resource);
@id("humans") permit (principal is Creto::Human, action, resource);
`

func model(facts map[string]any) authz.Request {
	return authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "gpt-4"}, Context: facts}
}

func tool() authz.Request {
	return authz.Request{Action: creto.CallTool, Resource: creto.Resource{Type: "Tool", ID: "shop/refund"}}
}

// eventually waits for what comes a moment later.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// kept returns a client that keeps decisions, and a session of alice's bot, once it
// keeps them.
func (h *house) kept(t *testing.T, conn grpc.ClientConnInterface, c remoteauthz.Config) (client, authz.Session) {
	t.Helper()
	a := h.client(conn, c)
	run(t, a.Authorizer)
	s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "alice", "bot"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a decision is kept", func() bool {
		before := h.policies.asked.Load()
		for range 2 {
			if d, err := a.Check(t.Context(), s, model(nil)); err != nil || d.Kind != authz.Allow {
				t.Fatalf("Check = %+v, %v", d, err)
			}
		}
		return h.policies.asked.Load() == before
	})
	return a, s
}

// What a decision depends on is in its place, and nothing else.
// A change of policies, and a revocation, end what was kept within a second.
// spender is an extension that grants so many.
// A kept Allow spends quota like any other (B-19).
// Who asks the same while it is being asked gets that answer.
// server is a real one that can be stopped.
func (h *house) server(t *testing.T) (conn *grpc.ClientConn, address string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := wiretest.Serve(t, l, wire.ServerConfig{}, h.serve)
	return wiretest.Dial(t, wire.Config{Address: l.Addr().String()}), l.Addr().String(), s.Stop
}

// Without the service everything is denied, but for what may be stale and was
// allowed a moment ago.
func TestSilence(t *testing.T) {
	for _, stale := range []bool{false, true} {
		h := open(t, policies, map[string][]string{"bot": {"bots"}})
		conn, _, stop := h.server(t)
		c := remoteauthz.Config{Policy: call.Policy{Attempts: 1}}
		if stale {
			c.Cache.Stale = []string{creto.CallModel}
		}
		a, s := h.kept(t, conn, c)
		if d, err := a.Check(t.Context(), s, tool()); err != nil || d.Kind != authz.Allow {
			t.Fatalf("Check = %+v, %v", d, err)
		}
		stop()
		eventually(t, "a tool is denied", func() bool {
			d, err := a.Check(t.Context(), s, tool())
			return errors.Is(err, fault.AuthzUnavailable) && d.Kind == authz.Deny
		})
		if err := a.Ping(t.Context()); !errors.Is(err, fault.AuthzUnavailable) {
			t.Errorf("Ping = %v", err)
		}
		d, err := a.Check(t.Context(), s, model(nil))
		again, binding := a.Bind(t.Context(), s.Chain())
		if !stale {
			if d.Kind != authz.Deny || !errors.Is(err, fault.AuthzUnavailable) || !errors.Is(binding, fault.AuthzUnavailable) {
				t.Errorf("a model: %+v, %v; Bind = %v; want AuthzUnavailable", d, err, binding)
			}
			continue
		}
		if d.Kind != authz.Allow || err != nil || binding != nil {
			t.Fatalf("a model that may be stale: %+v, %v; Bind = %v", d, err, binding)
		}
		if d, err := a.Check(t.Context(), again, model(nil)); d.Kind != authz.Allow || err != nil {
			t.Errorf("a model that may be stale, bound again: %+v, %v", d, err)
		}
		if d, err := a.Check(t.Context(), s, model(map[string]any{"amount": 4})); d.Kind != authz.Deny || err == nil {
			t.Errorf("what was never asked: %+v, %v; want a denial", d, err)
		}
	}
}

// A service that was restarted is shown the chain again.
func TestForgotten(t *testing.T) {
	h := open(t, policies, nil)
	conn, address, stop := h.server(t)
	a := h.client(conn, remoteauthz.Config{})
	s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "alice", "bot"))
	if err != nil {
		t.Fatal(err)
	}
	stop()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	wiretest.Serve(t, l, wire.ServerConfig{}, h.serve)
	eventually(t, "allowed", func() bool {
		d, err := a.Check(t.Context(), s, model(nil))
		return err == nil && d.Kind == authz.Allow
	})
	if _, err := a.List(t.Context(), s, authz.Query{Action: creto.CallModel}); err != nil {
		t.Error(err)
	}
}

// A chain that the service does not trust is not bound, whatever the client says.
func TestStranger(t *testing.T) {
	h := open(t, policies, nil)
	a := h.client(wiretest.InMemory(t, h.serve), remoteauthz.Config{})
	chain := nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "alice", "bot")
	if _, err := a.Authorizer.Bind(t.Context(), chain); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("Bind of a stranger's chain = %v", err)
	}
	h.clock.Advance(2 * time.Hour)
	if _, err := a.Bind(t.Context(), chain); err == nil {
		t.Error("Bind of a chain that has expired = nil")
	}
}

// liar answers as it is told.
type liar struct {
	authzv1.UnimplementedAuthorizerServiceServer
	answers []*authzv1.Answer
}

func (l *liar) Bind(_ context.Context, r *authzv1.BindRequest) (*authzv1.BindResponse, error) {
	return &authzv1.BindResponse{Chain: r.GetChain(), Standing: make([]byte, 32)}, nil
}

func (l *liar) Decide(context.Context, *authzv1.DecideRequest) (*authzv1.DecideResponse, error) {
	return &authzv1.DecideResponse{Answers: l.answers}, nil
}

// What is not surely an Allow denies.
func TestNonsense(t *testing.T) {
	l := &liar{}
	a := remoteauthz.New(wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { authzv1.RegisterAuthorizerServiceServer(s, l) }), remoteauthz.Config{Policy: call.Policy{Timeout: patience}})
	s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "alice", "bot"))
	if err != nil {
		t.Fatal(err)
	}
	version := make([]byte, 32)
	version[0] = 1
	policies := []*authzv1.Policy{{Id: "p", Digest: version}}
	for name, answers := range map[string][]*authzv1.Answer{
		"no answer":           nil,
		"two answers":         {{Decision: &authzv1.Decision{Kind: "allow", Policies: policies, Version: version}}, {}},
		"an empty one":        {{}},
		"an unknown kind":     {{Decision: &authzv1.Decision{Kind: "ALLOW", Policies: policies, Version: version}}},
		"a quota":             {{Decision: &authzv1.Decision{Kind: "quota_exceeded", Policies: policies, Version: version}}},
		"without its policy":  {{Decision: &authzv1.Decision{Kind: "allow", Version: version}}},
		"without a version":   {{Decision: &authzv1.Decision{Kind: "allow", Policies: policies, Version: version[:31]}}},
		"with an error":       {{Decision: &authzv1.Decision{Kind: "allow", Policies: policies, Version: version}, Code: "authz_internal", Message: "broken"}},
		"with a strange code": {{Decision: &authzv1.Decision{Kind: "allow", Policies: policies, Version: version}, Code: "fine"}},
	} {
		l.answers = answers
		if d, err := a.Check(t.Context(), s, model(nil)); err == nil || d.Kind != authz.Deny {
			t.Errorf("%s: Check = %+v, %v; want an error", name, d, err)
		}
	}
	l.answers = []*authzv1.Answer{{Decision: &authzv1.Decision{Kind: "allow", Policies: policies, Version: version}}}
	if d, err := a.Check(t.Context(), s, model(nil)); err != nil || d.Kind != authz.Allow {
		t.Errorf("Check = %+v, %v; want allow", d, err)
	}
}

// What cannot be decided in time is denied, within the deadline.
func TestDeadline(t *testing.T) {
	h := open(t, policies, nil)
	h.policies.hold = make(chan struct{})
	chain := nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "alice", "bot")
	h.authority.trust(chain)
	conn := wiretest.InMemory(t, h.serve)
	s, err := h.client(conn, remoteauthz.Config{}).Bind(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	a := remoteauthz.New(conn, remoteauthz.Config{})
	if d, err := a.Check(t.Context(), s, model(nil)); !errors.Is(err, fault.AuthzTimeout) || d.Kind != authz.Deny {
		t.Errorf("Check = %+v, %v; want AuthzTimeout", d, err)
	}
}

// A batch of more than one call is answered in order.
func TestLargeBatch(t *testing.T) {
	h := open(t, policies, nil)
	a := h.client(wiretest.InMemory(t, h.serve), remoteauthz.Config{})
	s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "alice", "bot"))
	if err != nil {
		t.Fatal(err)
	}
	rs := make([]authz.Request, 2500)
	for i := range rs {
		rs[i] = model(map[string]any{"amount": i % 20})
		if i%100 == 99 {
			rs[i].Action = "fly"
		}
	}
	ds, err := a.CheckBatch(t.Context(), s, rs)
	if err != nil || len(ds) != len(rs) {
		t.Fatalf("CheckBatch = %d decisions, %v", len(ds), err)
	}
	for i, d := range ds {
		if want := i%20 < 10 && i%100 != 99; (d.Kind == authz.Allow) != want || !want && d.Reason == "" {
			t.Fatalf("the %dth decision is %+v", i, d)
		}
	}
}

// slow answers after a while.
type slow struct{ liar }

func (s *slow) Ping(context.Context, *authzv1.PingRequest) (*authzv1.PingResponse, error) {
	time.Sleep(10 * time.Millisecond)
	return &authzv1.PingResponse{}, nil
}

// Health says that calls are slow, and that there are none.
func TestHealth(t *testing.T) {
	a := remoteauthz.New(wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { authzv1.RegisterAuthorizerServiceServer(s, &slow{}) }), remoteauthz.Config{Policy: call.Policy{Timeout: patience}})
	if status := a.Health(t.Context()); status.State != health.Healthy {
		t.Errorf("Health after one call = %+v", status)
	}
	for range 30 {
		if err := a.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if status := a.Health(t.Context()); status.State != health.Degraded || !strings.HasPrefix(status.Reason, "AuthZ slow: ") {
		t.Errorf("Health after slow calls = %+v", status)
	}
	h := open(t, policies, nil)
	conn, _, stop := h.server(t)
	if err := h.client(conn, remoteauthz.Config{}).Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	if status := h.client(conn, remoteauthz.Config{Policy: call.Policy{Attempts: 1}}).Health(t.Context()); status.State != health.Unhealthy {
		t.Errorf("Health without the service = %+v", status)
	}
}

// Who joins a group for a moment has no decisions left from that moment, though
// they are asked for by sessions from before and after it.
// Where the policies' process asks for groups once in a while only, a decision is
// kept under those that it was made by.
// Who asks at the same moment as another has no part in a decision by policies that
// read more of the context than was known.
