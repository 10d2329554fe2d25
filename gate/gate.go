// Package gate is the one path that every action takes, and the only way to
// act: who, on whose behalf, may they, does a human consent, is there quota,
// act, account for it, and record what happened. The field's name for it is the
// policy enforcement point.
package gate

import (
	"context"
	"errors"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// Approver asks humans for consent. Package oversight is one.
type Approver interface {
	// Await asks, or attaches to the same question asked before, and returns
	// when it was answered.
	//
	// Errors: Canceled, DeadlineExceeded when ctx ends; the question stays.
	Await(ctx context.Context, q Question) (Answer, error)

	// Consume spends an approval, durably, just before its action starts.
	//
	// Errors: FailedPrecondition (Permanent) if it was spent or has expired:
	// the action must be asked for again.
	Consume(ctx context.Context, id string) error

	// Finish notes that the outcome of a consumed approval is recorded.
	Finish(ctx context.Context, id string) error
}

// Question is what an Approver puts before a human.
type Question struct {
	Chain     nhi.VerifiedChain
	Action    creto.Action
	Policy    authz.Policy
	Approvers string
	// Timeout is how long to wait; 0 means the approver's default.
	Timeout time.Duration
}

// Answer is a human's decision.
type Answer struct {
	Approved bool
	// Consent goes into the record, whatever the answer.
	Consent audit.Consent
	Reason  string
}

// Meter accounts for quota. Package metering is one.
type Meter interface {
	// Commit makes a reservation's amount used; Refund gives it back. Each
	// reservation sees one of them, once.
	Commit(r authz.Reservation)
	Refund(r authz.Reservation)
}

// Act does what was allowed. It returns facts for the record, also with an
// error.
type Act func(ctx context.Context) (Result, error)

// Result is what an Act reports.
type Result struct {
	Usage *audit.Usage
	// Detail holds facts such as an HTTP status. No secrets.
	Detail map[string]string
}

// Gate holds the contracts of the path. Safe for concurrent use.
type Gate struct {
	authority  nhi.Authority
	provider   pqc.Provider
	clock      consensus.Clock
	authorizer authz.Authorizer
	log        audit.Log
	approver   Approver
	meter      Meter

	mu      sync.Mutex // guards callers
	callers map[string]*Caller
}

// New returns a gate.
func New(authority nhi.Authority, provider pqc.Provider, clock consensus.Clock, authorizer authz.Authorizer, log audit.Log, approver Approver, meter Meter) *Gate {
	return &Gate{
		authority: authority, provider: provider, clock: clock, authorizer: authorizer,
		log: log, approver: approver, meter: meter, callers: make(map[string]*Caller),
	}
}

// maxCallers bounds the memory of opened tokens.
const maxCallers = 10_000

// Caller is an agent whose token and chain were verified. It is what Do acts
// for, and cannot be made in another way than by Open. Safe for concurrent use.
type Caller struct {
	token    string
	identity nhi.Identity

	mu      sync.Mutex // guards what follows
	epoch   uint64     // of the authority when chain was verified
	chain   nhi.VerifiedChain
	session authz.Session
}

// Identity returns who the caller is.
func (c *Caller) Identity() nhi.Identity { return c.identity }

// Chain returns the chain as it was last verified.
func (c *Caller) Chain() nhi.VerifiedChain {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.chain
}

// Open resolves a token, verifies the chain behind it and prepares the caller.
// A token that was opened before costs a look-up.
//
// Errors: those of nhi.Authority.Resolve and nhi.VerifyDelegation; nothing
// proceeds without identity (R-NHI-25).
func (g *Gate) Open(ctx context.Context, token string) (*Caller, error) {
	const op fault.Op = "gate.Open"
	g.mu.Lock()
	c, ok := g.callers[token]
	g.mu.Unlock()
	if ok {
		_, _, err := g.fresh(ctx, c)
		return c, err
	}
	identity, err := g.authority.Resolve(ctx, token)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	c = &Caller{token: token, identity: identity}
	if _, _, err := g.fresh(ctx, c); err != nil {
		return nil, fault.Wrap(op, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.callers) >= maxCallers {
		clear(g.callers)
	}
	g.callers[token] = c
	return c, nil
}

// fresh returns the caller's chain and session after rechecking expiry and, if
// anything was revoked since, everything.
func (g *Gate) fresh(ctx context.Context, c *Caller) (nhi.VerifiedChain, authz.Session, error) {
	const op fault.Op = "gate.fresh"
	stamp, err := g.clock.Now(ctx)
	if err != nil {
		return nhi.VerifiedChain{}, nil, fault.Wrap(op, err)
	}
	now := stamp.Time()
	if !now.Before(c.identity.ExpiresAt) {
		return nhi.VerifiedChain{}, nil, fault.New(op, fault.NHITokenExpired, "the token has expired")
	}
	epoch := g.authority.Epoch()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != nil && c.epoch == epoch && now.Before(c.chain.NotAfter()) {
		return c.chain, c.session, nil
	}
	c.session = nil
	if _, err := g.authority.Resolve(ctx, c.token); err != nil {
		return nhi.VerifiedChain{}, nil, fault.Wrap(op, err)
	}
	links, err := g.authority.DelegationChain(ctx, c.identity.ID)
	if err != nil {
		return nhi.VerifiedChain{}, nil, fault.Wrap(op, err)
	}
	roots, err := g.authority.Roots(ctx)
	if err != nil {
		return nhi.VerifiedChain{}, nil, fault.Wrap(op, err)
	}
	chain, err := nhi.VerifyDelegation(ctx, links, roots, g.provider, now, g.authority.Epochs)
	if err != nil {
		return nhi.VerifiedChain{}, nil, fault.Wrap(op, err)
	}
	if chain.Digest() != c.identity.Chain {
		return nhi.VerifiedChain{}, nil, fault.New(op, fault.NHITokenInvalid, "the token was issued under another delegation")
	}
	session, err := g.authorizer.Bind(ctx, chain)
	if err != nil {
		return nhi.VerifiedChain{}, nil, fault.Wrap(op, err)
	}
	c.epoch, c.chain, c.session = epoch, chain, session
	return chain, session, nil
}

// maxRounds bounds how often one action is checked: once, and again after each
// consent, and again when somebody else spent the consent first.
const maxRounds = 8

// Do takes an action along the path and calls act only after an Allow. Whatever
// comes of it is recorded; the record's id is returned whenever there is one,
// also with an error.
//
// Errors: AuthzDenied (Security) with the reason; ResourceExhausted (Permanent)
// for a spent quota; RateLimited (Transient) with RetryAfter; NHITokenExpired,
// NHITokenInvalid and the other faults of identity; act's own error;
// AuditUnavailable (Degraded) if the outcome could not be recorded.
func (g *Gate) Do(ctx context.Context, c *Caller, action creto.Action, act Act) (audit.RecordID, error) {
	const op fault.Op = "gate.Do"
	if err := action.Validate(); err != nil {
		return audit.RecordID{}, fault.Wrap(op, err)
	}
	p := pass{gate: g, caller: c, action: action}
	for range maxRounds {
		decided, err := p.decide(ctx)
		if err != nil {
			return p.refuse(ctx, err)
		}
		if !decided {
			continue
		}
		switch err := p.consume(ctx); {
		case errors.Is(err, fault.FailedPrecondition):
			p.forget()
		case err != nil:
			return p.refuse(ctx, fault.Wrap(op, err))
		default:
			return p.run(ctx, act)
		}
	}
	return p.refuse(ctx, fault.New(op, fault.AuthzDenied, "consent was asked for %d times without an end", maxRounds))
}

// pass is one action on its way.
type pass struct {
	gate     *Gate
	caller   *Caller
	action   creto.Action
	chain    nhi.VerifiedChain
	decision authz.Decision
	answers  []Answer
	consents []authz.Consent
}

// decide checks, and asks where it must. True is an Allow that holds now; false
// asks for another round: after a wait, policy, chain and quota may be others.
func (p *pass) decide(ctx context.Context) (bool, error) {
	const op fault.Op = "gate.decide"
	var session authz.Session
	var err error
	p.decision = authz.Decision{}
	if p.chain, session, err = p.gate.fresh(ctx, p.caller); err != nil {
		return false, err
	}
	p.decision, err = p.gate.authorizer.Check(ctx, session, authz.Request{
		Action: p.action.Name, Resource: p.action.Resource, Context: contextOf(p.action), Consents: p.consents,
	})
	if err != nil {
		return false, fault.Wrap(op, err)
	}
	d := p.decision
	switch d.Kind {
	case authz.Allow:
		return true, nil
	case authz.RequiresOversight:
		return false, p.ask(ctx)
	case authz.QuotaExceeded:
		return false, fault.New(op, fault.ResourceExhausted, "%s", d.Reason)
	case authz.RateLimited:
		return false, fault.After(fault.New(op, fault.RateLimited, "%s", d.Reason), d.RetryAfter)
	default:
		return false, fault.New(op, fault.AuthzDenied, "%s", d.Reason)
	}
}

func (p *pass) ask(ctx context.Context) error {
	const op fault.Op = "gate.ask"
	policy := p.decision.Policies[0]
	answer, err := p.gate.approver.Await(ctx, Question{
		Chain: p.chain, Action: p.action, Policy: policy, Approvers: p.decision.Approvers, Timeout: p.decision.Timeout,
	})
	switch {
	case errors.Is(err, fault.FailedPrecondition):
		return nil // it was spent by another action: ask anew
	case err != nil:
		return fault.Wrap(op, err)
	}
	p.answers = append(p.answers, answer)
	if !answer.Approved {
		return fault.New(op, fault.AuthzDenied, "%s", answer.Reason)
	}
	p.consents = append(p.consents, authz.NewConsent(policy))
	return nil
}

// consume spends the consents, durably and before act starts, so that no crash
// can let one count twice.
func (p *pass) consume(ctx context.Context) error {
	for _, answer := range p.answers {
		if err := p.gate.approver.Consume(ctx, answer.Consent.ID); err != nil {
			p.refund()
			return err
		}
	}
	return nil
}

// forget drops consents that were spent elsewhere.
func (p *pass) forget() { p.answers, p.consents = nil, nil }

// contextOf adds to an action's context what gate itself knows.
func contextOf(a creto.Action) map[string]any {
	if a.Isolation == "" {
		return a.Context
	}
	context := map[string]any{"isolation": a.Isolation}
	for key, value := range a.Context {
		if key != "isolation" {
			context[key] = value
		}
	}
	return context
}

// run acts. The record is written whatever act does, panics included, and
// whether or not the caller still waits.
func (p *pass) run(ctx context.Context, act Act) (id audit.RecordID, err error) {
	const op fault.Op = "gate.run"
	r := p.record()
	r.Outcome = audit.Unknown
	defer func() {
		unended := context.WithoutCancel(ctx)
		var logged error
		id, logged = p.gate.log.Log(unended, r)
		for _, answer := range p.answers {
			logged = errors.Join(logged, p.gate.approver.Finish(unended, answer.Consent.ID))
		}
		if err == nil {
			err = fault.Wrap(op, logged)
		}
	}()
	result, err := act(ctx)
	r.Usage, r.Detail = result.Usage, result.Detail
	switch {
	case err == nil:
		r.Outcome = audit.Success
	case fault.CodeOf(err).Kind() == fault.DeadlineExceeded:
		r.Outcome, r.Why = audit.Timeout, fault.Message(err)
	default:
		r.Outcome, r.Why = audit.Failure, fault.Message(err)
	}
	if err != nil && result.Usage == nil {
		p.refund()
	} else if p.decision.Reservation != (authz.Reservation{}) {
		p.gate.meter.Commit(p.decision.Reservation)
	}
	return id, err
}

func (p *pass) refund() {
	if p.decision.Reservation != (authz.Reservation{}) {
		p.gate.meter.Refund(p.decision.Reservation)
	}
}

// refuse records that an action did not happen, and returns why.
func (p *pass) refuse(ctx context.Context, why error) (audit.RecordID, error) {
	r := p.record()
	r.Outcome, r.Why = audit.Denied, fault.Message(why)
	if kind := fault.CodeOf(why).Kind(); kind == fault.Canceled || kind == fault.DeadlineExceeded {
		r.Outcome = audit.Timeout // the caller did not wait for the answer
	}
	id, err := p.gate.log.Log(context.WithoutCancel(ctx), r)
	if err != nil {
		return id, errors.Join(why, err)
	}
	return id, why
}

// record fills in what is known before an action ends.
func (p *pass) record() audit.Record {
	r := audit.Record{
		ID: creto.NewUUID(), Who: p.caller.identity.ID, OnBehalfOf: p.chain.Human(), Chain: p.chain.Digest(),
		What: p.action.Name, Resource: p.action.Resource.String(), Args: p.action.ArgsDigest(),
		Sandbox: p.action.Sandbox, Isolation: p.action.Isolation,
	}
	if !p.decision.Version.IsZero() {
		r.Decision = &audit.Decision{Kind: p.decision.Kind.String(), Version: p.decision.Version}
		for _, policy := range p.decision.Policies {
			r.Decision.Policies = append(r.Decision.Policies, audit.PolicyRef{ID: policy.ID, Digest: policy.Digest})
		}
	}
	for _, answer := range p.answers {
		r.Consents = append(r.Consents, answer.Consent)
	}
	return r
}
