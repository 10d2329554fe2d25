package provider_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/provider"
)

// What the Responses API says, in the words of chat completions.
func TestDecodeResponses(t *testing.T) {
	const head = `"model":"m",`
	for name, test := range map[string]struct{ body, want string }{
		"a text":        {`"input":"hi"`, `"messages":[{"content":"hi","role":"user"}],"model":"m"`},
		"instructions":  {`"input":"hi","instructions":"be brief"`, `"messages":[{"content":"be brief","role":"system"},{"content":"hi","role":"user"}],"model":"m"`},
		"messages":      {`"input":[{"role":"developer","content":"x"},{"type":"message","id":"msg_1","status":"completed","phase":"final_answer","role":"assistant","content":[{"type":"output_text","text":"a","annotations":[],"logprobs":[]},{"type":"output_text","text":"b"}]},{"role":"user","content":[{"type":"input_text","text":"c"}]}]`, `"messages":[{"content":"x","role":"developer"},{"content":"ab","role":"assistant"},{"content":"c","role":"user"}],"model":"m"`},
		"an image":      {`"input":[{"role":"user","content":[{"type":"input_text","text":"c"},{"type":"input_image","image_url":"data:image/png;base64,AA==","detail":"low"}]}]`, `"messages":[{"content":[{"text":"c","type":"text"},{"image_url":{"detail":"low","url":"data:image/png;base64,AA=="},"type":"image_url"}],"role":"user"}],"model":"m"`},
		"calls":         {`"input":[{"role":"user","content":"x"},{"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"gAAAA of somebody else's"},{"type":"message","role":"assistant","content":"wait"},{"type":"function_call","id":"fc_1","call_id":"c1","name":"f","arguments":"{}","status":"completed"},{"type":"function_call","call_id":"c2","name":"g","arguments":"{\"a\":1}"},{"type":"function_call_output","call_id":"c1","output":"1"},{"type":"function_call_output","call_id":"c2","output":[{"type":"input_text","text":"2"}]}]`, `"messages":[{"content":"x","role":"user"},{"content":"wait","role":"assistant","tool_calls":[{"function":{"arguments":"{}","name":"f"},"id":"c1","type":"function"},{"function":{"arguments":"{\"a\":1}","name":"g"},"id":"c2","type":"function"}]},{"content":"1","role":"tool","tool_call_id":"c1"},{"content":"2","role":"tool","tool_call_id":"c2"}],"model":"m"`},
		"tools":         {`"input":"x","tools":[{"type":"function","name":"f","description":"d","parameters":{"type":"object"},"strict":true}],"tool_choice":{"type":"function","name":"f"},"parallel_tool_calls":false`, `"messages":[{"content":"x","role":"user"}],"model":"m","parallel_tool_calls":false,"tool_choice":{"function":{"name":"f"},"type":"function"},"tools":[{"function":{"description":"d","name":"f","parameters":{"type":"object"},"strict":true},"type":"function"}]`},
		"format":        {`"input":"x","text":{"format":{"type":"json_schema","name":"n","schema":{"type":"object"},"strict":true,"description":"d"},"verbosity":"low"}`, `"messages":[{"content":"x","role":"user"}],"model":"m","response_format":{"json_schema":{"description":"d","name":"n","schema":{"type":"object"},"strict":true},"type":"json_schema"},"verbosity":"low"`},
		"bounds":        {`"input":"x","max_output_tokens":7,"temperature":0.5,"top_p":0.9,"reasoning":{"effort":"low","summary":"auto"},"user":"u","service_tier":"flex"`, `"max_completion_tokens":7,"messages":[{"content":"x","role":"user"}],"model":"m","reasoning_effort":"low","service_tier":"flex","temperature":0.5,"top_p":0.9,"user":"u"`},
		"hints":         {`"input":"x","metadata":{"a":"b"},"truncation":"auto","store":false,"background":null,"previous_response_id":null,"include":["reasoning.encrypted_content"],"stream_options":{"include_obfuscation":false},"text":{"format":{"type":"text"}}`, `"messages":[{"content":"x","role":"user"}],"model":"m"`},
		"what is newer": {`"input":"x","newer":{"a":1}`, `"messages":[{"content":"x","role":"user"}],"model":"m","newer":{"a":1}`},
	} {
		r, stream, answer, err := provider.DecodeOpenAIResponsesRequest([]byte("{" + head + test.body + "}"))
		if err != nil || stream || answer == nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := provider.EncodeOpenAIRequest(r, false); err != nil || string(got) != "{"+test.want+"}" {
			t.Errorf("%s: %s, %v\nwant {%s}", name, got, err, test.want)
		}
	}
}

func TestDecodeResponsesRefuses(t *testing.T) {
	for code, bodies := range map[fault.Code][]string{
		fault.InvalidArgument: {
			`{`, `[]`, `{"model":"m"}`, `{"input":"x"}`, `{"model":"m","input":7}`, `{"model":"m","input":[{"type":"message","role":"king","content":"x"}]}`,
			`{"model":"m","input":[{"content":"x"}]}`, `{"model":"m","input":"x","INPUT":"y"}`,
			`{"model":"m","input":"x","tools":[{"name":"f"}]}`, `{"model":"m","input":"x","max_output_tokens":-1}`, `{"model":"m","input":"x","temperature":"hot"}`,
			`{"model":"m","input":[{"role":"user","content":[{"type":"input_image"}]}]}`,
			`{"model":"m","input":[{"role":"user","content":"x"},{"type":"reasoning","summary":[],"encrypted_content":"thinking.%"}]}`,
		},
		fault.InferenceNotSupported: {
			`{"model":"m","input":"x","previous_response_id":"resp_1"}`, `{"model":"m","input":"x","conversation":"conv_1"}`, `{"model":"m","input":"x","store":true}`,
			`{"model":"m","input":"x","background":true}`, `{"model":"m","input":"x","prompt":{"id":"p"}}`, `{"model":"m","input":"x","max_tool_calls":1}`,
			`{"model":"m","input":"x","tools":[{"type":"web_search"}]}`, `{"model":"m","input":"x","tools":[{"type":"custom","name":"f"}]}`,
			`{"model":"m","input":"x","tool_choice":{"type":"allowed_tools","tools":[]}}`, `{"model":"m","input":"x","include":["message.output_text.logprobs"]}`,
			`{"model":"m","input":[{"type":"item_reference","id":"msg_1"}]}`, `{"model":"m","input":[{"type":"web_search_call","id":"ws_1"}]}`,
			`{"model":"m","input":[{"role":"user","content":[{"type":"input_file","file_id":"f"}]}]}`, `{"model":"m","input":"x","Store":true}`,
			`{"model":"m","input":"x","tools":[{"type":"function","name":"f","defer_loading":true}]}`,
		},
	} {
		for _, body := range bodies {
			if _, _, _, err := provider.DecodeOpenAIResponsesRequest([]byte(body)); !errors.Is(err, code) {
				t.Errorf("%s: %v, want %v", body, err, code)
			}
		}
	}
}

// Reasoning that a provider signed goes to the client and back, unchanged, one block
// for each item.
func TestResponsesReasoning(t *testing.T) {
	_, _, answer, err := provider.DecodeOpenAIResponsesRequest([]byte(`{"model":"m","input":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	body, err := answer.Answer(inference.Response{ID: "1", Model: "m", Dialect: inference.DialectAnthropic, Choices: []inference.Choice{{FinishReason: "tool_calls", Message: inference.Message{
		Role: inference.RoleAssistant,
		Content: []inference.Part{
			{Type: "thinking", Text: "first", Reasoning: &inference.Reasoning{Signature: "s1"}},
			{Type: "redacted_thinking", Reasoning: &inference.Reasoning{Redacted: "secret"}},
			{Type: "thinking", Text: "second", Reasoning: &inference.Reasoning{Signature: "s2"}},
			{Type: "text", Text: "so"},
		},
		ToolCalls: []inference.ToolCall{{ID: "c1", Name: "f", Arguments: "{}"}, {ID: "c2", Name: "g"}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	var said struct{ Output []json.RawMessage }
	if err := json.Unmarshal(body, &said); err != nil || len(said.Output) != 6 {
		t.Fatalf("answer %s, %v", body, err)
	}
	input, err := json.Marshal(slices.Concat([]json.RawMessage{[]byte(`{"role":"user","content":"x"}`)}, said.Output, []json.RawMessage{[]byte(`{"type":"function_call_output","call_id":"c1","output":"1"}`), []byte(`{"type":"function_call_output","call_id":"c2","output":"2"}`)}))
	if err != nil {
		t.Fatal(err)
	}
	r, _, _, err := provider.DecodeOpenAIResponsesRequest(fmt.Appendf(nil, `{"model":"m","max_output_tokens":9,"input":%s}`, input))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"max_tokens":9,"messages":[{"content":"x","role":"user"},{"content":[{"signature":"s1","thinking":"first","type":"thinking"},{"data":"secret","type":"redacted_thinking"},{"signature":"s2","thinking":"second","type":"thinking"},{"text":"so","type":"text"},{"id":"c1","input":{},"name":"f","type":"tool_use"},{"id":"c2","input":{},"name":"g","type":"tool_use"}],"role":"assistant"},{"content":[{"content":"1","tool_use_id":"c1","type":"tool_result"},{"content":"2","tool_use_id":"c2","type":"tool_result"}],"role":"user"}],"model":"m"}`
	if got, err := provider.EncodeAnthropicRequest(r, false); err != nil || string(got) != want {
		t.Errorf("sent back %s, %v\nwant %s", got, err, want)
	}
}

func FuzzDecodeResponses(f *testing.F) {
	f.Add([]byte(`{"model":"m","instructions":"i","input":[{"role":"user","content":[{"type":"input_text","text":"x"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"y"}],"tools":[{"type":"function","name":"f"}],"store":false}`))
	f.Add([]byte(`{"model":"m","input":[{"type":"reasoning","encrypted_content":"thinking.e30=","summary":[]}],"newer":1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, stream, answer, err := provider.DecodeOpenAIResponsesRequest(body)
		if err != nil {
			if fault.CodeOf(err) != fault.InvalidArgument && fault.CodeOf(err) != fault.InferenceNotSupported {
				t.Fatalf("%q: %v", body, err)
			}
			return
		}
		// What was understood is what is sent: it says the same when it is read.
		sent, err := provider.EncodeOpenAIRequest(r, stream)
		if err != nil {
			t.Fatalf("%q was understood and cannot be said: %v", body, err)
		}
		again, _, err := provider.DecodeOpenAIRequest(sent)
		if err != nil {
			t.Fatalf("%q became %s: %v", body, sent, err)
		}
		if second, err := provider.EncodeOpenAIRequest(again, stream); err != nil || string(second) != string(sent) {
			t.Fatalf("%q became %s and then %s, %v", body, sent, second, err)
		}
		if data, err := answer.End(inference.Usage{}); err != nil || strings.Count(string(data), "\n\n") != 3 {
			t.Fatalf("an empty answer: %s, %v", data, err)
		}
	})
}
