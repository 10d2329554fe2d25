package console_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/login"
	"creto.dev/nhi"
	"creto.dev/pqc/localpqc"
	"creto.dev/receipt"
)

// chromium returns the browser's program, or skips.
func chromium(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CRETO_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("there is no chromium; install it with: apt-get install chromium")
	}
	return path
}

// tab is a person's real browser, with an authenticator inside that answers at
// once (WebAuthn level 3, section 11).
type tab struct {
	t             testing.TB
	ctx           context.Context //nolint:containedctx // chromedp keeps the tab in it
	base          string
	authenticator webauthn.AuthenticatorID
}

func (h *house) tab(t testing.TB) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(chromium(t)), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()))...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx, base: h.origin}
	b.open("/console/login")
	_, err := chromedp.Call(ctx, webauthn.Enable, webauthn.EnableParams{})
	if err != nil {
		t.Fatal(err)
	}
	added, err := chromedp.Call(ctx, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
		Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportInternal,
		HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true,
	}})
	if err != nil {
		t.Fatal(err)
	}
	b.authenticator = added.AuthenticatorID
	return b
}

// do runs actions in the tab.
func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if len(b.authenticator) == 0 {
		ctx = b.ctx // the first starts the browser, which would end with it
	}
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("the browser: %v, at %s", err, b.text())
	}
}

// text is what the page shows.
func (b *tab) text() string {
	text, err := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.readyState === 'complete' ? document.body.innerText : ''"))
	if err != nil {
		return err.Error() // while it changes there is none
	}
	return text
}

// open opens a page.
func (b *tab) open(path string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.base + path))
}

// press presses the button with a label, and waits until the page shows text.
func (b *tab) press(label, shows string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.Search(`//button[normalize-space()="` + label + `"]`)))
	b.shows(shows)
}

// shows waits until the page shows text.
func (b *tab) shows(text string) {
	b.t.Helper()
	eventually(b.t, "the page to show "+text, func() bool { return strings.Contains(b.text(), text) }, b.text)
}

// verify says whether the authenticator's user passes.
func (b *tab) verify(passes bool) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, webauthn.SetUserVerified, webauthn.SetUserVerifiedParams{AuthenticatorID: b.authenticator, IsUserVerified: passes}); err != nil {
		b.t.Fatal(err)
	}
}

// cookies returns the browser's cookies by name.
func (b *tab) cookies() map[string]*network.Cookie {
	b.t.Helper()
	result, err := chromedp.Call(b.ctx, network.GetCookies, network.GetCookiesParams{URLs: []string{b.base + "/console"}})
	if err != nil {
		b.t.Fatal(err)
	}
	found := make(map[string]*network.Cookie)
	for _, c := range result.Cookies {
		found[c.Name] = c
	}
	return found
}

// A one-time login enrols a passkey; from then on that logs in.
func TestPasskeyInBrowser(t *testing.T) {
	h := open(t, "")
	alice := h.authority.ID(creto.KindHuman, "alice")
	code, err := h.sessions.NewLogin(t.Context(), alice, login.MethodBootstrap)
	if err != nil {
		t.Fatal(err)
	}
	b := h.tab(t)
	b.open("/console/login")
	b.press("Log in with a passkey", "The passkey was not used") // there is none yet

	b.open("/console/login?code=" + code)
	b.press("Log in", "Waiting for consent")
	b.open("/console/account")
	b.shows("with a one-time link of the node")
	b.do(chromedp.SendKeys(`input[name=name]`, "this laptop"))
	b.press("Add a passkey", "this laptop")
	b.press("Add a passkey", "This device has a passkey of yours already.")
	first := b.cookies()["creto_session"]

	b.press("Log out", "Log in with a passkey")
	b.verify(false)
	b.press("Log in with a passkey", "The passkey was not used")
	b.verify(true)
	b.open("/console/account") // which it leads back to
	b.press("Log in with a passkey", "with a passkey, ")
	b.shows("last used")
	second := b.cookies()["creto_session"]
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
	b.open("/console/account")
	b.shows("log out and in again")
	b.do(chromedp.Click("summary"), chromedp.Click("input[name=last]"))
	b.press("Remove", "log in again first")

	// A passkey that is a copy is refused, and from then on.
	b.open("/console/account")
	b.press("Log out", "Log in with a passkey")
	if _, err := h.db.ExecContext(t.Context(), "UPDATE passkey SET sign_count = 1000"); err != nil {
		t.Fatal(err)
	}
	b.press("Log in with a passkey", "there may be a copy of it")
	if _, err := h.db.ExecContext(t.Context(), "UPDATE passkey SET sign_count = 0"); err != nil {
		t.Fatal(err)
	}
	b.press("Log in with a passkey", "this passkey is not known here")
	if cloned := h.records(t, audit.EventPasskeyCloned); len(cloned) != 1 || cloned[0].Record.Who != alice {
		t.Errorf("recorded are %+v", cloned)
	}
	if c := b.cookies()["creto_session"]; c != nil {
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
	b := h.tab(t)
	h.enrol(t, b, "alice")

	bot := h.authority.ID(creto.KindAgent, "mail-bot")
	if err := h.authority.AddAgent(ctx, bot); err != nil {
		t.Fatal(err)
	}
	asked := h.draft(t, "mail-bot")
	h.clock.Advance(10 * time.Minute) // a confirmation takes no fresh login: it is one
	b.open("/console/agents")
	b.shows("mail-bot is to act on your behalf")
	b.do(chromedp.Click(`a.card`))
	b.shows("mail-bot is to act on behalf of alice")
	b.shows("call_model")
	b.shows("at most 250.00 USD altogether")
	b.press("Confirm with a passkey", "confirmed")
	b.open("/console/agents")
	b.shows("by passkey (localhost)")

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
	bundle, err := receipt.Make(ctx, h.log, h.authority.ChainByDigest, keys, []audit.Entry{entry})
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
	b.open("/console/delegations/" + asked.ID)
	b.shows("confirmed")
	b.open("/console/agents")
	b.do(chromedp.Click(chromedp.Search(`//section[contains(.,"mail-bot")]//summary`)))
	b.press("Revoke mail-bot", "Who acts for you")
	eventually(t, "the revocation", func() bool { return errors.Is(h.authority.Known(ctx, bot), fault.NHINotFound) }, b.text)
}

// enrol logs somebody in by a one-time link and enrols a passkey.
func (h *house) enrol(t testing.TB, b *tab, name string) {
	t.Helper()
	code, err := h.sessions.NewLogin(t.Context(), h.authority.ID(creto.KindHuman, name), login.MethodBootstrap)
	if err != nil {
		t.Fatal(err)
	}
	b.open("/console/login?code=" + code)
	b.press("Log in", "Waiting for consent")
	b.open("/console/account")
	b.press("Add a passkey", "not used yet")
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
