// Package metering accounts for what agents use. So far it holds quotas: how
// often an agent may take an action within a window.
package metering

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/internal/db"
	"creto.dev/nhi"
)

// Quota enforces limits inline, as an extension of authorization (R-AZ-10,
// R-MET-3, R-MET-10, B-17). What is used is held in memory and, after a
// restart, counted again from the audit log, which is the only record of it.
// What an action of gate used is said by gate.Charged, now and then.
type Quota struct {
	db    *sql.DB
	clock consensus.Clock
	log   audit.Log

	setting sync.Mutex // held while limits change, in the database and here

	mu      sync.Mutex // guards what follows
	budgets map[key]*budget
	held    map[uint64]hold
	next    uint64
}

var (
	_ authz.Extension = (*Quota)(nil)
	_ gate.Meter      = (*Quota)(nil)
)

// key names a budget: everything that the agent does counts, whoever it acts
// for.
type key struct {
	agent  creto.ID
	action string
}

type budget struct {
	Limit
	start time.Time // of the current window
	used  int64     // including what is held
}

// hold is a reservation: what it holds goes back to the window that it was
// taken from, or to none.
type hold struct {
	budget *budget
	start  time.Time
}

// Limit allows Amount actions in each Window. Windows are aligned to Go's zero
// time, in UTC: those of hours and days begin on the hour and at midnight.
type Limit struct {
	Amount int64
	Window time.Duration
}

// OpenQuota reads the limits, and what was used of them from log.
//
// Errors: Unavailable (Degraded); DataLoss (Security) for a limit that cannot
// be read.
func OpenQuota(ctx context.Context, d *sql.DB, clock consensus.Clock, log audit.Log) (*Quota, error) {
	const op fault.Op = "metering.OpenQuota"
	q := &Quota{db: d, clock: clock, log: log, budgets: make(map[key]*budget), held: make(map[uint64]hold)}
	rows, err := d.QueryContext(ctx, "SELECT agent, action, amount, window_ns FROM quota")
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var agent string
		var k key
		var l Limit
		if err := rows.Scan(&agent, &k.action, &l.Amount, &l.Window); err != nil {
			return nil, db.Classify(op, err)
		}
		if k.agent, err = creto.ParseID(agent); err != nil || l.validate() != nil {
			return nil, fault.New(op, fault.DataLoss, "the quota of %q on %s is damaged", agent, k.action)
		}
		q.budgets[k] = &budget{Limit: l}
	}
	if err := rows.Err(); err != nil {
		return nil, db.Classify(op, err)
	}
	for k, b := range q.budgets {
		if b.start, b.used, err = q.recount(ctx, k, b.Window); err != nil {
			return nil, fault.Wrap(op, err)
		}
	}
	return q, nil
}

// recount returns the current window's start, and what the log says was used
// in it.
func (q *Quota) recount(ctx context.Context, k key, window time.Duration) (time.Time, int64, error) {
	now, err := q.clock.Now(ctx)
	if err != nil {
		return time.Time{}, 0, err
	}
	start := now.Time().Truncate(window)
	used, _, err := q.count(ctx, k, start, time.Time{})
	return start, used, err
}

// count returns what the log says was used, and refused, from a time until
// another; the zero time is no end.
func (q *Quota) count(ctx context.Context, k key, since, until time.Time) (used, refused int64, err error) {
	f := audit.Filter{Actor: k.agent.String(), What: k.action, Since: since, Until: until, Oldest: true, Limit: audit.MaxPage}
	for {
		page, err := q.log.Query(ctx, f)
		if err != nil {
			return 0, 0, err
		}
		for _, e := range page {
			switch {
			case gate.Charged(e.Record):
				used++
			case e.Record.Event() == audit.EventQuotaExceeded:
				refused++
			}
			f.From = e.Index + 1
		}
		if len(page) < f.Limit {
			return used, refused, nil
		}
	}
}

func (l Limit) validate() error {
	if l.Amount < 0 || l.Amount > 0 && l.Window < time.Second {
		return fault.New("metering.Limit", fault.InvalidArgument, "a quota is a positive amount per window of at least 1s, such as 100/1h")
	}
	return nil
}

// SetLimit limits how often agent may take action; a zero amount removes the
// limit. What was used already counts.
//
// Errors: InvalidArgument (Permanent), Unavailable (Degraded).
func (q *Quota) SetLimit(ctx context.Context, agent creto.ID, action string, l Limit) error {
	const op fault.Op = "metering.SetLimit"
	if _, ok := creto.ResourceType(action); !ok {
		return fault.New(op, fault.InvalidArgument, "%q is no action", action)
	}
	if err := errors.Join(agent.Validate(), l.validate()); err != nil {
		return fault.Wrap(op, err)
	}
	q.setting.Lock()
	defer q.setting.Unlock()
	k := key{agent, action}
	if l.Amount == 0 {
		if _, err := q.db.ExecContext(ctx, "DELETE FROM quota WHERE agent = $1 AND action = $2", agent.String(), action); err != nil {
			return db.Classify(op, err)
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.budgets, k)
		return nil
	}
	start, used, err := q.recount(ctx, k, l.Window)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if _, err := q.db.ExecContext(ctx, `INSERT INTO quota (agent, action, amount, window_ns) VALUES ($1, $2, $3, $4)
		ON CONFLICT (agent, action) DO UPDATE SET amount = excluded.amount, window_ns = excluded.window_ns`, agent.String(), action, l.Amount, int64(l.Window)); err != nil {
		return db.Classify(op, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	old := q.budgets[k]
	if old != nil && old.Window == l.Window {
		old.Amount = l.Amount // its count is exact
		return nil
	}
	b := &budget{Limit: l, start: start, used: used}
	for id, h := range q.held { // what is under way has no record yet
		if old != nil && h.budget == old {
			b.used++
			q.held[id] = hold{b, start}
		}
	}
	q.budgets[k] = b
	return nil
}

// Name implements authz.Extension.
func (q *Quota) Name() string { return "quota_enforcer" }

// Bind implements authz.Extension: the limit of the acting agent counts, whoever
// it acts for.
func (q *Quota) Bind(_ context.Context, chain nhi.VerifiedChain) (authz.Evaluator, error) {
	return evaluator{q, chain.Agent()}, nil
}

// evaluator is the quota of one agent.
type evaluator struct {
	*Quota
	agent creto.ID
}

// Evaluate implements authz.Evaluator.
func (q evaluator) Evaluate(ctx context.Context, r authz.Request, reserve bool) (authz.Decision, bool, error) {
	k := key{q.agent, r.Action}
	q.mu.Lock()
	limited := q.budgets[k] != nil
	q.mu.Unlock()
	if !limited {
		return authz.Decision{}, false, nil
	}
	stamp, err := q.clock.Now(ctx)
	if err != nil {
		return authz.Decision{}, false, fault.Wrap("metering.Evaluate", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.budgets[k]
	if b == nil {
		return authz.Decision{}, false, nil // removed just now
	}
	// A window never goes back, so a clock that does cannot grant twice.
	if start := stamp.Time().Truncate(b.Window); start.After(b.start) {
		b.start, b.used = start, 0
	}
	if b.used >= b.Amount {
		reset := b.start.Add(b.Window)
		return authz.Decision{
			Kind: authz.QuotaExceeded, Limit: b.Amount, Used: b.used, ResetAt: reset,
			Reason: fmt.Sprintf("the quota of %d %s in %v is used up until %s", b.Amount, r.Action, b.Window, reset.UTC().Format(time.RFC3339)),
		}, true, nil
	}
	if !reserve {
		return authz.Decision{}, false, nil
	}
	b.used++
	q.next++
	q.held[q.next] = hold{b, b.start}
	return authz.Decision{Reservation: authz.Reservation{ID: q.next, Amount: 1}}, false, nil
}

// Commit implements gate.Meter.
func (q *Quota) Commit(r authz.Reservation) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.held, r.ID)
}

// Refund implements gate.Meter and authz.Extension. A window that is over takes
// nothing back.
func (q *Quota) Refund(r authz.Reservation) {
	q.mu.Lock()
	defer q.mu.Unlock()
	h, ok := q.held[r.ID]
	if !ok {
		return
	}
	delete(q.held, r.ID)
	if h.start.Equal(h.budget.start) {
		h.budget.used--
	}
}
