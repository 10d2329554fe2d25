package provider

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// maxDirectBytes bounds a body that is written before its answer is read: less
	// than sockets hold, so that a provider which answers early is always heard.
	maxDirectBytes = 64 << 10
	// maxIdle is how many connections to a provider are kept, and idleFor how long.
	maxIdle = 64
	idleFor = 90 * time.Second
	// maxHeaderBytes bounds the header of an answer.
	maxHeaderBytes = 256 << 10
	// maxInterim bounds the answers that come before the final one (RFC 9110,
	// section 15.2).
	maxInterim = 5
	// lateAnswer is how long the answer is waited for of a provider that stopped
	// reading.
	lateAnswer = 50 * time.Millisecond
)

// direct makes HTTP/1.1 exchanges with one host in clear, each on the goroutine that
// asks: net/http has one more for each direction of a connection, and waking them
// takes a quarter of the time of a call to a model next door. What it cannot do it
// leaves to another transport. Like that one, it never sends a request twice. Safe for
// concurrent use.
type direct struct {
	host string // as requests name it
	at   string // with its port
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	next *http.Transport

	mu    sync.Mutex    // guards what follows
	idle  []*connection // the last one was used last
	sweep *time.Timer   // closes those that were not used for long; nil if there are none
}

// connection is one to the host, for one exchange at a time.
type connection struct {
	net.Conn

	r     *bufio.Reader
	w     *bufio.Writer
	left  int64     // how much of a header may still be read
	since time.Time // when it became idle
}

// errHeader says that the header of an answer is too large.
var errHeader = errors.New("the header of the answer is too large")

// Read implements io.Reader.
func (c *connection) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errHeader
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// alive reports whether the host has neither closed an idle connection nor said
// anything on it.
func (c *connection) alive() bool {
	socket, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Read(func(fd uintptr) bool { // it never blocks
		_, err := syscall.Read(int(fd), make([]byte, 1))
		quiet = errors.Is(err, syscall.EAGAIN)
		return true
	})
	return err == nil && quiet
}

// RoundTrip implements http.RoundTripper.
func (d *direct) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "http" || r.URL.Host != d.host || r.Host != d.host || r.Body != nil && r.ContentLength <= 0 || r.ContentLength > maxDirectBytes || r.Close || r.Header.Get("Connection") != "" || r.Header.Get("Expect") != "" {
		return d.next.RoundTrip(r)
	}
	ctx := r.Context()
	c, err := d.connect(ctx)
	if err != nil {
		return nil, err
	}
	x := &directBody{ctx: ctx, direct: d, connection: c}
	x.release = context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // it ends what waits
	response, err := c.exchange(r)
	if err != nil {
		_ = x.Close() // it is of no more use
		if ended := context.Cause(ctx); ended != nil {
			return nil, ended
		}
		return nil, err
	}
	x.keep = !response.Close
	if x.from = response.Body; response.Body == http.NoBody {
		x.end(nil)
		return response, nil
	}
	response.Body = x
	return response, nil
}

// connect returns a connection that is in nobody's use.
func (d *direct) connect(ctx context.Context) (*connection, error) {
	for {
		d.mu.Lock()
		n := len(d.idle)
		if n == 0 {
			d.mu.Unlock()
			break
		}
		c := d.idle[n-1]
		d.idle = slices.Delete(d.idle, n-1, n)
		d.mu.Unlock()
		if time.Since(c.since) < idleFor && c.alive() {
			return c, nil
		}
		_ = c.Close() // the host closed it
	}
	made, err := d.dial(ctx, "tcp", d.at)
	if err != nil {
		return nil, err
	}
	c := &connection{Conn: made}
	c.r, c.w = bufio.NewReaderSize(c, readBufferBytes), bufio.NewWriter(made)
	return c, nil
}

// exchange writes a request and reads the header of its answer.
func (c *connection) exchange(r *http.Request) (*http.Response, error) {
	c.left = maxHeaderBytes
	err := r.Write(c.w)
	if err == nil {
		err = c.w.Flush()
	}
	if err != nil { // perhaps it said why it reads no more
		if c.SetReadDeadline(time.Now().Add(lateAnswer)) != nil || r.Context().Err() != nil {
			return nil, err
		}
		response, late := http.ReadResponse(c.r, r)
		if late != nil || response.StatusCode < http.StatusBadRequest {
			return nil, err
		}
		response.Close = true
		return response, nil
	}
	for range maxInterim {
		response, err := http.ReadResponse(c.r, r)
		switch {
		case err != nil:
			return nil, err
		case response.StatusCode == http.StatusSwitchingProtocols:
			return nil, errors.New("the provider switched protocols, unasked")
		case response.StatusCode >= http.StatusOK:
			c.left = math.MaxInt64
			return response, nil
		}
	}
	return nil, errors.New("the provider sent too many interim answers")
}

// put keeps a connection for another exchange.
func (d *direct) put(c *connection) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.idle) >= maxIdle {
		_ = c.Close() // there are enough
		return
	}
	c.since = time.Now()
	d.idle = append(d.idle, c)
	if d.sweep == nil {
		d.sweep = time.AfterFunc(idleFor, d.closeOld)
	}
}

// closeOld closes those that were idle for too long.
func (d *direct) closeOld() {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := 0
	for ; old < len(d.idle) && time.Since(d.idle[old].since) >= idleFor; old++ {
		_ = d.idle[old].Close() // nobody uses it
	}
	d.idle = slices.Delete(d.idle, 0, old)
	if d.sweep = nil; len(d.idle) > 0 {
		d.sweep = time.AfterFunc(idleFor-time.Since(d.idle[0].since), d.closeOld)
	}
}

// CloseIdleConnections serves http.Client.
func (d *direct) CloseIdleConnections() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.idle {
		_ = c.Close() // nobody uses it
	}
	d.idle = nil
	if d.sweep != nil {
		d.sweep.Stop()
		d.sweep = nil
	}
	d.next.CloseIdleConnections()
}

// directBody is the body of an answer. Read is for one goroutine, Close for any.
type directBody struct {
	ctx        context.Context //nolint:containedctx // a Reader's Read has none
	direct     *direct
	connection *connection
	from       io.ReadCloser
	release    func() bool // ends the watch over ctx; false if ctx ended first
	keep       bool        // the host keeps the connection
	over       sync.Once
	failed     error // of Read, from now on
}

// Read implements io.Reader.
func (b *directBody) Read(p []byte) (int, error) {
	if b.failed != nil {
		return 0, b.failed
	}
	n, err := b.from.Read(p)
	if err == nil {
		return n, nil
	}
	if ended := context.Cause(b.ctx); ended != nil && !errors.Is(err, io.EOF) {
		err = ended
	}
	b.failed = err
	b.end(err)
	return n, err
}

// end gives the connection back or, unless its answer was read whole, closes it.
func (b *directBody) end(err error) {
	b.over.Do(func() {
		quiet := b.release()
		if quiet && b.keep && (err == nil || errors.Is(err, io.EOF)) && b.connection.r.Buffered() == 0 {
			b.direct.put(b.connection)
			return
		}
		_ = b.connection.Close() // what was to be read was read
	})
}

// Close implements io.Closer.
func (b *directBody) Close() error {
	b.end(net.ErrClosed)
	return nil
}
