// Package localaudit is the audit log of one node: a journal accepts records in
// front, and a drainer moves them in batches into SQL rows and the Merkle tree,
// all in one transaction.
package localaudit

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/intake"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/logkey"
	"creto.dev/pqc"
)

// Config says where and how.
type Config struct {
	// Intake is the journal in front, and when it is drained.
	Intake intake.Config
	// Self is who the log's own records are of. The zero ID means the workload
	// creto of the default tenant, in the trust domain with which the log's
	// origin begins.
	Self creto.ID
	// Retention is how long records stay in the database; see Retain. 0 means
	// for ever.
	Retention time.Duration
	// Archive is the directory to which records go that left the database; ""
	// means that they are deleted.
	Archive string
}

// Log is the local audit.Log. Run drains it.
type Log struct {
	*intake.Intake

	cfg    Config
	db     *sql.DB
	clock  consensus.Clock
	log    *slog.Logger
	cache  *tileCache
	people *people
	// What every batch writes most of.
	records, postings bulk
	// Room that is used again: some for batches that were taken, and the rest by the
	// one goroutine that takes.
	batches chan *batch
	added   []row
	args    []any

	mu     sync.Mutex // guards what follows
	edge   edge
	recent *recent // what is not stored of the index; nil until it is needed
	spans  []span  // the time of each bundle that is stored; nil until a query asks
	signer *audit.Signer
	last   audit.Checkpoint // the newest signed head
	grown  chan struct{}    // closed when the tree grows
}

var (
	_ audit.Log   = (*Log)(nil)
	_ intake.Sink = (*Log)(nil)
)

// Open opens the log, checks that its tree is whole, and finds what an earlier
// life accepted. signer signs the heads, kek seals the keys of people.
//
// Errors: AuditUnavailable (Degraded); DataLoss (Security) if the stored tree or
// the journal is damaged.
func Open(ctx context.Context, cfg Config, d *sql.DB, p pqc.Provider, clock consensus.Clock, signer *audit.Signer, kek pqc.SymmetricKey, log *slog.Logger) (*Log, error) {
	const op fault.Op = "localaudit.Open"
	origin := signer.Keys().Origin
	if cfg.Self.IsZero() {
		domain, _, _ := strings.Cut(origin, "/")
		cfg.Self = creto.ID{TrustDomain: domain, Tenant: creto.DefaultTenant, Kind: creto.KindWorkload, Name: "creto"}
	}
	cfg.Intake.Journal.Scrub = true // what waits there is not sealed yet
	l := &Log{
		cfg: cfg, db: d, clock: clock, log: log, cache: newTileCache(), people: newPeople(d, p, kek), signer: signer, grown: make(chan struct{}), batches: make(chan *batch, 2),
		records:  bulk{head: "INSERT INTO audit_record (leaf, id, checksum, body)", columns: 4, tail: " ON CONFLICT DO NOTHING"},
		postings: bulk{head: "INSERT INTO audit_posting (term, bundle, bits)", columns: 3, tail: " ON CONFLICT (term, bundle) DO UPDATE SET bits = excluded.bits"},
	}
	h, err := loadHead(ctx, d)
	if err == nil {
		l.edge, err = loadEdge(ctx, d, h)
	}
	if err != nil {
		return nil, unavailable(op, err)
	}
	l.Intake, err = intake.Open(cfg.Intake, intake.Parts{Sink: l, Self: cfg.Self, Name: origin, Provider: p, Clock: clock, Log: log})
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	sequence, err := frontSequence(ctx, d, l.ID())
	if err == nil {
		err = l.Resume(sequence)
	}
	if err != nil {
		return nil, errors.Join(unavailable(op, err), l.Close())
	}
	return l, nil
}

// Run drains the log, and seals old segments, until ctx ends.
//
// Errors: AuditUnavailable (Degraded) if the last drain failed; what was
// accepted is then still in the journal.
func (l *Log) Run(ctx context.Context) error {
	var beside sync.WaitGroup
	beside.Go(func() { l.retain(ctx) })
	beside.Go(func() { l.checkpoints(ctx) })
	defer beside.Wait()
	if err := l.Intake.Run(ctx); err != nil {
		return err
	}
	if err := l.finishIndex(context.WithoutCancel(ctx)); err != nil {
		l.log.LogAttrs(ctx, slog.LevelWarn, "some of the audit log's index is made again at the next start", slog.Any(logkey.Error, err))
	}
	return nil
}

// checkpointEvery is how many records enter the tree between checkpoints of the
// database.
const checkpointEvery = 16_000

// checkpoints keeps the database's own log short until ctx ends, so that batches
// do not have to.
func (l *Log) checkpoints(ctx context.Context) {
	done := l.tree().size
	for {
		size, err := l.Wait(ctx, done+checkpointEvery)
		if err != nil {
			return // the context ended
		}
		if err := db.Checkpoint(ctx, l.db); err != nil && ctx.Err() == nil {
			l.log.LogAttrs(ctx, slog.LevelWarn, "the database's own log is not moved into its file", slog.Any(logkey.Error, err))
		}
		done = size
	}
}

// Close closes the journal. Run must have returned.
func (l *Log) Close() error {
	return errors.Join(l.Intake.Close(), l.records.close(), l.postings.close())
}

// origin names the log.
func (l *Log) origin() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.signer.Keys().Origin
}

// SignGap implements intake.Sink.
func (l *Log) SignGap(r audit.Record) (pqc.Signature, pqc.PublicKey, error) {
	l.mu.Lock()
	signer := l.signer
	l.mu.Unlock()
	sig, err := signer.SignRecord(r)
	return sig, signer.Keys().Key, err
}

// Ping implements audit.Log: the disk works, there is room, and the newest leaf
// is readable and leads to the root.
func (l *Log) Ping(ctx context.Context) error {
	const op fault.Op = "localaudit.Ping"
	if err := l.Intake.Ping(); err != nil {
		return fault.Wrap(op, err)
	}
	if err := l.Flush(ctx); err != nil {
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
	return intake.Unavailable(op, db.Classify(op, err))
}
