package db

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"creto.dev/fault"
	"creto.dev/internal/logkey"
)

// How a hold is kept. A holder asks every holdAsk whether it still has it, and
// acts for at most holdFor after it asked a question that was answered with yes.
// Whoever takes the hold from a holder that may be alive waits holdWait, which
// is longer by the drift of two clocks.
const (
	holdAsk  = 1 * time.Second
	holdFor  = 3 * time.Second
	holdWait = 4 * time.Second
)

// holdPatience is how long Hold waits for the connection of a holder that has
// just ended to be noticed by the server.
const holdPatience = 2 * time.Second

// Holder says who wants a database to itself.
type Holder struct {
	// Name is for the people who look for it.
	Name string
	// Machine tells a new holder that the one before is dead: both have locked
	// the same file of the same running system. "" means that it never is sure.
	Machine string
	Log     *slog.Logger
}

// Hold is one node's sole use of a PostgreSQL database; SQLite's file is locked
// with its data directory. It is an advisory lock of a session: the server frees
// it when it loses the session, which the node may notice later. Two things
// hold against that: every write carries the holder's token to the server, which
// refuses it once another has the hold; and [Hold.Check], which what acts
// without writing asks first, fails before another can have it. Safe for
// concurrent use.
type Hold struct {
	p      postgres
	holder Holder
	token  string
	times  holdTimes

	// confirmed is when the newest question was asked that was answered with
	// yes, in nanoseconds of bootTime; 0 means that the session was lost.
	confirmed atomic.Int64
	running   atomic.Bool // Run has mu

	mu   sync.Mutex // guards conn; Run has it as long as it runs
	conn *pgx.Conn
}

// holdTimes are those above, but for tests.
type holdTimes struct{ ask, holdFor, wait, patience time.Duration }

// OpenHeld opens a PostgreSQL database as Open does, for holder alone. Close the
// database, then the hold.
//
// Errors: those of Open; FailedPrecondition (Permanent) if another node has the
// database.
func OpenHeld(ctx context.Context, location string, holder Holder) (*sql.DB, *Hold, error) {
	p, err := parsePostgres(location)
	if err != nil {
		return nil, nil, err
	}
	return p.hold(ctx, holder, holdTimes{holdAsk, holdFor, holdWait, holdPatience})
}

func (p postgres) hold(ctx context.Context, holder Holder, times holdTimes) (_ *sql.DB, _ *Hold, err error) {
	h := &Hold{p: p, holder: holder, token: rand.Text(), times: times}
	defer func() { //nolint:contextcheck // what was taken is given back when ctx has ended, too
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	if err := h.first(ctx); err != nil {
		return nil, nil, err
	}
	before, err := h.before(ctx)
	if err != nil {
		return nil, nil, err
	}
	if before.token != "" && (holder.Machine == "" || before.machine != holder.Machine) {
		holder.Log.LogAttrs(ctx, slog.LevelInfo, "waiting until the database's last node has stopped", slog.String(logkey.Host, before.name), slog.Duration(logkey.Wait, times.wait))
		if err := wait(ctx, times.wait); err != nil {
			return nil, nil, fault.Wrap("db.OpenHeld", err)
		}
	}
	if err := p.migrate(ctx); err != nil {
		return nil, nil, err
	}
	if err := h.claim(ctx); err != nil {
		return nil, nil, err
	}
	return p.pool(h.token), h, nil
}

// first takes the lock for the first time.
func (h *Hold) first(ctx context.Context) error {
	const op fault.Op = "db.OpenHeld"
	if err := h.connect(ctx); err != nil {
		return err
	}
	for deadline := bootTime() + h.times.patience.Nanoseconds(); ; {
		ok, err := h.lock(ctx)
		if err != nil || ok {
			return err
		}
		if bootTime() > deadline {
			before, err := h.before(ctx)
			if err != nil {
				return err
			}
			return fault.New(op, fault.FailedPrecondition, "the PostgreSQL database is in use by another creto (on %s); stop that one, or give this one a database or a schema (search_path) of its own", before.name)
		}
		if err := wait(ctx, h.times.patience/10); err != nil {
			return fault.Wrap(op, err)
		}
	}
}

// connect opens the hold's session.
func (h *Hold) connect(ctx context.Context) error {
	c, err := pgx.ConnectConfig(ctx, h.p.config.Copy())
	if err != nil {
		return Classify("db.Hold", err)
	}
	if err := suitable(ctx, c); err != nil {
		return err
	}
	h.conn = c
	return nil
}

// lock tries to take the lock.
func (h *Hold) lock(ctx context.Context) (ok bool, err error) {
	err = h.conn.QueryRow(ctx, "SELECT pg_try_advisory_lock("+holderKey+")").Scan(&ok)
	return ok, Classify("db.Hold", err)
}

// lastHolder is the row of whoever had the hold last and did not end in order.
type lastHolder struct{ token, machine, name string }

func (h *Hold) before(ctx context.Context) (l lastHolder, err error) {
	err = h.conn.QueryRow(ctx, "SELECT token, machine, name FROM database_holder WHERE one = 1").Scan(&l.token, &l.machine, &l.name)
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.Code == undefinedTable || errors.Is(err, pgx.ErrNoRows) {
		return lastHolder{name: "an unknown machine"}, nil
	}
	return l, Classify("db.Hold", err)
}

// claim makes the token the one that writes. It waits for a write that has its
// turn; from then on no write of another holder is accepted.
func (h *Hold) claim(ctx context.Context) error {
	asked := bootTime()
	err := pgx.BeginFunc(ctx, h.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, waitTurn); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO database_holder (one, token, machine, name) VALUES (1, $1, $2, $3)
			ON CONFLICT (one) DO UPDATE SET token = $1, machine = $2, name = $3`, h.token, h.holder.Machine, h.holder.Name)
		return err
	})
	if err != nil {
		return Classify("db.Hold", err)
	}
	h.confirmed.Store(asked)
	return nil
}

// errLost is the end of the session.
var errLost = errors.New("the database's lock is not this session's")

// confirm asks whether the lock is still held, by this session: a pooler between
// may have given the session to another.
func (h *Hold) confirm(ctx context.Context) error {
	if h.conn == nil || h.conn.IsClosed() {
		return errLost
	}
	ctx, cancel := context.WithTimeout(ctx, h.times.holdFor*2/3)
	defer cancel()
	asked := bootTime()
	var held bool
	var token string
	err := h.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()
			AND objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = `+holderKey+`),
		(SELECT token FROM database_holder WHERE one = 1)`).Scan(&held, &token)
	switch {
	case err != nil:
		return err
	case token != h.token:
		return h.taken()
	case !held:
		return errLost
	}
	h.confirmed.Store(asked)
	return nil
}

func (h *Hold) taken() error {
	return fault.New("db.Hold", fault.FailedPrecondition, "another node has taken over the database; this one stops")
}

// Check reports whether the node still has the database to itself, so that it may
// act on what it knows of it.
//
// Errors: Unavailable (Degraded) if that is not known.
func (h *Hold) Check(ctx context.Context) error {
	for {
		if h.fresh() {
			return nil
		}
		if h.mu.TryLock() { // the node is starting or ending; else Run asks
			err := h.confirm(ctx)
			h.mu.Unlock()
			if err != nil {
				break
			}
			continue
		}
		if h.running.Load() || wait(ctx, time.Millisecond) != nil {
			break
		}
	}
	return fault.New("db.Hold.Check", fault.Unavailable, "the node has lost its PostgreSQL database, and does nothing until it has it again")
}

func (h *Hold) fresh() bool {
	confirmed := h.confirmed.Load()
	return confirmed != 0 && bootTime()-confirmed < h.times.holdFor.Nanoseconds()
}

// Run keeps the hold until ctx ends. When the session is lost it takes the lock
// again, unless another was faster. It is called once.
//
// Errors: FailedPrecondition (Permanent) if another node has the database.
func (h *Hold) Run(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running.Store(true)
	defer h.running.Store(false)
	for {
		err := h.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		h.confirmed.Store(0)
		if fault.CodeOf(err) == fault.FailedPrecondition {
			return err
		}
		h.holder.Log.LogAttrs(ctx, slog.LevelWarn, "the database was lost; nothing is done until it is back", slog.Any(logkey.Error, err))
		if err := h.regain(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		h.holder.Log.LogAttrs(ctx, slog.LevelInfo, "the database is back")
	}
}

// watch confirms the hold until that fails, or the connection ends.
func (h *Hold) watch(ctx context.Context) error {
	for {
		if err := h.confirm(ctx); err != nil {
			return err
		}
		// Nothing is ever notified, but a connection's end is seen at once.
		pause, cancel := context.WithTimeout(ctx, h.times.ask)
		err := h.conn.PgConn().WaitForNotification(pause)
		ended := pause.Err() == nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && ended:
			return err
		}
	}
}

// regain takes the lock again. It returns nil when ctx ends.
func (h *Hold) regain(ctx context.Context) error {
	for ctx.Err() == nil {
		err := h.again(ctx)
		if err == nil || fault.CodeOf(err) == fault.FailedPrecondition {
			return err
		}
		if wait(ctx, h.times.ask/4) != nil {
			return nil
		}
	}
	return nil
}

// again tries to take the lock again, in a new session.
func (h *Hold) again(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if h.conn != nil {
		_ = h.conn.Close(ctx) // lost
		h.conn = nil
	}
	if err := h.connect(ctx); err != nil {
		// What a server refuses while it is being repaired it may yet accept.
		return fault.WrapAs("db.Hold", fault.Unavailable, err, "the database cannot be used")
	}
	before, err := h.before(ctx)
	if err != nil {
		return err
	}
	if before.token != h.token {
		return h.taken()
	}
	if ok, err := h.lock(ctx); err != nil || !ok {
		return errors.Join(errLost, err)
	}
	return h.confirm(ctx)
}

// Close gives the hold back, so that the next node need not wait. Run must have
// returned, and the database be closed. A second call does nothing.
func (h *Hold) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.confirmed.Store(0)
	if h.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.times.holdFor)
	defer cancel()
	c := h.conn
	h.conn = nil
	if !c.IsClosed() {
		_, _ = c.Exec(ctx, "DELETE FROM database_holder WHERE token = $1", h.token) // else the next waits
	}
	return Classify("db.Hold.Close", c.Close(ctx))
}

// wait waits, or returns ctx's error.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// bootTime is the time since this system started, also while it was suspended,
// which Go's monotonic time leaves out; never 0.
func bootTime() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // Linux has had it since 2.6.39
	}
	return t.Nano()
}
