// Package localaudit is the audit log of one node: a journal accepts records in
// front, and a drainer moves them in batches into SQL rows and the Merkle tree,
// all in one transaction.
package localaudit

import (
	"context"
	"database/sql"
	"encoding/binary"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/journal"
	"creto.dev/internal/logkey"
	"creto.dev/pqc"
)

// Config says where and how. Batch, Flush and Journal.Slots have the
// specification's defaults (R-AUD-18, R-AUD-19).
type Config struct {
	// Journal is the queue in front; its Dir is required.
	Journal journal.Config
	// Self is who the log's own records are of. The zero ID means the workload
	// creto of the default tenant, in the trust domain with which the log's
	// origin begins.
	Self creto.ID
	// Batch is how many records are drained at once. 0 means 100.
	Batch int
	// Flush is the longest that a record waits to be drained. 0 means 1 s.
	Flush time.Duration
	// Timeout bounds how long a caller without a deadline waits for room. 0
	// means 1 s.
	Timeout time.Duration
	// Retention is how long records stay in the database; see Retain. 0 means
	// for ever.
	Retention time.Duration
	// Archive is the directory to which records go that left the database; ""
	// means that they are deleted.
	Archive string
}

// Log is the local audit.Log. Run drains it.
type Log struct {
	cfg     Config
	db      *sql.DB
	pqc     pqc.Provider
	clock   consensus.Clock
	log     *slog.Logger
	journal *journal.Journal
	cache   *tileCache
	people  *people
	// arrived has room for one note that there is something to drain.
	arrived chan struct{}

	mu     sync.Mutex // guards what follows; held while draining
	edge   edge
	open   open
	spans  []span // the time of each bundle; nil until a query asks
	signer *audit.Signer
	last   audit.Checkpoint // the newest signed head
	grown  chan struct{}    // closed when the tree grows
	failed bool             // the last drain failed, and that was logged
	missed uint64           // payloads that are lost and not recorded yet
}

var _ audit.Log = (*Log)(nil)

// Open opens the log, checks that its tree is whole, and finds what an earlier
// life accepted.
//
// Errors: AuditUnavailable (Degraded); DataLoss (Security) if the stored tree or
// the front is damaged.
func Open(ctx context.Context, cfg Config, d *sql.DB, p pqc.Provider, clock consensus.Clock, signer *audit.Signer, kek pqc.SymmetricKey, log *slog.Logger) (*Log, error) {
	const op fault.Op = "localaudit.Open"
	if cfg.Batch == 0 {
		cfg.Batch = 100
	}
	if cfg.Flush == 0 {
		cfg.Flush = time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Second
	}
	if cfg.Self.IsZero() {
		domain, _, _ := strings.Cut(signer.Keys().Origin, "/")
		cfg.Self = creto.ID{TrustDomain: domain, Tenant: creto.DefaultTenant, Kind: creto.KindWorkload, Name: "creto"}
	}
	cfg.Journal.Scrub = true // what waits there is not sealed yet
	l := &Log{
		cfg: cfg, db: d, pqc: p, clock: clock, log: log, cache: newTileCache(), arrived: make(chan struct{}, 1),
		signer: signer, grown: make(chan struct{}),
	}
	l.people = newPeople(d, p, kek)
	var err error
	if l.edge, err = loadEdge(ctx, d); err != nil {
		return nil, unavailable(op, err)
	}
	if l.journal, err = journal.Open(cfg.Journal); err != nil {
		return nil, unavailable(op, err)
	}
	sequence, err := frontSequence(ctx, d, l.journal.ID())
	if err == nil {
		l.missed, err = l.journal.Resume(sequence)
	}
	if err != nil {
		_ = l.journal.Close()
		return nil, unavailable(op, err)
	}
	return l, nil
}

// maxBackoff bounds the wait after a drain that failed; the first is Flush.
const maxBackoff = 10 * time.Second

// Run drains the log until ctx ends, and then once more.
//
// Errors: AuditUnavailable (Degraded) if the last drain failed; what was
// accepted is then still in the journal.
func (l *Log) Run(ctx context.Context) error {
	var spilling sync.WaitGroup
	spilling.Go(func() { l.journal.Run(ctx) })
	defer spilling.Wait()
	wait := l.cfg.Flush
	timer := time.NewTimer(wait)
	defer timer.Stop()
	retain := time.NewTicker(retainEvery)
	defer retain.Stop()
	for {
		select {
		case <-ctx.Done():
			return l.drain(context.WithoutCancel(ctx))
		case <-retain.C:
			if err := l.Retain(ctx); err != nil && ctx.Err() == nil {
				l.log.LogAttrs(ctx, slog.LevelError, "old audit records cannot be sealed", slog.Any(logkey.Error, err))
			}
			continue
		case <-l.arrived:
			if l.journal.Waiting() < l.cfg.Batch || wait > l.cfg.Flush {
				continue // the timer takes it
			}
		case <-timer.C:
		}
		if err := l.drain(ctx); err != nil && ctx.Err() == nil {
			wait = min(2*wait, max(maxBackoff, l.cfg.Flush))
		} else {
			wait = l.cfg.Flush
			l.reportGaps(ctx)
		}
		timer.Reset(wait)
	}
}

// Close closes the journal. Run must have returned.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.journal.Close()
}

// Log implements audit.Log.
func (l *Log) Log(ctx context.Context, r audit.Record) (audit.RecordID, error) {
	sequence, err := l.accept(ctx, &r)
	if err == nil && sequence > 0 && r.SecurityRelevant() {
		err = unavailable("localaudit.Log", l.journal.Sync(sequence))
	}
	return r.ID, err
}

// LogBatch implements audit.Log.
func (l *Log) LogBatch(ctx context.Context, rs []audit.Record) []error {
	errs := make([]error, len(rs))
	var newest uint64
	durable := make([]bool, len(rs))
	for i := range rs {
		sequence, err := l.accept(ctx, &rs[i])
		errs[i] = err
		if durable[i] = err == nil && sequence > 0 && rs[i].SecurityRelevant(); durable[i] {
			newest = sequence
		}
	}
	if newest == 0 {
		return errs
	}
	if err := l.journal.Sync(newest); err != nil {
		for i := range errs {
			if durable[i] {
				errs[i] = unavailable("localaudit.LogBatch", err)
			}
		}
	}
	return errs
}

// accept completes r and puts it into the journal. The sequence number is 0 if
// it was only counted.
func (l *Log) accept(ctx context.Context, r *audit.Record) (uint64, error) {
	const op fault.Op = "localaudit.Log"
	if r.ID.IsZero() {
		r.ID = creto.NewUUID()
	}
	if r.Stamp.IsZero() {
		stamp, err := l.clock.Now(ctx)
		if err != nil {
			return 0, fault.Wrap(op, err)
		}
		r.Stamp = stamp
	}
	if r.Trace == "" {
		r.Trace = creto.TraceOf(ctx)
	}
	if r.Personal != nil {
		return 0, fault.New(op, fault.AuditValidationFailed, "the log itself seals what is personal")
	}
	data, err := r.Encode()
	if err != nil {
		return 0, fault.Wrap(op, err)
	}
	relevant := r.SecurityRelevant()
	sequence, err := l.journal.Append(ctx, data, l.cfg.Timeout, relevant)
	if err != nil {
		if !relevant && l.journal.Fill() >= 1 && !l.journal.Broken() {
			l.journal.CountLost(r.Stamp.Time())
			return 0, nil
		}
		return 0, unavailable(op, err)
	}
	select {
	case l.arrived <- struct{}{}:
	default:
	}
	return sequence, nil
}

// LogSigned implements audit.Log.
func (l *Log) LogSigned(ctx context.Context, r audit.Record, sig pqc.Signature, key pqc.PublicKey) (audit.RecordID, error) {
	const op fault.Op = "localaudit.LogSigned"
	message, err := r.SigningBytes()
	if err != nil {
		return r.ID, fault.Wrap(op, err)
	}
	r.Signature, r.SignatureStatus = &sig, "valid"
	invalid := l.pqc.Verify(pqc.PurposeRecord, message, sig, key)
	if invalid != nil {
		r.SignatureStatus = "invalid"
	}
	sequence, err := l.accept(ctx, &r)
	if err == nil {
		err = unavailable(op, l.journal.Sync(sequence))
	}
	if err != nil {
		return r.ID, err
	}
	return r.ID, fault.WrapAs(op, fault.AuditInvalidSignature, invalid, "the record's signature does not hold; it is kept as evidence")
}

// reportGaps records what was only counted, or lost, signed by the log.
func (l *Log) reportGaps(ctx context.Context) {
	gap := l.journal.Gap()
	l.mu.Lock()
	missed, signer := l.missed, l.signer
	l.mu.Unlock()
	if gap.Count == 0 && missed == 0 {
		return
	}
	r := audit.Record{
		ID: creto.NewUUID(), Who: l.cfg.Self, What: audit.EventAuditGap, Resource: "Log::" + signer.Keys().Origin, Outcome: audit.Failure, Detail: map[string]string{},
	}
	if gap.Count > 0 {
		r.Why = "there was no room: informational records were only counted"
		r.Detail["counted"] = strconv.FormatUint(gap.Count, 10)
		r.Detail["first"], r.Detail["last"] = gap.First.Format(time.RFC3339Nano), gap.Last.Format(time.RFC3339Nano)
	}
	if missed > 0 {
		r.Why = "records that waited for the tree are lost: the disk damaged them, or the power failed before they were synced"
		r.Detail["lost"] = strconv.FormatUint(missed, 10)
	}
	err := l.logOwn(ctx, r, signer)
	if err != nil {
		l.log.LogAttrs(ctx, slog.LevelError, "a gap in the audit log is not recorded yet", slog.Any(logkey.Error, err))
		return
	}
	l.log.LogAttrs(ctx, slog.LevelError, "the audit log has a gap", slog.Uint64(logkey.Records, gap.Count+missed), slog.String(logkey.Reason, r.Why))
	l.journal.ForgetGap(gap)
	l.mu.Lock()
	l.missed -= missed
	l.mu.Unlock()
}

// logOwn logs a record that the log itself signs.
func (l *Log) logOwn(ctx context.Context, r audit.Record, signer *audit.Signer) error {
	sig, err := signer.SignRecord(r)
	if err != nil {
		return err
	}
	_, err = l.LogSigned(ctx, r, sig, signer.Keys().Key)
	return err
}

// highWater is the share of the room above which the log says that it is
// degraded (R-OQ-2).
const highWater = 0.8

// Ping implements audit.Log: the disk works, there is room, and the newest leaf
// is readable and leads to the root.
func (l *Log) Ping(ctx context.Context) error {
	const op fault.Op = "localaudit.Ping"
	if l.journal.Broken() {
		return fault.New(op, fault.AuditUnavailable, "the audit log's disk failed; repair it and restart creto")
	}
	if fill := l.journal.Fill(); fill >= highWater {
		return fault.New(op, fault.AuditUnavailable, "the audit log's database does not keep up: %d %% of the room for waiting records is taken; at 100 %% actions are denied", int(fill*100))
	}
	if err := l.drain(ctx); err != nil {
		return err
	}
	t := l.tree()
	if t.size == 0 {
		return nil
	}
	e, err := l.entryAt(ctx, t, t.size-1)
	if err != nil {
		return err
	}
	root := t.root()
	proof, err := l.prove(ctx, t, e.Index, t.size)
	if err != nil {
		return err
	}
	return audit.VerifyProof(e.Leaf, e.Index, t.size, root, proof)
}

// Rekey has signer sign the heads from now on.
func (l *Log) Rekey(signer *audit.Signer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.signer, l.last = signer, audit.Checkpoint{}
}

// Wait implements audit.Log.
func (l *Log) Wait(ctx context.Context, size int64) (int64, error) {
	for {
		l.mu.Lock()
		have, grown := l.edge.size, l.grown
		l.mu.Unlock()
		if have > size {
			return have, nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return 0, fault.New("localaudit.Wait", fault.AuditTimeout, "the log did not grow beyond %d records", size)
		}
	}
}

// tree returns the tree as it is now.
func (l *Log) tree() tree {
	l.mu.Lock()
	defer l.mu.Unlock()
	return tree{edge: l.edge, query: l.db, cache: l.cache}
}

// checksum is what a row is checked with: the beginning of the leaf's hash.
func checksum(leaf tlog.Hash) int64 { return int64(binary.BigEndian.Uint64(leaf[:8])) }

func unavailable(op fault.Op, err error) error {
	if err == nil {
		return nil
	}
	code := fault.CodeOf(err)
	switch {
	case code == fault.Unavailable || code == fault.ResourceExhausted:
		return fault.WrapAs(op, fault.AuditUnavailable, err, "%s", fault.Message(err))
	case code == fault.Internal:
		return fault.WrapAs(op, fault.AuditUnavailable, db.Classify(op, err), "the audit log's database cannot be used")
	}
	return err
}
