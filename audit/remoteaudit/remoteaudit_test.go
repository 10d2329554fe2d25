package remoteaudit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/audit/remoteaudit"
	"creto.dev/call"
	"creto.dev/consensus/localconsensus"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	auditv1 "creto.dev/internal/gen/creto/audit/v1"
	"creto.dev/internal/journal"
	"creto.dev/internal/wire/wiretest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

const origin = "test.local/log"

var (
	quiet = slog.New(slog.DiscardHandler)
	wires = map[string]func(testing.TB, func(grpc.ServiceRegistrar)) *grpc.ClientConn{
		"in memory": wiretest.InMemory, "over TLS": wiretest.OverTLS,
	}
)

// world is a log, and a way to it that can be cut.
type world struct {
	local  *localaudit.Log
	signer *audit.Signer
	clock  interface {
		Now(context.Context) (creto.Timestamp, error)
	}
	conn *grpc.ClientConn
	// cut makes the next calls fail before, or after, the log did its part.
	cut atomic.Pointer[func(after bool) error]
}

func build(t testing.TB, connect func(testing.TB, func(grpc.ServiceRegistrar)) *grpc.ClientConn) *world {
	t.Helper()
	d := dbtest.Open(t)
	p := localpqc.New()
	clock, err := localconsensus.Open(t.Context(), d, "server")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{clock: clock}
	if w.signer, err = audittest.Signer(p, origin); err != nil {
		t.Fatal(err)
	}
	key := pqc.NewSymmetricKey(pqc.AES256GCM, make([]byte, pqc.SymmetricKeySize))
	cfg := localaudit.Config{Intake: intake.Config{Journal: journal.Config{Dir: t.TempDir(), RingBytes: 1 << 20}, Flush: 5 * time.Millisecond}}
	if w.local, err = localaudit.Open(t.Context(), cfg, d, p, clock, w.signer, key, quiet); err != nil {
		t.Fatal(err)
	}
	run(t, w.local)
	w.conn = connect(t, func(s grpc.ServiceRegistrar) { remoteaudit.Register(s, flaky{w.local, w}) })
	return w
}

// whole is audit.Log, under a name that is none of its methods'.
type whole interface{ audit.Log }

// flaky is a log whose way can be cut.
type flaky struct {
	whole

	w *world
}

func (f flaky) LogBatch(ctx context.Context, rs []audit.Record) []error {
	all := func(err error) []error {
		errs := make([]error, len(rs))
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	if cut := f.w.cut.Load(); cut != nil {
		if err := (*cut)(false); err != nil {
			return all(err)
		}
	}
	errs := f.whole.LogBatch(ctx, rs)
	if cut := f.w.cut.Load(); cut != nil {
		if err := (*cut)(true); err != nil {
			return all(err)
		}
	}
	return errs
}

// client opens the client whose journal is in dir.
func (w *world) client(t testing.TB, dir string, edit func(*remoteaudit.Config)) *remoteaudit.Log {
	t.Helper()
	cfg := remoteaudit.Config{
		Intake: intake.Config{Journal: journal.Config{Dir: dir, RingBytes: 1 << 20}, Flush: 5 * time.Millisecond},
		Policy: call.Policy{Timeout: 10 * time.Second, Attempts: 2, InitialDelay: time.Millisecond, MaxDelay: 2 * time.Millisecond},
		Name:   origin, Self: creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: creto.KindWorkload, Name: "client"},
	}
	if edit != nil {
		edit(&cfg)
	}
	d := dbtest.Open(t)
	clock, err := localconsensus.Open(t.Context(), d, "client")
	if err != nil {
		t.Fatal(err)
	}
	sign := func(r audit.Record) (pqc.Signature, pqc.PublicKey, error) {
		sig, err := w.signer.SignRecord(r)
		return sig, w.signer.Keys().Key, err
	}
	l, err := remoteaudit.Open(cfg, w.conn, localpqc.New(), clock, sign, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// runner is either end.
type runner interface {
	Run(ctx context.Context) error
	Close() error
}

// run runs a log until the test ends, or the returned function is called.
func run(t testing.TB, l runner) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			<-done // an end without the log behind is part of some tests
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func TestLog(t *testing.T) {
	for name, connect := range wires {
		t.Run(name, func(t *testing.T) {
			audittest.Run(t, func(t *testing.T) audittest.Harness {
				w := build(t, connect)
				l := w.client(t, t.TempDir(), nil)
				run(t, l)
				return audittest.Harness{Log: l, Provider: localpqc.New(), Keys: w.signer.Keys()}
			})
		})
	}
}

// ids returns the ids in the tree, each as often as it is there.
func (w *world) ids(t *testing.T) map[audit.RecordID]int {
	t.Helper()
	seen := make(map[audit.RecordID]int)
	f := audit.Filter{Oldest: true, Limit: audit.MaxPage}
	for {
		page, err := w.local.Query(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page {
			seen[e.Record.ID]++
			f.From = e.Index + 1
		}
		if len(page) < f.Limit {
			return seen
		}
	}
}

// While the log is away, or its answers are lost, records are accepted on this
// machine, by one life after the other; when it is back each is in the tree once.
func TestAway(t *testing.T) {
	w := build(t, wiretest.InMemory)
	dir := t.TempDir()
	var calls atomic.Int64
	away := func(after bool) error {
		// Every fourth batch is taken, and nobody hears of it.
		if n := calls.Add(1); after == (n%4 == 0) {
			return fault.New("test", fault.AuditUnavailable, "the way is cut")
		}
		return nil
	}
	w.cut.Store(&away)
	var logged []audit.RecordID
	for range 4 {
		l := w.client(t, dir, func(c *remoteaudit.Config) {
			c.Intake.Journal.Slots = 20 // the rest is in the spool
			c.Intake.Journal.Patience = time.Millisecond
		})
		stop := run(t, l)
		for i := range 100 {
			r := audittest.Record(creto.CallModel, i)
			if i%7 == 0 {
				r.Outcome = audit.Denied
			}
			id, err := l.Log(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			logged = append(logged, id)
		}
		if _, err := l.Query(t.Context(), audit.Filter{}); !errors.Is(err, fault.AuditUnavailable) {
			t.Errorf("Query of a log that is away = %v, want AuditUnavailable", err)
		}
		stop()
	}
	w.cut.Store(nil)
	l := w.client(t, dir, nil)
	run(t, l)
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := w.ids(t)
	for i, id := range logged {
		if seen[id] != 1 {
			t.Errorf("record %d is in the tree %d times", i, seen[id])
		}
	}
	if len(seen) != len(logged) {
		t.Errorf("%d records in the tree, %d logged", len(seen), len(logged))
	}
}

// At four fifths the client says so; when there is no room at all it denies what
// must be recorded, and counts the rest, of which one signed record tells.
func TestFull(t *testing.T) {
	w := build(t, wiretest.InMemory)
	away := func(bool) error { return fault.New("test", fault.AuditUnavailable, "the way is cut") }
	w.cut.Store(&away)
	l := w.client(t, t.TempDir(), func(c *remoteaudit.Config) {
		c.Intake.Journal.Slots, c.Intake.Journal.SpoolBytes, c.Intake.Journal.Patience = 10, 8<<10, time.Millisecond
		c.Intake.Timeout = 50 * time.Millisecond
	})
	run(t, l)
	accepted, counted, warned := 0, 0, false
	for n := 0; counted < 5; n++ {
		if n > 1000 {
			t.Fatal("the log is never full")
		}
		err := l.Ping(t.Context())
		warned = warned || errors.Is(err, fault.AuditTimeout)
		id, err := l.Log(t.Context(), audittest.Record(creto.CallModel, n))
		if err != nil || id.IsZero() {
			continue // for a moment, until it is certain that there is no room
		}
		accepted++
		denied := audittest.Record(creto.CallModel, n)
		denied.Outcome = audit.Denied
		if _, err := l.Log(t.Context(), denied); err != nil {
			if !errors.Is(err, fault.AuditUnavailable) {
				t.Fatalf("Log without room = %v, want AuditUnavailable", err)
			}
			counted++
		} else {
			accepted++
		}
	}
	if !warned {
		t.Error("Ping never said that room is short")
	}
	w.cut.Store(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	found := errors.New("found")
	err := audit.Follow(ctx, w.local, audit.Filter{What: audit.EventAuditGap}, func(e audit.Entry) error {
		if e.Record.SignatureStatus != "valid" || e.Record.Detail["counted"] == "" || e.Record.Who.Name != "client" {
			t.Errorf("the gap's record says %+v", e.Record)
		}
		total := len(w.ids(t)) - 1
		var gap int
		_, _ = fmt.Sscan(e.Record.Detail["counted"], &gap)
		if total+gap < accepted || gap == 0 {
			t.Errorf("%d records in the tree and %d counted, of %d that were accepted", total, gap, accepted)
		}
		return found
	})
	if !errors.Is(err, found) {
		t.Fatalf("no record tells of the gap: %v", err)
	}
}

// lying is a server that answers what it should not.
type lying struct {
	auditv1.UnimplementedLogServiceServer

	batch func(*auditv1.LogBatchRequest) *auditv1.LogBatchResponse
	entry *auditv1.Entry
}

func (s lying) LogBatch(_ context.Context, in *auditv1.LogBatchRequest) (*auditv1.LogBatchResponse, error) {
	return s.batch(in), nil
}

func (s lying) Entry(context.Context, *auditv1.EntryRequest) (*auditv1.EntryResponse, error) {
	return &auditv1.EntryResponse{Entry: s.entry}, nil
}

// Wrong answers are refused, and a record that the log refuses for ever keeps no
// other back.
func TestWrongAnswers(t *testing.T) {
	accept := func(in *auditv1.LogBatchRequest) *auditv1.LogBatchResponse {
		out := &auditv1.LogBatchResponse{}
		for range in.GetRecords() {
			out.Results = append(out.Results, &auditv1.Result{})
		}
		return out
	}
	w := &world{}
	var err error
	if w.signer, err = audittest.Signer(localpqc.New(), origin); err != nil {
		t.Fatal(err)
	}
	open := func(s lying) *remoteaudit.Log {
		w.conn = wiretest.InMemory(t, func(r grpc.ServiceRegistrar) { auditv1.RegisterLogServiceServer(r, s) })
		l := w.client(t, t.TempDir(), nil)
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	t.Run("too few results", func(t *testing.T) {
		l := open(lying{batch: func(*auditv1.LogBatchRequest) *auditv1.LogBatchResponse { return &auditv1.LogBatchResponse{} }})
		if _, err := l.Log(t.Context(), audittest.Record(creto.CallModel, 1)); err != nil {
			t.Fatal(err)
		}
		if err := l.Flush(t.Context()); err == nil {
			t.Error("a batch without an answer counts as taken")
		}
	})
	t.Run("refused for ever", func(t *testing.T) {
		taken := 0
		l := open(lying{batch: func(in *auditv1.LogBatchRequest) *auditv1.LogBatchResponse {
			out := accept(in)
			out.Results[0] = &auditv1.Result{Code: fault.AuditValidationFailed.String(), Message: "no"}
			taken += len(in.GetRecords()) - 1
			return out
		}})
		for i := range 3 {
			if _, err := l.Log(t.Context(), audittest.Record(creto.CallModel, i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Flush(t.Context()); err != nil || taken != 2 {
			t.Errorf("Flush = %v with %d taken, want 2", err, taken)
		}
	})
	t.Run("refused for ever, among others that are away", func(t *testing.T) {
		var told []string
		calls := 0
		l := open(lying{batch: func(in *auditv1.LogBatchRequest) *auditv1.LogBatchResponse {
			out := accept(in)
			if calls++; calls <= 6 {
				out.Results[0] = &auditv1.Result{Code: fault.AuditValidationFailed.String(), Message: "no"}
			}
			if calls <= 5 {
				out.Results[1] = &auditv1.Result{Code: fault.AuditUnavailable.String(), Message: "later"}
			}
			for _, data := range in.GetRecords() {
				if r, err := audit.DecodeRecord(data); err == nil && r.What == audit.EventAuditGap {
					told = append(told, r.Detail["lost"])
				}
			}
			return out
		}})
		for i := range 3 {
			if _, err := l.Log(t.Context(), audittest.Record(creto.CallModel, i)); err != nil {
				t.Fatal(err)
			}
		}
		for l.Flush(t.Context()) != nil {
			if calls > 10 {
				t.Fatal("it is never taken")
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		time.Sleep(100 * time.Millisecond)
		stop()
		if err := <-done; err != nil || len(told) != 1 || told[0] != "1" {
			t.Errorf("Run = %v; records of gaps say that %q are lost, want 1 once", err, told)
		}
	})
	leaf := func() []byte {
		r := audittest.Record(creto.CallModel, 1)
		r.Stamp = creto.Timestamp{Logical: 1, Physical: 1, Source: creto.SourceConsensus, Node: "n"}
		data, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, entry := range map[string]*auditv1.Entry{
		"no record": {Leaf: []byte("nothing")}, "another record": {Leaf: leaf()}, "nothing": nil,
	} {
		t.Run(name, func(t *testing.T) {
			l := open(lying{batch: accept, entry: entry})
			if e, err := l.Entry(t.Context(), creto.NewUUID()); err == nil {
				t.Errorf("Entry = %+v", e)
			}
		})
	}
}
