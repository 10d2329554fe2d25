package sts

import (
	"errors"
	"net/http"

	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
)

// inspect returns what a request's token says; a token that is not valid, or
// none of ours, is a nil Inspection.
func (s *Service) inspect(w http.ResponseWriter, r *http.Request) (*localnhi.Inspection, error) {
	f, err := form(w, r)
	if err != nil {
		return nil, err
	}
	one, err := single(f)
	if err != nil {
		return nil, err
	}
	if one["token"] == "" {
		return nil, refuse(invalidRequest, "token is missing")
	}
	in, err := s.Authority.Inspect(r.Context(), one["token"])
	if errors.Is(err, fault.NHITokenInvalid) || errors.Is(err, fault.NHITokenExpired) {
		return nil, nil
	}
	return &in, err
}

// revoke serves RevokePath (RFC 7009). To end a token takes the token and
// nothing else: whoever found one may end it.
func (s *Service) revoke(w http.ResponseWriter, r *http.Request) {
	in, err := s.inspect(w, r)
	if err == nil && in != nil {
		if err = s.Authority.RevokeToken(r.Context(), in.Identity); err == nil {
			_, err = s.Log.Log(r.Context(), record(audit.EventTokenRevoked, *in, map[string]string{"kind": kindAccessToken, "jti": in.TokenID}))
		}
	}
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
}

// introspected is the answer to an introspection (RFC 7662, section 2.2). Of an
// inactive token it says nothing else.
type introspected struct {
	Active    bool             `json:"active"`
	Issuer    string           `json:"iss,omitempty"`
	Subject   string           `json:"sub,omitempty"`
	ClientID  string           `json:"client_id,omitempty"`
	Audience  []string         `json:"aud,omitempty"`
	TokenType string           `json:"token_type,omitempty"`
	ID        string           `json:"jti,omitempty"`
	IssuedAt  int64            `json:"iat,omitempty"`
	Expires   int64            `json:"exp,omitempty"`
	Act       *actor           `json:"act,omitempty"`
	Cnf       nhi.Confirmation `json:"cnf,omitzero"`
	Chain     string           `json:"chain,omitempty"`
	Epoch     uint64           `json:"epoch,omitempty"`
	Instance  string           `json:"instance,omitempty"`
	Sandbox   string           `json:"sandbox,omitempty"`
}

// actor is the act claim (RFC 8693, section 4.1).
type actor struct {
	Subject string `json:"sub"`
	Act     *actor `json:"act,omitempty"`
}

// introspect serves IntrospectPath (RFC 7662), for administrators.
func (s *Service) introspect(w http.ResponseWriter, r *http.Request) {
	// A session's cookie comes along with what another site's page sends.
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		write(w, http.StatusForbidden, &refusal{Code: accessDenied, Description: "the request comes from another site's page"})
		return
	}
	administrator, err := s.Administrator(r)
	if err != nil {
		code := fault.CodeOf(err)
		switch code.HTTPStatus() {
		case http.StatusUnauthorized:
			w.Header().Set("WWW-Authenticate", "Bearer") // RFC 7662, section 2.3
			err = &refusal{status: http.StatusUnauthorized, Code: invalidToken, Description: "introspection is for administrators: send the token of a session"}
		case http.StatusForbidden:
			err = &refusal{status: http.StatusForbidden, Code: accessDenied, Description: "introspection is for administrators"}
		}
		writeError(w, err)
		return
	}
	in, err := s.inspect(w, r)
	if err != nil {
		writeError(w, err)
		return
	}
	if in == nil || in.ID.Tenant != administrator.Tenant { // tenants see nothing of each other
		write(w, http.StatusOK, introspected{})
		return
	}
	out := introspected{
		Active: true, Issuer: s.Authority.Issuer(), Subject: in.Human.String(), ClientID: in.ID.String(), Audience: in.Audience,
		TokenType: tokenType(in.Confirmation), ID: in.TokenID, IssuedAt: in.IssuedAt.Unix(), Expires: in.ExpiresAt.Unix(),
		Cnf: in.Confirmation, Chain: in.Chain.String(), Epoch: in.Epoch, Instance: in.Instance, Sandbox: in.Sandbox,
	}
	for i := len(in.Actors) - 1; i >= 0; i-- {
		out.Act = &actor{Subject: in.Actors[i], Act: out.Act}
	}
	write(w, http.StatusOK, out)
}
