// Package serve listens: one TCP port for people and programs, and a Unix
// socket for the administrator. It turns requests into calls of what node gives
// it and knows nothing of how they are done.
package serve

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
)

// drainTimeout is how long requests may finish once the node stops, and
// endTimeout how long they may take to notice that they are ended: a record
// waits as long for room in the log (package gate).
const (
	drainTimeout = 5 * time.Second
	endTimeout   = 5 * time.Second
)

// Limits of a connection. There is no write timeout: an answer may be a long
// stream, or wait for a human.
const (
	headerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 64 << 10
)

// Parts are the handlers of the one port.
type Parts struct {
	// Admin is behind /api; Administrator says who calls over TCP, and
	// refuses whoever may not. Over the socket it is Owner.
	Admin         Admin
	Administrator func(r *http.Request) (creto.ID, error)
	Owner         creto.ID
	// Doors serve /v1, Console /console, Health the rest.
	Doors   http.Handler
	Console http.Handler
	Health  http.Handler
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
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return Serve(ctx, s.tcp, s.public(), s.log) })
	group.Go(func() error { return Serve(ctx, s.socket, s.private(), s.log) })
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
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), BaseContext: func(net.Listener) context.Context { return base },
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return fault.WrapAs(op, fault.Unavailable, err, "the listener failed")
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(base, drainTimeout)
	defer cancel()
	err := server.Shutdown(drain)
	end() // what waits for a human is asked again by its sender
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	if why := <-failed; !errors.Is(why, http.ErrServerClosed) {
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
func (s *Server) public() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/api/v1/", s.authenticated(api(remote{s.parts.Admin})))
	s.shared(mux)
	return mux
}

func (s *Server) authenticated(next http.Handler) http.Handler {
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		faulthttp.Write(w, r, fault.New("serve", fault.PermissionDenied, "the request comes from another site's page"))
	}))
	protected := protection.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := s.parts.Administrator(r)
		if err != nil {
			faulthttp.Write(w, r, err)
			return
		}
		protected.ServeHTTP(w, r.WithContext(creto.WithCaller(r.Context(), id)))
	})
}

// private is the handler of the socket, whose user owns the data directory.
func (s *Server) private() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/api/v1/", api(s.parts.Admin))
	s.shared(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mux.ServeHTTP(w, r.WithContext(creto.WithCaller(r.Context(), s.parts.Owner)))
	})
}

func (s *Server) shared(mux *http.ServeMux) {
	mux.Handle("/v1/", s.parts.Doors)
	mux.Handle("/console", s.parts.Console)
	mux.Handle("/console/", s.parts.Console)
	for _, path := range []string{"/health", "/livez", "/readyz"} {
		mux.Handle(path, s.parts.Health)
	}
	mux.Handle("GET /{$}", http.RedirectHandler("/console", http.StatusSeeOther))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		faulthttp.Write(w, r, fault.New("serve", fault.NotFound, "there is nothing at %s", r.URL.Path))
	})
}
