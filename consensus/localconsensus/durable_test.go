package localconsensus_test

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"creto.dev/consensus/localconsensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/db/dbtest"
)

// A standby that may be behind when it takes over is refused. pg_receivewal is
// one, as far as the server can tell.
func TestStandbys(t *testing.T) {
	s := dbtest.NewServer(t)
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/pg_receivewal")
	if err != nil || len(found) == 0 {
		t.Fatal("PostgreSQL has no pg_receivewal")
	}
	slices.Sort(found)
	open := func(location string) error {
		d, err := db.Open(t.Context(), location)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = d.Close() }()
		_, err = localconsensus.Open(t.Context(), d, "n1")
		return err
	}
	if err := open(s.URL("")); err != nil {
		t.Fatalf("without standbys: %v", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	receive := exec.CommandContext(ctx, found[len(found)-1], "--directory", t.TempDir(), "--synchronous", "--no-loop", "--dbname", s.URL(""))
	if err := receive.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = receive.Wait() })
	d, err := db.Open(t.Context(), s.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	await := func(query string) {
		t.Helper()
		for until := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			var n int
			if err := d.QueryRow(query).Scan(&n); err == nil && n > 0 {
				return
			} else if time.Now().After(until) {
				t.Fatalf("%s: %d, %v", query, n, err)
			}
		}
	}
	refused := func(why, want string, err error) {
		t.Helper()
		if !errors.Is(err, fault.FailedPrecondition) || !strings.Contains(fault.Message(err), want) {
			t.Errorf("%s: %v, want FailedPrecondition with %q", why, err, want)
		}
	}
	await("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'async'")
	refused("a standby that is not synchronous", "synchronous_standby_names", open(s.URL("")))

	s.Settings(t, "synchronous_standby_names=pg_receivewal")
	await("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
	if err := open(s.URL("")); err != nil {
		t.Errorf("with a synchronous standby: %v", err)
	}
	refused("commits that do not wait for it", "synchronous_commit = local", open(s.URL("")+"&synchronous_commit=local"))

	if _, err := d.Exec("CREATE ROLE reader LOGIN"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Exec("GRANT ALL ON ALL TABLES IN SCHEMA public TO reader"); err != nil {
		t.Fatal(err)
	}
	refused("a user who does not see it", "pg_read_all_stats", open(strings.Replace(s.URL(""), "user=creto", "user=reader", 1)))
}
