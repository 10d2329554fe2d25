package localinference

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/inference"
)

// query is what is asked, as far as it decides who answers.
type query struct {
	model    string
	metadata *inference.RequestMetadata
	streamed bool
	alone    bool // nobody else may answer
	embeds   bool // vectors are wanted
	// within are those that may be asked beside local ones; nil is no bound.
	within []string
	// input is an estimate of the prompt's tokens, and output a bound of the
	// answer's; 0 is none.
	input, output int64
	// known is the classification of the agent, and said that of the request.
	known, said inference.Classification
}

func ask(r inference.Request, streamed bool) query {
	return query{
		model: r.Model, metadata: &r.Metadata, streamed: streamed,
		input: inference.EstimateTokens(r.SizeBytes()), output: cmp.Or(r.MaxTokens, assumedAnswer),
	}
}

// route is a Route whose texts were read.
type route struct {
	Route
	maxCost rate
}

func (r *Router) compile(i int, c Route) route {
	c.Name = cmp.Or(c.Name, fmt.Sprintf("routes[%d]", i))
	c.MaxLatencyMS = cmp.Or(c.MaxLatencyMS, r.cfg.MaxLatencyMS)
	return route{c, mustRate(cmp.Or(c.MaxCostPerToken, r.cfg.MaxCostPerToken), perToken)}
}

// matches reports whether a request takes the route, which may be of what is known
// of its agent, or of said.
func (rt *route) matches(r *Router, q *query, said inference.Classification) bool {
	if len(rt.Models) > 0 && !slices.ContainsFunc(rt.Models, func(p string) bool { return inference.Match(p, q.model) }) {
		return false
	}
	if len(rt.Agents) > 0 && !r.isAgent(rt.Agents, q.metadata.Agent) {
		return false
	}
	if len(rt.Policies) > 0 && !slices.ContainsFunc(q.metadata.Policies, func(id string) bool {
		return slices.ContainsFunc(rt.Policies, func(p string) bool { return inference.Match(p, id) })
	}) {
		return false
	}
	return len(rt.Classifications) == 0 || slices.Contains(rt.Classifications, q.known) || slices.Contains(rt.Classifications, said)
}

// routeOf returns the route of a request that says said of itself, and its place;
// len(r.routes) is that of none.
func (r *Router) routeOf(q *query, said inference.Classification) (rt route, place int) {
	rt = route{Route: Route{Strategy: r.cfg.Strategy, MaxLatencyMS: r.cfg.MaxLatencyMS}, maxCost: r.maxCost}
	for place = range r.routes {
		if r.routes[place].matches(r, q, said) {
			rt = r.routes[place]
			if len(rt.Targets) == 0 && rt.Strategy == "" {
				rt.Strategy = r.cfg.Strategy
			}
			return rt, place
		}
	}
	return rt, len(r.routes)
}

// reaches reports whether a route leads to a provider.
func (rt *route) reaches(p *provider) bool {
	return len(rt.Targets) == 0 || slices.ContainsFunc(rt.Targets, func(t Target) bool { return t.Provider == p.id })
}

// candidate is a provider that may be asked, or skipped for a reason.
type candidate struct {
	*provider
	model   string
	weight  int
	cost    cost
	skipped reason
}

// plan is who is asked, in order.
type plan struct {
	route      string
	strategy   Strategy
	candidates []candidate
	skipped    []candidate // only where somebody wants to know
}

// plan chooses for a request. It never asks anybody. Those that are not asked are
// listed only if why is true.
func (r *Router) plan(q *query, why bool) plan {
	q.known, q.said = r.classify(q.metadata.Agent), q.metadata.Classification
	rt, place := r.routeOf(q, q.said)
	// What a request says of itself may not lead it past the route that it would have
	// without it, out of this house.
	silent, other := rt, place
	if q.said != "" && q.said != q.known {
		silent, other = r.routeOf(q, q.known)
	}
	p := plan{route: rt.Name, strategy: rt.Strategy, candidates: make([]candidate, 0, max(len(r.providers), len(rt.Targets)))}
	offer := func(c candidate) {
		c.skipped = cmp.Or(c.skipped, r.forbids(c.provider, rt.Strategy, q))
		if other != place && c.skipped == "" {
			c.skipped = r.forbids(c.provider, silent.Strategy, q)
			if !c.local && !silent.reaches(c.provider) {
				c.skipped = cmp.Or(c.skipped, onlyBySaying)
			}
		}
		if q.within != nil && c.skipped == "" && !c.local && !slices.Contains(q.within, c.id) {
			c.skipped = notWithin
		}
		if q.embeds && c.skipped == "" && !c.capabilities.Embeddings {
			c.skipped = noEmbeddings
		}
		if c.skipped == "" {
			p.candidates = append(p.candidates, c)
		} else if why {
			p.skipped = append(p.skipped, c)
		}
	}
	if len(rt.Targets) == 0 {
		for _, known := range r.providers {
			c := candidate{provider: known, model: q.model}
			if !known.serves(q.model) {
				c.skipped = notServed
			}
			offer(c)
		}
	}
	for _, t := range rt.Targets {
		i := slices.IndexFunc(r.providers, func(known *provider) bool { return known.id == t.Provider })
		if i < 0 {
			// Under local_only those of the cloud were never made.
			if why {
				p.skipped = append(p.skipped, candidate{provider: &provider{id: t.Provider}, model: cmp.Or(t.Model, q.model), skipped: notConfigured})
			}
			continue
		}
		offer(candidate{provider: r.providers[i], model: cmp.Or(t.Model, q.model), weight: t.Weight})
	}
	dropped := r.order(&rt, q, &p)
	if why {
		p.skipped = append(p.skipped, dropped...)
	}
	return p
}

// serves reports whether a provider has a model of that name.
func (p *provider) serves(name string) bool {
	return slices.ContainsFunc(p.capabilities.Models, func(pattern string) bool { return inference.Match(pattern, name) })
}

// draw moves those with weights to the front: each is first in as many cases as its
// share says.
func draw(list []candidate) {
	sum := 0
	for _, c := range list {
		sum += c.weight
	}
	for at := 0; sum > 0; at++ {
		n := rand.IntN(sum)
		i := at
		for n >= list[i].weight {
			n -= list[i].weight
			i++
		}
		drawn := list[i]
		sum -= drawn.weight
		copy(list[at+1:i+1], list[at:i])
		list[at] = drawn
	}
}

// refusal is the answer to a request that nobody may serve.
func (r *Router) refusal(op fault.Op, q *query) error {
	if len(r.providers) == 0 {
		return fault.New(op, fault.InferenceModelNotFound, "no model provider is configured; add one under [[inference.providers]]")
	}
	p := r.plan(q, true)
	for _, c := range p.skipped {
		if c.skipped == noEmbeddings {
			return fault.New(op, fault.InferenceNotSupported, "no provider may embed with the model %q: %s: %s", q.model, c.id, c.skipped)
		}
		if c.skipped != notServed {
			return fault.New(op, fault.InferenceModelNotFound, "no provider may serve the model %q: %s: %s", q.model, c.id, c.skipped)
		}
	}
	return fault.New(op, fault.InferenceModelNotFound, "no configured provider serves the model %q", q.model)
}

// Choice is one line of an explanation.
type Choice struct {
	Provider string
	Model    string
	Local    bool
	// Skipped says why it is not asked; "" if it is.
	Skipped string
	// Cost is an estimate in US dollars, and P95MS what answers took of late, where
	// the strategy looks at them and they are known.
	Cost  string
	P95MS int64
	// Circuit is the state of the provider's breaker.
	Circuit string
}

// Explanation says who would be asked for a request, in order, and who not.
type Explanation struct {
	Route    string
	Strategy Strategy
	// Classification is what is known of the agent.
	Classification inference.Classification
	Choices        []Choice
}

// Explain says who would be asked for r, and asks nobody. Where weights are drawn,
// or a strategy explores, the next request may differ.
func (r *Router) Explain(request inference.Request) Explanation {
	q := ask(request, false)
	p := r.plan(&q, true)
	e := Explanation{Route: p.route, Strategy: p.strategy, Classification: q.known, Choices: []Choice{}}
	for _, c := range slices.Concat(p.candidates, p.skipped) {
		line := Choice{Provider: c.id, Model: c.model, Local: c.local, Skipped: string(c.skipped)}
		if c.breaker != nil {
			line.Circuit = string(c.breaker.State())
		}
		switch p.strategy {
		case CostOptimized:
			if c.cost.known {
				line.Cost = c.cost.String()
			}
		case LatencyOptimized:
			if p95, ok := c.latency.p95(series{c.model, false}); ok {
				line.P95MS = p95.Milliseconds()
			}
		}
		e.Choices = append(e.Choices, line)
	}
	return e
}

// Reaches returns the providers that may be asked for r, in order, and asks nobody.
func (r *Router) Reaches(request inference.Request) []string {
	q := ask(request, false)
	ids := []string{}
	for _, c := range r.plan(&q, false).candidates {
		ids = append(ids, c.id)
	}
	return ids
}

// Standing is how a provider stands now.
type Standing struct {
	Provider     string
	Local        bool
	Capabilities inference.Capabilities
	// Keys is how many there are, and Resting how many of them rest for a model.
	Keys, Resting int
	// Calls is how many are under way, of Concurrency at most; both are 0 without a
	// bound.
	Calls, Concurrency int
	Circuit            call.State
}

// Standings returns how the providers stand, in their order. It asks nobody.
func (r *Router) Standings() []Standing {
	now := time.Now()
	list := make([]Standing, len(r.providers))
	for i, p := range r.providers {
		s := Standing{
			Provider: p.id, Local: p.local, Capabilities: p.keys[0].model.Capabilities(), Keys: len(p.keys),
			Calls: len(p.slots), Concurrency: cap(p.slots), Circuit: p.breaker.State(),
		}
		for _, k := range p.keys {
			if k.tired(now) {
				s.Resting++
			}
		}
		list[i] = s
	}
	return list
}
