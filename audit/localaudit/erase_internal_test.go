package localaudit

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"math"
	"path/filepath"
	"sync"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/intake"
	"creto.dev/consensus/localconsensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/db/dbtest"
	"creto.dev/internal/journal"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

func openInternal(t *testing.T) *Log {
	t.Helper()
	d, p := dbtest.Open(t), localpqc.New()
	clock, err := localconsensus.Open(t.Context(), d, "n1")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audittest.Signer(p, "test.local/log")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Intake: intake.Config{Journal: journal.Config{Dir: filepath.Join(t.TempDir(), "audit"), RingBytes: 1 << 20}}}
	l, err := Open(t.Context(), cfg, d, p, clock, signer, pqc.NewSymmetricKey(pqc.AES256GCM, make([]byte, pqc.SymmetricKeySize)), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// A batch under way seals with a person's key while that person is erased, and may
// have made the one that they are afterwards. Neither key may turn into zeros: a box
// under those is open to anybody.
func TestForgetLeavesKeysInUse(t *testing.T) {
	l := openInternal(t)
	alice := audittest.Human("alice")
	subject := func() (s audit.Subject) {
		t.Helper()
		err := db.Tx(t.Context(), l.db, func(tx *sql.Tx) (err error) {
			s, err = l.people.subject(t.Context(), tx, alice)
			return err
		})
		l.people.settle(err == nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := subject()
	if err := l.destroy(t.Context(), before.ID, 1); err != nil {
		t.Fatal(err)
	}
	l.people.forget(alice, before.ID)
	between := subject()
	l.people.forget(alice, before.ID) // of an erasure that comes a moment later
	for name, key := range map[string][]byte{"the erased person's": before.Key, "the next one's": between.Key} {
		if bytes.Equal(key, make([]byte, subjectKeyBytes)) {
			t.Errorf("%s key was overwritten while it is in use", name)
		}
	}
	if after := subject(); between.ID == before.ID || after.ID != between.ID || !bytes.Equal(after.Key, between.Key) {
		t.Errorf("the persons are %s, %s and %s; want another one, and then the same", before.ID, between.ID, after.ID)
	}
}

// A person who is erased while records of theirs enter the tree is sealed there
// under a key that existed, and not under the zeros that are left of it.
func TestEraseWhileSealing(t *testing.T) {
	l := openInternal(t)
	alice := audittest.Human("alice")
	ctx, cancel := context.WithCancel(t.Context())
	var logging sync.WaitGroup
	logging.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			r := audittest.Record(creto.CallModel, i)
			r.OnBehalfOf = alice
			if _, err := l.Log(t.Context(), r); err != nil {
				t.Error(err)
			}
			if i%50 == 0 {
				if err := l.Flush(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for erased := 0; erased < 5; {
		switch pseudonym, err := l.Erase(t.Context(), alice, l.cfg.Self); {
		case !pseudonym.IsZero(): // and others may be reading, so that the database's own log is not emptied
			erased++
		case !errors.Is(err, fault.AuditNotFound): // nothing was logged since
			t.Error(err)
			erased = math.MaxInt
		}
	}
	cancel()
	logging.Wait()
	var from int64
	for {
		page, err := l.Query(t.Context(), audit.Filter{Oldest: true, From: from, Limit: audit.MaxPage})
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			from = e.Index + 1
			sealed, err := audit.DecodeRecord(e.Leaf)
			if err != nil {
				t.Fatal(err)
			}
			for _, box := range sealed.Personal {
				key, err := audit.Subject{ID: box.Subject, Key: make([]byte, subjectKeyBytes)}.RecordKey(sealed.ID)
				if err != nil {
					t.Fatal(err)
				}
				if opened, err := sealed.Open(func(audit.Personal) []byte { return key }); err == nil {
					t.Fatalf("anybody can open the box of record %d: %s", e.Index, opened.OnBehalfOf)
				}
			}
		}
	}
}

// What was prepared for somebody who is erased before it is taken is sealed for whom
// they are then.
func TestEraseWhatIsPrepared(t *testing.T) {
	l := openInternal(t)
	alice := audittest.Human("alice")
	log := func(why string) audit.Record {
		r := audittest.Record(creto.CallModel, 1)
		r.OnBehalfOf, r.Why = alice, why
		id, err := l.Log(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		r.ID = id
		return r
	}
	log("before")
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := log("behind")
	data, err := r.Encode()
	if err != nil {
		r.Stamp, err = l.clock.Now(t.Context())
		if err == nil {
			data, err = r.Encode()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	take := l.Prepare(t.Context(), []journal.Frame{{Sequence: 2, Payload: string(data)}})
	var s audit.Subject
	if err := db.Tx(t.Context(), l.db, func(tx *sql.Tx) (err error) { s, err = l.people.subject(t.Context(), tx, alice); return err }); err != nil {
		t.Fatal(err)
	}
	if err := l.destroy(t.Context(), s.ID, 1); err != nil {
		t.Fatal(err)
	}
	l.people.forget(alice, s.ID)
	if err := take(t.Context()); err != nil {
		t.Fatal(err)
	}
	e, err := l.entryAt(t.Context(), l.tree(), 1)
	if err != nil || e.Record.Why != "behind" || e.Record.OnBehalfOf != alice || e.Record.Personal[0].Subject == s.ID {
		t.Errorf("the record is %+v, %v: nobody has its key", e.Record, err)
	}
}

// An index that others have does not change.
func TestRecentStays(t *testing.T) {
	rows := make([]row, 300)
	words := newTermCache()
	for i := range rows {
		r := audittest.Record(creto.CallModel, i%7)
		rows[i] = row{at: int64(i), terms: words.of(&r)}
	}
	one := new(recent).with(0, rows[:100])
	bits := one.bundles[0].bits[0]
	two := one.with(100, rows[100:])
	if one.bundles[0].bits[0] != bits || len(one.bundles) != 1 || one.bundles[0].span != (span{0, 99}) {
		t.Error("what was added changed the index of before")
	}
	if two.bundles[0].bits[0] == bits || len(two.bundles) != 2 || two.bundles[1].span != (span{256, 299}) {
		t.Errorf("the index of 300 records has %d bundles", len(two.bundles))
	}
}
