package guest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// LinkFD is, in ModeGVisor, one end of a socket pair whose other end the
// supervisor serves with [ServeLink]: gVisor then needs no door to the host's
// Unix sockets, of which the working directory may hold others than the
// gateway's.
const LinkFD = 5

// linkStreams bounds the connections that are open at once over a link.
const linkStreams = 4096

// ServeLink carries connections that the sandbox opens over conn to what dial
// reaches, each as a stream of HTTP/2, until conn ends. It is the supervisor's
// side of the link.
func ServeLink(conn net.Conn, dial func(context.Context) (net.Conn, error)) {
	server := &http.Server{Protocols: clearHTTP2(), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: linkStreams}}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		upstream, err := dial(r.Context())
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer upstream.Close()
		flusher := http.NewResponseController(w)
		w.WriteHeader(http.StatusOK)
		if flusher.Flush() != nil {
			return
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			if _, err := io.Copy(upstream, r.Body); err != nil {
				upstream.Close() // the sandbox broke the connection off
				return
			}
			if half, ok := upstream.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
		}()
		buffer := make([]byte, 32<<10)
		for {
			n, err := upstream.Read(buffer)
			if n > 0 {
				if _, err := w.Write(buffer[:n]); err != nil || flusher.Flush() != nil {
					break
				}
			}
			if err != nil {
				break
			}
		}
		// The answer's end does not end the request: a half-closed connection
		// still carries what the sandbox sends.
		if r.Context().Err() != nil {
			upstream.Close()
		}
		r.Body.Close()
		<-sent
	})
	ended := make(chan struct{})
	_ = server.Serve(&oneListener{conn: endConn{conn, sync.OnceFunc(func() { close(ended) })}, ended: ended})
	server.Close()
}

// clearHTTP2 selects HTTP/2 without TLS and without an upgrade from HTTP/1.
func clearHTTP2() *http.Protocols {
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	return p
}

// oneListener accepts conn, once, and then waits for its end.
type oneListener struct {
	conn  net.Conn
	ended chan struct{}
}

func (l *oneListener) Accept() (net.Conn, error) {
	if conn := l.conn; conn != nil {
		l.conn = nil
		return conn, nil
	}
	<-l.ended
	return nil, net.ErrClosed
}

func (*oneListener) Close() error   { return nil }
func (*oneListener) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// endConn tells when it is closed.
type endConn struct {
	net.Conn
	ended func()
}

func (c endConn) Close() error {
	defer c.ended()
	return c.Conn.Close()
}

// link is the sandbox's side.
type link struct{ client *http.Transport }

func openLink() (*link, error) {
	file := os.NewFile(LinkFD, "link")
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("open the link to the supervisor: %w", err)
	}
	file.Close()
	return newLink(conn), nil
}

func newLink(conn net.Conn) *link {
	var once atomic.Bool
	return &link{&http.Transport{
		Protocols: clearHTTP2(), DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if once.Swap(true) {
				return nil, net.ErrClosed // the supervisor is gone, and with it soon this process
			}
			return conn, nil
		},
	}}
}

// dial opens one connection over the link. ctx bounds the opening alone.
func (l *link) dial(ctx context.Context) (net.Conn, error) {
	whole, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	body, out := io.Pipe()
	request, err := http.NewRequestWithContext(whole, http.MethodPost, "http://gateway/", body)
	if err != nil {
		cancel()
		return nil, err
	}
	response, err := l.client.RoundTrip(request)
	if err == nil && response.StatusCode != http.StatusOK {
		response.Body.Close()
		err = fmt.Errorf("gateway: %w", syscall.ECONNREFUSED)
	}
	if err != nil || !stop() {
		cancel()
		out.Close()
		if err == nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return &stream{in: response.Body, out: out, cancel: cancel}, nil
}

// stream is a connection over a link.
type stream struct {
	in     io.ReadCloser
	out    *io.PipeWriter
	cancel context.CancelFunc
}

var _ net.Conn = (*stream)(nil)

func (s *stream) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *stream) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s *stream) CloseWrite() error           { return s.out.Close() }

func (s *stream) Close() error {
	s.out.CloseWithError(net.ErrClosed)
	s.cancel()
	return s.in.Close()
}

func (*stream) LocalAddr() net.Addr              { return &net.UnixAddr{Net: "unix"} }
func (*stream) RemoteAddr() net.Addr             { return &net.UnixAddr{Net: "unix"} }
func (*stream) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (*stream) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (*stream) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
