package localconsensus_test

import (
	"errors"
	"path/filepath"
	"testing"

	"creto.dev/consensus"
	"creto.dev/consensus/consensustest"
	"creto.dev/consensus/localconsensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

func TestClock(t *testing.T) {
	d, err := db.Open(t.Context(), filepath.Join(t.TempDir(), "creto.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	consensustest.Run(t, func(t *testing.T) consensus.Clock {
		c, err := localconsensus.Open(t.Context(), d, "n1")
		if err != nil {
			t.Fatal(err)
		}
		return c
	})
}

// A clock whose term was taken over hands out no stamp past its mark.
func TestTakenOver(t *testing.T) {
	d, err := db.Open(t.Context(), filepath.Join(t.TempDir(), "creto.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	old, err := localconsensus.Open(t.Context(), d, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := localconsensus.Open(t.Context(), d, "n2"); err != nil {
		t.Fatal(err)
	}
	if err := old.Ping(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("Ping of the old life = %v, want ConsensusUnavailable", err)
	}
}

func BenchmarkNow(b *testing.B) {
	d, err := db.Open(b.Context(), filepath.Join(b.TempDir(), "creto.db"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = d.Close() })
	c, err := localconsensus.Open(b.Context(), d, "n1")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Now(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
