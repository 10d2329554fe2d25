// Package gate is the one path that every action takes, and the only way to
// act: who, on whose behalf, may they, does a human consent, is there quota,
// act, account for it, and record what happened. The field's name for it is the
// policy enforcement point.
//
// caller.go opens tokens; gate.go holds the contracts and Do; secret.go hands
// out secrets; record.go writes what came of it.
package gate

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// Approver asks humans for consent. Package oversight is one; gate/gatetest
// holds what each must do. Safe for concurrent use.
type Approver interface {
	// Await asks, or attaches to the same question asked before, and returns
	// when it was answered.
	//
	// Errors: Canceled, DeadlineExceeded when ctx ends; the question stays.
	// FailedPrecondition (Permanent) if another action spent the approval
	// first: ask again.
	Await(ctx context.Context, q Question) (Answer, error)

	// Consume spends the approvals of one action, all or none, durably, just
	// before it starts. The first one's id, where it is a UUID, is also the id
	// of the action's record: an approver that finds a consumed approval
	// unfinished after a crash records its outcome under that id, and there is
	// never a second record of one action.
	//
	// Errors: FailedPrecondition (Permanent) if one was spent or has expired:
	// the action must be asked for again.
	Consume(ctx context.Context, ids ...string) error

	// Finish notes that the outcome of consumed approvals is recorded.
	Finish(ctx context.Context, ids ...string) error
}

// Question is what an Approver puts before a human.
type Question struct {
	Chain     nhi.VerifiedChain
	Action    creto.Action
	Policy    authz.Policy
	Approvers string
	// Timeout is how long to wait; 0 means the approver's default.
	Timeout time.Duration
	// Quorum is how many humans the policy asks in all, one after the other; 0
	// is one. Consented are those who did already: they are not asked again.
	Quorum    int
	Consented []audit.Consent
}

// Answer is a human's decision.
type Answer struct {
	Approved bool
	// Consent goes into the record, whatever the answer.
	Consent audit.Consent
	Reason  string
}

// Meter accounts for quota. Package metering is one; gate/gatetest holds what
// each must do. Safe for concurrent use.
type Meter interface {
	// Commit makes a reservation's amount used; Refund gives it back. Each
	// reservation sees one of them, once.
	Commit(r authz.Reservation)
	Refund(r authz.Reservation)
}

// Taints remembers which sessions have read what their agent should not obey. A
// session is a run or, outside of any, an agent. Package injection has one. Safe for
// concurrent use.
type Taints interface {
	// Tainted returns by what the session is tainted now, or "". It is asked at each
	// check.
	Tainted(agent creto.ID, run string, now time.Time) string
	// Taint marks a session, durably, and reports whether it was not marked yet.
	//
	// Errors: Unavailable (Degraded) if that is not durable; the mark is in force.
	Taint(ctx context.Context, agent creto.ID, run, by string) (bool, error)
}

// Charged reports whether the action of a record counts against quota: it does
// unless it surely did not happen. What timed out, or was given up by its
// caller, may have happened, as may what nobody saw the end of; a failure that
// used nothing is refunded.
func Charged(r audit.Record) bool {
	switch r.Outcome {
	case audit.Success, audit.Timeout, audit.Unknown:
		return true
	}
	return r.Usage != nil
}

// Units returns how many units of quota the action of a record used: none unless it
// is Charged, else one, and for consume_quota as many as it asked for.
func Units(r audit.Record) int64 {
	if !Charged(r) {
		return 0
	}
	if n, err := strconv.ParseInt(r.Detail[authz.AmountKey], 10, 64); err == nil && n > 0 && r.What == creto.ConsumeQuota {
		return min(n, authz.MaxAmount)
	}
	return 1
}

// Act does what was allowed. It returns facts for the record, also with an
// error. Its context ends with the caller's.
type Act func(ctx context.Context) (Result, error)

// Result is what an Act reports.
type Result struct {
	Usage *audit.Usage
	// Detail holds facts such as an HTTP status. No secrets. What is too long
	// for a record is cut.
	Detail map[string]string
}

// Gate holds the contracts of the path. Safe for concurrent use.
type Gate struct {
	authority  nhi.Authority
	verifier   *nhi.Verifier
	clock      consensus.Clock
	authorizer authz.Authorizer
	log        audit.Log
	approver   Approver
	meter      Meter
	taints     Taints // nil where nothing taints

	// doubt is set when a record could not be written: until the log answers
	// again, nothing acts.
	doubt atomic.Bool

	maxCallers int // that are remembered

	mu      sync.Mutex // guards callers
	callers map[string]*Caller
}

// New returns a gate. taints may be nil: nothing is tainted then.
func New(authority nhi.Authority, provider pqc.Provider, clock consensus.Clock, authorizer authz.Authorizer, log audit.Log, approver Approver, meter Meter, taints Taints) *Gate {
	return &Gate{
		authority: authority, verifier: nhi.NewVerifier(provider, defaultCallers), clock: clock, authorizer: authorizer,
		log: log, approver: approver, meter: meter, taints: taints, maxCallers: defaultCallers, callers: make(map[string]*Caller),
	}
}

// maxRounds bounds how often one action is checked: once, and again after each
// consent, and again when somebody else spent the consent first.
const maxRounds = 8

// maxResourceBytes bounds a resource's id, so that every record has room for
// it (audit.MaxRecordBytes).
const maxResourceBytes = 16 << 10

// Do takes an action along the path and calls act only after an Allow. Whatever
// comes of it is recorded once; the record's id is returned whenever there is
// one, also with an error. Outcome denied says that act was not called. A panic
// of act passes through Do, recorded as unknown.
//
// Errors: AuthzDenied (Security) with the reason; ResourceExhausted (Permanent)
// for a spent quota and RateLimited (Transient), both with RetryAfter;
// NHITokenExpired, NHITokenInvalid and the other faults of identity; Canceled,
// DeadlineExceeded if ctx ended before act; act's own error; AuditUnavailable
// (Degraded) if the outcome cannot be recorded, joined to act's error if there
// is one. InvalidArgument (Permanent) for what is no action; it is recorded if
// at least its name is one.
func (g *Gate) Do(ctx context.Context, c *Caller, action creto.Action, act Act) (audit.RecordID, error) {
	return g.do(ctx, &pass{gate: g, caller: c, action: action}, act)
}

// DoDecided is Do for an act that is told what allowed it.
func (g *Gate) DoDecided(ctx context.Context, c *Caller, action creto.Action, act func(context.Context, authz.Decision) (Result, error)) (audit.RecordID, error) {
	p := &pass{gate: g, caller: c, action: action}
	return g.do(ctx, p, func(ctx context.Context) (Result, error) { return act(ctx, p.decision) })
}

// DoUnasked is DoDecided for an action that is part of another, and not worth a
// human's while: where policy asks for one, it is denied.
func (g *Gate) DoUnasked(ctx context.Context, c *Caller, action creto.Action, act func(context.Context, authz.Decision) (Result, error)) (audit.RecordID, error) {
	p := &pass{gate: g, caller: c, action: action, unasked: true}
	return g.do(ctx, p, func(ctx context.Context) (Result, error) { return act(ctx, p.decision) })
}

// do is Do for a pass that its act may look at.
func (g *Gate) do(ctx context.Context, p *pass, act Act) (audit.RecordID, error) {
	ended := false
	defer func() {
		if !ended { // a panic is on its way through
			p.crash(ctx)
		}
	}()
	id, err := p.take(ctx, act)
	ended = true
	return id, err
}

// pass is one action on its way.
type pass struct {
	gate        *Gate
	caller      *Caller
	action      creto.Action
	stamp       creto.Timestamp // when identity was last found in force
	chain       nhi.VerifiedChain
	decision    authz.Decision
	reservation authz.Reservation // held; zero once it is settled
	answers     []answered
	consents    []authz.Consent
	detail      map[string]string // of a refusal
	tainted     string            // by what the session was tainted at the last check
	consumed    bool              // the consents are spent
	acted       bool              // act was called
	unasked     bool              // nobody is asked for consent
}

// answered is an answer with the policy that asked.
type answered struct {
	Answer
	policy authz.Policy
}

func (p *pass) take(ctx context.Context, act Act) (audit.RecordID, error) {
	const op fault.Op = "gate.Do"
	if err := p.admit(); err != nil {
		if _, known := creto.ResourceType(p.action.Name); !known {
			return audit.RecordID{}, fault.Wrap(op, err)
		}
		return p.refuse(ctx, fault.Wrap(op, err))
	}
	for range maxRounds {
		allowed, err := p.decide(ctx)
		if err != nil {
			return p.refuse(ctx, fault.Wrap(op, err))
		}
		if !allowed {
			continue
		}
		switch err := p.ready(ctx); {
		case errors.Is(err, fault.FailedPrecondition):
			p.settle(false)
			p.answers, p.consents = nil, nil // spent elsewhere
		case err != nil:
			return p.refuse(ctx, fault.Wrap(op, err))
		default:
			return p.run(ctx, act)
		}
	}
	return p.refuse(ctx, fault.New(op, fault.AuthzDenied, "consent was asked for %d times without an end", maxRounds))
}

// admit refuses what is no action, or not this caller's to take.
func (p *pass) admit() error {
	const op fault.Op = "gate.admit"
	if err := p.action.Validate(); err != nil {
		return fault.Wrap(op, err)
	}
	if n := len(p.action.Resource.ID); n > maxResourceBytes {
		return fault.New(op, fault.InvalidArgument, "the resource's id has %d bytes, limit %d", n, maxResourceBytes)
	}
	// A token that is bound to a run is good for that run alone (R-NHI-23).
	bound := p.caller.identity.Sandbox
	if bound != "" && p.action.Sandbox != "" && p.action.Sandbox != bound {
		return fault.New(op, fault.NHITokenInvalid, "the token is bound to another run")
	}
	if bound != "" {
		p.action.Sandbox = bound
	}
	return nil
}

// decide checks, and asks where it must. True is an Allow that holds now; false
// asks for another round: after a wait, policy, chain and quota may be others.
func (p *pass) decide(ctx context.Context) (bool, error) {
	const op fault.Op = "gate.decide"
	p.decision = authz.Decision{}
	caller, stamp, standing, err := p.gate.renewed(ctx, p.caller)
	p.caller = caller
	if err != nil {
		p.disown()
		return false, err
	}
	p.stamp, p.chain = stamp, standing.chain
	d, err := p.gate.authorizer.Check(ctx, standing.session, authz.Request{
		Action: p.action.Name, Resource: p.action.Resource, Context: contextOf(p.action, p.taint()), Consents: p.consents,
	})
	p.decision = d
	if err != nil {
		return false, fault.Wrap(op, err)
	}
	switch d.Kind {
	case authz.Allow:
		p.reservation = d.Reservation
		// A consent to what policy no longer asks for is not spent.
		p.answers = slices.DeleteFunc(p.answers, func(a answered) bool { return !slices.Contains(d.Policies, a.policy) })
		return true, nil
	case authz.RequiresOversight:
		if p.unasked {
			return false, fault.New(op, fault.AuthzDenied, "policy asks for a human's consent, which nobody is asked for here")
		}
		return false, p.ask(ctx)
	case authz.QuotaExceeded:
		return false, fault.After(fault.New(op, fault.ResourceExhausted, "%s", d.Reason), d.ResetAt.Sub(stamp.Time()))
	case authz.RateLimited:
		return false, fault.After(fault.New(op, fault.RateLimited, "%s", d.Reason), d.RetryAfter)
	default:
		return false, fault.New(op, fault.AuthzDenied, "%s", d.Reason)
	}
}

// disown takes back what was only true under an identity that is not in force
// any more: a record claims a chain, and consents under it, only if they were
// verified. What the token said of itself is kept as a detail.
func (p *pass) disown() {
	p.detail = map[string]string{"token": p.caller.identity.TokenID, "token_chain": p.caller.identity.Chain.String()}
	for _, a := range p.answers {
		p.detail["request"] = a.Consent.ID
	}
	p.chain, p.answers, p.consents = nhi.VerifiedChain{}, nil, nil
}

func (p *pass) ask(ctx context.Context) error {
	const op fault.Op = "gate.ask"
	if len(p.decision.Policies) == 0 {
		return fault.New(op, fault.AuthzEvaluationFailed, "a decision asks for consent and does not say to which policy")
	}
	policy := p.decision.Policies[0]
	q := Question{
		Chain: p.chain, Action: p.action, Policy: policy, Approvers: p.decision.Approvers, Timeout: p.decision.Timeout, Quorum: p.decision.Quorum,
	}
	for _, a := range p.answers {
		if a.policy == policy {
			q.Consented = append(q.Consented, a.Consent)
		}
	}
	answer, err := p.gate.approver.Await(ctx, q)
	switch {
	case errors.Is(err, fault.FailedPrecondition):
		return nil // it was spent by another action: ask anew
	case err != nil:
		return fault.Wrap(op, err)
	}
	p.answers = append(p.answers, answered{answer, policy})
	if !answer.Approved {
		return fault.New(op, fault.AuthzDenied, "%s", answer.Reason)
	}
	if slices.ContainsFunc(q.Consented, func(c audit.Consent) bool { return c.Approver == answer.Consent.Approver || c.ID == answer.Consent.ID }) {
		return fault.New(op, fault.AuthzEvaluationFailed, "%s consented twice where different humans must", answer.Consent.Approver)
	}
	p.consents = append(p.consents, authz.NewConsent(policy))
	return nil
}

// ready makes sure, just before act, that somebody waits for it, that what
// comes of it can be recorded, and that its consents are spent, so that no
// crash can let one count twice.
func (p *pass) ready(ctx context.Context) error {
	const op fault.Op = "gate.ready"
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, err)
	}
	relevant := len(p.answers) > 0 || (audit.Record{What: p.action.Name}).SecurityRelevant()
	if relevant || p.gate.doubt.Load() {
		if err := p.gate.log.Ping(ctx); err != nil {
			return fault.Wrap(op, err)
		}
		p.gate.doubt.Store(false)
	}
	if len(p.answers) == 0 {
		return nil
	}
	if err := p.gate.approver.Consume(ctx, p.requests()...); err != nil {
		return fault.Wrap(op, err)
	}
	p.consumed = true
	return nil
}

// requests returns the ids of the consents.
func (p *pass) requests() []string {
	var ids []string
	for _, a := range p.answers {
		ids = append(ids, a.Consent.ID)
	}
	return ids
}

// What policies read the kind of a run's walls from, and by what its session is
// tainted.
const (
	isolationKey = "isolation"
	taintKey     = "taint"
)

// contextOf adds to an action's context what gate itself knows, and nobody else
// may say.
func contextOf(a creto.Action, taint string) map[string]any {
	_, walls := a.Context[isolationKey]
	_, tainted := a.Context[taintKey]
	if a.Isolation == "" && taint == "" && !walls && !tainted {
		return a.Context
	}
	context := make(map[string]any, len(a.Context)+2)
	for key, value := range a.Context {
		context[key] = value
	}
	delete(context, isolationKey)
	delete(context, taintKey)
	if a.Isolation != "" {
		context[isolationKey] = a.Isolation
	}
	if taint != "" {
		context[taintKey] = taint
	}
	return context
}

// run acts, records and accounts. A panic of act ends in crash.
func (p *pass) run(ctx context.Context, act Act) (audit.RecordID, error) {
	p.acted = true
	result, err := act(ctx)
	r := p.record(ctx)
	r.Usage, r.Detail = result.Usage, bounded(result.Detail, r.Detail)
	switch kind := fault.CodeOf(err).Kind(); {
	case err == nil:
		r.Outcome = audit.Success
	case kind == fault.DeadlineExceeded, kind == fault.Canceled:
		r.Outcome = audit.Timeout
	default:
		r.Outcome = audit.Failure
	}
	r.Why = reason(err)
	return p.end(ctx, r, err)
}

// crash records what a panic left, on its way up.
func (p *pass) crash(ctx context.Context) {
	r := p.record(ctx)
	r.Outcome, r.Why = audit.Denied, "creto failed before the action"
	if p.acted {
		r.Outcome, r.Why = audit.Unknown, "the action ended in a panic; its outcome is not known"
	}
	_, _ = p.end(ctx, r, nil) // the panic goes on, and there is nobody to tell
}

// settle commits or refunds what quota is held, once.
func (p *pass) settle(commit bool) {
	held := p.reservation
	if p.reservation = (authz.Reservation{}); held == (authz.Reservation{}) {
		return
	}
	if commit {
		p.gate.meter.Commit(held)
	} else {
		p.gate.meter.Refund(held)
	}
}
