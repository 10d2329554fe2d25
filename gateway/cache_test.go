package gateway_test

import (
	"net/http"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/gateway"
	"creto.dev/inference"
	"creto.dev/inference/cache"
	"creto.dev/inference/localinference"
)

// kept is a house whose answers are kept, and how often its provider was asked.
func kept(t *testing.T, cfg gateway.Config, allow ...string) (*house, func() int32) {
	t.Helper()
	up, calls := named(t, "up", http.StatusOK, "")
	local := must[*localinference.Router](t)(localinference.New(localinference.Config{}, []localinference.Provider{up}, nil))
	answers := must[*cache.Router](t)(cache.New(cache.Config{Rules: []cache.Rule{{Unclassified: true, Classifications: []inference.Classification{"public"}}}}, local))
	return openRouter(t, cfg, answers, allow...), calls.Load
}

const zero = `,"temperature":0`

// A kept answer is a call like any other, permitted and recorded, but for who answers
// and what that uses, in each dialect, whole or streamed.
func TestCache(t *testing.T) {
	for _, test := range []struct{ name, path, body, text string }{
		{"whole", "/v1/chat/completions", hello + zero + "}", "from up"},
		{"streamed", "/v1/chat/completions", hello + zero + `,"stream":true}`, "from up"},
		{"streamed, with usage", "/v1/chat/completions", hello + zero + `,"stream":true,"stream_options":{"include_usage":true}}`, "from up"},
		{"Anthropic's, whole", "/v1/messages", message + zero + "}", "from up"},
		{"Anthropic's, streamed", "/v1/messages", message + zero + `,"stream":true}`, "from up"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, calls := kept(t, gateway.Config{}, anyModel)
			var bodies []string
			for i := range 3 {
				status, body := h.ask(t, post(test.body, test.path))
				if status != http.StatusOK || !strings.Contains(body, test.text) {
					t.Fatalf("answer %d %s", status, body)
				}
				bodies = append(bodies, body)
				h.records(t, creto.CallModel, i+1) // a record may come after its answer
			}
			if calls() != 1 || bodies[1] != bodies[2] || strings.Count(bodies[0], "\n\n") != strings.Count(bodies[1], "\n\n") {
				t.Errorf("%d calls; answers %q", calls(), bodies)
			}
			for i, r := range h.records(t, creto.CallModel, 3) { // the newest first
				hit := i < 2
				used := audit.Usage{PromptTokens: 9, CompletionTokens: 3}
				if hit {
					used = audit.Usage{}
				}
				if r.Outcome != audit.Success || r.Usage == nil || *r.Usage != used || (r.Detail["cache"] == "hit") != hit || r.Detail["provider"] != "up" {
					t.Errorf("record %d: %+v with usage %+v", i, r, r.Usage)
				}
			}
		})
	}
}

// Who asks for no kept answer gets none and leaves none; who gets one is told.
func TestCacheControl(t *testing.T) {
	h, calls := kept(t, gateway.Config{}, anyModel)
	before := int32(0)
	for i, test := range []struct {
		headers []string
		asked   int32 // of the provider
	}{
		{[]string{"Cache-Control: no-store"}, 1}, {nil, 1}, {nil, 0}, {[]string{"cache-control: max-age=60 , No-Store"}, 1}, {[]string{"Cache-Control: no-cache"}, 1},
		{[]string{"Cache-Control: max-age=60"}, 0}, {[]string{"Cache-Control: a", "Cache-Control: no-store"}, 1},
		{[]string{gateway.ClassificationHeader + ": restricted"}, 1}, {[]string{gateway.ClassificationHeader + ": restricted"}, 1}, {[]string{gateway.ClassificationHeader + ": public"}, 1},
	} {
		_, reader := h.raw(t, post(hello+zero+"}", "/v1/chat/completions", test.headers...))
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		told := response.Header.Get("Cache-Status")
		if n := calls() - before; response.StatusCode != http.StatusOK || n != test.asked || (told == "creto; hit") != (n == 0) {
			t.Errorf("request %d, %q: %d, the provider was asked %d times, the status of the cache is %q", i, test.headers, response.StatusCode, n, told)
		}
		before = calls()
	}
}

// What is denied is denied, whatever is kept.
func TestCacheIsBelowTheGate(t *testing.T) {
	h, calls := kept(t, gateway.Config{}, "ask call_model=*")
	for i, approve := range []bool{true, false, true} {
		done := make(chan int, 1)
		go func() {
			status, _ := h.ask(t, post(hello+zero+"}", "/v1/chat/completions"))
			done <- status
		}()
		h.decide(t, approve)
		if status := <-done; (status == http.StatusOK) != approve || calls() != 1 {
			t.Errorf("request %d: %d; the provider was asked %d times", i, status, calls())
		}
	}
	records := h.records(t, creto.CallModel, 3)
	if records[1].Outcome != audit.Denied || records[1].Detail["cache"] != "" || records[0].Detail["cache"] != "hit" || len(records[0].Consents) != 1 {
		t.Errorf("recorded %+v", records)
	}
}
