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
// There is no semantic cache, which takes texts for the same whose embeddings are
// alike: those that differ in an amount or a "not" often are (docs/decisions.md, D-103).
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
	// MaxBytes bounds the memory that answers take. 0 means DefaultMaxBytes.
	MaxBytes int64
	// TTL is how long an answer is kept, at most MaxTTL. 0 means DefaultTTL.
	TTL time.Duration
	// Tenant is that of patterns of agents that name none.
	Tenant string
	// Rules say of which requests answers are kept. The first that matches counts.
	Rules []Rule
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
	}
	return found
}

func isPattern(p string) bool { return p != "" && !strings.Contains(strings.TrimSuffix(p, "*"), "*") }

// Router is a router whose answers are kept. Safe for concurrent use.
type Router struct {
	inference.Router
	cfg      Config
	classify func(creto.ID) inference.Classification
	store    *store
}

var _ inference.Router = (*Router)(nil)

// New returns r, whose answers are kept as cfg says. classify returns what is known of
// an agent's requests, and "" where nothing is.
//
// Errors: InvalidArgument (Permanent).
func New(cfg Config, r inference.Router, classify func(creto.ID) inference.Classification) (*Router, error) {
	for key, text := range cfg.Problems() {
		return nil, fault.New("cache.New", fault.InvalidArgument, "%s: %s", key, text)
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.TTL == 0 {
		cfg.TTL = DefaultTTL
	}
	return &Router{Router: r, cfg: cfg, classify: classify, store: newStore(cfg.MaxBytes)}, nil
}

// Clear forgets every answer, those that are being given included: what they depend on
// has changed.
func (c *Router) Clear() { c.store.clear() }

// Complete implements inference.Model.
func (c *Router) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	k, ok := c.keyOf(whole, &r.Metadata, r)
	if !ok {
		return c.Router.Complete(ctx, r)
	}
	if e, ok := c.store.get(k); ok && ctx.Err() == nil {
		var response inference.Response
		if decode(e.pieces[0], &response) == nil {
			response.Usage = inference.Usage{}
			e.served(&r.Metadata)
			return response, nil
		}
	}
	life := c.store.life()
	r.Metadata.Served = served(&r.Metadata)
	response, err := c.Router.Complete(ctx, r)
	if err == nil && keepable(response.Choices) {
		c.keepWhole(k, life, r.Metadata.Served, response)
	}
	return response, err
}

// Embed implements inference.Model.
func (c *Router) Embed(ctx context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	k, ok := c.keyOfEmbed(&r.Metadata, r)
	if !ok {
		return c.Router.Embed(ctx, r)
	}
	if e, ok := c.store.get(k); ok && ctx.Err() == nil {
		var response inference.EmbedResponse
		if decode(e.pieces[0], &response) == nil {
			response.Usage = inference.Usage{}
			e.served(&r.Metadata)
			return response, nil
		}
	}
	life := c.store.life()
	r.Metadata.Served = served(&r.Metadata)
	response, err := c.Router.Embed(ctx, r)
	if err == nil {
		c.keepWhole(k, life, r.Metadata.Served, response)
	}
	return response, err
}

// CompleteStream implements inference.Model. An answer is kept when it is complete, and
// given again in the same pieces, without the pauses between them.
func (c *Router) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	k, ok := c.keyOf(streamed, &r.Metadata, r)
	if !ok {
		return c.Router.CompleteStream(ctx, r)
	}
	if e, ok := c.store.get(k); ok && ctx.Err() == nil {
		if s, err := replay(ctx, e); err == nil {
			e.served(&r.Metadata)
			return s, nil
		}
	}
	life := c.store.life()
	r.Metadata.Served = served(&r.Metadata)
	s, err := c.Router.CompleteStream(ctx, r)
	if err != nil {
		return nil, err
	}
	return &recording{Stream: s, room: c.store.largest(), keep: func(pieces [][]byte) { c.keep(k, life, r.Metadata.Served, pieces) }}, nil
}

// keepWhole keeps an answer that came whole. What cannot be encoded is not kept.
func (c *Router) keepWhole(k key, life uint64, by *inference.Served, response any) {
	if data, err := encode(response); err == nil {
		c.keep(k, life, by, [][]byte{data})
	}
}

// keep keeps an answer that a provider gave.
func (c *Router) keep(k key, life uint64, by *inference.Served, pieces [][]byte) {
	if by.Cache == "" {
		c.store.put(k, life, &entry{provider: by.Provider, model: by.Model, pieces: pieces}, c.cfg.TTL)
	}
}

// served returns where the router says who answered, also if the caller does not want
// to know.
func served(m *inference.RequestMetadata) *inference.Served {
	if m.Served != nil {
		return m.Served
	}
	return new(inference.Served)
}
