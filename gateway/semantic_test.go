package gateway_test

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/gateway"
	"creto.dev/inference"
	"creto.dev/inference/cache"
	"creto.dev/inference/localinference"
	"creto.dev/inference/provider"
	"creto.dev/internal/llamacpptest"
)

// vectors is a provider of embed-1: each word of a text, whatever its case, points in a
// direction of its own. Texts with the same words lie at one place.
func vectors(t testing.TB, name string, asked *atomic.Int32) inference.Model {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var in struct{ Input []string }
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/v1/embeddings" || json.Unmarshal(body, &in) != nil {
			t.Errorf("asked %s %s", r.URL.Path, body)
		}
		var data []string
		for i, text := range in.Input {
			at := make([]int, 64)
			for _, word := range strings.FieldsFunc(strings.ToLower(text), func(c rune) bool { return strings.ContainsRune(" ?.!,", c) }) {
				sum := fnv.New32a()
				_, _ = io.WriteString(sum, word)
				at[sum.Sum32()%64]++
			}
			vector, _ := json.Marshal(at)
			data = append(data, fmt.Sprintf(`{"object":"embedding","index":%d,"embedding":%s}`, i, vector))
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"object":"list","model":"embed-1","data":[%s],"usage":{"prompt_tokens":7,"total_tokens":7}}`, strings.Join(data, ","))
	}))
	t.Cleanup(server.Close)
	return must[*provider.OpenAI](t)(provider.NewOpenAI(provider.Config{Name: name, BaseURL: server.URL + "/v1", Capabilities: inference.Capabilities{Embeddings: true, Models: []string{"embed-1"}}}))
}

// likened is a house that finds answers to what is alike, whose vectors come from a
// provider that is local or not.
func likened(t *testing.T, cfg gateway.Config, local bool, allow ...string) (h *house, calls func() int32, asked *atomic.Int32) {
	t.Helper()
	up, answered := named(t, "up", http.StatusOK, "")
	asked = new(atomic.Int32)
	router := must[*localinference.Router](t)(localinference.New(localinference.Config{}, []localinference.Provider{up, {Keys: []inference.Model{vectors(t, "vectors", asked)}, Local: local}}, nil))
	answers := must[*cache.Router](t)(cache.New(cache.Config{
		Rules:    []cache.Rule{{Models: []string{"echo-*"}, Unclassified: true, Classifications: []inference.Classification{"public"}, Semantic: true}},
		Semantic: cache.Semantic{Model: "embed-1"},
	}, router))
	cfg.Semantic = true
	return openRouter(t, cfg, answers, allow...), answered.Load, asked
}

func question(text string) string {
	return `{"model":"echo-1","messages":[{"role":"user","content":"` + text + `"}],"temperature":0`
}

// status sends a request and returns what its answer says of the cache.
func (h *house) cacheStatus(t *testing.T, text string) string {
	t.Helper()
	_, reader := h.raw(t, text)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK || !strings.Contains(string(body), "from up") {
		t.Fatalf("answer %d %s", response.StatusCode, body)
	}
	return response.Header.Get("Cache-Status")
}

const similar = "creto; hit; detail=semantic; similarity=1.000"

// An answer to what is alike is a call as any, decided on and recorded as what it is;
// so is that for the vectors. In each dialect, whole or streamed.
func TestSemanticCache(t *testing.T) {
	for _, test := range []struct{ name, path, rest string }{
		{"whole", "/v1/chat/completions", "}"}, {"streamed", "/v1/chat/completions", `,"stream":true}`},
		{"Anthropic's", "/v1/messages", `,"max_tokens":9}`}, {"Anthropic's, streamed", "/v1/messages", `,"max_tokens":9,"stream":true}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, calls, asked := likened(t, gateway.Config{}, true, anyModel)
			for i, step := range []struct {
				text, status string
				calls, asked int32
			}{
				{"What is the capital of France?", "", 1, 0}, {"what is the capital of France", similar, 1, 1}, {"What is the capital of Germany?", "", 2, 1},
				{"What is the capital of France?", "creto; hit", 2, 1},
			} {
				got := h.cacheStatus(t, post(question(step.text)+test.rest, test.path))
				if got != step.status || calls() != step.calls || asked.Load() != step.asked {
					t.Errorf("step %d: %q, the provider was asked %d times, that of vectors %d; want %+v", i, got, calls(), asked.Load(), step)
				}
				h.records(t, creto.CallModel, i+1+int(asked.Load()))
			}
			var seen []string
			for _, r := range h.records(t, creto.CallModel, 5) {
				seen = append(seen, fmt.Sprintf("%s cache=%s similarity=%s purpose=%s provider=%s tokens=%d %s", r.Resource, r.Detail["cache"], r.Detail["similarity"], r.Detail["purpose"], r.Detail["provider"], r.Usage.PromptTokens, r.Outcome))
			}
			want := []string{
				"Model::echo-1 cache=hit similarity= purpose= provider=up tokens=0 success", "Model::echo-1 cache= similarity= purpose= provider=up tokens=9 success",
				"Model::echo-1 cache=semantic similarity=1.000 purpose= provider=up tokens=0 success", "Model::embed-1 cache= similarity= purpose=cache provider=vectors tokens=7 success",
				"Model::echo-1 cache= similarity= purpose= provider=up tokens=9 success",
			}
			if got, want := strings.Join(seen, "\n"), strings.Join(want, "\n"); got != want {
				t.Errorf("recorded\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// Where nobody may see the text who may not see the request, where policy does not
// permit it or wants a human, and where the session is tainted, nothing is alike; the
// answer comes from the provider.
func TestSemanticCacheRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		cfg    gateway.Config
		local  bool
		allow  []string
		first  string
		denied int // records
	}{
		"vectors are a cloud's that the request may not reach": {allow: []string{anyModel}},
		"policy does not permit it":                            {local: true, allow: []string{"call_model=echo-1"}, denied: 1},
		"policy wants a human":                                 {local: true, allow: []string{"call_model=echo-1", "ask call_model=embed-1"}, denied: 1},
		"the session is tainted":                               {cfg: protected(gateway.Config{}), local: true, allow: []string{anyModel}, first: suspect},
	} {
		t.Run(name, func(t *testing.T) {
			h, calls, asked := likened(t, test.cfg, test.local, test.allow...)
			if test.first != "" {
				h.cacheStatus(t, post(question(test.first)+"}", "/v1/chat/completions"))
			}
			before := calls()
			for i, text := range []string{"What is it?", "what is it", "Please, what is it"} {
				if got := h.cacheStatus(t, post(question(text)+"}", "/v1/chat/completions")); got != "" || calls() != before+int32(i)+1 {
					t.Errorf("%q: %q, the provider was asked %d times", text, got, calls()-before)
				}
			}
			if asked.Load() != 0 {
				t.Errorf("vectors were asked for %d times", asked.Load())
			}
			denied := 0
			n := int(calls()) + test.denied
			if name == "vectors are a cloud's that the request may not reach" {
				n++ // the call that failed
			}
			for _, r := range h.records(t, creto.CallModel, n) {
				if r.Outcome == audit.Denied {
					denied++
				}
			}
			if denied != test.denied {
				t.Errorf("%d records of denials, want %d", denied, test.denied)
			}
		})
	}
}

// A tainted session gives nothing to what is alike, once it is clean, and takes nothing.
func TestSemanticCacheTaint(t *testing.T) {
	h, calls, _ := likened(t, protected(gateway.Config{}), true, anyModel)
	ask := func(text string) string { return h.cacheStatus(t, post(question(text)+"}", "/v1/chat/completions")) }
	if got := ask("What is it?"); got != "" {
		t.Errorf("first: %q", got)
	}
	ask(suspect)
	if got := ask("what is it"); got != "" || calls() != 3 {
		t.Errorf("tainted: %q after %d calls", got, calls())
	}
	if err := h.taints.Ended(t.Context(), "run-1"); err != nil {
		t.Fatal(err)
	}
	if got := ask("What  is it"); got != similar || calls() != 3 {
		t.Errorf("clean: %q after %d calls", got, calls())
	}
	if got := ask(strings.TrimSuffix(suspect, ".")); got != "" {
		t.Errorf("what is like the attack: %q", got)
	}
}

// With vectors of a real engine. Its model has random weights, and finds few texts alike;
// these it does, by 0.95.
func TestSemanticCacheLlamaCpp(t *testing.T) {
	server := llamacpptest.Start(t)
	m := must[*provider.OpenAI](t)(provider.NewOpenAI(provider.Config{
		Name: "llamacpp", BaseURL: server.URL, APIKey: server.APIKey, Capabilities: inference.Capabilities{Embeddings: true, Models: []string{"random-*"}},
	}))
	t.Cleanup(func() { _ = m.Close() })
	router := must[*localinference.Router](t)(localinference.New(localinference.Config{}, []localinference.Provider{{Keys: []inference.Model{m}}}, nil))
	answers := must[*cache.Router](t)(cache.New(cache.Config{Rules: []cache.Rule{{Unclassified: true, Semantic: true}}, Semantic: cache.Semantic{Model: llamacpptest.ModelName, Threshold: 0.9}}, router))
	h := openRouter(t, gateway.Config{Semantic: true}, answers, anyModel)
	ask := func(text string) (header, body string) {
		t.Helper()
		_, reader := h.raw(t, post(fmt.Sprintf(`{"model":%q,"max_tokens":8,"temperature":0,"messages":[{"role":"user","content":%q}]}`, llamacpptest.ModelName, text), "/v1/chat/completions"))
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := io.ReadAll(response.Body)
		var said struct{ Choices []json.RawMessage }
		if err := json.Unmarshal(raw, &said); err != nil || response.StatusCode != http.StatusOK || len(said.Choices) != 1 {
			t.Fatalf("answer %d %s", response.StatusCode, raw)
		}
		return response.Header.Get("Cache-Status"), string(said.Choices[0])
	}
	_, first := ask("policy stone policy set policy stone policy set")
	header, second := ask("hello policy stone policy set policy stone policy set")
	if !strings.HasPrefix(header, "creto; hit; detail=semantic; similarity=") || first != second {
		t.Errorf("the answer says %q; answered %s and %s", header, first, second)
	}
	vectors := 0
	for _, r := range h.records(t, creto.CallModel, 3) {
		if r.Detail["purpose"] == "cache" {
			vectors++
			if r.Outcome != audit.Success || r.Usage == nil || r.Usage.PromptTokens < 4 || r.Detail["provider"] != "llamacpp" {
				t.Errorf("recorded %+v with usage %+v", r, r.Usage)
			}
		}
	}
	if vectors != 1 {
		t.Errorf("%d records of vectors", vectors)
	}
	if header, _ := ask("refund seven hello"); header != "" {
		t.Errorf("another text: %q", header)
	}
}
