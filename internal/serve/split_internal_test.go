package serve

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// pipes is a listener in memory.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

// splitting runs a splitter in the bubble and returns what it hands over.
func splitting(t *testing.T, l net.Listener) (s *splitter, handed chan string, conns chan net.Conn, ended chan error) {
	t.Helper()
	s = split(l, nil)
	handed, conns, ended = make(chan string, 10), make(chan net.Conn, 10), make(chan error, 1)
	for name, b := range map[string]*branch{alpnHTTP1: s.h1, alpnHTTP2: s.h2} {
		go func() {
			for {
				conn, err := b.Accept()
				if err != nil {
					return
				}
				handed <- name
				conns <- conn
			}
		}()
	}
	go func() { ended <- s.run(t.Context()) }()
	return s, handed, conns, ended
}

// Each byte is believed as soon as it decides, and not before.
func TestSniff(t *testing.T) {
	preface := http2.ClientPreface
	for _, test := range []struct {
		said string
		want string // "" as long as it is not decided
	}{
		{preface, alpnHTTP2}, {preface + "more", alpnHTTP2},
		{"G", alpnHTTP1}, {"POST /", alpnHTTP1}, {"\x16\x03\x01", alpnHTTP1}, {"PRX", alpnHTTP1}, {"PRI * HTTP/1.1\r\n", alpnHTTP1},
		{preface[:23] + "x", alpnHTTP1}, {"pri * http/2.0\r\n", alpnHTTP1},
		{"", ""}, {"P", ""}, {"PRI", ""}, {preface[:23], ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newPipes()
			s, handed, conns, ended := splitting(t, l)
			client := l.dial()
			go func() {
				for _, b := range []byte(test.said) { // one by one
					if _, err := client.Write([]byte{b}); err != nil {
						return
					}
				}
			}()
			synctest.Wait()
			select {
			case got := <-handed:
				if got != test.want {
					t.Errorf("%q is taken for %s, want %q", test.said, got, test.want)
				}
				text := make([]byte, len(test.said))
				conn := <-conns
				if _, err := io.ReadFull(conn, text); err != nil || string(text) != test.said {
					t.Errorf("%q is read as %q, %v", test.said, text, err)
				}
				_ = conn.Close()
			default:
				if test.want != "" {
					t.Errorf("%q is not decided", test.said)
				}
				// A client that goes on saying nothing is sent away.
				start := time.Now()
				_, err := client.Read(make([]byte, 1))
				if err == nil || time.Since(start) != sniffTimeout {
					t.Errorf("after %q it waits for %v, %v", test.said, time.Since(start), err)
				}
			}
			_ = client.Close()
			_ = s.h1.Close()
			if err := <-ended; err != nil {
				t.Errorf("run = %v", err)
			}
		})
	}
}

// One slow client holds up nobody, not even those who say a byte now and then.
func TestSniffSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newPipes()
		s, handed, conns, ended := splitting(t, l)
		slow := l.dial()
		dead := make(chan time.Duration)
		start := time.Now()
		go func() {
			for i := range len(http2.ClientPreface) {
				if _, err := slow.Write([]byte{http2.ClientPreface[i]}); err != nil {
					break
				}
				time.Sleep(time.Second)
			}
			dead <- time.Since(start)
		}()
		quick := l.dial()
		go func() { _, _ = io.WriteString(quick, "GET / HTTP/1.1\r\n\r\n") }()
		if got := <-handed; got != alpnHTTP1 || time.Since(start) != 0 {
			t.Errorf("%s after %v", got, time.Since(start))
		}
		_ = (<-conns).Close()
		if took := <-dead; took > sniffTimeout+time.Second {
			t.Errorf("a byte a second keeps a connection for %v", took)
		}
		_ = s.h2.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Who left, before or after saying something, is forgotten; and closing the
// listener does not wait for who says nothing.
func TestSniffLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newPipes()
		s, handed, _, ended := splitting(t, l)
		for _, said := range []string{"", "PRI * "} {
			client := l.dial()
			go func() {
				_, _ = io.WriteString(client, said)
				_ = client.Close()
			}()
		}
		silent := l.dial()
		synctest.Wait()
		start := time.Now()
		_ = s.h1.Close()
		if err := <-ended; err != nil || time.Since(start) != 0 || len(handed) != 0 {
			t.Errorf("run = %v after %v, %d handed over", err, time.Since(start), len(handed))
		}
		if _, err := silent.Read(make([]byte, 1)); err == nil {
			t.Error("the silent client is still connected")
		}
	})
}

// broken fails to accept.
type broken struct {
	*pipes
	err   error
	times int
}

func (b *broken) Accept() (net.Conn, error) {
	if b.times--; b.times >= 0 {
		return nil, b.err
	}
	return b.pipes.Accept()
}

func TestSplitAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &broken{newPipes(), errors.New("broken"), 1}
		_, _, _, ended := splitting(t, b)
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "broken") {
			t.Errorf("run = %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // too many open files: later it may work
		b := &broken{newPipes(), &net.OpError{Op: "accept", Err: syscall.EMFILE}, 5}
		s, handed, conns, ended := splitting(t, b)
		start := time.Now()
		client := b.dial()
		go func() { _, _ = io.WriteString(client, "GET") }()
		if <-handed; time.Since(start) != (5+10+20+40+80)*time.Millisecond {
			t.Errorf("it took %v", time.Since(start))
		}
		_ = (<-conns).Close()
		_ = s.h1.Close()
		if err := <-ended; err != nil {
			t.Errorf("run = %v", err)
		}
	})
}

// Whatever is said in whatever pieces, it goes one way, and whole.
func FuzzSniff(f *testing.F) {
	f.Add([]byte(http2.ClientPreface+"\x00\x00"), uint8(3))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint8(1))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n"), uint8(5))
	f.Fuzz(func(t *testing.T, said []byte, piece uint8) {
		theirs := &pieces{data: said, size: int(piece)%32 + 1}
		s := split(newPipes(), nil)
		to, conn, err := s.sniff(t.Context(), theirs)
		switch {
		case bytes.HasPrefix(said, []byte(http2.ClientPreface)):
			if to != s.h2 || err != nil {
				t.Fatalf("%q is not HTTP/2: %v", said, err)
			}
		case strings.HasPrefix(http2.ClientPreface, string(said)):
			if err == nil {
				t.Fatalf("%q is decided", said)
			}
			return
		case to != s.h1 || err != nil:
			t.Fatalf("%q is not HTTP/1.1: %v", said, err)
		}
		if got, _ := io.ReadAll(conn); !bytes.Equal(got, said) {
			t.Fatalf("%q is read as %q", said, got)
		}
	})
}

// pieces is a connection on which data comes in pieces, and then ends.
type pieces struct {
	net.Conn
	data []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	n := copy(b, p.data[:min(len(p.data), p.size)])
	p.data = p.data[n:]
	if len(p.data) == 0 {
		return n, io.EOF
	}
	return n, nil
}

func (p *pieces) Close() error { return nil }

// A port that is full refuses, and a place that is left is somebody else's.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newPipes()
		s := split(l, nil)
		s.places = make(chan struct{}, 2)
		conns := make(chan net.Conn, 3)
		go func() {
			for {
				conn, err := s.h1.Accept()
				if err != nil {
					return
				}
				conns <- conn
			}
		}()
		ended := make(chan error, 1)
		go func() { ended <- s.run(t.Context()) }()
		come := func() (in bool) {
			client := l.dial()
			_, err := client.Write([]byte("G"))
			return err == nil
		}
		for range cap(s.places) {
			if !come() {
				t.Fatal("one of the first is refused")
			}
		}
		if come() {
			t.Error("a third is let in where two have a place")
		}
		first := <-conns
		for range 2 { // closing twice gives one place back
			_ = first.Close()
		}
		if !come() {
			t.Error("nobody gets the place that was left")
		}
		if come() {
			t.Error("a place was given back twice")
		}
		silent := <-conns
		_ = silent.Close()
		l.dial() // says nothing
		time.Sleep(sniffTimeout)
		synctest.Wait()
		if !come() {
			t.Error("who said nothing keeps the place")
		}
		_ = l.Close()
		if err := <-ended; err != nil {
			t.Errorf("run = %v", err)
		}
		if n := cap(places()); n < 1 || n > maxConns {
			t.Errorf("%d places", n)
		}
	})
}

// A client that begins a TLS handshake and does not go on is sent away in time.
func TestSlowHandshake(t *testing.T) {
	for _, said := range []string{"", "\x16", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"} {
		synctest.Test(t, func(t *testing.T) {
			l := newPipes()
			s := split(l, &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return nil, errors.New("none")
			}})
			ended := make(chan error, 1)
			go func() { ended <- s.run(t.Context()) }()
			client := l.dial()
			start := time.Now()
			go func() { _, _ = io.WriteString(client, said) }()
			_, _ = io.ReadAll(client)
			if took := time.Since(start); took != sniffTimeout {
				t.Errorf("after %q it is sent away after %v", said, took)
			}
			_ = l.Close()
			if err := <-ended; err != nil {
				t.Errorf("run = %v", err)
			}
		})
	}
}
