package provider_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
	"github.com/google/go-cmp/cmp"
)

// TestTranslateRequest holds what becomes of a request whose provider speaks the
// other dialect.
func TestTranslateRequest(t *testing.T) {
	for _, tt := range []struct{ name, openAI, anthropic string }{
		{
			"a conversation with tools",
			`{"model":"m","max_completion_tokens":9,"temperature":0.5,"stop":["A","B"],"user":"u","stream":true,"top_p":0.9,"seed":7,"n":1,"logprobs":false,
			"parallel_tool_calls":false,"tool_choice":"required","reasoning_effort":"minimal","stream_options":{"include_usage":true},
			"messages":[{"role":"system","content":"be kind"},
			{"role":"user","name":"al","content":[{"type":"text","text":"look"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA==","detail":"low"}},{"type":"image_url","image_url":{"url":"https://x/y"}}]},
			{"role":"assistant","content":"","reasoning_content":"hm","tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{\"x\":1.50}"}},{"id":"b","type":"function","function":{"name":"g","arguments":""}}]},
			{"role":"tool","tool_call_id":"a","content":"1"},{"role":"tool","tool_call_id":"b","content":[{"type":"text","text":"2"}]},{"role":"user","content":"and?"},
			{"role":"developer","content":"in French"},{"role":"user","content":"now"}],
			"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"},"strict":true}},{"type":"function","function":{"name":"g"}}],
			"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object"},"strict":true}}}`,
			`{"model":"m","max_tokens":9,"temperature":0.5,"stop_sequences":["A","B"],"metadata":{"user_id":"u"},"stream":true,"top_p":0.9,
			"tool_choice":{"type":"any","disable_parallel_tool_use":true},"output_config":{"effort":"low","format":{"type":"json_schema","schema":{"type":"object"}}},
			"system":[{"type":"text","text":"be kind"},{"type":"text","text":"in French"}],
			"messages":[{"role":"user","content":[{"type":"text","text":"look"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AA=="}},{"type":"image","source":{"type":"url","url":"https://x/y"}}]},
			{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"f","input":{"x":1.50}},{"type":"tool_use","id":"b","name":"g","input":{}}]},
			{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":"1"},{"type":"tool_result","tool_use_id":"b","content":[{"type":"text","text":"2"}]},{"type":"text","text":"and?"}]},
			{"role":"user","content":"now"}],
			"tools":[{"name":"f","description":"d","input_schema":{"type":"object"},"strict":true},{"name":"g","input_schema":{"type":"object"}}]}`,
		},
		{
			"signed reasoning goes home",
			`{"model":"m","max_tokens":9,"thinking":{"type":"adaptive"},"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y","reasoning_content":"hm","thinking_blocks":[{"type":"thinking","thinking":"hm","signature":"S"},{"type":"redacted_thinking","data":"R"}]},{"role":"user","content":"z"}]}`,
			`{"model":"m","max_tokens":9,"thinking":{"type":"adaptive"},"messages":[{"role":"user","content":"x"},{"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":"S"},{"type":"redacted_thinking","data":"R"},{"type":"text","text":"y"}]},{"role":"user","content":"z"}]}`,
		},
		{
			"no effort, no tools",
			`{"model":"m","reasoning_effort":"none","tool_choice":"auto","parallel_tool_calls":false,"response_format":{"type":"text"},"messages":[{"role":"user","content":"x"}]}`,
			`{"model":"m","thinking":{"type":"disabled"},"messages":[{"role":"user","content":"x"}]}`,
		},
	} {
		t.Run("to Anthropic: "+tt.name, func(t *testing.T) {
			r, stream, err := provider.DecodeOpenAIRequest([]byte(tt.openAI))
			if err != nil {
				t.Fatal(err)
			}
			got, err := provider.EncodeAnthropicRequest(r, stream)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(mustJSON(t, []byte(tt.anthropic)), mustJSON(t, got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	for _, tt := range []struct{ name, anthropic, openAI string }{
		{
			"a conversation with tools", "",
			`{"model":"claude-test","max_completion_tokens":1024,"temperature":0.70,"stop":["END"],"user":"u-1","reasoning_effort":"high","stream":true,"top_k":5,"x_vendor":{"deep":[1.50,null]},
			"tool_choice":"required","parallel_tool_calls":false,"response_format":{"type":"json_schema","json_schema":{"name":"answer","schema":{"type":"object"}}},
			"messages":[{"role":"system","content":"be <brief>\na long manual"},
			{"role":"user","content":[{"type":"text","text":"what is this?"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}},{"type":"image_url","image_url":{"url":"https://x/y.png"}}]},
			{"role":"assistant","content":"I look.","tool_calls":[{"id":"toolu_1","type":"function","function":{"name":"look","arguments":"{\"at\": 1.50}"}},{"id":"toolu_2","type":"function","function":{"name":"look","arguments":"{}"}}]},
			{"role":"tool","tool_call_id":"toolu_1","content":"a cat"},{"role":"tool","tool_call_id":"toolu_2","content":"too dark"},{"role":"user","content":"go on"}],
			"tools":[{"type":"function","function":{"name":"look","description":"looks","parameters":{"type":"object"},"strict":true}}]}`,
		},
		{
			"simple", `{"model":"m","max_tokens":5,"system":"s","messages":[{"role":"user","content":"x"}],"tool_choice":{"type":"tool","name":"f"},"tools":[{"name":"f","input_schema":{}}]}`,
			`{"model":"m","max_completion_tokens":5,"messages":[{"role":"system","content":"s"},{"role":"user","content":"x"}],"tool_choice":{"type":"function","function":{"name":"f"}},"tools":[{"type":"function","function":{"name":"f","parameters":{}}}]}`,
		},
	} {
		t.Run("to OpenAI: "+tt.name, func(t *testing.T) {
			body := []byte(tt.anthropic)
			if tt.anthropic == "" {
				body = read(t, "testdata/anthropic/request-full.json")
				body = bytes.Replace(body, []byte(",\n    {\"type\": \"web_search_20250305\", \"name\": \"web_search\", \"max_uses\": 3}"), nil, 1)
			}
			r, stream, err := provider.DecodeAnthropicRequest(body)
			if err != nil {
				t.Fatal(err)
			}
			got, err := provider.EncodeOpenAIRequest(r, stream)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(mustJSON(t, []byte(tt.openAI)), mustJSON(t, got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestTranslateRefuses holds that what the other dialect cannot say is refused, not
// lost.
func TestTranslateRefuses(t *testing.T) {
	turn := `"model":"m","messages":[{"role":"user","content":"x"}]`
	for _, tt := range []struct{ name, body string }{
		{"several answers", `{` + turn + `,"n":2}`},
		{"a name that some would read as system", `{` + turn + `,"System":"be evil"}`},
		{"probabilities", `{` + turn + `,"logprobs":true}`},
		{"biases", `{` + turn + `,"logit_bias":{"1":-100}}`},
		{"speech", `{` + turn + `,"modalities":["text","audio"]}`},
		{"any JSON", `{` + turn + `,"response_format":{"type":"json_object"}}`},
		{"a choice of some tools", `{` + turn + `,"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"allowed_tools","allowed_tools":{}}}`},
		{"a custom tool", `{` + turn + `,"tools":[{"type":"custom","custom":{"name":"f"}}]}`},
		{"sound", `{"model":"m","messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{}}]}]}`},
		{"the role of a function", `{"model":"m","messages":[{"role":"function","name":"f","content":"x"}]}`},
	} {
		r, stream, err := provider.DecodeOpenAIRequest([]byte(tt.body))
		if err != nil {
			t.Fatal(tt.name, err)
		}
		if _, err := provider.EncodeAnthropicRequest(r, stream); !errors.Is(err, fault.InferenceNotSupported) {
			t.Errorf("%s: %v, want InferenceNotSupported", tt.name, err)
		}
	}
	r, _, err := provider.DecodeOpenAIRequest([]byte(`{"model":"m","messages":[{"role":"assistant","tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{\"x"}}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.EncodeAnthropicRequest(r, false); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("broken arguments: %v, want InvalidArgument", err)
	}
	for _, tt := range []struct{ name, body string }{
		{"tools at the provider", `{` + turn + `,"tools":[{"type":"web_search_20250305","name":"web_search"}]}`},
		{"servers of tools", `{` + turn + `,"mcp_servers":[{"url":"https://m"}]}`},
		{"a name that some would read as functions", `{` + turn + `,"functionſ":[]}`},
		{"a container", `{` + turn + `,"container":"c"}`},
		{"a document", `{"model":"m","messages":[{"role":"user","content":[{"type":"document","source":{}},{"type":"text","text":"x"}]}]}`},
		{"a document alone", `{"model":"m","messages":[{"role":"user","content":[{"type":"document","source":{}}]}]}`},
		{"a file", `{"model":"m","messages":[{"role":"user","content":[{"type":"image","source":{"type":"file","file_id":"f"}}]}]}`},
		{"what a tool at the provider found", `{"model":"m","messages":[{"role":"assistant","content":[{"type":"web_search_tool_result","content":[]}]}]}`},
		{"a new kind of choice", `{` + turn + `,"tools":[{"name":"f"}],"tool_choice":{"type":"some"}}`},
	} {
		r, stream, err := provider.DecodeAnthropicRequest([]byte(tt.body))
		if err != nil {
			t.Fatal(tt.name, err)
		}
		if _, err := provider.EncodeOpenAIRequest(r, stream); !errors.Is(err, fault.InferenceNotSupported) {
			t.Errorf("%s: %v, want InferenceNotSupported", tt.name, err)
		}
	}
}

func TestTranslateResponse(t *testing.T) {
	r, err := provider.DecodeAnthropicResponse(read(t, "testdata/anthropic/response.json"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := provider.EncodeOpenAIResponse(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"id":"msg_01","object":"chat.completion","created":0,"model":"claude-test-20260101","container":{"id":"c"},"choices":[{"index":0,"message":{"role":"assistant","content":"a <b> & é",
	"reasoning_content":"hm","thinking_blocks":[{"type":"thinking","thinking":"hm","signature":"EqQB"}],"tool_calls":[{"id":"toolu_1","type":"function","function":{"name":"weather","arguments":"{\"city\": \"Bern\"}"}}]},"finish_reason":"tool_calls"}],
	"usage":{"prompt_tokens":115,"completion_tokens":7,"total_tokens":122,"prompt_tokens_details":{"cached_tokens":100,"cache_write_tokens":5},"cache_creation":{"ephemeral_5m_input_tokens":5,"ephemeral_1h_input_tokens":0},"output_tokens_details":{"thinking_tokens":2},"completion_tokens_details":{"reasoning_tokens":2},"service_tier":"standard"}}`
	if diff := cmp.Diff(mustJSON(t, []byte(want)), mustJSON(t, got)); diff != "" {
		t.Errorf("to OpenAI (-want +got):\n%s", diff)
	}

	for _, tt := range []struct{ name, openAI, anthropic string }{
		{
			"text and calls",
			`{"id":"c","object":"chat.completion","created":17,"model":"m","choices":[{"index":0,"logprobs":null,"message":{"role":"assistant","content":"hi","reasoning":"hm","annotations":[],"tool_calls":[{"id":"t","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":4}}}`,
			`{"id":"c","type":"message","role":"assistant","model":"m","content":[{"type":"thinking","thinking":"hm","signature":""},{"type":"text","text":"hi"},{"type":"tool_use","id":"t","name":"f","input":{"a":1}}],"stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":6,"cache_read_input_tokens":4,"cache_creation_input_tokens":0,"output_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}`,
		},
		{
			"a refusal",
			`{"id":"c","created":17,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":null,"refusal":"no"},"finish_reason":"stop"}]}`,
			`{"id":"c","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":"no"}],"stop_reason":"refusal","stop_sequence":null,"usage":{"input_tokens":0,"cache_read_input_tokens":0,"cache_creation_input_tokens":0,"output_tokens":0}}`,
		},
	} {
		r, err := provider.DecodeOpenAIResponse([]byte(tt.openAI))
		if err != nil {
			t.Fatal(err)
		}
		got, err := provider.EncodeAnthropicResponse(r)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(mustJSON(t, []byte(tt.anthropic)), mustJSON(t, got)); diff != "" {
			t.Errorf("%s to Anthropic (-want +got):\n%s", tt.name, diff)
		}
	}
	for _, bad := range []inference.Response{{}, {Choices: []inference.Choice{{Message: inference.Message{ToolCalls: []inference.ToolCall{{Name: "f", Arguments: "{"}}}}}}} {
		if _, err := provider.EncodeAnthropicResponse(bad); fault.CodeOf(err) != fault.InferenceProviderError {
			t.Errorf("EncodeAnthropicResponse(%+v) = %v, want InferenceProviderError", bad, err)
		}
	}
}

// TestTranslateStream holds what OpenAI's clients hear of a stream of Anthropic's,
// and the other way round.
func TestTranslateStream(t *testing.T) {
	client := openAnthropic(t, respond(200, "text/event-stream", string(read(t, "testdata/anthropic/stream.sse"))), nil)
	s, err := client.CompleteStream(t.Context(), inferencetest.Ask("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_, chunks, err := inferencetest.Collect(t, s)
	if err != nil {
		t.Fatal(err)
	}
	type heard struct{ Text, Thought, Signature, Calls, Finish string }
	var got heard
	for _, c := range chunks {
		data, err := provider.EncodeOpenAIChunk(c)
		if err != nil {
			t.Fatal(err)
		}
		var in struct {
			Choices []struct {
				Delta struct {
					Content        *string
					Reasoning      string              `json:"reasoning_content"`
					ThinkingBlocks []map[string]string `json:"thinking_blocks"`
					ToolCalls      []struct {
						Index    int
						ID       string
						Function struct{ Name, Arguments string }
					} `json:"tool_calls"`
				}
				FinishReason string `json:"finish_reason"`
			}
		}
		if err := json.Unmarshal(data, &in); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		for _, choice := range in.Choices {
			if choice.Delta.Content != nil {
				got.Text += *choice.Delta.Content
			}
			got.Thought += choice.Delta.Reasoning
			for _, b := range choice.Delta.ThinkingBlocks {
				got.Signature += b["signature"]
			}
			for _, call := range choice.Delta.ToolCalls {
				got.Calls += fmt.Sprintf("%d %s %s(%s);", call.Index, call.ID, call.Function.Name, call.Function.Arguments)
			}
			got.Finish += choice.FinishReason
		}
	}
	want := heard{"It is <warm>.", "hm", "EqQB", `0 toolu_1 weather();0  ({"city":);0  ("Bern"});1 toolu_2 weather();`, "tool_calls"}
	if got != want {
		t.Errorf("heard %+v, want %+v", got, want)
	}

	nothing := func() inference.Usage { return inference.Usage{} }
	var events provider.AnthropicEvents
	var written []byte
	for _, data := range []string{
		`{"id":"c","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`,
		`{"id":"c","model":"m","choices":[{"index":0,"delta":{"reasoning_content":"hm"},"finish_reason":null}]}`,
		`{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"It "},"finish_reason":null}]}`,
		`{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"is"},"finish_reason":null}]}`,
		`{"id":"c","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]},"finish_reason":null}]}`,
		`{"id":"c","model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"x\":1}"}},{"index":1,"id":"b","function":{"name":"g","arguments":"{}"}}]},"finish_reason":null}]}`,
		`{"id":"c","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}`,
	} {
		c, err := provider.DecodeOpenAIChunk([]byte(data))
		if err != nil {
			t.Fatal(err)
		}
		data, err := events.Chunk(c, nothing)
		if err != nil {
			t.Fatal(err)
		}
		written = append(written, data...)
	}
	data, err := events.End(inference.Usage{PromptTokens: 9, CachedTokens: 4, CompletionTokens: 3})
	if err != nil {
		t.Fatal(err)
	}
	wantEvents := sse("message_start", `,"message":{"id":"c","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":0,"cache_read_input_tokens":0,"cache_creation_input_tokens":0,"output_tokens":0}}`) +
		sse("content_block_start", `,"index":0,"content_block":{"type":"thinking","thinking":"","signature":""}`) + sse("content_block_delta", `,"index":0,"delta":{"type":"thinking_delta","thinking":"hm"}`) + sse("content_block_stop", `,"index":0`) +
		sse("content_block_start", `,"index":1,"content_block":{"type":"text","text":""}`) + sse("content_block_delta", `,"index":1,"delta":{"type":"text_delta","text":"It "}`) + sse("content_block_delta", `,"index":1,"delta":{"type":"text_delta","text":"is"}`) + sse("content_block_stop", `,"index":1`) +
		sse("content_block_start", `,"index":2,"content_block":{"type":"tool_use","id":"a","name":"f","input":{}}`) + sse("content_block_delta", `,"index":2,"delta":{"type":"input_json_delta","partial_json":"{\"x\":1}"}`) + sse("content_block_stop", `,"index":2`) +
		sse("content_block_start", `,"index":3,"content_block":{"type":"tool_use","id":"b","name":"g","input":{}}`) + sse("content_block_delta", `,"index":3,"delta":{"type":"input_json_delta","partial_json":"{}"}`) + sse("content_block_stop", `,"index":3`) +
		sse("message_delta", `,"delta":{"stop_reason":"max_tokens","stop_sequence":null},"usage":{"input_tokens":5,"cache_read_input_tokens":4,"cache_creation_input_tokens":0,"output_tokens":3}`) + sse("message_stop", "")
	if diff := cmp.Diff(eventsOf(t, []byte(wantEvents)), eventsOf(t, append(written, data...))); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	back := inference.Chunk{Choices: []inference.Choice{{Message: inference.Message{ToolCalls: []inference.ToolCall{{Index: 0, Arguments: "late"}}}}}}
	var again provider.AnthropicEvents
	one := inference.Chunk{Choices: []inference.Choice{{Message: inference.Message{ToolCalls: []inference.ToolCall{{Index: 0, ID: "a"}, {Index: 1, ID: "b"}}}}}}
	if _, err := again.Chunk(one, nothing); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Chunk(back, nothing); fault.CodeOf(err) != fault.InferenceProviderError {
		t.Errorf("calls that alternate: %v, want InferenceProviderError", err)
	}
}

// portable returns a request that both dialects can say.
func portable(r *rand.Rand) inference.Request {
	word := func() string {
		letters := []string{"a", "é", "<", "\"", "\n", "{}", " ", "\u2028", "x"}
		text := "w"
		for range r.IntN(4) {
			text += letters[r.IntN(len(letters))]
		}
		return text
	}
	q := inference.Request{Model: word(), MaxTokens: 1 + r.Int64N(1000)}
	if r.IntN(2) == 0 {
		q.Messages = append(q.Messages, inference.Message{Role: inference.RoleSystem, Content: inference.Text(word())})
	}
	calls := 0
	for range 1 + r.IntN(4) {
		user := inference.Message{Role: inference.RoleUser, Content: inference.Text(word())}
		if r.IntN(2) == 0 {
			user.Content = []inference.Part{{Type: "text", Text: word()}, {Image: &inference.Image{MediaType: "image/png", Data: "AA=="}}, {Type: "text", Text: word()}, {Image: &inference.Image{URL: "https://x/" + fmt.Sprint(r.IntN(9))}}}
		}
		answer := inference.Message{Role: inference.RoleAssistant, Content: []inference.Part{{Type: "text", Text: word()}}}
		q.Messages = append(q.Messages, user)
		var results []inference.Message
		for range r.IntN(3) {
			calls++
			id := fmt.Sprintf("call-%d", calls)
			answer.ToolCalls = append(answer.ToolCalls, inference.ToolCall{ID: id, Type: "function", Name: "f", Arguments: fmt.Sprintf(`{"n":%d.50}`, r.IntN(9))})
			results = append(results, inference.Message{Role: inference.RoleTool, ToolCallID: id, Content: inference.Text(word())})
		}
		q.Messages = append(append(q.Messages, answer), results...)
	}
	for range r.IntN(3) {
		strict := r.IntN(2) == 0
		q.Tools = append(q.Tools, inference.Tool{Name: word(), Description: word(), Parameters: json.RawMessage(`{"type":"object"}`), Strict: &strict})
	}
	if len(q.Tools) > 0 {
		modes := []inference.ToolMode{inference.ToolsAuto, inference.ToolsNone, inference.ToolsRequired, inference.ToolsNamed}
		if q.ToolChoice = (&inference.ToolChoice{Mode: modes[r.IntN(len(modes))]}); q.ToolChoice.Mode == inference.ToolsNamed {
			q.ToolChoice.Name = q.Tools[0].Name
		}
	}
	if r.IntN(2) == 0 {
		q.Temperature, q.Stop, q.User, q.ReasoningEffort = "0.50", []string{word()}, word(), "low"
		q.ResponseFormat = &inference.ResponseFormat{Type: "json_schema", Schema: json.RawMessage(`{"a":[1.0]}`)}
	}
	return q
}

// TestRoundTrip holds that a request which both dialects can say is the same after
// it went through either: what one door decodes is what the other would have sent.
func TestRoundTrip(t *testing.T) {
	source := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		q := portable(source)
		openAI, err := provider.EncodeOpenAIRequest(q, true)
		if err != nil {
			t.Fatal(err)
		}
		anthropic, err := provider.EncodeAnthropicRequest(q, true)
		if err != nil {
			t.Fatal(err)
		}
		fromOpenAI, _, err := provider.DecodeOpenAIRequest(openAI)
		if err != nil {
			t.Fatalf("%s: %v", openAI, err)
		}
		fromAnthropic, _, err := provider.DecodeAnthropicRequest(anthropic)
		if err != nil {
			t.Fatalf("%s: %v", anthropic, err)
		}
		q.Dialect = inference.DialectAnthropic
		direct, err := provider.EncodeOpenAIRequest(q, true)
		if err != nil {
			t.Fatal(err)
		}
		through, err := provider.EncodeOpenAIRequest(fromAnthropic, true)
		if err != nil || !bytes.Equal(direct, through) {
			t.Fatalf("through Anthropic's dialect:\n%s\n%s\n%v", direct, through, err)
		}
		q.Dialect = inference.DialectOpenAI
		if direct, err = provider.EncodeAnthropicRequest(q, true); err != nil {
			t.Fatal(err)
		}
		through, err = provider.EncodeAnthropicRequest(fromOpenAI, true)
		if err != nil || !bytes.Equal(direct, through) {
			t.Fatalf("through OpenAI's dialect:\n%s\n%s\n%v", direct, through, err)
		}
	}
}

func FuzzDecodeAnthropicRequest(f *testing.F) {
	files, _ := filepath.Glob("testdata/anthropic/request-*.json")
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, stream, err := provider.DecodeAnthropicRequest(body)
		if err != nil {
			if !errors.Is(err, fault.InvalidArgument) {
				t.Fatalf("error = %v, want InvalidArgument", err)
			}
			return
		}
		// What was decided on is what is sent, and is read as the same again.
		sent, err := provider.EncodeAnthropicRequest(r, stream)
		if err != nil {
			t.Fatalf("what was decoded does not encode: %v", err)
		}
		again, streamAgain, err := provider.DecodeAnthropicRequest(sent)
		if err != nil || streamAgain != stream {
			t.Fatalf("%s does not decode: %v", sent, err)
		}
		twice, err := provider.EncodeAnthropicRequest(again, stream)
		if err != nil || !bytes.Equal(sent, twice) {
			t.Fatalf("not a fixed point:\n%s\n%s\n%v", sent, twice, err)
		}
		// The other dialect says it, or it is refused; and what it says is read.
		other, err := provider.EncodeOpenAIRequest(r, stream)
		if err != nil {
			if !errors.Is(err, fault.InferenceNotSupported) {
				t.Fatalf("translation = %v, want InferenceNotSupported", err)
			}
			return
		}
		if _, _, err := provider.DecodeOpenAIRequest(other); err != nil {
			t.Fatalf("%s does not decode: %v", other, err)
		}
	})
}

func FuzzDecodeAnthropicResponse(f *testing.F) {
	body, err := os.ReadFile("testdata/anthropic/response.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := provider.DecodeAnthropicResponse(body)
		if err != nil {
			if !errors.Is(err, fault.InvalidArgument) {
				t.Fatalf("error = %v, want InvalidArgument", err)
			}
			return
		}
		if u := r.Usage; u.PromptTokens < 0 || u.CompletionTokens < 0 {
			t.Fatalf("usage = %+v", u)
		}
		sent, err := provider.EncodeAnthropicResponse(r)
		if err != nil {
			t.Fatalf("what was decoded does not encode: %v", err)
		}
		if _, err := provider.DecodeAnthropicResponse(sent); err != nil {
			t.Fatalf("%s does not decode: %v", sent, err)
		}
		if other, err := provider.EncodeOpenAIResponse(r); err != nil || bytes.ContainsRune(other, '\n') {
			t.Fatalf("translation = %q, %v", other, err)
		}
	})
}

// spoken answers each request with one body.
type spoken struct{ body []byte }

// RoundTrip implements http.RoundTripper.
func (s spoken) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(bytes.NewReader(s.body))}, nil
}

// FuzzAnthropicStream: whatever an upstream sends, the stream ends, with io.EOF
// only after message_stop; and what came can be told in both dialects.
func FuzzAnthropicStream(f *testing.F) {
	recorded, err := os.ReadFile("testdata/anthropic/stream.sse")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(recorded)
	f.Add([]byte("data: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"x\"}}\n\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		client, err := provider.NewAnthropic(provider.AnthropicConfig{Config: provider.Config{Name: "f", BaseURL: "http://f/v1", MaxResponseBytes: 1 << 20, Transport: spoken{body}}})
		if err != nil {
			t.Fatal(err)
		}
		s, err := client.CompleteStream(t.Context(), inferencetest.Ask("hello"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		var events provider.AnthropicEvents
		for {
			c, err := s.Next()
			if err != nil {
				if errors.Is(err, io.EOF) && !bytes.Contains(body, []byte("message_stop")) && !bytes.Contains(body, []byte(`\`)) {
					t.Fatalf("%q is whole", body)
				}
				break
			}
			written, err := events.Chunk(c, s.Usage)
			if err != nil {
				t.Fatal(err)
			}
			if len(written) > 0 {
				eventsOf(t, written)
			}
			if data, err := provider.EncodeOpenAIChunk(c); err != nil || bytes.ContainsRune(data, '\n') {
				t.Fatalf("translation = %q, %v", data, err)
			}
		}
		if u := s.Usage(); u.PromptTokens < 0 || u.CompletionTokens < 0 {
			t.Fatalf("usage = %+v", u)
		}
		written, err := events.End(s.Usage())
		if err != nil {
			t.Fatal(err)
		}
		eventsOf(t, written)
	})
}
