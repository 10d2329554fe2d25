package client

import (
	"context"
	"net/url"
	"time"
)

// NewToken says what an access token is for. The zero value asks for one that
// the node's own gates accept from whoever holds it.
type NewToken struct {
	// Audience is whom it is for, if not the node.
	Audience string `json:"audience,omitempty"`
	// JKT is the thumbprint of the DPoP key, or X5T of the TLS certificate,
	// that its holder must prove to have (RFC 9449, RFC 8705).
	JKT string `json:"jkt,omitempty"`
	X5T string `json:"x5t#S256,omitempty"`
	// Instance names one of several processes that act as the agent.
	Instance string `json:"instance,omitempty"`
}

// NewSVID asks for an SVID of an agent, or of a workload.
type NewSVID struct {
	Name     string `json:"name"`
	Workload bool   `json:"workload,omitempty"`
	// Audience is whom a JWT-SVID is for.
	Audience string `json:"audience,omitempty"`
	// Request is the PKCS #10 request for an X.509-SVID, in DER; its key stays
	// where it was made.
	Request []byte `json:"request,omitempty"`
}

// X509SVID is an X.509-SVID, without its key.
type X509SVID struct {
	ID string `json:"id"`
	// Certificate and Bundle, the certificates that peers are verified with,
	// are in PEM.
	Certificate string    `json:"certificate"`
	Bundle      string    `json:"bundle"`
	Expires     time.Time `json:"expires"`
}

// Token issues an access token for an agent.
func (c *Client) Token(ctx context.Context, agent string, want NewToken) (t Token, err error) {
	return t, c.do(ctx, "POST", "/agents/"+url.PathEscape(agent)+"/token", want, &t)
}

// X509SVID issues an X.509-SVID.
func (c *Client) X509SVID(ctx context.Context, want NewSVID) (s X509SVID, err error) {
	return s, c.do(ctx, "POST", "/svids/x509", want, &s)
}

// JWTSVID issues a JWT-SVID.
func (c *Client) JWTSVID(ctx context.Context, want NewSVID) (t Token, err error) {
	return t, c.do(ctx, "POST", "/svids/jwt", want, &t)
}
