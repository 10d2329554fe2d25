package provider

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"unicode"

	"creto.dev/fault"
	"creto.dev/inference"
)

// vocabulary are the fields of a request that the clients of another dialect know
// of, and that are not among those that package inference has words for. What is
// in neither list is passed on: the upstream takes it or refuses it.
type vocabulary struct {
	// hints may be left out: the answer means the same.
	hints []string
	// needs must not be left out, unless they say what holds without them.
	needs map[string][]string
}

var (
	// openAIOnly is what Anthropic's own layer for OpenAI's clients ignores, and
	// what changes the form of the answer.
	openAIOnly = vocabulary{
		hints: []string{
			"seed", "store", "metadata", "service_tier", "frequency_penalty", "presence_penalty", "safety_identifier", "prompt_cache_key",
			"prompt_cache_retention", "prediction", "verbosity", maxCompletionTokens,
		},
		needs: map[string][]string{
			"n": {"1"}, "logprobs": {"false"}, "top_logprobs": {"0"}, "logit_bias": {"{}"}, "modalities": {`["text"]`}, "audio": nil,
			"web_search_options": nil, "functions": {"[]"}, "function_call": {`"none"`, `"auto"`}, "moderation": nil,
		},
	}
	anthropicOnly = vocabulary{
		hints: []string{"thinking", "metadata", "service_tier", "output_config", "inference_geo", "speed", "context_management", "diagnostics"},
		needs: map[string][]string{"mcp_servers": {"[]"}, "container": nil, "output_format": nil, "fallbacks": {"[]"}},
	}
)

// from drops or refuses the fields of a request that came in one dialect and goes
// on in another.
//
// Errors: InferenceNotSupported (Permanent).
func (f fields) from(came, goes inference.Dialect) (fields, error) {
	if came.Is(goes) {
		return f, nil
	}
	var known vocabulary
	switch came {
	case inference.DialectOpenAI:
		known = openAIOnly
	case inference.DialectAnthropic:
		known = anthropicOnly
	}
	return f, f.without(known, "the provider's dialect, "+string(goes)+",")
}

// without drops or refuses what only one vocabulary has; where they go is for
// messages.
//
// Errors: InferenceNotSupported (Permanent).
func (f fields) without(known vocabulary, goes string) error {
	const op fault.Op = "provider.without"
	for name, harmless := range known.needs {
		raw, there := f[name].(json.RawMessage)
		if !there {
			continue
		}
		delete(f, name)
		if !isOneOf(raw, slices.Concat(harmless, []string{"null"})) {
			return fault.New(op, fault.InferenceNotSupported, "%s: %s has no such thing", name, goes)
		}
	}
	for _, name := range known.hints {
		delete(f, name)
	}
	// What came in one dialect was compared with that one's names. Both write
	// theirs in lower case; another could be read as one of this dialect's.
	for name := range f {
		if strings.ContainsFunc(name, func(c rune) bool { return c > unicode.MaxASCII || 'A' <= c && c <= 'Z' }) {
			return fault.New(op, fault.InferenceNotSupported, "%q: %s has no such name", name, goes)
		}
	}
	return nil
}

// isOneOf reports whether raw is one of some texts, but for white space.
func isOneOf(raw json.RawMessage, texts []string) bool {
	var compact bytes.Buffer
	if json.Compact(&compact, raw) != nil {
		return false
	}
	for _, text := range texts {
		if compact.String() == text {
			return true
		}
	}
	return false
}
