package localauthz

import (
	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/localauthz/program"
	"creto.dev/fault"
)

// Policies are those of a directory as people's tools have them: to test, lint,
// explain and replay. They decide on what nobody asks for, and nothing is
// enforced by them. Safe for concurrent use.
type Policies struct {
	dir  string
	home string // the tenant whose policies are in dir itself
	book *book
}

// ReadPolicies reads the policies of dir as [Open] does.
//
// Errors: those of Open.
func ReadPolicies(dir, tenant string) (*Policies, error) {
	b, err := loadBook(dir, tenant, nil, new(desk), func() {})
	if err != nil {
		return nil, err
	}
	return &Policies{dir: dir, home: tenant, book: b}, nil
}

// Version returns the digest of the policies, of all tenants together.
func (p *Policies) Version() creto.Digest { return p.book.version }

// Count returns the number of policies, of all tenants together.
func (p *Policies) Count() int { return p.book.count() }

// Principal is one of a chain that need not exist.
type Principal struct {
	ID     creto.ID
	Groups []string
}

// Explain says what the policies come to on a request of principals, the human
// first, whose delegations include everything. All are of the tenant of the
// last one.
//
// Errors: AuthzInvalidRequest (Permanent) for a request that is malformed, or of
// nobody.
func (p *Policies) Explain(principals []Principal, r authz.Request) (authz.Explanation, error) {
	const op fault.Op = "localauthz.Policies.Explain"
	s, err := imagine(principals)
	if err != nil {
		return authz.Explanation{}, fault.Wrap(op, err)
	}
	number, err := wellFormed(&r)
	if err != nil {
		return authz.Explanation{}, fault.Wrap(op, err)
	}
	return s.explain(p.book.of(principals[len(principals)-1].ID.Tenant), number, &r), nil
}

// imagine returns a session of principals without a chain. It is for tools, and
// never leaves this package.
func imagine(principals []Principal) (*session, error) {
	if len(principals) == 0 {
		return nil, fault.New("localauthz.imagine", fault.AuthzInvalidRequest, "there is nobody in the chain")
	}
	s := &session{imagined: true}
	for _, p := range principals {
		s.principals = append(s.principals, newPrincipal(p.ID, p.Groups))
		s.groups = append(s.groups, p.Groups)
	}
	return s, nil
}

// wellFormed returns the number of a request's action.
func wellFormed(r *authz.Request) (int, error) {
	number := creto.ActionNumber(r.Action)
	if err := (creto.Action{Name: r.Action, Resource: r.Resource}).Validate(); err != nil || number < 0 {
		return -1, malformed(r)
	}
	return number, program.CheckContext(r.Context)
}
