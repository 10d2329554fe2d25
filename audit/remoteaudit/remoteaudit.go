// Package remoteaudit is an audit.Log in another process, over gRPC: [Open] is the
// client, [Register] the server.
//
// The client accepts records into a journal on its own disk, so that the log being
// away loses nothing and stops nobody until the journal is full (R-AUD-28,
// R-OQ-2). They are handed on in batches, again until they are taken, and each
// enters the tree once, by its id. What is asked of the log needs the log.
package remoteaudit

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/intake"
	"creto.dev/call"
	"creto.dev/consensus"
	"creto.dev/fault"
	auditv1 "creto.dev/internal/gen/creto/audit/v1"
	"creto.dev/internal/journal"
	"creto.dev/internal/logkey"
	"creto.dev/pqc"
)

// DefaultTimeout bounds each attempt of a call where the policy does not;
// DefaultAttempts is how often a batch is handed on before the client waits
// (R-AUD-20).
const (
	DefaultTimeout  = time.Second
	DefaultAttempts = 5
)

// maxBatchBytes bounds what crosses at once, well below what a message may have.
const maxBatchBytes = 3 << 20

// Config says how.
type Config struct {
	// Intake is the journal in front.
	Intake intake.Config
	// Policy is of each call. Without Attempts it is DefaultAttempts.
	Policy call.Policy
	// Name is the log's, in the records of gaps.
	Name string
	// Self is who these records are of. Required.
	Self creto.ID
}

// Signer signs the record of a gap.
type Signer func(r audit.Record) (pqc.Signature, pqc.PublicKey, error)

// Log is the client. Run hands its records on.
type Log struct {
	*intake.Intake

	rpc    auditv1.LogServiceClient
	policy call.Policy
	sign   Signer
	log    *slog.Logger
}

var (
	_ audit.Log   = (*Log)(nil)
	_ intake.Sink = (*Log)(nil)
)

// Open returns the log at the other end of conn, which the caller closes, and
// finds what an earlier life of this client accepted.
//
// Errors: AuditUnavailable (Degraded) for this machine's disk; DataLoss (Security)
// if the journal is damaged.
func Open(cfg Config, conn grpc.ClientConnInterface, p pqc.Provider, clock consensus.Clock, sign Signer, log *slog.Logger) (*Log, error) {
	const op fault.Op = "remoteaudit.Open"
	if cfg.Policy.Timeout == 0 {
		cfg.Policy.Timeout = DefaultTimeout
	}
	if cfg.Policy.Attempts == 0 {
		cfg.Policy.Attempts = DefaultAttempts
	}
	cfg.Intake.Journal.Scrub = true
	l := &Log{rpc: auditv1.NewLogServiceClient(conn), policy: cfg.Policy, sign: sign, log: log}
	var err error
	l.Intake, err = intake.Open(cfg.Intake, intake.Parts{Sink: l, Self: cfg.Self, Name: cfg.Name, Provider: p, Clock: clock, Log: log})
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	// What the journal knows may be too old after a power cut: then records are
	// handed on again, and passed over.
	if err := l.Resume(l.Acknowledged()); err != nil {
		return nil, errors.Join(fault.Wrap(op, err), l.Close())
	}
	return l, nil
}

// Run hands records on until ctx ends, and then once more. That the log is away
// then is no error: the next life hands on what waits.
//
// Errors: AuditUnavailable (Degraded) for this machine's disk.
func (l *Log) Run(ctx context.Context) error {
	err := l.Intake.Run(ctx)
	if err == nil || l.Intake.Ping() != nil {
		return err
	}
	l.log.LogAttrs(ctx, slog.LevelWarn, "the audit log is away; what waits here goes out at the next start",
		slog.Int(logkey.Records, l.Waiting()), slog.Any(logkey.Error, err))
	return nil
}

// SignGap implements intake.Sink.
func (l *Log) SignGap(r audit.Record) (pqc.Signature, pqc.PublicKey, error) { return l.sign(r) }

// do makes one call. On an error the answer is nil, whose fields read as empty.
func do[In, Out any](ctx context.Context, l *Log, o call.Operation, method func(context.Context, *In, ...grpc.CallOption) (*Out, error), in *In) (*Out, error) {
	return call.Do(ctx, l.policy, o, func(ctx context.Context) (*Out, error) {
		out, err := method(ctx, in)
		return out, named(err)
	})
}

// named gives what happens to every call the contract's name.
func named(err error) error {
	const op fault.Op = "remoteaudit"
	switch fault.CodeOf(err) {
	case fault.DeadlineExceeded:
		return fault.WrapAs(op, fault.AuditTimeout, errors.Join(err, fault.AuditTimeout), "the audit log is slow")
	case fault.Unavailable:
		return fault.WrapAs(op, fault.AuditUnavailable, errors.Join(err, fault.AuditUnavailable), "the audit log cannot be reached")
	}
	return err
}

// Prepare implements intake.Sink.
func (l *Log) Prepare(_ context.Context, frames []journal.Frame) func(context.Context) error {
	return func(ctx context.Context) error { return l.take(ctx, frames) }
}

func (l *Log) take(ctx context.Context, frames []journal.Frame) error {
	for len(frames) > 0 {
		size, n := 0, 0
		in := &auditv1.LogBatchRequest{}
		for n < len(frames) && n < maxBatch && (n == 0 || size+len(frames[n].Payload) <= maxBatchBytes) {
			in.Records = append(in.Records, []byte(frames[n].Payload))
			size += len(frames[n].Payload)
			n++
		}
		if err := l.hand(ctx, in); err != nil {
			return err
		}
		frames = frames[n:]
	}
	return nil
}

// hand hands one batch on. The log passes over what it has, so it may be repeated.
func (l *Log) hand(ctx context.Context, in *auditv1.LogBatchRequest) error {
	const op fault.Op = "remoteaudit.LogBatch"
	out, err := do(ctx, l, call.Read(op), l.rpc.LogBatch, in)
	if err != nil {
		return err
	}
	if len(out.GetResults()) != len(in.GetRecords()) {
		return fault.New(op, fault.AuditInternal, "the audit log answers for %d records of %d", len(out.GetResults()), len(in.GetRecords()))
	}
	for _, r := range out.GetResults() {
		err := resultError(op, r)
		if err == nil {
			continue
		}
		if fault.Retryable(err) {
			return err
		}
		// It would be refused for ever, and keep all behind it from the log.
		l.log.LogAttrs(ctx, slog.LevelError, "the audit log refuses a record", slog.Any(logkey.Error, err))
		l.Lost(1)
	}
	return nil
}

// Entry implements audit.Log.
func (l *Log) Entry(ctx context.Context, id audit.RecordID) (audit.Entry, error) {
	e, _, err := l.entry(ctx, id)
	return e, err
}

func (l *Log) entry(ctx context.Context, id audit.RecordID) (audit.Entry, [][]byte, error) {
	const op fault.Op = "remoteaudit.Entry"
	if err := l.Flush(ctx); err != nil {
		return audit.Entry{}, nil, err
	}
	out, err := do(ctx, l, call.Read(op), l.rpc.Entry, &auditv1.EntryRequest{Id: id[:]})
	if err != nil {
		return audit.Entry{}, nil, err
	}
	e, err := entryFrom(op, out.GetEntry())
	if err == nil && e.Record.ID != id {
		err = fault.New(op, fault.AuditInternal, "the audit log gives another record than was asked for")
	}
	return e, out.GetEntry().GetKeys(), err
}

// Disclose implements audit.Log.
func (l *Log) Disclose(ctx context.Context, e audit.Entry) ([]audit.Disclosure, error) {
	_, keys, err := l.entry(ctx, e.Record.ID)
	if err != nil {
		return nil, err
	}
	var list []audit.Disclosure
	for i, box := range e.Record.Personal {
		if i < len(keys) && len(keys[i]) > 0 {
			list = append(list, audit.Disclosure{Index: e.Index, Subject: box.Subject, Key: keys[i]})
		}
	}
	return list, nil
}

// Query implements audit.Log.
func (l *Log) Query(ctx context.Context, f audit.Filter) ([]audit.Entry, error) {
	const op fault.Op = "remoteaudit.Query"
	if err := l.Flush(ctx); err != nil {
		return nil, err
	}
	if f.Limit < 0 {
		return nil, fault.New(op, fault.InvalidArgument, "a page's limit is 0 to %d", audit.MaxPage)
	}
	limit := min(cmp.Or(f.Limit, defaultPage), audit.MaxPage)
	var page []audit.Entry
	f.Limit = limit
	for {
		out, err := do(ctx, l, call.Read(op), l.rpc.Query, queryOf(f))
		if err != nil {
			return nil, err
		}
		for _, x := range out.GetEntries() {
			e, err := entryFrom(op, x)
			if err != nil {
				return nil, err
			}
			page = append(page, e)
		}
		if n := len(page); n > 0 {
			f.Before, f.From = page[n-1].Index, page[n-1].Index+1
			if f.Oldest {
				f.Before = 0
			} else {
				f.From = 0
			}
		}
		f.Limit = limit - len(page)
		if !out.GetMore() || len(out.GetEntries()) == 0 || f.Limit <= 0 || !f.Oldest && f.Before == 0 {
			return page, nil
		}
	}
}

// Wait implements audit.Log.
func (l *Log) Wait(ctx context.Context, size int64) (int64, error) {
	const op fault.Op = "remoteaudit.Wait"
	policy := l.policy
	policy.Timeout = maxWait + l.policy.Timeout
	for {
		out, err := call.Do(ctx, policy, call.Read(op), func(ctx context.Context) (*auditv1.WaitResponse, error) {
			out, err := l.rpc.Wait(ctx, &auditv1.WaitRequest{Size: size})
			return out, named(err)
		})
		if ctx.Err() != nil {
			return 0, fault.New(op, fault.AuditTimeout, "the log did not grow beyond %d records", size)
		}
		if err != nil || out.GetSize() > size {
			return out.GetSize(), err
		}
	}
}

// Checkpoint implements audit.Log.
func (l *Log) Checkpoint(ctx context.Context) (audit.Checkpoint, error) {
	const op fault.Op = "remoteaudit.Checkpoint"
	if err := l.Flush(ctx); err != nil {
		return audit.Checkpoint{}, err
	}
	out, err := do(ctx, l, call.Read(op), l.rpc.Checkpoint, &auditv1.CheckpointRequest{})
	if err != nil {
		return audit.Checkpoint{}, err
	}
	root, err := hashesFrom(op, [][]byte{out.GetRoot()})
	if err != nil {
		return audit.Checkpoint{}, err
	}
	return audit.Checkpoint{Size: out.GetSize(), Root: root[0], Note: out.GetNote()}, nil
}

// Proof implements audit.Log.
func (l *Log) Proof(ctx context.Context, index, size int64) ([][32]byte, error) {
	const op fault.Op = "remoteaudit.Proof"
	out, err := do(ctx, l, call.Read(op), l.rpc.Proof, &auditv1.ProofRequest{Index: index, Size: size})
	if err != nil {
		return nil, err
	}
	return hashesFrom(op, out.GetHashes())
}

// Consistency implements audit.Log.
func (l *Log) Consistency(ctx context.Context, from, to int64) ([][32]byte, error) {
	const op fault.Op = "remoteaudit.Consistency"
	out, err := do(ctx, l, call.Read(op), l.rpc.Consistency, &auditv1.ConsistencyRequest{From: from, To: to})
	if err != nil {
		return nil, err
	}
	return hashesFrom(op, out.GetHashes())
}

// Ping implements audit.Log: this machine accepts, and the log behind is there.
func (l *Log) Ping(ctx context.Context) error {
	const op fault.Op = "remoteaudit.Ping"
	if err := l.Intake.Ping(); err != nil {
		return fault.Wrap(op, err)
	}
	_, err := do(ctx, l, call.Read(op), l.rpc.Ping, &auditv1.PingRequest{})
	return err
}

// bound returns a time as it crosses; nil for none.
func bound(t time.Time) *int64 {
	if t.IsZero() {
		return nil
	}
	ns := t.UnixNano()
	switch {
	case t.After(time.Unix(0, math.MaxInt64)):
		ns = math.MaxInt64
	case t.Before(time.Unix(0, math.MinInt64)):
		ns = math.MinInt64
	}
	return &ns
}

// resultError reads what became of one record.
func resultError(op fault.Op, r *auditv1.Result) error {
	if r.GetCode() == "" {
		return nil
	}
	code, ok := fault.ParseCode(r.GetCode())
	if !ok {
		code = fault.AuditInternal
	}
	return fault.New(op, code, "%s", r.GetMessage())
}
