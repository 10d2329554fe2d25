package localauthz

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go/types"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/localauthz/program"
	"creto.dev/fault"
)

// decide is a check into d, which is the zero Decision before.
func (a *Authorizer) decide(ctx context.Context, bound authz.Session, r *authz.Request, reserve bool, d *authz.Decision) error {
	own, ok := bound.(*session)
	if !ok {
		return foreign("localauthz.Check")
	}
	if err := a.judge(own, r, d); err != nil || d.Kind != authz.Allow || len(a.extensions) == 0 {
		return err
	}
	return fault.Wrap("localauthz.Check", a.extensions.Evaluate(ctx, own.evaluators, r, reserve, d))
}

// judge is decide by policies alone.
func (a *Authorizer) judge(own *session, r *authz.Request, d *authz.Decision) error {
	number := creto.ActionNumber(r.Action)
	if number < 0 || r.Resource.Type != actions[number].resource {
		return malformed(r)
	}
	if len(r.Context) > 0 {
		if err := program.CheckContext(r.Context); err != nil {
			return fault.Wrap("localauthz.Check", err)
		}
	}
	p := own.part(number, a.current.Load())
	var s *slot
	if len(p.index.slots) > 0 {
		s = p.index.find(maphash.String(p.seed, r.Resource.ID), r.Resource.ID)
	}
	if s == nil {
		if !validID(r.Resource.ID) { // those that policies name are valid
			return malformed(r)
		}
		s = p.beginning(r.Resource.ID)
	}
	d.Version = p.snapshot.version
	switch plain := len(r.Consents) == 0 && (number != sendMessage || !own.holds(r.Resource.ID)); {
	case plain && s != nil && s.allows.Load() && own.covers(number, r.Resource.ID):
		d.Kind, d.Policies = authz.Allow, s.policies
	case plain && !p.none:
		own.settle(p, number, s, r, d)
	default:
		own.search(p.snapshot, number, r, d)
	}
	return nil
}

// settle decides by the entry of a slot.
func (s *session) settle(p *part, number int, at *slot, r *authz.Request, d *authz.Decision) {
	e := p.table.entry(p.actionTable, number, at)
	if e.wide {
		s.search(p.snapshot, number, r, d)
		return
	}
	o := &e.settled
	if o.kind == authz.Deny {
		if o = nil; !e.denied {
			o = s.evaluate(p.snapshot, e, number, r)
		}
	}
	if o == nil || !s.covers(number, r.Resource.ID) {
		s.deny(p.snapshot, number, r, d)
		return
	}
	o.into(d)
}

// malformed returns what is wrong with a request.
func malformed(r *authz.Request) error {
	err := (creto.Action{Name: r.Action, Resource: r.Resource}).Validate()
	return fault.WrapAs("localauthz.Check", fault.AuthzInvalidRequest, err, "%s", fault.Message(err))
}

// maxIDBytes is what creto.Action.Validate allows.
const maxIDBytes = 64 << 10

// validID reports whether creto.Action.Validate takes a resource's id.
func validID(id string) bool { return id != "" && len(id) <= maxIDBytes && utf8.ValidString(id) }

// evaluate returns what an entry's conditions come to on a request; nil if it
// is denied.
func (s *session) evaluate(snapshot *snapshot, e *entry, number int, r *authz.Request) *outcome {
	env := program.Env{
		Action: actions[number].uid, Resource: types.EntityUID{Type: actions[number].resourceType, ID: types.String(r.Resource.ID)},
		Entities: s, Itself: true, Fields: r.Context,
	}
	var held mask
	for i := range e.checks {
		c := &e.checks[i]
		env.Principal = s.principals[c.principal].entity.UID
		switch {
		case c.forbid:
			if snapshot.program.Evaluate(int(c.policy), &env) != program.Unsatisfied {
				return nil // it holds, or cannot be evaluated
			}
		case snapshot.program.Holds(int(c.policy), &env):
			held[i/64] |= 1 << (i % 64)
		}
	}
	return snapshot.remembered(e, held)
}

// holds reports whether an agent is one of the chain, who stays in their groups
// when they are acted on.
func (s *session) holds(agent string) bool {
	return slices.ContainsFunc(s.principals, func(p principal) bool { return p.id.Kind == creto.KindAgent && p.id.Name == agent })
}

// deny says why a request is denied that the table denies. The reasons are
// looked for from the start: should they not be found, it is denied all the same.
func (s *session) deny(snapshot *snapshot, number int, r *authz.Request, d *authz.Decision) {
	s.search(snapshot, number, r, d)
	if d.Kind != authz.Deny {
		*d = authz.Decision{Reason: "the policies deny it, and cannot say why", Version: snapshot.version}
	}
}

// search decides by policies alone, which it looks up one principal at a time.
// Everyone in the chain must be allowed, and so must the links' scopes.
func (s *session) search(snapshot *snapshot, number int, r *authz.Request, d *authz.Decision) {
	d.Kind = authz.Deny
	if !s.chain.Valid() {
		d.Reason = "the caller has no verified chain of delegation"
		return
	}
	if !s.covers(number, r.Resource.ID) {
		d.Reason = fmt.Sprintf("the delegation to %s does not include %s on %s", s.chain.Agent().Name, r.Action, r.Resource)
		return
	}
	resource := types.EntityUID{Type: actions[number].resourceType, ID: types.String(r.Resource.ID)}
	env := program.Env{Action: actions[number].uid, Resource: resource, Entities: s, Itself: true, Fields: r.Context}
	var above []types.EntityUID
	for _, p := range s.principals {
		if p.entity.UID == resource {
			env.Itself, above = false, p.parents
		}
	}
	o := outcome{kind: authz.Allow}
	for _, p := range s.principals {
		env.Principal = p.entity.UID
		candidates := snapshot.program.InScope(types.Request{Principal: env.Principal, Action: env.Action, Resource: resource}, p.parents, nil, above)
		var permits []*policy
		var forbid, failed *policy
		for _, i := range candidates {
			one := snapshot.policies[i]
			switch verdict := snapshot.program.Evaluate(int(i), &env); {
			case verdict == program.Unsatisfied:
			case one.forbid && verdict == program.Errored && failed == nil:
				failed = one
			case one.forbid && verdict == program.Satisfied && forbid == nil:
				forbid = one
			case !one.forbid && verdict == program.Satisfied:
				permits = append(permits, one)
			}
		}
		switch {
		case failed != nil: // Cedar passes over it; here it denies
			d.Reason = fmt.Sprintf("policy %q forbids, and cannot be evaluated on this request", failed.ref.ID)
			d.Policies = []authz.Policy{failed.ref}
			return
		case forbid != nil:
			d.Reason = fmt.Sprintf("policy %q forbids %s on %s", forbid.ref.ID, r.Action, r.Resource)
			d.Policies = []authz.Policy{forbid.ref}
			return
		case len(permits) == 0:
			d.Reason = fmt.Sprintf("no policy permits %s %q to %s on %s; this line would: %s", kindOf(env.Principal), env.Principal.ID, r.Action, r.Resource, PermitFor(p.id, *r))
			return
		}
		o.add(permits, r.Consents)
	}
	o.into(d)
}

// into puts an outcome into a decision.
func (o *outcome) into(d *authz.Decision) {
	d.Kind, d.Policies = o.kind, o.policies
	if o.kind == authz.RequiresOversight {
		d.Reason, d.Approvers, d.Timeout, d.Quorum = o.reason, o.asks.approvers, o.asks.timeout, o.asks.quorum
	}
}

// add adds the permits of one principal, with the oversight that they ask for:
// it applies when every one of them does, and none has its consents.
func (o *outcome) add(permits []*policy, consents []authz.Consent) {
	if o.kind == authz.RequiresOversight {
		return // another principal's permits ask already
	}
	free := false
	for _, p := range permits {
		if !slices.Contains(o.policies, p.ref) {
			o.policies = append(o.policies, p.ref)
		}
		free = free || p.missing(consents) == 0
	}
	if free {
		return
	}
	first := permits[0]
	o.kind, o.asks, o.policies = authz.RequiresOversight, first, []authz.Policy{first.ref}
	o.reason = fmt.Sprintf("policy %q asks for the consent of %s", first.ref.ID, first.approvers)
	if missing := first.missing(consents); first.quorum > 1 {
		o.reason = fmt.Sprintf("policy %q asks for the consent of %d of %s; %d more must give theirs", first.ref.ID, first.quorum, first.approvers, missing)
	}
}

// missing returns how many humans must still consent.
func (p *policy) missing(consents []authz.Consent) int {
	missing := p.quorum
	for _, c := range consents {
		if missing > 0 && c.For(p.ref) {
			missing--
		}
	}
	return missing
}

func kindOf(uid types.EntityUID) string {
	return strings.ToLower(strings.TrimPrefix(string(uid.Type), namespace))
}
