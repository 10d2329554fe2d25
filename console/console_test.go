package console_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/console"
	"creto.dev/console/consoletest"
	"creto.dev/fault"
	"creto.dev/login"
	"creto.dev/oversight"
)

const origin = "http://localhost:7300"

// A link is opened by programs that look ahead; only the button spends it, once.
func TestLogin(t *testing.T) {
	h := open(t, origin)
	bob := h.authority.ID(creto.KindHuman, "bob")
	code, err := h.sessions.NewLogin(t.Context(), bob, login.MethodBootstrap)
	if err != nil {
		t.Fatal(err)
	}
	b := h.browser(t)
	for range 3 {
		response, page := b.get("/console/login?code=" + url.QueryEscape(code))
		if response.StatusCode != http.StatusOK || form(page).Get("code") != code || b.cookie != nil {
			t.Fatalf("the page: %d %s", response.StatusCode, page)
		}
	}
	response, _ := b.post("/console/login", url.Values{"code": {code}})
	c := b.cookie
	if response.StatusCode != http.StatusSeeOther || response.Header.Get("Location") != "/console" || c == nil {
		t.Fatalf("login: %d, cookie %v", response.StatusCode, c)
	}
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Secure || c.Domain != "" || c.MaxAge != int((12*time.Hour).Seconds()) {
		t.Errorf("the cookie is %+v", c)
	}
	if response, page := b.get("/console"); response.StatusCode != http.StatusOK || !strings.Contains(page, "bob") {
		t.Errorf("the console: %d %s", response.StatusCode, page)
	}
	for name, code := range map[string]string{"used": code, "unknown": "x", "empty": ""} {
		other := h.browser(t)
		if response, page := other.post("/console/login", url.Values{"code": {code}}); response.StatusCode != http.StatusUnauthorized || other.cookie != nil || !strings.Contains(page, "creto human login") {
			t.Errorf("a code that is %s: %d %s", name, response.StatusCode, page)
		}
	}
	late, err := h.sessions.NewLogin(t.Context(), bob, login.MethodBootstrap)
	if err != nil {
		t.Fatal(err)
	}
	h.clock.Advance(15 * time.Minute)
	if response, _ := h.browser(t).post("/console/login", url.Values{"code": {late}}); response.StatusCode != http.StatusUnauthorized {
		t.Errorf("an old code: %d", response.StatusCode)
	}
	// What ended is not kept.
	if _, err := h.sessions.NewLogin(t.Context(), bob, login.MethodBootstrap); err != nil {
		t.Fatal(err)
	}
	var codes int
	if err := h.db.QueryRowContext(t.Context(), "SELECT count(*) FROM login_code").Scan(&codes); err != nil || codes != 1 {
		t.Errorf("%d codes are kept, %v; want 1", codes, err)
	}
}

func TestSecureCookie(t *testing.T) {
	if b := open(t, "https://creto.example").login(t, "bob"); !b.cookie.Secure {
		t.Error("the cookie of an https origin is sent in the clear too")
	}
}

func TestSessionEnds(t *testing.T) {
	h := open(t, origin)
	expect := func(b *browser, what string) {
		t.Helper()
		if response, page := b.get("/console"); response.StatusCode != http.StatusUnauthorized || !strings.Contains(page, "Log in") {
			t.Errorf("%s: %d %s", what, response.StatusCode, page)
		}
	}
	expect(h.browser(t), "without a session")

	b := h.login(t, "bob")
	token := *b.cookie
	_, page := b.get("/console")
	_, after, _ := strings.Cut(page, `name="csrf" value="`)
	csrf, _, _ := strings.Cut(after, `"`)
	if response, _ := b.post("/console/logout", url.Values{"csrf": {csrf}}); response.StatusCode != http.StatusSeeOther || b.cookie.MaxAge >= 0 {
		t.Errorf("logout: %d, cookie %+v", response.StatusCode, b.cookie)
	}
	b.cookie = &token
	expect(b, "after logging out")

	b = h.login(t, "bob")
	h.clock.Advance(12 * time.Hour)
	expect(b, "after 12 hours")

	b = h.login(t, "bob")
	if err := h.authority.Revoke(t.Context(), h.authority.ID(creto.KindHuman, "bob")); err != nil {
		t.Fatal(err)
	}
	expect(b, "after a revocation")
}

func TestAuthenticated(t *testing.T) {
	h := open(t, origin)
	bob := h.authority.ID(creto.KindHuman, "bob")
	token, ends, err := h.sessions.New(t.Context(), bob, login.MethodToken)
	if err != nil || !ends.Equal(at.Add(12*time.Hour)) {
		t.Fatalf("New = until %v, %v", ends, err)
	}
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/api/v1/status", nil)
	if _, err := h.console.Authenticated(r); !errors.Is(err, fault.Unauthenticated) {
		t.Errorf("without anything: %v", err)
	}
	r.AddCookie(&http.Cookie{Name: "creto_session", Value: token})
	if id, err := h.console.Authenticated(r); err != nil || id != bob {
		t.Errorf("with a cookie: %v, %v", id, err)
	}
	// A bearer token counts alone.
	r.Header.Set("Authorization", "Bearer x")
	if _, err := h.console.Authenticated(r); !errors.Is(err, fault.Unauthenticated) {
		t.Errorf("with a wrong token: %v", err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	if id, err := h.console.Authenticated(r); err != nil || id != bob {
		t.Errorf("with a token: %v, %v", id, err)
	}
}

func TestDecide(t *testing.T) {
	h := open(t, origin)
	for _, test := range []struct {
		name, decision string
		want           oversight.State
		what           string
	}{
		{"approve", "approve", oversight.Approved, audit.EventApproved},
		{"deny", "deny", oversight.Denied, audit.EventOversightDenied},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := h.ask(t, "http://shop.test/refunds", "POST http://shop.test/refunds\n\n{\"amount\":50,\"for\":\""+test.name+"\"}")
			b := h.login(t, "bob")
			if _, page := b.get("/console"); !strings.Contains(page, r.ID) {
				t.Error("the request is not in the list")
			}
			path := "/console/approvals/" + r.ID
			_, page := b.get(path)
			for _, want := range []string{"shop-bot asks, on behalf of alice", "{&#34;amount&#34;:50", "alice <small>human</small> → shop-bot <small>agent</small>", "a member of finance", r.Digest.String(), "shop-bot/4", ">Approve<", ">Deny<"} {
				if !strings.Contains(page, want) {
					t.Errorf("the page lacks %q:\n%s", want, page)
				}
			}
			values := form(page)
			values.Set("reason", " seen \u202e ")
			values.Set("decision", test.decision)
			if response, page := b.post(path, values); response.StatusCode != http.StatusSeeOther || response.Header.Get("Location") != path {
				t.Fatalf("deciding: %d %s", response.StatusCode, page)
			}
			decided, err := h.desk.Show(t.Context(), r.ID)
			if err != nil || decided.State != test.want || decided.DecidedBy.Name != "bob" || decided.Channel != oversight.ChannelConsole || decided.Reason != "seen \u202e" {
				t.Errorf("decided %+v, %v", decided, err)
			}
			_, page = b.get(path)
			if strings.Contains(page, ">Approve<") || !strings.Contains(page, "by bob through console") || !strings.Contains(page, "seen <mark>U+202E</mark>") {
				t.Errorf("the page of what was decided:\n%s", page)
			}
			// The first answer counts.
			if response, page := b.post(path, values); response.StatusCode != http.StatusConflict || !strings.Contains(page, "already") {
				t.Errorf("deciding again: %d %s", response.StatusCode, page)
			}
			eventually(t, "the record", func() bool { return len(h.records(t, test.what)) == 1 })
			if _, page := b.get("/console/activity"); !strings.Contains(page, test.what) {
				t.Errorf("the activity lacks it:\n%s", page)
			}
		})
	}
}

func TestDecideRefuses(t *testing.T) {
	h := open(t, origin)
	r := h.ask(t, "http://shop.test/refunds", "POST\n\n50")
	path := "/console/approvals/" + r.ID
	bob := h.login(t, "bob")
	_, page := bob.get(path)
	good := form(page)
	good.Set("decision", "approve")
	change := func(key, value string) url.Values {
		values := url.Values{}
		for k, v := range good {
			values[k] = v
		}
		values.Set(key, value)
		return values
	}
	eve := h.login(t, "eve")
	_, page = eve.get(path)
	eves := form(page)
	eves.Set("decision", "approve")
	alice := h.login(t, "alice")
	_, page = alice.get(path)
	alices := form(page)
	alices.Set("decision", "approve")
	foreign := h.login(t, "bob")
	foreign.cookie, foreign.header = bob.cookie, http.Header{"Origin": {"http://evil.test"}}
	crossSite := h.login(t, "bob")
	crossSite.cookie, crossSite.header = bob.cookie, http.Header{"Sec-Fetch-Site": {"cross-site"}}
	for _, test := range []struct {
		name   string
		by     *browser
		path   string
		values url.Values
		status int
		says   string
	}{
		{"another digest", bob, path, change("digest", creto.DigestOf([]byte("x")).String()), 409, "another than the one you saw"},
		{"no digest", bob, path, change("digest", ""), 409, "another than the one you saw"},
		{"another session's form", bob, path, change("csrf", eves.Get("csrf")), 403, "open the page again"},
		{"no token", bob, path, change("csrf", ""), 403, "open the page again"},
		{"no decision", bob, path, change("decision", ""), 400, "choose approve or deny"},
		{"another decision", bob, path, change("decision", "approved"), 400, "choose approve or deny"},
		{"a long reason", bob, path, change("reason", strings.Repeat("x", 1001)), 400, "reason"},
		{"a form that is too large", bob, path, change("reason", strings.Repeat("x", 1<<20)), 403, "open the page again"},
		{"an unknown request", bob, "/console/approvals/x", good, 404, "no request"},
		{"another origin", foreign, path, good, 403, "another site"},
		{"another site", crossSite, path, good, 403, "another site"},
		{"another group", eve, path, eves, 403, "eve is not in the group &#34;finance&#34;"},
		{"one in the chain", alice, path, alices, 403, "alice is part of the chain"},
		{"nobody", h.browser(t), path, good, 401, "creto human login"},
	} {
		t.Run(test.name, func(t *testing.T) {
			response, page := test.by.post(test.path, test.values)
			if response.StatusCode != test.status || !strings.Contains(page, test.says) || !strings.HasPrefix(page, "<!doctype html>") {
				t.Errorf("answer %d, want %d and %q:\n%s", response.StatusCode, test.status, test.says, page)
			}
		})
	}
	if now, err := h.desk.Show(t.Context(), r.ID); err != nil || now.State != oversight.Pending {
		t.Errorf("the request is %s, %v; want pending", now.State, err)
	}
	if response, page := bob.post(path, good); response.StatusCode != http.StatusSeeOther {
		t.Errorf("the right form: %d %s", response.StatusCode, page)
	}
}

// Another tenant's person sees nothing of this one's.
func TestTenants(t *testing.T) {
	h := open(t, origin)
	r := h.ask(t, "http://shop.test/refunds", "POST\n\n50")
	stranger := creto.ID{TrustDomain: "test.local", Tenant: "other", Kind: creto.KindHuman, Name: "mallory"}
	if _, err := h.db.ExecContext(t.Context(), "INSERT INTO principal (id, tenant, kind, name, created_ns) VALUES ($1, 'other', 'human', 'mallory', 0)", stranger.String()); err != nil {
		t.Fatal(err)
	}
	token, _, err := h.sessions.New(t.Context(), stranger, login.MethodBootstrap)
	if err != nil {
		t.Fatal(err)
	}
	b := h.browser(t)
	b.cookie = &http.Cookie{Name: "creto_session", Value: token}
	if response, _ := b.get("/console/approvals/" + r.ID); response.StatusCode != http.StatusNotFound {
		t.Errorf("the request: %d, want 404", response.StatusCode)
	}
	if response, page := b.get("/console"); response.StatusCode != http.StatusOK || strings.Contains(page, r.ID) {
		t.Errorf("the list: %d %s", response.StatusCode, page)
	}
}

// hostile is what an agent would write to mislead who reads it.
const hostile = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">\x1b[2J\r\u202e05\u202c \u200b\u00ad\u061c\u2028\U000e0041\ufe0f\u3164\u2800 \xff {{.}} ]]>"

func TestHostileText(t *testing.T) {
	h := open(t, origin)
	r := h.ask(t, "http://shop.test/\u202e"+strings.ToValidUTF8(hostile, ""), hostile)
	if _, err := h.log.Log(t.Context(), audit.Record{ID: creto.NewUUID(), Who: r.Agent, What: creto.HTTPRequest, Resource: "Url::" + strings.ToValidUTF8(hostile, ""), Why: strings.ToValidUTF8(hostile, ""), Outcome: audit.Denied}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the record", func() bool { return len(h.records(t, creto.HTTPRequest)) == 1 })
	b := h.login(t, "bob")
	for _, path := range []string{"/console", "/console/approvals/" + r.ID, "/console/activity", "/console/" + url.PathEscape(strings.ToValidUTF8(hostile, "")), "/console/login?code=" + url.QueryEscape(hostile)} {
		_, page := b.get(path)
		if strings.Contains(page, "<script>") || strings.Contains(page, "<img src=x") {
			t.Errorf("%s is not escaped:\n%s", path, page)
		}
		if !strings.Contains(path, "login") && strings.ContainsAny(page, "\x1b\r\u202e\u202c\u200b\u00ad\u061c\u2028\U000e0041\ufe0f\u3164\u2800\ufffd") {
			t.Errorf("%s has hidden characters:\n%q", path, page)
		}
	}
	_, page := b.get("/console/approvals/" + r.ID)
	for _, want := range []string{"U+001B", "U+000D", "U+202E", "U+200B", "U+00AD", "U+061C", "U+2028", "U+E0041", "U+FE0F", "U+3164", "U+2800", "0xFF"} {
		if !strings.Contains(page, "<mark>"+want+"</mark>") {
			t.Errorf("the page does not name %s:\n%s", want, page)
		}
	}
	if !strings.Contains(page, "characters that cannot be seen") {
		t.Error("the page does not warn")
	}
}

// Every answer forbids what no page needs.
func TestHeaders(t *testing.T) {
	h := open(t, origin)
	b := h.login(t, "bob")
	for _, test := range []struct {
		method, path string
		status       int
		kind         string
	}{
		{"GET", "/console", 200, "text/html; charset=utf-8"},
		{"HEAD", "/console", 200, "text/html; charset=utf-8"},
		{"GET", "/console/", 301, "text/html; charset=utf-8"},
		{"GET", "/console/activity", 200, "text/html; charset=utf-8"},
		{"GET", "/console/login", 200, "text/html; charset=utf-8"},
		{"GET", "/console/account", 200, "text/html; charset=utf-8"},
		{"POST", "/console/account/passkeys/begin", 403, "text/html; charset=utf-8"},
		{"POST", "/console/login/passkey", 401, "application/json"},
		{"GET", "/console/verify", 200, "text/html; charset=utf-8"},
		{"GET", "/console/verifier/verify.mjs", 200, "text/javascript; charset=utf-8"},
		{"GET", "/console/verifier/noble/hashes/_u64.js", 200, "text/javascript; charset=utf-8"},
		{"GET", "/console/verifier/testdata/answer.mjs", 404, "text/plain; charset=utf-8"},
		{"GET", "/console/static/passkey.js", 200, "text/javascript; charset=utf-8"},
		{"GET", "/console/static/console.css", 200, "text/css; charset=utf-8"},
		{"GET", "/console/static/icon.svg", 200, "image/svg+xml"},
		{"GET", "/console/static/", 404, "text/html; charset=utf-8"},
		{"GET", "/console/static/x", 404, "text/plain; charset=utf-8"},
		{"GET", "/console/static/%2e%2e", 400, "text/plain; charset=utf-8"},
		{"GET", "/console/templates/home.html", 404, "text/html; charset=utf-8"},
		{"GET", "/console/nothing", 404, "text/html; charset=utf-8"},
		{"GET", "/console/approvals/nothing", 404, "text/html; charset=utf-8"},
		{"GET", "/console/logout", 405, "text/html; charset=utf-8"},
		{"DELETE", "/console/activity", 405, "text/html; charset=utf-8"},
		{"POST", "/console/logout", 403, "text/html; charset=utf-8"},
	} {
		response, _ := b.do(test.method, test.path, "")
		head := response.Header
		if response.StatusCode != test.status || head.Get("Content-Type") != test.kind {
			t.Errorf("%s %s = %d %s, want %d %s", test.method, test.path, response.StatusCode, head.Get("Content-Type"), test.status, test.kind)
		}
		if !strings.HasPrefix(head.Get("Content-Security-Policy"), "default-src 'none'; style-src 'self';") || head.Get("X-Content-Type-Options") != "nosniff" || head.Get("Referrer-Policy") != "same-origin" {
			t.Errorf("%s %s has the header %v", test.method, test.path, head)
		}
		if test.path == "/console/verify" { // what it reads goes nowhere
			if policy := head.Get("Content-Security-Policy"); !strings.Contains(policy, "script-src 'self'; form-action 'none'") || strings.Contains(policy, "connect-src") {
				t.Errorf("%s has the policy %q", test.path, policy)
			}
			continue
		}
		// A script runs only where a passkey may be used, and only ours.
		wantScript := test.path == "/console/login" || test.path == "/console/account"
		if policy := head.Get("Content-Security-Policy"); strings.Contains(policy, "script-src") != wantScript || wantScript && !strings.HasSuffix(policy, "; script-src 'self'; connect-src 'self'") {
			t.Errorf("%s %s has the policy %q", test.method, test.path, policy)
		}
		if test.status == 405 && head.Get("Allow") == "" {
			t.Errorf("%s %s does not say what is allowed", test.method, test.path)
		}
		if strings.HasPrefix(test.kind, "text/html") && test.status == 200 && head.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s may be kept", test.method, test.path)
		}
	}
}

func TestNew(t *testing.T) {
	if _, err := console.New("http://a b", console.Parts{}, nil); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("New with a bad origin = %v, want InvalidArgument", err)
	}
}

// A browser shows the request and runs nothing of it.
func TestBrowser(t *testing.T) {
	chromium := consoletest.Chromium(t)
	h := open(t, origin)
	r := h.ask(t, "http://shop.test/refunds", hostile)
	b := h.login(t, "bob")
	// A headless browser cannot be given a cookie: it is added on the way.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.AddCookie(b.cookie)
		h.console.Handler().ServeHTTP(w, r)
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
		"--user-data-dir="+t.TempDir(), "--dump-dom", server.URL+"/console/approvals/"+r.ID)
	dom, err := command.Output()
	if err != nil {
		t.Fatalf("chromium: %v", err)
	}
	page := string(dom)
	if !strings.Contains(page, "<title>Approval · Creto</title>") || strings.Contains(page, "<script") || !strings.Contains(page, "&lt;script&gt;") || !strings.Contains(page, "<mark>U+202E</mark>") {
		t.Errorf("the browser has:\n%s", page)
	}
}

func eventually(t testing.TB, what string, done func() bool, instead ...func() string) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.After(patience); !done(); {
		select {
		case <-deadline:
			var there string
			for _, text := range instead {
				there += "; instead: " + text()
			}
			t.Fatalf("still waiting for %s%s", what, there)
		case <-ticker.C:
		}
	}
}
