// Package localconsensus orders events on one node. It needs no peer: the term
// is raised in the database at each start, and no stamp is ever later than a
// mark that the database holds, so a restart with a clock set back continues
// where the last life ended.
package localconsensus

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

const (
	// markAhead is how far ahead of time the mark is saved. It is never less than
	// markLow ahead while Run runs and stamps are taken: what is left covers a
	// disk that takes so long.
	markAhead = 3 * time.Second
	markLow   = 2 * time.Second
	// tick is how often Run looks whether there is something to do.
	tick = 500 * time.Millisecond
	// idle is how long after the last stamp Run goes on to save marks. The first
	// stamp after that waits for the disk.
	idle = time.Minute
)

// clockName is the key of the only clock in the table.
const clockName = "local"

// Clock is a consensus.Clock of this process. Its Run keeps callers from waiting
// for the disk; without it every promise holds, and one caller in a few seconds
// saves the mark. Safe for concurrent use.
type Clock struct {
	db   *sql.DB
	node string
	time timeSource
	wake chan struct{} // asks Run to save the mark

	mu       sync.Mutex // guards what follows
	term     uint64
	counter  uint64
	last     int64 // Physical of the newest stamp
	mark     int64 // the mark in the database
	used     int64 // elapsed time at the newest stamp
	closed   bool
	physical physical
}

var _ consensus.Batcher = (*Clock)(nil)

// Open begins a new term. node names this node in its stamps. The caller may run
// Run, and ends with Close.
//
// Errors: ConsensusUnavailable (Degraded) if the database cannot be written;
// FailedPrecondition (Permanent) if it may lose what it was told (see
// [CheckDurable]), or if there is no term left.
func Open(ctx context.Context, d *sql.DB, node string) (*Clock, error) {
	return open(ctx, d, node, newSystemTime())
}

func open(ctx context.Context, d *sql.DB, node string, source timeSource) (*Clock, error) {
	const op fault.Op = "localconsensus.Open"
	if err := CheckDurable(ctx, d); err != nil {
		return nil, fault.Wrap(op, err)
	}
	c := &Clock{db: d, node: node, time: source, wake: make(chan struct{}, 1)}
	err := db.Tx(ctx, d, func(tx *sql.Tx) error {
		row := tx.QueryRowContext(ctx, `INSERT INTO clock (name, term, mark_ns) VALUES ($1, 1, 0)
			ON CONFLICT (name) DO UPDATE SET term = clock.term + 1 RETURNING term, mark_ns`, clockName)
		var mark int64
		if err := row.Scan(&c.term, &mark); err != nil {
			return classify(op, err)
		}
		if c.term > creto.MaxTerm {
			return fault.New(op, fault.FailedPrecondition, "the clock has had %d terms and has none left", c.term)
		}
		c.physical = newPhysical(source, mark)
		c.last = c.physical.at(0)
		return c.save(ctx, tx, c.last+int64(markAhead))
	})
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	return c, nil
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// write raises the mark in the database, unless a later life has begun. It never
// lowers it: two writers may come in any order.
func (c *Clock) write(ctx context.Context, e execer, term uint64, mark int64) error {
	const query = `UPDATE clock SET mark_ns = CASE WHEN mark_ns < $1 THEN $1 ELSE mark_ns END WHERE name = $2 AND term = $3`
	return one("localconsensus.write", func() (sql.Result, error) { return e.ExecContext(ctx, query, mark, clockName, int64(term)) })
}

// one makes a change of the clock's row, of which there is none once a later life
// has begun.
func one(op fault.Op, change func() (sql.Result, error)) error {
	result, err := change()
	if err != nil {
		return classify(op, err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return classify(op, err)
	}
	if n != 1 {
		return fault.New(op, fault.ConsensusUnavailable, "another process has taken over the clock")
	}
	return nil
}

// save raises the mark. The caller holds mu or is the constructor.
func (c *Clock) save(ctx context.Context, e execer, mark int64) error {
	if err := c.write(ctx, e, c.term, mark); err != nil {
		return err
	}
	c.mark = mark
	return nil
}

// classify says what an error of the database means to a clock.
func classify(op fault.Op, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return fault.Wrap(op, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fault.WrapAs(op, fault.ConsensusTimeout, err, "the database is slow")
	}
	return fault.WrapAs(op, fault.ConsensusUnavailable, err, "the database of the clock cannot be used")
}

// Now implements consensus.Clock. It waits for the disk only if Run does not run,
// or the disk took longer than a mark lasts, or after a minute without a stamp.
func (c *Clock) Now(ctx context.Context) (creto.Timestamp, error) {
	wall, elapsed := c.time.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(ctx, wall, elapsed, 1); err != nil {
		return creto.Timestamp{}, err
	}
	return c.stamp(), nil
}

// Stamps implements consensus.Batcher.
func (c *Clock) Stamps(ctx context.Context, n int) ([]creto.Timestamp, error) {
	if err := consensus.CheckBatch(n); err != nil {
		return nil, err
	}
	wall, elapsed := c.time.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(ctx, wall, elapsed, uint64(n)); err != nil {
		return nil, err
	}
	stamps := make([]creto.Timestamp, n)
	for i := range stamps {
		stamps[i] = c.stamp()
	}
	return stamps, nil
}

// stamp makes the next one. The caller holds mu, and ready has agreed.
func (c *Clock) stamp() creto.Timestamp {
	c.counter++
	return creto.Timestamp{Logical: creto.LogicalOf(c.term, c.counter), Physical: c.last, Source: creto.SourceConsensus, Node: c.node}
}

// ready sets last to what time it is, which is below a saved mark, and sees to it
// that there are n counts left. The caller holds mu.
func (c *Clock) ready(ctx context.Context, wall, elapsed int64, n uint64) error {
	const op fault.Op = "localconsensus.Now"
	if c.physical.suspicious(wall, elapsed) {
		c.physical.resync(c.time)
	}
	now := max(c.last, c.physical.at(elapsed))
	switch {
	case c.closed:
		return fault.New(op, fault.ConsensusUnavailable, "the clock is closed")
	case now > c.mark:
		// The disk is waited for by whoever needs it, and by all with them.
		if err := c.save(context.WithoutCancel(ctx), c.db, now+int64(markAhead)); err != nil {
			return fault.Wrap(op, err)
		}
	case now > c.mark-int64(markLow):
		select {
		case c.wake <- struct{}{}:
		default: // it has been asked
		}
	}
	if c.counter+n > creto.MaxCounter {
		if err := c.nextTerm(context.WithoutCancel(ctx)); err != nil {
			return fault.Wrap(op, err)
		}
	}
	c.last, c.used = now, elapsed
	return nil
}

// nextTerm begins another term in this life. The caller holds mu.
func (c *Clock) nextTerm(ctx context.Context) error {
	const op fault.Op = "localconsensus.nextTerm"
	if c.term >= creto.MaxTerm {
		return fault.New(op, fault.ConsensusUnavailable, "the clock has had %d terms and has none left", c.term)
	}
	return c.setTerm(ctx, c.term+1)
}

// setTerm begins a later term. The caller holds mu.
func (c *Clock) setTerm(ctx context.Context, term uint64) error {
	const op fault.Op = "localconsensus.setTerm"
	err := one(op, func() (sql.Result, error) {
		return c.db.ExecContext(ctx, "UPDATE clock SET term = $1 WHERE name = $2 AND term = $3", int64(term), clockName, int64(c.term))
	})
	if err != nil {
		return err
	}
	c.term, c.counter = term, 0
	return nil
}

// Raise makes every later stamp later than s: for a node that took its time
// elsewhere before.
//
// Errors: those of Now; FailedPrecondition (Permanent) if no term is later.
func (c *Clock) Raise(ctx context.Context, s creto.Timestamp) error {
	const op fault.Op = "localconsensus.Raise"
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.Physical > c.last {
		c.physical.raise(s.Physical - c.last)
		c.last = s.Physical
		if err := c.save(ctx, c.db, max(c.mark, s.Physical+int64(markAhead))); err != nil {
			return fault.Wrap(op, err)
		}
	}
	if s.Logical < creto.LogicalOf(c.term, c.counter+1) {
		return nil
	}
	if s.Term() >= creto.MaxTerm {
		return fault.New(op, fault.FailedPrecondition, "no term is later than %d", s.Term())
	}
	return fault.Wrap(op, c.setTerm(ctx, s.Term()+1))
}

// Last returns a stamp that no clock of this database has passed; the zero
// Timestamp if it never had one. It begins no term: it is for a node that takes its
// time elsewhere from now on.
//
// Errors: those of Clock.Ping.
func Last(ctx context.Context, d *sql.DB) (creto.Timestamp, error) {
	var term uint64
	var mark int64
	err := d.QueryRowContext(ctx, "SELECT term, mark_ns FROM clock WHERE name = $1", clockName).Scan(&term, &mark)
	if errors.Is(err, sql.ErrNoRows) {
		return creto.Timestamp{}, nil
	}
	if err != nil {
		return creto.Timestamp{}, classify("localconsensus.Last", err)
	}
	return creto.Timestamp{Logical: creto.LogicalOf(term, creto.MaxCounter), Physical: mark, Source: creto.SourceConsensus}, nil
}

// Run saves the mark ahead of time, so that no caller waits for the disk, and
// brings the physical part back to the system's clock where they differ, at an
// eighth of the time that passes, as adjtime(3) does: stamps never jump. It
// returns nil when ctx ends.
func (c *Clock) Run(ctx context.Context) error {
	timer := time.NewTicker(tick)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			c.slew(tick / 8)
		case <-c.wake:
		}
		c.advance(ctx)
	}
}

// slew moves the physical part towards the system's clock, by at most limit.
func (c *Clock) slew(limit time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.physical.resync(c.time)
	c.physical.slew(c.time, int64(limit))
}

// advance saves a mark if the one before comes near. The lock is not held over
// the disk: a mark that is saved twice is as good.
func (c *Clock) advance(ctx context.Context) {
	_, elapsed := c.time.now()
	c.mu.Lock()
	now := max(c.last, c.physical.at(elapsed))
	needed := !c.closed && now > c.mark-int64(markLow) && elapsed-c.used < int64(idle)
	term, mark := c.term, now+int64(markAhead)
	c.mu.Unlock()
	if !needed {
		return
	}
	// Whoever passes the mark meanwhile saves one too, and says what is wrong.
	if err := c.write(ctx, c.db, term, mark); err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mark = max(c.mark, mark)
}

// Close gives the clock up, and says in the database how far it came, so that the
// next life need not begin ahead of time. Run must have returned.
//
// Errors: those of Now; the clock is closed all the same.
func (c *Clock) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return one("localconsensus.Close", func() (sql.Result, error) {
		return c.db.ExecContext(context.Background(), "UPDATE clock SET mark_ns = $1 WHERE name = $2 AND term = $3", c.last, clockName, int64(c.term))
	})
}

// Register implements consensus.Clock.
func (c *Clock) Register(ctx context.Context, id consensus.EventID) (creto.Timestamp, error) {
	const op fault.Op = "localconsensus.Register"
	now, err := c.Now(ctx)
	if err != nil {
		return creto.Timestamp{}, err
	}
	_, err = c.db.ExecContext(ctx, `INSERT INTO ordered_event (id, logical, physical, source, node) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (id) DO NOTHING`, id[:], int64(now.Logical), now.Physical, string(now.Source), now.Node)
	if err != nil {
		return creto.Timestamp{}, classify(op, err)
	}
	return c.stampOf(ctx, id)
}

func (c *Clock) stampOf(ctx context.Context, id consensus.EventID) (creto.Timestamp, error) {
	const op fault.Op = "localconsensus.stampOf"
	var s creto.Timestamp
	var logical int64 // SQL has no unsigned integers
	err := c.db.QueryRowContext(ctx, "SELECT logical, physical, source, node FROM ordered_event WHERE id = $1", id[:]).
		Scan(&logical, &s.Physical, &s.Source, &s.Node)
	if errors.Is(err, sql.ErrNoRows) {
		return s, consensus.Unregistered(op, id)
	}
	s.Logical = uint64(logical)
	return s, classify(op, err)
}

// OrderEvents implements consensus.Clock.
func (c *Clock) OrderEvents(ctx context.Context, ids []consensus.EventID) ([]consensus.Ordered, error) {
	distinct, err := consensus.Distinct(ids)
	if err != nil {
		return nil, err
	}
	ordered := make([]consensus.Ordered, 0, len(distinct))
	for _, id := range distinct {
		stamp, err := c.stampOf(ctx, id)
		if err != nil {
			return nil, err
		}
		ordered = append(ordered, consensus.Ordered{ID: id, Stamp: stamp})
	}
	consensus.Sort(ordered)
	return ordered, nil
}

// Ping implements consensus.Clock.
func (c *Clock) Ping(ctx context.Context) error {
	const op fault.Op = "localconsensus.Ping"
	var term uint64
	if err := c.db.QueryRowContext(ctx, "SELECT term FROM clock WHERE name = $1", clockName).Scan(&term); err != nil {
		return classify(op, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || term != c.term {
		return fault.New(op, fault.ConsensusUnavailable, "another process has taken over the clock, or it is closed")
	}
	return nil
}
