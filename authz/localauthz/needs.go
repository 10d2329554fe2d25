package localauthz

import (
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"creto.dev/authz/localauthz/program"
)

// needs says in words what it takes for a part of a policy's conditions to be as
// the policy has it, or not to be.
func needs(p clause, so bool) string {
	holds := so != p.unless
	if text := words(p.condition.Source(), holds); text != "" {
		return text
	}
	if !holds {
		return "this must not hold: " + oneLine(p.text)
	}
	return "this must hold: " + oneLine(p.text)
}

// words says that an expression must hold, or must not; "" if there are no
// better words than Cedar's.
func words(n ast.IsNode, holds bool) string {
	switch v := n.(type) {
	case ast.NodeTypeNot:
		return words(v.Arg, !holds)
	case ast.NodeTypeEquals:
		return compared(v.BinaryNode, holds, "", "")
	case ast.NodeTypeNotEquals:
		return compared(v.BinaryNode, !holds, "", "")
	case ast.NodeTypeLessThan:
		return ordered(v.BinaryNode, "<", holds)
	case ast.NodeTypeLessThanOrEqual:
		return ordered(v.BinaryNode, "<=", holds)
	case ast.NodeTypeGreaterThan:
		return ordered(v.BinaryNode, ">", holds)
	case ast.NodeTypeGreaterThanOrEqual:
		return ordered(v.BinaryNode, ">=", holds)
	case ast.NodeTypeLike:
		if name := pathText(v.Arg); name != "" {
			return name + must(holds) + "be like " + string(v.Value.MarshalCedar())
		}
	case ast.NodeTypeIn:
		return within(v.Left, v.Right, holds)
	case ast.NodeTypeHas:
		if name := pathText(v.Arg); name != "" {
			return name + must(holds) + "have " + string(v.Value)
		}
	case ast.NodeTypeContains:
		return contained(v.BinaryNode, holds)
	case ast.NodeTypeAccess:
		if name := pathText(v); name != "" {
			return name + " must be " + map[bool]string{true: "true", false: "false"}[holds]
		}
	case ast.NodeTypeExtensionCall:
		return called(v, holds)
	}
	return ""
}

func must(holds bool) string {
	if holds {
		return " must "
	}
	return " must not "
}

// pathText returns the name of what is read; "" if it is computed.
func pathText(n ast.IsNode) string {
	if _, has := n.(ast.NodeTypeHas); has {
		return ""
	}
	return strings.Join(program.PathOf(n), ".")
}

// constantText returns a value that is written in the policy; "" if it is none.
func constantText(n ast.IsNode) string {
	v, ok := n.(ast.NodeValue)
	if !ok {
		return ""
	}
	if uid, ok := v.Value.(types.EntityUID); ok {
		return strings.TrimPrefix(string(uid.MarshalCedar()), namespace)
	}
	return valueText(v.Value)
}

// compared says that a read value must be, or must not be, a written one.
func compared(b ast.BinaryNode, holds bool, verb, after string) string {
	left, right := b.Left, b.Right
	if pathText(left) == "" {
		left, right = right, left
	}
	name, value := pathText(left), constantText(right)
	if value == "" {
		value = pathText(right)
	}
	if name == "" || value == "" {
		return ""
	}
	return name + must(holds) + "be " + verb + value + after
}

// opposite are the comparisons that hold when the first do not, and mirrored
// those with the sides swapped.
var (
	opposite = map[string]string{"<": ">=", "<=": ">", ">": "<=", ">=": "<"}
	mirrored = map[string]string{"<": ">", "<=": ">=", ">": "<", ">=": "<="}
)

func ordered(b ast.BinaryNode, operator string, holds bool) string {
	if !holds {
		operator = opposite[operator]
	}
	if pathText(b.Left) == "" {
		b.Left, b.Right, operator = b.Right, b.Left, mirrored[operator]
	}
	return compared(b, true, operator+" ", "")
}

func within(left, right ast.IsNode, holds bool) string {
	name := pathText(left)
	value := constantText(right)
	if set, ok := right.(ast.NodeTypeSet); ok {
		var members []string
		for _, e := range set.Elements {
			text := constantText(e)
			if text == "" {
				return ""
			}
			members = append(members, text)
		}
		value = "one of " + strings.Join(members, ", ")
	}
	if name == "" || value == "" {
		return ""
	}
	return name + must(holds) + "be in " + value
}

func contained(b ast.BinaryNode, holds bool) string {
	if set := pathText(b.Left); set != "" && constantText(b.Right) != "" {
		return set + must(holds) + "contain " + constantText(b.Right)
	}
	set, ok := b.Left.(ast.NodeTypeSet)
	if !ok {
		return ""
	}
	text := within(b.Right, set, holds)
	return strings.Replace(text, "be in one of", "be one of", 1)
}

// decimalWords are the comparisons of decimals.
var decimalWords = map[types.Path]string{"lessThan": "<", "lessThanOrEqual": "<=", "greaterThan": ">", "greaterThanOrEqual": ">="}

func called(v ast.NodeTypeExtensionCall, holds bool) string {
	operator, ok := decimalWords[v.Name]
	if !ok || len(v.Args) != 2 {
		return ""
	}
	if !holds {
		operator = opposite[operator]
	}
	name, value := pathText(v.Args[0]), ""
	if call, ok := v.Args[1].(ast.NodeTypeExtensionCall); ok && call.Name == "decimal" && len(call.Args) == 1 {
		value = strings.Trim(constantText(call.Args[0]), `"`)
	}
	if name == "" || value == "" {
		return ""
	}
	return name + " must be " + operator + " " + value
}
