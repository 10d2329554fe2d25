package gateway_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/gateway"
	"creto.dev/inference"
	"creto.dev/inference/provider"
)

// embedder is an upstream that embeds, and keeps what it was asked.
func embedder(t testing.TB, asked *[]string) inference.Model {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		*asked = append(*asked, r.URL.Path+" "+string(body))
		var in struct{ Input []string }
		if err := json.Unmarshal(body, &in); err != nil {
			t.Errorf("asked %s: %v", body, err)
		}
		data := ""
		for i := range in.Input {
			data = fmt.Sprintf(`{"object":"embedding","index":%d,"embedding":[%d,-0.5]},`, i, i+1) + data // in another order
		}
		_, _ = fmt.Fprintf(w, `{"object":"list","model":"m-1","data":[%s],"usage":{"prompt_tokens":7,"total_tokens":7}}`, data[:max(0, len(data)-1)])
	}))
	t.Cleanup(server.Close)
	m, err := provider.NewOpenAI(provider.Config{Name: "vectors", BaseURL: server.URL + "/v1", Capabilities: inference.Capabilities{Embeddings: true, Models: []string{"m", "n"}}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestEmbeddings(t *testing.T) {
	var asked []string
	h := open(t, gateway.Config{}, []inference.Model{embedder(t, &asked)}, "call_model=m")
	for body, want := range map[string]string{
		`{"model":"m","input":"x"}`: `{"data":[{"embedding":[1,-0.5],"index":0,"object":"embedding"}],"model":"m-1","object":"list","usage":{"prompt_tokens":7,"total_tokens":7}}`,
		`{"model":"m","input":["x","y"],"encoding_format":"float","dimensions":2,"user":"u"}`: `{"data":[{"embedding":[1,-0.5],"index":0,"object":"embedding"},{"embedding":[2,-0.5],"index":1,"object":"embedding"}],"model":"m-1","object":"list","usage":{"prompt_tokens":7,"total_tokens":7}}`,
		// 1 and -0.5 as IEEE 754 has them.
		`{"model":"m","input":["x"],"encoding_format":"base64"}`: `{"data":[{"embedding":"` + base64.StdEncoding.EncodeToString([]byte{0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf}) + `","index":0,"object":"embedding"}],"model":"m-1","object":"list","usage":{"prompt_tokens":7,"total_tokens":7}}`,
	} {
		if status, got := h.ask(t, post(body, "/v1/embeddings")); status != http.StatusOK || got != want {
			t.Errorf("%s: answer %d %s", body, status, got)
		}
	}
	for _, want := range []string{
		`/v1/embeddings {"encoding_format":"float","input":["x"],"model":"m"}`,
		`/v1/embeddings {"dimensions":2,"encoding_format":"float","input":["x","y"],"model":"m","user":"u"}`,
	} {
		if !slices.Contains(asked, want) {
			t.Errorf("asked were %q, not %s", asked, want)
		}
	}
	for _, r := range h.records(t, creto.CallModel, 3) {
		if r.Outcome != audit.Success || r.Resource != "Model::m" || r.Usage == nil || *r.Usage != (audit.Usage{PromptTokens: 7}) || r.Detail["provider"] != "vectors" {
			t.Errorf("recorded %+v with usage %+v", r, r.Usage)
		}
	}
}

func TestEmbeddingsRefuse(t *testing.T) {
	var asked []string
	h := open(t, gateway.Config{}, []inference.Model{upstream(t, http.NotFound), embedder(t, &asked)}, "call_model=m", "call_model=big-1")
	for name, test := range map[string]struct {
		body, code string
		status     int
	}{
		"not JSON":        {`{"model"`, "invalid_argument", 400},
		"not UTF-8":       {"{\"model\":\"m\",\"input\":\"\xff\"}", "invalid_argument", 400},
		"no model":        {`{"input":"x"}`, "invalid_argument", 400},
		"no input":        {`{"model":"m"}`, "invalid_argument", 400},
		"no text":         {`{"model":"m","input":[]}`, "invalid_argument", 400},
		"an empty text":   {`{"model":"m","input":["x",""]}`, "invalid_argument", 400},
		"another case":    {`{"model":"m","input":"x","Input":"y"}`, "invalid_argument", 400},
		"tokens":          {`{"model":"m","input":[1,2]}`, "inference.not_supported", 501},
		"lists of tokens": {`{"model":"m","input":[[1,2],[3]]}`, "inference.not_supported", 501},
		"mixed":           {`{"model":"m","input":["x",1]}`, "invalid_argument", 400},
		"format":          {`{"model":"m","input":"x","encoding_format":"int8"}`, "invalid_argument", 400},
		"dimensions":      {`{"model":"m","input":"x","dimensions":-1}`, "invalid_argument", 400},
		"denied":          {`{"model":"n","input":"x"}`, "authz.denied", 403},
		"not by this one": {`{"model":"big-1","input":"x"}`, "inference.not_supported", 501},
	} {
		if status, body := h.ask(t, post(test.body, "/v1/embeddings")); status != test.status || codeIn(body) != test.code {
			t.Errorf("%s: answer %d %s; want %d %s", name, status, body, test.status, test.code)
		}
	}
	h.records(t, creto.CallModel, 2)
	if len(asked) > 0 {
		t.Errorf("asked were %q", asked)
	}
}

// Policies tell vectors from answers, consent to one is none to the other, and what
// is embedded is judged as what somebody will read.
func TestEmbeddingsDecided(t *testing.T) {
	var asked []string
	h := openWith(t, gateway.Config{}, []inference.Model{embedder(t, &asked)}, `permit (principal, action == Creto::Action::"call_model", resource) when { context has operation && context.operation == "embeddings" && context.messages == 2 };`)
	if status, body := h.ask(t, post(`{"model":"m","input":["x","y"]}`, "/v1/embeddings")); status != http.StatusOK {
		t.Errorf("permitted: %d %s", status, body)
	}
	for path, body := range map[string]string{"/v1/embeddings": `{"model":"m","input":["x"]}`, "/v1/chat/completions": `{"model":"m","messages":[{"role":"user","content":"x"},{"role":"user","content":"x"}]}`} {
		if status, body := h.ask(t, post(body, path)); status != http.StatusForbidden {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	h = open(t, protected(gateway.Config{}), []inference.Model{embedder(t, &asked)}, "ask call_model=m")
	if status, body := h.ask(t, post(`{"model":"m","input":["good","`+attack+`"]}`, "/v1/embeddings")); status != http.StatusForbidden || codeIn(body) != "inference.prompt_injection" {
		t.Errorf("an attack: %d %s", status, body)
	}
	done := make(chan int, 1)
	go func() {
		status, _ := h.ask(t, post(`{"model":"m","input":"x"}`, "/v1/embeddings"))
		done <- status
	}()
	if r := h.decide(t, true); string(r.Args) != `{"embeddings":{"encoding_format":"float","input":["x"],"model":"m"}}` {
		t.Errorf("shown was %s", r.Args)
	}
	if status := <-done; status != http.StatusOK {
		t.Errorf("answer %d", status)
	}
}
