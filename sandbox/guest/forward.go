package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// IdempotencyHeader names the request header that lets the gateway recognise a
// request that it is sent again. The forwarder adds one to each request that
// has none. A program may set its own: the gateway trusts neither, since both
// come from inside the sandbox.
const IdempotencyHeader = "Creto-Idempotency-Key"

const (
	// maxReplayBytes bounds a body that is kept so that it can be sent again.
	maxReplayBytes = 1 << 20
	// maxKeyBytes bounds a program's own idempotency key.
	maxKeyBytes = 128
	// defaultPatience is how long a request waits for a gateway that is gone.
	defaultPatience = 10 * time.Minute
	// firstPause and maxPause bound the pauses between two tries.
	firstPause = 10 * time.Millisecond
	maxPause   = time.Second
)

// Forwarder is the sandbox's way out: an HTTP server, on the loopback, that
// hands each request to the gateway's Unix socket. A request to the forwarder
// itself arrives there in origin form (GET /v1/models), a proxy request in
// absolute form (GET http://host/path) or as CONNECT, as the program sent it.
//
// A body of up to 1 MiB is buffered, and while the gateway is gone, or goes
// away before it answered, the request waits and is sent again with the same
// idempotency key. Larger bodies are streamed and sent once. As soon as a byte
// of an answer has passed, a lost gateway breaks the program's connection off,
// so that a cut answer never looks complete.
//
// It carries no protocol upgrades (WebSocket) and no request trailers.
//
// The zero value with Dial set works. Safe for concurrent use.
type Forwarder struct {
	// Dial connects to the gateway. Required.
	Dial func(context.Context) (net.Conn, error)
	// Patience bounds the wait for a gateway that is gone; 0 means 10 minutes.
	Patience time.Duration

	once             sync.Once
	origin, viaProxy *http.Transport
}

// Serve answers on ln until it is closed, and then returns why. A proxy request
// for ln's own address, which programs without NO_PROXY make, is understood as
// one to the forwarder itself.
func (f *Forwarder) Serve(ln net.Listener) error {
	own := ln.Addr().String()
	_, port, err := net.SplitHostPort(own)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           f.handler(map[string]bool{own: true, net.JoinHostPort("localhost", port): true}),
		ReadHeaderTimeout: time.Minute,
		// Programs keep connections for long; a restart of the gateway or a
		// human's consent may hold an answer for as long as it takes.
		IdleTimeout: 10 * time.Minute,
	}
	return server.Serve(ln)
}

func (f *Forwarder) init() {
	f.once.Do(func() {
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return f.Dial(ctx) }
		f.origin = &http.Transport{DialContext: dial, DisableCompression: true, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute, Proxy: nil}
		f.viaProxy = f.origin.Clone()
		// A proxy of scheme http makes the transport write the absolute form.
		f.viaProxy.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "gateway"})
	})
}

func (f *Forwarder) handler(own map[string]bool) http.Handler {
	f.init()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect {
			f.connect(w, r)
			return
		}
		if r.URL.IsAbs() && own[strings.ToLower(r.URL.Host)] {
			r.URL.Scheme, r.URL.Host = "", ""
		}
		f.forward(w, r)
	})
}

// forward relays one request that is not CONNECT.
func (f *Forwarder) forward(w http.ResponseWriter, r *http.Request) {
	transport := f.origin
	out := r.Clone(r.Context())
	out.RequestURI = ""
	out.Close = false
	if r.URL.IsAbs() {
		if r.URL.Scheme != "http" {
			problem(w, http.StatusBadRequest, "unsupported_scheme", "a proxy request has scheme http; for https use CONNECT")
			return
		}
		transport = f.viaProxy
	} else {
		out.URL.Scheme, out.URL.Host = "http", "gateway"
	}
	out.Header = endToEnd(r.Header)
	setKey(out.Header)
	if out.Header.Get("User-Agent") == "" {
		out.Header["User-Agent"] = nil // else the transport adds its own
	}

	prefix, err := io.ReadAll(io.LimitReader(r.Body, maxReplayBytes+1))
	if err != nil {
		problem(w, http.StatusBadRequest, "body_unreadable", "the request's body could not be read")
		return
	}
	var response *http.Response
	if len(prefix) > maxReplayBytes {
		// The answer may begin before the body ended.
		_ = http.NewResponseController(w).EnableFullDuplex()
		out.Body = io.NopCloser(io.MultiReader(bytes.NewReader(prefix), r.Body))
		out.ContentLength = r.ContentLength
		if response, err = transport.RoundTrip(out); err != nil {
			problem(w, http.StatusBadGateway, "gateway_lost",
				"the gateway did not answer, and a body over "+strconv.Itoa(maxReplayBytes)+" bytes is sent once only; send the request again")
			return
		}
	} else {
		// The context watches for the client's end only once the server knows
		// that the body is read to its end, as it now is.
		response, err = f.insist(r.Context(), func() (*http.Response, error) { //nolint:contextcheck // out carries it
			again := out.Clone(out.Context())
			again.ContentLength = int64(len(prefix))
			again.Body, again.GetBody = http.NoBody, nil
			if len(prefix) > 0 {
				again.Body = io.NopCloser(bytes.NewReader(prefix))
			}
			return transport.RoundTrip(again)
		})
		if err != nil {
			refuse(w, r, err)
			return
		}
	}
	defer response.Body.Close()
	relay(w, response)
}

// insist calls try until it answers, the context ends, the patience is used up
// or the failure is one that a second try would meet again.
func (f *Forwarder) insist(ctx context.Context, try func() (*http.Response, error)) (*http.Response, error) {
	patience := f.Patience
	if patience == 0 {
		patience = defaultPatience
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	pause := firstPause
	for strange := 0; ; {
		response, err := try()
		if err == nil || ctx.Err() != nil {
			return response, err
		}
		if !lost(err) {
			// Such as a malformed answer. Once more, in case it was a server
			// in the middle of its death.
			if strange++; strange > 1 {
				return nil, err
			}
		}
		again := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil, ctx.Err()
		case <-deadline.C:
			again.Stop()
			return nil, err
		case <-again.C:
		}
		pause = min(2*pause, maxPause)
	}
}

// lost reports whether err says that the gateway is not there, or went away.
func lost(err error) bool {
	_, number := errors.AsType[syscall.Errno](err)
	return number || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		// net/http has no value for a kept connection that the server closed.
		strings.Contains(err.Error(), "server closed idle connection")
}

// relay sends response to the client as it comes, and breaks the connection
// off if it ends early.
func relay(w http.ResponseWriter, response *http.Response) {
	header := w.Header()
	for name, values := range endToEnd(response.Header) {
		header[name] = values
	}
	for name := range response.Trailer {
		header.Add("Trailer", name)
	}
	if header.Get("Content-Type") == "" {
		header["Content-Type"] = nil // else the server guesses one
	}
	w.WriteHeader(response.StatusCode)
	flusher := http.NewResponseController(w)
	buffer := make([]byte, 32<<10)
	if response.ContentLength != 0 {
		_ = flusher.Flush() // the client may wait for the header alone
	}
	for {
		n, err := response.Body.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				panic(http.ErrAbortHandler)
			}
			if flusher.Flush() != nil {
				panic(http.ErrAbortHandler)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	for name, values := range response.Trailer {
		header[name] = values
	}
}

// hopByHop are the headers that belong to one connection, RFC 9110 section
// 7.6.1, and those of proxy authentication: the forwarder's caller is known by
// the socket it comes from, and credentials from inside prove nothing.
func hopByHop() []string {
	return []string{"Connection", "Expect", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}
}

func endToEnd(header http.Header) http.Header {
	out := header.Clone()
	if out == nil {
		out = http.Header{}
	}
	for _, value := range header["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopByHop() {
		out.Del(name)
	}
	return out
}

// setKey keeps a well-formed idempotency key and makes one otherwise.
func setKey(header http.Header) {
	keys := header.Values(IdempotencyHeader)
	ok := len(keys) == 1 && keys[0] != "" && len(keys[0]) <= maxKeyBytes
	for _, key := range keys {
		for _, c := range []byte(key) {
			ok = ok && c > ' ' && c < 0x7f
		}
	}
	if !ok {
		header.Set(IdempotencyHeader, newKey())
	}
}

// newKey returns a random UUID, RFC 9562 section 5.4.
func newKey() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	text := hex.EncodeToString(b[:])
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}

// refuse answers a request for which the gateway could not be reached.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // nobody is left to answer
	case lost(err):
		problem(w, http.StatusBadGateway, "gateway_gone", "the gateway did not come back; is the server running?")
	default:
		problem(w, http.StatusBadGateway, "gateway_answer", "the gateway's answer could not be understood")
	}
}

// problem answers with RFC 9457 problem details.
func problem(w http.ResponseWriter, status int, code, detail string) {
	body, _ := json.Marshal(map[string]any{ // of strings and an int: cannot fail
		"type": "about:blank", "title": http.StatusText(status), "status": status, "code": code, "detail": detail,
	})
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
