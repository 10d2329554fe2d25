package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/gate"
)

// What one agent may have under way at a time, over all its runs, so that none
// takes the node's memory or descriptors from the others.
const (
	maxRequests      = 256
	maxBufferedBytes = 2 * MaxBodyBytes
)

// tryAgain is when an agent that has too much under way may come back.
const tryAgain = time.Second

// load counts what is under way.
type load struct {
	mu     sync.Mutex // guards agents, and what is in them
	agents map[creto.ID]*share
}

// share is what one agent has under way.
type share struct {
	load     *load
	agent    creto.ID
	requests int
	bytes    int64
}

// enter adds a request to an agent's share; nil if it has too many under way.
func (l *load) enter(agent creto.ID) *share {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.agents[agent]
	if s == nil {
		s = &share{load: l, agent: agent}
		l.agents[agent] = s
	}
	if s.requests >= maxRequests {
		return nil
	}
	s.requests++
	return s
}

// hold adds bytes, and reports whether that is within the bounds; if not, nothing was
// changed.
func (s *share) hold(bytes int64) bool {
	s.load.mu.Lock()
	defer s.load.mu.Unlock()
	if s.bytes+bytes > maxBufferedBytes {
		return false
	}
	s.bytes += bytes
	return true
}

// leave takes a request off the share, with the bytes that it held.
func (s *share) leave(bytes int64) {
	s.load.mu.Lock()
	defer s.load.mu.Unlock()
	s.requests--
	s.bytes -= bytes
	if s.requests == 0 {
		delete(s.load.agents, s.agent)
	}
}

// visit is one request at a door, of a sender who is known.
type visit struct {
	Origin
	arrival
	key     string // of idempotency
	agent   creto.ID
	share   *share
	bytes   int64 // held of share
	recheck func() error
	seen    *inspected // of a model call
}

// admit lets a request in. The caller calls leave when it is over.
//
// Errors: those of authenticate; RateLimited (Transient) for an agent that has
// too much under way; InvalidArgument (Permanent).
func (g *Gateway) admit(r *http.Request, authenticate Authenticate) (*visit, error) {
	const op fault.Op = "gateway.admit"
	origin, err := authenticate(r)
	if err != nil {
		return nil, err
	}
	key, err := idempotencyKey(r.Header)
	if err != nil {
		return nil, err
	}
	agent := origin.Caller.Identity().ID
	share := g.load.enter(agent)
	if share == nil {
		return nil, fault.After(fault.New(op, fault.RateLimited, "%s has %d requests under way; wait for one of them", agent.Name, maxRequests), tryAgain)
	}
	known(r.Context(), agent, origin.Sandbox)
	return &visit{Origin: origin, key: key, agent: agent, share: share, arrival: arrived(r), recheck: func() error {
		_, err := authenticate(r)
		return err
	}}, nil
}

func (v *visit) leave() { v.share.leave(v.bytes) }

// maxKeyBytes bounds an idempotency key.
const maxKeyBytes = 128

func idempotencyKey(h http.Header) (string, error) {
	const op fault.Op = "gateway.idempotencyKey"
	key := h.Get(IdempotencyHeader)
	ok := len(h.Values(IdempotencyHeader)) <= 1 && len(key) <= maxKeyBytes
	for _, c := range []byte(key) {
		ok = ok && ' ' < c && c < 0x7f
	}
	if !ok {
		return "", fault.New(op, fault.InvalidArgument, "%s is not one key of at most %d visible characters", IdempotencyHeader, maxKeyBytes)
	}
	return key, nil
}

// maxBelieved is how much memory a body gets ahead for what its header says of its
// length.
const maxBelieved = 64 << 10

// body reads a request's body. It is held in memory until the visit is over:
// what is decided on is what is sent.
//
// Errors: InvalidArgument (Permanent), with *http.MaxBytesError or
// os.ErrDeadlineExceeded in its chain where that is why; RateLimited (Transient).
func (v *visit) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	const op fault.Op = "gateway.body"
	tooLarge := func(err error) error {
		hearOut(r)
		return fault.WrapAs(op, fault.InvalidArgument, err, "the body is larger than %d MiB", MaxBodyBytes>>20)
	}
	if r.ContentLength > MaxBodyBytes {
		return nil, tooLarge(&http.MaxBytesError{Limit: MaxBodyBytes})
	}
	var body bytes.Buffer
	if n := r.ContentLength; n > 0 { // what is said to come, if it is believable
		body.Grow(int(min(n, maxBelieved)) + bytes.MinRead)
	}
	_, err := body.ReadFrom(&counted{http.MaxBytesReader(w, r.Body, MaxBodyBytes), v})
	if err == nil {
		return body.Bytes(), nil
	}
	if f, ok := errors.AsType[*fault.Error](err); ok {
		hearOut(r)
		return nil, f
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge(err)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the body did not arrive in time")
	}
	return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the body did not arrive whole")
}

// maxIgnored is how much of a body is read, and thrown away, that was refused.
const maxIgnored = 4 * MaxBodyBytes

// hearOut lets a client finish that writes all of its request before it reads, and
// would otherwise see a broken connection in place of the answer. Who asks first
// (RFC 9110, section 10.1.1) is not kept waiting.
func hearOut(r *http.Request) {
	if r.Header.Get("Expect") == "" && r.ContentLength <= maxIgnored {
		_, _ = io.CopyN(io.Discard, r.Body, maxIgnored) // what does not come is not missed
	}
}

// jsonType is the media type of what models are asked.
const jsonType = "application/json"

// json reads a body that must be JSON. One of which nothing is said is taken for it.
//
// Errors: those of body; InvalidArgument (Permanent), with http.ErrNotSupported in
// its chain, for a body of another type.
func (v *visit) json(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if types := r.Header["Content-Type"]; len(types) > 0 && types[0] != jsonType && !isJSON(types[0]) || !isIdentity(r.Header.Get("Content-Encoding")) {
		return nil, fault.WrapAs("gateway.json", fault.InvalidArgument, http.ErrNotSupported, "only %s is accepted, in UTF-8 and not compressed", jsonType)
	}
	return v.body(w, r)
}

func isJSON(contentType string) bool {
	kind, parameters, err := mime.ParseMediaType(contentType)
	charset := parameters["charset"]
	return err == nil && (kind == jsonType || strings.HasSuffix(kind, "+json")) && (charset == "" || strings.EqualFold(charset, "utf-8"))
}

func isIdentity(coding string) bool { return coding == "" || strings.EqualFold(coding, "identity") }

// counted counts what is read against its agent's share.
type counted struct {
	from  io.Reader
	visit *visit
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	if !c.visit.share.hold(int64(n)) {
		return 0, fault.After(fault.New("gateway.Read", fault.RateLimited, "%s has bodies of %d MiB under way; wait for one of them", c.visit.agent.Name, maxBufferedBytes>>20), tryAgain)
	}
	c.visit.bytes += int64(n)
	return n, err
}

// recheckInterval is how soon a revocation reaches what is under way.
const recheckInterval = time.Second

// inForce returns act, ended when its caller's authority ends: the decision was
// made once, but a stream or a tunnel may last for hours. A limit that is not 0 bounds
// how long it may take.
func (v *visit) inForce(limit time.Duration, act gate.Act) gate.Act {
	return func(ctx context.Context) (gate.Result, error) {
		allowed(ctx)
		ctx, cancel := bounded(ctx, limit)
		defer cancel()
		watch := v.watch(cancel)
		result, err := act(ctx)
		if ended := watch.end(); ended != nil && err != nil {
			err = ended
		}
		return result, err
	}
}

// bounded returns a context that can be ended, and ends after limit if that is not 0.
func bounded(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if limit == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, limit)
}

// watch looks again and again whether a caller's authority is in force, from a timer:
// most calls are over before it first rings.
type watch struct {
	mu    sync.Mutex // held while it looks
	timer *time.Timer
	over  bool
	ended error // why it canceled
}

// watch cancels when the caller's authority has ended. What passes, such as a clock
// that is late, ends nothing.
func (v *visit) watch(cancel context.CancelFunc) *watch {
	w := &watch{}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(recheckInterval, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.over {
			return
		}
		if err := v.recheck(); err != nil && !fault.Retryable(err) {
			w.ended = err
			cancel()
			return
		}
		w.timer.Reset(recheckInterval)
	})
	return w
}

// end stops it, and waits while it looks. It returns why it canceled, if it did.
func (w *watch) end() error {
	w.timer.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	return w.ended
}
