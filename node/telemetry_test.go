package node_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/internal/otlp/otlptest"
	"creto.dev/node"
)

// A node with a collector sends it what model calls were, the rest when it stops. A
// provider hears of the trace where it is local, or the configuration says so.
func TestTelemetry(t *testing.T) {
	for _, test := range []struct {
		name          string
		local, stated bool
		want          bool
	}{{"a provider elsewhere", false, false, false}, {"a local one", true, false, true}, {"one that is trusted with it", false, true, true}} {
		t.Run(test.name, func(t *testing.T) {
			var heard atomic.Value
			model := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					heard.Store(r.Header.Get("Traceparent"))
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write([]byte(`{"id":"1","object":"chat.completion","model":"m-1","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"hello"}}],"usage":{"prompt_tokens":4,"completion_tokens":5,"total_tokens":9}}`))
			}))
			defer model.Close()
			collector := otlptest.New(t)
			o := options(t, t.TempDir())
			o.Config.Inference.Providers = []node.ProviderConfig{{Name: "there", BaseURL: model.URL + "/v1", Local: test.local, TraceContext: test.stated}}
			o.Config.Telemetry.Endpoint, o.Config.Telemetry.Headers = collector.URL, map[string]creto.Secret{"Authorization": creto.NewSecret("Bearer x")}
			_, c, stop := running(t, o)
			agent, err := c.AddAgent(t.Context(), client.NewAgent{Name: "bob", Allow: []string{"call_model=*"}})
			if err != nil {
				t.Fatal(err)
			}
			status, err := c.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			token, err := c.Token(t.Context(), agent.Name, client.NewToken{})
			if err != nil {
				t.Fatal(err)
			}
			if got := modelCall(t.Context(), "http://"+status.Listen, token.Token); got != http.StatusOK {
				t.Fatalf("status %d", got)
			}
			stop()
			call, door := collector.Span(t, "chat m"), collector.Span(t, "POST /v1/chat/completions")
			a := otlptest.Attributes(call)
			at, _ := url.Parse(model.URL)
			for key, want := range map[string]string{
				"gen_ai.provider.name": "openai", "gen_ai.response.model": "m-1", "gen_ai.usage.input_tokens": "4", "gen_ai.usage.output_tokens": "5",
				"server.address": at.Hostname(), "server.port": at.Port(), "creto.provider": "there", "creto.decision": "allow",
			} {
				if a[key] != want {
					t.Errorf("%s = %q, want %q", key, a[key], want)
				}
			}
			if string(call.GetParentSpanId()) != string(door.GetSpanId()) || otlptest.Attributes(door)["creto.record.id"] == "" {
				t.Errorf("the call is below %x; the door is %x, %v", call.GetParentSpanId(), door.GetSpanId(), otlptest.Attributes(door))
			}
			if parent, _ := heard.Load().(string); (parent != "") != test.want {
				t.Errorf("the provider was sent the traceparent %q", parent)
			}
			if len(collector.Metrics()) == 0 || collector.Resource()["service.version"] != "test" {
				t.Errorf("%d measurements of %v", len(collector.Metrics()), collector.Resource())
			}
			for _, h := range collector.Headers() {
				if h.Get("Authorization") != "Bearer x" {
					t.Error("a request has no authorization")
				}
			}
		})
	}
}

func TestTelemetryConfig(t *testing.T) {
	for _, test := range []struct {
		config node.TelemetryConfig
		key    string // that is wrong; "" if none is
	}{
		{node.TelemetryConfig{}, ""},
		{node.TelemetryConfig{Endpoint: "https://collector.example", SampleRatio: 0.1}, ""},
		{node.TelemetryConfig{Endpoint: "http://127.0.0.1:4318"}, ""},
		{node.TelemetryConfig{Endpoint: "http://collector.example"}, "endpoint"},
		{node.TelemetryConfig{Endpoint: "collector.example"}, "endpoint"},
		{node.TelemetryConfig{SampleRatio: 2}, "sample_ratio"},
		{node.TelemetryConfig{Headers: map[string]creto.Secret{"A": creto.NewSecret("b\n")}}, "headers"},
	} {
		cfg := node.Default()
		cfg.Telemetry = test.config
		err := cfg.Validate()
		if (err == nil) != (test.key == "") || err != nil && (!errors.Is(err, fault.InvalidArgument) || !strings.Contains(fault.Message(err), "telemetry."+test.key)) {
			t.Errorf("%+v = %v, want %q to be wrong", test.config, err, test.key)
		}
	}
}
