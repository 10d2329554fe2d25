package node_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/db/dbtest"
	"creto.dev/node"
	"creto.dev/pqc/localpqc"
	"creto.dev/receipt"
)

// TestTenantsAreIsolated: two tenants with principals of the same names, and one
// that tries to reach the other's by every call there is.
func TestTenantsAreIsolated(t *testing.T) {
	model := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"id":"1","object":"chat.completion","model":"m","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"hello"}}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`))
	}))
	defer model.Close()
	o := options(t, t.TempDir())
	o.Config.Inference.Providers = []node.ProviderConfig{{Name: "m", BaseURL: model.URL + "/v1"}}
	_, home, stop := running(t, o)
	defer stop()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := home.For("acme").Agents(ctx); !errors.Is(err, fault.NotFound) {
		t.Errorf("Agents of a tenant that is not there = %v, want NotFound", err)
	}
	_, err := home.AddTenant(ctx, "acme")
	must(err)
	if _, err := home.AddTenant(ctx, "acme"); !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("AddTenant twice = %v, want AlreadyExists", err)
	}
	if _, err := home.AddTenant(ctx, "../evil"); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("AddTenant of a path = %v, want InvalidArgument", err)
	}
	acme := home.For("acme")
	for _, c := range []*client.Client{home, acme} { // the same names in both
		_, err = c.AddHuman(ctx, "alice", nil)
		must(err)
		_, err = c.AddHuman(ctx, "bob", []string{"finance"})
		must(err)
	}
	_, err = home.AddAgent(ctx, client.NewAgent{Name: "bot", OnBehalfOf: "alice", Ask: []string{"call_model=*,finance"}})
	must(err)
	_, err = home.AddAgent(ctx, client.NewAgent{Name: "only", OnBehalfOf: "alice", Allow: []string{"call_model=*"}})
	must(err)
	_, err = acme.AddAgent(ctx, client.NewAgent{Name: "bot", OnBehalfOf: "alice"})
	must(err)

	names := func(c *client.Client) []string {
		list, err := c.Agents(ctx)
		must(err)
		var names []string
		for _, a := range list {
			names = append(names, a.ID)
		}
		return names
	}
	if got := names(home); !slices.Equal(got, []string{"spiffe://creto.local/default/agent/bot", "spiffe://creto.local/default/agent/only"}) {
		t.Errorf("home's agents are %v", got)
	}
	if got := names(acme); !slices.Equal(got, []string{"spiffe://creto.local/acme/agent/bot"}) {
		t.Errorf("acme's agents are %v", got)
	}

	// A policy of one says nothing of the other's agent of the same name.
	check := client.Check{Agent: "bot", Action: "call_model", Resource: "m"}
	if d, err := home.Check(ctx, check); err != nil || d.Decision != "requires_oversight" {
		t.Errorf("Check of home's bot = %+v, %v", d, err)
	}
	if d, err := acme.Check(ctx, check); err != nil || d.Decision != "deny" {
		t.Errorf("Check of acme's bot = %+v, %v; want deny", d, err)
	}

	// home's bot asks for consent, over the port, with its token.
	status, err := home.Status(ctx)
	must(err)
	token, err := home.Token(ctx, "bot", client.NewToken{})
	must(err)
	call, cancel := context.WithCancel(ctx)
	answered := make(chan int, 1)
	go func() { answered <- modelCall(call, "http://"+status.Listen, token.Token) }()
	id := pending(t, home)
	if list, err := acme.Approvals(ctx, ""); err != nil || len(list) > 0 {
		t.Errorf("acme sees %v, %v", list, err)
	}

	// The administrator of acme, over the port.
	session, err := acme.Session(ctx, "admin")
	must(err)
	remote, err := client.New("http://"+status.Listen, creto.NewSecret(session.Token))
	must(err)
	for who, c := range map[string]*client.Client{"over the socket": acme, "over the port": remote} {
		for name, err := range map[string]error{
			"Approval":                 second(c.Approval(ctx, id)),
			"Decide":                   second(c.Decide(ctx, id, client.Decide{Approve: true})),
			"Decide as bob":            second(c.Decide(ctx, id, client.Decide{Approve: true, As: "bob"})),
			"Token":                    second(c.Token(ctx, "only", client.NewToken{})),
			"X509SVID":                 second(c.X509SVID(ctx, client.NewSVID{Name: "only", Request: csr(t)})),
			"JWTSVID":                  second(c.JWTSVID(ctx, client.NewSVID{Name: "only", Audience: "x"})),
			"RevokeAgent":              c.RevokeAgent(ctx, "only"),
			"AddTenant":                second(c.AddTenant(ctx, "more")),
			"Tenants":                  second(c.Tenants(ctx)),
			"Check":                    second(c.Check(ctx, client.Check{Agent: "only", Action: "call_model", Resource: "m"})),
			"AddAgent for home's":      second(c.AddAgent(ctx, client.NewAgent{Name: "x", OnBehalfOf: "agent:only"})),
			"StartRun of home's agent": second(c.StartRun(ctx, client.NewRun{Agent: "only", PID: 1, Command: []string{"true"}})),
		} {
			if !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.PermissionDenied) {
				t.Errorf("%s, acme's %s = %v, want NotFound or PermissionDenied", who, name, err)
			}
		}
		list, err := c.Receipts(ctx, client.Query{Limit: 1000})
		must(err)
		if len(list) == 0 {
			t.Errorf("%s, acme sees none of its own records", who)
		}
		for _, r := range list {
			if r.Record.Who.Tenant != "acme" {
				t.Errorf("%s, acme sees the record of %s: %s", who, r.Record.Who, r.Record.What)
			}
		}
		for _, name := range []string{"only", "spiffe://creto.local/default/agent/only"} {
			if list, err := c.Receipts(ctx, client.Query{Agent: name}); err != nil || len(list) > 0 {
				t.Errorf("%s, acme finds %d records of home's agent, %v", who, len(list), err)
			}
		}
	}
	if _, err := remote.For("default").Agents(ctx); !errors.Is(err, fault.PermissionDenied) {
		t.Errorf("over the port, acme's administrator calling for home = %v, want PermissionDenied", err)
	}

	// acme's token reaches the doors as acme's agent.
	other, err := acme.Token(ctx, "bot", client.NewToken{})
	must(err)
	soon, cancelled := context.WithTimeout(ctx, 20*time.Second)
	defer cancelled()
	if got := modelCall(soon, "http://"+status.Listen, other.Token); got != http.StatusForbidden {
		t.Errorf("acme's bot calls a model: status %d, want 403", got)
	}
	if _, err := home.Decide(ctx, id, client.Decide{Approve: true, As: "bob"}); err != nil {
		t.Error(err)
	}
	select {
	case got := <-answered:
		if got != http.StatusOK {
			t.Errorf("home's bot calls a model with consent: status %d", got)
		}
	case <-time.After(20 * time.Second):
		t.Error("home's bot was not answered")
	}
	cancel()
}

func second[T any](_ T, err error) error { return err }

// modelCall asks for a completion and returns the status.
func modelCall(ctx context.Context, base, token string) int {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/chat/completions", strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"hello"}]}`))
	if err != nil {
		return 0
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0
	}
	_ = response.Body.Close()
	return response.StatusCode
}

// pending waits for a request for consent and returns its id.
func pending(t *testing.T, c *client.Client) string {
	t.Helper()
	for range 1000 {
		list, err := c.Approvals(t.Context(), "pending")
		if err != nil {
			t.Fatal(err)
		}
		if len(list) > 0 {
			return list[0].ID
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nothing waits for consent")
	return ""
}

// TestTenantsLearnNothing: what is not in any list of a tenant's is not told
// elsewhere either: by health, by what is wrong with policies, by introspection,
// by what waits for a human.
func TestTenantsLearnNothing(t *testing.T) {
	o := options(t, t.TempDir())
	_, home, stop := running(t, o)
	defer stop()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := home.AddTenant(ctx, "acme")
	must(err)
	acme := home.For("acme")
	_, err = home.AddHuman(ctx, "alice", nil)
	must(err)
	_, err = home.AddAgent(ctx, client.NewAgent{Name: "bot", OnBehalfOf: "alice"})
	must(err)
	token, err := home.Token(ctx, "bot", client.NewToken{})
	must(err)
	status, err := acme.Status(ctx)
	must(err)
	if status.Tenant != "acme" { // creto run makes names with it
		t.Errorf("acme's Status names the tenant %q", status.Tenant)
	}
	base := "http://" + status.Listen
	session := func(c *client.Client, human string) string {
		t.Helper()
		s, err := c.Session(ctx, human)
		must(err)
		return s.Token
	}
	theirs := session(acme, "admin")
	remote, err := client.New(base, creto.NewSecret(theirs))
	must(err)
	ask := func(path, bearer string, form url.Values) string {
		t.Helper()
		method, body := http.MethodGet, ""
		if form != nil {
			method, body = http.MethodPost, form.Encode()
		}
		r, err := http.NewRequestWithContext(ctx, method, base+path, strings.NewReader(body))
		must(err)
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Authorization", "Bearer "+bearer)
		response, err := http.DefaultClient.Do(r)
		must(err)
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		must(err)
		return string(text)
	}

	// A delegation that waits for home's alice, who has a passkey.
	passkeyFor(t, o.DataDir, "alice")
	waiting, err := home.AddAgent(ctx, client.NewAgent{Name: "waits", OnBehalfOf: "alice"})
	must(err)
	if waiting.Waits == nil {
		t.Fatal("the delegation does not wait")
	}
	if _, err := home.Delegation(ctx, waiting.Waits.ID); err != nil {
		t.Error(err)
	}
	for who, c := range map[string]*client.Client{"over the socket": acme, "over the port": remote} {
		if got, err := c.Delegation(ctx, waiting.Waits.ID); !errors.Is(err, fault.NotFound) {
			t.Errorf("%s, acme sees that %s waits for %s: %v", who, got.Agent, got.OnBehalfOf, err)
		}
	}

	// A token of home's, shown to acme's administrator.
	if got := ask("/oauth/introspect", session(home, "admin"), url.Values{"token": {token.Token}}); !strings.Contains(got, "alice") {
		t.Errorf("home introspects its own token: %s", got)
	}
	if got := ask("/oauth/introspect", theirs, url.Values{"token": {token.Token}}); strings.TrimSpace(got) != `{"active":false}` {
		t.Errorf("acme introspects home's token: %s", got)
	}

	// A mistake in the policy of home's agent "project-x".
	path := filepath.Join(o.DataDir, "policies", "agents", "project-x.cedar")
	must(os.WriteFile(path, []byte("permit (nonsense"), 0o600))
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(ask("/health", session(home, "admin"), nil), "project-x"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("home's administrator is not told what is wrong")
		}
	}
	for who, bearer := range map[string]string{"acme's administrator": theirs, "a human of home": session(home, "alice"), "nobody": "x"} {
		if got := ask("/health", bearer, nil); strings.Contains(got, "project-x") {
			t.Errorf("%s is told: %s", who, got)
		}
	}
	for who, c := range map[string]*client.Client{"over the socket": acme, "over the port": remote} {
		if _, err := c.AddAgent(ctx, client.NewAgent{Name: "mine", OnBehalfOf: "agent:x"}); !errors.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", who, err)
		}
		_, err := c.AddAgent(ctx, client.NewAgent{Name: "mine"})
		if err == nil || strings.Contains(err.Error(), "project-x") {
			t.Errorf("%s, AddAgent of acme's while home's policies are wrong = %v", who, err)
		}
	}
	if _, err := home.AddAgent(ctx, client.NewAgent{Name: "more"}); err == nil || !strings.Contains(err.Error(), "project-x") {
		t.Errorf("AddAgent of home's while its policies are wrong = %v", err)
	}
}

// TestBundlesWhileKeysAreReplaced: whatever is replaced meanwhile, each bundle
// verifies under the root that was pinned in the beginning.
func TestBundlesWhileKeysAreReplaced(t *testing.T) {
	_, c, stop := running(t, options(t, t.TempDir()))
	defer stop()
	ctx := t.Context()
	status, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddAgent(ctx, client.NewAgent{Name: "bot"}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		for i := range 24 {
			if _, err := c.RotateKey(ctx, client.KeyName{Role: []string{"checkpoint", "root"}[i%2]}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	p := localpqc.New()
	for rotating := true; rotating; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			rotating = false // one more, after the last
		default:
		}
		data, err := c.Bundle(ctx, client.Query{Limit: 3})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := receipt.Verify(ctx, p, data, status.Root); err != nil {
			t.Fatalf("a bundle that was made while keys were replaced: %v", err)
		}
	}
}

// TestTenantsKeys: a tenant's administrator sees and replaces its agents' keys
// alone, and revokes nobody else.
func TestTenantsKeys(t *testing.T) {
	_, home, stop := running(t, options(t, t.TempDir()))
	defer stop()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := home.AddTenant(ctx, "acme")
	must(err)
	acme := home.For("acme")
	for _, c := range []*client.Client{home, acme} {
		_, err := c.AddAgent(ctx, client.NewAgent{Name: "bot"})
		must(err)
	}
	_, err = home.AddAgent(ctx, client.NewAgent{Name: "only"})
	must(err)
	session, err := acme.Session(ctx, node.BootstrapHuman)
	must(err)
	status, err := home.Status(ctx)
	must(err)
	remote, err := client.New("http://"+status.Listen, creto.NewSecret(session.Token))
	must(err)
	all, err := home.Keys(ctx)
	must(err)
	platform := 0
	for _, k := range all.Keys {
		if k.Owner == "platform" {
			platform++
		} else if !strings.Contains(k.Owner, "/default/") {
			t.Errorf("home sees a key of %s", k.Owner)
		}
	}
	if platform < 3 {
		t.Errorf("home sees %d keys of the platform", platform)
	}
	for who, c := range map[string]*client.Client{"over the socket": acme, "over the port": remote} {
		keys, err := c.Keys(ctx)
		must(err)
		if len(keys.Keys) == 0 {
			t.Errorf("%s, acme sees none of its keys", who)
		}
		for _, k := range keys.Keys {
			if !strings.HasPrefix(k.Owner, "spiffe://creto.local/acme/") {
				t.Errorf("%s, acme sees a key of %s", who, k.Owner)
			}
		}
		for _, role := range []string{"root", "checkpoint", "token", "svid", "ca"} {
			if _, err := c.RotateKey(ctx, client.KeyName{Role: role}); !errors.Is(err, fault.PermissionDenied) {
				t.Errorf("%s, acme replaces the key %s: %v", who, role, err)
			}
		}
		for _, name := range []client.KeyName{{Agent: "only"}, {Agent: "../default/agent/only"}, {Role: "principal"}, {Role: "encryption"}, {}, {Role: "root", Agent: "bot"}} {
			if _, err := c.RotateKey(ctx, name); err == nil {
				t.Errorf("%s, acme replaces %+v", who, name)
			}
		}
		if _, err := c.RotateKey(ctx, client.KeyName{Agent: "bot"}); err != nil {
			t.Errorf("%s, acme replaces its agent's key: %v", who, err)
		}
		if _, err := c.Revoke(ctx, client.Revocation{Delegation: "only"}); !errors.Is(err, fault.NotFound) {
			t.Errorf("%s, acme revokes the delegation of home's: %v", who, err)
		}
	}
	after, err := home.Keys(ctx)
	must(err)
	if len(after.Keys) != len(all.Keys) {
		t.Errorf("home has %d keys, had %d", len(after.Keys), len(all.Keys))
	}
	gone, err := remote.Revoke(ctx, client.Revocation{All: true})
	if err != nil || !slices.Equal(gone.Agents, []string{"bot"}) {
		t.Errorf("acme revokes all: %v, %v", gone.Agents, err)
	}
	gone, err = acme.Revoke(ctx, client.Revocation{OnBehalfOf: node.BootstrapHuman}) // of acme
	if err != nil || len(gone.Agents) > 0 {
		t.Errorf("acme revokes those of its administrator: %v, %v", gone.Agents, err)
	}
	for _, name := range []string{"bot", "only"} {
		if _, err := home.Token(ctx, name, client.NewToken{}); err != nil {
			t.Errorf("home's %s: %v", name, err)
		}
	}
}

// TestAuditorsOnlyRead: an auditor reads what an administrator does, over the
// port, and changes nothing; other humans do neither.
func TestAuditorsOnlyRead(t *testing.T) {
	_, c, stop := running(t, options(t, t.TempDir()))
	defer stop()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.AddHuman(ctx, "aud", []string{node.AuditorGroup})
	must(err)
	_, err = c.AddHuman(ctx, "bob", nil)
	must(err)
	_, err = c.AddAgent(ctx, client.NewAgent{Name: "bot", OnBehalfOf: "bob"})
	must(err)
	status, err := c.Status(ctx)
	must(err)
	as := func(name string) *client.Client {
		session, err := c.Session(ctx, name)
		must(err)
		remote, err := client.New("http://"+status.Listen, creto.NewSecret(session.Token))
		must(err)
		return remote
	}
	aud, bob := as("aud"), as("bob")
	for who, remote := range map[string]*client.Client{"aud": aud, "bob": bob} {
		for name, err := range map[string]error{
			"AddAgent":    second(remote.AddAgent(ctx, client.NewAgent{Name: "x"})),
			"RevokeAgent": remote.RevokeAgent(ctx, "bot"),
			"Revoke":      second(remote.Revoke(ctx, client.Revocation{All: true})),
			"RotateKey":   second(remote.RotateKey(ctx, client.KeyName{Role: "root"})),
			"Token":       second(remote.Token(ctx, "bot", client.NewToken{})),
			"AddHuman":    second(remote.AddHuman(ctx, who, []string{node.AdminGroup})),
			"Session":     second(remote.Session(ctx, who)),
			"Login":       second(remote.Login(ctx, who)),
			"AddTenant":   second(remote.AddTenant(ctx, "acme")),
			"Check":       second(remote.Check(ctx, client.Check{Agent: "bot", Action: "call_model", Resource: "m"})),
			"Decide":      second(remote.Decide(ctx, "x", client.Decide{Approve: true})),
		} {
			if !errors.Is(err, fault.PermissionDenied) {
				t.Errorf("%s's %s = %v, want PermissionDenied", who, name, err)
			}
		}
	}
	for name, read := range map[string]func(*client.Client) error{
		"Agents":   func(c *client.Client) error { return second(c.Agents(ctx)) },
		"Receipts": func(c *client.Client) error { return second(c.Receipts(ctx, client.Query{})) },
		"Bundle":   func(c *client.Client) error { return second(c.Bundle(ctx, client.Query{})) },
		"Keys":     func(c *client.Client) error { return second(c.Keys(ctx)) },
	} {
		if err := read(aud); err != nil {
			t.Errorf("an auditor's %s = %v", name, err)
		}
		if err := read(bob); !errors.Is(err, fault.PermissionDenied) {
			t.Errorf("a human's %s = %v, want PermissionDenied", name, err)
		}
	}
}

// passkeyFor has a human of the default tenant own a passkey.
func passkeyFor(t *testing.T, dataDir, human string) {
	t.Helper()
	d, err := db.Open(t.Context(), dbtest.Location(t, dataDir))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	id := "spiffe://creto.local/default/human/" + human
	_, err = d.ExecContext(t.Context(), "INSERT INTO passkey_user (principal, handle) VALUES ($1, $2)", id, []byte(human))
	if err == nil {
		_, err = d.ExecContext(t.Context(), "INSERT INTO passkey (principal, credential, rp_id, name, public_key, aaguid, transports, flags, sign_count, created_ns) VALUES ($1, $2, 'localhost', 'key', $3, $4, '', 5, 0, 0)",
			id, []byte("credential"), []byte("key"), make([]byte, 16))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestNobodyAnswersForAHumanOverThePort: an administrator over TCP holds no data
// directory, so that no delegation of a human's is made without that human.
func TestNobodyAnswersForAHumanOverThePort(t *testing.T) {
	o := options(t, t.TempDir())
	_, c, stop := running(t, o)
	defer stop()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"alice", "bob"} {
		_, err := c.AddHuman(ctx, name, nil)
		must(err)
	}
	passkeyFor(t, o.DataDir, "alice")
	status, err := c.Status(ctx)
	must(err)
	session, err := c.Session(ctx, node.BootstrapHuman)
	must(err)
	remote, err := client.New("http://"+status.Listen, creto.NewSecret(session.Token))
	must(err)
	for _, human := range []string{"alice", "bob", ""} { // bob, and who asks, can prove nothing
		for _, proof := range []string{"bootstrap", "", "x"} {
			in := client.NewAgent{Name: "bot", OnBehalfOf: human, Proof: proof}
			if human == "alice" && proof != "bootstrap" {
				continue
			}
			if _, err := remote.AddAgent(ctx, in); !errors.Is(err, fault.PermissionDenied) {
				t.Errorf("over the port, AddAgent for %q by %q = %v, want PermissionDenied", human, proof, err)
			}
		}
	}
	agents, err := c.Agents(ctx)
	if err != nil || len(agents) > 0 {
		t.Errorf("there are %v, %v", agents, err)
	}
	waiting, err := remote.AddAgent(ctx, client.NewAgent{Name: "bot", OnBehalfOf: "alice"})
	if err != nil || waiting.Waits == nil {
		t.Errorf("over the port, AddAgent for alice = %+v, %v; want that it waits", waiting, err)
	}
	if _, err := c.Token(ctx, "bot", client.NewToken{}); !errors.Is(err, fault.NotFound) {
		t.Errorf("Token of an agent that waits = %v, want NotFound", err)
	}
	if _, err := remote.Delegate(ctx, client.NewAgent{Name: "bot", OnBehalfOf: "alice", Proof: "bootstrap"}); !errors.Is(err, fault.PermissionDenied) {
		t.Errorf("over the port, Delegate for alice by bootstrap = %v, want PermissionDenied", err)
	}
}
