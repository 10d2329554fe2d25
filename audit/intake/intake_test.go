package intake_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
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

func (s sink) Prepare(_ context.Context, frames []journal.Frame) func(context.Context) error {
	return func(context.Context) error { return s.take(frames) }
}

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

// While the sink takes a batch the next is prepared; both are taken in order, and what
// was prepared behind one that was not taken is prepared again.
func TestPrepare(t *testing.T) {
	s := &slowSink{begun: make(chan struct{}), goOn: make(chan error)}
	i := open(t, s, journal.Config{RingBytes: 8 << 20})
	const records = 9000
	done := make(chan error, 1)
	for n := range records {
		if _, err := i.Log(t.Context(), audittest.Record(creto.CallModel, n)); err != nil {
			t.Fatal(err)
		}
	}
	go func() { done <- i.Flush(t.Context()) }()
	<-s.begun // with the first
	if err := retryUntil(t, func() bool { return s.prepared() == 2 }); err != nil {
		t.Fatal("the second batch is not prepared while the first is taken")
	}
	s.goOn <- nil
	<-s.begun
	s.goOn <- errors.New("the database is away")
	if err := <-done; err == nil {
		t.Fatal("Flush hides that a batch was not taken")
	}
	if s.taken != 2000 || i.Waiting() != records-2000 {
		t.Fatalf("%d were taken and %d wait", s.taken, i.Waiting())
	}
	go func() {
		for range s.begun {
			s.goOn <- nil
		}
	}()
	if err := i.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(s.begun)
	if s.taken != records || i.Waiting() != 0 {
		t.Errorf("%d were taken and %d wait", s.taken, i.Waiting())
	}
}

// Run waits for a batch or its time, also while others are under way: many small ones
// would each wait for the disk.
func TestRunWaits(t *testing.T) {
	s := &slowSink{begun: make(chan struct{}), goOn: make(chan error)}
	i := open(t, s, journal.Config{})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	add := func(n int) {
		for range n {
			if _, err := i.Log(t.Context(), audittest.Record(creto.CallModel, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	go func() { done <- i.Run(ctx) }()
	add(100)
	<-s.begun
	add(99) // while the first are taken
	s.goOn <- nil
	select {
	case <-s.begun:
		t.Error("99 records are no batch")
		s.goOn <- nil
	case <-time.After(300 * time.Millisecond): // they have a second
	}
	add(1)
	<-s.begun
	s.goOn <- nil
	stop()
	if err := <-done; err != nil || i.Waiting() > 0 {
		t.Errorf("Run = %v; %d wait", err, i.Waiting())
	}
}

// slowSink takes a batch when it is told to.
type slowSink struct {
	sink
	begun chan struct{}
	goOn  chan error
	taken uint64

	mu    sync.Mutex // guards count
	count int
}

func (s *slowSink) prepared() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

func (s *slowSink) Prepare(_ context.Context, frames []journal.Frame) func(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	return func(context.Context) error {
		s.begun <- struct{}{}
		if err := <-s.goOn; err != nil {
			return err
		}
		for _, f := range frames {
			if s.taken++; f.Sequence != s.taken {
				return fmt.Errorf("frame %d comes after %d", f.Sequence, s.taken-1)
			}
		}
		return nil
	}
}

// retryUntil waits for what others do.
func retryUntil(t *testing.T, ok func() bool) error {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			return errors.New("too late")
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}
