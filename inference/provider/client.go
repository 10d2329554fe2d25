package provider

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/propagation"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
)

// The defaults of a [Config].
const (
	DefaultTimeout          = 10 * time.Minute
	DefaultIdleTimeout      = 2 * time.Minute
	DefaultMaxResponseBytes = 32 << 20
)

const (
	// maxErrorBytes is how much of an error's body is read.
	maxErrorBytes = 64 << 10
	// maxEventBytes bounds one event of a stream.
	maxEventBytes = 4 << 20
	// readBufferBytes is how much of an answer is read at once.
	readBufferBytes = 16 << 10
	// maxBelieved is how much memory an answer gets ahead for what it says of its
	// length.
	maxBelieved = 64 << 10
	// maxDrainBytes is how much is read, after the end of an answer, so that the
	// connection can be used again.
	maxDrainBytes = 64 << 10
)

// Config is where an upstream is, and how long it may take.
type Config struct {
	// Name is the model's ID. Required.
	Name string
	// BaseURL is the address up to and with the version, such as
	// https://api.openai.com/v1 or https://api.anthropic.com/v1. Required.
	BaseURL string
	// APIKey is sent in the header that the dialect names, and nowhere else.
	// Optional.
	APIKey creto.Secret
	// Capabilities are what the configuration says of the upstream.
	Capabilities inference.Capabilities
	// Timeout bounds one call, its stream included. 0 means DefaultTimeout.
	Timeout time.Duration
	// IdleTimeout bounds the silence between two pieces of a stream. 0 means
	// DefaultIdleTimeout.
	IdleTimeout time.Duration
	// MaxResponseBytes bounds an answer, decompressed. 0 means
	// DefaultMaxResponseBytes.
	MaxResponseBytes int64
	// Local has connections made to BaseURL's host and port alone, by no proxy, and
	// refuses what would have the server there fetch addresses or ask Ollama's cloud.
	// A Transport that is given is left as it is.
	Local bool
	// TraceContext has requests carry the trace context of their call, if it has one
	// (W3C Trace Context). What is asked for tokens never does.
	TraceContext bool
	// Transport makes the connections. nil means one of its own.
	Transport http.RoundTripper
}

// client is what the clients of all dialects have in common: one HTTP request
// per call, bounded in time and size.
type client struct {
	config Config
	base   *url.URL
	target atomic.Pointer[target] // the last one: most calls go where the one before went
	http   *http.Client           // for what is not asked by send
	// query goes with each request whose path has none.
	query string
	// media is the type of streams, and split what finds the events in one.
	media string
	split func(io.Reader, int64) eventReader
	// list is the path of the models, which tells whether the provider answers.
	list string
	// sign adds the key and what else each request of the dialect says. Its
	// errors are those of a call.
	sign func(ctx context.Context, op fault.Op, h http.Header) error
	// refused hears which Authorization the provider did not accept, where the next
	// one may be another; nil where it is the same.
	refused func(authorization string)
	// fault is what an answer that is no success means.
	fault func(op fault.Op, status int, header http.Header, body []byte) error
}

// newClient returns a client without its dialect. others are the problems of what
// the dialect's own configuration has beside c.
//
// Errors: InvalidArgument (Permanent), with every problem of the configuration.
func newClient(op fault.Op, c Config, others ...error) (*client, error) {
	base, err := c.validate()
	if err := errors.Join(append([]error{err}, others...)...); err != nil {
		return nil, fault.New(op, fault.InvalidArgument, "%s", err)
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = DefaultIdleTimeout
	}
	if c.MaxResponseBytes == 0 {
		c.MaxResponseBytes = DefaultMaxResponseBytes
	}
	if c.Transport == nil {
		dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
		dial, proxy := dialer.DialContext, http.ProxyFromEnvironment
		if c.Local {
			dial, proxy = only(base, dial), nil
		}
		transport := &http.Transport{
			Proxy:                  proxy,
			DialContext:            dial,
			ForceAttemptHTTP2:      true,
			TLSHandshakeTimeout:    10 * time.Second,
			ReadBufferSize:         readBufferBytes, // many pieces of a stream at once
			MaxIdleConns:           256,
			MaxIdleConnsPerHost:    maxIdle,
			IdleConnTimeout:        idleFor,
			MaxResponseHeaderBytes: maxHeaderBytes,
		}
		c.Transport = transport
		if !proxied(base, proxy) {
			c.Transport = &direct{host: base.Host, at: withPort(base), dial: dial, next: transport}
		}
	}
	return &client{config: c, base: base, list: "models", media: "text/event-stream", split: serverSentEvents, http: &http.Client{
		Transport: c.Transport,
		// A redirect would carry prompts, and on one host the key, elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// proxied reports whether requests go through a proxy, or are none that [direct] makes.
func proxied(base *url.URL, proxy func(*http.Request) (*url.URL, error)) bool {
	if base.Scheme != "http" {
		return true
	}
	if proxy == nil {
		return false
	}
	by, err := proxy(&http.Request{URL: base})
	return err != nil || by != nil
}

// withPort returns the host of an address in clear, and its port.
func withPort(base *url.URL) string {
	return net.JoinHostPort(base.Hostname(), cmp.Or(base.Port(), "80"))
}

// only returns a dial that leads to base and nowhere else, whatever a proxy, a
// redirect or a later mistake asks it for.
func only(base *url.URL, dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	port := base.Port()
	if port == "" {
		port = base.Scheme // a service's name is its port's
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, asked, err := net.SplitHostPort(address)
		if err != nil || !strings.EqualFold(host, base.Hostname()) || !samePort(ctx, network, asked, port) {
			return nil, fault.New("provider.dial", fault.PermissionDenied, "%q is not the address of this provider, which is local", address)
		}
		return dial(ctx, network, address)
	}
}

func samePort(ctx context.Context, network, a, b string) bool {
	x, errX := net.DefaultResolver.LookupPort(ctx, network, a)
	y, errY := net.DefaultResolver.LookupPort(ctx, network, b)
	return errX == nil && errY == nil && x == y
}

func (c Config) validate() (*url.URL, error) {
	var errs []error
	if (creto.ID{TrustDomain: "x", Tenant: "x", Kind: creto.KindWorkload, Name: c.Name}).Validate() != nil {
		errs = append(errs, fmt.Errorf("name: %q is no name", c.Name))
	}
	base, err := url.Parse(c.BaseURL)
	switch {
	case err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "":
		errs = append(errs, errors.New("base url: not an address such as https://api.openai.com/v1"))
	case base.User != nil || base.RawQuery != "" || base.Fragment != "":
		errs = append(errs, errors.New("base url: must have no user, query or fragment"))
	}
	if strings.ContainsAny(c.APIKey.Reveal(), "\r\n\x00") {
		errs = append(errs, errors.New("api key: holds a line break"))
	}
	if c.Timeout < 0 || c.IdleTimeout < 0 || c.MaxResponseBytes < 0 {
		errs = append(errs, errors.New("timeouts and limits: must not be negative"))
	}
	return base, errors.Join(errs...)
}

// Close closes idle connections. Calls under way go on.
func (c *client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Format prints the name alone: package fmt sees through unexported fields, to
// the key.
func (c *client) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "provider %s", c.config.Name) }

// ID implements [inference.Model].
func (c *client) ID() string { return c.config.Name }

// Capabilities implements [inference.Model].
func (c *client) Capabilities() inference.Capabilities {
	known := c.config.Capabilities
	known.Models = append([]string(nil), known.Models...)
	known.Classifications = append([]inference.Classification(nil), known.Classifications...)
	return known
}

// Health implements [inference.Model]: it lists the models, which costs nothing.
// A server without that list answers all the same.
func (c *client) Health(ctx context.Context) error {
	const op fault.Op = "provider.Health"
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	resp, err := c.send(ctx, op, http.MethodGet, c.list, nil, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it was only read
	defer drain(resp.Body)
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed {
		return nil
	}
	return c.refusal(op, resp)
}

// foreign keeps an error's text and drops what it is: a provider's malformed
// answer is no invalid argument of the caller's.
func foreign(err error) error { return errors.New(err.Error()) }

// estimate is the usage of an answer of so many bytes whose tokens the provider
// did not count.
func estimate(r inference.Request, answerBytes int) inference.Usage {
	return inference.Usage{
		PromptTokens:     inference.EstimateTokens(r.SizeBytes()),
		CompletionTokens: inference.EstimateTokens(answerBytes),
		Estimated:        true,
	}
}

// exchange posts body and returns the whole answer.
func (c *client) exchange(ctx context.Context, op fault.Op, path string, body []byte, header http.Header) ([]byte, error) {
	ctx, cancel := within(ctx, c.config.Timeout)
	defer cancel()
	resp, err := c.send(ctx, op, http.MethodPost, path, body, header)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it was only read
	defer drain(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return nil, c.refusal(op, resp)
	}
	var answer bytes.Buffer
	if n := resp.ContentLength; n > 0 { // what is said to come, if it is believable
		answer.Grow(int(min(n, maxBelieved)) + bytes.MinRead)
	}
	n, err := answer.ReadFrom(io.LimitReader(resp.Body, c.config.MaxResponseBytes+1))
	switch {
	case err != nil:
		return nil, broken(ctx, op, err)
	case n > c.config.MaxResponseBytes:
		return nil, tooLarge(op, c.config.MaxResponseBytes)
	}
	return answer.Bytes(), nil
}

// within returns ctx bounded by d, which it may be already.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if until, ok := ctx.Deadline(); ok && time.Until(until) <= d {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}

// send makes one request; a second if the provider refused a token that can be
// replaced. The caller closes the body of the response.
func (c *client) send(ctx context.Context, op fault.Op, method, path string, body []byte, header http.Header) (*http.Response, error) {
	for name, values := range header {
		for _, v := range values {
			if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return nil, fault.New(op, fault.InvalidArgument, "%s: holds what a header cannot", name)
			}
		}
	}
	resp, err := c.try(ctx, op, method, path, body, header)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || c.refused == nil {
		return resp, err
	}
	c.refused(resp.Request.Header.Get("Authorization"))
	drain(resp.Body)
	return c.try(ctx, op, method, path, body, header)
}

func (c *client) try(ctx context.Context, op fault.Op, method, path string, body []byte, header http.Header) (*http.Response, error) {
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if method == http.MethodPost {
		req.Header["Content-Type"] = jsonType
	}
	req.Header["User-Agent"] = userAgent
	if c.config.TraceContext {
		propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(req.Header))
	}
	if err := c.sign(ctx, op, req.Header); err != nil {
		return nil, err
	}
	// Not by http.Client, which would follow redirects and keep cookies: a redirect
	// would carry prompts, and on one host the key, elsewhere.
	resp, err := c.config.Transport.RoundTrip(req)
	if err != nil {
		return nil, broken(ctx, op, err)
	}
	resp.Request = req // whatever the transport made of it
	return resp, nil
}

// The values of headers that all requests have. Nobody changes them.
var (
	jsonType  = []string{"application/json"}
	userAgent = []string{"creto"}
)

// request returns a request without its headers. It has no GetBody: with one,
// net/http sends a request that has an idempotency key again by itself when a used
// connection breaks.
func (c *client) request(ctx context.Context, method, path string, body []byte) (*http.Request, error) {
	to := c.target.Load()
	if to == nil || to.path != path {
		before, query, _ := strings.Cut(path, "?")
		address := c.base.JoinPath(before)
		address.RawQuery = cmp.Or(query, c.query)
		// As net/http reads it, which is stricter than JoinPath.
		req, err := http.NewRequestWithContext(ctx, method, address.String(), nil)
		if err != nil {
			return nil, err
		}
		to = &target{path, req.URL, req.Host}
		c.target.Store(to)
	}
	address := *to.url
	req := (&http.Request{
		Method: method, URL: &address, Host: to.host, Header: make(http.Header, 8), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	if len(body) > 0 {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	return req, nil
}

// target is an address that was put together.
type target struct {
	path string
	url  *url.URL
	host string
}

// refusal reads an answer that is no success.
func (c *client) refusal(op fault.Op, resp *http.Response) error {
	// What cannot be read says no more than the status does.
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	err := c.fault(op, resp.StatusCode, resp.Header, redact(body, resp.Request.Header))
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusPaymentRequired, http.StatusForbidden:
		if errors.Is(err, fault.InferenceProviderError) {
			return fault.Wrap(op, errors.Join(err, inference.ErrKeyRefused))
		}
	}
	return err
}

// redact takes the credentials of a request out of what was answered to it: some
// servers quote them in their errors, which go to the log.
func redact(body []byte, sent http.Header) []byte {
	for _, name := range []string{"Authorization", "Api-Key", "X-Api-Key", "X-Goog-Api-Key", "X-Amz-Security-Token"} {
		value := strings.TrimPrefix(sent.Get(name), "Bearer ")
		if value == "" {
			continue
		}
		body = bytes.ReplaceAll(body, []byte(value), []byte("***"))
		if escaped, err := json.Marshal(value); err == nil { // as JSON writes it
			body = bytes.ReplaceAll(body, bytes.Trim(escaped, `"`), []byte("***"))
		}
	}
	return body
}

// broken classifies the failure of a connection.
func broken(ctx context.Context, op fault.Op, err error) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errIdle), errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fault.WrapAs(op, fault.InferenceTimeout, err, "the provider did not answer in time")
	case cause != nil:
		return fault.WrapAs(op, fault.Canceled, err, "the call was canceled")
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return fault.WrapAs(op, fault.InferenceTimeout, err, "the provider did not answer in time")
	}
	return fault.WrapAs(op, fault.InferenceProviderUnavailable, err, "the provider cannot be reached or broke off")
}

func tooLarge(op fault.Op, limit int64) error {
	return fault.New(op, fault.InferenceProviderError, "the provider's answer is larger than %d bytes", limit)
}

// drain reads the rest of a body, if it is short, so that its connection can be
// used again, and closes it.
func drain(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, maxDrainBytes) // best effort
	_ = body.Close()                                 // it was only read
}

// isStream reports whether a response is a stream of the dialect.
func (c *client) isStream(h http.Header) bool {
	media, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && media == c.media
}
