// Package logintest is an identity provider for tests: it speaks OpenID Connect
// over HTTP, and lies as a test tells it to.
package logintest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// IDP is an identity provider: discovery, authorization, PKCE, client
// authentication, signed tokens. It knows one client, creto with the secret
// [Secret], and one human, already logged in.
type IDP struct {
	// URL is its issuer.
	URL string
	// Key signs its tokens, by RS256.
	Key *rsa.PrivateKey
	// Discovery, Claims and Token bend its words; nil for not. They are set
	// while nobody asks.
	Discovery func(map[string]any)
	Claims    func(map[string]any)
	Token     func(claims []byte) string

	t   testing.TB
	now func() time.Time

	mu    sync.Mutex // guards what follows
	codes map[string]url.Values
	asked url.Values // of the last authorization
}

// Secret is its client's.
const Secret = "s3cret"

// New starts one, which ends with the test. now is its clock.
func New(t testing.TB, now func() time.Time) *IDP {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &IDP{t: t, Key: key, now: now, codes: make(map[string]url.Values)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.wellKnown)
	mux.HandleFunc("GET /authorize", p.authorize)
	mux.HandleFunc("POST /token", p.exchange)
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		p.write(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.Key.Public(), KeyID: "k1", Algorithm: "RS256", Use: "sig"}}})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	p.URL = server.URL
	return p
}

func (p *IDP) write(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		p.t.Error(err)
	}
}

func (p *IDP) wellKnown(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	doc := map[string]any{
		"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
		"id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"}, "authorization_response_iss_parameter_supported": true,
	}
	if p.Discovery != nil {
		p.Discovery(doc)
	}
	p.write(w, doc)
}

// authorize knows its human already.
func (p *IDP) authorize(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := r.URL.Query()
	if q.Get("client_id") != "creto" || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("nonce") == "" || q.Get("state") == "" {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	p.asked = q
	code := rand.Text()
	p.codes[code] = q
	http.Redirect(w, r, q.Get("redirect_uri")+"?"+url.Values{"code": {code}, "state": q["state"], "iss": {p.URL}}.Encode(), http.StatusFound)
}

func (p *IDP) exchange(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q, ok := p.codes[r.PostFormValue("code")]
	delete(p.codes, r.PostFormValue("code"))
	user, password, _ := r.BasicAuth()
	sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if !ok || user != "creto" || password != Secret || r.PostFormValue("redirect_uri") != q.Get("redirect_uri") ||
		base64.RawURLEncoding.EncodeToString(sum[:]) != q.Get("code_challenge") {
		w.WriteHeader(http.StatusBadRequest)
		p.write(w, map[string]string{"error": "invalid_grant"})
		return
	}
	claims := map[string]any{
		"iss": p.URL, "sub": "u-1", "aud": "creto", "iat": p.now().Unix(), "exp": p.now().Add(time.Minute).Unix(), "auth_time": p.now().Unix(),
		"nonce": q.Get("nonce"), "email": "alice@corp.example", "email_verified": true, "preferred_username": "alice", "groups": []string{"fin-team", "others"},
	}
	if p.Claims != nil {
		p.Claims(claims)
	}
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	body, err := json.Marshal(claims)
	if err != nil {
		p.t.Error(err)
	}
	token := p.Sign(jose.RS256, p.Key, body)
	if p.Token != nil {
		token = p.Token(body)
	}
	p.write(w, map[string]any{"access_token": "a-1", "token_type": "Bearer", "expires_in": 60, "id_token": token})
}

// Sign makes a JWT.
func (p *IDP) Sign(algorithm jose.SignatureAlgorithm, key any, claims []byte) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		p.t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// Asked returns the query of the last authorization.
func (p *IDP) Asked() url.Values {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// Visit follows the address that a browser was sent to, and returns what it
// comes back with.
func (p *IDP) Visit(t testing.TB, address string) url.Values {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	back, err := url.Parse(response.Header.Get("Location"))
	if err != nil || response.StatusCode != http.StatusFound {
		t.Fatalf("the provider answers %d, %v", response.StatusCode, err)
	}
	return back.Query()
}
