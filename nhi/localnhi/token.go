package localnhi

import (
	"context"
	"crypto/ed25519"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// audience is who tokens are for.
const audience = "creto"

// maxTokenBytes bounds what is parsed; ours have about 700.
const maxTokenBytes = 4 << 10

// maxSeen bounds the memory of verified tokens.
const maxSeen = 10_000

// tokens signs and verifies access tokens.
type tokens struct {
	signer jose.Signer
	public ed25519.PublicKey
	issuer string

	mu   sync.RWMutex // guards seen
	seen map[string]claims
}

// claims is what a verified signature vouches for.
type claims struct {
	identity nhi.Identity
	epoch    uint64
}

// private are the claims of ours beside the registered ones.
type private struct {
	Chain   creto.Digest `json:"chain"`
	Epoch   uint64       `json:"epoch"`
	Sandbox string       `json:"sandbox,omitempty"`
}

func newTokens(key pqc.SigningKey, issuer string) (*tokens, error) {
	const op fault.Op = "localnhi.newTokens"
	if len(key.Seed) != ed25519.SeedSize {
		return nil, fault.New(op, fault.CryptoInvalidKeyLength, "the token key has %d bytes instead of %d", len(key.Seed), ed25519.SeedSize)
	}
	secret := ed25519.NewKeyFromSeed(key.Seed)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: secret}, (&jose.SignerOptions{}).WithType("at+jwt"))
	if err != nil {
		return nil, fault.WrapAs(op, fault.CryptoInternal, err, "")
	}
	return &tokens{signer: signer, public: secret.Public().(ed25519.PublicKey), issuer: issuer, seen: make(map[string]claims)}, nil
}

func (t *tokens) verify(token string) (claims, error) {
	const op fault.Op = "localnhi.verify"
	t.mu.RLock()
	c, ok := t.seen[token]
	t.mu.RUnlock()
	if ok {
		return c, nil
	}
	invalid := func(err error) (claims, error) {
		return claims{}, fault.WrapAs(op, fault.NHITokenInvalid, err, "the token is not valid")
	}
	if len(token) > maxTokenBytes {
		return claims{}, fault.New(op, fault.NHITokenInvalid, "the token is not valid")
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return invalid(err)
	}
	var registered jwt.Claims
	var own private
	if err := parsed.Claims(t.public, &registered, &own); err != nil {
		return invalid(err)
	}
	// Expiry is checked on every use against the order of events, not here.
	expected := jwt.Expected{Issuer: t.issuer, AnyAudience: jwt.Audience{audience}}
	if err := registered.ValidateWithLeeway(expected.WithTime(registered.IssuedAt.Time()), 0); err != nil {
		return invalid(err)
	}
	id, err := creto.ParseID(registered.Subject)
	if err != nil || registered.Expiry == nil || registered.ID == "" {
		return invalid(fault.New(op, fault.NHITokenInvalid, "a claim is missing"))
	}
	c = claims{epoch: own.Epoch, identity: nhi.Identity{
		ID: id, TokenID: registered.ID, Chain: own.Chain, Sandbox: own.Sandbox, ExpiresAt: registered.Expiry.Time(),
	}}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.seen) >= maxSeen {
		clear(t.seen)
	}
	t.seen[token] = c
	return c, nil
}

// IssueToken returns an access token for an agent that has a delegation in
// force. sandbox binds it to a run, if it is not empty.
//
// Errors: NHINotFound (Permanent), NHIDelegationVerificationFailed (Security).
func (a *Authority) IssueToken(ctx context.Context, agent creto.ID, sandbox string) (string, time.Time, error) {
	const op fault.Op = "localnhi.IssueToken"
	links, err := a.DelegationChain(ctx, agent)
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	now, err := a.now(ctx)
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	chain, err := nhi.VerifyDelegation(ctx, links, []pqc.PublicKey{a.public}, a.pqc, now, a.Epochs)
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	epoch, err := a.Epochs(ctx, agent)
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	expires := now.Add(a.cfg.TokenTTL)
	if chain.NotAfter().Before(expires) {
		expires = chain.NotAfter()
	}
	registered := jwt.Claims{
		Issuer: a.tokens.issuer, Subject: agent.String(), Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(expires), ID: creto.NewUUID().String(),
	}
	token, err := jwt.Signed(a.tokens.signer).Claims(registered).Claims(private{Chain: chain.Digest(), Epoch: epoch, Sandbox: sandbox}).Serialize()
	if err != nil {
		return "", time.Time{}, fault.WrapAs(op, fault.CryptoSignatureGenerationFailed, err, "")
	}
	return token, expires, nil
}
