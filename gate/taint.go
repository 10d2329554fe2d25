package gate

import (
	"context"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
)

// taint returns by what the session of p is tainted, at its stamp. It is read at
// each check: what taints while a human thinks counts.
func (p *pass) taint() string {
	if p.gate.taints == nil {
		return ""
	}
	p.tainted = p.gate.taints.Tainted(p.caller.identity.ID, p.action.Sandbox, p.stamp.Time())
	return p.tainted
}

// Tainted returns by what the caller's session is tainted now, or "": what policies
// would read as context.taint. run is as for Taint.
//
// Errors: those of the clock.
func (g *Gate) Tainted(ctx context.Context, c *Caller, run string) (string, error) {
	if g.taints == nil {
		return "", nil
	}
	stamp, err := g.clock.Now(ctx)
	if err != nil {
		return "", fault.Wrap("gate.Tainted", err)
	}
	if bound := c.identity.Sandbox; bound != "" {
		run = bound
	}
	return g.taints.Tainted(c.identity.ID, run, stamp.Time()), nil
}

// Taint marks the caller's session: that of run or, if its token is bound to one, of
// that. Policies read it as context.taint from the next check on. The first time is
// recorded as session_tainted, with detail. It does nothing where nothing taints.
//
// Errors: Unavailable (Degraded) if it is not durable, AuditUnavailable (Degraded) if
// it is not recorded; the session is tainted all the same, and what it was about to
// do must not be done.
func (g *Gate) Taint(ctx context.Context, c *Caller, run, by string, detail map[string]string) error {
	const op fault.Op = "gate.Taint"
	if g.taints == nil {
		return nil
	}
	if bound := c.identity.Sandbox; bound != "" {
		run = bound
	}
	first, err := g.taints.Taint(ctx, c.identity.ID, run, by)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if !first {
		return nil
	}
	stamp, err := g.clock.Now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	_, err = g.write(ctx, audit.Record{
		ID: creto.NewUUIDAt(stamp.Time()), Stamp: stamp, Who: c.identity.ID, OnBehalfOf: c.Chain().Human(), Chain: c.Chain().Digest(),
		What: audit.EventSessionTainted, Resource: creto.Resource{Type: "Agent", ID: c.identity.ID.Name}.String(), Outcome: audit.Success, Why: text(by, maxTextBytes),
		Sandbox: text(run, maxTextBytes), Detail: bounded(detail, nil),
	})
	return fault.Wrap(op, err)
}

// Refuse records an action that its door refuses before any policy is asked, as Do
// records a denial: who, for whom, durably. It returns why, never nil.
//
// Errors: why, joined with AuditUnavailable (Degraded) if it cannot be recorded; those
// of Do on identity, in place of why.
func (g *Gate) Refuse(ctx context.Context, c *Caller, action creto.Action, why error, detail map[string]string) (audit.RecordID, error) {
	const op fault.Op = "gate.Refuse"
	p := &pass{gate: g, caller: c, action: action}
	if err := p.admit(); err != nil {
		if _, known := creto.ResourceType(action.Name); !known {
			return audit.RecordID{}, fault.Wrap(op, err)
		}
		return p.refuse(ctx, fault.Wrap(op, err))
	}
	caller, stamp, standing, err := g.renewed(ctx, c)
	p.caller = caller
	if err != nil {
		p.disown()
		return p.refuse(ctx, fault.Wrap(op, err))
	}
	p.stamp, p.chain, p.detail = stamp, standing.chain, bounded(detail, nil)
	return p.refuse(ctx, why)
}
