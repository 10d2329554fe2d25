package localaudit

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sort"
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

// batch is records on their way into the tree.
type batch struct {
	records []waiting
	wrong   []misfit
	last    uint64 // the last of its frames
	blocks  []block
	sealed  bool   // the blocks are made of the records, or will be; else somebody was new
	gone    uint64 // how often people had been forgotten by then
}

// waiting is a record from the journal.
type waiting struct {
	record   audit.Record
	people   []creto.ID // whom it names
	sequence uint64
}

// misfit is a frame that is no record.
type misfit struct {
	sequence uint64
	err      error
}

// Prepare implements intake.Sink: it decodes records, and seals them, while those
// before are written. What it returns moves them into the tree: rows, tiles and head
// commit together, so a crash repeats a batch or has done it, and a record that is
// there already is passed over.
func (l *Log) Prepare(_ context.Context, frames []journal.Frame) func(context.Context) error {
	b := new(batch)
	select {
	case b = <-l.batches:
	default:
	}
	b.decode(frames)
	var subjects map[creto.ID]audit.Subject
	if subjects, b.gone, b.sealed = l.people.known(b.records); b.sealed {
		b.blocks = seal(b.blocks, b.records, subjects)
	}
	return func(ctx context.Context) error {
		err := l.take(ctx, b)
		if err == nil && b.sealed { // else somebody may still be sealing
			clear(b.records)
			select {
			case l.batches <- b:
			default:
			}
		}
		return err
	}
}

// take moves a batch into the tree.
func (l *Log) take(ctx context.Context, b *batch) error {
	for _, m := range b.wrong {
		// Encode lets no such record in. One that is here all the same must not
		// keep what follows out of the tree.
		l.log.LogAttrs(ctx, slog.LevelError, "a frame of the audit log's front is no record and was left out", slog.Uint64(logkey.Sequence, m.sequence), slog.Any(logkey.Error, m.err))
		l.Lost(1)
	}
	id := l.ID()
	if err := errors.Join(l.records.prepare(ctx, l.db), l.postings.prepare(ctx, l.db)); err != nil {
		return err
	}
	var next edge
	var grown, left *recent // the index, before and after some of it is stored
	err := db.Tx(ctx, l.db, func(tx *sql.Tx) error {
		// Another node that shares the database may have appended meanwhile.
		var err error
		var stored head
		if next, stored, err = l.currentEdge(ctx, tx); err != nil {
			return err
		}
		begun, err := l.currentIndex(ctx, tx, next.size)
		if err != nil {
			return err
		}
		done, err := frontSequence(ctx, tx, id)
		if err != nil {
			return err
		}
		sealed, err := l.sealed(ctx, tx, b, done)
		if err != nil {
			return err
		}
		first := next.size
		rows, err := l.insert(ctx, tx, sealed, first)
		if err != nil {
			return err
		}
		if next, err = grow(ctx, tx, next, stored, rows); err != nil {
			return err
		}
		grown = begun.with(first, rows)
		if left, err = l.storeIndex(ctx, tx, grown, next.size, indexBundles); err != nil {
			return err
		}
		return saveFront(ctx, tx, id, b.last)
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
	l.keepIndex(grown, left)
	l.edge = next
	return nil
}

// sealed returns the rows of a batch, behind the frame that the tree has already.
func (l *Log) sealed(ctx context.Context, tx *sql.Tx, b *batch, done uint64) ([]block, error) {
	begin := sort.Search(len(b.records), func(i int) bool { return b.records[i].sequence > done })
	if b.sealed && begin == 0 && b.gone == l.people.forgot() {
		return b.blocks, nil
	}
	b.sealed = false
	records := b.records[begin:]
	subjects, err := l.subjects(ctx, tx, records)
	if err != nil {
		return nil, err
	}
	return seal(nil, records, subjects), nil
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

// decode reads the records of frames.
func (b *batch) decode(frames []journal.Frame) {
	b.records, b.wrong, b.last = slices.Grow(b.records[:0], len(frames))[:len(frames)], nil, frames[len(frames)-1].Sequence
	wrong := make([]error, len(frames))
	spread(len(frames), func(i int) {
		w := &b.records[i]
		w.sequence = frames[i].Sequence
		if w.record, wrong[i] = audit.DecodeTrusted(frames[i].Payload); wrong[i] == nil {
			w.people = w.record.People()
		}
	})
	n := 0
	for i, err := range wrong {
		if err != nil {
			b.wrong = append(b.wrong, misfit{frames[i].Sequence, err})
			continue
		}
		b.records[n] = b.records[i]
		n++
	}
	b.records = b.records[:n]
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
	for i := range records {
		for _, person := range records[i].people {
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
// first are written while the next are made. The room of old blocks is used.
func seal(blocks []block, records []waiting, subjects map[creto.ID]audit.Subject) []block {
	n := (len(records) + sealBlock - 1) / sealBlock
	blocks = slices.Grow(blocks[:0], n)[:n]
	for i := range blocks {
		blocks[i].sealed = make(chan error, 1) // perhaps nobody asks
	}
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), len(blocks)) {
		go func() {
			s := sealer{subjects: subjects, terms: newTermCache()}
			for i := int(next.Add(1)) - 1; i < len(blocks); i = int(next.Add(1)) - 1 {
				blocks[i].sealed <- s.seal(&blocks[i], records[i*sealBlock:min((i+1)*sealBlock, len(records))])
			}
		}()
	}
	return blocks
}

// block is some of the rows of a batch.
type block struct {
	rows   []row
	room   []byte     // for their leaves
	sealed chan error // is sent to once
}

// usualBytes is what most leaves fit into.
const usualBytes = 640

// sealer makes rows. Not safe for concurrent use.
type sealer struct {
	subjects map[creto.ID]audit.Subject
	terms    *termCache
	boxes    audit.Sealer
}

func (s *sealer) seal(b *block, records []waiting) error {
	subject := func(id creto.ID) (audit.Subject, error) { return s.subjects[id], nil }
	b.rows, b.room = slices.Grow(b.rows[:0], len(records)), slices.Grow(b.room[:0], len(records)*usualBytes)
	for i := range records {
		r, err := s.boxes.Seal(records[i].record, records[i].people, subject)
		if err != nil {
			return err
		}
		begin := len(b.room)
		if b.room, err = r.Append(b.room); err != nil {
			return err
		}
		leaf := b.room[begin:len(b.room):len(b.room)]
		b.rows = append(b.rows, row{id: r.ID, at: r.Stamp.Physical, leaf: leaf, hash: tlog.RecordHash(leaf), terms: s.terms.of(&r)})
	}
	return nil
}

// insert writes rows from an index on and returns those that were not in the tree
// already.
func (l *Log) insert(ctx context.Context, tx *sql.Tx, blocks []block, index int64) ([]row, error) {
	added := l.added[:0]
	defer func() { l.added = added[:0] }()
	for i := range blocks {
		b := &blocks[i]
		if err := <-b.sealed; err != nil {
			return nil, err
		}
		at := index + int64(len(added))
		l.args = arguments(l.args[:0], b.rows, at)
		n, err := l.records.insert(ctx, tx, l.args)
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

// arguments appends those of rows from an index on, for the table audit_record.
func arguments(args []any, rows []row, index int64) []any {
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
		n, err := l.records.insert(ctx, tx, arguments(nil, rows[i:i+1], index+int64(len(added))))
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
