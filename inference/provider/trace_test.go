package provider_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
)

// A request carries the trace context of its call where the configuration says so,
// and nowhere else; a token endpoint is never told.
func TestTraceContext(t *testing.T) {
	state, err := trace.ParseTraceState("a=1")
	if err != nil {
		t.Fatal(err)
	}
	belongs := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, TraceState: state})
	const parent = "00-01000000000000000000000000000000-0200000000000000-01"
	for name, open := range map[string]opener{
		"azure": azureOpener, "bedrock": bedrockOpener, "vertex": vertexOpener, "ollama": openOllama,
		"anthropic": func(t *testing.T, h http.Handler, change func(*provider.Config)) inference.Model {
			return openAnthropic(t, h, func(c *provider.AnthropicConfig) { change(&c.Config) })
		},
	} {
		for _, told := range []bool{true, false} {
			var mu sync.Mutex
			heard := map[string]int{}
			m := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				kind := "model "
				if strings.Contains(r.URL.Path, "token") {
					kind = "token "
				}
				heard[kind+r.Header.Get("Traceparent")+" "+r.Header.Get("Tracestate")]++
				respond(500, "text/plain", "")(w, r)
			}), func(c *provider.Config) { c.TraceContext = told })
			for _, ctx := range []context.Context{trace.ContextWithSpanContext(t.Context(), belongs), t.Context()} {
				if _, err := m.Complete(ctx, inferencetest.Ask("hello")); err == nil {
					t.Error("it answered")
				}
			}
			want := map[string]int{"model " + parent + " a=1": 1, "model  ": 1}
			if !told {
				want = map[string]int{"model  ": 2}
			}
			for kind := range heard {
				if strings.HasPrefix(kind, "token ") && kind != "token  " {
					t.Errorf("%s: the token endpoint heard %q", name, kind)
				}
			}
			for kind, n := range want {
				if heard[kind] != n {
					t.Errorf("%s, told %t: heard %v, want %v", name, told, heard, want)
				}
			}
		}
	}
}
