// Package metering accounts for what agents use. So far it holds quotas: how
// often an agent may take an action within a window.
package metering

import (
	"context"
	"database/sql"
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
type Quota struct {
	db    *sql.DB
	clock consensus.Clock

	mu      sync.Mutex // guards what follows
	budgets map[key]*budget
	held    map[uint64]*budget
	next    uint64
}

var (
	_ authz.Extension = (*Quota)(nil)
	_ gate.Meter      = (*Quota)(nil)
)

// key names a budget: everything that the agent does counts, whoever it acts
// for.
type key struct {
	agent  string
	action string
}

type budget struct {
	Limit
	start time.Time // of the current window
	used  int64     // including what is held
}

// Limit allows Amount actions in each Window. Windows are aligned to the Unix
// epoch.
type Limit struct {
	Amount int64
	Window time.Duration
}

// OpenQuota reads the limits, and what was used of them from log.
//
// Errors: Unavailable (Degraded).
func OpenQuota(ctx context.Context, d *sql.DB, clock consensus.Clock, log audit.Log) (*Quota, error) {
	const op fault.Op = "metering.OpenQuota"
	q := &Quota{db: d, clock: clock, budgets: make(map[key]*budget), held: make(map[uint64]*budget)}
	rows, err := d.QueryContext(ctx, "SELECT agent, action, amount, window_ns FROM quota")
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var k key
		var l Limit
		if err := rows.Scan(&k.agent, &k.action, &l.Amount, &l.Window); err != nil {
			return nil, db.Classify(op, err)
		}
		q.budgets[k] = &budget{Limit: l}
	}
	if err := rows.Err(); err != nil {
		return nil, db.Classify(op, err)
	}
	for k, b := range q.budgets {
		if err := q.recount(ctx, k, b, log); err != nil {
			return nil, fault.Wrap(op, err)
		}
	}
	return q, nil
}

// recount sets what was used in the current window from the log.
func (q *Quota) recount(ctx context.Context, k key, b *budget, log audit.Log) error {
	now, err := q.clock.Now(ctx)
	if err != nil {
		return err
	}
	b.start = now.Time().Truncate(b.Window)
	filter := audit.Filter{Actor: k.agent, What: k.action, Limit: 1000}
	for {
		page, err := log.Query(ctx, filter)
		if err != nil {
			return err
		}
		for _, e := range page {
			if e.Record.Stamp.Time().Before(b.start) {
				return nil
			}
			if e.Record.Outcome != audit.Denied {
				b.used++
			}
		}
		if len(page) < filter.Limit {
			return nil
		}
		filter.Before = page[len(page)-1].Index
	}
}

// SetLimit limits how often agent may take action; a zero amount removes the
// limit.
//
// Errors: InvalidArgument (Permanent), Unavailable (Degraded).
func (q *Quota) SetLimit(ctx context.Context, agent creto.ID, action string, l Limit) error {
	const op fault.Op = "metering.SetLimit"
	if _, ok := creto.ResourceType(action); !ok {
		return fault.New(op, fault.InvalidArgument, "%q is no action", action)
	}
	if l.Amount < 0 || l.Amount > 0 && l.Window < time.Second {
		return fault.New(op, fault.InvalidArgument, "a quota is a positive amount per window of at least 1s, such as 100/1h")
	}
	k := key{agent.String(), action}
	if l.Amount == 0 {
		if _, err := q.db.ExecContext(ctx, "DELETE FROM quota WHERE agent = $1 AND action = $2", k.agent, k.action); err != nil {
			return db.Classify(op, err)
		}
	} else if _, err := q.db.ExecContext(ctx, `INSERT INTO quota (agent, action, amount, window_ns) VALUES ($1, $2, $3, $4)
		ON CONFLICT (agent, action) DO UPDATE SET amount = excluded.amount, window_ns = excluded.window_ns`, k.agent, k.action, l.Amount, int64(l.Window)); err != nil {
		return db.Classify(op, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch b := q.budgets[k]; {
	case l.Amount == 0:
		delete(q.budgets, k)
	case b == nil:
		q.budgets[k] = &budget{Limit: l}
	default:
		b.Limit = l
	}
	return nil
}

// Name implements authz.Extension.
func (q *Quota) Name() string { return "quota_enforcer" }

// Evaluate implements authz.Extension: the limit of the acting agent counts,
// whoever it acts for.
func (q *Quota) Evaluate(ctx context.Context, chain nhi.VerifiedChain, r authz.Request, reserve bool) (authz.Decision, bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.budgets) == 0 {
		return authz.Decision{}, false, nil
	}
	b := q.budgets[key{chain.Agent().String(), r.Action}]
	if b == nil {
		return authz.Decision{}, false, nil
	}
	stamp, err := q.clock.Now(ctx)
	if err != nil {
		return authz.Decision{}, false, fault.Wrap("metering.Evaluate", err)
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
	q.held[q.next] = b
	return authz.Decision{Reservation: authz.Reservation{ID: q.next, Amount: 1}}, false, nil
}

// Commit implements gate.Meter.
func (q *Quota) Commit(r authz.Reservation) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.held, r.ID)
}

// Refund implements gate.Meter and authz.Extension.
func (q *Quota) Refund(r authz.Reservation) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if b := q.held[r.ID]; b != nil {
		delete(q.held, r.ID)
		b.used = max(0, b.used-r.Amount)
	}
}
