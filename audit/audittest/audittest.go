// Package audittest is what every implementation of package audit must do.
package audittest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/pqc"
)

// Harness is an empty log and how to verify it.
type Harness struct {
	Log      audit.Log
	Provider pqc.Provider
	Keys     audit.LogKeys // of the checkpoints
}

// Signer returns a signer of heads whose keys are always the same.
//
// Errors: those of p and of audit.NewSigner.
func Signer(p pqc.Provider, origin string) (*audit.Signer, error) {
	key, err := p.SigningKeyFromSeed(pqc.MLDSA65Ed25519, make([]byte, pqc.CompositeSeedSize))
	if err != nil {
		return nil, err
	}
	return audit.NewSigner(p, key, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), origin)
}

// Run tests the logs that open returns, a fresh one a case.
func Run(t *testing.T, open func(*testing.T) Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"records come back":           testEntry,
		"every record is proven":      testProofs,
		"a retry is the same record":  testRetry,
		"queries page and filter":     testQuery,
		"signatures are kept":         testSigned,
		"incomplete ones are refused": testInvalid,
		"ping adds nothing":           testPing,
		"concurrent callers":          testConcurrent,
		"people are sealed in leaves": testPeople,
		"batches say what failed":     testBatch,
		"every head extends another":  testConsistency,
		"pages by time":               testTime,
		"following sees all, once":    testFollow,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// Record returns a complete record for tests.
func Record(what string, n int) audit.Record {
	return audit.Record{
		ID:   creto.NewUUID(),
		Who:  creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: creto.KindAgent, Name: "bot"},
		What: what, Resource: fmt.Sprintf("Model::m%d", n), Outcome: audit.Success,
	}
}

func add(t *testing.T, h Harness, r audit.Record) audit.RecordID {
	t.Helper()
	id, err := h.Log.Log(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func testEntry(t *testing.T, h Harness) {
	r := Record(creto.CallModel, 1)
	r.Detail = map[string]string{"b": "2", "a": "1"}
	id := add(t, h, r)
	e, err := h.Log.Entry(t.Context(), id)
	if err != nil || e.Record.ID != r.ID || e.Record.Stamp.IsZero() || e.Record.Detail["a"] != "1" {
		t.Fatalf("Entry = %+v, %v; want the record that was logged, stamped", e, err)
	}
	decoded, err := audit.DecodeRecord(e.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	if leaf, err := decoded.Encode(); err != nil || !bytes.Equal(leaf, e.Leaf) {
		t.Errorf("the leaf does not encode to itself (err %v)", err)
	}
	if _, err := h.Log.Entry(t.Context(), creto.NewUUID()); !errors.Is(err, fault.AuditNotFound) {
		t.Errorf("Entry of an unknown id = %v, want AuditNotFound", err)
	}
}

func testProofs(t *testing.T, h Harness) {
	const records = 37 // no power of two
	var ids []audit.RecordID
	for i := range records {
		ids = append(ids, add(t, h, Record(creto.CallModel, i)))
	}
	checkpoint, err := h.Log.Checkpoint(t.Context())
	if err != nil || checkpoint.Size < records {
		t.Fatalf("Checkpoint = size %d, %v; want at least %d", checkpoint.Size, err, records)
	}
	got, err := audit.VerifyCheckpoint(h.Provider, checkpoint.Note, h.Keys)
	if err != nil || got.Root != checkpoint.Root || got.Size != checkpoint.Size {
		t.Fatalf("VerifyCheckpoint = %+v, %v", got, err)
	}
	for i := 0; i < len(checkpoint.Note); i += 61 {
		flipped := bytes.Clone(checkpoint.Note)
		flipped[i] ^= 1
		if _, err := audit.VerifyCheckpoint(h.Provider, flipped, h.Keys); err == nil {
			t.Fatalf("a checkpoint with byte %d flipped verifies", i)
		}
	}
	for _, id := range ids {
		e, err := h.Log.Entry(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := h.Log.Proof(t.Context(), e.Index, checkpoint.Size)
		if err != nil {
			t.Fatal(err)
		}
		if err := audit.VerifyProof(e.Leaf, e.Index, checkpoint.Size, checkpoint.Root, proof); err != nil {
			t.Errorf("leaf %d: %v", e.Index, err)
		}
		e.Leaf[len(e.Leaf)/2] ^= 1
		if err := audit.VerifyProof(e.Leaf, e.Index, checkpoint.Size, checkpoint.Root, proof); !errors.Is(err, fault.AuditProofVerificationFailed) {
			t.Errorf("a changed leaf %d: %v, want AuditProofVerificationFailed", e.Index, err)
		}
	}
	if _, err := h.Log.Proof(t.Context(), checkpoint.Size, checkpoint.Size); !errors.Is(err, fault.AuditNotFound) {
		t.Errorf("Proof behind the end = %v, want AuditNotFound", err)
	}
}

func testRetry(t *testing.T, h Harness) {
	r := Record(creto.CallModel, 1)
	for range 3 {
		add(t, h, r)
	}
	if page, err := h.Log.Query(t.Context(), audit.Filter{}); err != nil || len(page) != 1 {
		t.Errorf("three times the same record are %d in the tree (err %v)", len(page), err)
	}
}

func testQuery(t *testing.T, h Harness) {
	for i := range 5 {
		add(t, h, Record(creto.CallModel, i))
	}
	denied := Record(creto.HTTPRequest, 9)
	denied.Outcome, denied.Who.Name = audit.Denied, "other"
	add(t, h, denied)
	for _, test := range []struct {
		filter audit.Filter
		want   int
	}{
		{audit.Filter{}, 6},
		{audit.Filter{What: creto.CallModel}, 5},
		{audit.Filter{Outcome: audit.Denied}, 1},
		{audit.Filter{Actor: "bot"}, 5},
		{audit.Filter{Actor: denied.Who.String()}, 1},
		{audit.Filter{Actor: "ot"}, 0},
		{audit.Filter{Limit: 2}, 2},
		{audit.Filter{What: "'; DROP TABLE audit_record; --"}, 0},
	} {
		page, err := h.Log.Query(t.Context(), test.filter)
		if err != nil || len(page) != test.want {
			t.Errorf("Query(%+v) = %d records, %v; want %d", test.filter, len(page), err, test.want)
		}
	}
	first, err := h.Log.Query(t.Context(), audit.Filter{Limit: 4})
	if err != nil {
		t.Fatal(err)
	}
	second, err := h.Log.Query(t.Context(), audit.Filter{Limit: 4, Before: first[3].Index})
	if err != nil || len(second) != 2 || second[0].Index != first[3].Index-1 {
		t.Errorf("the second page has %d records (err %v), want 2 that follow", len(second), err)
	}
}

func testSigned(t *testing.T, h Harness) {
	key, err := h.Provider.GenerateSigningKey(pqc.MLDSA65Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	public, err := h.Provider.Public(key)
	if err != nil {
		t.Fatal(err)
	}
	r := Record(creto.CallTool, 1)
	message, err := r.SigningBytes()
	if err != nil {
		t.Fatal(err)
	}
	sig, err := h.Provider.Sign(pqc.PurposeRecord, message, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Log.LogSigned(t.Context(), r, sig, public); err != nil {
		t.Errorf("LogSigned = %v", err)
	}
	other := Record(creto.CallTool, 2)
	id, err := h.Log.LogSigned(t.Context(), other, sig, public)
	if !errors.Is(err, fault.AuditInvalidSignature) {
		t.Errorf("LogSigned with another record's signature = %v, want AuditInvalidSignature", err)
	}
	e, err := h.Log.Entry(t.Context(), id)
	if err != nil || e.Record.SignatureStatus != "invalid" || !bytes.Equal(e.Record.Signature.Bytes, sig.Bytes) {
		t.Errorf("the evidence is %q (err %v), want it kept as invalid", e.Record.SignatureStatus, err)
	}
}

func testInvalid(t *testing.T, h Harness) {
	for name, edit := range map[string]func(*audit.Record){
		"no actor":   func(r *audit.Record) { r.Who = creto.ID{} },
		"no event":   func(r *audit.Record) { r.What = "" },
		"no outcome": func(r *audit.Record) { r.Outcome = "" },
		"no UTF-8":   func(r *audit.Record) { r.Detail = map[string]string{"x": "\xff"} },
		"too large":  func(r *audit.Record) { r.Why = strings.Repeat("x", audit.MaxRecordBytes) },
	} {
		r := Record(creto.CallModel, 1)
		edit(&r)
		if _, err := h.Log.Log(t.Context(), r); !errors.Is(err, fault.AuditValidationFailed) {
			t.Errorf("Log with %s = %v, want AuditValidationFailed", name, err)
		}
	}
}

func testPing(t *testing.T, h Harness) {
	add(t, h, Record(creto.CallModel, 1))
	for range 3 {
		if err := h.Log.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if page, err := h.Log.Query(t.Context(), audit.Filter{}); err != nil || len(page) != 1 {
		t.Errorf("after three pings the log has %d records (err %v), want 1", len(page), err)
	}
}

func testConcurrent(t *testing.T, h Harness) {
	const callers, each = 8, 50
	var group sync.WaitGroup
	for c := range callers {
		group.Go(func() {
			for i := range each {
				r := Record(creto.CallModel, c*each+i)
				if i%5 == 0 {
					r.Outcome = audit.Denied // durable
				}
				if _, err := h.Log.Log(t.Context(), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	checkpoint, err := h.Log.Checkpoint(t.Context())
	if err != nil || checkpoint.Size != callers*each {
		t.Errorf("Checkpoint = size %d, %v; want %d", checkpoint.Size, err, callers*each)
	}
}

// Human returns a human for tests.
func Human(name string) creto.ID {
	return creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: creto.KindHuman, Name: name}
}

func testPeople(t *testing.T, h Harness) {
	alice, bob := Human("alice"), Human("bob")
	r := Record(creto.CallModel, 1)
	r.OnBehalfOf, r.Why = alice, "alice is in a hurry"
	r.Consents = []audit.Consent{{ID: "c", Approver: bob.String(), Human: true}}
	r.Detail = map[string]string{"email": "alice@example.com", "status": "200", "by": bob.String()}
	want := r
	id := add(t, h, r)
	e, err := h.Log.Entry(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	got := e.Record
	if got.OnBehalfOf != want.OnBehalfOf || got.Why != want.Why || got.Consents[0].Approver != bob.String() || !maps.Equal(got.Detail, want.Detail) {
		t.Errorf("Entry = %+v, want what was logged", got)
	}
	for _, secret := range []string{"alice", "bob", "hurry", "example.com"} {
		if bytes.Contains(e.Leaf, []byte(secret)) {
			t.Errorf("the leaf says %q", secret)
		}
	}
	removed := Record(audit.EventHumanRemoved, 1)
	removed.Who, removed.Resource = bob, "Human::alice"
	id = add(t, h, removed)
	second, err := h.Log.Entry(t.Context(), id)
	if err != nil || second.Record.Who != bob || second.Record.Resource != "Human::alice" || bytes.Contains(second.Leaf, []byte("alice")) {
		t.Errorf("Entry = %+v, %v", second.Record, err)
	}
	for _, test := range []struct {
		filter audit.Filter
		want   int
	}{
		{audit.Filter{Human: "alice"}, 1},
		{audit.Filter{Human: alice.String()}, 1},
		{audit.Filter{Human: "bob"}, 1},
		{audit.Filter{Actor: "bob"}, 1},
		{audit.Filter{Actor: bob.String()}, 1},
		{audit.Filter{Actor: "alice"}, 0},
		{audit.Filter{Human: "lice"}, 0},
		{audit.Filter{Human: "%"}, 0},
		{audit.Filter{Resource: "Human::alice"}, 1},
		{audit.Filter{Resource: "Model::*"}, 1},
		{audit.Filter{Resource: "Model::m_"}, 0},
		{audit.Filter{What: audit.EventInferenceCalled}, 1},
	} {
		page, err := h.Log.Query(t.Context(), test.filter)
		if err != nil || len(page) != test.want {
			t.Errorf("Query(%+v) = %d records, %v; want %d", test.filter, len(page), err, test.want)
		}
	}
	r = Record(creto.CallModel, 2)
	r.Personal = []audit.Personal{{}}
	if _, err := h.Log.Log(t.Context(), r); !errors.Is(err, fault.AuditValidationFailed) {
		t.Errorf("Log of a sealed record = %v, want AuditValidationFailed", err)
	}
}

func testBatch(t *testing.T, h Harness) {
	bad := Record(creto.CallModel, 2)
	bad.Outcome = ""
	denied := Record(creto.CallModel, 3)
	denied.Outcome = audit.Denied
	batch := []audit.Record{Record(creto.CallModel, 1), bad, denied}
	batch[0].ID = audit.RecordID{}
	errs := h.Log.LogBatch(t.Context(), batch)
	if len(errs) != 3 || errs[0] != nil || !errors.Is(errs[1], fault.AuditValidationFailed) || errs[2] != nil {
		t.Fatalf("LogBatch = %v, want the second refused", errs)
	}
	for _, i := range []int{0, 2} {
		if e, err := h.Log.Entry(t.Context(), batch[i].ID); err != nil || e.Record.Resource != batch[i].Resource {
			t.Errorf("record %d: %v, %v", i, e.Record.Resource, err)
		}
	}
	if errs := h.Log.LogBatch(t.Context(), nil); len(errs) != 0 {
		t.Errorf("LogBatch of nothing = %v", errs)
	}
}

func testConsistency(t *testing.T, h Harness) {
	var heads []audit.Checkpoint
	for i := range 12 {
		for n := range i + 1 {
			add(t, h, Record(creto.CallModel, n))
		}
		head, err := h.Log.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, head)
	}
	for i, from := range heads {
		for _, to := range heads[i:] {
			proof, err := h.Log.Consistency(t.Context(), from.Size, to.Size)
			if err != nil {
				t.Fatal(err)
			}
			if err := audit.VerifyConsistency(from.Size, from.Root, to.Size, to.Root, proof); err != nil {
				t.Errorf("%d to %d: %v", from.Size, to.Size, err)
			}
			forged := from.Root
			forged[0] ^= 1
			if err := audit.VerifyConsistency(from.Size, forged, to.Size, to.Root, proof); !errors.Is(err, fault.AuditProofVerificationFailed) {
				t.Errorf("%d to %d from another root: %v, want AuditProofVerificationFailed", from.Size, to.Size, err)
			}
		}
	}
	last := heads[len(heads)-1].Size
	for _, bad := range [][2]int64{{-1, 1}, {2, 1}, {1, last + 1}} {
		if _, err := h.Log.Consistency(t.Context(), bad[0], bad[1]); !errors.Is(err, fault.AuditNotFound) {
			t.Errorf("Consistency%v = %v, want AuditNotFound", bad, err)
		}
	}
}

// Records are found by their time, however late they arrived, and every page goes
// on where the one before ended.
func testTime(t *testing.T, h Harness) {
	const records = 30
	at := func(i int) int64 { return int64(1_000_000 + i*7%records) } // each second once, in no order
	for i := range records {
		r := Record(creto.CallModel, i)
		r.Stamp = creto.Timestamp{Logical: uint64(i + 1), Physical: at(i) * int64(time.Second), Source: creto.SourceConsensus, Node: "n"}
		add(t, h, r)
	}
	f := audit.Filter{Since: time.Unix(1_000_005, 0), Until: time.Unix(1_000_025, 0), Limit: 6}
	var seen []int64
	for {
		page, err := h.Log.Query(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page {
			seen = append(seen, e.Record.Stamp.Physical/int64(time.Second))
		}
		if len(page) < f.Limit {
			break
		}
		f.Before = page[len(page)-1].Index
		if f.Before == 0 { // 0 would ask for the newest again
			break
		}
	}
	var want []int64
	for i := records - 1; i >= 0; i-- {
		if s := at(i); s >= 1_000_005 && s < 1_000_025 {
			want = append(want, s)
		}
	}
	if !slices.Equal(seen, want) {
		t.Errorf("the pages have the seconds %v, want %v", seen, want)
	}
	page, err := h.Log.Query(t.Context(), audit.Filter{Oldest: true, From: 3, Limit: 5})
	if err != nil || len(page) != 5 || page[0].Index != 3 || page[4].Index != 7 {
		t.Errorf("Query by index = %d records, %v", len(page), err)
	}
	for _, bad := range []audit.Filter{{Oldest: true, Before: 1}, {From: 1}, {Limit: -1}} {
		if _, err := h.Log.Query(t.Context(), bad); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("Query(%+v) = %v, want InvalidArgument", bad, err)
		}
	}
}

func testFollow(t *testing.T, h Harness) {
	const records = 40
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := errors.New("all seen")
	var group sync.WaitGroup
	group.Go(func() {
		for i := range records {
			r := Record(creto.CallModel, i)
			if i%2 == 1 {
				r.What = creto.CallTool
			}
			if _, err := h.Log.Log(ctx, r); err != nil {
				t.Error(err)
			}
		}
	})
	var indexes []int64
	err := audit.Follow(ctx, h.Log, audit.Filter{What: creto.CallTool, Limit: 3}, func(e audit.Entry) error {
		if indexes = append(indexes, e.Index); len(indexes) == records/2 {
			return done
		}
		return nil
	})
	group.Wait()
	if !errors.Is(err, done) || !slices.IsSorted(indexes) || len(slices.Compact(indexes)) != records/2 {
		t.Errorf("Follow = %v after the indexes %v", err, indexes)
	}
	short, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	if _, err := h.Log.Wait(short, records); !errors.Is(err, fault.AuditTimeout) {
		t.Errorf("Wait = %v, want AuditTimeout", err)
	}
}
