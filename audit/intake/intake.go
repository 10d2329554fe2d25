// Package intake accepts records in front of a log: it completes them, keeps them
// in a journal on this machine's disk, and hands them on in batches, again until
// they are taken. What the log is behind it, a tree in a database or another
// process, is the [Sink]'s affair.
package intake

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/journal"
	"creto.dev/internal/logkey"
	"creto.dev/pqc"
)

// Config says how. Batch and Flush have the specification's defaults (R-AUD-18).
type Config struct {
	// Journal is where records wait; its Dir is required.
	Journal journal.Config
	// Batch is how many records that wait are handed on at once. 0 means 100.
	Batch int
	// Flush is the longest that a record waits before it is handed on. 0 means
	// 1 s.
	Flush time.Duration
	// Timeout bounds how long a caller without a deadline waits for room. 0 means
	// 1 s.
	Timeout time.Duration
}

// Sink is what takes records on.
type Sink interface {
	// Take makes the records of frames part of the log. An error means that they
	// are handed on again; what was taken already must be passed over then. It is
	// called by one goroutine at a time.
	Take(ctx context.Context, frames []journal.Frame) error
	// SignGap signs the record of a gap, which is the log's own word.
	SignGap(r audit.Record) (pqc.Signature, pqc.PublicKey, error)
}

// Intake is the front of one log. Safe for concurrent use.
type Intake struct {
	cfg     Config
	sink    Sink
	self    creto.ID
	name    string
	pqc     pqc.Provider
	clock   consensus.Clock
	log     *slog.Logger
	journal *journal.Journal
	// arrived has room for one note that there is something to hand on.
	arrived chan struct{}
	buffers sync.Pool // of *[]byte, to encode into

	mu     sync.Mutex // guards what follows; held while records are handed on
	failed bool       // the last time they were not taken, and that was logged
	missed uint64     // payloads that are lost and not recorded yet
	absent absence    // what Resume did not find, until it is recorded
}

// absence is what Resume did not find.
type absence struct {
	after uint64 // the frame that the log had last
	count uint64
}

// Parts are what an Intake works with.
type Parts struct {
	Sink     Sink
	Self     creto.ID // who the records of gaps are of
	Name     string   // the log's, in those records
	Provider pqc.Provider
	Clock    consensus.Clock
	Log      *slog.Logger
}

// Open opens the journal. Resume must follow.
//
// Errors: AuditUnavailable (Degraded); DataLoss (Security) if the journal is
// damaged.
func Open(cfg Config, p Parts) (*Intake, error) {
	const op fault.Op = "intake.Open"
	if cfg.Batch == 0 {
		cfg.Batch = 100
	}
	if cfg.Flush == 0 {
		cfg.Flush = time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Second
	}
	j, err := journal.Open(cfg.Journal)
	if err != nil {
		return nil, Unavailable(op, err)
	}
	return &Intake{
		cfg: cfg, sink: p.Sink, self: p.Self, name: p.Name, pqc: p.Provider, clock: p.Clock, log: p.Log, journal: j, arrived: make(chan struct{}, 1),
	}, nil
}

// ID names the journal.
func (i *Intake) ID() creto.UUID { return i.journal.ID() }

// Acknowledged returns the newest frame that was taken, as far as the journal
// knows; after a power cut it may know too little.
func (i *Intake) Acknowledged() uint64 { return i.journal.Acknowledged() }

// Resume finds what an earlier life accepted, behind the frame that the log has
// last.
//
// Errors: AuditUnavailable (Degraded).
func (i *Intake) Resume(after uint64) error {
	missing, err := i.journal.Resume(after)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.absent = absence{after: after, count: missing}
	return Unavailable("intake.Resume", err)
}

// Close closes the journal. Run must have returned.
func (i *Intake) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.journal.Close()
}

// Log is audit.Log's.
func (i *Intake) Log(ctx context.Context, r audit.Record) (audit.RecordID, error) {
	sequence, err := i.accept(ctx, &r, r.SecurityRelevant())
	if err == nil && sequence > 0 && r.SecurityRelevant() {
		err = Unavailable("intake.Log", i.journal.Sync(sequence))
	}
	return r.ID, err
}

// LogBatch is audit.Log's.
func (i *Intake) LogBatch(ctx context.Context, rs []audit.Record) []error {
	errs := make([]error, len(rs))
	durable := make([]bool, len(rs))
	var newest uint64
	var full error
	for n := range rs {
		if full != nil { // what is behind waits too: a retry must not overtake it
			errs[n] = full
			continue
		}
		sequence, err := i.accept(ctx, &rs[n], rs[n].SecurityRelevant())
		if errs[n] = err; fault.Retryable(err) {
			full = err
		}
		if durable[n] = err == nil && sequence > 0 && rs[n].SecurityRelevant(); durable[n] {
			newest = sequence
		}
	}
	if newest == 0 {
		return errs
	}
	if err := Unavailable("intake.LogBatch", i.journal.Sync(newest)); err != nil {
		for n := range errs {
			if durable[n] {
				errs[n] = err
			}
		}
	}
	return errs
}

// LogSigned is audit.Log's.
func (i *Intake) LogSigned(ctx context.Context, r audit.Record, sig pqc.Signature, key pqc.PublicKey) (audit.RecordID, error) {
	const op fault.Op = "intake.LogSigned"
	message, err := r.SigningBytes()
	if err != nil {
		return r.ID, fault.Wrap(op, err)
	}
	r.Signature, r.SignatureStatus = &sig, "valid"
	invalid := i.pqc.Verify(pqc.PurposeRecord, message, sig, key)
	if invalid != nil {
		r.SignatureStatus = "invalid"
	}
	sequence, err := i.accept(ctx, &r, true)
	if err == nil {
		err = Unavailable(op, i.journal.Sync(sequence))
	}
	if err != nil {
		return r.ID, err
	}
	return r.ID, fault.WrapAs(op, fault.AuditInvalidSignature, invalid, "the record's signature does not hold; it is kept as evidence")
}

// accept completes r and puts it into the journal. The sequence number is 0 if it
// was only counted.
func (i *Intake) accept(ctx context.Context, r *audit.Record, relevant bool) (uint64, error) {
	const op fault.Op = "intake.accept"
	if r.Stamp.IsZero() {
		stamp, err := i.clock.Now(ctx)
		if err != nil {
			return 0, fault.Wrap(op, err)
		}
		r.Stamp = stamp
	}
	if r.ID.IsZero() {
		r.ID = creto.NewUUIDAt(r.Stamp.Time())
	}
	if r.Trace == "" {
		r.Trace = creto.TraceOf(ctx)
	}
	if r.Personal != nil {
		return 0, fault.New(op, fault.AuditValidationFailed, "the log itself seals what is personal")
	}
	buffer, ok := i.buffers.Get().(*[]byte)
	if !ok {
		buffer = new([]byte)
	}
	defer i.buffers.Put(buffer) // the journal copies
	data, err := r.Append((*buffer)[:0])
	if err != nil {
		return 0, fault.Wrap(op, err)
	}
	*buffer = data
	sequence, err := i.journal.Append(ctx, data, i.cfg.Timeout, relevant)
	if err != nil {
		if !relevant && i.journal.Fill() >= 1 && !i.journal.Broken() {
			i.journal.CountLost(r.Stamp.Time())
			return 0, nil
		}
		return 0, Unavailable(op, err)
	}
	if i.journal.Waiting() < i.cfg.Batch {
		return sequence, nil // the timer takes it; waking Run for each would cost more than all else
	}
	select {
	case i.arrived <- struct{}{}:
	default:
	}
	return sequence, nil
}

// maxHandOn bounds what the sink is given at once.
const maxHandOn = 2000

// Flush hands on what waits. What others log meanwhile is for the next: under load
// there would be no end.
//
// Errors: AuditUnavailable (Degraded), the sink's.
func (i *Intake) Flush(ctx context.Context) error {
	const op fault.Op = "intake.Flush"
	i.mu.Lock()
	defer i.mu.Unlock()
	i.recordAbsent(ctx)
	newest := i.journal.Newest()
	for {
		frames, missing, err := i.journal.Pending(maxHandOn)
		i.missed += missing
		if err == nil && len(frames) > 0 {
			missed := i.missed
			if err = i.sink.Take(ctx, frames); err != nil {
				i.missed = missed // what it says is lost, it says again
			}
		}
		if err == nil && len(frames) > 0 {
			err = i.journal.Release(frames[len(frames)-1].Sequence)
		}
		if err != nil {
			if !i.failed && ctx.Err() == nil {
				i.failed = true
				i.log.LogAttrs(ctx, slog.LevelError, "audit records wait: what is behind does not take them", slog.Any(logkey.Error, err))
			}
			return Unavailable(op, err)
		}
		if i.failed && len(frames) > 0 {
			i.failed = false
			i.log.LogAttrs(ctx, slog.LevelInfo, "audit records are taken again", slog.Int(logkey.Records, len(frames)))
		}
		if len(frames) == 0 || frames[len(frames)-1].Sequence >= newest {
			return nil
		}
	}
}

// recordAbsent records what Resume did not find, before the log goes on behind it:
// nobody could tell afterwards. A life that ends in between has the next one make
// the same record again. The caller holds mu.
func (i *Intake) recordAbsent(ctx context.Context) {
	if i.absent.count == 0 {
		return
	}
	r := i.gapRecord("lost", i.absent.after, i.absent.count)
	r.Why, r.Detail["lost"] = whyLost, strconv.FormatUint(i.absent.count, 10)
	if i.logGap(ctx, r, i.absent.count) != nil {
		i.missed += i.absent.count // it is recorded later
	}
	i.absent = absence{}
}

// gapRecord returns the record of a gap, which has the same id each time.
func (i *Intake) gapRecord(kind string, place, count uint64) audit.Record {
	id := i.journal.ID()
	sum := sha256.Sum256(fmt.Appendf(nil, "creto/audit/gap/v1\x00%x %s %d %d", id[:], kind, place, count))
	r := audit.Record{ID: audit.RecordID(sum[:16]), Who: i.self, What: audit.EventAuditGap, Resource: "Log::" + i.name, Outcome: audit.Failure, Detail: map[string]string{}}
	r.ID[6], r.ID[8] = r.ID[6]&0x0f|0x80, r.ID[8]&0x3f|0x80 // RFC 9562, version 8
	return r
}

// logGap logs the record of a gap.
func (i *Intake) logGap(ctx context.Context, r audit.Record, count uint64) error {
	if err := i.LogOwn(ctx, r); err != nil {
		i.log.LogAttrs(ctx, slog.LevelError, "a gap in the audit log is not recorded yet", slog.Any(logkey.Error, err))
		return err
	}
	i.log.LogAttrs(ctx, slog.LevelError, "the audit log has a gap", slog.Uint64(logkey.Records, count), slog.String(logkey.Reason, r.Why))
	return nil
}

const whyLost = "records that waited for the tree are lost: the disk damaged them, or the power failed before they were synced"

// maxBackoff bounds the wait after records were not taken; the first is Flush.
const maxBackoff = 10 * time.Second

// Run hands records on until ctx ends, and then once more.
//
// Errors: AuditUnavailable (Degraded) if they were not taken at last; they are
// then still in the journal.
func (i *Intake) Run(ctx context.Context) error {
	var spilling sync.WaitGroup
	spilling.Go(func() { i.journal.Run(ctx) })
	defer spilling.Wait()
	wait := i.cfg.Flush
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return i.Flush(context.WithoutCancel(ctx))
		case <-i.arrived:
			if wait > i.cfg.Flush || i.journal.Waiting() < i.cfg.Batch {
				continue // the timer takes it, or did
			}
		case <-timer.C:
		}
		// What has begun is not broken off, or the last Flush would do it again.
		switch err := i.Flush(context.WithoutCancel(ctx)); {
		case err != nil && ctx.Err() != nil:
			return err // another try would only take as long
		case err != nil:
			wait = min(2*wait, max(maxBackoff, i.cfg.Flush))
		default:
			wait = i.cfg.Flush
			i.reportGaps(ctx)
		}
		timer.Reset(wait)
	}
}

// reportGaps records what was only counted, or lost.
func (i *Intake) reportGaps(ctx context.Context) {
	if gap := i.journal.TellGap(); gap.Count > 0 {
		r := i.gapRecord("counted", gap.Before, gap.Count)
		r.Why = "there was no room: informational records were only counted"
		r.Detail["counted"] = strconv.FormatUint(gap.Count, 10)
		r.Detail["first"], r.Detail["last"] = gap.First.Format(time.RFC3339Nano), gap.Last.Format(time.RFC3339Nano)
		if i.logGap(ctx, r, gap.Count) == nil {
			i.journal.ForgetGap(gap)
		}
	}
	i.mu.Lock()
	missed := i.missed
	i.mu.Unlock()
	if missed == 0 {
		return
	}
	r := i.gapRecord("lost", 0, missed)
	r.ID = creto.UUID{} // a life records this once, or not at all
	r.Why, r.Detail["lost"] = whyLost, strconv.FormatUint(missed, 10)
	if i.logGap(ctx, r, missed) == nil {
		i.mu.Lock()
		i.missed -= missed
		i.mu.Unlock()
	}
}

// LogOwn logs a record that the log itself signs, under a fresh id if it has
// none.
//
// Errors: those of audit.Log.LogSigned.
func (i *Intake) LogOwn(ctx context.Context, r audit.Record) error {
	stamp, err := i.clock.Now(ctx)
	if err != nil {
		return fault.Wrap("intake.LogOwn", err)
	}
	if r.Stamp = stamp; r.ID.IsZero() {
		r.ID = creto.NewUUIDAt(stamp.Time())
	}
	sig, key, err := i.sink.SignGap(r)
	if err != nil {
		return err
	}
	_, err = i.LogSigned(ctx, r, sig, key)
	return err
}

// highWater is the share of the room above which the log is degraded (R-OQ-2).
const highWater = 0.8

// Ping reports whether records are accepted, and whether there is room.
//
// Errors: AuditUnavailable (Degraded) if the disk failed; AuditTimeout (Transient)
// while what waits takes four fifths of the room, and when it takes all: then
// informational records are still counted.
func (i *Intake) Ping() error {
	const op fault.Op = "intake.Ping"
	if i.journal.Broken() {
		return fault.New(op, fault.AuditUnavailable, "the audit log's disk failed; repair it and restart creto")
	}
	if fill := i.journal.Fill(); fill >= highWater {
		return fault.New(op, fault.AuditTimeout, "%d %% of the room for waiting records is taken; at 100 %% actions are denied", int(fill*100))
	}
	return nil
}

// Waiting returns how many records wait to be handed on.
func (i *Intake) Waiting() int { return i.journal.Waiting() }

// Lost adds to what the next gap's record says is lost. For a Sink, in Take.
func (i *Intake) Lost(n uint64) { i.missed += n }

// Unavailable names the trouble of a disk or a database.
func Unavailable(op fault.Op, err error) error {
	switch fault.CodeOf(err) {
	case fault.Unavailable, fault.ResourceExhausted:
		return fault.WrapAs(op, fault.AuditUnavailable, err, "%s", fault.Message(err))
	case fault.Internal:
		if err != nil {
			return fault.WrapAs(op, fault.AuditUnavailable, err, "the audit log's database cannot be used")
		}
	}
	return err
}
