package secretsource

import (
	"context"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/nhi"
)

// MaxCacheTTL bounds how long a value may be kept.
const MaxCacheTTL = time.Minute

// cache keeps values for a while.
type cache struct {
	source nhi.SecretSource
	ttl    time.Duration

	mu     sync.Mutex // guards values
	values map[string]creto.Secret
}

var _ nhi.SecretSource = (*cache)(nil)

// NewCache returns source with its values kept for ttl, at most MaxCacheTTL: that
// late a change in the source is seen. Errors are not kept. With a ttl of 0 it is
// source itself. It keeps as many values as there are locators that are asked
// for, which the authority's bindings bound.
func NewCache(source nhi.SecretSource, ttl time.Duration) nhi.SecretSource {
	if ttl <= 0 {
		return source
	}
	return &cache{source: source, ttl: min(ttl, MaxCacheTTL), values: make(map[string]creto.Secret)}
}

// Secret implements nhi.SecretSource.
func (c *cache) Secret(ctx context.Context, locator string) (creto.Secret, error) {
	c.mu.Lock()
	value, ok := c.values[locator]
	c.mu.Unlock()
	if ok {
		return value, nil
	}
	value, err := c.source.Secret(ctx, locator)
	if err != nil {
		return creto.Secret{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.values[locator] = value
	// An end of an earlier value under the same locator only comes too soon.
	time.AfterFunc(c.ttl, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.values, locator)
	})
	return value, nil
}
