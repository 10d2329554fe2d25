package node_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/internal/wire/wiretest"
	"creto.dev/nhi/nhitest"
)

// caller sends requests to a node, as programs do.
type caller struct {
	origin string
	http   *http.Client
}

// call sends a request and returns its status, headers and body.
func (c caller) call(t *testing.T, method, path string, body io.Reader, headers ...string) (int, http.Header, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, c.origin+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	response, err := c.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, text
}

func (c caller) post(t *testing.T, path string, f url.Values, headers ...string) (int, map[string]any) {
	t.Helper()
	status, _, body := c.call(t, "POST", path, strings.NewReader(f.Encode()), append(headers, "Content-Type", "application/x-www-form-urlencoded")...)
	var out map[string]any
	if len(body) > 0 {
		if err := json.Unmarshal(body, &out); err != nil {
			t.Fatalf("%s answers %q", path, body)
		}
	}
	return status, out
}

// exchange of token; pairs are further parameters.
func exchange(token string, pairs ...string) url.Values {
	f := url.Values{
		"grant_type":         {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token":      {token},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
	}
	for i := 0; i < len(pairs); i += 2 {
		f.Set(pairs[i], pairs[i+1])
	}
	return f
}

// TestTokens: a program binds its token to a key, and comes through a door with
// proofs of it alone; others verify what the node signs, at a port that the
// system chose, before and after a restart.
func TestTokens(t *testing.T) {
	o := options(t, t.TempDir())
	_, c, stop := running(t, o)
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	over := caller{origin: strings.TrimSuffix(status.Console, "/console"), http: &http.Client{}}
	if _, err := c.AddAgent(t.Context(), client.NewAgent{Name: "bob"}); err != nil {
		t.Fatal(err)
	}
	first, err := c.Token(t.Context(), "bob", client.NewToken{})
	if err != nil {
		t.Fatal(err)
	}

	p := nhitest.NewProver(t, "ES256")
	proof := func(p nhitest.Prover, method, path, token string) string {
		claims := p.Claims(method, over.origin+path, token, time.Now())
		if token == "" {
			delete(claims, "ath")
		}
		return p.Prove(t, "dpop+jwt", claims)
	}
	code, answer := over.post(t, "/oauth/token", exchange(first.Token), "DPoP", proof(p, "POST", "/oauth/token", ""))
	bound, _ := answer["access_token"].(string)
	if code != http.StatusOK || bound == "" || answer["token_type"] != "DPoP" {
		t.Fatalf("the exchange answers %d %v", code, answer)
	}
	const door = "/v1/models"
	used := proof(p, "GET", door, bound)
	for _, test := range []struct {
		name    string
		want    int
		headers []string
	}{
		{"a proof", 200, []string{"Authorization", "DPoP " + bound, "DPoP", used}},
		{"the same proof again", 401, []string{"Authorization", "DPoP " + bound, "DPoP", used}},
		{"another proof", 200, []string{"Authorization", "DPoP " + bound, "DPoP", proof(p, "GET", door, bound)}},
		{"no proof", 401, []string{"Authorization", "DPoP " + bound}},
		{"no proof, as a bearer token", 401, []string{"Authorization", "Bearer " + bound}},
		{"no proof, as an API key", 401, []string{"X-Api-Key", bound}},
		{"a proof, but as a bearer token", 401, []string{"Authorization", "Bearer " + bound, "DPoP", proof(p, "GET", door, bound)}},
		{"a thief's proof", 401, []string{"Authorization", "DPoP " + bound, "DPoP", proof(nhitest.NewProver(t, "ES256"), "GET", door, bound)}},
		{"a proof for another door", 401, []string{"Authorization", "DPoP " + bound, "DPoP", proof(p, "GET", "/v1/chat/completions", bound)}},
		{"a proof for another method", 401, []string{"Authorization", "DPoP " + bound, "DPoP", proof(p, "POST", door, bound)}},
		{"a proof for another token", 401, []string{"Authorization", "DPoP " + bound, "DPoP", proof(p, "GET", door, first.Token)}},
		{"a proof without a token", 401, []string{"Authorization", "DPoP " + bound, "DPoP", proof(p, "GET", door, "")}},
		{"two proofs", 401, []string{"Authorization", "DPoP " + bound, "DPoP", proof(p, "GET", door, bound), "DPoP", proof(p, "GET", door, bound)}},
		{"the unbound token", 200, []string{"Authorization", "Bearer " + first.Token}},
		{"no token", 401, nil},
		{"garbage", 401, []string{"Authorization", "Bearer x.y.z"}},
	} {
		status, header, body := over.call(t, "GET", door, nil, test.headers...)
		if status != test.want {
			t.Errorf("a request with %s is answered %d %s, want %d", test.name, status, body, test.want)
		}
		if want := []string{"Bearer", `DPoP algs="ES256 EdDSA"`}; status == 401 && !slices.Equal(header.Values("WWW-Authenticate"), want) {
			t.Errorf("a request with %s is answered with headers %v", test.name, header)
		}
	}

	// For somebody else it is none of ours, and they can verify it.
	code, answer = over.post(t, "/oauth/token", exchange(first.Token, "audience", "https://partner.example"))
	theirs, _ := answer["access_token"].(string)
	if code != http.StatusOK {
		t.Fatalf("the exchange answers %d %v", code, answer)
	}
	if status, _, body := over.call(t, "GET", door, nil, "Authorization", "Bearer "+theirs); status != 401 {
		t.Errorf("a token for another audience is answered %d %s", status, body)
	}
	verify := func() error {
		provider, err := oidc.NewProvider(t.Context(), over.origin)
		if err != nil {
			return err
		}
		_, err = provider.Verifier(&oidc.Config{ClientID: "https://partner.example"}).Verify(t.Context(), theirs)
		return err
	}
	if err := verify(); err != nil {
		t.Errorf("an OIDC library says of it: %v", err)
	}

	// The socket's owner may ask about tokens, over TCP a session may.
	socket := caller{origin: "http://creto", http: &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(o.DataDir, client.SocketName))
	}}}}
	defer socket.http.CloseIdleConnections()
	if code, answer := socket.post(t, "/oauth/introspect", url.Values{"token": {theirs}}); code != 200 || answer["active"] != true {
		t.Errorf("introspection over the socket answers %d %v", code, answer)
	}
	session, err := c.Session(t.Context(), "admin")
	if err != nil {
		t.Fatal(err)
	}
	if code, answer := over.post(t, "/oauth/introspect", url.Values{"token": {theirs}}, "Authorization", "Bearer "+session.Token); code != 200 || answer["active"] != true {
		t.Errorf("introspection by an administrator answers %d %v", code, answer)
	}
	for _, authorization := range []string{"", "Bearer " + first.Token, "Bearer x"} {
		if code, answer := over.post(t, "/oauth/introspect", url.Values{"token": {theirs}}, "Authorization", authorization); code != 401 || answer["active"] != nil {
			t.Errorf("introspection by %.20q answers %d %v", authorization, code, answer)
		}
	}

	// What was revoked is worth nothing at once.
	if code, answer := over.post(t, "/oauth/revoke", url.Values{"token": {bound}}); code != 200 {
		t.Errorf("the revocation answers %d %v", code, answer)
	}
	if status, _, _ := over.call(t, "GET", door, nil, "Authorization", "DPoP "+bound, "DPoP", proof(p, "GET", door, bound)); status != 401 {
		t.Errorf("a revoked token is answered %d", status)
	}

	// A JWT-SVID, and the same bundle in the next life.
	jwtSVID, err := c.JWTSVID(t.Context(), client.NewSVID{Name: "bob", Audience: "https://partner.example"})
	if err != nil {
		t.Fatal(err)
	}
	svid := func() (*spiffebundle.Bundle, error) {
		_, _, body := over.call(t, "GET", "/spiffe/bundle", nil)
		bundle, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(status.TrustDomain), body)
		if err != nil {
			return nil, err
		}
		_, err = jwtsvid.ParseAndValidate(jwtSVID.Token, bundle, []string{"https://partner.example"})
		return bundle, err
	}
	before, err := svid()
	if err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]int{"token_issued": 4, "token_revoked": 1} {
		if got := count(t, c, what); got != want {
			t.Errorf("%d records of %s, want %d", got, what, want)
		}
	}
	c.Close()
	over.http.CloseIdleConnections()
	stop()

	o.Config.Server.Listen = strings.TrimPrefix(over.origin, "http://")
	_, c, stop = running(t, o)
	defer stop()
	defer c.Close()
	defer over.http.CloseIdleConnections()
	if err := verify(); err != nil {
		t.Errorf("after a restart an OIDC library says: %v", err)
	}
	if after, err := svid(); err != nil || !after.Equal(before) {
		t.Errorf("after a restart the bundle is another one, %v", err)
	}
	if status, _, body := over.call(t, "GET", door, nil, "Authorization", "DPoP "+bound, "DPoP", proof(p, "GET", door, bound)); status != 401 {
		t.Errorf("after a restart a revoked token is answered %d %s", status, body)
	}
	if status, _, body := over.call(t, "GET", door, nil, "Authorization", "Bearer "+first.Token); status != 200 {
		t.Errorf("after a restart a token is answered %d %s", status, body)
	}
}

// TestCertificateBound: over the node's own TLS port, a token is bound to the
// certificate of the connection that asks for it, and opens a door over a
// connection with that certificate alone.
func TestCertificateBound(t *testing.T) {
	ca, dir := wiretest.NewCA(t), t.TempDir()
	member := func(kind creto.Kind, name string) creto.ID {
		return creto.ID{TrustDomain: "creto.local", Tenant: creto.DefaultTenant, Kind: kind, Name: name}
	}
	o := options(t, t.TempDir())
	o.Config.TLS = writePEM(t, dir, ca.Issue(t, member(creto.KindWorkload, "this-node"), nil))
	o.Config.TLS.ClientCA = filepath.Join(dir, "ca.pem")
	writeRoot(t, o.Config.TLS.ClientCA, ca)
	_, c, stop := running(t, o)
	defer stop()
	defer c.Close()
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddAgent(t.Context(), client.NewAgent{Name: "bob"}); err != nil {
		t.Fatal(err)
	}
	first, err := c.Token(t.Context(), "bob", client.NewToken{})
	if err != nil {
		t.Fatal(err)
	}
	with := func(certificates ...tls.Certificate) caller {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Roots(), Certificates: certificates, NextProtos: []string{"http/1.1"}}}
		t.Cleanup(transport.CloseIdleConnections)
		return caller{origin: "https://" + status.Listen, http: &http.Client{Transport: transport}}
	}
	bob := member(creto.KindAgent, "bob")
	holder, thief, nobody := with(ca.Issue(t, bob, nil)), with(ca.Issue(t, bob, nil)), with()
	code, answer := holder.post(t, "/oauth/token", exchange(first.Token))
	bound, _ := answer["access_token"].(string)
	if code != 200 || answer["token_type"] != "Bearer" || bound == "" {
		t.Fatalf("the exchange answers %d %v", code, answer)
	}
	for _, test := range []struct {
		name   string
		caller caller
		token  string
		want   int
	}{
		{"the certificate", holder, bound, 200}, {"another certificate of the same agent", thief, bound, 401}, {"no certificate", nobody, bound, 401},
		{"the certificate again", holder, bound, 200}, {"no certificate, and the unbound token", nobody, first.Token, 200},
	} {
		if status, _, body := test.caller.call(t, "GET", "/v1/models", nil, "Authorization", "Bearer "+test.token); status != test.want {
			t.Errorf("with %s the door answers %d %s, want %d", test.name, status, body, test.want)
		}
		if test.token != bound {
			continue
		}
		want := map[int]int{200: 200, 401: 400}[test.want]
		if code, answer := test.caller.post(t, "/oauth/token", exchange(bound)); code != want {
			t.Errorf("with %s the exchange answers %d %v, want %d", test.name, code, answer, want)
		}
	}
	// The issuer is where the node is found, by https.
	_, _, body := nobody.call(t, "GET", "/.well-known/oauth-authorization-server", nil)
	var metadata map[string]any
	if err := json.Unmarshal(body, &metadata); err != nil || metadata["issuer"] != strings.TrimSuffix(status.Console, "/console") ||
		!strings.HasPrefix(status.Console, "https://") || metadata["tls_client_certificate_bound_access_tokens"] != true {
		t.Errorf("the metadata is %s, %v; the console %s", body, err, status.Console)
	}
}

// csr is a PKCS #10 request with a fresh key.
func csr(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestSVIDs: administrators issue SVIDs over the API for who has authority.
func TestSVIDs(t *testing.T) {
	_, c, stop := running(t, options(t, t.TempDir()))
	defer stop()
	defer c.Close()
	if _, err := c.AddAgent(t.Context(), client.NewAgent{Name: "bob"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddApprover(t.Context(), "worker", nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []client.NewSVID{{Name: "bob", Request: csr(t)}, {Name: "worker", Workload: true, Request: csr(t)}} {
		svid, err := c.X509SVID(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		block, rest := pem.Decode([]byte(svid.Certificate))
		if id, err := creto.ParseID(svid.ID); err != nil || id.Name != want.Name || block == nil || len(rest) > 0 || svid.Bundle == "" || time.Until(svid.Expires) > time.Hour {
			t.Errorf("X509SVID = %+v", svid)
		}
	}
	for _, want := range []client.NewSVID{{Name: "worker", Request: csr(t), Audience: "x"}, {Name: "bob", Workload: true, Request: csr(t), Audience: "x"}} {
		if _, err := c.X509SVID(t.Context(), want); !errors.Is(err, fault.NHINotFound) {
			t.Errorf("X509SVID of %+v = %v, want NHINotFound", want, err)
		}
		if _, err := c.JWTSVID(t.Context(), want); !errors.Is(err, fault.NHINotFound) {
			t.Errorf("JWTSVID of %+v = %v, want NHINotFound", want, err)
		}
	}
	if got := count(t, c, "svid_issued"); got != 2 {
		t.Errorf("%d records of svid_issued, want 2", got)
	}
}
