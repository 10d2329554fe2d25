package console_test

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/authz"
	"creto.dev/consensus/consensustest"
	"creto.dev/console"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/internal/db/dbtest"
	"creto.dev/internal/journal"
	"creto.dev/login"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/oversight"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

var at = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

// house is a console over a real desk, log and database: shop-bot acts for
// alice, bob is in finance, eve is not.
type house struct {
	db          *sql.DB
	clock       *consensustest.Manual
	authority   *localnhi.Authority
	log         *localaudit.Log
	desk        *oversight.Desk
	sessions    *login.Sessions
	passkeys    *login.Passkeys
	providers   *login.Providers
	delegations *login.Delegations
	devices     *login.Devices
	configs     []login.ProviderConfig // of providers
	console     *console.Console
	chain       nhi.VerifiedChain
	server      *httptest.Server
	origin      string
}

// open opens a console that people see at origin; "" means where its server
// really is.
func open(t testing.TB, origin string, providers ...login.ProviderConfig) *house {
	t.Helper()
	ctx, dir := t.Context(), t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	h := &house{configs: providers, clock: &consensustest.Manual{}, server: httptest.NewUnstartedServer(nil)}
	t.Cleanup(h.server.Close)
	if h.origin = origin; origin == "" {
		_, port, err := net.SplitHostPort(h.server.Listener.Addr().String())
		check(err)
		h.origin = "http://localhost:" + port
	}
	h.clock.Set(at)
	var err error
	h.db = dbtest.OpenIn(t, dir)
	p := localpqc.New()
	kek, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	check(err)
	h.authority, err = localnhi.Open(ctx, localnhi.Config{TrustDomain: "test.local", Tenant: creto.DefaultTenant}, h.db, p, h.clock, kek)
	check(err)
	signer, err := h.authority.CheckpointSigner(ctx, "test.local/log")
	check(err)
	quiet := slog.New(slog.DiscardHandler)
	h.log, err = localaudit.Open(ctx, localaudit.Config{Intake: intake.Config{Journal: journal.Config{Dir: filepath.Join(dir, "audit")}, Flush: 10 * time.Millisecond}}, h.db, p, h.clock, signer, kek, quiet)
	check(err)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	logged := make(chan struct{})
	go func() { defer close(logged); _ = h.log.Run(running) }()
	t.Cleanup(func() { stop(); <-logged; _ = h.log.Close() })

	alice, bot := h.authority.ID(creto.KindHuman, "alice"), h.authority.ID(creto.KindAgent, "shop-bot")
	check(h.authority.AddMember(ctx, alice))
	for name, group := range map[string]string{"bob": "finance", "eve": "sales"} {
		check(h.authority.AddMember(ctx, h.authority.ID(creto.KindHuman, name), group))
	}
	check(h.authority.AddAgent(ctx, bot))
	link, err := h.authority.Draft(ctx, alice, bot, nhi.Grant{Scope: nhi.Everything(), TTL: time.Hour})
	check(err)
	h.chain, err = h.authority.Delegate(ctx, link, nhi.Proof{Kind: nhi.ProofBootstrap})
	check(err)
	h.desk, err = oversight.Open(ctx, oversight.Config{}, h.db, h.clock, h.log, h.authority.Groups, quiet)
	check(err)
	h.sessions = login.NewSessions(h.db, h.clock)
	h.passkeys, err = login.OpenPasskeys(h.origin, h.db, h.clock, h.log)
	check(err)
	h.providers = login.NewProviders(h.origin, h.configs, login.People{ID: func(_, name string) creto.ID { return h.authority.ID(creto.KindHuman, name) }, Known: h.authority.Known}, h.db, h.clock, h.log)
	h.delegations = login.NewDelegations(h.db, h.clock, h.log, h.authority.Delegate)
	h.devices = login.NewDevices(h.sessions, h.clock, h.log)
	h.console, err = console.New(h.origin, console.Parts{
		Sessions: h.sessions, Passkeys: h.passkeys, Providers: h.providers, Delegations: h.delegations, Devices: h.devices,
		Agents: agents{h.authority}, Desk: h.desk, Log: h.log,
	}, quiet)
	check(err)
	h.server.Config.Handler = h.console.Handler()
	h.server.Start()
	return h
}

// agents are those of an authority.
type agents struct{ authority *localnhi.Authority }

func (a agents) Of(ctx context.Context, human creto.ID) ([]nhi.VerifiedChain, error) {
	list, err := a.authority.Principals(ctx, human.Tenant, creto.KindAgent)
	var chains []nhi.VerifiedChain
	for _, p := range list {
		if p.Active && p.Human == human && err == nil {
			var chain nhi.VerifiedChain
			if chain, err = a.authority.Chain(ctx, p.ID); err == nil {
				chains = append(chains, chain)
			}
		}
	}
	return chains, err
}

func (agents) Limits(_ context.Context, human, agent creto.ID) ([]console.Limit, error) {
	return []console.Limit{
		{Action: creto.CallModel, Text: "100/1h", Left: 37, Reset: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)},
		{Action: "*", Text: human.Name + agent.Name + "/1s", Left: 5},
	}, nil
}

func (a agents) Revoke(ctx context.Context, human creto.ID, agent string) error {
	chains, err := a.Of(ctx, human)
	for _, chain := range chains {
		if chain.Agent().Name == agent {
			return a.authority.Revoke(ctx, chain.Agent())
		}
	}
	return errors.Join(err, fault.New("test", fault.NHINotFound, "no agent %q acts for you", agent))
}

// ask has the agent ask for consent, and returns the request once it waits.
func (h *house) ask(t testing.TB, resource, args string) oversight.Request {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = h.desk.Await(ctx, gate.Question{
			Chain: h.chain, Approvers: "finance", Policy: authz.Policy{ID: "shop-bot/4", Digest: creto.DigestOf([]byte("policy"))},
			Action: creto.Action{Name: creto.HTTPRequest, Resource: creto.Resource{Type: "Url", ID: resource}, Args: []byte(args)},
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	var asked oversight.Request
	eventually(t, "the request", func() bool {
		list, err := h.desk.List(t.Context(), oversight.Pending)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			if string(r.Args) == args {
				asked = r
			}
		}
		return asked.ID != ""
	})
	return asked
}

// browser is a person's browser, which keeps cookies and follows nothing.
type browser struct {
	t      testing.TB
	base   string
	cookie *http.Cookie
	header http.Header
}

func (h *house) browser(t testing.TB) *browser {
	return &browser{t: t, base: h.server.URL, header: http.Header{}}
}

// login returns a browser in which somebody is logged in.
func (h *house) login(t testing.TB, name string) *browser {
	t.Helper()
	code, err := h.sessions.NewLogin(t.Context(), h.authority.ID(creto.KindHuman, name), login.MethodBootstrap)
	if err != nil {
		t.Fatal(err)
	}
	b := h.browser(t)
	if response, body := b.post("/console/login", url.Values{"code": {code}}); response.StatusCode != http.StatusSeeOther {
		t.Fatalf("login: %d %s", response.StatusCode, body)
	}
	return b
}

func (b *browser) do(method, path, body string) (*http.Response, string) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), method, b.base+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	for name, values := range b.header {
		r.Header[name] = values
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if b.cookie != nil {
		r.AddCookie(b.cookie)
	}
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range response.Cookies() {
		b.cookie = c
	}
	return response, strings.ReplaceAll(string(text), "&#43;", "+")
}

func (b *browser) get(path string) (*http.Response, string) {
	b.t.Helper()
	return b.do("GET", path, "")
}

func (b *browser) post(path string, form url.Values) (*http.Response, string) {
	b.t.Helper()
	return b.do("POST", path, form.Encode())
}

var inputs = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`)

// form returns the hidden fields of a page, but those of the header.
func form(page string) url.Values {
	_, main, _ := strings.Cut(page, "<main>")
	values := url.Values{}
	for _, match := range inputs.FindAllStringSubmatch(main, -1) {
		values.Set(match[1], match[2])
	}
	return values
}

// records returns the newest records of an event.
func (h *house) records(t testing.TB, what string) []audit.Entry {
	t.Helper()
	entries, err := h.log.Query(t.Context(), audit.Filter{What: what})
	if err != nil {
		t.Fatal(err)
	}
	return entries
}
