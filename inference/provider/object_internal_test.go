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
