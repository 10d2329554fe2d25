package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/localinference"
	"creto.dev/inference/provider"
)

// openModels makes the clients of the providers and what chooses among them. With
// the strategy local_only, none is made of a provider that is not local: nothing in
// the process could connect to it.
func (n *Node) openModels(ctx context.Context) error {
	const op fault.Op = "node.openModels"
	cfg := n.options.Config.Inference
	var list []localinference.Provider
	for _, p := range cfg.Providers {
		if cfg.Strategy == localinference.LocalOnly && !p.Local {
			continue
		}
		made := localinference.Provider{Local: p.Local, Concurrency: p.Concurrency}
		for _, key := range p.keys() {
			m, err := newModel(ctx, p, provider.Config{
				Name: p.Name, BaseURL: p.BaseURL, APIKey: key, Timeout: time.Duration(cfg.Timeout), Local: p.Local, Capabilities: p.capabilities(),
				TraceContext: p.TraceContext || p.Local,
			})
			if err != nil {
				return fault.Wrap(op, err)
			}
			n.onClose(m.Close)
			made.Keys = append(made.Keys, n.tracedModel(m))
		}
		list = append(list, made)
	}
	var err error
	n.models, err = localinference.New(cfg.router(n.options.Config.Identity.Tenant), list, n.options.Log)
	return fault.Wrap(op, err)
}

// router returns what the section says of choosing.
func (c InferenceConfig) router(tenant string) localinference.Config {
	r := c.Config
	r.AttemptTimeout, r.Tenant = time.Duration(c.AttemptTimeout), tenant
	return r
}

// keys returns the keys of a provider, one for each client; that without any has
// the zero key.
func (p ProviderConfig) keys() []creto.Secret {
	if len(p.APIKeys) > 0 {
		return p.APIKeys
	}
	return []creto.Secret{p.APIKey}
}

func (p ProviderConfig) capabilities() inference.Capabilities {
	models := p.Models
	if len(models) == 0 {
		models = []string{"*"}
	}
	region := cmp.Or(p.Region, p.Bedrock.Region, p.Vertex.Location)
	if p.Local {
		region = cmp.Or(region, "local")
	}
	return inference.Capabilities{
		Streaming: true, Tools: true, Embeddings: p.Kind != ProviderAnthropic && p.Kind != ProviderBedrock, Models: models, Classifications: p.Classifications, Region: region, MaxContextTokens: p.Context,
	}
}

// ModelProviders implements serve.Admin.
func (n *Node) ModelProviders(context.Context) ([]client.ModelProvider, error) {
	list := []client.ModelProvider{}
	for _, s := range n.models.Standings() {
		p := client.ModelProvider{
			Provider: s.Provider, Models: s.Capabilities.Models, Local: s.Local, Region: s.Capabilities.Region,
			Circuit: string(s.Circuit), Keys: s.Keys, Resting: s.Resting, Calls: s.Calls, Concurrency: s.Concurrency,
		}
		for _, class := range s.Capabilities.Classifications {
			p.Classifications = append(p.Classifications, string(class))
		}
		list = append(list, p)
	}
	return list, nil
}

// RouteModel implements serve.Admin: who would serve a model, without asking them.
// The policies are those that permit the call now.
func (n *Node) RouteModel(ctx context.Context, r client.ModelRoute) (client.ModelRouting, error) {
	const op fault.Op = "node.RouteModel"
	request := inference.Request{Model: r.Model, MaxTokens: r.MaxTokens, Metadata: inference.RequestMetadata{Classification: inference.Classification(r.Classification)}}
	if r.Classification != "" {
		if err := request.Metadata.Classification.Validate(); err != nil {
			return client.ModelRouting{}, fault.Wrap(op, err)
		}
	}
	var out client.ModelRouting
	if r.Agent != "" {
		request.Metadata.Agent = n.id(ctx, creto.KindAgent, r.Agent)
		d, err := n.Check(ctx, client.Check{Agent: r.Agent, Action: creto.CallModel, Resource: r.Model})
		if err != nil {
			return client.ModelRouting{}, fault.Wrap(op, err)
		}
		out.Decision, out.Policies = d.Decision, d.Policies
		request.Metadata.Policies = d.Policies
	}
	e := n.models.Explain(request)
	out.Route, out.Strategy, out.Classification = e.Route, string(e.Strategy), string(e.Classification)
	for _, c := range e.Choices {
		out.Choices = append(out.Choices, client.ModelChoice{
			Provider: c.Provider, Model: c.Model, Local: c.Local, Skipped: c.Skipped, Cost: c.Cost, P95MS: c.P95MS, Circuit: c.Circuit,
		})
	}
	return out, nil
}

// routing checks how providers are chosen.
func (k *configChecker) routing(c InferenceConfig) {
	problems := c.router("").Problems()
	for _, key := range slices.Sorted(maps.Keys(problems)) {
		k.addf("inference."+key, "%s", problems[key])
	}
	known, local := map[string]bool{}, false
	for _, p := range c.Providers {
		known[p.Name] = true
		local = local || p.Local
	}
	if c.Strategy == localinference.LocalOnly && len(c.Providers) > 0 && !local {
		k.addf("inference.strategy", "%s needs a provider with local = true", localinference.LocalOnly)
	}
	for i, r := range c.Routes {
		for j, t := range r.Targets {
			if t.Provider != "" && !known[t.Provider] {
				k.addf(fmt.Sprintf("inference.routes[%d].targets[%d].provider", i, j), "%q is no provider's name", t.Provider)
			}
		}
	}
	for i, p := range c.Prices {
		if p.Provider != "" && !known[p.Provider] {
			k.addf(fmt.Sprintf("inference.prices[%d].provider", i), "%q is no provider's name", p.Provider)
		}
	}
}

// providerRouting checks what a provider's section says for choosing.
func (k *configChecker) providerRouting(key string, p ProviderConfig) {
	if len(p.APIKeys) > 0 && !p.APIKey.IsZero() {
		k.addf(key+".api_keys", "not beside api_key")
	}
	for _, secret := range p.APIKeys {
		if secret.IsZero() || strings.ContainsAny(secret.Reveal(), "\r\n\x00") {
			k.addf(key+".api_keys", "one is empty or holds a line break")
		}
	}
	if p.Local && !slices.Contains([]string{"", ProviderOpenAI, ProviderAnthropic, ProviderOllama}, p.Kind) {
		k.addf(key+".local", "kind %q is a service of somebody else's", p.Kind)
	}
	for _, class := range p.Classifications {
		if err := class.Validate(); err != nil {
			k.addf(key+".classifications", "%s", fault.Message(err))
		}
	}
	k.between(key+".context", p.Context, 0, math.MaxInt32)
	k.between(key+".concurrency", p.Concurrency, 0, 100_000)
}
