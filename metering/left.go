package metering

import (
	"context"
	"time"

	"creto.dev"
	"creto.dev/fault"
)

// Left is what an agent may still take of an action.
type Left struct {
	// Limit is that of the quota, or the burst of the rate, that has least left; 0
	// means that nothing limits the action.
	Limit int64
	// Units is how many are left of it. What is under way counts as used.
	Units int64
	// Reset is how long it takes until all of it is there again, and ResetAt when
	// that is.
	Reset   time.Duration
	ResetAt time.Time
}

// Left returns what an agent may still take of an action on behalf of a human. It
// takes nothing, and of limits that another node keeps it tells what is known here:
// nothing, for an agent that was not checked of late.
//
// Errors: those of consensus.Clock.Now.
func (e *enforcer) Left(ctx context.Context, agent, human creto.ID, action string) (Left, error) {
	index := creto.ActionNumber(action)
	e.mu.Lock()
	a := e.accounts[accountKey{agent, human}].Value()
	e.mu.Unlock()
	if a == nil || index < 0 {
		return Left{}, nil
	}
	t := a.terms.Load()
	if t == nil || len(t.of[index].budgets)+len(t.of[index].rates) == 0 {
		return Left{}, nil
	}
	now, err := e.time.read(ctx)
	if err != nil {
		return Left{}, fault.Wrap("metering.Left", err)
	}
	var least Left
	consider := func(limit, units, reset int64) {
		l := Left{limit, max(0, units), time.Duration(max(0, reset-now)), time.Unix(0, max(reset, now)).UTC()}
		if least.Limit == 0 || l.Units < least.Units || l.Units == least.Units && l.Reset > least.Reset {
			least = l
		}
	}
	for _, b := range t.of[index].budgets {
		// A window that is over is replaced by the next check.
		if w := b.current.Load(); w != nil && now < w.end.Load() {
			s := w.sum()
			consider(s.limit, s.limit-s.used, s.reset.UnixNano())
		}
	}
	for _, r := range t.of[index].rates {
		l := r.limit.Load()
		consider(l.Burst, r.left(now), r.arrival.Load())
	}
	return least, nil
}
