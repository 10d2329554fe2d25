package login

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/internal/db"
	"creto.dev/nhi"
)

// PendingTTL is how long a delegation waits for its human.
const PendingTTL = 15 * time.Minute

// maxPending bounds the delegations that wait for one human.
const maxPending = 64

// State is what became of a delegation that waits.
type State string

// The states.
const (
	Pending   State = "pending"
	Confirmed State = "confirmed"
	Declined  State = "declined"
	Expired   State = "expired"
)

// Shown is what a human sees of a delegation beside the link: what bounds the
// agent today, and may change without them.
type Shown struct {
	// Policy is the text of the agent's policy, Quotas its quotas.
	Policy string   `cbor:"1,keyasint"`
	Quotas []string `cbor:"2,keyasint"`
}

// Delegation is one that waits, or waited, for its human.
type Delegation struct {
	ID string
	// Link is what the human confirms, without its proof. Its issuer is that
	// human.
	Link    nhi.Link
	Shown   Shown
	AskedBy creto.ID
	State   State
	Created time.Time
	Expires time.Time
}

// Delegate signs a link with its proof.
type Delegate func(ctx context.Context, link nhi.Link, proof nhi.Proof) (nhi.VerifiedChain, error)

// Delegations are those that wait for a proof of their human. Safe for
// concurrent use.
type Delegations struct {
	db       *sql.DB
	clock    consensus.Clock
	log      audit.Log
	delegate Delegate
}

// NewDelegations returns the delegations in d. What is confirmed, delegate
// makes.
func NewDelegations(d *sql.DB, clock consensus.Clock, log audit.Log, delegate Delegate) *Delegations {
	return &Delegations{db: d, clock: clock, log: log, delegate: delegate}
}

// Ask lets a drafted link wait for its human, for PendingTTL. One that waited
// for the same agent is declined.
//
// Errors: InvalidArgument (Permanent) for a link that is not a human's;
// ResourceExhausted (Transient) if too many wait; Unavailable (Degraded).
func (d *Delegations) Ask(ctx context.Context, link nhi.Link, shown Shown, by creto.ID) (Delegation, error) {
	const op fault.Op = "login.Delegations.Ask"
	if link.Issuer.Kind != creto.KindHuman || !link.Parent.IsZero() {
		return Delegation{}, fault.New(op, fault.InvalidArgument, "only a human's delegation waits for its human")
	}
	now, err := d.clock.Now(ctx)
	if err != nil {
		return Delegation{}, fault.Wrap(op, err)
	}
	p := Delegation{ID: creto.NewUUID().String(), Link: link, Shown: shown, AskedBy: by, State: Pending, Created: now.Time(), Expires: now.Time().Add(PendingTTL)}
	p.Link.Proof = nhi.Proof{}
	draft, err := canon.Marshal(p.Link)
	if err != nil {
		return Delegation{}, fault.Wrap(op, err)
	}
	more, err := canon.Marshal(shown)
	if err != nil {
		return Delegation{}, fault.Wrap(op, err)
	}
	err = db.Tx(ctx, d.db, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "UPDATE pending_delegation SET state = $1 WHERE agent = $2 AND state = $3", string(Declined), link.Subject.String(), string(Pending)); err != nil {
			return db.Classify(op, err)
		}
		var waiting int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM pending_delegation WHERE issuer = $1 AND state = $2 AND expires_ns > $3", link.Issuer.String(), string(Pending), now.Physical).Scan(&waiting); err != nil {
			return db.Classify(op, err)
		}
		if waiting >= maxPending {
			return fault.New(op, fault.ResourceExhausted, "%d delegations wait for %s already", waiting, link.Issuer.Name)
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO pending_delegation (id, issuer, agent, draft, shown, asked_by, state, created_ns, expires_ns) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
			p.ID, link.Issuer.String(), link.Subject.String(), draft, more, by.String(), string(Pending), now.Physical, p.Expires.UnixNano())
		return db.Classify(op, err)
	})
	if err != nil {
		return Delegation{}, err
	}
	_, err = d.log.Log(ctx, audit.Record{
		Who: by, What: audit.EventDelegationAsked, Resource: "Agent::" + link.Subject.Name, Outcome: audit.Success, Detail: map[string]string{"on_behalf_of": link.Issuer.String(), "delegation": p.ID},
	})
	return p, fault.Wrap(op, err)
}

// Show returns one.
//
// Errors: NotFound (Permanent); Unavailable (Degraded).
func (d *Delegations) Show(ctx context.Context, id string) (Delegation, error) {
	list, err := d.read(ctx, "WHERE id = $1", id)
	if err != nil {
		return Delegation{}, err
	}
	if len(list) == 0 {
		return Delegation{}, errNoDelegation
	}
	return list[0], nil
}

// errNoDelegation is the same for one that is not there and one that is
// somebody else's.
var errNoDelegation = fault.New("login.Delegations", fault.NotFound, "there is no such delegation, or it does not wait for you")

// For returns what waits for a human, the oldest first.
//
// Errors: Unavailable (Degraded).
func (d *Delegations) For(ctx context.Context, human creto.ID) ([]Delegation, error) {
	list, err := d.read(ctx, "WHERE issuer = $1 AND state = 'pending' ORDER BY created_ns", human.String())
	if err != nil {
		return nil, err
	}
	var waiting []Delegation
	for _, p := range list {
		if p.State == Pending {
			waiting = append(waiting, p)
		}
	}
	return waiting, nil
}

func (d *Delegations) read(ctx context.Context, where string, args ...any) ([]Delegation, error) {
	const op fault.Op = "login.Delegations.read"
	now, err := d.clock.Now(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	rows, err := d.db.QueryContext(ctx, "SELECT id, draft, shown, asked_by, state, created_ns, expires_ns FROM pending_delegation "+where, args...)
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	var list []Delegation
	for rows.Next() {
		var p Delegation
		var draft, shown []byte
		var by string
		var created, expires int64
		if err := rows.Scan(&p.ID, &draft, &shown, &by, &p.State, &created, &expires); err != nil {
			return nil, db.Classify(op, err)
		}
		p.Created, p.Expires = time.Unix(0, created), time.Unix(0, expires)
		if p.State == Pending && now.Physical >= expires {
			p.State = Expired
		}
		if p.AskedBy, err = creto.ParseID(by); err != nil {
			return nil, fault.Wrap(op, err)
		}
		if err := errors.Join(canon.Unmarshal(draft, &p.Link), canon.Unmarshal(shown, &p.Shown)); err != nil {
			return nil, fault.WrapAs(op, fault.DataLoss, err, "a waiting delegation is damaged")
		}
		list = append(list, p)
	}
	return list, db.Classify(op, rows.Err())
}

// Mine returns one that waits for human.
//
// Errors: NotFound (Permanent), also for somebody else's; FailedPrecondition
// (Permanent) for one that waits no more; Unavailable (Degraded).
func (d *Delegations) Mine(ctx context.Context, id string, human creto.ID) (Delegation, error) {
	p, err := d.Show(ctx, id)
	switch {
	case err != nil:
		return Delegation{}, err
	case p.Link.Issuer != human:
		return Delegation{}, errNoDelegation
	case p.State != Pending:
		return Delegation{}, fault.New("login.Delegations.Mine", fault.FailedPrecondition, "this delegation is %s", p.State)
	}
	return p, nil
}

// Confirm makes the delegation that waits for human, with their proof. It counts
// once: if it fails, it waits again.
//
// Errors: those of Mine; NHIDelegationVerificationFailed (Security) for a proof
// that is not over exactly this, or if something was revoked since.
func (d *Delegations) Confirm(ctx context.Context, id string, human creto.ID, proof nhi.Proof) (nhi.VerifiedChain, error) {
	const op fault.Op = "login.Delegations.Confirm"
	p, err := d.Mine(ctx, id, human)
	if err != nil {
		return nhi.VerifiedChain{}, err
	}
	if err := d.turn(ctx, id, Pending, Confirmed); err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	chain, err := d.delegate(ctx, p.Link, proof)
	if err != nil {
		return nhi.VerifiedChain{}, errors.Join(fault.Wrap(op, err), d.turn(context.WithoutCancel(ctx), id, Confirmed, Pending))
	}
	digest := chain.Digest()
	if _, err := d.db.ExecContext(ctx, "UPDATE pending_delegation SET chain = $1 WHERE id = $2", digest[:], id); err != nil {
		return nhi.VerifiedChain{}, db.Classify(op, err)
	}
	_, err = d.log.Log(ctx, audit.Record{
		Who: human, What: audit.EventDelegationIssued, Resource: "Agent::" + p.Link.Subject.Name, Outcome: audit.Success,
		Detail: map[string]string{"chain": digest.String(), "on_behalf_of": human.String(), "proof": proof.Kind, "known": proof.String(), "delegation": id},
	})
	return chain, fault.Wrap(op, err)
}

// Decline ends one that waits for human.
//
// Errors: those of Mine.
func (d *Delegations) Decline(ctx context.Context, id string, human creto.ID) error {
	const op fault.Op = "login.Delegations.Decline"
	p, err := d.Mine(ctx, id, human)
	if err != nil {
		return err
	}
	if err := d.turn(ctx, id, Pending, Declined); err != nil {
		return fault.Wrap(op, err)
	}
	_, err = d.log.Log(ctx, audit.Record{
		Who: human, What: audit.EventDelegationDeclined, Resource: "Agent::" + p.Link.Subject.Name, Outcome: audit.Success, Detail: map[string]string{"delegation": id},
	})
	return fault.Wrap(op, err)
}

// turn changes a state that nobody else changed.
func (d *Delegations) turn(ctx context.Context, id string, from, to State) error {
	const op fault.Op = "login.Delegations.turn"
	result, err := d.db.ExecContext(ctx, "UPDATE pending_delegation SET state = $1 WHERE id = $2 AND state = $3", string(to), id, string(from))
	if err != nil {
		return db.Classify(op, err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(fault.New(op, fault.FailedPrecondition, "this delegation was answered in the meantime"), err)
	}
	return nil
}
