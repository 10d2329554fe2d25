package call

import (
	"context"
	"errors"

	"creto.dev/fault"
)

// DoOr makes the call as [Do] does, and where the dependency failed, that is with
// a Transient or a Degraded fault, returns what alternative makes of it (R-PAT-3).
// A Permanent or a Security fault is an answer: what was denied, malformed or
// filtered here is not tried elsewhere (B-27). The policy's deadline holds for both
// together, and no alternative begins once it or the caller's has passed.
//
// The alternative gets the fault that it stands in for. A call that failed may
// still have been made: an alternative that changes something must not do the same
// thing again elsewhere.
//
// Errors: as of [Do]; if the alternative fails too, both errors, with the code of
// the call's own, unless the alternative's is of category Security or the caller
// left.
func DoOr[T any](ctx context.Context, p Policy, o Operation, fn func(context.Context) (T, error), alternative func(context.Context, error) (T, error)) (T, error) {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	result, err := repeat(ctx, p, o, fn)
	if err == nil || ctx.Err() != nil {
		return result, err
	}
	if category := fault.CategoryOf(err); category != fault.Transient && category != fault.Degraded {
		return result, err
	}
	p.Observer.observe(ctx, Event{Op: o.name, Err: err, Fallback: true})
	result, other := alternative(ctx, err)
	if other == nil {
		return result, nil
	}
	var zero T
	if fault.CategoryOf(other) == fault.Security || ctx.Err() != nil {
		return zero, fault.WrapAs(o.name, fault.CodeOf(other), errors.Join(other, err), "%s", fault.Message(other))
	}
	return zero, fault.Wrap(o.name, errors.Join(err, other))
}
