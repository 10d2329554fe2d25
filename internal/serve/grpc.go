package serve

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/vanguard"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/wire"
)

// Peer is who calls a contract, as far as the connection and the call show it.
type Peer struct {
	// Local says that the call came over the socket, whose user is the owner.
	Local bool
	// Address is where a call over TCP came from.
	Address netip.AddrPort
	// TLS is the connection's state; nil in clear.
	TLS *tls.ConnectionState
	// Token is the call's bearer token; zero without one.
	Token creto.Secret
}

// Private reports whether nobody between the peer and the node can hear what is
// said.
func (p Peer) Private() bool {
	return p.Local || p.TLS != nil || p.Address.Addr().Unmap().IsLoopback()
}

// Authenticate says who calls method, as /creto.pqc.v1.ProviderService/Sign, and
// refuses who may not. The context that it returns is the handler's.
type Authenticate func(ctx context.Context, method string, p Peer) (context.Context, error)

// handed is the transport security of connections that a splitter hands over:
// whatever there was to shake hands about is done.
type handed struct{}

// handedInfo is what it knows of a connection.
type handedInfo struct {
	credentials.CommonAuthInfo
	peer Peer
}

// AuthType implements credentials.AuthInfo.
func (handedInfo) AuthType() string { return "creto" }

// ServerHandshake implements credentials.TransportCredentials.
func (handed) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info := handedInfo{peer: Peer{Local: conn.RemoteAddr().Network() == "unix", Address: addressOf(conn.RemoteAddr().String())}}
	if secured, ok := conn.(*tls.Conn); ok {
		state := secured.ConnectionState()
		info.peer.TLS = &state
	}
	info.SecurityLevel = credentials.NoSecurity
	if info.peer.Local || info.peer.TLS != nil {
		info.SecurityLevel = credentials.PrivacyAndIntegrity
	}
	return conn, info, nil
}

// addressOf reads an address; the zero value stands for one that is none.
func addressOf(text string) netip.AddrPort {
	address, _ := netip.ParseAddrPort(text) // a socket's is none
	return address
}

// ClientHandshake implements credentials.TransportCredentials.
func (handed) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are a server's")
}

// Info implements credentials.TransportCredentials.
func (handed) Info() credentials.ProtocolInfo { return credentials.ProtocolInfo{} }

// Clone implements credentials.TransportCredentials.
func (h handed) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (handed) OverrideServerName(string) error { return nil }

// peerKey is the context's key for the Peer of a request over HTTP/1.1.
type peerKey struct{}

// withPeer notes who sends a request, for the contracts behind next.
func withPeer(local bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := Peer{Local: local, Address: addressOf(r.RemoteAddr), TLS: r.TLS}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, p)))
	})
}

// peerOf returns who makes a call. Without knowing anything it is a stranger.
func peerOf(ctx context.Context) Peer {
	p, ok := ctx.Value(peerKey{}).(Peer)
	if !ok {
		if conn, known := peer.FromContext(ctx); known {
			if info, ours := conn.AuthInfo.(handedInfo); ours {
				p = info.peer
			}
		}
	}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		if values := md.Get("authorization"); len(values) == 1 {
			if scheme, token, _ := strings.Cut(values[0], " "); strings.EqualFold(scheme, "Bearer") {
				p.Token = creto.NewSecret(token)
			}
		}
	}
	return p
}

// open are the methods that anybody may call.
func open(method string) bool { return strings.HasPrefix(method, "/grpc.health.v1.Health/") }

// admit authenticates a call.
func (a Authenticate) admit(ctx context.Context, method string) (context.Context, error) {
	switch {
	case open(method):
		return ctx, nil
	case a == nil:
		return nil, fault.New("serve.admit", fault.Unauthenticated, "nobody may call %s here", method)
	}
	return a(ctx, method, peerOf(ctx))
}

func (a Authenticate) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, err := a.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

func (a Authenticate) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, err := a.admit(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return handler(server, &admitted{stream, func() context.Context { return ctx }})
}

// admitted is a stream with the context that authentication returned.
type admitted struct {
	grpc.ServerStream
	context func() context.Context
}

// Context implements grpc.ServerStream.
func (s *admitted) Context() context.Context { return s.context() }

// stopping is closed when the node stops.
type stopping chan struct{}

var errStopping = fault.New("serve.contracts", fault.Unavailable, "the node is stopping")

// stream ends conversations when the node stops. They end when their client has
// had enough, so there is nothing to wait for; other calls may finish.
func (s stopping) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if info.IsClientStream && info.IsServerStream {
		stream = &conversation{stream, s}
	}
	return handler(server, stream)
}

// conversation is a stream that is heard until the node stops.
type conversation struct {
	grpc.ServerStream
	stopping stopping
}

// RecvMsg implements grpc.ServerStream. What it leaves behind when the node stops
// ends with the stream, once the handler has returned.
func (c *conversation) RecvMsg(into any) error {
	message, ok := into.(proto.Message)
	if !ok {
		return fault.New("serve.conversation", fault.Internal, "%T is no message", into)
	}
	received := message.ProtoReflect().New().Interface() // nobody else's, should it come too late
	ended := make(chan error, 1)
	go func() { ended <- c.ServerStream.RecvMsg(received) }()
	select {
	case err := <-ended:
		if err == nil {
			proto.Reset(message)
			proto.Merge(message, received)
		}
		return err
	case <-c.stopping:
		return errStopping
	}
}

// contracts are the two servers of the same services: native speaks gRPC, and
// transcoded is what JSON ends at. They are two because a gRPC server that drains
// cuts calls that HTTP brought, and those are drained by their own listener.
type contracts struct {
	native, transcoded *grpc.Server
	json               http.Handler
	health             *health
	stopping           stopping
}

func newContracts(parts Parts, notFound http.Handler, log *slog.Logger) (*contracts, error) {
	stopping := make(stopping)
	config := wire.ServerConfig{
		Log: log, Tracing: parts.Tracing, Credentials: handed{},
		Unary:  []grpc.UnaryServerInterceptor{parts.Authenticate.unary},
		Stream: []grpc.StreamServerInterceptor{parts.Authenticate.stream, stopping.stream},
	}
	c := &contracts{stopping: stopping, native: grpc.NewServer(wire.ServerOptions(config)...), transcoded: grpc.NewServer(wire.ServerOptions(config)...), json: notFound}
	if parts.Register != nil {
		parts.Register(c.native)
		parts.Register(c.transcoded)
	}
	var services []*vanguard.Service
	c.health = &health{ready: parts.Ready, stopping: stopping}
	for name := range c.transcoded.GetServiceInfo() {
		services = append(services, vanguard.NewService(name, c.transcoded))
		c.health.services = append(c.health.services, name)
	}
	grpc_health_v1.RegisterHealthServer(c.native, c.health)
	reflection.Register(c.native)
	if len(services) == 0 {
		return c, nil
	}
	transcoder, err := vanguard.NewTranscoder(services,
		vanguard.WithDefaultServiceOptions(
			vanguard.WithTargetProtocols(vanguard.ProtocolGRPC), vanguard.WithTargetCodecs(vanguard.CodecProto),
			vanguard.WithNoTargetCompression(), vanguard.WithMaxMessageBufferBytes(wire.DefaultMaxMessageBytes),
		),
		vanguard.WithCodec(func(types vanguard.TypeResolver) vanguard.Codec {
			// A field that is not known is a mistake, here as in /api.
			return strictJSON{vanguard.JSONCodec{
				MarshalOptions:   protojson.MarshalOptions{Resolver: types, EmitUnpopulated: true},
				UnmarshalOptions: protojson.UnmarshalOptions{Resolver: types},
			}}
		}),
		vanguard.WithCompression(vanguard.CompressionGzip, // the only one, and vanguard's own has no bound
			func() connect.Compressor { return gzip.NewWriter(io.Discard) },
			func() connect.Decompressor { return new(unpacker) }),
		vanguard.WithUnknownHandler(notFound))
	if err != nil {
		return nil, fault.WrapAs("serve.newContracts", fault.Internal, err, "the contracts cannot be transcoded")
	}
	c.json = sameSite(problems(transcoder))
	return c, nil
}

// strictJSON blames the client for a request that cannot be read.
type strictJSON struct{ vanguard.JSONCodec }

// Unmarshal implements vanguard.Codec.
func (c strictJSON) Unmarshal(data []byte, m proto.Message) error {
	return malformed(c.JSONCodec.Unmarshal(data, m))
}

// UnmarshalField implements vanguard.RESTCodec.
func (c strictJSON) UnmarshalField(data []byte, m proto.Message, field protoreflect.FieldDescriptor) error {
	return malformed(c.JSONCodec.UnmarshalField(data, m, field))
}

// unpacker reads gzip up to the size of a message: a request is unpacked before
// it is known who sends it.
type unpacker struct {
	gzip.Reader
	left int
}

// Reset implements connect.Decompressor.
func (u *unpacker) Reset(from io.Reader) error {
	u.left = wire.DefaultMaxMessageBytes
	return malformed(u.Reader.Reset(from))
}

// Read implements connect.Decompressor.
func (u *unpacker) Read(b []byte) (int, error) {
	n, err := u.Reader.Read(b)
	if u.left -= n; u.left < 0 {
		return 0, connect.NewError(connect.CodeResourceExhausted, errors.New("the message is larger than a request may be"))
	}
	if errors.Is(err, io.EOF) {
		return n, io.EOF
	}
	return n, malformed(err)
}

func malformed(err error) error {
	if err == nil {
		return nil
	}
	return connect.NewError(connect.CodeInvalidArgument, err)
}

// serve serves gRPC on the listeners until ctx ends, then lets calls finish for a
// few seconds and ends the rest.
func (c *contracts) serve(ctx context.Context, listeners ...net.Listener) error {
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- c.native.Serve(l) }()
	}
	var err error
	left := len(listeners)
	select {
	case err = <-failed:
		left--
		if ctx.Err() != nil && ended(err) { // the other protocol's server was faster
			err = nil
		}
	case <-ctx.Done():
	}
	close(c.stopping)
	if within(drainTimeout, c.native.GracefulStop) != nil {
		err = errors.Join(err, within(endTimeout, c.native.Stop))
	}
	for range left {
		if why := <-failed; !ended(why) {
			err = errors.Join(err, why)
		}
	}
	return fault.WrapAs("serve.contracts", fault.Unavailable, err, "the gRPC listener failed")
}

// ended reports whether a server ended because it was told to.
func ended(err error) bool {
	return err == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, grpc.ErrServerStopped)
}

// within runs f for at most d.
func within(d time.Duration, f func()) error {
	done := make(chan struct{})
	go func() { f(); close(done) }()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return errors.New("a call does not end")
	}
}

// healthInterval is how often a watcher of health is told, at most.
const healthInterval = 2 * time.Second

// health is grpc.health.v1: each service is as ready as the node.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
	services []string
	ready    func(context.Context) bool
	stopping stopping
}

func (h *health) status(ctx context.Context) grpc_health_v1.HealthCheckResponse_ServingStatus {
	select {
	case <-h.stopping:
		return grpc_health_v1.HealthCheckResponse_NOT_SERVING
	default:
	}
	if h.ready != nil && !h.ready(ctx) {
		return grpc_health_v1.HealthCheckResponse_NOT_SERVING
	}
	return grpc_health_v1.HealthCheckResponse_SERVING
}

func (h *health) known(service string) bool {
	return service == "" || slices.Contains(h.services, service)
}

// Check implements grpc_health_v1.HealthServer.
func (h *health) Check(ctx context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if !h.known(r.GetService()) {
		return nil, fault.New("serve.health", fault.NotFound, "there is no such service")
	}
	return &grpc_health_v1.HealthCheckResponse{Status: h.status(ctx)}, nil
}

// Watch implements grpc_health_v1.HealthServer. It ends when the node does.
func (h *health) Watch(r *grpc_health_v1.HealthCheckRequest, s grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	ctx := s.Context()
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	last := grpc_health_v1.HealthCheckResponse_UNKNOWN
	for {
		now := grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN
		if h.known(r.GetService()) {
			now = h.status(ctx)
		}
		if now != last {
			if err := s.Send(&grpc_health_v1.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			last = now
		}
		select {
		case <-h.stopping:
			if last != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
				_ = s.Send(&grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_NOT_SERVING}) // it may have left
			}
			return errStopping
		case <-ctx.Done():
			return fault.Wrap("serve.health", ctx.Err())
		case <-tick.C:
		}
	}
}
