package localaudit

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/journal"
	"creto.dev/internal/logkey"
)

// maxDrain bounds one transaction.
const maxDrain = 1000

// drain moves everything that waits in the journal into the tree. Rows, tiles and
// head commit together, so a crash repeats a batch or has done it, and a record
// that is there already is passed over.
func (l *Log) drain(ctx context.Context) error {
	const op fault.Op = "localaudit.drain"
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		frames, missing, err := l.journal.Pending(maxDrain)
		l.missed += missing
		if err == nil && len(frames) > 0 {
			err = l.insert(ctx, frames)
		}
		if err == nil && len(frames) > 0 {
			err = l.journal.Release(frames[len(frames)-1].Sequence)
		}
		if err != nil {
			if !l.failed && ctx.Err() == nil {
				l.log.LogAttrs(ctx, slog.LevelError, "audit records wait: the database refuses them", slog.Any(logkey.Error, err))
			}
			l.failed = true
			return unavailable(op, err)
		}
		if l.failed && len(frames) > 0 {
			l.failed = false
			l.log.LogAttrs(ctx, slog.LevelInfo, "audit records enter the tree again", slog.Int(logkey.Records, len(frames)))
		}
		if len(frames) == 0 {
			return nil
		}
	}
}

// frontSequence returns the last frame that the tree has of a queue.
func frontSequence(ctx context.Context, q querier, id creto.UUID) (uint64, error) {
	var sequence int64
	err := q.QueryRowContext(ctx, "SELECT sequence FROM audit_front WHERE id = $1", id[:]).Scan(&sequence)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return uint64(sequence), db.Classify("localaudit.frontSequence", err)
}

// insert appends a batch to the tree. The caller holds mu.
func (l *Log) insert(ctx context.Context, frames []journal.Frame) error {
	id := l.journal.ID()
	var next edge
	var batch []row
	err := db.Tx(ctx, l.db, func(tx *sql.Tx) error {
		// Another node that shares the database may have appended meanwhile.
		var err error
		if next, err = l.currentEdge(ctx, tx); err != nil {
			return err
		}
		done, err := frontSequence(ctx, tx, id)
		if err != nil {
			return err
		}
		batch, err = l.rows(ctx, tx, frames, done)
		if err != nil {
			return err
		}
		if err := insertRows(ctx, tx, batch, next.size); err != nil {
			return err
		}
		if next, err = grow(ctx, tx, next, batch); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO audit_front (id, sequence) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET sequence = $2",
			id[:], int64(frames[len(frames)-1].Sequence))
		return db.Classify("localaudit.insert", err)
	})
	l.people.settle(err == nil)
	if err != nil {
		return err
	}
	if next.size > l.edge.size {
		close(l.grown)
		l.grown = make(chan struct{})
	}
	l.edge = next
	return nil
}

// currentEdge returns the edge of the stored head.
func (l *Log) currentEdge(ctx context.Context, tx *sql.Tx) (edge, error) {
	var size int64
	err := tx.QueryRowContext(ctx, "SELECT size FROM audit_head WHERE \"only\" = 1").Scan(&size)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return edge{}, nil
	case err != nil:
		return edge{}, db.Classify("localaudit.currentEdge", err)
	case size == l.edge.size:
		return l.edge.clone(), nil
	}
	return loadEdge(ctx, tx)
}

// row is a record on its way into the tree.
type row struct {
	record audit.Record
	event  string
	human  string
	leaf   []byte
}

// rows seals the records of frames that are not in the tree.
func (l *Log) rows(ctx context.Context, tx *sql.Tx, frames []journal.Frame, done uint64) ([]row, error) {
	records := make([]audit.Record, 0, len(frames))
	for _, f := range frames {
		if f.Sequence <= done {
			continue
		}
		r, err := audit.DecodeRecord(f.Payload)
		if err != nil {
			// Encode lets no such record in. One that is here all the same must not
			// keep what follows out of the tree.
			l.log.LogAttrs(ctx, slog.LevelError, "a frame of the audit log's front is no record and was left out", slog.Uint64(logkey.Sequence, f.Sequence), slog.Any(logkey.Error, err))
			l.missed++
			continue
		}
		records = append(records, r)
	}
	known, err := knownIDs(ctx, tx, records)
	if err != nil {
		return nil, err
	}
	rows := make([]row, 0, len(records))
	for _, r := range records {
		if known[r.ID] {
			continue // a retry
		}
		known[r.ID] = true
		sealed, err := r.Seal(func(id creto.ID) (audit.Subject, error) { return l.people.subject(ctx, tx, id) })
		if err != nil {
			return nil, err
		}
		leaf, err := sealed.Encode()
		if err != nil {
			return nil, err
		}
		rows = append(rows, newRow(sealed, leaf))
	}
	return rows, nil
}

// newRow returns the row of a leaf, which says r.
func newRow(r audit.Record, leaf []byte) row {
	human := r.OnBehalfOf
	if r.Who.Kind == creto.KindHuman {
		human = r.Who
	}
	return row{record: r, event: r.Event(), human: human.String(), leaf: leaf}
}

// knownIDs returns which of the records are in the tree.
func knownIDs(ctx context.Context, tx *sql.Tx, records []audit.Record) (map[audit.RecordID]bool, error) {
	const op fault.Op = "localaudit.knownIDs"
	known := make(map[audit.RecordID]bool, len(records))
	if len(records) == 0 {
		return known, nil
	}
	args := make([]any, len(records))
	for i, r := range records {
		args[i] = r.ID[:]
	}
	rows, err := tx.QueryContext(ctx, "SELECT id FROM audit_record WHERE id IN ("+placeholders(1, len(args))+")", args...)
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id []byte
		if err := rows.Scan(&id); err != nil {
			return nil, db.Classify(op, err)
		}
		if len(id) == len(audit.RecordID{}) {
			known[audit.RecordID(id)] = true
		}
	}
	return known, db.Classify(op, rows.Err())
}

// columns are those of a row, in the order of newRow's values.
const columns = "leaf, id, at_ns, tenant, actor, human, what, event, resource, outcome, checksum, body"

// values returns what a row's columns are.
func (r row) values(index int64) []any {
	rec := r.record
	return []any{index, rec.ID[:], rec.Stamp.Physical, rec.Who.Tenant, rec.Who.String(), r.human, indexed(rec.What), indexed(r.event), indexed(rec.Resource), string(rec.Outcome), leafChecksum(r.leaf), r.leaf}
}

// maxIndexed bounds what an index holds of a text: PostgreSQL refuses more than
// 2,704 bytes, and a record that is refused would hold up all behind it.
const maxIndexed = 1024

// indexed returns s as a column has it, for columns that only find records: what
// they say is in the leaf. A text that is too long is cut and told apart by its
// digest; a zero byte, which PostgreSQL does not take, likewise.
func indexed(s string) string {
	if len(s) <= maxIndexed && !strings.ContainsRune(s, 0) {
		return s
	}
	digest := sha256.Sum256([]byte(s))
	head, _, _ := strings.Cut(s[:min(len(s), maxIndexed)], "\x00")
	return strings.ToValidUTF8(head, "") + "…" + hex.EncodeToString(digest[:])
}

// insertAtOnce is how many rows one statement inserts.
const insertAtOnce = 50

// insertRows writes the rows, many with one statement.
func insertRows(ctx context.Context, tx *sql.Tx, rows []row, size int64) error {
	const op fault.Op = "localaudit.insertRows"
	width := strings.Count(columns, ",") + 1
	for chunk := range slices.Chunk(rows, insertAtOnce) {
		args := make([]any, 0, len(chunk)*width)
		groups := make([]string, len(chunk))
		for i, r := range chunk {
			groups[i] = "(" + placeholders(len(args)+1, width) + ")"
			args = append(args, r.values(size)...)
			size++
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO audit_record ("+columns+") VALUES "+strings.Join(groups, ", "), args...); err != nil {
			return db.Classify(op, err)
		}
	}
	return nil
}

// grow appends the rows' hashes to the tree, and writes tiles and head.
func grow(ctx context.Context, tx *sql.Tx, e edge, rows []row) (edge, error) {
	if len(rows) == 0 {
		return e, nil
	}
	full := make(map[tileAt][]byte)
	for _, r := range rows {
		e.append(tlog.RecordHash(r.leaf), func(at tileAt, hashes []byte) { full[at] = hashes })
	}
	for _, at := range slices.SortedFunc(maps.Keys(full), func(a, b tileAt) int { return a.level - b.level }) {
		if err := saveTile(ctx, tx, at, full[at]); err != nil {
			return e, err
		}
	}
	for at := range edgeTiles(e.size) {
		if err := saveTile(ctx, tx, at, e.levels[at.level]); err != nil {
			return e, err
		}
	}
	root := e.root()
	_, err := tx.ExecContext(ctx, "INSERT INTO audit_head (\"only\", size, root, first) VALUES (1, $1, $2, 0) ON CONFLICT (\"only\") DO UPDATE SET size = $1, root = $2", e.size, root[:])
	return e, db.Classify("localaudit.grow", err)
}

// Checkpoint implements audit.Log.
func (l *Log) Checkpoint(ctx context.Context) (audit.Checkpoint, error) {
	const op fault.Op = "localaudit.Checkpoint"
	if err := l.drain(ctx); err != nil {
		return audit.Checkpoint{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.Note != nil && l.last.Size == l.edge.size {
		return l.last, nil
	}
	checkpoint, err := l.signer.Sign(l.edge.size, l.edge.root())
	if err != nil {
		return audit.Checkpoint{}, fault.Wrap(op, err)
	}
	l.last = checkpoint
	return checkpoint, nil
}

// Proof implements audit.Log.
func (l *Log) Proof(ctx context.Context, index, size int64) ([][32]byte, error) {
	return l.prove(ctx, l.tree(), index, size)
}

func (l *Log) prove(ctx context.Context, t tree, index, size int64) ([][32]byte, error) {
	const op fault.Op = "localaudit.Proof"
	if index < 0 || index >= size || size > t.size {
		return nil, fault.New(op, fault.AuditNotFound, "the tree of %d records has no leaf %d of a tree of %d", t.size, index, size)
	}
	hashes, err := tlog.ProveRecord(size, index, t.reader(ctx))
	if err != nil {
		return nil, unavailable(op, err)
	}
	return plain(hashes), nil
}

// Consistency implements audit.Log.
func (l *Log) Consistency(ctx context.Context, from, to int64) ([][32]byte, error) {
	const op fault.Op = "localaudit.Consistency"
	t := l.tree()
	if from < 0 || from > to || to > t.size {
		return nil, fault.New(op, fault.AuditNotFound, "the tree of %d records was never of size %d before it was of size %d", t.size, from, to)
	}
	if from == 0 || from == to {
		return nil, nil
	}
	hashes, err := tlog.ProveTree(to, from, t.reader(ctx))
	if err != nil {
		return nil, unavailable(op, err)
	}
	return plain(hashes), nil
}

func plain(hashes []tlog.Hash) [][32]byte {
	proof := make([][32]byte, len(hashes))
	for i, h := range hashes {
		proof[i] = h
	}
	return proof
}

// placeholders returns n of them, from $first on.
func placeholders(first, n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(first + i))
	}
	return b.String()
}
