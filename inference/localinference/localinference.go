// Package localinference is the inference.Router of this process: it chooses who
// answers a request, tries again, and falls back.
//
// What a request may reach is decided before what it had better reach. protect.go
// is the first question: classifications and local_only. route.go and strategy.go
// are the second: they only ever order what the first one left, so that no fallback
// can lower the protection of a request (R-INF-37). attempt.go makes the calls.
package localinference

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/internal/logkey"
)

// ID is the router's own.
const ID = "router"

// DefaultAttemptTimeout bounds one attempt while there is somebody else to ask.
const DefaultAttemptTimeout = 3 * time.Minute

// Provider is one that may be chosen.
type Provider struct {
	// Keys are clients of the one provider, alike but for the key that they send:
	// calls are spread over them, and one whose key is limited or refused rests. At
	// least one; all have the same ID and Capabilities.
	Keys []inference.Model
	// Local says that what is sent there stays on machines of the operator's.
	Local bool
	// Concurrency is how many calls it may have at once; 0 means no bound.
	Concurrency int
}

// Router is the router. Safe for concurrent use.
type Router struct {
	cfg       Config
	providers []*provider
	routes    []route
	prices    prices
	maxCost   rate
	known     map[inference.Classification]bool
	turns     atomic.Uint64 // of exploring
}

var _ inference.Router = (*Router)(nil)

// New returns a router that chooses among providers, which it asks in their order
// where nothing else is said. It starts nothing. The log hears of attempts that
// fail; nil means nobody does.
//
// Errors: InvalidArgument (Permanent), with every problem.
func New(cfg Config, providers []Provider, log *slog.Logger) (*Router, error) {
	const op fault.Op = "localinference.New"
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Router{cfg: cfg, known: map[inference.Classification]bool{
		inference.ClassificationPublic: true, inference.ClassificationInternal: true, inference.ClassificationRestricted: true,
	}}
	if r.cfg.AttemptTimeout == 0 {
		r.cfg.AttemptTimeout = DefaultAttemptTimeout
	}
	if r.cfg.Strategy == "" {
		r.cfg.Strategy = CloudFirst
	}
	names := map[string]bool{}
	for _, p := range providers {
		if len(p.Keys) == 0 || p.Concurrency < 0 || names[p.Keys[0].ID()] {
			return nil, fault.New(op, fault.InvalidArgument, "a provider has no key, the name of another, or a negative concurrency")
		}
		names[p.Keys[0].ID()] = true
		r.providers = append(r.providers, newProvider(p, log))
	}
	if problems := cfg.Problems(); len(problems) > 0 {
		var errs []error
		for key, text := range problems {
			errs = append(errs, errors.New(key+": "+text))
		}
		slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return nil, fault.New(op, fault.InvalidArgument, "%s", errors.Join(errs...))
	}
	r.prices = cfg.priceTable()
	r.maxCost = mustRate(cfg.MaxCostPerToken, perToken)
	for i, c := range cfg.Routes {
		r.routes = append(r.routes, r.compile(i, c))
	}
	r.learnClassifications()
	return r, nil
}

// newProvider returns p with what is kept of it.
func newProvider(p Provider, log *slog.Logger) *provider {
	kept := &provider{
		id: p.Keys[0].ID(), local: p.Local, capabilities: p.Keys[0].Capabilities(),
		budget: new(call.Budget), breaker: new(call.Breaker), latency: latencies{of: map[series]*window{}},
	}
	kept.log = log.With(slog.String(logkey.Provider, kept.id))
	for _, m := range p.Keys {
		kept.keys = append(kept.keys, &key{model: m, rests: map[string]rest{}})
	}
	if p.Concurrency > 0 {
		kept.slots = make(chan struct{}, p.Concurrency)
	}
	return kept
}

// ID implements inference.Model.
func (r *Router) ID() string { return ID }

// Providers implements inference.Router.
func (r *Router) Providers() []inference.Model {
	list := make([]inference.Model, len(r.providers))
	for i, p := range r.providers {
		list[i] = p.keys[0].model
	}
	return list
}

// Capabilities implements inference.Model: what any provider can do, and the names
// that routes have of their own.
func (r *Router) Capabilities() inference.Capabilities {
	var all inference.Capabilities
	for _, p := range r.providers {
		c := p.capabilities
		all.Streaming = all.Streaming || c.Streaming
		all.Tools = all.Tools || c.Tools
		all.Vision = all.Vision || c.Vision
		all.JSONSchema = all.JSONSchema || c.JSONSchema
		all.Embeddings = all.Embeddings || c.Embeddings
		all.MaxContextTokens = max(all.MaxContextTokens, c.MaxContextTokens)
		all.Models = append(all.Models, c.Models...)
	}
	for _, rt := range r.cfg.Routes {
		if len(rt.Targets) > 0 {
			all.Models = append(all.Models, rt.Models...)
		}
	}
	slices.Sort(all.Models)
	all.Models = slices.Compact(all.Models)
	return all
}

// Complete implements inference.Model.
func (r *Router) Complete(ctx context.Context, request inference.Request) (inference.Response, error) {
	const op fault.Op = "localinference.Complete"
	if err := request.Validate(); err != nil {
		return inference.Response{}, fault.Wrap(op, err)
	}
	q := ask(request, false)
	response, release, err := reply(ctx, r, op, q, func(ctx context.Context, m inference.Model, model string, limit time.Duration) (inference.Response, error) {
		ctx, cancel := bounded(ctx, limit)
		defer cancel()
		asked := request
		asked.Model, asked.Metadata.Served = model, nil
		return m.Complete(ctx, asked)
	})
	release()
	return response, err
}

// Embed implements inference.Model.
func (r *Router) Embed(ctx context.Context, request inference.EmbedRequest) (inference.EmbedResponse, error) {
	const op fault.Op = "localinference.Embed"
	if request.Model == "" || len(request.Input) == 0 {
		return inference.EmbedResponse{}, fault.New(op, fault.InvalidArgument, "a model and at least one input are required")
	}
	size := 0
	for _, text := range request.Input {
		size += len(text)
	}
	q := query{model: request.Model, metadata: &request.Metadata, input: inference.EstimateTokens(size), embeds: true, within: request.Within}
	response, release, err := reply(ctx, r, op, q, func(ctx context.Context, m inference.Model, model string, limit time.Duration) (inference.EmbedResponse, error) {
		ctx, cancel := bounded(ctx, limit)
		defer cancel()
		asked := request
		asked.Model, asked.Metadata.Served = model, nil
		return m.Embed(ctx, asked)
	})
	release()
	return response, err
}

// CountTokens implements inference.TokenCounter. Only who would be asked first
// counts: the tokens of others are others.
func (r *Router) CountTokens(ctx context.Context, request inference.Request) (int64, error) {
	const op fault.Op = "localinference.CountTokens"
	if err := request.Validate(); err != nil {
		return 0, fault.Wrap(op, err)
	}
	q := ask(request, false)
	q.alone = true
	n, release, err := reply(ctx, r, op, q, func(ctx context.Context, m inference.Model, model string, limit time.Duration) (int64, error) {
		counter, ok := m.(inference.TokenCounter)
		if !ok {
			return 0, fault.New(op, fault.InferenceNotSupported, "provider %s does not count tokens", m.ID())
		}
		ctx, cancel := bounded(ctx, limit)
		defer cancel()
		asked := request
		asked.Model, asked.Metadata.Served = model, nil
		return counter.CountTokens(ctx, asked)
	})
	release()
	return n, err
}

// bounded returns ctx with a limit; 0 is none.
func bounded(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if limit <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, limit)
}
