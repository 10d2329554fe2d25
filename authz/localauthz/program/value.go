package program

import (
	"fmt"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
)

// kind is the type of a value.
type kind uint8

const (
	kindError kind = iota // what cannot be evaluated
	kindBool
	kindLong
	kindDecimal // n is in ten-thousandths
	kindString
	kindEntity
	kindSet
	kindRecord
	kindOther     // of an extension but decimal
	kindRawSet    // []any of a request's context
	kindRawRecord // map[string]any of a request's context
)

// value is a Cedar value that needs no memory of its own. The zero value is an
// error. It fits into the registers that Go returns results in.
type value struct {
	kind kind
	n    int64  // of a bool, long or decimal
	s    string // of a string; an entity's id
	typ  string // of an entity
	v    any    // types.Set, types.Record, another types.Value, []any, map[string]any
}

func boolean(b bool) value {
	if b {
		return value{kind: kindBool, n: 1}
	}
	return value{kind: kindBool}
}

func entity(uid types.EntityUID) value {
	return value{kind: kindEntity, s: string(uid.ID), typ: string(uid.Type)}
}

func (v value) uid() types.EntityUID {
	return types.EntityUID{Type: types.EntityType(v.typ), ID: types.String(v.s)}
}

// decimalPlaces and decimalUnit are Cedar's: a decimal has four places.
const (
	decimalPlaces = 4
	decimalUnit   = 10_000
)

// valueOf returns the value of one of cedar-go's.
func valueOf(v types.Value) value {
	switch v := v.(type) {
	case types.Boolean:
		return boolean(bool(v))
	case types.Long:
		return value{kind: kindLong, n: int64(v)}
	case types.String:
		return value{kind: kindString, s: string(v)}
	case types.EntityUID:
		return entity(v)
	case types.Set:
		return value{kind: kindSet, v: v}
	case types.Record:
		return value{kind: kindRecord, v: v}
	case types.Decimal:
		// cedar-go shows a decimal's value in its text alone.
		n, ok := parseDecimal(v.String())
		if !ok {
			panic(fmt.Sprintf("a decimal reads %q", v))
		}
		return value{kind: kindDecimal, n: n}
	case nil:
		return value{}
	default:
		return value{kind: kindOther, v: v}
	}
}

// boxed returns v as one of cedar-go's; nil for an error.
func (v value) boxed() types.Value {
	switch v.kind {
	case kindBool:
		return types.Boolean(v.n == 1)
	case kindLong:
		return types.Long(v.n)
	case kindDecimal:
		d, err := types.NewDecimal(v.n, -decimalPlaces)
		if err != nil {
			panic(err) // every int64 of ten-thousandths is a decimal
		}
		return d
	case kindString:
		return types.String(v.s)
	case kindEntity:
		return v.uid()
	case kindSet, kindRecord, kindOther:
		return v.v.(types.Value)
	case kindRawSet, kindRawRecord:
		return toValue(v.v)
	}
	return nil
}

// equal is Cedar's ==: values of different types differ. Neither may be an
// error.
func (v value) equal(w value) bool {
	if v.kind == w.kind {
		switch v.kind {
		case kindBool, kindLong, kindDecimal:
			return v.n == w.n
		case kindString:
			return v.s == w.s
		case kindEntity:
			return v.s == w.s && v.typ == w.typ
		}
	}
	if v.scalar() || w.scalar() {
		return false
	}
	return v.boxed().Equal(w.boxed())
}

// scalar reports whether v holds all of itself.
func (v value) scalar() bool { return v.kind <= kindEntity }

// member is a scalar as the key of a map.
type member struct {
	kind kind
	n    int64
	s    string
	typ  string
}

// members are those of a set that is written in a policy.
type members struct {
	scalars map[member]struct{}
	others  []types.Value
}

func membersOf(s types.Set) *members {
	m := &members{scalars: make(map[member]struct{}, s.Len())}
	for item := range s.All() {
		v := valueOf(item)
		if v.scalar() {
			m.scalars[member{v.kind, v.n, v.s, v.typ}] = struct{}{}
		} else {
			m.others = append(m.others, item)
		}
	}
	return m
}

func (m *members) contains(v value) bool {
	if v.scalar() {
		_, ok := m.scalars[member{v.kind, v.n, v.s, v.typ}]
		return ok
	}
	if len(m.others) == 0 {
		return false
	}
	boxed := v.boxed()
	for _, other := range m.others {
		if other.Equal(boxed) {
			return true
		}
	}
	return false
}

// parseDecimal reads a decimal as types.ParseDecimal does, without allocating.
func parseDecimal[T string | []byte](text T) (int64, bool) {
	point := -1
	for i := range len(text) {
		if text[i] == '.' {
			point = i
			break
		}
	}
	if point < 0 {
		return 0, false
	}
	whole, ok := parseLong(text[:point])
	fraction := text[point+1:]
	if !ok || len(fraction) == 0 || len(fraction) > decimalPlaces {
		return 0, false
	}
	var n int64
	for i := range decimalPlaces {
		n *= 10
		if i < len(fraction) {
			c := fraction[i]
			if c < '0' || c > '9' {
				return 0, false
			}
			n += int64(c - '0')
		}
	}
	if text[0] == '-' {
		n = -n
	}
	const most = (1<<63 - 1) / decimalUnit
	if whole > most || whole < -most || whole == most && n > (1<<63-1)%decimalUnit || whole == -most && n < -((1<<63-1)%decimalUnit)-1 {
		return 0, false
	}
	return whole*decimalUnit + n, true
}

// parseLong reads an integer as strconv.ParseInt does in base 10, without
// allocating.
func parseLong[T string | []byte](text T) (int64, bool) {
	digits, negative := text, false
	if len(text) > 0 && (text[0] == '-' || text[0] == '+') {
		digits, negative = text[1:], text[0] == '-'
	}
	if len(digits) == 0 {
		return 0, false
	}
	var n uint64
	for i := range len(digits) {
		c := digits[i]
		if c < '0' || c > '9' || n > (1<<63)/10 {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
		if n > 1<<63 {
			return 0, false
		}
	}
	switch {
	case negative:
		return -int64(n), true // 1<<63 is its own negative
	case n == 1<<63:
		return 0, false
	}
	return int64(n), true
}

// validText returns s as Cedar holds strings.
func validText(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
