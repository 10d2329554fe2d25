package localaudit

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev"
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
			if err := l.drain(ctx); err != nil {
				return audit.Entry{}, err
			}
		}
	}
	return audit.Entry{}, fault.New(op, fault.AuditNotFound, "there is no record %s here; the oldest may have been sealed and archived", id)
}

// entryAt returns the entry of an index, verified against the tree.
func (l *Log) entryAt(ctx context.Context, t tree, index int64) (audit.Entry, error) {
	const op fault.Op = "localaudit.entryAt"
	entries, err := l.read(ctx, "leaf = $1 LIMIT 1", index)
	if err != nil {
		return audit.Entry{}, err
	}
	if len(entries) == 0 {
		return audit.Entry{}, fault.New(op, fault.AuditNotFound, "there is no record at %d", index)
	}
	hashes, err := t.tile(ctx, tileAt{0, index >> tileHeight})
	if err != nil {
		return audit.Entry{}, unavailable(op, err)
	}
	if i := int(index & tileMask); (i+1)*tlog.HashSize > len(hashes) || hashAt(hashes, i) != tlog.RecordHash(entries[0].Leaf) {
		return audit.Entry{}, damagedRow(op, index)
	}
	return entries[0], nil
}

func damagedRow(op fault.Op, index int64) error {
	return fault.New(op, fault.DataLoss, "record %d of the audit log is not what was logged: the database is damaged; creto audit fsck says more", index)
}

// read returns the entries that match a condition, each checked against what is
// stored with it.
func (l *Log) read(ctx context.Context, where string, args ...any) ([]audit.Entry, error) {
	const op fault.Op = "localaudit.read"
	rows, err := l.db.QueryContext(ctx, "SELECT "+columns+" FROM audit_record WHERE "+where, args...)
	if err != nil {
		return nil, unavailable(op, db.Classify(op, err))
	}
	entries, err := scanAll(rows)
	if err != nil {
		return nil, unavailable(op, err)
	}
	for i := range entries {
		if entries[i].Record, err = l.people.open(ctx, entries[i].Record); err != nil {
			return nil, unavailable(op, err)
		}
	}
	return entries, nil
}

// scanAll reads rows whose columns are columns.
func scanAll(rows *sql.Rows) (entries []audit.Entry, err error) {
	const op fault.Op = "localaudit.scanAll"
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		e, err := scanRow(rows.Scan)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, db.Classify(op, rows.Err())
}

// scanRow reads one row and checks it: the leaf against its checksum, and the
// columns against what the leaf says.
func scanRow(scan func(...any) error) (audit.Entry, error) {
	const op fault.Op = "localaudit.scanRow"
	var e audit.Entry
	var id []byte
	var at, checksum int64
	var tenant, actor, human, what, event, resource, outcome string
	if err := scan(&e.Index, &id, &at, &tenant, &actor, &human, &what, &event, &resource, &outcome, &checksum, &e.Leaf); err != nil {
		return e, db.Classify(op, err)
	}
	r, err := audit.DecodeRecord(e.Leaf)
	if err != nil || checksum != leafChecksum(e.Leaf) {
		return e, damagedRow(op, e.Index)
	}
	want := newRow(r, e.Leaf)
	if string(id) != string(r.ID[:]) || at != r.Stamp.Physical || tenant != r.Who.Tenant || actor != r.Who.String() || human != want.human ||
		what != indexed(r.What) || event != indexed(want.event) || resource != indexed(r.Resource) || outcome != string(r.Outcome) {
		return e, damagedRow(op, e.Index)
	}
	e.Record = r
	return e, nil
}

// where collects conditions.
type where struct {
	conditions []string
	args       []any
}

// add adds a condition in which $ stands for each value in turn.
func (w *where) add(condition string, values ...any) {
	for _, v := range values {
		if text, ok := v.(string); ok {
			v = indexed(text)
		}
		w.args = append(w.args, v)
		condition = strings.Replace(condition, "$?", fmt.Sprintf("$%d", len(w.args)), 1)
	}
	w.conditions = append(w.conditions, condition)
}

// in adds that a column has one of some values.
func (w *where) in(column string, values []string) {
	marks := make([]string, len(values))
	args := make([]any, len(values))
	for i, v := range values {
		marks[i], args[i] = "$?", v
	}
	w.add(column+" IN ("+strings.Join(marks, ", ")+")", args...)
}

func escapeLike(s string) string {
	return strings.NewReplacer("!", "!!", "%", "!%", "_", "!_").Replace(s)
}

// Query implements audit.Log.
func (l *Log) Query(ctx context.Context, f audit.Filter) ([]audit.Entry, error) {
	const op fault.Op = "localaudit.Query"
	if f.Limit < 0 || f.Before < 0 || f.From < 0 || f.Oldest && f.Before > 0 || !f.Oldest && f.From > 0 {
		return nil, fault.New(op, fault.InvalidArgument, "a page goes by index from From on, or by time from the newest or behind Before; its limit is 0 to %d", audit.MaxPage)
	}
	if err := l.drain(ctx); err != nil {
		return nil, err
	}
	w, err := l.conditions(ctx, f)
	if err != nil {
		return nil, unavailable(op, err)
	}
	order := " ORDER BY at_ns DESC, leaf DESC"
	if f.Oldest {
		order = " ORDER BY leaf"
	}
	limit := f.Limit
	if limit == 0 {
		limit = defaultPage
	}
	w.args = append(w.args, min(limit, audit.MaxPage))
	return l.read(ctx, strings.Join(w.conditions, " AND ")+order+fmt.Sprintf(" LIMIT $%d", len(w.args)), w.args...)
}

// conditions turns a filter into SQL.
func (l *Log) conditions(ctx context.Context, f audit.Filter) (where, error) {
	var w where
	w.add("leaf >= $?", f.From)
	if f.Tenant != "" {
		w.add("tenant = $?", f.Tenant)
	}
	if f.Actor != "" {
		if err := l.whereActor(ctx, &w, f.Actor); err != nil {
			return w, err
		}
	}
	if f.Human != "" {
		names, err := l.people.pseudonyms(ctx, f.Human)
		if err != nil {
			return w, err
		}
		w.in("human", names)
		w.add("human <> ''") // which the index asks for
	}
	whereWhat(&w, f.What)
	if prefix, ok := strings.CutSuffix(f.Resource, "*"); ok {
		w.add("resource >= $?", prefix)
		w.add("resource LIKE $? ESCAPE '!'", escapeLike(prefix)+"%")
	} else if f.Resource != "" {
		resource := f.Resource
		if name, ok := strings.CutPrefix(resource, "Human::"); ok {
			names, err := l.people.pseudonyms(ctx, name)
			if err != nil {
				return w, err
			}
			for i, n := range names {
				names[i] = "Human::" + n[strings.LastIndexByte(n, '/')+1:]
			}
			w.in("resource", names)
		} else {
			w.add("resource = $?", resource)
		}
	}
	if f.Outcome != "" {
		w.add("outcome = $?", string(f.Outcome))
		if f.Outcome != audit.Success {
			w.add("outcome <> 'success'") // which the index asks for
		}
	}
	if !f.Since.IsZero() {
		w.add("at_ns >= $?", nanos(f.Since))
	}
	if !f.Until.IsZero() {
		w.add("at_ns < $?", nanos(f.Until))
	}
	if f.Before > 0 {
		const op fault.Op = "localaudit.conditions"
		var at int64
		err := l.db.QueryRowContext(ctx, "SELECT at_ns FROM audit_record WHERE leaf = $1", f.Before).Scan(&at)
		if errors.Is(err, sql.ErrNoRows) {
			return w, fault.New(op, fault.AuditNotFound, "there is no record at %d to go on behind", f.Before)
		}
		if err != nil {
			return w, db.Classify(op, err)
		}
		w.add("at_ns <= $?", at)
		w.add("(at_ns < $? OR leaf < $?)", at, f.Before)
	}
	return w, nil
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

// whereActor selects who acted: an agent or workload by name or id, or a human,
// whom rows name by pseudonym.
func (l *Log) whereActor(ctx context.Context, w *where, actor string) error {
	names, err := l.people.pseudonyms(ctx, actor)
	if err != nil {
		return err
	}
	if strings.HasPrefix(actor, "spiffe://") {
		w.in("actor", names)
		return nil
	}
	// A bare name: every principal of that name that ever acted. There are few
	// principals, so they are found by hopping through the index.
	rows, err := l.db.QueryContext(ctx, `WITH RECURSIVE actors (actor) AS (
			SELECT min(actor) FROM audit_record
			UNION ALL SELECT (SELECT min(r.actor) FROM audit_record r WHERE r.actor > actors.actor) FROM actors WHERE actors.actor IS NOT NULL)
		SELECT actor FROM actors WHERE actor LIKE $1 ESCAPE '!'`, "%/"+escapeLike(actor))
	if err != nil {
		return db.Classify("localaudit.whereActor", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return db.Classify("localaudit.whereActor", err)
		}
		names = append(names, name)
	}
	w.in("actor", slices.Compact(names))
	return db.Classify("localaudit.whereActor", rows.Err())
}

// whereWhat selects by an action's name or an event's. For events that stand for
// actions it says which, so that an index helps.
func whereWhat(w *where, what string) {
	if what == "" {
		return
	}
	if _, action := creto.ResourceType(what); action {
		w.add("what = $?", what)
		return
	}
	w.add("event = $?", what)
	switch what {
	case audit.EventAuthzDenied, audit.EventQuotaExceeded, audit.EventDeliveryDenied:
		w.add("outcome = 'denied' AND outcome <> 'success'")
	case audit.EventInferenceCalled:
		w.add("what = $?", creto.CallModel)
	case audit.EventEgressAttempted:
		w.in("what", []string{creto.HTTPRequest, creto.NetworkEgress})
	case audit.EventMessageSent:
		w.add("what = $?", creto.SendMessage)
	case audit.EventSecretAccessed, audit.EventSecretMissing:
		w.add("what = $?", creto.AccessSecret)
	default:
		w.add("what = $?", what)
	}
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
