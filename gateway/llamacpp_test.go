package gateway_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/gateway"
	"creto.dev/inference"
	"creto.dev/inference/provider"
	"creto.dev/internal/llamacpptest"
)

// A client of Anthropic's API, the gateway, and a real llama.cpp behind a provider
// of OpenAI's dialect; package llamacpptest says what of it is ours. Its model has
// random weights.
func TestLlamaCpp(t *testing.T) {
	server := llamacpptest.Start(t)
	m, err := provider.NewOpenAI(provider.Config{
		Name: "llamacpp", BaseURL: server.URL, APIKey: server.APIKey, Capabilities: inference.Capabilities{Streaming: true, Models: []string{"random-*"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
	ask := func(limit int, rest string) string {
		return fmt.Sprintf(`{"model":%q,"max_tokens":%d,"temperature":0,"system":"light","messages":[{"role":"user","content":"hello world"}]%s}`, llamacpptest.ModelName, limit, rest)
	}
	type usage struct {
		Input  int64 `json:"input_tokens"`
		Output int64 `json:"output_tokens"`
	}
	// <s>, <|system|>, light, <|user|>, hello, world, <|assistant|>, and the answer.
	want := audit.Usage{PromptTokens: 7, CompletionTokens: 24}

	status, body := h.ask(t, post(ask(24, ""), "/v1/messages"))
	var answer struct {
		Content    []struct{ Text string }
		StopReason string `json:"stop_reason"`
		Usage      usage
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK || len(answer.Content) != 1 || answer.Content[0].Text == "" || answer.StopReason != "max_tokens" || answer.Usage != (usage{7, 24}) {
		t.Fatalf("answer %d %s", status, body)
	}
	status, body = h.ask(t, post(ask(24, `,"stream":true`), "/v1/messages"))
	text, pieces := "", 0
	for line := range strings.Lines(body) {
		var event struct{ Delta struct{ Text string } }
		if data, ok := strings.CutPrefix(line, "data: "); ok && json.Unmarshal([]byte(data), &event) == nil && event.Delta.Text != "" {
			text, pieces = text+event.Delta.Text, pieces+1
		}
	}
	if status != http.StatusOK || text != answer.Content[0].Text || pieces < 12 || !strings.Contains(body, `"stop_reason":"max_tokens"`) || !strings.Contains(body, `"output_tokens":24`) {
		t.Errorf("streamed %d %q in %d pieces; whole %q\n%s", status, text, pieces, answer.Content[0].Text, body)
	}
	for _, r := range h.records(t, creto.CallModel, 2) {
		if r.Outcome != audit.Success || r.Usage == nil || *r.Usage != want || r.Detail["provider"] != "llamacpp" {
			t.Errorf("recorded %+v with usage %+v; want %+v", r, r.Usage, want)
		}
	}
	if status, body := h.ask(t, post(strings.Replace(ask(1, ""), "hello", strings.Repeat("seven ", 9000), 1), "/v1/messages")); status != http.StatusBadRequest || typeIn(t, body) != "invalid_request_error" {
		t.Errorf("a prompt beyond the context: %d %s", status, body)
	}

	// The caller leaves: generation ends, and what was delivered is metered.
	before := server.Slots(t)
	conn, reader := h.raw(t, post(ask(8000, `,"stream":true`), "/v1/messages"))
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(response.Body)
	for deltas := 0; deltas < 3; {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, "text_delta") {
			deltas++
		}
	}
	_ = conn.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	eventually(t, "the end of the generation", func() bool { s := server.Slots(t); return s.Active == 0 && s.GivenUp == before.GivenUp+1 })
	if n := server.Slots(t).Tokens - before.Tokens; n < 3 || n >= 8000 {
		t.Errorf("%d tokens were generated", n)
	}
	if r := h.records(t, creto.CallModel, 4)[0]; r.Outcome != audit.Timeout || r.Usage == nil || r.Usage.CompletionTokens == 0 || r.Usage.CompletionTokens >= 8000 || !r.Usage.Estimated {
		t.Errorf("recorded %+v with usage %+v", r, r.Usage)
	}
}
