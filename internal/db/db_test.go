package db_test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"creto.dev/fault"
	"creto.dev/internal/db"
)

func TestOpenSQLite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a b?c.db") // a name that needs escaping
	d, err := db.Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the database is not where it was asked for, or not private: %v, %v", info, err)
	}
	insert := func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO clock (name, term, mark_ns) VALUES ($1, $2, $3)", "x", 1, 2)
		return db.Classify("test", err)
	}
	if err := db.Tx(t.Context(), d, insert); err != nil {
		t.Fatal(err)
	}
	if err := db.Tx(t.Context(), d, insert); !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("a second insert = %v, want AlreadyExists", err)
	}
	var mark int64
	if err := d.QueryRow("SELECT mark_ns FROM clock WHERE name = $2 AND term = $1", 1, "x").Scan(&mark); err != nil || mark != 2 {
		t.Errorf("mark = %d, %v; want 2 ($n placeholders go by number)", mark, err)
	}
	stop := errors.New("stop")
	if err := db.Tx(t.Context(), d, func(tx *sql.Tx) error {
		_, _ = tx.Exec("DELETE FROM clock")
		return stop
	}); !errors.Is(err, stop) {
		t.Errorf("Tx = %v, want its function's error", err)
	}
	if err := d.QueryRow("SELECT mark_ns FROM clock").Scan(&mark); err != nil {
		t.Errorf("a failed transaction was not rolled back: %v", err)
	}
	if _, err := d.Exec("UPDATE goose_db_version SET version_id = 99999 WHERE id = (SELECT max(id) FROM goose_db_version)"); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Open(t.Context(), file); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("Open of a newer version's data = %v, want FailedPrecondition", err)
	}
}

func TestOpenDamaged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "creto.db")
	if err := os.WriteFile(file, []byte("this is not a database, whatever its name says"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Open(t.Context(), file); fault.CodeOf(err).Kind() != fault.Unavailable && fault.CodeOf(err) != fault.DataLoss {
		t.Errorf("Open of a damaged file = %v, want Unavailable or DataLoss", err)
	}
}
