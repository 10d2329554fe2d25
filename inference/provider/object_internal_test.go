package provider

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"creto.dev/inference"
)

// FuzzObject compares what is read of a JSON text, and written again, with
// encoding/json.
func FuzzObject(f *testing.F) {
	for _, text := range []string{
		`{}`, ` { "a" : 1 , "b":[ ] , "c":{"d":"}\\\"","e":[1,[2],{"x":null}]},"a":"\u0061\ud800 é 	"}`, `{"a\u0062":"\n","":-1.5e3}`, `[]`, `"a"`, `null`, `{"a":1}x`,
		`{"list":[1, "two" ,{"three":3},[4],null,true]}`, "{\"a\":\"\u2028<>&\"}", `{"a":"\b\f\u0001"}`, `{"a":{}}`, `{"x":[[[]]]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		o := parseObject(text, "")
		var want map[string]json.RawMessage
		if err := json.Unmarshal(text, &want); (err == nil && want != nil && utf8.Valid(text)) != (o.err == nil) {
			t.Fatalf("%q: %v, encoding/json %v", text, o.err, err)
		}
		if o.err != nil {
			return
		}
		got := map[string]json.RawMessage(o.left())
		if len(got) != len(want) {
			t.Fatalf("%q: %q, want %q", text, got, want)
		}
		for name, value := range want {
			if !bytes.Equal(got[name], value) || !bytes.Equal(o.peek(name), value) {
				t.Fatalf("%q: %q is %q, want %q", text, name, got[name], value)
			}
			var items []json.RawMessage
			isList := value[0] == '['
			if isList && json.Unmarshal(value, &items) != nil {
				t.Fatal("encoding/json refuses its own value")
			}
			if read, ok := itemsOf(value); ok != isList || !reflect.DeepEqual(read, items) {
				t.Fatalf("%q: %q, want %q", value, read, items)
			}
			if value[0] == '"' {
				var s string
				if json.Unmarshal(value, &s) != nil || unquoted(value) != s {
					t.Fatalf("%q: %q, want %q", value, unquoted(value), s)
				}
			}
		}
		// Written, as raw values and as Go's.
		var values map[string]any
		if err := json.Unmarshal(text, &values); err != nil {
			t.Fatal(err)
		}
		for _, v := range []any{fieldsOf(o.left()), fields(values)} {
			written, err := encode(v)
			if expected, theirs := encodeByJSON(v); (err != nil) != (theirs != nil) || !bytes.Equal(written, expected) {
				t.Fatalf("%q is written %q, %v; want %q, %v", text, written, err, expected, theirs)
			}
		}
	})
}

// FuzzValidJSON compares what is taken for JSON, and what is left of it without its
// white space, with encoding/json.
func FuzzValidJSON(f *testing.F) {
	for _, text := range []string{
		"", " ", "null", "nul", "nulls", "true", "tru", "false", "0", "-0", "-", "01", "1.", "1.5", ".5", "1e", "1e+", "1E-07", "-1.50e+10", `"`, `""`, `"a`, `"\`, `"\"`, `"\u12`, `"\u12aF"`, `"\u12g0"`, `"\x"`, "\"\x1f\"", "\"\x1fn\"", "\"\x7f\xff\"",
		"{", "{}", "{ }", `{"a"}`, `{"a":}`, `{"a":1,}`, `{"a":1 , "b" : [ ] }`, `{a:1}`, `{"a":1]`, "[", "[]", "[ \t\r\n]", "[1,]", "[,1]", "[1 2]", "[1}", "[]]", "\v1", "1\u00a0", `"0123456\"89abcdefg"`, `"01234567\\`, "\"0123456\n\"",
		strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth), strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1), strings.Repeat(`{"":`, maxDepth) + "0" + strings.Repeat("}", maxDepth),
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		valid := json.Valid(text)
		if got := validJSON(text); got != valid {
			t.Fatalf("%q: %v, encoding/json %v", text, got, valid)
		}
		var want bytes.Buffer
		theirs := json.Compact(&want, text)
		got, err := appendCompact([]byte("x"), text)
		if (err != nil) != (theirs != nil) || err == nil && string(got) != "x"+want.String() {
			t.Fatalf("%q without white space is %q, %v; want %q, %v", text, got[1:], err, want.Bytes(), theirs)
		}
	})
}

func encodeByJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// What encoders build is written as encoding/json would.
func TestEncode(t *testing.T) {
	yes := true
	for _, v := range []any{
		nil, "a\"\\\n\x00\x7f\xff é\u2028", true, 1, int64(-1 << 63), 1.5, []string{"<a>", ""}, []string(nil), json.RawMessage(nil), json.RawMessage(" [ 1 ]\n"), json.RawMessage("{"),
		fields{"b": &yes, "a": fields{"x": []fields{{"y": nil}, {}}}, "é": []any{1, "2", nil}}, fields(nil), []fields(nil), []any(nil), map[string]any{"n": map[string]string{"k": "v"}},
		strings.Repeat("long ", 10_000), json.Number("1e9"),
	} {
		got, err := encode(v)
		if want, theirs := encodeByJSON(v); (err != nil) != (theirs != nil) || err == nil && !bytes.Equal(got, want) {
			t.Errorf("%#v is written %q, %v; want %q, %v", v, got, err, want, theirs)
		}
	}
}

// FuzzAppend compares what is written field by field with what is collected first.
func FuzzAppend(f *testing.F) {
	for _, text := range []string{
		`{"model":"m","messages":[{"role":"user","content":"hi <é\u2028\n"}]}`,
		`{"model":"m","messages":[{"role":"system","content":null,"name":"n","x":1,"a":[ 2 ]},{"role":"assistant","content":"","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"a\":1}","z":0},"b":{}}]},{"role":"tool","tool_call_id":"1","content":[{"type":"text","text":"t"}]}],"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{ "a" : [] },"strict":false,"e":1},"q":""}],"tool_choice":"auto","parallel_tool_calls":false,"seed":7,"stop":["a"],"temperature":-0.5e1,"max_tokens":9,"user":"u","zz":{},"aa":[]}`,
		`{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}}]}],"stream":true,"stream_options":{"include_usage":false,"x":1},"tool_choice":{"type":"function","function":{"name":"f"}},"reasoning_effort":"low","cache_control":{"a":1}}`,
		`{"model":"m","messages":[{"role":"assistant","reasoning_content":"r","content":[],"refusal":"no"}],"tools":[{"type":"web"}],"max_completion_tokens":4,"response_format":{"type":"json_object"}}`,
		`{"id":"i","created":7,"model":"m","choices":[{"index":1,"finish_reason":"stop","message":{"role":"assistant","content":"a"},"logprobs":null}],"usage":{"prompt_tokens":1,"completion_tokens":2,"x":3},"system_fingerprint":"f"}`,
		`{"choices":[{"message":{"content":null,"tool_calls":[{"function":{"name":"f","arguments":""}}]}},{}],"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":1}}}`,
	} {
		f.Add([]byte(text), false)
		f.Add([]byte(text), true)
	}
	f.Fuzz(func(t *testing.T, text []byte, stream bool) {
		if r, _, err := DecodeOpenAIRequest(text); err == nil {
			want, refused := encodeRequest(r, stream)
			if got, ok := appendRequest(r, stream); ok && (refused != nil || !bytes.Equal(got, want)) {
				t.Fatalf("%q is written\n%s, want\n%s, %v", text, got, want, refused)
			}
		}
		if r, err := DecodeOpenAIResponse(text); err == nil {
			want, refused := encodeResponse(r)
			if got, ok := appendResponse(r); ok && (refused != nil || !bytes.Equal(got, want)) {
				t.Fatalf("%q is answered\n%s, want\n%s, %v", text, got, want, refused)
			}
		}
	})
}

// What is written most is written field by field.
func TestAppend(t *testing.T) {
	for text, want := range map[string]bool{
		`{"model":"m","messages":[{"role":"user","content":"hi"},{"role":"user","content":[{"type":"text","text":"t"}]}],"tools":[{"type":"function","function":{"name":"f"}}],"seed":1,"temperature":1.5}`: true,
		`{"model":"m","messages":[{"role":"user","content":"hi"}],"max_completion_tokens":1}`:                                                                                                               false,
		`{"model":"m","messages":[{"role":"assistant","reasoning":"r","content":"hi"}]}`:                                                                                                                    false,
		`{"model":"m","messages":[{"role":"user","content":"hi"}],"tools":[{"type":"web"}]}`:                                                                                                                false,
	} {
		r, _, err := DecodeOpenAIRequest([]byte(text))
		if _, ok := appendRequest(r, false); err != nil || ok != want {
			t.Errorf("%s: %v, %v, want %v", text, ok, err, want)
		}
	}
	r, err := DecodeOpenAIResponse([]byte(`{"id":"i","choices":[{"message":{"role":"assistant","content":"a"}}],"usage":{"prompt_tokens":1}}`))
	if _, ok := appendResponse(r); err != nil || !ok {
		t.Errorf("an answer: %v, %v", ok, err)
	}
	// The caller's fields never come beside those of their name.
	r.Extra = inference.Extra{"model": json.RawMessage(`"other"`)}
	if _, ok := appendResponse(r); ok {
		t.Error("an extra field of a known name is written beside it")
	}
}

// A chunk of text alone is written as any other is.
func TestEncodeTextChunk(t *testing.T) {
	plain := 0
	for _, text := range []string{"", "a", "\"\n é\u2028"} {
		for _, role := range []inference.Role{"", inference.RoleAssistant} {
			for _, finish := range []string{"", "stop"} {
				for _, change := range []func(*inference.Chunk){
					func(*inference.Chunk) {},
					func(c *inference.Chunk) { c.Extra = inference.Extra{"x": json.RawMessage("1")} },
					func(c *inference.Chunk) { c.Choices[0].Extra = inference.Extra{"logprobs": json.RawMessage("null")} },
					func(c *inference.Chunk) { c.Choices[0].Message.Extra = inference.Extra{"x": json.RawMessage("[]")} },
					func(c *inference.Chunk) { c.Choices[0].Message.Content = nil },
					func(c *inference.Chunk) { c.Choices[0].Message.Content[0].Reasoning = &inference.Reasoning{} },
					func(c *inference.Chunk) { c.Choices[0].Message.Content[0].Type = "text" },
					func(c *inference.Chunk) { c.Choices[0].Message.Refusal = "no" },
					func(c *inference.Chunk) { c.Choices[0].Message.ToolCalls = []inference.ToolCall{{Name: "f"}} },
					func(c *inference.Chunk) { c.Usage = &inference.Usage{PromptTokens: 1} },
					func(c *inference.Chunk) { c.Choices = append(c.Choices, c.Choices[0]) },
					func(c *inference.Chunk) { c.Choices = nil },
				} {
					c := inference.Chunk{ID: "i<d>", Model: "m", Created: 7, Choices: []inference.Choice{{Index: 3, FinishReason: finish, Message: inference.Message{Role: role, Content: inference.Text(text)}}}}
					change(&c)
					if _, ok := encodeTextChunk(c); ok {
						plain++
					}
					got, err := EncodeOpenAIChunk(c)
					want, _ := encodeFields(c)
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("%+v is written %s, %v; want %s", c, got, err, want)
					}
				}
			}
		}
	}
	if plain != 3*2*2 {
		t.Errorf("%d chunks are of text alone, want %d", plain, 3*2*2)
	}
}
