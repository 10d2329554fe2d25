package telemetry

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"

	"creto.dev/inference"
)

// Provider returns m, one of those that a router asks: each of its calls is the span
// of an attempt. It counts tokens if m does.
func (t *Telemetry) Provider(m inference.Model) inference.Model {
	place := t.places[m.ID()]
	p := &provider{Model: m, tracer: t.tracer, name: "attempt " + m.ID(), about: append(place.attributes(), keyProvider.String(m.ID()))}
	if counter, ok := m.(inference.TokenCounter); ok {
		return &countingProvider{p, counter}
	}
	return p
}

type provider struct {
	inference.Model
	tracer trace.Tracer
	name   string
	about  []attribute.KeyValue
}

var _ inference.Model = (*provider)(nil)

// attempt begins the span of an attempt. model is what it is called at the provider.
func (p *provider) attempt(ctx context.Context, model string) (context.Context, trace.Span) {
	ctx, span := p.tracer.Start(ctx, p.name, trace.WithSpanKind(trace.SpanKindClient))
	if span.IsRecording() {
		span.SetAttributes(p.about...)
		span.SetAttributes(semconv.GenAIRequestModel(model))
	}
	return ctx, span
}

func finish(span trace.Span, err error) {
	fail(span, err)
	span.End()
}

// Complete implements inference.Model.
func (p *provider) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	ctx, span := p.attempt(ctx, r.Model)
	response, err := p.Model.Complete(ctx, r)
	finish(span, err)
	return response, err
}

// CompleteStream implements inference.Model.
func (p *provider) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	ctx, span := p.attempt(ctx, r.Model)
	s, err := p.Model.CompleteStream(ctx, r)
	if err != nil {
		finish(span, err)
		return nil, err
	}
	return newStream(s, time.Time{}, func(_ outcome, err error) { finish(span, err) }), nil
}

// Embed implements inference.Model.
func (p *provider) Embed(ctx context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	ctx, span := p.attempt(ctx, r.Model)
	response, err := p.Model.Embed(ctx, r)
	finish(span, err)
	return response, err
}

type countingProvider struct {
	*provider
	counter inference.TokenCounter
}

var _ inference.TokenCounter = (*countingProvider)(nil)

// CountTokens implements inference.TokenCounter.
func (p *countingProvider) CountTokens(ctx context.Context, r inference.Request) (int64, error) {
	ctx, span := p.attempt(ctx, r.Model)
	n, err := p.counter.CountTokens(ctx, r)
	finish(span, err)
	return n, err
}
