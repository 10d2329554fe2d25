package localconsensus

import (
	"context"
	"database/sql"
)

// CheckDurable returns nil if what the database has confirmed is not lost.
func CheckDurable(context.Context, *sql.DB) error { return nil }
