package provider_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
)

// messages is a server of Anthropic's dialect written without this package's
// encoders, so that a mistake in them is not its own proof.
type messages struct{ noUsage bool }

func (u messages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Api-Key") != apiKey || r.Header.Get("Authorization") != "" {
		refuseMessages(w, 401, "authentication_error", "invalid x-api-key "+r.Header.Get("X-Api-Key"))
		return
	}
	if r.Header.Get("Anthropic-Version") != "2023-06-01" {
		refuseMessages(w, 400, "invalid_request_error", "anthropic-version: header is required")
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /v1/models":
		_, _ = fmt.Fprint(w, `{"data":[],"has_more":false}`)
	case "POST /v1/messages", "POST /v1/messages/count_tokens":
		u.answer(w, r)
	default:
		http.NotFound(w, r)
	}
}

func refuseMessages(w http.ResponseWriter, status int, kind, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	body, _ := json.Marshal(map[string]any{"type": "error", "error": map[string]any{"type": kind, "message": message}, "request_id": "req_1"})
	_, _ = w.Write(body)
}

func (u messages) answer(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Model     string
		Stream    bool
		MaxTokens *int64 `json:"max_tokens"`
		Messages  []struct {
			Role    string
			Content any
		}
		Tools []struct{ Name string }
	}
	counts := r.URL.Path != "/v1/messages"
	err := json.NewDecoder(r.Body).Decode(&in)
	switch {
	case err != nil || len(in.Messages) == 0 || counts != (in.MaxTokens == nil):
		refuseMessages(w, 400, "invalid_request_error", "malformed")
		return
	case in.Model != inferencetest.ModelName:
		refuseMessages(w, 404, "not_found_error", "model: "+in.Model)
		return
	case counts:
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprint(w, `{"input_tokens":9}`)
		return
	}
	text, _ := in.Messages[len(in.Messages)-1].Content.(string)
	if text == inferencetest.HangPrompt {
		if in.Stream {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-r.Context().Done():
		case <-time.After(20 * time.Second):
		}
		return
	}
	useTool := text == inferencetest.ToolPrompt && len(in.Tools) > 0
	usage, head := `{"input_tokens":5,"cache_read_input_tokens":4,"output_tokens":3}`, `{"input_tokens":5,"cache_read_input_tokens":4,"output_tokens":1}`
	if u.noUsage {
		usage, head = "{}", "{}"
	}
	answer, _ := json.Marshal(inferencetest.EchoPrefix + text)
	stop := "end_turn"
	content := fmt.Sprintf(`{"type":"text","text":%s}`, answer)
	if useTool {
		stop = "tool_use"
		content = fmt.Sprintf(`{"type":"tool_use","id":"toolu_1","name":%q,"input":%s}`, in.Tools[0].Name, inferencetest.ToolArguments)
	}
	if !in.Stream {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"id":"msg_1","type":"message","role":"assistant","model":"echo-1-2026","content":[%s],"stop_reason":%q,"stop_sequence":null,"usage":%s}`, content, stop, usage)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	say := func(kind, rest string) {
		_, _ = fmt.Fprintf(w, "event: %s\ndata: {\"type\":%q%s}\n\n", kind, kind, rest)
		_ = http.NewResponseController(w).Flush()
	}
	say("message_start", `,"message":{"id":"msg_1","type":"message","role":"assistant","model":"echo-1-2026","content":[],"stop_reason":null,"stop_sequence":null,"usage":`+head+`}`)
	say("ping", "")
	if useTool {
		arguments, _ := json.Marshal(inferencetest.ToolArguments)
		say("content_block_start", fmt.Sprintf(`,"index":0,"content_block":{"type":"tool_use","id":"toolu_1","name":%q,"input":{}}`, in.Tools[0].Name))
		say("content_block_delta", fmt.Sprintf(`,"index":0,"delta":{"type":"input_json_delta","partial_json":%s}`, arguments))
	} else {
		prefix, _ := json.Marshal(inferencetest.EchoPrefix)
		rest, _ := json.Marshal(text)
		say("content_block_start", `,"index":0,"content_block":{"type":"text","text":""}`)
		say("content_block_delta", fmt.Sprintf(`,"index":0,"delta":{"type":"text_delta","text":%s}`, prefix))
		say("content_block_delta", fmt.Sprintf(`,"index":0,"delta":{"type":"text_delta","text":%s}`, rest))
	}
	say("content_block_stop", `,"index":0`)
	say("message_delta", fmt.Sprintf(`,"delta":{"stop_reason":%q,"stop_sequence":null},"usage":%s`, stop, usage))
	say("message_stop", "")
}

// openAnthropic returns a client of handler on a real loopback server.
func openAnthropic(t testing.TB, handler http.Handler, change func(*provider.AnthropicConfig)) *provider.Anthropic {
	t.Helper()
	server := httptest.NewServer(handler)
	c := provider.AnthropicConfig{Config: provider.Config{
		Name: "test", BaseURL: server.URL + "/v1", APIKey: creto.NewSecret(apiKey),
		Capabilities: inference.Capabilities{Streaming: true, Tools: true, Models: []string{"*"}},
	}}
	if change != nil {
		change(&c)
	}
	client, err := provider.NewAnthropic(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		server.CloseClientConnections()
		server.Close()
	})
	return client
}

func TestAnthropicConformance(t *testing.T) {
	for name, u := range map[string]messages{"with usage": {}, "without usage": {noUsage: true}} {
		t.Run(name, func(t *testing.T) {
			inferencetest.Run(t, func(t *testing.T) inference.Model { return openAnthropic(t, u, nil) })
		})
	}
}
