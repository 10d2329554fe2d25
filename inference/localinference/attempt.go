package localinference

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/internal/logkey"
)

const (
	// maxAttempts is how often one provider is tried for one request (R-PAT-1), and
	// timeoutAttempts how often one that ran out of time (R-INF-34).
	maxAttempts     = 3
	timeoutAttempts = 2
	// patienceElsewhere is the longest that a request waits for a provider, in its
	// queue or because it asked for it, while there is another one; patienceAlone
	// while there is none.
	patienceElsewhere = 2 * time.Second
	patienceAlone     = time.Minute
	// limitedFor is how long a key rests whose provider does not say, and maxRest
	// the longest that one may ask for.
	limitedFor = time.Second
	maxRest    = time.Hour
	// refusedFor is how long a key rests that was refused.
	refusedFor = time.Minute
	// fairTime is how long a provider must have had before the end of the caller's
	// time says something of it: else whoever is in a hurry opens its breaker for all.
	fairTime = 5 * time.Second
	// maxRests bounds for how many models a key is known to rest.
	maxRests = 256
)

// provider is a Provider with what is known of it.
type provider struct {
	id           string
	local        bool
	capabilities inference.Capabilities
	keys         []*key
	turn         atomic.Uint64
	slots        chan struct{} // nil: no bound
	budget       *call.Budget
	breaker      *call.Breaker
	latency      latencies
	log          *slog.Logger
}

// key is one client of a provider.
type key struct {
	model inference.Model

	mu    sync.Mutex // guards rests
	rests map[string]rest
}

// rest is why a key is not used for a model, and until when.
type rest struct {
	until   time.Time
	refused bool
}

// resting returns the rest of a key for a model, if it is not over.
func (k *key) resting(model string, now time.Time) (rest, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, ok := k.rests[model]
	if ok && !now.Before(r.until) {
		delete(k.rests, model)
		ok = false
	}
	return r, ok
}

func (k *key) rest(model string, r rest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.rests) >= maxRests {
		clear(k.rests)
	}
	k.rests[model] = r
}

// tired reports whether a key rests for any model.
func (k *key) tired(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.rests {
		if now.Before(r.until) {
			return true
		}
	}
	return false
}

// attempt asks one model once; limit bounds the wait for it, 0 does not.
type attempt[T any] func(ctx context.Context, m inference.Model, model string, limit time.Duration) (T, error)

// reply has one of those that may serve q answer it. The release that it returns,
// always, gives back the provider's slot.
func reply[T any](ctx context.Context, r *Router, op fault.Op, q query, try attempt[T]) (T, func(), error) {
	var zero T
	var served inference.Served
	if q.metadata.Served != nil {
		defer func() { *q.metadata.Served = served }()
	}
	if err := ctx.Err(); err != nil {
		return zero, func() {}, ended(op, err)
	}
	p := r.plan(&q, false)
	if len(p.candidates) == 0 {
		return zero, func() {}, r.refusal(op, &q)
	}
	if q.alone {
		p.candidates = p.candidates[:1]
	}
	var failed error
	for i := range p.candidates {
		c, last := &p.candidates[i], i == len(p.candidates)-1
		result, release, err := at(ctx, r, op, c, &q, last, &served, try)
		if err == nil {
			return result, release, nil
		}
		failed = join(op, failed, err)
		if last || ctx.Err() != nil || !elsewhere(err) {
			break
		}
		c.log.LogAttrs(ctx, slog.LevelWarn, "model provider failed, falling back", slog.String(logkey.Model, c.model),
			slog.String(logkey.Code, fault.CodeOf(err).String()), slog.String(logkey.Error, err.Error()))
	}
	if err := ctx.Err(); err != nil {
		return zero, func() {}, ended(op, errors.Join(err, failed))
	}
	return zero, func() {}, fault.Wrap(op, failed)
}

// ended names the end of the caller's patience or time as the contract does.
func ended(op fault.Op, err error) error {
	if errors.Is(err, context.Canceled) {
		return fault.WrapAs(op, fault.Canceled, err, "the call was canceled")
	}
	return fault.WrapAs(op, fault.InferenceTimeout, err, "no time is left for the call")
}

// elsewhere reports whether another provider may be asked after err: only where this
// one failed (B-27). That its key is refused says nothing of the request.
func elsewhere(err error) bool {
	category := fault.CategoryOf(err)
	return category == fault.Transient || category == fault.Degraded || errors.Is(err, inference.ErrKeyRefused)
}

// join keeps the code of the first failure, unless a later one is an answer that
// must not be lost: what was found to be an injection, or filtered.
func join(op fault.Op, first, err error) error {
	switch {
	case first == nil:
		return err
	case fault.CategoryOf(err) == fault.Security || errors.Is(err, fault.InferenceContentFiltered):
		return fault.WrapAs(op, fault.CodeOf(err), errors.Join(err, first), "%s", fault.Message(err))
	}
	return fault.Wrap(op, errors.Join(first, err))
}

// at tries one provider, as often as it is worth.
func at[T any](ctx context.Context, r *Router, op fault.Op, c *candidate, q *query, last bool, served *inference.Served, try attempt[T]) (T, func(), error) {
	var zero T
	patience, limit := patienceElsewhere, r.cfg.AttemptTimeout
	if last {
		patience, limit = patienceAlone, 0
	}
	served.Provider, served.Model = c.id, c.model
	release, err := c.enter(ctx, op, patience)
	if err != nil {
		return zero, func() {}, err
	}
	answered := false
	defer func() {
		if !answered { // a panic gives the slot back too
			release()
		}
	}()
	result, err := call.Do(ctx, call.Policy{
		Attempts: maxAttempts, Budget: c.budget, Again: func(attempt int, err error) bool { return again(attempt, patience, err) },
	}, call.Read(op), func(ctx context.Context) (T, error) {
		return keyed(ctx, op, c, q, limit, served, try)
	})
	if err == nil {
		answered = true
		return result, release, nil
	}
	if fault.CodeOf(err) == fault.CircuitOpen {
		wait := fault.RetryAfter(err)
		err = fault.After(fault.WrapAs(op, fault.InferenceProviderUnavailable, err, "provider %s failed too often; it is left alone for a while", c.id), wait)
	}
	return zero, func() {}, err
}

// again reports whether a provider is worth another attempt.
func again(attempt int, patience time.Duration, err error) bool {
	switch code := fault.CodeOf(err); {
	case code == fault.CircuitOpen:
		return false
	case code == fault.InferenceTimeout && attempt >= timeoutAttempts:
		return false
	}
	return fault.RetryAfter(err) <= patience
}

// enter waits for one of the provider's slots.
func (p *provider) enter(ctx context.Context, op fault.Op, patience time.Duration) (release func(), err error) {
	if p.slots == nil {
		return func() {}, nil
	}
	select {
	case p.slots <- struct{}{}:
	default:
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, ended(op, ctx.Err())
		case <-timer.C:
			return nil, fault.New(op, fault.InferenceRateLimited, "provider %s has as many calls as it may have at once", p.id)
		}
	}
	var once sync.Once
	return func() { once.Do(func() { <-p.slots }) }, nil
}

// outcome is what a call made of one key, where that proves the provider alive.
type outcome[T any] struct {
	result T
	err    error
}

// keyed calls a provider, with one key after the other while each is limited or
// refused: such a call was not made.
func keyed[T any](ctx context.Context, op fault.Op, c *candidate, q *query, limit time.Duration, served *inference.Served, try attempt[T]) (T, error) {
	var zero T
	var failed error
	for range c.keys {
		k, err := c.awake(op)
		if err != nil {
			return zero, errors.Join(err, failed)
		}
		var hurried error
		began := time.Now()
		out, err := call.Do(ctx, call.Policy{Attempts: 1, Breaker: c.breaker, Observer: call.Observer{Log: c.log}}, call.Read(op), func(ctx context.Context) (outcome[T], error) {
			served.Attempts++
			result, err := try(ctx, k.model, c.model, limit)
			if errors.Is(err, fault.InferenceRateLimited) || errors.Is(err, inference.ErrKeyRefused) {
				return outcome[T]{err: err}, nil
			}
			if err != nil && ctx.Err() != nil && time.Since(began) < fairTime {
				hurried = err
				return outcome[T]{}, fault.WrapAs(op, fault.Canceled, err, "the caller had no time for it")
			}
			return outcome[T]{result: result}, err
		})
		if hurried != nil {
			return zero, hurried
		}
		if err == nil && out.err == nil || fault.CodeOf(err) == fault.InferenceTimeout {
			c.latency.add(series{c.model, q.streamed}, time.Since(began))
		}
		if err != nil || out.err == nil {
			return out.result, err
		}
		c.tire(ctx, k, out.err)
		failed = out.err
	}
	return zero, failed
}

// tire has a key rest after err.
func (c *candidate) tire(ctx context.Context, k *key, err error) {
	r := rest{refused: errors.Is(err, inference.ErrKeyRefused)}
	d := min(fault.RetryAfter(err), maxRest)
	switch {
	case r.refused:
		d = refusedFor
	case d <= 0:
		d = limitedFor
	}
	r.until = time.Now().Add(d)
	k.rest(c.model, r)
	attrs := []slog.Attr{slog.String(logkey.Model, c.model), slog.Duration(logkey.Wait, d), slog.String(logkey.Error, err.Error())}
	if r.refused {
		c.log.LogAttrs(ctx, slog.LevelError, "a key of a model provider is refused, and rests", attrs...)
	} else {
		c.log.LogAttrs(ctx, slog.LevelWarn, "a key of a model provider is limited, and rests", attrs...)
	}
}

// awake returns the next key that does not rest.
//
// Errors: InferenceRateLimited (Transient), with the time until the first is awake
// again; InferenceProviderError (Permanent) if all were refused.
func (c *candidate) awake(op fault.Op) (*key, error) {
	now := time.Now()
	turn := c.turn.Add(1)
	var first time.Time
	for i := range c.keys {
		k := c.keys[(turn+uint64(i))%uint64(len(c.keys))]
		r, resting := k.resting(c.model, now)
		if !resting {
			return k, nil
		}
		if !r.refused && (first.IsZero() || r.until.Before(first)) {
			first = r.until
		}
	}
	if first.IsZero() {
		return nil, fault.WrapAs(op, fault.InferenceProviderError, inference.ErrKeyRefused, "provider %s refused every key of this node", c.id)
	}
	return nil, fault.After(fault.New(op, fault.InferenceRateLimited, "provider %s limits the rate of requests", c.id), first.Sub(now))
}
