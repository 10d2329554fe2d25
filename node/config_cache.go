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
}

func (c CacheConfig) cache(tenant string) cache.Config {
	return cache.Config{MaxBytes: int64(c.MaxMiB) << 20, TTL: time.Duration(c.TTL), Tenant: tenant, Rules: c.Rules}
}

// openCache returns the router, whose answers are kept if the configuration says so.
func (n *Node) openCache() (inference.Router, error) {
	cfg := n.options.Config
	if len(cfg.Inference.Cache.Rules) == 0 {
		return n.models, nil
	}
	var err error
	n.answers, err = cache.New(cfg.Inference.Cache.cache(cfg.Identity.Tenant), n.models, n.models.Classification)
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
