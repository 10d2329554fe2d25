package login_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/login"
	"creto.dev/login/logintest"
	"creto.dev/nhi"
)

// oidcHouse is a house with one identity provider, "work".
type oidcHouse struct {
	*house
	idp       *logintest.IDP
	providers *login.Providers
}

func openOIDC(t testing.TB, edit func(*login.ProviderConfig)) *oidcHouse {
	t.Helper()
	h := &oidcHouse{house: open(t)}
	now := func() time.Time {
		stamp, err := h.clock.Now(context.Background()) //nolint:usetesting // it may be asked for after the test's context has ended
		if err != nil {
			t.Error(err)
		}
		return stamp.Time()
	}
	h.idp = logintest.New(t, now)
	// The other one would take any code.
	other := logintest.New(t, now)
	other.Discovery = func(d map[string]any) {
		d["authorization_response_iss_parameter_supported"] = false
		d["token_endpoint"] = h.idp.URL + "/token"
	}
	c := login.ProviderConfig{Name: "work", Issuer: h.idp.URL, ClientID: "creto", ClientSecret: creto.NewSecret(logintest.Secret), Scopes: []string{"email"}, HumanClaim: "preferred_username"}
	if edit != nil {
		edit(&c)
	}
	if problems := c.Problems(); len(problems) > 0 {
		t.Fatal(problems)
	}
	h.providers = login.NewProviders(origin, []login.ProviderConfig{c, {Name: "other", Issuer: other.URL, ClientID: "creto", ClientSecret: c.ClientSecret}}, login.People{
		ID: func(tenant, name string) creto.ID {
			return h.authority.IDOf(cmp.Or(tenant, creto.DefaultTenant), creto.KindHuman, name)
		}, Known: h.authority.Known, Reserved: []string{"admin"},
		Add: func(ctx context.Context, human creto.ID) error { return h.authority.AddMember(ctx, human) },
	}, h.db, h.clock, h.log)
	return h
}

// begin sends a browser to the provider, and returns what it comes back with.
func (h *oidcHouse) begin(t testing.TB, browser string, asked login.Asked) url.Values {
	t.Helper()
	address, err := h.providers.Begin(t.Context(), "work", browser, asked)
	if err != nil {
		t.Fatal(err)
	}
	return h.idp.Visit(t, address)
}

// login is a whole login.
func (h *oidcHouse) login(t testing.TB) (login.Answer, error) {
	t.Helper()
	return h.providers.End(t.Context(), "work", "b", h.begin(t, "b", login.Asked{Purpose: login.ToLogin, Next: "/console/agents"}))
}

func TestProviderLogin(t *testing.T) {
	h := openOIDC(t, func(c *login.ProviderConfig) {
		c.GroupsClaim, c.Groups = "groups", map[string]string{"fin-team": "finance", "bosses": "admins"}
	})
	answer, err := h.login(t)
	if err != nil || answer.Human != h.human("alice") || answer.Next != "/console/agents" || !answer.AuthenticatedAt.Equal(at) {
		t.Fatalf("login = %+v, %v", answer, err)
	}
	if h.idp.Asked().Get("redirect_uri") != origin+"/console/login/oidc/work/callback" || h.idp.Asked().Get("scope") != "openid email" || h.idp.Asked().Get("max_age") != "300" {
		t.Errorf("asked for %v", h.idp.Asked())
	}
	if linked := h.records(t, audit.EventIdentityLinked, 1); linked[0].Record.Detail["subject"] != "u-1" {
		t.Errorf("recorded is %+v", linked[0].Record)
	}
	h.records(t, audit.EventLoggedIn, 1)

	// The groups are the mapped ones, until the next login says otherwise.
	groups := func() []string {
		list, err := h.providers.Groups(t.Context(), h.human("alice"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if got := groups(); !slices.Equal(got, []string{"finance"}) {
		t.Errorf("groups are %q", got)
	}
	h.idp.Claims = func(c map[string]any) { c["groups"], c["preferred_username"] = "bosses", "bob" }
	if answer, err := h.login(t); err != nil || answer.Human != h.human("alice") { // the link counts, not the name
		t.Errorf("login with another name = %v, %v", answer.Human, err)
	}
	if got := groups(); !slices.Equal(got, []string{"admins"}) {
		t.Errorf("groups are %q", got)
	}
	h.idp.Claims = func(c map[string]any) { c["groups"] = nil }
	if _, err := h.login(t); err != nil || len(groups()) > 0 {
		t.Errorf("groups are %q, %v", groups(), err)
	}
	h.idp.Claims = nil
	if _, err := h.login(t); err != nil || len(groups()) != 1 {
		t.Errorf("groups are %q, %v", groups(), err)
	}
	h.clock.Advance(login.SessionTTL)
	if got := groups(); len(got) > 0 {
		t.Errorf("groups outlive the session: %q", got)
	}
	h.idp.Claims = func(c map[string]any) { c["groups"] = 7 }
	_, err = h.login(t)
	refused(t, "groups that are none", err, fault.Unauthenticated)
	h.idp.Claims = nil

	// A revoked human is nobody.
	if err := h.authority.Revoke(t.Context(), h.human("alice")); err != nil {
		t.Fatal(err)
	}
	_, err = h.login(t)
	refused(t, "a revoked human", err, fault.PermissionDenied)
}

// Whatever an answer has wrong, nobody is logged in, and the reader learns no
// more than that.
func TestProviderHostile(t *testing.T) {
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		claims func(map[string]any)
		token  func(*logintest.IDP, []byte) string
		query  func(url.Values)
	}{
		"another nonce":     {claims: func(c map[string]any) { c["nonce"] = "x" }},
		"no nonce":          {claims: func(c map[string]any) { c["nonce"] = nil }},
		"another audience":  {claims: func(c map[string]any) { c["aud"] = "other" }},
		"several audiences": {claims: func(c map[string]any) { c["aud"] = []string{"creto", "other"} }},
		"another party":     {claims: func(c map[string]any) { c["azp"] = "other" }},
		"another issuer":    {claims: func(c map[string]any) { c["iss"] = "https://evil.example" }},
		"expired":           {claims: func(c map[string]any) { c["exp"] = at.Add(-time.Second).Unix() }},
		"no expiry":         {claims: func(c map[string]any) { c["exp"] = nil }},
		"of tomorrow":       {claims: func(c map[string]any) { c["iat"] = at.Add(time.Hour).Unix() }},
		"known tomorrow":    {claims: func(c map[string]any) { c["auth_time"] = at.Add(time.Hour).Unix() }},
		"no subject":        {claims: func(c map[string]any) { c["sub"] = "" }},
		"a long subject":    {claims: func(c map[string]any) { c["sub"] = strings.Repeat("x", 256) }},
		"another token":     {claims: func(c map[string]any) { c["at_hash"] = "AAAAAAAAAAAAAAAAAAAAAA" }},
		"alg none": {token: func(_ *logintest.IDP, body []byte) string {
			return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString(body) + "."
		}},
		"signed with the secret": {token: func(p *logintest.IDP, body []byte) string {
			return p.Sign(jose.HS256, []byte(strings.Repeat("s3cret", 8)), body)
		}},
		"signed with the public key as a secret": {token: func(p *logintest.IDP, body []byte) string {
			return p.Sign(jose.HS256, x509.MarshalPKCS1PublicKey(&p.Key.PublicKey), body)
		}},
		"signed with another key": {token: func(p *logintest.IDP, body []byte) string { return p.Sign(jose.RS256, other, body) }},
		"no token":                {token: func(*logintest.IDP, []byte) string { return "" }},
		"half a token":            {token: func(p *logintest.IDP, body []byte) string { return p.Sign(jose.RS256, p.Key, body)[:99] }},
		"no code":                 {query: func(q url.Values) { q.Del("code") }},
		"another code":            {query: func(q url.Values) { q.Set("code", "x") }},
		"an error":                {query: func(q url.Values) { q.Set("error", "access_denied") }},
		"another state":           {query: func(q url.Values) { q.Set("state", "x") }},
		"no state":                {query: func(q url.Values) { q.Del("state") }},
		"mixed up":                {query: func(q url.Values) { q.Set("iss", "https://evil.example") }},
		"without its issuer":      {query: func(q url.Values) { q.Del("iss") }},
		"with two issuers":        {query: func(q url.Values) { q.Add("iss", "https://evil.example") }},
	} {
		t.Run(name, func(t *testing.T) {
			h := openOIDC(t, nil)
			h.idp.Claims = test.claims
			if test.token != nil {
				h.idp.Token = func(body []byte) string { return test.token(h.idp, body) }
			}
			q := h.begin(t, "b", login.Asked{Purpose: login.ToLogin})
			if test.query != nil {
				test.query(q)
			}
			answer, err := h.providers.End(t.Context(), "work", "b", q)
			refused(t, name, err, fault.Unauthenticated)
			if !answer.Human.IsZero() {
				t.Errorf("it is %v", answer.Human)
			}
			if list, err := h.providers.List(t.Context(), h.human("alice")); err != nil || len(list) > 0 {
				t.Errorf("linked are %v, %v", list, err)
			}
		})
	}
	h := openOIDC(t, nil)
	q := h.begin(t, "b", login.Asked{Purpose: login.ToLogin})
	_, err = h.providers.End(t.Context(), "work", "another", q)
	refused(t, "another browser", err, fault.Unauthenticated)
	_, err = h.providers.End(t.Context(), "work", "b", q)
	refused(t, "after another browser", err, fault.Unauthenticated)

	q = h.begin(t, "b", login.Asked{Purpose: login.ToLogin})
	if _, err := h.providers.End(t.Context(), "work", "b", q); err != nil {
		t.Fatal(err)
	}
	_, err = h.providers.End(t.Context(), "work", "b", q)
	refused(t, "a second time", err, fault.Unauthenticated)

	q = h.begin(t, "b", login.Asked{Purpose: login.ToLogin})
	q.Del("iss") // as of a provider that sends none
	_, err = h.providers.End(t.Context(), "other", "b", q)
	refused(t, "at another provider's address", err, fault.Unauthenticated)
	q = h.begin(t, "b", login.Asked{Purpose: login.ToLogin})
	h.clock.Advance(5 * time.Minute)
	_, err = h.providers.End(t.Context(), "work", "b", q)
	refused(t, "too late", err, fault.Unauthenticated)
	_, err = h.providers.Begin(t.Context(), "nobody", "b", login.Asked{})
	refused(t, "an unknown provider", err, fault.NotFound)
}

// A provider that lies about where it is, or is not there, is not used.
func TestProviderDiscovery(t *testing.T) {
	for name, edit := range map[string]func(map[string]any){
		"another issuer":          func(d map[string]any) { d["issuer"] = "https://evil.example" },
		"a token in the clear":    func(d map[string]any) { d["token_endpoint"] = "http://idp.example/token" },
		"keys in the clear":       func(d map[string]any) { d["jwks_uri"] = "http://idp.example/keys" },
		"a page in the clear":     func(d map[string]any) { d["authorization_endpoint"] = "http://idp.example/" },
		"no endpoint":             func(d map[string]any) { delete(d, "token_endpoint") },
		"a script for an address": func(d map[string]any) { d["authorization_endpoint"] = "javascript:alert(1)" },
	} {
		h := openOIDC(t, nil)
		h.idp.Discovery = edit
		if _, err := h.providers.Begin(t.Context(), "work", "b", login.Asked{Purpose: login.ToLogin}); err == nil {
			t.Errorf("%s: it is used", name)
		}
		h.idp.Discovery = nil // it is asked again
		if _, err := h.login(t); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}
	moved := httptest.NewServer(http.RedirectHandler("http://127.0.0.1:1/", http.StatusFound))
	defer moved.Close()
	h := openOIDC(t, func(c *login.ProviderConfig) { c.Issuer = moved.URL })
	_, err := h.providers.Begin(t.Context(), "work", "b", login.Asked{Purpose: login.ToLogin})
	refused(t, "a redirect", err, fault.Unavailable)
}

func TestProviderPeople(t *testing.T) {
	email := func(c *login.ProviderConfig) { c.HumanClaim, c.AllowedDomains = "email", []string{"corp.example"} }
	creates := func(c *login.ProviderConfig) { c.CreateHumans, c.AllowedDomains = true, []string{"corp.example"} }
	for name, test := range map[string]struct {
		config func(*login.ProviderConfig)
		claims func(map[string]any)
		want   string // "" is refused
	}{
		"by name":             {nil, nil, "alice"},
		"a name in capitals":  {nil, func(c map[string]any) { c["preferred_username"] = "Alice" }, "alice"},
		"unknown":             {nil, func(c map[string]any) { c["preferred_username"] = "carol" }, ""},
		"no name":             {nil, func(c map[string]any) { c["preferred_username"] = nil }, ""},
		"a number for a name": {nil, func(c map[string]any) { c["preferred_username"] = 7 }, ""},
		"no valid name":       {nil, func(c map[string]any) { c["preferred_username"] = "alice/../bob" }, ""},
		"the owner":           {creates, func(c map[string]any) { c["preferred_username"] = "admin" }, ""},
		"without a claim":     {func(c *login.ProviderConfig) { c.HumanClaim = "" }, nil, ""},
		"by email":            {email, nil, "alice"},
		"an unverified email": {email, func(c map[string]any) { c["email_verified"] = false }, ""},
		"verified as text":    {email, func(c map[string]any) { c["email_verified"] = "true" }, "alice"},
		"another domain":      {email, func(c map[string]any) { c["email"] = "alice@evil.example" }, ""},
		"another domain, but of the organization": {email, func(c map[string]any) { c["email"], c["hd"] = "alice@evil.example", "corp.example" }, ""},
		"an unverified email of the organization": {email, func(c map[string]any) { c["email_verified"], c["hd"] = false, "corp.example" }, ""},
		"a name with an unverified email":         {func(c *login.ProviderConfig) { c.AllowedDomains = []string{"corp.example"} }, func(c map[string]any) { c["email_verified"] = false }, ""},
		"a domain within":                         {email, func(c map[string]any) { c["email"] = "alice@x.corp.example" }, ""},
		"two ats":                                 {email, func(c map[string]any) { c["email"] = "alice@corp.example@evil.example" }, ""},
		"created":                                 {creates, func(c map[string]any) { c["preferred_username"] = "carol" }, "carol"},
		"created elsewhere":                       {creates, func(c map[string]any) { c["preferred_username"], c["email"] = "carol", "carol@evil.example" }, ""},
		"an allowed subject":                      {func(c *login.ProviderConfig) { c.AllowedSubjects = []string{"u-1"} }, nil, "alice"},
		"another subject":                         {func(c *login.ProviderConfig) { c.AllowedSubjects = []string{"u-2"} }, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := openOIDC(t, test.config)
			h.idp.Claims = test.claims
			answer, err := h.login(t)
			if test.want == "" {
				refused(t, name, err, fault.PermissionDenied)
				return
			}
			if err != nil || answer.Human != h.human(test.want) {
				t.Errorf("login = %v, %v, want %s", answer.Human, err, test.want)
			}
		})
	}
	// Whoever is known otherwise is not taken over by a name.
	h := openOIDC(t, nil)
	if _, err := h.login(t); err != nil {
		t.Fatal(err)
	}
	h.idp.Claims = func(c map[string]any) { c["sub"] = "u-2" }
	_, err := h.login(t)
	refused(t, "a second subject of the same name", err, fault.PermissionDenied)
}

func TestProviderLink(t *testing.T) {
	h := openOIDC(t, func(c *login.ProviderConfig) { c.HumanClaim = "" })
	ctx := t.Context()
	link := func(name string) error {
		_, err := h.providers.End(ctx, "work", "b", h.begin(t, "b", login.Asked{Purpose: login.ToLink, Human: h.human(name)}))
		return err
	}
	if err := link("bob"); err != nil {
		t.Fatal(err)
	}
	if answer, err := h.login(t); err != nil || answer.Human != h.human("bob") {
		t.Errorf("login = %v, %v", answer.Human, err)
	}
	refused(t, "somebody else's identity", link("alice"), fault.AlreadyExists)
	if names, err := h.providers.Usable(ctx, h.human("bob")); err != nil || !slices.Equal(names, []string{"work"}) {
		t.Errorf("usable are %q, %v", names, err)
	}
	list, err := h.providers.List(ctx, h.human("bob"))
	if err != nil || len(list) != 1 || list[0].Label != "alice@corp.example" || list[0].Provider != "work" {
		t.Fatalf("list = %+v, %v", list, err)
	}
	fresh, stale := h.session(t, "bob", login.MethodPasskey), h.session(t, "bob", login.MethodToken)
	refused(t, "unlinking from a stale session", h.providers.Unlink(ctx, stale, list[0].Issuer, "u-1"), fault.PermissionDenied)
	refused(t, "unlinking another's", h.providers.Unlink(ctx, h.session(t, "alice", login.MethodPasskey), list[0].Issuer, "u-1"), fault.NotFound)
	if err := h.providers.Unlink(ctx, fresh, list[0].Issuer, "u-1"); err != nil {
		t.Fatal(err)
	}
	_, err = h.login(t)
	refused(t, "an unlinked identity", err, fault.PermissionDenied)
}

// A provider knows the people of one tenant, and nobody of another.
func TestProviderTenant(t *testing.T) {
	h := openOIDC(t, func(c *login.ProviderConfig) { c.Tenant = "acme" })
	acmes := h.authority.IDOf("acme", creto.KindHuman, "alice")
	_, err := h.login(t)
	refused(t, "alice of the node's own tenant", err, fault.PermissionDenied)
	if err := h.authority.AddTenant(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	if err := h.authority.AddMember(t.Context(), acmes); err != nil {
		t.Fatal(err)
	}
	if answer, err := h.login(t); err != nil || answer.Human != acmes {
		t.Errorf("login = %v, %v, want %v", answer.Human, err, acmes)
	}
	for _, purpose := range []login.Purpose{login.ToLink, login.ToConfirm} {
		_, err := h.providers.End(t.Context(), "work", "b", h.begin(t, "b", login.Asked{Purpose: purpose, Human: h.human("alice"), Challenge: creto.DigestOf(nil)}))
		refused(t, string(purpose)+" of another tenant's human", err, fault.PermissionDenied)
	}
}

// A delegation is confirmed at a provider, with its challenge as nonce.
func TestProviderConfirm(t *testing.T) {
	h := openOIDC(t, nil)
	ctx := t.Context()
	if _, err := h.login(t); err != nil { // which links u-1 to alice
		t.Fatal(err)
	}
	d, err := h.delegations.Ask(ctx, h.draft(t, "alice", "bot"), login.Shown{}, h.human("bob"))
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := d.Link.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(human string) (login.Answer, error) {
		return h.providers.End(ctx, "work", "b", h.begin(t, "b", login.Asked{Purpose: login.ToConfirm, Human: h.human(human), Challenge: challenge}))
	}
	answer, err := ask("alice")
	if err != nil || h.idp.Asked().Get("nonce") != base64.RawURLEncoding.EncodeToString(challenge[:]) || h.idp.Asked().Get("prompt") != "login" || h.idp.Asked().Get("max_age") != "0" {
		t.Fatalf("asked with %v, %v", h.idp.Asked(), err)
	}
	proof, err := answer.Evidence.Proof()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := h.delegations.Confirm(ctx, d.ID, h.human("alice"), proof)
	if err != nil || chain.Proof() != nhi.ProofOIDC || chain.HumanProof().String() != "by OIDC "+h.idp.URL+" subject u-1" {
		t.Fatalf("Confirm = %v, %v", chain.HumanProof(), err)
	}
	_, err = ask("bob")
	refused(t, "another's confirmation", err, fault.PermissionDenied)
	for name, claims := range map[string]func(map[string]any){
		"known long ago":    func(c map[string]any) { c["auth_time"] = at.Add(-time.Hour).Unix() },
		"known nobody when": func(c map[string]any) { c["auth_time"] = nil },
		"another nonce":     func(c map[string]any) { c["nonce"] = "x" },
	} {
		h.idp.Claims = claims
		_, err := ask("alice")
		refused(t, name, err, fault.Unauthenticated)
	}
	h.idp.Claims = func(c map[string]any) { c["sub"] = "u-9" }
	_, err = ask("alice")
	refused(t, "an identity that is nobody's", err, fault.PermissionDenied)
}

func TestProviderConfig(t *testing.T) {
	good := login.ProviderConfig{Name: "work", Issuer: "https://idp.example", ClientID: "creto"}
	if problems := good.Problems(); len(problems) > 0 {
		t.Errorf("a good one: %v", problems)
	}
	for key, edit := range map[string]func(*login.ProviderConfig){
		"name":          func(c *login.ProviderConfig) { c.Name = "My IdP" },
		"issuer":        func(c *login.ProviderConfig) { c.Issuer = "http://idp.example" },
		"tenant":        func(c *login.ProviderConfig) { c.Tenant = "a/b" },
		"client_id":     func(c *login.ProviderConfig) { c.ClientID = "" },
		"create_humans": func(c *login.ProviderConfig) { c.CreateHumans, c.HumanClaim = true, "sub" },
		"human_claim":   func(c *login.ProviderConfig) { c.HumanClaim = "email" },
		"groups":        func(c *login.ProviderConfig) { c.GroupsClaim = "groups" },
		"groups.x":      func(c *login.ProviderConfig) { c.GroupsClaim, c.Groups = "g", map[string]string{"x": "No Group"} },
	} {
		c := good
		edit(&c)
		if problems := c.Problems(); len(problems) != 1 || problems[key] == "" {
			t.Errorf("%s: %v", key, problems)
		}
	}
}
