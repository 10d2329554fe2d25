package localnhi

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/consensus/consensustest"
	"creto.dev/internal/db/dbtest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// TestRevocationsAreSeenInOrder: an epoch never becomes visible before what an
// earlier epoch stands for. Otherwise a check in between remembers the newer
// epoch as one for which the older revocation is not true, and never looks again.
func TestRevocationsAreSeenInOrder(t *testing.T) {
	d := dbtest.Open(t)
	p := localpqc.New()
	kek, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		t.Fatal(err)
	}
	clock := &consensustest.Manual{}
	clock.Set(time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC))
	a, err := Open(t.Context(), Config{TrustDomain: "test.local", Tenant: creto.DefaultTenant}, d, p, clock, kek)
	if err != nil {
		t.Fatal(err)
	}
	committed := func(ctx context.Context) (n int) {
		if err := d.QueryRowContext(ctx, "SELECT count(*) FROM revocation").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := committed(t.Context())
	a.revoked.mu.RLock() // nothing becomes visible
	done := make(chan error, 2)
	for range 2 {
		go func() {
			done <- a.revoke(t.Context(), "x", changed, func(*sql.Tx) error { return nil }, func() {})
		}()
	}
	for committed(t.Context()) == before {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	if n := committed(t.Context()) - before; n != 1 {
		t.Errorf("%d revocations are in the database while the first is not visible yet, want 1", n)
	}
	a.revoked.mu.RUnlock()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if epoch, err := a.Epoch(); err != nil || epoch != uint64(before+2) {
		t.Errorf("Epoch = %d, %v; want %d", epoch, err, before+2)
	}
}
