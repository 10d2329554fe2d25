// Package nhi is the contract for non-human identity: who an agent is, which
// human it acts for, and the signed chain of delegation between them (R-NHI-1…29).
//
// The one way to a [VerifiedChain] is [VerifyDelegation], or a [Verifier] that
// remembers what it accepted; what needs authority takes a VerifiedChain and
// nothing less (X-2, B-15).
package nhi

import (
	"context"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/pqc"
)

// MaxTokenTTL bounds the life of an access token.
const MaxTokenTTL = 15 * time.Minute

// WatchTimeout is how old the last word of an authority may be: without a newer
// one its epoch is unknown and nothing proceeds. A remote authority speaks every
// WatchInterval.
const (
	WatchTimeout  = 800 * time.Millisecond
	WatchInterval = 200 * time.Millisecond
)

// Credential is what a caller presents.
type Credential struct {
	// Token is the access token, as it came.
	Token string
	// DPoP is the proof of possession that came with it, for a request of
	// Method to URL, without query and fragment (RFC 9449).
	DPoP, Method, URL string
	// Certificate is the SHA-256 digest of the client's TLS certificate (RFC
	// 8705); zero without one.
	Certificate [32]byte
}

// Confirmation is the key that a token's holder must prove to have: at most one
// field is set. The zero value binds the token to nothing.
type Confirmation struct {
	// JKT is the SHA-256 thumbprint of a DPoP key, in base64url (RFC 9449,
	// section 6.1).
	JKT string `json:"jkt,omitempty"`
	// X5T is the SHA-256 digest of a TLS certificate, in base64url (RFC 8705,
	// section 3.1).
	X5T string `json:"x5t#S256,omitempty"`
}

// IsZero reports whether nothing must be proven.
func (c Confirmation) IsZero() bool { return c == Confirmation{} }

// Identity is what a valid token says. It is comparable.
type Identity struct {
	// ID is the agent's name.
	ID creto.ID
	// Human is whom it acts for.
	Human creto.ID
	// Instance tells apart the processes that act as one agent, if the token
	// says so.
	Instance string
	// TokenID is the token's jti.
	TokenID string
	// Chain is the digest of the delegation chain that the token was issued
	// under.
	Chain creto.Digest
	// Epoch is the agent's revocation epoch at issue.
	Epoch uint64
	// Sandbox names the run that the token is bound to, if any.
	Sandbox string
	// Confirmation is what its holder proved to have.
	Confirmation Confirmation
	// ExpiresAt is when the token ends, to the second, in UTC.
	ExpiresAt time.Time
}

// Key is a public key and when it may be used.
type Key struct {
	Public pqc.PublicKey
	// NotBefore is when it was made; NotAfter when it stopped signing, zero
	// while it is the one in use. What it signed until then still verifies.
	NotBefore, NotAfter time.Time
}

// PublicKeys are an agent's keys for others to use, the newest first (B-4).
type PublicKeys struct {
	// Signing verify what the agent signs.
	Signing []Key
	// Encryption is what others encrypt for the agent with.
	Encryption pqc.EncapsulationKey
}

// LinkRef is what must be known of a link to tell whether it is revoked.
type LinkRef struct {
	Digest          creto.Digest
	Issuer, Subject creto.ID
	// IssuerEpoch and SubjectEpoch are their revocation epochs at issue.
	IssuerEpoch, SubjectEpoch uint64
}

// Revocations knows what was revoked.
type Revocations interface {
	// Revoked returns the index of the first of links that is revoked, itself
	// or because a principal of it was since, or -1 if none is. An unknown
	// principal counts as revoked.
	//
	// Errors: NHIUnavailable (Degraded), NHITimeout (Transient).
	Revoked(ctx context.Context, links []LinkRef) (int, error)
}

// Authority knows the principals of one trust domain. Safe for concurrent use.
//
// Errors of every method: NHIUnavailable (Degraded), NHITimeout (Transient).
// Nothing proceeds without identity: a caller denies on any error (R-NHI-25).
type Authority interface {
	Revocations

	// Resolve returns who presents c. A token that is bound to a key is
	// refused without the proof, and with one that was used before.
	//
	// Errors: NHITokenInvalid (Security) for anything malformed, forged, for
	// another audience, revoked, or not proven; NHITokenExpired (Permanent);
	// InvalidArgument never: a bad token is a bad token.
	Resolve(ctx context.Context, c Credential) (Identity, error)

	// Recheck returns nil as long as what Resolve returned still holds.
	//
	// Errors: NHITokenExpired (Permanent); NHITokenInvalid (Security) if it is
	// revoked, or this authority has not resolved it, or not lately: the
	// token must be presented again.
	Recheck(ctx context.Context, who Identity) error

	// DelegationChain returns the signed links from a human down to agent,
	// the human's first. The caller must not change them.
	//
	// Errors: NHINotFound (Permanent) for an unknown agent or one without a
	// delegation.
	DelegationChain(ctx context.Context, agent creto.ID) ([]SignedLink, error)

	// PublicKeys returns agent's keys.
	//
	// Errors: NHINotFound, NHIPublicKeyNotFound (Permanent).
	PublicKeys(ctx context.Context, agent creto.ID) (PublicKeys, error)

	// Sign signs message with the key of the agent that who is, for a purpose
	// that [CheckAgentPurpose] allows (B-2). The key is held by the platform; who records
	// what was signed is the caller.
	//
	// Errors: those of Recheck; NHIDelegationVerificationFailed (Security) if
	// the delegation behind who is not in force any more; PermissionDenied (Security) for a purpose that
	// is not an agent's.
	Sign(ctx context.Context, who Identity, purpose pqc.Purpose, message []byte) (pqc.Signature, error)

	// DelegatedSecrets returns the values of secrets of who's tenant, in the
	// order of refs, all or none. Whether policy lets who have them is decided
	// before, and recorded, by package gate (B-3).
	//
	// Errors: those of Sign for who; NHISecretNotFound (Permanent), naming the
	// first that is missing; NHISecretAccessDenied (Security) if its owner
	// does not let who's agent have it; those of a SecretSource; DataLoss
	// (Security) for a value that cannot be unsealed; InvalidArgument
	// (Permanent) for more than MaxSecretRefs. None holds a value.
	DelegatedSecrets(ctx context.Context, who Identity, refs []SecretRef) ([]creto.Secret, error)

	// Groups returns the groups that a principal belongs to, sorted; none for
	// an unknown one.
	Groups(ctx context.Context, id creto.ID) ([]string, error)

	// Roots returns the keys that sign human delegation links, the newest
	// first.
	Roots(ctx context.Context) ([]pqc.PublicKey, error)

	// Epoch returns the number of revocations so far. As long as it has not
	// changed, a chain or token that was good before is not revoked. It costs
	// nanoseconds.
	//
	// Errors: NHIUnavailable (Degraded) if the authority has not been heard
	// for WatchTimeout.
	Epoch() (uint64, error)

	// Watch calls seen with the epoch as it is, and then with each new one,
	// until ctx ends or the authority cannot be heard; it may skip to the
	// newest. seen is called from one goroutine at a time and must not block.
	//
	// Errors: why it ended; never nil.
	Watch(ctx context.Context, seen func(epoch uint64)) error

	// Ping reports whether the authority can answer.
	Ping(ctx context.Context) error
}

// CheckAgentPurpose refuses what an agent's key does not sign for through
// Authority.Sign. Links and everything of the platform's are signed by the
// authority itself (B-2).
//
// Errors: PermissionDenied (Security).
func CheckAgentPurpose(p pqc.Purpose) error {
	switch p {
	case pqc.PurposeMessage, pqc.PurposeRecord:
		return nil
	}
	return fault.New("nhi.CheckAgentPurpose", fault.PermissionDenied, "an agent's key does not sign for the purpose %q", p)
}
