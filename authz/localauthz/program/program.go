// Package program compiles a set of Cedar policies into a [Program]: an
// immutable form that finds the policies in scope of a request by index and
// evaluates their conditions without allocating.
//
// It means exactly what cedar-go means (github.com/cedar-policy/cedar-go,
// v1.9.0), which parses the policies and remains the oracle of the tests;
// cedar-go itself evaluates every policy of the set on each request. Cedar's
// official corpus runs through [Program.Authorize].
//
// program.go holds the set and its index, policy.go compiles its policies one by
// one, compile.go turns Cedar's syntax tree into nodes, eval.go evaluates them,
// value.go and context.go hold the values that they work on.
package program

import (
	"cmp"
	"slices"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/eval"
)

// Program is a set of compiled policies. It is immutable; policies are numbered
// from 0 in the order of their ids. The zero Program has no policies.
type Program struct {
	policies []Named
	buckets  map[key]*bucket // by the scope of the principal
}

// Named is a policy in a set.
type Named struct {
	ID cedar.PolicyID
	*Policy
}

// bucket holds the policies whose principals' scope has one key. If they are many
// they are also found by the scope of their resources.
type bucket struct {
	policies   []int32
	byResource map[key][]int32
}

// manyPolicies is from how many on that takes longer than to look at each.
const manyPolicies = 128

// key is what a scope is found by: its kind, and the type and id that it names.
type key struct {
	kind ScopeKind
	typ  types.EntityType
	id   types.String
}

// New returns the program of policies, whose ids differ. It keeps the slice, which
// it orders, and calls rest after each of its policies.
func New(policies []Named, rest func()) *Program {
	slices.SortFunc(policies, func(a, b Named) int { return cmp.Compare(a.ID, b.ID) })
	p := &Program{policies: policies, buckets: make(map[key]*bucket)}
	for i, one := range policies {
		principal := one.principal.key()
		b := p.buckets[principal]
		if b == nil {
			b = &bucket{}
			p.buckets[principal] = b
		}
		b.policies = append(b.policies, int32(i))
		rest()
	}
	for _, b := range p.buckets {
		if len(b.policies) < manyPolicies {
			continue
		}
		b.byResource = make(map[key][]int32)
		for _, i := range b.policies {
			resource := policies[i].resource.key()
			b.byResource[resource] = append(b.byResource[resource], i)
			rest()
		}
	}
	return p
}

// Len returns the number of policies.
func (p *Program) Len() int { return len(p.policies) }

// ID returns the id of a policy.
func (p *Program) ID(i int) cedar.PolicyID { return p.policies[i].ID }

// Forbids reports whether a policy forbids; if not, it permits.
func (p *Program) Forbids(i int) bool { return p.policies[i].forbid }

// Resource returns a policy's scope of resources.
func (p *Program) Resource(i int) Scope { return p.policies[i].resource }

// ReadsPrincipal reports whether a policy's conditions depend on who asks.
func (p *Program) ReadsPrincipal(i int) bool {
	return p.policies[i].conditions.reads&readsPrincipal != 0
}

// Conditional reports whether a policy has conditions.
func (p *Program) Conditional(i int) bool { return len(p.policies[i].conditions.all) > 0 }

// Beginnings returns the beginnings of the resource's id that a policy's
// conditions ask for. It is not to be changed.
func (p *Program) Beginnings(i int) []string { return p.policies[i].conditions.beginnings }

// Conditions returns the number of a policy's conditions: policies of one
// [Compiler], or of those that went on from it, have the same number if they have
// the same conditions.
func (p *Program) Conditions(i int) int { return p.policies[i].conditions.number }

// Verdict is what a policy's conditions come to.
type Verdict uint8

// The verdicts. Errored is of a condition that cannot be evaluated, which Cedar
// passes over.
const (
	Unsatisfied Verdict = iota
	Satisfied
	Errored
)

// Evaluate evaluates a policy's conditions on a request that is in its scope. It
// keeps nothing of e.
func (p *Program) Evaluate(i int, e *Env) Verdict {
	for _, n := range p.policies[i].conditions.all {
		switch n.test(e) {
		case isError:
			return Errored
		case isFalse:
			return Unsatisfied
		}
	}
	return Satisfied
}

// Holds reports whether a policy's conditions are satisfied, as Evaluate does; it
// does not tell unsatisfied from erroneous ones, and looks first at those that cost
// least.
func (p *Program) Holds(i int, e *Env) bool {
	for _, n := range p.policies[i].conditions.early {
		if n.test(e) != isTrue {
			return false
		}
	}
	return true
}

// Settle returns what a policy comes to for an action and all the resources of an
// extent, whatever else the request is; false if more has a say. A policy that
// permits is unsatisfied, too, where its conditions cannot be evaluated. Of e only
// action, resource and Itself, which must be true, are read.
func (p *Program) Settle(i int, e *Env, of Extent) (Verdict, bool) {
	one := &p.policies[i]
	open := false
	for at, n := range one.conditions.all {
		switch {
		case one.conditions.settled[at] < of:
			if one.forbid { // it may fail, and what comes after it would not be asked
				return Unsatisfied, false
			}
			open = true
			continue
		case n.test(e) == isTrue:
			continue
		case one.forbid && n.test(e) == isError:
			return Errored, true
		}
		return Unsatisfied, true
	}
	return Satisfied, !open
}

// Matching returns the policies whose scope of principals includes an entity
// with the ancestors given, in order.
func (p *Program) Matching(principal types.EntityUID, ancestors []types.EntityUID) []int32 {
	var matching []int32
	keysOf(principal, ancestors, func(k key) {
		b := p.buckets[k]
		if b == nil {
			return
		}
		if k.kind != ScopeIsIn {
			matching = append(matching, b.policies...)
			return
		}
		for _, i := range b.policies {
			if p.policies[i].principal.Type == principal.Type {
				matching = append(matching, i)
			}
		}
	})
	slices.Sort(matching)
	return matching
}

// InScope returns the policies whose scope includes a request, in order. The
// ancestors are those of the principal, the action and the resource.
func (p *Program) InScope(r types.Request, principals, actions, resources []types.EntityUID) []int32 {
	var matching []int32
	keysOf(r.Principal, principals, func(k key) {
		b := p.buckets[k]
		if b == nil {
			return
		}
		add := func(among []int32) {
			for _, i := range among {
				one := p.policies[i]
				if (k.kind != ScopeIsIn || one.principal.Type == r.Principal.Type) && one.resource.Includes(r.Resource, resources) && one.action.Includes(r.Action, actions) {
					matching = append(matching, i)
				}
			}
		}
		if b.byResource == nil {
			add(b.policies)
			return
		}
		keysOf(r.Resource, resources, func(rk key) { add(b.byResource[rk]) })
	})
	slices.Sort(matching)
	return matching
}

// keysOf calls yield with every key of a scope that includes an entity, once. A
// scope by type and ancestor is found by the ancestor alone.
func keysOf(uid types.EntityUID, ancestors []types.EntityUID, yield func(key)) {
	yield(key{kind: ScopeAll})
	yield(key{kind: ScopeIs, typ: uid.Type})
	yield(key{kind: ScopeEq, typ: uid.Type, id: uid.ID})
	yield(key{kind: ScopeIn, typ: uid.Type, id: uid.ID})
	yield(key{kind: ScopeIsIn, typ: uid.Type, id: uid.ID})
	for _, a := range ancestors {
		if a != uid {
			yield(key{kind: ScopeIn, typ: a.Type, id: a.ID})
			yield(key{kind: ScopeIsIn, typ: a.Type, id: a.ID})
		}
	}
}

// Authorize decides as cedar.Authorize does, with reasons and errors in the
// order of their policies' ids. entities may be nil.
func (p *Program) Authorize(entities types.EntityGetter, r types.Request) (types.Decision, types.Diagnostic) {
	if entities == nil {
		entities = types.EntityMap{}
	}
	candidates := p.InScope(r, Ancestors(entities, r.Principal), Ancestors(entities, r.Action), Ancestors(entities, r.Resource))
	env := Env{Principal: r.Principal, Action: r.Action, Resource: r.Resource, Entities: entities, Context: r.Context}
	var diagnostic types.Diagnostic
	var permits, forbids []types.DiagnosticReason
	for _, i := range candidates {
		one := &p.policies[i]
		position := types.Position(one.source.Position)
		switch p.Evaluate(int(i), &env) {
		case Errored:
			diagnostic.Errors = append(diagnostic.Errors, types.DiagnosticError{PolicyID: one.ID, Position: position, Message: p.explain(one, entities, r)})
		case Satisfied:
			reason := types.DiagnosticReason{PolicyID: one.ID, Position: position}
			if one.forbid {
				forbids = append(forbids, reason)
			} else {
				permits = append(permits, reason)
			}
		}
	}
	switch {
	case len(forbids) > 0:
		diagnostic.Reasons = forbids
		return types.Deny, diagnostic
	case len(permits) > 0:
		diagnostic.Reasons = permits
		return types.Allow, diagnostic
	}
	return types.Deny, diagnostic
}

// explain returns why a policy cannot be evaluated, in cedar-go's words.
func (p *Program) explain(one *Named, entities types.EntityGetter, r types.Request) string {
	_, err := eval.Eval(eval.PolicyToNode(one.source).AsIsNode(), eval.Env{
		Entities: entities, Principal: r.Principal, Action: r.Action, Resource: r.Resource, Context: r.Context,
	})
	if err == nil {
		return "type error: expected bool"
	}
	return err.Error()
}

// Ancestors returns everything that an entity is in, but itself. Hierarchies
// may be cyclic.
func Ancestors(entities types.EntityGetter, uid types.EntityUID) []types.EntityUID {
	var (
		ancestors []types.EntityUID
		seen      map[types.EntityUID]struct{}
	)
	for next, candidate := 0, uid; ; next++ {
		if e, ok := entities.Get(candidate); ok && e.Parents.Len() > 0 {
			if seen == nil {
				seen = make(map[types.EntityUID]struct{})
			}
			for parent := range e.Parents.All() {
				if _, ok := seen[parent]; !ok {
					seen[parent] = struct{}{}
					ancestors = append(ancestors, parent)
				}
			}
		}
		if next == len(ancestors) {
			return ancestors
		}
		candidate = ancestors[next]
	}
}
