package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2"
)

// sniffTimeout is how long a client may take to say what it speaks, the TLS
// handshake included.
const sniffTimeout = 10 * time.Second

// The protocols of ALPN, the one preferred where a client offers both first:
// whoever speaks HTTP/1.1 wants JSON or the console, gRPC offers h2 alone.
const (
	alpnHTTP1 = "http/1.1"
	alpnHTTP2 = "h2"
)

// splitter shares out the connections of one listener by what they speak: h1
// accepts those of HTTP/1.1, h2 those of HTTP/2, with prior knowledge in clear or
// by ALPN under TLS. Closing either closes the listener.
type splitter struct {
	net.Listener
	tls    *tls.Config   // nil in clear
	places chan struct{} // of connections; nil means no bound
	h1, h2 *branch
	closed chan struct{}
	close  func() error
}

func split(l net.Listener, config *tls.Config) *splitter {
	s := &splitter{Listener: l, tls: config, closed: make(chan struct{})}
	s.close = sync.OnceValue(func() error {
		close(s.closed)
		return s.Listener.Close()
	})
	s.h1, s.h2 = &branch{s, make(chan net.Conn)}, &branch{s, make(chan net.Conn)}
	return s
}

// branch is the listener of one protocol.
type branch struct {
	s     *splitter
	conns chan net.Conn
}

// Accept implements net.Listener.
func (b *branch) Accept() (net.Conn, error) {
	select {
	case conn := <-b.conns:
		return conn, nil
	case <-b.s.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (b *branch) Close() error { return b.s.close() }

// Addr implements net.Listener.
func (b *branch) Addr() net.Addr { return b.s.Addr() }

// run accepts until the listener is closed; nothing is found out any more once ctx
// has ended. When it returns, every connection was
// handed over or closed.
func (s *splitter) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var routes sync.WaitGroup
	defer routes.Wait()
	defer cancel()
	defer func() { _ = s.close() }()
	var pause time.Duration
	for {
		conn, err := s.Listener.Accept()
		switch {
		case err == nil:
			pause = 0
			if conn = s.seat(conn); conn != nil {
				routes.Go(func() { s.route(ctx, conn) })
			}
		case errors.Is(err, net.ErrClosed):
			return nil
		case exhausted(err): // as net/http does
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-s.closed:
				timer.Stop()
			}
		default:
			return err
		}
	}
}

// exhausted reports whether accepting may succeed later.
func exhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// maxConns is how many connections the TCP port has at once: anybody can hold one
// for minutes without saying who they are. Where the process may have fewer files
// open, half of those stay for what else needs them.
const maxConns = 4096

// places returns room for as many connections as the port may have.
func places() chan struct{} {
	n := uint64(maxConns)
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil {
		n = max(1, min(n, files.Cur/2))
	}
	return make(chan struct{}, n)
}

// seat gives conn one of the places until it is closed. It closes one for which
// there is none, and returns nil.
func (s *splitter) seat(conn net.Conn) net.Conn {
	if s.places == nil {
		return conn
	}
	select {
	case s.places <- struct{}{}:
		return &seated{conn, sync.OnceFunc(func() { <-s.places })}
	default:
		_ = conn.Close()
		return nil
	}
}

// seated is a connection that has a place.
type seated struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *seated) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// CloseWrite ends one direction, where the connection can.
func (c *seated) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// route finds out what a connection speaks and hands it over.
func (s *splitter) route(ctx context.Context, conn net.Conn) {
	// Whatever the client does not do, it does not do it for longer than this, nor
	// when nobody takes connections any more.
	ctx, cancel := context.WithTimeout(ctx, sniffTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	to, spoken, err := s.sniff(ctx, conn)
	if err != nil || !stop() {
		_ = conn.Close()
		return
	}
	select {
	case to.conns <- spoken:
	case <-s.closed:
		_ = conn.Close()
	}
}

// sniff reads as much as tells the protocol.
func (s *splitter) sniff(ctx context.Context, conn net.Conn) (*branch, net.Conn, error) {
	if s.tls != nil {
		secured := tls.Server(conn, s.tls)
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, nil, err
		}
		if secured.ConnectionState().NegotiatedProtocol == alpnHTTP2 {
			return s.h2, secured, nil
		}
		return s.h1, secured, nil
	}
	// RFC 9113, section 3.4: with prior knowledge, HTTP/2 begins with a text that
	// no request of HTTP/1.1 begins with.
	var first [len(http2.ClientPreface)]byte
	for n := 0; n < len(first); {
		m, err := conn.Read(first[n:])
		n += m
		if !strings.HasPrefix(http2.ClientPreface, string(first[:n])) {
			return s.h1, &sniffed{conn, first[:n]}, nil
		}
		if err != nil && n < len(first) {
			return nil, nil, err
		}
	}
	return s.h2, &sniffed{conn, first[:]}, nil
}

// sniffed is a connection of which the first bytes are read already.
type sniffed struct {
	net.Conn
	first []byte
}

// Read implements net.Conn. Like every reader's, it is for one goroutine at a
// time.
func (c *sniffed) Read(b []byte) (int, error) {
	if len(c.first) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.first)
	c.first = c.first[n:]
	return n, nil
}

// CloseWrite ends one direction, where the connection can.
func (c *sniffed) CloseWrite() error { return closeWrite(c.Conn) }
