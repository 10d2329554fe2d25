package provider_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
)

// apiKey is the credential that the upstream wants, and that nobody else may
// see.
const apiKey = "sk-planted-secret"

// upstream is a server of OpenAI's dialect written without this package's
// encoders, so that a mistake in them is not its own proof.
type upstream struct {
	noUsage bool
	// azure: filter results come in a chunk of their own, before the answer.
	azure bool
	// model is what it calls the model; "" is inferencetest.ModelName.
	model string
}

func (u upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+apiKey {
		refuse(w, 401, "invalid_api_key", "Incorrect API key provided: "+r.Header.Get("Authorization"))
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /v1/models":
		_, _ = fmt.Fprint(w, `{"object":"list","data":[]}`)
	case "POST /v1/embeddings":
		var in struct{ Input []string }
		_ = json.NewDecoder(r.Body).Decode(&in)
		var data []string
		for i := range in.Input {
			// Out of order, as the index allows.
			i = len(in.Input) - 1 - i
			data = append(data, fmt.Sprintf(`{"object":"embedding","index":%d,"embedding":[%d.5,0.25]}`, i, i))
		}
		_, _ = fmt.Fprintf(w, `{"object":"list","model":"echo-1","data":[%s],"usage":{"prompt_tokens":3,"total_tokens":3}}`, strings.Join(data, ","))
	case "POST /v1/chat/completions":
		u.chat(w, r)
	default:
		http.NotFound(w, r)
	}
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	body, _ := json.Marshal(map[string]any{"error": map[string]any{"message": message, "type": "invalid_request_error", "code": code}})
	_, _ = w.Write(body)
}

func (u upstream) chat(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Model         string
		Stream        bool
		StreamOptions struct {
			IncludeUsage bool `json:"include_usage"`
		} `json:"stream_options"`
		Messages []struct {
			Role    string
			Content any
		}
		Tools []struct {
			Type     string
			Function struct{ Name string }
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || len(in.Messages) == 0 {
		refuse(w, 400, "", "malformed")
		return
	}
	if u.model == "" {
		u.model = inferencetest.ModelName
	}
	if in.Model != u.model {
		refuse(w, 404, "model_not_found", "The model `"+in.Model+"` does not exist")
		return
	}
	text, _ := in.Messages[len(in.Messages)-1].Content.(string)
	if text == inferencetest.HangPrompt {
		if in.Stream {
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
	useTool := text == inferencetest.ToolPrompt && len(in.Tools) > 0
	arguments, _ := json.Marshal(inferencetest.ToolArguments)
	answer, _ := json.Marshal(inferencetest.EchoPrefix + text)
	if !in.Stream {
		message, finish := fmt.Sprintf(`{"role":"assistant","content":%s,"refusal":null,"annotations":[]}`, answer), "stop"
		if useTool {
			finish = "tool_calls"
			message = fmt.Sprintf(`{"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":%q,"arguments":%s}}]}`, in.Tools[0].Function.Name, arguments)
		}
		usage := `,"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":4}}`
		if u.noUsage {
			usage = ""
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"echo-1-2026","system_fingerprint":"fp","choices":[{"index":0,"message":%s,"logprobs":null,"finish_reason":%q}]%s}`, message, finish, usage)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	say := func(delta, finish string) {
		_, _ = fmt.Fprintf(w, "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"echo-1-2026\",\"choices\":[{\"index\":0,\"delta\":%s,\"finish_reason\":%s}]}\n\n", delta, finish)
		_ = http.NewResponseController(w).Flush()
	}
	_, _ = fmt.Fprint(w, ": keep-alive\n\nevent: message\r\n")
	if u.azure {
		_, _ = fmt.Fprint(w, `data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}`+"\n\n")
	}
	say(`{"role":"assistant","content":""}`, "null")
	if useTool {
		say(fmt.Sprintf(`{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":%q,"arguments":""}}]}`, in.Tools[0].Function.Name), "null")
		say(fmt.Sprintf(`{"tool_calls":[{"index":0,"function":{"arguments":%s}}]}`, arguments), "null")
		say("{}", `"tool_calls"`)
	} else {
		prefix, _ := json.Marshal(inferencetest.EchoPrefix)
		rest, _ := json.Marshal(text)
		say(fmt.Sprintf(`{"content":%s}`, prefix), "null")
		say(fmt.Sprintf(`{"content":%s}`, rest), "null")
		say("{}", `"stop"`)
	}
	if in.StreamOptions.IncludeUsage && !u.noUsage {
		_, _ = fmt.Fprint(w, `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"echo-1-2026","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}`+"\n\n")
	}
	_, _ = fmt.Fprint(w, "data: [DONE]\n\n")
}

// open returns a client of handler on a real loopback server.
func open(t testing.TB, handler http.Handler, change func(*provider.Config)) (*provider.OpenAI, *httptest.Server) {
	t.Helper()
	server := httptest.NewServer(handler)
	c := provider.Config{
		Name: "test", BaseURL: server.URL + "/v1", APIKey: creto.NewSecret(apiKey),
		Capabilities: inference.Capabilities{Streaming: true, Tools: true, Embeddings: true, Models: []string{"*"}},
	}
	if change != nil {
		change(&c)
	}
	client, err := provider.NewOpenAI(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		server.CloseClientConnections()
		server.Close()
	})
	return client, server
}

func TestConformance(t *testing.T) {
	inferencetest.Run(t, func(t *testing.T) inference.Model {
		client, _ := open(t, upstream{}, nil)
		return client
	})
}

func TestConformanceWithoutUsage(t *testing.T) {
	inferencetest.Run(t, func(t *testing.T) inference.Model {
		client, _ := open(t, upstream{noUsage: true}, func(c *provider.Config) { c.Capabilities.Embeddings = false })
		return client
	})
}
