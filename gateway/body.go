package gateway

import (
	"bytes"
	"encoding/json"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"creto.dev/fault"
)

// maxPolicyBody is the largest body that policies read; a larger one is absent
// from the context, so a permit that needs it does not apply.
const maxPolicyBody = 64 << 10

// maxBodyDepth bounds nested JSON.
const maxBodyDepth = 12

// readable reports whether policies read a body: JSON of modest size that is
// not compressed.
//
// Errors: InvalidArgument (Permanent) if it depends on the reader what kind of
// body it is.
func readable(h http.Header, body []byte) (bool, error) {
	const op fault.Op = "gateway.readable"
	if len(h.Values("Content-Type")) > 1 {
		return false, fault.New(op, fault.InvalidArgument, "there is more than one Content-Type")
	}
	if h.Get("Content-Type") == "" {
		return false, nil
	}
	kind, parameters, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return false, fault.WrapAs(op, fault.InvalidArgument, err, "the Content-Type cannot be read")
	}
	if kind != "application/json" && !strings.HasSuffix(kind, "+json") || len(body) == 0 || len(body) > maxPolicyBody || len(h.Values("Content-Encoding")) > 0 {
		return false, nil
	}
	if charset := parameters["charset"]; charset != "" && !strings.EqualFold(charset, "utf-8") {
		return false, fault.New(op, fault.InvalidArgument, "JSON is UTF-8 (RFC 8259, section 8.1), not %q", charset)
	}
	return true, nil
}

// strictJSON reads a JSON body. One that two readers could take for two
// different things is refused.
//
// Errors: InvalidArgument (Permanent).
func strictJSON(body []byte) (any, error) {
	const op fault.Op = "gateway.strictJSON"
	switch {
	case !utf8.Valid(body):
		return nil, fault.New(op, fault.InvalidArgument, "the JSON body is not UTF-8")
	case !json.Valid(body):
		return nil, fault.New(op, fault.InvalidArgument, "the body is not one JSON value")
	case halfPair(body):
		// One thing in some languages, another in others.
		return nil, fault.New(op, fault.InvalidArgument, "the JSON body has half of a surrogate pair")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	return strictValue(d, 0)
}

// halfPair reports whether valid JSON escapes a UTF-16 surrogate that has no
// partner.
func halfPair(body []byte) bool {
	for i := 0; i < len(body); i++ {
		if body[i] != '\\' {
			continue
		}
		i++
		first, ok := codeUnit(body[i:])
		if !ok {
			continue
		}
		i += 4
		if !utf16.IsSurrogate(first) {
			continue
		}
		second, ok := rune(0), bytes.HasPrefix(body[i+1:], []byte(`\u`))
		if ok {
			second, ok = codeUnit(body[i+2:])
		}
		if !ok || utf16.DecodeRune(first, second) == unicode.ReplacementChar {
			return true
		}
		i += 6
	}
	return false
}

// codeUnit reads u and four hexadecimal digits.
func codeUnit(escape []byte) (rune, bool) {
	if len(escape) < 5 || escape[0] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(escape[1:5]), 16, 16)
	return rune(n), err == nil
}

// strictValue reads one JSON value and refuses repeated keys, also those that
// differ in case alone: which of them counts depends on the reader.
func strictValue(d *json.Decoder, depth int) (any, error) {
	const op fault.Op = "gateway.strictValue"
	if depth > maxBodyDepth {
		return nil, fault.New(op, fault.InvalidArgument, "the JSON body is nested more than %d deep", maxBodyDepth)
	}
	token, err := d.Token()
	if err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the JSON body cannot be read")
	}
	switch token {
	case json.Delim('{'):
		object, seen := make(map[string]any), make(map[string]bool)
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the JSON body cannot be read")
			}
			name := key.(string) // an object's keys are strings, the decoder sees to it
			if strings.ContainsRune(name, 0) || seen[folded(name)] {
				return nil, fault.New(op, fault.InvalidArgument, "the JSON body has the key %q twice, or with a NUL in it", name)
			}
			seen[folded(name)] = true
			if object[name], err = strictValue(d, depth+1); err != nil {
				return nil, err
			}
		}
		_, err := d.Token()
		return object, err
	case json.Delim('['):
		list := []any{}
		for d.More() {
			item, err := strictValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, item)
		}
		_, err := d.Token()
		return list, err
	}
	return token, nil
}

// folded maps names that encoding/json's structs take for one, and more, to the
// same text.
func folded(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			least = min(least, next)
		}
		return least
	}, name)
}
