package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"unicode/utf8"

	"creto.dev/fault"
)

// maxPolicyBody is the largest body that policies read; a larger one is absent
// from the context, so a permit that needs it does not apply.
const maxPolicyBody = 64 << 10

// maxBodyDepth bounds nested JSON.
const maxBodyDepth = 12

// addBody puts a JSON body into the facts that policies read. A body that two
// readers could take for two different things is refused.
func addBody(facts map[string]any, h http.Header, body []byte) error {
	const op fault.Op = "gateway.addBody"
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	isJSON := err == nil && (kind == "application/json" || strings.HasSuffix(kind, "+json"))
	if !isJSON || len(body) == 0 || len(body) > maxPolicyBody || h.Get("Content-Encoding") != "" {
		return nil
	}
	if !utf8.Valid(body) {
		return fault.New(op, fault.InvalidArgument, "the JSON body is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	value, err := strictValue(d, 0)
	if err == nil {
		if _, end := d.Token(); !errors.Is(end, io.EOF) {
			err = fault.New(op, fault.InvalidArgument, "something follows the JSON body")
		}
	}
	if err != nil {
		if _, ok := errors.AsType[*fault.Error](err); ok {
			return err
		}
		return fault.WrapAs(op, fault.InvalidArgument, err, "the JSON body cannot be read")
	}
	facts["body"] = value
	return nil
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
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		object, seen := make(map[string]any), make(map[string]bool)
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			name := key.(string) // an object's keys are strings, the decoder sees to it
			if folded := strings.ToLower(strings.ToUpper(name)); seen[folded] {
				return nil, fault.New(op, fault.InvalidArgument, "the JSON body has the key %q twice", name)
			} else {
				seen[folded] = true
			}
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
