package localnhi_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
)

// request is a PKCS #10 request with a fresh key.
func request(t testing.TB, template *x509.CertificateRequest) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return requestFor(t, template, key), key
}

func requestFor(t testing.TB, template *x509.CertificateRequest, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// svid issues an X.509-SVID and reads it with go-spiffe.
func svid(t testing.TB, a *localnhi.Authority, id creto.ID) *x509svid.SVID {
	t.Helper()
	csr, key := request(t, &x509.CertificateRequest{})
	leaf, err := a.IssueX509SVID(t.Context(), id, csr)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := x509svid.Parse(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bundle is the authority's, as go-spiffe has it.
func bundle(t testing.TB, a *localnhi.Authority) *spiffebundle.Bundle {
	t.Helper()
	b, err := a.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	trusted := spiffebundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("test.local"), b.X509)
	for _, k := range b.JWT {
		if err := trusted.AddJWTAuthority(k.KeyID, k.Key); err != nil {
			t.Fatal(err)
		}
	}
	return trusted
}

func TestX509SVID(t *testing.T) {
	a, clock, bot := withBot(t)
	worker := a.ID(creto.KindWorkload, "worker")
	if err := a.AddMember(t.Context(), worker); err != nil {
		t.Fatal(err)
	}
	now := clockTime(t, clock)
	trusted := bundle(t, a)
	for _, id := range []creto.ID{bot, worker} {
		s := svid(t, a, id)
		got, _, err := x509svid.Verify(s.Certificates, trusted.X509Bundle(), x509svid.WithTime(now))
		if err != nil || got.String() != id.String() {
			t.Errorf("Verify of the SVID of %s = %s, %v", id, got, err)
		}
		leaf := s.Certificates[0]
		if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || !leaf.BasicConstraintsValid || len(leaf.URIs) != 1 || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 {
			t.Errorf("the SVID is %+v", leaf)
		}
		if life := leaf.NotAfter.Sub(now); life > localnhi.MaxX509SVIDTTL || life < 59*time.Minute {
			t.Errorf("the SVID lives %v", life)
		}
		if _, _, err := x509svid.Verify(s.Certificates, trusted.X509Bundle(), x509svid.WithTime(now.Add(localnhi.MaxX509SVIDTTL+time.Second))); err == nil {
			t.Error("the SVID verifies after its end")
		}
	}
	ca := trusted.X509Authorities()[0]
	if !ca.IsCA || ca.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || !ca.MaxPathLenZero || len(ca.URIs) != 1 || ca.URIs[0].String() != "spiffe://test.local" {
		t.Errorf("the certificate authority is %+v", ca)
	}
	// Another authority of the same name is another authority.
	other, _, otherBot := withBot(t)
	if _, _, err := x509svid.Verify(svid(t, other, otherBot).Certificates, trusted.X509Bundle(), x509svid.WithTime(now)); err == nil {
		t.Error("the SVID of another authority verifies")
	}
}

// TestX509SVIDRequests: only a key is taken over, and only a strong one that its
// holder has.
func TestX509SVIDRequests(t *testing.T) {
	a, _, bot := withBot(t)
	uri := func(text string) *url.URL {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	strong, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good, _ := request(t, &x509.CertificateRequest{URIs: []*url.URL{uri(bot.String())}})
	unsigned := append([]byte(nil), good...)
	unsigned[len(unsigned)-1] ^= 1
	for name, csr := range map[string][]byte{
		"nothing":                 nil,
		"garbage":                 []byte("x"),
		"a signature not its own": unsigned,
		"another name":            requestFor(t, &x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://test.local/default/agent/boss")}}, strong),
		"two names":               requestFor(t, &x509.CertificateRequest{URIs: []*url.URL{uri(bot.String()), uri("spiffe://test.local/default/agent/boss")}}, strong),
		"a DNS name":              requestFor(t, &x509.CertificateRequest{DNSNames: []string{"localhost"}}, strong),
		"an IP address":           requestFor(t, &x509.CertificateRequest{IPAddresses: []net.IP{{127, 0, 0, 1}}}, strong),
		"1024 bits of RSA":        requestFor(t, &x509.CertificateRequest{}, weak),
		"P-521":                   requestFor(t, &x509.CertificateRequest{}, p521),
	} {
		if leaf, err := a.IssueX509SVID(t.Context(), bot, csr); !errors.Is(err, fault.InvalidArgument) || leaf != nil {
			t.Errorf("IssueX509SVID for a request with %s = %v, want InvalidArgument", name, err)
		}
	}
	for name, csr := range map[string][]byte{
		"its own name": good, "Ed25519": requestFor(t, &x509.CertificateRequest{}, edwards), "2048 bits of RSA": requestFor(t, &x509.CertificateRequest{}, strong),
	} {
		if _, err := a.IssueX509SVID(t.Context(), bot, csr); err != nil {
			t.Errorf("IssueX509SVID for a request with %s = %v", name, err)
		}
	}
}

// TestSVIDAuthority: no authority, no SVID; and none beyond the authority's end.
func TestSVIDAuthority(t *testing.T) {
	a, clock, bot := withBot(t)
	csr, _ := request(t, &x509.CertificateRequest{})
	alone := a.ID(creto.KindAgent, "alone")
	if err := a.AddAgent(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	both := func(id creto.ID) error {
		_, err := a.IssueX509SVID(t.Context(), id, csr)
		_, _, err2 := a.IssueJWTSVID(t.Context(), id, localnhi.JWTSVIDRequest{Audience: "x"})
		if (err == nil) != (err2 == nil) || err != nil && fault.CodeOf(err) != fault.CodeOf(err2) {
			t.Errorf("of %s: IssueX509SVID = %v, but IssueJWTSVID = %v", id, err, err2)
		}
		return err
	}
	for name, test := range map[string]struct {
		id   creto.ID
		want fault.Code
	}{
		"an agent without delegation":      {alone, fault.NHINotFound},
		"an unknown agent":                 {a.ID(creto.KindAgent, "nobody"), fault.NHINotFound},
		"an unknown workload":              {a.ID(creto.KindWorkload, "nobody"), fault.NHINotFound},
		"a human":                          {a.ID(creto.KindHuman, "alice"), fault.InvalidArgument},
		"nobody":                           {creto.ID{}, fault.InvalidArgument},
		"an agent of another tenant":       {a.IDOf("other", creto.KindAgent, "bot"), fault.NHINotFound},
		"an agent of another trust domain": {creto.ID{TrustDomain: "evil.test", Tenant: bot.Tenant, Kind: creto.KindAgent, Name: "bot"}, fault.NHINotFound},
	} {
		if err := both(test.id); !errors.Is(err, test.want) {
			t.Errorf("an SVID for %s = %v, want %v", name, err, test.want)
		}
	}
	for name, r := range map[string]localnhi.JWTSVIDRequest{"no audience": {}, "a bad one": {Audience: "a b"}, "a bad key": {Audience: "x", Confirmation: nhi.Confirmation{JKT: "x"}}} {
		if _, _, err := a.IssueJWTSVID(t.Context(), bot, r); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("IssueJWTSVID with %s = %v, want InvalidArgument", name, err)
		}
	}
	// The delegation ends in an hour, so in 57 minutes it is the bound.
	end := clockTime(t, clock).Add(time.Hour)
	clock.Advance(57 * time.Minute)
	leaf, err := a.IssueX509SVID(t.Context(), bot, csr)
	if err != nil || leaf.NotAfter.After(end) {
		t.Errorf("the SVID ends %v, %v; the delegation %v", leaf.NotAfter, err, end)
	}
	if _, expires, err := a.IssueJWTSVID(t.Context(), bot, localnhi.JWTSVIDRequest{Audience: "x"}); err != nil || expires.After(end) {
		t.Errorf("the JWT-SVID ends %v, %v; the delegation %v", expires, err, end)
	}
	clock.Advance(4 * time.Minute)
	if err := both(bot); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("an SVID after the delegation ended = %v, want NHIDelegationVerificationFailed", err)
	}
	// Revocation of the human ends the agents below.
	next := a.ID(creto.KindAgent, "next")
	if err := errors.Join(a.AddAgent(t.Context(), next), delegate(t, a, a.ID(creto.KindHuman, "alice"), next, nhi.Everything()), both(next)); err != nil {
		t.Fatal(err)
	}
	if err := a.Revoke(t.Context(), a.ID(creto.KindHuman, "alice")); err != nil {
		t.Fatal(err)
	}
	if err := both(next); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("an SVID after its human was revoked = %v, want NHIDelegationVerificationFailed", err)
	}
}

// TestSVIDConnection: two holders talk over mutual TLS, as go-spiffe builds it,
// and none of them to an outsider.
func TestSVIDConnection(t *testing.T) {
	a, clock, bot := withBot(t)
	clock.Set(time.Now()) // TLS looks at the clock itself
	peer := a.ID(creto.KindAgent, "peer")
	alice := a.ID(creto.KindHuman, "alice")
	if err := errors.Join(a.AddAgent(t.Context(), peer), delegate(t, a, alice, peer, nhi.Everything()), delegate(t, a, alice, bot, nhi.Everything())); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Rotate(t.Context(), "platform", localnhi.RoleCA); err != nil { // one of this clock's time
		t.Fatal(err)
	}
	trusted := bundle(t, a)
	botID, peerID := spiffeid.RequireFromString(bot.String()), spiffeid.RequireFromString(peer.String())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	server := tlsconfig.MTLSServerConfig(svid(t, a, peer), trusted, tlsconfig.AuthorizeID(botID))
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(tls.Server(conn, server), "hello")
			_ = conn.Close()
		}
	}()
	hear := func(config *tls.Config) (string, error) {
		conn, err := tls.Dial("tcp", listener.Addr().String(), config)
		if err != nil {
			return "", err
		}
		defer func() { _ = conn.Close() }()
		text, err := io.ReadAll(io.LimitReader(conn, 5))
		return string(text), err
	}
	mine := svid(t, a, bot)
	if text, err := hear(tlsconfig.MTLSClientConfig(mine, trusted, tlsconfig.AuthorizeID(peerID))); text != "hello" || err != nil {
		t.Errorf("between holders: %q, %v", text, err)
	}
	other, otherClock, otherBot := withBot(t)
	otherClock.Set(time.Now())
	otherAlice := other.ID(creto.KindHuman, "alice")
	if err := delegate(t, other, otherAlice, otherBot, nhi.Everything()); err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]*tls.Config{
		"a client without an SVID":            tlsconfig.TLSClientConfig(trusted, tlsconfig.AuthorizeID(peerID)),
		"a client with another's SVID":        tlsconfig.MTLSClientConfig(svid(t, a, peer), trusted, tlsconfig.AuthorizeID(peerID)),
		"a client of another authority":       tlsconfig.MTLSClientConfig(svid(t, other, otherBot), trusted, tlsconfig.AuthorizeID(peerID)),
		"a client that wants another server":  tlsconfig.MTLSClientConfig(mine, trusted, tlsconfig.AuthorizeID(botID)),
		"a client that trusts another bundle": tlsconfig.MTLSClientConfig(mine, bundle(t, other), tlsconfig.AuthorizeID(peerID)),
	} {
		if text, err := hear(config); text != "" || err == nil {
			t.Errorf("%s hears %q, %v", name, text, err)
		}
	}
	_ = listener.Close()
	<-served
}

// TestCARotation: the certificate authority is replaced by itself, in time, and
// what the last one signed verifies until it ends.
func TestCARotation(t *testing.T) {
	a, clock, _ := open(t)
	worker := a.ID(creto.KindWorkload, "worker")
	if err := a.AddMember(t.Context(), worker); err != nil {
		t.Fatal(err)
	}
	first := bundle(t, a).X509Authorities()
	verify := func(s *x509svid.SVID, by x509bundle.Source) error {
		_, _, err := x509svid.Verify(s.Certificates, by, x509svid.WithTime(clockTime(t, clock)))
		return err
	}
	clock.Advance(89 * 24 * time.Hour)
	old := svid(t, a, worker)
	if got := bundle(t, a).X509Authorities(); len(got) != 1 || !got[0].Equal(first[0]) {
		t.Errorf("after 89 days there are %d authorities", len(got))
	}
	clock.Advance(59 * time.Minute)
	if _, err := a.Rotate(t.Context(), "platform", localnhi.RoleCA); err != nil {
		t.Fatal(err)
	}
	next := svid(t, a, worker)
	trusted := bundle(t, a)
	if err := errors.Join(verify(old, trusted), verify(next, trusted)); err != nil || len(trusted.X509Authorities()) != 2 {
		t.Errorf("during the overlap: %v", err)
	}
	if err := verify(next, x509bundle.FromX509Authorities(trusted.TrustDomain(), first)); err == nil {
		t.Error("the old authority vouches for what the new one signed")
	}
	clock.Advance(90*24*time.Hour + time.Minute)
	_ = svid(t, a, worker)
	if got := bundle(t, a).X509Authorities(); len(got) != 2 || got[0].Equal(trusted.X509Authorities()[0]) || !got[1].Equal(trusted.X509Authorities()[0]) {
		t.Errorf("after half its life the authority was not replaced: %d authorities", len(got))
	}
}

func TestJWTSVID(t *testing.T) {
	a, clock, bot := withBot(t)
	clock.Set(time.Now()) // go-spiffe looks at the clock itself
	worker := a.ID(creto.KindWorkload, "worker")
	if err := errors.Join(a.AddMember(t.Context(), worker), delegate(t, a, a.ID(creto.KindHuman, "alice"), bot, nhi.Everything())); err != nil {
		t.Fatal(err)
	}
	for _, id := range []creto.ID{bot, worker} {
		token, expires, err := a.IssueJWTSVID(t.Context(), id, localnhi.JWTSVIDRequest{Audience: "spiffe://partner.test/api"})
		if err != nil {
			t.Fatal(err)
		}
		s, err := jwtsvid.ParseAndValidate(token, bundle(t, a), []string{"spiffe://partner.test/api"})
		if err != nil || s.ID.String() != id.String() || !s.Expiry.Equal(expires) || time.Until(expires) > localnhi.MaxJWTSVIDTTL {
			t.Errorf("ParseAndValidate = %+v, %v", s, err)
		}
		if header, _ := parts(t, token); header["alg"] != "ES256" || header["typ"] != "JWT" {
			t.Errorf("the header is %v", header)
		}
		if _, err := jwtsvid.ParseAndValidate(token, bundle(t, a), []string{"other"}); err == nil {
			t.Error("the JWT-SVID verifies for another audience")
		}
		if _, err := jwtsvid.ParseAndValidate(token[:strings.LastIndex(token, ".")+1], bundle(t, a), []string{"spiffe://partner.test/api"}); err == nil {
			t.Error("the JWT-SVID verifies without its signature")
		}
	}
}
