package gateway

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
)

// tracerName is the instrumentation scope of the doors' spans.
const tracerName = "creto.dev/gateway"

// maxTracestateBytes is what W3C Trace Context has everybody pass on at least
// (section 3.3.1.5). A longer one is dropped.
const maxTracestateBytes = 512

// callersTrace returns the trace that a request says it belongs to (W3C Trace
// Context); the zero value for a header that is malformed, or there twice.
func callersTrace(h http.Header) trace.SpanContext {
	if len(h["Traceparent"]) != 1 {
		return trace.SpanContext{}
	}
	parent := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), propagation.HeaderCarrier(h)))
	if states := h["Tracestate"]; len(states) > 1 || len(states) == 1 && len(states[0]) > maxTracestateBytes {
		parent = parent.WithTraceState(trace.TraceState{})
	}
	return parent
}

// traced continues the caller's trace, or begins one where there is a tracer: its id
// is in records, and each request is a span of kind SERVER, by the conventions for
// HTTP. Neither queries nor bodies are in it.
func (g *Gateway) traced(next http.Handler) http.Handler {
	if g.cfg.Tracer == nil {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if parent := callersTrace(r.Header); parent.IsValid() { //nolint:contextcheck // it only reads headers
				r = r.WithContext(creto.WithTrace(trace.ContextWithRemoteSpanContext(r.Context(), parent), parent.TraceID().String()))
			}
			next.ServeHTTP(w, r)
		})
	}
	tracer := g.cfg.Tracer.Tracer(tracerName, trace.WithSchemaURL(semconv.SchemaURL))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := trace.ContextWithRemoteSpanContext(r.Context(), callersTrace(r.Header)) //nolint:contextcheck // as above
		ctx, span := tracer.Start(ctx, r.Method, trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
		r = r.WithContext(creto.WithTrace(ctx, span.SpanContext().TraceID().String()))
		if !span.IsRecording() {
			next.ServeHTTP(w, r)
			return
		}
		status := &statusWriter{ResponseWriter: w}
		defer func() {
			about := []attribute.KeyValue{semconv.HTTPRequestMethodKey.String(r.Method)}
			if r.Pattern != "" {
				span.SetName(r.Pattern) // it begins with the method
				about = append(about, semconv.HTTPRoute(route(r.Pattern)))
			}
			if status.code != 0 {
				about = append(about, semconv.HTTPResponseStatusCode(status.code))
			}
			if status.code >= http.StatusInternalServerError {
				span.SetStatus(codes.Error, "")
			}
			span.SetAttributes(about...)
		}()
		next.ServeHTTP(status, r)
	})
}

// route returns the path of a pattern of http.ServeMux.
func route(pattern string) string {
	for i, c := range pattern {
		if c == '/' {
			return pattern[i:]
		}
	}
	return pattern
}

// known says on a request's span who sent it.
func known(ctx context.Context, agent creto.ID, sandbox string) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(attribute.String("creto.agent", agent.String()), attribute.String("creto.tenant", agent.Tenant))
	if sandbox != "" {
		span.SetAttributes(attribute.String("creto.sandbox", sandbox))
	}
}

// allowed says on a request's span that what it asks for was allowed.
func allowed(ctx context.Context) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(attribute.String("creto.decision", "allow"))
	}
}

// recorded says on a request's span which record says what became of it.
func recorded(ctx context.Context, id audit.RecordID, err error) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	if !id.IsZero() {
		span.SetAttributes(attribute.String("creto.record.id", id.String()))
	}
	if err != nil {
		span.SetAttributes(semconv.ErrorTypeKey.String(fault.CodeOf(err).String()))
	}
}

// statusWriter remembers the status of a response.
type statusWriter struct {
	http.ResponseWriter
	code int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	if w.code == 0 && status >= http.StatusOK {
		w.code = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(p []byte) (int, error) {
	if w.code == 0 {
		w.code = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap serves http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
