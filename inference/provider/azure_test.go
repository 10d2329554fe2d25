package provider_test

import (
	"context"
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
)

// resource is a server of Azure OpenAI: a deployment named echo-dep, for those who
// bring its API key or the token.
type resource struct {
	v1    bool
	token string // "" wants the API key
}

func (u resource) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := r.Header
	if u.token == "" && (header.Get("Api-Key") != apiKey || header.Get("Authorization") != "") ||
		u.token != "" && (header.Get("Authorization") != "Bearer "+u.token || header.Get("Api-Key") != "") {
		refuse(w, 401, "401", "Access denied due to invalid subscription key "+header.Get("Api-Key"))
		return
	}
	version, prefix := r.URL.RawQuery, "/openai/deployments/"
	if u.v1 && version != "" || !u.v1 && version != "api-version=2024-10-21" {
		refuse(w, 404, "404", "Resource not found")
		return
	}
	if u.v1 {
		prefix = "/openai/v1/"
	}
	call, ok := strings.CutPrefix(r.URL.Path, prefix)
	deployment, rest, _ := strings.Cut(call, "/")
	switch {
	case r.URL.Path == strings.TrimSuffix(prefix, "deployments/")+"models":
		call = "models"
	case ok && u.v1:
	case !ok:
		http.NotFound(w, r)
		return
	case deployment != "echo-dep":
		refuse(w, 404, "DeploymentNotFound", "The API deployment for this resource does not exist.")
		return
	default:
		call = rest
	}
	r.URL.Path = "/v1/" + call
	r.Header.Set("Authorization", "Bearer "+apiKey)
	upstream{azure: true, model: "echo-dep"}.ServeHTTP(w, r)
}

// authority is a token endpoint of Entra ID.
type authority struct {
	asked atomic.Int32
	life  string // of a token, in seconds
	fail  atomic.Bool
}

func (a *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := a.asked.Add(1)
	want := map[string]string{"grant_type": "client_credentials", "client_id": "app-1", "client_secret": apiKey, "scope": provider.DefaultAzureScope}
	for name, value := range want {
		if r.PostFormValue(name) != value {
			respond(401, "application/json", `{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret `+apiKey+`"}`)(w, r)
			return
		}
	}
	if a.fail.Load() {
		respond(503, "application/json", `{"error":"temporarily_unavailable"}`, "Retry-After", "3")(w, r)
		return
	}
	respond(200, "application/json", fmt.Sprintf(`{"token_type":"Bearer","expires_in":%s,"ext_expires_in":3599,"access_token":"token-%d"}`, a.life, n))(w, r)
}

func openAzure(t testing.TB, h http.Handler, change func(*provider.AzureConfig)) *provider.Azure {
	t.Helper()
	server := httptest.NewServer(h)
	c := provider.AzureConfig{
		Config: provider.Config{
			Name: "test", BaseURL: server.URL, APIKey: creto.NewSecret(apiKey),
			Capabilities: inference.Capabilities{Streaming: true, Tools: true, Embeddings: true, Models: []string{"*"}},
		},
		Deployments: map[string]string{inferencetest.ModelName: "echo-dep"},
	}
	if change != nil {
		change(&c)
	}
	client, err := provider.NewAzure(c)
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

// withEntra makes a configuration one of an application that asks a for tokens.
func withEntra(t testing.TB, a *authority) func(*provider.AzureConfig) {
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	return func(c *provider.AzureConfig) {
		c.APIKey = creto.Secret{}
		c.Entra = provider.EntraConfig{ClientID: "app-1", ClientSecret: creto.NewSecret(apiKey), TokenURL: server.URL + "/tenant/oauth2/v2.0/token"}
	}
}

func azureOpener(t *testing.T, h http.Handler, change func(*provider.Config)) inference.Model {
	return openAzure(t, h, func(c *provider.AzureConfig) {
		if change != nil {
			change(&c.Config)
		}
	})
}

func TestAzureConformance(t *testing.T) {
	t.Run("dated", func(t *testing.T) {
		inferencetest.Run(t, func(t *testing.T) inference.Model { return openAzure(t, resource{}, nil) })
	})
	t.Run("v1", func(t *testing.T) {
		inferencetest.Run(t, func(t *testing.T) inference.Model {
			return openAzure(t, resource{v1: true}, func(c *provider.AzureConfig) { c.APIVersion = provider.AzureV1 })
		})
	})
	t.Run("entra", func(t *testing.T) {
		inferencetest.Run(t, func(t *testing.T) inference.Model {
			return openAzure(t, resource{token: "token-1"}, withEntra(t, &authority{life: "3599"}))
		})
	})
}

func TestAzureAnswers(t *testing.T) {
	inner := `{"error":{"message":"` + planted + `","code":"BadRequest","innererror":{"code":"ResponsibleAIPolicyViolation"}}}`
	holdAnswers(t, azureOpener, []answerCase{
		{"filter", 400, string(read(t, "testdata/azure/error-filter.json")), nil, fault.InferenceContentFiltered, 0},
		{"filter within", 400, inner, nil, fault.InferenceContentFiltered, 0},
		{"context", 400, openAIErrorBody("context_length_exceeded"), nil, fault.InferenceTokenLimitExceeded, 0},
		{"wrong operation", 400, openAIErrorBody("OperationNotSupported"), nil, fault.InferenceNotSupported, 0},
		{"no deployment", 404, openAIErrorBody("DeploymentNotFound"), nil, fault.InferenceModelNotFound, 0},
		{"429", 429, openAIErrorBody("429"), []string{"Retry-After", "7", "Retry-After-Ms", "6500"}, fault.InferenceRateLimited, 6500 * time.Millisecond},
		{"401", 401, openAIErrorBody("401"), nil, fault.InferenceProviderError, 0},
		{"403", 403, openAIErrorBody("PermissionDenied"), nil, fault.InferenceProviderError, 0},
		{"500", 500, openAIErrorBody("InternalServerError"), nil, fault.InferenceProviderUnavailable, 0},
		{"408", 408, openAIErrorBody("Timeout"), nil, fault.InferenceTimeout, 0},
	})
}

func TestAzureStreams(t *testing.T) {
	recorded := string(read(t, "testdata/azure/stream.sse"))
	filtered := strings.Replace(recorded, `"finish_reason":"stop"`, `"finish_reason":"content_filter"`, 1)
	holdStreams(t, azureOpener, "text/event-stream", []streamCase{
		{name: "complete", body: recorded, text: "Hello"},
		{name: "filtered", body: filtered, text: "Hello"},
		{name: "filter results only", body: recorded[:strings.Index(recorded, "\n\n")+2], want: fault.InferenceProviderUnavailable},
		{name: "truncated", body: recorded[:strings.Index(recorded, `data: {"choices":[{"content_filter_offsets`)], want: fault.InferenceProviderUnavailable, text: "Hello"},
		{name: "half closed", body: recorded[:strings.Index(recorded, `"finish_reason":"stop"`)], abort: true, want: fault.InferenceProviderUnavailable, text: "Hello"},
		{name: "a filter's error", body: "data: " + string(read(t, "testdata/azure/error-filter.json")) + "\n", want: fault.InferenceContentFiltered},
	})
	holdSilence(t, azureOpener, "text/event-stream", recorded[:strings.Index(recorded, "\n\n")+2])
	m := openAzure(t, respond(200, "text/event-stream", recorded), nil)
	s, err := m.CompleteStream(t.Context(), inferencetest.Ask("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, _, err := inferencetest.Collect(t, s); err != nil {
		t.Fatal(err)
	}
	if u := s.Usage(); u.Estimated || u.PromptTokens != 11 || u.CachedTokens != 8 || u.CompletionTokens != 1 {
		t.Errorf("usage = %+v, want what was counted", u)
	}
}

// TestAzureTokens holds that calls share a token, that one which was refused is
// dropped, and what a token endpoint's answers mean.
func TestAzureTokens(t *testing.T) {
	a := &authority{life: "3599"}
	m := openAzure(t, resource{token: "token-1"}, withEntra(t, a))
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if _, err := m.Complete(t.Context(), inferencetest.Ask("hello")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := a.asked.Load(); got != 1 {
		t.Errorf("33 calls asked for %d tokens, want 1", got)
	}

	b := &authority{life: "3599"}
	m = openAzure(t, resource{token: "token-2"}, withEntra(t, b))
	_, err := m.Complete(t.Context(), inferencetest.Ask("hello"))
	if err != nil || b.asked.Load() != 2 {
		t.Errorf("a refused token: %v, %d tokens, want a second one", err, b.asked.Load())
	}

	b.fail.Store(true)
	if _, err := m.Complete(t.Context(), inferencetest.Ask("hello")); err != nil {
		t.Errorf("with a token at hand: %v", err)
	}
	m = openAzure(t, resource{token: "token-1"}, withEntra(t, b))
	_, err = m.Complete(t.Context(), inferencetest.Ask("hello"))
	check(t, "no token endpoint", err, fault.InferenceProviderUnavailable, 3*time.Second)

	wrong := withEntra(t, &authority{life: "1"})
	m = openAzure(t, resource{token: "token-1"}, func(c *provider.AzureConfig) { wrong(c); c.Entra.ClientID = "other" })
	_, err = m.Complete(t.Context(), inferencetest.Ask("hello"))
	check(t, "refused by the token endpoint", err, fault.InferenceProviderError, 0)
	check(t, "health", m.Health(t.Context()), fault.InferenceProviderError, 0)

	for name, life := range map[string]string{"text": `"x"`, "negative": "-1", "a list": "[]"} {
		m = openAzure(t, resource{token: "token-1"}, withEntra(t, &authority{life: life}))
		_, err = m.Complete(t.Context(), inferencetest.Ask("hello"))
		check(t, "a life that is "+name, err, fault.InferenceProviderError, 0)
	}

	// One who leaves does not take the token from the others.
	ctx, cancel := context.WithCancel(t.Context())
	slow := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-slow
		(&authority{life: "3599"}).ServeHTTP(w, r)
	}))
	defer server.Close()
	m = openAzure(t, resource{token: "token-1"}, func(c *provider.AzureConfig) { wrong(c); c.Entra.TokenURL = server.URL })
	left := make(chan error)
	go func() {
		_, err := m.Complete(ctx, inferencetest.Ask("hello"))
		left <- err
	}()
	time.Sleep(20 * time.Millisecond)
	cancel()
	check(t, "who left", <-left, fault.Canceled, 0)
	close(slow)
	if _, err := m.Complete(t.Context(), inferencetest.Ask("hello")); err != nil {
		t.Errorf("who stayed: %v", err)
	}
}

// TestAzureNames holds that a model's name cannot lead a call elsewhere.
func TestAzureNames(t *testing.T) {
	var calls atomic.Int32
	m := openAzure(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) }), nil)
	for _, name := range []string{"..", ".", "../../x", "a/b", "a?b=c", "a%2fb", "a b", "a#b", strings.Repeat("x", 65)} {
		r := inferencetest.Ask("hello")
		r.Model = name
		_, err := m.Complete(t.Context(), r)
		check(t, name, err, fault.InferenceModelNotFound, 0)
		_, err = m.CompleteStream(t.Context(), r)
		check(t, name, err, fault.InferenceModelNotFound, 0)
		_, err = m.Embed(t.Context(), inference.EmbedRequest{Model: name, Input: []string{"x"}})
		check(t, name, err, fault.InferenceModelNotFound, 0)
	}
	if calls.Load() > 0 {
		t.Error("a request was sent")
	}
}

func TestNewAzure(t *testing.T) {
	good := provider.Config{Name: "a", BaseURL: "https://x.openai.azure.com", APIKey: creto.NewSecret(apiKey)}
	bare := good
	bare.APIKey = creto.Secret{}
	entra := provider.EntraConfig{TenantID: "t", ClientID: "c", ClientSecret: creto.NewSecret(apiKey)}
	for name, tt := range map[string]struct {
		config provider.AzureConfig
		want   int // problems
	}{
		"key":              {provider.AzureConfig{Config: good}, 0},
		"entra":            {provider.AzureConfig{Config: bare, Entra: entra, APIVersion: "2025-04-01-preview"}, 0},
		"neither":          {provider.AzureConfig{Config: bare}, 1},
		"both":             {provider.AzureConfig{Config: good, Entra: entra}, 1},
		"half an app":      {provider.AzureConfig{Config: bare, Entra: provider.EntraConfig{TenantID: "a/b"}}, 2},
		"a wrong endpoint": {provider.AzureConfig{Config: bare, Entra: provider.EntraConfig{ClientID: "c", ClientSecret: creto.NewSecret(apiKey), TokenURL: "ftp://x"}}, 1},
		"all wrong":        {provider.AzureConfig{APIVersion: "../x", Deployments: map[string]string{"m": ".."}}, 5},
	} {
		client, err := provider.NewAzure(tt.config)
		if err == nil && tt.want == 0 {
			if strings.Contains(fmt.Sprintf("%+v %#v %v", client, client, *client), apiKey) {
				t.Errorf("%s: printing a client shows its key", name)
			}
			continue
		}
		if !errors.Is(err, fault.InvalidArgument) || strings.Count(fault.Message(err), "\n")+1 != tt.want || strings.Contains(err.Error(), apiKey) {
			t.Errorf("%s: NewAzure = %v, want %d problems", name, err, tt.want)
		}
	}
}
