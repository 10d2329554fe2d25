package localinference

import (
	"math"
	"slices"
	"time"
)

// exploreEvery is how many requests LatencyOptimized sends to the fastest before one
// goes to a provider of which too little is known.
const exploreEvery = 10

// order puts the candidates of p into the order in which they are asked, and returns
// those that the strategy drops. It adds none: what may be reached was decided
// before.
func (r *Router) order(rt *route, q *query, p *plan) (dropped []candidate) {
	drop := func(why reason, which func(candidate) bool) {
		p.candidates = slices.DeleteFunc(p.candidates, func(c candidate) bool {
			if !which(c) {
				return false
			}
			c.skipped = why
			dropped = append(dropped, c)
			return true
		})
	}
	switch rt.Strategy {
	case "":
		draw(p.candidates)
	case LocalOnly:
	case CloudFirst, ClassificationBased:
		if slices.ContainsFunc(p.candidates, func(c candidate) bool { return !c.local }) {
			if !r.cfg.FallbackToLocal {
				drop(noFallback, func(c candidate) bool { return c.local })
			}
			slices.SortStableFunc(p.candidates, func(a, b candidate) int { return rank(a.local) - rank(b.local) })
		}
	case CostOptimized:
		for i := range p.candidates {
			c := &p.candidates[i]
			c.cost = r.prices.estimate(c, q.input, q.output)
		}
		drop(unknownPrice, func(c candidate) bool { return !c.cost.known })
		if rt.maxCost.set {
			drop(tooExpensive, func(c candidate) bool { return c.cost.compare(rt.maxCost.times(q.input+q.output)) > 0 })
		}
		slices.SortStableFunc(p.candidates, func(a, b candidate) int { return a.cost.compare(b.cost) })
	case LatencyOptimized:
		r.byLatency(rt, q, p.candidates)
	}
	return dropped
}

func rank(later bool) int {
	if later {
		return 1
	}
	return 0
}

// byLatency sorts by what was measured: the fast by their 95th percentile, then those
// of which too little is known, then the slow. Now and then one of the unknown comes
// first.
func (r *Router) byLatency(rt *route, q *query, list []candidate) {
	limit := time.Duration(rt.MaxLatencyMS) * time.Millisecond
	if limit == 0 {
		limit = math.MaxInt64
	}
	measured := make(map[string]time.Duration, len(list)) // 0 is not known
	unknown := false
	place := func(c candidate) (group int, p95 time.Duration) {
		switch p95 = measured[c.id+"\x00"+c.model]; {
		case p95 == 0:
			return 1, 0
		case p95 > limit:
			return 2, p95
		}
		return 0, p95
	}
	for _, c := range list {
		p95, ok := c.latency.p95(series{c.model, q.streamed})
		if ok {
			measured[c.id+"\x00"+c.model] = max(p95, 1)
		}
		unknown = unknown || !ok
	}
	explore := unknown && r.turns.Add(1)%exploreEvery == 0
	slices.SortStableFunc(list, func(a, b candidate) int {
		groupA, a95 := place(a)
		groupB, b95 := place(b)
		if explore && groupA != groupB && (groupA == 1 || groupB == 1) {
			return rank(groupA != 1) - rank(groupB != 1)
		}
		if groupA != groupB {
			return groupA - groupB
		}
		return int(max(-1, min(1, a95-b95)))
	})
}
