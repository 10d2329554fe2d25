package localaudit

import (
	"context"
	"database/sql"
	"maps"
	"slices"

	"creto.dev/fault"
	"creto.dev/internal/db"
)

// The index is written behind the tree: postings of a term lie together, so that a
// batch would write a page for each of its terms, as much as all of its records. The
// newest bundles are therefore in memory alone, some at a time are written with the
// batch that fills them, and whoever opens the log makes those that were not from
// their records.

// indexBundles is how many full bundles are written to the index together.
const indexBundles = 16

// recent is the index of the newest bundles, those that are not stored. It does not
// change once others have it.
type recent struct {
	first   int64 // the number of the first of them; all before are stored
	bundles []bundleIndex
}

// bundleIndex is the index of one bundle.
type bundleIndex struct {
	at   map[int64]int // by term, which of bits are its
	bits []bitmap
	span span
}

// add notes what the leaf at a place has.
func (b *bundleIndex) add(place int, r *row) {
	for _, t := range r.terms.all() {
		i, ok := b.at[t]
		if !ok {
			i = len(b.bits)
			b.at[t] = i
			b.bits = append(b.bits, bitmap{})
		}
		b.bits[i].set(place)
	}
	b.span = b.span.add(r.at)
}

// with returns the index with rows from a leaf on.
func (r *recent) with(leaf int64, rows []row) *recent {
	bundles := slices.Clone(r.bundles)
	if last := len(bundles) - 1; last >= 0 {
		b := &bundles[last] // the others are full
		b.at, b.bits = maps.Clone(b.at), slices.Clone(b.bits)
	}
	for i := range rows {
		if n := leaf>>tileHeight - r.first; n == int64(len(bundles)) {
			bundles = append(bundles, bundleIndex{at: make(map[int64]int), span: emptySpan})
		}
		bundles[leaf>>tileHeight-r.first].add(int(leaf&tileMask), &rows[i])
		leaf++
	}
	return &recent{first: r.first, bundles: bundles}
}

// from returns the index without the bundles before n.
func (r *recent) from(n int64) *recent {
	return &recent{first: n, bundles: slices.Clone(r.bundles[n-r.first:])}
}

// find returns the bundles from lo to hi that have one of some terms, the first n in
// that order. lo is not before the first of r.
func (r *recent) find(alternatives []int64, lo, hi int64, oldest bool, n int) []candidates {
	var found []candidates
	step, at := int64(1), lo
	if !oldest {
		step, at = -1, min(hi, r.first+int64(len(r.bundles))-1)
	}
	for ; at >= lo && at <= hi && at-r.first < int64(len(r.bundles)) && len(found) < n; at += step {
		b := &r.bundles[at-r.first]
		var bits bitmap
		for _, t := range alternatives {
			if i, ok := b.at[t]; ok {
				bits.or(b.bits[i])
			}
		}
		if bits != (bitmap{}) {
			found = append(found, candidates{at, bits})
		}
	}
	return found
}

// indexed returns the tree, and the index of its newest bundles.
func (l *Log) indexed(ctx context.Context) (tree, *recent, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.recent == nil {
		var err error
		if l.recent, err = loadRecent(ctx, l.db, l.edge.size); err != nil {
			return tree{}, nil, err
		}
	}
	return tree{edge: l.edge, query: l.db, cache: l.cache}, l.recent, nil
}

// currentIndex returns the index of the newest bundles of a tree of that size.
func (l *Log) currentIndex(ctx context.Context, tx *sql.Tx, size int64) (*recent, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.recent != nil && l.edge.size == size {
		return l.recent, nil
	}
	return loadRecent(ctx, tx, size)
}

// loadRecent makes what is not stored of the index of a tree of that size from its
// records.
func loadRecent(ctx context.Context, q querier, size int64) (*recent, error) {
	const op fault.Op = "localaudit.loadRecent"
	h, err := loadHead(ctx, q)
	if err != nil {
		return nil, err
	}
	var newest sql.NullInt64
	if err := q.QueryRowContext(ctx, "SELECT max(n) FROM audit_bundle").Scan(&newest); err != nil {
		return nil, db.Classify(op, err)
	}
	r := &recent{first: h.first >> tileHeight}
	if newest.Valid {
		r.first = max(r.first, newest.Int64+1)
	}
	r.first = min(r.first, size>>tileHeight)
	words := newTermCache()
	for leaf := r.first << tileHeight; leaf < size; leaf += tileWidth {
		behind := min(leaf+tileWidth, size)
		entries, err := readRows(ctx, q, "leaf >= $1 AND leaf < $2 ORDER BY leaf", leaf, behind)
		if err != nil {
			return nil, err
		}
		if len(entries) != int(behind-leaf) {
			return nil, damagedRow(op, leaf+int64(len(entries)))
		}
		rows := make([]row, len(entries))
		for i, e := range entries {
			rows[i] = row{at: e.Record.Stamp.Physical, terms: words.of(&e.Record)}
		}
		r = r.with(leaf, rows)
	}
	return r, nil
}

// storeIndex writes the full bundles of a tree of that size if there are so many, and
// returns what is left in memory.
func (l *Log) storeIndex(ctx context.Context, tx *sql.Tx, r *recent, size, least int64) (*recent, error) {
	const op fault.Op = "localaudit.storeIndex"
	full := size>>tileHeight - r.first
	if full < least {
		return r, nil
	}
	type written struct {
		posting
		bits bitmap
	}
	var postings []written
	for n, b := range r.bundles[:full] {
		for t, i := range b.at {
			postings = append(postings, written{posting{t, r.first + int64(n)}, b.bits[i]})
		}
	}
	slices.SortFunc(postings, func(a, b written) int { return a.compare(b.posting) }) // as they are stored
	args := make([]any, 0, 3*len(postings))
	for _, p := range postings {
		args = append(args, p.term, p.bundle, p.encode(p.bits))
	}
	if _, err := l.postings.insert(ctx, tx, args); err != nil {
		return nil, err
	}
	for n, b := range r.bundles[:full] {
		n := r.first + int64(n)
		_, err := tx.ExecContext(ctx, "INSERT INTO audit_bundle (n, oldest, newest, checksum) VALUES ($1, $2, $3, $4) ON CONFLICT (n) DO NOTHING", n, b.span.oldest, b.span.newest, rowSum(nil, n, b.span.oldest, b.span.newest))
		if err != nil {
			return nil, db.Classify(op, err)
		}
	}
	return r.from(r.first + full), nil
}

// finishIndex writes what can be, so that the next life need not make it again.
func (l *Log) finishIndex(ctx context.Context) error {
	t, before, err := l.indexed(ctx)
	if err != nil || t.size>>tileHeight == before.first {
		return err
	}
	if err := l.postings.prepare(ctx, l.db); err != nil {
		return err
	}
	var left *recent
	err = db.Tx(ctx, l.db, func(tx *sql.Tx) error {
		left, err = l.storeIndex(ctx, tx, before, t.size, 1)
		return err
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.recent == before { // else somebody still logs, and what was written is written again
		l.keepIndex(before, left)
	}
	return nil
}

// keepIndex notes the index before and after some of it was stored. The caller holds
// mu.
func (l *Log) keepIndex(before, left *recent) {
	if int64(len(l.spans)) != before.first {
		l.spans = nil // read when they are needed
	}
	for n := before.first; l.spans != nil && n < left.first; n++ {
		l.spans = append(l.spans, before.bundles[n-before.first].span)
	}
	l.recent = left
}
