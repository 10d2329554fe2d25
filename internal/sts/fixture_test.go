package sts_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	"creto.dev/internal/sts"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

const (
	exchangeGrant = "urn:ietf:params:oauth:grant-type:token-exchange"
	accessToken   = "urn:ietf:params:oauth:token-type:access_token"
	jwtType       = "urn:ietf:params:oauth:token-type:jwt"
	partner       = "https://partner.example"
	adminSession  = "Bearer admins-session"
)

// unused are the methods of an audit.Log that the service does not call.
type unused interface{ audit.Log }

// recorder is an audit.Log that keeps what it is given, or fails.
type recorder struct {
	unused

	mu      sync.Mutex // guards what follows
	records []audit.Record
	err     error
}

func (r *recorder) Log(_ context.Context, record audit.Record) (audit.RecordID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return audit.RecordID{}, r.err
	}
	r.records = append(r.records, record)
	return creto.NewUUID(), nil
}

func (r *recorder) of(what string) []audit.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.records), func(x audit.Record) bool { return x.What != what })
}

// world is an authority with an agent, served over TLS.
type world struct {
	*localnhi.Authority
	clock     *consensustest.Manual
	log       *recorder
	service   *sts.Service
	server    *httptest.Server
	client    *http.Client
	closeDB   func() error
	alice     creto.ID
	bot       creto.ID
	delegated time.Duration
}

// now is the real one: other people's verifiers look at their own clock.
func newWorld(t testing.TB, tenant string) *world {
	t.Helper()
	d := dbtest.Open(t)
	p := localpqc.New()
	kek, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{clock: &consensustest.Manual{}, log: &recorder{}, closeDB: d.Close, delegated: 24 * time.Hour}
	w.clock.Set(time.Now())
	w.server = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.service.Handler().ServeHTTP(rw, r) }))
	w.server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	w.server.StartTLS()
	t.Cleanup(w.server.Close)
	w.client = w.server.Client()
	w.Authority, err = localnhi.Open(t.Context(), localnhi.Config{TrustDomain: "test.local", Tenant: tenant, Issuer: w.server.URL}, d, p, w.clock, kek)
	if err != nil {
		t.Fatal(err)
	}
	w.service = sts.New(sts.Parts{Authority: w.Authority, Clock: w.clock, Log: w.log, Administrator: func(r *http.Request) (creto.ID, error) {
		switch r.Header.Get("Authorization") {
		case adminSession:
			return w.alice, nil
		case "Bearer bobs-session":
			return creto.ID{}, fault.New("test", fault.PermissionDenied, "bob is no administrator")
		}
		return creto.ID{}, fault.New("test", fault.Unauthenticated, "log in")
	}})
	w.alice, w.bot = w.ID(creto.KindHuman, "alice"), w.ID(creto.KindAgent, "bot")
	if err := errors.Join(w.AddMember(t.Context(), w.alice), w.AddAgent(t.Context(), w.bot)); err != nil {
		t.Fatal(err)
	}
	w.delegate(t, w.alice, w.bot)
	return w
}

func (w *world) delegate(t testing.TB, issuer, agent creto.ID) {
	t.Helper()
	link, err := w.Draft(t.Context(), issuer, agent, nhi.Grant{Scope: nhi.Everything(), TTL: w.delegated, MaxDepth: nhi.DefaultMaxDepth})
	if err != nil {
		t.Fatal(err)
	}
	var proof nhi.Proof
	if issuer.Kind == creto.KindHuman {
		proof.Kind = nhi.ProofBootstrap
	}
	if _, err := w.Delegate(t.Context(), link, proof); err != nil {
		t.Fatal(err)
	}
}

// agent adds one that acts for another agent.
func (w *world) agent(t testing.TB, name string, issuer creto.ID) creto.ID {
	t.Helper()
	id := w.ID(creto.KindAgent, name)
	if err := w.AddAgent(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	w.delegate(t, issuer, id)
	return id
}

func (w *world) now() time.Time { stamp, _ := w.clock.Now(context.Background()); return stamp.Time() }

func (w *world) issue(t testing.TB, r localnhi.TokenRequest) string {
	t.Helper()
	token, _, err := w.IssueToken(t.Context(), w.bot, r)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// answer is what an endpoint said.
type answer struct {
	status int
	header http.Header
	body   []byte
	Token  string `json:"access_token"`
	Issued string `json:"issued_token_type"`
	Type   string `json:"token_type"`
	Ends   int64  `json:"expires_in"`
	Code   string `json:"error"`
	Why    string `json:"error_description"`
}

// post sends a form; edits change the request before it goes.
func (w *world) post(t testing.TB, client *http.Client, path string, f url.Values, edits ...func(*http.Request)) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", w.server.URL+path, strings.NewReader(f.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for _, edit := range edits {
		edit(r)
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	a := answer{status: response.StatusCode, header: response.Header}
	if a.body, err = io.ReadAll(response.Body); err != nil {
		t.Fatal(err)
	}
	if len(bytes.TrimSpace(a.body)) > 0 {
		if err := json.Unmarshal(a.body, &a); err != nil {
			t.Fatalf("%s answers %q: %v", path, a.body, err)
		}
	}
	return a
}

// form is an exchange of token; pairs are further parameters.
func form(token string, pairs ...string) url.Values {
	f := url.Values{"grant_type": {exchangeGrant}, "subject_token": {token}, "subject_token_type": {accessToken}}
	for i := 0; i < len(pairs); i += 2 {
		f.Add(pairs[i], pairs[i+1])
	}
	return f
}

// exchange must succeed.
func (w *world) exchange(t testing.TB, client *http.Client, f url.Values, edits ...func(*http.Request)) answer {
	t.Helper()
	a := w.post(t, client, sts.TokenPath, f, edits...)
	if a.status != http.StatusOK || a.Token == "" {
		t.Fatalf("the exchange answers %d %s", a.status, a.body)
	}
	return a
}

// proof returns an edit that adds a DPoP proof for the token endpoint.
func (w *world) proof(t testing.TB, p nhitest.Prover) func(*http.Request) {
	return func(r *http.Request) {
		claims := p.Claims(r.Method, w.server.URL+sts.TokenPath, "", w.now())
		delete(claims, "ath") // RFC 9449, section 5: there is no access token yet
		r.Header.Add("DPoP", p.Prove(t, "dpop+jwt", claims))
	}
}

// certified returns a client of w with a fresh certificate.
func (w *world) certified(t testing.TB) (*http.Client, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	transport := w.client.Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}, leaf
}
