package console_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/login"
)

// After a login a browser goes where it was going, and never elsewhere.
func TestNext(t *testing.T) {
	h := open(t, origin)
	for path, want := range map[string]string{
		"/console/agents":                   "/console/agents",
		"/console/delegations/7":            "/console/delegations/7",
		"/console/device?code=BCDF-GHJK":    "/console/device?code=BCDF-GHJK",
		"/console":                          "/console",
		"/console/agents?x=//evil.example/": "/console/agents?x=%2F%2Fevil.example%2F",
	} {
		_, page := h.browser(t).get(path)
		if got := form(page).Get("next"); got != want {
			t.Errorf("%s leads to %q, want %q", path, got, want)
		}
	}
	// The page that a hostile form would name as the next one.
	b := h.browser(t)
	for _, next := range []string{"https://evil.example/console/x", "//evil.example/console/x", "/\\evil.example", "/console/../..//evil.example", "/console//evil.example", "javascript:alert(1)", "/console/logout", "/console/login?code=x", "/api/v1/agents", "/consolex", "", "\x00"} {
		_, page := b.post("/console/login/passkey", url.Values{"next": {next}, "ceremony": {"x"}})
		if strings.Contains(page, "evil") || strings.Contains(page, "javascript") || strings.Contains(page, "location") {
			t.Errorf("next=%q gives %s", next, page)
		}
	}
}

// Whoever logs in gets a new session, and the one before ends.
func TestSessionFixation(t *testing.T) {
	h := open(t, origin)
	b := h.login(t, "eve")
	planted := b.cookie.Value
	code, err := h.sessions.NewLogin(t.Context(), h.authority.ID(creto.KindHuman, "bob"), login.MethodBootstrap)
	if err != nil {
		t.Fatal(err)
	}
	if response, page := b.post("/console/login", url.Values{"code": {code}}); response.StatusCode != http.StatusSeeOther || b.cookie.Value == planted {
		t.Errorf("login: %d %s", response.StatusCode, page)
	}
	if s, err := h.sessions.Find(t.Context(), planted); err == nil {
		t.Errorf("the session before is %v's still", s.Human)
	}
}

// What a session may do with agents and delegations that are another's: nothing,
// and it cannot tell whether they are there.
func TestOthersDelegations(t *testing.T) {
	h := open(t, origin)
	if err := h.authority.AddAgent(t.Context(), h.authority.ID(creto.KindAgent, "mail-bot")); err != nil {
		t.Fatal(err)
	}
	d := h.draft(t, "mail-bot")
	challenge, err := d.Link.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	alice, bob := h.login(t, "alice"), h.login(t, "bob")
	csrf := func(b *browser) string {
		_, page := b.get("/console/activity")
		_, after, _ := strings.Cut(page, `name="csrf" value="`)
		token, _, _ := strings.Cut(after, `"`)
		return token
	}
	bobs, alices := csrf(bob), csrf(alice)
	if response, page := alice.get("/console/delegations/" + d.ID); response.StatusCode != http.StatusOK || !strings.Contains(page, challenge.String()) || !strings.Contains(page, "at most 250.00 USD") {
		t.Errorf("alice sees %d %s", response.StatusCode, page)
	}
	_, missing := bob.get("/console/delegations/nothing")
	if response, page := bob.get("/console/delegations/" + d.ID); response.StatusCode != http.StatusNotFound || page != missing {
		t.Errorf("bob sees %d %s, but %s for one that is not there", response.StatusCode, page, missing)
	}
	for _, path := range []string{"/begin", "", "/oidc/work", "/decline"} {
		if response, page := bob.post("/console/delegations/"+d.ID+path, url.Values{"csrf": {bobs}, "challenge": {challenge.String()}}); response.StatusCode != http.StatusNotFound {
			t.Errorf("bob posts %s: %d %s", path, response.StatusCode, page)
		}
		if response, page := alice.post("/console/delegations/"+d.ID+path, url.Values{"csrf": {bobs}, "challenge": {challenge.String()}}); response.StatusCode != http.StatusForbidden {
			t.Errorf("alice posts bob's form to %s: %d %s", path, response.StatusCode, page)
		}
	}
	if response, page := alice.post("/console/delegations/"+d.ID+"/begin", url.Values{"csrf": {alices}, "challenge": {creto.DigestOf(nil).String()}}); response.StatusCode != http.StatusConflict || !strings.Contains(page, "another than the one you saw") {
		t.Errorf("another challenge: %d %s", response.StatusCode, page)
	}
	for _, b := range []*browser{bob, alice} {
		if response, _ := b.post("/console/agents/nobody/revoke", url.Values{"csrf": {map[*browser]string{bob: bobs, alice: alices}[b]}}); response.StatusCode != http.StatusNotFound {
			t.Errorf("an unknown agent: %d", response.StatusCode)
		}
	}
	if response, _ := bob.post("/console/agents/shop-bot/revoke", url.Values{"csrf": {bobs}}); response.StatusCode != http.StatusNotFound {
		t.Errorf("bob revokes alice's agent: %d", response.StatusCode)
	}
	if _, page := bob.get("/console/agents"); strings.Contains(page, "shop-bot") {
		t.Error("bob sees alice's agent")
	}
	if _, page := alice.get("/console/agents"); !strings.Contains(page, "shop-bot") || !strings.Contains(page, "by bootstrap: whoever held the data directory") {
		t.Errorf("alice sees %s", page)
	}
	if _, page := alice.get("/console/agents"); !strings.Contains(page, "<dt>call_model</dt><dd>100/1h, 37 left until 2026-11-22 10:00:00 UTC</dd><dt>all actions</dt><dd>aliceshop-bot/1s, 5 left at once</dd>") {
		t.Errorf("what limits her agent is not told:\n%s", page)
	}
	if response, _ := alice.post("/console/agents/shop-bot/revoke", url.Values{"csrf": {alices}}); response.StatusCode != http.StatusSeeOther {
		t.Errorf("alice revokes hers: %d", response.StatusCode)
	}
	if _, page := alice.get("/console/agents"); strings.Contains(page, "shop-bot") {
		t.Error("the revoked agent is there still")
	}
	// An identity provider's answer that nobody asked for.
	if response, page := alice.get("/console/login/oidc/work/callback?state=x&code=y"); response.StatusCode != http.StatusUnauthorized {
		t.Errorf("an answer to nothing: %d %s", response.StatusCode, page)
	}
}
