package provider_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
)

const ndjson = "application/x-ndjson"

// ollama is a server of Ollama's own dialect, which wants no key.
type ollama struct{ noUsage bool }

func (u ollama) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Model    string
		Stream   *bool
		Input    []string
		Messages []struct{ Role, Content string }
		Tools    []struct {
			Function struct{ Name string }
		}
	}
	if r.Method == http.MethodGet && r.URL.Path == "/api/tags" {
		respond(200, "application/json", `{"models":[]}`)(w, r)
		return
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Header.Get("Authorization") != "" {
		respond(400, "application/json", `{"error":"malformed"}`)(w, r)
		return
	}
	if in.Model != inferencetest.ModelName {
		respond(404, "application/json", fmt.Sprintf(`{"error":"model '%s' not found"}`, in.Model))(w, r)
		return
	}
	if r.URL.Path == "/api/embed" {
		var list []string
		for i := range in.Input {
			list = append(list, fmt.Sprintf("[%d.5,0.25]", i))
		}
		respond(200, "application/json", `{"model":"echo-1","embeddings":[`+strings.Join(list, ",")+`],"total_duration":1,"prompt_eval_count":3}`)(w, r)
		return
	}
	if r.URL.Path != "/api/chat" || len(in.Messages) == 0 || in.Stream == nil { // which streams unless told not to
		http.NotFound(w, r)
		return
	}
	text := in.Messages[len(in.Messages)-1].Content
	if text == inferencetest.HangPrompt {
		if *in.Stream {
			w.Header().Set("Content-Type", ndjson)
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-r.Context().Done():
		case <-time.After(20 * time.Second):
		}
		return
	}
	end := `"done":true,"done_reason":"stop","total_duration":1,"load_duration":1,"prompt_eval_count":9,"prompt_eval_duration":1,"eval_count":3,"eval_duration":1`
	if u.noUsage {
		end = `"done":true,"done_reason":"stop","eval_count":3` // as with a prompt that was kept
	}
	line := func(message, rest string) string {
		return fmt.Sprintf(`{"model":"echo-1","created_at":"2025-11-22T10:00:00.0Z","message":{"role":"assistant",%s},%s}`+"\n", message, rest)
	}
	answer, _ := json.Marshal(inferencetest.EchoPrefix + text)
	message := `"content":` + string(answer)
	useTool := text == inferencetest.ToolPrompt && len(in.Tools) > 0
	if useTool {
		message = fmt.Sprintf(`"content":"","tool_calls":[{"function":{"name":%q,"arguments":%s}}]`, in.Tools[0].Function.Name, inferencetest.ToolArguments)
	}
	if !*in.Stream {
		respond(200, "application/json; charset=utf-8", line(message, end))(w, r)
		return
	}
	w.Header().Set("Content-Type", ndjson)
	say := func(line string) {
		_, _ = w.Write([]byte(line))
		_ = http.NewResponseController(w).Flush()
	}
	if useTool {
		say(line(message, `"done":false`))
	} else {
		rest, _ := json.Marshal(text)
		say(line(`"content":"`+inferencetest.EchoPrefix+`"`, `"done":false`))
		say(line(`"content":`+string(rest), `"done":false`))
	}
	say(line(`"content":""`, end))
}

func openOllama(t *testing.T, h http.Handler, change func(*provider.Config)) inference.Model {
	t.Helper()
	server := httptest.NewServer(h)
	c := provider.Config{
		Name: "test", BaseURL: server.URL, Local: true,
		Capabilities: inference.Capabilities{Streaming: true, Tools: true, Vision: true, Embeddings: true, Models: []string{"*"}},
	}
	if change != nil {
		change(&c)
	}
	client, err := provider.NewOllama(c)
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

func TestOllamaConformance(t *testing.T) {
	for name, u := range map[string]ollama{"counted": {}, "without the prompt's count": {noUsage: true}} {
		t.Run(name, func(t *testing.T) {
			inferencetest.Run(t, func(t *testing.T) inference.Model { return openOllama(t, u, nil) })
		})
	}
}

func TestOllamaAnswers(t *testing.T) {
	holdAnswers(t, openOllama, []answerCase{
		{"no such model", 404, `{"error":"model 'x' not found"}`, nil, fault.InferenceModelNotFound, 0},
		{"of a web server", 404, planted, nil, fault.InferenceProviderError, 0},
		{"no tools", 400, `{"error":"registry.ollama.ai/library/x does not support tools"}`, nil, fault.InferenceNotSupported, 0},
		{"too long", 400, `{"error":"the input length exceeds the context length"}`, nil, fault.InferenceTokenLimitExceeded, 0},
		{"malformed request", 400, `{"error":"` + planted + `"}`, nil, fault.InvalidArgument, 0},
		{"busy", 503, `{"error":"server busy, please try again. maximum pending requests exceeded"}`, []string{"Retry-After", "2"}, fault.InferenceProviderUnavailable, 2 * time.Second},
		{"500", 500, `{"error":"model runner has unexpectedly stopped"}`, nil, fault.InferenceProviderUnavailable, 0},
		{"500 that claims a model", 500, `{"error":"not found"}`, nil, fault.InferenceProviderUnavailable, 0},
		{"401", 401, `{"error":"unauthorized"}`, nil, fault.InferenceProviderError, 0},
	})
	for name, body := range map[string]string{
		"not done":      `{"message":{"role":"assistant","content":"x"},"done":false}`,
		"negative":      `{"message":{"role":"assistant","content":"x"},"done":true,"eval_count":-1}`,
		"odd content":   `{"message":{"role":"assistant","content":7},"done":true}`,
		"half a call":   `{"message":{"role":"assistant","tool_calls":[{}]},"done":true}`,
		"odd arguments": `{"message":{"role":"assistant","tool_calls":[{"function":{"name":"x","arguments":[]}}]},"done":true}`,
	} {
		_, err := openOllama(t, respond(200, "application/json", body), nil).Complete(t.Context(), inferencetest.Ask("hello"))
		check(t, name, err, fault.InferenceProviderError, 0)
	}
	for name, body := range map[string]string{"too few": `{"embeddings":[[1]]}`, "empty": `{"embeddings":[[],[1]]}`, "words": `{"embeddings":[["x"],[1]]}`, "a list": `[]`} {
		_, err := openOllama(t, respond(200, "application/json", body), nil).Embed(t.Context(), inference.EmbedRequest{Model: "m", Input: []string{"a", "b"}})
		check(t, name, err, fault.InferenceProviderError, 0)
	}
}

func TestOllamaStreams(t *testing.T) {
	const hello = `{"model":"m","message":{"role":"assistant","content":"hello"},"done":false}` + "\n"
	const end = `{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","prompt_eval_count":3,"eval_count":1}` + "\n"
	holdStreams(t, openOllama, ndjson, []streamCase{
		{name: "complete", body: hello + end, text: "hello"},
		{name: "blank lines", body: "\n" + hello + "\r\n\n" + strings.TrimSpace(end), text: "hello"},
		{name: "truncated", body: hello, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "truncated in a line", body: hello + end[:40], want: fault.InferenceProviderError, text: "hello"},
		{name: "half closed", body: hello, abort: true, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "empty", body: "", want: fault.InferenceProviderUnavailable},
		{name: "not JSON", body: hello + planted + "\n", want: fault.InferenceProviderError, text: "hello"},
		{name: "an error", body: hello + `{"error":"` + planted + `"}` + "\n", want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "an endless stream", body: strings.Repeat(`{"message":{"content":""},"done":false}`+"\n", 200_000), want: fault.InferenceProviderError},
		{name: "an endless line", body: strings.Repeat("x", 5<<20), want: fault.InferenceProviderError},
	})
	holdSilence(t, openOllama, ndjson, hello)
	check(t, "events", streamed(t, openOllama(t, respond(200, "text/event-stream", hello+end), nil)), fault.InferenceProviderError, 0)
}

func TestOllamaRequests(t *testing.T) {
	holdRequests(t, "ollama", openOllama)
	holdWhole(t, openOllama, `"truncate":false`)
}

func TestOllamaRefusals(t *testing.T) {
	const ask = `"messages":[{"role":"user","content":"a"}]`
	for _, tt := range []refusedCase{
		{"a call that must be", ask + `,"tools":[{"type":"function","function":{"name":"x"}}],"tool_choice":"required"`, fault.InferenceNotSupported},
		{"an image elsewhere", `"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x/y.png"}}]}]`, fault.InferenceNotSupported},
		{"a second system prompt", ask + `,"system":"be evil"`, fault.InferenceNotSupported},
		{"a template", ask + `,"template":"x"`, fault.InferenceNotSupported},
		{"odd options", ask + `,"options":[]`, fault.InvalidArgument},
		{"one call at a time", ask + `,"tools":[{"type":"function","function":{"name":"x"}}],"parallel_tool_calls":false`, fault.InferenceNotSupported},
		{"a result of no call", `"messages":[{"role":"tool","tool_call_id":"x","content":"b"}]`, fault.InvalidArgument},
	} {
		r, _, err := provider.DecodeOpenAIRequest([]byte(`{"model":"m",` + tt.fields + `}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, body, err := sentTo(t, openOllama, r); fault.CodeOf(err) != tt.want {
			t.Errorf("%s: error = %v, sent %s; want %v", tt.name, err, body, tt.want)
		}
	}
}

func FuzzOllamaAnswer(f *testing.F) {
	f.Add([]byte(`{"model":"m","message":{"role":"assistant","content":"a","thinking":"b","tool_calls":[{"function":{"name":"x","arguments":{"y":1}}}]},"done":true,"prompt_eval_count":3,"eval_count":1}`))
	f.Add([]byte(`{"error":"x"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, mediaType := range []string{"application/json", ndjson} {
			client, err := provider.NewOllama(provider.Config{Name: "f", BaseURL: "http://x", Transport: fixed{mediaType, string(data)}})
			if err != nil {
				t.Fatal(err)
			}
			r, err := client.Complete(t.Context(), inferencetest.Ask("hello"))
			if err == nil {
				_, openAI := provider.EncodeOpenAIResponse(r)
				_, anthropic := provider.EncodeAnthropicResponse(r)
				err = errors.Join(openAI, anthropic)
			}
			if err != nil && (fault.CodeOf(err) == fault.Internal || fault.CodeOf(err) == fault.InvalidArgument) {
				t.Fatalf("Complete = %v", err)
			}
			if mediaType != ndjson {
				continue
			}
			if err := streamed(t, client); fault.CodeOf(err) == fault.Internal || fault.CodeOf(err) == fault.InvalidArgument {
				t.Fatalf("stream = %v", err)
			}
		}
	})
}
