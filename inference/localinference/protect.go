package localinference

import (
	"slices"

	"creto.dev"
	"creto.dev/inference"
)

// reason is why a provider is not asked; the zero reason is none.
type reason string

const (
	onlyLocal     reason = "the strategy local_only keeps requests local"
	staysLocal    reason = "what is so classified stays local"
	unclassified  reason = "what is not classified stays local"
	unknownClass  reason = "nothing in the configuration names this classification, so it stays local"
	onlyBySaying  reason = "only what the request says of itself would lead it there"
	notCleared    reason = "the provider's classifications do not name this one"
	notWithin     reason = "the request that it is for would not be sent there"
	notServed     reason = "it does not serve this model"
	noEmbeddings  reason = "it has no embeddings"
	noFallback    reason = "fallback_to_local is false, and the cloud may serve this"
	unknownPrice  reason = "its price for this model is not known; add one under [[inference.prices]]"
	tooExpensive  reason = "it costs more than max_cost_per_token"
	notConfigured reason = "no such provider is configured"
)

// learnClassifications remembers those that the configuration names.
func (r *Router) learnClassifications() {
	learn := func(list []inference.Classification) {
		for _, class := range list {
			r.known[class] = true
		}
	}
	learn(r.cfg.LocalClassifications)
	for _, x := range r.cfg.Classified {
		r.known[x.Classification] = true
	}
	for _, x := range r.cfg.Routes {
		learn(x.Classifications)
	}
	for _, p := range r.providers {
		learn(p.capabilities.Classifications)
	}
}

// classify returns what is known of an agent's requests; "" is nothing.
func (r *Router) classify(agent creto.ID) inference.Classification {
	for _, x := range r.cfg.Classified {
		if r.isAgent(x.Agents, agent) {
			return x.Classification
		}
	}
	return ""
}

// Classification returns what the configuration says of an agent's requests; "" is
// nothing, and counts as the most restricted one.
func (r *Router) Classification(agent creto.ID) inference.Classification { return r.classify(agent) }

// isAgent reports whether one of the patterns is of agent.
func (r *Router) isAgent(patterns []string, agent creto.ID) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		return inference.MatchAgent(p, r.cfg.Tenant, agent)
	})
}

// forbids returns why a request must not reach p, under the router's strategy and
// that of its route. What the request says of itself counts beside what is known of
// its agent: it can take away, and never give.
func (r *Router) forbids(p *provider, of Strategy, q *query) reason {
	if !p.local && (r.cfg.Strategy == LocalOnly || of == LocalOnly) {
		return onlyLocal
	}
	if why := r.withholds(p, of, q.known); why != "" {
		return why
	}
	if q.said == "" || q.said == q.known {
		return ""
	}
	return r.withholds(p, of, q.said)
}

// withholds is forbids for one classification.
func (r *Router) withholds(p *provider, of Strategy, class inference.Classification) reason {
	if !p.local {
		switch {
		case slices.Contains(r.cfg.LocalClassifications, class):
			return staysLocal
		case class == "" && (r.cfg.Strategy == ClassificationBased || of == ClassificationBased):
			return unclassified
		case class != "" && !r.known[class]:
			return unknownClass
		}
	}
	if cleared := p.capabilities.Classifications; len(cleared) > 0 && !slices.Contains(cleared, class) {
		return notCleared
	}
	return ""
}
