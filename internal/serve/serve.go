// Package serve listens: one TCP port for people and programs, and a Unix
// socket for the administrator. Both speak gRPC to whoever speaks HTTP/2 and
// everything else to whoever speaks HTTP/1.1. It turns requests into calls of
// what node gives it and knows nothing of how they are done.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
	"creto.dev/internal/wire"
)

// drainTimeout is how long requests may finish once the node stops, and
// endTimeout how long they may take to notice that they are ended: a record
// waits as long for room in the log (package gate).
const (
	drainTimeout = 5 * time.Second
	endTimeout   = 5 * time.Second
)

// Limits of a connection. There is no write timeout: an answer may be a long
// stream, or wait for a human. bodyTimeout is for all of a request; net/http lifts
// it once that was read.
const (
	headerTimeout  = 10 * time.Second
	bodyTimeout    = time.Minute
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 64 << 10
)

// Parts are the handlers of the one port.
type Parts struct {
	// Admin is behind /api; Administrator says who calls over TCP, and
	// refuses whoever may not. Over the socket it is Owner of the tenant that
	// the request names, or of the node's own for "".
	Admin         Admin
	Administrator func(r *http.Request) (creto.ID, error)
	Owner         func(ctx context.Context, tenant string) (creto.ID, error)
	// Doors serve /v1, Console /console, Tokens /oauth and what others verify
	// tokens with, Health the rest.
	Doors   http.Handler
	Tokens  http.Handler
	Console http.Handler
	Health  http.Handler
	// Log serves the audit log to those who check it, below /log/; nil serves
	// nothing there.
	Log http.Handler
	// Register registers the contracts that are served over gRPC, and over
	// HTTP/1.1 as JSON. It is called more than once. nil means none.
	Register func(grpc.ServiceRegistrar)
	// Authenticate is asked before each call of a contract; nil refuses all.
	Authenticate Authenticate
	// Ready is what grpc.health.v1 reports; nil means always.
	Ready func(context.Context) bool
	// TLS, if any, gives the certificate of the TCP port and the roots of
	// clients that show one; nil means that the port is in clear.
	TLS     wire.Source
	Tracing wire.Tracing
}

// Server holds the listeners.
type Server struct {
	tcp, socket net.Listener
	parts       Parts
	log         *slog.Logger
}

// Listen takes the port and the socket, so that whatever is wrong with them
// shows before anything starts.
//
// Errors: Unavailable (Degraded) if the address is taken or not ours.
func Listen(address, socket string, log *slog.Logger) (*Server, error) {
	const op fault.Op = "serve.Listen"
	tcp, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "cannot listen on %s: %s; choose another with --listen", address, reason(err))
	}
	unix, err := ListenUnix(socket)
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	return &Server{tcp: tcp, socket: unix, log: log}, nil
}

// reason returns the system's word for why listening failed.
func reason(err error) string {
	if e, ok := errors.AsType[*os.SyscallError](err); ok {
		return e.Err.Error()
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return "the host is not known here (" + e.Name + ")"
	}
	return "the address is not valid"
}

// maxSocketPath is what the kernel's sockaddr_un holds.
const maxSocketPath = 107

// ListenUnix listens on a socket that only the owner may use, in place of one
// that an earlier life left.
//
// Errors: Unavailable (Degraded), InvalidArgument (Permanent) for a path that
// is too long for a socket, FailedPrecondition (Permanent) for one where there
// is something else.
func ListenUnix(path string) (net.Listener, error) {
	const op fault.Op = "serve.ListenUnix"
	if len(path) > maxSocketPath {
		return nil, fault.New(op, fault.InvalidArgument, "the path %s is too long for a socket (%d bytes, limit %d); use a shorter --data directory", path, len(path), maxSocketPath)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != os.ModeSocket {
		return nil, fault.New(op, fault.FailedPrecondition, "%s is in the way and is no socket; it was left as it is", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the old socket %s cannot be removed", path)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "cannot listen on the socket %s", path)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fault.WrapAs(op, fault.Unavailable, err, "the socket %s cannot be protected", path), l.Close())
	}
	return l, nil
}

// Address returns the TCP address that is listened on.
func (s *Server) Address() string { return s.tcp.Addr().String() }

// Close gives the listeners back. Those that Run served are closed already.
func (s *Server) Close() error {
	var errs []error
	for _, l := range []net.Listener{s.tcp, s.socket} {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends, then lets requests finish for a few seconds.
func (s *Server) Run(ctx context.Context, parts Parts) error {
	s.parts = parts
	c, err := newContracts(parts, http.HandlerFunc(notFound), s.log)
	if err != nil {
		return fault.Wrap("serve.Run", err)
	}
	defer c.transcoded.Stop() // the calls that HTTP brought have returned
	var secure *tls.Config
	if parts.TLS != nil {
		secure = wire.ServerTLS(parts.TLS, tls.VerifyClientCertIfGiven, alpnHTTP1, alpnHTTP2)
	}
	tcp, socket := split(s.tcp, secure), split(s.socket, nil)
	tcp.places = places()
	group, ctx := errgroup.WithContext(ctx)
	for _, part := range []struct {
		from    *splitter
		handler http.Handler
	}{{tcp, withPeer(false, s.public(c.json))}, {socket, withPeer(true, s.private(c.json))}} {
		group.Go(func() error {
			return fault.WrapAs("serve.Run", fault.Unavailable, part.from.run(ctx), "the listener failed")
		})
		group.Go(func() error { return Serve(ctx, part.from.h1, part.handler, s.log) })
	}
	group.Go(func() error { return c.serve(ctx, tcp.h2, socket.h2) })
	return group.Wait()
}

// Serve serves HTTP on l until ctx ends, then lets requests finish for a few
// seconds and ends the rest. When it returns their handlers have returned, also
// those of tunnels, so that what they record is recorded.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	const op fault.Op = "serve.Serve"
	base, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var underWay sync.RWMutex // held for reading by each handler
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			underWay.RLock()
			defer underWay.RUnlock()
			h.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), BaseContext: func(net.Listener) context.Context { return base },
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		if ctx.Err() == nil || !errors.Is(err, net.ErrClosed) {
			return fault.WrapAs(op, fault.Unavailable, err, "the listener failed")
		}
		failed <- err // who shares the listener was faster
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(base, drainTimeout)
	defer cancel()
	err := server.Shutdown(drain)
	end() // what waits for a human is asked again by its sender
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	if why := <-failed; !errors.Is(why, http.ErrServerClosed) && !errors.Is(why, net.ErrClosed) {
		err = errors.Join(err, why)
	}
	returned := make(chan struct{})
	go func() {
		underWay.Lock()
		defer underWay.Unlock()
		close(returned)
	}()
	select {
	case <-returned:
	case <-time.After(endTimeout):
		err = errors.Join(err, errors.New("a request does not end"))
	}
	return fault.WrapAs(op, fault.Unavailable, err, "the listener did not close")
}

// public is the handler of the TCP port.
func (s *Server) public(contracts http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/api/v1/", s.authenticated(api(remote{s.parts.Admin}, s.still)))
	s.authZEN(mux, s.caller)
	s.shared(mux, contracts)
	return mux
}

// caller says who asks over TCP, as for a contract.
func (s *Server) caller(r *http.Request) (context.Context, error) {
	p := peerOf(r.Context())
	if scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Bearer") {
		p.Token = creto.NewSecret(token)
	}
	if s.parts.Authenticate == nil {
		return nil, fault.New("serve.caller", fault.Unauthenticated, "nobody may ask here")
	}
	return s.parts.Authenticate(r.Context(), r.URL.Path, p)
}

// still reports whether who was let in would be now.
func (s *Server) still(r *http.Request) error {
	id, err := s.parts.Administrator(r)
	if err == nil && id != creto.CallerOf(r.Context()) {
		err = fault.New("serve", fault.Unauthenticated, "the session is another's now")
	}
	return err
}

func (s *Server) authenticated(next http.Handler) http.Handler {
	protected := sameSite(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := s.parts.Administrator(r)
		if err != nil {
			faulthttp.Write(w, r, err)
			return
		}
		if tenant := r.Header.Get(client.TenantHeader); tenant != "" && tenant != id.Tenant {
			faulthttp.Write(w, r, fault.New("serve", fault.PermissionDenied, "%s administers the tenant %q alone", id.Name, id.Tenant))
			return
		}
		protected.ServeHTTP(w, r.WithContext(creto.WithCaller(r.Context(), id)))
	})
}

// sameSite refuses what another site's page makes a browser send.
func sameSite(next http.Handler) http.Handler {
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		faulthttp.Write(w, r, fault.New("serve", fault.PermissionDenied, "the request comes from another site's page"))
	}))
	return protection.Handler(next)
}

// private is the handler of the socket, whose user owns the data directory.
func (s *Server) private(contracts http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/api/v1/", api(s.parts.Admin, func(*http.Request) error { return nil }))
	s.authZEN(mux, func(r *http.Request) (context.Context, error) { return r.Context(), nil }) // the owner's
	s.shared(mux, contracts)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		owner, err := s.parts.Owner(r.Context(), r.Header.Get(client.TenantHeader))
		if err != nil {
			faulthttp.Write(w, r, err)
			return
		}
		mux.ServeHTTP(w, r.WithContext(creto.WithCaller(r.Context(), owner)))
	})
}

func (s *Server) shared(mux *http.ServeMux, contracts http.Handler) {
	mux.Handle("/v1/", s.parts.Doors)
	mux.Handle("/console", s.parts.Console)
	mux.Handle("/console/", s.parts.Console)
	for _, path := range []string{"/.well-known/", "/oauth/", "/spiffe/"} {
		mux.Handle(path, s.parts.Tokens)
	}
	for _, path := range []string{"/health", "/livez", "/readyz"} {
		mux.Handle(path, s.parts.Health)
	}
	if s.parts.Log != nil {
		mux.Handle(logPrefix, s.parts.Log)
	}
	mux.Handle("GET /{$}", http.RedirectHandler("/console", http.StatusSeeOther))
	mux.Handle("/", contracts)
}

func notFound(w http.ResponseWriter, r *http.Request) {
	faulthttp.Write(w, r, fault.New("serve", fault.NotFound, "there is nothing at %s", r.URL.Path))
}
