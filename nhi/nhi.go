// Package nhi is the contract for non-human identity: who an agent is, which
// human it acts for, and the signed chain of delegation between them (R-NHI-1…29).
//
// The one way to a [VerifiedChain] is [VerifyDelegation]; what needs authority
// takes a VerifiedChain and nothing less (X-2, B-15).
package nhi

import (
	"context"
	"time"

	"creto.dev"
	"creto.dev/pqc"
)

// MaxTokenTTL bounds the life of an access token.
const MaxTokenTTL = 15 * time.Minute

// Identity is what a valid token says.
type Identity struct {
	// ID is the agent's name.
	ID creto.ID
	// TokenID is the token's jti.
	TokenID string
	// Chain is the digest of the delegation chain that the token was issued
	// under.
	Chain creto.Digest
	// Sandbox names the run that the token is bound to, if any.
	Sandbox string
	// ExpiresAt is when the token ends.
	ExpiresAt time.Time
}

// PublicKeys are an agent's keys for others to use.
type PublicKeys struct {
	// Signing verifies what the agent signs.
	Signing pqc.PublicKey
}

// Authority knows the principals of one trust domain. Safe for concurrent use.
//
// Errors of every method: NHIUnavailable (Degraded), NHITimeout (Transient).
// Nothing proceeds without identity: a caller denies on any error (R-NHI-25).
type Authority interface {
	// Resolve returns who holds token.
	//
	// Errors: NHITokenInvalid (Security) for anything malformed, forged, for
	// another audience, or revoked; NHITokenExpired (Permanent);
	// InvalidArgument never: a bad token is a bad token.
	Resolve(ctx context.Context, token string) (Identity, error)

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

	// Groups returns the groups that a principal belongs to, sorted; none for
	// an unknown one.
	Groups(ctx context.Context, id creto.ID) ([]string, error)

	// Roots returns the keys that sign human delegation links.
	Roots(ctx context.Context) ([]pqc.PublicKey, error)

	// Epoch returns the number of revocations so far. As long as it has not
	// changed, a chain that was verified before is not revoked. It costs
	// nanoseconds.
	Epoch() uint64

	// Epochs returns the epoch of a principal: a link or token of an earlier
	// one is revoked.
	Epochs(ctx context.Context, id creto.ID) (uint64, error)

	// Ping reports whether the authority can answer.
	Ping(ctx context.Context) error
}
