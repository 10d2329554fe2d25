package intake_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/intake"
	"creto.dev/consensus/localconsensus"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	"creto.dev/internal/journal"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// sink takes everything.
type sink struct{ take func([]journal.Frame) error }

func (s sink) Take(_ context.Context, frames []journal.Frame) error { return s.take(frames) }

func (sink) SignGap(r audit.Record) (pqc.Signature, pqc.PublicKey, error) {
	signer, err := audittest.Signer(localpqc.New(), "test.local/log")
	if err != nil {
		return pqc.Signature{}, pqc.PublicKey{}, err
	}
	sig, err := signer.SignRecord(r)
	return sig, signer.Keys().Key, err
}

// open opens an intake in front of s.
func open(t *testing.T, s intake.Sink, j journal.Config) *intake.Intake {
	t.Helper()
	clock, err := localconsensus.Open(t.Context(), dbtest.Open(t), "n1")
	if err != nil {
		t.Fatal(err)
	}
	j.Dir, j.RingBytes = t.TempDir(), max(j.RingBytes, 1<<16)
	i, err := intake.Open(intake.Config{Journal: j, Timeout: 10 * time.Millisecond}, intake.Parts{
		Sink: s, Self: audittest.Record("x", 0).Who, Name: "test.local/log", Provider: localpqc.New(), Clock: clock, Log: slog.New(slog.DiscardHandler),
	})
	if err == nil {
		err = i.Resume(0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

// Who asks waits for what was accepted before, not for what others go on logging.
func TestFlushEnds(t *testing.T) {
	var i *intake.Intake
	taken := 0
	i = open(t, sink{func(frames []journal.Frame) error {
		if taken += len(frames); taken > 100 {
			return nil // or nothing would end
		}
		_, err := i.Log(t.Context(), audittest.Record(creto.CallModel, taken))
		return err
	}}, journal.Config{})
	if _, err := i.Log(t.Context(), audittest.Record(creto.CallModel, 0)); err != nil {
		t.Fatal(err)
	}
	if err := i.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if taken != 1 || i.Waiting() != 1 {
		t.Errorf("Flush handed on %d records that came while it did; %d wait", taken-1, i.Waiting())
	}
}

// Health says when the room gets scarce (R-OQ-2).
func TestPing(t *testing.T) {
	const slots = 10
	i := open(t, sink{func([]journal.Frame) error { return fault.AuditUnavailable }}, journal.Config{Slots: slots, SpoolBytes: -1})
	for n := range slots + 1 {
		var want error
		if n >= slots*8/10 {
			want = fault.AuditTimeout
		}
		if err := i.Ping(); !errors.Is(err, want) {
			t.Errorf("Ping with %d of %d waiting = %v, want %v", n, slots, err, want)
		}
		if n < slots {
			if _, err := i.Log(t.Context(), audittest.Record(audit.EventApproved, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
}
