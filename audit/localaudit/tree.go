package localaudit

import (
	"context"
	"database/sql"
	"log/slog"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/logkey"
)

// maxDrain bounds one transaction.
const maxDrain = 1000

// drain moves everything that waits in the ring into the tree. Rows, hashes and
// head commit together, so a crash repeats a batch or has done it, and a record
// that is there already is passed over.
func (l *Log) drain(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		frames := l.front.pending(l.head.sequence, l.head.position, maxDrain)
		if len(frames) == 0 {
			return nil
		}
		next := l.head
		err := db.Tx(ctx, l.db, func(tx *sql.Tx) error { return l.insert(ctx, tx, frames, &next) })
		if err != nil {
			return unavailable("localaudit.drain", err)
		}
		l.head = next
		l.front.release(next.position, len(frames))
	}
}

func (l *Log) insert(ctx context.Context, tx *sql.Tx, frames []frame, next *head) error {
	const op fault.Op = "localaudit.insert"
	hashes := &hashStore{ctx: ctx, query: tx, fresh: make(map[int64]tlog.Hash)}
	row, err := tx.PrepareContext(ctx, `INSERT INTO audit_record (leaf, id, at_ns, tenant, actor, what, resource, outcome, body)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO NOTHING`)
	if err != nil {
		return db.Classify(op, err)
	}
	defer func() { _ = row.Close() }()
	node, err := tx.PrepareContext(ctx, "INSERT INTO audit_hash (position, hash) VALUES ($1, $2)")
	if err != nil {
		return db.Classify(op, err)
	}
	defer func() { _ = node.Close() }()
	for _, f := range frames {
		next.sequence, next.position = f.sequence, f.next
		leaf := append([]byte(nil), f.payload...)
		r, err := audit.DecodeRecord(leaf)
		if err != nil {
			// Encode lets no such leaf in. One that is here all the same must not
			// keep what follows out of the tree.
			l.log.LogAttrs(ctx, slog.LevelError, "frame of the audit front is no record and was left out", slog.Uint64(logkey.Sequence, f.sequence), slog.Any(logkey.Error, err))
			continue
		}
		result, err := row.ExecContext(ctx, next.size, r.ID[:], r.Stamp.Physical, r.Who.Tenant, r.Who.String(), r.What, r.Resource, string(r.Outcome), leaf)
		if err != nil {
			return db.Classify(op, err)
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			if err != nil {
				return db.Classify(op, err)
			}
			continue // a retry of a record that is in the tree
		}
		stored, err := tlog.StoredHashes(next.size, leaf, hashes)
		if err != nil {
			return fault.Wrap(op, err)
		}
		first := tlog.StoredHashIndex(0, next.size)
		for i, h := range stored {
			if _, err := node.ExecContext(ctx, first+int64(i), h[:]); err != nil {
				return db.Classify(op, err)
			}
			hashes.fresh[first+int64(i)] = h
		}
		next.size++
	}
	_, err = tx.ExecContext(ctx, "UPDATE audit_head SET size = $1, sequence = $2, position = $3 WHERE only = 1", next.size, int64(next.sequence), next.position)
	return db.Classify(op, err)
}

// querier is a database or a transaction.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// hashStore reads stored hashes, those of this transaction from memory.
type hashStore struct {
	ctx   context.Context //nolint:containedctx // tlog.HashReader has no ctx; the store lives for one call
	query querier
	fresh map[int64]tlog.Hash
}

// ReadHashes implements tlog.HashReader.
func (s *hashStore) ReadHashes(positions []int64) ([]tlog.Hash, error) {
	const op fault.Op = "localaudit.ReadHashes"
	hashes := make([]tlog.Hash, len(positions))
	for i, p := range positions {
		if h, ok := s.fresh[p]; ok {
			hashes[i] = h
			continue
		}
		var raw []byte
		if err := s.query.QueryRowContext(s.ctx, "SELECT hash FROM audit_hash WHERE position = $1", p).Scan(&raw); err != nil {
			return nil, db.Classify(op, err)
		}
		if len(raw) != tlog.HashSize {
			return nil, fault.New(op, fault.DataLoss, "hash %d of the audit tree is damaged", p)
		}
		copy(hashes[i][:], raw)
	}
	return hashes, nil
}

func (l *Log) root(ctx context.Context, size int64) ([32]byte, error) {
	root, err := tlog.TreeHash(size, &hashStore{ctx: ctx, query: l.db})
	return root, unavailable("localaudit.root", err)
}

// Rekey has signer sign the heads from now on.
func (l *Log) Rekey(signer *audit.Signer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.signer, l.last = signer, audit.Checkpoint{}
}

// Checkpoint implements audit.Log.
func (l *Log) Checkpoint(ctx context.Context) (audit.Checkpoint, error) {
	const op fault.Op = "localaudit.Checkpoint"
	if err := l.drain(ctx); err != nil {
		return audit.Checkpoint{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.Note != nil && l.last.Size == l.head.size {
		return l.last, nil
	}
	root, err := l.root(ctx, l.head.size)
	if err != nil {
		return audit.Checkpoint{}, err
	}
	checkpoint, err := l.signer.Sign(l.head.size, root)
	if err != nil {
		return audit.Checkpoint{}, fault.Wrap(op, err)
	}
	l.last = checkpoint
	return checkpoint, nil
}

// Proof implements audit.Log.
func (l *Log) Proof(ctx context.Context, index, size int64) ([][32]byte, error) {
	const op fault.Op = "localaudit.Proof"
	l.mu.Lock()
	have := l.head.size
	l.mu.Unlock()
	if index < 0 || index >= size || size > have {
		return nil, fault.New(op, fault.AuditNotFound, "the tree of %d records has no leaf %d of a tree of %d", have, index, size)
	}
	hashes, err := tlog.ProveRecord(size, index, &hashStore{ctx: ctx, query: l.db})
	if err != nil {
		return nil, unavailable(op, err)
	}
	proof := make([][32]byte, len(hashes))
	for i, h := range hashes {
		proof[i] = h
	}
	return proof, nil
}
