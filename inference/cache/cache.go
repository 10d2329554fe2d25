// Package cache keeps answers of models in memory, and gives them again to whoever
// asks exactly the same.
//
// It is a decorator of an inference.Router, and sits below the gate: each request is
// authorised, judged and recorded, whoever answers it. An answer is kept for the agent
// that asked, and found by a digest of all that it may depend on: who asks, what was
// known of that, by which policies it was permitted, and the request. Only requests
// that a rule names are looked up or kept, and of those only such as depend on
// nothing else ([Rule], kept.go). Nothing of it is ever on a disk.
//
// Where a rule says so, an answer is also found by a request that is the same in all
// but its last text, which is alike ([Semantic], semantic.go). Embeddings do not see
// differences that matter most, in an amount, a name, an order or a "not", so likeness
// alone is never enough: the words must agree too (words.go; docs/decisions.md, D-107).
package cache

import (
	"context"
	"fmt"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
)

// The defaults of a [Config], and their bounds.
const (
	DefaultMaxBytes = 64 << 20
	DefaultTTL      = 10 * time.Minute
	MaxTTL          = 24 * time.Hour
)

// Config says what is kept. The zero value keeps nothing.
type Config struct {
	// MaxBytes bounds the memory that kept answers take, and again that of those that are
	// streamed now and may be kept. 0 means DefaultMaxBytes.
	MaxBytes int64
	// TTL is how long an answer is kept, at most MaxTTL. 0 means DefaultTTL.
	TTL time.Duration
	// Tenant is that of patterns of agents that name none.
	Tenant string
	// Rules say of which requests answers are kept. The first that matches counts.
	Rules []Rule
	// Semantic says which texts are alike. Its zero value finds none.
	Semantic Semantic
}

// Rule names requests whose answers may be kept: those that match each list that is
// not empty.
type Rule struct {
	// Models are names, or prefixes followed by *.
	Models []string `toml:"models"`
	// Agents are names of agents of the node's own tenant, or TENANT/NAME; each part
	// may be a prefix followed by *.
	Agents []string `toml:"agents"`
	// Classifications may be kept. Both that of the agent and that of the request
	// must be here.
	Classifications []inference.Classification `toml:"classifications"`
	// Unclassified is whether what is not classified may be kept. Without it and
	// without Classifications nothing is.
	Unclassified bool `toml:"unclassified"`
	// AnyTemperature also keeps answers to requests that do not ask for the
	// temperature 0: the same is said again where a model would choose anew.
	AnyTemperature bool `toml:"any_temperature"`
	// Semantic also finds answers to requests whose last text is alike.
	Semantic bool `toml:"semantic"`
}

// Problems returns what is wrong with c, by key.
func (c Config) Problems() map[string]string {
	found := map[string]string{}
	if c.MaxBytes < 0 {
		found["max_mib"] = "it is negative"
	}
	if c.TTL < 0 || c.TTL > MaxTTL {
		found["ttl"] = fmt.Sprintf("%v is outside 0 to %v", c.TTL, MaxTTL)
	}
	for i, r := range c.Rules {
		at := fmt.Sprintf("rules[%d].", i)
		for _, p := range r.Models {
			if !isPattern(p) {
				found[at+"models"] = fmt.Sprintf("%q is neither a name nor a prefix followed by *", p)
			}
		}
		for _, p := range r.Agents {
			tenant, name, both := strings.Cut(p, "/")
			if !isPattern(tenant) || both && !isPattern(name) {
				found[at+"agents"] = fmt.Sprintf("%q is neither a name nor a prefix followed by *", p)
			}
		}
		for _, class := range r.Classifications {
			if err := class.Validate(); err != nil {
				found[at+"classifications"] = fault.Message(err)
			}
		}
		if len(r.Classifications) == 0 && !r.Unclassified {
			found[at+"classifications"] = "name those that may be kept, or set unclassified"
		}
		if r.Semantic && c.Semantic.Model == "" {
			found[at+"semantic"] = "a model for embeddings is required, semantic.model"
		}
	}
	c.Semantic.problems(found)
	return found
}

func isPattern(p string) bool { return p != "" && !strings.Contains(strings.TrimSuffix(p, "*"), "*") }

// Inner is the router whose answers are kept.
type Inner interface {
	inference.Router

	// Classification returns what is known of an agent's requests, and "" where nothing
	// is.
	Classification(agent creto.ID) inference.Classification
	// Reaches returns the providers that may be asked for a request, by their IDs.
	Reaches(r inference.Request) []string
}

// Router is a router whose answers are kept. Safe for concurrent use.
type Router struct {
	inference.Router
	inner Inner
	cfg   Config
	store *store
	rests rests
	under pool // answers that are streamed now
}

var _ inference.Router = (*Router)(nil)

// New returns r, whose answers are kept as cfg says.
//
// Errors: InvalidArgument (Permanent).
func New(cfg Config, r Inner) (*Router, error) {
	for key, text := range cfg.Problems() {
		return nil, fault.New("cache.New", fault.InvalidArgument, "%s: %s", key, text)
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.TTL == 0 {
		cfg.TTL = DefaultTTL
	}
	cfg.Semantic = cfg.Semantic.filled(cfg.TTL)
	c := &Router{Router: r, inner: r, cfg: cfg, store: newStore(cfg.MaxBytes, cfg.Semantic.MaxEntries)}
	c.under.limit = cfg.MaxBytes
	return c, nil
}

// Clear forgets every answer, those that are being given included: what they depend on
// has changed.
func (c *Router) Clear() { c.store.clear() }

// Complete implements inference.Model.
func (c *Router) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	p, ok := c.placeOf(whole, &r)
	if !ok {
		return c.Router.Complete(ctx, r)
	}
	if found, ok := c.find(ctx, p, &r); ok {
		var response inference.Response
		if decode(found.pieces[0], &response) == nil {
			response.Usage = inference.Usage{}
			found.served(&r.Metadata)
			return response, nil
		}
	}
	r.Metadata.Served = served(&r.Metadata)
	response, err := c.Router.Complete(ctx, r)
	if err == nil && keepable(response.Choices) {
		c.keepWhole(p, r.Metadata.Served, response)
	}
	return response, err
}

// Embed implements inference.Model.
func (c *Router) Embed(ctx context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	p, ok := c.placeOfEmbed(&r.Metadata, r)
	if !ok {
		return c.Router.Embed(ctx, r)
	}
	if e, ok := c.store.get(p.key); ok && ctx.Err() == nil {
		var response inference.EmbedResponse
		if decode(e.pieces[0], &response) == nil {
			response.Usage = inference.Usage{}
			hit{e, inference.CacheHit, ""}.served(&r.Metadata)
			return response, nil
		}
	}
	r.Metadata.Served = served(&r.Metadata)
	response, err := c.Router.Embed(ctx, r)
	if err == nil {
		c.keepWhole(p, r.Metadata.Served, response)
	}
	return response, err
}

// CompleteStream implements inference.Model. An answer is kept when it is complete, and
// given again in the same pieces, without the pauses between them.
func (c *Router) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	p, ok := c.placeOf(streamed, &r)
	if !ok {
		return c.Router.CompleteStream(ctx, r)
	}
	if found, ok := c.find(ctx, p, &r); ok {
		found.served(&r.Metadata)
		return replay(ctx, found.entry), nil
	}
	r.Metadata.Served = served(&r.Metadata)
	s, err := c.Router.CompleteStream(ctx, r)
	if err != nil {
		return nil, err
	}
	return &recording{Stream: s, under: &c.under, room: c.store.largest(), keep: func(pieces [][]byte) {
		if readable(pieces) {
			c.keep(p, r.Metadata.Served, pieces)
		}
	}}, nil
}

// find returns an answer that was kept for r, or for what is alike.
func (c *Router) find(ctx context.Context, p *place, r *inference.Request) (hit, bool) {
	if e, ok := c.store.get(p.key); ok {
		return hit{e, inference.CacheHit, ""}, ctx.Err() == nil
	}
	if p.like == nil {
		return hit{}, false
	}
	return c.similar(ctx, p, r)
}

// keepWhole keeps an answer that came whole. What cannot be encoded is not kept.
func (c *Router) keepWhole(p *place, by *inference.Served, response any) {
	if data, err := encode(response); err == nil {
		c.keep(p, by, [][]byte{data})
	}
}

// keep keeps an answer that a provider gave.
func (c *Router) keep(p *place, by *inference.Served, pieces [][]byte) {
	if by.Cache != "" {
		return
	}
	now := time.Now()
	e := &entry{provider: by.Provider, model: by.Model, pieces: pieces, key: p.key, until: now.Add(c.cfg.TTL), like: p.like}
	if e.like != nil {
		e.like.until = now.Add(c.cfg.Semantic.TTL)
	}
	c.store.put(p.life, e)
}

// served returns where the router says who answered, also if the caller does not want
// to know.
func served(m *inference.RequestMetadata) *inference.Served {
	if m.Served != nil {
		return m.Served
	}
	return new(inference.Served)
}
