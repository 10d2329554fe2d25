package provider_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"
	"github.com/google/go-cmp/cmp"
)

// awsEvent is one message of AWS's binary event stream.
func awsEvent(messageType, name, payload string) []byte {
	named := ":event-type"
	if messageType == "exception" {
		named = ":exception-type"
	}
	m := eventstream.Message{Payload: []byte(payload)}
	m.Headers.Set(":message-type", eventstream.StringValue(messageType))
	m.Headers.Set(named, eventstream.StringValue(name))
	m.Headers.Set(":content-type", eventstream.StringValue("application/json"))
	var b bytes.Buffer
	if err := eventstream.NewEncoder().Encode(&b, m); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func awsEvents(namesAndPayloads ...string) string {
	var b strings.Builder
	for i := 0; i < len(namesAndPayloads); i += 2 {
		b.Write(awsEvent("event", namesAndPayloads[i], namesAndPayloads[i+1]))
	}
	return b.String()
}

const awsStream = "application/vnd.amazon.eventstream"

// sigV4 is a signature of AWS by the test's access key.
var sigV4 = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=AKIDTEST/[0-9]{8}/eu-central-1/bedrock/aws4_request, SignedHeaders=[a-z0-9;-]*host[a-z0-9;-]*, Signature=[0-9a-f]{64}$`)

// bedrock is a server of the Converse API.
type bedrock struct {
	bearer  bool
	noUsage bool
}

func awsRefuse(w http.ResponseWriter, status int, exception, message string) {
	w.Header().Set("X-Amzn-Errortype", exception+":http://internal.amazon.com/coral/com.amazon.bedrock/")
	body, _ := json.Marshal(map[string]string{"message": message})
	respond(status, "application/json", string(body))(w, nil)
}

func (u bedrock) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	authorization := r.Header.Get("Authorization")
	if u.bearer && authorization != "Bearer "+apiKey || !u.bearer && (!sigV4.MatchString(authorization) || r.Header.Get("X-Amz-Date") == "") {
		awsRefuse(w, 403, "UnrecognizedClientException", "The security token included in the request is invalid: "+authorization)
		return
	}
	call, ok := strings.CutPrefix(r.URL.Path, "/model/")
	if r.URL.Path == "/async-invoke" {
		respond(200, "application/json", `{"asyncInvokeSummaries":[]}`)(w, r)
		return
	}
	model, operation, _ := strings.Cut(call, "/")
	var in struct {
		Messages []struct {
			Content []struct{ Text string }
		}
		ToolConfig struct {
			Tools []struct{ ToolSpec struct{ Name string } }
		}
		Input struct{ Converse json.RawMessage }
	}
	err := json.NewDecoder(r.Body).Decode(&in)
	switch {
	case !ok || r.Method != http.MethodPost:
		awsRefuse(w, 404, "UnknownOperationException", "")
		return
	case model != inferencetest.ModelName:
		awsRefuse(w, 400, "ValidationException", "The provided model identifier is invalid.")
		return
	case err != nil:
		awsRefuse(w, 400, "ValidationException", "malformed")
		return
	case operation == "count-tokens" && in.Input.Converse != nil:
		respond(200, "application/json", `{"inputTokens":9}`)(w, r)
		return
	case len(in.Messages) == 0:
		awsRefuse(w, 400, "ValidationException", "malformed")
		return
	}
	content := in.Messages[len(in.Messages)-1].Content
	text := content[len(content)-1].Text
	streams := operation == "converse-stream"
	if text == inferencetest.HangPrompt {
		if streams {
			w.Header().Set("Content-Type", awsStream)
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-r.Context().Done():
		case <-time.After(20 * time.Second):
		}
		return
	}
	usage, stop := `{"inputTokens":5,"outputTokens":3,"totalTokens":12,"cacheReadInputTokens":4}`, "end_turn"
	if u.noUsage {
		usage = "null"
	}
	useTool := text == inferencetest.ToolPrompt && len(in.ToolConfig.Tools) > 0
	tool := ""
	if useTool {
		stop, tool = "tool_use", in.ToolConfig.Tools[0].ToolSpec.Name
	}
	prefix, _ := json.Marshal(inferencetest.EchoPrefix)
	rest, _ := json.Marshal(text)
	answer, _ := json.Marshal(inferencetest.EchoPrefix + text)
	arguments, _ := json.Marshal(inferencetest.ToolArguments)
	if !streams {
		block := fmt.Sprintf(`{"text":%s}`, answer)
		if useTool {
			block = fmt.Sprintf(`{"toolUse":{"toolUseId":"tooluse_1","name":%q,"input":%s}}`, tool, inferencetest.ToolArguments)
		}
		respond(200, "application/json", fmt.Sprintf(`{"output":{"message":{"role":"assistant","content":[%s]}},"stopReason":%q,"usage":%s,"metrics":{"latencyMs":1}}`, block, stop, usage))(w, r)
		return
	}
	w.Header().Set("Content-Type", awsStream)
	say := func(name, payload string) {
		_, _ = w.Write(awsEvent("event", name, payload))
		_ = http.NewResponseController(w).Flush()
	}
	say("messageStart", `{"role":"assistant"}`)
	if useTool {
		say("contentBlockStart", fmt.Sprintf(`{"contentBlockIndex":0,"start":{"toolUse":{"toolUseId":"tooluse_1","name":%q}}}`, tool))
		say("contentBlockDelta", fmt.Sprintf(`{"contentBlockIndex":0,"delta":{"toolUse":{"input":%s}}}`, arguments))
	} else {
		say("contentBlockDelta", fmt.Sprintf(`{"contentBlockIndex":0,"delta":{"text":%s}}`, prefix))
		say("somethingNew", `{"x":1}`)
		say("contentBlockDelta", fmt.Sprintf(`{"contentBlockIndex":0,"delta":{"text":%s}}`, rest))
	}
	say("contentBlockStop", `{"contentBlockIndex":0}`)
	say("messageStop", fmt.Sprintf(`{"stopReason":%q}`, stop))
	if !u.noUsage {
		say("metadata", fmt.Sprintf(`{"usage":%s,"metrics":{"latencyMs":1}}`, usage))
	}
}

func openBedrock(t testing.TB, h http.Handler, change func(*provider.BedrockConfig)) *provider.Bedrock {
	t.Helper()
	c := provider.BedrockConfig{
		Config: provider.Config{
			Name:         "test",
			Capabilities: inference.Capabilities{Streaming: true, Tools: true, Vision: true, Models: []string{"*"}},
		},
		Region: "eu-central-1", AccessKeyID: "AKIDTEST", SecretAccessKey: creto.NewSecret(apiKey),
	}
	if change != nil {
		change(&c)
	}
	server := httptest.NewUnstartedServer(h)
	if c.APIKey.IsZero() {
		server.Start()
	} else {
		server.StartTLS() // the SDK sends such a key over nothing else
		c.Transport = server.Client().Transport
	}
	c.BaseURL = server.URL
	client, err := provider.NewBedrock(t.Context(), c)
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

func bedrockOpener(t *testing.T, h http.Handler, change func(*provider.Config)) inference.Model {
	return openBedrock(t, h, func(c *provider.BedrockConfig) {
		if change != nil {
			change(&c.Config)
		}
	})
}

func withBearer(c *provider.BedrockConfig) {
	c.APIKey, c.AccessKeyID, c.SecretAccessKey = c.SecretAccessKey, "", creto.Secret{}
}

func TestBedrockConformance(t *testing.T) {
	// A key in the environment must not win over what is configured.
	t.Setenv("AWS_BEARER_TOKEN_BEDROCK", "of-the-environment")
	t.Run("signed", func(t *testing.T) {
		inferencetest.Run(t, func(t *testing.T) inference.Model { return openBedrock(t, bedrock{}, nil) })
	})
	t.Run("bearer", func(t *testing.T) {
		inferencetest.Run(t, func(t *testing.T) inference.Model { return openBedrock(t, bedrock{bearer: true}, withBearer) })
	})
	t.Run("without usage", func(t *testing.T) {
		inferencetest.Run(t, func(t *testing.T) inference.Model { return openBedrock(t, bedrock{noUsage: true}, nil) })
	})
}

func exception(message string) string { return fmt.Sprintf(`{"message":%q}`, message) }

func TestBedrockAnswers(t *testing.T) {
	named := func(name string) []string { return []string{"X-Amzn-Errortype", name} }
	holdAnswers(t, bedrockOpener, []answerCase{
		{"throttled", 429, exception(planted), append(named("ThrottlingException"), "Retry-After", "7"), fault.InferenceRateLimited, 7 * time.Second},
		{"not ready", 429, exception(planted), named("ModelNotReadyException"), fault.InferenceProviderUnavailable, 0},
		{"quota", 400, exception(planted), named("ServiceQuotaExceededException"), fault.InferenceProviderError, 0},
		{"too long", 400, exception("Input is too long for requested model."), named("ValidationException"), fault.InferenceTokenLimitExceeded, 0},
		{"too long in Claude's words", 400, exception("The model returned the following errors: prompt is too long: 204641 tokens > 200000 maximum"), named("ValidationException"), fault.InferenceTokenLimitExceeded, 0},
		{"filtered", 400, exception("Output blocked by content filtering policy"), named("ValidationException"), fault.InferenceContentFiltered, 0},
		{"no such model", 400, exception("The provided model identifier is invalid."), named("ValidationException"), fault.InferenceModelNotFound, 0},
		{"no such resource", 404, exception(planted), named("ResourceNotFoundException"), fault.InferenceModelNotFound, 0},
		{"malformed request", 400, exception(planted), named("ValidationException"), fault.InvalidArgument, 0},
		{"denied", 403, exception("You don't have access to the model with the specified model ID. " + planted), named("AccessDeniedException"), fault.InferenceProviderError, 0},
		{"signature", 403, exception(planted), named("InvalidSignatureException"), fault.InferenceProviderError, 0},
		{"model timeout", 408, exception(planted), named("ModelTimeoutException"), fault.InferenceTimeout, 0},
		{"model error", 424, exception(planted), named("ModelErrorException"), fault.InferenceProviderUnavailable, 0},
		{"500", 500, exception(planted), named("InternalServerException"), fault.InferenceProviderUnavailable, 0},
		{"500 that claims a filter", 500, exception("content filter"), named("ValidationException"), fault.InferenceProviderUnavailable, 0},
		{"503", 503, exception(planted), append(named("ServiceUnavailableException"), "Retry-After", "2"), fault.InferenceProviderUnavailable, 2 * time.Second},
		{"of a proxy", 502, planted, nil, fault.InferenceProviderUnavailable, 0},
	})
	for name, body := range map[string]string{
		"no output":   `{"stopReason":"end_turn"}`,
		"odd output":  `{"output":{"other":{}}}`,
		"negative":    `{"output":{"message":{"role":"assistant","content":[{"text":"x"}]}},"usage":{"inputTokens":-1}}`,
		"half a call": `{"output":{"message":{"role":"assistant","content":[{"toolUse":{"input":{}}}]}}}`,
	} {
		_, err := openBedrock(t, respond(200, "application/json", body), nil).Complete(t.Context(), inferencetest.Ask("hello"))
		check(t, name, err, fault.InferenceProviderError, 0)
	}
	silent := `{"output":{"message":{"role":"assistant","content":[]}},"stopReason":"guardrail_intervened","usage":{"inputTokens":1,"outputTokens":0,"totalTokens":1}}`
	_, err := openBedrock(t, respond(200, "application/json", silent), nil).Complete(t.Context(), inferencetest.Ask("hello"))
	check(t, "a guardrail's silence", err, fault.InferenceContentFiltered, 0)
	said := strings.Replace(silent, `"content":[]`, `"content":[{"text":"Sorry."}]`, 1)
	got, err := openBedrock(t, respond(200, "application/json", said), nil).Complete(t.Context(), inferencetest.Ask("hello"))
	if err != nil || got.Choices[0].FinishReason != "content_filter" || got.Choices[0].StopReason != "guardrail_intervened" {
		t.Errorf("a guardrail's words = %+v, %v", got, err)
	}
}

func TestBedrockStreams(t *testing.T) {
	const start, stop = `{"role":"assistant"}`, `{"stopReason":"end_turn"}`
	hello := `{"contentBlockIndex":0,"delta":{"text":"hello"}}`
	usage := `{"usage":{"inputTokens":3,"outputTokens":1,"totalTokens":4}}`
	begun := awsEvents("messageStart", start, "contentBlockDelta", hello)
	whole := begun + awsEvents("contentBlockStop", `{"contentBlockIndex":0}`, "messageStop", stop, "metadata", usage)
	corrupt := []byte(whole)
	corrupt[len(begun)+40] ^= 1
	holdStreams(t, bedrockOpener, awsStream, []streamCase{
		{name: "complete", body: whole, text: "hello"},
		{name: "without usage", body: begun + awsEvents("messageStop", stop), text: "hello"},
		{name: "usage before the end", body: begun + awsEvents("metadata", usage, "messageStop", stop), text: "hello"},
		{name: "a guardrail that spoke", body: begun + awsEvents("messageStop", `{"stopReason":"guardrail_intervened"}`, "metadata", usage), text: "hello"},
		{name: "a guardrail that did not", body: awsEvents("messageStart", start, "messageStop", `{"stopReason":"guardrail_intervened"}`), want: fault.InferenceContentFiltered},
		{name: "truncated", body: begun, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "truncated in a message", body: whole[:len(begun)+30], want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "truncated in a prelude", body: whole[:len(begun)+6], want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "half closed", body: begun, abort: true, want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "empty", body: "", want: fault.InferenceProviderUnavailable},
		{name: "corrupt", body: string(corrupt), want: fault.InferenceProviderError, text: "hello"},
		{name: "not an event stream", body: `{"output":{"message":{"role":"assistant","content":[]}}}`, want: fault.InferenceProviderError},
		{name: "not JSON", body: begun + awsEvents("contentBlockDelta", planted), want: fault.InferenceProviderError, text: "hello"},
		{name: "a piece of no call", body: begun + awsEvents("contentBlockDelta", `{"contentBlockIndex":4,"delta":{"toolUse":{"input":"{}"}}}`), want: fault.InferenceProviderError, text: "hello"},
		{name: "throttled", body: begun + string(awsEvent("exception", "throttlingException", exception(planted))), want: fault.InferenceRateLimited, text: "hello"},
		{name: "a model that broke", body: begun + string(awsEvent("exception", "modelStreamErrorException", `{"message":"x","originalStatusCode":400,"originalMessage":"y"}`)), want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "refused late", body: string(awsEvent("exception", "validationException", exception("Input is too long"))), want: fault.InferenceTokenLimitExceeded},
		{name: "unavailable", body: begun + string(awsEvent("exception", "serviceUnavailableException", exception(planted))), want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "an exception nobody knows", body: begun + string(awsEvent("exception", "newException", exception(planted))), want: fault.InferenceProviderUnavailable, text: "hello"},
		{name: "an endless stream", body: awsEvents("messageStart", start) + strings.Repeat(awsEvents("contentBlockDelta", `{"contentBlockIndex":0,"delta":{"text":""}}`), 50_000), want: fault.InferenceProviderError},
		{name: "an endless message", body: "\x7f\xff\xff\xff\x00\x00\x00\x00\xda\x0c\x10\x2c" + strings.Repeat("x", 7<<20), want: fault.InferenceProviderError},
	})
	holdSilence(t, bedrockOpener, awsStream, begun)
}

func recordedEvents(t testing.TB) string {
	t.Helper()
	var list [][2]json.RawMessage
	data, err := os.ReadFile("testdata/bedrock/stream.json")
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range list {
		b.Write(awsEvent("event", strings.Trim(string(e[0]), `"`), string(e[1])))
	}
	return b.String()
}

// TestBedrockAnswer reads an answer that has all there is, whole and streamed.
func TestBedrockAnswer(t *testing.T) {
	wantUsage := inference.Usage{PromptTokens: 45, CachedTokens: 10, CacheWriteTokens: 5, CompletionTokens: 628}
	r, err := openBedrock(t, respond(200, "application/json", string(read(t, "testdata/bedrock/converse.json"))), nil).Complete(t.Context(), inferencetest.Ask("hello"))
	if err != nil {
		t.Fatal(err)
	}
	want := inference.Response{Model: inferencetest.ModelName, Dialect: inference.DialectBedrock, Usage: wantUsage, Choices: []inference.Choice{{
		FinishReason: "tool_calls", StopReason: "tool_use",
		Message: inference.Message{
			Role: inference.RoleAssistant,
			Content: []inference.Part{
				{Type: "thinking", Text: "The user wants the weather.", Reasoning: &inference.Reasoning{Signature: "EqQBCkYIBRABGAIqQ"}},
				{Type: "redacted_thinking", Reasoning: &inference.Reasoning{Redacted: "cmVkYWN0ZWQ="}},
				{Type: "text", Text: "I will look."},
			},
			ToolCalls: []inference.ToolCall{{
				Type: "function", ID: "tooluse_kZJMlvQmRJ6eAyJE5GIl7Q", Name: "weather", Arguments: `{"city":"Bern","days":9007199254740993,"note":"<now>"}`,
			}},
		},
	}}}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("Complete (-want +got):\n%s", diff)
	}
	s, err := openBedrock(t, respond(200, awsStream, recordedEvents(t)), nil).CompleteStream(t.Context(), inferencetest.Ask("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_, chunks, err := inferencetest.Collect(t, s)
	if err != nil {
		t.Fatal(err)
	}
	var text, thought, signature, arguments, finish string
	for _, c := range chunks {
		for _, choice := range c.Choices {
			finish += choice.FinishReason
			for _, p := range choice.Message.Content {
				if p.Reasoning != nil {
					thought += p.Text
					signature += p.Reasoning.Signature
				} else {
					text += p.Text
				}
			}
			for _, call := range choice.Message.ToolCalls {
				arguments += call.Name + call.Arguments
			}
		}
	}
	if text != "I will look." || thought != "The user wants the weather." || signature != "EqQBCkYIBRABGAIqQ" || arguments != `weather{"city":"Bern"}` || finish != "tool_calls" {
		t.Errorf("stream = %q, %q, %q, %q, %q", text, thought, signature, arguments, finish)
	}
	if diff := cmp.Diff(wantUsage, s.Usage()); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
}

// sentTo returns what a client sends of a request.
func sentTo(t *testing.T, open opener, r inference.Request) (path, body string, err error) {
	t.Helper()
	got := make(chan [2]string, 1)
	m := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- [2]string{r.URL.EscapedPath(), string(b)}
		respond(500, "text/plain", "")(w, r)
	}), nil)
	_, err = m.Complete(t.Context(), r)
	select {
	case s := <-got:
		return s[0], s[1], nil
	default:
		return "", "", err
	}
}

// TestBedrockRequests compares what is sent with recorded requests.
func TestBedrockRequests(t *testing.T) {
	holdRequests(t, "bedrock", bedrockOpener)
}

// holdRequests sends the requests of two dialects' files, which name the model
// first, and compares them with golden files.
func holdRequests(t *testing.T, directory string, open opener) {
	files, err := filepath.Glob("testdata/" + directory + "/from-*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".sent.json") {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			decode := provider.DecodeOpenAIRequest
			if strings.Contains(file, "from-anthropic") {
				decode = provider.DecodeAnthropicRequest
			}
			r, _, err := decode(read(t, file))
			if err != nil {
				t.Fatal(err)
			}
			path, body, err := sentTo(t, open, r)
			if err != nil {
				t.Fatal(err)
			}
			var pretty bytes.Buffer
			if err := json.Indent(&pretty, []byte(body), "", "  "); err != nil {
				t.Fatal(err)
			}
			got := path + "\n" + pretty.String() + "\n"
			golden := strings.TrimSuffix(file, ".json") + ".sent.txt"
			if os.Getenv("UPDATE") == "1" {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(read(t, golden)), got); diff != "" {
				t.Errorf("sent (-want +got):\n%s", diff)
			}
			if _, again, _ := sentTo(t, open, r); again != body {
				t.Errorf("the same request became\n%s\nand\n%s", body, again)
			}
		})
	}
}

// refusedCase is a request of OpenAI's dialect that cannot be said in another, or
// makes no sense.
type refusedCase struct {
	name, fields string
	want         fault.Code
}

// foreignRefusals are those that no provider without clients of its own takes.
var foreignRefusals = []refusedCase{
	{"several answers", `"messages":[{"role":"user","content":"a"}],"n":2`, fault.InferenceNotSupported},
	{"a document", `"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"f"}}]}]`, fault.InferenceNotSupported},
	{"an unknown role", `"messages":[{"role":"function","content":"a"}]`, fault.InferenceNotSupported},
	{"only system", `"messages":[{"role":"system","content":"a"}]`, fault.InvalidArgument},
	{"a custom tool", `"messages":[{"role":"user","content":"a"}],"tools":[{"type":"custom","custom":{"name":"x"}}]`, fault.InferenceNotSupported},
	{"a custom choice", `"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"x"}}],"tool_choice":{"type":"allowed_tools","allowed_tools":{}}`, fault.InferenceNotSupported},
	{"one call at a time", `"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"x"}}],"parallel_tool_calls":false`, fault.InferenceNotSupported},
	{"arguments that are none", `"messages":[{"role":"user","content":"a"},{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"x","arguments":"[1]"}}]},{"role":"tool","tool_call_id":"1","content":"b"}]`, fault.InvalidArgument},
	{"a schema that is none", `"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"x","parameters":"y"}}]`, fault.InvalidArgument},
	{"forged reasoning", `"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","thinking_blocks":[{"type":"text","text":"x"}]}]`, fault.InvalidArgument},
	{"a name in upper case", `"messages":[{"role":"user","content":"a"}],"systemInstruction":{}`, fault.InferenceNotSupported},
	{"a number that is none", `"messages":[{"role":"user","content":"a"}],"top_p":"x"`, fault.InvalidArgument},
}

// holdRefusals holds that a client refuses requests before they are sent.
func holdRefusals(t *testing.T, open opener, cases ...refusedCase) {
	for _, tt := range slices.Concat(foreignRefusals, cases) {
		t.Run(tt.name, func(t *testing.T) {
			r, _, err := provider.DecodeOpenAIRequest([]byte(`{"model":"m",` + tt.fields + `}`))
			if err != nil {
				t.Fatal(err)
			}
			path, body, err := sentTo(t, open, r)
			if fault.CodeOf(err) != tt.want {
				t.Errorf("error = %v, sent %s %s; want %v", err, path, body, tt.want)
			}
		})
	}
}

func TestBedrockRefusals(t *testing.T) {
	holdRefusals(t, bedrockOpener,
		refusedCase{"an image elsewhere", `"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"s3://bucket/key"}}]}]`, fault.InferenceNotSupported},
		refusedCase{"an odd image", `"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/tiff;base64,AA=="}}]}]`, fault.InferenceNotSupported},
		refusedCase{"a broken image", `"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,*"}}]}]`, fault.InvalidArgument},
		refusedCase{"JSON of any form", `"messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_object"}`, fault.InferenceNotSupported},
		refusedCase{"a second system prompt", `"messages":[{"role":"user","content":"a"}],"system":"be evil"`, fault.InferenceNotSupported},
		refusedCase{"no call after calls", `"messages":[{"role":"user","content":"a"},{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"x","arguments":"{}"}}]},{"role":"tool","tool_call_id":"1","content":"b"}],"tools":[{"type":"function","function":{"name":"x"}}],"tool_choice":"none"`, fault.InferenceNotSupported},
	)
	for _, name := range []string{"..", "../x", "a?b", "a#b", "a%2f", "a b", "-", strings.Repeat("x", 513)} {
		r := inferencetest.Ask("hello")
		r.Model = name
		_, body, err := sentTo(t, bedrockOpener, r)
		if body != "" || fault.CodeOf(err) != fault.InferenceModelNotFound && fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%q: %v, sent %s", name, err, body)
		}
	}
}

func TestBedrockCountTokens(t *testing.T) {
	m := openBedrock(t, bedrock{}, nil)
	if n, err := m.CountTokens(t.Context(), inferencetest.Ask("hello")); n != 9 || err != nil {
		t.Errorf("CountTokens = %d, %v", n, err)
	}
	for _, body := range []string{`{}`, `{"inputTokens":-1}`, `[]`, ``} {
		_, err := openBedrock(t, respond(200, "application/json", body), nil).CountTokens(t.Context(), inferencetest.Ask("hello"))
		check(t, body, err, fault.InferenceProviderError, 0)
	}
}

// TestBedrockSendsOnce holds that neither the SDK nor net/http repeats a call.
func TestBedrockSendsOnce(t *testing.T) {
	var calls atomic.Int32
	m := openBedrock(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		awsRefuse(w, 503, "ServiceUnavailableException", planted)
	}), nil)
	_, err := m.Complete(t.Context(), inferencetest.Ask("hello"))
	check(t, "Complete", err, fault.InferenceProviderUnavailable, 0)
	check(t, "CompleteStream", streamed(t, m), fault.InferenceProviderUnavailable, 0)
	if n := calls.Load(); n != 2 {
		t.Errorf("two calls made %d requests", n)
	}
}

func TestBedrockHealth(t *testing.T) {
	for _, tt := range []struct {
		status    int
		exception string
		want      fault.Code
	}{
		{403, "AccessDeniedException", fault.OK},
		{403, "UnrecognizedClientException", fault.InferenceProviderError},
		{500, "InternalServerException", fault.InferenceProviderUnavailable},
		{429, "ThrottlingException", fault.InferenceRateLimited},
	} {
		m := openBedrock(t, respond(tt.status, "application/json", exception(planted), "X-Amzn-Errortype", tt.exception), nil)
		check(t, tt.exception, m.Health(t.Context()), tt.want, 0)
	}
}

func TestNewBedrock(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(home, "none"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(home, "credentials"))
	if err := os.WriteFile(filepath.Join(home, "credentials"), []byte("[shop]\naws_access_key_id = AKIDTEST\naws_secret_access_key = "+apiKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	base := provider.BedrockConfig{Config: provider.Config{Name: "b"}, Region: "eu-central-1"}
	with := func(change func(*provider.BedrockConfig)) provider.BedrockConfig {
		c := base
		change(&c)
		return c
	}
	secret := creto.NewSecret(apiKey)
	for name, tt := range map[string]struct {
		config provider.BedrockConfig
		want   int // problems
	}{
		"static": {with(func(c *provider.BedrockConfig) {
			c.AccessKeyID, c.SecretAccessKey, c.SessionToken = "A", secret, secret
		}), 0},
		"bearer":         {with(func(c *provider.BedrockConfig) { c.APIKey = secret }), 0},
		"profile":        {with(func(c *provider.BedrockConfig) { c.Profile = "shop" }), 0},
		"chain":          {with(func(c *provider.BedrockConfig) { c.DefaultChain = true }), 0},
		"guardrail":      {with(func(c *provider.BedrockConfig) { c.APIKey, c.GuardrailID, c.GuardrailVersion = secret, "g", "1" }), 0},
		"nobody":         {base, 1},
		"two":            {with(func(c *provider.BedrockConfig) { c.APIKey, c.Profile = secret, "shop" }), 1},
		"no secret":      {with(func(c *provider.BedrockConfig) { c.AccessKeyID = "A" }), 1},
		"no profile":     {with(func(c *provider.BedrockConfig) { c.Profile = "nobody" }), 1},
		"half guardrail": {with(func(c *provider.BedrockConfig) { c.APIKey, c.GuardrailID = secret, "g" }), 1},
		"no region":      {with(func(c *provider.BedrockConfig) { c.APIKey, c.Region = secret, "x/../y" }), 1},
	} {
		client, err := provider.NewBedrock(t.Context(), tt.config)
		if err == nil && tt.want == 0 {
			if strings.Contains(fmt.Sprintf("%+v %#v %v", client, client, *client), apiKey) {
				t.Errorf("%s: printing a client shows its key", name)
			}
			continue
		}
		if !errors.Is(err, fault.InvalidArgument) || strings.Count(fault.Message(err), "\n")+1 != tt.want || strings.Contains(err.Error(), apiKey) {
			t.Errorf("%s: NewBedrock = %v, want %d problems", name, err, tt.want)
		}
	}
	// What the profile says is what signs.
	m := openBedrock(t, bedrock{}, func(c *provider.BedrockConfig) {
		c.AccessKeyID, c.SecretAccessKey, c.Profile = "", creto.Secret{}, "shop"
	})
	if _, err := m.Complete(t.Context(), inferencetest.Ask("hello")); err != nil {
		t.Errorf("with a profile: %v", err)
	}
}

// fixed answers every request with the same bytes, without a connection.
type fixed struct{ mediaType, body string }

func (f fixed) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: 200, Header: http.Header{"Content-Type": {f.mediaType}}, Body: io.NopCloser(strings.NewReader(f.body)), Request: r, ProtoMajor: 1, ProtoMinor: 1,
	}, nil
}

func FuzzBedrockStream(f *testing.F) {
	f.Add([]byte(recordedEvents(f)))
	f.Add(awsEvent("exception", "throttlingException", `{"message":"x"}`))
	f.Add([]byte(awsEvents("messageStart", "{}", "contentBlockDelta", `{"delta":{"text":"x"}}`, "messageStop", "{}", "metadata", "{}")))
	f.Fuzz(func(t *testing.T, data []byte) {
		client, err := provider.NewBedrock(t.Context(), provider.BedrockConfig{
			Config: provider.Config{Name: "f", APIKey: creto.NewSecret("k"), Transport: fixed{awsStream, string(data)}}, Region: "eu-central-1",
		})
		if err != nil {
			t.Fatal(err)
		}
		s, err := client.CompleteStream(t.Context(), inferencetest.Ask("hello"))
		if err != nil {
			return
		}
		defer func() { _ = s.Close() }()
		if _, _, err := inferencetest.Collect(t, s); err != nil && fault.CodeOf(err) == fault.Internal {
			t.Fatalf("stream = %v", err)
		}
	})
}

// What quotes a credential of ours in the middle of a stream is not believed to the
// letter: neither key nor session token comes out with the error.
func TestBedrockStreamQuotes(t *testing.T) {
	const key, session = "bedrock-api-key-planted", "session+token/planted=="
	for name, test := range map[string]struct {
		change func(*provider.BedrockConfig)
		header string
	}{
		"key":           {func(c *provider.BedrockConfig) { withBearer(c); c.APIKey = creto.NewSecret(key) }, "Authorization"},
		"session token": {func(c *provider.BedrockConfig) { c.SessionToken = creto.NewSecret(session) }, "X-Amz-Security-Token"},
		"signature":     {func(*provider.BedrockConfig) {}, "Authorization"},
	} {
		for _, exceptionType := range []string{"throttlingException", "modelStreamErrorException", "validationException", "newException"} {
			var quoted string
			b := openBedrock(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				quoted = strings.TrimPrefix(r.Header.Get(test.header), "Bearer ")
				w.Header().Set("Content-Type", awsStream)
				_, _ = w.Write([]byte(awsEvents("messageStart", `{"role":"assistant"}`, "contentBlockDelta", `{"contentBlockIndex":0,"delta":{"text":"hello"}}`)))
				_, _ = w.Write(awsEvent("exception", exceptionType, exception("you sent "+quoted+" and it is wrong")))
			}), test.change)
			s, err := b.CompleteStream(t.Context(), inferencetest.Ask("hello"))
			if err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = s.Next()
			}
			_ = s.Close()
			if quoted == "" || errors.Is(err, io.EOF) || strings.Contains(err.Error(), quoted) || !strings.Contains(err.Error(), "you sent") && exceptionType != "newException" {
				t.Errorf("%s, %s: %v, which quotes %q", name, exceptionType, err, quoted)
			}
		}
	}
}
