package metering

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// rate is a Rate and where it stands, by the generic cell rate algorithm (ITU-T
// I.371, annex A; virtual scheduling): one word, the theoretical arrival time.
type rate struct {
	Subject
	limit   atomic.Pointer[Rate]
	arrival atomic.Int64 // Unix nanoseconds; the bucket is full if that is not later than now
}

// take lets n units pass at a time, or says how long to wait; no time is long enough
// for more than a burst. A clock that goes back finds what was let through later
// still counted.
func (r *rate) take(l *Rate, now, n int64, keep bool) (wait int64, ok bool) {
	if n > l.Burst { // and n*interval may be more than time has room for
		return 0, false
	}
	interval := l.interval()
	for {
		arrival := r.arrival.Load()
		next := max(arrival, now) + n*interval
		if wait := next - l.Burst*interval - now; wait > 0 {
			return wait, false
		}
		if !keep || r.arrival.CompareAndSwap(arrival, next) {
			return 0, true
		}
	}
}

// undo takes back what take let through a moment ago.
func (r *rate) undo(l *Rate, n int64) { r.arrival.Add(-n * l.interval()) }

// left returns how many units could pass at once.
func (r *rate) left(now int64) int64 {
	l := r.limit.Load()
	return l.Burst - (max(0, r.arrival.Load()-now)+l.interval()-1)/l.interval()
}

// Rates enforces rates inline, as an extension of authorization behind the quota
// (R-AZ-8, R-GAP-5). It reserves nothing: what it lets through has passed.
type Rates struct{ e *enforcer }

var _ authz.Extension = Rates{}

// Name implements authz.Extension.
func (Rates) Name() string { return "rate_limiter" }

// Refund implements authz.Extension. There is nothing to give back.
func (Rates) Refund(authz.Reservation) {}

// Bind implements authz.Extension.
func (r Rates) Bind(ctx context.Context, chain nhi.VerifiedChain) (authz.Evaluator, error) {
	a, err := r.e.account(ctx, chain)
	if err != nil {
		return nil, err
	}
	return &rateEvaluator{r.e, a}, nil
}

type rateEvaluator struct {
	e *enforcer
	a *account
}

// Evaluate implements authz.Evaluator.
func (v *rateEvaluator) Evaluate(ctx context.Context, r authz.Request, reserve bool) (held authz.Reservation, refusal *authz.Decision, err error) {
	action := creto.ActionNumber(r.Action)
	if action < 0 {
		return held, nil, unknown(r.Action)
	}
	p, err := v.e.terms(ctx, v.a)
	if err != nil {
		return held, nil, err
	}
	rates := p.of[action].rates
	if len(rates) == 0 {
		return held, nil, nil
	}
	n, err := authz.Units(r.Action, r.Context)
	if err != nil {
		return held, nil, err
	}
	now, err := v.e.time.read(ctx)
	if err != nil {
		return held, nil, err
	}
	var limits [MaxBudgets]*Rate // as they were used
	for i, x := range rates {
		l := x.limit.Load()
		limits[i] = l
		wait, ok := x.take(l, now, n, reserve)
		if ok {
			continue
		}
		for j := range i {
			if reserve {
				rates[j].undo(limits[j], n)
			}
		}
		return held, x.limited(l, r.Action, n, wait), nil
	}
	return held, nil, nil
}

// limited is the decision when n units are too many for now.
func (r *rate) limited(l *Rate, action string, n, wait int64) *authz.Decision {
	what, whose := action, ""
	if r.Action == AnyAction {
		what = "actions"
	}
	if !r.Human.IsZero() {
		whose = " on behalf of " + r.Human.Name
	}
	if n > l.Burst {
		return &authz.Decision{Reason: fmt.Sprintf("%s wants %d at once, and the rate of %d %s in %v%s has bursts of %d", action, n, l.Count, what, l.Period, whose, l.Burst)}
	}
	return &authz.Decision{
		Kind: authz.RateLimited, RetryAfter: time.Duration(wait),
		Reason: fmt.Sprintf("the rate is %d %s in %v%s, with bursts of %d; try again in %v", l.Count, what, l.Period, whose, l.Burst, time.Duration(wait).Round(time.Millisecond)),
	}
}

// unknown refuses what is no action.
func unknown(action string) error {
	return fault.New("metering.Evaluate", fault.AuthzInvalidRequest, "%q is no action", action)
}
