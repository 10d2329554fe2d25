package gateway_test

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/gateway"
	"creto.dev/inference"
	"creto.dev/inference/localinference"
	"creto.dev/inference/provider"
)

// named is an upstream that answers with a status, and its name, and counts.
func named(t *testing.T, name string, status int, kind string) (localinference.Provider, *atomic.Int32) {
	var calls atomic.Int32
	m := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		body, _ := io.ReadAll(r.Body)
		if status != http.StatusOK {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"error":{"message":"x","code":"`+kind+`"}}`)
			return
		}
		if strings.Contains(string(body), `"stream":true`) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, piece("from "+name, `"stop"`)+usagePiece+"data: [DONE]\n\n")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"id":"1","model":"echo-1","choices":[{"index":0,"message":{"role":"assistant","content":"from `+name+`"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}`)
	})
	return localinference.Provider{Keys: []inference.Model{renamed{m.(*provider.OpenAI), name}}}, &calls
}

// renamed has a name of its own.
type renamed struct {
	*provider.OpenAI
	name string
}

func (r renamed) ID() string { return r.name }

// Who answered, as what and after how many attempts is recorded, once, with what was
// used once.
func TestRoute(t *testing.T) {
	for _, stream := range []string{"false", "true"} {
		down, downCalls := named(t, "down", http.StatusServiceUnavailable, "")
		up, upCalls := named(t, "up", http.StatusOK, "")
		here, hereCalls := named(t, "here", http.StatusOK, "")
		here.Local = true
		h := openRouter(t, gateway.Config{}, must[*localinference.Router](t)(localinference.New(localinference.Config{
			FallbackToLocal: true, LocalClassifications: []inference.Classification{"restricted"}, Tenant: creto.DefaultTenant,
			Routes: []localinference.Route{
				{Models: []string{"big-*"}, Policies: []string{"another/*"}, Targets: []localinference.Target{{Provider: "down"}}},
				{Models: []string{"big-*"}, Policies: []string{"bot/*"}, Targets: []localinference.Target{{Provider: "up", Model: "echo-1"}}},
				{Models: []string{"alias"}, Targets: []localinference.Target{{Provider: "down"}, {Provider: "up", Model: "echo-1"}}},
			},
		}, []localinference.Provider{down, up, here}, nil)), anyModel)
		ask := func(model, class, want string) {
			t.Helper()
			body := `{"model":"` + model + `","messages":[{"role":"user","content":"hello"}],"stream":` + stream + "}"
			head := post(body, "/v1/chat/completions")
			if class != "" {
				head = post(body, "/v1/chat/completions", gateway.ClassificationHeader+": "+class)
			}
			if status, answer := h.ask(t, head); status != http.StatusOK || !strings.Contains(answer, want) {
				t.Errorf("stream %s, %s, %s: %d %s; want %s", stream, model, class, status, answer, want)
			}
		}
		ask("echo-1", "", "from up")
		ask("alias", "", "from up")
		ask("big-1", "", "from up") // by the policy that permits it
		ask("echo-1", "restricted", "from here")
		if n := downCalls.Load(); n != 5 { // then its circuit is open
			t.Errorf("down was called %d times", n)
		}
		if upCalls.Load() != 3 || hereCalls.Load() != 1 {
			t.Errorf("up was called %d times, here %d", upCalls.Load(), hereCalls.Load())
		}
		records := h.records(t, creto.CallModel, 4)
		seen := map[string]int{}
		for _, r := range records {
			seen[r.Resource+" "+r.Detail["provider"]+" "+r.Detail["model"]+" "+r.Detail["attempts"]+" "+r.Detail["classification"]]++
			if r.Outcome != audit.Success || r.Usage == nil || *r.Usage != (audit.Usage{PromptTokens: 9, CompletionTokens: 3}) {
				t.Errorf("recorded %+v with usage %+v", r, r.Usage)
			}
		}
		for _, want := range []string{"Model::echo-1 up  4 ", "Model::alias up echo-1 3 ", "Model::big-1 up echo-1  ", "Model::echo-1 here   restricted"} {
			if seen[want] != 1 {
				t.Errorf("recorded %v, want %q", seen, want)
			}
		}
		// Two words on it are none.
		body := hello + "}"
		for _, lines := range [][]string{{gateway.ClassificationHeader + ": public", gateway.ClassificationHeader + ": restricted"}, {gateway.ClassificationHeader + ": Top Secret"}} {
			if status, answer := h.ask(t, post(body, "/v1/chat/completions", lines...)); status != http.StatusBadRequest || codeIn(answer) != "invalid_argument" {
				t.Errorf("%q: %d %s", lines, status, answer)
			}
		}
	}
}

// What a provider filtered is not shown to another.
func TestRouteFiltered(t *testing.T) {
	filter, _ := named(t, "filter", http.StatusBadRequest, "content_filter")
	up, calls := named(t, "up", http.StatusOK, "")
	h := openRouter(t, gateway.Config{}, must[*localinference.Router](t)(localinference.New(localinference.Config{}, []localinference.Provider{filter, up}, nil)), anyModel)
	if status, body := chat(h, t, hello+"}"); status != http.StatusForbidden || codeIn(body) != "content_filter" || calls.Load() != 0 {
		t.Errorf("answer %d %s; the other was asked %d times", status, body, calls.Load())
	}
	if r := h.records(t, creto.CallModel, 1)[0]; r.Detail["provider"] != "filter" || r.Usage != nil {
		t.Errorf("recorded %+v", r)
	}
}
