package localauthz

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"creto.dev/authz/localauthz/program"
)

// facts are what is known of every request that satisfies a policy.
type facts struct {
	principal, resource program.Scope
	named               uint8 // a bit for each action in scope
	actions             uint8 // those whose resources the policy's scope can include
	all                 []conjunct
	about               map[string]*domain // by path
	// contradiction says why no request satisfies the policy; "" if one may.
	contradiction string
}

// conjunct is an expression that must be true, or that must be false, and what it
// says if that is simple.
type conjunct struct {
	node  ast.IsNode
	holds bool
	text  string // the same for the same conjunct

	bound  *comparison
	likes  *likeness
	equals *equation
}

// comparison is a path that is compared with an integer that is written.
type comparison struct {
	path      string
	low, high int64 // what it is then
}

// likeness is a path that is like a pattern.
type likeness struct {
	path      string
	pattern   types.Pattern
	prefix    string
	open, all bool // as [program.Prefix] says
}

// equation is a path that is equal to a value that is written.
type equation struct {
	path  string
	value types.Value
}

func newConjunct(n ast.IsNode, holds bool) conjunct {
	c := conjunct{node: n, holds: holds, text: textOf(n)}
	if !holds {
		c.text = "!" + c.text
	}
	if b, ok := compare(c); ok {
		c.bound = &b
	}
	if path, pattern, ok := like(c); ok {
		c.likes = &likeness{path: path, pattern: pattern}
		c.likes.prefix, c.likes.open, c.likes.all = program.Prefix(pattern)
	}
	if path, value, ok := equality(c); ok {
		c.equals = &equation{path, value}
	}
	return c
}

// domain is what is known of a value that is read.
type domain struct {
	equal    types.Value // nil if it is not known
	low      int64
	high     int64
	bounded  bool // it is an integer from low to high
	prefixes []string
}

// factsOf returns the facts of a policy.
func factsOf(s *snapshot, number int) *facts {
	f := &facts{
		principal: s.program.Principal(number), resource: s.program.Resource(number), named: s.policies[number].actions, about: make(map[string]*domain),
	}
	for i := range actions {
		if f.named&(1<<i) != 0 && mayBe(f.resource, i) {
			f.actions |= 1 << i
		}
	}
	for _, c := range s.program.Source(number).Conditions {
		f.all = append(f.all, conjuncts(c.Body, c.Condition == ast.ConditionWhen)...)
	}
	for _, c := range f.all {
		f.learn(c)
	}
	return f
}

// mayBe reports whether a scope can include a resource of an action.
func mayBe(s program.Scope, action int) bool {
	kind := actions[action].resourceType
	// An agent that acts on one of its own chain finds it in its groups.
	in := s.Entity.Type == kind || action == sendMessage && (s.Entity.Type == namespace+"Group" || s.Entity.Type == namespace+"Tenant")
	switch s.Kind {
	case program.ScopeEq:
		return s.Entity.Type == kind && validID(string(s.Entity.ID))
	case program.ScopeIn:
		return in
	case program.ScopeIs:
		return s.Type == kind
	case program.ScopeIsIn:
		return s.Type == kind && in
	}
	return true
}

// conjuncts returns what must hold for an expression to be true, or false.
func conjuncts(n ast.IsNode, holds bool) []conjunct {
	switch v := n.(type) {
	case ast.NodeTypeNot:
		return conjuncts(v.Arg, !holds)
	case ast.NodeTypeAnd:
		if holds {
			return append(conjuncts(v.Left, true), conjuncts(v.Right, true)...)
		}
	case ast.NodeTypeOr:
		if !holds {
			return append(conjuncts(v.Left, false), conjuncts(v.Right, false)...)
		}
	}
	return []conjunct{newConjunct(n, holds)}
}

// compare reads a comparison that must hold, or must not.
func compare(c conjunct) (comparison, bool) {
	var b ast.BinaryNode
	var operator string
	switch v := c.node.(type) {
	case ast.NodeTypeLessThan:
		b, operator = v.BinaryNode, "<"
	case ast.NodeTypeLessThanOrEqual:
		b, operator = v.BinaryNode, "<="
	case ast.NodeTypeGreaterThan:
		b, operator = v.BinaryNode, ">"
	case ast.NodeTypeGreaterThanOrEqual:
		b, operator = v.BinaryNode, ">="
	default:
		return comparison{}, false
	}
	if !c.holds {
		operator = opposite[operator]
	}
	if pathText(b.Left) == "" {
		b.Left, b.Right, operator = b.Right, b.Left, mirrored[operator]
	}
	value, ok := b.Right.(ast.NodeValue)
	if !ok || pathText(b.Left) == "" {
		return comparison{}, false
	}
	n, ok := value.Value.(types.Long)
	if !ok {
		return comparison{}, false
	}
	out := comparison{path: pathText(b.Left), low: math.MinInt64, high: math.MaxInt64}
	switch bound := int64(n); {
	case operator == "<=":
		out.high = bound
	case operator == ">=":
		out.low = bound
	case operator == "<" && bound != math.MinInt64:
		out.high = bound - 1
	case operator == ">" && bound != math.MaxInt64:
		out.low = bound + 1
	default:
		return comparison{}, false
	}
	return out, true
}

// equality reads == with a value that is written; like reads like.
func equality(c conjunct) (path string, value types.Value, ok bool) {
	b := ast.BinaryNode{}
	switch v := c.node.(type) {
	case ast.NodeTypeEquals:
		b, ok = v.BinaryNode, c.holds
	case ast.NodeTypeNotEquals:
		b, ok = v.BinaryNode, !c.holds
	}
	if !ok {
		return "", nil, false
	}
	if pathText(b.Left) == "" {
		b.Left, b.Right = b.Right, b.Left
	}
	v, ok := b.Right.(ast.NodeValue)
	path = pathText(b.Left)
	return path, v.Value, ok && path != ""
}

func like(c conjunct) (path string, pattern types.Pattern, ok bool) {
	v, ok := c.node.(ast.NodeTypeLike)
	if !ok || !c.holds || pathText(v.Arg) == "" {
		return "", types.Pattern{}, false
	}
	return pathText(v.Arg), v.Value, true
}

func (f *facts) of(path string) *domain {
	d := f.about[path]
	if d == nil {
		d = &domain{low: math.MinInt64, high: math.MaxInt64}
		f.about[path] = d
	}
	return d
}

// learn adds what a conjunct says, and notes what cannot be.
func (f *facts) learn(c conjunct) {
	if c.equals != nil {
		path, value := c.equals.path, c.equals.value
		d := f.of(path)
		if d.equal != nil && !d.equal.Equal(value) {
			f.contradict("%s cannot be both %s and %s", path, valueText(d.equal), valueText(value))
		}
		d.equal = value
	}
	if b := c.bound; b != nil {
		d := f.of(b.path)
		d.bounded, d.low, d.high = true, max(d.low, b.low), min(d.high, b.high)
		if d.low > d.high {
			f.contradict("%s cannot be at least %d and at most %d", b.path, d.low, d.high)
		}
	}
	if c.likes != nil {
		path, pattern, prefix, open := c.likes.path, c.likes.pattern, c.likes.prefix, c.likes.open
		d := f.of(path)
		for _, other := range d.prefixes {
			if open && !strings.HasPrefix(prefix, other) && !strings.HasPrefix(other, prefix) {
				f.contradict("%s cannot begin with both %q and %q", path, prefix, other)
			}
		}
		if open {
			d.prefixes = append(d.prefixes, prefix)
		}
		if f.resource.Kind == program.ScopeEq && path == "resource.id" && !pattern.Match(f.resource.Entity.ID) {
			f.contradict("the resource is %s, whose id is not like %s", f.resource.Entity, pattern.MarshalCedar())
		}
	}
	for path, d := range f.about {
		if n, ok := d.equal.(types.Long); ok && d.bounded && (int64(n) < d.low || int64(n) > d.high) {
			f.contradict("%s cannot be %d, and at least %d and at most %d", path, n, d.low, d.high)
		}
		if s, ok := d.equal.(types.String); ok && !d.begins(string(s)) {
			f.contradict("%s cannot be %s, and begin with %q", path, valueText(s), d.prefixes)
		}
	}
}

func (d *domain) begins(s string) bool {
	return !slices.ContainsFunc(d.prefixes, func(prefix string) bool { return !strings.HasPrefix(s, prefix) })
}

func (f *facts) contradict(format string, args ...any) {
	if f.contradiction == "" {
		f.contradiction = fmt.Sprintf(format, args...)
	}
}

// imply reports whether a conjunct holds for every request that satisfies the
// policy. It may miss one that does.
func (f *facts) imply(c *conjunct) bool {
	for i := range f.all {
		if f.all[i].text == c.text {
			return true
		}
	}
	if b := c.bound; b != nil {
		if d := f.about[b.path]; d != nil {
			n, integer := d.equal.(types.Long)
			return d.bounded && d.low >= b.low && d.high <= b.high || integer && int64(n) >= b.low && int64(n) <= b.high
		}
	}
	if l := c.likes; l != nil {
		if l.path == "resource.id" && f.resource.Kind == program.ScopeEq {
			return l.pattern.Match(f.resource.Entity.ID)
		}
		d := f.about[l.path]
		if d == nil {
			return false
		}
		if s, ok := d.equal.(types.String); ok && l.pattern.Match(s) {
			return true
		}
		return l.all && slices.ContainsFunc(d.prefixes, func(own string) bool { return strings.HasPrefix(own, l.prefix) })
	}
	if e := c.equals; e != nil && e.path == "resource.id" && f.resource.Kind == program.ScopeEq {
		return e.value.Equal(f.resource.Entity.ID)
	}
	return false
}

// covers reports whether every request in the scope of another policy is in this
// one's. It may miss one that is.
func (f *facts) covers(other *facts) bool {
	return f.named&other.actions == other.actions && covers(f.principal, other.principal) &&
		(covers(f.resource, other.resource) || f.resource.Kind == program.ScopeIs && other.areAll(f.resource.Type))
}

// areAll reports whether all resources in scope are of one type, by the actions.
func (f *facts) areAll(kind types.EntityType) bool {
	for i := range actions {
		if f.actions&(1<<i) != 0 && actions[i].resourceType != kind {
			return false
		}
	}
	return true
}

// covers reports whether one scope includes all that another includes. Nothing is
// in a principal or a resource but itself.
func covers(a, b program.Scope) bool {
	single := b.Kind == program.ScopeEq || (b.Kind == program.ScopeIn || b.Kind == program.ScopeIsIn) && b.Entity.Type != namespace+"Group" && b.Entity.Type != namespace+"Tenant"
	switch a.Kind {
	case program.ScopeAll:
		return true
	case program.ScopeEq:
		return single && b.Entity == a.Entity
	case program.ScopeIs:
		return (b.Kind == program.ScopeIs || b.Kind == program.ScopeIsIn) && b.Type == a.Type || single && b.Entity.Type == a.Type
	case program.ScopeIn:
		return b.Kind != program.ScopeAll && b.Kind != program.ScopeIs && b.Entity == a.Entity
	case program.ScopeIsIn:
		return b.Kind == program.ScopeIsIn && b.Type == a.Type && b.Entity == a.Entity || single && b.Entity == a.Entity && b.Entity.Type == a.Type
	}
	return false
}
