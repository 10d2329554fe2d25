package gateway_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/gateway"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
)

// claude is a provider that speaks Anthropic's dialect, written by hand.
func claude(t testing.TB, answer http.HandlerFunc) inference.Model {
	server := httptest.NewServer(answer)
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	m, err := provider.NewAnthropic(provider.AnthropicConfig{Config: provider.Config{
		Name: "claude", BaseURL: server.URL + "/v1", Capabilities: inference.Capabilities{Streaming: true, Models: []string{"echo-1"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func post(body, path string, headers ...string) string {
	text := "POST " + path + " HTTP/1.1\nHost: a\nContent-Length: " + strconv.Itoa(len(body)) + "\n"
	for _, h := range headers {
		text += h + "\n"
	}
	return text + "\n" + body
}

const message = `{"model":"echo-1","max_tokens":9,"messages":[{"role":"user","content":"hello"}]`

func TestMessages(t *testing.T) {
	h := open(t, gateway.Config{}, []inference.Model{&inferencetest.Fake{}}, anyModel)
	status, body := h.ask(t, post(message+"}", "/v1/messages"))
	var answer struct {
		Type, Role string
		Content    []struct{ Type, Text string }
		StopReason string `json:"stop_reason"`
		Usage      struct {
			Input  int64 `json:"input_tokens"`
			Output int64 `json:"output_tokens"`
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK || answer.Type != "message" || len(answer.Content) != 1 || answer.Content[0].Text != inferencetest.EchoPrefix+"hello" || answer.StopReason != "end_turn" {
		t.Fatalf("answer %d %s", status, body)
	}
	r := h.records(t, creto.CallModel, 1)[0]
	if r.Outcome != audit.Success || r.Resource != "Model::echo-1" || r.Usage == nil || r.Usage.PromptTokens != answer.Usage.Input || r.Usage.CompletionTokens != answer.Usage.Output {
		t.Errorf("recorded %+v with usage %+v", r, r.Usage)
	}
}

// typeIn returns the type of an error in Anthropic's dialect.
func typeIn(t testing.TB, body string) string {
	t.Helper()
	var e struct {
		Type  string
		Error struct{ Type, Message string }
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Type != "error" || e.Error.Message == "" {
		t.Fatalf("no error of the dialect: %s", body)
	}
	return e.Error.Type
}

func TestMessagesRefuse(t *testing.T) {
	h := open(t, gateway.Config{}, []inference.Model{&inferencetest.Fake{}, upstream(t, http.NotFound)}, "call_model=echo-1", "call_model=other", "call_model=big-1")
	for _, test := range []struct {
		name, path, body, kind string
		status                 int
	}{
		{"not JSON", "/v1/messages", `{"model"`, "invalid_request_error", 400},
		{"not UTF-8", "/v1/messages", "{\"model\":\"\xff\"}", "invalid_request_error", 400},
		{"no messages", "/v1/messages", `{"model":"echo-1"}`, "invalid_request_error", 400},
		{"nothing", "/v1/messages", "", "invalid_request_error", 400},
		{"denied", "/v1/messages", `{"model":"claude-9","max_tokens":1,"messages":[{"role":"user","content":"x"}]}`, "permission_error", 403},
		{"served by nobody", "/v1/messages", `{"model":"other","max_tokens":1,"messages":[{"role":"user","content":"x"}]}`, "not_found_error", 404},
		{"too large", "/v1/messages", strings.Repeat(" ", gateway.MaxBodyBytes+1), "request_too_large", 413},
		{"what the provider cannot say", "/v1/messages", `{"model":"big-1","max_tokens":1,"messages":[{"role":"user","content":"x"}],"mcp_servers":[{"url":"https://m"}]}`, "api_error", 501},
		{"a count of who does not count", "/v1/messages/count_tokens", message + "}", "api_error", 501},
		{"a count that is denied", "/v1/messages/count_tokens", `{"model":"claude-9","messages":[{"role":"user","content":"x"}]}`, "permission_error", 403},
	} {
		t.Run(test.name, func(t *testing.T) {
			if status, body := h.ask(t, post(test.body, test.path)); status != test.status || typeIn(t, body) != test.kind {
				t.Errorf("answer %d %s; want %d %s", status, body, test.status, test.kind)
			}
		})
	}
	if status, body := h.ask(t, post(message+"}", "/v1/messages", "Anthropic-Beta: a b")); status != 400 || typeIn(t, body) != "invalid_request_error" {
		t.Errorf("a beta that is no name: %d %s", status, body)
	}
	h.records(t, creto.CallModel, 5)
}

// A provider's fault keeps its meaning, whatever it and the caller speak.
func TestMessagesProviderFails(t *testing.T) {
	refusal := func(status int, kind string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "120") // longer than the router waits
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, `{"type":"error","error":{"type":%q,"message":"planted"}}`, kind)
		}
	}
	for _, test := range []struct {
		kind, openAI, anthropic string
		status, want            int
		retry                   bool
	}{
		{"rate_limit_error", "rate_limit_error", "rate_limit_error", 429, 429, true},
		{"overloaded_error", "server_error", "api_error", 529, 502, true},
		{"authentication_error", "server_error", "api_error", 401, 502, false},
		{"invalid_request_error", "invalid_request_error", "invalid_request_error", 400, 400, false},
	} {
		h := open(t, gateway.Config{}, []inference.Model{claude(t, refusal(test.status, test.kind))}, anyModel)
		for _, stream := range []string{"false", "true"} {
			for path, want := range map[string]string{"/v1/chat/completions": test.openAI, "/v1/messages": test.anthropic} {
				_, reader := h.raw(t, post(message+`,"stream":`+stream+"}", path))
				response, err := http.ReadResponse(reader, nil)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(response.Body)
				if response.StatusCode != test.want || !strings.Contains(string(body), `"type":"`+want+`"`) || strings.Contains(string(body), "planted") ||
					response.Header.Get("X-Should-Retry") != strconv.FormatBool(test.retry) || (response.Header.Get("Retry-After") == "120") != test.retry {
					t.Errorf("%s, stream %s, upstream %d: %d %v %s", path, stream, test.status, response.StatusCode, response.Header, body)
				}
			}
		}
		for _, r := range h.records(t, creto.CallModel, 4) {
			if r.Outcome != audit.Failure || r.Detail["provider"] != "claude" {
				t.Errorf("recorded %+v", r)
			}
		}
	}
}

// anthropicStream is a whole streamed answer.
func anthropicStream(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	_, _ = io.WriteString(w, `data: {"type":"message_start","message":{"id":"m","role":"assistant","model":"echo-1","usage":{"input_tokens":5,"cache_read_input_tokens":4,"output_tokens":1}}}

data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"one"}}

data: {"type":"content_block_stop","index":0}

data: {"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}

data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{}"}}

data: {"type":"content_block_stop","index":1}

data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":3}}

data: {"type":"message_stop"}

`)
}

// Streams cross the dialects, and are metered once.
func TestMessagesStream(t *testing.T) {
	fromOpenAI := upstream(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, piece("one", "null")+piece("two", `"stop"`)+usagePiece+"data: [DONE]\n\n")
	})
	h := open(t, gateway.Config{}, []inference.Model{fromOpenAI}, anyModel)
	status, body := h.ask(t, post(message+`,"stream":true}`, "/v1/messages"))
	for _, want := range []string{
		"event: message_start\n", `"text":"one"`, `"text":"two"`, `"stop_reason":"end_turn"`, `"output_tokens":3`, `"input_tokens":9`, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
	} {
		if status != http.StatusOK || strings.Count(body, want) != 1 {
			t.Errorf("answer %d %s, want %q once", status, body, want)
		}
	}
	if r := h.records(t, creto.CallModel, 1)[0]; r.Outcome != audit.Success || r.Usage == nil || *r.Usage != (audit.Usage{PromptTokens: 9, CompletionTokens: 3}) {
		t.Errorf("recorded %+v with usage %+v", r, r.Usage)
	}

	h = open(t, gateway.Config{}, []inference.Model{claude(t, func(w http.ResponseWriter, _ *http.Request) { anthropicStream(w) })}, anyModel)
	status, body = h.ask(t, post(hello+`,"stream":true,"stream_options":{"include_usage":true}}`, "/v1/chat/completions"))
	for _, want := range []string{`"content":"one"`, `"name":"f"`, `"arguments":"{}"`, `"finish_reason":"tool_calls"`, `"prompt_tokens":9`, `"cached_tokens":4`, "data: [DONE]\n\n"} {
		if status != http.StatusOK || strings.Count(body, want) != 1 {
			t.Errorf("answer %d %s, want %q once", status, body, want)
		}
	}
	if r := h.records(t, creto.CallModel, 1)[0]; r.Usage == nil || *r.Usage != (audit.Usage{PromptTokens: 9, CompletionTokens: 3}) || r.Detail["cached_tokens"] != "4" {
		t.Errorf("recorded %+v with usage %+v", r, r.Usage)
	}
}

func TestMessagesStreamBreaks(t *testing.T) {
	m := upstream(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, piece("one two three", "null"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
	_, reader := h.raw(t, post(message+`,"stream":true}`, "/v1/messages"))
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if err == nil || !strings.Contains(string(text), "event: error\ndata: {\"error\":") || strings.Contains(string(text), "message_stop") {
		t.Errorf("read %q, %v; want an error event and a broken connection", text, err)
	}
	if r := h.records(t, creto.CallModel, 1)[0]; r.Outcome != audit.Failure || r.Usage == nil || r.Usage.CompletionTokens != inference.EstimateTokens(len("one two three")) {
		t.Errorf("recorded %+v with usage %+v", r, r.Usage)
	}
}

func TestMessagesCallerLeaves(t *testing.T) {
	arrived, left := make(chan struct{}), make(chan struct{})
	m := claude(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, `data: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":5}}}`+"\n\n")
		_ = http.NewResponseController(w).Flush()
		close(arrived)
		<-r.Context().Done()
		close(left)
	})
	h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
	conn, reader := h.raw(t, post(message+`,"stream":true}`, "/v1/messages"))
	<-arrived
	if _, err := reader.ReadByte(); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	<-left
	if r := h.records(t, creto.CallModel, 1)[0]; r.Outcome != audit.Timeout || r.Usage == nil || r.Usage.PromptTokens != 5 {
		t.Errorf("recorded %+v with usage %+v", r, r.Usage)
	}
}

// What a client of the API says beside the body reaches the provider, its key and
// what is bound included.
func TestMessagesHeaders(t *testing.T) {
	var seen atomic.Pointer[http.Request]
	m := claude(t, func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r)
		_, _ = io.WriteString(w, `{"type":"message","role":"assistant","content":[{"type":"text","text":"hi"}],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}`)
	})
	h := open(t, gateway.Config{}, []inference.Model{m}, "ask call_model=echo-1")
	done := make(chan int, 1)
	go func() {
		status, _ := h.ask(t, post(message+"}", "/v1/messages?beta=true", "X-Api-Key: placeholder", "Anthropic-Beta: a-1, b-2", "Anthropic-Beta: c-3"))
		done <- status
	}()
	if r := h.decide(t, true); string(r.Args) != `{"anthropic_beta":["a-1","b-2","c-3"],"max_tokens":9,"messages":[{"content":"hello","role":"user"}],"model":"echo-1"}` {
		t.Errorf("shown was %s", r.Args)
	}
	if status := <-done; status != http.StatusOK {
		t.Fatalf("answer %d", status)
	}
	if got := seen.Load().Header; got.Get("Anthropic-Beta") != "a-1,b-2,c-3" || got.Get("X-Api-Key") != "" {
		t.Errorf("the provider got %v", got)
	}
}

// Tokens are counted by who counts, which is decided on and recorded as another
// thing than an answer.
func TestMessagesCount(t *testing.T) {
	var calls atomic.Int32
	m := claude(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		if r.URL.Path != "/v1/messages/count_tokens" {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, `{"input_tokens":42}`)
	})
	h := open(t, gateway.Config{}, []inference.Model{m}, "ask call_model=echo-1")
	type answer struct {
		status int
		body   string
	}
	done := make(chan answer, 1)
	go func() {
		status, body := h.ask(t, post(message+"}", "/v1/messages/count_tokens"))
		done <- answer{status, body}
	}()
	if r := h.decide(t, true); string(r.Args) != `{"count_tokens":{"max_tokens":9,"messages":[{"content":"hello","role":"user"}],"model":"echo-1"}}` {
		t.Errorf("shown was %s", r.Args)
	}
	if got := <-done; got != (answer{200, `{"input_tokens":42}`}) || calls.Load() != 1 {
		t.Errorf("answer %+v after %d calls", got, calls.Load())
	}
	if r := h.records(t, creto.CallModel, 1)[0]; r.Usage == nil || *r.Usage != (audit.Usage{}) {
		t.Errorf("recorded %+v with usage %+v", r, r.Usage)
	}
}
