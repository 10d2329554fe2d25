package client

import "context"

// ModelProvider is a provider of models, and how it stands.
type ModelProvider struct {
	Provider        string   `json:"provider"`
	Models          []string `json:"models"`
	Local           bool     `json:"local"`
	Region          string   `json:"region,omitempty"`
	Classifications []string `json:"classifications,omitempty"`
	// Circuit is that of its breaker: closed, open or half-open.
	Circuit string `json:"circuit"`
	// Keys is how many it has, and Resting how many of them are limited or refused.
	Keys    int `json:"keys"`
	Resting int `json:"resting,omitempty"`
	// Calls are under way, of Concurrency at most; both are 0 without a bound.
	Calls       int `json:"calls,omitempty"`
	Concurrency int `json:"concurrency,omitempty"`
}

// ModelRoute asks who would serve a model.
type ModelRoute struct {
	Model string `json:"model"`
	// Agent asks; "" is one that nothing is known of.
	Agent string `json:"agent,omitempty"`
	// Classification is what the request says of itself.
	Classification string `json:"classification,omitempty"`
	// MaxTokens bounds the answer, for what it would cost.
	MaxTokens int64 `json:"max_tokens,omitempty"`
}

// ModelRouting is the answer.
type ModelRouting struct {
	// Decision and Policies are what policy says of the call; "" without an agent.
	Decision string   `json:"decision,omitempty"`
	Policies []string `json:"policies,omitempty"`
	// Route is the one that it takes, if any.
	Route    string `json:"route,omitempty"`
	Strategy string `json:"strategy,omitempty"`
	// Classification is what is known of the agent.
	Classification string `json:"classification,omitempty"`
	// Choices are who is asked, in order, and then who is not.
	Choices []ModelChoice `json:"choices"`
}

// ModelChoice is one provider.
type ModelChoice struct {
	Provider string `json:"provider"`
	// Model is what it is asked for.
	Model string `json:"model"`
	Local bool   `json:"local"`
	// Skipped says why it is not asked; "" if it is.
	Skipped string `json:"skipped,omitempty"`
	// Cost is an estimate in US dollars, as decimal text, and P95MS what answers took
	// of late, where the strategy looks at them and they are known.
	Cost    string `json:"cost_usd,omitempty"`
	P95MS   int64  `json:"p95_ms,omitempty"`
	Circuit string `json:"circuit,omitempty"`
}

// ModelProviders lists the providers of models, in their order.
func (c *Client) ModelProviders(ctx context.Context) (list []ModelProvider, err error) {
	return list, c.do(ctx, "GET", "/models", nil, &list)
}

// RouteModel asks who would serve a model, without asking them.
func (c *Client) RouteModel(ctx context.Context, r ModelRoute) (out ModelRouting, err error) {
	return out, c.do(ctx, "POST", "/models/route", r, &out)
}
