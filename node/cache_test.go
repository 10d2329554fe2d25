package node_test

import (
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/cache"
	"creto.dev/node"
)

// A node keeps answers as configured, until policies change.
func TestCache(t *testing.T) {
	var asked atomic.Int32
	model := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"id":"1","object":"chat.completion","model":"m","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"hello"}}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`))
	}))
	defer model.Close()
	for _, rules := range [][]cache.Rule{nil, {{Unclassified: true, AnyTemperature: true}}} {
		asked.Store(0)
		o := options(t, t.TempDir())
		o.Config.Inference.Providers = []node.ProviderConfig{{Name: "m", BaseURL: model.URL + "/v1"}}
		o.Config.Inference.Cache.Rules = rules
		n, c, stop := running(t, o)
		agent, err := c.AddAgent(t.Context(), client.NewAgent{Name: "bob", Allow: []string{"call_model=*"}})
		if err != nil {
			t.Fatal(err)
		}
		token, err := c.Token(t.Context(), agent.Name, client.NewToken{})
		if err != nil {
			t.Fatal(err)
		}
		status, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := n.ReloadPolicies(t.Context()); err != nil {
			t.Fatal(err)
		}
		call := func(want int32) {
			t.Helper()
			if got := modelCall(t.Context(), "http://"+status.Listen, token.Token); got != http.StatusOK || asked.Load() != want {
				t.Errorf("%d rules: status %d, the provider was asked %d times, want %d", len(rules), got, asked.Load(), want)
			}
		}
		call(1)
		if rules == nil {
			call(2)
			stop()
			continue
		}
		call(1)
		if err := os.WriteFile(filepath.Join(o.DataDir, "policies", "more.cedar"), []byte(`permit (principal == Creto::Agent::"nobody", action, resource);`), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := n.ReloadPolicies(t.Context()); err != nil {
			t.Fatal(err)
		}
		call(2)
		call(2)
		records, hits := 0, 0
		for deadline := time.Now().Add(20 * time.Second); records < 4 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			list, err := c.Receipts(t.Context(), client.Query{What: creto.CallModel, Limit: 10})
			if err != nil {
				t.Fatal(err)
			}
			records, hits = len(list), 0
			for _, r := range list {
				if r.Record.Detail["cache"] == "hit" {
					hits++
				}
			}
		}
		if records != 4 || hits != 2 {
			t.Errorf("%d records, %d of hits", records, hits)
		}
		stop()
	}
}

func TestCacheConfig(t *testing.T) {
	rule := cache.Rule{Classifications: []inference.Classification{"public"}}
	for _, test := range []struct {
		config node.CacheConfig
		key    string // that is wrong; "" if none is
	}{
		{node.CacheConfig{}, ""}, {node.CacheConfig{MaxMiB: 1, TTL: node.Duration(time.Hour), Rules: []cache.Rule{rule}}, ""},
		{node.CacheConfig{MaxMiB: -1}, "max_mib"}, {node.CacheConfig{TTL: node.Duration(48 * time.Hour)}, "ttl"},
		{node.CacheConfig{Rules: []cache.Rule{rule, {}}}, "rules[1].classifications"},
		{node.CacheConfig{Rules: []cache.Rule{{Unclassified: true, Semantic: true}}}, "rules[0].semantic"},
		{node.CacheConfig{Rules: []cache.Rule{{Unclassified: true, Semantic: true}}, Semantic: node.SemanticConfig{Model: "e"}}, ""},
		{node.CacheConfig{Semantic: node.SemanticConfig{Threshold: 0.5}}, "semantic.threshold"}, {node.CacheConfig{Semantic: node.SemanticConfig{Threshold: math.NaN()}}, "semantic.threshold"},
		{node.CacheConfig{Semantic: node.SemanticConfig{Threshold: 1.1}}, "semantic.threshold"}, {node.CacheConfig{Semantic: node.SemanticConfig{TTL: node.Duration(48 * time.Hour)}}, "semantic.ttl"},
		{node.CacheConfig{Semantic: node.SemanticConfig{Timeout: -1}}, "semantic.timeout"}, {node.CacheConfig{Semantic: node.SemanticConfig{MaxEntries: -1}}, "semantic.max_entries"},
		{node.CacheConfig{Semantic: node.SemanticConfig{Model: strings.Repeat("x", 600)}}, "semantic.model"},
	} {
		cfg := node.Default()
		cfg.Inference.Cache = test.config
		err := cfg.Validate()
		if (err == nil) != (test.key == "") || err != nil && (!errors.Is(err, fault.InvalidArgument) || !strings.Contains(fault.Message(err), "inference.cache."+test.key)) {
			t.Errorf("%+v = %v, want %q to be wrong", test.config, err, test.key)
		}
	}
}
