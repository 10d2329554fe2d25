package gateway_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/gateway"
	"creto.dev/inference"
)

// kindsOf returns the types of the events of a stream, each on a line of its own
// with its delta, and the data of the last.
func kindsOf(t testing.TB, text string) (kinds, last string) {
	t.Helper()
	var list []string
	for block := range strings.SplitSeq(strings.TrimSuffix(text, "\n\n"), "\n\n") {
		name, data, ok := strings.Cut(block, "\ndata: ")
		var e struct{ Type, Delta string }
		if err := json.Unmarshal([]byte(data), &e); err != nil || !ok || name != "event: "+e.Type {
			t.Fatalf("no event: %q", block)
		}
		list = append(list, strings.TrimSpace(strings.TrimPrefix(e.Type, "response.")+" "+e.Delta))
		last = data
	}
	return strings.Join(list, "\n"), last
}

// The events of the Responses API, from the pieces of chat completions.
func TestResponsesStream(t *testing.T) {
	m := upstream(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, delta := range []string{
			`{"role":"assistant","reasoning_content":"hm"}`, `{"content":"one "}`, `{"content":"two"}`,
			`{"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":"{"}}]}`,
			`{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}`,
		} {
			_, _ = io.WriteString(w, `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"echo-1","choices":[{"index":0,"delta":`+delta+`,"finish_reason":null}]}`+"\n\n")
		}
		_, _ = io.WriteString(w, piece("", `"tool_calls"`)+usagePiece+"data: [DONE]\n\n")
	})
	h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
	status, text := h.ask(t, post(`{"model":"echo-1","input":"hello","stream":true,"metadata":{"k":"v"}}`, "/v1/responses"))
	const want = `created
in_progress
output_item.added
reasoning_summary_part.added
reasoning_summary_text.delta hm
reasoning_summary_text.done
reasoning_summary_part.done
output_item.done
output_item.added
content_part.added
output_text.delta one
output_text.delta two
output_text.done
content_part.done
output_item.done
output_item.added
function_call_arguments.delta {
function_call_arguments.delta }
function_call_arguments.done
output_item.done
completed`
	kinds, last := kindsOf(t, text)
	if status != http.StatusOK || kinds != want {
		t.Errorf("answer %d\n%s\nwant\n%s", status, kinds, want)
	}
	const end = `{"response":{"background":false,"created_at":1,"error":null,"id":"resp_1","incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{"k":"v"},"model":"echo-1","object":"response","output":[` +
		`{"id":"rs_1_0","status":"completed","summary":[{"text":"hm","type":"summary_text"}],"type":"reasoning"},` +
		`{"content":[{"annotations":[],"logprobs":[],"text":"one two","type":"output_text"}],"id":"msg_1_1","role":"assistant","status":"completed","type":"message"},` +
		`{"arguments":"{}","call_id":"c1","id":"fc_1_2","name":"f","status":"completed","type":"function_call"}],` +
		`"parallel_tool_calls":true,"previous_response_id":null,"prompt_cache_key":null,"reasoning":{"effort":null,"summary":null},"safety_identifier":null,"status":"completed","store":false,"temperature":null,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_p":null,"truncation":"disabled",` +
		`"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":0},"output_tokens":3,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":12},"user":null},"sequence_number":20,"type":"response.completed"}`
	if last != end {
		t.Errorf("the end is\n%s\nwant\n%s", last, end)
	}
	if r := h.records(t, creto.CallModel, 1)[0]; r.Outcome != audit.Success || r.Usage == nil || *r.Usage != (audit.Usage{PromptTokens: 9, CompletionTokens: 3}) {
		t.Errorf("recorded %+v with usage %+v", r, r.Usage)
	}
}

func TestResponsesEnds(t *testing.T) {
	for reason, want := range map[string]string{
		"length": `"incomplete_details":{"reason":"max_output_tokens"}`, "content_filter": `"incomplete_details":{"reason":"content_filter"}`, "stop": `"incomplete_details":null`,
	} {
		m := upstream(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if strings.Contains(string(body), `"stream"`) {
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, piece("half", `"`+reason+`"`)+"data: [DONE]\n\n")
				return
			}
			_, _ = io.WriteString(w, `{"id":"1","model":"echo-1","created":1,"choices":[{"index":0,"message":{"role":"assistant","content":"half"},"finish_reason":"`+reason+`"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`)
		})
		h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
		status := map[bool]string{true: "completed", false: "incomplete"}[reason == "stop"]
		for _, stream := range []string{"", `,"stream":true`} {
			code, text := h.ask(t, post(`{"model":"echo-1","input":"hello"`+stream+`}`, "/v1/responses"))
			_, text, streamed := strings.Cut(text, "event: response."+status+"\n")
			if streamed != (stream != "") {
				t.Errorf("%s: no event response.%s", reason, status)
			}
			if stream == "" {
				_, text = h.ask(t, post(`{"model":"echo-1","input":"hello"}`, "/v1/responses"))
			}
			if code != http.StatusOK || !strings.Contains(text, want) || !strings.Contains(text, `"status":"`+status+`"`) || !strings.Contains(text, `"text":"half"`) {
				t.Errorf("%s: answer %d %s", reason, code, text)
			}
		}
	}
}

// A stream that breaks ends with a failed response, and the connection is cut.
func TestResponsesBreaks(t *testing.T) {
	m := upstream(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, piece("one two three", "null"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
	_, reader := h.raw(t, post(`{"model":"echo-1","input":"hello","stream":true}`, "/v1/responses"))
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	_, last := kindsOf(t, string(text))
	if err == nil || !strings.Contains(last, `"type":"response.failed"`) || !strings.Contains(last, `"status":"failed"`) || !strings.Contains(last, `"error":{"code":"inference.provider_unavailable"`) {
		t.Errorf("the end is %s, %v", last, err)
	}
}

func TestResponsesRefuse(t *testing.T) {
	h := open(t, protected(gateway.Config{}), []inference.Model{upstream(t, http.NotFound)}, "call_model=echo-1", "call_model=other")
	for _, test := range []struct {
		name, body, code string
		status           int
	}{
		{"not JSON", `{"model"`, "invalid_argument", 400},
		{"what was stored", `{"model":"echo-1","input":"x","previous_response_id":"resp_1"}`, "inference.not_supported", 501},
		{"search", `{"model":"echo-1","input":"x","tools":[{"type":"web_search"}]}`, "inference.not_supported", 501},
		{"denied", `{"model":"gpt-9","input":"x"}`, "authz.denied", 403},
		{"served by nobody", `{"model":"other","input":"x"}`, "model_not_found", 404},
		{"an attack", `{"model":"echo-1","input":[{"role":"user","content":"x"},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"` + attack + `"}]}`, "inference.prompt_injection", 403},
	} {
		if status, body := h.ask(t, post(test.body, "/v1/responses")); status != test.status || codeIn(body) != test.code {
			t.Errorf("%s: answer %d %s; want %d %s", test.name, status, body, test.status, test.code)
		}
	}
	h.records(t, creto.CallModel, 3)
}
