// Package localauthz decides in this process, on Cedar policies in a directory.
// A set of policies is parsed and checked as a whole, then swapped in
// atomically; a set with a mistake is refused and the one before stays.
package localauthz

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// GroupsOf returns the groups of a principal.
type GroupsOf func(ctx context.Context, id creto.ID) ([]string, error)

// Authorizer is the local authz.Authorizer.
type Authorizer struct {
	dir        string
	tenant     string
	groups     GroupsOf
	extensions []authz.Extension
	current    atomic.Pointer[book]
	changed    func(ctx context.Context, version creto.Digest, err error)
}

var _ authz.Authorizer = (*Authorizer)(nil)

// Open loads the policies of dir: every *.cedar file below it is tenant's, but
// for those below dir/tenants/NAME, which are of the tenant of that name. A
// tenant's policies speak of its own principals alone; one that has none permits
// nothing. extensions are
// asked in their order once policy allows. changed is called by Run when the
// directory's content changed: with the new version, or with what is wrong.
//
// Errors: InvalidArgument (Permanent), naming file and line, for policies that
// are wrong; Unavailable (Degraded) if dir cannot be read.
func Open(dir, tenant string, groups GroupsOf, extensions []authz.Extension, changed func(context.Context, creto.Digest, error)) (*Authorizer, error) {
	a := &Authorizer{dir: dir, tenant: tenant, groups: groups, extensions: extensions, changed: changed}
	b, err := loadBook(dir, tenant)
	if err != nil {
		return nil, err
	}
	a.current.Store(b)
	return a, nil
}

// Version returns the digest of the policies in force, of all tenants together.
// A decision names that of its tenant's.
func (a *Authorizer) Version() creto.Digest { return a.current.Load().version }

type session struct {
	chain    nhi.VerifiedChain
	uids     []cedar.EntityUID
	entities types.EntityMap
	// evaluators are of the authorizer's extensions, in their order.
	evaluators []authz.Evaluator
}

func (s *session) Chain() nhi.VerifiedChain { return s.chain }

// Bind implements authz.Authorizer.
func (a *Authorizer) Bind(ctx context.Context, chain nhi.VerifiedChain) (authz.Session, error) {
	s := &session{chain: chain, entities: make(types.EntityMap)}
	for _, id := range chain.Principals() {
		groups, err := a.groups(ctx, id)
		if err != nil {
			return nil, fault.WrapAs("localauthz.Bind", fault.AuthzUnavailable, err, "the groups of %q cannot be read", id.Name)
		}
		parents := []cedar.EntityUID{cedar.NewEntityUID("Creto::Tenant", types.String(id.Tenant))}
		for _, g := range groups {
			parents = append(parents, cedar.NewEntityUID("Creto::Group", types.String(g)))
		}
		uid := principalUID(id)
		s.uids = append(s.uids, uid)
		s.entities[uid] = types.Entity{UID: uid, Parents: cedar.NewEntityUIDSet(parents...), Attributes: cedar.NewRecord(cedar.RecordMap{
			"id": types.String(id.Name), "name": types.String(id.Name), "tenant": types.String(id.Tenant),
		})}
	}
	for _, e := range a.extensions {
		evaluator, err := e.Bind(ctx, chain)
		if err != nil {
			return nil, fault.Wrap("localauthz.Bind", err)
		}
		s.evaluators = append(s.evaluators, evaluator)
	}
	return s, nil
}

func principalUID(id creto.ID) cedar.EntityUID {
	kind := map[creto.Kind]types.EntityType{creto.KindAgent: "Creto::Agent", creto.KindHuman: "Creto::Human", creto.KindWorkload: "Creto::Workload"}[id.Kind]
	return cedar.NewEntityUID(kind, types.String(id.Name))
}

// Check implements authz.Authorizer.
func (a *Authorizer) Check(ctx context.Context, s authz.Session, r authz.Request) (authz.Decision, error) {
	return a.decide(ctx, s, r, true)
}

// Peek implements authz.Authorizer.
func (a *Authorizer) Peek(ctx context.Context, s authz.Session, r authz.Request) (authz.Decision, error) {
	return a.decide(ctx, s, r, false)
}

// CheckBatch implements authz.Authorizer.
func (a *Authorizer) CheckBatch(ctx context.Context, s authz.Session, rs []authz.Request) ([]authz.Decision, error) {
	decisions := make([]authz.Decision, len(rs))
	for i, r := range rs {
		d, err := a.Check(ctx, s, r)
		if err != nil {
			return nil, err
		}
		decisions[i] = d
	}
	return decisions, nil
}

// Ping implements authz.Authorizer.
func (a *Authorizer) Ping(context.Context) error {
	if a.current.Load() == nil {
		return fault.New("localauthz.Ping", fault.AuthzUnavailable, "no policies are loaded")
	}
	return nil
}

func (a *Authorizer) decide(ctx context.Context, s authz.Session, r authz.Request, reserve bool) (authz.Decision, error) {
	const op fault.Op = "localauthz.Check"
	own, ok := s.(*session)
	if !ok {
		return authz.Decision{}, fault.New(op, fault.AuthzInvalidRequest, "the session is another authorizer's")
	}
	if err := (creto.Action{Name: r.Action, Resource: r.Resource}).Validate(); err != nil {
		return authz.Decision{}, fault.WrapAs(op, fault.AuthzInvalidRequest, err, "%s", fault.Message(err))
	}
	record, err := toRecord(r.Context)
	if err != nil {
		return authz.Decision{}, fault.Wrap(op, err)
	}
	snapshot := a.current.Load().of(own.chain.Agent().Tenant)
	decision := snapshot.policy(own, r, record)
	if decision.Kind != authz.Allow {
		return decision, nil
	}
	var reserver authz.Extension // who holds decision.Reservation
	for i, e := range a.extensions {
		d, ends, err := own.evaluators[i].Evaluate(ctx, r, reserve)
		if err == nil && !ends && d.Reservation != (authz.Reservation{}) {
			if reserver == nil {
				reserver, decision.Reservation = e, d.Reservation
				continue
			}
			e.Refund(d.Reservation)
			err = fault.New(op, fault.AuthzInternal, "both %s and %s reserve; there is one reservation", reserver.Name(), e.Name())
		}
		if err != nil || ends {
			if reserver != nil {
				reserver.Refund(decision.Reservation)
			}
			d.Version, d.Policies, d.Reservation = snapshot.version, decision.Policies, authz.Reservation{}
			if err != nil {
				d.Kind = authz.Deny
			}
			return d, fault.Wrap(op, err)
		}
	}
	return decision, nil
}

// policy decides by policies alone. Everyone in the chain must be allowed, and
// so must the links' scopes.
func (s *snapshot) policy(own *session, r authz.Request, record types.Record) authz.Decision {
	deny := func(format string, args ...any) authz.Decision {
		return authz.Decision{Kind: authz.Deny, Reason: fmt.Sprintf(format, args...), Version: s.version}
	}
	if !own.chain.Valid() {
		return deny("the caller has no verified chain of delegation")
	}
	if !own.chain.Covers(r.Action, r.Resource) {
		return deny("the delegation to %s does not include %s on %s", own.chain.Agent().Name, r.Action, r.Resource)
	}
	resource := types.Entity{UID: cedar.NewEntityUID(types.EntityType(namespace+r.Resource.Type), types.String(r.Resource.ID))}
	resource.Attributes = cedar.NewRecord(cedar.RecordMap{"id": types.String(r.Resource.ID)})
	entities := getter{session: own.entities, resource: resource}
	result := authz.Decision{Kind: authz.Allow, Version: s.version}
	for i, uid := range own.uids {
		verdict, diagnostic := cedar.Authorize(s.set, entities, cedar.Request{
			Principal: uid, Action: cedar.NewEntityUID("Creto::Action", types.String(r.Action)), Resource: resource.UID, Context: record,
		})
		// Cedar passes over a forbid that fails to evaluate; here it denies.
		for _, e := range diagnostic.Errors {
			if p := s.policies[e.PolicyID]; p.forbid {
				return withPolicy(deny("policy %q forbids, and cannot be evaluated on this request", e.PolicyID), p.ref)
			}
		}
		reasons := make([]policy, 0, len(diagnostic.Reasons))
		for _, reason := range diagnostic.Reasons {
			reasons = append(reasons, s.policies[reason.PolicyID])
		}
		slices.SortFunc(reasons, func(a, b policy) int { return strings.Compare(a.ref.ID, b.ref.ID) })
		if verdict != cedar.Allow {
			if len(reasons) > 0 {
				return withPolicy(deny("policy %q forbids %s on %s", reasons[0].ref.ID, r.Action, r.Resource), reasons[0].ref)
			}
			return deny("no policy permits %s %q to %s on %s; this line would: %s", kindOf(uid), uid.ID, r.Action, r.Resource, PermitFor(own.chain.Principals()[i], r))
		}
		result = asked(withPolicies(result, reasons), reasons, r.Consents)
	}
	return result
}

// asked adds what oversight the permits of one principal ask for: it applies
// when every one of them does, and none has its consent.
func asked(d authz.Decision, permits []policy, consents []authz.Consent) authz.Decision {
	if d.Kind == authz.RequiresOversight {
		return d // another principal's permits ask already
	}
	for _, p := range permits {
		if p.approvers == "" || slices.ContainsFunc(consents, func(c authz.Consent) bool { return c.For(p.ref) }) {
			return d
		}
	}
	first := permits[0]
	d.Kind, d.Approvers, d.Timeout = authz.RequiresOversight, first.approvers, first.timeout
	d.Policies = []authz.Policy{first.ref}
	d.Reason = fmt.Sprintf("policy %q asks for the consent of %s", first.ref.ID, first.approvers)
	return d
}

func withPolicy(d authz.Decision, p authz.Policy) authz.Decision {
	d.Policies = []authz.Policy{p}
	return d
}

func withPolicies(d authz.Decision, permits []policy) authz.Decision {
	if d.Kind == authz.RequiresOversight {
		return d
	}
	for _, p := range permits {
		if !slices.Contains(d.Policies, p.ref) {
			d.Policies = append(d.Policies, p.ref)
		}
	}
	return d
}

func kindOf(uid cedar.EntityUID) string {
	return strings.ToLower(strings.TrimPrefix(string(uid.Type), namespace))
}

// getter finds the entities of one request.
type getter struct {
	session  types.EntityMap
	resource types.Entity
}

// Get implements types.EntityGetter. Who is acted on by their own chain stays in
// their groups.
func (g getter) Get(uid cedar.EntityUID) (types.Entity, bool) {
	if e, ok := g.session[uid]; ok {
		return e, true
	}
	return g.resource, uid == g.resource.UID
}
