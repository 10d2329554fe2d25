// Package wiretest puts a service behind a wire for tests, so that a contract's
// suite runs against its client: in memory with [InMemory], and over TCP with
// mutual TLS with [OverTLS].
package wiretest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"creto.dev"
	"creto.dev/internal/wire"
)

// pipeBytes is how much one side of a connection in memory holds for the other.
const pipeBytes = 1 << 20

// InMemory serves what register registers and returns a connection to it that
// never leaves the process. Both end with the test.
func InMemory(t testing.TB, register func(grpc.ServiceRegistrar)) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(pipeBytes)
	Serve(t, l, wire.ServerConfig{}, register)
	return Dial(t, wire.Config{Connect: func(ctx context.Context) (net.Conn, error) { return l.DialContext(ctx) }})
}

// OverTLS serves what register registers over TCP with mutual TLS and returns a
// connection to it. Both end with the test.
func OverTLS(t testing.TB, register func(grpc.ServiceRegistrar)) *grpc.ClientConn {
	t.Helper()
	ca := NewCA(t)
	server, client := ID("server"), ID("client")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	Serve(t, l, wire.ServerConfig{Credentials: wire.ServerCredentials(ca.Source(t, server))}, register)
	return Dial(t, wire.Config{Address: l.Addr().String(), Source: ca.Source(t, client), Peer: server})
}

// ID returns the id of a workload of the tests' trust domain.
func ID(name string) creto.ID {
	return creto.ID{TrustDomain: "test.local", Tenant: creto.DefaultTenant, Kind: creto.KindWorkload, Name: name}
}

// Serve serves on l until the test ends. A Log of nil is silent.
func Serve(t testing.TB, l net.Listener, c wire.ServerConfig, register func(grpc.ServiceRegistrar)) *grpc.Server {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	server := grpc.NewServer(wire.ServerOptions(c)...)
	register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	return server
}

// Dial is wire.Dial; the connection ends with the test.
func Dial(t testing.TB, c wire.Config) *grpc.ClientConn {
	t.Helper()
	conn, err := wire.Dial(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// CA makes certificates of a trust domain for tests.
type CA struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	serial      *atomic.Int64
}

// validity is how long a test's certificate lasts.
const validity = time.Hour

// NewCA makes one.
func NewCA(t testing.TB) CA {
	t.Helper()
	ca := CA{serial: new(atomic.Int64)}
	template := ca.template(pkix.Name{CommonName: "test root"})
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	ca.key = newKey(t)
	ca.certificate = sign(t, template, template, ca.key, ca.key)
	return ca
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (ca CA) template(name pkix.Name) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(ca.serial.Add(1)), Subject: name, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(validity),
	}
}

func sign(t testing.TB, template, parent *x509.Certificate, subject, issuer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &subject.PublicKey, issuer)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// Issue makes a certificate that edit, if any, has changed: for the id, for
// localhost and 127.0.0.1, as client and as server.
func (ca CA) Issue(t testing.TB, id creto.ID, edit func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template := ca.template(pkix.Name{CommonName: id.Name})
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.DNSNames, template.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	if uri, err := url.Parse(id.String()); err == nil && !id.IsZero() {
		template.URIs = []*url.URL{uri}
	}
	if edit != nil {
		edit(template)
	}
	key := newKey(t)
	leaf := sign(t, template, ca.certificate, key, ca.key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// Roots trust ca.
func (ca CA) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.certificate)
	return pool
}

// Certificate returns the root's own.
func (ca CA) Certificate() *x509.Certificate { return ca.certificate }

// Source gives a certificate for id, and trust in ca.
func (ca CA) Source(t testing.TB, id creto.ID) wire.Source {
	t.Helper()
	c := wire.Credentials{Certificate: ca.Issue(t, id, nil), Roots: ca.Roots()}
	return func() (wire.Credentials, error) { return c, nil }
}
