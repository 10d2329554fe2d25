package provider

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"creto.dev/inference"
)

// object reads the fields of one JSON object, each by its exact name: unlike
// encoding/json's structs, which also take a name in another case. The first
// mistake is kept in err, and what was not read is the object's Extra.
type object struct {
	// path is where it is in what is read; or, to be put together only for a
	// message, it is below above, in a field and, from 1 on, at a place in its list.
	path  string
	above *object
	name  string
	nth   int

	text   []byte
	fields []field
	taken  []string
	err    error
	made   *objects // where those below come from; nil for new ones
	place  int      // in made, plus 1; 0 if it is not from there

	// For the fields and names of most objects.
	fieldSpace [8]field
	takenSpace [16]string
}

// field is where one of an object is in its text. Of texts in memory, which are
// bounded to much less, 2 GiB can be told.
type field struct {
	name, nameEnd   int32 // with quotes
	value, valueEnd int32
	escaped         bool // there are escapes in the name
	taken           bool
}

func (o *object) value(f *field) json.RawMessage {
	return json.RawMessage(o.text[f.value:f.valueEnd:f.valueEnd])
}

func (o *object) nameOf(f *field) string { return unquoted(o.text[f.name:f.nameEnd]) }

// is reports whether a field has a name.
func (o *object) is(f *field, name string) bool {
	if f.escaped {
		return o.nameOf(f) == name
	}
	return string(o.text[f.name+1:f.nameEnd-1]) == name
}

// objects are used again: for one value of a list after the other and, in a stream,
// for one text after the other.
type objects struct {
	all   []*object
	used  int
	first [4]object // as many as most texts need at a time
}

// maxObjects bounds what is kept: more than nearly all texts of a stream have.
const maxObjects = 16

// take returns an empty object, which is valid until all are given back.
func (m *objects) take() *object {
	if m == nil || m.used == maxObjects {
		return &object{made: m}
	}
	if m.used == len(m.all) {
		if m.used < len(m.first) {
			m.all = append(m.all, &m.first[m.used])
		} else {
			m.all = append(m.all, &object{})
		}
	}
	o := m.all[m.used]
	m.used++
	*o = object{made: m, place: m.used}
	return o
}

// done gives an object back, and those that were taken after it.
func (o *object) done() {
	if o.place > 0 {
		o.made.used = o.place - 1
	}
}

// parse reads the next text, as parseObject does. Those of the one before are no
// longer valid.
func (m *objects) parse(raw []byte) *object {
	m.used = 0
	return m.take().parse(raw)
}

// parseObject reads raw, which must be one object. Of a name that is there
// twice, the last counts.
func parseObject(raw []byte, path string) *object {
	o := &object{path: path}
	return o.parse(raw)
}

func (o *object) parse(raw []byte) *object {
	switch {
	case !utf8.Valid(raw):
		o.fail("", "not UTF-8")
	case len(raw) > math.MaxInt32 || !validJSON(raw):
		o.fail("", "expected an object")
	default:
		o.split(raw)
	}
	return o
}

// below reads a value of o that must be an object: of a field, or if nth is not 0 of
// a list there.
func (o *object) below(name string, nth int, raw []byte) *object {
	made := o.made.take()
	made.above, made.name, made.nth = o, name, nth
	made.split(raw)
	return made
}

// split finds the fields in a valid text.
func (o *object) split(raw []byte) {
	o.text, o.fields, o.taken = raw, o.fieldSpace[:0], o.takenSpace[:0]
	i := blanks(raw, 0)
	if raw[i] != '{' {
		o.fail("", "expected an object")
		return
	}
	for i = blanks(raw, i+1); raw[i] != '}'; {
		end := endOfValue(raw, i)
		f := field{name: int32(i), nameEnd: int32(end), escaped: bytes.IndexByte(raw[i:end], '\\') >= 0}
		i = blanks(raw, blanks(raw, end)+1) // past the colon
		end = endOfValue(raw, i)
		f.value, f.valueEnd = int32(i), int32(end)
		o.fields = append(o.fields, f)
		if i = blanks(raw, end); raw[i] == ',' {
			i = blanks(raw, i+1)
		}
	}
}

// blanks returns where white space from i on ends.
func blanks(raw []byte, i int) int {
	for i < len(raw) && raw[i] <= ' ' {
		i++
	}
	return i
}

// endOfValue returns where the value that begins at i in a valid text ends.
func endOfValue(raw []byte, i int) int {
	depth := 0
	for ; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			i = untilSpecial(raw, i+1)
			for raw[i] != '"' { // a backslash, and what it escapes
				i = untilSpecial(raw, i+2)
			}
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth < 0 {
				return i // of what holds a number or a name
			}
			if depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
	return i
}

// unquoted returns the text of a valid string.
func unquoted(raw []byte) string {
	if inside := raw[1 : len(raw)-1]; bytes.IndexByte(inside, '\\') < 0 {
		return string(inside)
	}
	var s string
	_ = json.Unmarshal(raw, &s) // it is valid
	return s
}

func (o *object) fail(name, format string, args ...any) {
	if o.err == nil {
		o.err = fmt.Errorf("%s: %s", o.at(name), fmt.Sprintf(format, args...))
	}
}

// at is the path of a field, for messages.
func (o *object) at(name string) string {
	path := strings.Trim(o.placeName()+"."+name, ".")
	if path == "" {
		return "body"
	}
	return path
}

func (o *object) placeName() string {
	if o.above == nil {
		return o.path
	}
	path := strings.Trim(o.above.placeName()+"."+o.name, ".")
	if o.nth > 0 {
		path += fmt.Sprintf("[%d]", o.nth-1)
	}
	return path
}

// peek returns a field without taking it; nil if it is absent.
func (o *object) peek(name string) json.RawMessage {
	for i := len(o.fields) - 1; i >= 0; i-- {
		if f := &o.fields[i]; !f.taken && o.is(f, name) {
			return o.value(f)
		}
	}
	return nil
}

// raw takes a field; nil if it is absent or null.
func (o *object) raw(name string) json.RawMessage {
	o.taken = append(o.taken, name)
	var value json.RawMessage
	for i := range o.fields {
		if f := &o.fields[i]; !f.taken && o.is(f, name) {
			value, f.taken = o.value(f), true
		}
	}
	if string(value) == "null" {
		return nil
	}
	return value
}

// into takes a field into v, if it is there.
func (o *object) into(name string, v any, want string) {
	if raw := o.raw(name); raw != nil {
		if err := json.Unmarshal(raw, v); err != nil {
			o.fail(name, "expected %s", want)
		}
	}
}

func (o *object) str(name string) string {
	raw := o.raw(name)
	switch {
	case raw == nil:
		return ""
	case raw[0] != '"':
		o.fail(name, "expected a string")
		return ""
	}
	return unquoted(raw)
}

// word takes a string of which there are few: those in use cost no memory.
func (o *object) word(name string) string {
	if raw := o.peek(name); len(raw) > 2 && raw[0] == '"' {
		for _, known := range words {
			if string(raw[1:len(raw)-1]) == known {
				o.raw(name)
				return known
			}
		}
	}
	return o.str(name)
}

// words are the roles, types and ends of answers that most messages have.
var words = [...]string{"user", "assistant", "system", "tool", functionType, "text", "stop", "tool_calls"}

// strIf takes a field if it is a string; another value stays in the rest.
func (o *object) strIf(name string) (string, bool) {
	if value := o.peek(name); len(value) == 0 || value[0] != '"' {
		return "", false
	}
	return o.str(name), true
}

// flag takes true or false; nil if it is not there.
func (o *object) flag(name string) *bool {
	raw := o.raw(name)
	if raw == nil {
		return nil
	}
	b := string(raw) == "true"
	if !b && string(raw) != "false" {
		o.fail(name, "expected true or false")
	}
	return &b
}

func (o *object) boolean(name string) bool {
	b := o.flag(name)
	return b != nil && *b
}

func (o *object) integer(name string) int64 {
	text := o.number(name)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		o.fail(name, "expected a whole number")
	}
	return n
}

// number takes a number as the text that it was written in.
func (o *object) number(name string) string {
	raw := o.raw(name)
	if raw == nil {
		return ""
	}
	if c := raw[0]; c != '-' && (c < '0' || c > '9') {
		o.fail(name, "expected a number")
		return ""
	}
	return string(raw)
}

// object takes a field that is an object; nil if it is not there.
func (o *object) object(name string) *object {
	raw := o.raw(name)
	if raw == nil {
		return nil
	}
	return o.below(name, 0, raw)
}

// list takes a field that is a list.
func (o *object) list(name string) []json.RawMessage {
	raw := o.raw(name)
	if raw == nil {
		return nil
	}
	items, ok := itemsOf(raw)
	if !ok {
		o.fail(name, "expected a list")
	}
	return items
}

// itemsOf returns the values of a valid text if it is a list.
func itemsOf(raw []byte) (items []json.RawMessage, ok bool) {
	if raw[0] != '[' {
		return nil, false
	}
	items = make([]json.RawMessage, 0, 8)
	for i := blanks(raw, 1); raw[i] != ']'; {
		end := endOfValue(raw, i)
		items = append(items, json.RawMessage(raw[i:end:end]))
		if i = blanks(raw, end); raw[i] == ',' {
			i = blanks(raw, i+1)
		}
	}
	return items, true
}

// left returns what was not taken; nil if all was.
func (o *object) left() map[string]json.RawMessage {
	var left map[string]json.RawMessage
	for i := range o.fields {
		if f := &o.fields[i]; !f.taken {
			if left == nil {
				left = make(map[string]json.RawMessage)
			}
			left[o.nameOf(f)] = o.value(f)
		}
	}
	return left
}

// rest returns what was not taken, and the first mistake. A name that some
// reader takes for a known one (Go's own does) is a mistake: the provider could
// act on a field that policy did not see.
func (o *object) rest() (inference.Extra, error) {
	left := o.left()
	for name := range left {
		for _, known := range o.taken {
			if strings.EqualFold(name, known) {
				o.fail(name, "written %q", known)
			}
		}
	}
	if o.err != nil {
		return nil, o.err
	}
	return left, nil
}
