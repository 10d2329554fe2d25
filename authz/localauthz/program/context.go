package program

import (
	"encoding/json"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go/types"

	"creto.dev/fault"
)

// maxContextDepth bounds nested context.
const maxContextDepth = 16

// CheckContext reports whether policies can read a request's context: integers
// are Long, fractions decimal, null is dropped. It must be so before the context
// is in an [Env].
//
// Errors: AuthzInvalidRequest (Permanent).
func CheckContext(context map[string]any) error { return checkFields(context, 0) }

func checkFields(m map[string]any, depth int) error {
	for _, item := range m {
		if item == nil {
			continue
		}
		if err := checkItem(item, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func checkItem(item any, depth int) error {
	const op fault.Op = "program.CheckContext"
	if depth > maxContextDepth {
		return fault.New(op, fault.AuthzInvalidRequest, "the context is nested more than %d deep", maxContextDepth)
	}
	switch v := item.(type) {
	case string, bool, int, int64:
	case json.Number:
		if number(string(v)).kind == kindError {
			return notANumber(string(v))
		}
	case float64:
		if fraction(v).kind == kindError {
			return notANumber(strconv.FormatFloat(v, 'f', -1, 64))
		}
	case map[string]any:
		return checkFields(v, depth)
	case []any:
		for _, item := range v {
			if item == nil {
				continue
			}
			if err := checkItem(item, depth+1); err != nil {
				return err
			}
		}
	default:
		return fault.New(op, fault.AuthzInvalidRequest, "the context holds a %T, which policies cannot read", item)
	}
	return nil
}

func notANumber(text string) error {
	const op fault.Op = "program.CheckContext"
	return fault.New(op, fault.AuthzInvalidRequest, "the number %q is neither an integer of 64 bits nor a decimal of at most %d places", text, decimalPlaces)
}

// raw returns the value of what a context holds. It is an error for nil, and for
// what CheckContext refuses.
func raw(item any) value {
	switch v := item.(type) {
	case string:
		if !utf8.ValidString(v) {
			v = validText(v)
		}
		return value{kind: kindString, s: v}
	case bool:
		return boolean(v)
	case int:
		return value{kind: kindLong, n: int64(v)}
	case int64:
		return value{kind: kindLong, n: v}
	case json.Number:
		return number(string(v))
	case float64:
		return fraction(v)
	case map[string]any:
		return value{kind: kindRawRecord, v: item}
	case []any:
		return value{kind: kindRawSet, v: item}
	}
	return value{}
}

func number[T string | []byte](text T) value {
	if n, ok := parseLong(text); ok {
		return value{kind: kindLong, n: n}
	}
	if n, ok := parseDecimal(text); ok {
		return value{kind: kindDecimal, n: n}
	}
	return value{}
}

func fraction(f float64) value {
	if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return value{kind: kindLong, n: int64(f)}
	}
	var room [32]byte
	return number(strconv.AppendFloat(room[:0], f, 'f', -1, 64))
}

// toValue returns cedar-go's form of what a context holds.
func toValue(item any) types.Value {
	switch v := item.(type) {
	case map[string]any:
		fields := make(types.RecordMap, len(v))
		for name, item := range v {
			if item != nil {
				fields[types.String(name)] = toValue(item)
			}
		}
		return types.NewRecord(fields)
	case []any:
		items := make([]types.Value, 0, len(v))
		for _, item := range v {
			if item != nil {
				items = append(items, toValue(item))
			}
		}
		return types.NewSet(items...)
	}
	return raw(item).boxed()
}
