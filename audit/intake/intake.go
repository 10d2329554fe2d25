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
	// Prepare begins with frames, and returns what makes their records part of the
	// log. It may be called while those before them still are on their way, so it
	// does what does not depend on them; what it returns is called, if at all, when
	// they are in the log. An error of that means that the frames are handed on again;
	// what was taken already must be passed over then. Neither is called by two
	// goroutines at a time.
	Prepare(ctx context.Context, frames []journal.Frame) (take func(context.Context) error)
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
	if r.SecurityRelevant() {
		return i.acceptOne(ctx, r)
	}
	err := i.accept(ctx, &r)
	return r.ID, err
}

// acceptOne is acceptDurable for one record.
func (i *Intake) acceptOne(ctx context.Context, r audit.Record) (audit.RecordID, error) {
	rs, errs := []audit.Record{r}, make([]error, 1)
	i.acceptDurable(ctx, rs, errs)
	return rs[0].ID, errs[0]
}

// LogBatch is audit.Log's.
func (i *Intake) LogBatch(ctx context.Context, rs []audit.Record) []error {
	errs := make([]error, len(rs))
	if i.relevant(rs) {
		i.acceptDurable(ctx, rs, errs)
		return errs
	}
	for n := range rs {
		if errs[n] = i.accept(ctx, &rs[n]); fault.Retryable(errs[n]) {
			for behind := range errs[n:] { // it waits too: a retry must not overtake what is before
				errs[n+behind] = errs[n]
			}
			break
		}
	}
	return errs
}

// relevant reports whether somebody waits until one of rs is on disk.
func (i *Intake) relevant(rs []audit.Record) bool {
	for n := range rs {
		if rs[n].SecurityRelevant() {
			return true
		}
	}
	return false
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
	id, err := i.acceptOne(ctx, r)
	if err != nil {
		return id, err
	}
	return id, fault.WrapAs(op, fault.AuditInvalidSignature, invalid, "the record's signature does not hold; it is kept as evidence")
}

// complete gives r what it lacks, and appends its encoding to b.
func (i *Intake) complete(ctx context.Context, r *audit.Record, b []byte) ([]byte, error) {
	const op fault.Op = "intake.complete"
	if r.Stamp.IsZero() {
		stamp, err := i.clock.Now(ctx)
		if err != nil {
			return b, fault.Wrap(op, err)
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
		return b, fault.New(op, fault.AuditValidationFailed, "the log itself seals what is personal")
	}
	out, err := r.Append(b)
	if err != nil {
		return b, fault.Wrap(op, err)
	}
	return out, nil
}

// buffer returns room to encode into; the journal copies what is in it.
func (i *Intake) buffer() *[]byte {
	if b, ok := i.buffers.Get().(*[]byte); ok {
		return b
	}
	return new([]byte)
}

// accept completes a record that nobody waits for, and puts it into the journal, or
// counts it.
func (i *Intake) accept(ctx context.Context, r *audit.Record) error {
	buffer := i.buffer()
	defer i.buffers.Put(buffer)
	data, err := i.complete(ctx, r, (*buffer)[:0])
	if err != nil {
		return err
	}
	*buffer = data
	if _, err := i.journal.Append(ctx, data, i.cfg.Timeout, false); err != nil {
		return i.count(r, err)
	}
	i.wake()
	return nil
}

// count counts a record that nobody waits for if there was no room for it; else the
// error is what became of it.
func (i *Intake) count(r *audit.Record, err error) error {
	if r.SecurityRelevant() || i.journal.Fill() < 1 || i.journal.Broken() {
		return Unavailable("intake.accept", err)
	}
	i.journal.CountLost(r.Stamp.Time())
	return nil
}

// wake lets Run know if there is enough to hand on.
func (i *Intake) wake() {
	if i.journal.Waiting() < i.cfg.Batch {
		return // the timer takes it; waking Run for each would cost more than all else
	}
	select {
	case i.arrived <- struct{}{}:
	default:
	}
}

// maxKept bounds the room to encode into that is kept for the next.
const maxKept = 1 << 20

// acceptDurable completes records, puts them into the journal and waits until it is on
// disk. errs gets what became of each.
func (i *Intake) acceptDurable(ctx context.Context, rs []audit.Record, errs []error) {
	const op fault.Op = "intake.acceptDurable"
	buffer := i.buffer()
	data := (*buffer)[:0]
	ends, which := make([]int, 0, len(rs)), make([]int, 0, len(rs))
	for n := range rs {
		if data, errs[n] = i.complete(ctx, &rs[n], data); errs[n] == nil {
			ends, which = append(ends, len(data)), append(which, n)
		}
	}
	payloads, begin := make([][]byte, len(ends)), 0
	for k, end := range ends {
		payloads[k], begin = data[begin:end], end
	}
	var newest uint64
	var accepted []int
	for len(payloads) > 0 {
		n, last, err := i.journal.AppendDurable(ctx, payloads, i.cfg.Timeout)
		if n > 0 {
			newest = last
			accepted = append(accepted, which[:n]...)
			i.wake()
		}
		if err == nil {
			break
		}
		// The one that there was no room for, or never is.
		if errs[which[n]] = i.count(&rs[which[n]], err); fault.Retryable(errs[which[n]]) {
			for _, behind := range which[n+1:] { // it waits too: a retry must not overtake what is before
				errs[behind] = errs[which[n]]
			}
			break
		}
		payloads, which = payloads[n+1:], which[n+1:]
	}
	if *buffer = data; cap(data) <= maxKept {
		i.buffers.Put(buffer)
	}
	if newest == 0 {
		return
	}
	if err := Unavailable(op, i.journal.Sync(newest)); err != nil {
		for _, n := range accepted {
			if rs[n].SecurityRelevant() {
				errs[n] = err
			}
		}
	}
}

// maxHandOn bounds what the sink is given at once, and maxAtOnce for how much more Run
// goes on before others get their turn to flush.
const (
	maxHandOn = 2000
	maxAtOnce = 8 * maxHandOn
)

// batch is what the sink is given at once.
type batch struct {
	frames  []journal.Frame
	missing uint64 // what turned out to be lost before or between them
	take    func(context.Context) error
	err     error // why there is none
}

// prepare makes the batch that read returns.
func (i *Intake) prepare(ctx context.Context, read func() ([]journal.Frame, uint64, error)) (b batch) {
	if b.frames, b.missing, b.err = read(); b.err == nil && len(b.frames) > 0 {
		b.take = i.sink.Prepare(ctx, b.frames)
	}
	return b
}

func (b batch) last() uint64 { return b.frames[len(b.frames)-1].Sequence }

// Flush hands on what waits. What others log meanwhile is for the next: under load
// there would be no end.
//
// Errors: AuditUnavailable (Degraded), the sink's.
func (i *Intake) Flush(ctx context.Context) error { return i.flush(ctx, 0) }

// flush is Flush, and goes on with up to more records that come meanwhile, as long as
// there are enough for a batch.
func (i *Intake) flush(ctx context.Context, more uint64) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.recordAbsent(ctx)
	newest := i.journal.Newest()
	taken, err := i.handOn(ctx, newest, newest+more)
	if err != nil {
		if !i.failed && ctx.Err() == nil {
			i.failed = true
			i.log.LogAttrs(ctx, slog.LevelError, "audit records wait: what is behind does not take them", slog.Any(logkey.Error, err))
		}
		return Unavailable("intake.Flush", err)
	}
	if i.failed && taken > 0 {
		i.failed = false
		i.log.LogAttrs(ctx, slog.LevelInfo, "audit records are taken again", slog.Int(logkey.Records, taken))
	}
	return nil
}

// handOn hands on what waits up to a frame, and what makes whole batches up to
// another, and returns how much was taken. While the sink takes one batch the next is
// read and prepared. The caller holds mu.
func (i *Intake) handOn(ctx context.Context, newest, limit uint64) (taken int, err error) {
	oldest := func() ([]journal.Frame, uint64, error) { return i.journal.Pending(maxHandOn) }
	for b := i.prepare(ctx, oldest); ; {
		i.missed += b.missing
		if b.err != nil || len(b.frames) == 0 {
			return taken, b.err
		}
		if now := i.journal.Newest(); now >= b.last()+uint64(i.cfg.Batch) {
			newest = max(newest, min(now, limit))
		}
		var next batch
		var beside sync.WaitGroup
		if b.last() < newest {
			beside.Go(func() {
				next = i.prepare(ctx, func() ([]journal.Frame, uint64, error) { return i.journal.Following(b.last(), maxHandOn) })
			})
		}
		missed := i.missed
		err := b.take(ctx)
		beside.Wait()
		if err != nil {
			i.missed = missed + next.missing // what the sink says is lost, it says again
			return taken, err
		}
		if err := i.journal.Release(b.last()); err != nil {
			i.missed += next.missing
			return taken, err
		}
		taken += len(b.frames)
		if b.last() >= newest {
			return taken, nil
		}
		if b = next; len(b.frames) == 0 && b.err == nil {
			i.missed += b.missing
			b = i.prepare(ctx, oldest)
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
		switch err := i.flush(context.WithoutCancel(ctx), maxAtOnce); {
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

// Lost adds to what the next gap's record says is lost. For a Sink, while it takes a
// batch.
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
