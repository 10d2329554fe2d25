// Package telemetry makes OpenTelemetry's spans and measurements of model calls, as
// its semantic conventions for generative AI have them (v1.41.0, the last that the
// conventions' Go package has them in; their status is "development").
//
// One call of a router is one span, however often the router tries: named
// "{operation} {model}", of kind CLIENT, and with what was used. Below it is a span
// for each attempt, named "attempt {provider}", without usage, so that nothing is
// counted twice. Prompts, answers, tool arguments and what a provider says of an
// error are in none of them.
//
// Both are decorators. Without telemetry nothing is decorated, and costs nothing.
package telemetry

import (
	"context"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/semconv/v1.41.0/genaiconv"
	"go.opentelemetry.io/otel/trace"

	"creto.dev/fault"
	"creto.dev/inference"
)

// scope is the instrumentation scope.
const scope = "creto.dev/inference"

// What Creto says beside the conventions.
const (
	keyAgent          = attribute.Key("creto.agent")
	keyTenant         = attribute.Key("creto.tenant")
	keySandbox        = attribute.Key("creto.sandbox")
	keyDecision       = attribute.Key("creto.decision")
	keyPolicies       = attribute.Key("creto.policies")
	keyClassification = attribute.Key("creto.classification")
	keyProvider       = attribute.Key("creto.provider")
	keyAttempts       = attribute.Key("creto.attempts")
	keyCache          = attribute.Key("creto.cache")
	keyEstimated      = attribute.Key("creto.usage.estimated")
)

// nobody is gen_ai.provider.name, which the conventions require, where no provider
// was asked.
const nobody = "creto"

// Place is what spans say of a provider.
type Place struct {
	// System is what the provider speaks, as one of the conventions' names for
	// gen_ai.provider.name, such as "openai" or "aws.bedrock".
	System string
	// Address and Port are the server's; "" and 0 are not said.
	Address string
	Port    int
}

func (p Place) attributes() []attribute.KeyValue {
	list := []attribute.KeyValue{semconv.GenAIProviderNameKey.String(p.System)}
	if p.Address != "" {
		list = append(list, semconv.ServerAddress(p.Address), semconv.ServerPort(p.Port))
	}
	return list
}

// Telemetry makes spans and measurements. Safe for concurrent use.
type Telemetry struct {
	tracer   trace.Tracer
	duration genaiconv.ClientOperationDuration
	first    genaiconv.ClientOperationTimeToFirstChunk
	tokens   genaiconv.ClientTokenUsage
	places   map[string]Place
}

// The boundaries that the conventions say instruments should have.
var (
	secondBounds = []float64{0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92}
	tokenBounds  = []float64{1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864}
)

// New returns what makes spans by t and measurements by m. places are those of the
// providers, by their IDs.
//
// Errors: Internal (Permanent) if an instrument cannot be made.
func New(t trace.TracerProvider, m metric.MeterProvider, places map[string]Place) (*Telemetry, error) {
	const op fault.Op = "telemetry.New"
	meter := m.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))
	duration, err := genaiconv.NewClientOperationDuration(meter, metric.WithExplicitBucketBoundaries(secondBounds...))
	if err != nil {
		return nil, fault.WrapAs(op, fault.Internal, err, "")
	}
	first, err := genaiconv.NewClientOperationTimeToFirstChunk(meter, metric.WithExplicitBucketBoundaries(secondBounds...))
	if err != nil {
		return nil, fault.WrapAs(op, fault.Internal, err, "")
	}
	tokens, err := genaiconv.NewClientTokenUsage(meter, metric.WithExplicitBucketBoundaries(tokenBounds...))
	if err != nil {
		return nil, fault.WrapAs(op, fault.Internal, err, "")
	}
	return &Telemetry{tracer: t.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)), duration: duration, first: first, tokens: tokens, places: places}, nil
}

// operation is one call of a router.
type operation struct {
	telemetry *Telemetry
	ctx       context.Context //nolint:containedctx // of what is measured when a stream ends
	span      trace.Span
	name      genaiconv.OperationNameAttr
	model     string
	began     time.Time
	served    *inference.Served
}

// begin begins the span of a call, whose metadata it completes.
func (t *Telemetry) begin(ctx context.Context, name genaiconv.OperationNameAttr, model string, m *inference.RequestMetadata, said func() []attribute.KeyValue) (context.Context, *operation) {
	if m.Served == nil {
		m.Served = new(inference.Served)
	}
	ctx, span := t.tracer.Start(ctx, string(name)+" "+model, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(semconv.GenAIOperationNameKey.String(string(name)), semconv.GenAIRequestModel(model)))
	if span.IsRecording() {
		span.SetAttributes(keyAgent.String(m.Agent.String()), keyTenant.String(m.Agent.Tenant))
		if m.Sandbox != "" {
			span.SetAttributes(keySandbox.String(m.Sandbox))
		}
		if m.Classification != "" {
			span.SetAttributes(keyClassification.String(string(m.Classification)))
		}
		if len(m.Policies) > 0 {
			span.SetAttributes(keyPolicies.StringSlice(m.Policies), keyDecision.String("allow"))
		}
		span.SetAttributes(said()...)
	}
	return ctx, &operation{telemetry: t, ctx: context.WithoutCancel(ctx), span: span, name: name, model: model, began: time.Now(), served: m.Served}
}

// outcome is what came of a call.
type outcome struct {
	id, model string
	finish    []string
	usage     *inference.Usage // nil if nothing was used
	first     time.Duration    // until the first chunk; 0 if there was none
}

// end ends the call's span, and measures it.
func (o *operation) end(out outcome, err error) {
	t := o.telemetry
	place, asked := t.places[o.served.Provider]
	if !asked {
		place = Place{System: nobody}
	}
	if o.span.IsRecording() {
		o.span.SetAttributes(place.attributes()...)
		o.span.SetAttributes(keyAttempts.Int(o.served.Attempts))
		for key, text := range map[attribute.Key]string{
			keyProvider: o.served.Provider, keyCache: o.served.Cache, semconv.GenAIResponseIDKey: out.id, semconv.GenAIResponseModelKey: out.model,
		} {
			if text != "" {
				o.span.SetAttributes(key.String(text))
			}
		}
		if len(out.finish) > 0 {
			o.span.SetAttributes(semconv.GenAIResponseFinishReasons(out.finish...))
		}
		if out.first > 0 {
			o.span.SetAttributes(semconv.GenAIResponseTimeToFirstChunk(out.first.Seconds()))
		}
		o.used(out.usage)
	}
	fail(o.span, err)
	o.span.End()
	o.measure(place, asked, out, err)
}

// used says on the span what was used.
func (o *operation) used(u *inference.Usage) {
	if u == nil {
		return
	}
	o.span.SetAttributes(semconv.GenAIUsageInputTokens(int(u.PromptTokens)), semconv.GenAIUsageOutputTokens(int(u.CompletionTokens)))
	for key, n := range map[attribute.Key]int64{
		semconv.GenAIUsageCacheReadInputTokensKey: u.CachedTokens, semconv.GenAIUsageCacheCreationInputTokensKey: u.CacheWriteTokens,
		semconv.GenAIUsageReasoningOutputTokensKey: u.ReasoningTokens,
	} {
		if n > 0 {
			o.span.SetAttributes(key.Int64(n))
		}
	}
	if u.Estimated {
		o.span.SetAttributes(keyEstimated.Bool(true))
	}
}

// measure adds a call to the histograms. Names that a caller may choose freely, of
// models that nobody serves, are in none.
func (o *operation) measure(place Place, asked bool, out outcome, err error) {
	t, system := o.telemetry, genaiconv.ProviderNameAttr(place.System)
	var about []attribute.KeyValue
	if asked {
		about = append(place.attributes()[1:], semconv.GenAIRequestModel(o.model))
	}
	if out.model != "" {
		about = append(about, semconv.GenAIResponseModel(out.model))
	}
	if u := out.usage; u != nil && o.served.Cache == "" {
		t.tokens.Record(o.ctx, u.PromptTokens, o.name, system, genaiconv.TokenTypeInput, about...)
		t.tokens.Record(o.ctx, u.CompletionTokens, o.name, system, genaiconv.TokenTypeOutput, about...)
	}
	if out.first > 0 {
		t.first.Record(o.ctx, out.first.Seconds(), o.name, system, about...)
	}
	if err != nil {
		about = append(about, semconv.ErrorTypeKey.String(errorType(err)))
	}
	t.duration.Record(o.ctx, time.Since(o.began).Seconds(), o.name, system, about...)
}

// errorType is what error.type says: the name of the fault's code.
func errorType(err error) string { return fault.CodeOf(err).String() }

// fail says on a span what went wrong; nil is nothing. A fault's message is meant for
// its caller, and may quote what that said; it is not said here.
func fail(span trace.Span, err error) {
	if err == nil || !span.IsRecording() {
		return
	}
	span.SetAttributes(semconv.ErrorTypeKey.String(errorType(err)))
	span.SetStatus(codes.Error, "")
}

// said returns what the span of a request for an answer says of it.
func said(r inference.Request, streamed bool) []attribute.KeyValue {
	var list []attribute.KeyValue
	if streamed {
		list = append(list, semconv.GenAIRequestStream(true))
	}
	if r.MaxTokens > 0 {
		list = append(list, semconv.GenAIRequestMaxTokens(int(r.MaxTokens)))
	}
	if f, err := strconv.ParseFloat(r.Temperature, 64); err == nil {
		list = append(list, semconv.GenAIRequestTemperature(f))
	}
	if f := r.ResponseFormat; f != nil && strings.HasPrefix(f.Type, "json") {
		list = append(list, semconv.GenAIOutputTypeJSON)
	}
	return list
}
