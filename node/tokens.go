package node

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"net/http"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/gateway"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
)

// credential is what a request presents: an access token, as bearer or with a
// DPoP proof (RFC 9449, section 7.1), and the certificate of its connection.
func (n *Node) credential(r *http.Request) nhi.Credential {
	c := nhi.Credential{Token: gateway.AccessToken(r), Method: r.Method, URL: n.origin + r.URL.EscapedPath()}
	// RFC 9449: one proof (section 4.3), and a bound token comes under the
	// scheme that asks for it, never as bearer (section 7.2).
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if proofs := r.Header.Values("DPoP"); len(proofs) == 1 && strings.EqualFold(scheme, "DPoP") {
		c.DPoP = proofs[0]
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		c.Certificate = sha256.Sum256(r.TLS.PeerCertificates[0].Raw)
	}
	return c
}

// introspector authenticates who asks about the tokens of others: who holds the
// socket, which alone names a caller, or an administrator.
func (n *Node) introspector(r *http.Request) (creto.ID, error) {
	if id := creto.CallerOf(r.Context()); id.Kind == creto.KindHuman && id.Name == BootstrapHuman {
		return id, nil
	}
	return n.administrator(r)
}

// Token implements serve.Admin.
func (n *Node) Token(ctx context.Context, agent string, want client.NewToken) (client.Token, error) {
	const op fault.Op = "node.Token"
	id, jti := n.id(ctx, creto.KindAgent, agent), creto.NewUUID().String()
	token, expires, err := n.authority.IssueToken(ctx, id, localnhi.TokenRequest{
		ID: jti, Audience: want.Audience, Instance: want.Instance, Confirmation: nhi.Confirmation{JKT: want.JKT, X5T: want.X5T},
	})
	if err != nil {
		return client.Token{}, fault.Wrap(op, err)
	}
	detail := map[string]string{"kind": "access_token", "jti": jti}
	for key, value := range map[string]string{"audience": want.Audience, "jkt": want.JKT, "x5t#S256": want.X5T} {
		if value != "" {
			detail[key] = value
		}
	}
	if err := n.issued(ctx, audit.EventTokenIssued, id, expires, detail); err != nil {
		return client.Token{}, fault.Wrap(op, err)
	}
	return client.Token{Token: token, Expires: expires}, nil
}

// svidID is who an SVID is for.
func (n *Node) svidID(ctx context.Context, want client.NewSVID) creto.ID {
	kind := creto.KindAgent
	if want.Workload {
		kind = creto.KindWorkload
	}
	return n.id(ctx, kind, want.Name)
}

// X509SVID implements serve.Admin.
func (n *Node) X509SVID(ctx context.Context, want client.NewSVID) (client.X509SVID, error) {
	const op fault.Op = "node.X509SVID"
	id := n.svidID(ctx, want)
	leaf, err := n.authority.IssueX509SVID(ctx, id, want.Request)
	if err != nil {
		return client.X509SVID{}, fault.Wrap(op, err)
	}
	bundle, err := n.authority.Bundle(ctx)
	if err != nil {
		return client.X509SVID{}, fault.Wrap(op, err)
	}
	if err := n.issued(ctx, audit.EventSVIDIssued, id, leaf.NotAfter, map[string]string{"kind": "x509_svid", "serial": leaf.SerialNumber.Text(16)}); err != nil {
		return client.X509SVID{}, fault.Wrap(op, err)
	}
	encode := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	out := client.X509SVID{ID: id.String(), Certificate: encode(leaf.Raw), Expires: leaf.NotAfter}
	for _, ca := range bundle.X509 {
		out.Bundle += encode(ca.Raw)
	}
	return out, nil
}

// JWTSVID implements serve.Admin.
func (n *Node) JWTSVID(ctx context.Context, want client.NewSVID) (client.Token, error) {
	const op fault.Op = "node.JWTSVID"
	id, jti := n.svidID(ctx, want), creto.NewUUID().String()
	token, expires, err := n.authority.IssueJWTSVID(ctx, id, localnhi.JWTSVIDRequest{ID: jti, Audience: want.Audience})
	if err != nil {
		return client.Token{}, fault.Wrap(op, err)
	}
	if err := n.issued(ctx, audit.EventTokenIssued, id, expires, map[string]string{"kind": "jwt_svid", "jti": jti, "audience": want.Audience}); err != nil {
		return client.Token{}, fault.Wrap(op, err)
	}
	return client.Token{Token: token, Expires: expires}, nil
}

// issued records a credential that an administrator asked for. Without a record
// nobody gets it.
func (n *Node) issued(ctx context.Context, what string, id creto.ID, expires time.Time, detail map[string]string) error {
	kind := "Agent::"
	if id.Kind == creto.KindWorkload {
		kind = "Workload::"
	}
	detail["expires"] = expires.UTC().Format(time.RFC3339)
	_, err := n.log.Log(ctx, audit.Record{Who: creto.CallerOf(ctx), What: what, Resource: kind + id.Name, Outcome: audit.Success, Detail: detail})
	return err
}
