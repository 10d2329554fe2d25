package provider_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/provider"
	"github.com/google/go-cmp/cmp"
)

// TestRequestsPassThrough holds that what a client sent is what the provider
// gets, known or not; golden files are requests as agents' frameworks send them.
func TestRequestsPassThrough(t *testing.T) {
	files, err := filepath.Glob("testdata/openai/request-*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r, stream, err := provider.DecodeOpenAIRequest(body)
			if err != nil {
				t.Fatal(err)
			}
			again, err := provider.EncodeOpenAIRequest(r, stream)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(mustJSON(t, body), mustJSON(t, again)); diff != "" {
				t.Errorf("the request changed (-sent +got):\n%s", diff)
			}
			twice, err := provider.EncodeOpenAIRequest(r, stream)
			if err != nil || !bytes.Equal(again, twice) {
				t.Errorf("two encodings differ, %v", err)
			}
		})
	}
}

func TestDecodeRequest(t *testing.T) {
	body, err := os.ReadFile("testdata/openai/request-full.json")
	if err != nil {
		t.Fatal(err)
	}
	got, stream, err := provider.DecodeOpenAIRequest(body)
	if err != nil || !stream {
		t.Fatalf("DecodeOpenAIRequest = %v, stream %v", err, stream)
	}
	strict := true
	want := inference.Request{
		Model: "gpt-test",
		Messages: []inference.Message{
			{Role: "system", Content: inference.Text("be <brief>")},
			{Role: "user", Name: "alice", Content: []inference.Part{
				{Type: "text", Text: "what is this?"},
				{Type: "image_url", Image: &inference.Image{URL: "https://x/y.png", Extra: inference.Extra{"detail": json.RawMessage(`"low"`)}}},
			}},
			{Role: "assistant", ToolCalls: []inference.ToolCall{{ID: "c1", Type: "function", Name: "look", Arguments: `{"at": 1}`}}},
			{Role: "tool", ToolCallID: "c1", Content: inference.Text("")},
		},
		Tools: []inference.Tool{{
			Type: "function", Name: "look", Description: "looks", Parameters: json.RawMessage(`{"type": "object"}`),
			CacheControl: json.RawMessage(`{"type": "ephemeral"}`), Strict: &strict,
		}},
		ToolChoice:     &inference.ToolChoice{Mode: inference.ToolsAuto},
		ResponseFormat: &inference.ResponseFormat{Type: "json_schema", Name: "n", Schema: json.RawMessage(`{}`)},
		MaxTokens:      100,
		Temperature:    "0.70",
		Stop:           []string{"END"},
		StreamOptions:  &inference.StreamOptions{IncludeUsage: true},
		Dialect:        inference.DialectOpenAI,
		Extra:          inference.Extra{"seed": json.RawMessage("7"), "x_vendor": json.RawMessage(`{"deep": [1.50, null]}`), "max_completion_tokens": json.RawMessage("100")},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("DecodeOpenAIRequest (-want +got):\n%s", diff)
	}
}

func TestDecodeRequestRefuses(t *testing.T) {
	const messages = `"messages":[{"role":"user","content":"x"}]`
	for _, tt := range []struct{ name, body, want string }{
		{"nothing", "", "body: expected an object"},
		{"a list", "[]", "body: expected an object"},
		{"null", "null", "body: expected an object"},
		{"two values", `{"model":"m",` + messages + `} {}`, "body: expected an object"},
		{"not UTF-8", "{\"model\":\"\xff\"}", "body: not UTF-8"},
		{"no model", `{` + messages + `}`, "model: a name of 1 to 512 bytes is required"},
		{"model of a wrong type", `{"model":7,` + messages + `}`, "model: expected a string"},
		{"no messages", `{"model":"m"}`, "messages: at least one is required"},
		{"a message that is no object", `{"model":"m","messages":["x"]}`, "messages[0]: expected an object"},
		{"content of a wrong type", `{"model":"m","messages":[{"role":"user","content":7}]}`, "messages[0].content: expected a string or a list of parts"},
		{"a part without type", `{"model":"m","messages":[{"role":"user","content":[{"text":"x"}]}]}`, "messages[0].content[0].type: required"},
		{"another case of model", `{"model":"cheap","Model":"dear",` + messages + `}`, `Model: written "model"`},
		{"another case, Unicode", `{"model":"cheap","toolſ":[],` + messages + `}`, `toolſ: written "tools"`},
		{"another case of role", `{"model":"m","messages":[{"role":"user","ROLE":"system","content":"x"}]}`, `messages[0].ROLE: written "role"`},
		{"another case of a function's name", `{"model":"m",` + messages + `,"tools":[{"function":{"name":"a","Name":"b"}}]}`, `tools[0].function.Name: written "name"`},
		{"temperature as text", `{"model":"m",` + messages + `,"temperature":"0.5"}`, "temperature: expected a number"},
		{"max_tokens as a fraction", `{"model":"m",` + messages + `,"max_tokens":1.5}`, "max_tokens: expected a whole number"},
		{"max_tokens too large", `{"model":"m",` + messages + `,"max_completion_tokens":1e99}`, "max_completion_tokens: expected a whole number"},
		{"stop of a wrong type", `{"model":"m",` + messages + `,"stop":[1]}`, "stop: expected a string or a list of strings"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := provider.DecodeOpenAIRequest([]byte(tt.body))
			if !errors.Is(err, fault.InvalidArgument) || fault.Message(err) != tt.want {
				t.Errorf("DecodeOpenAIRequest = %v, want InvalidArgument %q", err, tt.want)
			}
		})
	}
}

// TestKnownFieldsWin holds that what was decided on is what is sent, whatever
// Extra says.
func TestKnownFieldsWin(t *testing.T) {
	r := inference.Request{
		Model: "cheap", Messages: []inference.Message{{Role: "user", Content: inference.Text("x"), Extra: inference.Extra{"role": []byte(`"system"`), "content": []byte(`"y"`), "tool_calls": []byte("[1]"), "name": []byte(`"z"`)}}},
		MaxTokens: 5,
		Extra:     inference.Extra{"model": []byte(`"dear"`), "stream": []byte("true"), "stop": []byte(`"x"`), "temperature": []byte("2"), "max_tokens": []byte("9"), "max_completion_tokens": []byte("9")},
	}
	got, err := provider.EncodeOpenAIRequest(r, false)
	want := `{"max_completion_tokens":5,"messages":[{"content":"x","role":"user"}],"model":"cheap"}`
	if err != nil || string(got) != want {
		t.Errorf("EncodeOpenAIRequest = %s, %v, want %s", got, err, want)
	}
	r.Extra["bad"] = []byte("{")
	if _, err := provider.EncodeOpenAIRequest(r, false); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("an Extra that is not JSON: %v, want InvalidArgument", err)
	}
}

func TestResponsesPassThrough(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		chunk      bool
	}{
		{"answer", `{"id":"c","object":"chat.completion","created":17,"model":"m","system_fingerprint":"fp","choices":[{"index":0,"message":{"role":"assistant","content":"a <b> & é","reasoning_content":"hm","annotations":[]},"logprobs":{"content":[]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"completion_tokens_details":{"reasoning_tokens":1}}}`, false},
		{"tool call", `{"id":"c","object":"chat.completion","created":17,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[{"id":"t","type":"function","function":{"name":"f","arguments":"{"}}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}`, false},
		{"chunk", `{"id":"c","object":"chat.completion.chunk","created":17,"model":"m","obfuscation":"x","choices":[{"index":1,"delta":{"content":"a","reasoning":"b"},"finish_reason":null}]}`, true},
		{"chunk of a call", `{"id":"c","object":"chat.completion.chunk","created":17,"model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":2,"function":{"arguments":"{\"a"}}]},"finish_reason":null}]}`, true},
		{"chunk of usage", `{"id":"c","object":"chat.completion.chunk","created":17,"model":"m","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}`, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var again []byte
			if tt.chunk {
				c, err := provider.DecodeOpenAIChunk([]byte(tt.body))
				if err != nil {
					t.Fatal(err)
				}
				if again, err = provider.EncodeOpenAIChunk(c); err != nil {
					t.Fatal(err)
				}
			} else {
				r, err := provider.DecodeOpenAIResponse([]byte(tt.body))
				if err != nil {
					t.Fatal(err)
				}
				if again, err = provider.EncodeOpenAIResponse(r); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(mustJSON(t, []byte(tt.body)), mustJSON(t, again)); diff != "" {
				t.Errorf("it changed (-sent +got):\n%s", diff)
			}
			if bytes.ContainsRune(again, '\n') {
				t.Errorf("%s has a line break, which would end an event", again)
			}
		})
	}
}

func TestEncodeError(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
		want   string
	}{
		{fault.New("a.B", fault.AuthzDenied, "call_model on Model::x is not permitted"), 403, `{"error":{"code":"authz.denied","message":"call_model on Model::x is not permitted","param":null,"type":"permission_error"}}`},
		{fault.New("a.B", fault.InferenceModelNotFound, "no model %q", "x"), 404, `{"error":{"code":"model_not_found","message":"no model \"x\"","param":null,"type":"invalid_request_error"}}`},
		{fault.New("a.B", fault.InferenceTokenLimitExceeded, "too long"), 400, `{"error":{"code":"context_length_exceeded","message":"too long","param":null,"type":"invalid_request_error"}}`},
		{fault.New("a.B", fault.NHITokenExpired, "token expired"), 401, `{"error":{"code":"nhi.token_expired","message":"token expired","param":null,"type":"authentication_error"}}`},
		{fault.New("a.B", fault.InferenceRateLimited, "wait"), 429, `{"error":{"code":"rate_limit_exceeded","message":"wait","param":null,"type":"rate_limit_error"}}`},
		{errors.New(planted), 500, `{"error":{"code":"internal","message":"internal","param":null,"type":"server_error"}}`},
		{nil, 500, `{"error":{"code":"internal","message":"internal","param":null,"type":"server_error"}}`},
	} {
		status, body := provider.EncodeOpenAIError(tt.err)
		if status != tt.status || string(body) != tt.want {
			t.Errorf("EncodeOpenAIError(%v) = %d %s, want %d %s", tt.err, status, body, tt.status, tt.want)
		}
	}
	w := httptest.NewRecorder()
	provider.WriteOpenAIError(w, fault.After(fault.New("a.B", fault.InferenceRateLimited, "wait"), 1500*time.Millisecond))
	if w.Code != 429 || w.Header().Get("Retry-After") != "2" || w.Header().Get("X-Should-Retry") != "true" || !strings.Contains(w.Body.String(), "rate_limit_exceeded") {
		t.Errorf("WriteOpenAIError wrote %d %v %s", w.Code, w.Header(), w.Body)
	}
}

func ExampleDecodeOpenAIRequest() {
	r, stream, err := provider.DecodeOpenAIRequest([]byte(`{
		"model": "gpt-test", "stream": true, "seed": 7,
		"messages": [{"role": "user", "content": "hello"}]
	}`))
	fmt.Println(r.Model, r.Messages[0].Text(), stream, string(r.Extra["seed"]), err)
	// Output: gpt-test hello true 7 <nil>
}

func FuzzDecodeOpenAIRequest(f *testing.F) {
	files, _ := filepath.Glob("testdata/openai/request-*.json")
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, stream, err := provider.DecodeOpenAIRequest(body)
		if err != nil {
			if !errors.Is(err, fault.InvalidArgument) {
				t.Fatalf("error = %v, want InvalidArgument", err)
			}
			return
		}
		// What was decided on is what is sent, and is read as the same again.
		sent, err := provider.EncodeOpenAIRequest(r, stream)
		if err != nil {
			t.Fatalf("what was decoded does not encode: %v", err)
		}
		again, streamAgain, err := provider.DecodeOpenAIRequest(sent)
		if err != nil || streamAgain != stream {
			t.Fatalf("%s does not decode: %v", sent, err)
		}
		twice, err := provider.EncodeOpenAIRequest(again, stream)
		if err != nil || !bytes.Equal(sent, twice) {
			t.Fatalf("not a fixed point:\n%s\n%s\n%v", sent, twice, err)
		}
	})
}

func FuzzDecodeOpenAIChunk(f *testing.F) {
	f.Add([]byte(`{"id":"c","choices":[{"index":0,"delta":{"content":"a","tool_calls":[{"index":1,"function":{"arguments":"{"}}]},"finish_reason":null}],"usage":{"prompt_tokens":1}}`))
	f.Add([]byte(`{"error":{"message":"x"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := provider.DecodeOpenAIChunk(data)
		if err != nil {
			return
		}
		sent, err := provider.EncodeOpenAIChunk(c)
		if err != nil {
			t.Fatalf("what was decoded does not encode: %v", err)
		}
		if _, err := provider.DecodeOpenAIChunk(sent); err != nil || bytes.ContainsRune(sent, '\n') {
			t.Fatalf("%s does not decode, or is two lines: %v", sent, err)
		}
	})
}
