package provider_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
)

// What says something of the key and nothing of the request is told apart.
func TestKeyRefused(t *testing.T) {
	for status, want := range map[int]bool{401: true, 402: true, 403: true, 400: false, 404: false, 429: false, 500: false} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		c := provider.Config{Name: "p", BaseURL: server.URL, APIKey: creto.NewSecret("k")}
		openai, err := provider.NewOpenAI(c)
		if err != nil {
			t.Fatal(err)
		}
		claude, err := provider.NewAnthropic(provider.AnthropicConfig{Config: c})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []inference.Model{openai, claude} {
			_, err := m.Complete(t.Context(), inferencetest.Ask("x"))
			if errors.Is(err, inference.ErrKeyRefused) != want || want && fault.CodeOf(err) != fault.InferenceProviderError {
				t.Errorf("%T, %d: %v", m, status, err)
			}
		}
		_, _ = openai.Close(), claude.Close()
		server.Close()
	}
}

// A local provider's redirect, or whatever else asks for another host, leads nowhere.
func TestLocal(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	for _, base := range []string{server.URL, "http://localhost", "https://[::1]/v1"} {
		m, err := provider.NewOpenAI(provider.Config{Name: "p", BaseURL: base, Local: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Health(t.Context()); (err == nil) != (base == server.URL) || errors.Is(err, fault.PermissionDenied) {
			t.Errorf("%s: Health = %v", base, err) // nobody listens at the others; that is another fault
		}
		_ = m.Close()
	}
}

// A local server is not had to fetch from inside the network where it stands, nor
// to pass on what it is asked.
func TestLocalStays(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(500)
	}))
	defer server.Close()
	for _, local := range []bool{true, false} {
		c := provider.Config{Name: "p", BaseURL: server.URL, Local: local, Capabilities: inference.Capabilities{Embeddings: true}}
		openai, err := provider.NewOpenAI(c)
		if err != nil {
			t.Fatal(err)
		}
		claude, err := provider.NewAnthropic(provider.AnthropicConfig{Config: c})
		if err != nil {
			t.Fatal(err)
		}
		ollama, err := provider.NewOllama(c)
		if err != nil {
			t.Fatal(err)
		}
		for name, body := range map[string]string{
			"an image":             `{"type":"image_url","image_url":{"url":"http://169.254.169.254/latest/meta-data"}}`,
			"a file":               `{"type":"image_url","image_url":{"url":"file:///etc/passwd"}}`,
			"in capitals":          `{"type":"image_url","image_url":{"url":" HTTP://intranet/"}}`,
			"no scheme":            `{"type":"image_url","image_url":{"url":"//intranet/x.png"}}`,
			"a video":              `{"type":"video_url","video_url":{"url":"http://intranet/"}}`,
			"deeper":               `{"type":"input_audio","input_audio":{"x":[{"y":"s3://bucket"}]}}`,
			"beside a text":        `{"type":"text","text":"x","audio_url":"http://intranet/"}`,
			"beside an image":      `{"type":"image_url","image_url":{"url":"data:image/png;base64,AA==","alternative":"http://intranet/"}}`,
			"beside the content":   "",
			"the image itself":     `{"type":"image_url","image_url":{"url":"data:image/png;base64,AA==","detail":"low"}}`,
			"a text of an address": `{"type":"text","text":"http://intranet/"}`,
		} {
			message := `{"role":"user","content":[` + body + `]}`
			if body == "" {
				message = `{"role":"user","content":"x","attachments":["http://intranet/"]}`
			}
			r, _, err := provider.DecodeOpenAIRequest([]byte(`{"model":"m","messages":[` + message + `]}`))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			before := asked.Load()
			_, err = openai.Complete(t.Context(), r)
			refused := local && name != "the image itself" && name != "a text of an address"
			if errors.Is(err, fault.InferenceNotSupported) != refused || (asked.Load() == before) != refused {
				t.Errorf("%s, local %v: %v", name, local, err)
			}
		}
		r, _, err := provider.DecodeAnthropicRequest([]byte(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"image","source":{"type":"url","url":"http://intranet/"}}]}]}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := claude.Complete(t.Context(), r); errors.Is(err, fault.InferenceNotSupported) != local {
			t.Errorf("Anthropic's dialect, local %v: %v", local, err)
		}
		for model, cloud := range map[string]bool{"gpt-oss:120b-cloud": true, "glm-5:cloud": true, "x/y:Cloud": true, "cloud": false, "my-cloud": false, "m:8b": false} {
			for _, m := range []inference.Model{openai, ollama} {
				q := inferencetest.Ask("x")
				q.Model = model
				for call, err := range calls(t.Context(), m, q) {
					if err == nil || errors.Is(err, fault.InferenceModelNotFound) != (local && cloud) {
						t.Errorf("%T, %s, %s, local %v: %v", m, call, model, local, err)
					}
				}
			}
		}
		_, _, _ = openai.Close(), claude.Close(), ollama.Close()
	}
}
