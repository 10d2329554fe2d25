package localinference

import (
	"context"
	"fmt"
	"sync"
	"time"

	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/health"
)

// probeTimeout bounds the question to the providers.
const probeTimeout = 800 * time.Millisecond

// Health implements inference.Model: it fails if no provider answers.
func (r *Router) Health(ctx context.Context) error {
	const op fault.Op = "localinference.Health"
	if s := r.Status(ctx); s.State == health.Unhealthy {
		return fault.New(op, fault.InferenceProviderUnavailable, "%s", s.Reason)
	}
	return nil
}

// Status is R-INF-36: the providers are asked at the same time, within 800 ms. One
// that answers while its breaker is not closed or one of its keys rests counts half
// (B-28). Without any provider there is nothing to report.
func (r *Router) Status(ctx context.Context) health.Status {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	halves := make([]int, len(r.providers))
	var group sync.WaitGroup
	for i, p := range r.providers {
		group.Go(func() { halves[i] = p.probe(ctx) })
	}
	group.Wait()
	sum := 0
	for _, n := range halves {
		sum += n
	}
	switch sum {
	case 2 * len(r.providers):
		return health.Status{State: health.Healthy}
	case 0:
		return health.Status{State: health.Unhealthy, Reason: "All inference providers unavailable"}
	}
	available := fmt.Sprint(sum / 2)
	if sum%2 == 1 {
		available += ".5"
	}
	return health.Status{State: health.Degraded, Reason: fmt.Sprintf("%s/%d providers available", available, len(r.providers))}
}

// probe returns 2 for a provider that is healthy, 1 for one that is degraded.
func (p *provider) probe(ctx context.Context) int {
	now := time.Now()
	asked, degraded := p.keys[0], p.breaker.State() != call.Closed
	for i := len(p.keys) - 1; i >= 0; i-- {
		if k := p.keys[i]; k.tired(now) {
			degraded = true
		} else {
			asked = k
		}
	}
	switch err := asked.model.Health(ctx); {
	case err != nil && fault.CodeOf(err) == fault.InferenceRateLimited: // it answers
		return 1
	case err != nil:
		return 0
	case degraded:
		return 1
	}
	return 2
}
