package export_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/export"
	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	"creto.dev/pqc"
)

const origin = "test.local/log"

// full is an entry in which every field says something.
func full() audit.Entry {
	digest := func(b byte) (d creto.Digest) { return creto.Digest(bytes.Repeat([]byte{b}, len(d))) }
	id := func(kind creto.Kind, name string) creto.ID {
		return creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: kind, Name: name}
	}
	policy := audit.PolicyRef{ID: "agents/bot#0", Digest: digest(3)}
	r := audit.Record{
		ID:    creto.UUID(bytes.Repeat([]byte{0x11}, 16)),
		Stamp: creto.Timestamp{Logical: 1<<40 | 7, Physical: time.Date(2026, 11, 22, 9, 30, 0, 123456789, time.UTC).UnixNano(), Source: creto.SourceConsensus, Node: "n1"},
		Who:   id(creto.KindAgent, "bot"), OnBehalfOf: id(creto.KindHuman, "alice"), Chain: digest(1), What: creto.CallModel, Resource: "Model::m",
		Args: digest(2), Why: "because \"of\" <this>", Outcome: audit.Denied,
		Decision: &audit.Decision{Kind: "deny", Reason: "no permit", Policies: []audit.PolicyRef{policy}, Version: digest(4)},
		Consents: []audit.Consent{{Request: digest(5), ID: "f47ac10b-58cc-4372-a567-0e02b2c3d479", Approver: id(creto.KindHuman, "bob").String(), Channel: "console", Verification: "passkey", Human: true, Policy: policy, ExpiresNS: 1}},
		Usage:    &audit.Usage{PromptTokens: 3, CompletionTokens: 4, Estimated: true},
		Sandbox:  "run-1", Isolation: "gvisor", Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		Detail:    map[string]string{"http_status": "403", "method": "POST"},
		Signature: &pqc.Signature{Algorithm: pqc.MLDSA65Ed25519, Bytes: []byte("signature"), Key: "key-1"}, SignatureStatus: "valid",
		Personal: []audit.Personal{{Subject: creto.UUID(bytes.Repeat([]byte{0x22}, 16)), Commitment: []byte("c"), Box: []byte("b")}},
	}
	return audit.Entry{Record: r, Index: 41, Leaf: []byte("the leaf")}
}

// TestGolden compares what each format makes of a record with every field.
func TestGolden(t *testing.T) {
	for _, f := range []export.Format{export.JSONLines, export.CloudEvents, export.OCSF} {
		got, err := f.EncodeLine(origin, full())
		if err != nil {
			t.Fatal(err)
		}
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, append(got, '\n'), "", "  "); err != nil {
			t.Fatal(err)
		}
		golden(t, string(f)+".json", pretty.Bytes())
	}
	if _, err := export.OTLP.EncodeLine(origin, full()); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("a line of OTLP = %v, want InvalidArgument", err)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") == "1" {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what it was (UPDATE=1 rewrites it), %v:\n%s", name, err, got)
	}
}

// TestFullIsFull: a field that is added to a record must get a value above, and
// with it a place in each format.
func TestFullIsFull(t *testing.T) {
	r := full().Record
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if zero := jsonZeros("", mustDecode(t, data)); len(zero) > 0 {
		t.Errorf("no value for %v", zero)
	}
}

func mustDecode(t *testing.T, data []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// jsonZeros returns where v is empty.
func jsonZeros(path string, v any) (paths []string) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			paths = append(paths, jsonZeros(path+"/"+k, v[k])...)
		}
	case []any:
		if len(v) == 0 {
			return []string{path}
		}
		for i, x := range v {
			paths = append(paths, jsonZeros(path+"/"+strconv.Itoa(i), x)...)
		}
	default:
		if v == nil || v == "" || v == 0.0 || v == false {
			return []string{path}
		}
	}
	return paths
}

// entries returns n small ones, from index from on.
func entries(from, n int64) (list []audit.Entry) {
	for i := range n {
		e := full()
		e.Index = from + i
		e.Record.ID[15] = byte(e.Index)
		e.Record.ID[14] = byte(e.Index >> 8)
		list = append(list, e)
	}
	return list
}

// source is a log that grows.
type source struct {
	list  []audit.Entry
	grow  func() // what Wait does
	fails error
}

func (s *source) Entries(_ context.Context, from int64, limit int) ([]audit.Entry, error) {
	i, _ := slices.BinarySearchFunc(s.list, from, func(e audit.Entry, at int64) int { return cmp.Compare(e.Index, at) })
	rest := s.list[i:]
	return rest[:min(limit, len(rest))], s.fails
}

func (s *source) Wait(ctx context.Context, _ int64) error {
	if s.grow == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	s.grow()
	return nil
}

// destination keeps batches by their range, as a bucket does.
type destination struct {
	batches map[string]int
	order   []int64
	fail    func(batch []audit.Entry) (after bool, err error)
}

func (d *destination) Write(_ context.Context, batch []audit.Entry) (int64, error) {
	var after bool
	var err error
	if d.fail != nil {
		after, err = d.fail(batch)
	}
	if err == nil || after {
		if d.batches == nil {
			d.batches = map[string]int{}
		}
		d.batches[strconv.FormatInt(batch[0].Index, 10)+"-"+strconv.FormatInt(batch[len(batch)-1].Index, 10)]++
		for _, e := range batch {
			d.order = append(d.order, e.Index)
		}
	}
	return 0, err
}

func (d *destination) Close() error { return nil }

func once(t *testing.T, d *destination, n int64) {
	t.Helper()
	seen := map[int64]int{}
	for name := range d.batches {
		first, last, _ := strings.Cut(name, "-")
		a, _ := strconv.ParseInt(first, 10, 64)
		b, _ := strconv.ParseInt(last, 10, 64)
		for i := a; i <= b; i++ {
			seen[i]++
		}
	}
	for i := range n {
		if seen[i] != 1 {
			t.Errorf("record %d is in %d objects, want 1", i, seen[i])
		}
	}
	if int64(len(seen)) != n {
		t.Errorf("%d records are there, want %d", len(seen), n)
	}
}

// An export that is interrupted at any point goes on so that each record is in
// one object: also when the log grew meanwhile, and when the object was written
// and nobody heard of it.
func TestResume(t *testing.T) {
	stop := fault.New("test", fault.FailedPrecondition, "interrupted")
	for _, after := range []bool{false, true} {
		for at := range 6 {
			s, d := &source{list: entries(0, 25)}, &destination{}
			cursor := export.TableCursor(dbtest.Open(t), "x")
			writes := 0
			d.fail = func([]audit.Entry) (bool, error) {
				if writes++; writes == at+1 {
					return after, stop
				}
				return false, nil
			}
			err := export.Run(t.Context(), s, d, cursor, export.Options{Batch: 10})
			if interrupted := errors.Is(err, fault.FailedPrecondition); interrupted != (at < 3) {
				t.Fatalf("Run that ends at write %d = %v", at, err)
			}
			s.list = append(s.list, entries(25, 13)...)
			for range 2 { // the second run may be the interrupted one
				if err = export.Run(t.Context(), s, d, cursor, export.Options{Batch: 10}); err == nil {
					break
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			once(t, d, 38)
			if p, err := cursor.Load(t.Context()); err != nil || p != (export.Position{Next: 38}) {
				t.Errorf("the cursor is at %+v, %v; want 38", p, err)
			}
		}
	}
}

// What may pass is tried again, what will not is not.
func TestRetry(t *testing.T) {
	for _, test := range []struct {
		code  fault.Code
		tries int
	}{{fault.Unavailable, 3}, {fault.DeadlineExceeded, 3}, {fault.FailedPrecondition, 1}, {fault.PermissionDenied, 1}, {fault.Internal, 1}} {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			d := &destination{fail: func([]audit.Entry) (bool, error) {
				tries++
				return false, fault.New("test", test.code, "no")
			}}
			err := export.Run(t.Context(), &source{list: entries(0, 3)}, d, &export.Memory{}, export.Options{Policy: call.Policy{Attempts: 3}})
			if fault.CodeOf(err) != test.code || tries != test.tries {
				t.Errorf("%v was tried %d times and is %v, want %d", test.code, tries, err, test.tries)
			}
		})
	}
}

// A following export outlasts its destination's absence, gathers what comes, and
// ends with its context.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		s := &source{list: entries(0, 3)}
		s.grow = func() {
			time.Sleep(time.Second)
			if n := int64(len(s.list)); n < 20 {
				s.list = append(s.list, entries(n, 1)...)
			} else {
				stop()
			}
		}
		down := 20
		d := &destination{fail: func([]audit.Entry) (bool, error) {
			if down--; down > 0 {
				return false, fault.New("test", fault.Unavailable, "away")
			}
			return false, nil
		}}
		var troubles int
		var last export.Step
		err := export.Run(ctx, s, d, &export.Memory{}, export.Options{Follow: true, Gather: 100 * time.Millisecond, Progress: func(x export.Step) {
			if last = x; x.Err != nil {
				troubles++
			}
		}})
		if err != nil || troubles == 0 || last.Next != 20 || last.Err != nil {
			t.Errorf("Run = %v with %d troubles, last %+v", err, troubles, last)
		}
		once(t, d, 20)
	})
}

// What the source no longer has is counted, and the export goes on behind it.
func TestMissing(t *testing.T) {
	s, d := &source{list: append(entries(5, 4), entries(12, 3)...)}, &destination{}
	var missing int64
	cursor := &export.Memory{}
	if err := export.Run(t.Context(), s, d, cursor, export.Options{Batch: 5, Whole: true, Progress: func(x export.Step) { missing += x.Missing }}); err != nil {
		t.Fatal(err)
	}
	if missing != 8 || len(d.order) != 7 || cursor.Position.Next != 15 {
		t.Errorf("%d are missing, %v exported, next is %d; want 8, 7 of them, 15", missing, d.order, cursor.Position.Next)
	}
	// A batch that was begun and is gone is passed over.
	cursor.Position = export.Position{Next: 0, Bound: 3}
	d.order = nil
	if err := export.Run(t.Context(), s, d, cursor, export.Options{}); err != nil || len(d.order) != 7 || cursor.Position.Next != 15 {
		t.Errorf("Run = %v with %v, next is %d", err, d.order, cursor.Position.Next)
	}
}

// A writer's lines are all there, in order, and a full disk is an error.
func TestWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.jsonl")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := export.Run(t.Context(), &source{list: entries(0, 25)}, export.NewWriter(export.JSONLines, origin, f), &export.Memory{Position: export.Position{Next: 5}}, export.Options{Batch: 7}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	if len(lines) != 20 {
		t.Fatalf("%d lines, want 20", len(lines))
	}
	for i, text := range lines {
		var l export.Line
		if err := json.Unmarshal([]byte(text), &l); err != nil || l.Index != int64(i+5) || l.Record.What != creto.CallModel || l.LeafHash == "" {
			t.Errorf("line %d is %q, %v", i, text, err)
		}
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = full.Close() }()
	if err := export.Run(t.Context(), &source{list: entries(0, 1)}, export.NewWriter(export.JSONLines, origin, full), &export.Memory{}, export.Options{}); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("Run to a full disk = %v, want FailedPrecondition", err)
	}
}

func BenchmarkEncode(b *testing.B) {
	e := full()
	for _, f := range []export.Format{export.JSONLines, export.CloudEvents, export.OCSF} {
		b.Run(string(f), func(b *testing.B) {
			for b.Loop() {
				if _, err := f.EncodeLine(origin, e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// FuzzEncode: no record makes an encoder fail, or emit what is no JSON or no
// UTF-8; each line is one line.
func FuzzEncode(f *testing.F) {
	f.Add("what", "Type::id", "why", "trace", "key", "value", "node", int64(1))
	f.Add("\xff", "::", "\x00\n\u2028", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "\xc3", "\"", "", int64(-1))
	f.Fuzz(func(t *testing.T, what, resource, why, trace, key, value, node string, at int64) {
		e := full()
		r := &e.Record
		r.What, r.Resource, r.Why, r.Trace, r.Detail, r.Stamp.Node, r.Stamp.Physical = what, resource, why, trace, map[string]string{key: value}, node, at
		r.Who.Name, r.OnBehalfOf.Name, r.Decision.Kind, r.Decision.Policies[0].ID, r.Consents[0].Approver, r.Outcome = key, value, why, what, resource, audit.Outcome(value)
		e.Index = at
		for _, format := range []export.Format{export.JSONLines, export.CloudEvents, export.OCSF} {
			line, err := format.EncodeLine(origin, e)
			if err != nil || !json.Valid(line) || !utf8.Valid(line) || bytes.ContainsAny(line, "\n\r") {
				t.Fatalf("%s: %q, %v", format, line, err)
			}
			switch format {
			case export.OCSF:
				validate(t, line)
			case export.CloudEvents:
				var c struct{ ID, Source, Type, Subject string }
				if err := json.Unmarshal(line, &c); err != nil || c.ID == "" || c.Source == "" || strings.ContainsFunc(c.Type+c.Subject, unicode.IsControl) {
					t.Fatalf("%q has attributes that CloudEvents forbids, %v", line, err)
				}
			}
		}
		export.Proto(t, origin, e)
	})
}
