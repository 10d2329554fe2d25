// Package db opens the node's SQL database, brings its schema up to date, and
// classifies its errors. SQLite in the data directory is the default; queries
// are written so that PostgreSQL runs them too ($1 placeholders, standard
// types, INSERT … ON CONFLICT).
package db

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"creto.dev/fault"
)

//go:embed migrations/*.sql
var migrations embed.FS

// busyTimeout is how long a statement waits for another writer.
const busyTimeout = 5 * time.Second

// maxConns bounds open connections: one writer at a time, several readers.
const maxConns = 8

// Open opens the SQLite database in file, creating it when absent, and migrates
// it. The caller closes it. synchronous=FULL makes a commit survive a power
// cut, not only the death of the process.
//
// Errors: FailedPrecondition (Permanent) if a newer version of Creto wrote the
// file; Unavailable (Degraded) if it cannot be read or written.
func Open(ctx context.Context, file string) (*sql.DB, error) {
	const op fault.Op = "db.Open"
	query := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"busy_timeout(" + strconv.FormatInt(busyTimeout.Milliseconds(), 10) + ")", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)",
	}}
	// SQLite gives its other files the mode of this one.
	private, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(private.Chmod(0o600), private.Close())
	}
	if err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the database %s cannot be opened", file)
	}
	d, err := sql.Open("sqlite", "file:"+(&url.URL{Path: file}).EscapedPath()+"?"+query.Encode())
	if err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the database cannot be opened")
	}
	d.SetMaxOpenConns(maxConns)
	if err := migrate(ctx, d); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func migrate(ctx context.Context, d *sql.DB) error {
	const op fault.Op = "db.migrate"
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fault.Wrap(op, err)
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, d, dir, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fault.WrapAs(op, fault.Internal, err, "")
	}
	current, newest, err := provider.GetVersions(ctx)
	if err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the database cannot be read; is it damaged, or is the disk full?")
	}
	if current > newest {
		return fault.New(op, fault.FailedPrecondition, "the data has schema version %d and this creto knows %d: use the newer creto that wrote it, or another --data directory", current, newest)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the database cannot be migrated from version %d to %d", current, newest)
	}
	return nil
}

// Tx runs do inside one transaction: committed if do returns nil, rolled back
// otherwise. do's error is returned as it is.
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
// AlreadyExists for a broken uniqueness, Unavailable for a busy, full or
// unreadable disk, DataLoss for a damaged file, Internal otherwise. A fault and
// nil stay what they are.
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
	driver, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return fault.Wrap(op, err)
	}
	switch driver.Code() & 0xff { // the low byte is the primary result code
	case sqlite3.SQLITE_CONSTRAINT:
		return fault.WrapAs(op, fault.AlreadyExists, err, "a row with this key exists")
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN:
		return fault.WrapAs(op, fault.Unavailable, err, "the database cannot be written; is the disk full?")
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fault.WrapAs(op, fault.DataLoss, err, "the database is damaged")
	}
	return fault.WrapAs(op, fault.Internal, err, "")
}
