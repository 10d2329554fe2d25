package program

import (
	"slices"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/eval"

	"creto.dev/fault"
)

// op is what a node computes.
type op uint8

const (
	opConst op = iota
	opPrincipal
	opAction
	opResource
	opContext
	opAccess
	opHas
	opGetTag
	opHasTag
	opLike
	opIf
	opIs
	opIsIn
	opIn
	opAnd
	opOr
	opNot
	opEqual
	opNotEqual
	opLess
	opLessOrEqual
	opGreater
	opGreaterOrEqual
	opAdd
	opSubtract
	opMultiply
	opNegate
	opContains
	opContainsAll
	opContainsAny
	opIsEmpty
	opDecimalLess
	opDecimalLessOrEqual
	opDecimalGreater
	opDecimalGreaterOrEqual
	opSet
	opRecord
	opCall
)

// node is one operation of a condition, with those that its operands come from.
// It is immutable once compiled.
type node struct {
	op       op
	a, b, c  *node
	text     string // an attribute's name, or an entity type
	value    value  // of opConst
	members  *members
	entities []types.EntityUID // of opIn and opIsIn in a written set
	path     []string          // of opAccess, if it reads the context: the names down to it
	like     pattern
	args     []*node
	names    []types.String // of the arguments of opRecord
	call     types.Path     // the function of opCall
}

// variables says what a condition depends on.
type variables uint8

const (
	readsPrincipal variables = 1 << iota
	readsContext
	readsEntities // of attributes and hierarchy, but of the principal's and the resource's own
)

// maxDepth bounds how deep a condition is nested, in operators one after the other
// too, and so the stack of a check.
const maxDepth = 5000

// compile compiles an expression.
func compile(n ast.IsNode, depth int) (*node, error) {
	const op fault.Op = "program.compile"
	if depth > maxDepth {
		return nil, fault.New(op, fault.InvalidArgument, "it is nested more than %d deep", maxDepth)
	}
	made := &node{}
	var operands []ast.IsNode
	switch v := n.(type) {
	case ast.NodeValue:
		return constant(valueOf(v.Value)), nil
	case ast.NodeTypeVariable:
		return &node{op: variableOp(v.Name)}, nil
	case ast.NodeTypeAccess:
		made.op, made.text, operands = opAccess, string(v.Value), []ast.IsNode{v.Arg}
	case ast.NodeTypeHas:
		made.op, made.text, operands = opHas, string(v.Value), []ast.IsNode{v.Arg}
	case ast.NodeTypeGetTag:
		made.op, operands = opGetTag, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeHasTag:
		made.op, operands = opHasTag, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeLike:
		made.op, made.like, operands = opLike, newPattern(v.Value), []ast.IsNode{v.Arg}
	case ast.NodeTypeIfThenElse:
		made.op, operands = opIf, []ast.IsNode{v.If, v.Then, v.Else}
	case ast.NodeTypeIs:
		made.op, made.text, operands = opIs, string(v.EntityType), []ast.IsNode{v.Left}
	case ast.NodeTypeIsIn:
		made.op, made.text, operands = opIsIn, string(v.EntityType), []ast.IsNode{v.Left, v.Entity}
	case ast.NodeTypeIn:
		made.op, operands = opIn, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeAnd:
		made.op, operands = opAnd, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeOr:
		made.op, operands = opOr, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeNot:
		made.op, operands = opNot, []ast.IsNode{v.Arg}
	case ast.NodeTypeEquals:
		made.op, operands = opEqual, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeNotEquals:
		made.op, operands = opNotEqual, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeLessThan:
		made.op, operands = opLess, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeLessThanOrEqual:
		made.op, operands = opLessOrEqual, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeGreaterThan:
		made.op, operands = opGreater, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeGreaterThanOrEqual:
		made.op, operands = opGreaterOrEqual, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeAdd:
		made.op, operands = opAdd, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeSub:
		made.op, operands = opSubtract, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeMult:
		made.op, operands = opMultiply, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeNegate:
		made.op, operands = opNegate, []ast.IsNode{v.Arg}
	case ast.NodeTypeContains:
		made.op, operands = opContains, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeContainsAll:
		made.op, operands = opContainsAll, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeContainsAny:
		made.op, operands = opContainsAny, []ast.IsNode{v.Left, v.Right}
	case ast.NodeTypeIsEmpty:
		made.op, operands = opIsEmpty, []ast.IsNode{v.Arg}
	case ast.NodeTypeSet:
		made.op, operands = opSet, v.Elements
	case ast.NodeTypeRecord:
		made.op = opRecord
		for _, e := range v.Elements {
			made.names = append(made.names, e.Key)
			operands = append(operands, e.Value)
		}
	case ast.NodeTypeExtensionCall:
		made.op, made.call, operands = callOf(v), v.Name, v.Args
	default:
		return nil, fault.New(op, fault.Internal, "%T is no expression of Cedar", n)
	}
	for i, operand := range operands {
		compiled, err := compile(operand, depth+1)
		if err != nil {
			return nil, err
		}
		switch {
		case made.op == opSet || made.op == opRecord || made.op == opCall:
			made.args = append(made.args, compiled)
		case i == 0:
			made.a = compiled
		case i == 1:
			made.b = compiled
		default:
			made.c = compiled
		}
	}
	if made.op == opAccess {
		switch {
		case made.a.op == opContext:
			made.path = []string{made.text}
		case made.a.path != nil:
			made.path = append(slices.Clip(made.a.path), made.text)
		}
	}
	return fold(made), nil
}

// callOf returns the operation of a function: comparisons of decimals are native.
func callOf(call ast.NodeTypeExtensionCall) op {
	if len(call.Args) == 2 {
		switch call.Name {
		case "lessThan":
			return opDecimalLess
		case "lessThanOrEqual":
			return opDecimalLessOrEqual
		case "greaterThan":
			return opDecimalGreater
		case "greaterThanOrEqual":
			return opDecimalGreaterOrEqual
		}
	}
	return opCall
}

func variableOp(name types.String) op {
	switch name {
	case "principal":
		return opPrincipal
	case "action":
		return opAction
	case "resource":
		return opResource
	}
	return opContext
}

// reads returns what n depends on. Attributes of the resource that stands for
// itself are of the request.
func (n *node) reads() variables {
	var v variables
	switch n.op {
	case opPrincipal:
		v = readsPrincipal
	case opContext:
		v = readsContext
	case opIn, opIsIn, opGetTag, opHasTag:
		v = readsEntities
	case opAccess, opHas:
		if n.path == nil && n.a.path == nil && n.a.op != opContext && n.a.op != opResource {
			v = readsEntities
		}
	}
	for _, operand := range append([]*node{n.a, n.b, n.c}, n.args...) {
		if operand != nil {
			v |= operand.reads()
		}
	}
	return v
}

// beginnings adds to known the beginnings of the resource's id that n asks for;
// false if n asks for anything else.
func (n *node) beginnings(known []string) ([]string, bool) {
	switch n.op {
	case opConst:
		return known, true
	case opNot:
		return n.a.beginnings(known)
	case opAnd, opOr:
		known, ok := n.a.beginnings(known)
		if !ok {
			return known, false
		}
		return n.b.beginnings(known)
	case opLike:
		ofID := n.a.op == opAccess && n.a.a.op == opResource && n.a.text == idAttribute
		return append(known, n.like.prefix), ofID && n.like.isBeginning()
	}
	return known, false
}

// conjuncts returns the terms of n, all of which must hold in this order.
func (n *node) conjuncts() []*node {
	if n.op != opAnd {
		return []*node{n}
	}
	return append(n.a.conjuncts(), n.b.conjuncts()...)
}

func constant(v value) *node {
	n := &node{op: opConst, value: v}
	if set, ok := v.v.(types.Set); ok {
		n.members = membersOf(set)
	}
	return n
}

// fold computes now what depends on nothing, unless it is an error, and prepares
// what is written in sets.
func fold(n *node) *node {
	switch n.op {
	case opIn, opIsIn:
		if set, ok := n.b.value.v.(types.Set); n.b.op == opConst && ok {
			n.entities = entitiesOf(set)
		}
		return n
	case opGetTag, opHasTag:
		return n
	case opAccess, opHas:
		if n.a.value.kind == kindEntity {
			return n
		}
	}
	for _, operand := range append([]*node{n.a, n.b, n.c}, n.args...) {
		if operand != nil && operand.op != opConst {
			return n
		}
	}
	if v := n.eval(&Env{}); v.kind != kindError {
		return constant(v)
	}
	return n
}

// entitiesOf returns the members of a set of entities; nil if one is none.
func entitiesOf(s types.Set) []types.EntityUID {
	uids := make([]types.EntityUID, 0, s.Len())
	for item := range s.All() {
		uid, ok := item.(types.EntityUID)
		if !ok {
			return nil
		}
		uids = append(uids, uid)
	}
	return uids
}

// callNative is how cedar-go calls a function of an extension on values.
func callNative(name types.Path, args []types.Value) (types.Value, error) {
	call := ast.NodeTypeExtensionCall{Name: name, Args: make([]ast.IsNode, len(args))}
	for i, a := range args {
		call.Args[i] = ast.NodeValue{Value: a}
	}
	return eval.Eval(call, eval.Env{})
}

// compareNative compares values that are no integers, as cedar-go does.
func compareNative(o op, a, b types.Value) (types.Value, error) {
	operands := ast.BinaryNode{Left: ast.NodeValue{Value: a}, Right: ast.NodeValue{Value: b}}
	switch o {
	case opLess:
		return eval.Eval(ast.NodeTypeLessThan{BinaryNode: operands}, eval.Env{})
	case opLessOrEqual:
		return eval.Eval(ast.NodeTypeLessThanOrEqual{BinaryNode: operands}, eval.Env{})
	case opGreater:
		return eval.Eval(ast.NodeTypeGreaterThan{BinaryNode: operands}, eval.Env{})
	default:
		return eval.Eval(ast.NodeTypeGreaterThanOrEqual{BinaryNode: operands}, eval.Env{})
	}
}
