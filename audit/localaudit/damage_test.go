package localaudit_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/localaudit"
	"creto.dev/internal/db"
	"creto.dev/internal/db/dbtest"
)

// varied returns records of every kind that the index tells apart.
func varied(n int) []audit.Record {
	rs := make([]audit.Record, n)
	for i := range rs {
		rs[i] = audittest.Record([]string{creto.CallModel, creto.HTTPRequest, audit.EventTokenIssued}[i%3], i%40)
		rs[i].OnBehalfOf = audittest.Human([]string{"alice", "bob", "carol"}[i%3])
		if i%7 == 0 {
			rs[i].Outcome = audit.Denied
		}
		rs[i].Why = fmt.Sprintf("reason %d", i)
	}
	return rs
}

// fsck returns the problems of a database.
func fsck(t testing.TB, d *sql.DB) []localaudit.Problem {
	t.Helper()
	var problems []localaudit.Problem
	if _, err := localaudit.Fsck(t.Context(), d, "", nil, func(p localaudit.Problem) { problems = append(problems, p) }); err != nil {
		problems = append(problems, localaudit.Problem{Place: "all", Reason: err.Error()})
	}
	return problems
}

// A log that nobody touched has no problem, at any size.
func TestFsckSizes(t *testing.T) {
	for _, n := range []int{0, 1, 255, 256, 257, 1300, 4500} {
		o := open(t, t.TempDir(), nil)
		for _, err := range o.log.LogBatch(t.Context(), varied(n)) {
			if err != nil {
				t.Fatal(err)
			}
		}
		finish(t, o)
		if problems := fsck(t, o.db); len(problems) > 0 {
			t.Errorf("%d records: %+v", n, problems)
		}
	}
}

// tables are what the log stores, as text.
func tables(ctx context.Context, d *sql.DB) (string, error) {
	var all bytes.Buffer
	for _, query := range []string{
		"SELECT leaf, hex(id), checksum, hex(body), '' FROM audit_record ORDER BY leaf", "SELECT level, n, hex(hashes), '', '' FROM audit_tile ORDER BY level, n",
		"SELECT term, bundle, hex(bits), '', '' FROM audit_posting ORDER BY term, bundle", "SELECT n, oldest, newest, checksum, '' FROM audit_bundle ORDER BY n",
		"SELECT size, hex(root), first, checksum, '' FROM audit_head", "SELECT hex(id), sequence, checksum, '', '' FROM audit_front",
	} {
		rows, err := d.QueryContext(ctx, query)
		if err != nil {
			return "", err
		}
		for rows.Next() {
			var c [5]string
			if err := rows.Scan(&c[0], &c[1], &c[2], &c[3], &c[4]); err != nil {
				return "", errors.Join(err, rows.Close())
			}
			fmt.Fprintln(&all, c)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return "", err
		}
	}
	return all.String(), nil
}

// damageTrials is how many flips are tried: every page once with CRETO_TORTURE=1.
const damageTrials = 60

// Flip a bit anywhere in the database, in pages of every kind: nothing is ever
// served that is not what was logged, and fsck finds it unless it changed nothing.
func TestFlippedBits(t *testing.T) {
	if dbtest.Engine(t) != "sqlite" {
		t.Skip("PostgreSQL's pages are not ours to flip while it runs")
	}
	const records = 1100
	dir := t.TempDir()
	o := open(t, dir, nil)
	rs := varied(records)
	if err := errors.Join(o.log.LogBatch(t.Context(), rs)...); err != nil {
		t.Fatal(err)
	}
	head, err := o.log.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	finish(t, o)
	want, err := tables(t.Context(), o.db)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(o.log.Close(), o.db.Close()); err != nil { // the WAL is in the file then
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "creto.db"))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := os.ReadFile(filepath.Join(dir, "audit", "front.ring"))
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	random := rand.New(rand.NewPCG(7, 7))
	trials := random.Perm(len(good) / page)
	if os.Getenv("CRETO_TORTURE") == "" {
		trials = trials[:min(damageTrials, len(trials))]
	}
	found, harmless := 0, 0
	for _, p := range trials {
		at := p*page + random.IntN(page)
		if random.IntN(3) == 0 {
			at = p*page + random.IntN(64) // where pages keep their own account
		}
		bad := bytes.Clone(good)
		bad[at] ^= 1 << random.IntN(8)
		if random.IntN(8) == 0 {
			clear(bad[p*page : (p+1)*page]) // a page that was never written
		}
		if tryDamaged(t, bad, ring, rs, head, want, fmt.Sprintf("page %d, byte %d", p, at)) {
			found++
		} else {
			harmless++
		}
	}
	t.Logf("%d of %d flips were found; the others changed nothing of the log", found, found+harmless)
	if found < len(trials)/4 {
		t.Errorf("only %d of %d flips were found; the test shows little", found, len(trials))
	}
}

// tryDamaged opens a damaged database and uses it. It reports whether the damage
// was found.
func tryDamaged(t *testing.T, file, ring []byte, rs []audit.Record, head audit.Checkpoint, want, name string) bool {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "audit"), 0o700), os.WriteFile(filepath.Join(dir, "creto.db"), file, 0o600),
		os.WriteFile(filepath.Join(dir, "audit", "front.ring"), ring, 0o600)); err != nil {
		t.Fatal(err)
	}
	d, err := db.Open(t.Context(), filepath.Join(dir, "creto.db"))
	if err != nil {
		return true
	}
	defer func() { _ = d.Close() }()
	problems := fsck(t, d)
	is, err := tables(t.Context(), d)
	changed := err != nil || is != want
	if changed && len(problems) == 0 {
		t.Errorf("%s: fsck finds nothing (err %v)", name, err)
	}
	if l, err := openOn(t, d, dir); err == nil {
		useDamaged(t, l, rs, head, name)
		_ = l.Close()
	}
	return len(problems) > 0
}

// useDamaged holds whatever a damaged log serves to what was logged.
func useDamaged(t *testing.T, l *localaudit.Log, rs []audit.Record, head audit.Checkpoint, name string) {
	t.Helper()
	check := func(e audit.Entry) {
		if e.Index < 0 || e.Index >= int64(len(rs)) || e.Record.ID != rs[e.Index].ID || e.Record.Resource != rs[e.Index].Resource || e.Record.Outcome != rs[e.Index].Outcome {
			t.Errorf("%s: record %d is served as another", name, e.Index)
		}
	}
	for _, f := range []audit.Filter{
		{Oldest: true, Limit: audit.MaxPage}, {Limit: audit.MaxPage}, {What: creto.CallModel, Limit: 200}, {Human: "alice", Limit: 200},
		{Outcome: audit.Denied, Limit: 200}, {Resource: "Model::m3", Limit: 200}, {Actor: "bot", Limit: 200},
	} {
		page, err := l.Query(t.Context(), f)
		if err != nil {
			continue // it says so
		}
		for _, e := range page {
			check(e)
		}
	}
	for i := 0; i < len(rs); i += 37 {
		e, err := l.Entry(t.Context(), rs[i].ID)
		if err != nil {
			continue // it says so, or its id was hit, which fsck says
		}
		check(e)
		proof, err := l.Proof(t.Context(), e.Index, head.Size)
		if err != nil {
			continue
		}
		if err := audit.VerifyProof(e.Leaf, e.Index, head.Size, head.Root, proof); err != nil {
			t.Errorf("%s: the proof of record %d that was served: %v", name, i, err)
		}
	}
	if now, err := l.Checkpoint(t.Context()); err == nil && now.Size == head.Size && now.Root != head.Root {
		t.Errorf("%s: another head of %d records is signed", name, head.Size)
	}
}
