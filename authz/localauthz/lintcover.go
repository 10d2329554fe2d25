package localauthz

import (
	"slices"
	"strconv"
	"time"

	"github.com/cedar-policy/cedar-go/types"

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
	var permits, forbids = make(map[scopeKey][]int), make(map[scopeKey][]int)
	first := make(map[sameness]int)
	for i := range l.policies {
		if l.dead[i] {
			continue
		}
		key := keyOf(l.facts[i].principal)
		if l.policies[i].forbid {
			forbids[key] = append(forbids[key], i)
		} else {
			permits[key] = append(permits[key], i)
		}
		if _, again := first[l.sameness(i)]; !again {
			first[l.sameness(i)] = i
		}
	}
	for i := range l.policies {
		if l.dead[i] {
			continue
		}
		if other := first[l.sameness(i)]; other != i {
			l.report(ruleTwice, i, "it is %s again", l.placeOf(other))
			continue
		}
		keys := wider(l.facts[i].principal)
		if !l.policies[i].forbid && l.any(i, keys, forbids, l.useless) {
			continue
		}
		same := permits
		if l.policies[i].forbid {
			same = forbids
		}
		l.any(i, keys, same, l.shadowed)
	}
}

// any reports whether a rule finds something of a policy and one of those that
// may cover it.
func (l *linter) any(number int, keys []scopeKey, by map[scopeKey][]int, rule func(number, other int) bool) bool {
	for _, key := range keys {
		for _, other := range by[key] {
			if other != number && rule(number, other) {
				return true
			}
		}
	}
	return false
}

// sameness is what policies have in common that are written alike. Of two permits
// with @oversight the first is the one that asks.
type sameness struct {
	forbid              bool
	approvers           string
	timeout             time.Duration
	quorum              int
	principal, resource scopeKey
	actions             uint8
	conditions          int
}

func (l *linter) sameness(number int) sameness {
	one, f := l.policies[number], l.facts[number]
	return sameness{one.forbid, one.approvers, one.timeout, one.quorum, keyOf(f.principal), keyOf(f.resource), f.named, l.program.Conditions(number)}
}

// placeOf names another policy in a finding.
func (l *linter) placeOf(number int) string {
	one := l.policies[number]
	return quoteID(one.ref.ID) + " at " + one.place.file + ":" + strconv.Itoa(one.place.position.Line)
}

// useless finds a permit that never permits, as a forbid always applies too.
func (l *linter) useless(number, other int) bool {
	if !l.implied(number, other) {
		return false
	}
	l.report(ruleUseless, number, "%s always forbids what it permits", l.placeOf(other))
	return true
}

// implied reports whether every request that satisfies a policy satisfies the
// other one.
func (l *linter) implied(number, other int) bool {
	f, wide := l.facts[number], l.facts[other]
	if !wide.covers(f) {
		return false
	}
	for i := range wide.all {
		if !f.imply(&wide.all[i]) {
			return false
		}
	}
	return true
}

// shadowed finds a policy that another one makes unnecessary. Of two that do so
// to each other the one with the greater id is.
func (l *linter) shadowed(number, other int) bool {
	a, b := l.policies[number], l.policies[other]
	if b.approvers != "" {
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
	for i := range wide {
		if own[i].text != wide[i].text {
			return false
		}
	}
	return true
}
