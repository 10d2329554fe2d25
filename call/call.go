// Package call puts policies around a call to a contract: a deadline, an
// alternative for when it fails, retries, a circuit breaker, a time limit for each
// attempt, and what the log and the metrics hear of it. They are written once,
// here, and nest in one order (R-PAT-5):
//
//	deadline → fallback( retry( breaker( time limit( the call ))))
//
// A retry is spent only on a fault that says it may help ([fault.Retryable]), only
// on a call that may safely be repeated ([Read], or [Write] with an idempotency
// key), and never beyond the caller's deadline. An alternative takes over only
// where the dependency failed, never where it answered no.
//
// Calls within a process need none of this, and authorization that is
// decided in this process never gets it: a second try or an alternative to a
// denial would be a way around it.
package call

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"creto.dev/fault"
)

// The defaults of a [Policy] (R-PAT-1).
const (
	DefaultAttempts     = 3
	DefaultInitialDelay = 100 * time.Millisecond
	DefaultMaxDelay     = time.Second
)

// maxAttempts bounds a configured number of attempts.
const maxAttempts = 100

// maxBackoff bounds the configured waits.
const maxBackoff = time.Hour

// maxPatience is the longest that a call without any deadline waits because the
// other side asked for it.
const maxPatience = time.Minute

// Policy is how calls to one contract are made. The zero value is ready: no
// deadline but the caller's, three attempts, silent. A Policy is never changed;
// it may be copied and used by many goroutines at once.
type Policy struct {
	// Deadline bounds the whole call, its retries and waits included. 0 means
	// the caller's deadline alone.
	Deadline time.Duration
	// Timeout bounds each attempt. 0 means no bound.
	Timeout time.Duration
	// Attempts is how often the call is made at most, the first included
	// . 0 means DefaultAttempts; 1 means no retry.
	Attempts int
	// Again, if any, is asked whether another attempt shall follow one that failed
	// with err, where one could. It is quick, and safe for concurrent use.
	Again func(attempt int, err error) bool
	// InitialDelay is the upper bound of the wait before the second attempt; it
	// doubles with each further one. 0 means DefaultInitialDelay.
	InitialDelay time.Duration
	// MaxDelay is where the doubling stops. 0 means DefaultMaxDelay; an hour is
	// the most.
	MaxDelay time.Duration
	// Budget, if any, is shared by the calls to one dependency and bounds their
	// retries together.
	Budget *Budget
	// Breaker, if any, is shared by the calls to one dependency and rejects them
	// while it fails.
	Breaker *Breaker
	// Observer hears of every attempt. The zero value is silent.
	Observer Observer
}

// Validate reports every problem of p.
//
// Errors: InvalidArgument (Permanent).
func (p Policy) Validate() error {
	var errs []error
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"deadline", p.Deadline}, {"timeout", p.Timeout}, {"initial delay", p.InitialDelay}, {"max delay", p.MaxDelay},
	} {
		if d.value < 0 {
			errs = append(errs, fmt.Errorf("%s: %v is negative", d.name, d.value))
		}
	}
	if p.Attempts < 0 || p.Attempts > maxAttempts {
		errs = append(errs, fmt.Errorf("attempts: %d is outside 0 to %d", p.Attempts, maxAttempts))
	}
	if p.MaxDelay > maxBackoff {
		errs = append(errs, fmt.Errorf("max delay: %v is more than %v", p.MaxDelay, maxBackoff))
	}
	if initial, limit := p.delays(); initial > limit {
		errs = append(errs, fmt.Errorf("initial delay: %v is more than the max delay %v", initial, limit))
	}
	errs = append(errs, p.Breaker.problems()...)
	if err := errors.Join(errs...); err != nil {
		return fault.WrapAs("call.Policy.Validate", fault.InvalidArgument, err, "%s", err)
	}
	return nil
}

func (p Policy) attempts() int {
	if p.Attempts <= 0 {
		return DefaultAttempts
	}
	return p.Attempts
}

func (p Policy) delays() (initial, limit time.Duration) {
	initial, limit = DefaultInitialDelay, DefaultMaxDelay
	if p.InitialDelay > 0 {
		initial = p.InitialDelay
	}
	if p.MaxDelay > 0 {
		limit = min(p.MaxDelay, maxBackoff)
	}
	return initial, limit
}

// Operation is what is called and whether doing it twice is safe. Only [Read]
// and [Write] make one; the zero Operation is never repeated.
type Operation struct {
	name       fault.Op
	repeatable bool
}

// Read is an operation that changes nothing and may be repeated.
func Read(name fault.Op) Operation { return Operation{name, true} }

// Write is an operation that changes something. It is repeated only if key, the
// idempotency key that the call carries to the other side, is not empty: without
// one, a lost answer would be done twice (B-29).
func Write(name fault.Op, key string) Operation { return Operation{name, key != ""} }

// Do makes the call and returns its result. The ctx that fn receives ends with
// the attempt: fn must return when it does, and must not keep it. fn runs on the
// caller's goroutine, once at a time, and its panics pass through.
//
// Waits are chosen evenly between 0 and the bound that doubles from InitialDelay
// to MaxDelay (full jitter). Where a fault says how long to wait (B-26), the wait
// is at least that. If it would outlast the deadline, Do returns the fault at
// once instead of using up the caller's time; without any deadline it waits for
// at most a minute.
//
// Errors: that of the last attempt, with its code; CircuitOpen (Degraded) if the
// breaker rejected the call, which is never waited for; Canceled (Permanent) or
// DeadlineExceeded (Transient) if ctx ended first. On an error the result is the
// zero T.
func Do[T any](ctx context.Context, p Policy, o Operation, fn func(context.Context) (T, error)) (T, error) {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	return repeat(ctx, p, o, fn)
}

// bound returns ctx with the policy's deadline.
func (p Policy) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.Deadline > 0 {
		return context.WithTimeout(ctx, p.Deadline)
	}
	return ctx, func() {}
}

// repeat makes the call until it succeeds or a retry cannot help.
func repeat[T any](ctx context.Context, p Policy, o Operation, fn func(context.Context) (T, error)) (T, error) {
	p.Budget.earn()
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, fault.Wrap(o.name, err)
	}
	var last error
	for attempt := 1; ; attempt++ {
		start := time.Now()
		result, end, err := guarded(ctx, p, fn)
		e := Event{Op: o.name, Attempt: attempt, Duration: time.Since(start), Err: err, Rejected: end.rejected, Circuit: end.changed}
		if err != nil && !end.rejected {
			e.Retry, e.Wait = p.next(ctx, o, attempt, err)
		}
		p.Observer.observe(ctx, e)
		switch {
		case err == nil:
			return result, nil
		case end.rejected && last != nil:
			return zero, fault.Wrap(o.name, errors.Join(err, last))
		case !e.Retry:
			return zero, fault.Wrap(o.name, err)
		}
		last = err
		if ended := sleep(ctx, e.Wait); ended != nil {
			return zero, fault.WrapAs(o.name, fault.CodeOf(ended), errors.Join(ended, err), "no time left to try again")
		}
	}
}

// end is what an attempt meant to the breaker.
type end struct {
	rejected bool
	changed  State
}

// guarded makes one attempt, unless the breaker rejects it. A panic of fn counts
// as nothing: it says something of us, not of the dependency.
func guarded[T any](ctx context.Context, p Policy, fn func(context.Context) (T, error)) (result T, e end, err error) {
	if p.Breaker == nil {
		result, err = try(ctx, p.Timeout, fn)
		return result, e, err
	}
	generation, err := p.Breaker.enter(time.Now())
	if err != nil {
		return result, end{rejected: true}, err
	}
	verdict := unknown
	defer func() { e.changed = p.Breaker.leave(time.Now(), generation, verdict) }()
	result, err = try(ctx, p.Timeout, fn)
	verdict = judge(ctx, p.Timeout, err)
	return result, e, err
}

// judge says what the end of an attempt tells of the dependency (B-31). Transient
// and Degraded faults count against it, an attempt's time limit included; every
// other answer proves it alive. That the caller left tells nothing. Neither does
// the end of the caller's time where each attempt has a time limit of its own:
// without one, nothing else would notice a dependency that hangs (B-32).
func judge(ctx context.Context, limit time.Duration, err error) verdict {
	code := fault.CodeOf(err)
	category := code.Category()
	failed := category == fault.Transient || category == fault.Degraded
	switch {
	case err == nil:
		return alive
	case code == fault.Canceled:
		return unknown
	case !failed:
		return alive
	case errors.Is(ctx.Err(), context.Canceled), ctx.Err() != nil && limit > 0:
		return unknown
	}
	return failing
}

// try makes one attempt.
func try[T any](ctx context.Context, limit time.Duration, fn func(context.Context) (T, error)) (T, error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return fn(ctx)
}

// next reports whether another attempt follows err, and after what wait.
func (p Policy) next(ctx context.Context, o Operation, attempt int, err error) (retry bool, wait time.Duration) {
	if !o.repeatable || attempt >= p.attempts() || !fault.Retryable(err) || ctx.Err() != nil || p.Breaker.State() == Open {
		return false, 0
	}
	if p.Again != nil && !p.Again(attempt, err) {
		return false, 0
	}
	initial, limit := p.delays()
	bound := limit
	// A shift past limit's own size would overflow; by then the limit holds.
	if shift := attempt - 1; shift < 32 && initial <= limit>>shift {
		bound = initial << shift
	}
	left := maxPatience
	if deadline, ok := ctx.Deadline(); ok {
		left = time.Until(deadline)
	}
	asked := fault.RetryAfter(err)
	if asked > left {
		return false, 0
	}
	wait = asked + rand.N(bound+1)
	if _, bounded := ctx.Deadline(); bounded && wait >= left || !p.Budget.spend() {
		return false, 0
	}
	return true, wait
}

// sleep waits for d or the end of ctx, and returns why ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
