package localinference

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"creto.dev/fault"
	"creto.dev/inference"
)

// Strategy says in which order providers are asked (R-INF-27…31).
type Strategy string

// The strategies.
const (
	// CloudFirst asks those that are not local before those that are.
	CloudFirst Strategy = "cloud_first"
	// LocalOnly asks local ones alone.
	LocalOnly Strategy = "local_only"
	// ClassificationBased is CloudFirst for what is classified, and keeps local
	// what is not.
	ClassificationBased Strategy = "classification_based"
	// CostOptimized asks the cheapest first, and none whose price is not known.
	CostOptimized Strategy = "cost_optimized"
	// LatencyOptimized asks the one first that was fastest of late.
	LatencyOptimized Strategy = "latency_optimized"
)

// Strategies returns all of them.
func Strategies() []string {
	return []string{string(CloudFirst), string(LocalOnly), string(ClassificationBased), string(CostOptimized), string(LatencyOptimized)}
}

// Config says how a router chooses. The zero value asks the providers that serve
// the model, the cloud's before local ones if FallbackToLocal, in their order.
type Config struct {
	// Strategy is of requests whose route has none. "" means CloudFirst.
	Strategy Strategy `toml:"strategy"`
	// FallbackToLocal has local providers asked when those of the cloud fail.
	// Without it they are asked only for what no provider of the cloud may serve.
	FallbackToLocal bool `toml:"fallback_to_local"`
	// LocalClassifications never leave for a provider that is not local, whatever
	// the strategy; nor does a classification that nothing here names.
	LocalClassifications []inference.Classification `toml:"local_classifications"`
	// MaxCostPerToken is decimal text in US dollars, and bounds the estimated cost
	// of a request by its tokens, for CostOptimized; "" is no bound.
	MaxCostPerToken string `toml:"max_cost_per_token"`
	// MaxLatencyMS bounds the 95th percentile of a provider that LatencyOptimized
	// prefers: slower ones come last. 0 is no bound.
	MaxLatencyMS int `toml:"max_latency_ms"`
	// AttemptTimeout bounds an answer, or the wait for a stream's first piece, while
	// there is another provider to ask. 0 means DefaultAttemptTimeout.
	AttemptTimeout time.Duration
	// Tenant is that of patterns of agents that name none.
	Tenant string
	// Classified says what agents handle. The first that matches counts.
	Classified []Classified `toml:"classified"`
	// Routes say who serves what. The first that matches counts.
	Routes []Route `toml:"routes"`
	// Prices come before those of the built-in table.
	Prices []Price `toml:"prices"`
}

// Classified says how confidential the requests of some agents are.
type Classified struct {
	// Agents are names of agents of the node's own tenant, or TENANT/NAME; each part
	// may be a prefix followed by *. Required.
	Agents []string `toml:"agents"`
	// Classification is of all that they send. Required.
	Classification inference.Classification `toml:"classification"`
}

// Route says who serves some requests: those that match each list that is not
// empty.
type Route struct {
	// Name is what explanations call it; "" is its place.
	Name string `toml:"name"`
	// Models are names, or prefixes followed by *.
	Models []string `toml:"models"`
	// Agents are as in Classified.
	Agents []string `toml:"agents"`
	// Policies are ids, or prefixes followed by *, of the policies that permitted.
	Policies []string `toml:"policies"`
	// Classifications are of the request itself or of its agent. What a request says
	// of itself chooses among what it could have without saying so, and among local
	// providers.
	Classifications []inference.Classification `toml:"classifications"`
	// Targets are asked in their order; none means every provider that serves the
	// model.
	Targets []Target `toml:"targets"`
	// Strategy orders the targets; "" leaves them in their order, and has the
	// router's for none.
	Strategy Strategy `toml:"strategy"`
	// MaxCostPerToken and MaxLatencyMS come before the router's.
	MaxCostPerToken string `toml:"max_cost_per_token"`
	MaxLatencyMS    int    `toml:"max_latency_ms"`
}

// Target is a provider, and what the model is called there.
type Target struct {
	Provider string `toml:"provider"`
	// Model is its name there; "" is that of the request.
	Model string `toml:"model"`
	// Weight is the share of requests for which it is asked first, of the sum of
	// all weights. Those without one are asked when those with one failed. Only
	// without a strategy.
	Weight int `toml:"weight"`
}

// maxWeight bounds a weight, so that no sum of them wraps.
const maxWeight = 1_000_000

// Problems returns what is wrong with c, by key.
func (c Config) Problems() map[string]string {
	found := map[string]string{}
	addf := func(key, format string, args ...any) { found[key] = fmt.Sprintf(format, args...) }
	strategy := func(key string, s Strategy) {
		if s != "" && !slices.Contains(Strategies(), string(s)) {
			addf(key, "%q is not one of %s", s, strings.Join(Strategies(), ", "))
		}
	}
	costs := func(prefix, text string, latency int) {
		if _, err := parseRate(text, perToken); text != "" && err != nil {
			addf(prefix+"max_cost_per_token", "%s", err)
		}
		if latency < 0 || latency > math.MaxInt32 {
			addf(prefix+"max_latency_ms", "%d is outside 0 to %d", latency, math.MaxInt32)
		}
	}
	classes := func(key string, list ...inference.Classification) {
		for _, class := range list {
			if err := class.Validate(); err != nil {
				addf(key, "%s", fault.Message(err))
			}
		}
	}
	patterns := func(key string, list []string) {
		for _, p := range list {
			if p == "" || strings.Contains(strings.TrimSuffix(p, "*"), "*") {
				addf(key, "%q is neither a name nor a prefix followed by *", p)
			}
		}
	}
	agents := func(key string, list []string) {
		for _, p := range list {
			tenant, name, both := strings.Cut(p, "/")
			if !both {
				tenant, name = "*", p
			}
			patterns(key, []string{tenant, name})
		}
	}
	strategy("strategy", c.Strategy)
	costs("", c.MaxCostPerToken, c.MaxLatencyMS)
	classes("local_classifications", c.LocalClassifications...)
	if c.AttemptTimeout < 0 {
		addf("attempt_timeout", "%v is negative", c.AttemptTimeout)
	}
	for i, x := range c.Classified {
		prefix := fmt.Sprintf("classified[%d].", i)
		if len(x.Agents) == 0 {
			addf(prefix+"agents", `at least one is required; "*/*" is every agent`)
		}
		agents(prefix+"agents", x.Agents)
		classes(prefix+"classification", x.Classification)
	}
	for i, x := range c.Routes {
		prefix := fmt.Sprintf("routes[%d].", i)
		patterns(prefix+"models", x.Models)
		agents(prefix+"agents", x.Agents)
		patterns(prefix+"policies", x.Policies)
		classes(prefix+"classifications", x.Classifications...)
		strategy(prefix+"strategy", x.Strategy)
		costs(prefix, x.MaxCostPerToken, x.MaxLatencyMS)
		for j, t := range x.Targets {
			at := fmt.Sprintf("%stargets[%d].", prefix, j)
			if t.Provider == "" {
				addf(at+"provider", "a provider is required")
			}
			if t.Weight < 0 || t.Weight > maxWeight {
				addf(at+"weight", "%d is outside 0 to %d", t.Weight, maxWeight)
			}
			if t.Weight > 0 && x.Strategy != "" {
				addf(at+"weight", "%s orders the targets; remove one of the two", x.Strategy)
			}
		}
		if len(x.Targets) == 0 && x.Strategy == "" {
			addf(prefix+"targets", "a route says who serves, or with which strategy")
		}
	}
	for i, p := range c.Prices {
		prefix := fmt.Sprintf("prices[%d].", i)
		if p.Model == "" {
			addf(prefix+"model", "a model is required")
		}
		patterns(prefix+"model", []string{p.Model})
		for key, text := range map[string]string{"input": p.Input, "output": p.Output, "cached_input": p.CachedInput} {
			if _, err := parseRate(text, perMillion); err != nil && (text != "" || key == "input") {
				addf(prefix+key, "%s", err)
			}
		}
	}
	return found
}
