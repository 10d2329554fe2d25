package localauthz

import (
	"context"
	"slices"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
)

// PolicySet decides by the policies of an Authorizer alone, without its extensions.
// Their sessions are the same.
type PolicySet struct{ *Authorizer }

// Check implements authz.Authorizer.
func (p PolicySet) Check(_ context.Context, s authz.Session, r authz.Request) (authz.Decision, error) {
	var d authz.Decision
	own, ok := s.(*session)
	if !ok {
		return d, foreign("localauthz.Check")
	}
	err := p.judge(own, &r, &d)
	return d, err
}

// Peek implements authz.Authorizer.
func (p PolicySet) Peek(ctx context.Context, s authz.Session, r authz.Request) (authz.Decision, error) {
	return p.Check(ctx, s, r)
}

// CheckBatch implements authz.Authorizer.
func (p PolicySet) CheckBatch(ctx context.Context, s authz.Session, rs []authz.Request) ([]authz.Decision, error) {
	if _, ok := s.(*session); !ok {
		return nil, foreign("localauthz.CheckBatch")
	}
	decisions := make([]authz.Decision, len(rs))
	for i, r := range rs {
		d, err := p.Check(ctx, s, r)
		if err != nil {
			d = authz.Decision{Version: d.Version, Reason: fault.Message(err)}
		}
		decisions[i] = d
	}
	return decisions, nil
}

// Policies returns the version of a tenant's policies, and the names in a request's
// context that one of them reads, in order; "*" stands for all.
func (p PolicySet) Policies(tenant string) (version creto.Digest, reads []string) {
	s := p.current.Load().of(tenant)
	return s.version, slices.Clone(s.reads)
}

// Groups returns which groups each principal of a session's chain was in when it was
// bound: those that its decisions are by. Nil for another authorizer's session.
func (p PolicySet) Groups(s authz.Session) [][]string {
	own, ok := s.(*session)
	if !ok {
		return nil
	}
	return own.groups
}

// readsAll stands for everything in a context.
const readsAll = "*"

// readsOf returns the names in the context that a policy reads.
func readsOf(p *cedar.Policy) []string {
	var reads []string
	for _, c := range (*ast.Policy)(p.AST()).Conditions {
		ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
			switch n := n.(type) {
			case ast.NodeTypeAccess:
				if isContext(n.Arg) {
					reads = append(reads, string(n.Value))
					return false
				}
			case ast.NodeTypeHas:
				if isContext(n.Arg) {
					reads = append(reads, string(n.Value))
					return false
				}
			case ast.NodeTypeVariable:
				if isContext(n) {
					reads = append(reads, readsAll)
				}
			}
			return true
		})
	}
	return reads
}

func isContext(n ast.IsNode) bool {
	v, ok := n.(ast.NodeTypeVariable)
	return ok && v.Name == "context"
}
