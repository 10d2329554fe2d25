package export

import (
	"context"
	"database/sql"
	"errors"

	"creto.dev/fault"
	"creto.dev/internal/db"
)

// tableCursor is a row of the database.
type tableCursor struct {
	db   *sql.DB
	name string
}

// TableCursor returns the cursor of that name in the node's database; it begins
// with the first record.
//
// Errors: of its methods: Unavailable (Degraded) if the database cannot be used.
func TableCursor(d *sql.DB, name string) Cursor { return tableCursor{d, name} }

func (c tableCursor) Load(ctx context.Context) (p Position, err error) {
	err = c.db.QueryRowContext(ctx, "SELECT next_leaf, bound_leaf FROM audit_export WHERE name = $1", c.name).Scan(&p.Next, &p.Bound)
	if errors.Is(err, sql.ErrNoRows) {
		return Position{}, nil
	}
	return p, db.Classify("export.Load", err)
}

func (c tableCursor) Save(ctx context.Context, p Position) error {
	const op fault.Op = "export.Save"
	_, err := c.db.ExecContext(ctx, `INSERT INTO audit_export (name, next_leaf, bound_leaf) VALUES ($1, $2, $3)
		ON CONFLICT (name) DO UPDATE SET next_leaf = $2, bound_leaf = $3`, c.name, p.Next, p.Bound)
	return db.Classify(op, err)
}
