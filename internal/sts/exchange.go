package sts

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
)

const (
	// grantExchange is the grant type of RFC 8693, section 2.1.
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	// The types of tokens (RFC 8693, section 3). A JWT that is asked for is a
	// JWT-SVID.
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	typeJWT         = "urn:ietf:params:oauth:token-type:jwt"
)

// The kinds of credentials, as records name them.
const (
	kindAccessToken = "access_token"
	kindJWTSVID     = "jwt_svid"
)

// exchanged is the answer to an exchange (RFC 8693, section 2.2.1).
type exchanged struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"`
}

// wanted is what an exchange asks for.
type wanted struct {
	subject  string
	jwt      bool   // a JWT-SVID instead of an access token
	audience string // "" for this trust domain's gates
	client   string
}

// token serves TokenPath.
func (s *Service) token(w http.ResponseWriter, r *http.Request) {
	out, err := s.exchange(w, r)
	if err != nil {
		writeError(w, err)
		return
	}
	write(w, http.StatusOK, out)
}

// exchange gives an agent's token for another one: of the same agent under the
// same delegation, for one audience, bound at least as the first, and ending no
// later.
func (s *Service) exchange(w http.ResponseWriter, r *http.Request) (exchanged, error) {
	const op fault.Op = "sts.exchange"
	// RFC 6749, section 5.2: the challenge is for the scheme that was used.
	if text := r.Header.Get("Authorization"); text != "" {
		scheme, _, _ := strings.Cut(text, " ")
		if !strings.EqualFold(scheme, "Basic") {
			scheme = "Bearer"
		}
		w.Header().Set("WWW-Authenticate", scheme)
		return exchanged{}, &refusal{status: http.StatusUnauthorized, Code: invalidClient, Description: "clients do not authenticate here; the subject token is enough"}
	}
	f, err := form(w, r)
	if err != nil {
		return exchanged{}, err
	}
	ask, err := parseExchange(f)
	if err != nil {
		return exchanged{}, err
	}
	subject, err := s.Authority.Inspect(r.Context(), ask.subject)
	switch {
	case errors.Is(err, fault.NHITokenExpired):
		return exchanged{}, refuse(invalidRequest, "the subject token has expired")
	case errors.Is(err, fault.NHITokenInvalid):
		return exchanged{}, refuse(invalidRequest, "the subject token is not valid")
	case err != nil:
		return exchanged{}, fault.Wrap(op, err)
	// Whoever was sent a token for themselves must not turn it into one for us.
	case !slices.Contains(subject.Audience, localnhi.Audience):
		return exchanged{}, refuse(invalidRequest, "the subject token is for somebody else")
	case ask.jwt && subject.Sandbox != "":
		return exchanged{}, refuse(invalidRequest, "the subject token is bound to a run, which a JWT-SVID does not say")
	case ask.client != "" && ask.client != subject.ID.String():
		return exchanged{}, refuse(invalidClient, "the client_id is not the agent of the subject token")
	}
	stamp, err := s.Clock.Now(r.Context())
	if err != nil {
		return exchanged{}, fault.Wrap(op, err)
	}
	if wait := s.limits.take(subject.ID, stamp.Time()); wait > 0 {
		return exchanged{}, fault.After(fault.New(op, fault.RateLimited, "too many exchanges"), wait)
	}
	cnf, err := s.possession(r, subject.Confirmation)
	if err != nil {
		return exchanged{}, err
	}
	out, err := s.issue(r.Context(), subject, ask, cnf, stamp.Time())
	if errors.Is(err, fault.NHINotFound) || errors.Is(err, fault.NHIDelegationVerificationFailed) {
		return exchanged{}, refuse(invalidRequest, "the delegation behind the subject token is not in force")
	}
	return out, fault.Wrap(op, err)
}

// parseExchange reads the parameters of RFC 8693, section 2.1.
func parseExchange(f url.Values) (wanted, error) {
	one, err := single(f)
	if err != nil {
		return wanted{}, err
	}
	ask := wanted{subject: one["subject_token"], client: one["client_id"]}
	switch {
	case one["grant_type"] == "":
		return ask, refuse(invalidRequest, "grant_type is missing")
	case one["grant_type"] != grantExchange:
		return ask, refuse(unsupportedGrantType, "the only grant type is "+grantExchange)
	case one["client_secret"] != "" || one["client_assertion"] != "":
		return ask, &refusal{status: http.StatusUnauthorized, Code: invalidClient, Description: "clients do not authenticate here; the subject token is enough"}
	case one["actor_token"] != "" || one["actor_token_type"] != "":
		return ask, refuse(invalidRequest, "actor tokens are not supported: the subject token says who acts for whom")
	case one["scope"] != "":
		return ask, refuse(invalidScope, "there are no scopes: what an agent may do is decided on each action")
	case ask.subject == "":
		return ask, refuse(invalidRequest, "subject_token is missing")
	case one["subject_token_type"] != typeAccessToken && one["subject_token_type"] != typeJWT:
		return ask, refuse(invalidRequest, "subject_token_type must be "+typeAccessToken)
	}
	switch one["requested_token_type"] {
	case "", typeAccessToken:
	case typeJWT:
		ask.jwt = true
	default:
		return ask, refuse(invalidRequest, "requested_token_type must be "+typeAccessToken+" or "+typeJWT)
	}
	if ask.audience, err = target(f); err != nil {
		return ask, err
	}
	if ask.jwt && ask.audience == "" {
		return ask, refuse(invalidRequest, "a JWT-SVID needs an audience")
	}
	return ask, nil
}

// target returns the one audience or resource that is asked for. With two, each
// of them could use the token at the other.
func target(f url.Values) (string, error) {
	present := func(text string) bool { return text != "" }
	var targets []string
	for _, resource := range f["resource"] {
		if !present(resource) {
			continue
		}
		// RFC 8693, section 2.1: an absolute URI without a fragment.
		if u, err := url.Parse(resource); err != nil || !u.IsAbs() || strings.Contains(resource, "#") {
			return "", refuse(invalidTarget, "a resource is an absolute URI without a fragment")
		}
		targets = append(targets, resource)
	}
	for _, audience := range f["audience"] {
		if present(audience) {
			targets = append(targets, audience)
		}
	}
	switch {
	case len(targets) == 0:
		return "", nil
	case len(targets) > 1:
		return "", refuse(invalidTarget, "a token is for one audience or resource")
	}
	if err := localnhi.CheckAudience(targets[0]); err != nil {
		return "", refuse(invalidTarget, fault.Message(err))
	}
	return targets[0], nil
}

// possession returns what the new token is bound to: the subject's key, which
// must be proven, or the key that the request brings.
func (s *Service) possession(r *http.Request, cnf nhi.Confirmation) (nhi.Confirmation, error) {
	proofs := r.Header.Values("DPoP")
	switch {
	case len(proofs) > 1:
		return nhi.Confirmation{}, refuse(invalidProof, "there is more than one DPoP proof")
	case len(proofs) == 1 && proofs[0] == "":
		return nhi.Confirmation{}, refuse(invalidProof, "the DPoP proof is empty")
	case len(proofs) == 1 && cnf.X5T != "":
		return nhi.Confirmation{}, refuse(invalidRequest, "the subject token is bound to a certificate, and stays so")
	}
	c := nhi.Credential{Method: r.Method, URL: s.Authority.Issuer() + r.URL.EscapedPath()}
	if len(proofs) == 1 {
		c.DPoP = proofs[0]
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		c.Certificate = sha256.Sum256(r.TLS.PeerCertificates[0].Raw)
	}
	proven, err := s.Authority.Possession(r.Context(), c, cnf)
	if errors.Is(err, fault.NHITokenInvalid) {
		code := invalidProof
		if cnf.X5T != "" {
			code = invalidRequest
		}
		return nhi.Confirmation{}, refuse(code, fault.Message(err))
	}
	return proven, err
}

// issue makes the new token and records it; without a record there is none.
func (s *Service) issue(ctx context.Context, subject localnhi.Inspection, ask wanted, cnf nhi.Confirmation, now time.Time) (exchanged, error) {
	id := creto.NewUUID().String()
	out := exchanged{IssuedTokenType: typeAccessToken, TokenType: tokenType(cnf)}
	kind := kindAccessToken
	var expires time.Time
	var err error
	if ask.jwt {
		kind = kindJWTSVID
		out.IssuedTokenType, out.TokenType = typeJWT, "N_A" // no access token (RFC 8693, section 2.2.1)
		out.AccessToken, expires, err = s.Authority.IssueJWTSVID(ctx, subject.ID, localnhi.JWTSVIDRequest{
			ID: id, Audience: ask.audience, Confirmation: cnf, Chain: subject.Chain, NotAfter: subject.ExpiresAt,
		})
	} else {
		if ask.audience == "" {
			ask.audience = localnhi.Audience
		}
		out.AccessToken, expires, err = s.Authority.IssueToken(ctx, subject.ID, localnhi.TokenRequest{
			ID: id, Audience: ask.audience, Sandbox: subject.Sandbox, Instance: subject.Instance,
			Confirmation: cnf, Chain: subject.Chain, NotAfter: subject.ExpiresAt,
		})
	}
	if err != nil {
		return exchanged{}, err
	}
	// Rounded down, so that nobody takes it for longer than it is.
	out.ExpiresIn = max(int64(expires.Sub(now).Seconds()), 0)
	detail := map[string]string{"kind": kind, "jti": id, "audience": ask.audience, "expires": expires.UTC().Format(time.RFC3339), "subject_jti": subject.TokenID}
	switch {
	case cnf.JKT != "":
		detail["jkt"] = cnf.JKT
	case cnf.X5T != "":
		detail["x5t#S256"] = cnf.X5T
	}
	_, err = s.Log.Log(ctx, record(audit.EventTokenIssued, subject, detail))
	return out, err
}

// record is one about a token.
func record(what string, subject localnhi.Inspection, detail map[string]string) audit.Record {
	return audit.Record{
		Who: subject.ID, OnBehalfOf: subject.Human, Chain: subject.Chain, What: what,
		Resource: "Agent::" + subject.ID.Name, Outcome: audit.Success, Sandbox: subject.Sandbox, Detail: detail,
	}
}

// tokenType is how an access token must be presented (RFC 9449, section 5; RFC
// 8705 leaves it at Bearer).
func tokenType(cnf nhi.Confirmation) string {
	if cnf.JKT != "" {
		return "DPoP"
	}
	return "Bearer"
}
