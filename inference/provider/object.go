package provider

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"creto.dev/inference"
)

// object reads the fields of one JSON object, each by its exact name: unlike
// encoding/json's structs, which also take a name in another case. The first
// mistake is kept in err, and what was not read is the object's Extra.
type object struct {
	path   string
	fields map[string]json.RawMessage
	taken  []string
	err    error
}

// parseObject reads raw, which must be one object. Of a name that is there
// twice, the last counts.
func parseObject(raw []byte, path string) *object {
	o := &object{path: path}
	if !utf8.Valid(raw) {
		o.fail("", "not UTF-8")
		return o
	}
	if err := json.Unmarshal(raw, &o.fields); err != nil || o.fields == nil {
		o.fields = nil
		o.fail("", "expected an object")
	}
	return o
}

func (o *object) fail(name, format string, args ...any) {
	if o.err == nil {
		o.err = fmt.Errorf("%s: %s", o.at(name), fmt.Sprintf(format, args...))
	}
}

// at is the path of a field, for messages.
func (o *object) at(name string) string {
	path := strings.Trim(o.path+"."+name, ".")
	if path == "" {
		return "body"
	}
	return path
}

// raw takes a field; nil if it is absent or null.
func (o *object) raw(name string) json.RawMessage {
	value := o.fields[name]
	delete(o.fields, name)
	o.taken = append(o.taken, name)
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
	var s string
	o.into(name, &s, "a string")
	return s
}

// strIf takes a field if it is a string; another value stays in the rest.
func (o *object) strIf(name string) (string, bool) {
	if value := o.fields[name]; len(value) == 0 || value[0] != '"' {
		return "", false
	}
	return o.str(name), true
}

// flag takes true or false; nil if it is not there.
func (o *object) flag(name string) *bool {
	var b *bool
	o.into(name, &b, "true or false")
	return b
}

func (o *object) boolean(name string) bool {
	var b bool
	o.into(name, &b, "true or false")
	return b
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
	return parseObject(raw, o.at(name))
}

// list takes a field that is a list.
func (o *object) list(name string) []json.RawMessage {
	var items []json.RawMessage
	o.into(name, &items, "a list")
	return items
}

// rest returns what was not taken, and the first mistake. A name that some
// reader takes for a known one (Go's own does) is a mistake: the provider could
// act on a field that policy did not see.
func (o *object) rest() (inference.Extra, error) {
	for name := range o.fields {
		for _, known := range o.taken {
			if strings.EqualFold(name, known) {
				o.fail(name, "written %q", known)
			}
		}
	}
	if o.err != nil || len(o.fields) == 0 {
		return nil, o.err
	}
	return o.fields, nil
}

// fields collects the fields of an object to write. Known ones replace those of
// Extra, so that what was decided on is what is sent.
type fields map[string]any

func fieldsOf(extra inference.Extra) fields {
	f := make(fields, len(extra)+8)
	for name, raw := range extra {
		f[name] = raw
	}
	return f
}

// text sets a field unless it is empty.
func (f fields) text(name, value string) {
	if value != "" {
		f[name] = value
	} else {
		delete(f, name)
	}
}

// raw sets a field unless it is absent.
func (f fields) raw(name string, value json.RawMessage) {
	if value != nil {
		f[name] = value
	} else {
		delete(f, name)
	}
}

// flag sets a field unless it is absent.
func (f fields) flag(name string, value *bool) {
	if value != nil {
		f[name] = *value
	} else {
		delete(f, name)
	}
}

// encode writes v on one line, with < and > as they are.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
