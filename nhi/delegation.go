package nhi

import (
	"context"
	"slices"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/pqc"
)

// MaxChain bounds the links of a chain.
const MaxChain = 16

// linkVersion is the version of Link's encoding.
const linkVersion = 1

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

// Scope bounds what a link passes on. A pattern is exact text, or a prefix
// followed by one '*'; "*" is everything.
type Scope struct {
	Actions   []string `cbor:"1,keyasint" json:"actions"`
	Resources []string `cbor:"2,keyasint" json:"resources"` // of Type::id
}

// Everything is the scope without bounds; policies still apply.
func Everything() Scope { return Scope{Actions: []string{"*"}, Resources: []string{"*"}} }

// Covers reports whether the scope includes action on resource.
func (s Scope) Covers(action, resource string) bool {
	return anyMatches(s.Actions, action) && anyMatches(s.Resources, resource)
}

func anyMatches(patterns []string, text string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, text) })
}

func matches(pattern, text string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(text, prefix)
	}
	return pattern == text
}

// Within reports whether everything that s covers is covered by parent.
func (s Scope) Within(parent Scope) bool {
	within := func(child, parent []string) bool {
		for _, pattern := range child {
			if !slices.ContainsFunc(parent, func(p string) bool { return patternWithin(pattern, p) }) {
				return false
			}
		}
		return true
	}
	return within(s.Actions, parent.Actions) && within(s.Resources, parent.Resources)
}

// patternWithin: a prefix pattern lies within an equal or shorter prefix
// pattern, exact text within whatever matches it.
func patternWithin(child, parent string) bool {
	prefix, wide := strings.CutSuffix(child, "*")
	parentPrefix, parentWide := strings.CutSuffix(parent, "*")
	if !wide {
		return matches(parent, child)
	}
	return parentWide && strings.HasPrefix(prefix, parentPrefix)
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

// VerifiedChain is a chain of delegation that [VerifyDelegation] accepted. Its
// zero value is denied everywhere. It is immutable.
type VerifiedChain struct {
	principals []creto.ID
	scopes     []Scope
	links      []SignedLink
	digest     creto.Digest
	proof      string
	notAfter   time.Time
}

// Valid reports whether c came from VerifyDelegation.
func (c VerifiedChain) Valid() bool { return len(c.principals) > 1 }

// Principals returns everyone in the chain, the human first and the acting
// agent last. The caller must not change it.
func (c VerifiedChain) Principals() []creto.ID { return c.principals }

// Human returns who the chain begins with.
func (c VerifiedChain) Human() creto.ID {
	if !c.Valid() {
		return creto.ID{}
	}
	return c.principals[0]
}

// Agent returns who acts.
func (c VerifiedChain) Agent() creto.ID {
	if !c.Valid() {
		return creto.ID{}
	}
	return c.principals[len(c.principals)-1]
}

// Contains reports whether id is anywhere in the chain.
func (c VerifiedChain) Contains(id creto.ID) bool { return slices.Contains(c.principals, id) }

// Digest names the chain.
func (c VerifiedChain) Digest() creto.Digest { return c.digest }

// Links returns the signed links. The caller must not change them.
func (c VerifiedChain) Links() []SignedLink { return c.links }

// Proof says how the human's presence was proven.
func (c VerifiedChain) Proof() string { return c.proof }

// NotAfter is when the first of the links ends.
func (c VerifiedChain) NotAfter() time.Time { return c.notAfter }

// Covers reports whether every link's scope includes action on resource.
func (c VerifiedChain) Covers(action string, resource creto.Resource) bool {
	if !c.Valid() {
		return false
	}
	text := resource.String()
	return !slices.ContainsFunc(c.scopes, func(s Scope) bool { return !s.Covers(action, text) })
}

// EpochOf returns the revocation epoch of a principal.
type EpochOf func(ctx context.Context, id creto.ID) (uint64, error)

// VerifyDelegation checks every signature and rule of a chain and is the only
// maker of a VerifiedChain. now is when the chain must be in force. epochs may
// be nil where revocation cannot be known, as in an offline verification.
//
// Errors: NHIDelegationVerificationFailed (Security), naming the link, for
// whatever does not hold; what epochs returns.
func VerifyDelegation(ctx context.Context, links []SignedLink, roots []pqc.PublicKey, p pqc.Provider, now time.Time, epochs EpochOf) (VerifiedChain, error) {
	const op fault.Op = "nhi.VerifyDelegation"
	if len(links) == 0 || len(links) > MaxChain {
		return VerifiedChain{}, fault.New(op, fault.NHIDelegationVerificationFailed, "a chain of %d links; allowed are 1 to %d", len(links), MaxChain)
	}
	chain := VerifiedChain{links: slices.Clone(links)}
	var above Link
	for i, signed := range links {
		link, err := signed.Link()
		if err != nil {
			return VerifiedChain{}, fault.Wrap(op, err)
		}
		keys := roots
		if i > 0 {
			keys = []pqc.PublicKey{above.SubjectKey}
		}
		reason := link.violation(above, i == 0, now)
		if reason == "" && i > 0 && link.Parent != links[i-1].Digest() {
			reason = "names another parent"
		}
		if reason == "" && !slices.ContainsFunc(keys, func(k pqc.PublicKey) bool {
			return p.Verify(pqc.PurposeDelegation, signed.Body, signed.Signature, k) == nil
		}) {
			reason = "is not signed by its issuer"
		}
		if reason == "" && epochs != nil {
			if reason, err = link.revoked(ctx, epochs); err != nil {
				return VerifiedChain{}, fault.Wrap(op, err)
			}
		}
		if reason != "" {
			return VerifiedChain{}, fault.New(op, fault.NHIDelegationVerificationFailed, "link %d of the chain, from %s to %s, %s", i+1, link.Issuer, link.Subject, reason)
		}
		if i == 0 {
			chain.principals = append(chain.principals, link.Issuer)
			chain.proof = link.Proof.Kind
		}
		chain.principals = append(chain.principals, link.Subject)
		chain.scopes = append(chain.scopes, link.Scope)
		chain.notAfter = time.Unix(link.NotAfter, 0)
		above = link
	}
	var err error
	chain.digest, err = ChainDigest(links)
	return chain, fault.Wrap(op, err)
}

// ChainDigest names a chain by its links, verified or not.
//
// Errors: Internal (Permanent), never for a slice of digests.
func ChainDigest(links []SignedLink) (creto.Digest, error) {
	digests := make([]creto.Digest, len(links))
	for i, link := range links {
		digests[i] = link.Digest()
	}
	encoded, err := canon.Marshal(digests)
	return creto.DigestOf(encoded), err
}

// violation returns what is wrong with the link under the link above it, or "".
func (l Link) violation(above Link, first bool, now time.Time) string {
	switch {
	case l.Issuer.Validate() != nil || l.Subject.Validate() != nil:
		return "names no valid principals"
	case l.Issuer.TrustDomain != l.Subject.TrustDomain || l.Issuer.Tenant != l.Subject.Tenant:
		return "crosses tenants"
	case l.Subject.Kind == creto.KindHuman:
		return "delegates to a human"
	case now.Unix() < l.NotBefore:
		return "is not in force yet"
	case now.Unix() >= l.NotAfter:
		return "has expired"
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

func (l Link) revoked(ctx context.Context, epochs EpochOf) (string, error) {
	issuer, err := epochs(ctx, l.Issuer)
	if err != nil {
		return "", err
	}
	subject, err := epochs(ctx, l.Subject)
	if err != nil {
		return "", err
	}
	if l.IssuerEpoch < issuer || l.SubjectEpoch < subject {
		return "has been revoked", nil
	}
	return "", nil
}
