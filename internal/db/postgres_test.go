package db_test

import (
	"bytes"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/db/dbtest"
)

// canary is a password that must not be seen.
const canary = "canary-8d1f"

// TestURL: what is wrong with a URL is said without what is in it.
func TestURL(t *testing.T) {
	for _, location := range []string{
		"postgres://user:" + canary + "@host:port/db",
		"postgres://user:" + canary + "/@host/db",
		"postgres://user:%zz" + canary + "@host/db",
		"postgres://user:" + canary + "@host/db?sslmode=" + canary,
		"postgres://user:" + canary + "@host/db?sslrootcert=/nowhere/" + canary,
		"postgres://user:" + canary + "@one,two/db",
		"postgres://user@host/db?password=" + canary + "&sslpassword=" + canary + "&connect_timeout=" + canary,
		"postgres://user:" + canary + "@/db?service=" + canary,
	} {
		_, err := db.Open(t.Context(), location)
		if !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("Open(%q) = %v, want InvalidArgument", location, err)
		}
		if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), canary) {
			t.Errorf("Open(%q) shows the password: %v", location, err)
		}
	}
	for _, location := range []string{
		"postgres://user:" + canary + "@127.0.0.1:1/db",
		"postgres:///db?host=/nowhere&user=x&password=" + canary,
		"postgres://user:" + canary + "@host.invalid/db",
	} {
		_, err := db.Open(t.Context(), location)
		if !errors.Is(err, fault.Unavailable) || strings.Contains(err.Error(), canary) {
			t.Errorf("Open(%q) = %v, want Unavailable, without the password", location, err)
		}
	}
}

// What holds on both engines.
func TestTx(t *testing.T) {
	dir := t.TempDir()
	d := dbtest.OpenIn(t, dir)
	insert := func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), "INSERT INTO clock (name, term, mark_ns) VALUES ($1, $2, $3)", "x", 1, 2)
		return db.Classify("test", err)
	}
	if err := db.Tx(t.Context(), d, insert); err != nil {
		t.Fatal(err)
	}
	if err := db.Tx(t.Context(), d, insert); !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("a second insert = %v, want AlreadyExists", err)
	}
	_, err := d.ExecContext(t.Context(), "INSERT INTO membership (principal, group_name) VALUES ('nobody', 'g')")
	if err := db.Classify("test", err); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("a row without the one it belongs to = %v, want FailedPrecondition", err)
	}
	stop := errors.New("stop")
	if err := db.Tx(t.Context(), d, func(tx *sql.Tx) error {
		_, _ = tx.ExecContext(t.Context(), "DELETE FROM clock")
		return stop
	}); !errors.Is(err, stop) {
		t.Errorf("Tx = %v, want its function's error", err)
	}
	var mark int64
	if err := d.QueryRowContext(t.Context(), "SELECT mark_ns FROM clock WHERE name = $2 AND term = $1", 1, "x").Scan(&mark); err != nil || mark != 2 {
		t.Errorf("mark = %d, %v; want 2: placeholders go by number, and what failed is rolled back", mark, err)
	}
	if err := d.QueryRowContext(t.Context(), "SELECT mark_ns FROM clock WHERE name = 'y'").Scan(&mark); !errors.Is(db.Classify("test", err), fault.NotFound) {
		t.Errorf("no row = %v, want NotFound", err)
	}
	// A second process's writes see the first's, and the schema is made once.
	again := dbtest.OpenIn(t, dir)
	if err := db.Tx(t.Context(), again, insert); !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("an insert through another = %v, want AlreadyExists", err)
	}
}

// Text is ordered and compared byte by byte, integers have 64 bits, and bytes
// come back as they went.
func TestTypes(t *testing.T) {
	d := dbtest.Open(t)
	want := []string{"A", "B", "a", "b", "ä"}
	for i, name := range []string{"b", "ä", "A", "a", "B"} {
		if _, err := d.ExecContext(t.Context(), "INSERT INTO tenant (name, created_ns) VALUES ($1, $2)", name, int64(1)<<62+int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := d.QueryContext(t.Context(), "SELECT name FROM tenant WHERE created_ns > $1 ORDER BY name", int64(1)<<61)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var got []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		got = append(got, name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("names are in the order %q, want %q", got, want)
	}
	var n int
	if err := d.QueryRowContext(t.Context(), "WITH t AS (SELECT name FROM tenant) SELECT count(*) FROM t WHERE name LIKE $1 ESCAPE '!'", "a%").Scan(&n); err != nil || n != 1 {
		t.Errorf("%d names are like a, %v; want 1", n, err)
	}
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	if _, err := d.ExecContext(t.Context(), "INSERT INTO key_certificate (digest, body) VALUES ($1, $2)", all, []byte{}); err != nil {
		t.Fatal(err)
	}
	var digest, body []byte
	if err := d.QueryRowContext(t.Context(), "SELECT digest, body FROM key_certificate WHERE digest = $1", all).Scan(&digest, &body); err != nil || !bytes.Equal(digest, all) || len(body) != 0 {
		t.Errorf("bytes came back as %x and %v, %v", digest, body, err)
	}
}

// One writes at a time: what a transaction has read stays so, also against a
// statement outside of any transaction.
func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	first, second := dbtest.OpenIn(t, dir), dbtest.OpenIn(t, dir)
	if _, err := first.ExecContext(t.Context(), "INSERT INTO clock (name, term, mark_ns) VALUES ('n', 0, 0)"); err != nil {
		t.Fatal(err)
	}
	const each, writers = 25, 4
	done := make(chan error)
	for i := range writers {
		d := []*sql.DB{first, second}[i%2]
		go func() {
			done <- func() error {
				for range each {
					err := db.Tx(t.Context(), d, func(tx *sql.Tx) error {
						var n int64
						if err := tx.QueryRowContext(t.Context(), "SELECT term FROM clock WHERE name = 'n'").Scan(&n); err != nil {
							return err
						}
						_, err := tx.ExecContext(t.Context(), "UPDATE clock SET term = $1 WHERE name = 'n'", n+1)
						return err
					})
					if err == nil {
						_, err = d.ExecContext(t.Context(), "UPDATE clock SET term = term + 1 WHERE name = 'n'")
					}
					if err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Error(db.Classify("test", err))
		}
	}
	var n int64
	if err := first.QueryRowContext(t.Context(), "SELECT term FROM clock WHERE name = 'n'").Scan(&n); err != nil || n != 2*each*writers {
		t.Errorf("%d of %d additions are there, %v", n, 2*each*writers, err)
	}
}

// Whoever waits too long for its turn fails, as one that waits for itself does.
func TestTurn(t *testing.T) {
	t.Parallel()
	d := dbtest.Open(t)
	began := time.Now()
	err := db.Tx(t.Context(), d, func(*sql.Tx) error {
		_, err := d.ExecContext(t.Context(), "DELETE FROM clock")
		return db.Classify("test", err)
	})
	if took := time.Since(began); !errors.Is(err, fault.Unavailable) || took < 4*time.Second || took > 20*time.Second {
		t.Errorf("a write inside of another = %v after %v, want Unavailable after 5s", err, took)
	}
	if _, err := d.ExecContext(t.Context(), "DELETE FROM clock"); err != nil {
		t.Errorf("the next write = %v", err)
	}
}

func TestWriteThatReturns(t *testing.T) {
	d := dbtest.OpenIn(t, t.TempDir())
	if dbtest.Engine(t) == dbtest.SQLite {
		t.Skip("SQLite gives every statement its turn")
	}
	for _, query := range []string{"UPDATE clock SET term = 1 RETURNING term", "WITH c AS (UPDATE clock SET term = 1 RETURNING term) SELECT term FROM c", "TRUNCATE clock"} {
		var n int64
		if err := d.QueryRowContext(t.Context(), query).Scan(&n); !errors.Is(err, fault.Internal) {
			t.Errorf("%s outside of Tx = %v, want Internal", query, err)
		}
		prepared, err := d.PrepareContext(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		if err := prepared.QueryRowContext(t.Context()).Scan(&n); !errors.Is(err, fault.Internal) {
			t.Errorf("%s, prepared, outside of Tx = %v, want Internal", query, err)
		}
		if err := prepared.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Erased keys do not stay in the file.
func TestSecureDelete(t *testing.T) {
	file := filepath.Join(t.TempDir(), "creto.db")
	d, err := db.Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte(rand.Text() + rand.Text())
	for i, query := range []string{
		"INSERT INTO key_certificate (digest, body) VALUES ('d', $1)", "PRAGMA wal_checkpoint(TRUNCATE)",
		"DELETE FROM key_certificate WHERE body = $1", "PRAGMA wal_checkpoint(TRUNCATE)",
	} {
		if strings.Contains(query, "$1") {
			_, err = d.ExecContext(t.Context(), query, secret)
		} else {
			_, err = d.ExecContext(t.Context(), query)
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(file)
		if there := bytes.Contains(data, secret); err != nil || i%2 == 1 && there != (i == 1) {
			t.Errorf("after %s the secret is in the file: %v, %v", query, there, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// A server that would lose what it acknowledged, or cannot write, is refused.
func TestServer(t *testing.T) {
	s := dbtest.NewServer(t)
	open := func() error {
		d, err := db.Open(t.Context(), s.URL(""))
		if err != nil {
			return err
		}
		var synchronous string
		if err := d.QueryRowContext(t.Context(), "SELECT current_setting('synchronous_commit')").Scan(&synchronous); err != nil || synchronous != "on" {
			t.Errorf("commits wait for the disk: %q, %v; want on", synchronous, err)
		}
		return d.Close()
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		setting string
		want    fault.Code
	}{
		{"synchronous_commit=off", fault.OK},
		{"default_transaction_read_only=on", fault.Unavailable},
		{"default_transaction_read_only=off", fault.OK},
		{"full_page_writes=off", fault.FailedPrecondition},
		{"full_page_writes=on", fault.OK},
		{"fsync=off", fault.FailedPrecondition},
		{"fsync=on", fault.OK},
	} {
		s.Settings(t, test.setting)
		s.Stop(t)
		s.Start(t)
		if err := open(); fault.CodeOf(err) != test.want {
			t.Errorf("Open with %s = %v, want %v", test.setting, err, test.want)
		}
	}
	if _, err := db.Open(t.Context(), s.URL("nowhere")); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("Open of a schema that is not there = %v, want FailedPrecondition", err)
	}
	if _, err := db.Open(t.Context(), strings.Replace(s.URL(""), "/postgres?", "/nothing?", 1)); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("Open of a database that is not there = %v, want FailedPrecondition", err)
	}
}

// A database survives its server's crash, and connections are made again.
func TestServerCrash(t *testing.T) {
	s := dbtest.NewServer(t)
	d, err := db.Open(t.Context(), s.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	write := func(name string) error {
		return db.Tx(t.Context(), d, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(t.Context(), "INSERT INTO clock (name, term, mark_ns) VALUES ($1, 1, 1)", name)
			return db.Classify("test", err)
		})
	}
	if err := write("before"); err != nil {
		t.Fatal(err)
	}
	s.Stop(t)
	if err := write("lost"); !errors.Is(err, fault.Unavailable) || fault.CategoryOf(err) != fault.Degraded {
		t.Errorf("a write without a server = %v, want Unavailable", err)
	}
	s.Start(t)
	if err := write("after"); err != nil {
		t.Errorf("a write when it is back = %v", err)
	}
	var n int
	if err := d.QueryRowContext(t.Context(), "SELECT count(*) FROM clock WHERE name IN ('before', 'after')").Scan(&n); err != nil || n != 2 {
		t.Errorf("%d of two rows are there, %v", n, err)
	}
}

// Many processes may open an empty database at once: one migrates it.
func TestMigrateTogether(t *testing.T) {
	location := dbtest.Postgres(t, "together")
	done := make(chan error)
	for range 4 {
		go func() {
			d, err := db.Open(t.Context(), location)
			if err == nil {
				err = d.Close()
			}
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkTx(b *testing.B) {
	d := dbtest.Open(b)
	for b.Loop() {
		if err := db.Tx(b.Context(), d, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(b.Context(), "INSERT INTO clock (name, term, mark_ns) VALUES ('x', 1, 1) ON CONFLICT (name) DO UPDATE SET term = clock.term + 1")
			return err
		}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	location := dbtest.Location(b, b.TempDir())
	for b.Loop() {
		d, err := db.Open(b.Context(), location)
		if err != nil {
			b.Fatal(err)
		}
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
