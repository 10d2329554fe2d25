package wire_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"creto.dev"
	"creto.dev/fault"
	wiretestv1 "creto.dev/internal/gen/creto/wiretest/v1"
	"creto.dev/internal/wire"
	"creto.dev/internal/wire/wiretest"
)

const patience = 20 * time.Second

// echo answers; its text says who asked, where it is asked for that.
type echo struct {
	wiretestv1.UnimplementedEchoServiceServer
}

func (echo) Echo(ctx context.Context, r *wiretestv1.EchoRequest) (*wiretestv1.EchoResponse, error) {
	out := &wiretestv1.EchoResponse{Text: r.GetText(), Data: r.GetData()}
	switch r.GetText() {
	case "peer":
		if p, ok := peer.FromContext(ctx); ok {
			if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
				id, _ := wire.PeerID(info.State)
				out.Text = id.String()
			}
		}
	case "token":
		md, _ := metadata.FromIncomingContext(ctx)
		out.Text = strings.Join(md.Get("authorization"), ",")
	case "trace":
		out.Text = trace.SpanContextFromContext(ctx).TraceID().String()
	case "big":
		out.Data = make([]byte, wire.DefaultMaxMessageBytes)
	case "fail":
		return nil, fault.New("test.Echo", fault.NHITokenExpired, "too old")
	}
	return out, nil
}

func (echo) Count(r *wiretestv1.CountRequest, s grpc.ServerStreamingServer[wiretestv1.CountResponse]) error {
	for n := range r.GetTo() {
		if err := s.Send(&wiretestv1.CountResponse{N: n}); err != nil {
			return err
		}
	}
	return nil
}

func register(s grpc.ServiceRegistrar) { wiretestv1.RegisterEchoServiceServer(s, echo{}) }

func say(t *testing.T, conn *grpc.ClientConn, text string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := wiretestv1.NewEchoServiceClient(conn).Echo(ctx, &wiretestv1.EchoRequest{Text: text})
	return out.GetText(), err
}

// Both transports of suites carry calls, streams, faults and limits alike.
func TestTransports(t *testing.T) {
	for name, connect := range map[string]func(testing.TB, func(grpc.ServiceRegistrar)) *grpc.ClientConn{
		"in memory": wiretest.InMemory, "over TLS": wiretest.OverTLS,
	} {
		t.Run(name, func(t *testing.T) {
			conn := connect(t, register)
			if got, err := say(t, conn, "hello"); got != "hello" || err != nil {
				t.Errorf("Echo = %q, %v", got, err)
			}
			if _, err := say(t, conn, "fail"); fault.CodeOf(err) != fault.NHITokenExpired || fault.Message(err) != "too old" {
				t.Errorf("a fault arrived as %v", err)
			}
			for _, text := range []string{"big", strings.Repeat("x", wire.DefaultMaxMessageBytes)} {
				if _, err := say(t, conn, text); fault.CodeOf(err) != fault.ResourceExhausted {
					t.Errorf("too large a message: %v", err)
				}
			}
			stream, err := wiretestv1.NewEchoServiceClient(conn).Count(t.Context(), &wiretestv1.CountRequest{To: 1000})
			n := 0
			for err == nil {
				if _, err = stream.Recv(); err == nil {
					n++
				}
			}
			if n != 1000 || !errors.Is(err, io.EOF) {
				t.Errorf("a stream gave %d answers and %v", n, err)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	for _, test := range []struct {
		address string
		want    fault.Code
	}{
		{"127.0.0.1:1", fault.OK}, {"127.9.9.9:1", fault.OK}, {"[::1]:1", fault.OK}, {"[::ffff:127.0.0.1]:1", fault.OK},
		{"localhost:1", fault.OK}, {"LocalHost:1", fault.OK}, {"a.localhost:1", fault.OK}, {"unix:/x", fault.OK},
		{"10.0.0.1:1", fault.InvalidArgument}, {"0.0.0.0:1", fault.InvalidArgument}, {"[::]:1", fault.InvalidArgument},
		{"creto.example:443", fault.InvalidArgument}, {"localhost.example:1", fault.InvalidArgument}, {"notlocalhost:1", fault.InvalidArgument},
		{"", fault.InvalidArgument}, {"localhost", fault.InvalidArgument}, {":1", fault.InvalidArgument}, {"localhost:", fault.InvalidArgument},
		{"unix:", fault.InvalidArgument}, {"dns:///creto.example:1", fault.InvalidArgument}, {"passthrough:///10.0.0.1:1", fault.InvalidArgument},
	} {
		conn, err := wire.Dial(wire.Config{Address: test.address})
		if fault.CodeOf(err) != test.want {
			t.Errorf("Dial(%q) without TLS = %v, want %v", test.address, err, test.want)
		}
		if conn != nil {
			_ = conn.Close()
		}
	}
	source := wiretest.NewCA(t).Source(t, wiretest.ID("a"))
	conn, err := wire.Dial(wire.Config{Address: "creto.example:443", Source: source})
	if err != nil {
		t.Fatalf("Dial with TLS = %v", err)
	}
	_ = conn.Close()
}

func TestUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	wiretest.Serve(t, l, wire.ServerConfig{}, register)
	token := func(context.Context) (creto.Secret, error) { return creto.NewSecret("t0ken"), nil }
	if got, err := say(t, wiretest.Dial(t, wire.Config{Address: "unix:" + path, Token: token}), "token"); got != "Bearer t0ken" || err != nil {
		t.Errorf("Echo = %q, %v", got, err)
	}
	token = func(context.Context) (creto.Secret, error) {
		return creto.Secret{}, fault.New("test", fault.NHIUnavailable, "no token now")
	}
	if _, err := say(t, wiretest.Dial(t, wire.Config{Address: "unix:" + path, Token: token}), "token"); fault.CodeOf(err) != fault.NHIUnavailable {
		t.Errorf("without a token: %v", err)
	}
}

// A server that is not there is unavailable, at once.
func TestNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if _, err := say(t, wiretest.Dial(t, wire.Config{Address: l.Addr().String()}), "x"); fault.CodeOf(err) != fault.Unavailable || strings.Contains(fault.Message(err), "127.0.0.1") {
		t.Errorf("Echo = %v, message %q", err, fault.Message(err))
	}
}

func TestMutualTLS(t *testing.T) {
	ca, other := wiretest.NewCA(t), wiretest.NewCA(t)
	server, client := wiretest.ID("server"), wiretest.ID("client")
	source := func(from wiretest.CA, id creto.ID, trust wiretest.CA, edit func(*x509.Certificate)) wire.Source {
		c := wire.Credentials{Certificate: from.Issue(t, id, edit), Roots: trust.Roots()}
		return func() (wire.Credentials, error) { return c, nil }
	}
	good := func(id creto.ID) wire.Source { return source(ca, id, ca, nil) }
	expired := func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Second) }
	uses := func(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = u }
	}
	for _, test := range []struct {
		name           string
		server, client wire.Source
		peer           creto.ID
		want           string // what the server takes the client for; "" means that the call fails
	}{
		{"both known", good(server), good(client), server, client.String()},
		{"by host", source(ca, creto.ID{}, ca, nil), good(client), creto.ID{}, client.String()},
		{"another host", source(ca, creto.ID{}, ca, func(c *x509.Certificate) { c.IPAddresses = nil }), good(client), creto.ID{}, ""},
		{"another server", good(wiretest.ID("other")), good(client), server, ""},
		{"a server without id", source(ca, creto.ID{}, ca, nil), good(client), server, ""},
		{"a server with two ids", source(ca, server, ca, func(c *x509.Certificate) { c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "x"}) }), good(client), server, ""},
		{"a server of another root", source(other, server, ca, nil), good(client), server, ""},
		{"an expired server", source(ca, server, ca, expired), good(client), server, ""},
		{"a client posing as server", source(ca, server, ca, uses(x509.ExtKeyUsageClientAuth)), good(client), server, ""},
		{"a client of another root", good(server), source(other, client, ca, nil), server, ""},
		{"an expired client", good(server), source(ca, client, ca, expired), server, ""},
		{"a server posing as client", good(server), source(ca, client, ca, uses(x509.ExtKeyUsageServerAuth)), server, ""},
		{"a client without certificate", good(server), func() (wire.Credentials, error) { return wire.Credentials{Roots: ca.Roots()}, nil }, server, ""},
		{"a client without roots", good(server), func() (wire.Credentials, error) {
			return wire.Credentials{Certificate: ca.Issue(t, client, nil)}, nil
		}, server, ""},
		{"a client without source", good(server), func() (wire.Credentials, error) {
			return wire.Credentials{}, fault.New("test", fault.Unavailable, "no")
		}, server, ""},
		{"a server without source", func() (wire.Credentials, error) { return wire.Credentials{}, errors.New("no") }, good(client), server, ""},
		{"a server without roots", func() (wire.Credentials, error) { return wire.Credentials{Certificate: ca.Issue(t, server, nil)}, nil }, good(client), server, ""},
		{"a client of another form of id", good(server), source(ca, client, ca, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "https", Host: "x"}} }), server, "none"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			wiretest.Serve(t, l, wire.ServerConfig{Credentials: wire.ServerCredentials(test.server)}, register)
			conn := wiretest.Dial(t, wire.Config{Address: l.Addr().String(), Source: test.client, Peer: test.peer})
			got, err := say(t, conn, "peer")
			switch {
			case test.want == "" && fault.CodeOf(err) != fault.Unavailable:
				t.Errorf("Echo = %q, %v; want Unavailable", got, err)
			case test.want != "" && (err != nil || got != test.want && test.want != "none" || got != "" && test.want == "none"):
				t.Errorf("Echo = %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

// A client that speaks no TLS gets nothing from a server that does.
func TestPlaintextToTLS(t *testing.T) {
	ca := wiretest.NewCA(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wiretest.Serve(t, l, wire.ServerConfig{Credentials: wire.ServerCredentials(ca.Source(t, wiretest.ID("server")))}, register)
	if got, err := say(t, wiretest.Dial(t, wire.Config{Address: l.Addr().String()}), "x"); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("Echo = %q, %v", got, err)
	}
}

// New connections use the certificates and roots of their moment.
func TestRotation(t *testing.T) {
	first, second := wiretest.NewCA(t), wiretest.NewCA(t)
	server, client := wiretest.ID("server"), wiretest.ID("client")
	var now [2]atomic.Pointer[wire.Credentials]
	use := func(side int, ca wiretest.CA, id creto.ID) {
		now[side].Store(&wire.Credentials{Certificate: ca.Issue(t, id, nil), Roots: ca.Roots()})
	}
	source := func(side int) wire.Source {
		return func() (wire.Credentials, error) { return *now[side].Load(), nil }
	}
	use(0, first, server)
	use(1, first, client)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wiretest.Serve(t, l, wire.ServerConfig{Credentials: wire.ServerCredentials(source(0))}, register)
	fresh := func() error {
		conn := wiretest.Dial(t, wire.Config{Address: l.Addr().String(), Source: source(1), Peer: server})
		_, err := say(t, conn, "x")
		return err
	}
	if err := fresh(); err != nil {
		t.Fatalf("before: %v", err)
	}
	use(0, second, server)
	if err := fresh(); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("with the server's alone: %v", err)
	}
	use(1, second, client)
	if err := fresh(); err != nil {
		t.Errorf("with both: %v", err)
	}
}

func TestServerTLSWithoutRoots(t *testing.T) {
	certificate := wiretest.NewCA(t).Issue(t, wiretest.ID("server"), nil)
	source := func() (wire.Credentials, error) { return wire.Credentials{Certificate: certificate}, nil }
	c, err := wire.ServerTLS(source, tls.VerifyClientCertIfGiven).GetConfigForClient(nil)
	if err != nil || c.ClientAuth != tls.NoClientCert {
		t.Errorf("without roots clients are asked for a certificate: %v, %v", c.ClientAuth, err)
	}
}

// The trace of a caller reaches the callee though nobody records it.
func TestTrace(t *testing.T) {
	id := trace.TraceID{1, 2, 3}
	ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: trace.SpanID{4}, TraceFlags: trace.FlagsSampled}))
	conn := wiretest.InMemory(t, register)
	out, err := wiretestv1.NewEchoServiceClient(conn).Echo(ctx, &wiretestv1.EchoRequest{Text: "trace"})
	if err != nil || out.GetText() != id.String() {
		t.Errorf("the callee's trace is %q, %v; want %v", out.GetText(), err, id)
	}
}

// Each handshake proves again who the client is: none is taken over from an earlier
// one, whose roots may be others by now.
func TestNoResumption(t *testing.T) {
	ca := wiretest.NewCA(t)
	shown := ca.Issue(t, wiretest.ID("client"), nil)
	l, err := tls.Listen("tcp", "127.0.0.1:0", wire.ServerTLS(ca.Source(t, wiretest.ID("server")), tls.RequireAndVerifyClientCert, "h2"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("x")) // after the handshake, and what follows it
			_ = conn.Close()
		}
	}()
	config := &tls.Config{
		RootCAs: ca.Roots(), NextProtos: []string{"h2"}, Certificates: []tls.Certificate{shown}, ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	for range 3 {
		conn, err := tls.Dial("tcp", l.Addr().String(), config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if conn.ConnectionState().DidResume {
			t.Error("a session is resumed")
		}
		_ = conn.Close()
	}
}
