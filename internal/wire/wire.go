// Package wire makes both ends of a gRPC connection as every contract uses it:
// limits, keepalive, mutual TLS whose certificates rotate, traces, and faults
// instead of statuses. A remote contract dials with [Dial] and serves with
// [ServerOptions]; how often a call is repeated is package call's.
package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/fault/faultgrpc"
)

// DefaultMaxMessageBytes is the largest message that is taken, as in gRPC's own
// default.
const DefaultMaxMessageBytes = 4 << 20

// Limits of a connection.
const (
	maxHeaderBytes = 64 << 10
	// maxStreams is how many calls one connection carries at once.
	maxStreams = 1000
	// handshakeTimeout bounds connecting, TLS included.
	handshakeTimeout = 10 * time.Second
	// A connection on which nothing came for clientPing or serverPing is asked
	// whether it lives, and is given up after pingTimeout. The server takes no
	// more than one question each minPing.
	clientPing  = 20 * time.Second
	serverPing  = 30 * time.Second
	pingTimeout = 10 * time.Second
	minPing     = 10 * time.Second
	// maxIdle ends connections without a call: a client makes another when it has
	// one.
	maxIdle = 5 * time.Minute
	// maxAge ends connections, so that peers prove again who they are; what is
	// under way gets ageGrace.
	maxAge   = time.Hour
	ageGrace = time.Minute
	// A server that cannot be reached is tried again after these waits.
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 5 * time.Second
)

// Tracing is where spans and measurements go. The zero value records none, but
// the trace of a caller still reaches the callee.
type Tracing struct {
	Tracer trace.TracerProvider
	Meter  metric.MeterProvider
}

func (t Tracing) options() []otelgrpc.Option {
	if t.Tracer == nil {
		t.Tracer = tracenoop.NewTracerProvider()
	}
	if t.Meter == nil {
		t.Meter = metricnoop.NewMeterProvider()
	}
	return []otelgrpc.Option{
		otelgrpc.WithTracerProvider(t.Tracer), otelgrpc.WithMeterProvider(t.Meter), otelgrpc.WithPropagators(propagation.TraceContext{}),
	}
}

// Config says whom to call.
type Config struct {
	// Address is host:port, or unix:PATH for a socket of this machine.
	Address string
	// Source gives the certificate to show and the roots to trust. Without one
	// nothing is encrypted, which is refused unless the address is of this
	// machine.
	Source Source
	// Peer is who must answer, by the SPIFFE id of its certificate. The zero ID
	// means whoever has a certificate for the address's host.
	Peer creto.ID
	// Token, if any, gives the bearer token of each call.
	Token func(context.Context) (creto.Secret, error)
	// MaxMessageBytes bounds an answer. 0 means DefaultMaxMessageBytes.
	MaxMessageBytes int
	Tracing         Tracing
	// Connect, if any, takes the place of connecting to Address: it gives a
	// connection that never leaves this process.
	Connect func(context.Context) (net.Conn, error)
}

// Dial makes a client of c. It connects when it is first used, again whenever
// that broke, and never waits for a server that is not there: such a call fails
// with Unavailable. What calls fail with are faults (package faultgrpc). The
// caller closes the connection.
//
// Errors: InvalidArgument (Permanent) for an address that is none, or that is of
// another machine while there is no Source.
func Dial(c Config) (*grpc.ClientConn, error) {
	const op fault.Op = "wire.Dial"
	target, host, dial, err := c.target()
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	secure := insecure.NewCredentials()
	if c.Source != nil {
		secure = credentials.NewTLS(clientTLS(c.Source, c.Peer, host))
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(secure),
		grpc.WithContextDialer(dial), grpc.WithNoProxy(),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), // package call repeats calls
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(orDefault(c.MaxMessageBytes))),
		grpc.WithMaxHeaderListSize(maxHeaderBytes),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstBackoff, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: handshakeTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: clientPing, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler(c.Tracing.options()...)),
		grpc.WithChainUnaryInterceptor(faultgrpc.UnaryClient()),
		grpc.WithChainStreamInterceptor(faultgrpc.StreamClient()),
	}
	if c.Token != nil {
		options = append(options, grpc.WithPerRPCCredentials(bearer{c.Token}))
	}
	conn, err := grpc.NewClient(target, options...)
	return conn, fault.WrapAs(op, fault.InvalidArgument, err, "%q is no address", c.Address)
}

// unixScheme begins the address of a socket of this machine.
const unixScheme = "unix:"

// target returns what grpc resolves, the host that a certificate is for, and how
// to connect.
func (c Config) target() (target, host string, dial func(context.Context, string) (net.Conn, error), err error) {
	const op fault.Op = "wire.Config"
	if c.Connect != nil {
		return "passthrough:///localhost", "localhost", func(ctx context.Context, _ string) (net.Conn, error) { return c.Connect(ctx) }, nil
	}
	if path, ok := strings.CutPrefix(c.Address, unixScheme); ok {
		if path == "" {
			return "", "", nil, fault.New(op, fault.InvalidArgument, "%q names no socket", c.Address)
		}
		return "passthrough:///localhost", "localhost", func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}, nil
	}
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil || host == "" || port == "" {
		return "", "", nil, fault.New(op, fault.InvalidArgument, "%q is not of the form host:port or unix:PATH", c.Address)
	}
	d := &net.Dialer{}
	if c.Source == nil {
		if ip, err := netip.ParseAddr(host); err == nil && !ip.Unmap().IsLoopback() || err != nil && !localName(host) {
			return "", "", nil, fault.New(op, fault.InvalidArgument, "%q is another machine, and there is no certificate to encrypt with", c.Address)
		}
		d.Control = loopbackOnly // a name may resolve to anything
	}
	return "dns:///" + c.Address, host, func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }, nil
}

// localName reports whether a host's name is reserved for this machine
// (RFC 6761, section 6.3).
func localName(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

var errNotLocal = errors.New("not an address of this machine")

// loopbackOnly refuses to connect to another machine.
func loopbackOnly(_, address string, _ syscall.RawConn) error {
	if a, err := netip.ParseAddrPort(address); err == nil && a.Addr().Unmap().IsLoopback() {
		return nil
	}
	return errNotLocal
}

// bearer adds a token to each call. Whether that may cross is Dial's to know.
type bearer struct {
	token func(context.Context) (creto.Secret, error)
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := b.token(ctx)
	if err != nil {
		return nil, faultgrpc.Status(err).Err()
	}
	return map[string]string{"authorization": "Bearer " + token.Reveal()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials: what is not
// encrypted never leaves this machine.
func (bearer) RequireTransportSecurity() bool { return false }

// ServerConfig is how contracts are served.
type ServerConfig struct {
	// Log hears of panics and defects in handlers. Required.
	Log *slog.Logger
	// MaxMessageBytes bounds a request. 0 means DefaultMaxMessageBytes.
	MaxMessageBytes int
	Tracing         Tracing
	// Unary and Stream run inside of what turns errors and panics into faults,
	// the first of each outermost: authentication goes here.
	Unary  []grpc.UnaryServerInterceptor
	Stream []grpc.StreamServerInterceptor
	// Credentials are the transport's; nil means that it is not encrypted by
	// gRPC.
	Credentials credentials.TransportCredentials
}

// ServerOptions returns the options of every server of contracts.
func ServerOptions(c ServerConfig) []grpc.ServerOption {
	if c.Credentials == nil {
		c.Credentials = insecure.NewCredentials()
	}
	return []grpc.ServerOption{
		grpc.Creds(c.Credentials),
		grpc.MaxRecvMsgSize(orDefault(c.MaxMessageBytes)),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: serverPing, Timeout: pingTimeout, MaxConnectionIdle: maxIdle, MaxConnectionAge: maxAge, MaxConnectionAgeGrace: ageGrace}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.StatsHandler(serverStats(c.Tracing)),
		grpc.ChainUnaryInterceptor(append([]grpc.UnaryServerInterceptor{faultgrpc.UnaryServer(c.Log)}, c.Unary...)...),
		grpc.ChainStreamInterceptor(append([]grpc.StreamServerInterceptor{faultgrpc.StreamServer(c.Log)}, c.Stream...)...),
		grpc.WaitForHandlers(true),
	}
}

func serverStats(t Tracing) stats.Handler { return otelgrpc.NewServerHandler(t.options()...) }

func orDefault(n int) int {
	if n > 0 {
		return n
	}
	return DefaultMaxMessageBytes
}

// ServerCredentials are those of a server that serves nothing but contracts:
// every client shows a certificate of the source's roots.
func ServerCredentials(source Source) credentials.TransportCredentials {
	return credentials.NewTLS(ServerTLS(source, tls.RequireAndVerifyClientCert, "h2"))
}
