package localconsensus_test

import (
	"errors"
	"testing"

	"creto.dev/consensus"
	"creto.dev/consensus/consensustest"
	"creto.dev/consensus/localconsensus"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
)

func TestClock(t *testing.T) {
	d := dbtest.Open(t)
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
	d := dbtest.Open(t)
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
	d := dbtest.Open(b)
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
