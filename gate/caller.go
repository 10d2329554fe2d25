package gate

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// defaultCallers bounds the memory of opened tokens.
const defaultCallers = 10_000

// maxStanding is how long a verified chain and its session are taken for
// granted. An authority's epoch ends them at once on revocation; this ends them
// on what it does not tell: another delegation, another group.
const maxStanding = time.Second

// Caller is an agent whose token and chain were verified. It is what Do acts
// for, and comes from Open alone: the zero Caller is denied everything. Safe
// for concurrent use.
type Caller struct {
	token    string
	identity nhi.Identity
	source   TokenSource // nil for a caller that ends with its token
	standing atomic.Pointer[standing]
}

// standing is what a caller's verification came to. It is immutable.
type standing struct {
	epoch   uint64 // of the authority when chain was verified
	until   time.Time
	chain   nhi.VerifiedChain
	session authz.Session
}

// Identity returns who the caller is.
func (c *Caller) Identity() nhi.Identity { return c.identity }

// bound reports whether who sends the token must prove to have a key.
func (c *Caller) bound() bool { return !c.identity.Confirmation.IsZero() }

// Chain returns the chain as it was last verified; the zero chain if it did not
// hold.
func (c *Caller) Chain() nhi.VerifiedChain {
	if s := c.standing.Load(); s != nil {
		return s.chain
	}
	return nhi.VerifiedChain{}
}

// Open resolves a credential, verifies the chain behind it and prepares the
// caller. A token that was opened before costs a look-up, unless it is bound to
// a key: that is proven with each request.
//
// Errors: those of nhi.Authority.Resolve and nhi.VerifyDelegation; nothing
// proceeds without identity (R-NHI-25).
func (g *Gate) Open(ctx context.Context, cred nhi.Credential) (*Caller, error) {
	const op fault.Op = "gate.Open"
	g.mu.Lock()
	c, ok := g.callers[cred.Token]
	g.mu.Unlock()
	if !ok || c.bound() {
		identity, err := g.authority.Resolve(ctx, cred)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		if !ok {
			c = &Caller{token: cred.Token, identity: identity}
		}
	}
	stamp, _, err := g.fresh(ctx, c)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		delete(g.callers, cred.Token)
		return nil, fault.Wrap(op, err)
	}
	if !ok {
		g.remember(c, stamp.Time())
	}
	return c, nil
}

// TokenSource returns a token in force of always the same agent.
type TokenSource func(ctx context.Context) (string, error)

// OpenFor is Open for a caller that outlives its tokens, such as a sandbox that
// waits half an hour for a human: Do takes the next token when one has expired.
//
// Errors: those of source and Open.
func (g *Gate) OpenFor(ctx context.Context, source TokenSource) (*Caller, error) {
	const op fault.Op = "gate.OpenFor"
	token, err := source(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	opened, err := g.Open(ctx, nhi.Credential{Token: token})
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	c := &Caller{token: token, identity: opened.identity, source: source}
	c.standing.Store(opened.standing.Load())
	return c, nil
}

// renewed is fresh, with the next token if the caller's has expired and there
// is one for the same agent and run.
func (g *Gate) renewed(ctx context.Context, c *Caller) (*Caller, creto.Timestamp, *standing, error) {
	stamp, s, err := g.fresh(ctx, c)
	if c.source == nil || !errors.Is(err, fault.NHITokenExpired) {
		return c, stamp, s, err
	}
	next, err := g.OpenFor(ctx, c.source)
	if err != nil {
		return c, stamp, nil, err
	}
	if next.identity.ID != c.identity.ID || next.identity.Sandbox != c.identity.Sandbox {
		return c, stamp, nil, fault.New("gate.renewed", fault.NHITokenInvalid, "the next token is another caller's")
	}
	stamp, s, err = g.fresh(ctx, next)
	return next, stamp, s, err
}

// remember keeps a caller for the next Open. The caller holds mu. When there
// are too many, the expired go first, then whoever the map names first: a
// forgotten caller is only opened anew.
func (g *Gate) remember(c *Caller, now time.Time) {
	if len(g.callers) >= g.maxCallers {
		for token, old := range g.callers {
			if !now.Before(old.identity.ExpiresAt) {
				delete(g.callers, token)
			}
		}
	}
	for token := range g.callers {
		if len(g.callers) < g.maxCallers {
			break
		}
		delete(g.callers, token)
	}
	g.callers[c.token] = c
}

// fresh returns the caller's chain and session after rechecking expiry and, if
// anything was revoked since or they are of some age, everything. The stamp is
// when they were in force.
func (g *Gate) fresh(ctx context.Context, c *Caller) (creto.Timestamp, *standing, error) {
	const op fault.Op = "gate.fresh"
	stamp, err := g.clock.Now(ctx)
	if err != nil {
		return stamp, nil, fault.Wrap(op, err)
	}
	now := stamp.Time()
	if !now.Before(c.identity.ExpiresAt) {
		return stamp, nil, fault.New(op, fault.NHITokenExpired, "the token has expired")
	}
	// The epoch is read first: what is revoked during the verification raises
	// it, and the next action verifies again.
	epoch, err := g.authority.Epoch()
	if err != nil {
		return stamp, nil, fault.Wrap(op, err)
	}
	if s := c.standing.Load(); s != nil && s.epoch == epoch && now.Before(s.until) {
		return stamp, s, nil
	}
	s, err := g.verify(ctx, c, now, epoch)
	c.standing.Store(s)
	return stamp, s, fault.Wrap(op, err)
}

func (g *Gate) verify(ctx context.Context, c *Caller, now time.Time, epoch uint64) (*standing, error) {
	const op fault.Op = "gate.verify"
	if err := g.recheck(ctx, c); err != nil {
		return nil, fault.Wrap(op, err)
	}
	links, err := g.authority.DelegationChain(ctx, c.identity.ID)
	if errors.Is(err, fault.NHINotFound) { // whether there is such an agent is not told (R-NHI-11)
		return nil, fault.WrapAs(op, fault.NHITokenInvalid, err, "the token's agent has no delegation")
	}
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	roots, err := g.authority.Roots(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	chain, err := g.verifier.Verify(ctx, links, roots, now, g.authority)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	if chain.Digest() != c.identity.Chain || chain.Agent() != c.identity.ID {
		return nil, fault.New(op, fault.NHITokenInvalid, "the token was issued under another delegation")
	}
	session, err := g.authorizer.Bind(ctx, chain)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	until := now.Add(maxStanding)
	if chain.NotAfter().Before(until) {
		until = chain.NotAfter()
	}
	return &standing{epoch: epoch, until: until, chain: chain, session: session}, nil
}

// recheck asks whether the token still holds. An authority that has forgotten
// it, as after a restart, is shown it again, unless that takes a proof which
// only its holder can give.
func (g *Gate) recheck(ctx context.Context, c *Caller) error {
	const op fault.Op = "gate.recheck"
	err := g.authority.Recheck(ctx, c.identity)
	if c.bound() || !errors.Is(err, fault.NHITokenInvalid) {
		return fault.Wrap(op, err)
	}
	again, err := g.authority.Resolve(ctx, nhi.Credential{Token: c.token})
	if err != nil {
		return fault.Wrap(op, err)
	}
	if again != c.identity {
		return fault.New(op, fault.NHITokenInvalid, "the token is another one's now")
	}
	return nil
}
