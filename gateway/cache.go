package gateway

import (
	"context"
	"net/http"
	"strings"

	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/inference"
	"creto.dev/inference/provider"
)

// noStore reports whether a request asks for an answer that is neither taken from a
// cache nor kept in one (RFC 9111, section 5.2.1). no-cache and max-age=0, which ask
// for the first alone, get both.
func noStore(h http.Header) bool {
	for _, value := range h.Values("Cache-Control") {
		for directive := range strings.SplitSeq(value, ",") {
			switch strings.ToLower(strings.TrimSpace(directive)) {
			case "no-store", "no-cache", "max-age=0":
				return true
			}
		}
	}
	return false
}

// cached tells the caller that it gets an answer that was kept (RFC 9211), and if it was
// one to what is alike, how alike that is.
func (w *startedWriter) cached(served *inference.Served) {
	switch served.Cache {
	case "":
	case inference.CacheSemantic:
		w.Header().Set("Cache-Status", "creto; hit; detail=semantic; similarity="+served.Similarity)
	default:
		w.Header().Set("Cache-Status", "creto; hit")
	}
}

// purposeFact is for what a call is made that its agent did not ask for.
const purposeFact = "purpose"

// purposeCache is that of a call for the vectors of a text, which may find an answer
// that was kept.
const purposeCache = "cache"

// embedder asks for vectors on the account of a call: by a call of its own, that policy
// decides on, quota counts and a record tells of, and no human is asked about.
type embedder struct {
	gateway *Gateway
	visit   *visit
	of      *inference.RequestMetadata // the call
}

// embedder returns that of a call, or nil. A session that is tainted has none: neither
// are its answers found by what is alike, nor others by its texts.
func (g *Gateway) embedder(ctx context.Context, v *visit, of *inference.RequestMetadata) inference.Embedder {
	if !g.cfg.Semantic {
		return nil
	}
	if by, err := g.gate.Tainted(ctx, v.Caller, v.Sandbox); err != nil || by != "" {
		return nil
	}
	return embedder{g, v, of}
}

// Embed implements inference.Embedder.
func (e embedder) Embed(ctx context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	const op fault.Op = "gateway.embedder.Embed"
	args, err := provider.EncodeOpenAIEmbedRequest(r)
	if err != nil {
		return inference.EmbedResponse{}, fault.Wrap(op, err)
	}
	served := r.Metadata.Served
	if served == nil {
		served = new(inference.Served)
	}
	r.Metadata = inference.RequestMetadata{Sandbox: e.of.Sandbox, Agent: e.of.Agent, OnBehalfOf: e.of.OnBehalfOf, TraceID: e.of.TraceID, Classification: e.of.Classification, Served: served}
	a := asked{model: r.Model, metadata: &r.Metadata, args: under(embedOperation, args), facts: embedFacts(r)}
	a.facts[purposeFact] = purposeCache
	action := a.action(e.visit)
	action.IdempotencyKey = "" // that is the call's
	var response inference.EmbedResponse
	_, err = e.gateway.gate.DoUnasked(ctx, e.visit.Caller, action, func(ctx context.Context, by authz.Decision) (gate.Result, error) {
		a.permitted(by)
		var err error
		var used *inference.Usage
		if response, err = e.gateway.models.Embed(ctx, r); err == nil {
			used = &response.Usage
		}
		done := result(a, used)
		done.Detail[purposeFact] = purposeCache
		return done, err
	})
	return response, fault.Wrap(op, err)
}
