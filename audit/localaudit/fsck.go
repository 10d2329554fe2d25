package localaudit

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

// Problem is something that is wrong with a stored log.
type Problem struct {
	// Place is what it is with: record 7, tile 0/3, head, index, database.
	Place  string `json:"place"`
	Reason string `json:"reason"`
}

// Checked is what Fsck looked at.
type Checked struct {
	Size int64    `json:"size"` // of the tree
	Root [32]byte `json:"-"`    // computed from the records
	// Records are those that are still in the database, and Tiles those of all
	// levels.
	Records int64 `json:"records"`
	Tiles   int64 `json:"tiles"`
}

// Fsck computes the stored log anew from its records (every leaf, tile and the
// root) and the index with it, compares, and calls see with each difference.
// What comes in meanwhile is left out. archive is where sealed segments are; ""
// leaves them out, and takes their hashes from the tiles. seen are heads of which
// each must be a beginning of the log; their signatures are the caller's.
//
// Its memory grows with the index: some 25 bytes a record.
//
// Errors: AuditUnavailable (Degraded) if the database cannot be read at all.
func Fsck(ctx context.Context, d *sql.DB, archive string, seen []audit.Checkpoint, see func(Problem)) (Checked, error) {
	const op fault.Op = "localaudit.Fsck"
	f := &fsck{query: d, archive: &Log{cfg: Config{Archive: archive}}, see: see, seen: slices.Clone(seen), index: make(map[posting]bitmap), spans: make(map[int64]span)}
	if err := f.database(ctx); err != nil {
		return f.checked, unavailable(op, err)
	}
	if err := f.fronts(ctx); err != nil {
		return f.checked, unavailable(op, err)
	}
	// What its fields say is used even if its checksum is wrong: then all that
	// hangs on them is wrong too, and is found.
	h, err := loadHead(ctx, d)
	switch {
	case errors.Is(err, fault.DataLoss):
		f.found("head", "its checksum is that of other values")
	case err != nil:
		return f.checked, unavailable(op, err)
	}
	if h.size <= 0 { // a new log
		f.heads(nil)
		return f.checked, nil
	}
	f.checked.Size, f.first = h.size, h.first
	root := h.root[:]
	slices.SortFunc(f.seen, func(a, b audit.Checkpoint) int { return cmp.Compare(a.Size, b.Size) })
	f.sound = f.edgeLeadsTo(ctx, root)
	if err := f.tree(ctx); err != nil {
		return f.checked, unavailable(op, err)
	}
	f.checked.Root = f.edge.root()
	whole := string(f.checked.Root[:]) == string(root)
	for _, place := range f.unsure {
		if whole {
			f.found(place, wrongTile)
		} else {
			f.found(place, unsureTile)
		}
	}
	if !whole {
		f.found("head", "its root is not that of the %d records", f.checked.Size)
	}
	return f.checked, unavailable(op, f.compareIndex(ctx))
}

// Fsck is the function Fsck for a log in use.
//
// Errors: those of Fsck; AuditUnavailable (Degraded) if what waits for the tree
// does not get there.
func (l *Log) Fsck(ctx context.Context, seen []audit.Checkpoint, see func(Problem)) (Checked, error) {
	if err := l.Flush(ctx); err != nil {
		return Checked{}, err
	}
	return Fsck(ctx, l.db, l.cfg.Archive, seen, see)
}

// fsck is one run.
type fsck struct {
	query   querier
	archive *Log // for its archive alone
	see     func(Problem)
	seen    []audit.Checkpoint // by size; those that were compared are gone
	first   int64              // the oldest leaf in the database
	sound   bool               // the stored edge leads to the stored root
	unsure  []string           // tiles of an edge that does not, and is not as computed
	edge    edge               // what the records make
	index   map[posting]bitmap
	spans   map[int64]span
	checked Checked
}

func (f *fsck) found(place, format string, args ...any) {
	f.see(Problem{Place: place, Reason: fmt.Sprintf(format, args...)})
}

func (f *fsck) record(leaf int64, format string, args ...any) {
	f.found(fmt.Sprintf("record %d", leaf), format, args...)
}

// database asks SQLite about its own structures; PostgreSQL has its own ways.
func (f *fsck) database(ctx context.Context) error {
	const op fault.Op = "localaudit.fsck.database"
	var version string
	if err := f.query.QueryRowContext(ctx, "SELECT sqlite_version()").Scan(&version); err != nil {
		return nil //nolint:nilerr // it is no SQLite
	}
	rows, err := f.query.QueryContext(ctx, "PRAGMA integrity_check(20)")
	if err != nil {
		return db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var said string
		if err := rows.Scan(&said); err != nil {
			return db.Classify(op, err)
		}
		if said != "ok" {
			f.found("database", "%s", said)
		}
	}
	return db.Classify(op, rows.Err())
}

// fronts checks how far the queues in front were taken.
func (f *fsck) fronts(ctx context.Context) error {
	const op fault.Op = "localaudit.fsck.fronts"
	rows, err := f.query.QueryContext(ctx, "SELECT id, sequence, checksum FROM audit_front")
	if err != nil {
		return db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id []byte
		var sequence, sum int64
		if err := rows.Scan(&id, &sequence, &sum); err != nil {
			return db.Classify(op, err)
		}
		if sum != rowSum(id, sequence) {
			f.found("front", "how far a queue in front was taken is not certain")
		}
	}
	return db.Classify(op, rows.Err())
}

// stored returns a tile as it is stored, up to so many hashes; nil if it is not
// there, or cannot be read.
func (f *fsck) stored(ctx context.Context, at tileAt, width int) []byte {
	hashes, err := loadTile(ctx, f.query, at)
	if err != nil || len(hashes)%tlog.HashSize != 0 {
		return nil
	}
	return hashes[:min(len(hashes), width*tlog.HashSize)]
}

func (f *fsck) edgeLeadsTo(ctx context.Context, root []byte) bool {
	e := edge{size: f.checked.Size}
	for at, width := range edgeTiles(e.size) {
		for len(e.levels) <= at.level {
			e.levels = append(e.levels, nil)
		}
		if e.levels[at.level] = f.stored(ctx, at, width); len(e.levels[at.level]) != width*tlog.HashSize {
			return false
		}
	}
	got := e.root()
	return string(got[:]) == string(root)
}

// tree goes through the records, and builds the tiles of each level above them.
func (f *fsck) tree(ctx context.Context) error {
	size := f.checked.Size
	f.edge.size = size
	above := make([][]byte, 9) // hashes that wait for the rest of their tile, by level
	var add func(at tileAt, hashes []byte)
	add = func(at tileAt, hashes []byte) {
		f.checked.Tiles++
		if len(hashes) < tileBytes {
			for len(f.edge.levels) <= at.level {
				f.edge.levels = append(f.edge.levels, nil)
			}
			f.edge.levels[at.level] = hashes
			return
		}
		h := perfect(hashes)
		above[at.level+1] = append(above[at.level+1], h[:]...)
		if full := above[at.level+1]; len(full) == tileBytes {
			above[at.level+1] = nil
			parent, _ := at.parent()
			add(parent, f.judge(ctx, parent, full))
		}
	}
	for n := int64(0); n<<tileHeight < size; n++ {
		hashes, err := f.bundle(ctx, n, int(min(tileWidth, size-n<<tileHeight)))
		if err != nil {
			return err
		}
		hashes = f.judge(ctx, tileAt{0, n}, hashes)
		for len(f.seen) > 0 && f.seen[0].Size < n<<tileHeight+int64(len(hashes)/tlog.HashSize) {
			at := f.seen[0].Size
			f.heads(func() tlog.Hash {
				levels := append([][]byte{hashes[:int(at-n<<tileHeight)*tlog.HashSize]}, above[1:]...)
				return edge{size: at, levels: levels}.root()
			})
		}
		add(tileAt{0, n}, hashes)
	}
	for level := 1; level < len(above); level++ {
		if len(above[level]) > 0 {
			at := tileAt{level, size >> (tileHeight * (level + 1))}
			add(at, f.judge(ctx, at, above[level]))
		}
	}
	for len(f.seen) > 0 {
		f.heads(f.edge.root)
	}
	return ctx.Err()
}

// heads compares the next of the heads that were seen, of which root is what the
// log has; nil for an empty log.
func (f *fsck) heads(root func() tlog.Hash) {
	for len(f.seen) > 0 {
		head := f.seen[0]
		f.seen = f.seen[1:]
		place := fmt.Sprintf("head of %d records that was seen", head.Size)
		switch {
		case head.Size > f.checked.Size:
			f.found(place, "the log has %d only: they were rolled back, or somebody was shown another log", f.checked.Size)
		case head.Size > 0 && root() != head.Root:
			f.found(place, "it is no beginning of this log: somebody was shown another one")
		}
		if root != nil {
			return
		}
	}
}

// bundle returns the hashes of up to 256 records, and checks what is stored with
// them. For one that is missing the tile's hash stands in.
func (f *fsck) bundle(ctx context.Context, n int64, width int) ([]byte, error) {
	const op fault.Op = "localaudit.fsck.bundle"
	begin := n << tileHeight
	stored := f.stored(ctx, tileAt{0, n}, width)
	if begin < f.first {
		if f.archive.cfg.Archive != "" {
			if hashes := f.archived(n); hashes != nil {
				return hashes, nil
			}
			f.found(fmt.Sprintf("records %d to %d", begin, begin+tileMask), "they are not in the archive, or their bundle is damaged")
		}
		if len(stored) != tileBytes {
			stored = make([]byte, tileBytes) // judged as a tile that is not there
		}
		return stored, nil
	}
	rows, err := f.query.QueryContext(ctx, "SELECT leaf, id, checksum, body FROM audit_record WHERE leaf >= $1 AND leaf < $2 ORDER BY leaf", begin, begin+int64(width))
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	words := newTermCache()
	hashes := make([]byte, 0, tileBytes)
	missing := func(behind int64) {
		for leaf := begin + int64(len(hashes)/tlog.HashSize); leaf < behind; leaf++ {
			f.record(leaf, "it is missing")
			at := int(leaf-begin) * tlog.HashSize
			if at+tlog.HashSize <= len(stored) {
				hashes = append(hashes, stored[at:at+tlog.HashSize]...)
			} else {
				hashes = append(hashes, make([]byte, tlog.HashSize)...)
			}
		}
	}
	for rows.Next() {
		var leaf, sum int64
		var id, body []byte
		if err := rows.Scan(&leaf, &id, &sum, &body); err != nil {
			return nil, db.Classify(op, err)
		}
		missing(leaf)
		hash := tlog.RecordHash(body)
		hashes = append(hashes, hash[:]...)
		f.checked.Records++
		if sum != checksum(hash) {
			f.record(leaf, "its checksum is that of other bytes")
		}
		r, err := audit.DecodeRecord(body)
		if err != nil {
			f.record(leaf, "it is no record")
			continue
		}
		if string(id) != string(r.ID[:]) {
			f.record(leaf, "it is found under the id of another")
		}
		found := words.of(&r)
		for _, t := range found.all() {
			p := posting{t, n}
			bits := f.index[p]
			bits.set(int(leaf & tileMask))
			f.index[p] = bits
		}
		s, ok := f.spans[n]
		if !ok {
			s = emptySpan
		}
		f.spans[n] = s.add(r.Stamp.Physical)
	}
	if err := rows.Err(); err != nil {
		return nil, db.Classify(op, err)
	}
	missing(begin + int64(width))
	return hashes, nil
}

// What is said of a tile that is not as it must be.
const (
	wrongTile  = "its hashes are wrong; what is below it is whole"
	unsureTile = "its hashes are not those of what is below it, and neither leads to the tree's root"
)

// archived returns the hashes of a bundle in the archive; nil if it is not there or
// is no bundle.
func (f *fsck) archived(n int64) []byte {
	rest, err := os.ReadFile(f.archive.archivePath(n))
	if err != nil {
		return nil
	}
	hashes := make([]byte, 0, tileBytes)
	for len(rest) > 0 && len(hashes) < tileBytes {
		var leaf []byte
		if leaf, rest, err = torchwood.ReadTileEntry(rest); err != nil {
			return nil
		}
		hash := tlog.RecordHash(leaf)
		hashes = append(hashes, hash[:]...)
	}
	if len(rest) > 0 || len(hashes) < tileBytes {
		return nil
	}
	return hashes
}

// judge compares a tile as it must be, judging by what is below, with the stored
// one. Where they differ, the one that leads to what is above it is right, and is
// returned.
func (f *fsck) judge(ctx context.Context, at tileAt, computed []byte) []byte {
	stored := f.stored(ctx, at, len(computed)/tlog.HashSize)
	if string(stored) == string(computed) {
		return computed
	}
	place := fmt.Sprintf("tile %d/%d", at.level, at.n)
	leads := func([]byte) bool { return false }
	if len(computed) == tileBytes {
		parent, i := at.parent()
		if above := f.stored(ctx, parent, i+1); len(above) == (i+1)*tlog.HashSize {
			leads = func(hashes []byte) bool { return len(hashes) == tileBytes && perfect(hashes) == hashAt(above, i) }
		}
	} else if f.sound {
		leads = func(hashes []byte) bool { return len(hashes) == len(stored) && string(hashes) == string(stored) }
	}
	switch {
	case stored == nil:
		f.found(place, "it is missing")
	case !leads(computed) && leads(stored):
		for i := range len(computed) / tlog.HashSize {
			if hashAt(computed, i) == hashAt(stored, i) {
				continue
			}
			if at.level == 0 {
				f.record(at.n<<tileHeight+int64(i), "its bytes are not those that were logged")
			} else {
				f.found(fmt.Sprintf("tile %d/%d", at.level-1, at.n<<tileHeight+int64(i)), "neither it nor what is below it leads to the tree's root")
			}
		}
		return stored
	case leads(computed):
		f.found(place, wrongTile)
	case len(computed) < tileBytes:
		f.unsure = append(f.unsure, place)
	default:
		f.found(place, unsureTile)
	}
	return computed
}

// times reads the times of bundles as they are stored. One whose checksum is
// wrong is left empty, and found by that.
func (f *fsck) times(ctx context.Context) ([]span, error) {
	const op fault.Op = "localaudit.fsck.times"
	rows, err := f.query.QueryContext(ctx, "SELECT n, oldest, newest, checksum FROM audit_bundle WHERE n <= $1 ORDER BY n", f.checked.Size>>tileHeight)
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	var spans []span
	for rows.Next() {
		var n, sum int64
		var s span
		if err := rows.Scan(&n, &s.oldest, &s.newest, &sum); err != nil {
			return nil, db.Classify(op, err)
		}
		if n < 0 {
			continue
		}
		if sum != rowSum(nil, n, s.oldest, s.newest) {
			s = emptySpan
		}
		spans = setSpan(spans, n, s)
	}
	return spans, db.Classify(op, rows.Err())
}

// compareIndex holds the stored index to what the records make. That of the newest
// bundles is not stored.
func (f *fsck) compareIndex(ctx context.Context) error {
	const op fault.Op = "localaudit.fsck.compareIndex"
	spans, err := f.times(ctx)
	if err != nil {
		return err
	}
	behind := min(int64(len(spans)), f.checked.Size>>tileHeight)
	wrong := make(map[int64]string) // by bundle
	rows, err := f.query.QueryContext(ctx, "SELECT term, bundle, bits FROM audit_posting WHERE bundle < $1", behind)
	if err != nil {
		return db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var p posting
		var data []byte
		if err := rows.Scan(&p.term, &p.bundle, &data); err != nil {
			return db.Classify(op, err)
		}
		if bits, err := p.decode(data); err != nil {
			wrong[p.bundle] = "a posting is damaged"
		} else if bits != f.index[p] {
			wrong[p.bundle] = "a posting names other records than have its term"
		}
		delete(f.index, p)
	}
	if err := rows.Err(); err != nil {
		return db.Classify(op, err)
	}
	for p := range f.index {
		if p.bundle < behind {
			wrong[p.bundle] = "a posting is missing"
		}
	}
	for n, want := range f.spans {
		if n < behind && spans[n] != want {
			wrong[n] = "its time is not that of its records"
		}
	}
	for n := range behind {
		if reason, ok := wrong[n]; ok {
			f.found(fmt.Sprintf("index of records %d to %d", n<<tileHeight, n<<tileHeight+tileMask), "%s: queries may miss them", reason)
		}
	}
	return nil
}
