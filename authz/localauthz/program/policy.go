package program

import (
	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"creto.dev/fault"
)

// Policy is one compiled policy. It is immutable, and programs may share it.
type Policy struct {
	forbid     bool
	principal  Scope
	action     Scope
	resource   Scope
	conditions *conditions
	source     *ast.Policy
}

// conditions are what must hold for a policy, beside its scope. Policies that
// are written alike share them.
type conditions struct {
	text   string
	number int
	all    []*node
	reads  variables
	// settled is the most resources that each of all is the same for, if nothing
	// else has a say; 0 if something has. early are all, those first that are
	// settled for one.
	settled []Extent
	early   []*node
	// beginnings are those of resources' ids that they ask for.
	beginnings []string
}

// Extent says which resources an [Env]'s resource stands for.
type Extent uint8

// The extents.
const (
	// OneResource is itself.
	OneResource Extent = 1 + iota
	// SameBeginning is all of its type whose ids begin with its own, and with no
	// longer one of the [Program.Beginnings]; and for an empty id that is not among
	// these, all that begin with none.
	SameBeginning
	// SameType is all of its type.
	SameType
)

// Compiler compiles the policies of one set. Those whose conditions are written
// alike share them. Not safe for concurrent use.
type Compiler struct {
	known  map[string]*conditions // by their text
	before map[string]*conditions // those of the set before
	count  int
}

// NewCompiler returns a compiler. With the compiler of an older set, which is then
// only read, policies of that set may be kept; it may be nil.
func NewCompiler(before *Compiler) *Compiler {
	c := &Compiler{known: make(map[string]*conditions)}
	if before != nil {
		c.before, c.count = before.known, before.count
	}
	return c
}

// Done says that all is compiled: it lets go of the older set.
func (c *Compiler) Done() { c.before = nil }

// Compile compiles a policy, whose syntax tree it keeps.
//
// Errors: InvalidArgument (Permanent) for a condition that is nested too deep.
func (c *Compiler) Compile(source *cedar.Policy) (*Policy, error) {
	conditions, err := c.conditions(source)
	if err != nil {
		return nil, err
	}
	tree := (*ast.Policy)(source.AST())
	return &Policy{
		forbid: tree.Effect == ast.EffectForbid, source: tree, conditions: conditions,
		principal: scopeOf(tree.Principal), action: scopeOf(tree.Action), resource: scopeOf(tree.Resource),
	}, nil
}

// Keep has later policies share the conditions of one that was compiled before, for
// this set or the older one.
func (c *Compiler) Keep(p *Policy) { c.known[p.conditions.text] = p.conditions }

// At returns a policy as it is when it is written at a position.
func (p *Policy) At(position cedar.Position) *Policy {
	if p.source.Position == ast.Position(position) {
		return p
	}
	moved, tree := *p, *p.source
	tree.Position = ast.Position(position)
	moved.source = &tree
	return &moved
}

// Includes reports whether a policy's scope of actions includes one that is in
// nothing.
func (p *Policy) Includes(action types.EntityUID) bool { return p.action.Includes(action, nil) }

// conditions returns the conditions of a policy.
func (c *Compiler) conditions(source *cedar.Policy) (*conditions, error) {
	const op fault.Op = "program.Compile"
	text := textOf(source)
	if known, ok := c.known[text]; ok {
		return known, nil
	}
	if before, ok := c.before[text]; ok {
		c.known[text] = before
		return before, nil
	}
	made := &conditions{text: text, number: c.count}
	var late []*node
	for _, one := range (*ast.Policy)(source.AST()).Conditions {
		n, err := compile(one.Body, 0)
		if err != nil {
			return nil, fault.New(op, fault.InvalidArgument, "the condition cannot be compiled: %s", fault.Message(err))
		}
		if one.Condition == ast.ConditionUnless {
			n = fold(&node{op: opNot, a: n})
		}
		for _, n := range n.conjuncts() {
			if n.op == opConst && n.value.kind == kindBool && n.value.n == 1 {
				continue
			}
			reads, settled := n.reads(), Extent(0)
			made.reads |= reads
			if reads == 0 {
				settled = OneResource
				made.early = append(made.early, n)
			} else {
				late = append(late, n)
			}
			if beginnings, ok := n.beginnings(nil); ok {
				settled = SameBeginning
				made.beginnings = append(made.beginnings, beginnings...)
			}
			made.all, made.settled = append(made.all, n), append(made.settled, settled)
		}
	}
	made.early = append(made.early, late...)
	c.known[text] = made
	c.count++
	return made, nil
}

// textOf returns the text of a policy's conditions alone.
func textOf(source *cedar.Policy) string {
	bare := *source.AST()
	if len(bare.Conditions) == 0 {
		return ""
	}
	bare.Effect, bare.Annotations = ast.EffectPermit, nil
	bare.Principal, bare.Action, bare.Resource = ast.ScopeTypeAll{}, ast.ScopeTypeAll{}, ast.ScopeTypeAll{}
	return string(cedar.NewPolicyFromAST(&bare).MarshalCedar())
}
