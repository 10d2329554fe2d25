package localaudit

import (
	"context"
	"database/sql"
	"errors"
	"sync"

	"creto.dev/internal/db"
)

// bulk inserts rows many at a time: to run a statement costs several times what
// another row in it does. Safe for concurrent use.
type bulk struct {
	head    string // up to VALUES
	tail    string
	columns int

	mu       sync.Mutex // guards prepared
	prepared [len(bulkSizes)]*sql.Stmt
}

// bulkSizes are how many rows one statement has.
var bulkSizes = [...]int{64, 8, 1}

// prepare must be called before insert, outside its transaction.
func (b *bulk) prepare(ctx context.Context, d *sql.DB) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, size := range bulkSizes {
		if b.prepared[i] != nil {
			continue
		}
		statement, err := d.PrepareContext(ctx, b.head+" VALUES "+db.Values(d, size, b.columns)+b.tail)
		if err != nil {
			return db.Classify("localaudit.prepare", err)
		}
		b.prepared[i] = statement
	}
	return nil
}

// insert inserts rows of args, and returns how many of them were not there.
func (b *bulk) insert(ctx context.Context, tx *sql.Tx, args []any) (inserted int64, err error) {
	for i, size := range bulkSizes {
		n := size * b.columns
		if len(args) < n {
			continue
		}
		statement := tx.StmtContext(ctx, b.prepared[i])
		for ; err == nil && len(args) >= n; args = args[n:] {
			var added int64
			added, err = execCount(ctx, statement, args[:n])
			inserted += added
		}
		if err = errors.Join(err, statement.Close()); err != nil {
			return inserted, db.Classify("localaudit.insert", err)
		}
	}
	return inserted, nil
}

func execCount(ctx context.Context, statement *sql.Stmt, args []any) (int64, error) {
	result, err := statement.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (b *bulk) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var err error
	for i, statement := range b.prepared {
		if statement != nil {
			err = errors.Join(err, statement.Close())
			b.prepared[i] = nil
		}
	}
	return err
}
