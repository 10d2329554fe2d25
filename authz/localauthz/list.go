package localauthz

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/localauthz/program"
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
	for g := range own.grants(b, at, number) {
		if compareGrants(g, q.After) <= 0 {
			continue
		}
		if len(page.Grants) == limit {
			page.More = true
			break
		}
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

// grants yields, in order, what of the resources and the beginnings of ids that
// policies or links name is not denied. A beginning within another is there only
// if it is granted with fewer conditions.
func (s *session) grants(b *bound, at *actionTable, number int) iter.Seq[authz.Grant] {
	return func(yield func(authz.Grant) bool) {
		kind := actions[number].resource
		for _, id := range s.named(b, number) {
			e := s.entryOf(b, at, number, id)
			g := authz.Grant{Resource: creto.Resource{Type: kind, ID: id}, Conditional: b.snapshot.conditional(e)}
			if !e.denied && !yield(g) {
				return
			}
		}
		var around []authz.Grant // the beginnings that the next may be within
		for _, id := range s.begun(at, number) {
			for len(around) > 0 && !strings.HasPrefix(id, around[len(around)-1].Resource.ID) {
				around = around[:len(around)-1]
			}
			e := b.table.entry(at, number, at.beginning(id))
			g := authz.Grant{Resource: creto.Resource{Type: kind, ID: id}, Prefix: true, Conditional: b.snapshot.conditional(e) || at.differs(b, number, id)}
			if e.denied || len(around) > 0 && (g.Conditional || !around[len(around)-1].Conditional) {
				continue
			}
			if !yield(g) {
				return
			}
			around = append(around, g)
		}
	}
}

// differs reports whether ids that begin with one more than another are denied,
// or are under conditions.
func (at *actionTable) differs(b *bound, number int, id string) bool {
	for i := range at.beginnings {
		longer := &at.beginnings[i].slot
		if len(longer.entry.id) <= len(id) || !strings.HasPrefix(longer.entry.id, id) {
			continue
		}
		if e := b.table.entry(at, number, longer); e.denied || b.snapshot.conditional(e) {
			return true
		}
	}
	return false
}

// named returns, in order, every resource that policies or links name and the
// links' scopes include.
func (s *session) named(b *bound, number int) []string {
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
	for _, pattern := range s.coverage[number].Patterns() {
		if !strings.HasSuffix(pattern, "*") && validID(pattern) {
			ids[pattern] = struct{}{}
		}
	}
	maps.DeleteFunc(ids, func(id string, _ struct{}) bool { return !s.covers(number, id) })
	return slices.Sorted(maps.Keys(ids))
}

// begun returns, in order, the beginnings that the links' scopes include all of,
// and those within them that policies ask for.
func (s *session) begun(at *actionTable, number int) []string {
	ids := make(map[string]struct{})
	for _, pattern := range s.coverage[number].Patterns() {
		prefix, ok := strings.CutSuffix(pattern, "*")
		if !ok {
			continue
		}
		ids[prefix] = struct{}{}
		for i := range at.beginnings {
			if id := at.beginnings[i].entry.id; strings.HasPrefix(id, prefix) {
				ids[id] = struct{}{}
			}
		}
	}
	return slices.Sorted(maps.Keys(ids))
}

// entryOf returns the policies in scope of a resource.
func (s *session) entryOf(b *bound, at *actionTable, number int, id string) *entry {
	if number != sendMessage || !s.holds(id) {
		return b.table.entry(at, number, b.table.find(at, id))
	}
	resource := types.EntityUID{Type: actions[number].resourceType, ID: types.String(id)}
	found, _ := s.Get(resource)
	e := entry{of: program.SameType} // its attributes are not those of other resources
	for i, p := range s.principals {
		r := types.Request{Principal: p.entity.UID, Action: actions[number].uid, Resource: resource}
		for _, policy := range b.snapshot.program.InScope(r, p.parents, nil, slices.Collect(found.Parents.All())) {
			e.own = append(e.own, ranked{int32(i), policy})
		}
	}
	e.compile(b.table, number)
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
