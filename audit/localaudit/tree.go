package localaudit

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/journal"
	"creto.dev/internal/logkey"
)

// Take implements intake.Sink: it moves records into the tree. Rows, index, tiles
// and head commit together, so a crash repeats a batch or has done it, and a record
// that is there already is passed over.
func (l *Log) Take(ctx context.Context, frames []journal.Frame) error {
	id := l.ID()
	if err := errors.Join(l.records.prepare(ctx, l.db), l.postings.prepare(ctx, l.db)); err != nil {
		return err
	}
	records := l.decode(ctx, frames)
	var next edge
	var added indexWrites
	var reread bool
	err := db.Tx(ctx, l.db, func(tx *sql.Tx) error {
		// Another node that shares the database may have appended meanwhile.
		var err error
		var stored head
		if next, stored, err = l.currentEdge(ctx, tx); err != nil {
			return err
		}
		begun := l.open
		if reread = next.size != l.edge.size || begun.bits == nil; reread {
			if begun, err = loadOpen(ctx, tx, next.size); err != nil {
				return err
			}
		}
		done, err := frontSequence(ctx, tx, id)
		if err != nil {
			return err
		}
		records = slices.DeleteFunc(records, func(r waiting) bool { return r.sequence <= done })
		subjects, err := l.subjects(ctx, tx, records)
		if err != nil {
			return err
		}
		first := next.size
		rows, err := l.insert(ctx, tx, seal(records, subjects), first)
		if err != nil {
			return err
		}
		added = index(begun, first, rows)
		if err := l.writeIndex(ctx, tx, added); err != nil {
			return err
		}
		if next, err = grow(ctx, tx, next, stored, rows); err != nil {
			return err
		}
		return saveFront(ctx, tx, id, frames[len(frames)-1].Sequence)
	})
	l.people.settle(err == nil)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if next.size > l.edge.size {
		close(l.grown)
		l.grown = make(chan struct{})
	}
	l.edge, l.open = next, added.open
	switch {
	case reread:
		l.spans = nil
	case l.spans != nil:
		for n, s := range added.spans {
			l.spans = setSpan(l.spans, n, s)
		}
	}
	return nil
}

// currentEdge returns the edge of the stored head.
func (l *Log) currentEdge(ctx context.Context, tx *sql.Tx) (edge, head, error) {
	h, err := loadHead(ctx, tx)
	if err != nil || h.size == l.edge.size {
		return l.edge.clone(), h, err
	}
	e, err := loadEdge(ctx, tx, h)
	return e, h, err
}

// waiting is a record from the journal.
type waiting struct {
	record   audit.Record
	sequence uint64
}

// decode reads the records of frames.
func (l *Log) decode(ctx context.Context, frames []journal.Frame) []waiting {
	records := make([]waiting, len(frames))
	wrong := make([]error, len(frames))
	spread(len(frames), func(i int) {
		records[i].sequence = frames[i].Sequence
		records[i].record, wrong[i] = audit.DecodeTrusted(frames[i].Payload)
	})
	n := 0
	for i, err := range wrong {
		if err != nil {
			// Encode lets no such record in. One that is here all the same must not
			// keep what follows out of the tree.
			l.log.LogAttrs(ctx, slog.LevelError, "a frame of the audit log's front is no record and was left out", slog.Uint64(logkey.Sequence, frames[i].Sequence), slog.Any(logkey.Error, err))
			l.Lost(1)
			continue
		}
		records[n] = records[i]
		n++
	}
	return records[:n]
}

// spreadAbove is from where on work is worth a second goroutine.
const spreadAbove = 24

// spread calls do for 0 to n-1, on all cores if there is much.
func spread(n int, do func(int)) {
	workers := min(runtime.GOMAXPROCS(0), n/spreadAbove)
	if workers < 2 {
		for i := range n {
			do(i)
		}
		return
	}
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := w * n / workers; i < (w+1)*n/workers; i++ {
				do(i)
			}
		})
	}
	group.Wait()
}

// row is a sealed record on its way into the tree.
type row struct {
	id    audit.RecordID
	at    int64 // its stamp's physical time
	leaf  []byte
	hash  tlog.Hash
	terms terms
}

// subjects returns those whom records name. Whoever is new is made: that is for the
// transaction's own goroutine.
func (l *Log) subjects(ctx context.Context, tx *sql.Tx, records []waiting) (map[creto.ID]audit.Subject, error) {
	subjects := make(map[creto.ID]audit.Subject)
	for _, r := range records {
		for _, person := range r.record.People() {
			if _, ok := subjects[person]; ok {
				continue
			}
			s, err := l.people.subject(ctx, tx, person)
			if err != nil {
				return nil, err
			}
			subjects[person] = s
		}
	}
	return subjects, nil
}

// sealBlock is how many records are sealed before they are handed on.
const sealBlock = 64

// seal makes the rows of records, block by block and in order, on all cores: the
// first are written while the next are made.
func seal(records []waiting, subjects map[creto.ID]audit.Subject) []block {
	rows := make([]row, len(records))
	blocks := make([]block, (len(records)+sealBlock-1)/sealBlock)
	for i := range blocks {
		blocks[i] = block{rows: rows[i*sealBlock : min((i+1)*sealBlock, len(rows))], sealed: make(chan error, 1)} // perhaps nobody asks
	}
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), len(blocks)) {
		go func() {
			s := sealer{subjects: subjects, terms: newTermCache()}
			for i := int(next.Add(1)) - 1; i < len(blocks); i = int(next.Add(1)) - 1 {
				blocks[i].sealed <- s.seal(blocks[i].rows, records[i*sealBlock:])
			}
		}()
	}
	return blocks
}

// block is some of the rows of a batch.
type block struct {
	rows   []row
	sealed chan error // is sent to once
}

// sealer makes rows. Not safe for concurrent use.
type sealer struct {
	subjects map[creto.ID]audit.Subject
	terms    *termCache
	boxes    audit.Sealer
	room     []byte // for leaves
}

// roomBytes is how much room is made at once.
const roomBytes = 64 << 10

func (s *sealer) seal(rows []row, records []waiting) error {
	subject := func(id creto.ID) (audit.Subject, error) { return s.subjects[id], nil }
	for i := range rows {
		r, err := s.boxes.Seal(records[i].record, subject)
		if err != nil {
			return err
		}
		if cap(s.room)-len(s.room) < roomBytes/32 {
			s.room = make([]byte, 0, roomBytes)
		}
		begin := len(s.room)
		if s.room, err = r.Append(s.room); err != nil {
			return err
		}
		leaf := s.room[begin:len(s.room):len(s.room)]
		rows[i] = row{id: r.ID, at: r.Stamp.Physical, leaf: leaf, hash: tlog.RecordHash(leaf), terms: s.terms.of(&r)}
	}
	return nil
}

// insert writes rows from an index on and returns those that were not in the tree
// already.
func (l *Log) insert(ctx context.Context, tx *sql.Tx, blocks []block, index int64) ([]row, error) {
	added := make([]row, 0, len(blocks)*sealBlock)
	for _, b := range blocks {
		if err := <-b.sealed; err != nil {
			return nil, err
		}
		at := index + int64(len(added))
		n, err := l.records.insert(ctx, tx, arguments(b.rows, at))
		if err != nil {
			return nil, err
		}
		if n < int64(len(b.rows)) {
			if b.rows, err = l.insertNew(ctx, tx, b.rows, at); err != nil {
				return nil, err
			}
		}
		added = append(added, b.rows...)
	}
	return added, nil
}

// arguments are those of rows from an index on, for the table audit_record.
func arguments(rows []row, index int64) []any {
	args := make([]any, 0, 4*len(rows))
	for i := range rows {
		args = append(args, index+int64(i), rows[i].id[:], checksum(rows[i].hash), rows[i].leaf)
	}
	return args
}

// insertNew writes rows of which some are in the tree already, as after a retry,
// and were left out before: the others must stand without a gap.
func (l *Log) insertNew(ctx context.Context, tx *sql.Tx, rows []row, index int64) ([]row, error) {
	if _, err := tx.ExecContext(ctx, "DELETE FROM audit_record WHERE leaf >= $1", index); err != nil {
		return nil, db.Classify("localaudit.insertNew", err)
	}
	var added []row
	for i := range rows {
		n, err := l.records.insert(ctx, tx, arguments(rows[i:i+1], index+int64(len(added))))
		if err != nil {
			return nil, err
		}
		if n > 0 {
			added = append(added, rows[i])
		}
	}
	return added, nil
}

// grow appends the rows' hashes to the tree, and writes tiles and head.
func grow(ctx context.Context, tx *sql.Tx, e edge, h head, rows []row) (edge, error) {
	if len(rows) == 0 {
		return e, nil
	}
	full := make(map[tileAt][]byte)
	for _, r := range rows {
		e.append(r.hash, func(at tileAt, hashes []byte) { full[at] = hashes })
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
	h.size, h.root = e.size, e.root()
	return e, h.save(ctx, tx)
}

// Checkpoint implements audit.Log.
func (l *Log) Checkpoint(ctx context.Context) (audit.Checkpoint, error) {
	const op fault.Op = "localaudit.Checkpoint"
	if err := l.Flush(ctx); err != nil {
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
