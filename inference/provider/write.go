package provider

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"unicode/utf8"

	"creto.dev/inference"
)

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

// encode writes v on one line, with < and > as they are, and names in order.
func encode(v any) ([]byte, error) {
	return appendJSON(make([]byte, 0, roomFor(v)), v)
}

// roomFor returns about how long a text gets; a little more than most do.
func roomFor(v any) int {
	room := 8
	switch v := v.(type) {
	case string:
		room += len(v) + len(v)/16
	case json.RawMessage:
		room += len(v)
	case fields:
		for name, value := range v {
			room += len(name) + roomFor(value)
		}
	case []fields:
		for _, f := range v {
			room += roomFor(f)
		}
	default:
		room += 16
	}
	return room
}

// appendJSON writes what [fields] hold as encoding/json does, which it leaves the
// rest to: that finds out by reflection what each value is.
func appendJSON(b []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(b, "null"...), nil
	case string:
		return appendText(b, v), nil
	case bool:
		return strconv.AppendBool(b, v), nil
	case int:
		return strconv.AppendInt(b, int64(v), 10), nil
	case int64:
		return strconv.AppendInt(b, v, 10), nil
	case json.RawMessage:
		if v == nil {
			return append(b, "null"...), nil
		}
		return appendCompact(b, v)
	case fields:
		return appendObject(b, v)
	case map[string]any:
		return appendObject(b, v)
	case []fields:
		return appendList(b, v)
	case []any:
		return appendList(b, v)
	}
	w := bytes.NewBuffer(b)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(w.Bytes(), []byte("\n")), nil
}

// appendCompact writes a JSON text without its white space.
func appendCompact(b []byte, text json.RawMessage) ([]byte, error) {
	if !validJSON(text) {
		w := bytes.NewBuffer(b)
		err := json.Compact(w, text) // which says what is wrong
		return w.Bytes(), err
	}
	begin := 0 // of what is not written yet
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			i = endOfValue(text, i) - 1
		case ' ', '\n', '\t', '\r':
			b = append(b, text[begin:i]...)
			begin = i + 1
		}
	}
	return append(b, text[begin:]...), nil
}

func appendObject(b []byte, f map[string]any) ([]byte, error) {
	if f == nil {
		return append(b, "null"...), nil
	}
	var space [16]string
	names := space[:0]
	for name := range f {
		names = append(names, name)
	}
	slices.Sort(names)
	b = append(b, '{')
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendText(b, name), ':')
		var err error
		if b, err = appendJSON(b, f[name]); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendList[T any](b []byte, items []T) ([]byte, error) {
	if items == nil {
		return append(b, "null"...), nil
	}
	b = append(b, '[')
	for i, item := range items {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendJSON(b, item); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

// appendText writes a JSON string. What few texts hold is left to encoding/json.
func appendText(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	begin := len(b)
	b = append(b, '"')
	plain := 0
	for i := 0; i < len(s); i++ {
		for ; len(s)-i >= 8; i += 8 { // most are nothing but letters
			word := eight(s[i:])
			if special(word) != 0 || word&high != 0 {
				break
			}
		}
		if i == len(s) {
			break
		}
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 || r == '\u2028' || r == '\u2029' {
				w := bytes.NewBuffer(b[:begin])
				e := json.NewEncoder(w)
				e.SetEscapeHTML(false)
				_ = e.Encode(s) // strings always encode
				return bytes.TrimSuffix(w.Bytes(), []byte("\n"))
			}
			i += size - 1
			continue
		}
		b = append(b, s[plain:i]...)
		plain = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(append(b, s[plain:]...), '"')
}
