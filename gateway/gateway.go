// Package gateway is the only way out of a sandbox: model calls in a vendor's
// dialect, plain HTTP requests and connections. Each is an adapter that turns
// what arrives into an action for gate and does it if gate says so.
package gateway

import (
	"net"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
	"creto.dev/gate"
	"creto.dev/inference"
	"creto.dev/inference/injection"
)

// IdempotencyHeader names a request that is sent again after its connection was
// lost, so that it attaches to the first.
const IdempotencyHeader = "Creto-Idempotency-Key"

// ClassificationHeader says how confidential a model request is. It adds to what the
// configuration knows of its agent, and never takes away from that.
const ClassificationHeader = "Creto-Classification"

// MaxBodyBytes bounds a request's body, which is held in memory until the
// request is over; what one agent may hold at a time is in load.go.
const MaxBodyBytes = 32 << 20

// Config is the behaviour that may be chosen.
type Config struct {
	// Hosts maps a name, or name:port, to the address that is dialled for it.
	// Its entries are exempt from the guard against private addresses.
	Hosts map[string]string
	// Timeout bounds one model call. 0 means 10 minutes.
	Timeout time.Duration
	// Credentials are added on the way out. Each must be valid.
	Credentials []Credential
	// Tracer has requests be spans; nil makes none, and passes the caller's trace on.
	Tracer trace.TracerProvider
	// Injection is what is done about prompt injection. Its zero value does nothing.
	Injection Injection
	// Semantic has calls offer a way to ask for the vectors of their texts, for a cache
	// below that finds answers to what is alike.
	Semantic bool
	// Limits tells callers of models what they may still call; nil tells nothing.
	Limits Limits
}

// Origin is who sends a request, as the listener knows.
type Origin struct {
	Caller *gate.Caller
	// Sandbox and Isolation name the run that the request comes out of; both
	// are empty for a caller with a token of its own.
	Sandbox   string
	Isolation string
}

// Authenticate returns who sends a request.
//
// Errors: those of gate.Open.
type Authenticate func(r *http.Request) (Origin, error)

// Gateway serves the doors. Safe for concurrent use.
type Gateway struct {
	cfg       Config
	gate      *gate.Gate
	models    inference.Router
	transport *http.Transport
	dialer    *dialer
	load      *load
	injected  map[string][]Credential // by host
	guard     *injection.Guard        // nil where nothing is judged
	canaries  *injection.Canaries     // nil where there are none
}

// New returns a gateway onto g. models has models answer.
func New(cfg Config, g *gate.Gate, models inference.Router) *Gateway {
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Minute
	}
	d := newDialer(cfg.Hosts)
	var guard *injection.Guard
	if cfg.Injection.Detector != nil {
		guard = injection.NewGuard(cfg.Injection.Detector)
	}
	var canaries *injection.Canaries
	if cfg.Injection.Canary != CanaryOff {
		canaries = injection.NewCanaries()
	}
	return &Gateway{cfg: cfg, guard: guard, canaries: canaries, gate: g, models: models, dialer: d, load: &load{agents: make(map[creto.ID]*share)}, injected: byHost(cfg.Credentials), transport: &http.Transport{
		DialContext: d.dial, DisableCompression: true, MaxResponseHeaderBytes: 1 << 20,
		// On a connection that was kept, net/http sends some requests again by
		// itself. What was consented to once is sent once.
		DisableKeepAlives: true,
	}}
}

// Close gives back what requests left behind. They must be over.
func (g *Gateway) Close() { g.transport.CloseIdleConnections() }

// Sandbox returns the handler for the socket of one run: models, and the way
// out as a proxy.
func (g *Gateway) Sandbox(authenticate Authenticate) http.Handler {
	doors := g.doors(authenticate)
	return g.traced(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodConnect:
			g.out(w, r, authenticate, g.connect)
		case r.URL.IsAbs() && !isLoopback(r.URL.Hostname()):
			g.out(w, r, authenticate, g.request)
		default:
			// A program that sends even loopback addresses to its proxy means
			// the forwarder, which is this gateway.
			doors.ServeHTTP(w, r)
		}
	}))
}

// out opens a door that is no model's. An error after the response began cuts the
// connection, so that half an answer is never taken for a whole one.
func (g *Gateway) out(w http.ResponseWriter, r *http.Request, authenticate Authenticate, way func(*startedWriter, *http.Request, *visit) error) {
	sent := &startedWriter{ResponseWriter: w}
	v, err := g.admit(r, authenticate)
	if err == nil {
		defer v.leave()
		err = way(sent, r, v)
	}
	switch {
	case err == nil:
	case sent.started:
		panic(http.ErrAbortHandler)
	default:
		faulthttp.Write(w, r, err)
	}
}

// Doors returns the handler of what is below /v1: the vendors' dialects, and
// secrets for those who may hold them.
func (g *Gateway) Doors(authenticate Authenticate) http.Handler {
	return g.traced(g.doors(authenticate))
}

func (g *Gateway) doors(authenticate Authenticate) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) { g.model(w, r, authenticate, openAI{}, g.answer) })
	mux.HandleFunc("POST /v1/responses", func(w http.ResponseWriter, r *http.Request) { g.model(w, r, authenticate, &responses{}, g.answer) })
	mux.HandleFunc("POST /v1/messages", func(w http.ResponseWriter, r *http.Request) { g.model(w, r, authenticate, anthropic{}, g.answer) })
	mux.HandleFunc("POST /v1/messages/count_tokens", func(w http.ResponseWriter, r *http.Request) { g.model(w, r, authenticate, anthropic{}, g.count) })
	mux.HandleFunc("POST /v1/embeddings", func(w http.ResponseWriter, r *http.Request) { g.model(w, r, authenticate, openAI{}, g.embed) })
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) { g.list(w, r, authenticate) })
	mux.HandleFunc("GET /v1/secrets/{name}", func(w http.ResponseWriter, r *http.Request) { g.out(w, r, authenticate, g.secret) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		faulthttp.Write(w, r, fault.New("gateway.Doors", fault.NotFound, "there is no door %s %s here; model calls go to /v1/chat/completions, /v1/responses, /v1/messages or /v1/embeddings", r.Method, r.URL.Path))
	})
	return mux
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// AccessToken returns the token that a request carries: as vendors' SDKs send
// their key, or under the DPoP scheme (RFC 9449, section 7.1).
func AccessToken(r *http.Request) string {
	// RFC 6750, section 2: one method. Of two values, a proxy may have looked at
	// the other.
	if len(r.Header.Values("Authorization")) > 1 || len(r.Header.Values("X-Api-Key")) > 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") || strings.EqualFold(scheme, "DPoP") {
		return token
	}
	return r.Header.Get("X-Api-Key")
}
