package provider_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
	"github.com/google/go-cmp/cmp"
)

func anthropicErrorBody(kind, message string) string {
	return fmt.Sprintf(`{"type":"error","error":{"type":%q,"message":%q},"request_id":"req_1"}`, kind, message)
}

func TestAnthropicErrors(t *testing.T) {
	const jsonType = "application/json"
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		want    fault.Code
		wait    time.Duration
	}{
		{"invalid request", respond(400, jsonType, anthropicErrorBody("invalid_request_error", planted)), fault.InvalidArgument, 0},
		{"prompt too long", respond(400, jsonType, anthropicErrorBody("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")), fault.InferenceTokenLimitExceeded, 0},
		{"no room for the answer", respond(400, jsonType, anthropicErrorBody("invalid_request_error", "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000")), fault.InferenceTokenLimitExceeded, 0},
		{"content filter", respond(400, jsonType, anthropicErrorBody("invalid_request_error", "Output blocked by content filtering policy")), fault.InferenceContentFiltered, 0},
		{"no credit", respond(400, jsonType, anthropicErrorBody("invalid_request_error", "Your credit balance is too low to access the Anthropic API.")), fault.InferenceProviderError, 0},
		{"billing", respond(402, jsonType, anthropicErrorBody("billing_error", planted)), fault.InferenceProviderError, 0},
		{"401", respond(401, jsonType, anthropicErrorBody("authentication_error", planted)), fault.InferenceProviderError, 0},
		{"403", respond(403, jsonType, anthropicErrorBody("permission_error", planted)), fault.InferenceProviderError, 0},
		{"404", respond(404, jsonType, anthropicErrorBody("not_found_error", "model: x")), fault.InferenceModelNotFound, 0},
		{"404 of a web server", respond(404, "text/html", planted), fault.InferenceProviderError, 0},
		{"413", respond(413, jsonType, anthropicErrorBody("request_too_large", planted)), fault.InvalidArgument, 0},
		{"429", respond(429, jsonType, anthropicErrorBody("rate_limit_error", planted), "Retry-After", "7"), fault.InferenceRateLimited, 7 * time.Second},
		{"500", respond(500, jsonType, anthropicErrorBody("api_error", planted)), fault.InferenceProviderUnavailable, 0},
		{"500 that claims a filter", respond(500, jsonType, anthropicErrorBody("invalid_request_error", "content filtering policy")), fault.InferenceProviderUnavailable, 0},
		{"504", respond(504, jsonType, anthropicErrorBody("timeout_error", planted)), fault.InferenceTimeout, 0},
		{"529", respond(529, jsonType, anthropicErrorBody("overloaded_error", "Overloaded"), "Retry-After", "3"), fault.InferenceProviderUnavailable, 3 * time.Second},
		{"a redirect is not followed", respond(307, "", "", "Location", "http://127.0.0.1:1/steal"), fault.InferenceProviderError, 0},
		{"malformed", respond(200, jsonType, `{"type":"message","content":[`+planted), fault.InferenceProviderError, 0},
		{"another dialect", respond(200, jsonType, `{"object":"chat.completion","choices":[{}]}`), fault.InferenceProviderError, 0},
		{"an error with 200", respond(200, jsonType, anthropicErrorBody("api_error", planted)), fault.InferenceProviderError, 0},
		{"not UTF-8", respond(200, jsonType, "{\"type\":\"message\",\"id\":\"\xff\"}"), fault.InferenceProviderError, 0},
		{"negative usage", respond(200, jsonType, `{"type":"message","usage":{"input_tokens":-1}}`), fault.InferenceProviderError, 0},
		{"overflowing usage", respond(200, jsonType, `{"type":"message","usage":{"input_tokens":9223372036854775807,"cache_read_input_tokens":9223372036854775807}}`), fault.InferenceProviderError, 0},
		{"a block that is none", respond(200, jsonType, `{"type":"message","content":["`+planted+`"]}`), fault.InferenceProviderError, 0},
		{"an endless body", endless, fault.InferenceProviderError, 0},
		{"a bomb", bomb, fault.InferenceProviderError, 0},
		{"cut off", cutOff, fault.InferenceProviderUnavailable, 0},
		{"closed without a word", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, fault.InferenceProviderUnavailable, 0},
		{"hang", hang, fault.InferenceTimeout, 0},
		{"hang in the body", hangInBody, fault.InferenceTimeout, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client := openAnthropic(t, tt.handler, func(c *provider.AnthropicConfig) {
				c.Timeout, c.MaxResponseBytes = 30*time.Second, 1<<20
				if strings.HasPrefix(tt.name, "hang") {
					c.Timeout = 100 * time.Millisecond
				}
			})
			_, err := client.Complete(t.Context(), inferencetest.Ask("hello"))
			check(t, "Complete", err, tt.want, tt.wait)
			_, err = client.CountTokens(t.Context(), inferencetest.Ask("hello"))
			if fault.CodeOf(err) == fault.OK {
				t.Error("CountTokens counted")
			}
			s, err := client.CompleteStream(t.Context(), inferencetest.Ask("hello"))
			if err == nil {
				_, _, err = inferencetest.Collect(t, s)
				_ = s.Close()
			}
			// A body of a wrong kind is refused before it is read.
			want := tt.want
			if tt.name == "hang in the body" {
				want = fault.InferenceProviderError
			}
			check(t, "CompleteStream", err, want, tt.wait)
		})
	}
}

// sse is one event of a streamed answer.
func sse(kind, rest string) string {
	return fmt.Sprintf("event: %s\ndata: {\"type\":%q%s}\n\n", kind, kind, rest)
}

func TestAnthropicStreams(t *testing.T) {
	start := sse("message_start", `,"message":{"id":"m","type":"message","role":"assistant","model":"x","usage":{"input_tokens":11,"output_tokens":1}}`)
	begin := sse("content_block_start", `,"index":0,"content_block":{"type":"text","text":""}`)
	hello := start + begin + sse("content_block_delta", `,"index":0,"delta":{"type":"text_delta","text":"hello"}`)
	stop := sse("content_block_stop", `,"index":0`) + sse("message_delta", `,"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":5}`)
	end := sse("message_stop", "")
	for _, tt := range []struct {
		name, body string
		abort      bool
		want       fault.Code // OK: a complete answer
		text       string
	}{
		{name: "complete", body: hello + stop + end, text: "hello"},
		{name: "unknown events", body: hello + sse("news", `,"of":["the","future"]`) + stop + sse("ping", "") + end + sse("ping", ""), text: "hello"},
		{name: "a delta that is not known", body: hello + sse("content_block_delta", `,"index":0,"delta":{"type":"new_delta","x":1}`) + stop + end, text: "hello"},
		{name: "the end without a blank line", body: hello + stop + strings.TrimRight(end, "\n"), text: "hello"},
		{name: "aborted after the end", body: hello + stop + end, abort: true, text: "hello"},
		{name: "truncated", body: hello, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "truncated before the end", body: hello + stop, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "truncated in an event", body: hello + "data: {\"typ", want: fault.InferenceProviderError, text: "hello"},
		{name: "half closed", body: hello, abort: true, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "half closed before the end", body: hello + stop, abort: true, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "an end without a reason", body: hello + end, want: fault.InferenceProviderError, text: "hello"},
		{name: "empty", body: "", want: fault.InferenceProviderUnavailable},
		{name: "not JSON", body: hello + "data: " + planted + "\n\n", want: fault.InferenceProviderError, text: "hello"},
		{name: "not UTF-8", body: hello + "data: {\"type\":\"ping\xff\"}\n\n", want: fault.InferenceProviderError, text: "hello"},
		{name: "a delta of no block", body: hello + sse("content_block_delta", `,"index":7,"delta":{"type":"text_delta","text":"x"}`), want: fault.InferenceProviderError, text: "hello"},
		{name: "a delta of another kind", body: start + sse("content_block_start", `,"index":0,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}`) + sse("content_block_delta", `,"index":0,"delta":{"type":"text_delta","text":"x"}`), want: fault.InferenceProviderError},
		{name: "a block twice", body: hello + begin, want: fault.InferenceProviderError, text: "hello"},
		{name: "a block far out", body: start + sse("content_block_start", `,"index":99999999,"content_block":{"type":"text","text":""}`), want: fault.InferenceProviderError},
		{name: "overloaded in the middle", body: hello + "event: error\ndata: " + anthropicErrorBody("overloaded_error", planted) + "\n\n", want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "an error that is not known", body: hello + "event: error\ndata: " + anthropicErrorBody("new_error", planted) + "\n\n", want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "the rate in the middle", body: hello + "event: error\ndata: " + anthropicErrorBody("rate_limit_error", planted) + "\n\n" + end, want: fault.InferenceRateLimited, text: "hello"},
		{name: "an endless event", body: "data: " + strings.Repeat("x", 5<<20), want: fault.InferenceProviderError},
		{name: "an endless stream", body: hello + strings.Repeat(sse("content_block_delta", `,"index":0,"delta":{"type":"text_delta","text":""}`), 100_000), want: fault.InferenceProviderError, text: "hello"},
		{name: "endless pings", body: hello + strings.Repeat(sse("ping", ""), 200_000), want: fault.InferenceProviderError, text: "hello"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client := openAnthropic(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, tt.body)
				if tt.abort {
					_ = http.NewResponseController(w).Flush()
					panic(http.ErrAbortHandler)
				}
			}), func(c *provider.AnthropicConfig) { c.MaxResponseBytes = 6 << 20 })
			s, err := client.CompleteStream(t.Context(), inferencetest.Ask("hello"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			text, _, err := inferencetest.Collect(t, s)
			check(t, "stream", err, tt.want, 0)
			if text != tt.text {
				t.Errorf("text = %q, want %q", text, tt.text)
			}
			// What the provider counted holds; the rest is an estimate of what was
			// delivered.
			u := s.Usage()
			if stopped := strings.Contains(tt.body, `"end_turn"`); stopped != !u.Estimated || stopped && u.CompletionTokens != 5 || !stopped && tt.text != "" && u.CompletionTokens != inference.EstimateTokens(len(tt.text)) {
				t.Errorf("usage = %+v", u)
			}
			if begun := strings.Contains(tt.body, "message_start"); begun && u.PromptTokens != 11 {
				t.Errorf("usage = %+v, want the prompt as it was counted", u)
			}
			_, again := s.Next()
			if tt.want == fault.OK && !errors.Is(again, io.EOF) || tt.want != fault.OK && fault.CodeOf(again) != tt.want {
				t.Errorf("Next again = %v, want the same end", again)
			}
		})
	}
}

func TestAnthropicStreamHangs(t *testing.T) {
	for name, after := range map[string]string{"in the middle": "", "after the end": sse("message_delta", `,"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}`) + sse("message_stop", "")} {
		t.Run(name, func(t *testing.T) {
			client := openAnthropic(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, sse("message_start", `,"message":{"id":"m","role":"assistant"}`)+after)
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}), func(c *provider.AnthropicConfig) { c.IdleTimeout = 200 * time.Millisecond })
			s, err := client.CompleteStream(t.Context(), inferencetest.Ask("hello"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			want := fault.OK
			if after == "" {
				want = fault.InferenceTimeout
			}
			_, _, err = inferencetest.Collect(t, s)
			check(t, "stream", err, want, 0)
		})
	}
}

// TestAnthropicRequest holds what goes beside the body, and that the API gets the
// bound that it demands.
func TestAnthropicRequest(t *testing.T) {
	var mu sync.Mutex
	var last *http.Request
	var body map[string]any
	client := openAnthropic(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		last, body = r, nil
		_ = json.NewDecoder(r.Body).Decode(&body)
		respond(200, "application/json", `{"type":"message","content":[],"stop_reason":"end_turn"}`)(w, r)
	}), func(c *provider.AnthropicConfig) { c.MaxTokens = 77 })
	r := inferencetest.Ask("hello")
	r.Betas = []string{"a-1", "b-2"}
	if _, err := client.Complete(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	h := last.Header
	if h.Get("Idempotency-Key") != "k-1" || h.Get("X-Api-Key") != apiKey || h.Get("Authorization") != "" || h.Get("Anthropic-Version") != "2023-06-01" || h.Get("Anthropic-Beta") != "a-1,b-2" || last.URL.Path != "/v1/messages" {
		t.Errorf("%s with headers %v", last.URL, h)
	}
	want := map[string]any{"model": "echo-1", "max_tokens": 77.0, "messages": []any{map[string]any{"role": "user", "content": "hello"}}}
	if diff := cmp.Diff(want, body); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
	r.Dialect = inference.DialectOpenAI // whose betas are not Anthropic's
	if _, err := client.Complete(t.Context(), r); err != nil || last.Header.Get("Anthropic-Beta") != "" {
		t.Errorf("betas of another dialect went out: %v, %v", last.Header, err)
	}
	r.Betas = []string{"a\r\nX-Evil: 1"}
	if _, err := client.Complete(t.Context(), r); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("a beta with a line break: %v", err)
	}
	if n, err := openAnthropic(t, messages{}, nil).CountTokens(t.Context(), inferencetest.Ask("hello")); n != 9 || err != nil {
		t.Errorf("CountTokens = %d, %v", n, err)
	}
}

func TestNewAnthropic(t *testing.T) {
	_, err := provider.NewAnthropic(provider.AnthropicConfig{Config: provider.Config{BaseURL: "https://user:hunter2@x/v1?key=hunter2", APIKey: creto.NewSecret("a\nb"), Timeout: -1}})
	if !errors.Is(err, fault.InvalidArgument) || strings.Count(fault.Message(err), "\n") != 3 || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("NewAnthropic = %v, want four problems and no secret", err)
	}
	if client := openAnthropic(t, messages{}, nil); strings.Contains(fmt.Sprintf("%+v %#v", client, client), apiKey) {
		t.Error("printing a client shows its key")
	}
}

// TestAnthropicRequestsPassThrough holds that what a client sent is what the
// provider gets, known or not.
func TestAnthropicRequestsPassThrough(t *testing.T) {
	files, err := filepath.Glob("testdata/anthropic/request-*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			body := read(t, file)
			r, stream, err := provider.DecodeAnthropicRequest(body)
			if err != nil {
				t.Fatal(err)
			}
			again, err := provider.EncodeAnthropicRequest(r, stream)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(mustJSON(t, body), mustJSON(t, again)); diff != "" {
				t.Errorf("the request changed (-sent +got):\n%s", diff)
			}
		})
	}
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestDecodeAnthropicRequest(t *testing.T) {
	got, stream, err := provider.DecodeAnthropicRequest(read(t, "testdata/anthropic/request-full.json"))
	if err != nil || !stream {
		t.Fatalf("DecodeAnthropicRequest = %v, stream %v", err, stream)
	}
	ephemeral := json.RawMessage(`{"type": "ephemeral"}`)
	strict, parallel := true, false
	want := inference.Request{
		Model: "claude-test", MaxTokens: 1024, Temperature: "0.70", Stop: []string{"END"}, User: "u-1", ReasoningEffort: "high",
		Messages: []inference.Message{
			{Role: "system", Content: []inference.Part{{Type: "text", Text: "be <brief>"}, {Type: "text", Text: "a long manual", CacheControl: json.RawMessage(`{"type": "ephemeral", "ttl": "1h"}`)}}},
			{Role: "user", Content: []inference.Part{
				{Type: "text", Text: "what is this?"},
				{Type: "image", Image: &inference.Image{MediaType: "image/png", Data: "iVBORw0KGgo="}},
				{Type: "image", Image: &inference.Image{URL: "https://x/y.png"}, CacheControl: ephemeral},
			}},
			{Role: "assistant", Content: []inference.Part{
				{Type: "thinking", Text: "look it up", Reasoning: &inference.Reasoning{Signature: "EqQBCkYIBhgC"}},
				{Type: "redacted_thinking", Reasoning: &inference.Reasoning{Redacted: "EmwKAhgBEgy3va3pzix"}},
				{Type: "text", Text: "I look."},
			}, ToolCalls: []inference.ToolCall{
				{ID: "toolu_1", Type: "function", Name: "look", Arguments: `{"at": 1.50}`},
				{ID: "toolu_2", Type: "function", Name: "look", Arguments: "{}", CacheControl: ephemeral},
			}},
			{Role: "tool", ToolCallID: "toolu_1", Content: inference.Text("a cat")},
			{Role: "tool", ToolCallID: "toolu_2", IsError: true, Content: []inference.Part{{Type: "text", Text: "too dark"}}, CacheControl: ephemeral},
			{Role: "user", Content: []inference.Part{{Type: "text", Text: "go on"}}},
		},
		Tools: []inference.Tool{
			{Name: "look", Description: "looks", Parameters: json.RawMessage(`{"type": "object"}`), Strict: &strict, CacheControl: ephemeral, Extra: inference.Extra{"defer_loading": json.RawMessage("false")}},
			{Type: "web_search_20250305", Name: "web_search", Extra: inference.Extra{"max_uses": json.RawMessage("3")}},
		},
		ToolChoice: &inference.ToolChoice{Mode: inference.ToolsRequired}, ParallelToolCalls: &parallel,
		ResponseFormat: &inference.ResponseFormat{Type: "json_schema", Schema: json.RawMessage(`{"type": "object"}`)},
		Betas:          []string{"interleaved-thinking-2025-05-14"},
		Dialect:        inference.DialectAnthropic,
		Extra: inference.Extra{
			"thinking": json.RawMessage(`{"type": "enabled", "budget_tokens": 1000, "display": "omitted"}`), "top_k": json.RawMessage("5"),
			"x_vendor": json.RawMessage(`{"deep": [1.50, null]}`), "metadata": json.RawMessage(`{"trace":"t"}`), "output_config": json.RawMessage(`{"task_budget":{"type":"tokens","total":5}}`),
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("DecodeAnthropicRequest (-want +got):\n%s", diff)
	}
}

func TestDecodeAnthropicRequestRefuses(t *testing.T) {
	const turn = `"messages":[{"role":"user","content":"x"}]`
	for _, tt := range []struct{ name, body, want string }{
		{"a list", "[]", "body: expected an object"},
		{"not UTF-8", "{\"model\":\"\xff\"}", "body: not UTF-8"},
		{"no model", `{` + turn + `}`, "model: a name of 1 to 512 bytes is required"},
		{"no messages", `{"model":"m"}`, "messages: at least one is required"},
		{"a block without type", `{"model":"m","messages":[{"role":"user","content":[{"text":"x"}]}]}`, "messages[0].content[0].type: required"},
		{"a block that is none", `{"model":"m","messages":[{"role":"user","content":[7]}]}`, "messages[0].content[0]: expected an object"},
		{"content of a wrong type", `{"model":"m","messages":[{"role":"user","content":7}]}`, "messages[0].content: expected a string or a list of blocks"},
		{"another case of model", `{"model":"cheap","Model":"dear",` + turn + `}`, `Model: written "model"`},
		{"another case of a block's type", `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x","Type":"y"}]}]}`, `messages[0].content[0].Type: written "type"`},
		{"another dialect's role", `{"model":"m","messages":[{"role":"tool","content":"x"}]}`, "messages[0].role: not one of this dialect's"},
		{"an assistant with results", `{"model":"m","messages":[{"role":"assistant","content":[{"type":"tool_result","tool_use_id":"t"}]}]}`, "messages[0]: only users tell results of tools"},
		{"a system that calls", `{"model":"m","system":[{"type":"tool_use","id":"t","name":"f","input":{}}],` + turn + `}`, "system: calls no tools"},
		{"an image of nothing", `{"model":"m","messages":[{"role":"user","content":[{"type":"image","source":{"type":"url"}}]}]}`, "messages[0].content[0].source: names no image"},
		{"a beta with a line break", `{"model":"m","anthropic_beta":["a\nb"],` + turn + `}`, "betas: at most 64 names of 1 to 128 visible characters without commas"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := provider.DecodeAnthropicRequest([]byte(tt.body))
			if !errors.Is(err, fault.InvalidArgument) || fault.Message(err) != tt.want {
				t.Errorf("DecodeAnthropicRequest = %v, want InvalidArgument %q", err, tt.want)
			}
		})
	}
}

func TestAnthropicResponsePassesThrough(t *testing.T) {
	body := read(t, "testdata/anthropic/response.json")
	r, err := provider.DecodeAnthropicResponse(body)
	if err != nil {
		t.Fatal(err)
	}
	again, err := provider.EncodeAnthropicResponse(r)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(mustJSON(t, body), mustJSON(t, again)); diff != "" {
		t.Errorf("it changed (-sent +got):\n%s", diff)
	}
	if u := r.Usage; u.PromptTokens != 115 || u.CachedTokens != 100 || u.CacheWriteTokens != 5 || u.CompletionTokens != 7 || u.ReasoningTokens != 2 {
		t.Errorf("usage = %+v", u)
	}
}

// TestAnthropicStreamPassesThrough holds that the events of a stream, read and
// written again, are what they were, pings apart.
func TestAnthropicStreamPassesThrough(t *testing.T) {
	recorded := read(t, "testdata/anthropic/stream.sse")
	client := openAnthropic(t, respond(200, "text/event-stream", string(recorded)), nil)
	s, err := client.CompleteStream(t.Context(), inferencetest.Ask("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var events provider.AnthropicEvents
	var written bytes.Buffer
	for {
		c, err := s.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := events.Chunk(c, s.Usage)
		if err != nil {
			t.Fatal(err)
		}
		written.Write(data)
	}
	data, err := events.End(s.Usage())
	if err != nil {
		t.Fatal(err)
	}
	written.Write(data)
	// The head counts what was delivered so far, which is nothing; the end tells
	// all that is known.
	sent := bytes.Replace(recorded, []byte(`"output_tokens":1,`), []byte(`"output_tokens":0,`), 1)
	sent = bytes.Replace(sent, []byte(`"output_tokens":21`), []byte(`"output_tokens":21,"service_tier":"standard"`), 1)
	if diff := cmp.Diff(eventsOf(t, sent), eventsOf(t, written.Bytes())); diff != "" {
		t.Errorf("the stream changed (-sent +got):\n%s", diff)
	}
}

// eventsOf returns the data of all events but pings, each of which must be named
// by its type.
func eventsOf(t testing.TB, stream []byte) []any {
	t.Helper()
	var list []any
	for _, event := range strings.Split(strings.TrimSpace(string(stream)), "\n\n") {
		name, data, ok := strings.Cut(event, "\ndata: ")
		v, isObject := mustJSON(t, []byte(data)).(map[string]any)
		if !ok || !isObject || name != fmt.Sprintf("event: %s", v["type"]) {
			t.Fatalf("no event: %q", event)
		}
		if v["type"] != "ping" {
			list = append(list, v)
		}
	}
	return list
}

func TestEncodeAnthropicError(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
		want   string
	}{
		{fault.New("a.B", fault.AuthzDenied, "not permitted"), 403, `{"error":{"code":"authz.denied","message":"not permitted","type":"permission_error"},"type":"error"}`},
		{fault.New("a.B", fault.InferenceModelNotFound, "no model %q", "x"), 404, `{"error":{"code":"inference.model_not_found","message":"no model \"x\"","type":"not_found_error"},"type":"error"}`},
		{fault.New("a.B", fault.InferenceTokenLimitExceeded, "too much"), 400, `{"error":{"code":"inference.token_limit_exceeded","message":"prompt is too long: too much","type":"invalid_request_error"},"type":"error"}`},
		{fault.New("a.B", fault.NHITokenExpired, "token expired"), 401, `{"error":{"code":"nhi.token_expired","message":"token expired","type":"authentication_error"},"type":"error"}`},
		{fault.New("a.B", fault.InferenceRateLimited, "wait"), 429, `{"error":{"code":"inference.rate_limited","message":"wait","type":"rate_limit_error"},"type":"error"}`},
		{fault.New("a.B", fault.InferenceTimeout, "late"), 504, `{"error":{"code":"inference.timeout","message":"late","type":"timeout_error"},"type":"error"}`},
		{errors.New(planted), 500, `{"error":{"code":"internal","message":"internal","type":"api_error"},"type":"error"}`},
		{nil, 500, `{"error":{"code":"internal","message":"internal","type":"api_error"},"type":"error"}`},
	} {
		status, body := provider.EncodeAnthropicError(tt.err)
		if status != tt.status || string(body) != tt.want {
			t.Errorf("EncodeAnthropicError(%v) = %d %s, want %d %s", tt.err, status, body, tt.status, tt.want)
		}
		if event := eventsOf(t, provider.AnthropicErrorEvent(tt.err)); len(event) != 1 {
			t.Errorf("AnthropicErrorEvent(%v) = %v", tt.err, event)
		}
	}
}
