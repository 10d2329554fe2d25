package oversight

import (
	"bytes"
	"context"
	"slices"
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
		Human: r.DecidedBy.Kind == creto.KindHuman && r.Channel != ChannelAuto, Policy: r.Policy, ExpiresNS: r.Expires.UnixNano(),
	}
}

// inTenantOf reports whether id may know of the request.
func (r Request) inTenantOf(id creto.ID) bool {
	return r.Agent.TrustDomain == id.TrustDomain && r.Agent.Tenant == id.Tenant
}

// visible reports whether the caller that ctx carries may know of the request;
// without one the node itself asks.
func (r Request) visible(ctx context.Context) bool {
	caller := creto.CallerOf(ctx)
	return caller.IsZero() || r.inTenantOf(caller)
}

// Show returns one request. A caller that ctx carries sees its own tenant's.
//
// Errors: NotFound (Permanent); DataLoss (Security) if the row was changed by
// somebody else than Creto.
func (d *Desk) Show(ctx context.Context, id string) (Request, error) {
	r, err := d.show(ctx, id)
	if err == nil && !r.visible(ctx) {
		return Request{}, fault.New("oversight.Show", fault.NotFound, "there is no request %q", id)
	}
	return r, err
}

func (d *Desk) show(ctx context.Context, id string) (Request, error) {
	list, damaged, err := d.query(ctx, "id = $1", id)
	switch {
	case err != nil:
		return Request{}, err
	case damaged[id] != nil:
		return Request{}, damaged[id]
	case len(list) == 0:
		return Request{}, fault.New("oversight.Show", fault.NotFound, "there is no request %q", id)
	}
	return list[0], nil
}

// List returns the requests in a state, or all with "", the oldest first. A
// caller that ctx carries sees its own tenant's. Damaged ones are left out, and
// logged: they cannot be answered.
func (d *Desk) List(ctx context.Context, state State) ([]Request, error) {
	where, args := "1 = 1", []any(nil)
	if state != "" {
		where, args = "state = $1", []any{string(state)}
	}
	list, damaged, err := d.query(ctx, where, args...)
	d.warn(ctx, damaged)
	return slices.DeleteFunc(list, func(r Request) bool { return !r.visible(ctx) }), err
}

// query returns the requests that a condition of this package selects, and by
// their ids what is wrong with those that do not hold what was asked.
func (d *Desk) query(ctx context.Context, where string, args ...any) ([]Request, map[string]error, error) {
	const op fault.Op = "oversight.query"
	rows, err := d.db.QueryContext(ctx, `SELECT id, digest, on_behalf_of, body, approvers, state, created_ns, expires_ns, decided_by, decided_ns, channel, reason
		FROM oversight_request WHERE `+where+" ORDER BY created_ns, id", args...)
	if err != nil {
		return nil, nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	var list []Request
	damaged := make(map[string]error)
	for rows.Next() {
		var w row
		if err := rows.Scan(&w.id, &w.digest, &w.human, &w.body, &w.approvers, &w.state, &w.created, &w.expires, &w.by, &w.decided, &w.channel, &w.reason); err != nil {
			return nil, nil, db.Classify(op, err)
		}
		r, err := w.request()
		if err != nil {
			damaged[w.id] = err
			continue
		}
		list = append(list, r)
	}
	return list, damaged, db.Classify(op, rows.Err())
}

// row is a request as the database holds it.
type row struct {
	id, human, approvers, state, by, channel, reason string
	digest, body                                     []byte
	created, expires, decided                        int64
}

// request reads the row. What is shown must be what the consent is bound to.
//
// Errors: DataLoss (Security).
func (w row) request() (Request, error) {
	const op fault.Op = "oversight.request"
	var b body
	if err := canon.Unmarshal(w.body, &b); err != nil {
		return Request{}, fault.WrapAs(op, fault.DataLoss, err, "the request %s is damaged", w.id)
	}
	q := b.Question
	digest, err := q.Digest()
	if err != nil {
		return Request{}, fault.Wrap(op, err)
	}
	changed := !bytes.Equal(digest[:], w.digest) || q.Args != (creto.Action{Args: b.Args}).ArgsDigest() || q.ID != w.id || q.ExpiresNS != w.expires ||
		len(b.Chain) < 2 || b.Chain[0].String() != w.human || b.Chain[len(b.Chain)-1] != q.Agent
	r := Request{
		ID: w.id, State: State(w.state), Digest: digest, Agent: q.Agent, Chain: b.Chain, Action: q.Action, Resource: q.Resource,
		Args: b.Args, ArgsDigest: q.Args, ChainDigest: q.Chain, Context: b.Context, Policy: q.Policy, Approvers: w.approvers,
		Quorum: max(b.Quorum, 1), Consented: b.Consented,
		Created: time.Unix(0, w.created).UTC(), Expires: time.Unix(0, w.expires).UTC(), Channel: w.channel, Reason: w.reason,
	}
	if changed || r.DecidedBy.UnmarshalText([]byte(w.by)) != nil {
		return Request{}, fault.New(op, fault.DataLoss, "the request %s was changed behind Creto's back", w.id)
	}
	r.OnBehalfOf = b.Chain[0]
	if w.decided != 0 {
		r.DecidedAt = time.Unix(0, w.decided).UTC()
	}
	return r, nil
}
