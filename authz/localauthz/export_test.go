package localauthz

// LimitTables sets how many resources may be laid out, in place of maxNamed.
func (a *Authorizer) LimitTables(n int64) {
	for _, s := range a.current.Load().tenants {
		s.tables.limit = n
	}
}
