package serve_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
	"creto.dev/internal/serve"
	"creto.dev/login"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

var quiet = slog.New(slog.DiscardHandler)

func human(name string) creto.ID {
	return creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: creto.KindHuman, Name: name}
}

// admin notes what it is asked, and by whom, and gives prepared answers. A name
// of "wait" waits, "fail" fails.
type admin struct {
	decide func(context.Context, client.Check) (client.Decision, error) // instead of noting a Check

	mu    sync.Mutex // guards calls
	calls []string
	// arrived gets a value when a call waits.
	arrived chan struct{}
	// release lets it go on.
	release chan struct{}
}

var errRefused = fault.After(fault.New("test", fault.RateLimited, "slower, please"), 1500*time.Millisecond)

func (a *admin) note(ctx context.Context, call string, args ...any) error {
	a.mu.Lock()
	a.calls = append(a.calls, fmt.Sprint(creto.CallerOf(ctx).Name, " ", call, " ", fmt.Sprintf("%+v", args)))
	a.mu.Unlock()
	switch fmt.Sprint(args...) {
	case "fail":
		return errRefused
	case "wait":
		a.arrived <- struct{}{}
		select {
		case <-a.release:
		case <-ctx.Done():
			return fault.Wrap("test", ctx.Err())
		}
	}
	return nil
}

func (a *admin) take() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	calls := a.calls
	a.calls = nil
	return calls
}

// ownerOf knows one tenant beside the node's own.
func ownerOf(_ context.Context, tenant string) (creto.ID, error) {
	id := human("owner")
	switch tenant {
	case "":
	case "acme":
		id.Tenant = tenant
	default:
		return id, fault.New("test", fault.NotFound, "there is no tenant %q", tenant)
	}
	return id, nil
}

func (a *admin) Revoke(ctx context.Context, r client.Revocation) (client.Revoked, error) {
	return client.Revoked{Agents: []string{"bot"}}, a.note(ctx, "Revoke", r)
}

func (a *admin) Fsck(context.Context) (client.Fsck, error) { return client.Fsck{}, nil }

func (a *admin) LogKeys(context.Context) (client.LogKeys, error) {
	return client.LogKeys{Origin: "test.local/log"}, nil
}

func (a *admin) Keys(ctx context.Context) (client.Keys, error) {
	return client.Keys{Keys: []client.Key{{ID: "1"}}}, a.note(ctx, "Keys")
}

func (a *admin) RotateKey(ctx context.Context, k client.KeyName) (client.Key, error) {
	return client.Key{ID: "2"}, a.note(ctx, "RotateKey", k)
}

func (a *admin) Delegate(ctx context.Context, in client.NewAgent) (client.Agent, error) {
	if in.Remote == (creto.CallerOf(ctx) == human("owner")) {
		return client.Agent{}, fault.New("test", fault.Internal, "Remote is %v for %v", in.Remote, creto.CallerOf(ctx))
	}
	return client.Agent{Name: in.Name}, a.note(ctx, "Delegate", in.Name)
}

func (a *admin) Workloads(ctx context.Context) ([]client.Human, error) {
	return []client.Human{{Name: "w"}}, a.note(ctx, "Workloads")
}

func (a *admin) RemoveMember(ctx context.Context, m client.Member) error {
	return a.note(ctx, "RemoveMember", m)
}

func (a *admin) AddTenant(ctx context.Context, t client.Tenant) (client.Tenant, error) {
	return t, a.note(ctx, "AddTenant", t)
}

func (a *admin) Tenants(ctx context.Context) ([]client.Tenant, error) {
	return []client.Tenant{{Name: "acme"}}, a.note(ctx, "Tenants")
}

func (a *admin) Status(ctx context.Context) (client.Status, error) {
	return client.Status{Version: "1", PID: 7}, a.note(ctx, "Status")
}

func (a *admin) AddAgent(ctx context.Context, in client.NewAgent) (client.Agent, error) {
	if in.Remote == (creto.CallerOf(ctx) == human("owner")) {
		return client.Agent{}, fault.New("test", fault.Internal, "Remote is %v for %v", in.Remote, creto.CallerOf(ctx))
	}
	in.Remote = false
	return client.Agent{Name: in.Name}, a.note(ctx, "AddAgent", in)
}

func (a *admin) Agents(ctx context.Context) ([]client.Agent, error) {
	return []client.Agent{{Name: "bot"}}, a.note(ctx, "Agents")
}

func (a *admin) RevokeAgent(ctx context.Context, name string) error {
	return a.note(ctx, "RevokeAgent", name)
}

func (a *admin) Token(ctx context.Context, agent string, want client.NewToken) (client.Token, error) {
	return client.Token{Token: "t"}, a.note(ctx, "Token", agent, want.Audience)
}

func (a *admin) X509SVID(ctx context.Context, want client.NewSVID) (client.X509SVID, error) {
	return client.X509SVID{ID: want.Name}, a.note(ctx, "X509SVID", want.Name, want.Workload, string(want.Request))
}

func (a *admin) JWTSVID(ctx context.Context, want client.NewSVID) (client.Token, error) {
	return client.Token{Token: "j"}, a.note(ctx, "JWTSVID", want.Name, want.Workload, want.Audience)
}

func (a *admin) AddHuman(ctx context.Context, h client.Human) (client.Human, error) {
	return h, a.note(ctx, "AddHuman", h)
}

func (a *admin) SetSecret(ctx context.Context, s client.NewSecret) (client.Secret, error) {
	return client.Secret{Name: s.Name, Agents: s.Agents}, a.note(ctx, "SetSecret", s.Name, s.Agents, len(s.Value.Reveal()))
}

func (a *admin) Secrets(ctx context.Context) ([]client.Secret, error) {
	return []client.Secret{{Name: "key"}}, a.note(ctx, "Secrets")
}

func (a *admin) SetLimit(ctx context.Context, l client.Limit) (client.Limit, error) {
	return client.Limit{Agent: "bot", Left: 7}, a.note(ctx, "SetLimit", l)
}

func (a *admin) Limits(ctx context.Context, agent string) ([]client.Limit, error) {
	return []client.Limit{{Agent: "bot"}}, a.note(ctx, "Limits", agent)
}

func (a *admin) ModelProviders(ctx context.Context) ([]client.ModelProvider, error) {
	return []client.ModelProvider{{Provider: "p"}}, a.note(ctx, "ModelProviders")
}

func (a *admin) RouteModel(ctx context.Context, r client.ModelRoute) (client.ModelRouting, error) {
	return client.ModelRouting{Route: "r"}, a.note(ctx, "RouteModel", r)
}

func (a *admin) ClearLimit(ctx context.Context, l client.LimitName) (client.Cleared, error) {
	return client.Cleared{Quotas: 1}, a.note(ctx, "ClearLimit", l)
}

func (a *admin) RemoveSecret(ctx context.Context, name string) error {
	return a.note(ctx, "RemoveSecret", name)
}

func (a *admin) Humans(ctx context.Context) ([]client.Human, error) {
	return []client.Human{{Name: "bob"}}, a.note(ctx, "Humans")
}

func (a *admin) Delegation(ctx context.Context, id string) (client.Delegation, error) {
	return client.Delegation{ID: id}, a.note(ctx, "Delegation", id)
}

func (a *admin) Session(ctx context.Context, human string) (client.Token, error) {
	return client.Token{Token: "t"}, a.note(ctx, "Session", human)
}

func (a *admin) Login(ctx context.Context, human string, method login.Method) (string, error) {
	// Over TCP a login proves no more than the session that asks for it.
	if socket := creto.CallerOf(ctx).Name == "owner"; socket != (method == login.MethodBootstrap) {
		return "", fmt.Errorf("a login by %s", method)
	}
	return "http://x/", a.note(ctx, "Login", human)
}

func (a *admin) Chain(ctx context.Context, agent string, digest creto.Digest) (client.Chain, error) {
	return client.Chain{Digest: digest}, a.note(ctx, "Chain", agent)
}

func (a *admin) Check(ctx context.Context, c client.Check) (client.Decision, error) {
	if a.decide != nil {
		return a.decide(ctx, c)
	}
	return client.Decision{Decision: "allow"}, a.note(ctx, "Check", c)
}

func (a *admin) Approvals(ctx context.Context, state string) ([]client.Approval, error) {
	return []client.Approval{{ID: "1"}}, a.note(ctx, "Approvals", state)
}

func (a *admin) Approval(ctx context.Context, id string) (client.Approval, error) {
	return client.Approval{ID: id}, a.note(ctx, "Approval", id)
}

func (a *admin) Decide(ctx context.Context, id string, d client.Decide) (client.Approval, error) {
	if d.Remote == (creto.CallerOf(ctx) == human("owner")) {
		return client.Approval{}, fault.New("test", fault.Internal, "Remote is %v for %v", d.Remote, creto.CallerOf(ctx))
	}
	d.Remote = false
	return client.Approval{ID: id}, a.note(ctx, "Decide", id, d)
}

func (a *admin) StartRun(ctx context.Context, r client.NewRun) (client.Run, error) {
	return client.Run{ID: "run-1"}, a.note(ctx, "StartRun", r)
}

func (a *admin) RunStarted(ctx context.Context, id string, s client.RunStarted) error {
	return a.note(ctx, "RunStarted", id, s)
}

func (a *admin) EndRun(ctx context.Context, id string, e client.RunEnded) error {
	return a.note(ctx, "EndRun", id, e)
}

func (a *admin) Receipts(ctx context.Context, q client.Query) ([]client.Receipt, error) {
	return []client.Receipt{{Index: 3, Record: audit.Record{What: "x"}}}, a.note(ctx, "Receipts", q)
}

func (a *admin) Bundle(ctx context.Context, q client.Query) ([]byte, error) {
	return []byte{0, 1, 2}, a.note(ctx, "Bundle", q)
}

func (a *admin) Proof(ctx context.Context, record string) (client.Proof, error) {
	return client.Proof{Index: 7}, a.note(ctx, "Proof", record)
}

func (a *admin) Tail(ctx context.Context, q client.Query, see func(client.Receipt) error) error {
	if err := a.note(ctx, "Tail", q); err != nil {
		return err
	}
	for i := q.From; i < q.From+3; i++ {
		if err := see(client.Receipt{Index: i}); err != nil {
			return err
		}
	}
	return nil
}

func (a *admin) Erase(ctx context.Context, e client.Erasure) (client.Erased, error) {
	return client.Erased{}, a.note(ctx, "Erase", e)
}

// node is a served fake.
type node struct {
	*admin
	address, socket string
	stop            func() error // ends it, and returns what Run returned
}

func start(t *testing.T) *node { return startWith(t, nil) }

// startWith serves with parts that more, if any, has changed.
func startWith(t *testing.T, more func(*serve.Parts)) *node {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	s, err := serve.Listen("127.0.0.1:0", socket, quiet)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{admin: &admin{arrived: make(chan struct{}, 8), release: make(chan struct{})}, address: s.Address(), socket: socket}
	say := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, text+" for "+creto.CallerOf(r.Context()).Name)
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		parts := serve.Parts{
			Admin: n.admin, Owner: ownerOf, Doors: say("doors"), Console: say("console"), Tokens: say("tokens"), Health: say("health"),
			Administrator: func(r *http.Request) (creto.ID, error) {
				switch r.Header.Get("Authorization") {
				case "Bearer admin":
					return human("anna"), nil
				case "Bearer bob":
					return creto.ID{}, fault.New("test", fault.PermissionDenied, "bob is not in the group")
				}
				return creto.ID{}, fault.New("test", fault.Unauthenticated, "log in")
			},
		}
		if more != nil {
			more(&parts)
		}
		ended <- s.Run(ctx, parts)
	}()
	n.stop = sync.OnceValue(func() error { cancel(); return errors.Join(<-ended, s.Close()) })
	t.Cleanup(func() { _ = n.stop() })
	return n
}

func (n *node) client(t *testing.T, address, token string) *client.Client {
	t.Helper()
	c, err := client.New(address, creto.NewSecret(token))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// do sends one request over TCP.
func (n *node) do(t *testing.T, method, path, body string, header http.Header) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.address+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		r.Header = header
	}
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	return response
}

// endless has a new record all the time.
type endless struct{ serve.Admin }

func (endless) Tail(ctx context.Context, _ client.Query, see func(client.Receipt) error) error {
	for i := int64(0); ; i++ {
		if err := errors.Join(ctx.Err(), see(client.Receipt{Index: i})); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Who may not read any more is told nothing more, also where they began before.
func TestTailEndsWithTheSession(t *testing.T) {
	var ended atomic.Bool
	n := startWith(t, func(p *serve.Parts) {
		p.Admin = endless{p.Admin}
		p.Administrator = func(*http.Request) (creto.ID, error) {
			if ended.Load() {
				return creto.ID{}, fault.New("test", fault.Unauthenticated, "log in")
			}
			return human("anna"), nil
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	seen := 0
	err := n.client(t, "http://"+n.address, "admin").Tail(ctx, client.Query{}, func(client.Receipt) error {
		if seen++; seen == 3 {
			ended.Store(true)
		}
		return nil
	})
	if seen < 3 || ctx.Err() != nil {
		t.Errorf("the tail of an ended session goes on: %d records, %v", seen, err)
	}
}

// Every call of the client reaches the administrator's side with what was said,
// over the socket as the owner, over TCP as who logged in.
func TestAPI(t *testing.T) {
	n := start(t)
	query := client.Query{Agent: "bot", What: "call_model", Outcome: "denied", Before: 1 << 40, Limit: 5}
	for _, test := range []struct {
		call  func(context.Context, *client.Client) (any, error)
		want  any
		note  string
		local bool // refused over TCP
	}{
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Status(ctx) }, client.Status{Version: "1", PID: 7}, "Status []", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.AddAgent(ctx, client.NewAgent{Name: "bot", OnBehalfOf: "alice", Allow: []string{"a"}, Ask: []string{"b"}, Quota: []string{"c"}, TTL: time.Hour})
		}, client.Agent{Name: "bot"}, "AddAgent [{Name:bot OnBehalfOf:alice Allow:[a] Ask:[b] Quota:[c] TTL:1h0m0s Actions:[] Resources:[] Depth:<nil> Proof: Remote:false}]", false},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Agents(ctx) }, []client.Agent{{Name: "bot"}}, "Agents []", false},
		{func(ctx context.Context, c *client.Client) (any, error) { return nil, c.RevokeAgent(ctx, "a/b c") }, nil, "RevokeAgent [a/b c]", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.Token(ctx, "bot", client.NewToken{Audience: "x"})
		}, client.Token{Token: "t"}, "Token [bot x]", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.X509SVID(ctx, client.NewSVID{Name: "bot", Request: []byte("csr")})
		}, client.X509SVID{ID: "bot"}, "X509SVID [bot false csr]", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.JWTSVID(ctx, client.NewSVID{Name: "bot", Workload: true, Audience: "x"})
		}, client.Token{Token: "j"}, "JWTSVID [bot true x]", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.AddHuman(ctx, "bob", []string{"finance"})
		}, client.Human{Name: "bob", Groups: []string{"finance"}}, "AddHuman [{Name:bob ID: Groups:[finance] Workload:false}]", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.SetLimit(ctx, client.Limit{Agent: "bot", For: "alice", Action: "*", Rate: "1/s", Burst: 2})
		}, client.Limit{Agent: "bot", Left: 7}, "SetLimit [{Agent:bot For:alice Action:* Quota: Rate:1/s Burst:2 Used:0 Lent:0 Left:0 Reset:0001-01-01 00:00:00 +0000 UTC}]", false},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.ModelProviders(ctx) }, []client.ModelProvider{{Provider: "p"}}, "ModelProviders []", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.RouteModel(ctx, client.ModelRoute{Model: "m", Agent: "bot"})
		}, client.ModelRouting{Route: "r"}, "RouteModel [{Model:m Agent:bot Classification: MaxTokens:0}]", false},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Limits(ctx, "a b") }, []client.Limit{{Agent: "bot"}}, "Limits [a b]", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.ClearLimit(ctx, client.LimitName{Agent: "bot", Action: "*", Window: time.Hour, Rate: true})
		}, client.Cleared{Quotas: 1}, "ClearLimit [{Agent:bot For: Action:* Window:1h0m0s Rate:true}]", false},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Humans(ctx) }, []client.Human{{Name: "bob"}}, "Humans []", false},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Session(ctx, "bob") }, client.Token{Token: "t"}, "Session [bob]", true},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Session(ctx, "anna") }, client.Token{Token: "t"}, "Session [anna]", false},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Delegation(ctx, "7") }, client.Delegation{ID: "7"}, "Delegation [7]", false},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Login(ctx, "bob") }, "http://x/", "Login [bob]", true},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Login(ctx, "anna") }, "http://x/", "Login [anna]", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.Chain(ctx, "bot", creto.DigestOf(nil))
		}, client.Chain{Digest: creto.DigestOf(nil)}, "Chain [bot]", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.Check(ctx, client.Check{Agent: "bot", Action: "call_model", Resource: "x", Context: map[string]any{"n": 9007199254740993}})
		}, client.Decision{Decision: "allow"}, "Check [{Agent:bot Action:call_model Resource:x Context:map[n:9007199254740993]}]", false},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Approvals(ctx, "pending") }, []client.Approval{{ID: "1"}}, "Approvals [pending]", false},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Approval(ctx, "1") }, client.Approval{ID: "1"}, "Approval [1]", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.Decide(ctx, "1", client.Decide{Approve: true, Reason: "r"})
		}, client.Approval{ID: "1"}, "Decide [1 {Approve:true As: Reason:r Auto:false Remote:false}]", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.Decide(ctx, "1", client.Decide{As: "anna"})
		}, client.Approval{ID: "1"}, "Decide [1 {Approve:false As:anna Reason: Auto:false Remote:false}]", false},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.Decide(ctx, "1", client.Decide{As: "bob"})
		}, client.Approval{ID: "1"}, "Decide [1 {Approve:false As:bob Reason: Auto:false Remote:false}]", true},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.Decide(ctx, "1", client.Decide{As: "anna", Auto: true})
		}, client.Approval{ID: "1"}, "Decide [1 {Approve:false As:anna Reason: Auto:true Remote:false}]", true},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return c.StartRun(ctx, client.NewRun{Agent: "bot", PID: 7})
		}, client.Run{ID: "run-1"}, "StartRun [{Agent:bot Isolation: Engine: Command:[] Dir: Write:[] PID:7}]", true},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return nil, c.RunStarted(ctx, "run-1", client.RunStarted{StartNS: 5, Unenforced: []string{"pids"}})
		}, nil, "RunStarted [run-1 {StartNS:5 Config:" + (creto.Digest{}).String() + " Unenforced:[pids]}]", true},
		{func(ctx context.Context, c *client.Client) (any, error) {
			return nil, c.EndRun(ctx, "run-1", client.RunEnded{ExitCode: 3, Error: "e"})
		}, nil, "EndRun [run-1 {ExitCode:3 Error:e}]", true},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Receipts(ctx, query) }, []client.Receipt{{Index: 3, Record: audit.Record{What: "x"}}}, fmt.Sprintf("Receipts [%+v]", query), false},
		{func(ctx context.Context, c *client.Client) (any, error) { return c.Bundle(ctx, query) }, []byte{0, 1, 2}, fmt.Sprintf("Bundle [%+v]", query), false},
	} {
		t.Run(test.note, func(t *testing.T) {
			got, err := test.call(t.Context(), n.client(t, n.socket, ""))
			if calls := n.take(); err != nil || !reflect.DeepEqual(got, test.want) || len(calls) != 1 || calls[0] != "owner "+test.note {
				t.Errorf("over the socket: %+v, %v after %q; want %+v after %q", got, err, calls, test.want, test.note)
			}
			got, err = test.call(t.Context(), n.client(t, "http://"+n.address, "admin"))
			calls := n.take()
			switch {
			case test.local:
				if !errors.Is(err, fault.PermissionDenied) || len(calls) != 0 {
					t.Errorf("over TCP: %v after %q, want PermissionDenied", err, calls)
				}
			case err != nil || !reflect.DeepEqual(got, test.want) || len(calls) != 1 || calls[0] != "anna "+test.note:
				t.Errorf("over TCP: %+v, %v after %q; want %+v after %q", got, err, calls, test.want, test.note)
			}
		})
	}
}

func TestFaultsCross(t *testing.T) {
	n := start(t)
	_, err := n.client(t, n.socket, "").Token(t.Context(), "fail", client.NewToken{})
	if fault.CodeOf(err) != fault.RateLimited || fault.Message(err) != "slower, please" || fault.RetryAfter(err) != 1500*time.Millisecond {
		t.Errorf("a fault arrived as %v, %q, after %v", fault.CodeOf(err), fault.Message(err), fault.RetryAfter(err))
	}
}

func TestTCP(t *testing.T) {
	n := start(t)
	as := func(token string, pairs ...string) http.Header {
		h := http.Header{"Authorization": {"Bearer " + token}}
		for i := 0; i < len(pairs); i += 2 {
			h.Set(pairs[i], pairs[i+1])
		}
		return h
	}
	for _, test := range []struct {
		name, method, path, body string
		header                   http.Header
		status                   int
	}{
		{"without a session", "GET", "/api/v1/agents", "", nil, 401},
		{"the session of another", "GET", "/api/v1/agents", "", as("bob"), 403},
		{"an administrator", "GET", "/api/v1/agents", "", as("admin"), 200},
		{"another site's form", "POST", "/api/v1/agents/bot/revoke", "", as("admin", "Sec-Fetch-Site", "cross-site"), 403},
		{"another site's script", "POST", "/api/v1/agents/bot/revoke", "", as("admin", "Origin", "http://evil.test"), 403},
		{"the own site's script", "POST", "/api/v1/agents/bot/revoke", "", as("admin", "Origin", "http://"+n.address), 200},
		{"an unknown field", "POST", "/api/v1/humans", `{"name":"bob","admin":true}`, as("admin"), 400},
		{"trailing data", "POST", "/api/v1/humans", `{"name":"bob"}{}`, as("admin"), 400},
		{"no body", "POST", "/api/v1/humans", "", as("admin"), 400},
		{"another type", "POST", "/api/v1/humans", `{"name":7}`, as("admin"), 400},
		{"too large", "POST", "/api/v1/humans", `{"name":"` + strings.Repeat("x", 1<<20) + `"}`, as("admin"), 400},
		{"a limit that is no number", "GET", "/api/v1/receipts?limit=-1", "", as("admin"), 400},
		{"an unknown path", "GET", "/api/v1/nothing", "", as("admin"), 404},
		{"an unknown path, to a stranger", "GET", "/api/v1/nothing", "", nil, 401},
		{"another method", "DELETE", "/api/v1/agents", "", as("admin"), 404},
		{"outside of the API", "GET", "/nothing", "", nil, 404},
		{"the start page", "GET", "/", "", nil, 303},
	} {
		t.Run(test.name, func(t *testing.T) {
			response := n.do(t, test.method, test.path, test.body, test.header)
			if response.StatusCode != test.status {
				t.Errorf("status %d, want %d", response.StatusCode, test.status)
			}
			if response.StatusCode >= 400 && response.Header.Get("Content-Type") != faulthttp.MediaType {
				t.Errorf("Content-Type %q", response.Header.Get("Content-Type"))
			}
			if test.status == 200 && response.Header.Get("Cache-Control") != "no-store" {
				t.Error("the answer may be kept")
			}
		})
	}
	if calls := n.take(); len(calls) != 2 {
		t.Errorf("calls %q", calls)
	}
	for path, want := range map[string]string{
		"/v1/models": "doors for ", "/oauth/token": "tokens for ", "/.well-known/jwks.json": "tokens for ", "/spiffe/bundle": "tokens for ", "/console": "console for ", "/console/x": "console for ", "/health": "health for ", "/livez": "health for ", "/readyz": "health for ",
	} {
		body, _ := io.ReadAll(n.do(t, "GET", path, "", nil).Body)
		if string(body) != want {
			t.Errorf("%s is served by %q, want %q", path, body, want)
		}
	}
}

// Over the socket, health knows that the owner asks.
func TestSocketHealth(t *testing.T) {
	n := start(t)
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.socket)
	}}
	defer transport.CloseIdleConnections()
	r, _ := http.NewRequestWithContext(t.Context(), "GET", "http://x/health", nil)
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(response.Body); string(body) != "health for owner" {
		t.Errorf("answer %q", body)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	first, err := serve.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	// One that a crash left is replaced; what is no socket is not.
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = first.Close()
	second, err := serve.ListenUnix(path)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	_ = second.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := serve.ListenUnix(file); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("a file in the way: %v", err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "mine" {
		t.Errorf("it is now %q, %v", text, err)
	}
	if _, err := serve.ListenUnix(filepath.Join(dir, strings.Repeat("x", 120))); !errors.Is(err, fault.InvalidArgument) || !strings.Contains(fault.Message(err), "--data") {
		t.Errorf("a long path: %v", err)
	}

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for address, want := range map[string]string{
		taken.Addr().String(): "cannot listen on " + taken.Addr().String() + ": address already in use; choose another with --listen",
		"127.0.0.1:99999":     "cannot listen on 127.0.0.1:99999: the address is not valid; choose another with --listen",
	} {
		_, err := serve.Listen(address, path, quiet)
		if !errors.Is(err, fault.Unavailable) || fault.Message(err) != want {
			t.Errorf("Listen(%s) = %v, %q, want %q", address, err, fault.Message(err), want)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket was left: %v", err)
	}
}

// A slow request gets its answer, one that waits for ever is ended, and its
// handler has returned when Run returns.
func TestShutdown(t *testing.T) {
	t.Run("drains", func(t *testing.T) {
		n := start(t)
		done := make(chan error, 1)
		go func() {
			_, err := n.client(t, n.socket, "").Token(t.Context(), "wait", client.NewToken{})
			done <- err
		}()
		<-n.arrived
		ended := make(chan error, 1)
		go func() { ended <- n.stop() }()
		for { // until nobody new is let in
			conn, err := net.Dial("tcp", n.address)
			if err != nil {
				break
			}
			_ = conn.Close()
		}
		close(n.release)
		if err := <-done; err != nil {
			t.Errorf("the slow request failed: %v", err)
		}
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
		if _, err := os.Stat(n.socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	t.Run("cuts", func(t *testing.T) {
		n := start(t)
		done := make(chan error, 1)
		go func() {
			_, err := n.client(t, "http://"+n.address, "admin").Token(t.Context(), "wait", client.NewToken{})
			done <- err
		}()
		<-n.arrived
		began := time.Now()
		if err := n.stop(); err != nil || time.Since(began) > patience {
			t.Errorf("Run = %v after %v", err, time.Since(began))
		}
		if err := <-done; err == nil {
			t.Error("the waiting request was answered")
		}
	})
	t.Run("ends tunnels", func(t *testing.T) {
		l, err := serve.ListenUnix(filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		returned := false
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "x")
			<-r.Context().Done()
			_ = conn.Close()
			returned = true
		})
		ended := make(chan error, 1)
		go func() { ended <- serve.Serve(ctx, l, handler, quiet) }()
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-ended; err != nil || !returned {
			t.Errorf("Serve = %v, its handler returned: %v", err, returned)
		}
	})
}
