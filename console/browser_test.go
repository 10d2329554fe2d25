package console_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/console/consoletest"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/login"
	"creto.dev/login/logintest"
	"creto.dev/nhi"
	"creto.dev/pqc/localpqc"
	"creto.dev/receipt"
)

// A one-time login enrols a passkey; from then on that logs in.
func TestPasskeyInBrowser(t *testing.T) {
	h := open(t, "")
	alice := h.authority.ID(creto.KindHuman, "alice")
	code, err := h.sessions.NewLogin(t.Context(), alice, login.MethodBootstrap)
	if err != nil {
		t.Fatal(err)
	}
	b := consoletest.Open(t, h.origin)
	b.Go("/console/login")
	b.Press("Log in with a passkey", "The passkey was not used") // there is none yet

	b.Go("/console/login?code=" + code)
	b.Press("Log in", "Waiting for consent")
	b.Go("/console/account")
	b.Shows("with a one-time link of the node")
	b.Do(chromedp.SendKeys(`input[name=name]`, "this laptop"))
	b.Press("Add a passkey", "this laptop")
	b.Press("Add a passkey", "This device has a passkey of yours already.")
	first := b.Cookies()["creto_session"]

	b.Press("Log out", "Log in with a passkey")
	b.Verify(false)
	b.Press("Log in with a passkey", "The passkey was not used")
	b.Verify(true)
	b.Go("/console/account") // which it leads back to
	b.Press("Log in with a passkey", "with a passkey, ")
	b.Shows("last used")
	second := b.Cookies()["creto_session"]
	if first == nil || second == nil || first.Value == second.Value || !second.HTTPOnly || second.SameSite != network.CookieSameSiteStrict {
		t.Errorf("the session's cookie was %+v and is %+v", first, second)
	}
	var methods []string
	for _, e := range h.records(t, audit.EventLoggedIn) {
		methods = append(methods, e.Record.Who.Name+" "+e.Record.Detail["method"])
	}
	if !slices.Equal(methods, []string{"alice passkey", "alice bootstrap"}) {
		t.Errorf("recorded are %q", methods)
	}
	if added := h.records(t, audit.EventPasskeyAdded); len(added) != 1 || added[0].Record.Who != alice || added[0].Record.Detail["name"] != "this laptop" {
		t.Errorf("recorded are %+v", added)
	}

	// What is older than five minutes changes nothing.
	h.clock.Advance(login.FreshFor)
	b.Go("/console/account")
	b.Shows("log out and in again")
	b.Do(chromedp.Click("summary"), chromedp.Click("input[name=last]"))
	b.Press("Remove", "log in again first")

	// A passkey that is a copy is refused, and from then on.
	b.Go("/console/account")
	b.Press("Log out", "Log in with a passkey")
	if _, err := h.db.ExecContext(t.Context(), "UPDATE passkey SET sign_count = 1000"); err != nil {
		t.Fatal(err)
	}
	b.Press("Log in with a passkey", "there may be a copy of it")
	if _, err := h.db.ExecContext(t.Context(), "UPDATE passkey SET sign_count = 0"); err != nil {
		t.Fatal(err)
	}
	b.Press("Log in with a passkey", "this passkey is not known here")
	if cloned := h.records(t, audit.EventPasskeyCloned); len(cloned) != 1 || cloned[0].Record.Who != alice {
		t.Errorf("recorded are %+v", cloned)
	}
	if c := b.Cookies()["creto_session"]; c != nil {
		t.Errorf("whoever was refused has the session %+v", c)
	}
}

// A delegation waits for its human, who sees what it passes on and confirms
// exactly that with a passkey. Every receipt of what the agent does says so, and
// verifying one checks the assertion.
func TestDelegationInBrowser(t *testing.T) {
	h := open(t, "")
	ctx := t.Context()
	alice := h.authority.ID(creto.KindHuman, "alice")
	b := consoletest.Open(t, h.origin)
	code, err := h.sessions.NewLogin(ctx, alice, login.MethodBootstrap)
	if err != nil {
		t.Fatal(err)
	}
	b.Enrol("/console/login?code=" + code)

	bot := h.authority.ID(creto.KindAgent, "mail-bot")
	if err := h.authority.AddAgent(ctx, bot); err != nil {
		t.Fatal(err)
	}
	asked := h.draft(t, "mail-bot")
	h.clock.Advance(10 * time.Minute) // a confirmation takes no fresh login: it is one
	b.Go("/console/agents")
	b.Shows("mail-bot is to act on your behalf")
	b.Do(chromedp.Click(`a.card`))
	b.Shows("mail-bot is to act on behalf of alice")
	b.Shows("call_model")
	b.Shows("at most 250.00 USD altogether")
	b.Press("Confirm with a passkey", "confirmed")
	b.Go("/console/agents")
	b.Shows("by passkey (localhost)")

	chain, err := h.authority.Chain(ctx, bot)
	if err != nil || chain.Proof() != nhi.ProofWebAuthn || chain.Human() != alice {
		t.Fatalf("the chain is %v by %q, %v", chain.Human(), chain.Proof(), err)
	}
	link, err := chain.Links()[0].Link()
	if err != nil {
		t.Fatal(err)
	}
	link.Proof = nhi.Proof{}
	asked.Link.Version = link.Version
	if diff := cmp.Diff(asked.Link, link, cmp.AllowUnexported(creto.Money{})); diff != "" {
		t.Errorf("what was confirmed is not what was asked (-want +got):\n%s", diff)
	}

	// What it does leaves a receipt that proves the passkey.
	id, err := h.log.Log(ctx, audit.Record{Who: bot, OnBehalfOf: alice, Chain: chain.Digest(), What: creto.CallModel, Resource: "Model::gpt-4o", Outcome: audit.Success})
	if err != nil {
		t.Fatal(err)
	}
	var entry audit.Entry
	eventually(t, "the record", func() bool {
		entry, err = h.log.Entry(ctx, id)
		return err == nil
	})
	root, fingerprint, err := h.authority.Root()
	if err != nil {
		t.Fatal(err)
	}
	certificates, err := h.authority.Certificates(ctx, "test.local/log")
	if err != nil {
		t.Fatal(err)
	}
	keys := receipt.Keys{Root: root, Certificates: certificates}
	bundle, err := receipt.Make(ctx, h.log, h.authority.ChainByDigest, keys, nil, []audit.Entry{entry})
	if err != nil {
		t.Fatal(err)
	}
	v, err := receipt.Verify(ctx, localpqc.New(), bundle, fingerprint)
	if err != nil || !v.Trusted || v.Chains[0].HumanProof().String() != "by passkey (localhost)" {
		t.Fatalf("Verify = %+v, %v", v.Chains, err)
	}
	// One changed byte of the assertion, wherever it is, fails.
	var assertion nhi.WebAuthnAssertion
	if err := canon.Unmarshal(chain.HumanProof().Data, &assertion); err != nil {
		t.Fatal(err)
	}
	for name, part := range map[string][]byte{"signature": assertion.Signature, "client data": assertion.ClientDataJSON, "authenticator data": assertion.AuthenticatorData, "key": assertion.PublicKey} {
		at := bytes.Index(bundle, part)
		if at < 0 {
			t.Fatalf("the bundle lacks the %s", name)
		}
		changed := bytes.Clone(bundle)
		changed[at+len(part)/2] ^= 1
		if _, err := receipt.Verify(ctx, localpqc.New(), changed, fingerprint); err == nil {
			t.Errorf("a changed %s verifies", name)
		}
	}

	// Once confirmed it is over; and what is revoked acts no more.
	b.Go("/console/delegations/" + asked.ID)
	b.Shows("confirmed")
	b.Go("/console/agents")
	b.Do(chromedp.Click(chromedp.Search(`//section[contains(.,"mail-bot")]//summary`)))
	b.Press("Revoke mail-bot", "Who acts for you")
	eventually(t, "the revocation", func() bool { return errors.Is(h.authority.Known(ctx, bot), fault.NHINotFound) }, b.Text)
}

// draft has a delegation of alice's to an agent wait for her.
func (h *house) draft(t testing.TB, agent string) login.Delegation {
	t.Helper()
	spend, err := creto.ParseMoney("250 USD")
	if err != nil {
		t.Fatal(err)
	}
	alice := h.authority.ID(creto.KindHuman, "alice")
	link, err := h.authority.Draft(t.Context(), alice, h.authority.ID(creto.KindAgent, agent), nhi.Grant{
		Scope: nhi.Scope{Actions: []string{"call_model", "http_*"}, Resources: []string{"*"}, Spend: spend}, TTL: 24 * time.Hour, MaxDepth: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	d, err := h.delegations.Ask(t.Context(), link, login.Shown{Policy: "permit (principal, action, resource);", Quotas: []string{"call_model=100/1h"}}, h.authority.ID(creto.KindHuman, "eve"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// An identity provider of another site logs in, and confirms: the cookies come
// along where they must, and the policy lets the browser through.
func TestProviderInBrowser(t *testing.T) {
	var h *house
	idp := logintest.New(t, func() time.Time {
		stamp, err := h.clock.Now(context.Background()) //nolint:usetesting // it may be asked for after the test's context has ended
		if err != nil {
			t.Error(err)
		}
		return stamp.Time()
	})
	h = open(t, "", login.ProviderConfig{Name: "work", Issuer: idp.URL, ClientID: "creto", ClientSecret: creto.NewSecret(logintest.Secret), HumanClaim: "preferred_username"})
	bot := h.authority.ID(creto.KindAgent, "mail-bot")
	if err := h.authority.AddAgent(t.Context(), bot); err != nil {
		t.Fatal(err)
	}
	asked := h.draft(t, "mail-bot")
	b := consoletest.Open(t, h.origin)
	b.Go("/console/delegations/" + asked.ID)
	b.Press("Log in with work", "mail-bot is to act on behalf of alice")
	b.Press("Confirm with work", "confirmed")
	chain, err := h.authority.Chain(t.Context(), bot)
	if err != nil || chain.HumanProof().String() != "by OIDC "+idp.URL+" subject u-1" {
		t.Errorf("the chain is %v, %v", chain.HumanProof(), err)
	}
	b.Go("/console/account")
	b.Shows("with an identity provider")
	b.Shows("alice@corp.example")
	// A login of another human, which the provider confirms, is not hers.
	idp.Claims = func(c map[string]any) { c["sub"], c["preferred_username"] = "u-2", "bob" }
	again := h.draft(t, "mail-bot")
	b.Go("/console/delegations/" + again.ID)
	b.Press("Confirm with work", "nobody here is known by this identity")
	if d, err := h.delegations.Show(t.Context(), again.ID); err != nil || d.State != login.Pending {
		t.Errorf("the delegation is %s, %v", d.State, err)
	}
}
