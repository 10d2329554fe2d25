package localauthz

import "weak"

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
