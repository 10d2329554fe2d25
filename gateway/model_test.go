package gateway_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/gateway"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
)

// upstream is a provider that speaks OpenAI's dialect, written by hand.
func upstream(t testing.TB, answer http.HandlerFunc) inference.Model {
	server := httptest.NewServer(answer)
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	m, err := provider.NewOpenAI(provider.Config{
		Name: "stub", BaseURL: server.URL + "/v1", Capabilities: inference.Capabilities{Streaming: true, Models: []string{"echo-1", "big-*"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func chat(h *house, t testing.TB, body string) (int, string) {
	t.Helper()
	return h.ask(t, "POST /v1/chat/completions HTTP/1.1\nHost: a\nContent-Length: "+strconv.Itoa(len(body))+"\n\n"+body)
}

const hello = `{"model":"echo-1","messages":[{"role":"user","content":"hello"}]`

const anyModel = "call_model=*"

func TestModel(t *testing.T) {
	h := open(t, gateway.Config{}, []inference.Model{&inferencetest.Fake{}}, anyModel)
	status, body := chat(h, t, hello+"}")
	var answer struct {
		Choices []struct{ Message struct{ Content string } }
		Usage   struct {
			Prompt     int64 `json:"prompt_tokens"`
			Completion int64 `json:"completion_tokens"`
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK || len(answer.Choices) != 1 || answer.Choices[0].Message.Content != inferencetest.EchoPrefix+"hello" {
		t.Fatalf("answer %d %s", status, body)
	}
	r := h.records(t, creto.CallModel, 1)[0]
	if r.Outcome != audit.Success || r.Resource != "Model::echo-1" || r.Usage == nil || r.Usage.PromptTokens != answer.Usage.Prompt || r.Usage.CompletionTokens != answer.Usage.Completion || r.Detail["provider"] != "fake" {
		t.Errorf("recorded %+v with usage %+v", r, r.Usage)
	}
	// A program that sends even the loopback to its proxy finds the same door.
	if status, body := h.ask(t, "GET http://127.0.0.1:4000/v1/models HTTP/1.1\nHost: a\n\n"); status != http.StatusOK || !strings.Contains(body, `"echo-1"`) {
		t.Errorf("models: %d %s", status, body)
	}
}

func TestModelRefuses(t *testing.T) {
	h := open(t, gateway.Config{}, []inference.Model{&inferencetest.Fake{}}, "call_model=echo-1", "call_model=other")
	for _, test := range []struct {
		name, body, code string
		status           int
	}{
		{"not JSON", `{"model"`, "invalid_argument", 400},
		{"no model", `{"messages":[{"role":"user","content":"x"}]}`, "invalid_argument", 400},
		{"no messages", `{"model":"echo-1"}`, "invalid_argument", 400},
		{"another case", `{"Model":"echo-1","model":"echo-1","messages":[{"role":"user","content":"x"}]}`, "invalid_argument", 400},
		{"nothing", "", "invalid_argument", 400},
		{"denied", `{"model":"gpt-9","messages":[{"role":"user","content":"x"}]}`, "authz.denied", 403},
		{"served by nobody", `{"model":"other","messages":[{"role":"user","content":"x"}]}`, "model_not_found", 404},
		{"too large", strings.Repeat(" ", gateway.MaxBodyBytes+1), "invalid_argument", 413},
	} {
		t.Run(test.name, func(t *testing.T) {
			if status, body := chat(h, t, test.body); status != test.status || codeIn(body) != test.code {
				t.Errorf("answer %d %s; want %d %s", status, body, test.status, test.code)
			}
		})
	}
	if status, _ := h.ask(t, "GET /v1/chat/completions HTTP/1.1\nHost: a\n\n"); status != http.StatusNotFound {
		t.Errorf("GET = %d", status)
	}
	records := h.records(t, creto.CallModel, 2)
	if records[0].Outcome != audit.Failure || records[1].Outcome != audit.Denied {
		t.Errorf("recorded %+v", records)
	}
}

// What is bound and shown is what was understood.
func TestModelArguments(t *testing.T) {
	fake := &inferencetest.Fake{}
	h := open(t, gateway.Config{}, []inference.Model{fake}, "ask call_model=echo-1")
	done := make(chan int, 1)
	go func() {
		status, _ := chat(h, t, `{"model":"cheap","messages":[{"role":"user","content":"x"}],"model":"echo-1","seed":7}`)
		done <- status
	}()
	if r := h.decide(t, true); string(r.Args) != `{"messages":[{"content":"x","role":"user"}],"model":"echo-1","seed":7}` {
		t.Errorf("shown was %s", r.Args)
	}
	if status := <-done; status != http.StatusOK {
		t.Errorf("answer %d", status)
	}
}

// piece is one event of a stream.
func piece(content, finish string) string {
	return fmt.Sprintf(`data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"echo-1","choices":[{"index":0,"delta":{"content":%q},"finish_reason":%s}]}`+"\n\n", content, finish)
}

const usagePiece = `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"echo-1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}` + "\n\n"

func TestModelStream(t *testing.T) {
	release := make(chan struct{})
	m := upstream(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, piece("one", "null"))
		_ = http.NewResponseController(w).Flush()
		<-release
		_, _ = io.WriteString(w, piece("two", `"stop"`)+usagePiece+"data: [DONE]\n\n")
	})
	h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
	for _, test := range []struct {
		name, options string
		usage         bool
	}{
		{"usage was not asked for", "", false},
		{"usage was refused", `,"stream_options":{"include_usage":false}`, false},
		{"usage was asked for", `,"stream_options":{"include_usage":true}`, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			body := hello + `,"stream":true` + test.options + "}"
			_, reader := h.raw(t, "POST /v1/chat/completions HTTP/1.1\nHost: a\nContent-Length: "+strconv.Itoa(len(body))+"\n\n"+body)
			response, err := http.ReadResponse(reader, nil)
			if err != nil || response.Header.Get("Content-Type") != "text/event-stream" {
				t.Fatalf("answer %v, %v", response, err)
			}
			lines := bufio.NewReader(response.Body)
			first, err := lines.ReadString('\n')
			if err != nil || !strings.Contains(first, `"one"`) {
				t.Fatalf("first event %q, %v", first, err)
			}
			release <- struct{}{} // the first came before the second was said
			rest, err := io.ReadAll(lines)
			text := string(rest)
			if err != nil || !strings.Contains(text, `"two"`) || !strings.HasSuffix(text, "data: [DONE]\n\n") || strings.Contains(text, "prompt_tokens") != test.usage || strings.Contains(text, `"choices":[]`) != test.usage {
				t.Errorf("the rest %q, %v", text, err)
			}
		})
	}
	for _, r := range h.records(t, creto.CallModel, 3) {
		if r.Outcome != audit.Success || r.Usage == nil || *r.Usage != (audit.Usage{PromptTokens: 9, CompletionTokens: 3}) {
			t.Errorf("recorded %+v with usage %+v", r, r.Usage)
		}
	}
}

func TestModelStreamBreaks(t *testing.T) {
	m := upstream(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, piece("one two three", "null"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
	body := hello + `,"stream":true}`
	_, reader := h.raw(t, "POST /v1/chat/completions HTTP/1.1\nHost: a\nContent-Length: "+strconv.Itoa(len(body))+"\n\n"+body)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if err == nil || !strings.Contains(string(text), `data: {"error":`) || strings.Contains(string(text), "[DONE]") {
		t.Errorf("read %q, %v; want an error event and a broken connection", text, err)
	}
	r := h.records(t, creto.CallModel, 1)[0]
	if r.Outcome != audit.Failure || r.Usage == nil || !r.Usage.Estimated || r.Usage.CompletionTokens != inference.EstimateTokens(len("one two three")) {
		t.Errorf("recorded %+v with usage %+v", r, r.Usage)
	}
}

func TestModelCallerLeaves(t *testing.T) {
	for _, test := range []struct{ name, stream string }{{"whole", "false"}, {"in pieces", "true"}} {
		t.Run(test.name, func(t *testing.T) {
			arrived, left := make(chan struct{}), make(chan struct{})
			m := upstream(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				if test.stream == "true" {
					w.Header().Set("Content-Type", "text/event-stream")
					_, _ = io.WriteString(w, piece("one", "null"))
					_ = http.NewResponseController(w).Flush()
				}
				close(arrived)
				<-r.Context().Done()
				close(left)
			})
			h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
			body := hello + `,"stream":` + test.stream + "}"
			conn, reader := h.raw(t, "POST /v1/chat/completions HTTP/1.1\nHost: a\nContent-Length: "+strconv.Itoa(len(body))+"\n\n"+body)
			<-arrived
			if test.stream == "true" {
				if _, err := reader.ReadByte(); err != nil {
					t.Fatal(err)
				}
			}
			_ = conn.Close()
			<-left
			r := h.records(t, creto.CallModel, 1)[0]
			if r.Outcome != audit.Timeout || test.stream == "true" && r.Usage == nil {
				t.Errorf("recorded %+v with usage %+v", r, r.Usage)
			}
		})
	}
}

// The provider's fault keeps its meaning in the dialect.
func TestModelProviderFails(t *testing.T) {
	fake := &inferencetest.Fake{Fail: func(inference.Request) error {
		return fault.New("test", fault.InferenceRateLimited, "slower")
	}}
	h := open(t, gateway.Config{}, []inference.Model{fake}, anyModel)
	for _, stream := range []string{"false", "true"} {
		if status, body := chat(h, t, hello+`,"stream":`+stream+"}"); status != http.StatusTooManyRequests || codeIn(body) != "rate_limit_exceeded" {
			t.Errorf("stream %s: %d %s", stream, status, body)
		}
	}
}
