package localnhi

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// Audience is whom tokens are for that are given no other: this trust domain's
// gates.
const Audience = "creto"

// maxTokenBytes bounds what is parsed; ours have about 700.
const maxTokenBytes = 4 << 10

// maxSeen bounds the memory of verified tokens.
const maxSeen = 10_000

// tokenType is the media type of access tokens (RFC 9068, section 2.1).
const tokenType = "at+jwt"

// tokens signs and verifies access tokens.
type tokens struct {
	issuer string
	dpop   dpop

	mu     sync.RWMutex // guards everything below
	signer jose.Signer
	keys   []tokenKey
	seen   map[string]*seenToken // by token
	byID   map[string]*seenToken // by jti
}

// tokenKey verifies tokens. A retired one does until the last token that it
// signed has ended.
type tokenKey struct {
	id      string
	public  ed25519.PublicKey
	retired time.Time
}

// seenToken is what a verified signature vouches for.
type seenToken struct {
	token    string
	identity nhi.Identity
	// good is the epoch, plus one, for which it was found not to be revoked.
	good atomic.Uint64
}

// claims are those of RFC 9068 and RFC 8693, and ours.
type claims struct {
	jwt.Claims
	// ClientID is the acting agent (RFC 9068, section 2.2).
	ClientID string           `json:"client_id"`
	Act      *actor           `json:"act"`
	Cnf      nhi.Confirmation `json:"cnf,omitzero"`
	Chain    creto.Digest     `json:"chain"`
	Epoch    uint64           `json:"epoch"`
	Instance string           `json:"instance,omitempty"`
	Sandbox  string           `json:"sandbox,omitempty"`
}

// actor is who acts for the subject; nested actors delegated to it, the nearest
// first (RFC 8693, section 4.1).
type actor struct {
	Subject string `json:"sub"`
	Act     *actor `json:"act,omitempty"`
}

func newTokens(issuer string, began time.Time) *tokens {
	return &tokens{issuer: issuer, dpop: dpop{began: began}, seen: make(map[string]*seenToken), byID: make(map[string]*seenToken)}
}

// loadTokenKeys reads the keys of tokens, making the first.
func (a *Authority) loadTokenKeys(ctx context.Context) error {
	const op fault.Op = "localnhi.loadTokenKeys"
	active, err := a.key(ctx, Platform, RoleToken)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if len(active.seed) != ed25519.SeedSize {
		return fault.New(op, fault.CryptoInvalidKeyLength, "the token key has %d bytes instead of %d", len(active.seed), ed25519.SeedSize)
	}
	key := jose.JSONWebKey{Key: ed25519.NewKeyFromSeed(active.seed), KeyID: string(active.ID)}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, (&jose.SignerOptions{}).WithType(tokenType))
	if err != nil {
		return fault.WrapAs(op, fault.CryptoInternal, err, "")
	}
	stored, err := a.Keys(ctx, Platform)
	if err != nil {
		return fault.Wrap(op, err)
	}
	var keys []tokenKey
	for _, k := range stored {
		if k.Role == RoleToken && len(k.Public) == ed25519.PublicKeySize {
			keys = append(keys, tokenKey{id: string(k.ID), public: k.Public, retired: k.Retired})
		}
	}
	a.tokens.mu.Lock()
	defer a.tokens.mu.Unlock()
	a.tokens.signer, a.tokens.keys = signer, keys
	return nil
}

// key returns the key of that id if it may have signed a token that is still in
// force at now.
func (t *tokens) key(id string, now time.Time) (ed25519.PublicKey, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	i := slices.IndexFunc(t.keys, func(k tokenKey) bool { return k.id == id })
	if i < 0 || !t.keys[i].retired.IsZero() && now.Sub(t.keys[i].retired) > nhi.MaxTokenTTL {
		return nil, false
	}
	return t.keys[i].public, true
}

// errToken is all that a caller learns of a bad token.
var errToken = fault.New("localnhi.Resolve", fault.NHITokenInvalid, "the token is not valid")

// Resolve implements nhi.Authority.
func (a *Authority) Resolve(ctx context.Context, c nhi.Credential) (nhi.Identity, error) {
	const op fault.Op = "localnhi.Resolve"
	stamp, err := a.clock.Now(ctx)
	if err != nil {
		return nhi.Identity{}, fault.Wrap(op, err)
	}
	a.tokens.mu.RLock()
	seen := a.tokens.seen[c.Token]
	a.tokens.mu.RUnlock()
	if seen == nil {
		signed, err := a.parse(c.Token, stamp.Time())
		if err != nil {
			return nhi.Identity{}, err
		}
		if !signed.Audience.Contains(Audience) {
			return nhi.Identity{}, errToken
		}
		seen = &seenToken{token: c.Token, identity: signed.identity}
		a.tokens.remember(seen, stamp.Time())
	}
	if err := a.holds(ctx, seen, stamp.Physical); err != nil {
		return nhi.Identity{}, err
	}
	if !seen.identity.Confirmation.IsZero() {
		if err := a.tokens.possessed(c, seen.identity.Confirmation, stamp.Time()); err != nil {
			return nhi.Identity{}, err
		}
	}
	return seen.identity, nil
}

// Recheck implements nhi.Authority.
func (a *Authority) Recheck(ctx context.Context, who nhi.Identity) error {
	const op fault.Op = "localnhi.Recheck"
	stamp, err := a.clock.Now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	a.tokens.mu.RLock()
	seen := a.tokens.byID[who.TokenID]
	a.tokens.mu.RUnlock()
	if seen == nil || seen.identity != who {
		return fault.New(op, fault.NHITokenInvalid, "the token must be presented again")
	}
	return a.holds(ctx, seen, stamp.Physical)
}

// holds checks what changes after the signature was verified: expiry against
// the order of events, in Unix nanoseconds, and revocation.
func (a *Authority) holds(ctx context.Context, t *seenToken, now int64) error {
	const op fault.Op = "localnhi.holds"
	if now >= t.identity.ExpiresAt.UnixNano() {
		return fault.New(op, fault.NHITokenExpired, "the token has expired")
	}
	epoch := a.revoked.epoch.Load()
	if t.good.Load() == epoch+1 {
		return nil
	}
	s, err := a.standingOf(ctx, t.identity.ID)
	if err != nil {
		return fault.Wrap(op, err)
	}
	a.revoked.mu.RLock()
	_, revoked := a.revoked.tokens[t.identity.TokenID]
	a.revoked.mu.RUnlock()
	if revoked || !s.active || s.epoch != t.identity.Epoch {
		return fault.New(op, fault.NHITokenInvalid, "the token has been revoked")
	}
	t.good.Store(epoch + 1)
	return nil
}

// Inspection is what a valid token says, whoever presents it and whomever it is
// for. Nothing may be done on its word alone.
type Inspection struct {
	nhi.Identity
	// Audience is whom the token is for.
	Audience []string
	// IssuedAt is to the second, in UTC.
	IssuedAt time.Time
	// Actors act for the human: the agent, then who delegated to it, the
	// nearest first.
	Actors []string
}

// Inspect returns what a token of this authority says, if it is valid now: for
// introspection and exchange, which ask for possession themselves, and for
// revocation, which does not.
//
// Errors: those of Resolve; NHITokenInvalid (Security) also if the delegation
// that it was issued under is not in force.
func (a *Authority) Inspect(ctx context.Context, token string) (Inspection, error) {
	const op fault.Op = "localnhi.Inspect"
	stamp, err := a.clock.Now(ctx)
	if err != nil {
		return Inspection{}, fault.Wrap(op, err)
	}
	signed, err := a.parse(token, stamp.Time())
	if err != nil {
		return Inspection{}, err
	}
	if err := a.holds(ctx, &seenToken{identity: signed.identity}, stamp.Physical); err != nil {
		return Inspection{}, err
	}
	if err := a.delegated(ctx, signed.identity); errors.Is(err, fault.NHIDelegationVerificationFailed) {
		return Inspection{}, fault.WrapAs(op, fault.NHITokenInvalid, err, "the delegation behind the token is not in force")
	} else if err != nil {
		return Inspection{}, fault.Wrap(op, err)
	}
	in := Inspection{Identity: signed.identity, Audience: signed.Audience, IssuedAt: signed.IssuedAt.Time().UTC()}
	for act := signed.Act; act != nil; act = act.Act {
		in.Actors = append(in.Actors, act.Subject)
	}
	return in, nil
}

// delegated returns nil as long as the delegation that a token was issued under
// is in force.
//
// Errors: NHITokenInvalid (Security) if there is another or none;
// NHIDelegationVerificationFailed (Security).
func (a *Authority) delegated(ctx context.Context, who nhi.Identity) error {
	const op fault.Op = "localnhi.delegated"
	chain, err := a.Chain(ctx, who.ID)
	switch {
	case errors.Is(err, fault.NHINotFound):
		return fault.WrapAs(op, fault.NHITokenInvalid, err, "the token's agent has no delegation")
	case err != nil:
		return fault.Wrap(op, err)
	case chain.Digest() != who.Chain:
		return fault.New(op, fault.NHITokenInvalid, "the token was issued under another delegation")
	}
	return nil
}

// acting returns nil as long as who may act: the token holds, and the delegation
// behind it.
func (a *Authority) acting(ctx context.Context, who nhi.Identity) error {
	if err := a.Recheck(ctx, who); err != nil {
		return err
	}
	return a.delegated(ctx, who)
}

// signedToken is a token whose signature and form are good.
type signedToken struct {
	claims
	identity nhi.Identity
}

// parse verifies a token's signature and claims, but not whom it is for.
func (a *Authority) parse(token string, now time.Time) (*signedToken, error) {
	const op fault.Op = "localnhi.parse"
	t := a.tokens
	if len(token) > maxTokenBytes {
		return nil, errToken
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return nil, fault.WrapAs(op, fault.NHITokenInvalid, err, "the token is not valid")
	}
	header := parsed.Headers[0]
	key, ok := t.key(header.KeyID, now)
	if typ, _ := header.ExtraHeaders[jose.HeaderType].(string); !ok || typ != tokenType {
		return nil, errToken
	}
	var c claims
	if err := parsed.Claims(key, &c); err != nil {
		return nil, fault.WrapAs(op, fault.NHITokenInvalid, err, "the token is not valid")
	}
	if c.Expiry == nil || c.IssuedAt == nil || c.IssuedAt.Time().After(now) || c.ID == "" || c.Act == nil || c.Expiry.Time().Sub(c.IssuedAt.Time()) > nhi.MaxTokenTTL || c.Cnf.JKT != "" && c.Cnf.X5T != "" {
		return nil, errToken
	}
	// Expiry is checked on every use, against the order of events.
	expected := jwt.Expected{Issuer: t.issuer}
	if err := c.ValidateWithLeeway(expected.WithTime(c.IssuedAt.Time()), 0); err != nil {
		return nil, fault.WrapAs(op, fault.NHITokenInvalid, err, "the token is not valid")
	}
	agent, err := creto.ParseID(c.Act.Subject)
	if err != nil || agent.Kind != creto.KindAgent || agent.TrustDomain != a.cfg.TrustDomain {
		return nil, errToken
	}
	human, err := creto.ParseID(c.Subject)
	if err != nil || human.Kind != creto.KindHuman || human.Tenant != agent.Tenant {
		return nil, errToken
	}
	s := &signedToken{claims: c, identity: nhi.Identity{
		ID: agent, Human: human, Instance: c.Instance, TokenID: c.ID, Chain: c.Chain, Epoch: c.Epoch,
		Sandbox: c.Sandbox, Confirmation: c.Cnf, ExpiresAt: c.Expiry.Time().UTC(),
	}}
	if !now.Before(s.identity.ExpiresAt) {
		return nil, fault.New(op, fault.NHITokenExpired, "the token has expired")
	}
	return s, nil
}

// remember keeps a verified token. When there are too many, the expired go
// first, then whichever the map names: a forgotten one is only verified anew.
func (t *tokens) remember(s *seenToken, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	forget := func(old *seenToken) {
		delete(t.seen, old.token)
		delete(t.byID, old.identity.TokenID)
	}
	if len(t.seen) >= maxSeen {
		for _, old := range t.seen {
			if !now.Before(old.identity.ExpiresAt) {
				forget(old)
			}
		}
	}
	for _, old := range t.seen {
		if len(t.seen) < maxSeen {
			break
		}
		forget(old)
	}
	t.seen[s.token], t.byID[s.identity.TokenID] = s, s
}

// TokenRequest says what a token is for. The zero value asks for one that this
// trust domain's gates accept from whoever holds it.
type TokenRequest struct {
	// ID is its jti; "" makes one.
	ID string
	// Audience is whom it is for; "" means Audience. Nobody else accepts it.
	Audience string
	// Sandbox binds it to a run, Instance names a process.
	Sandbox, Instance string
	// Confirmation is the key that its holder must prove to have.
	Confirmation nhi.Confirmation
	// Chain must be the agent's chain, if it is not zero: a token is not
	// exchanged for one under another delegation.
	Chain creto.Digest
	// NotAfter bounds its life further, if it is not zero.
	NotAfter time.Time
}

// maxAudienceBytes bounds an audience: a URI, or a service's name.
const maxAudienceBytes = 512

// CheckAudience refuses what is no name of a service: an audience is 1 to 512
// printable ASCII characters without spaces.
//
// Errors: InvalidArgument (Permanent).
func CheckAudience(text string) error {
	if text == "" || len(text) > maxAudienceBytes || strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return fault.New("localnhi.CheckAudience", fault.InvalidArgument, "%.40q is no audience: use a URI, or a name, of at most %d characters", text, maxAudienceBytes)
	}
	return nil
}

// checkConfirmation refuses what nobody can prove to have.
func checkConfirmation(c nhi.Confirmation) error {
	const op fault.Op = "localnhi.checkConfirmation"
	if c.JKT != "" && c.X5T != "" {
		return fault.New(op, fault.InvalidArgument, "a token is bound to one key")
	}
	if text := c.JKT + c.X5T; text != "" {
		if digest, err := base64.RawURLEncoding.Strict().DecodeString(text); err != nil || len(digest) != sha256.Size {
			return fault.New(op, fault.InvalidArgument, "%.60q is no SHA-256 thumbprint in base64url", text)
		}
	}
	return nil
}

// IssueToken returns an access token for an agent that has a delegation in
// force, and when it ends.
//
// Errors: NHINotFound (Permanent), NHIDelegationVerificationFailed (Security);
// InvalidArgument (Permanent) for an audience or a confirmation that is none.
func (a *Authority) IssueToken(ctx context.Context, agent creto.ID, r TokenRequest) (string, time.Time, error) {
	const op fault.Op = "localnhi.IssueToken"
	if r.Audience == "" {
		r.Audience = Audience
	}
	if err := errors.Join(CheckAudience(r.Audience), checkConfirmation(r.Confirmation)); err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	chain, err := a.Chain(ctx, agent)
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	if !r.Chain.IsZero() && r.Chain != chain.Digest() {
		return "", time.Time{}, fault.New(op, fault.NHIDelegationVerificationFailed, "the delegation of %s was replaced", agent)
	}
	now, err := a.now(ctx)
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	// The epoch is the chain's, not today's: a revocation since must end the
	// token too.
	links := chain.Links()
	own, err := links[len(links)-1].Link()
	if err != nil {
		return "", time.Time{}, fault.Wrap(op, err)
	}
	expires := now.Add(a.cfg.TokenTTL)
	for _, bound := range []time.Time{chain.NotAfter(), r.NotAfter} {
		if !bound.IsZero() && bound.Before(expires) {
			expires = bound
		}
	}
	if r.ID == "" {
		r.ID = creto.NewUUID().String()
	}
	c := claims{
		Claims: jwt.Claims{
			Issuer: a.tokens.issuer, Subject: chain.Human().String(), Audience: jwt.Audience{r.Audience},
			IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(expires), ID: r.ID,
		},
		ClientID: agent.String(), Cnf: r.Confirmation, Chain: chain.Digest(), Epoch: own.SubjectEpoch, Instance: r.Instance, Sandbox: r.Sandbox,
	}
	for _, id := range chain.Principals()[1:] {
		c.Act = &actor{Subject: id.String(), Act: c.Act}
	}
	a.tokens.mu.RLock()
	signer := a.tokens.signer
	a.tokens.mu.RUnlock()
	token, err := jwt.Signed(signer).Claims(c).Serialize()
	if err != nil {
		return "", time.Time{}, fault.WrapAs(op, fault.CryptoSignatureGenerationFailed, err, "")
	}
	return token, expires.Truncate(time.Second), nil
}
