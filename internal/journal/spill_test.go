package journal_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"creto.dev/internal/journal"
)

// A machine that loses power while the ring is spilled has a file with holes, and
// everything still in the ring, where it was synced.
func TestSpillInterrupted(t *testing.T) {
	dir := t.TempDir()
	cfg := journal.Config{Dir: dir, RingBytes: 64 << 10, Slots: 20, Patience: time.Microsecond}
	j, _ := open(t, cfg, 0)
	for n := range uint64(20) {
		add(t, j, n+1)
	}
	if err := j.Sync(20); err != nil {
		t.Fatal(err)
	}
	ring, err := os.ReadFile(filepath.Join(dir, "front.ring"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { defer close(ran); j.Run(ctx) }()
	add(t, j, 21) // there is no room but for a spill
	cancel()
	<-ran
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "front.ring"), ring, 0o600); err != nil {
		t.Fatal(err)
	}
	spools, err := filepath.Glob(filepath.Join(dir, "spool-*"))
	if err != nil || len(spools) != 1 {
		t.Fatalf("the spool has %v, %v", spools, err)
	}
	data, err := os.ReadFile(spools[0])
	if err != nil {
		t.Fatal(err)
	}
	copy(data[100:], bytes.Repeat([]byte{0}, len(data)/2))
	if err := os.WriteFile(spools[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	again, missing := open(t, cfg, 0)
	if missing != 0 {
		t.Errorf("%d payloads are missing that are in the ring", missing)
	}
	last := uint64(0)
	for last < 20 {
		next := take(t, again, last, 100)
		if next == last {
			t.Fatalf("nothing follows %d", last)
		}
		last = next
	}
	add(t, again, 21)
	if last = take(t, again, last, 100); last != 21 {
		t.Errorf("the newest is %d, not 21", last)
	}
}
