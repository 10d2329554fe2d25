package program

import (
	"github.com/cedar-policy/cedar-go/types"
)

// Env is the request on which conditions are evaluated.
type Env struct {
	Principal types.EntityUID
	Action    types.EntityUID
	Resource  types.EntityUID
	// Entities holds attributes and hierarchy; nil if there are none.
	Entities types.EntityGetter
	// Itself says that the resource is not among Entities: it is in nothing, and
	// its only attribute is id.
	Itself bool
	// Fields is the request's context as its caller has it, which CheckContext
	// accepted. If it is nil, Context is.
	Fields  map[string]any
	Context types.Value
}

// get returns an entity. One that stands for itself is found only by [Env.itself].
func (e *Env) get(uid types.EntityUID) (types.Entity, bool) {
	if e.Entities == nil {
		return types.Entity{}, false
	}
	return e.Entities.Get(uid)
}

// itself reports whether v is the resource that stands for itself.
func (e *Env) itself(v value) bool {
	return e.Itself && v.s == string(e.Resource.ID) && v.typ == string(e.Resource.Type)
}

// idAttribute is the attribute of a resource that stands for itself.
const idAttribute = "id"

// attribute returns an attribute of an entity.
func (e *Env) attribute(v value, name string) (value, bool) {
	if e.itself(v) {
		return value{kind: kindString, s: v.s}, name == idAttribute
	}
	found, ok := e.get(v.uid())
	if !ok {
		return value{}, false
	}
	got, ok := found.Attributes.Get(types.String(name))
	return valueOf(got), ok
}

// tag returns a tag of an entity.
func (e *Env) tag(v value, name string) (value, bool) {
	if e.itself(v) {
		return value{}, false
	}
	found, ok := e.get(v.uid())
	if !ok {
		return value{}, false
	}
	got, ok := found.Tags.Get(types.String(name))
	return valueOf(got), ok
}

// in reports whether an entity is, or is in, one of others.
func (e *Env) in(v value, others []types.EntityUID) bool {
	uid := v.uid()
	for _, o := range others {
		if o == uid {
			return true
		}
	}
	if e.itself(v) {
		return false
	}
	found, ok := e.get(uid)
	if !ok || found.Parents.Len() == 0 {
		return false
	}
	for _, o := range others {
		if found.Parents.Contains(o) {
			return true
		}
	}
	for parent := range found.Parents.All() {
		if above, ok := e.get(parent); ok && above.Parents.Len() > 0 {
			return e.inAncestors(uid, others)
		}
	}
	return false
}

func (e *Env) inAncestors(uid types.EntityUID, others []types.EntityUID) bool {
	for _, a := range Ancestors(e.Entities, uid) {
		for _, o := range others {
			if a == o {
				return true
			}
		}
	}
	return false
}

// truth is what a condition comes to.
type truth uint8

const (
	isFalse truth = iota
	isTrue
	isError // it cannot be evaluated, or is no bool
)

func truthOf(b bool) truth {
	if b {
		return isTrue
	}
	return isFalse
}

// test computes a condition.
func (n *node) test(e *Env) truth {
	switch n.op {
	case opAnd:
		if t := n.a.test(e); t != isTrue {
			return t
		}
		return n.b.test(e)
	case opOr:
		if t := n.a.test(e); t != isFalse {
			return t
		}
		return n.b.test(e)
	case opNot:
		switch n.a.test(e) {
		case isTrue:
			return isFalse
		case isFalse:
			return isTrue
		}
		return isError
	case opIf:
		switch n.a.test(e) {
		case isTrue:
			return n.b.test(e)
		case isFalse:
			return n.c.test(e)
		}
		return isError
	case opEqual:
		return n.testEqual(e)
	case opNotEqual:
		switch n.testEqual(e) {
		case isTrue:
			return isFalse
		case isFalse:
			return isTrue
		}
		return isError
	case opLess, opLessOrEqual, opGreater, opGreaterOrEqual:
		return n.testCompare(e)
	case opDecimalLess, opDecimalLessOrEqual, opDecimalGreater, opDecimalGreaterOrEqual:
		return n.testDecimals(e)
	case opHas:
		return n.testHas(e)
	case opHasTag:
		_, t := n.tag(e)
		return t
	case opLike:
		v := n.a.eval(e)
		if v.kind != kindString {
			return isError
		}
		return truthOf(n.like.match(v.s))
	case opIs:
		v := n.a.eval(e)
		if v.kind != kindEntity {
			return isError
		}
		return truthOf(v.typ == n.text)
	case opIn, opIsIn:
		return n.testIn(e)
	case opContains, opContainsAll, opContainsAny:
		return n.testContains(e)
	case opIsEmpty:
		return n.testEmpty(e)
	}
	v := n.eval(e)
	if v.kind != kindBool {
		return isError
	}
	return truth(v.n)
}

// eval computes n. The result's kind is kindError if it cannot be.
func (n *node) eval(e *Env) value {
	switch n.op {
	case opConst:
		return n.value
	case opPrincipal:
		return entity(e.Principal)
	case opAction:
		return entity(e.Action)
	case opResource:
		return entity(e.Resource)
	case opContext:
		return e.context()
	case opAccess:
		return n.evalAccess(e)
	case opGetTag:
		v, _ := n.tag(e)
		return v
	case opIf:
		switch n.a.test(e) {
		case isTrue:
			return n.b.eval(e)
		case isFalse:
			return n.c.eval(e)
		}
		return value{}
	case opAdd, opSubtract, opMultiply, opNegate:
		return n.evalArithmetic(e)
	case opSet, opRecord, opCall:
		return n.evalMaking(e)
	}
	switch n.test(e) {
	case isTrue:
		return value{kind: kindBool, n: 1}
	case isFalse:
		return value{kind: kindBool}
	}
	return value{}
}

func (e *Env) context() value {
	switch {
	case e.Fields != nil:
		return value{kind: kindRawRecord, v: e.Fields}
	case e.Context == nil:
		return value{kind: kindRecord, v: types.Record{}}
	}
	return valueOf(e.Context)
}

func (n *node) evalAccess(e *Env) value {
	switch {
	case n.path != nil && e.Fields != nil:
		fields := e.Fields
		last := len(n.path) - 1
		for _, name := range n.path[:last] {
			var ok bool
			if fields, ok = fields[name].(map[string]any); !ok {
				return value{}
			}
		}
		return raw(fields[n.path[last]])
	case n.a.op == opResource && e.Itself:
		if n.text == idAttribute {
			return value{kind: kindString, s: string(e.Resource.ID)}
		}
		return value{}
	}
	v, _ := n.field(e, n.a.eval(e))
	return v
}

func (n *node) testEqual(e *Env) truth {
	v := n.a.eval(e)
	if v.kind == kindError {
		return isError
	}
	if n.b.op == opConst && v.kind == kindString {
		return truthOf(n.b.value.kind == kindString && v.s == n.b.value.s)
	}
	w := n.b.eval(e)
	if w.kind == kindError {
		return isError
	}
	return truthOf(v.equal(w))
}

// field returns the attribute of v that n names, and whether there is one. The
// value is an error if there is none.
func (n *node) field(e *Env, v value) (value, bool) {
	switch v.kind {
	case kindRawRecord:
		item := v.v.(map[string]any)[n.text]
		return raw(item), item != nil
	case kindRecord:
		item, ok := v.v.(types.Record).Get(types.String(n.text))
		return valueOf(item), ok
	case kindEntity:
		if item, ok := e.attribute(v, n.text); ok {
			return item, true
		}
	}
	return value{}, false
}

func (n *node) testHas(e *Env) truth {
	v := n.a.eval(e)
	switch v.kind {
	case kindRawRecord, kindRecord, kindEntity:
		_, ok := n.field(e, v)
		return truthOf(ok)
	}
	return isError
}

// tag returns the tag that n names, and whether there is one.
func (n *node) tag(e *Env) (value, truth) {
	v := n.a.eval(e)
	if v.kind != kindEntity {
		return value{}, isError
	}
	name := n.b.eval(e)
	if name.kind != kindString {
		return value{}, isError
	}
	got, ok := e.tag(v, name.s)
	return got, truthOf(ok)
}

func (n *node) testIn(e *Env) truth {
	v := n.a.eval(e)
	if v.kind != kindEntity {
		return isError
	}
	if n.op == opIsIn && v.typ != n.text {
		return truthOf(false)
	}
	if n.entities != nil {
		return truthOf(e.in(v, n.entities))
	}
	switch w := n.b.eval(e); w.kind {
	case kindEntity:
		one := [1]types.EntityUID{w.uid()}
		return truthOf(e.in(v, one[:]))
	case kindSet, kindRawSet:
		if others := entitiesOf(w.boxed().(types.Set)); others != nil {
			return truthOf(e.in(v, others))
		}
	}
	return isError
}

func (n *node) testCompare(e *Env) truth {
	v, w := n.a.eval(e), n.b.eval(e)
	if v.kind == kindLong && w.kind == kindLong {
		switch n.op {
		case opLess:
			return truthOf(v.n < w.n)
		case opLessOrEqual:
			return truthOf(v.n <= w.n)
		case opGreater:
			return truthOf(v.n > w.n)
		default:
			return truthOf(v.n >= w.n)
		}
	}
	if v.kind != kindOther || w.kind != kindOther {
		return isError
	}
	result, err := compareNative(n.op, v.boxed(), w.boxed())
	if err != nil {
		return isError
	}
	return truthOf(result == types.True)
}

func (n *node) testDecimals(e *Env) truth {
	v, w := n.a.eval(e), n.b.eval(e)
	if v.kind != kindDecimal || w.kind != kindDecimal {
		return isError
	}
	switch n.op {
	case opDecimalLess:
		return truthOf(v.n < w.n)
	case opDecimalLessOrEqual:
		return truthOf(v.n <= w.n)
	case opDecimalGreater:
		return truthOf(v.n > w.n)
	default:
		return truthOf(v.n >= w.n)
	}
}

func (n *node) evalArithmetic(e *Env) value {
	v := n.a.eval(e)
	if v.kind != kindLong {
		return value{}
	}
	x, y := v.n, int64(0)
	if n.op != opNegate {
		w := n.b.eval(e)
		if w.kind != kindLong {
			return value{}
		}
		y = w.n
	}
	var r int64
	var ok bool
	switch n.op {
	case opAdd:
		r = x + y
		ok = (r > x) == (y > 0)
	case opSubtract:
		r = x - y
		ok = (r > x) == (y < 0)
	case opMultiply:
		r = x * y
		ok = x == 0 || y == 0 || (r < 0) == ((x < 0) != (y < 0)) && r/x == y
	default:
		r = -x
		ok = x != -1<<63
	}
	if !ok {
		return value{}
	}
	return value{kind: kindLong, n: r}
}

func (n *node) testContains(e *Env) truth {
	v := n.a.eval(e)
	if v.kind != kindSet && v.kind != kindRawSet {
		return isError
	}
	w := n.b.eval(e)
	if n.op == opContains {
		if w.kind == kindError {
			return isError
		}
		return truthOf(setContains(v, n.a.members, w))
	}
	if w.kind != kindSet && w.kind != kindRawSet {
		return isError
	}
	if large(v) && large(w) { // or the two loops below are quadratic
		v = value{kind: kindSet, v: v.boxed()}
	}
	if n.op == opContainsAll {
		return truthOf(everyItem(w, func(item value) bool { return setContains(v, n.a.members, item) }))
	}
	// Whichever is written in the policy is the one to look in.
	if n.b.members != nil {
		return truthOf(!everyItem(v, func(item value) bool { return !setContains(w, n.b.members, item) }))
	}
	return truthOf(!everyItem(w, func(item value) bool { return !setContains(v, n.a.members, item) }))
}

// large reports whether v is a set of a context that is better looked up by hash.
func large(v value) bool {
	const many = 16
	items, ok := v.v.([]any)
	return ok && len(items) > many
}

// setContains reports whether a set contains w. m are its members if it is
// written in a policy, else nil.
func setContains(set value, m *members, w value) bool {
	if m != nil {
		return m.contains(w)
	}
	if items, ok := set.v.([]any); ok {
		for _, item := range items {
			if item != nil && raw(item).equal(w) {
				return true
			}
		}
		return false
	}
	return set.v.(types.Set).Contains(w.boxed())
}

// everyItem reports whether f holds for every item of a set.
func everyItem(set value, f func(value) bool) bool {
	if items, ok := set.v.([]any); ok {
		for _, item := range items {
			if item != nil && !f(raw(item)) {
				return false
			}
		}
		return true
	}
	for item := range set.v.(types.Set).All() {
		if !f(valueOf(item)) {
			return false
		}
	}
	return true
}

func (n *node) testEmpty(e *Env) truth {
	switch v := n.a.eval(e); v.kind {
	case kindSet:
		return truthOf(v.v.(types.Set).Len() == 0)
	case kindRawSet:
		return truthOf(everyItem(v, func(value) bool { return false }))
	}
	return isError
}

// evalMaking computes what needs memory: sets and records that are not constant,
// and functions of extensions.
func (n *node) evalMaking(e *Env) value {
	args := make([]types.Value, len(n.args))
	for i, a := range n.args {
		v := a.eval(e)
		if v.kind == kindError {
			return value{}
		}
		args[i] = v.boxed()
	}
	switch n.op {
	case opSet:
		return value{kind: kindSet, v: types.NewSet(args...)}
	case opRecord:
		fields := make(types.RecordMap, len(args))
		for i, name := range n.names {
			fields[name] = args[i]
		}
		return value{kind: kindRecord, v: types.NewRecord(fields)}
	}
	result, err := callNative(n.call, args)
	if err != nil {
		return value{}
	}
	return valueOf(result)
}
