package localauthz

import (
	"slices"
	"strconv"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"creto.dev/authz/localauthz/program"
)

// scopeKey is what a policy is found by among those that may cover another: the
// scope of its principals, of which a covering one is the same or a wider one.
type scopeKey struct {
	kind program.ScopeKind
	typ  types.EntityType
	uid  types.EntityUID
}

func keyOf(s program.Scope) scopeKey { return scopeKey{s.Kind, s.Type, s.Entity} }

// wider returns the keys of every scope that can include all that s includes.
func wider(s program.Scope) []scopeKey {
	keys := []scopeKey{{kind: program.ScopeAll}}
	if s.Type != "" {
		keys = append(keys, scopeKey{kind: program.ScopeIs, typ: s.Type})
	}
	if s.Entity.Type != "" {
		for _, t := range append(slices.Clone(principalTypes), s.Entity.Type) {
			keys = append(keys, scopeKey{kind: program.ScopeIs, typ: t}, scopeKey{kind: program.ScopeIsIn, typ: t, uid: s.Entity})
		}
		keys = append(keys, scopeKey{kind: program.ScopeEq, uid: s.Entity}, scopeKey{kind: program.ScopeIn, uid: s.Entity})
	}
	slices.SortFunc(keys, func(a, b scopeKey) int {
		return slices.Compare([]string{string(rune(a.kind)), string(a.typ), a.uid.String()}, []string{string(rune(b.kind)), string(b.typ), b.uid.String()})
	})
	return slices.Compact(keys)
}

// coverage finds policies that change nothing, because of another one.
func (l *linter) coverage() {
	by := make(map[scopeKey][]int)
	for i := range l.policies {
		if key := keyOf(l.facts[i].principal); !l.dead[i] {
			by[key] = append(by[key], i)
		}
	}
	for i := range l.policies {
		if !l.dead[i] {
			l.covered(i, by)
		}
	}
}

// covered reports the first policy, by rule and id, because of which one changes
// nothing.
func (l *linter) covered(number int, by map[scopeKey][]int) {
	var others []int
	for _, key := range wider(l.facts[number].principal) {
		others = append(others, by[key]...)
	}
	slices.Sort(others)
	for _, rule := range []func(number, other int) bool{l.duplicate, l.useless, l.shadowed} {
		for _, other := range slices.Compact(others) {
			if other != number && rule(number, other) {
				return
			}
		}
	}
}

// placeOf names another policy in a finding.
func (l *linter) placeOf(number int) string {
	one := &l.policies[number]
	return quoteID(one.ref.ID) + " at " + one.place.file.name + ":" + strconv.Itoa(one.place.position.Line)
}

// duplicate finds a policy that is written like one before it. Of two permits
// with @oversight the first is the one that asks.
func (l *linter) duplicate(number, other int) bool {
	a, b := &l.policies[number], &l.policies[other]
	if other > number || a.forbid != b.forbid || a.approvers != b.approvers || a.timeout != b.timeout || a.quorum != b.quorum || !l.sameText(number, other) {
		return false
	}
	l.report(ruleTwice, number, "it is %s again", l.placeOf(other))
	return true
}

func (l *linter) sameText(a, b int) bool {
	p, q := l.program.Source(a), l.program.Source(b)
	return l.facts[a].covers(l.facts[b]) && l.facts[b].covers(l.facts[a]) && slices.EqualFunc(p.Conditions, q.Conditions, func(c, d ast.ConditionType) bool {
		return c.Condition == d.Condition && ast.Equal(ast.NewNode(c.Body), ast.NewNode(d.Body))
	})
}

// useless finds a permit that never permits, as a forbid always applies too.
func (l *linter) useless(number, other int) bool {
	if l.policies[number].forbid || !l.policies[other].forbid || !l.implied(number, other) {
		return false
	}
	l.report(ruleUseless, number, "%s always forbids what it permits", l.placeOf(other))
	return true
}

// implied reports whether every request that satisfies a policy satisfies the
// other one.
func (l *linter) implied(number, other int) bool {
	f, wide := l.facts[number], l.facts[other]
	return wide.covers(f) && !slices.ContainsFunc(wide.all, func(c conjunct) bool { return !f.imply(c) })
}

// shadowed finds a policy that another one makes unnecessary. Of two that do so
// to each other the one with the greater id is.
func (l *linter) shadowed(number, other int) bool {
	a, b := &l.policies[number], &l.policies[other]
	if a.forbid != b.forbid || b.approvers != "" {
		return false
	}
	if a.forbid {
		// A forbid also denies what it cannot be evaluated on: the other must say the
		// same before it comes to that.
		if !l.facts[other].covers(l.facts[number]) || !l.begins(number, other) || other > number && l.facts[number].covers(l.facts[other]) && l.begins(other, number) {
			return false
		}
		l.report(ruleShadow, number, "%s always forbids what it forbids", l.placeOf(other))
		return true
	}
	if !l.implied(number, other) {
		return false
	}
	if a.approvers != "" {
		l.report(ruleUnasked, number, "%s is never asked: %s always permits the same, and asks nobody", a.approvers, l.placeOf(other))
		return true
	}
	if other > number && l.implied(other, number) {
		return false
	}
	l.report(ruleShadow, number, "%s always permits what it permits", l.placeOf(other))
	return true
}

// begins reports whether a policy's conditions begin with just those of the
// other.
func (l *linter) begins(number, other int) bool {
	own, wide := l.facts[number].all, l.facts[other].all
	if len(wide) > len(own) {
		return false
	}
	for i, c := range wide {
		if own[i].holds != c.holds || !ast.Equal(ast.NewNode(own[i].node), ast.NewNode(c.node)) {
			return false
		}
	}
	return true
}
