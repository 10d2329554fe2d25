package node

import (
	"maps"
	"slices"
	"time"

	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/cache"
)

// CacheConfig is which answers of models are kept, in memory alone, and given again to
// the agent that asks the same again: none without Rules.
type CacheConfig struct {
	// MaxMiB bounds the memory that answers take. 0 means 64.
	MaxMiB int `toml:"max_mib"`
	// TTL is how long an answer is kept, at most a day. 0 means 10 minutes.
	TTL Duration `toml:"ttl"`
	// Rules say of which requests. The first that matches counts.
	Rules []cache.Rule `toml:"rules"`
	// Semantic says which texts are alike, for the rules that want to know.
	Semantic SemanticConfig `toml:"semantic"`
}

// SemanticConfig is when an answer is also found by a text that is alike.
type SemanticConfig struct {
	// Model is the model for embeddings; required where a rule is semantic.
	Model string `toml:"model"`
	// Threshold is the least cosine, 0.8 to 1. 0 means 0.97.
	Threshold float64 `toml:"threshold"`
	// TTL is how long, at most that of the cache. 0 means as long.
	TTL Duration `toml:"ttl"`
	// Timeout bounds what a request waits for its vector. 0 means 2 seconds.
	Timeout Duration `toml:"timeout"`
	// MaxEntries bounds how many texts one is compared with. 0 means 1000.
	MaxEntries int `toml:"max_entries"`
	// Paraphrases also takes other words for alike, with the risk of wrong answers.
	Paraphrases bool `toml:"paraphrases"`
}

func defaultCache() CacheConfig {
	return CacheConfig{
		MaxMiB: cache.DefaultMaxBytes >> 20, TTL: Duration(cache.DefaultTTL),
		Semantic: SemanticConfig{
			Threshold: cache.DefaultThreshold, MaxEntries: cache.DefaultMaxEntries, TTL: Duration(cache.DefaultTTL), Timeout: Duration(cache.DefaultSemanticTimeout),
		},
	}
}

func (c CacheConfig) cache(tenant string) cache.Config {
	s := c.Semantic
	return cache.Config{
		MaxBytes: int64(c.MaxMiB) << 20, TTL: time.Duration(c.TTL), Tenant: tenant, Rules: c.Rules,
		Semantic: cache.Semantic{
			Model: s.Model, Threshold: s.Threshold, TTL: time.Duration(s.TTL), Timeout: time.Duration(s.Timeout), MaxEntries: s.MaxEntries, Paraphrases: s.Paraphrases,
		},
	}
}

// semantic reports whether a rule has answers found by what is alike.
func (c CacheConfig) semantic() bool {
	return slices.ContainsFunc(c.Rules, func(r cache.Rule) bool { return r.Semantic })
}

// openCache returns the router, whose answers are kept if the configuration says so.
func (n *Node) openCache() (inference.Router, error) {
	cfg := n.options.Config
	if len(cfg.Inference.Cache.Rules) == 0 {
		return n.models, nil
	}
	var err error
	n.answers, err = cache.New(cfg.Inference.Cache.cache(cfg.Identity.Tenant), n.models)
	return n.answers, fault.Wrap("node.openCache", err)
}

func (k *configChecker) cache(c CacheConfig) {
	k.between("inference.cache.max_mib", c.MaxMiB, 0, 1<<20)
	problems := c.cache("").Problems()
	for _, key := range slices.Sorted(maps.Keys(problems)) {
		if key != "max_mib" {
			k.addf("inference.cache."+key, "%s", problems[key])
		}
	}
}
