package sts

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"creto.dev/fault"
)

// refresh is how long others may keep what they verify with. A key that takes
// over is not known to them for as long; they look again for a key id that they
// do not know.
const refresh = 5 * time.Minute

// metadata is that of RFC 8414, section 2, and OpenID Connect Discovery 1.0,
// section 3, as far as it is true: without an authorization endpoint there are
// no response types.
type metadata struct {
	Issuer                  string   `json:"issuer"`
	JWKS                    string   `json:"jwks_uri"`
	Token                   string   `json:"token_endpoint"`
	Revocation              string   `json:"revocation_endpoint"`
	Introspection           string   `json:"introspection_endpoint"`
	Grants                  []string `json:"grant_types_supported"`
	TokenAuthentication     []string `json:"token_endpoint_auth_methods_supported"`
	RevokeAuthentication    []string `json:"revocation_endpoint_auth_methods_supported"`
	IntrospectAuthorization []string `json:"introspection_endpoint_auth_methods_supported"`
	Subjects                []string `json:"subject_types_supported"`
	// Algorithms are those of what others verify: access tokens, JWT-SVIDs.
	Algorithms       []string `json:"id_token_signing_alg_values_supported"`
	Claims           []string `json:"claims_supported"`
	ProofAlgorithms  []string `json:"dpop_signing_alg_values_supported"`
	CertificateBound bool     `json:"tls_client_certificate_bound_access_tokens,omitempty"`
}

// metadata serves both discovery documents.
func (s *Service) metadata(w http.ResponseWriter, r *http.Request) {
	issuer := s.Authority.Issuer()
	publish(w, r, metadata{
		Issuer: issuer, JWKS: issuer + JWKSPath, Token: issuer + TokenPath, Revocation: issuer + RevokePath, Introspection: issuer + IntrospectPath,
		Grants: []string{grantExchange}, TokenAuthentication: []string{"none"}, RevokeAuthentication: []string{"none"},
		IntrospectAuthorization: []string{"Bearer"}, Subjects: []string{"public"},
		Algorithms:       []string{string(jose.EdDSA), string(jose.ES256)},
		Claims:           []string{"iss", "sub", "aud", "exp", "iat", "jti", "client_id", "act", "cnf", "chain", "epoch", "instance", "sandbox"},
		ProofAlgorithms:  []string{string(jose.ES256), string(jose.EdDSA)},
		CertificateBound: strings.HasPrefix(issuer, "https://"),
	})
}

// jwks serves JWKSPath.
func (s *Service) jwks(w http.ResponseWriter, r *http.Request) {
	set, err := s.Authority.VerificationKeys(r.Context())
	if err != nil {
		writeError(w, fault.Wrap("sts.jwks", err))
		return
	}
	publish(w, r, set)
}

// trustBundle is a SPIFFE bundle (SPIFFE Trust Domain and Bundle, section 4).
type trustBundle struct {
	Keys     []jose.JSONWebKey `json:"keys"`
	Sequence uint64            `json:"spiffe_sequence"`
	// RefreshHint is in seconds.
	RefreshHint int64 `json:"spiffe_refresh_hint"`
}

// bundle serves BundlePath.
func (s *Service) bundle(w http.ResponseWriter, r *http.Request) {
	b, err := s.Authority.Bundle(r.Context())
	if err != nil {
		writeError(w, fault.Wrap("sts.bundle", err))
		return
	}
	out := trustBundle{Sequence: b.Sequence, RefreshHint: int64(refresh.Seconds())}
	for _, c := range b.X509 {
		out.Keys = append(out.Keys, jose.JSONWebKey{Key: c.PublicKey, Certificates: []*x509.Certificate{c}, Use: "x509-svid"})
	}
	for _, k := range b.JWT {
		k.Use, k.Algorithm = "jwt-svid", ""
		out.Keys = append(out.Keys, k)
	}
	publish(w, r, out)
}

// publish answers with v, which anybody may have and keep for a while.
func publish(w http.ResponseWriter, r *http.Request, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		writeError(w, fault.WrapAs("sts.publish", fault.Internal, err, ""))
		return
	}
	digest := sha256.Sum256(body)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "public, max-age="+strconv.Itoa(int(refresh.Seconds())))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Etag", `"`+base64.RawURLEncoding.EncodeToString(digest[:])+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}
