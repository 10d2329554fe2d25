package localaudit

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"
	"strings"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

// The index of the log has a posting for each term and bundle: a bit for each of
// the bundle's 256 records that has the term. A batch of a thousand records
// writes some dozens of them where a column's index would write a thousand
// entries, and several columns several thousands; that makes half of what a
// record costs. Terms are digests, so a false hit is possible: every record is
// held against the filter once it is read.

// The kinds of terms.
const (
	termTenant   = 't'
	termActor    = 'a' // SPIFFE id; of a human the pseudonym's
	termName     = 'n' // the actor's bare name
	termHuman    = 'h' // who acted or on whose behalf, by pseudonym
	termWhat     = 'w'
	termEvent    = 'e'
	termResource = 'r'
	termType     = 'y' // the resource's
	termOutcome  = 'o'
)

// term returns the number that stands for a value of a kind.
func term(kind byte, value string) int64 {
	var room [256]byte // for what is usual, without garbage
	sum := sha256.Sum256(append(append(room[:0], kind), value...))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

// human returns on whose behalf a record is, or who acted.
func human(r *audit.Record) creto.ID {
	if r.Who.Kind == creto.KindHuman {
		return r.Who
	}
	return r.OnBehalfOf
}

// termCache remembers terms: most records have what the one before them has. It
// should not outlive a batch. Not safe for concurrent use.
type termCache struct {
	principals map[creto.ID]principalTerms
	values     map[termValue]int64
}

// principalTerms are what a principal is found by.
type principalTerms struct{ tenant, actor, name, human int64 }

type termValue struct {
	kind  byte
	value string
}

func newTermCache() *termCache {
	return &termCache{principals: make(map[creto.ID]principalTerms), values: make(map[termValue]int64)}
}

func (c *termCache) principal(id creto.ID) principalTerms {
	t, ok := c.principals[id]
	if !ok {
		text := id.String()
		t = principalTerms{term(termTenant, id.Tenant), term(termActor, text), term(termName, id.Name), term(termHuman, text)}
		c.principals[id] = t
	}
	return t
}

func (c *termCache) value(kind byte, value string) int64 {
	t, ok := c.values[termValue{kind, value}]
	if !ok {
		t = term(kind, value)
		c.values[termValue{kind, value}] = t
	}
	return t
}

// terms are what a leaf can be found by: n of them.
type terms struct {
	list [9]int64
	n    int
}

func (t *terms) all() []int64 { return t.list[:t.n] }

// of returns the terms of the leaf that says r.
func (c *termCache) of(r *audit.Record) terms {
	kind, _, _ := strings.Cut(r.Resource, "::")
	who := c.principal(r.Who)
	t := terms{n: 7, list: [9]int64{
		who.tenant, who.actor, who.name, c.value(termWhat, r.What),
		c.value(termResource, r.Resource), c.value(termType, kind), c.value(termOutcome, string(r.Outcome)),
	}}
	if h := human(r); !h.IsZero() {
		t.list[t.n] = c.principal(h).human
		t.n++
	}
	if event := r.Event(); event != r.What {
		t.list[t.n] = c.value(termEvent, event)
		t.n++
	}
	return t
}

// bitmap says which records of a bundle have a term.
type bitmap [tileWidth / 8]byte

func (b *bitmap) set(i int)      { b[i>>3] |= 1 << (i & 7) }
func (b *bitmap) has(i int) bool { return b[i>>3]&(1<<(i&7)) != 0 }

func (b *bitmap) and(other bitmap) {
	for i := range b {
		b[i] &= other[i]
	}
}

func (b *bitmap) or(other bitmap) {
	for i := range b {
		b[i] |= other[i]
	}
}

// everything has all bits set.
func everything() bitmap {
	var b bitmap
	for i := range b {
		b[i] = math.MaxUint8
	}
	return b
}

// posting names a bitmap.
type posting struct {
	term   int64
	bundle int64
}

func (p posting) compare(q posting) int {
	return cmp.Or(cmp.Compare(p.term, q.term), cmp.Compare(p.bundle, q.bundle))
}

// encode returns the bitmap as it is stored, bound to its place.
func (p posting) encode(b bitmap) []byte {
	return binary.BigEndian.AppendUint32(slices.Clone(b[:]), p.sum(b[:]))
}

func (p posting) decode(data []byte) (bitmap, error) {
	if len(data) != len(bitmap{})+4 || binary.BigEndian.Uint32(data[len(bitmap{}):]) != p.sum(data[:len(bitmap{})]) {
		return bitmap{}, fault.New("localaudit.decode", fault.DataLoss, "the index of bundle %d of the audit log is damaged; creto audit fsck says more", p.bundle)
	}
	return bitmap(data[:len(bitmap{})]), nil
}

func (p posting) sum(b []byte) uint32 {
	var key [16]byte
	binary.BigEndian.PutUint64(key[:], uint64(p.term))
	binary.BigEndian.PutUint64(key[8:], uint64(p.bundle))
	return crc32.Update(crc32.Checksum(key[:], castagnoli), castagnoli, b)
}

// castagnoli has hardware support.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// span is the time of a bundle's records.
type span struct{ oldest, newest int64 }

func (s span) add(at int64) span {
	return span{min(s.oldest, at), max(s.newest, at)}
}

// emptySpan is that of no record.
var emptySpan = span{math.MaxInt64, math.MinInt64}

// selection is a filter in terms of the index.
type selection struct {
	// groups are alternatives of which a record has one of each, those that
	// select the fewest first.
	groups [][]int64
	// tenant is a further one, where the others find nearly nothing else if one
	// tenant has nearly all records, and nearly nothing if it has few.
	tenant []int64
	match  func(audit.Record) bool // holds the leaf's record against the filter
	since  int64                   // bounds of the time, in Unix nanoseconds
	until  int64
	from   int64 // bounds of the index
	behind int64
	recent *recent // the index of the newest bundles, as of behind
}

// bundles returns the next bundles in the order of the page that have candidates,
// and them. n bounds how many are looked at; next is where to go on, -1 at the end.
func (l *Log) bundles(ctx context.Context, s selection, at int64, oldest bool, n int) (found []candidates, next int64, err error) {
	lo, hi := s.from>>tileHeight, (s.behind-1)>>tileHeight
	if oldest {
		lo = at
	} else {
		hi = at
	}
	if lo > hi {
		return nil, -1, nil
	}
	if len(s.groups) == 0 {
		step := int64(1)
		if !oldest {
			step = -1
		}
		for b := at; b >= lo && b <= hi && len(found) < n; b += step {
			found = append(found, candidates{b, everything()})
		}
	} else if found, err = l.find(ctx, s.recent, s.groups[0], lo, hi, oldest, n); err != nil {
		return nil, -1, err
	}
	next = -1
	if len(found) == n {
		next = found[n-1].bundle + 1
		if !oldest {
			next = found[n-1].bundle - 1
		}
	}
	groups := s.groups[min(1, len(s.groups)):]
	if n > firstBundles && s.tenant != nil { // the first page was not full: others' records are many
		groups = append(slices.Clone(groups), s.tenant)
	}
	for _, group := range groups {
		if len(found) == 0 {
			break
		}
		bounds := []int64{found[0].bundle, found[len(found)-1].bundle}
		others, err := l.find(ctx, s.recent, group, slices.Min(bounds), slices.Max(bounds), oldest, math.MaxInt32)
		if err != nil {
			return nil, -1, err
		}
		have := make(map[int64]bitmap, len(others))
		for _, o := range others {
			have[o.bundle] = o.bits
		}
		for i := range found {
			found[i].bits.and(have[found[i].bundle])
		}
	}
	return found, next, nil
}

// candidates are records of a bundle that may match.
type candidates struct {
	bundle int64
	bits   bitmap
}

// find returns the bundles from lo to hi that have one of some terms, the first n
// in that order.
func (l *Log) find(ctx context.Context, r *recent, alternatives []int64, lo, hi int64, oldest bool, n int) (found []candidates, err error) {
	if !oldest {
		found = r.find(alternatives, max(lo, r.first), hi, oldest, n)
	}
	if behind := min(hi, r.first-1); len(found) < n && lo <= behind {
		stored, err := l.findPostings(ctx, alternatives, lo, behind, oldest, n-len(found))
		if err != nil {
			return nil, err
		}
		found = append(found, stored...)
	}
	if oldest && len(found) < n {
		found = append(found, r.find(alternatives, max(lo, r.first), hi, oldest, n-len(found))...)
	}
	return found, nil
}

// findPostings is find in what is stored.
func (l *Log) findPostings(ctx context.Context, alternatives []int64, lo, hi int64, oldest bool, n int) ([]candidates, error) {
	const op fault.Op = "localaudit.findPostings"
	args := []any{lo, hi}
	for _, t := range alternatives {
		args = append(args, t)
	}
	order := " ORDER BY bundle DESC"
	if oldest {
		order = " ORDER BY bundle"
	}
	// One more bundle's worth than asked for, so that the last is whole.
	args = append(args, min(int64(n)+1, math.MaxInt32)*int64(len(alternatives)))
	rows, err := l.db.QueryContext(ctx, "SELECT term, bundle, bits FROM audit_posting WHERE term IN ("+placeholders(3, len(alternatives))+
		") AND bundle >= $1 AND bundle <= $2"+order+" LIMIT "+placeholders(len(args), 1), args...)
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	var found []candidates
	for rows.Next() {
		var p posting
		var data []byte
		if err := rows.Scan(&p.term, &p.bundle, &data); err != nil {
			return nil, db.Classify(op, err)
		}
		b, err := p.decode(data)
		if err != nil {
			return nil, err
		}
		if len(found) > 0 && found[len(found)-1].bundle == p.bundle {
			found[len(found)-1].bits.or(b)
			continue
		}
		if len(found) == n {
			break
		}
		found = append(found, candidates{p.bundle, b})
	}
	return found, db.Classify(op, rows.Err())
}

// timeBounds returns the bundles between which every record of a time is, of those
// from the bundle first on that are in the database or in r; lo is above hi if there
// is none.
func (l *Log) timeBounds(ctx context.Context, r *recent, first, since, until int64) (lo, hi int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spans == nil {
		if l.spans, err = loadSpans(ctx, l.db); err != nil {
			return 0, -1, err
		}
	}
	if int64(len(l.spans)) < r.first && first < r.first {
		return 0, -1, damagedTable("localaudit.timeBounds", "audit_bundle")
	}
	lo, hi = 0, -1
	see := func(n int64, s span) {
		if s.newest < since || s.oldest >= until {
			return
		}
		if hi < 0 {
			lo = n
		}
		hi = n
	}
	for n, s := range l.spans[:min(int64(len(l.spans)), r.first)] {
		see(int64(n), s)
	}
	for i, b := range r.bundles {
		see(r.first+int64(i), b.span)
	}
	return lo, hi, nil
}

// loadSpans reads the time of every bundle. Those that left the database are
// empty.
func loadSpans(ctx context.Context, q querier) ([]span, error) {
	const op fault.Op = "localaudit.loadSpans"
	rows, err := q.QueryContext(ctx, "SELECT n, oldest, newest, checksum FROM audit_bundle ORDER BY n")
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	spans := []span{}
	for rows.Next() {
		var n int64
		var s span
		var sum int64
		if err := rows.Scan(&n, &s.oldest, &s.newest, &sum); err != nil {
			return nil, db.Classify(op, err)
		}
		if sum != rowSum(nil, n, s.oldest, s.newest) {
			return nil, damagedTable(op, "audit_bundle")
		}
		if len(spans) > 0 && n != int64(len(spans)) {
			return nil, damagedTable(op, "audit_bundle")
		}
		spans = setSpan(spans, n, s)
	}
	return spans, db.Classify(op, rows.Err())
}

func setSpan(spans []span, n int64, s span) []span {
	for int64(len(spans)) <= n {
		spans = append(spans, emptySpan)
	}
	spans[n] = s
	return spans
}
