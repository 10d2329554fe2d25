package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"

	"creto.dev/fault"
)

// connectTimeout bounds connecting where the URL does not.
const connectTimeout = 5 * time.Second

// idleTransaction is how long a transaction may be without a statement: the
// server ends that of a process which stopped in the middle of it, and the next
// writer gets its turn.
const idleTransaction = 30 * time.Second

// oldestServer is the oldest major version that is still maintained.
const oldestServer = 14

// The advisory locks are those of one schema: two nodes may have their databases
// in two schemas of one.
const (
	writerKey    = "hashtextextended('creto.writer.' || current_schema(), 0)"
	migrationKey = "hashtextextended('creto.migration.' || current_schema(), 0)"
	holderKey    = "hashtextextended('creto.holder.' || current_schema(), 0)"
)

// waitTurn waits for the turn to write; its transaction's end ends it.
const waitTurn = "SELECT pg_advisory_xact_lock(" + writerKey + ")"

// postgres is one PostgreSQL database.
type postgres struct{ config *pgx.ConnConfig }

// parsePostgres reads a URL. No error of pgx or net/url is kept: their texts
// hold the URL, and with it the password.
func parsePostgres(location string) (postgres, error) {
	const op fault.Op = "db.Open"
	wrong := fault.New(op, fault.InvalidArgument,
		"the URL of the database cannot be read; it is of the form postgres://USER:PASSWORD@HOST:PORT/NAME?sslmode=verify-full, with what is special in the password written as %%XX")
	u, err := url.Parse(location)
	if err != nil {
		return postgres{}, wrong
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return postgres{}, wrong
	}
	config, err := pgx.ParseConfig(location)
	if err != nil {
		return postgres{}, wrong
	}
	if !query.Has("sslmode") && !nearby(config.Host) {
		query.Set("sslmode", "verify-full")
		u.RawQuery = query.Encode()
		if config, err = pgx.ParseConfig(u.String()); err != nil {
			return postgres{}, wrong
		}
	}
	for _, f := range config.Fallbacks {
		// Else one connection would be to one server and the next to another.
		if f.Host != config.Host && !(nearby(f.Host) && nearby(config.Host)) {
			return postgres{}, fault.New(op, fault.InvalidArgument, "the URL of the database names several hosts; name one, whose address follows the primary")
		}
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	config.DialFunc = (&net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: time.Second, Count: 5},
		Control:         limitUnanswered,
	}).DialContext
	for name, value := range map[string]string{
		"application_name":                    "creto",
		"default_transaction_isolation":       "read committed",
		"lock_timeout":                        strconv.FormatInt(turnTimeout.Milliseconds(), 10),
		"idle_in_transaction_session_timeout": strconv.FormatInt(idleTransaction.Milliseconds(), 10),
		// A dead node's connections must not keep its locks for two hours.
		"tcp_keepalives_idle":     "5",
		"tcp_keepalives_interval": "1",
		"tcp_keepalives_count":    "5",
		"tcp_user_timeout":        strconv.FormatInt(unanswered.Milliseconds(), 10),
	} {
		config.RuntimeParams[name] = value
	}
	return postgres{config}, nil
}

// unanswered is how long either side waits for the other's TCP to answer, rather
// than a quarter of an hour.
const unanswered = 10 * time.Second

// limitUnanswered implements net.Dialer's Control.
func limitUnanswered(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unanswered.Milliseconds()))
	})
	return errors.Join(err, failed)
}

// nearby reports whether host is this machine.
func nearby(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || err == nil && ip.IsLoopback()
}

// migrate brings the schema up to date, one process at a time.
func (p postgres) migrate(ctx context.Context) error {
	d := p.pool("")
	return errors.Join(migrate(ctx, d, goose.DialectPostgres, postgresMigrations{migrations}, goose.WithSessionLocker(migrationLock{})), d.Close())
}

// migrationLock is held while the schema changes.
type migrationLock struct{}

// SessionLock implements goose's lock.SessionLocker.
func (migrationLock) SessionLock(ctx context.Context, c *sql.Conn) error {
	var void any
	return c.QueryRowContext(ctx, "SELECT pg_advisory_lock("+migrationKey+")").Scan(&void)
}

// SessionUnlock implements goose's lock.SessionLocker.
func (migrationLock) SessionUnlock(ctx context.Context, c *sql.Conn) error {
	var void any
	return c.QueryRowContext(ctx, "SELECT pg_advisory_unlock("+migrationKey+")").Scan(&void)
}

// pool returns connections to the database. With a holder's token, none of them
// writes once another has the hold.
func (p postgres) pool(token string) *sql.DB {
	turn := []string{waitTurn}
	if token != "" {
		// A statement of its own: it must see what was committed before its turn.
		turn = append(turn, "SELECT 1 / count(*) FROM database_holder WHERE token = '"+token+"'")
	}
	d := sql.OpenDB(&connector{Connector: stdlib.GetConnector(*p.config, stdlib.OptionAfterConnect(suitable)), turn: turn})
	d.SetMaxOpenConns(maxConns)
	d.SetMaxIdleConns(maxConns)
	return d
}

// suitable refuses a server that would lose what it has acknowledged, or where
// nothing can be written; it is asked at each connection, since a server may
// come back as another. On an error it closes the connection.
func suitable(ctx context.Context, c *pgx.Conn) error {
	err := checkServer(ctx, c)
	if err != nil {
		err = errors.Join(err, c.Close(ctx))
	}
	return err
}

func checkServer(ctx context.Context, c *pgx.Conn) error {
	const op fault.Op = "db.Open"
	var version int
	var fsync, pages, encoding string
	var standby, readOnly, schema bool
	// Only off is raised: remote_apply, say, is somebody's choice.
	err := c.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('fsync'), current_setting('full_page_writes'), current_setting('server_encoding'),
		pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on', current_schema() IS NOT NULL
		FROM (SELECT set_config('synchronous_commit', CASE WHEN current_setting('synchronous_commit') = 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false)) s`).
		Scan(&version, &fsync, &pages, &encoding, &standby, &readOnly, &schema)
	switch {
	case err != nil:
		return Classify(op, err)
	case version/10000 < oldestServer:
		return fault.New(op, fault.FailedPrecondition, "PostgreSQL %d is not supported; use %d or newer", version/10000, oldestServer)
	case fsync != "on":
		return fault.New(op, fault.FailedPrecondition, "the PostgreSQL server runs with fsync = off and would lose records: set it to on")
	case pages != "on":
		return fault.New(op, fault.FailedPrecondition, "the PostgreSQL server runs with full_page_writes = off and a power cut would damage records: set it to on")
	case encoding != "UTF8":
		return fault.New(op, fault.FailedPrecondition, "the PostgreSQL database has the encoding %s: create one with ENCODING 'UTF8'", encoding)
	case standby:
		return fault.New(op, fault.Unavailable, "the PostgreSQL server is a standby, where nothing can be written: use the primary's address, or promote it")
	case readOnly:
		return fault.New(op, fault.Unavailable, "the PostgreSQL server only lets read (default_transaction_read_only = on): set it to off")
	case !schema:
		return fault.New(op, fault.FailedPrecondition, "no schema of search_path exists in the PostgreSQL database: create it")
	}
	return nil
}

// connector makes sessions.
type connector struct {
	driver.Connector
	turn []string
}

// Connect implements driver.Connector.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	inner, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &session{Conn: inner.(*stdlib.Conn), turn: c.turn}, nil // GetConnector makes no others
}

// session is a connection that writes in turn, as SQLite does: what waits for the
// turn goes with the write in one round trip.
type session struct {
	*stdlib.Conn
	turn []string
}

// BeginTx implements driver.ConnBeginTx: the transaction has the turn.
func (s *session) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	if options.ReadOnly || options.Isolation != driver.IsolationLevel(sql.LevelDefault) {
		return nil, fault.New("db.BeginTx", fault.Internal, "a transaction is begun by db.Tx")
	}
	if s.Conn.Conn().IsClosed() {
		return nil, driver.ErrBadConn
	}
	tx, err := s.Conn.Conn().BeginTx(ctx, pgx.TxOptions{BeginQuery: "BEGIN; " + strings.Join(s.turn, "; ")})
	if err != nil {
		if pgconn.SafeToRetry(err) {
			return nil, driver.ErrBadConn
		}
		if !s.Conn.Conn().IsClosed() { // it began, and the turn did not come
			_, rollback := s.Conn.Conn().Exec(ctx, "ROLLBACK")
			err = errors.Join(err, rollback)
		}
		return nil, fenced(err)
	}
	return transaction{ctx: ctx, tx: tx}, nil
}

// transaction is a driver.Tx.
type transaction struct {
	ctx context.Context //nolint:containedctx // driver.Tx takes none; database/sql rolls back when it ends
	tx  pgx.Tx
}

func (t transaction) Commit() error   { return t.tx.Commit(t.ctx) }
func (t transaction) Rollback() error { return t.tx.Rollback(t.ctx) }

// ExecContext implements driver.ExecerContext. Outside of a transaction the
// statement waits for its turn in a transaction of its own: all that goes to the
// server before one Sync is one.
func (s *session) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	c := s.Conn.Conn()
	if c.IsClosed() || s.inTransaction() {
		return s.Conn.ExecContext(ctx, query, args)
	}
	values := make([]any, len(args))
	for i, a := range args {
		values[i] = a.Value
	}
	batch := &pgx.Batch{}
	for _, q := range s.turn {
		batch.Queue(q)
	}
	batch.Queue(query, values...)
	results := c.SendBatch(ctx, batch)
	var err error
	for range s.turn {
		if _, err = results.Exec(); err != nil {
			err = fenced(err)
			break
		}
	}
	var tag pgconn.CommandTag
	if err == nil {
		tag, err = results.Exec()
	}
	if closed := results.Close(); err == nil {
		err = closed // the commit's
	}
	if pgconn.SafeToRetry(err) {
		return nil, driver.ErrBadConn
	}
	return driver.RowsAffected(tag.RowsAffected()), err
}

// QueryContext implements driver.QueryerContext. Outside of a transaction it only
// reads.
func (s *session) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.mayRead(query); err != nil {
		return nil, err
	}
	return s.Conn.QueryContext(ctx, query, args)
}

// PrepareContext implements driver.ConnPrepareContext.
func (s *session) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	prepared, err := s.Conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	own, ok := prepared.(*stdlib.Stmt)
	if !ok {
		return nil, errors.Join(fault.New("db.Prepare", fault.Internal, "pgx prepared a %T", prepared), prepared.Close())
	}
	return &statement{Stmt: own, session: s, query: query}, nil
}

// statement is a prepared one. Outside of a transaction it does what the session
// does with its text.
type statement struct {
	*stdlib.Stmt
	session *session
	query   string
}

// ExecContext implements driver.StmtExecContext.
func (s *statement) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if s.session.inTransaction() {
		return s.Stmt.ExecContext(ctx, args)
	}
	return s.session.ExecContext(ctx, s.query, args)
}

// QueryContext implements driver.StmtQueryContext.
func (s *statement) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.session.mayRead(s.query); err != nil {
		return nil, err
	}
	return s.Stmt.QueryContext(ctx, args)
}

// What reads begins like reads and has no word of writes: a WITH may hold either.
var (
	reads  = regexp.MustCompile(`^\s*(SELECT|WITH)\b`)
	writes = regexp.MustCompile(`\b(INSERT|UPDATE|DELETE|MERGE|INTO)\b`)
)

func (s *session) mayRead(query string) error {
	if !s.inTransaction() && (!reads.MatchString(query) || writes.MatchString(query)) {
		return fault.New("db.Query", fault.Internal, "a statement that writes and returns rows runs in db.Tx")
	}
	return nil
}

func (s *session) inTransaction() bool { return s.Conn.Conn().PgConn().TxStatus() != 'I' }

// fenced explains the error of a turn: that of the fence is a division by zero.
func fenced(err error) error {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.Code == divisionByZero {
		return fault.WrapAs("db.Write", fault.FailedPrecondition, err, "another node has taken over the database")
	}
	return err
}

// The SQLSTATEs that are told apart (PostgreSQL 15, appendix A).
const (
	divisionByZero      = "22012"
	invalidText         = "22021" // a zero byte, which SQLite takes
	untranslatable      = "22P05"
	uniqueViolation     = "23505"
	foreignKeyViolation = "23503"
	readOnlyTransaction = "25006"
	noDatabase          = "3D000"
	noPrivilege         = "42501"
	undefinedTable      = "42P01"
	lockNotAvailable    = "55P03"
	queryCanceled       = "57014"
	adminShutdown       = "57P01"
	crashShutdown       = "57P02"
	cannotConnectNow    = "57P03"
	idleSession         = "57P05"
	dataCorrupted       = "XX001"
	indexCorrupted      = "XX002"
)

func classifyPostgres(op fault.Op, err error) error {
	unavailable := func(text string) error { return fault.WrapAs(op, fault.Unavailable, err, "%s", text) }
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		if _, ok := errors.AsType[*pgconn.ConnectError](err); ok || pgconn.SafeToRetry(err) {
			return unavailable("the database cannot be reached")
		}
		if errors.Is(err, pgx.ErrTxCommitRollback) {
			return fault.WrapAs(op, fault.Internal, err, "a statement of the transaction had failed")
		}
		return nil
	}
	switch e.Code {
	case uniqueViolation:
		return fault.WrapAs(op, fault.AlreadyExists, err, "a row with this key exists")
	case foreignKeyViolation:
		return fault.WrapAs(op, fault.FailedPrecondition, err, "a row that this one belongs to, or that belongs to it, forbids it")
	case invalidText, untranslatable:
		return fault.WrapAs(op, fault.InvalidArgument, err, "a text holds a zero byte or is not UTF-8")
	case readOnlyTransaction:
		return unavailable("the PostgreSQL server only lets read: use the primary's address, or promote it")
	case noDatabase:
		return fault.WrapAs(op, fault.FailedPrecondition, err, "the PostgreSQL server has no database of this name: create it")
	case noPrivilege:
		return fault.WrapAs(op, fault.FailedPrecondition, err, "the database's user lacks a right: it must own the schema")
	case lockNotAvailable:
		return unavailable("another writer did not finish in time")
	case adminShutdown, crashShutdown, cannotConnectNow, idleSession, queryCanceled:
		return unavailable("the PostgreSQL server is stopping or starting")
	case dataCorrupted, indexCorrupted:
		return fault.WrapAs(op, fault.DataLoss, err, "the database is damaged")
	}
	switch e.Code[:2] {
	case "08":
		return unavailable("the connection to the database was lost")
	case "28":
		return fault.WrapAs(op, fault.FailedPrecondition, err, "the PostgreSQL server does not accept the user or its password")
	case "40":
		return unavailable("the PostgreSQL server gave the transaction up")
	case "53":
		return unavailable("the PostgreSQL server lacks disk, memory or connections")
	case "58":
		return unavailable("the PostgreSQL server cannot use its disk")
	}
	return fault.WrapAs(op, fault.Internal, err, "")
}
