package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/idna"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
	"creto.dev/gate"
)

// hopByHop are the headers of one connection (RFC 9110, section 7.6.1), which a
// proxy does not pass on.
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// overrides are headers by which some servers take another method than the one
// that was decided on.
var overrides = []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"}

// request is plain HTTP through the proxy: decided on method, path and body.
func (g *Gateway) request(w http.ResponseWriter, r *http.Request, authenticate Authenticate) {
	origin, err := authenticate(r)
	if err != nil {
		faulthttp.Write(w, r, err)
		return
	}
	target, err := canonicalURL(r.URL)
	if err != nil {
		faulthttp.Write(w, r, err)
		return
	}
	body, err := readBody(w, r)
	if err != nil {
		faulthttp.Write(w, r, err)
		return
	}
	facts := map[string]any{"method": r.Method, "host": target.Host, "path": target.Path, "query": target.RawQuery}
	if err := addBody(facts, r.Header, body); err != nil {
		faulthttp.Write(w, r, err)
		return
	}
	resource := *target
	resource.RawQuery = ""
	sent := &startedWriter{ResponseWriter: w}
	id, err := g.gate.Do(r.Context(), origin.Caller, creto.Action{
		Name: creto.HTTPRequest, Resource: creto.Resource{Type: "Url", ID: resource.String()}, Args: arguments(r, target, body),
		Context: facts, IdempotencyKey: r.Header.Get(IdempotencyHeader), Sandbox: origin.Sandbox, Isolation: origin.Isolation,
	}, func(ctx context.Context) (gate.Result, error) {
		return g.forward(ctx, sent, r, target, body)
	})
	finish(sent, r, id, err)
}

// finish reports an error that came before the response began; after that the
// connection is cut, so that half an answer is never taken for a whole one.
func finish(w *startedWriter, r *http.Request, _ creto.UUID, err error) {
	switch {
	case err == nil:
	case w.started:
		panic(http.ErrAbortHandler)
	default:
		faulthttp.Write(w, r, err)
	}
}

// canonicalURL returns the one form of a URL that policies see and upstreams
// get: what was decided on is what is sent.
func canonicalURL(u *url.URL) (*url.URL, error) {
	const op fault.Op = "gateway.canonicalURL"
	if u.Scheme != "http" {
		return nil, fault.New(op, fault.InvalidArgument, "the scheme %q cannot be proxied; use http, or https through CONNECT", u.Scheme)
	}
	if u.User != nil {
		return nil, fault.New(op, fault.InvalidArgument, "a URL with a user name or password is refused")
	}
	host, err := canonicalHost(u.Hostname(), u.Port(), "80")
	if err != nil {
		return nil, err
	}
	// An encoded slash or dot means one thing to some servers and another to
	// others.
	if escaped := strings.ToLower(u.EscapedPath()); strings.Contains(escaped, "%2f") || strings.Contains(escaped, "%5c") || strings.Contains(escaped, "%2e") || strings.ContainsAny(u.Path, "\\\x00;") {
		return nil, fault.New(op, fault.InvalidArgument, "the path %q is ambiguous: encoded slashes and dots, backslashes and semicolons are refused", u.EscapedPath())
	}
	clean := path.Clean("/" + u.Path)
	if strings.HasSuffix(u.Path, "/") && clean != "/" {
		clean += "/"
	}
	return &url.URL{Scheme: u.Scheme, Host: strings.TrimSuffix(host, ":80"), Path: clean, RawQuery: u.RawQuery}, nil
}

// canonicalHost returns host:port in lower case and ASCII.
func canonicalHost(host, port, defaultPort string) (string, error) {
	const op fault.Op = "gateway.canonicalHost"
	host = strings.TrimSuffix(host, ".")
	if ip := net.ParseIP(host); ip == nil {
		ascii, err := idna.Lookup.ToASCII(host)
		if err != nil || ascii == "" {
			return "", fault.New(op, fault.InvalidArgument, "%q is no host", host)
		}
		host = ascii
	}
	if port == "" {
		port = defaultPort
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fault.New(op, fault.InvalidArgument, "%q is no port", port)
	}
	return net.JoinHostPort(host, port), nil
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	const op fault.Op = "gateway.readBody"
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBodyBytes))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, fault.New(op, fault.InvalidArgument, "the body is larger than %d MiB", MaxBodyBytes>>20)
	}
	return body, fault.WrapAs(op, fault.Canceled, err, "the body did not arrive whole")
}

// arguments is the exact request as an approver sees it and a consent is bound
// to it.
func arguments(r *http.Request, target *url.URL, body []byte) []byte {
	var b bytes.Buffer
	b.WriteString(r.Method + " " + target.String() + "\n")
	for _, name := range []string{"Content-Type", "Content-Encoding"} {
		if value := r.Header.Get(name); value != "" {
			b.WriteString(name + ": " + value + "\n")
		}
	}
	b.WriteString("\n")
	b.Write(body)
	return b.Bytes()
}

// forward sends the request that was decided on and streams the answer back.
func (g *Gateway) forward(ctx context.Context, w *startedWriter, r *http.Request, target *url.URL, body []byte) (gate.Result, error) {
	const op fault.Op = "gateway.forward"
	result := gate.Result{Detail: map[string]string{"method": r.Method, "decided_on": "method, path and body"}}
	out, err := http.NewRequestWithContext(ctx, r.Method, target.String(), bytes.NewReader(body))
	if err != nil {
		return result, fault.WrapAs(op, fault.InvalidArgument, err, "the request cannot be sent on")
	}
	out.Header = r.Header.Clone()
	for _, name := range connectionHeaders(r.Header) {
		out.Header.Del(name)
	}
	for _, name := range overrides {
		out.Header.Del(name)
	}
	out.Header.Del(IdempotencyHeader)
	if key := r.Header.Get(IdempotencyHeader); key != "" && out.Header.Get("Idempotency-Key") == "" {
		out.Header.Set("Idempotency-Key", key)
	}
	response, err := g.transport.RoundTrip(out)
	if err != nil {
		return result, upstream(op, err, target.Host)
	}
	defer func() { _ = response.Body.Close() }()
	result.Detail["status"] = strconv.Itoa(response.StatusCode)
	header := w.Header()
	for name, values := range response.Header {
		header[name] = values
	}
	for _, name := range connectionHeaders(response.Header) {
		header.Del(name)
	}
	w.WriteHeader(response.StatusCode)
	n, err := copyFlushing(w, response.Body)
	result.Detail["bytes"] = strconv.FormatInt(n, 10)
	return result, fault.WrapAs(op, fault.Unavailable, err, "the answer of %s broke off", target.Host)
}

func connectionHeaders(h http.Header) []string {
	names := slices.Clone(hopByHop)
	for _, value := range h.Values("Connection") {
		for name := range strings.SplitSeq(value, ",") {
			names = append(names, strings.TrimSpace(name))
		}
	}
	return names
}

// upstream classifies a failed exchange. A refusal by the guard keeps its code.
func upstream(op fault.Op, err error, host string) error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return fault.Wrap(op, f)
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fault.Wrap(op, err)
	}
	return fault.WrapAs(op, fault.Unavailable, err, "%s did not answer", host)
}

// copyBuffer is the size of one piece of a streamed answer.
const copyBuffer = 32 << 10

// copyFlushing passes each piece on as it arrives.
func copyFlushing(w *startedWriter, r io.Reader) (int64, error) {
	controller := http.NewResponseController(w.ResponseWriter)
	buffer := make([]byte, copyBuffer)
	var total int64
	for {
		n, err := r.Read(buffer)
		if n > 0 {
			if _, werr := w.Write(buffer[:n]); werr != nil {
				return total, werr
			}
			total += int64(n)
			if ferr := controller.Flush(); ferr != nil {
				return total, ferr
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// startedWriter knows whether the response has begun.
type startedWriter struct {
	http.ResponseWriter
	started bool
}

// WriteHeader implements http.ResponseWriter.
func (w *startedWriter) WriteHeader(status int) {
	w.started = true
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *startedWriter) Write(p []byte) (int, error) {
	w.started = true
	return w.ResponseWriter.Write(p)
}

// Unwrap serves http.ResponseController.
func (w *startedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// connect is a tunnel to host:port. What goes through it is not seen: it is
// decided by host alone.
func (g *Gateway) connect(w http.ResponseWriter, r *http.Request, authenticate Authenticate) {
	origin, err := authenticate(r)
	if err != nil {
		faulthttp.Write(w, r, err)
		return
	}
	target, err := canonicalHost(r.URL.Hostname(), r.URL.Port(), "443")
	if err != nil {
		faulthttp.Write(w, r, err)
		return
	}
	sent := &startedWriter{ResponseWriter: w}
	id, err := g.gate.Do(r.Context(), origin.Caller, creto.Action{
		Name: creto.NetworkEgress, Resource: creto.Resource{Type: "Host", ID: target}, Args: []byte("CONNECT " + target),
		Context: map[string]any{"host": target}, IdempotencyKey: r.Header.Get(IdempotencyHeader), Sandbox: origin.Sandbox, Isolation: origin.Isolation,
	}, func(ctx context.Context) (gate.Result, error) {
		return g.tunnel(ctx, sent, target)
	})
	if sent.started && err != nil {
		return // the connection is hijacked and closed
	}
	finish(sent, r, id, err)
}

func (g *Gateway) tunnel(ctx context.Context, w *startedWriter, target string) (gate.Result, error) {
	const op fault.Op = "gateway.tunnel"
	result := gate.Result{Detail: map[string]string{"decided_on": "host only"}}
	out, err := g.dialer.dial(ctx, "tcp", target)
	if err != nil {
		return result, fault.Wrap(op, err)
	}
	defer func() { _ = out.Close() }()
	in, buffered, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return result, fault.WrapAs(op, fault.Internal, err, "")
	}
	w.started = true
	defer func() { _ = in.Close() }()
	// A shutdown ends the tunnel; its record is written then.
	stop := context.AfterFunc(ctx, func() { _ = in.Close(); _ = out.Close() })
	defer stop()
	if _, err := io.WriteString(in, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		return result, fault.WrapAs(op, fault.Canceled, err, "the caller went away")
	}
	var up, down int64
	var group sync.WaitGroup
	group.Go(func() {
		up, _ = io.Copy(out, buffered)
		closeWrite(out)
	})
	group.Go(func() {
		down, _ = io.Copy(in, out)
		closeWrite(in)
	})
	group.Wait()
	result.Detail["bytes_sent"] = strconv.FormatInt(up, 10)
	result.Detail["bytes_received"] = strconv.FormatInt(down, 10)
	return result, nil
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
