// Package db opens the node's SQL database, brings its schema up to date, and
// classifies its errors. The database is SQLite in a file, or PostgreSQL. Both
// run the same queries and migrations, which are written for both: $1
// placeholders, INSERT … ON CONFLICT, integers and not booleans, BLOB, BIGINT and
// TEXT in capitals, no cast from one type to another, no name that either
// reserves (only, user, end), keys that are given and not counted by the engine,
// text without zero bytes; a write that returns rows runs in [Tx].
//
// Both let in one writer at a time, and whoever waits longer than five seconds
// for its turn fails: SQLite because it is made so, PostgreSQL because of an
// advisory lock that every transaction and every statement which writes takes
// first (D-065). So what a transaction has read does not change until it
// commits, and no transaction is to be repeated because of another.
package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"

	"creto.dev/fault"
)

// turnTimeout is how long a statement waits for another writer.
const turnTimeout = 5 * time.Second

// maxConns bounds open connections: one writer at a time, several readers.
const maxConns = 8

// Open opens the database at location and migrates it: a URL that begins with
// postgres:// is PostgreSQL, anything else the file of a SQLite database, which
// is created when absent. The caller closes it. A commit survives a power cut:
// a PostgreSQL server that is set to lose commits is refused.
//
// A connection to PostgreSQL beyond this machine is encrypted and its server's
// certificate and name are verified (sslmode=verify-full), unless the URL says
// sslmode itself. No error holds the URL or its password.
//
// Errors: InvalidArgument (Permanent) for a URL that is wrong;
// FailedPrecondition (Permanent) if a newer version of Creto wrote the database,
// or if the server, its settings or its user's rights do not do; Unavailable
// (Degraded) if it cannot be read or written.
func Open(ctx context.Context, location string) (*sql.DB, error) {
	if !IsPostgres(location) {
		return openSQLite(ctx, location)
	}
	p, err := parsePostgres(location)
	if err != nil {
		return nil, err
	}
	if err := p.migrate(ctx); err != nil {
		return nil, err
	}
	return p.pool(""), nil
}

// IsPostgres reports whether location is a URL of PostgreSQL and not a file.
func IsPostgres(location string) bool {
	return strings.HasPrefix(location, "postgres://") || strings.HasPrefix(location, "postgresql://")
}

// Values returns the placeholders of so many rows for a statement's VALUES, which take
// the arguments in order. Those of SQLite are without numbers, which its driver would
// look up in a list for each argument.
func Values(d *sql.DB, rows, columns int) string {
	_, bare := d.Driver().(*sqlite.Driver)
	var b strings.Builder
	for n := range rows * columns {
		switch {
		case n == 0:
			b.WriteByte('(')
		case n%columns == 0:
			b.WriteString("),(")
		default:
			b.WriteByte(',')
		}
		if bare {
			b.WriteByte('?')
			continue
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n + 1))
	}
	b.WriteByte(')')
	return b.String()
}

// migrate runs the migrations of dir that d has not seen.
func migrate(ctx context.Context, d *sql.DB, dialect goose.Dialect, dir fs.FS, options ...goose.ProviderOption) error {
	const op fault.Op = "db.migrate"
	if err := d.PingContext(ctx); err != nil {
		if classified := Classify(op, err); !errors.Is(classified, fault.Internal) {
			return classified
		}
		return fault.WrapAs(op, fault.Unavailable, err, "the database cannot be opened")
	}
	dir, err := fs.Sub(dir, "migrations")
	if err != nil {
		return fault.Wrap(op, err)
	}
	provider, err := goose.NewProvider(dialect, d, dir, append(options, goose.WithDisableGlobalRegistry(true))...)
	if err != nil {
		return fault.WrapAs(op, fault.Internal, err, "")
	}
	current, newest, err := provider.GetVersions(ctx)
	if err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the database cannot be read; is it damaged, or is the disk full?")
	}
	if current > newest {
		return fault.New(op, fault.FailedPrecondition, "the data has schema version %d and this creto knows %d: use the newer creto that wrote it, or another --data directory or database", current, newest)
	}
	if current == newest {
		return nil
	}
	if _, err := provider.Up(ctx); err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the database cannot be migrated from version %d to %d", current, newest)
	}
	return nil
}

// Tx runs do inside one transaction: committed if do returns nil, rolled back
// otherwise. do's error is returned as it is. No other write happens between the
// transaction's first statement and its last; do must therefore make all of its
// own through the *sql.Tx, or it waits for itself. A statement that failed ends
// the transaction, whatever do makes of it.
//
// Errors: Unavailable (Degraded) also if the connection ended during the commit:
// whether the transaction was committed is not known then.
func Tx(ctx context.Context, d *sql.DB, do func(*sql.Tx) error) error {
	const op fault.Op = "db.Tx"
	tx, err := d.BeginTx(ctx, nil)
	if err != nil {
		return Classify(op, err)
	}
	if err := do(tx); err != nil {
		if rollback := tx.Rollback(); rollback != nil && !errors.Is(rollback, sql.ErrTxDone) {
			err = errors.Join(err, Classify(op, rollback))
		}
		return err
	}
	return Classify(op, tx.Commit())
}

// Classify turns a driver's error into a fault: NotFound for no rows,
// AlreadyExists for a broken uniqueness, FailedPrecondition for a broken
// reference, InvalidArgument for text that the database cannot hold, Unavailable
// for a lost connection, a turn that did not come, and a busy, full, unreadable
// or read-only disk or server, DataLoss for damaged data, Internal otherwise. A
// fault and nil stay what they are.
func Classify(op fault.Op, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	if errors.Is(err, sql.ErrNoRows) {
		return fault.WrapAs(op, fault.NotFound, err, "no such row")
	}
	if classified := classifySQLite(op, err); classified != nil {
		return classified
	}
	if classified := classifyPostgres(op, err); classified != nil {
		return classified
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fault.Wrap(op, err)
	}
	if _, ok := errors.AsType[net.Error](err); ok || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) {
		return fault.WrapAs(op, fault.Unavailable, err, "the connection to the database was lost")
	}
	return fault.Wrap(op, err)
}
