package gateway_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/authz"
	"creto.dev/authz/localauthz"
	"creto.dev/consensus"
	"creto.dev/consensus/localconsensus"
	"creto.dev/gate"
	"creto.dev/gateway"
	"creto.dev/inference"
	"creto.dev/inference/injection"
	"creto.dev/inference/localinference"
	"creto.dev/internal/db/dbtest"
	"creto.dev/internal/journal"
	"creto.dev/metering"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/oversight"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// readTimeout is how long a request may take to arrive.
const readTimeout = 2 * time.Second

// house is a gateway on real contracts and a real socket, with the agent bot,
// which acts for alice; bob is in the group finance.
type house struct {
	address   string // of the gateway's listener
	authority *localnhi.Authority
	log       *localaudit.Log
	desk      *oversight.Desk
	gateway   *gateway.Gateway
	taints    *injection.Taints
	db        *sql.DB
	clock     consensus.Clock
	quota     *metering.Quota
	bot       creto.ID
	stop      func() // ends the listener's base context
}

// rules permit, or asks "finance" where they begin with "ask ".
func rules(texts ...string) []localauthz.Rule {
	var list []localauthz.Rule
	for _, text := range texts {
		rule := localauthz.Rule{Text: text}
		if asked, ok := strings.CutPrefix(text, "ask "); ok {
			rule = localauthz.Rule{Text: asked, Ask: "finance"}
		}
		list = append(list, rule)
	}
	return list
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func open(t testing.TB, cfg gateway.Config, models []inference.Model, allow ...string) *house {
	t.Helper()
	return openRouter(t, cfg, routerOf(t, models), allow...)
}

// routerOf has models answer in their order.
func routerOf(t testing.TB, models []inference.Model) inference.Router {
	t.Helper()
	var providers []localinference.Provider
	for _, m := range models {
		providers = append(providers, localinference.Provider{Keys: []inference.Model{m}})
	}
	return must[*localinference.Router](t)(localinference.New(localinference.Config{}, providers, nil))
}

// openRouter is open with a router.
func openRouter(t testing.TB, cfg gateway.Config, router inference.Router, allow ...string) *house {
	t.Helper()
	return build(t, cfg, router, func(h *house) string { return must[string](t)(localauthz.PolicyText(h.bot, rules(allow...))) })
}

// openWith is open with the text of policies.
func openWith(t testing.TB, cfg gateway.Config, models []inference.Model, policies string) *house {
	t.Helper()
	return build(t, cfg, routerOf(t, models), func(*house) string { return policies })
}

// enforcer is what a node's limits come from: its own, or lent by another.
type enforcer interface {
	authz.Extension
	gate.Meter
	gateway.Limits
	Rates() metering.Rates
}

// borrowing, in place of a configuration's limits, has the house borrow them of its
// quota, as a node does of another's.
type borrowing struct{ gateway.Limits }

func build(t testing.TB, cfg gateway.Config, router inference.Router, policyText func(*house) string) *house {
	t.Helper()
	ctx, dir := t.Context(), t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	d := dbtest.OpenIn(t, dir)
	clock, err := localconsensus.Open(ctx, d, "test")
	check(err)
	p := localpqc.New()
	kek, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	check(err)
	h := &house{db: d, clock: clock}
	h.authority, err = localnhi.Open(ctx, localnhi.Config{TrustDomain: "test.local", Tenant: creto.DefaultTenant}, d, p, clock, kek)
	check(err)
	signer, err := h.authority.CheckpointSigner(ctx, "test.local/log")
	check(err)
	quiet := slog.New(slog.DiscardHandler)
	h.log, err = localaudit.Open(ctx, localaudit.Config{Intake: intake.Config{Journal: journal.Config{Dir: filepath.Join(dir, "audit")}, Flush: 10 * time.Millisecond}}, d, p, clock, signer, kek, quiet)
	check(err)

	var alice creto.ID
	alice, h.bot = h.authority.ID(creto.KindHuman, "alice"), h.authority.ID(creto.KindAgent, "bot")
	check(h.authority.AddMember(ctx, alice))
	check(h.authority.AddMember(ctx, h.authority.ID(creto.KindHuman, "bob"), "finance"))
	check(h.authority.AddAgent(ctx, h.bot))
	link, err := h.authority.Draft(ctx, alice, h.bot, nhi.Grant{Scope: nhi.Everything(), TTL: time.Hour})
	check(err)
	_, err = h.authority.Delegate(ctx, link, nhi.Proof{Kind: nhi.ProofBootstrap})
	check(err)
	token, _, err := h.authority.IssueToken(ctx, h.bot, localnhi.TokenRequest{})
	check(err)

	text := policyText(h)
	policies := filepath.Join(dir, "policies")
	check(os.MkdirAll(policies, 0o700))
	check(os.WriteFile(filepath.Join(policies, "p.cedar"), []byte("permit (principal is Creto::Human, action, resource);\n"+text), 0o600))
	quota, err := metering.OpenQuota(ctx, d, clock, h.log)
	check(err)
	h.quota = quota
	var meter enforcer = quota
	if _, borrows := cfg.Limits.(borrowing); borrows {
		meter = metering.NewBorrower(quota, clock, "another")
	}
	cfg.Limits = meter
	authorizer, err := localauthz.Open(policies, creto.DefaultTenant, h.authority.Groups, []authz.Extension{meter, meter.Rates()}, func(context.Context, localauthz.Change) {})
	check(err)
	h.desk, err = oversight.Open(ctx, oversight.Config{}, d, clock, h.log, h.authority.Groups, quiet)
	check(err)
	h.taints, err = injection.OpenTaints(ctx, d, clock, time.Hour)
	check(err)
	g := gate.New(h.authority, p, clock, authorizer, h.log, h.desk, meter, h.taints)
	h.gateway = gateway.New(cfg, g, router)

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	logged := make(chan struct{})
	go func() { defer close(logged); _ = h.log.Run(running) }()
	t.Cleanup(func() { stop(); <-logged; _ = h.log.Close() })

	base, end := context.WithCancel(context.WithoutCancel(ctx))
	h.stop = end
	server := httptest.NewUnstartedServer(h.gateway.Sandbox(func(r *http.Request) (gateway.Origin, error) {
		caller, err := g.Open(r.Context(), nhi.Credential{Token: token})
		return gateway.Origin{Caller: caller, Sandbox: "run-1", Isolation: "namespaces"}, err
	}))
	server.Config.BaseContext = func(net.Listener) context.Context { return base }
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	server.Config.ReadTimeout = readTimeout
	server.Start()
	h.address = server.Listener.Addr().String()
	t.Cleanup(func() { end(); server.CloseClientConnections(); server.Close(); h.gateway.Close() })
	return h
}

// proxied returns a client whose plain requests all go through the gateway.
func (h *house) proxied(t testing.TB) *http.Client {
	transport := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: h.address}), DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// raw sends bytes as they are and returns the connection, to be read from.
func (h *house) raw(t testing.TB, text string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", h.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, strings.ReplaceAll(text, "\n", "\r\n")); err != nil {
		t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

// ask sends bytes as they are and returns status and body.
func (h *house) ask(t testing.TB, text string) (int, string) {
	t.Helper()
	_, reader := h.raw(t, text)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatalf("no answer to %q: %v", text, err)
	}
	body, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(body)
}

// records waits for n records of an action, and makes sure that there are no
// more; the newest is first.
func (h *house) records(t testing.TB, what string, n int) []audit.Record {
	t.Helper()
	var records []audit.Record
	eventually(t, fmt.Sprintf("%d records of %s", n, what), func() bool {
		entries, err := h.log.Query(t.Context(), audit.Filter{What: what})
		if err != nil {
			t.Fatal(err)
		}
		records = nil
		for _, e := range entries {
			records = append(records, e.Record)
		}
		return len(records) >= n
	})
	if len(records) != n {
		t.Fatalf("%d records of %s, want %d: %+v", len(records), what, n, records)
	}
	return records
}

// decide answers the one request that is pending, as bob.
func (h *house) decide(t testing.TB, approve bool) oversight.Request {
	t.Helper()
	var pending []oversight.Request
	eventually(t, "a pending request", func() bool {
		var err error
		if pending, err = h.desk.List(t.Context(), oversight.Pending); err != nil {
			t.Fatal(err)
		}
		return len(pending) == 1
	})
	r, err := h.desk.Decide(t.Context(), pending[0].ID, oversight.Decision{
		By: h.authority.ID(creto.KindHuman, "bob"), Approve: approve, Channel: oversight.ChannelCLI, Reason: "because",
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.After(patience); !done(); {
		select {
		case <-deadline:
			t.Fatalf("still waiting for %s", what)
		case <-ticker.C:
		}
	}
}

// codeIn returns the code of a problem, or of an error in OpenAI's
// dialect.
func codeIn(body string) string {
	_, rest, _ := strings.Cut(body, `"code":"`)
	code, _, _ := strings.Cut(rest, `"`)
	return code
}
