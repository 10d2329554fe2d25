package cache

import (
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"creto.dev"
	"creto.dev/inference"
)

// Kinds of answers. None is found for another.
type kind string

const (
	whole    kind = "complete"
	streamed kind = "stream"
	embedded kind = "embed"
)

// key is a digest of all that an answer may depend on.
type key = creto.Digest

// question is what a key is a digest of.
type question struct {
	Kind     kind
	Agent    creto.ID // with its tenant
	Policies []string
	// Known is the classification of the agent, Said that of the request.
	Known, Said inference.Classification
	Ask         any // without its metadata
	// OnBehalfOf is only of what is found by likeness: who asks the very same sent all
	// that the answer can tell, and who asks what is alike did not.
	OnBehalfOf creto.ID
}

// modes are built once from constant options; they are immutable and safe for
// concurrent use. Texts are encoded as they are, UTF-8 or not, so that no two requests
// share a key; what is none is refused when it is read, and then not given again.
var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{MaxArrayElements: 1 << 24, MaxMapPairs: 1 << 20, MaxNestedLevels: 64}.DecMode())
)

func must[M any](mode M, err error) M {
	if err != nil {
		panic("cache: constant options are invalid: " + err.Error())
	}
	return mode
}

func encode(v any) ([]byte, error)    { return encoding.Marshal(v) }
func decode(data []byte, v any) error { return decoding.Unmarshal(data, v) }

// place is where the answer to a request is kept.
type place struct {
	key  key
	life uint64    // of the store, when the request came
	like *likeness // by which it is found too; nil if it is not
}

// placeOf returns the place of a request, if its answer may be kept.
func (c *Router) placeOf(k kind, r *inference.Request) (*place, bool) {
	m, known := &r.Metadata, c.inner.Classification(r.Metadata.Agent)
	rule, ok := c.rule(m, r.Model, known)
	if !ok || !rule.AnyTemperature && !isZero(r.Temperature) || !selfContained(*r) {
		return nil, false
	}
	bare := *r
	bare.Metadata = inference.RequestMetadata{}
	q := question{Kind: k, Agent: m.Agent, Policies: m.Policies, Known: known, Said: m.Classification, Ask: bare}
	at, ok := digest(q)
	if !ok {
		return nil, false
	}
	p := &place{key: at, life: c.store.life()}
	if rule.Semantic && m.Embedder != nil {
		q.OnBehalfOf = m.OnBehalfOf
		p.like = c.likenessOf(q, bare)
	}
	return p, true
}

// placeOfEmbed is placeOf for embeddings, which no temperature changes.
func (c *Router) placeOfEmbed(m *inference.RequestMetadata, r inference.EmbedRequest) (*place, bool) {
	known := c.inner.Classification(m.Agent)
	if _, ok := c.rule(m, r.Model, known); !ok || !only(r.Extra, "dimensions", "encoding_format", "user") {
		return nil, false
	}
	r.Metadata = inference.RequestMetadata{}
	at, ok := digest(question{Kind: embedded, Agent: m.Agent, Policies: m.Policies, Known: known, Said: m.Classification, Ask: r})
	return &place{key: at, life: c.store.life()}, ok
}

func digest(q question) (key, bool) {
	data, err := encode(q)
	if err != nil {
		return key{}, false
	}
	return creto.DigestOf(data), true
}

// rule returns the first rule that is of a request, if what it asks may be kept.
func (c *Router) rule(m *inference.RequestMetadata, model string, known inference.Classification) (Rule, bool) {
	if m.NoStore || m.Agent.IsZero() {
		return Rule{}, false
	}
	for _, r := range c.cfg.Rules {
		if len(r.Models) > 0 && !slices.ContainsFunc(r.Models, func(p string) bool { return inference.Match(p, model) }) {
			continue
		}
		if len(r.Agents) > 0 && !slices.ContainsFunc(r.Agents, func(p string) bool { return inference.MatchAgent(p, c.cfg.Tenant, m.Agent) }) {
			continue
		}
		return r, r.permits(known, m.Classification)
	}
	return Rule{}, false
}

// permits reports whether what is so classified may be kept. What a request says of
// itself can take that away, and never give it.
func (r Rule) permits(known, said inference.Classification) bool {
	may := func(class inference.Classification) bool {
		if class == "" {
			return r.Unclassified
		}
		return slices.Contains(r.Classifications, class)
	}
	return may(known) && (said == "" || may(said))
}

// isZero reports whether decimal text is 0.
func isZero(decimal string) bool {
	mantissa, _, _ := strings.Cut(strings.ToLower(decimal), "e")
	return mantissa != "" && strings.Trim(mantissa, "-0.") == ""
}

// harmless are the fields of requests, beside those that package inference has words
// for, of which an answer depends in no other way than by their value. What is not
// here may look something up, or keep something, elsewhere.
var harmless = []string{
	"frequency_penalty", "logit_bias", "logprobs", "n", "presence_penalty", "seed", "stop_sequences", "thinking", "top_k", "top_logprobs", "top_p", "verbosity",
}

// selfContained reports whether an answer depends on nothing but the request: no
// picture to be fetched, no file, no tool that somebody else runs.
func selfContained(r inference.Request) bool {
	if !only(r.Extra, harmless...) {
		return false
	}
	for _, t := range r.Tools {
		if t.Type != "" && t.Type != "function" {
			return false
		}
	}
	for _, m := range r.Messages {
		for _, p := range m.Content {
			if p.Image != nil && (p.Image.FileID != "" || p.Image.URL != "" && !strings.HasPrefix(p.Image.URL, "data:")) {
				return false
			}
			if p.Image == nil && p.Reasoning == nil && !p.IsText() {
				return false // what nobody here knows
			}
		}
	}
	return true
}

func only(extra inference.Extra, names ...string) bool {
	for name := range extra {
		if !slices.Contains(names, name) {
			return false
		}
	}
	return true
}

// keepable reports whether an answer is one: what a filter cut is not.
func keepable(choices []inference.Choice) bool {
	return !slices.ContainsFunc(choices, func(c inference.Choice) bool { return c.FinishReason == "content_filter" })
}
