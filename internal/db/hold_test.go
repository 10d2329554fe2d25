package db_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/db/dbtest"
)

func write(t *testing.T, d *sql.DB) error {
	t.Helper()
	_, err := d.ExecContext(t.Context(), "INSERT INTO clock (name, term, mark_ns) VALUES ('x', 1, 1) ON CONFLICT (name) DO UPDATE SET term = clock.term + 1")
	return db.Classify("test", err)
}

// transcript is what was logged.
type transcript struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

func (t *transcript) Contains(text string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Contains(t.text.String(), text)
}

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestHold(t *testing.T) {
	location := dbtest.Postgres(t, "held")
	machine := db.Holder{Name: "a", Machine: "m", Log: silent()}
	d, h, err := db.OpenHeld(t.Context(), location, machine)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Check(t.Context()), write(t, d)); err != nil {
		t.Fatal(err)
	}
	_, _, err = db.OpenHeld(t.Context(), location, machine)
	if !errors.Is(err, fault.FailedPrecondition) || !strings.Contains(fault.Message(err), "(on a)") {
		t.Fatalf("a second holder = %v, want FailedPrecondition that names the first", err)
	}
	if err := errors.Join(d.Close(), h.Close()); err != nil {
		t.Fatal(err)
	}
	said := &transcript{}
	began := time.Now()
	d, h, err = db.OpenHeld(t.Context(), location, db.Holder{Name: "b", Machine: "n", Log: slog.New(slog.NewTextHandler(said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("after a holder that ended in order the next waited %v", took)
	}
	// The session is ended from outside while Run watches: it comes back by itself.
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- h.Run(ctx) }()
	kill(t, location, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32 | objid::bigint) = hashtextextended('creto.holder.held', 0)")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if said.Contains("the database is back") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the hold does not come back: %v", h.Check(t.Context()))
		}
	}
	if err := errors.Join(h.Check(t.Context()), write(t, d)); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if err := errors.Join(d.Close(), h.Close()); err != nil {
		t.Fatal(err)
	}
	if err := h.Check(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Check of a hold that was given back = %v, want Unavailable", err)
	}
}

// A holder that stopped in the middle of everything, as one that is suspended
// does, has no hold any more before the next has it, and never writes again.
func TestHoldFenced(t *testing.T) {
	location := dbtest.Postgres(t, "fenced")
	first, a, err := db.OpenHeldBriefly(t.Context(), location, db.Holder{Name: "a", Log: silent()})
	if err != nil {
		t.Fatal(err)
	}
	if err := write(t, first); err != nil {
		t.Fatal(err)
	}
	// The server loses the session, and the holder does nothing: it sleeps.
	if err := a.Lose(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Check(t.Context()); err != nil {
		t.Fatalf("just after it asked = %v", err)
	}
	expired := make(chan time.Time, 1)
	go func() {
		for a.Fresh() {
			time.Sleep(time.Millisecond)
		}
		expired <- time.Now()
	}()
	second, b, err := db.OpenHeldBriefly(t.Context(), location, db.Holder{Name: "b", Log: silent()})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if at := <-expired; at.After(began) {
		t.Errorf("the first holder's Check held %v after the second had the database", at.Sub(began))
	}
	if err := errors.Join(b.Check(t.Context()), write(t, second)); err != nil {
		t.Errorf("the second holder: %v", err)
	}
	if err := a.Check(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("the first holder's Check = %v, want Unavailable", err)
	}
	if err := write(t, first); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("the first holder's write = %v, want FailedPrecondition", err)
	}
	if err := a.Run(t.Context()); fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("the first holder's Run = %v, want FailedPrecondition", err)
	}
	if err := errors.Join(first.Close(), a.Close(), write(t, second), second.Close(), b.Close()); err != nil {
		t.Error(err)
	}
}

// kill runs a query of an administrator.
func kill(t *testing.T, location, query string) {
	t.Helper()
	d, err := db.Open(t.Context(), location)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	var ok bool
	if err := d.QueryRowContext(t.Context(), query).Scan(&ok); err != nil || !ok {
		t.Fatal(ok, err)
	}
}
