package sts_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google/externalaccount"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/sts"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/nhi/nhitest"
)

// fetch fetches the trust bundle as a SPIFFE peer does.
func (w *world) fetch(t testing.TB) *spiffebundle.Bundle {
	t.Helper()
	bundle, err := federation.FetchBundle(t.Context(), spiffeid.RequireTrustDomainFromString("test.local"), w.server.URL+sts.BundlePath,
		federation.WithWebPKIRoots(w.client.Transport.(*http.Transport).TLSClientConfig.RootCAs))
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}

// verifier is what an OpenID Connect library makes of the discovery document.
func (w *world) verifier(t testing.TB, audience string) *oidc.IDTokenVerifier {
	t.Helper()
	provider, err := oidc.NewProvider(oidc.ClientContext(t.Context(), w.client), w.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return provider.Verifier(&oidc.Config{ClientID: audience})
}

// TestVerifiers lets other people's libraries exchange and verify our tokens.
func TestVerifiers(t *testing.T) {
	w := newWorld(t, creto.DefaultTenant)
	// golang.org/x/oauth2 is a client of RFC 8693, from one of the large clouds.
	source, err := externalaccount.NewTokenSource(context.WithValue(t.Context(), oauth2.HTTPClient, w.client), externalaccount.Config{
		Audience: partner, SubjectTokenType: accessToken, TokenURL: w.server.URL + sts.TokenPath,
		SubjectTokenSupplier: supplier(w.issue(t, localnhi.TokenRequest{})),
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := source.Token()
	if err != nil {
		t.Fatal(err)
	}
	verified, err := w.verifier(t, partner).Verify(oidc.ClientContext(t.Context(), w.client), token.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Act struct {
			Sub string `json:"sub"`
		} `json:"act"`
		Client string `json:"client_id"`
		Chain  string `json:"chain"`
	}
	if err := verified.Claims(&claims); err != nil {
		t.Fatal(err)
	}
	if verified.Subject != w.alice.String() || claims.Act.Sub != w.bot.String() || claims.Client != w.bot.String() || claims.Chain == "" {
		t.Errorf("the token says sub %q and %+v, want %s and %s", verified.Subject, claims, w.alice, w.bot)
	}
	if _, err := w.verifier(t, "https://other.example").Verify(oidc.ClientContext(t.Context(), w.client), token.AccessToken); err == nil {
		t.Error("a verifier accepts a token for another audience")
	}
	if time.Until(token.Expiry) > nhi.MaxTokenTTL || time.Until(token.Expiry) < nhi.MaxTokenTTL-time.Minute {
		t.Errorf("the token ends in %v", time.Until(token.Expiry))
	}
	// Nobody takes it for a token of ours.
	if _, err := w.Resolve(t.Context(), nhi.Credential{Token: token.AccessToken}); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Resolve of a token for %s = %v, want NHITokenInvalid", partner, err)
	}

	// A JWT-SVID, for go-spiffe and, by the same keys, for an OIDC library.
	a := w.exchange(t, w.client, form(w.issue(t, localnhi.TokenRequest{}), "audience", partner, "requested_token_type", jwtType))
	if a.Issued != jwtType || a.Type != "N_A" || a.Ends < 290 || a.Ends > 300 {
		t.Errorf("the exchange answers %s", a.body)
	}
	bundle := w.fetch(t)
	svid, err := jwtsvid.ParseAndValidate(a.Token, bundle, []string{partner})
	if err != nil || svid.ID.String() != w.bot.String() {
		t.Errorf("ParseAndValidate = %v, %v, want %s", svid, err, w.bot)
	}
	if _, err := jwtsvid.ParseAndValidate(a.Token, bundle, []string{"https://other.example"}); err == nil {
		t.Error("go-spiffe accepts a JWT-SVID for another audience")
	}
	if verified, err := w.verifier(t, partner).Verify(oidc.ClientContext(t.Context(), w.client), a.Token); err != nil || verified.Subject != w.bot.String() {
		t.Errorf("an OIDC library says of the JWT-SVID: %+v, %v", verified, err)
	}
	if hint, ok := bundle.RefreshHint(); !ok || hint != 5*time.Minute {
		t.Errorf("the bundle's refresh hint is %v, %v", hint, ok)
	}

	records := w.log.of(audit.EventTokenIssued)
	if len(records) != 2 || records[1].Who != w.bot || records[1].OnBehalfOf != w.alice || records[1].Chain.IsZero() ||
		records[1].Detail["kind"] != "jwt_svid" || records[1].Detail["audience"] != partner || records[1].Detail["subject_jti"] == "" {
		t.Errorf("the records are %+v", records)
	}
	text, err := json.Marshal(records)
	if err != nil || strings.Contains(string(text), strings.Split(a.Token, ".")[2]) {
		t.Errorf("a record holds the token: %s, %v", text, err)
	}
}

// supplier gives an external account its subject token.
type supplier string

func (s supplier) SubjectToken(context.Context, externalaccount.SupplierOptions) (string, error) {
	return string(s), nil
}

// get fetches a public document.
func (w *world) get(t testing.TB, path string, edits ...func(*http.Request)) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", w.server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, edit := range edits {
		edit(r)
	}
	response, err := w.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, body
}

// TestMetadata: what discovery says is true.
func TestMetadata(t *testing.T) {
	w := newWorld(t, creto.DefaultTenant)
	_, first := w.get(t, "/.well-known/openid-configuration")
	_, second := w.get(t, "/.well-known/oauth-authorization-server")
	if string(first) != string(second) {
		t.Errorf("the two documents differ:\n%s\n%s", first, second)
	}
	var m map[string]any
	if err := json.Unmarshal(first, &m); err != nil {
		t.Fatal(err)
	}
	if m["issuer"] != w.server.URL || m["tls_client_certificate_bound_access_tokens"] != true {
		t.Errorf("the metadata is %s", first)
	}
	for _, absent := range []string{"authorization_endpoint", "response_types_supported", "scopes_supported"} {
		if _, ok := m[absent]; ok {
			t.Errorf("the metadata claims %s", absent)
		}
	}
	for name, value := range m {
		if !strings.HasSuffix(name, "_endpoint") {
			continue
		}
		u, err := url.Parse(value.(string))
		if err != nil {
			t.Fatal(err)
		}
		if a := w.post(t, w.client, u.Path, url.Values{}); a.status == http.StatusNotFound || a.Code == "" {
			t.Errorf("%s answers %d %s", name, a.status, a.body)
		}
		if response, _ := w.get(t, u.Path); response.StatusCode != http.StatusMethodNotAllowed || response.Header.Get("Allow") != "POST" {
			t.Errorf("GET of %s answers %d", name, response.StatusCode)
		}
	}
	response, body := w.get(t, sts.JWKSPath)
	if got := response.Header.Get("Cache-Control"); got != "public, max-age=300" {
		t.Errorf("the JWKS has Cache-Control %q", got)
	}
	for _, secret := range []string{`"d"`, `"p"`, `"k"`} {
		if strings.Contains(string(body), secret) {
			t.Errorf("the JWKS holds %s: %s", secret, body)
		}
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(body, &set); err != nil || len(set.Keys) != 2 {
		t.Fatalf("the JWKS is %s: %v", body, err)
	}
	for i, want := range []string{"EdDSA", "ES256"} {
		if k := set.Keys[i]; k.Algorithm != want || k.KeyID == "" || k.Use != "sig" || !k.Valid() || !k.IsPublic() {
			t.Errorf("key %d is %+v", i, k)
		}
	}
	again, _ := w.get(t, sts.JWKSPath, func(r *http.Request) { r.Header.Set("If-None-Match", response.Header.Get("Etag")) })
	if again.StatusCode != http.StatusNotModified {
		t.Errorf("the same JWKS again answers %d", again.StatusCode)
	}
}

// TestBound: the new token is bound to the key that the request proves, and a
// bound token is exchanged by its holder alone.
func TestBound(t *testing.T) {
	w := newWorld(t, creto.DefaultTenant)
	p := nhitest.NewProver(t, "ES256")
	bearer := w.issue(t, localnhi.TokenRequest{})
	bound := w.exchange(t, w.client, form(bearer), w.proof(t, p))
	if in, err := w.Inspect(t.Context(), bound.Token); err != nil || bound.Type != "DPoP" || in.Confirmation != (nhi.Confirmation{JKT: p.Thumbprint(t)}) {
		t.Errorf("an exchange with a proof gives a %s token of %+v, %v", bound.Type, in.Confirmation, err)
	}
	certified, leaf := w.certified(t)
	digest := sha256.Sum256(leaf.Raw)
	x5t := base64.RawURLEncoding.EncodeToString(digest[:])
	byCertificate := w.exchange(t, certified, form(bearer))
	if in, err := w.Inspect(t.Context(), byCertificate.Token); err != nil || byCertificate.Type != "Bearer" || in.Confirmation != (nhi.Confirmation{X5T: x5t}) {
		t.Errorf("an exchange with a certificate gives a %s token of %+v, %v", byCertificate.Type, in.Confirmation, err)
	}
	// A bound token stays bound to the same key, also as a JWT-SVID.
	for _, test := range []struct {
		client *http.Client
		token  string
		edits  []func(*http.Request)
		want   nhi.Confirmation
	}{
		{w.client, bound.Token, []func(*http.Request){w.proof(t, p)}, nhi.Confirmation{JKT: p.Thumbprint(t)}},
		{certified, bound.Token, []func(*http.Request){w.proof(t, p)}, nhi.Confirmation{JKT: p.Thumbprint(t)}},
		{certified, byCertificate.Token, nil, nhi.Confirmation{X5T: x5t}},
	} {
		for _, kind := range []string{accessToken, jwtType} {
			a := w.exchange(t, test.client, form(test.token, "audience", partner, "requested_token_type", kind), test.edits...)
			parsed, err := jwt.ParseSigned(a.Token, []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256})
			if err != nil {
				t.Fatal(err)
			}
			var claims struct {
				Cnf nhi.Confirmation `json:"cnf"`
			}
			if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil || claims.Cnf != test.want {
				t.Errorf("the exchange of a bound token gives one of %+v, %v, want %+v", claims.Cnf, err, test.want)
			}
		}
	}
	other, _ := w.certified(t)
	replayed := ""
	for _, test := range []struct {
		name   string
		client *http.Client
		token  string
		edit   func(*http.Request)
		code   string
	}{
		{"without a proof", w.client, bound.Token, func(*http.Request) {}, "invalid_dpop_proof"},
		{"with another's proof", w.client, bound.Token, w.proof(t, nhitest.NewProver(t, "ES256")), "invalid_dpop_proof"},
		{"with a certificate instead", certified, bound.Token, func(*http.Request) {}, "invalid_dpop_proof"},
		{"with two proofs", w.client, bound.Token, func(r *http.Request) { w.proof(t, p)(r); w.proof(t, p)(r) }, "invalid_dpop_proof"},
		{"with an empty proof", w.client, bearer, func(r *http.Request) { r.Header["Dpop"] = []string{""} }, "invalid_dpop_proof"},
		{"with two proofs for an unbound token", w.client, bearer, func(r *http.Request) { w.proof(t, p)(r); w.proof(t, p)(r) }, "invalid_dpop_proof"},
		{"with a proof for another place", w.client, bound.Token, func(r *http.Request) {
			r.Header.Set("DPoP", p.Prove(t, "dpop+jwt", p.Claims("POST", w.server.URL+"/v1/models", "", w.now())))
		}, "invalid_dpop_proof"},
		{"with an old proof", w.client, bound.Token, func(r *http.Request) {
			r.Header.Set("DPoP", p.Prove(t, "dpop+jwt", p.Claims("POST", w.server.URL+sts.TokenPath, "", w.now().Add(-2*time.Minute))))
		}, "invalid_dpop_proof"},
		{"without the certificate", w.client, byCertificate.Token, func(*http.Request) {}, "invalid_request"},
		{"with another certificate", other, byCertificate.Token, func(*http.Request) {}, "invalid_request"},
		{"of a certificate for a key", certified, byCertificate.Token, w.proof(t, p), "invalid_request"},
		{"with a fresh proof", w.client, bound.Token, func(r *http.Request) { w.proof(t, p)(r); replayed = r.Header.Get("DPoP") }, ""},
		{"with a used proof", w.client, bound.Token, func(r *http.Request) { r.Header.Set("DPoP", replayed) }, "invalid_dpop_proof"},
	} {
		if a := w.post(t, test.client, sts.TokenPath, form(test.token), test.edit); a.Code != test.code || a.Code != "" && a.status != http.StatusBadRequest {
			t.Errorf("an exchange %s answers %d %s, want %q", test.name, a.status, a.body, test.code)
		}
	}
}

// TestNeverLonger: an exchange renews nothing.
func TestNeverLonger(t *testing.T) {
	w := newWorld(t, creto.DefaultTenant)
	subject := w.issue(t, localnhi.TokenRequest{Instance: "7"})
	who, err := w.Inspect(t.Context(), subject)
	if err != nil {
		t.Fatal(err)
	}
	w.clock.Advance(13 * time.Minute)
	for _, kind := range []string{accessToken, jwtType} {
		a := w.exchange(t, w.client, form(subject, "audience", partner, "requested_token_type", kind))
		parsed, err := jwt.ParseSigned(a.Token, []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		var claims jwt.Claims
		if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil || claims.Expiry.Time().After(who.ExpiresAt) || a.Ends > 120 || a.Ends < 110 {
			t.Errorf("the new %s ends %v, in %d s; the subject token ends %v", kind, claims.Expiry.Time(), a.Ends, who.ExpiresAt)
		}
	}
	a := w.exchange(t, w.client, form(subject))
	if in, err := w.Inspect(t.Context(), a.Token); err != nil || in.Chain != who.Chain || in.ID != who.ID || in.Human != who.Human || in.Instance != "7" || in.TokenID == who.TokenID {
		t.Errorf("the new token is %+v, %v; the subject %+v", in, err, who)
	}
	w.clock.Advance(2*time.Minute + time.Second)
	if a := w.post(t, w.client, sts.TokenPath, form(subject)); a.Code != "invalid_request" || !strings.Contains(a.Why, "expired") {
		t.Errorf("the exchange of an expired token answers %d %s", a.status, a.body)
	}
}

// TestRefused: every request that is not exactly right, with the code that its
// RFC gives it.
func TestRefused(t *testing.T) {
	w := newWorld(t, creto.DefaultTenant)
	other := newWorld(t, creto.DefaultTenant) // another authority of the same name
	good := w.issue(t, localnhi.TokenRequest{})
	set := func(name string, values ...string) url.Values {
		f := form(good)
		f.Del(name)
		for _, v := range values {
			f.Add(name, v)
		}
		return f
	}
	revoked := w.issue(t, localnhi.TokenRequest{})
	who, err := w.Inspect(t.Context(), revoked)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.RevokeToken(t.Context(), who.Identity); err != nil {
		t.Fatal(err)
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	nothing := func(*http.Request) {}
	for _, test := range []struct {
		name   string
		form   url.Values
		edit   func(*http.Request)
		status int
		code   string
	}{
		{"no grant type", set("grant_type"), nothing, 400, "invalid_request"},
		{"an empty grant type", set("grant_type", ""), nothing, 400, "invalid_request"},
		{"another grant type", set("grant_type", "client_credentials"), nothing, 400, "unsupported_grant_type"},
		{"two grant types", set("grant_type", exchangeGrant, exchangeGrant), nothing, 400, "invalid_request"},
		{"no subject token", set("subject_token"), nothing, 400, "invalid_request"},
		{"two subject tokens", set("subject_token", good, good), nothing, 400, "invalid_request"},
		{"no subject token type", set("subject_token_type"), nothing, 400, "invalid_request"},
		{"an id token", set("subject_token_type", "urn:ietf:params:oauth:token-type:id_token"), nothing, 400, "invalid_request"},
		{"a refresh token wanted", set("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), nothing, 400, "invalid_request"},
		{"a JWT-SVID for nobody", set("requested_token_type", jwtType), nothing, 400, "invalid_request"},
		{"an actor token", set("actor_token", good), nothing, 400, "invalid_request"},
		{"an actor token type", set("actor_token_type", accessToken), nothing, 400, "invalid_request"},
		{"a scope", set("scope", "admin"), nothing, 400, "invalid_scope"},
		{"two audiences", set("audience", partner, "https://b.example"), nothing, 400, "invalid_target"},
		{"an audience and a resource", func() url.Values { f := set("audience", partner); f.Set("resource", "https://b.example"); return f }(), nothing, 400, "invalid_target"},
		{"a relative resource", set("resource", "/v1"), nothing, 400, "invalid_target"},
		{"a resource with a fragment", set("resource", "https://b.example/#x"), nothing, 400, "invalid_target"},
		{"a long audience", set("audience", strings.Repeat("x", 1000)), nothing, 400, "invalid_target"},
		{"an audience with a newline", set("audience", "a\nb"), nothing, 400, "invalid_target"},
		{"garbage", set("subject_token", "x.y.z"), nothing, 400, "invalid_request"},
		{"a revoked token", set("subject_token", revoked), nothing, 400, "invalid_request"},
		{"another authority's token", set("subject_token", other.issue(t, localnhi.TokenRequest{})), nothing, 400, "invalid_request"},
		{"a token for somebody else", set("subject_token", w.issue(t, localnhi.TokenRequest{Audience: partner})), nothing, 400, "invalid_request"},
		{"a run's token as a JWT-SVID", form(w.issue(t, localnhi.TokenRequest{Sandbox: "run-1"}), "audience", partner, "requested_token_type", jwtType), nothing, 400, "invalid_request"},
		{"another's client id", set("client_id", "spiffe://test.local/default/agent/boss"), nothing, 400, "invalid_client"},
		{"a client secret", set("client_secret", "x"), nothing, 401, "invalid_client"},
		{"a client assertion", set("client_assertion", "x"), nothing, 401, "invalid_client"},
		{"basic authentication", form(good), func(r *http.Request) { r.SetBasicAuth("a", "b") }, 401, "invalid_client"},
		{"a bearer token", form(good), header("Authorization", "Bearer "+good), 401, "invalid_client"},
		{"JSON", form(good), header("Content-Type", "application/json"), 400, "invalid_request"},
		{"a query", form(good), func(r *http.Request) { r.URL.RawQuery = "audience=x" }, 400, "invalid_request"},
		{"a body that is too large", set("x", strings.Repeat("x", 20<<10)), nothing, 413, "invalid_request"},
		{"a body that is no form", form(good), func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("%zz")), 3 }, 400, "invalid_request"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := w.post(t, w.client, sts.TokenPath, test.form, test.edit)
			if a.status != test.status || a.Code != test.code || a.Why == "" || a.Token != "" {
				t.Errorf("the exchange answers %d %s, want %d %s", a.status, a.body, test.status, test.code)
			}
			if a.header.Get("Cache-Control") != "no-store" || a.header.Get("Content-Type") != "application/json" {
				t.Errorf("the answer has headers %v", a.header)
			}
		})
	}
	if records := w.log.of(audit.EventTokenIssued); len(records) != 0 {
		t.Errorf("refused exchanges left records: %+v", records)
	}
	// The empty and the unknown are as if they were not there, and the
	// agent's own name is no secret.
	w.exchange(t, w.client, form(good, "scope", "", "actor_token", "", "options", "{}", "client_id", w.bot.String(), "resource", ""))
}

// TestUnavailable: what cannot be decided or recorded is refused as such.
func TestUnavailable(t *testing.T) {
	w := newWorld(t, creto.DefaultTenant)
	token := w.issue(t, localnhi.TokenRequest{})
	unavailable := func(what string, a answer) {
		t.Helper()
		if a.status != http.StatusServiceUnavailable || a.Code != "temporarily_unavailable" || a.Token != "" {
			t.Errorf("%s: the service answers %d %s", what, a.status, a.body)
		}
	}
	w.log.err = fault.New("test", fault.AuditUnavailable, "the log is full")
	unavailable("without the log", w.post(t, w.client, sts.TokenPath, form(token)))
	w.log.err = nil
	w.clock.Fail(true)
	unavailable("without a clock", w.post(t, w.client, sts.TokenPath, form(token)))
	unavailable("without a clock", w.post(t, w.client, sts.RevokePath, url.Values{"token": {token}}))
	for _, path := range []string{sts.JWKSPath, sts.BundlePath} {
		if response, body := w.get(t, path); response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("without a clock %s answers %d %s", path, response.StatusCode, body)
		}
	}
	w.clock.Fail(false)
	if err := w.closeDB(); err != nil {
		t.Fatal(err)
	}
	unavailable("without a database", w.post(t, w.client, sts.TokenPath, form(token)))
	unavailable("without a database", w.post(t, w.client, sts.RevokePath, url.Values{"token": {token}}))
	unavailable("without a database", w.post(t, w.client, sts.IntrospectPath, url.Values{"token": {token}}, asAdmin))
}

func asAdmin(r *http.Request) { r.Header.Set("Authorization", adminSession) }

// TestRate: an agent that asks too often waits, and no other with it.
func TestRate(t *testing.T) {
	w := newWorld(t, creto.DefaultTenant)
	token := w.issue(t, localnhi.TokenRequest{})
	helper, _, err := w.IssueToken(t.Context(), w.agent(t, "helper", w.bot), localnhi.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	f := form(token)
	for range 100 {
		w.exchange(t, w.client, f)
	}
	if a := w.post(t, w.client, sts.TokenPath, f); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") != "1" || a.Code != "temporarily_unavailable" {
		t.Errorf("the exchange after too many answers %d %s, Retry-After %q", a.status, a.body, a.header.Get("Retry-After"))
	}
	w.exchange(t, w.client, form(helper))
	w.clock.Advance(time.Second)
	w.exchange(t, w.client, f)
}

// TestRevoke: to end a token takes the token; what is none is answered the same.
func TestRevoke(t *testing.T) {
	w := newWorld(t, creto.DefaultTenant)
	first, second := w.issue(t, localnhi.TokenRequest{}), w.issue(t, localnhi.TokenRequest{})
	foreign := w.issue(t, localnhi.TokenRequest{Audience: partner})
	who, err := w.Resolve(t.Context(), nhi.Credential{Token: first})
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{first, first, foreign, "unknown", first[:len(first)-2]} {
		if a := w.post(t, w.client, sts.RevokePath, url.Values{"token": {token}, "token_type_hint": {"refresh_token"}}); a.status != http.StatusOK || len(a.body) != 0 {
			t.Errorf("the revocation of %.20q answers %d %s", token, a.status, a.body)
		}
	}
	if _, err := w.Resolve(t.Context(), nhi.Credential{Token: first}); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Resolve of a revoked token = %v, want NHITokenInvalid", err)
	}
	if err := w.Recheck(t.Context(), who); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Recheck of a revoked token = %v, want NHITokenInvalid", err)
	}
	if _, err := w.Resolve(t.Context(), nhi.Credential{Token: second}); err != nil {
		t.Errorf("Resolve of the agent's other token = %v", err)
	}
	if _, err := w.Inspect(t.Context(), foreign); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Inspect of a revoked token for another = %v, want NHITokenInvalid", err)
	}
	records := w.log.of(audit.EventTokenRevoked)
	if len(records) != 2 || records[0].Detail["jti"] != who.TokenID || records[0].Who != w.bot {
		t.Errorf("the records are %+v", records)
	}
	for _, f := range []url.Values{{}, {"token": {first, second}}} {
		if a := w.post(t, w.client, sts.RevokePath, f); a.status != http.StatusBadRequest || a.Code != "invalid_request" {
			t.Errorf("the revocation of %d tokens answers %d %s", len(f["token"]), a.status, a.body)
		}
	}
}

// TestIntrospect: administrators learn what a token says, nobody else, and
// nothing of one that is not active.
func TestIntrospect(t *testing.T) {
	w := newWorld(t, creto.DefaultTenant)
	helper := w.agent(t, "helper", w.bot)
	token, expires, err := w.IssueToken(t.Context(), helper, localnhi.TokenRequest{Audience: partner, Instance: "3"})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		edit   func(*http.Request)
		status int
		code   string
	}{
		"nobody":              {func(*http.Request) {}, 401, "invalid_token"},
		"the agent":           {func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }, 401, "invalid_token"},
		"bob":                 {func(r *http.Request) { r.Header.Set("Authorization", "Bearer bobs-session") }, 403, "access_denied"},
		"another site's page": {func(r *http.Request) { asAdmin(r); r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403, "access_denied"},
	} {
		a := w.post(t, w.client, sts.IntrospectPath, url.Values{"token": {token}}, test.edit)
		if a.status != test.status || a.Code != test.code || strings.Contains(string(a.body), "helper") || a.status == 401 && a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("introspection by %s answers %d %s", name, a.status, a.body)
		}
	}
	a := w.post(t, w.client, sts.IntrospectPath, url.Values{"token": {token}}, asAdmin)
	var got struct {
		Active   bool            `json:"active"`
		Issuer   string          `json:"iss"`
		Subject  string          `json:"sub"`
		ClientID string          `json:"client_id"`
		Audience []string        `json:"aud"`
		Expires  int64           `json:"exp"`
		Instance string          `json:"instance"`
		Act      json.RawMessage `json:"act"`
	}
	if err := json.Unmarshal(a.body, &got); err != nil {
		t.Fatal(err)
	}
	act := `{"sub":"` + helper.String() + `","act":{"sub":"` + w.bot.String() + `"}}`
	if !got.Active || got.Issuer != w.server.URL || got.Subject != w.alice.String() || got.ClientID != helper.String() || !slices.Equal(got.Audience, []string{partner}) ||
		got.Expires != expires.Unix() || got.Instance != "3" || string(got.Act) != act || a.Type != "Bearer" {
		t.Errorf("introspection answers %s", a.body)
	}
	inactive := func(what, token string) {
		t.Helper()
		if a := w.post(t, w.client, sts.IntrospectPath, url.Values{"token": {token}}, asAdmin); a.status != http.StatusOK || strings.TrimSpace(string(a.body)) != `{"active":false}` {
			t.Errorf("introspection of %s answers %d %s", what, a.status, a.body)
		}
	}
	inactive("garbage", "garbage")
	inactive("another authority's token", newWorld(t, creto.DefaultTenant).issue(t, localnhi.TokenRequest{}))
	human, agent := w.IDOf("other", creto.KindHuman, "carol"), w.IDOf("other", creto.KindAgent, "bot")
	if err := errors.Join(w.AddTenant(t.Context(), "other"), w.AddMember(t.Context(), human), w.AddAgent(t.Context(), agent)); err != nil {
		t.Fatal(err)
	}
	w.delegate(t, human, agent)
	theirs, _, err := w.IssueToken(t.Context(), agent, localnhi.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Inspect(t.Context(), theirs); err != nil {
		t.Errorf("Inspect of a token of another tenant = %v", err)
	}
	inactive("a token of another tenant", theirs)
	if err := w.Revoke(t.Context(), w.bot); err != nil { // above the helper
		t.Fatal(err)
	}
	inactive("a token below a revoked agent", token)
}

// TestDelegationReplaced: a token under a delegation that was replaced is worth
// nothing here either.
func TestDelegationReplaced(t *testing.T) {
	w := newWorld(t, creto.DefaultTenant)
	token := w.issue(t, localnhi.TokenRequest{})
	w.delegated = time.Hour
	w.delegate(t, w.alice, w.bot)
	if a := w.post(t, w.client, sts.TokenPath, form(token)); a.status != http.StatusBadRequest || a.Code != "invalid_request" {
		t.Errorf("the exchange under a replaced delegation answers %d %s", a.status, a.body)
	}
	if a := w.post(t, w.client, sts.IntrospectPath, url.Values{"token": {token}}, asAdmin); strings.TrimSpace(string(a.body)) != `{"active":false}` {
		t.Errorf("introspection under a replaced delegation answers %d %s", a.status, a.body)
	}
}

// TestRotation: what was signed with a replaced key verifies until it ends, and
// others find the key until then.
func TestRotation(t *testing.T) {
	w := newWorld(t, creto.DefaultTenant)
	old := w.issue(t, localnhi.TokenRequest{})
	svid := w.exchange(t, w.client, form(old, "audience", partner, "requested_token_type", jwtType)).Token
	before := w.fetch(t)
	sequence := func(b *spiffebundle.Bundle) uint64 { n, _ := b.SequenceNumber(); return n }
	kids := func() []string {
		_, body := w.get(t, sts.JWKSPath)
		var set jose.JSONWebKeySet
		if err := json.Unmarshal(body, &set); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, k := range set.Keys {
			ids = append(ids, k.KeyID)
		}
		return ids
	}
	first := kids()
	for _, role := range []string{localnhi.RoleToken, localnhi.RoleSVID, localnhi.RoleCA} {
		if _, err := w.Rotate(t.Context(), "platform", role); err != nil {
			t.Fatal(err)
		}
	}
	if got := kids(); len(got) != 4 || !slices.Contains(got, first[0]) || !slices.Contains(got, first[1]) || got[0] == first[0] {
		t.Errorf("after a rotation the keys are %v, before %v", got, first)
	}
	during := w.fetch(t)
	if len(during.X509Authorities()) != 2 || len(during.JWTAuthorities()) != 2 || sequence(during) <= sequence(before) {
		t.Errorf("after a rotation the bundle has %d and %d keys, sequence %d after %d", len(during.X509Authorities()), len(during.JWTAuthorities()), sequence(during), sequence(before))
	}
	if _, err := jwtsvid.ParseAndValidate(svid, during, []string{partner}); err != nil {
		t.Errorf("a JWT-SVID of the replaced key: %v", err)
	}
	w.exchange(t, w.client, form(old))
	next := w.exchange(t, w.client, form(w.issue(t, localnhi.TokenRequest{}), "audience", partner, "requested_token_type", jwtType)).Token
	if _, err := jwtsvid.ParseAndValidate(next, before, []string{partner}); err == nil {
		t.Error("a bundle from before the rotation verifies a JWT-SVID from after it")
	}
	w.clock.Advance(nhi.MaxTokenTTL + time.Second)
	if got := kids(); len(got) != 2 || slices.Contains(got, first[0]) || slices.Contains(got, first[1]) {
		t.Errorf("once all has ended the keys are %v, the replaced ones were %v", got, first)
	}
	w.clock.Advance(localnhi.MaxX509SVIDTTL)
	after := w.fetch(t)
	if len(after.X509Authorities()) != 1 || len(after.JWTAuthorities()) != 1 || sequence(after) <= sequence(during) || before.HasX509Authority(after.X509Authorities()[0]) {
		t.Errorf("once all has ended the bundle has %d and %d keys, sequence %d after %d", len(after.X509Authorities()), len(after.JWTAuthorities()), sequence(after), sequence(during))
	}
}

func FuzzExchange(f *testing.F) {
	w := newWorld(f, creto.DefaultTenant)
	good := w.issue(f, localnhi.TokenRequest{})
	handler := w.service.Handler()
	for _, seed := range []url.Values{form(good), form(good, "audience", partner), form("x.y.z"), form(good, "resource", "https://b.example/#x"), {"grant_type": {exchangeGrant, ""}}} {
		f.Add(seed.Encode(), "application/x-www-form-urlencoded", "")
	}
	f.Add("subject_token=%zz&;", "application/x-www-form-urlencoded; charset=utf-8", "eyJ.eyJ.x")
	f.Fuzz(func(t *testing.T, body, media, proof string) {
		r, err := http.NewRequestWithContext(t.Context(), "POST", w.server.URL+sts.TokenPath, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", media)
		if proof != "" {
			r.Header.Set("DPoP", proof)
		}
		response := httptest.NewRecorder()
		handler.ServeHTTP(response, r)
		var a answer
		if err := json.Unmarshal(response.Body.Bytes(), &a); err != nil || response.Code >= 500 {
			t.Fatalf("the exchange answers %d %q", response.Code, response.Body)
		}
		if response.Code != http.StatusOK {
			if a.Code == "" || a.Token != "" {
				t.Fatalf("a refusal is %q", response.Body)
			}
			return
		}
		// Whatever was given out came from the one good token.
		values, err := url.ParseQuery(body)
		if err != nil || values.Get("subject_token") != good || a.Token == "" || a.Ends > 900 {
			t.Fatalf("%q was answered %q", body, response.Body)
		}
	})
}
