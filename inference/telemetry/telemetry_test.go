package telemetry_test

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"testing"

	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/localinference"
	"creto.dev/inference/telemetry"
	"creto.dev/internal/otlp"
	"creto.dev/internal/otlp/otlptest"
)

// bench is a router behind telemetry that goes to a collector, over a connection.
type bench struct {
	inference.Router
	collector *otlptest.Collector
	pipeline  *otlp.Pipeline
	made      *telemetry.Telemetry
	local     inference.Router
}

// behind returns a router of models, which speak "openai" and are at HOST.example:8443.
func behind(t *testing.T, models ...inference.Model) bench {
	t.Helper()
	c := otlptest.New(t)
	p, err := otlp.Open(t.Context(), otlp.Config{Endpoint: c.URL, SampleRatio: 1}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	places := map[string]telemetry.Place{}
	for _, m := range models {
		places[m.ID()] = telemetry.Place{System: "openai", Address: m.ID() + ".example", Port: 8443}
	}
	made, err := telemetry.New(p.Tracer, p.Meter, places)
	if err != nil {
		t.Fatal(err)
	}
	var list []localinference.Provider
	for _, m := range models {
		list = append(list, localinference.Provider{Keys: []inference.Model{made.Provider(m)}})
	}
	r, err := localinference.New(localinference.Config{}, list, nil)
	if err != nil {
		t.Fatal(err)
	}
	return bench{made.Router(r), c, p, made, r}
}

// spans returns what came, sent now.
func (b bench) spans(t *testing.T) []*tracepb.Span {
	t.Helper()
	if err := b.pipeline.Tracer.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b.collector.Spans()
}

// named is a fake of another name, which fails as a test says.
type named struct {
	inferencetest.Fake
	id  string
	err error
	cut int // pieces after which a stream breaks off; 0 is never
}

func (n *named) ID() string { return n.id }

func (n *named) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	if n.err != nil && n.cut == 0 {
		return inference.Response{}, n.err
	}
	return n.Fake.Complete(ctx, r)
}

func (n *named) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	if n.err != nil && n.cut == 0 {
		return nil, n.err
	}
	s, err := n.Fake.CompleteStream(ctx, r)
	return &cutStream{s, n, 0}, err
}

// CountTokens makes it a counter.
func (n *named) CountTokens(context.Context, inference.Request) (int64, error) { return 7, n.err }

type cutStream struct {
	inference.Stream
	of *named
	n  int
}

func (s *cutStream) Next() (inference.Chunk, error) {
	if s.n++; s.of.cut > 0 && s.n > s.of.cut {
		return inference.Chunk{}, s.of.err
	}
	return s.Stream.Next()
}

func (s *cutStream) Usage() inference.Usage {
	return inference.Usage{PromptTokens: 3, CompletionTokens: int64(s.n), CachedTokens: 2}
}

// The decorators are what they decorate.
func TestConformance(t *testing.T) {
	inferencetest.Run(t, func(t *testing.T) inference.Model { return behind(t, new(inferencetest.Fake)) })
	for _, m := range []inference.Model{new(inferencetest.Fake), &named{id: "n"}} {
		made, err := telemetry.New(behind(t).pipeline.Tracer, behind(t).pipeline.Meter, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, counts := m.(inference.TokenCounter)
		if _, ok := made.Provider(m).(inference.TokenCounter); ok != counts {
			t.Errorf("a model that counts tokens: %t; behind telemetry: %t", counts, ok)
		}
	}
}

// Each way of asking is a span of the conventions, with one of an attempt below it.
func TestSpans(t *testing.T) {
	for _, test := range []struct {
		name, operation string
		ask             func(context.Context, inference.Router) error
		want            map[string]string
	}{
		{"whole", "chat", func(ctx context.Context, r inference.Router) error {
			q := inferencetest.Ask("secret-prompt")
			q.MaxTokens, q.Temperature, q.ResponseFormat = 64, "0.5", &inference.ResponseFormat{Type: "json_object"}
			q.Metadata.Policies = []string{"p/1", "p/2"}
			_, err := r.Complete(ctx, q)
			return err
		}, map[string]string{
			"gen_ai.response.finish_reasons": "stop", "gen_ai.response.id": "fake-1", "gen_ai.response.model": inferencetest.ModelName, "gen_ai.usage.input_tokens": "4",
			"gen_ai.usage.output_tokens": "5", "gen_ai.request.max_tokens": "64", "gen_ai.request.temperature": "0.5", "gen_ai.output.type": "json",
			"creto.usage.estimated": "true", "creto.policies": "p/1 p/2", "creto.decision": "allow",
		}},
		{"streamed", "chat", func(ctx context.Context, r inference.Router) error {
			s, err := r.CompleteStream(ctx, inferencetest.Ask("secret-prompt"))
			if err != nil {
				return err
			}
			_, _, err = inferencetest.Collect(t, s)
			return errors.Join(err, s.Close())
		}, map[string]string{
			"gen_ai.request.stream": "true", "gen_ai.response.finish_reasons": "stop", "gen_ai.response.id": "fake-1", "gen_ai.response.model": inferencetest.ModelName,
			"gen_ai.usage.input_tokens": "3", "gen_ai.usage.output_tokens": "5", "gen_ai.usage.cache_read.input_tokens": "2", "gen_ai.response.time_to_first_chunk": "*",
		}},
		{"embeddings", "embeddings", func(ctx context.Context, r inference.Router) error {
			_, err := r.Embed(ctx, inference.EmbedRequest{Model: inferencetest.ModelName, Input: []string{"secret-prompt"}, Metadata: inferencetest.Ask("x").Metadata})
			return err
		}, map[string]string{"gen_ai.response.model": inferencetest.ModelName, "gen_ai.usage.input_tokens": "4", "gen_ai.usage.output_tokens": "0", "creto.usage.estimated": "true"}},
		{"tokens", "count_tokens", func(ctx context.Context, r inference.Router) error {
			_, err := r.CountTokens(ctx, inferencetest.Ask("secret-prompt"))
			return err
		}, map[string]string{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := behind(t, &named{id: "one"})
			ctx, parent := b.pipeline.Tracer.Tracer("t").Start(t.Context(), "caller")
			if err := test.ask(ctx, b); err != nil {
				t.Fatal(err)
			}
			parent.End()
			if n := len(b.spans(t)); n != 3 {
				t.Fatalf("%d spans, want those of the caller, the call and the attempt", n)
			}
			call, attempt := b.collector.Span(t, test.operation+" "+inferencetest.ModelName), b.collector.Span(t, "attempt one")
			want := map[string]string{
				"gen_ai.operation.name": test.operation, "gen_ai.provider.name": "openai", "gen_ai.request.model": inferencetest.ModelName, "server.address": "one.example", "server.port": "8443",
				"creto.agent": "spiffe://creto.local/default/agent/bob", "creto.tenant": "default", "creto.sandbox": "sb-1", "creto.classification": "public",
				"creto.provider": "one", "creto.attempts": "1",
			}
			for key, value := range test.want {
				want[key] = value
			}
			compare(t, call, want)
			compare(t, attempt, map[string]string{
				"gen_ai.provider.name": "openai", "gen_ai.request.model": inferencetest.ModelName, "server.address": "one.example", "server.port": "8443", "creto.provider": "one",
			})
			id := parent.SpanContext().SpanID()
			if hex.EncodeToString(call.GetParentSpanId()) != id.String() || string(attempt.GetParentSpanId()) != string(call.GetSpanId()) {
				t.Errorf("the call is below %x, the attempt below %x", call.GetParentSpanId(), attempt.GetParentSpanId())
			}
			for _, s := range []*tracepb.Span{call, attempt} {
				if s.GetKind() != tracepb.Span_SPAN_KIND_CLIENT || s.GetStatus().GetCode() != tracepb.Status_STATUS_CODE_UNSET {
					t.Errorf("%s is of kind %v, status %v", s.GetName(), s.GetKind(), s.GetStatus())
				}
			}
			if b.collector.Holds("secret-prompt") {
				t.Error("what was said is in a span")
			}
		})
	}
}

func compare(t *testing.T, s *tracepb.Span, want map[string]string) {
	t.Helper()
	got := otlptest.Attributes(s)
	for key, value := range want {
		if got[key] != value && (value != "*" || got[key] == "") {
			t.Errorf("%s: %s = %q, want %q", s.GetName(), key, got[key], value)
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("%s: %s = %q, which is not expected", s.GetName(), key, got[key])
		}
	}
}

// A call that fell back is one span, with who served at last; below it is each
// attempt, with why it failed.
func TestFallback(t *testing.T) {
	unavailable := fault.New("t", fault.InferenceProviderUnavailable, "secret-reason")
	b := behind(t, &named{id: "down", err: unavailable}, &named{id: "up"})
	if _, err := b.Complete(t.Context(), inferencetest.Ask("x")); err != nil {
		t.Fatal(err)
	}
	spans := b.spans(t)
	call := b.collector.Span(t, "chat "+inferencetest.ModelName)
	attempts := len(spans) - 1
	if a := otlptest.Attributes(call); a["creto.provider"] != "up" || a["server.address"] != "up.example" || a["creto.attempts"] != strconv.Itoa(attempts) || a["error.type"] != "" || attempts < 2 {
		t.Errorf("%d attempts; the call is %v", attempts, a)
	}
	for _, s := range spans {
		if s == call {
			continue
		}
		a := otlptest.Attributes(s)
		failed := s.GetName() == "attempt down"
		if (a["error.type"] == "inference.provider_unavailable") != failed || (s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR) != failed || string(s.GetParentSpanId()) != string(call.GetSpanId()) {
			t.Errorf("%s: %v, status %v", s.GetName(), a, s.GetStatus())
		}
		if _, ok := a["gen_ai.usage.input_tokens"]; ok {
			t.Errorf("%s counts tokens, which its call does too", s.GetName())
		}
	}
	if b.collector.Holds("secret-reason") {
		t.Error("what a provider said of an error is in a span")
	}
}

// A call that nobody served says so, and measurements do not keep its model's name.
func TestFailed(t *testing.T) {
	b := behind(t, &named{id: "one"})
	q := inferencetest.Ask("x")
	q.Model = "made-up-1"
	if _, err := b.Complete(t.Context(), q); fault.CodeOf(err) != fault.InferenceModelNotFound {
		t.Fatal(err)
	}
	b.spans(t)
	call := b.collector.Span(t, "chat made-up-1")
	if a := otlptest.Attributes(call); a["gen_ai.provider.name"] != "creto" || a["error.type"] != "inference.model_not_found" || call.GetStatus().GetMessage() != "" {
		t.Errorf("the call is %v, %v", a, call.GetStatus())
	}
	points := b.points(t)["gen_ai.client.operation.duration"]
	if len(points) != 1 || points[0]["gen_ai.request.model"] != "" || points[0]["error.type"] != "inference.model_not_found" {
		t.Errorf("measured %v", points)
	}
}

// points returns the attributes of what was measured, with "sum" and "count".
func (b bench) points(t *testing.T) map[string][]map[string]string {
	t.Helper()
	if err := b.pipeline.Meter.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := map[string][]map[string]string{}
	for _, m := range b.collector.Metrics() {
		for _, p := range m.GetHistogram().GetDataPoints() {
			a := otlptest.Attributes(&tracepb.Span{Attributes: p.GetAttributes()})
			a["sum"], a["count"] = strconv.FormatFloat(p.GetSum(), 'g', -1, 64), strconv.FormatUint(p.GetCount(), 10)
			all[m.GetName()] = append(all[m.GetName()], a)
			checkBounds(t, m.GetName(), p)
		}
	}
	return all
}

func checkBounds(t *testing.T, name string, p *metricspb.HistogramDataPoint) {
	t.Helper()
	if b := p.GetExplicitBounds(); len(b) != 14 || name == "gen_ai.client.token.usage" && b[13] != 67108864 || name != "gen_ai.client.token.usage" && b[13] != 81.92 {
		t.Errorf("%s has the boundaries %v", name, b)
	}
}

func TestMeasurements(t *testing.T) {
	b := behind(t, &named{id: "one"})
	for range 2 {
		if _, err := b.Complete(t.Context(), inferencetest.Ask("x")); err != nil {
			t.Fatal(err)
		}
	}
	points := b.points(t)
	durations, tokens := points["gen_ai.client.operation.duration"], points["gen_ai.client.token.usage"]
	if len(durations) != 1 || durations[0]["count"] != "2" || durations[0]["gen_ai.provider.name"] != "openai" || durations[0]["gen_ai.request.model"] != inferencetest.ModelName || durations[0]["server.address"] != "one.example" {
		t.Errorf("durations %v", durations)
	}
	if len(tokens) != 2 {
		t.Fatalf("tokens %v", tokens)
	}
	for _, p := range tokens {
		if want := map[string]string{"input": "2", "output": "4"}[p["gen_ai.token.type"]]; p["sum"] != want || p["count"] != "2" || p["gen_ai.operation.name"] != "chat" {
			t.Errorf("tokens %v, want a sum of %s", p, want)
		}
	}
}

// A stream that breaks off, or that nobody wants any more, has used what it used.
func TestStreamBreaksOff(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(*testing.T, inference.Stream)
		code string
	}{
		{"broken", func(t *testing.T, s inference.Stream) {
			for {
				if _, err := s.Next(); err != nil {
					if errors.Is(err, io.EOF) {
						t.Error("the stream is complete")
					}
					return
				}
			}
		}, "inference.provider_unavailable"},
		{"closed", func(t *testing.T, s inference.Stream) {
			for range 2 {
				if _, err := s.Next(); err != nil {
					t.Fatal(err)
				}
			}
		}, "canceled"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := behind(t, &named{id: "one", cut: 2, err: fault.New("t", fault.InferenceProviderUnavailable, "x")})
			s, err := b.CompleteStream(t.Context(), inferencetest.Ask("one two three"))
			if err != nil {
				t.Fatal(err)
			}
			test.end(t, s)
			_ = s.Close()
			_ = s.Close()
			if n := len(b.spans(t)); n != 2 {
				t.Fatalf("%d spans, want 2", n)
			}
			call, attempt := b.collector.Span(t, "chat "+inferencetest.ModelName), b.collector.Span(t, "attempt one")
			a := otlptest.Attributes(call)
			if a["error.type"] != test.code || a["gen_ai.usage.input_tokens"] != "3" || a["gen_ai.usage.output_tokens"] == "0" || a["gen_ai.usage.output_tokens"] == "" || a["gen_ai.response.finish_reasons"] != "" {
				t.Errorf("the call is %v", a)
			}
			if got := otlptest.Attributes(attempt)["error.type"]; got != test.code {
				t.Errorf("the attempt's error is %q", got)
			}
			points := b.points(t)
			if d, used := points["gen_ai.client.operation.duration"], points["gen_ai.client.token.usage"]; len(d) != 1 || d[0]["count"] != "1" || len(used) != 2 || used[0]["count"] != "1" {
				t.Errorf("measured %v", points)
			}
		})
	}
}

// A stream that is closed while its reader waits ends its span once, by the reader.
func TestCloseWhileReading(t *testing.T) {
	b := behind(t, &named{id: "one"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := b.CompleteStream(ctx, inferencetest.Ask("a b c d e f g h"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := s.Next(); err != nil {
				return
			}
		}
	}()
	_ = s.Close()
	<-done
	if n := len(b.spans(t)); n != 2 {
		t.Errorf("%d spans, want 2", n)
	}
}

// An answer that was kept is a call that used nothing, without an attempt; its zero
// tokens are in no histogram.
func TestKeptAnswer(t *testing.T) {
	b := behind(t, &named{id: "one"})
	for _, cached := range []string{"", inference.CacheHit} {
		b.Router = b.made.Router(keeper{b.local, cached})
		if _, err := b.Complete(t.Context(), inferencetest.Ask("x")); err != nil {
			t.Fatal(err)
		}
	}
	hits := 0
	for _, s := range b.spans(t) {
		if a := otlptest.Attributes(s); a["creto.cache"] == inference.CacheHit {
			hits++
			if a["creto.provider"] != "one" || a["creto.attempts"] != "0" || a["gen_ai.usage.input_tokens"] != "0" || a["gen_ai.provider.name"] != "openai" {
				t.Errorf("the call is %v", a)
			}
		}
	}
	points := b.points(t)
	if d, tokens := points["gen_ai.client.operation.duration"], points["gen_ai.client.token.usage"]; hits != 1 || len(d) != 1 || d[0]["count"] != "2" || len(tokens) != 2 || tokens[0]["count"] != "1" {
		t.Errorf("%d hits, measured %v", hits, points)
	}
}

// keeper is a router that has the answer already, if cached says so.
type keeper struct {
	inference.Router
	cached string
}

func (k keeper) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	if k.cached == "" {
		return k.Router.Complete(ctx, r)
	}
	*r.Metadata.Served = inference.Served{Provider: "one", Model: r.Model, Cache: k.cached}
	return inference.Response{Model: r.Model}, nil
}
