package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/gate"
)

// exchange is a request as it is decided on, shown and sent: there is no second
// form of it.
type exchange struct {
	method string
	target *url.URL
	header http.Header
	body   []byte
}

// request is plain HTTP through the proxy: decided on method, path and body.
func (g *Gateway) request(w *startedWriter, r *http.Request, v *visit) error {
	const op fault.Op = "gateway.request"
	if r.Method != strings.ToUpper(r.Method) {
		return fault.New(op, fault.InvalidArgument, "the method %.50q is not in upper case; some servers read it as another", r.Method)
	}
	target, err := canonicalURL(r.URL)
	if err != nil {
		return err
	}
	x := exchange{method: r.Method, target: target, header: endToEnd(r.Header)}
	if x.body, err = v.body(w, r); err != nil {
		return err
	}
	facts := map[string]any{"method": x.method, "host": target.Host, "path": target.Path, "query": target.RawQuery}
	seen, err := readable(x.header, x.body)
	if err == nil && seen {
		facts["body"], err = strictJSON(x.body)
	}
	if err != nil {
		return err
	}
	resource := *target
	resource.RawQuery = "" // it may hold what a log should not
	id, err := g.gate.Do(r.Context(), v.Caller, creto.Action{
		Name: creto.HTTPRequest, Resource: creto.Resource{Type: "Url", ID: resource.String()}, Args: x.arguments(),
		Context: facts, IdempotencyKey: v.key, Sandbox: v.Sandbox, Isolation: v.Isolation,
	}, v.inForce(0, func(ctx context.Context) (gate.Result, error) {
		detail := map[string]string{"method": x.method, "decided_on": "method and path"}
		if seen {
			detail["decided_on"] = "method, path and body"
		}
		// They are no part of x, which is what was decided on and shown.
		extra, err := g.credentials(ctx, v, x, detail)
		if err != nil {
			return gate.Result{Detail: detail}, err
		}
		return gate.Result{Detail: detail}, g.forward(ctx, w, x, extra, v.key, detail)
	}))
	recorded(r.Context(), id, err)
	return err
}

// hopByHop are the headers of one connection (RFC 9110, section 7.6.1), which a
// proxy does not pass on.
var hopByHop = []string{
	"Connection", "Expect", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// misleading are headers by which some servers take a request for another than
// the one that was decided on, or its sender for another; and those that
// net/http writes itself.
var misleading = []string{
	"Content-Length", "Forwarded", "Host", "X-Host", "X-Http-Host-Override", "X-Http-Method", "X-Http-Method-Override", "X-Method-Override", "X-Original-Host",
	"X-Original-Url", "X-Real-Ip", "X-Rewrite-Url", IdempotencyHeader,
}

// endToEnd returns the headers of a request that are sent on.
func endToEnd(h http.Header) http.Header {
	out := h.Clone()
	dropConnection(out)
	for name := range h {
		// Interfaces such as CGI read _ as -.
		plain := http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
		second := plain != name && (h[plain] != nil || strings.HasPrefix(plain, "Content-"))
		if second || slices.Contains(hopByHop, plain) || slices.Contains(misleading, plain) || strings.HasPrefix(plain, "X-Forwarded-") {
			delete(out, name)
		}
	}
	return out
}

// dropConnection removes the headers that h says are of one connection.
func dropConnection(h http.Header) {
	for _, value := range h.Values("Connection") {
		for name := range strings.SplitSeq(value, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
}

// arguments is the exact request as an approver sees it and a consent is bound
// to it: every header that is sent counts, since any may change what is done.
// Of a credential the digest is shown. Left out are trace headers, which differ
// each time and by their definition (W3C Trace Context) change nothing.
func (x exchange) arguments() []byte {
	var b bytes.Buffer
	b.WriteString(x.method + " " + x.target.String() + "\n")
	names := make([]string, 0, len(x.header))
	for name := range x.header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if name == "Traceparent" || name == "Tracestate" {
			continue
		}
		for _, value := range x.header[name] {
			if isCredential(name) {
				value = "*** " + creto.DigestOf([]byte(value)).String()
			}
			b.WriteString(name + ": " + value + "\n")
		}
	}
	b.WriteString("\n")
	b.Write(x.body)
	return b.Bytes()
}

// isCredential reports whether a header's name says that its value is one.
func isCredential(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc([]string{"auth", "cookie", "credential", "key", "pass", "secret", "session", "signature", "token"}, func(word string) bool {
		return strings.Contains(name, word) && name != "idempotency-key"
	})
}

// forward sends the request that was decided on, with what is added to it, and
// streams the answer back. It
// follows no redirect, which would be another request, and passes on no interim
// answers and no trailers.
func (g *Gateway) forward(ctx context.Context, w *startedWriter, x exchange, extra added, key string, detail map[string]string) error {
	const op fault.Op = "gateway.forward"
	out, err := http.NewRequestWithContext(ctx, x.method, x.target.String(), bytes.NewReader(x.body))
	if err != nil {
		return fault.WrapAs(op, fault.InvalidArgument, err, "the request cannot be sent on")
	}
	out.Header = x.header.Clone()
	if key != "" && out.Header.Get("Idempotency-Key") == "" {
		out.Header.Set("Idempotency-Key", key)
	}
	if len(out.Header["User-Agent"]) == 0 {
		out.Header["User-Agent"] = nil // or net/http adds its own
	}
	extra.replace(out.Header)
	response, err := g.transport.RoundTrip(out)
	if err != nil {
		return upstream(op, err, x.target.Host+" did not answer")
	}
	defer func() { _ = response.Body.Close() }()
	detail["status"] = strconv.Itoa(response.StatusCode)
	if response.StatusCode == http.StatusSwitchingProtocols {
		return fault.New(op, fault.Unavailable, "%s switches to another protocol, which was not asked for", x.target.Host)
	}
	body, err := extra.withhold(response)
	if err != nil {
		return fault.Wrap(op, err)
	}
	header := w.Header()
	header["Content-Type"] = nil // or net/http guesses one
	for name, values := range response.Header {
		header[name] = values
	}
	dropConnection(header)
	w.WriteHeader(response.StatusCode)
	n, err := w.stream(body)
	detail["bytes"] = strconv.FormatInt(n, 10)
	if err != nil {
		return upstream(op, err, "the answer of "+x.target.Host+" broke off")
	}
	return nil
}

// upstream classifies a failed exchange. A fault, such as a refusal by the
// guard, keeps its code.
func upstream(op fault.Op, err error, what string) error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return fault.Wrap(op, f)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fault.Wrap(op, err)
	}
	return fault.WrapAs(op, fault.Unavailable, err, "%s", what)
}

// startedWriter knows whether the response has begun.
type startedWriter struct {
	http.ResponseWriter
	started bool
	before  func(http.Header) // adds headers, just before they are sent; nil adds none
}

func (w *startedWriter) start() {
	if !w.started && w.before != nil {
		w.before(w.Header())
	}
	w.started = true
}

// WriteHeader implements http.ResponseWriter.
func (w *startedWriter) WriteHeader(status int) {
	w.start()
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *startedWriter) Write(p []byte) (int, error) {
	w.start()
	return w.ResponseWriter.Write(p)
}

// Unwrap serves http.ResponseController.
func (w *startedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// send writes one piece and passes it on at once.
//
// Errors: Canceled (Permanent) if the caller went away.
func (w *startedWriter) send(p []byte) error {
	_, err := w.Write(p)
	if err == nil {
		err = http.NewResponseController(w.ResponseWriter).Flush()
	}
	return left(err)
}

// left returns the fault of a caller who does not take the answer.
//
// Errors: Canceled (Permanent).
func left(err error) error {
	return fault.WrapAs("gateway.send", fault.Canceled, err, "the caller went away")
}

// copyBuffer is the size of one piece of a streamed answer.
const copyBuffer = 32 << 10

// stream passes the header on, and each piece as it arrives.
func (w *startedWriter) stream(r io.Reader) (int64, error) {
	if err := w.send(nil); err != nil {
		return 0, err
	}
	buffer := make([]byte, copyBuffer)
	var total int64
	for {
		n, err := r.Read(buffer)
		if n > 0 {
			if err := w.send(buffer[:n]); err != nil {
				return total, err
			}
			total += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
