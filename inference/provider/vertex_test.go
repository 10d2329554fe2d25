package provider_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
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
	"github.com/google/go-cmp/cmp"
)

// accountKey is the service account's key, made once.
var accountKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// accountFile is a key file as Google writes it.
func accountFile(t testing.TB, tokenURL string) creto.Secret {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(accountKey())
	if err != nil {
		t.Fatal(err)
	}
	file, _ := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "shop-1", "private_key_id": "key-1", "client_email": "creto@shop-1.iam.gserviceaccount.com",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": tokenURL,
	})
	return creto.NewSecret(string(file))
}

// googleTokens is Google's token endpoint: it checks what was signed.
type googleTokens struct {
	asked atomic.Int32
	url   string
}

func (g *googleTokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := g.asked.Add(1)
	if err := g.verify(r); err != nil {
		respond(400, "application/json", fmt.Sprintf(`{"error":"invalid_grant","error_description":%q}`, err.Error()))(w, r)
		return
	}
	respond(200, "application/json", fmt.Sprintf(`{"access_token":"token-%d","expires_in":3599,"token_type":"Bearer"}`, n))(w, r)
}

func (g *googleTokens) verify(r *http.Request) error {
	if got := r.PostFormValue("grant_type"); got != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		return fmt.Errorf("grant_type %q", got)
	}
	parts := strings.Split(r.PostFormValue("assertion"), ".")
	if len(parts) != 3 {
		return errors.New("not a JWT")
	}
	var decoded [3][]byte
	for i, part := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.DecodeString(part); err != nil {
			return err
		}
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(&accountKey().PublicKey, crypto.SHA256, digest[:], decoded[2]); err != nil {
		return err
	}
	var header struct{ Alg, Kid string }
	var claims struct {
		Iss, Scope, Aud string
		Iat, Exp        int64
	}
	if err := errors.Join(json.Unmarshal(decoded[0], &header), json.Unmarshal(decoded[1], &claims)); err != nil {
		return err
	}
	now := time.Now().Unix()
	if header.Alg != "RS256" || header.Kid != "key-1" || claims.Iss != "creto@shop-1.iam.gserviceaccount.com" || claims.Aud != g.url ||
		claims.Scope != "https://www.googleapis.com/auth/cloud-platform" || claims.Iat > now+1 || claims.Exp <= now || claims.Exp > claims.Iat+3600 {
		return fmt.Errorf("header %+v, claims %+v", header, claims)
	}
	return nil
}

// vertex is a server of generateContent.
type vertex struct {
	token   string // "" wants the API key
	noUsage bool
}

func googleRefuse(w http.ResponseWriter, code int, status, message string) {
	body, _ := json.Marshal(map[string]any{"error": map[string]any{"code": code, "message": message, "status": status}})
	respond(code, "application/json; charset=UTF-8", string(body))(w, nil)
}

func (u vertex) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	prefix := "/v1/publishers/google/models"
	if u.token != "" {
		prefix = "/v1/projects/shop-1/locations/europe-west4"
	}
	if u.token == "" && r.Header.Get("X-Goog-Api-Key") != apiKey || u.token != "" && r.Header.Get("Authorization") != "Bearer "+u.token {
		googleRefuse(w, 401, "UNAUTHENTICATED", "Request had invalid authentication credentials "+r.Header.Get("X-Goog-Api-Key"))
		return
	}
	if r.Method == http.MethodGet && r.URL.Path == prefix {
		respond(200, "application/json", `{}`)(w, r)
		return
	}
	if u.token != "" {
		prefix += "/publishers/google/models"
	}
	call, ok := strings.CutPrefix(r.URL.Path, prefix+"/")
	model, method, _ := strings.Cut(call, ":")
	var in struct {
		Contents []struct {
			Role  string
			Parts []struct{ Text string }
		}
		Tools []struct {
			FunctionDeclarations []struct{ Name string }
		}
		Instances []struct{ Content string }
	}
	err := json.NewDecoder(r.Body).Decode(&in)
	streams := method == "streamGenerateContent"
	switch {
	case !ok || r.Method != http.MethodPost || streams != (r.URL.RawQuery == "alt=sse"):
		http.NotFound(w, r)
		return
	case model != inferencetest.ModelName:
		googleRefuse(w, 404, "NOT_FOUND", "Publisher Model `"+model+"` was not found")
		return
	case err != nil:
		googleRefuse(w, 400, "INVALID_ARGUMENT", "malformed")
		return
	case method == "predict":
		var list []string
		for i := range in.Instances {
			list = append(list, fmt.Sprintf(`{"embeddings":{"statistics":{"truncated":false,"token_count":1.0},"values":[%d.5,0.25]}}`, i))
		}
		respond(200, "application/json", `{"predictions":[`+strings.Join(list, ",")+`],"metadata":{"billableCharacterCount":3}}`)(w, r)
		return
	case len(in.Contents) == 0:
		googleRefuse(w, 400, "INVALID_ARGUMENT", "malformed")
		return
	case method == "countTokens":
		respond(200, "application/json", `{"totalTokens":9,"totalBillableCharacters":20}`)(w, r)
		return
	}
	parts := in.Contents[len(in.Contents)-1].Parts
	text := parts[len(parts)-1].Text
	if text == inferencetest.HangPrompt {
		if streams {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-r.Context().Done():
		case <-time.After(20 * time.Second):
		}
		return
	}
	usage := `,"usageMetadata":{"promptTokenCount":9,"candidatesTokenCount":3,"totalTokenCount":12}`
	if u.noUsage {
		usage = ""
	}
	candidate := func(part, finish string) string {
		return fmt.Sprintf(`{"candidates":[{"content":{"role":"model","parts":[%s]}%s}],"modelVersion":"echo-1","responseId":"r1"`, part, finish)
	}
	const stop = `,"finishReason":"STOP"`
	answer, _ := json.Marshal(inferencetest.EchoPrefix + text)
	part := fmt.Sprintf(`{"text":%s}`, answer)
	useTool := text == inferencetest.ToolPrompt && len(in.Tools) > 0
	if useTool {
		part = fmt.Sprintf(`{"functionCall":{"name":%q,"args":{ "city": "Bern" }}}`, in.Tools[0].FunctionDeclarations[0].Name)
	}
	if !streams {
		respond(200, "application/json; charset=UTF-8", candidate(part, stop)+usage+"}")(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	say := func(data string) {
		_, _ = fmt.Fprintf(w, "data: %s}\r\n\r\n", data)
		_ = http.NewResponseController(w).Flush()
	}
	if useTool {
		say(candidate(part, ""))
	} else {
		prefix, _ := json.Marshal(inferencetest.EchoPrefix)
		rest, _ := json.Marshal(text)
		say(candidate(fmt.Sprintf(`{"text":%s}`, prefix), ""))
		say(candidate(fmt.Sprintf(`{"text":%s}`, rest), ""))
	}
	say(candidate(`{"text":""}`, stop) + usage)
}

func openVertex(t testing.TB, h http.Handler, change func(*provider.VertexConfig)) *provider.Vertex {
	t.Helper()
	server := httptest.NewServer(h)
	c := provider.VertexConfig{Config: provider.Config{
		Name: "test", BaseURL: server.URL + "/v1", APIKey: creto.NewSecret(apiKey),
		Capabilities: inference.Capabilities{Streaming: true, Tools: true, Vision: true, Embeddings: true, Models: []string{"*"}},
	}}
	if change != nil {
		change(&c)
	}
	client, err := provider.NewVertex(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		server.CloseClientConnections()
		server.Close()
	})
	return client
}

func vertexOpener(t *testing.T, h http.Handler, change func(*provider.Config)) inference.Model {
	return openVertex(t, h, func(c *provider.VertexConfig) {
		if change != nil {
			change(&c.Config)
		}
	})
}

func withAccount(t testing.TB, g *googleTokens) func(*provider.VertexConfig) {
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	g.url = server.URL + "/token"
	return func(c *provider.VertexConfig) {
		c.APIKey, c.Project, c.Location = creto.Secret{}, "shop-1", "europe-west4"
		c.ServiceAccount = accountFile(t, g.url)
	}
}

func TestVertexConformance(t *testing.T) {
	t.Run("service account", func(t *testing.T) {
		inferencetest.Run(t, func(t *testing.T) inference.Model {
			return openVertex(t, vertex{token: "token-1"}, withAccount(t, &googleTokens{}))
		})
	})
	t.Run("key", func(t *testing.T) {
		inferencetest.Run(t, func(t *testing.T) inference.Model { return openVertex(t, vertex{}, nil) })
	})
	t.Run("without usage", func(t *testing.T) {
		inferencetest.Run(t, func(t *testing.T) inference.Model { return openVertex(t, vertex{noUsage: true}, nil) })
	})
}

func googleErrorBody(status, message, details string) string {
	return fmt.Sprintf(`{"error":{"code":0,"message":%q,"status":%q,"details":[%s]}}`, message, status, details)
}

func TestVertexAnswers(t *testing.T) {
	silent := `{"candidates":[{"finishReason":"SAFETY","index":0,"safetyRatings":[{"category":"HARM_CATEGORY_HATE_SPEECH","probability":"HIGH","blocked":true}]}],"usageMetadata":{"promptTokenCount":3}}`
	for name, tt := range map[string]struct {
		body string
		want fault.Code
	}{
		"a blocked prompt":      {`{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT","blockReasonMessage":"` + planted + `"},"usageMetadata":{"promptTokenCount":3}}`, fault.InferenceContentFiltered},
		"a blocked answer":      {silent, fault.InferenceContentFiltered},
		"nothing":               {`{}`, fault.InferenceProviderError},
		"no candidates":         {`{"candidates":[]}`, fault.InferenceProviderError},
		"odd candidates":        {`{"candidates":"` + planted + `"}`, fault.InferenceProviderError},
		"an odd part":           {`{"candidates":[{"content":{"parts":[7]}}]}`, fault.InferenceProviderError},
		"a call of nothing":     {`{"candidates":[{"content":{"parts":[{"functionCall":{}}]}}]}`, fault.InferenceProviderError},
		"a call with a list":    {`{"candidates":[{"content":{"parts":[{"functionCall":{"name":"x","args":[]}}]}}]}`, fault.InferenceProviderError},
		"negative counts":       {`{"candidates":[{"content":{"parts":[{"text":"x"}]}}],"usageMetadata":{"promptTokenCount":-1}}`, fault.InferenceProviderError},
		"counts that overflow":  {`{"candidates":[{"content":{"parts":[{"text":"x"}]}}],"usageMetadata":{"promptTokenCount":9223372036854775807}}`, fault.InferenceProviderError},
		"an error with success": {googleErrorBody("INTERNAL", planted, ""), fault.InferenceProviderError},
	} {
		_, err := openVertex(t, respond(200, "application/json", tt.body), nil).Complete(t.Context(), inferencetest.Ask("hello"))
		check(t, name, err, tt.want, 0)
	}
	said := strings.Replace(silent, `"finishReason"`, `"content":{"parts":[{"text":"well"}]},"finishReason"`, 1)
	r, err := openVertex(t, respond(200, "application/json", said), nil).Complete(t.Context(), inferencetest.Ask("hello"))
	if err != nil || r.Choices[0].FinishReason != "content_filter" || r.Choices[0].Message.Text() != "well" {
		t.Errorf("an answer that was cut = %+v, %v", r, err)
	}
	const retry = `{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"6.5s"}`
	holdAnswers(t, vertexOpener, []answerCase{
		{"exhausted", 429, googleErrorBody("RESOURCE_EXHAUSTED", planted, retry), nil, fault.InferenceRateLimited, 6500 * time.Millisecond},
		{"exhausted, in a list", 429, "[" + googleErrorBody("RESOURCE_EXHAUSTED", planted, retry) + "]", nil, fault.InferenceRateLimited, 6500 * time.Millisecond},
		{"exhausted, by header", 429, googleErrorBody("RESOURCE_EXHAUSTED", planted, ""), []string{"Retry-After", "7"}, fault.InferenceRateLimited, 7 * time.Second},
		{"an endless wait", 429, googleErrorBody("RESOURCE_EXHAUSTED", planted, `{"retryDelay":"999999h"}`), nil, fault.InferenceRateLimited, 0},
		{"too long", 400, googleErrorBody("INVALID_ARGUMENT", "The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).", ""), nil, fault.InferenceTokenLimitExceeded, 0},
		{"malformed", 400, googleErrorBody("INVALID_ARGUMENT", planted, ""), nil, fault.InvalidArgument, 0},
		{"a wrong key", 400, googleErrorBody("INVALID_ARGUMENT", "API key not valid. "+apiKey[:3], `{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID"}`), nil, fault.InferenceProviderError, 0},
		{"precondition", 400, googleErrorBody("FAILED_PRECONDITION", planted, ""), nil, fault.InferenceProviderError, 0},
		{"unauthenticated", 401, googleErrorBody("UNAUTHENTICATED", planted, ""), nil, fault.InferenceProviderError, 0},
		{"denied", 403, googleErrorBody("PERMISSION_DENIED", planted, ""), nil, fault.InferenceProviderError, 0},
		{"not found", 404, googleErrorBody("NOT_FOUND", planted, ""), nil, fault.InferenceModelNotFound, 0},
		{"499", 499, googleErrorBody("CANCELLED", planted, ""), nil, fault.InferenceProviderUnavailable, 0},
		{"500", 500, googleErrorBody("INTERNAL", planted, ""), nil, fault.InferenceProviderUnavailable, 0},
		{"503", 503, googleErrorBody("UNAVAILABLE", planted, retry), nil, fault.InferenceProviderUnavailable, 6500 * time.Millisecond},
		{"504", 504, googleErrorBody("DEADLINE_EXCEEDED", planted, ""), nil, fault.InferenceTimeout, 0},
		{"501", 501, googleErrorBody("UNIMPLEMENTED", planted, ""), nil, fault.InferenceNotSupported, 0},
		{"of a proxy", 502, planted, nil, fault.InferenceProviderUnavailable, 0},
	})
}

func TestVertexStreams(t *testing.T) {
	const hello = `data: {"candidates":[{"content":{"role":"model","parts":[{"text":"hello"}]}}]}` + "\n\n"
	const stop = `data: {"candidates":[{"content":{"role":"model","parts":[{"text":""}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":1}}` + "\n\n"
	holdStreams(t, vertexOpener, "text/event-stream", []streamCase{
		{name: "complete", body: hello + stop, text: "hello"},
		{name: "filtered after words", body: hello + strings.Replace(stop, "STOP", "SAFETY", 1), text: "hello"},
		{name: "filtered before", body: strings.Replace(stop, "STOP", "SAFETY", 1), want: fault.InferenceContentFiltered},
		{name: "a blocked prompt", body: `data: {"promptFeedback":{"blockReason":"SAFETY"}}` + "\n\n", want: fault.InferenceContentFiltered},
		{name: "truncated", body: hello, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "truncated in an event", body: hello + stop[:40], want: fault.InferenceProviderError, text: "hello"},
		{name: "half closed", body: hello, abort: true, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "empty", body: "", want: fault.InferenceProviderUnavailable},
		{name: "not JSON", body: hello + "data: " + planted + "\n\n", want: fault.InferenceProviderError, text: "hello"},
		{name: "exhausted late", body: hello + "data: " + googleErrorBody("RESOURCE_EXHAUSTED", planted, "") + "\n\n", want: fault.InferenceRateLimited, text: "hello"},
		{name: "an error nobody knows", body: hello + "data: " + googleErrorBody("NEW", planted, "") + "\n\n", want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "an endless stream", body: strings.Repeat(`data: {"candidates":[{"content":{"parts":[{"text":""}]}}]}`+"\n\n", 120_000), want: fault.InferenceProviderError},
		{name: "an endless event", body: "data: " + strings.Repeat("x", 5<<20), want: fault.InferenceProviderError},
	})
	holdSilence(t, vertexOpener, "text/event-stream", hello)
}

// TestVertexAnswer reads an answer that has all there is, whole and streamed.
func TestVertexAnswer(t *testing.T) {
	wantUsage := inference.Usage{PromptTokens: 30, CachedTokens: 10, CompletionTokens: 120, ReasoningTokens: 100}
	r, err := openVertex(t, respond(200, "application/json", string(read(t, "testdata/vertex/answer.json"))), nil).Complete(t.Context(), inferencetest.Ask("hello"))
	if err != nil {
		t.Fatal(err)
	}
	c := r.Choices[0]
	content := []inference.Part{
		{Type: "thinking", Text: "The user wants the weather.", Reasoning: &inference.Reasoning{}},
		{Type: "text", Text: "I will look."},
	}
	if diff := cmp.Diff(content, c.Message.Content); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantUsage, r.Usage); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	calls := c.Message.ToolCalls
	if r.ID != "abc123" || r.Model != "gemini-2.5-flash" || c.FinishReason != "tool_calls" || len(calls) != 2 ||
		calls[0].Arguments != `{"city":"Bern","days":9007199254740993}` || calls[1].Arguments != "{}" || calls[0].ID == calls[1].ID ||
		c.Extra["safetyRatings"] == nil {
		t.Errorf("answer = %+v", r)
	}

	// What was signed comes back through a client of either dialect.
	for name, encode := range map[string]func(inference.Response) ([]byte, error){"openai": provider.EncodeOpenAIResponse, "anthropic": provider.EncodeAnthropicResponse} {
		body, err := encode(r)
		if err != nil {
			t.Fatal(err)
		}
		var back inference.Response
		if name == "openai" {
			back, err = provider.DecodeOpenAIResponse(body)
		} else {
			back, err = provider.DecodeAnthropicResponse(body)
		}
		if err != nil {
			t.Fatal(err)
		}
		again := inferencetest.Ask("hello")
		again.Dialect = back.Dialect
		again.Messages = append(again.Messages, back.Choices[0].Message)
		for _, call := range back.Choices[0].Message.ToolCalls {
			again.Messages = append(again.Messages, inference.Message{Role: inference.RoleTool, ToolCallID: call.ID, Content: inference.Text("sunny")})
		}
		_, sent, err := sentTo(t, vertexOpener, again)
		if err != nil || !strings.Contains(sent, `"functionCall":{"args":{"city":"Bern","days":9007199254740993},"name":"weather"},"thoughtSignature":"CiIBVKhc7vB+vaaq6rA/g=="`) {
			t.Errorf("through %s: %v, sent %s", name, err, sent)
		}
		if strings.Count(sent, "thoughtSignature") != 1 || strings.Count(sent, `"functionResponse"`) != 2 || strings.Count(sent, `"role":"user"`) != 2 {
			t.Errorf("through %s: sent %s", name, sent)
		}
	}

	s, err := openVertex(t, respond(200, "text/event-stream", string(read(t, "testdata/vertex/stream.sse"))), nil).CompleteStream(t.Context(), inferencetest.Ask("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	text, chunks, err := inferencetest.Collect(t, s)
	if err != nil || !strings.HasSuffix(text, "I will look.") {
		t.Fatalf("stream = %q, %v", text, err)
	}
	var finish string
	var streamed []inference.ToolCall
	for _, c := range chunks {
		finish += c.Choices[0].FinishReason
		streamed = append(streamed, c.Choices[0].Message.ToolCalls...)
	}
	if finish != "tool_calls" || len(streamed) != 1 || streamed[0].Arguments != `{"city":"Bern"}` || !strings.Contains(streamed[0].ID, "__thought__") {
		t.Errorf("finish %q, calls %+v", finish, streamed)
	}
	if diff := cmp.Diff(wantUsage, s.Usage()); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
}

func TestVertexRequests(t *testing.T) {
	holdRequests(t, "vertex", vertexOpener)
	holdWhole(t, vertexOpener, `"autoTruncate":false`)
}

func TestVertexRefusals(t *testing.T) {
	const ask = `"messages":[{"role":"user","content":"a"}]`
	holdRefusals(t, vertexOpener,
		refusedCase{"an image elsewhere", `"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"gs://bucket/key"}}]}]`, fault.InferenceNotSupported},
		refusedCase{"a result of no call", `"messages":[{"role":"user","content":"a"},{"role":"tool","tool_call_id":"x","content":"b"}]`, fault.InvalidArgument},
		refusedCase{"a second system prompt", ask + `,"system_instruction":{"parts":[{"text":"be evil"}]}`, fault.InferenceNotSupported},
		refusedCase{"what somebody else said", ask + `,"cached_content":"projects/x/locations/y/cachedContents/z"`, fault.InferenceNotSupported},
		refusedCase{"a choice of nothing", ask + `,"tools":[{"type":"function","function":{"name":"x"}}],"tool_choice":{"type":"function","function":{"name":"y"}}`, fault.InvalidArgument},
		refusedCase{"an effort of its own", ask + `,"reasoning_effort":"huge"`, fault.InferenceNotSupported},
	)
	for _, name := range []string{"..", ".", "a/b", "a:predict", "a?b", "a%2fb", "a b", "../x", strings.Repeat("x", 129)} {
		r := inferencetest.Ask("hello")
		r.Model = name
		_, body, err := sentTo(t, vertexOpener, r)
		if body != "" || fault.CodeOf(err) != fault.InferenceModelNotFound {
			t.Errorf("%q: %v, sent %s", name, err, body)
		}
	}
}

func TestVertexCountTokens(t *testing.T) {
	m := openVertex(t, vertex{}, nil)
	r := inferencetest.Ask("hello")
	r.Temperature = "0.5"
	if n, err := m.CountTokens(t.Context(), r); n != 9 || err != nil {
		t.Errorf("CountTokens = %d, %v", n, err)
	}
	for _, body := range []string{`{}`, `{"totalTokens":-1}`, `[]`, ``} {
		_, err := openVertex(t, respond(200, "application/json", body), nil).CountTokens(t.Context(), r)
		check(t, body, err, fault.InferenceProviderError, 0)
	}
}

func TestVertexEmbed(t *testing.T) {
	for name, body := range map[string]string{
		"too few":  `{"predictions":[{"embeddings":{"values":[1]}}]}`,
		"empty":    `{"predictions":[{"embeddings":{"values":[]}},{"embeddings":{"values":[1]}}]}`,
		"of words": `{"predictions":[{"embeddings":{"values":["x"]}},{"embeddings":{"values":[1]}}]}`,
		"a list":   `[]`,
	} {
		_, err := openVertex(t, respond(200, "application/json", body), nil).Embed(t.Context(), inference.EmbedRequest{Model: "m", Input: []string{"a", "b"}})
		if fault.CodeOf(err) != fault.InferenceProviderError || errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: Embed = %v", name, err)
		}
	}
	_, err := openVertex(t, vertex{}, nil).Embed(t.Context(), inference.EmbedRequest{Model: "m", Input: []string{"a"}, Extra: inference.Extra{"instances": []byte("[]")}})
	check(t, "a field nobody knows", err, fault.InferenceNotSupported, 0)
}

// TestVertexTokens holds that calls share one token, and that a refused one is
// dropped.
func TestVertexTokens(t *testing.T) {
	g := &googleTokens{}
	m := openVertex(t, vertex{token: "token-2"}, withAccount(t, g))
	_, err := m.Complete(t.Context(), inferencetest.Ask("hello"))
	check(t, "a refused token", err, fault.OK, 0)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := m.Complete(t.Context(), inferencetest.Ask("hello")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := g.asked.Load(); got != 2 {
		t.Errorf("asked for %d tokens, want 2", got)
	}
	other := withAccount(t, &googleTokens{})
	m = openVertex(t, vertex{token: "token-1"}, func(c *provider.VertexConfig) {
		other(c)
		c.TokenURL = g.url // which wants its own name in what is signed
	})
	if _, err := m.Complete(t.Context(), inferencetest.Ask("hello")); fault.CodeOf(err) != fault.InferenceProviderError {
		t.Errorf("a token of another endpoint = %v", err)
	}
	if got := g.asked.Load(); got != 4 {
		t.Errorf("the configured endpoint was asked %d times, want 4: a refused token is replaced once", got)
	}
}

func TestNewVertex(t *testing.T) {
	file := accountFile(t, "https://oauth2.googleapis.com/token")
	key := creto.NewSecret(apiKey)
	ec := `{"client_email":"x","private_key":"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}`
	for name, tt := range map[string]struct {
		config provider.VertexConfig
		want   int // problems
	}{
		"account":     {provider.VertexConfig{Project: "p", Location: "global", ServiceAccount: file}, 0},
		"region":      {provider.VertexConfig{Project: "p", Location: "europe-west4", ServiceAccount: file}, 0},
		"key":         {provider.VertexConfig{Config: provider.Config{APIKey: key}}, 0},
		"neither":     {provider.VertexConfig{}, 1},
		"both":        {provider.VertexConfig{Config: provider.Config{APIKey: key}, Project: "p", Location: "global", ServiceAccount: file}, 1},
		"no project":  {provider.VertexConfig{ServiceAccount: file}, 1},
		"no location": {provider.VertexConfig{Project: "p", ServiceAccount: file}, 1},
		"odd names":   {provider.VertexConfig{Project: "../p", Location: "a/b", ServiceAccount: file}, 1},
		"not JSON":    {provider.VertexConfig{Project: "p", Location: "global", ServiceAccount: key}, 1},
		"not a key":   {provider.VertexConfig{Project: "p", Location: "global", ServiceAccount: creto.NewSecret(ec)}, 1},
		"token url":   {provider.VertexConfig{Project: "p", Location: "global", ServiceAccount: file, TokenURL: "x"}, 1},
		"file's url":  {provider.VertexConfig{Project: "p", Location: "global", ServiceAccount: accountFile(t, "file:///etc")}, 1},
	} {
		tt.config.Name = "v"
		client, err := provider.NewVertex(tt.config)
		if err == nil && tt.want == 0 {
			if printed := fmt.Sprintf("%+v %#v %v", client, client, *client); strings.Contains(printed, apiKey) || len(printed) > 100 {
				t.Errorf("%s: printing a client shows more than its name", name)
			}
			continue
		}
		if !errors.Is(err, fault.InvalidArgument) || strings.Count(fault.Message(err), "\n")+1 != tt.want || strings.Contains(err.Error(), apiKey) || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: NewVertex = %v, want %d problems", name, err, tt.want)
		}
	}
}

func FuzzVertexAnswer(f *testing.F) {
	f.Add(read(f, "testdata/vertex/answer.json"))
	f.Add([]byte(googleErrorBody("INTERNAL", "x", `{"retryDelay":"1s"}`)))
	f.Add([]byte(`{"promptFeedback":{"blockReason":"SAFETY"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for mediaType, body := range map[string]string{"application/json": string(data), "text/event-stream": "data: " + strings.ReplaceAll(string(data), "\n", " ") + "\n\n"} {
			client, err := provider.NewVertex(provider.VertexConfig{Config: provider.Config{Name: "f", APIKey: creto.NewSecret("k"), Transport: fixed{mediaType, body}}})
			if err != nil {
				t.Fatal(err)
			}
			r, err := client.Complete(t.Context(), inferencetest.Ask("hello"))
			if err == nil {
				_, openAI := provider.EncodeOpenAIResponse(r)
				_, anthropic := provider.EncodeAnthropicResponse(r)
				err = errors.Join(openAI, anthropic)
			}
			if err != nil && (fault.CodeOf(err) == fault.Internal || errors.Is(err, fault.InvalidArgument)) {
				t.Fatalf("Complete = %v", err)
			}
			s, err := client.CompleteStream(t.Context(), inferencetest.Ask("hello"))
			if err != nil {
				continue
			}
			if _, _, err := inferencetest.Collect(t, s); err != nil && (fault.CodeOf(err) == fault.Internal || fault.CodeOf(err) == fault.InvalidArgument) {
				t.Fatalf("stream = %v", err)
			}
			_ = s.Close()
		}
	})
}
