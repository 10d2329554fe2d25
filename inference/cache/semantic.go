package cache

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/inference"
)

// The defaults of a [Semantic], and their bounds.
const (
	DefaultThreshold       = 0.97
	MinThreshold           = 0.8
	DefaultMaxEntries      = 1000
	MaxEntries             = 100_000
	DefaultSemanticTimeout = 2 * time.Second
	MaxSemanticTimeout     = time.Minute
)

// Semantic says which texts are alike, of requests that a rule with Semantic names and
// that are the same in all else. Vectors are asked for by
// [inference.RequestMetadata.Embedder], as a call of the same agent's that policy decides
// on; what cannot be had in time is a miss.
type Semantic struct {
	// Model is the model for embeddings; "" finds nothing alike.
	Model string
	// Threshold is the least cosine of two vectors, from MinThreshold to 1. 0 means
	// DefaultThreshold.
	Threshold float64
	// TTL is how long an answer is found by what is alike, at most as long as it is
	// kept. 0 means as long.
	TTL time.Duration
	// Timeout bounds what a request waits for its vector. 0 means
	// DefaultSemanticTimeout.
	Timeout time.Duration
	// MaxEntries bounds how many answers one text is compared with: those to requests
	// that are the same in all else, the newest. 0 means DefaultMaxEntries.
	MaxEntries int
	// Paraphrases also takes texts for alike that say it in other words, if their
	// numbers, names, quotes, negations and opposites are the same in the same order.
	// Without it texts differ in forms alone (words.go). Some questions that are not
	// the same pass: it is for where a wrong answer does little harm.
	Paraphrases bool
}

func (s Semantic) problems(found map[string]string) {
	if s.Threshold != 0 && !(MinThreshold <= s.Threshold && s.Threshold <= 1) {
		found["semantic.threshold"] = fmt.Sprintf("%v is outside %v to 1", s.Threshold, MinThreshold)
	}
	if s.TTL < 0 || s.TTL > MaxTTL {
		found["semantic.ttl"] = fmt.Sprintf("%v is outside 0 to %v", s.TTL, MaxTTL)
	}
	if s.Timeout < 0 || s.Timeout > MaxSemanticTimeout {
		found["semantic.timeout"] = fmt.Sprintf("%v is outside 0 to %v", s.Timeout, MaxSemanticTimeout)
	}
	if s.MaxEntries < 0 || s.MaxEntries > MaxEntries {
		found["semantic.max_entries"] = fmt.Sprintf("%d is outside 0 to %d", s.MaxEntries, MaxEntries)
	}
	if len(s.Model) > inference.MaxModelBytes {
		found["semantic.model"] = fmt.Sprintf("a name has at most %d bytes", inference.MaxModelBytes)
	}
}

// filled returns s with its defaults. ttl is how long answers are kept.
func (s Semantic) filled(ttl time.Duration) Semantic {
	s.Threshold = cmp.Or(s.Threshold, DefaultThreshold)
	s.TTL = min(cmp.Or(s.TTL, ttl), ttl)
	s.Timeout = cmp.Or(s.Timeout, DefaultSemanticTimeout)
	s.MaxEntries = cmp.Or(s.MaxEntries, DefaultMaxEntries)
	return s
}

const (
	// maxAlikeBytes bounds a text that is looked for by likeness: of long texts, a
	// vector sees less of what differs.
	maxAlikeBytes = 4 << 10
	// maxBatch bounds how many vectors are asked for at once.
	maxBatch = 16
	// maxDimensions bounds a vector.
	maxDimensions = 8 << 10
)

// likeness is what an answer is found by beside its key. All but the vector never
// changes.
type likeness struct {
	part  key // a digest of the question without its text
	text  string
	said  saying
	until time.Time
	vector
}

// vector is where a text lies in the space of one model; nil at is not known. Cosines
// of different spaces mean nothing.
type vector struct {
	space string
	at    []float32 // of length 1; never changed
}

// likenessOf returns what the answer to q may be found by, or nil: if the last message
// is a user's, and one text, and nothing else in the request is more than text. bare is
// the request of q.
func (c *Router) likenessOf(q question, bare inference.Request) *likeness {
	if len(bare.Messages) == 0 || len(bare.Tools) > 0 || bare.ToolChoice != nil {
		return nil
	}
	for _, m := range bare.Messages {
		if m.Role == inference.RoleTool || m.ToolCallID != "" || len(m.ToolCalls) > 0 {
			return nil
		}
		for _, p := range m.Content {
			if !p.IsText() {
				return nil
			}
		}
	}
	last := len(bare.Messages) - 1
	m := bare.Messages[last]
	if m.Role != inference.RoleUser || len(m.Content) != 1 || len(m.Content[0].Text) > maxAlikeBytes {
		return nil
	}
	text := m.Content[0].Text
	said, ok := sayingOf(text)
	if !ok {
		return nil
	}
	m.Content = slices.Clone(m.Content)
	m.Content[0].Text = ""
	bare.Messages = append(slices.Clone(bare.Messages[:last]), m)
	q.Kind, q.Ask = "alike "+q.Kind, bare
	part, ok := digest(q)
	if !ok {
		return nil
	}
	return &likeness{part: part, text: text, said: said}
}

// similar returns the answer to what is most alike, if anything is alike enough. It asks
// for vectors only if there is an answer to a text whose words agree.
func (c *Router) similar(ctx context.Context, p *place, r *inference.Request) (hit, bool) {
	cfg, l := c.cfg.Semantic, p.like
	list := c.store.alike(l, cfg.Paraphrases)
	if len(list) == 0 || c.rests.rests(r.Metadata.Agent) {
		return hit{}, false
	}
	asked := []*entry{nil} // the first vector is that of l
	texts := []string{l.text}
	for _, e := range list {
		if e.vector.at == nil && len(texts) < maxBatch {
			asked, texts = append(asked, e.entry), append(texts, e.entry.like.text)
		}
	}
	vectors, err := c.vectors(ctx, r, texts)
	if err != nil {
		if ctx.Err() == nil {
			c.rests.add(r.Metadata.Agent)
		}
		return hit{}, false
	}
	l.vector = vectors[0]
	learned := map[*entry]vector{}
	for i, e := range asked[1:] {
		learned[e] = vectors[i+1]
	}
	c.store.learn(learned)
	var best *entry
	highest := cfg.Threshold
	for _, e := range list {
		v := e.vector
		if v.at == nil {
			v = learned[e.entry]
		}
		if cosine, ok := l.vector.cosine(v); ok && cosine >= highest && (best == nil || cosine > highest) && alike(l.said, e.entry.like.said, cfg.Paraphrases) {
			best, highest = e.entry, cosine
		}
	}
	if best == nil {
		return hit{}, false
	}
	kept, ok := c.store.get(best.key) // it may have gone since, or be a newer answer to the same
	return hit{kept, inference.CacheSemantic, fmt.Sprintf("%.3f", highest)}, ok && ctx.Err() == nil
}

// vectors asks for the vectors of texts that are part of r, of nobody who may not see r.
func (c *Router) vectors(ctx context.Context, r *inference.Request, texts []string) ([]vector, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Semantic.Timeout)
	defer cancel()
	within := c.inner.Reaches(*r)
	slices.Sort(within)
	by := new(inference.Served)
	response, err := r.Metadata.Embedder.Embed(ctx, inference.EmbedRequest{
		Model: c.cfg.Semantic.Model, Input: texts, Within: slices.Compact(append([]string{}, within...)), Metadata: inference.RequestMetadata{Served: by},
	})
	if err != nil {
		return nil, err
	}
	if len(response.Embeddings) != len(texts) {
		return nil, fmt.Errorf("%d vectors of %d texts", len(response.Embeddings), len(texts))
	}
	space := strings.Join([]string{by.Provider, by.Model, response.Model}, "\x00")
	list := make([]vector, len(texts))
	for i, raw := range response.Embeddings {
		at, err := normalised(raw)
		if err != nil {
			return nil, err
		}
		list[i] = vector{space, at}
	}
	return list, nil
}

// normalised returns a vector of length 1.
func normalised(raw []float32) ([]float32, error) {
	sum := 0.0
	for _, x := range raw {
		sum += float64(x) * float64(x)
	}
	length := math.Sqrt(sum)
	if len(raw) == 0 || len(raw) > maxDimensions || !(length > 1e-12) || math.IsInf(length, 0) {
		return nil, fmt.Errorf("a vector of %d dimensions and length %v", len(raw), length)
	}
	at := make([]float32, len(raw))
	for i, x := range raw {
		at[i] = float32(float64(x) / length)
	}
	return at, nil
}

// cosine returns that of two vectors, if they are of one space.
func (v vector) cosine(w vector) (float64, bool) {
	if v.space != w.space || len(v.at) == 0 || len(v.at) != len(w.at) {
		return 0, false
	}
	return min(float64(dot(v.at, w.at)), 1), true
}

// dot returns the inner product of two vectors of one length. Four sums keep the
// processor's units busy.
func dot(a, b []float32) float32 {
	var s0, s1, s2, s3 float32
	b = b[:len(a)]
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s0 += a[i] * b[i]
		s1 += a[i+1] * b[i+1]
		s2 += a[i+2] * b[i+2]
		s3 += a[i+3] * b[i+3]
	}
	for ; i < len(a); i++ {
		s0 += a[i] * b[i]
	}
	return s0 + s1 + s2 + s3
}

// What follows a failure to get vectors.
const (
	restTime = 30 * time.Second
	maxRests = 1024
)

// rests are the agents whose texts nobody asks vectors of for now, since that failed:
// each of their requests would wait for nothing.
type rests struct {
	mu    sync.Mutex // guards until
	until map[creto.ID]time.Time
}

func (r *rests) rests(agent creto.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	until, ok := r.until[agent]
	if ok && !time.Now().Before(until) {
		delete(r.until, agent)
		return false
	}
	return ok
}

func (r *rests) add(agent creto.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.until == nil || len(r.until) >= maxRests {
		r.until = map[creto.ID]time.Time{} // the others try once more
	}
	r.until[agent] = time.Now().Add(restTime)
}
