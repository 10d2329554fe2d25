package localauthz

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
)

// The pages of List.
const (
	defaultGrants = 100
	maxGrants     = 1000
)

// List implements authz.Authorizer.
func (a *Authorizer) List(_ context.Context, s authz.Session, q authz.Query) (authz.Page, error) {
	const op fault.Op = "localauthz.List"
	own, ok := s.(*session)
	if !ok {
		return authz.Page{}, foreign(op)
	}
	number := creto.ActionNumber(q.Action)
	if number < 0 {
		return authz.Page{}, fault.New(op, fault.AuthzInvalidRequest, "%q is no action", q.Action)
	}
	limit := min(cmp.Or(max(q.Limit, 0), defaultGrants), maxGrants)
	b := own.under(a.current.Load())
	at := b.table.of(number)
	if at.none {
		at, _ = b.table.make(number)
	}
	var page authz.Page
	for _, g := range own.candidates(b, number) {
		if compareGrants(g, q.After) <= 0 {
			continue
		}
		e := own.entryOf(b, at, number, g)
		if e.denied {
			continue
		}
		if len(page.Grants) == limit {
			page.More = true
			break
		}
		g.Conditional = b.snapshot.conditional(e)
		page.Grants = append(page.Grants, g)
	}
	return page, nil
}

// compareGrants orders single resources before prefixes, each by id.
func compareGrants(a, b authz.Grant) int {
	if a.Prefix != b.Prefix {
		if b.Prefix {
			return -1
		}
		return 1
	}
	return strings.Compare(a.Resource.ID, b.Resource.ID)
}

// candidates returns, in order, every resource that policies or links name and
// the links' scopes include, and the prefixes that these include.
func (s *session) candidates(b *bound, number int) []authz.Grant {
	ids := make(map[string]struct{})
	for _, class := range b.table.classes {
		for _, policy := range class {
			if id, ok := b.snapshot.names(int(policy), number); ok && id != "" {
				ids[id] = struct{}{}
			}
		}
	}
	if number == sendMessage {
		for _, p := range s.principals {
			if p.id.Kind == creto.KindAgent {
				ids[p.id.Name] = struct{}{}
			}
		}
	}
	prefixes := make(map[string]struct{})
	for _, pattern := range s.coverage[number].Patterns() {
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
			prefixes[prefix] = struct{}{}
		} else if validID(pattern) {
			ids[pattern] = struct{}{}
		}
	}
	var grants []authz.Grant
	kind := actions[number].resource
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		if s.covers(number, id) {
			grants = append(grants, authz.Grant{Resource: creto.Resource{Type: kind, ID: id}})
		}
	}
	last, any := "", false
	for _, prefix := range slices.Sorted(maps.Keys(prefixes)) {
		if any && strings.HasPrefix(prefix, last) {
			continue
		}
		last, any = prefix, true
		grants = append(grants, authz.Grant{Resource: creto.Resource{Type: kind, ID: prefix}, Prefix: true})
	}
	return grants
}

// entryOf returns the policies in scope of a grant.
func (s *session) entryOf(b *bound, at *actionTable, number int, g authz.Grant) *entry {
	if g.Prefix {
		return &at.other
	}
	if number != sendMessage || !s.holds(g.Resource.ID) {
		return b.table.entry(at, number, b.table.slot(at.slots, g.Resource.ID))
	}
	resource := types.EntityUID{Type: actions[number].resourceType, ID: types.String(g.Resource.ID)}
	found, _ := s.Get(resource)
	var e entry
	for i, p := range s.principals {
		r := types.Request{Principal: p.entity.UID, Action: actions[number].uid, Resource: resource}
		for _, policy := range b.snapshot.program.InScope(r, p.parents, nil, slices.Collect(found.Parents.All())) {
			e.own = append(e.own, ranked{int32(i), policy})
		}
	}
	e.compile(b.table, number, "") // its attributes are not those of other resources
	return &e
}

// conditional reports whether an entry that is not denied depends on more than
// the resource.
func (s *snapshot) conditional(e *entry) bool {
	for _, c := range e.checks {
		if c.forbid {
			return true
		}
	}
	for _, permits := range e.permits {
		free := slices.ContainsFunc(permits, func(p permit) bool { return p.condition < 0 && s.policies[p.policy].approvers == "" })
		if !free {
			return true
		}
	}
	return false
}
