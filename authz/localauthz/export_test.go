package localauthz

import (
	"weak"

	"creto.dev"
	"creto.dev/authz"
)

// Freed returns whether the policies in force now are out of memory.
func (a *Authorizer) Freed() func() bool {
	w := weak.Make(a.current.Load())
	return func() bool { return w.Value() == nil }
}

// LimitTables sets how many resources may be laid out, in place of maxNamed.
func (a *Authorizer) LimitTables(n int64) {
	for _, s := range a.current.Load().tenants {
		s.tables.limit = n
	}
}

// TablesUsed returns how much of the limit is laid out.
func (a *Authorizer) TablesUsed() int64 {
	var n int64
	for _, s := range a.current.Load().tenants {
		n += s.tables.used.Load()
	}
	return n
}

// Forget drops the sessions that are kept for the next Bind.
func (a *Authorizer) Forget() { a.sessions.byChain.Clear() }

// Possible returns what a decision may be of which only some of the context is
// known: the attributes whose names known has.
func (p *Policies) Possible(principals []Principal, r authz.Request, known map[string]bool) []authz.Kind {
	s, err := imagine(principals)
	if err != nil {
		return nil
	}
	context := make(map[string]any)
	paths := make(map[string]bool)
	for name := range known {
		paths["context."+name] = true
		if value, ok := r.Context[name]; ok {
			context[name] = value
		}
	}
	r.Context = context
	one := replay{session: s, snapshot: p.book.of(principals[len(principals)-1].ID.Tenant), number: creto.ActionNumber(r.Action), request: &r, known: paths}
	return one.decide()
}
