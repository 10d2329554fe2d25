package node_test

import (
	"errors"
	"strings"
	"testing"

	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/db/dbtest"
	"creto.dev/login"
	"creto.dev/node"
)

// A delegation by a human who can prove who they are waits for them, and other
// tenants do not see it.
func TestDelegationWaits(t *testing.T) {
	o := options(t, t.TempDir())
	_, home, stop := running(t, o)
	defer stop()
	ctx := t.Context()
	alice, err := home.AddHuman(ctx, "alice", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := home.AddTenant(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	now, err := home.AddAgent(ctx, client.NewAgent{Name: "first", OnBehalfOf: "alice"})
	if err != nil || now.Waits != nil {
		t.Errorf("without a passkey: %+v, %v", now.Waits, err)
	}
	d, err := db.Open(ctx, dbtest.Location(t, o.DataDir))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	for _, query := range []string{
		"INSERT INTO passkey_user (principal, handle) VALUES ($1, 'h')",
		"INSERT INTO passkey (principal, credential, rp_id, name, public_key, aaguid, transports, flags, sign_count, created_ns) VALUES ($1, 'c', 'localhost', 'key', 'k', '', '', 5, 0, 0)",
	} {
		if _, err := d.ExecContext(ctx, query, alice.ID); err != nil {
			t.Fatal(err)
		}
	}
	ask := client.NewAgent{Name: "second", OnBehalfOf: "alice", Allow: []string{"call_model=*"}}
	later, err := home.AddAgent(ctx, ask)
	if err != nil || later.Waits == nil || later.Waits.State != string(login.Pending) || later.Waits.OnBehalfOf != "alice" || !strings.HasSuffix(later.Waits.URL, "/console/delegations/"+later.Waits.ID) {
		t.Fatalf("with a passkey: %+v, %v", later.Waits, err)
	}
	if got, err := home.Delegation(ctx, later.Waits.ID); err != nil || got.Agent != "second" {
		t.Errorf("Delegation = %+v, %v", got, err)
	}
	if _, err := home.For("acme").Delegation(ctx, later.Waits.ID); !errors.Is(err, fault.NotFound) {
		t.Errorf("Delegation of another tenant = %v, want NotFound", err)
	}
	if _, err := home.Token(ctx, "second", client.NewToken{}); err == nil {
		t.Error("an agent that nobody confirmed has a token")
	}
	// Asking again is the same question anew; the older one is over.
	again, err := home.AddAgent(ctx, ask)
	if err != nil || again.Waits == nil || again.Waits.ID == later.Waits.ID {
		t.Fatalf("again: %+v, %v", again.Waits, err)
	}
	if old, err := home.Delegation(ctx, later.Waits.ID); err != nil || old.State != string(login.Declined) {
		t.Errorf("the older one is %+v, %v", old, err)
	}
	ask.Proof = "palm"
	if _, err := home.AddAgent(ctx, ask); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("an unknown proof = %v, want InvalidArgument", err)
	}
	ask.Proof = "bootstrap"
	if done, err := home.AddAgent(ctx, ask); err != nil || done.Waits != nil {
		t.Errorf("bootstrap: %+v, %v", done.Waits, err)
	}
	if _, err := home.AddAgent(ctx, ask); !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("once more = %v, want AlreadyExists", err)
	}
}

func TestLoginConfig(t *testing.T) {
	const doc = `[[login.oidc]]
name = "work"
issuer = "https://idp.example"
client_id = "creto"
client_secret = "${OIDC_SECRET}"
allowed_domains = ["corp.example"]
human_claim = "email"
groups_claim = "groups"
groups = { "fin-team" = "finance" }
`
	c, err := node.ParseConfig("creto.toml", []byte(doc), env("OIDC_SECRET", "s"))
	if err != nil || len(c.Login.OIDC) != 1 || c.Login.OIDC[0].ClientSecret.Reveal() != "s" || c.Login.OIDC[0].Groups["fin-team"] != "finance" {
		t.Errorf("ParseConfig = %+v, %v", c.Login, err)
	}
	_, err = node.ParseConfig("creto.toml", []byte(strings.Replace(doc, "https", "http", 1)+doc), env("OIDC_SECRET", "s"))
	for _, want := range []string{"creto.toml:3", "login.oidc[0].issuer", "login.oidc[1].name"} {
		if err == nil || !strings.Contains(fault.Message(err), want) {
			t.Errorf("it does not say %s: %v", want, err)
		}
	}
}

// Nothing that an administrator does with a person puts their name into the log in
// clear: there it would stay for ever.
func TestLeavesNameNobody(t *testing.T) {
	_, home, stop := running(t, options(t, t.TempDir()))
	defer stop()
	ctx := t.Context()
	const name = "carla-quill"
	if _, err := home.AddHuman(ctx, name, []string{"finance"}); err != nil {
		t.Fatal(err)
	}
	if _, err := home.AddAgent(ctx, client.NewAgent{Name: "bot", OnBehalfOf: name}); err != nil {
		t.Fatal(err)
	}
	if _, err := home.Login(ctx, name); err != nil {
		t.Fatal(err)
	}
	if _, err := home.Revoke(ctx, client.Revocation{OnBehalfOf: name}); err != nil {
		t.Fatal(err)
	}
	for _, group := range []string{"finance", ""} {
		if err := home.RemoveMember(ctx, client.Member{Name: name, Group: group}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := home.Receipts(ctx, client.Query{Limit: 100, Leaf: true})
	if err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, r := range list {
		if strings.Contains(string(r.Leaf), name) {
			t.Errorf("the leaf of %s names %s in clear", r.Record.What, name)
		}
		if r.Record.What == audit.EventGroupLeft {
			left++
			if r.Record.Resource != "Human::"+name || r.Record.Detail["group"] != "finance" {
				t.Errorf("%s of %s, %v", r.Record.What, r.Record.Resource, r.Record.Detail)
			}
		}
	}
	if left != 1 {
		t.Errorf("%d records of leaving a group, want 1", left)
	}
}
