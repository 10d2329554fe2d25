// Package localconsensus orders events on one node. It needs no peer: the term
// is raised in the database at each start, and no stamp is ever later than a
// mark that the database holds, so a restart with a clock set back continues
// where the last life ended.
package localconsensus

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

// The mark is saved this far ahead of time, and again when less is left.
const (
	markAhead = 3 * time.Second
	markLow   = 1 * time.Second
)

// clockName is the key of the only clock in the table.
const clockName = "local"

type clock struct {
	db   *sql.DB
	node string
	term uint64
	// anchor's monotonic reading drives the clock, so a step of the wall
	// clock is never seen; base is what the wall clock, or the last life's
	// mark, said at the anchor.
	anchor time.Time
	base   int64

	mu      sync.Mutex // guards what follows
	counter uint64
	last    int64 // Physical of the newest stamp
	mark    int64 // the mark in the database
}

var _ consensus.Clock = (*clock)(nil)

// Open begins a new term. node names this node in its stamps.
//
// Errors: Unavailable (Degraded) if the database cannot be written.
func Open(ctx context.Context, d *sql.DB, node string) (consensus.Clock, error) {
	const op fault.Op = "localconsensus.Open"
	c := &clock{db: d, node: node, anchor: time.Now()}
	err := db.Tx(ctx, d, func(tx *sql.Tx) error {
		row := tx.QueryRowContext(ctx, `INSERT INTO clock (name, term, mark_ns) VALUES ($1, 1, 0)
			ON CONFLICT (name) DO UPDATE SET term = clock.term + 1 RETURNING term, mark_ns`, clockName)
		if err := row.Scan(&c.term, &c.mark); err != nil {
			return db.Classify(op, err)
		}
		c.base = max(c.anchor.UnixNano(), c.mark)
		c.last = c.base
		return c.save(ctx, tx, c.base+int64(markAhead))
	})
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	return c, nil
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// save moves the mark, unless a later life has begun. The caller holds mu or
// is the constructor.
func (c *clock) save(ctx context.Context, e execer, mark int64) error {
	const op fault.Op = "localconsensus.save"
	result, err := e.ExecContext(ctx, "UPDATE clock SET mark_ns = $1 WHERE name = $2 AND term = $3", mark, clockName, c.term)
	if err != nil {
		return fault.WrapAs(op, fault.ConsensusUnavailable, err, "the clock's mark cannot be saved")
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return fault.New(op, fault.ConsensusUnavailable, "another process has taken over the clock")
	}
	c.mark = mark
	return nil
}

func (c *clock) Now(ctx context.Context) (creto.Timestamp, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A stamp never passes the mark, so at most one caller in two seconds
	// waits for the database.
	physical := max(c.last, c.base+int64(time.Since(c.anchor)))
	if physical > c.mark-int64(markLow) {
		if err := c.save(context.WithoutCancel(ctx), c.db, physical+int64(markAhead)); err != nil {
			return creto.Timestamp{}, err
		}
	}
	c.last = physical
	c.counter++
	return creto.Timestamp{Logical: creto.LogicalOf(c.term, c.counter), Physical: physical, Source: creto.SourceConsensus, Node: c.node}, nil
}

func (c *clock) Register(ctx context.Context, id consensus.EventID) (creto.Timestamp, error) {
	const op fault.Op = "localconsensus.Register"
	now, err := c.Now(ctx)
	if err != nil {
		return creto.Timestamp{}, err
	}
	_, err = c.db.ExecContext(ctx, `INSERT INTO ordered_event (id, logical, physical, source, node) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (id) DO NOTHING`, id[:], int64(now.Logical), now.Physical, string(now.Source), now.Node)
	if err != nil {
		return creto.Timestamp{}, fault.WrapAs(op, fault.ConsensusUnavailable, err, "the event cannot be registered")
	}
	return c.stampOf(ctx, id)
}

func (c *clock) stampOf(ctx context.Context, id consensus.EventID) (creto.Timestamp, error) {
	const op fault.Op = "localconsensus.stampOf"
	var s creto.Timestamp
	err := c.db.QueryRowContext(ctx, "SELECT logical, physical, source, node FROM ordered_event WHERE id = $1", id[:]).
		Scan(&s.Logical, &s.Physical, &s.Source, &s.Node)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return s, fault.New(op, fault.ConsensusOrderingConflict, "the event %s was never registered", id)
	case err != nil:
		return s, fault.WrapAs(op, fault.ConsensusUnavailable, err, "the event cannot be read")
	}
	return s, nil
}

func (c *clock) OrderEvents(ctx context.Context, ids []consensus.EventID) ([]consensus.Ordered, error) {
	ordered := make([]consensus.Ordered, 0, len(ids))
	for _, id := range ids {
		stamp, err := c.stampOf(ctx, id)
		if err != nil {
			return nil, err
		}
		ordered = append(ordered, consensus.Ordered{ID: id, Stamp: stamp})
	}
	slices.SortStableFunc(ordered, func(a, b consensus.Ordered) int { return creto.Order(a.Stamp, b.Stamp) })
	return ordered, nil
}

func (c *clock) Ping(ctx context.Context) error {
	var term uint64
	err := c.db.QueryRowContext(ctx, "SELECT term FROM clock WHERE name = $1", clockName).Scan(&term)
	if err != nil || term != c.term {
		return fault.WrapAs("localconsensus.Ping", fault.ConsensusUnavailable, errors.Join(err, errors.New("term is not ours")), "the clock's term cannot be confirmed")
	}
	return nil
}
