package injection

import (
	"context"
	"database/sql"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

// Taints remembers which sessions have read what looks like an attack. A run is
// tainted until it ends; an agent that acts with a token of its own, which it could
// replace, for a time. It survives a restart. Safe for concurrent use.
type Taints struct {
	db    *sql.DB
	clock consensus.Clock
	last  time.Duration // of an agent without a run

	mu    sync.Mutex                           // serialises changes of known; guards over, before
	known atomic.Pointer[map[string]taintedBy] // replaced, never changed
	// over are the sessions of runs that ended, the last ones; before is what was over
	// when that was full.
	over, before map[string]bool
}

// maxOver bounds how many ended runs are remembered at least, in case one of their
// requests is still under way.
const maxOver = 4096

// taintedBy is by what a session is tainted, and until when; 0 is until it ends.
type taintedBy struct {
	by      string
	until   int64
	written bool // it is in the database
}

// renewTaint is how much longer a taint must become to be written again.
const renewTaint = time.Minute

// OpenTaints loads what an earlier life left. last is how long an agent that is in no
// run stays tainted.
//
// Errors: those of the database and the clock.
func OpenTaints(ctx context.Context, d *sql.DB, clock consensus.Clock, last time.Duration) (*Taints, error) {
	const op fault.Op = "injection.OpenTaints"
	now, err := clock.Now(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	if _, err := d.ExecContext(ctx, "DELETE FROM session_taint WHERE until_ns > 0 AND until_ns <= $1", now.Physical); err != nil {
		return nil, db.Classify(op, err)
	}
	rows, err := d.QueryContext(ctx, "SELECT session, cause, until_ns FROM session_taint")
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	known := map[string]taintedBy{}
	for rows.Next() {
		var session string
		var t taintedBy
		if err := rows.Scan(&session, &t.by, &t.until); err != nil {
			return nil, db.Classify(op, err)
		}
		t.written = true
		known[session] = t
	}
	t := &Taints{db: d, clock: clock, last: last, over: map[string]bool{}}
	t.known.Store(&known)
	return t, db.Classify(op, rows.Err())
}

// Session names the session of what an agent does in a run, or in none.
func Session(agent creto.ID, run string) string {
	if run != "" {
		return runPrefix + run
	}
	return agent.String()
}

const runPrefix = "run:"

// Tainted implements gate.Taints. It takes no lock.
func (t *Taints) Tainted(agent creto.ID, run string, now time.Time) string {
	known := *t.known.Load()
	if len(known) == 0 {
		return ""
	}
	found, ok := known[Session(agent, run)]
	if !ok || found.until > 0 && found.until <= now.UnixNano() {
		return ""
	}
	return found.by
}

// Taint implements gate.Taints. What cannot be written is tainted all the same, and
// written the next time.
//
// Errors: those of the database and the clock.
func (t *Taints) Taint(ctx context.Context, agent creto.ID, run, by string) (bool, error) {
	const op fault.Op = "injection.Taint"
	now, err := t.clock.Now(ctx)
	if err != nil {
		return false, fault.Wrap(op, err)
	}
	session := Session(agent, run)
	next := taintedBy{by: by}
	t.mu.Lock()
	defer t.mu.Unlock()
	if run == "" || t.over[session] || t.before[session] { // nobody ends a run twice
		next.until = now.Physical + int64(t.last)
	}
	old, ok := (*t.known.Load())[session]
	if ok && old.until > 0 && old.until <= now.Physical {
		ok = false
	}
	if ok && old.written && next.until-old.until < int64(renewTaint) {
		return false, nil
	}
	if ok {
		next.by = old.by
	}
	t.replace(func(known map[string]taintedBy) { known[session] = next })
	_, err = t.db.ExecContext(ctx, `INSERT INTO session_taint (session, cause, since_ns, until_ns) VALUES ($1, $2, $3, $4)
		ON CONFLICT (session) DO UPDATE SET cause = excluded.cause, until_ns = excluded.until_ns`, session, next.by, now.Physical, next.until)
	if err != nil {
		return !ok, db.Classify(op, err)
	}
	next.written = true
	t.replace(func(known map[string]taintedBy) { known[session] = next })
	return !ok, fault.Wrap(op, t.prune(ctx, now.Physical))
}

// prune forgets what is over. The caller holds mu.
func (t *Taints) prune(ctx context.Context, now int64) error {
	over := func(by taintedBy) bool { return by.until > 0 && by.until <= now }
	found := false
	for _, by := range *t.known.Load() {
		found = found || over(by)
	}
	if !found {
		return nil
	}
	if _, err := t.db.ExecContext(ctx, "DELETE FROM session_taint WHERE until_ns > 0 AND until_ns <= $1", now); err != nil {
		return db.Classify("injection.prune", err)
	}
	t.replace(func(known map[string]taintedBy) {
		maps.DeleteFunc(known, func(_ string, by taintedBy) bool { return over(by) })
	})
	return nil
}

// replace changes what is known. The caller holds mu.
func (t *Taints) replace(change func(map[string]taintedBy)) {
	next := maps.Clone(*t.known.Load())
	change(next)
	t.known.Store(&next)
}

// Ended forgets a run, whose sandbox is gone. What a request of it that is still under
// way taints later lasts as long as with an agent without a run.
//
// Errors: those of the database; nothing is forgotten then.
func (t *Taints) Ended(ctx context.Context, run string) error {
	const op fault.Op = "injection.Ended"
	session := Session(creto.ID{}, run)
	if !strings.HasPrefix(session, runPrefix) {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.over) >= maxOver {
		t.over, t.before = map[string]bool{}, t.over
	}
	t.over[session] = true
	if _, ok := (*t.known.Load())[session]; !ok {
		return nil
	}
	if _, err := t.db.ExecContext(ctx, "DELETE FROM session_taint WHERE session = $1", session); err != nil {
		return db.Classify(op, err)
	}
	t.replace(func(known map[string]taintedBy) { delete(known, session) })
	return nil
}
