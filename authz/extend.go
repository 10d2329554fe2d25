package authz

import (
	"context"

	"creto.dev/fault"
	"creto.dev/nhi"
)

// Extensions are asked in their order, once policy allows (R-GAP-5).
type Extensions []Extension

// Bind prepares a chain with each of them.
func (es Extensions) Bind(ctx context.Context, chain nhi.VerifiedChain) ([]Evaluator, error) {
	var bound []Evaluator
	for _, e := range es {
		evaluator, err := e.Bind(ctx, chain)
		if err != nil {
			return nil, fault.Wrap("authz.Bind", err)
		}
		bound = append(bound, evaluator)
	}
	return bound, nil
}

// Evaluate asks what Bind returned, and completes d, which allows: with the
// reservation, or with what ended the check. What was reserved before is then
// given back.
//
// Errors: an extension's; AuthzInternal (Permanent) if two reserve. d then denies.
func (es Extensions) Evaluate(ctx context.Context, bound []Evaluator, r *Request, reserve bool, d *Decision) error {
	const op fault.Op = "authz.Evaluate"
	var reserver Extension // who holds d.Reservation
	for i, e := range bound {
		held, ends, err := e.Evaluate(ctx, *r, reserve)
		if err == nil && ends == nil {
			if held == (Reservation{}) {
				continue
			}
			if reserver == nil {
				reserver, d.Reservation = es[i], held
				continue
			}
			es[i].Refund(held)
			err = fault.New(op, fault.AuthzInternal, "both %s and %s reserve; there is one reservation", reserver.Name(), es[i].Name())
		}
		if reserver != nil {
			reserver.Refund(d.Reservation)
		}
		var said Decision
		if ends != nil && err == nil {
			said = *ends
		}
		said.Version, said.Policies, said.Reservation = d.Version, d.Policies, Reservation{}
		*d = said
		return fault.Wrap(op, err)
	}
	return nil
}
