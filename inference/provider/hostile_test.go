package provider_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
)

// every returns a client of each kind, all with one upstream, over TLS, without
// which Bedrock's sends no key, and with the planted key.
func every(t *testing.T, upstream http.HandlerFunc) map[string]inference.Model {
	t.Helper()
	server := httptest.NewUnstartedServer(upstream)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	server.StartTLS()
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	key := creto.NewSecret(apiKey)
	c := provider.Config{Name: "p", BaseURL: server.URL, APIKey: key, Transport: server.Client().Transport, Capabilities: inference.Capabilities{Streaming: true, Embeddings: true, Models: []string{"*"}}}
	all := map[string]inference.Model{}
	add := func(name string, m inference.Model, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all[name] = m
		if c, ok := m.(io.Closer); ok {
			t.Cleanup(func() { _ = c.Close() })
		}
	}
	openai, err := provider.NewOpenAI(c)
	add("openai", openai, err)
	claude, err := provider.NewAnthropic(provider.AnthropicConfig{Config: c})
	add("anthropic", claude, err)
	azure, err := provider.NewAzure(provider.AzureConfig{Config: c})
	add("azure", azure, err)
	bedrock, err := provider.NewBedrock(t.Context(), provider.BedrockConfig{Config: c, Region: "eu-central-1"})
	add("bedrock", bedrock, err)
	vertex, err := provider.NewVertex(provider.VertexConfig{Config: c, Project: "p-1", Location: "global"})
	add("vertex", vertex, err)
	ollama, err := provider.NewOllama(c)
	add("ollama", ollama, err)
	return all
}

// calls are all ways to ask a model.
func calls(ctx context.Context, m inference.Model, r inference.Request) map[string]error {
	_, complete := m.Complete(ctx, r)
	s, stream := m.CompleteStream(ctx, r)
	if stream == nil {
		_, stream = s.Next()
		_ = s.Close()
	}
	_, embed := m.Embed(ctx, inference.EmbedRequest{Model: r.Model, Input: []string{"x"}, Metadata: r.Metadata})
	errs := map[string]error{"complete": complete, "stream": stream, "embed": embed}
	if c, ok := m.(inference.TokenCounter); ok {
		_, errs["count"] = c.CountTokens(ctx, r)
	}
	return errs
}

// An upstream that quotes what it got says nothing of the key to the log.
func TestKeyIsNotQuoted(t *testing.T) {
	for _, status := range []int{400, 401, 403, 429, 500} {
		all := every(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			text := fmt.Sprintf("Incorrect API key provided: %s", r.Header)
			_, _ = fmt.Fprintf(w, `{"error":{"message":%q,"type":%q,"code":%q},"message":%q,"__type":"ValidationException"}`, text, apiKey, apiKey, text)
		})
		for name, m := range all {
			for call, err := range calls(t.Context(), m, inferencetest.Ask("x")) {
				if err == nil || strings.Contains(err.Error(), apiKey) {
					t.Errorf("%s, %s, %d: %v", name, call, status, err)
				}
			}
		}
	}
}

// A model's name reaches no other path, query or host than that of a model.
func TestHostileModelNames(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	all := every(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.RequestURI)
		w.WriteHeader(500)
	})
	allowed := func(kind, name, target string) bool {
		switch kind {
		case "openai":
			return target == "/chat/completions" || target == "/embeddings"
		case "anthropic":
			return target == "/messages" || target == "/messages/count_tokens"
		case "ollama":
			return target == "/api/chat" || target == "/api/embed"
		case "bedrock": // whose names may hold colons, and slashes, which are no part of the path
			rest, ok := strings.CutPrefix(target, "/model/")
			model, call, _ := strings.Cut(rest, "/")
			return ok && !strings.Contains(name, "..") && !strings.ContainsAny(model, "?#") && slices.Contains([]string{"converse", "converse-stream", "count-tokens"}, call)
		}
		return false
	}
	for _, name := range []string{
		"../../x", "x/../../y", "..", ".", "a/..", "..%2f..%2fx", "x%2f..%2fy", "x?api-version=1", "x#y", "x\r\nHost: evil", "x y", "x\x00", "//evil/x", "http://evil/x",
		"x;y", "@evil", "x:streamGenerateContent", "\xff", "x\\..\\y", strings.Repeat("x", 600),
	} {
		for kind, m := range all {
			mu.Lock()
			seen = nil
			mu.Unlock()
			r := inferencetest.Ask("x")
			r.Model = name
			for call, err := range calls(t.Context(), m, r) {
				if err == nil {
					t.Errorf("%s, %s, %q: no error", kind, call, name)
				}
			}
			mu.Lock()
			for _, target := range seen {
				if !allowed(kind, name, target) {
					t.Errorf("%s asked for %q with the model %q", kind, target, name)
				}
			}
			mu.Unlock()
		}
	}
}

// What cannot be a header is the caller's mistake, not the provider's failure,
// which would open its breaker for everybody.
func TestHostileIdempotencyKey(t *testing.T) {
	all := every(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	for _, kind := range []string{"openai", "azure", "anthropic", "ollama"} { // the others have no such header
		r := inferencetest.Ask("x")
		r.Metadata.IdempotencyKey = "a\r\nX-Evil: 1"
		for call, err := range calls(t.Context(), all[kind], r) {
			if kind == "anthropic" && (call == "embed" || call == "count") {
				continue
			}
			if !errors.Is(err, fault.InvalidArgument) {
				t.Errorf("%s, %s: %v", kind, call, err)
			}
		}
	}
}

// A token that was revoked before its end is replaced within the call; who has no
// good one any more is passed over as one whose key is refused, with the token
// endpoint asked no more often than the key is tried.
func TestTokenRefused(t *testing.T) {
	var issued, asked atomic.Int32
	var good atomic.Value // of the token that is accepted
	good.Store("")
	gone := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path == "/token" && gone:
			w.WriteHeader(401)
			_, _ = io.WriteString(w, `{"error":"invalid_client"}`)
		case r.URL.Path == "/token":
			_, _ = fmt.Fprintf(w, `{"access_token":"t%d","expires_in":3600}`, issued.Add(1))
		case r.Header.Get("Authorization") != good.Load():
			asked.Add(1)
			w.WriteHeader(401)
			_, _ = fmt.Fprintf(w, `{"error":{"message":"%s is revoked"}}`, r.Header.Get("Authorization"))
		default:
			_, _ = io.WriteString(w, `{"choices":[{"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}`)
		}
	}))
	defer server.Close()
	m, err := provider.NewAzure(provider.AzureConfig{
		Config: provider.Config{Name: "p", BaseURL: server.URL},
		Entra:  provider.EntraConfig{ClientID: "c", ClientSecret: creto.NewSecret("s"), TokenURL: server.URL + "/token"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	good.Store("Bearer t2")
	if _, err := m.Complete(t.Context(), inferencetest.Ask("x")); err != nil || issued.Load() != 2 || asked.Load() != 1 {
		t.Errorf("a revoked token: %v, %d tokens, %d refusals", err, issued.Load(), asked.Load())
	}
	good.Store("none")
	if _, err := m.Complete(t.Context(), inferencetest.Ask("x")); !errors.Is(err, inference.ErrKeyRefused) || strings.Contains(err.Error(), "t2") || strings.Contains(err.Error(), "t3") || issued.Load() != 3 || asked.Load() != 3 {
		t.Errorf("no token is good: %v, %d tokens, %d refusals", err, issued.Load(), asked.Load())
	}
	gone = true
	if _, err := m.Complete(t.Context(), inferencetest.Ask("x")); !errors.Is(err, inference.ErrKeyRefused) || fault.CodeOf(err) != fault.InferenceProviderError {
		t.Errorf("no token is given: %v", err)
	}
}

// Nor does an error in the middle of a stream.
func TestKeyIsNotQuotedInStreams(t *testing.T) {
	all := every(t, func(w http.ResponseWriter, r *http.Request) {
		media, format := "text/event-stream", "data: {\"type\":\"error\",\"error\":{\"message\":%q,\"type\":%q}}\n\n"
		if r.URL.Path == "/api/chat" {
			media, format = "application/x-ndjson", "{\"error\":{\"message\":%q,\"type\":%q}}\n"
		}
		w.Header().Set("Content-Type", media)
		_, _ = fmt.Fprintf(w, format, fmt.Sprint(r.Header), apiKey)
	})
	for name, m := range all {
		s, err := m.CompleteStream(t.Context(), inferencetest.Ask("x"))
		if err == nil {
			_, err = s.Next()
			_ = s.Close()
		}
		if err == nil || errors.Is(err, io.EOF) || strings.Contains(err.Error(), apiKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
