package provider_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
)

// planted is what an upstream's own text may hold.
const planted = "internal db password=hunter2"

// respond answers everything with one response.
func respond(status int, contentType, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func openAIErrorBody(code string) string {
	return fmt.Sprintf(`{"error":{"message":%q,"type":"x","param":null,"code":%q}}`, planted, code)
}

func TestErrors(t *testing.T) {
	const jsonType = "application/json"
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		want    fault.Code
		wait    time.Duration
	}{
		{"400", respond(400, jsonType, openAIErrorBody("")), fault.InvalidArgument, 0},
		{"422", respond(422, jsonType, `{"detail":"`+planted+`"}`), fault.InvalidArgument, 0},
		{"context length", respond(400, jsonType, openAIErrorBody("context_length_exceeded")), fault.InferenceTokenLimitExceeded, 0},
		{"context length in words", respond(400, jsonType, `{"object":"error","message":"This model's maximum context length is 4096 tokens","type":"BadRequestError","code":400}`), fault.InferenceTokenLimitExceeded, 0},
		{"context length of TGI", respond(422, jsonType, "{\"error\":\"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000\",\"error_type\":\"validation\"}"), fault.InferenceTokenLimitExceeded, 0},
		{"validation of TGI", respond(422, jsonType, `{"error":"Input validation error: `+planted+`","error_type":"validation"}`), fault.InvalidArgument, 0},
		{"overload of TGI", respond(429, jsonType, `{"error":"Model is overloaded","error_type":"overloaded"}`), fault.InferenceRateLimited, 0},
		{"generation of TGI", respond(424, jsonType, `{"error":"Request failed during generation: `+planted+`","error_type":"generation"}`), fault.InferenceProviderUnavailable, 0},
		{"content filter", respond(400, jsonType, openAIErrorBody("content_filter")), fault.InferenceContentFiltered, 0},
		{"401", respond(401, jsonType, openAIErrorBody("invalid_api_key")), fault.InferenceProviderError, 0},
		{"403", respond(403, "text/html", planted), fault.InferenceProviderError, 0},
		{"404 of the dialect", respond(404, jsonType, openAIErrorBody("")), fault.InferenceModelNotFound, 0},
		{"404 of vllm", respond(404, jsonType, `{"object":"error","message":"The model does not exist.","type":"NotFoundError","code":404}`), fault.InferenceModelNotFound, 0},
		{"404 as text in error", respond(404, jsonType, `{"error":"model 'x' not found"}`), fault.InferenceModelNotFound, 0},
		{"404 of a web server", respond(404, "text/html", planted), fault.InferenceProviderError, 0},
		{"429", respond(429, jsonType, openAIErrorBody("rate_limit_exceeded"), "Retry-After", "7"), fault.InferenceRateLimited, 7 * time.Second},
		{"429 in milliseconds", respond(429, jsonType, "", "Retry-After", "7", "Retry-After-Ms", "250"), fault.InferenceRateLimited, 250 * time.Millisecond},
		{"429 without body", respond(429, jsonType, ""), fault.InferenceRateLimited, 0},
		{"no quota is final", respond(429, jsonType, openAIErrorBody("insufficient_quota"), "Retry-After", "7"), fault.InferenceProviderError, 0},
		{"500", respond(500, jsonType, openAIErrorBody("")), fault.InferenceProviderUnavailable, 0},
		{"500 that claims a filter", respond(500, jsonType, openAIErrorBody("content_filter")), fault.InferenceProviderUnavailable, 0},
		{"503 with a wait", respond(503, "text/plain", planted, "Retry-After", "2"), fault.InferenceProviderUnavailable, 2 * time.Second},
		{"504", respond(504, "text/plain", planted), fault.InferenceTimeout, 0},
		{"501", respond(501, "text/plain", planted), fault.InferenceNotSupported, 0},
		{"a redirect is not followed", respond(307, "", "", "Location", "http://127.0.0.1:1/steal"), fault.InferenceProviderError, 0},
		{"204", respond(204, "", ""), fault.InferenceProviderError, 0},
		{"malformed", respond(200, jsonType, `{"choices":[`+planted), fault.InferenceProviderError, 0},
		{"not an object", respond(200, jsonType, `null`), fault.InferenceProviderError, 0},
		{"not UTF-8", respond(200, jsonType, "{\"id\":\"\xff\"}"), fault.InferenceProviderError, 0},
		{"no choices", respond(200, jsonType, `{"choices":[]}`), fault.InferenceProviderError, 0},
		{"choices of a wrong type", respond(200, jsonType, `{"choices":"`+planted+`"}`), fault.InferenceProviderError, 0},
		{"negative usage", respond(200, jsonType, `{"choices":[{}],"usage":{"prompt_tokens":-1}}`), fault.InferenceProviderError, 0},
		{"an endless body", endless, fault.InferenceProviderError, 0},
		{"a bomb", bomb, fault.InferenceProviderError, 0},
		{"cut off", cutOff, fault.InferenceProviderUnavailable, 0},
		{"closed without a word", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, fault.InferenceProviderUnavailable, 0},
		{"hang", hang, fault.InferenceTimeout, 0},
		{"hang in the body", hangInBody, fault.InferenceTimeout, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client, _ := open(t, tt.handler, func(c *provider.Config) {
				c.Timeout, c.MaxResponseBytes = 30*time.Second, 1<<20
				if strings.HasPrefix(tt.name, "hang") {
					c.Timeout = 100 * time.Millisecond
				}
			})
			_, err := client.Complete(t.Context(), inferencetest.Ask("hello"))
			check(t, "Complete", err, tt.want, tt.wait)
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

// check compares an error's code and wait, and looks for what it must not show.
func check(t *testing.T, what string, err error, want fault.Code, wait time.Duration) {
	t.Helper()
	if fault.CodeOf(err) != want || fault.RetryAfter(err) != wait {
		t.Errorf("%s = %v (%v), after %v; want %v after %v", what, fault.CodeOf(err), err, fault.RetryAfter(err), want, wait)
	}
	if errors.Is(err, fault.InvalidArgument) && want.Kind() != fault.InvalidArgument {
		t.Errorf("%s = %v counts as the caller's mistake", what, err)
	}
	if m := fault.Message(err); strings.Contains(m, "hunter2") || strings.Contains(m, apiKey) {
		t.Errorf("%s: the message %q shows foreign text", what, m)
	}
	if err != nil && strings.Contains(err.Error(), apiKey) {
		t.Errorf("%s: the error shows the key: %v", what, err)
	}
}

func endless(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"id":"`)
	pad := bytes.Repeat([]byte("x"), 1<<20)
	for range 100 {
		if _, err := w.Write(pad); err != nil || r.Context().Err() != nil {
			return
		}
	}
}

func bomb(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Encoding", "gzip")
	z := gzip.NewWriter(w)
	_, _ = z.Write(bytes.Repeat([]byte(" "), 16<<20))
	_ = z.Close()
}

func cutOff(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"choices":[`)
	panic(http.ErrAbortHandler)
}

func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // else the server does not see that the client left
	<-r.Context().Done()
}

func hangInBody(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"choices":[`)
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	client, _ := open(t, http.NotFoundHandler(), func(c *provider.Config) { c.BaseURL = "http://" + address + "/v1" })
	_, err = client.Complete(t.Context(), inferencetest.Ask("hello"))
	check(t, "Complete", err, fault.InferenceProviderUnavailable, 0)
	check(t, "Health", client.Health(t.Context()), fault.InferenceProviderUnavailable, 0)
}

func TestHealth(t *testing.T) {
	for status, want := range map[int]fault.Code{
		200: fault.OK, 404: fault.OK, 405: fault.OK, 401: fault.InferenceProviderError, 500: fault.InferenceProviderUnavailable, 429: fault.InferenceRateLimited,
	} {
		client, _ := open(t, respond(status, "text/plain", planted), nil)
		check(t, fmt.Sprint(status), client.Health(t.Context()), want, 0)
	}
}

// event is a piece of a streamed answer.
func event(delta, finish string) string {
	return fmt.Sprintf("data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":%s,\"finish_reason\":%s}]}\n\n", delta, finish)
}

func TestStreams(t *testing.T) {
	hello, stop := event(`{"content":"hello"}`, "null"), event("{}", `"stop"`)
	for _, tt := range []struct {
		name, body string
		abort      bool
		want       fault.Code // OK: a complete answer
		text       string
	}{
		{name: "complete", body: hello + stop + "data: [DONE]\n\n", text: "hello"},
		{name: "complete without the mark", body: hello + stop, text: "hello"},
		{name: "the mark without a blank line", body: hello + stop + "data: [DONE]", text: "hello"},
		{name: "the mark without a finish", body: hello + "data: [DONE]\n\n", text: "hello"},
		{name: "no spaces, carriage returns", body: "data:{\"choices\":[{\"delta\":{\"content\":\"hello\"}}]}\r\n\r\ndata:[DONE]\r\n\r\n", text: "hello"},
		{name: "an event of two lines", body: "data: {\"choices\":[\ndata: {\"delta\":{\"content\":\"hello\"}}]}\n\ndata: [DONE]\n\n", text: "hello"},
		{name: "truncated", body: hello, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "truncated in an event", body: hello + "data: {\"choi", want: fault.InferenceProviderError, text: "hello"},
		{name: "half closed", body: hello, abort: true, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "half closed after the finish", body: hello + stop, abort: true, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "one of two choices unfinished", body: hello + stop + "data: {\"choices\":[{\"index\":1,\"delta\":{}}]}\n\n", want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "empty", body: "", want: fault.InferenceProviderUnavailable},
		{name: "not JSON", body: hello + "data: " + planted + "\n\n", want: fault.InferenceProviderError, text: "hello"},
		{name: "an error event", body: hello + "data: " + openAIErrorBody("") + "\n\n", want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "an error of TGI", body: hello + "data: {\"error\":\"Request failed during generation\",\"error_type\":\"generation\"}\n\n", want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "a filter event", body: hello + "data: " + openAIErrorBody("content_filter") + "\n\ndata: [DONE]\n\n", want: fault.InferenceContentFiltered, text: "hello"},
		{name: "an endless event", body: "data: " + strings.Repeat("x", 5<<20), want: fault.InferenceProviderError},
		{name: "an endless stream", body: strings.Repeat(event(`{"content":""}`, "null"), 100_000), want: fault.InferenceProviderError},
		{name: "endless comments", body: strings.Repeat(": "+strings.Repeat("x", 1000)+"\n", 10_000), want: fault.InferenceProviderError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client, _ := open(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, tt.body)
				if tt.abort {
					_ = http.NewResponseController(w).Flush()
					panic(http.ErrAbortHandler)
				}
			}), func(c *provider.Config) { c.MaxResponseBytes = 6 << 20 })
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
			if u := s.Usage(); !u.Estimated || u.PromptTokens == 0 || (u.CompletionTokens > 0) != (tt.text != "") {
				t.Errorf("usage = %+v, want an estimate of what was delivered", u)
			}
			_, again := s.Next()
			if tt.want == fault.OK && !errors.Is(again, io.EOF) || tt.want != fault.OK && fault.CodeOf(again) != tt.want {
				t.Errorf("Next again = %v, want the same end", again)
			}
		})
	}
}

func TestStreamFallsSilent(t *testing.T) {
	client, _ := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, event(`{"content":"hello"}`, "null"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}), func(c *provider.Config) { c.IdleTimeout = 100 * time.Millisecond })
	s, err := client.CompleteStream(t.Context(), inferencetest.Ask("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	text, _, err := inferencetest.Collect(t, s)
	check(t, "stream", err, fault.InferenceTimeout, 0)
	if text != "hello" {
		t.Errorf("text = %q, want what came before", text)
	}
}

// TestServerHangsAfterTheMark holds that a complete answer ends at its mark.
func TestServerHangsAfterTheMark(t *testing.T) {
	client, _ := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, event("{}", `"stop"`)+"data: [DONE]\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}), nil)
	begun := time.Now()
	s, err := client.CompleteStream(t.Context(), inferencetest.Ask("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, _, err := inferencetest.Collect(t, s); err != nil || time.Since(begun) > 5*time.Second {
		t.Errorf("the stream ended with %v after %v", err, time.Since(begun))
	}
}

// TestOneRequestPerCall holds that nothing is sent twice, not even by net/http on
// a used connection that breaks, and what the request says.
func TestOneRequestPerCall(t *testing.T) {
	var calls atomic.Int32
	var mu sync.Mutex
	var last *http.Request
	var body []byte
	client, _ := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		last, body = r, b
		mu.Unlock()
		if calls.Add(1) == 1 {
			respond(200, "application/json", `{"choices":[{}]}`)(w, r)
			return
		}
		panic(http.ErrAbortHandler)
	}), nil)
	if _, err := client.Complete(t.Context(), inferencetest.Ask("hello")); err != nil {
		t.Fatal(err)
	}
	_, err := client.Complete(t.Context(), inferencetest.Ask("hello"))
	check(t, "Complete", err, fault.InferenceProviderUnavailable, 0)
	if got := calls.Load(); got != 2 {
		t.Errorf("two calls made %d requests", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if last.Header.Get("Idempotency-Key") != "k-1" || last.Header.Get("Authorization") != "Bearer "+apiKey || last.ContentLength != int64(len(body)) {
		t.Errorf("headers = %v, length %d of %d", last.Header, last.ContentLength, len(body))
	}
	if bytes.Contains(body, []byte("bob")) || bytes.Contains(body, []byte("sb-1")) {
		t.Errorf("the body tells the provider who asks: %s", body)
	}
}

func TestConnectionReuse(t *testing.T) {
	var opened atomic.Int32
	server := httptest.NewUnstartedServer(upstream{})
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	client, err := provider.NewOpenAI(provider.Config{Name: "test", BaseURL: server.URL + "/v1/", APIKey: creto.NewSecret(apiKey)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	for range 10 {
		if _, err := client.Complete(t.Context(), inferencetest.Ask("hello")); err != nil {
			t.Fatal(err)
		}
		s, err := client.CompleteStream(t.Context(), inferencetest.Ask("hello"))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := inferencetest.Collect(t, s); err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		r := inferencetest.Ask("hello")
		r.Model = inferencetest.UnknownModel
		if _, err := client.Complete(t.Context(), r); fault.CodeOf(err) != fault.InferenceModelNotFound {
			t.Fatal(err)
		}
	}
	if got := opened.Load(); got != 1 {
		t.Errorf("30 calls in a row opened %d connections, want 1", got)
	}
}

func TestNewOpenAI(t *testing.T) {
	_, err := provider.NewOpenAI(provider.Config{BaseURL: "https://user:hunter2@x/v1?key=hunter2", APIKey: creto.NewSecret("a\nb"), Timeout: -1})
	if !errors.Is(err, fault.InvalidArgument) || strings.Count(fault.Message(err), "\n") != 3 || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("NewOpenAI = %v, want four problems and no secret", err)
	}
	if client, _ := open(t, upstream{}, nil); strings.Contains(fmt.Sprintf("%+v %#v", client, client), apiKey) {
		t.Error("printing a client shows its key")
	}
}

func TestWrongEmbeddings(t *testing.T) {
	for name, body := range map[string]string{
		"too few":       `{"data":[{"index":0,"embedding":[1]}]}`,
		"too many":      `{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[1]},{"index":2,"embedding":[1]}]}`,
		"twice":         `{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}`,
		"far out":       `{"data":[{"index":99999999,"embedding":[1]},{"index":-1,"embedding":[1]}]}`,
		"empty":         `{"data":[{"index":0,"embedding":[]},{"index":1,"embedding":[1]}]}`,
		"of words":      `{"data":[{"index":0,"embedding":["x"]},{"index":1,"embedding":[1]}]}`,
		"not a list":    `{"data":"x"}`,
		"out of range":  `{"data":[{"index":0,"embedding":[1e300]},{"index":1,"embedding":[1]}]}`,
		"not an object": `[]`,
	} {
		client, _ := open(t, respond(200, "application/json", body), nil)
		_, err := client.Embed(t.Context(), inference.EmbedRequest{Model: "m", Input: []string{"a", "b"}})
		if fault.CodeOf(err) != fault.InferenceProviderError {
			t.Errorf("%s: Embed = %v, want InferenceProviderError", name, err)
		}
	}
}

func BenchmarkComplete(b *testing.B) {
	b.ReportAllocs()
	client, _ := open(b, upstream{}, nil)
	r := inferencetest.Ask("hello")
	for b.Loop() {
		if _, err := client.Complete(b.Context(), r); err != nil {
			b.Fatal(err)
		}
	}
}

func mustJSON(t testing.TB, data []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	return v
}
