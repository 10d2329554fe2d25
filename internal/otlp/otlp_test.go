package otlp_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/health"
	"creto.dev/internal/otlp"
	"creto.dev/internal/otlp/otlptest"
)

func open(t *testing.T, c otlp.Config, log *slog.Logger) *otlp.Pipeline {
	t.Helper()
	p, err := otlp.Open(t.Context(), c, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func flush(t *testing.T, p *otlp.Pipeline) {
	t.Helper()
	if err := p.Tracer.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Meter.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// What is made arrives, with the headers, wherever the environment says it should go.
func TestPipeline(t *testing.T) {
	c := otlptest.New(t)
	for name, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_HEADERS": "x-leak=canary-6", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
		"OTEL_TRACES_SAMPLER": "always_off", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test", "OTEL_SERVICE_NAME": "canary-6",
	} {
		t.Setenv(name, value)
	}
	p := open(t, otlp.Config{Endpoint: c.URL + "/", Headers: map[string]creto.Secret{"Authorization": creto.NewSecret("Bearer s")}, SampleRatio: 1, Version: "v9", Instance: "n1"}, slog.New(slog.DiscardHandler))
	_, span := p.Tracer.Tracer("t").Start(t.Context(), "one")
	span.End()
	counter, err := p.Meter.Meter("t").Int64Counter("calls")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3)
	flush(t, p)
	if s := c.Span(t, "one"); bytes.Equal(s.GetTraceId(), make([]byte, 16)) {
		t.Errorf("the span is %v", s)
	}
	if r := c.Resource(); r["service.name"] != "creto" || r["service.version"] != "v9" || r["service.instance.id"] != "n1" || r["deployment.environment.name"] != "test" || len(r) != 4 {
		t.Errorf("the resource is %v", r)
	}
	if m := c.Metrics(); len(m) != 1 || m[0].GetName() != "calls" {
		t.Errorf("the measurements are %v", m)
	}
	for _, h := range c.Headers() {
		if h.Get("Authorization") != "Bearer s" || h.Get("X-Leak") != "" {
			t.Errorf("a request has the headers %v", h)
		}
	}
	if len(c.Headers()) != 2 || c.Holds("canary-6") || p.Status().State != health.Healthy {
		t.Errorf("%d requests, status %v", len(c.Headers()), p.Status())
	}
}

// The one who began a trace decides whether it is sent; of those that begin here the
// ratio does.
func TestSampling(t *testing.T) {
	parent := func(flags trace.TraceFlags) *trace.SpanContext {
		c := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: flags, Remote: true})
		return &c
	}
	for _, test := range []struct {
		name   string
		ratio  float64
		parent *trace.SpanContext
		want   bool
	}{
		{"all", 1, new(trace.SpanContext), true},
		{"none", 0, new(trace.SpanContext), false},
		{"none, but the parent is", 0, parent(trace.FlagsSampled), true},
		{"all, but the parent is not", 1, parent(0), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := open(t, otlp.Config{Endpoint: "http://127.0.0.1:1", SampleRatio: test.ratio}, slog.New(slog.DiscardHandler))
			_, span := p.Tracer.Tracer("t").Start(trace.ContextWithRemoteSpanContext(t.Context(), *test.parent), "one")
			if got := span.SpanContext().IsSampled(); got != test.want || span.IsRecording() != test.want || !span.SpanContext().IsValid() {
				t.Errorf("sampled = %t, want %t", got, test.want)
			}
		})
	}
}

// A collector that refuses, or sends elsewhere, is said to once for spans and once
// for measurements, and again when it takes them.
func TestRefused(t *testing.T) {
	for _, status := range []int{http.StatusBadRequest, http.StatusTemporaryRedirect} {
		c := otlptest.New(t)
		c.Answer(status)
		var lines bytes.Buffer
		p := open(t, otlp.Config{Endpoint: c.URL, SampleRatio: 1, Headers: map[string]creto.Secret{"X-Key": creto.NewSecret("canary-7")}}, slog.New(slog.NewTextHandler(&lines, nil)))
		for range 3 {
			_, span := p.Tracer.Tracer("t").Start(t.Context(), "one")
			span.End()
			flush(t, p)
		}
		if s := p.Status(); s.State != health.Degraded || strings.Count(lines.String(), "level=WARN") != 2 || strings.Contains(lines.String(), "canary-7") {
			t.Errorf("status %v, log %s", s, lines.String())
		}
		if n := len(c.Headers()); n != 6 {
			t.Errorf("%d requests, want 6: a redirect is not followed", n)
		}
		c.Answer(0)
		_, span := p.Tracer.Tracer("t").Start(t.Context(), "two")
		span.End()
		flush(t, p)
		if s := p.Status(); s.State != health.Healthy || strings.Count(lines.String(), "level=INFO") != 2 {
			t.Errorf("status %v, log %s", s, lines.String())
		}
	}
}

func TestProblems(t *testing.T) {
	for _, test := range []struct {
		config otlp.Config
		key    string
	}{
		{otlp.Config{Endpoint: "https://c.example/otel", SampleRatio: 0.5}, ""},
		{otlp.Config{Endpoint: "http://localhost:4318"}, ""},
		{otlp.Config{Endpoint: "http://[::1]:4318"}, ""},
		{otlp.Config{Endpoint: "http://c.example"}, "endpoint"},
		{otlp.Config{Endpoint: "https://user:p@c.example"}, "endpoint"},
		{otlp.Config{Endpoint: "c.example:4318"}, "endpoint"},
		{otlp.Config{}, "endpoint"},
		{otlp.Config{Endpoint: "https://c.example", SampleRatio: 1.5}, "sample_ratio"},
		{otlp.Config{Endpoint: "https://c.example", SampleRatio: -1}, "sample_ratio"},
		{otlp.Config{Endpoint: "https://c.example", Headers: map[string]creto.Secret{"A": creto.NewSecret("b\r\nC: d")}}, "headers"},
	} {
		problems := test.config.Problems()
		if _, found := problems[test.key]; len(problems) > 1 || found != (test.key != "") {
			t.Errorf("Problems(%+v) = %v, want %q", test.config, problems, test.key)
		}
		if test.key == "" {
			continue
		}
		if _, err := otlp.Open(t.Context(), test.config, slog.New(slog.DiscardHandler)); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("Open(%+v) = %v", test.config, err)
		}
	}
}
