package gateway_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/gateway"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
)

// canary is the secret that must be nowhere but at the upstream.
const canary = "canary-9b1d"

func (h *house) secret(t testing.TB, name, value string, agents ...creto.ID) {
	t.Helper()
	info := localnhi.SecretInfo{Tenant: h.bot.Tenant, Name: nhi.SecretRef(name), Owner: h.authority.ID(creto.KindHuman, "alice"), Agents: agents}
	if _, err := h.authority.SetSecret(t.Context(), info, creto.NewSecret(value)); err != nil {
		t.Fatal(err)
	}
}

func (s *shop) with(credentials ...gateway.Credential) gateway.Config {
	cfg := s.mapped()
	cfg.Hosts["evil.test"] = s.address()
	cfg.Credentials = credentials
	return cfg
}

var shopKey = gateway.Credential{Host: "Shop.test:80", Header: "authorization", Format: "Bearer %s", Secret: "shop-key", Tenant: creto.DefaultTenant}

// The gateway adds the credential in place of whatever the agent sends, and to
// nothing else than the host it is for.
func TestCredential(t *testing.T) {
	s := newShop(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, "http://evil.test/", http.StatusTemporaryRedirect)
		}
	})
	h := open(t, s.with(shopKey, gateway.Credential{Host: "shop.test", Header: "X-Api-Key", Secret: "shop-key", Tenant: creto.DefaultTenant}), nil, "http_request=*", "access_secret=shop-key")
	h.secret(t, "shop-key", canary, h.bot)
	for _, headers := range []string{
		"", "Authorization: Bearer placeholder\n", "Authorization: a\nAuthorization: b\nX_Api_Key: c\nX-Api-Key: d\n",
		"Connection: Authorization, X-Api-Key\nAuthorization: x\n", "X_Api_Key: c\nConnection: X-Api-Key\n",
	} {
		if status, body := h.ask(t, "GET http://SHOP.test./redirect HTTP/1.1\nHost: evil.test\n"+headers+"\n"); status != http.StatusTemporaryRedirect || strings.Contains(body, canary) {
			t.Errorf("with %q: %d %s", headers, status, body)
		}
	}
	got := s.requests()
	if len(got) != 5 {
		t.Fatalf("%d requests arrived", len(got))
	}
	for _, r := range got {
		if r.host != "shop.test" || fmt.Sprint(r.header.Values("Authorization"), r.header.Values("X-Api-Key"), r.header["X_api_key"]) != "[Bearer "+canary+"] ["+canary+"] []" {
			t.Errorf("the upstream got %+v", r)
		}
	}
	// Where the redirect leads, on another port, or in a tunnel, it is not sent.
	h.ask(t, "GET http://evil.test/ HTTP/1.1\nHost: shop.test\nAuthorization: mine\n\n")
	h.ask(t, "GET http://shop.test:8080/ HTTP/1.1\nHost: shop.test\n\n")
	for _, r := range s.requests()[5:] {
		if strings.Contains(fmt.Sprint(r), canary) {
			t.Errorf("%s got %+v", r.host, r)
		}
	}
	if s.requests()[5].header.Get("Authorization") != "mine" {
		t.Error("another host does not get what the agent sends")
	}
	for _, r := range h.records(t, creto.AccessSecret, 10) {
		if r.Resource != "Secret::shop-key" || r.Outcome != audit.Success || r.Sandbox != "run-1" || r.Detail["delivery"] != "gateway" || r.Detail[audit.DetailEvent] != audit.EventSecretAccessed {
			t.Errorf("recorded %+v", r)
		}
	}
	// What is recorded is what the agent sent.
	bare := 0
	for _, r := range h.records(t, creto.HTTPRequest, 7) {
		want := ""
		if r.Resource == "Url::http://shop.test/redirect" {
			want = "Secret::shop-key Secret::shop-key"
		}
		if r.Detail["credential"] != want || strings.Contains(fmt.Sprintf("%+v", r), canary) {
			t.Errorf("recorded %+v", r)
		}
		if r.Args == creto.DigestOf([]byte("GET http://shop.test/redirect\n\n")) {
			bare++
		}
	}
	if bare != 2 { // without a header, and with one that was of the connection alone
		t.Errorf("%d records have the digest of a request without headers, want 2", bare)
	}
}

// Without both permits, or without the secret, nothing is sent.
func TestCredentialFailsClosed(t *testing.T) {
	const request = "GET http://shop.test/orders HTTP/1.1\nHost: a\n\n"
	for _, test := range []struct {
		name    string
		allow   []string
		prepare func(*testing.T, *house)
		status  int
		hint    string
		event   string
		secrets int // records of access_secret
	}{
		{"no permit for the secret", []string{anyURL}, nil, http.StatusForbidden, `resource == Creto::Secret::\"shop-key\") when { context.delivery == \"gateway\" };`, "", 1},
		{"a permit to hold it only", []string{anyURL, "access_secret=raw shop-key"}, nil, http.StatusForbidden, `shop-key`, "", 1},
		{"no permit for the request", []string{"access_secret=shop-key"}, nil, http.StatusForbidden, `Url`, "", 0},
		{"no secret", []string{anyURL, "access_secret=*"}, func(t *testing.T, h *house) {
			if err := h.authority.RemoveSecret(t.Context(), h.bot.Tenant, "shop-key"); err != nil {
				t.Fatal(err)
			}
		}, http.StatusNotFound, `there is no secret \"shop-key\"`, audit.EventSecretMissing, 1},
		{"another's secret", []string{anyURL, "access_secret=*"}, func(t *testing.T, h *house) {
			boss := h.authority.ID(creto.KindAgent, "boss")
			if err := h.authority.AddAgent(t.Context(), boss); err != nil {
				t.Fatal(err)
			}
			h.secret(t, "shop-key", canary, boss)
		}, http.StatusForbidden, "does not let bot have it", "", 1},
		{"a secret of two lines", []string{anyURL, "access_secret=*"}, func(t *testing.T, h *house) {
			h.secret(t, "shop-key", canary+"\r\nX-Admin: 1")
		}, http.StatusConflict, "cannot go into a header", audit.EventSecretAccessed, 1},
		{"a secret with space behind it", []string{anyURL, "access_secret=*"}, func(t *testing.T, h *house) {
			h.secret(t, "shop-key", canary+" ")
		}, http.StatusConflict, "space around it", audit.EventSecretAccessed, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newShop(t, nil)
			h := open(t, s.with(shopKey), nil, test.allow...)
			h.secret(t, "shop-key", canary)
			if test.prepare != nil {
				test.prepare(t, h)
			}
			status, body := h.ask(t, request)
			if status != test.status || !strings.Contains(body, test.hint) || strings.Contains(body, canary) {
				t.Errorf("answer %d %s; want %d with %s", status, body, test.status, test.hint)
			}
			if got := s.requests(); len(got) > 0 {
				t.Errorf("the upstream got %+v", got)
			}
			for _, r := range h.records(t, creto.AccessSecret, test.secrets) {
				if r.Detail[audit.DetailEvent] != test.event || strings.Contains(fmt.Sprintf("%+v", r), canary) {
					t.Errorf("recorded %+v", r)
				}
			}
			if r := h.records(t, creto.HTTPRequest, 1)[0]; r.Outcome == audit.Success {
				t.Errorf("recorded %+v", r)
			}
		})
	}
	t.Run("a method that is answered with the request", func(t *testing.T) {
		s := newShop(t, nil)
		h := open(t, s.with(shopKey), nil, anyURL, "access_secret=*")
		h.secret(t, "shop-key", canary)
		if status, _ := h.ask(t, "TRACE http://shop.test/ HTTP/1.1\nHost: a\n\n"); status != http.StatusForbidden || len(s.requests()) > 0 {
			t.Errorf("TRACE = %d", status)
		}
	})
	t.Run("not for this agent", func(t *testing.T) {
		s := newShop(t, nil)
		other, tenant := shopKey, shopKey
		other.Agents = []string{"boss"}
		tenant.Tenant, tenant.Agents = "other", []string{"bot"} // of the same name
		h := open(t, s.with(other, tenant), nil, anyURL, "access_secret=*")
		h.secret(t, "shop-key", canary)
		if status, _ := h.ask(t, request); status != http.StatusOK || s.requests()[0].header.Get("Authorization") != "" {
			t.Errorf("answer %d, the upstream got %+v", status, s.requests())
		}
		h.records(t, creto.AccessSecret, 0)
	})
}

// What an upstream sends back of the request does not hold the credential, and a
// stream is not kept back for it.
func TestCredentialEcho(t *testing.T) {
	release := make(chan struct{})
	s := newShop(t, func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Authorization")
		flush := func(text string) {
			_, _ = io.WriteString(w, text)
			_ = http.NewResponseController(w).Flush()
		}
		switch r.URL.Path {
		case "/header":
			w.Header().Set("X-Echo", "you sent "+key)
		case "/body":
			flush("you sent " + key + ", thank you")
		case "/pieces":
			flush("you sent Bearer " + canary[:5])
			flush(canary[5:] + ", thank you")
		case "/stream":
			flush("one")
			<-release
			flush("two " + canary[:5])
			<-release
			flush("three")
		}
	})
	h := open(t, s.with(shopKey), nil, anyURL, "access_secret=shop-key")
	h.secret(t, "shop-key", canary)
	client := h.proxied(t)
	for path, want := range map[string]string{"/body": "you sent Bearer ", "/pieces": "you sent Bearer "} {
		response, err := client.Get("http://shop.test" + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		if !errors.Is(err, io.ErrUnexpectedEOF) || string(body) != want {
			t.Errorf("%s: read %q, %v; want %q, cut", path, body, err, want)
		}
	}
	if status, body := h.ask(t, "GET http://shop.test/header HTTP/1.1\nHost: a\n\n"); status != http.StatusForbidden || strings.Contains(body, canary) {
		t.Errorf("a credential in a header: %d %s", status, body)
	}
	response, err := client.Get("http://shop.test/stream")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two ", canary[:5] + "three"} {
		piece := make([]byte, len(want))
		if _, err := io.ReadFull(response.Body, piece); err != nil || string(piece) != want {
			t.Errorf("read %q, %v; want %q", piece, err, want)
		}
		if want != canary[:5]+"three" {
			release <- struct{}{}
		}
	}
	failures := 0
	for _, r := range h.records(t, creto.HTTPRequest, 4) {
		if r.Outcome == audit.Failure && strings.Contains(r.Why, "withheld") {
			failures++
		}
	}
	if failures != 3 {
		t.Errorf("%d answers are recorded as withheld, want 3", failures)
	}
}

// Of two credentials for one header the first counts, and the other's secret is
// not asked for.
func TestCredentialFirstCounts(t *testing.T) {
	s := newShop(t, nil)
	second := shopKey
	second.Secret, second.Header = "other-key", "AUTHORIZATION"
	h := open(t, s.with(shopKey, second), nil, anyURL, "access_secret=*")
	h.secret(t, "shop-key", canary)
	h.secret(t, "other-key", "another")
	if status, body := h.ask(t, "GET http://shop.test/orders HTTP/1.1\nHost: a\n\n"); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	if got := s.requests()[0].header.Values("Authorization"); fmt.Sprint(got) != "[Bearer "+canary+"]" {
		t.Errorf("the upstream got %q", got)
	}
	if r := h.records(t, creto.AccessSecret, 1)[0]; r.Resource != "Secret::shop-key" {
		t.Errorf("recorded %+v", r)
	}
}

// An answer that cannot be searched is not asked for: clients ask for compressed
// ones by themselves.
func TestCredentialIsNotCompressed(t *testing.T) {
	s := newShop(t, nil)
	h := open(t, s.with(shopKey), nil, "http_request=*", "access_secret=shop-key")
	h.secret(t, "shop-key", canary)
	for _, header := range []string{"", "Accept-Encoding: gzip, br\n", "accept_encoding: gzip\nAccept-Encoding: zstd\n"} {
		for _, host := range []string{"shop.test", "evil.test"} {
			if status, body := h.ask(t, "GET http://"+host+"/ HTTP/1.1\nHost: a\n"+header+"\n"); status != http.StatusOK {
				t.Fatalf("%d %s", status, body)
			}
		}
	}
	for i, r := range s.requests() {
		got := fmt.Sprint(r.header["Accept-Encoding"], r.header["Accept_encoding"])
		switch with := r.host == "shop.test"; {
		case with && got != "[identity] []":
			t.Errorf("with a credential, %s is asked for", got)
		case !with && i == 3 && got != "[gzip, br] []":
			t.Errorf("without, %s is asked for, not what the agent did", got)
		}
	}
}

// A program holds a secret itself only where policy says raw.
func TestRawSecret(t *testing.T) {
	h := open(t, gateway.Config{}, nil, "access_secret=raw key", "access_secret=other", "access_secret=raw lost")
	h.secret(t, "key", canary+"\nsecond line")
	h.secret(t, "other", canary)
	get := func(path string) (int, string) {
		return h.ask(t, "GET http://localhost"+path+" HTTP/1.1\nHost: localhost\n\n")
	}
	if status, body := get("/v1/secrets/key"); status != http.StatusOK || body != canary+"\nsecond line" {
		t.Errorf("the secret is %d %q", status, body)
	}
	if status, body := get("/v1/secrets/other"); status != http.StatusForbidden || !strings.Contains(body, `context.delivery == \"raw\"`) || strings.Contains(body, canary) {
		t.Errorf("a secret for the gateway alone is %d %s", status, body)
	}
	if status, body := get("/v1/secrets/lost"); status != http.StatusNotFound || strings.Contains(body, canary) {
		t.Errorf("a lost secret is %d %s", status, body)
	}
	for _, path := range []string{"/v1/secrets/..%2fkey", "/v1/secrets/KEY", "/v1/secrets/"} {
		if status, _ := get(path); status < 400 {
			t.Errorf("%s is %d", path, status)
		}
	}
	records := h.records(t, creto.AccessSecret, 3)
	if r := records[2]; r.Detail["delivery"] != "raw" || r.Detail[audit.DetailEvent] != audit.EventSecretAccessed || r.Sandbox != "run-1" {
		t.Errorf("recorded %+v", r)
	}
	if r := records[0]; r.Outcome != audit.Failure || r.Detail[audit.DetailEvent] != audit.EventSecretMissing {
		t.Errorf("recorded %+v", r)
	}
}

func TestCredentialValidate(t *testing.T) {
	for name, edit := range map[string]func(*gateway.Credential){
		"no host":             func(c *gateway.Credential) { c.Host = "" },
		"a URL":               func(c *gateway.Credential) { c.Host = "http://shop.test" },
		"a pattern":           func(c *gateway.Credential) { c.Host = "*.test" },
		"no header":           func(c *gateway.Credential) { c.Header = "" },
		"two headers":         func(c *gateway.Credential) { c.Header = "A\r\nB" },
		"the host header":     func(c *gateway.Credential) { c.Header = "host" },
		"the length":          func(c *gateway.Credential) { c.Header = "Content-Length" },
		"a hop's header":      func(c *gateway.Credential) { c.Header = "proxy-authorization" },
		"an underscore":       func(c *gateway.Credential) { c.Header = "X_Api_Key" },
		"no place for it":     func(c *gateway.Credential) { c.Format = "Bearer" },
		"two places":          func(c *gateway.Credential) { c.Format = "%s:%s" },
		"two lines":           func(c *gateway.Credential) { c.Format = "a\n%s" },
		"a space around it":   func(c *gateway.Credential) { c.Format = "%s " },
		"what is asked for":   func(c *gateway.Credential) { c.Header = "accept-encoding" },
		"no tenant":           func(c *gateway.Credential) { c.Tenant = "" },
		"no secret":           func(c *gateway.Credential) { c.Secret = "" },
		"a reference outside": func(c *gateway.Credential) { c.Secret = "env:HOME" },
	} {
		c := shopKey
		edit(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("Validate with %s = nil", name)
		}
	}
	for _, host := range []string{"shop.test", "shop.test:8080", "127.0.0.1", "[::1]:80", "::1"} {
		c := shopKey
		c.Host = host
		if err := c.Validate(); err != nil {
			t.Errorf("Validate of %q = %v", host, err)
		}
	}
}
