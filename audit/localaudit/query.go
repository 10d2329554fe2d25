package localaudit

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

// defaultPage is the most entries that a query returns unless it says otherwise.
const defaultPage = 50

// Entry implements audit.Log.
func (l *Log) Entry(ctx context.Context, id audit.RecordID) (audit.Entry, error) {
	const op fault.Op = "localaudit.Entry"
	for try := range 2 {
		var index int64
		err := l.db.QueryRowContext(ctx, "SELECT leaf FROM audit_record WHERE id = $1", id[:]).Scan(&index)
		if err == nil {
			return l.entryAt(ctx, l.tree(), index)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return audit.Entry{}, unavailable(op, db.Classify(op, err))
		}
		if try == 0 {
			if err := l.Flush(ctx); err != nil {
				return audit.Entry{}, err
			}
		}
	}
	return audit.Entry{}, fault.New(op, fault.AuditNotFound, "there is no record %s here; the oldest may have been sealed and archived", id)
}

// entryAt returns the entry of an index, verified against the tree.
func (l *Log) entryAt(ctx context.Context, t tree, index int64) (audit.Entry, error) {
	const op fault.Op = "localaudit.entryAt"
	entries, err := readRows(ctx, l.db, "leaf = $1", index)
	if err != nil {
		return audit.Entry{}, unavailable(op, err)
	}
	if len(entries) == 0 {
		return audit.Entry{}, fault.New(op, fault.AuditNotFound, "there is no record at %d", index)
	}
	hashes, err := t.tile(ctx, tileAt{0, index >> tileHeight})
	if err != nil {
		return audit.Entry{}, unavailable(op, err)
	}
	e := entries[0]
	if i := int(index & tileMask); (i+1)*tlog.HashSize > len(hashes) || hashAt(hashes, i) != tlog.RecordHash(e.Leaf) {
		return audit.Entry{}, damagedRow(op, index)
	}
	e.Record, err = l.people.open(ctx, e.Record)
	return e, unavailable(op, err)
}

func damagedRow(op fault.Op, index int64) error {
	return fault.New(op, fault.DataLoss, "record %d of the audit log is not what was logged: the database is damaged; creto audit fsck says more", index)
}

// readRows returns the entries that match a condition, still sealed, each checked
// against what is stored with it.
func readRows(ctx context.Context, q querier, where string, args ...any) (entries []audit.Entry, err error) {
	const op fault.Op = "localaudit.readRows"
	rows, err := q.QueryContext(ctx, "SELECT leaf, id, checksum, body FROM audit_record WHERE "+where, args...)
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var e audit.Entry
		var id []byte
		var sum int64
		if err := rows.Scan(&e.Index, &id, &sum, &e.Leaf); err != nil {
			return nil, db.Classify(op, err)
		}
		if sum != checksum(tlog.RecordHash(e.Leaf)) {
			return nil, damagedRow(op, e.Index)
		}
		// That the bytes are canonical was found when they were hashed.
		if e.Record, err = audit.DecodeTrusted(e.Leaf); err != nil || string(id) != string(e.Record.ID[:]) {
			return nil, damagedRow(op, e.Index)
		}
		entries = append(entries, e)
	}
	return entries, db.Classify(op, rows.Err())
}

// Query implements audit.Log.
func (l *Log) Query(ctx context.Context, f audit.Filter) ([]audit.Entry, error) {
	const op fault.Op = "localaudit.Query"
	if f.Limit < 0 || f.Before < 0 || f.From < 0 || f.Oldest && f.Before > 0 || !f.Oldest && f.From > 0 {
		return nil, fault.New(op, fault.InvalidArgument, "a page goes up from the index From, or down from the newest or what is before Before; its limit is 0 to %d", audit.MaxPage)
	}
	if err := l.Flush(ctx); err != nil {
		return nil, err
	}
	if f.Limit == 0 {
		f.Limit = defaultPage
	}
	f.Limit = min(f.Limit, audit.MaxPage)
	s, err := l.selection(ctx, f)
	if err != nil {
		return nil, unavailable(op, err)
	}
	page, err := l.page(ctx, s, f)
	if err != nil {
		return nil, unavailable(op, err)
	}
	for i := range page {
		if page[i].Record, err = l.people.open(ctx, page[i].Record); err != nil {
			return nil, unavailable(op, err)
		}
	}
	return page, nil
}

// How many bundles are looked at together: few at first, since most pages are
// full soon, and more each time.
const (
	firstBundles = 8
	maxBundles   = 512
)

// fetchAtOnce bounds how many records are read with one statement.
const fetchAtOnce = 100

// page walks the bundles with candidates until the page is full.
func (l *Log) page(ctx context.Context, s selection, f audit.Filter) (page []audit.Entry, err error) {
	at := (s.behind - 1) >> tileHeight
	if f.Oldest {
		at = s.from >> tileHeight
	}
	for n := firstBundles; at >= 0 && s.from < s.behind && len(page) < f.Limit; n = min(2*n, maxBundles) {
		found, next, err := l.bundles(ctx, s, at, f.Oldest, n)
		if err != nil {
			return nil, err
		}
		at = next
		var leaves []int64
		for i, c := range found {
			leaves = c.leaves(leaves, s, f.Oldest)
			for len(leaves) > 0 && (len(leaves) >= min(fetchAtOnce, f.Limit-len(page)) || i == len(found)-1) {
				k := min(fetchAtOnce, len(leaves))
				if page, err = l.fetch(ctx, s, f.Limit, leaves[:k], page); err != nil || len(page) == f.Limit {
					return page, err
				}
				leaves = leaves[k:]
			}
		}
	}
	return page, nil
}

// leaves adds the indexes of a bundle's candidates to those before, in order.
func (c candidates) leaves(before []int64, s selection, oldest bool) []int64 {
	for i := range tileWidth {
		if !oldest {
			i = tileMask - i
		}
		if leaf := c.bundle<<tileHeight + int64(i); c.bits.has(i) && leaf >= s.from && leaf < s.behind {
			before = append(before, leaf)
		}
	}
	return before
}

// fetch reads records and adds those that match to the page, in the order given.
func (l *Log) fetch(ctx context.Context, s selection, limit int, leaves []int64, page []audit.Entry) ([]audit.Entry, error) {
	const op fault.Op = "localaudit.fetch"
	// Numbers of our own need no placeholders, whose binding takes SQLite's driver
	// longer than reading the rows.
	var list []byte
	for i, leaf := range leaves {
		if i > 0 {
			list = append(list, ',')
		}
		list = strconv.AppendInt(list, leaf, 10)
	}
	entries, err := readRows(ctx, l.db, "leaf IN ("+string(list)+")")
	if err != nil {
		return nil, err
	}
	have := make(map[int64]audit.Entry, len(entries))
	for _, e := range entries {
		have[e.Index] = e
	}
	for _, leaf := range leaves {
		e, ok := have[leaf]
		if !ok {
			if l.archived(ctx, leaf) {
				continue // it left while this query was under way
			}
			return nil, damagedRow(op, leaf)
		}
		if s.match(e.Record) {
			if page = append(page, e); len(page) == limit {
				break
			}
		}
	}
	return page, nil
}

// selection turns a filter into terms, and into a check of what they find.
func (l *Log) selection(ctx context.Context, f audit.Filter) (selection, error) {
	first, err := l.firstLeaf(ctx)
	if err != nil {
		return selection{}, err
	}
	t, newest, err := l.indexed(ctx)
	if err != nil {
		return selection{}, err
	}
	s := selection{from: max(f.From, first), behind: t.size, recent: newest, since: math.MinInt64, until: math.MaxInt64}
	if f.Before > 0 {
		s.behind = min(s.behind, f.Before)
	}
	var checks []func(audit.Record) bool
	need := func(kind byte, values []string, of func(audit.Record) string) {
		group := make([]int64, len(values))
		for i, v := range values {
			group[i] = term(kind, v)
		}
		s.groups = append(s.groups, group)
		checks = append(checks, func(r audit.Record) bool { return slices.Contains(values, of(r)) })
	}
	if err := l.wherePeople(ctx, f, need); err != nil {
		return s, err
	}
	if err := l.whereResource(ctx, f.Resource, need, &checks); err != nil {
		return s, err
	}
	whereWhat(f.What, need)
	if f.Outcome != "" {
		need(termOutcome, []string{string(f.Outcome)}, func(r audit.Record) string { return string(r.Outcome) })
	}
	if f.Tenant != "" {
		if len(s.groups) == 0 {
			need(termTenant, []string{f.Tenant}, func(r audit.Record) string { return r.Who.Tenant })
		} else {
			s.tenant = []int64{term(termTenant, f.Tenant)}
			checks = append(checks, func(r audit.Record) bool { return r.Who.Tenant == f.Tenant })
		}
	}
	if !f.Since.IsZero() || !f.Until.IsZero() {
		if !f.Since.IsZero() {
			s.since = nanos(f.Since)
		}
		if !f.Until.IsZero() {
			s.until = nanos(f.Until)
		}
		lo, hi, err := l.timeBounds(ctx, newest, first>>tileHeight, s.since, s.until)
		if err != nil {
			return s, err
		}
		s.from, s.behind = max(s.from, lo<<tileHeight), min(s.behind, (hi+1)<<tileHeight)
		checks = append(checks, func(r audit.Record) bool { return r.Stamp.Physical >= s.since && r.Stamp.Physical < s.until })
	}
	s.match = func(r audit.Record) bool {
		for _, ok := range checks {
			if !ok(r) {
				return false
			}
		}
		return true
	}
	return s, nil
}

// needs adds to a selection that a record's value is one of some.
type needs func(kind byte, values []string, of func(audit.Record) string)

// wherePeople selects who acted, and on whose behalf. Leaves name humans by
// pseudonym.
func (l *Log) wherePeople(ctx context.Context, f audit.Filter, need needs) error {
	if f.Actor != "" {
		names, err := l.people.pseudonyms(ctx, f.Actor)
		if err != nil {
			return err
		}
		switch {
		case strings.HasPrefix(f.Actor, "spiffe://"):
			need(termActor, names, func(r audit.Record) string { return r.Who.String() })
		default: // agents and workloads of that name, and humans
			for i, n := range names {
				names[i] = n[strings.LastIndexByte(n, '/')+1:]
			}
			need(termName, names, func(r audit.Record) string { return r.Who.Name })
		}
	}
	if f.Human != "" {
		names, err := l.people.pseudonyms(ctx, f.Human)
		if err != nil {
			return err
		}
		need(termHuman, names, func(r audit.Record) string { return human(&r).String() })
	}
	return nil
}

func (l *Log) whereResource(ctx context.Context, resource string, need needs, checks *[]func(audit.Record) bool) error {
	of := func(r audit.Record) string { return r.Resource }
	switch prefix, open := strings.CutSuffix(resource, "*"); {
	case resource == "":
	case open:
		// Only whole types have a term.
		if kind, _, ok := strings.Cut(prefix, "::"); ok {
			need(termType, []string{kind}, func(r audit.Record) string {
				kind, _, _ := strings.Cut(r.Resource, "::")
				return kind
			})
		}
		*checks = append(*checks, func(r audit.Record) bool { return strings.HasPrefix(r.Resource, prefix) })
	case strings.HasPrefix(resource, humanResource):
		names, err := l.people.pseudonyms(ctx, strings.TrimPrefix(resource, humanResource))
		if err != nil {
			return err
		}
		for i, n := range names {
			names[i] = humanResource + n[strings.LastIndexByte(n, '/')+1:]
		}
		need(termResource, names, of)
	default:
		need(termResource, []string{resource}, of)
	}
	return nil
}

// humanResource begins resources that name a human.
const humanResource = "Human::"

// whereWhat selects by an action's name or an event's.
func whereWhat(what string, need needs) {
	event := func(r audit.Record) string { return r.Event() }
	name := func(r audit.Record) string { return r.What }
	switch what {
	case "":
	case audit.EventAuthzDenied, audit.EventQuotaExceeded, audit.EventDeliveryDenied, audit.EventInferenceCalled,
		audit.EventEgressAttempted, audit.EventMessageSent, audit.EventSecretAccessed, audit.EventSecretMissing, audit.EventPromptInjectionBlocked, audit.EventCanaryLeaked:
		need(termEvent, []string{what}, event)
	default:
		need(termWhat, []string{what}, name)
	}
}

// nanos returns t in Unix nanoseconds; the nearest there are for a time beyond
// the years 1678 to 2262.
func nanos(t time.Time) int64 {
	switch {
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	}
	return t.UnixNano()
}

func escapeLike(s string) string {
	return strings.NewReplacer("!", "!!", "%", "!%", "_", "!_").Replace(s)
}

// Tile returns a tile as C2SP tlog-tiles has it, verified: hashes, or for level
// -1 the bundle of entries. Its width may be less than what there is.
//
// Errors: AuditNotFound (Permanent) if the tree has no such tile, or its entries
// left the database; DataLoss (Security) if it is damaged.
func (l *Log) Tile(ctx context.Context, at tlog.Tile) ([]byte, error) {
	const op fault.Op = "localaudit.Tile"
	if at.H != tileHeight || at.L < -1 || at.N < 0 || at.W < 1 || at.W > tileWidth {
		return nil, fault.New(op, fault.AuditNotFound, "%s is no tile of this log", at.Path())
	}
	hashes, err := l.tree().tile(ctx, tileAt{max(at.L, 0), at.N})
	if err != nil {
		return nil, unavailable(op, err)
	}
	if len(hashes) < at.W*tlog.HashSize {
		return nil, fault.New(op, fault.AuditNotFound, "the tree has no tile %s yet", at.Path())
	}
	hashes = hashes[:at.W*tlog.HashSize]
	if at.L >= 0 {
		return slices.Clone(hashes), nil
	}
	bundle, err := l.bundle(ctx, at.N, hashes)
	return bundle, unavailable(op, err)
}

// bundle returns the entries with those hashes, each behind its length.
func (l *Log) bundle(ctx context.Context, n int64, hashes []byte) ([]byte, error) {
	const op fault.Op = "localaudit.bundle"
	first := n << tileHeight
	width := len(hashes) / tlog.HashSize
	rows, err := l.db.QueryContext(ctx, "SELECT leaf, body FROM audit_record WHERE leaf >= $1 AND leaf < $2 ORDER BY leaf", first, first+int64(width))
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	var bundle []byte
	next := first
	for ; rows.Next(); next++ {
		var index int64
		var leaf []byte
		if err := rows.Scan(&index, &leaf); err != nil {
			return nil, db.Classify(op, err)
		}
		if index != next || len(leaf) > audit.MaxLeafBytes || hashAt(hashes, int(index-first)) != tlog.RecordHash(leaf) {
			return nil, damagedRow(op, next)
		}
		bundle = append(binary.BigEndian.AppendUint16(bundle, uint16(len(leaf))), leaf...)
	}
	if err := rows.Err(); err != nil {
		return nil, db.Classify(op, err)
	}
	if next == first && l.archived(ctx, first) {
		return l.archivedBundle(n, hashes)
	}
	if next != first+int64(width) {
		return nil, damagedRow(op, next)
	}
	return bundle, nil
}
