package program

import (
	"errors"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/eval"

	"creto.dev/fault"
)

// Condition is one expression by itself, such as an operand of && in a policy's
// condition. It is for people's tools, which ask what each part of a policy came
// to; checks evaluate whole policies. It is immutable.
type Condition struct {
	node   *node
	source ast.IsNode
}

// NewCondition compiles an expression.
//
// Errors: InvalidArgument (Permanent) if it is nested too deep.
func NewCondition(n ast.IsNode) (*Condition, error) {
	compiled, err := compile(n, 0)
	if err != nil {
		return nil, fault.Wrap("program.NewCondition", err)
	}
	return &Condition{node: compiled, source: n}, nil
}

// ParseCondition compiles an expression that is written in Cedar.
//
// Errors: InvalidArgument (Permanent) for what is no expression.
func ParseCondition(text string) (*Condition, error) {
	const op fault.Op = "program.ParseCondition"
	list, err := cedar.NewPolicyListFromBytes("", []byte("permit (principal, action, resource) when { "+text+"\n};"))
	if err != nil || len(list) != 1 {
		return nil, fault.WrapAs(op, fault.InvalidArgument, errors.Join(err), "%q is no condition", text)
	}
	conditions := (*ast.Policy)(list[0].AST()).Conditions
	if len(conditions) != 1 {
		return nil, fault.New(op, fault.InvalidArgument, "%q is more than one condition", text)
	}
	return NewCondition(conditions[0].Body)
}

// Source returns the condition as it was parsed.
func (c *Condition) Source() ast.IsNode { return c.source }

// Constant reports whether the condition comes to one truth value whatever the
// request is, and which.
func (c *Condition) Constant() (value, ok bool) {
	v := c.node.value
	return v.n == 1, c.node.op == opConst && v.kind == kindBool
}

// Evaluate evaluates the condition. It keeps nothing of e.
func (c *Condition) Evaluate(e *Env) Verdict {
	switch c.node.test(e) {
	case isTrue:
		return Satisfied
	case isFalse:
		return Unsatisfied
	}
	return Errored
}

// Mistake returns why the condition cannot be evaluated, in cedar-go's words; ""
// if it can.
func (c *Condition) Mistake(e *Env) string {
	if c.Evaluate(e) != Errored {
		return ""
	}
	_, err := eval.Eval(c.source, e.native())
	if err == nil {
		return "type error: expected bool"
	}
	return err.Error()
}

// native returns what cedar-go evaluates e on.
func (e *Env) native() eval.Env {
	out := eval.Env{Principal: e.Principal, Action: e.Action, Resource: e.Resource, Context: e.Context, Entities: e.Entities}
	if e.Fields != nil {
		out.Context = toValue(e.Fields)
	}
	if out.Context == nil {
		out.Context = types.Record{}
	}
	if out.Entities == nil {
		out.Entities = types.EntityMap{}
	}
	if e.Itself {
		out.Entities = withResource{out.Entities, e.Resource}
	}
	return out
}

// withResource are entities and a resource that stands for itself.
type withResource struct {
	types.EntityGetter
	resource types.EntityUID
}

// Get implements types.EntityGetter.
func (w withResource) Get(uid types.EntityUID) (types.Entity, bool) {
	if uid == w.resource {
		return types.Entity{UID: uid, Attributes: types.NewRecord(types.RecordMap{idAttribute: types.String(uid.ID)})}, true
	}
	return w.EntityGetter.Get(uid)
}

// Read is something of a request that a condition reads.
type Read struct {
	// Path is a variable and the attributes below it, as in context, body, amount.
	Path []string
	// Value is nil if there is none.
	Value types.Value
}

// Name returns the path as it is written in Cedar.
func (r Read) Name() string { return strings.Join(r.Path, ".") }

// Reads returns everything that the condition reads, each once, in the order in
// which it is written.
func (c *Condition) Reads(e *Env) []Read {
	var reads []Read
	for _, n := range Paths(c.source) {
		path := PathOf(n)
		if len(path) == 1 && path[0] == "context" || slices.ContainsFunc(reads, func(r Read) bool { return slices.Equal(r.Path, path) }) {
			continue
		}
		r := Read{Path: path}
		if compiled, err := compile(withoutHas(n), 0); err == nil {
			r.Value = compiled.eval(e).boxed()
		}
		reads = append(reads, r)
	}
	return reads
}

// withoutHas turns the question for an attribute into the attribute.
func withoutHas(n ast.IsNode) ast.IsNode {
	if has, ok := n.(ast.NodeTypeHas); ok {
		return ast.NodeTypeAccess(has)
	}
	return n
}

// Paths returns the longest expressions in n that only name a variable, an
// attribute below one, or ask for one with has.
func Paths(n ast.IsNode) []ast.IsNode {
	var found []ast.IsNode
	ast.Inspect(ast.NewNode(n), func(n ast.IsNode) bool {
		if PathOf(n) != nil {
			found = append(found, n)
			return false
		}
		return true
	})
	return found
}

// PathOf returns the path of one of [Paths]; nil for another expression.
func PathOf(n ast.IsNode) []string {
	switch v := n.(type) {
	case ast.NodeTypeVariable:
		return []string{string(v.Name)}
	case ast.NodeTypeAccess:
		if above := PathOf(v.Arg); above != nil && !isHas(v.Arg) {
			return append(above, string(v.Value))
		}
	case ast.NodeTypeHas:
		if above := PathOf(v.Arg); above != nil && !isHas(v.Arg) {
			return append(above, string(v.Value))
		}
	}
	return nil
}

func isHas(n ast.IsNode) bool {
	_, ok := n.(ast.NodeTypeHas)
	return ok
}

// Outcomes is a set of verdicts.
type Outcomes uint8

// The sets of one verdict.
const (
	MayBeUnsatisfied Outcomes = 1 << iota
	MayBeSatisfied
	MayFail
)

const anyOutcome = MayBeUnsatisfied | MayBeSatisfied | MayFail

func outcomeOf(v Verdict) Outcomes { return 1 << v }

// Possible returns every verdict that the condition can come to when not
// everything of the context is known: nothing that reads an unknown path counts
// as known. It may name a verdict too many, and none too few.
func (c *Condition) Possible(e *Env, unknown func(path []string) bool) Outcomes {
	return possible(c.source, e, unknown)
}

// PossibleOf is [Condition.Possible] for the conditions of a policy.
func (p *Program) PossibleOf(i int, e *Env, unknown func(path []string) bool) Outcomes {
	all := MayBeSatisfied
	for _, c := range p.policies[i].source.Conditions {
		o := possible(c.Body, e, unknown)
		if c.Condition == ast.ConditionUnless {
			o = negated(o)
		}
		all = both(all, o)
	}
	return all
}

func possible(n ast.IsNode, e *Env, unknown func(path []string) bool) Outcomes {
	if !slices.ContainsFunc(Paths(n), func(n ast.IsNode) bool { return unknown(PathOf(n)) }) {
		c, err := NewCondition(n)
		if err != nil {
			return anyOutcome
		}
		return outcomeOf(c.Evaluate(e))
	}
	switch v := n.(type) {
	case ast.NodeTypeAnd:
		return both(possible(v.Left, e, unknown), possible(v.Right, e, unknown))
	case ast.NodeTypeOr:
		return negated(both(negated(possible(v.Left, e, unknown)), negated(possible(v.Right, e, unknown))))
	case ast.NodeTypeNot:
		return negated(possible(v.Arg, e, unknown))
	case ast.NodeTypeHas: // only the attribute is unknown, not what it is of
		if path := PathOf(v.Arg); len(path) == 1 || path != nil && !unknown(path) {
			return MayBeSatisfied | MayBeUnsatisfied
		}
	case ast.NodeTypeIfThenElse:
		condition := possible(v.If, e, unknown)
		all := condition & MayFail
		if condition&MayBeSatisfied != 0 {
			all |= possible(v.Then, e, unknown)
		}
		if condition&MayBeUnsatisfied != 0 {
			all |= possible(v.Else, e, unknown)
		}
		return all
	}
	return anyOutcome
}

// both is &&, which looks at its right side only when the left one holds.
func both(left, right Outcomes) Outcomes {
	all := left & (MayBeUnsatisfied | MayFail)
	if left&MayBeSatisfied != 0 {
		all |= right
	}
	return all
}

// negated is !.
func negated(o Outcomes) Outcomes {
	out := o & MayFail
	if o&MayBeSatisfied != 0 {
		out |= MayBeUnsatisfied
	}
	if o&MayBeUnsatisfied != 0 {
		out |= MayBeSatisfied
	}
	return out
}

// Principal returns a policy's scope of principals.
func (p *Program) Principal(i int) Scope { return p.policies[i].principal }

// Source returns a policy as it was parsed, which is not to be changed.
func (p *Program) Source(i int) *ast.Policy { return p.policies[i].source }

// Prefix returns the text that a pattern begins with, up to its first wildcard.
// open says that there is one, and all that nothing follows it.
func Prefix(p types.Pattern) (prefix string, open, all bool) {
	made := newPattern(p)
	if made.cedar != nil {
		return "", true, false
	}
	return made.prefix, !made.exact, made.isBeginning()
}
