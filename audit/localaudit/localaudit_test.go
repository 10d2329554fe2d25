package localaudit_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/consensus/localconsensus"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	"creto.dev/internal/journal"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

const origin = "test.local/log"

type opened struct {
	log  *localaudit.Log
	db   *sql.DB
	keys audit.LogKeys
}

// open opens the log in dir, with a signing key that does not change.
func open(t testing.TB, dir string, edit func(*localaudit.Config)) opened {
	t.Helper()
	d := dbtest.OpenIn(t, dir)
	l, signer, err := openWith(t, d, dir, edit)
	if err != nil {
		t.Fatal(err)
	}
	return opened{log: l, db: d, keys: signer.Keys()}
}

// openOn is open on a database.
func openOn(t testing.TB, d *sql.DB, dir string) (*localaudit.Log, error) {
	l, _, err := openWith(t, d, dir, nil)
	return l, err
}

func openWith(t testing.TB, d *sql.DB, dir string, edit func(*localaudit.Config)) (*localaudit.Log, *audit.Signer, error) {
	t.Helper()
	clock, err := localconsensus.Open(t.Context(), d, "n1")
	if err != nil {
		return nil, nil, err
	}
	p := localpqc.New()
	signer, err := audittest.Signer(p, origin)
	if err != nil {
		return nil, nil, err
	}
	cfg := localaudit.Config{Intake: intake.Config{Journal: journal.Config{Dir: filepath.Join(dir, "audit"), RingBytes: 1 << 20}}}
	if edit != nil {
		edit(&cfg)
	}
	key := pqc.NewSymmetricKey(pqc.AES256GCM, make([]byte, pqc.SymmetricKeySize))
	l, err := localaudit.Open(t.Context(), cfg, d, p, clock, signer, key, slog.New(slog.DiscardHandler))
	return l, signer, err
}

func TestLog(t *testing.T) {
	audittest.Run(t, func(t *testing.T) audittest.Harness {
		o := open(t, t.TempDir(), nil)
		run(t, o.log)
		return audittest.Harness{Log: o.log, Provider: localpqc.New(), Keys: o.keys}
	})
}

// What was accepted before a life ended without a farewell is there in the
// next, in its order and once.
func TestNextLife(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir, nil)
	var ids []audit.RecordID
	for i := range 10 {
		id, err := first.log.Log(t.Context(), audittest.Record(creto.CallModel, i))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if err := first.db.Close(); err != nil {
		t.Fatal(err)
	}
	second := open(t, dir, nil)
	for i, id := range ids {
		if e, err := second.log.Entry(t.Context(), id); err != nil || e.Index != int64(i) {
			t.Errorf("record %d is at %d (err %v)", i, e.Index, err)
		}
	}
}

// The ring goes round many times, with records of every length.
func TestRingLaps(t *testing.T) {
	dir := t.TempDir()
	o := open(t, dir, func(c *localaudit.Config) { c.Intake.Journal.RingBytes = 8 << 10 })
	const records = 300
	for i := range records {
		r := audittest.Record(creto.CallModel, i)
		r.Why = string(make([]byte, i*7%900))
		if _, err := o.log.Log(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if _, err := o.log.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if c, err := o.log.Checkpoint(t.Context()); err != nil || c.Size != records {
		t.Errorf("Checkpoint = size %d, %v; want %d", c.Size, err, records)
	}
}

// A full log makes its callers wait, and says so when their time is up.
func TestFull(t *testing.T) {
	o := open(t, t.TempDir(), func(c *localaudit.Config) { c.Intake.Journal.Slots = 2 })
	for i := range 2 {
		if _, err := o.log.Log(t.Context(), audittest.Record(creto.CallModel, i)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := o.log.Log(ctx, audittest.Record(creto.CallModel, 3)); !errors.Is(err, fault.AuditUnavailable) {
		t.Errorf("Log into a full ring = %v, want AuditUnavailable", err)
	}
}

// What the disk damaged while it waited is missed, and the log says so in a
// record that it signs. Nothing else is kept back.
func TestDamagedFront(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir, nil)
	var ids []audit.RecordID
	for i := range 3 {
		id, err := first.log.Log(t.Context(), audittest.Record(creto.CallModel, i))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if err := errors.Join(first.log.Close(), first.db.Close()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "audit", "front.ring")
	ring, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	second := bytes.Index(ring, []byte("Model::m1"))
	ring[second] ^= 1
	if err := os.WriteFile(path, ring, 0o600); err != nil {
		t.Fatal(err)
	}
	o := open(t, dir, func(c *localaudit.Config) { c.Intake.Flush = time.Millisecond })
	run(t, o.log)
	gap := await(t, o.log, audit.EventAuditGap)
	if gap.Record.Detail["lost"] != "1" || gap.Record.SignatureStatus != "valid" || gap.Record.Who.Name != "creto" {
		t.Errorf("the gap's record says %+v", gap.Record)
	}
	for i, id := range ids {
		if _, err := o.log.Entry(t.Context(), id); (err == nil) != (i != 1) {
			t.Errorf("record %d: %v", i, err)
		}
	}
}

// What is missing is recorded before the log goes on behind it, and once, however
// lives end: one that did not get the record into the tree, one that got it there
// and died at once.
func TestGapOnce(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir, nil)
	for i := range 3 {
		if _, err := first.log.Log(t.Context(), audittest.Record(creto.CallModel, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.log.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "audit", "front.ring")
	ring, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ring[bytes.Index(ring, []byte("Model::m1"))] ^= 1
	if err := os.WriteFile(path, ring, 0o600); err != nil {
		t.Fatal(err)
	}
	mend := dbtest.Break(t, first.db, "INSERT ON audit_record")
	for life := range 4 {
		o := open(t, dir, nil)
		if life == 2 {
			mend()
		}
		if err := o.log.Flush(t.Context()); (err == nil) != (life >= 2) {
			t.Fatalf("Flush in life %d = %v", life, err)
		}
		if err := errors.Join(o.log.Close(), o.db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	o := open(t, dir, nil)
	lost := []string{}
	for _, e := range entries(t, o.log) {
		if e.Record.What == audit.EventAuditGap {
			lost = append(lost, e.Record.Detail["lost"])
		}
	}
	if !slices.Equal(lost, []string{"1"}) {
		t.Errorf("records of gaps say that %q are lost, want 1 once", lost)
	}
}

// What comes again among what is new is passed over, wherever in a batch it
// stands, and leaves no gap.
func TestSomeComeAgain(t *testing.T) {
	o := open(t, t.TempDir(), nil)
	random := rand.New(rand.NewPCG(3, 9))
	var want []audit.RecordID
	for batch := range 12 {
		var rs []audit.Record
		for n := range 40 * batch {
			r := audittest.Record(creto.CallModel, n)
			r.ID = creto.NewUUID()
			if len(want) > 0 && random.IntN(batch) == 0 {
				r.ID = want[random.IntN(len(want))]
			} else {
				want = append(want, r.ID)
			}
			rs = append(rs, r)
		}
		if err := errors.Join(append(o.log.LogBatch(t.Context(), rs), o.log.Flush(t.Context()))...); err != nil {
			t.Fatal(err)
		}
	}
	var got []audit.RecordID
	for _, e := range entries(t, o.log) {
		if e.Index != int64(len(got)) {
			t.Fatalf("record %d has the index %d", len(got), e.Index)
		}
		got = append(got, e.Record.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the log has %d records, want %d in the order in which they came first", len(got), len(want))
	}
	if places, checked := problems(t, o); len(places) > 0 || checked.Size != int64(len(want)) {
		t.Errorf("Fsck = %+v, %q", checked, places)
	}
}

// Nothing of a batch overtakes what found no room before it: a retry would come
// too late.
func TestBatchOrder(t *testing.T) {
	o := open(t, t.TempDir(), func(c *localaudit.Config) { c.Intake.Journal.RingBytes = 4096 })
	large := func(n int) audit.Record {
		r := audittest.Record(creto.CallModel, n)
		r.Why = string(make([]byte, 1300))
		return r
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	batch := []audit.Record{large(0), large(1), large(2), audittest.Record(creto.CallModel, 3)}
	for i, err := range o.log.LogBatch(ctx, batch) {
		if refused := errors.Is(err, fault.AuditUnavailable); refused != (i >= 2) {
			t.Errorf("record %d of the batch: %v", i, err)
		}
	}
}

// await returns the first entry of an event.
func await(t *testing.T, l audit.Log, event string) audit.Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var found audit.Entry
	err := audit.Follow(ctx, l, audit.Filter{What: event}, func(e audit.Entry) error {
		found = e
		return errFound
	})
	if !errors.Is(err, errFound) {
		t.Fatalf("no %s: %v", event, err)
	}
	return found
}

var errFound = errors.New("found")

// run runs the log until the test ends.
func run(t *testing.T, l *localaudit.Log) {
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-done, l.Close()); err != nil {
			t.Error(err)
		}
	})
}

// Once a person is erased their key is in no file of the database, nor is what was
// sealed under it readable by anybody; proofs hold, and the person's next record is
// a new person's.
func TestErase(t *testing.T) {
	dir := t.TempDir()
	o := open(t, dir, nil)
	alice, operator := audittest.Human("alice"), audittest.Human("operator")
	r := audittest.Record(creto.CallModel, 1)
	r.OnBehalfOf, r.Why = alice, "she said so"
	id, err := o.log.Log(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	before, err := o.log.Entry(t.Context(), id)
	if err != nil || before.Record.Why != "she said so" {
		t.Fatalf("Entry = %+v, %v", before.Record, err)
	}
	var sealed []byte
	if err := o.db.QueryRowContext(t.Context(), "SELECT sealed FROM audit_subject WHERE principal = $1", alice.String()).Scan(&sealed); err != nil {
		t.Fatal(err)
	}
	onDisk := func() (found bool) {
		for _, name := range []string{"creto.db", "creto.db-wal"} {
			data, err := os.ReadFile(filepath.Join(dir, name))
			found = found || err == nil && bytes.Contains(data, sealed[8:40])
		}
		return found
	}
	sqlite := dbtest.Engine(t) == "sqlite"
	if sqlite && !onDisk() {
		t.Fatal("the key is not where the test looks for it")
	}
	if _, err := o.log.Erase(t.Context(), audittest.Human("nobody"), operator); !errors.Is(err, fault.AuditNotFound) {
		t.Errorf("Erase of nobody = %v, want AuditNotFound", err)
	}
	pseudonym, err := o.log.Erase(t.Context(), alice, operator)
	if err != nil || !audit.IsPseudonym(pseudonym) {
		t.Fatalf("Erase = %v, %v", pseudonym, err)
	}
	if sqlite && onDisk() {
		t.Error("the key is still in the database's files")
	}
	after, err := o.log.Entry(t.Context(), id)
	if err != nil || after.Record.OnBehalfOf != pseudonym || after.Record.Why != "" || !bytes.Equal(after.Leaf, before.Leaf) {
		t.Errorf("Entry = %+v, %v; want the pseudonym and the same leaf", after.Record, err)
	}
	if keys, err := o.log.Disclose(t.Context(), after); err != nil || len(keys) != 0 {
		t.Errorf("Disclose = %v, %v", keys, err)
	}
	head, err := o.log.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	proof, err := o.log.Proof(t.Context(), after.Index, head.Size)
	if err != nil || audit.VerifyProof(after.Leaf, after.Index, head.Size, head.Root, proof) != nil {
		t.Errorf("the record is not proven any more: %v", err)
	}
	if page, err := o.log.Query(t.Context(), audit.Filter{Human: "alice"}); err != nil || len(page) != 0 {
		t.Errorf("the log still finds %d records of alice, %v", len(page), err)
	}
	if page, err := o.log.Query(t.Context(), audit.Filter{Human: pseudonym.String()}); err != nil || len(page) != 1 {
		t.Errorf("the log finds %d records of the pseudonym, %v", len(page), err)
	}
	r.ID = audit.RecordID{}
	if id, err = o.log.Log(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	again, err := o.log.Entry(t.Context(), id)
	if err != nil || again.Record.OnBehalfOf != alice || again.Record.Personal[0].Subject == after.Record.Personal[0].Subject {
		t.Errorf("after the erasure Entry = %+v, %v; want a new person of the name", again.Record, err)
	}
}

// A segment that is not whole stays, whatever of its index is stored.
func TestRetainPart(t *testing.T) {
	o := open(t, t.TempDir(), func(c *localaudit.Config) { c.Retention = time.Hour })
	rs := varied(1300)
	for i := range rs {
		rs[i].Stamp = creto.Timestamp{Logical: uint64(i + 1), Physical: time.Now().Add(-48 * time.Hour).UnixNano(), Source: creto.SourceConsensus, Node: "n"}
	}
	if err := errors.Join(o.log.LogBatch(t.Context(), rs)...); err != nil {
		t.Fatal(err)
	}
	finish(t, o)
	if err := o.log.Retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if page, err := o.log.Query(t.Context(), audit.Filter{Oldest: true, Limit: 1}); err != nil || len(page) != 1 || page[0].Index != 0 {
		t.Errorf("the oldest record is %v, %v", page, err)
	}
}

// Old segments leave the database for the archive; everything is proven as before,
// and the log says that they left.
func TestRetain(t *testing.T) {
	for _, archive := range []string{"", "archive"} {
		t.Run("archive="+archive, func(t *testing.T) {
			dir := t.TempDir()
			o := open(t, dir, func(c *localaudit.Config) {
				c.Retention = 24 * time.Hour
				if archive != "" {
					c.Archive = filepath.Join(dir, archive)
				}
			})
			const records = 9000 // two segments and a part
			old := time.Now().Add(-48 * time.Hour)
			rs := make([]audit.Record, records)
			for i := range rs {
				rs[i] = audittest.Record(creto.CallModel, i)
				at := old
				if i > 8191 {
					at = time.Now()
				}
				rs[i].Stamp = creto.Timestamp{Logical: uint64(i + 1), Physical: at.UnixNano(), Source: creto.SourceConsensus, Node: "n"}
			}
			for batch := range slices.Chunk(rs, 1000) { // the ring holds no more
				if err := errors.Join(append(o.log.LogBatch(t.Context(), batch), o.log.Flush(t.Context()))...); err != nil {
					t.Fatal(err)
				}
			}
			seen, err := o.log.Checkpoint(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			tile, err := o.log.Tile(t.Context(), tlog.Tile{H: 8, L: -1, N: 3, W: 256})
			if err != nil {
				t.Fatal(err)
			}
			if err := o.log.Retain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := o.log.Entry(t.Context(), rs[100].ID); !errors.Is(err, fault.AuditNotFound) {
				t.Errorf("Entry of an old record = %v, want AuditNotFound", err)
			}
			page, err := o.log.Query(t.Context(), audit.Filter{Oldest: true, Limit: 1})
			if err != nil || len(page) != 1 || page[0].Index != 8192 {
				t.Errorf("the oldest record here is %d, %v; want 8192", page[0].Index, err)
			}
			again, err := o.log.Tile(t.Context(), tlog.Tile{H: 8, L: -1, N: 3, W: 256})
			if archive != "" && (err != nil || !bytes.Equal(again, tile)) {
				t.Errorf("the archived bundle is another: %v", err)
			}
			if archive == "" && !errors.Is(err, fault.AuditNotFound) {
				t.Errorf("Tile of what is gone = %v, want AuditNotFound", err)
			}
			proof, err := o.log.Proof(t.Context(), 768, seen.Size)
			if first := tile[2 : 2+int(binary.BigEndian.Uint16(tile))]; err != nil || audit.VerifyProof(first, 768, seen.Size, seen.Root, proof) != nil {
				t.Errorf("an old record is not proven any more: %v", err)
			}
			now, err := o.log.Checkpoint(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			consistent, err := o.log.Consistency(t.Context(), seen.Size, now.Size)
			if err != nil || audit.VerifyConsistency(seen.Size, seen.Root, now.Size, now.Root, consistent) != nil {
				t.Errorf("the log is not what it was: %v", err)
			}
			sealed, err := o.log.Query(t.Context(), audit.Filter{What: audit.EventSegmentSealed})
			if err != nil || len(sealed) != 2 || sealed[0].Record.Detail["first"] != "4096" || sealed[0].Record.SignatureStatus != "valid" {
				t.Errorf("%d records say what left, %v", len(sealed), err)
			}
			if problems := fsck(t, o.db); len(problems) > 0 {
				t.Errorf("Fsck: %+v", problems)
			}
			if err := errors.Join(o.log.Close(), o.db.Close()); err != nil {
				t.Fatal(err)
			}
			o = open(t, dir, nil)
			if _, err := o.log.Log(t.Context(), audittest.Record(creto.CallModel, 1)); err != nil {
				t.Fatal(err)
			}
			if head, err := o.log.Checkpoint(t.Context()); err != nil || head.Size != now.Size+1 {
				t.Errorf("the next life has %d records, %v", head.Size, err)
			}
		})
	}
}

func FuzzParseRecord(f *testing.F) {
	r := audittest.Record(creto.CallModel, 1)
	r.Stamp = creto.Timestamp{Logical: 1, Physical: 2, Source: creto.SourceConsensus, Node: "n"}
	leaf, err := r.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(leaf)
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := audit.DecodeRecord(data); err == nil {
			if again, err := r.Encode(); err == nil && string(again) != string(data) {
				t.Errorf("two encodings of one record: %x and %x", data, again)
			}
		}
	})
}
