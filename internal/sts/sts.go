// Package sts is the node's token service over HTTP: what others need to verify
// its tokens (OpenID Connect Discovery, RFC 8414, RFC 7517, SPIFFE bundles), and
// the exchange (RFC 8693), revocation (RFC 7009) and introspection (RFC 7662) of
// tokens.
//
// There is no authorization endpoint: an agent's first token comes from who may
// administer the node.
package sts

import (
	"encoding/json"
	"errors"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/nhi/localnhi"
)

// The paths of the endpoints, below the issuer's URL.
const (
	TokenPath      = "/oauth/token"
	RevokePath     = "/oauth/revoke"
	IntrospectPath = "/oauth/introspect"
	JWKSPath       = "/.well-known/jwks.json"
	BundlePath     = "/spiffe/bundle"
)

// maxFormBytes bounds a request's body: a token and a few URIs.
const maxFormBytes = 16 << 10

// Parts are what the service works with.
type Parts struct {
	Authority *localnhi.Authority
	Clock     consensus.Clock
	// Log records each token that is issued or revoked, before the answer.
	Log audit.Log
	// Administrator says who asks about the tokens of their tenant, and
	// refuses whoever may not.
	Administrator func(r *http.Request) (creto.ID, error)
}

// Service serves the endpoints. Safe for concurrent use.
type Service struct {
	Parts
	limits *limits
}

// New returns the service of an authority, under the authority's issuer.
func New(p Parts) *Service { return &Service{Parts: p, limits: newLimits()} }

// Handler returns the endpoints.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", s.metadata)
	mux.HandleFunc("GET /.well-known/oauth-authorization-server", s.metadata)
	mux.HandleFunc("GET "+JWKSPath, s.jwks)
	mux.HandleFunc("GET "+BundlePath, s.bundle)
	mux.HandleFunc("POST "+TokenPath, s.token)
	mux.HandleFunc("POST "+RevokePath, s.revoke)
	mux.HandleFunc("POST "+IntrospectPath, s.introspect)
	return mux
}

// The error codes of RFC 6749 (section 5.2), RFC 8693 (section 2.2.2), RFC 9449
// (section 5) and RFC 6750 (section 3.1), and two that RFC 6749 knows at another
// endpoint.
const (
	invalidRequest         = "invalid_request"
	invalidClient          = "invalid_client"
	invalidScope           = "invalid_scope"
	invalidTarget          = "invalid_target"
	invalidToken           = "invalid_token"
	invalidProof           = "invalid_dpop_proof"
	unsupportedGrantType   = "unsupported_grant_type"
	temporarilyUnavailable = "temporarily_unavailable"
	serverError            = "server_error"
	accessDenied           = "access_denied"
)

// refusal is an answer as RFC 6749 has it, section 5.2.
type refusal struct {
	status int
	Code   string `json:"error"`
	// Description is for the client's developer.
	Description string `json:"error_description,omitempty"`
}

// Error implements error.
func (r *refusal) Error() string { return r.Code + ": " + r.Description }

func refuse(code, description string) error {
	return &refusal{status: http.StatusBadRequest, Code: code, Description: description}
}

// write answers with v, which nobody may keep (RFC 6749, section 5.1).
func write(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that went away is no fault of ours
}

// writeError answers with a refusal, or with what a fault comes to: whatever
// cannot be decided is refused.
func writeError(w http.ResponseWriter, err error) {
	r, ok := errors.AsType[*refusal](err)
	if !ok {
		r = &refusal{status: http.StatusInternalServerError, Code: serverError}
		switch code := fault.CodeOf(err); {
		case code == fault.RateLimited:
			r = &refusal{status: code.HTTPStatus(), Code: temporarilyUnavailable, Description: fault.Message(err)}
		case fault.CategoryOf(err) == fault.Degraded, fault.CategoryOf(err) == fault.Transient:
			r = &refusal{status: http.StatusServiceUnavailable, Code: temporarilyUnavailable, Description: fault.Message(err)}
		}
	}
	if wait := fault.RetryAfter(err); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	}
	r.Description = described(r.Description)
	write(w, r.status, r)
}

// described keeps what RFC 6749, section 5.2, allows in a description.
func described(text string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == '"':
			return '\''
		case c < ' ' || c == '\\' || c > '~':
			return '?'
		}
		return c
	}, text)
}

// form reads a request's parameters, which come in its body alone: what is in a
// URL ends up in logs.
func form(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/x-www-form-urlencoded" {
		return nil, refuse(invalidRequest, "the body must be application/x-www-form-urlencoded")
	}
	if r.URL.RawQuery != "" {
		return nil, refuse(invalidRequest, "parameters belong in the body, not in the URL")
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	if err := r.ParseForm(); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, &refusal{status: http.StatusRequestEntityTooLarge, Code: invalidRequest, Description: "the body is too large"}
		}
		return nil, refuse(invalidRequest, "the body cannot be read")
	}
	return r.PostForm, nil
}

// repeatable are the parameters that may come more than once (RFC 8693, section
// 2.1; all others may not: RFC 6749, section 3.2).
var repeatable = map[string]bool{"audience": true, "resource": true}

// single returns the parameters that have a value, each once; those of repeatable
// are not among them.
func single(f url.Values) (map[string]string, error) {
	one := make(map[string]string, len(f))
	for name, values := range f {
		if repeatable[name] {
			continue
		}
		if len(values) > 1 {
			return nil, refuse(invalidRequest, "a parameter is repeated")
		}
		if values[0] != "" { // without a value it is as if it were not there
			one[name] = values[0]
		}
	}
	return one, nil
}
