package gateway_test

import (
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"creto.dev"
	"creto.dev/gateway"
	"creto.dev/inference"
	"creto.dev/inference/localinference"
	"creto.dev/inference/provider"
	"creto.dev/inference/telemetry"
	"creto.dev/internal/otlp"
	"creto.dev/internal/otlp/otlptest"
)

const (
	callerTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	callerSpan   = "00f067aa0ba902b7"
	callerParent = "00-" + callerTrace + "-" + callerSpan + "-01"
)

// heard remembers the trace headers that a provider was sent.
type heard struct {
	mu            sync.Mutex // guards what follows
	parent, state []string
}

func (h *heard) last() (parent, state string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.parent) == 0 {
		return "", ""
	}
	return h.parent[len(h.parent)-1], h.state[len(h.state)-1]
}

// traceable is a provider that answers, and is sent the trace context if told is true.
func traceable(t *testing.T, told bool) (inference.Model, *heard) {
	t.Helper()
	h := new(heard)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.parent, h.state = append(h.parent, r.Header.Get("Traceparent")), append(h.state, r.Header.Get("Tracestate"))
		h.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"id":"1","model":"echo-1","choices":[{"index":0,"message":{"role":"assistant","content":"secret-answer"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}`)
	}))
	t.Cleanup(server.Close)
	m := must[*provider.OpenAI](t)(provider.NewOpenAI(provider.Config{
		Name: "stub", BaseURL: server.URL + "/v1", TraceContext: told, Capabilities: inference.Capabilities{Models: []string{"echo-1"}},
	}))
	t.Cleanup(func() { _ = m.Close() })
	return m, h
}

// A caller's trace is in the record and, where that is configured, in the provider's
// request, also without telemetry. What is no trace is ignored.
func TestTraceContext(t *testing.T) {
	for _, test := range []struct {
		name    string
		headers []string
		trace   string
		state   string
	}{
		{"none", nil, "", ""},
		{"one", []string{"traceparent: " + callerParent}, callerTrace, ""},
		{"with a state", []string{"traceparent: " + callerParent, "tracestate: a=1,b=2"}, callerTrace, "a=1,b=2"},
		{"a later version", []string{"traceparent: 01-" + callerTrace + "-" + callerSpan + "-01-more"}, callerTrace, ""},
		{"a state that is too long", []string{"traceparent: " + callerParent, "tracestate: " + strings.Repeat("a", 200) + "=1," + strings.Repeat("b", 200) + "=" + strings.Repeat("x", 200)}, callerTrace, ""},
		{"a state that is none", []string{"traceparent: " + callerParent, "tracestate: ;;;"}, callerTrace, ""},
		{"twice", []string{"traceparent: " + callerParent, "traceparent: " + callerParent}, "", ""},
		{"in upper case", []string{"traceparent: " + strings.ToUpper(callerParent)}, "", ""},
		{"zeros", []string{"traceparent: 00-" + strings.Repeat("0", 32) + "-" + callerSpan + "-01"}, "", ""},
		{"version ff", []string{"traceparent: ff-" + callerTrace + "-" + callerSpan + "-01"}, "", ""},
		{"nonsense", []string{"traceparent: ; DROP TABLE"}, "", ""},
		{"a state alone", []string{"tracestate: a=1"}, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, told := range []bool{true, false} {
				m, heard := traceable(t, told)
				h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
				if status, body := h.ask(t, post(hello+"}", "/v1/chat/completions", test.headers...)); status != http.StatusOK {
					t.Fatalf("answer %d %s", status, body)
				}
				if r := h.records(t, creto.CallModel, 1)[0]; r.Trace != test.trace {
					t.Errorf("the record's trace is %q, want %q", r.Trace, test.trace)
				}
				parent, state := heard.last()
				if want := test.trace != "" && told; strings.Contains(parent, callerTrace) != want || (parent != "") != want || state != map[bool]string{true: test.state}[want] {
					t.Errorf("the provider was sent %q and %q; told is %t", parent, state, told)
				}
			}
		})
	}
}

// traced is a house whose requests and calls are spans, sent to a collector.
func traced(t *testing.T, ratio float64, m inference.Model, allow ...string) (*house, *otlptest.Collector, *otlp.Pipeline) {
	t.Helper()
	c := otlptest.New(t)
	p := must[*otlp.Pipeline](t)(otlp.Open(t.Context(), otlp.Config{Endpoint: c.URL, SampleRatio: ratio}, slog.New(slog.DiscardHandler)))
	t.Cleanup(func() { _ = p.Close() })
	made := must[*telemetry.Telemetry](t)(telemetry.New(p.Tracer, p.Meter, map[string]telemetry.Place{"stub": {System: "openai"}}))
	router := must[*localinference.Router](t)(localinference.New(localinference.Config{}, []localinference.Provider{{Keys: []inference.Model{made.Provider(m)}}}, nil))
	return openRouter(t, gateway.Config{Tracer: p.Tracer}, made.Router(router), allow...), c, p
}

// From the caller's span to the provider's request is one trace; the spans say which
// record is about them, and nothing of what was said.
func TestTraceSpans(t *testing.T) {
	m, heard := traceable(t, true)
	h, c, p := traced(t, 0, m, anyModel)
	if status, body := h.ask(t, post(hello+"}", "/v1/chat/completions", "traceparent: "+callerParent, "tracestate: a=1")); status != http.StatusOK {
		t.Fatalf("answer %d %s", status, body)
	}
	r := h.records(t, creto.CallModel, 1)[0]
	if err := p.Tracer.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
	door, call, attempt := c.Span(t, "POST /v1/chat/completions"), c.Span(t, "chat echo-1"), c.Span(t, "attempt stub")
	for _, s := range []*tracepb.Span{door, call, attempt} {
		if hex.EncodeToString(s.GetTraceId()) != callerTrace {
			t.Errorf("%s is of the trace %x", s.GetName(), s.GetTraceId())
		}
	}
	if hex.EncodeToString(door.GetParentSpanId()) != callerSpan || string(call.GetParentSpanId()) != string(door.GetSpanId()) || string(attempt.GetParentSpanId()) != string(call.GetSpanId()) {
		t.Errorf("parents are %x, %x, %x", door.GetParentSpanId(), call.GetParentSpanId(), attempt.GetParentSpanId())
	}
	if parent, state := heard.last(); parent != "00-"+callerTrace+"-"+hex.EncodeToString(attempt.GetSpanId())+"-01" || state != "a=1" {
		t.Errorf("the provider was sent %q and %q", parent, state)
	}
	a := otlptest.Attributes(door)
	for key, want := range map[string]string{
		"http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": "200", "creto.decision": "allow",
		"creto.record.id": r.ID.String(), "creto.agent": h.bot.String(), "creto.tenant": creto.DefaultTenant, "creto.sandbox": "run-1", "error.type": "",
	} {
		if a[key] != want {
			t.Errorf("the door's span: %s = %q, want %q", key, a[key], want)
		}
	}
	if door.GetKind() != tracepb.Span_SPAN_KIND_SERVER || r.Trace != callerTrace || c.Holds("secret-answer") || c.Holds("hello") {
		t.Errorf("kind %v, record's trace %q, or what was said is in a span", door.GetKind(), r.Trace)
	}
}

// A denial is a span that names its record, without a call below it; a trace begins
// here if nobody sent one, and its id is in the record whether it is sampled or not.
func TestTraceDenied(t *testing.T) {
	m, _ := traceable(t, true)
	h, c, p := traced(t, 1, m, "call_model=other")
	if status, _ := h.ask(t, post(hello+"}", "/v1/chat/completions")); status != http.StatusForbidden {
		t.Fatalf("answer %d", status)
	}
	if err := p.Tracer.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
	door := c.Span(t, "POST /v1/chat/completions")
	r, a := h.records(t, creto.CallModel, 1)[0], otlptest.Attributes(door)
	if a["error.type"] != "authz.denied" || a["creto.record.id"] != r.ID.String() || a["creto.decision"] != "" || a["http.response.status_code"] != "403" || r.Trace != hex.EncodeToString(door.GetTraceId()) || len(c.Spans()) != 1 {
		t.Errorf("the span is %v of %x, the record's trace %q; %d spans", a, door.GetTraceId(), r.Trace, len(c.Spans()))
	}
	m, _ = traceable(t, true)
	h, c, p = traced(t, 0, m, anyModel)
	if status, _ := h.ask(t, post(hello+"}", "/v1/chat/completions")); status != http.StatusOK {
		t.Fatalf("answer %d", status)
	}
	if err := p.Tracer.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := h.records(t, creto.CallModel, 1)[0]; len(r.Trace) != 32 || len(c.Spans()) != 0 {
		t.Errorf("the record's trace is %q; %d spans, none of which is sampled", r.Trace, len(c.Spans()))
	}
}

// Requests and tunnels through the proxy are spans too, and what an agent sends is
// sent as it is.
func TestTraceEgress(t *testing.T) {
	var got http.Header
	site := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() }))
	t.Cleanup(site.Close)
	c := otlptest.New(t)
	p := must[*otlp.Pipeline](t)(otlp.Open(t.Context(), otlp.Config{Endpoint: c.URL, SampleRatio: 1}, slog.New(slog.DiscardHandler)))
	t.Cleanup(func() { _ = p.Close() })
	h := open(t, gateway.Config{Tracer: p.Tracer, Hosts: map[string]string{"shop.test": strings.TrimPrefix(site.URL, "http://")}}, nil, "http_request=http://shop.test/*", "network_egress=*")
	if status, body := h.ask(t, "GET http://shop.test/a?key=secret-query HTTP/1.1\nHost: a\ntraceparent: "+callerParent+"\n\n"); status != http.StatusOK {
		t.Fatalf("answer %d %s", status, body)
	}
	if got.Get("Traceparent") != callerParent {
		t.Errorf("the site was sent %q", got.Get("Traceparent"))
	}
	conn, reader := h.raw(t, "CONNECT shop.test:443 HTTP/1.1\nHost: shop.test:443\n\n")
	if line, err := reader.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Errorf("the tunnel: %q, %v", line, err)
	}
	_ = conn.Close()
	r := h.records(t, creto.HTTPRequest, 1)[0]
	h.records(t, creto.NetworkEgress, 1)
	if err := p.Tracer.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := otlptest.Attributes(c.Span(t, "GET")); a["creto.record.id"] != r.ID.String() || a["http.response.status_code"] != "200" || r.Trace != callerTrace || c.Holds("secret-query") {
		t.Errorf("the span is %v, the record's trace %q", a, r.Trace)
	}
	c.Span(t, "CONNECT")
}
