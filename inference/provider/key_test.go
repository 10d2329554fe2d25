package provider_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
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
