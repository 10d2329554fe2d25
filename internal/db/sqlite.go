package db

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"strconv"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"creto.dev/fault"
)

// walPages is how long SQLite's write-ahead log grows before a commit has to move it
// into the file; who writes much calls Checkpoint before that.
const walPages = 4000

// openSQLite opens a file. synchronous=FULL makes a commit survive a power cut,
// not only the death of the process; secure_delete overwrites what is deleted,
// so that an erased key is not left in a free page; LIKE tells A from a, as
// PostgreSQL's does.
func openSQLite(ctx context.Context, file string) (*sql.DB, error) {
	const op fault.Op = "db.Open"
	query := url.Values{"_txlock": {"immediate"}, "_journal_mode": {"WAL"}, "_pragma": {
		"busy_timeout(" + strconv.FormatInt(turnTimeout.Milliseconds(), 10) + ")", "page_size(8192)", "cache_size(-2048)", "temp_store(memory)",
		"synchronous(FULL)", "foreign_keys(1)", "secure_delete(1)", "case_sensitive_like(1)",
		"wal_autocheckpoint(" + strconv.Itoa(walPages) + ")",
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
	if err := migrate(ctx, d, goose.DialectSQLite3, migrations); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Checkpoint moves what was committed from SQLite's write-ahead log into its file,
// beside readers and writers, so that no commit has to. PostgreSQL does so itself.
//
// Errors: Unavailable (Degraded).
func Checkpoint(ctx context.Context, d *sql.DB) error {
	if _, ok := d.Driver().(*sqlite.Driver); !ok {
		return nil
	}
	_, err := d.ExecContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)")
	return Classify("db.Checkpoint", err)
}

// Scrub makes what was deleted or overwritten unreadable in the database's files, as
// far as the engine lets: SQLite's write-ahead log still has it until it is emptied
// into the file, whose freed bytes are overwritten. Of PostgreSQL, VACUUM and the
// age of its own log take care (D-067).
//
// Errors: Unavailable (Degraded) if readers stood in the way for too long.
func Scrub(ctx context.Context, d *sql.DB) error {
	const op fault.Op = "db.Scrub"
	if _, ok := d.Driver().(*sqlite.Driver); !ok {
		return nil
	}
	for try := 0; ; try++ {
		var busy, frames, moved int
		if err := d.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &moved); err != nil {
			return Classify(op, err)
		}
		if busy == 0 {
			return nil
		}
		if try == scrubTries {
			return fault.New(op, fault.Unavailable, "others read the database; what was deleted is still in its write-ahead log until it is emptied")
		}
	}
}

// scrubTries bounds how often Scrub waits for readers, each time as long as a
// writer waits for its turn.
const scrubTries = 3

func classifySQLite(op fault.Op, err error) error {
	driver, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return nil
	}
	switch driver.Code() {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
		return fault.WrapAs(op, fault.AlreadyExists, err, "a row with this key exists")
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return fault.WrapAs(op, fault.FailedPrecondition, err, "a row that this one belongs to, or that belongs to it, forbids it")
	}
	switch driver.Code() & 0xff { // the low byte is the primary result code
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN:
		return fault.WrapAs(op, fault.Unavailable, err, "the database cannot be written; is the disk full?")
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fault.WrapAs(op, fault.DataLoss, err, "the database is damaged")
	}
	return fault.WrapAs(op, fault.Internal, err, "")
}
