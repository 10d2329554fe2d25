// Package localaudit is the audit log of one node: a memory-mapped ring accepts
// records in front, and a drainer moves them in batches into SQL rows and the
// Merkle tree, all in one transaction.
package localaudit

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/logkey"
	"creto.dev/pqc"
)

// Config says where and how. Batch, Flush and Slots have the specification's
// defaults (R-AUD-18, R-AUD-19).
type Config struct {
	// Dir holds the ring file. Required.
	Dir string
	// Batch is how many records are drained at once. 0 means 100.
	Batch int
	// Flush is the longest that a record waits to be drained. 0 means 1 s.
	Flush time.Duration
	// Slots is how many records may wait. 0 means 10,000.
	Slots int
	// RingBytes is the ring's size. 0 means 32 MiB.
	RingBytes int64
}

// Log is the local audit.Log. Run drains it.
type Log struct {
	cfg    Config
	db     *sql.DB
	pqc    pqc.Provider
	clock  consensus.Clock
	signer *audit.Signer
	log    *slog.Logger
	front  *front
	// arrived has room for one note that there is something to drain.
	arrived chan struct{}

	mu   sync.Mutex // guards head; held while draining
	head head
	last audit.Checkpoint // the newest signed head
}

var _ audit.Log = (*Log)(nil)

// head is where the tree ends and where the ring goes on.
type head struct {
	size     int64
	sequence uint64
	position int64
}

// Open opens the log and finds what an earlier life accepted.
//
// Errors: AuditUnavailable (Degraded).
func Open(ctx context.Context, cfg Config, d *sql.DB, p pqc.Provider, clock consensus.Clock, signer *audit.Signer, log *slog.Logger) (*Log, error) {
	const op fault.Op = "localaudit.Open"
	if cfg.Batch == 0 {
		cfg.Batch = 100
	}
	if cfg.Flush == 0 {
		cfg.Flush = time.Second
	}
	if cfg.Slots == 0 {
		cfg.Slots = 10_000
	}
	if cfg.RingBytes == 0 {
		cfg.RingBytes = 32 << 20
	}
	l := &Log{cfg: cfg, db: d, pqc: p, clock: clock, signer: signer, log: log, arrived: make(chan struct{}, 1)}
	row := d.QueryRowContext(ctx, "SELECT size, sequence, position FROM audit_head WHERE only = 1")
	if err := row.Scan(&l.head.size, &l.head.sequence, &l.head.position); err != nil {
		return nil, unavailable(op, err)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, unavailable(op, err)
	}
	var err error
	if l.front, err = openFront(filepath.Join(cfg.Dir, "front.ring"), cfg.RingBytes, cfg.Slots, l.head.sequence, l.head.position); err != nil {
		return nil, fault.Wrap(op, err)
	}
	return l, nil
}

// Run drains the log until ctx ends, and then once more.
//
// Errors: AuditUnavailable (Degraded) if the last drain failed; what was
// accepted is then still in the ring.
func (l *Log) Run(ctx context.Context) error {
	timer := time.NewTimer(l.cfg.Flush)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return l.drain(context.WithoutCancel(ctx))
		case <-l.arrived:
			if l.waiting() < l.cfg.Batch {
				continue // the timer takes it
			}
		case <-timer.C:
			timer.Reset(l.cfg.Flush)
		}
		if err := l.drain(ctx); err != nil && ctx.Err() == nil {
			l.log.LogAttrs(ctx, slog.LevelError, "audit records wait: the database refuses them", slog.Any(logkey.Error, err))
		}
	}
}

// Close unmaps the ring. Run must have returned.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.front.close()
}

func (l *Log) waiting() int {
	l.front.mu.Lock()
	defer l.front.mu.Unlock()
	return l.front.waiting
}

// Log implements audit.Log.
func (l *Log) Log(ctx context.Context, r audit.Record) (audit.RecordID, error) {
	return l.accept(ctx, r, r.SecurityRelevant())
}

func (l *Log) accept(ctx context.Context, r audit.Record, durable bool) (audit.RecordID, error) {
	const op fault.Op = "localaudit.Log"
	if r.ID.IsZero() {
		r.ID = creto.NewUUID()
	}
	if r.Stamp.IsZero() {
		stamp, err := l.clock.Now(ctx)
		if err != nil {
			return r.ID, fault.Wrap(op, err)
		}
		r.Stamp = stamp
	}
	if r.Trace == "" {
		r.Trace = creto.TraceOf(ctx)
	}
	leaf, err := r.Encode()
	if err != nil {
		return r.ID, fault.Wrap(op, err)
	}
	sequence, err := l.front.append(ctx, leaf)
	if err != nil {
		return r.ID, fault.Wrap(op, err)
	}
	select {
	case l.arrived <- struct{}{}:
	default:
	}
	if durable {
		return r.ID, l.front.sync(sequence)
	}
	return r.ID, nil
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
	id, err := l.accept(ctx, r, true)
	if err != nil {
		return id, err
	}
	return id, fault.WrapAs(op, fault.AuditInvalidSignature, invalid, "the record's signature does not hold; it is kept as evidence")
}

// Entry implements audit.Log.
func (l *Log) Entry(ctx context.Context, id audit.RecordID) (audit.Entry, error) {
	const op fault.Op = "localaudit.Entry"
	for try := range 2 {
		var e audit.Entry
		err := l.db.QueryRowContext(ctx, "SELECT leaf, body FROM audit_record WHERE id = $1", id[:]).Scan(&e.Index, &e.Leaf)
		if err == nil {
			e.Record, err = audit.DecodeRecord(e.Leaf)
			return e, fault.Wrap(op, err)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return e, unavailable(op, err)
		}
		if try == 0 {
			if err := l.drain(ctx); err != nil {
				return e, err
			}
		}
	}
	return audit.Entry{}, fault.New(op, fault.AuditNotFound, "there is no record %s", id)
}

// maxPage is the most entries a query returns.
const maxPage = 1000

// Query implements audit.Log.
func (l *Log) Query(ctx context.Context, f audit.Filter) ([]audit.Entry, error) {
	const op fault.Op = "localaudit.Query"
	if err := l.drain(ctx); err != nil {
		return nil, err
	}
	where, args := []string{"1 = 1"}, []any{}
	add := func(condition string, value any) {
		args = append(args, value)
		where = append(where, strings.ReplaceAll(condition, "$", "$"+string(rune('0'+len(args)))))
	}
	if f.Tenant != "" {
		add("tenant = $", f.Tenant)
	}
	if f.Actor != "" {
		add("(actor = $ OR actor LIKE '%/' || $)", f.Actor)
	}
	if f.What != "" {
		add("what = $", f.What)
	}
	if f.Outcome != "" {
		add("outcome = $", string(f.Outcome))
	}
	if f.Before > 0 {
		add("leaf < $", f.Before)
	}
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	add("leaf >= $", 0)
	args = append(args, min(limit, maxPage))
	rows, err := l.db.QueryContext(ctx, "SELECT leaf, body FROM audit_record WHERE "+strings.Join(where, " AND ")+
		" ORDER BY leaf DESC LIMIT $"+string(rune('0'+len(args))), args...)
	if err != nil {
		return nil, unavailable(op, err)
	}
	defer func() { _ = rows.Close() }()
	var page []audit.Entry
	for rows.Next() {
		var e audit.Entry
		if err := rows.Scan(&e.Index, &e.Leaf); err != nil {
			return nil, unavailable(op, err)
		}
		if e.Record, err = audit.DecodeRecord(e.Leaf); err != nil {
			return nil, fault.Wrap(op, err)
		}
		page = append(page, e)
	}
	return page, unavailable(op, rows.Err())
}

// Ping implements audit.Log: the newest leaf is readable and its proof leads to
// the root.
func (l *Log) Ping(ctx context.Context) error {
	const op fault.Op = "localaudit.Ping"
	if l.front.broken.Load() {
		return fault.New(op, fault.AuditUnavailable, "the audit log's disk failed; restart creto")
	}
	if err := l.drain(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	size := l.head.size
	l.mu.Unlock()
	if size == 0 {
		return nil
	}
	var leaf []byte
	if err := l.db.QueryRowContext(ctx, "SELECT body FROM audit_record WHERE leaf = $1", size-1).Scan(&leaf); err != nil {
		return unavailable(op, err)
	}
	root, err := l.root(ctx, size)
	if err != nil {
		return err
	}
	proof, err := l.Proof(ctx, size-1, size)
	if err != nil {
		return err
	}
	return audit.VerifyProof(leaf, size-1, size, root, proof)
}

func unavailable(op fault.Op, err error) error {
	if _, ok := errors.AsType[*fault.Error](err); ok || err == nil {
		return err
	}
	return fault.WrapAs(op, fault.AuditUnavailable, db.Classify(op, err), "the audit log's database cannot be used")
}
