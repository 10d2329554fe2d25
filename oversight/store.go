package oversight

import (
	"context"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/internal/db"
)

// consent returns what the record of the action says about the answer.
func (r Request) consent() audit.Consent {
	return audit.Consent{
		Request: r.Digest, ID: r.ID, Approver: r.DecidedBy.String(), Channel: r.Channel, Verification: verification[r.Channel],
		Human: r.DecidedBy.Kind == creto.KindHuman, Policy: r.Policy, ExpiresNS: r.Expires.UnixNano(),
	}
}

// Show returns one request.
//
// Errors: NotFound (Permanent).
func (d *Desk) Show(ctx context.Context, id string) (Request, error) {
	list, err := d.query(ctx, "id = $1", id)
	if err != nil {
		return Request{}, err
	}
	if len(list) == 0 {
		return Request{}, fault.New("oversight.Show", fault.NotFound, "there is no request %q", id)
	}
	return list[0], nil
}

// List returns the requests in a state, or all with "", the oldest first.
func (d *Desk) List(ctx context.Context, state State) ([]Request, error) {
	if state == "" {
		return d.query(ctx, "1 = 1")
	}
	return d.query(ctx, "state = $1", string(state))
}

// query returns the requests that a condition of this package selects.
func (d *Desk) query(ctx context.Context, where string, args ...any) ([]Request, error) {
	const op fault.Op = "oversight.query"
	rows, err := d.db.QueryContext(ctx, `SELECT id, digest, on_behalf_of, body, approvers, state, created_ns, expires_ns, decided_by, decided_ns, channel, reason
		FROM oversight_request WHERE `+where+" ORDER BY created_ns", args...)
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	var list []Request
	for rows.Next() {
		var r Request
		var digest, data []byte
		var human, by string
		var created, expires, decided int64
		if err := rows.Scan(&r.ID, &digest, &human, &data, &r.Approvers, &r.State, &created, &expires, &by, &decided, &r.Channel, &r.Reason); err != nil {
			return nil, db.Classify(op, err)
		}
		var b body
		if err := canon.Unmarshal(data, &b); err != nil {
			return nil, fault.WrapAs(op, fault.DataLoss, err, "the request %s is damaged", r.ID)
		}
		if err := r.DecidedBy.UnmarshalText([]byte(by)); err != nil {
			return nil, fault.Wrap(op, err)
		}
		if err := r.OnBehalfOf.UnmarshalText([]byte(human)); err != nil {
			return nil, fault.Wrap(op, err)
		}
		copy(r.Digest[:], digest)
		// What is shown must be what the consent is bound to.
		if shown, err := b.Question.Digest(); err != nil || shown != r.Digest || b.Question.Args != (creto.Action{Args: b.Args}).ArgsDigest() {
			return nil, fault.New(op, fault.DataLoss, "the request %s was changed behind Creto's back", r.ID)
		}
		r.Agent, r.Chain, r.Action, r.Resource = b.Question.Agent, b.Chain, b.Question.Action, b.Question.Resource
		r.Args, r.ArgsDigest, r.ChainDigest = b.Args, b.Question.Args, b.Question.Chain
		r.Context, r.Policy = b.Context, b.Question.Policy
		r.Created, r.Expires = time.Unix(0, created).UTC(), time.Unix(0, expires).UTC()
		if decided != 0 {
			r.DecidedAt = time.Unix(0, decided).UTC()
		}
		list = append(list, r)
	}
	return list, db.Classify(op, rows.Err())
}
