package oversight

import (
	"context"
	"database/sql"
	"slices"
	"unicode/utf8"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

// Decision is a human's answer, as it arrives in a channel that knows who By
// is.
type Decision struct {
	By      creto.ID
	Approve bool
	Channel string
	Reason  string
}

// Decide answers a pending request. The first decision wins. It is in force
// only once it is recorded.
//
// Errors: NotFound (Permanent), also for another tenant's request;
// InvalidArgument (Permanent) for an unknown channel or a reason of more than
// 1,000 bytes; PermissionDenied (Security) if By may not answer it;
// FailedPrecondition (Permanent) if it is answered or has expired;
// AuditUnavailable (Degraded) if the answer cannot be recorded.
func (d *Desk) Decide(ctx context.Context, id string, decision Decision) (Request, error) {
	const op fault.Op = "oversight.Decide"
	r, err := d.Show(ctx, id)
	if err != nil {
		return r, fault.Wrap(op, err)
	}
	if _, ok := verification[decision.Channel]; !ok {
		return r, fault.New(op, fault.InvalidArgument, "%q is no channel", decision.Channel)
	}
	if len(decision.Reason) > maxReasonBytes || !utf8.ValidString(decision.Reason) {
		return r, fault.New(op, fault.InvalidArgument, "the reason is no text of at most %d bytes", maxReasonBytes)
	}
	if err := d.eligible(ctx, r, decision); err != nil {
		return r, fault.Wrap(op, err)
	}
	// Better no answer than one that the log does not know of.
	if err := d.log.Ping(ctx); err != nil {
		return r, fault.Wrap(op, err)
	}
	now, err := d.clock.Now(ctx)
	if err != nil {
		return r, fault.Wrap(op, err)
	}
	state, event := Denied, audit.EventOversightDenied
	if decision.Approve {
		state, event = Approved, audit.EventApproved
	}
	result, err := d.db.ExecContext(ctx, `UPDATE oversight_request SET state = $1, decided_by = $2, decided_ns = $3, channel = $4, reason = $5
		WHERE id = $6 AND state = 'pending' AND expires_ns > $3`, string(state), decision.By.String(), now.Physical, decision.Channel, decision.Reason, id)
	if err != nil {
		return r, db.Classify(op, err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return r, db.Classify(op, err)
	}
	// From here on the answer stands, and its caller cannot take it back.
	ctx = context.WithoutCancel(ctx)
	if r, err = d.show(ctx, id); err != nil {
		return r, fault.Wrap(op, err)
	}
	if n == 0 {
		if r.State == Pending {
			return r, fault.New(op, fault.FailedPrecondition, "the request has expired")
		}
		return r, fault.New(op, fault.FailedPrecondition, "the request is %s already", r.State)
	}
	record := d.event(r, event, decision.By, audit.Success)
	record.Why = decision.Reason
	record.Detail["channel"], record.Detail["verification"] = decision.Channel, verification[decision.Channel]
	if _, err = d.log.Log(ctx, record); err != nil {
		d.undo(ctx, r, state, Pending)
		return r, fault.Wrap(op, err)
	}
	d.announce(id)
	return r, nil
}

// eligible: the human at the root for "principal"; else a member of the group
// who is nowhere in the chain (R-OVS-13) and did not consent before. An agent never decides (R-OVS-9), and
// a program only where the channel says so.
func (d *Desk) eligible(ctx context.Context, r Request, decision Decision) error {
	const op fault.Op = "oversight.eligible"
	by := decision.By
	if !r.inTenantOf(by) {
		return fault.New(op, fault.NotFound, "there is no request %q", r.ID)
	}
	if by.Kind != creto.KindHuman && (by.Kind != creto.KindWorkload || decision.Channel != ChannelAuto) {
		return fault.New(op, fault.PermissionDenied, "%s %q is no human, and cannot answer this", by.Kind, by.Name)
	}
	if r.Approvers == authz.Principal {
		if by == r.OnBehalfOf {
			return nil
		}
		return fault.New(op, fault.PermissionDenied, "only %s may answer this", r.OnBehalfOf.Name)
	}
	if slices.Contains(r.Chain, by) {
		return fault.New(op, fault.PermissionDenied, "%s is part of the chain that asks, and cannot answer it", by.Name)
	}
	if slices.Contains(r.Consented, by) {
		return fault.New(op, fault.PermissionDenied, "%s consented already; this is for another member of %q", by.Name, r.Approvers)
	}
	groups, err := d.groups(ctx, by)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if !slices.Contains(groups, r.Approvers) {
		return fault.New(op, fault.PermissionDenied, "%s is not in the group %q that must answer this", by.Name, r.Approvers)
	}
	return nil
}

// Consume implements gate.Approver.
func (d *Desk) Consume(ctx context.Context, ids ...string) error {
	const op fault.Op = "oversight.Consume"
	now, err := d.clock.Now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	err = db.Tx(ctx, d.db, func(tx *sql.Tx) error {
		for i, id := range ids {
			// The first of several stands for the action: recover records one
			// outcome.
			result, err := tx.ExecContext(ctx, "UPDATE oversight_request SET state = 'consumed', finished = $1 WHERE id = $2 AND state = 'approved' AND expires_ns > $3",
				min(i, 1), id, now.Physical)
			if err != nil {
				return db.Classify(op, err)
			}
			if n, err := result.RowsAffected(); err != nil || n == 0 {
				return fault.New(op, fault.FailedPrecondition, "the approval %s has been used or has expired; ask again", id)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	// The approvals are this caller's alone now; if it cannot be recorded that
	// they are spent, the action does not start and they are good again.
	ctx = context.WithoutCancel(ctx)
	for _, id := range ids {
		r, err := d.show(ctx, id)
		if err == nil {
			_, err = d.log.Log(ctx, d.event(r, audit.EventConsentConsumed, r.Agent, audit.Success))
		}
		if err != nil {
			for _, id := range ids {
				d.undo(ctx, Request{ID: id}, Consumed, Approved)
			}
			return fault.Wrap(op, err)
		}
	}
	d.announce(ids...)
	return nil
}

// Finish implements gate.Approver.
func (d *Desk) Finish(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		if _, err := d.db.ExecContext(ctx, "UPDATE oversight_request SET finished = 1 WHERE id = $1", id); err != nil {
			return db.Classify("oversight.Finish", err)
		}
	}
	return nil
}
