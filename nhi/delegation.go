package nhi

import (
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/pqc"
)

// MaxChain bounds the links of a chain.
const MaxChain = 16

// linkVersion is the version of Link's encoding.
const linkVersion = 2

// The ways in which a human proved to be present when a link was made.
const (
	// ProofBootstrap: whoever held the node's data directory.
	ProofBootstrap = "bootstrap"
	// ProofWebAuthn: a passkey, over the link's Challenge (WebAuthnAssertion).
	ProofWebAuthn = "webauthn"
	// ProofOIDC: an identity provider, with the Challenge as nonce
	// (OIDCEvidence).
	ProofOIDC = "oidc"
)

// Proof says how the issuer of a human's link proved who it is.
type Proof struct {
	Kind string `cbor:"1,keyasint"`
	Data []byte `cbor:"2,keyasint,omitempty"`
}

// Link passes authority from Issuer to Subject.
type Link struct {
	Version    uint          `cbor:"1,keyasint"`
	Issuer     creto.ID      `cbor:"2,keyasint"`
	Subject    creto.ID      `cbor:"3,keyasint"`
	SubjectKey pqc.PublicKey `cbor:"4,keyasint"`
	Scope      Scope         `cbor:"5,keyasint"`
	// NotBefore and NotAfter are Unix seconds; NotAfter is exclusive.
	NotBefore int64 `cbor:"6,keyasint"`
	NotAfter  int64 `cbor:"7,keyasint"`
	// MaxDepth is how many further links may follow.
	MaxDepth uint `cbor:"8,keyasint"`
	// IssuerEpoch and SubjectEpoch are their revocation epochs at issue.
	IssuerEpoch  uint64 `cbor:"9,keyasint"`
	SubjectEpoch uint64 `cbor:"10,keyasint"`
	// Parent is the digest of the link above; zero in a human's link.
	Parent creto.Digest `cbor:"11,keyasint,omitzero"`
	// Proof is set in a human's link only.
	Proof Proof `cbor:"12,keyasint,omitzero"`
	// Nonce tells two links of the same content apart.
	Nonce creto.UUID `cbor:"13,keyasint"`
}

// SignedLink is a link's canonical bytes and its issuer's signature for
// pqc.PurposeDelegation. A human's link is signed by the trust domain's root.
type SignedLink struct {
	Body      []byte        `cbor:"1,keyasint"`
	Signature pqc.Signature `cbor:"2,keyasint"`
}

// Digest names the link by its body. The signature is no part of the name: it
// is not strongly unforgeable.
func (l SignedLink) Digest() creto.Digest { return creto.DigestOf(l.Body) }

// SignLink encodes and signs a link.
//
// Errors: those of pqc.Provider.Sign.
func SignLink(p pqc.Provider, key pqc.SigningKey, link Link) (SignedLink, error) {
	const op fault.Op = "nhi.SignLink"
	link.Version = linkVersion
	body, err := canon.Marshal(link)
	if err != nil {
		return SignedLink{}, fault.Wrap(op, err)
	}
	sig, err := p.Sign(pqc.PurposeDelegation, body, key)
	return SignedLink{Body: body, Signature: sig}, fault.Wrap(op, err)
}

// Link decodes the link without verifying anything.
//
// Errors: NHIDelegationVerificationFailed (Security) if it is malformed.
func (l SignedLink) Link() (Link, error) {
	const op fault.Op = "nhi.SignedLink.Link"
	var link Link
	if err := canon.Unmarshal(l.Body, &link); err != nil {
		return Link{}, fault.WrapAs(op, fault.NHIDelegationVerificationFailed, err, "a delegation link is malformed")
	}
	if link.Version != linkVersion {
		return Link{}, fault.New(op, fault.NHIDelegationVerificationFailed, "a delegation link has version %d; this creto knows %d", link.Version, linkVersion)
	}
	return link, nil
}

// DefaultMaxDepth is how many further links a grant allows that does not say.
const DefaultMaxDepth = 4

// Grant is what an issuer passes on.
type Grant struct {
	Scope Scope
	// TTL is how long; it never outlives what the issuer has. Required.
	TTL time.Duration
	// MaxDepth is how many further links may follow, as far as the issuer's
	// own allows.
	MaxDepth uint
}

// ref is what Revoked is asked with.
func (l Link) ref(digest creto.Digest) LinkRef {
	return LinkRef{Digest: digest, Issuer: l.Issuer, Subject: l.Subject, IssuerEpoch: l.IssuerEpoch, SubjectEpoch: l.SubjectEpoch}
}

// violation returns what is wrong with the link under the link above it, or "".
func (l Link) violation(above Link, first bool) string {
	switch {
	case l.Issuer.Validate() != nil || l.Subject.Validate() != nil:
		return "names no valid principals"
	case l.Issuer.TrustDomain != l.Subject.TrustDomain || l.Issuer.Tenant != l.Subject.Tenant:
		return "crosses tenants"
	case l.Subject.Kind == creto.KindHuman:
		return "delegates to a human"
	case l.NotBefore >= l.NotAfter:
		return "is never in force"
	}
	if reason := l.Scope.violation(); reason != "" {
		return reason
	}
	if first {
		switch {
		case l.Issuer.Kind != creto.KindHuman:
			return "does not begin with a human"
		case !l.Parent.IsZero():
			return "names a parent although it is the first"
		}
		return l.Proof.violation(l)
	}
	switch {
	case l.Issuer != above.Subject:
		return "is not issued by the subject of the link above"
	case l.Proof.Kind != "" || len(l.Proof.Data) > 0:
		return "claims a human's proof"
	case l.NotAfter > above.NotAfter:
		return "outlives the link above"
	case l.MaxDepth >= above.MaxDepth:
		return "goes deeper than the link above allows"
	case !l.Scope.Within(above.Scope):
		return "passes on more than the link above"
	}
	return ""
}
