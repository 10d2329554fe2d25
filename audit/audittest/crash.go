package audittest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/pqc"
)

// Load logs until ctx ends, as an earlier life with the same number would, and
// writes a line for each record that was acknowledged, which a [Ledger] reads:
// one by one, in batches, signed, about humans, security-relevant or not, and
// records of this and of earlier lives once more. What the log refuses is
// written as a line too, and the load goes on.
//
// Errors: those of p.
func Load(ctx context.Context, l audit.Log, p pqc.Provider, life, callers int, out io.Writer) error {
	key, err := p.GenerateSigningKey(pqc.MLDSA65Ed25519)
	if err != nil {
		return err
	}
	public, err := p.Public(key)
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	defer group.Wait()
	for c := range callers {
		group.Go(func() {
			random := rand.New(rand.NewPCG(rand.Uint64(), uint64(c)))
			for n := 0; ctx.Err() == nil; {
				o := origin{life: life, caller: c, n: n}
				switch random.IntN(8) {
				case 0: // what an earlier life or this one has logged, maybe
					o.life, o.n = random.IntN(life+1), random.IntN(20)
					o.again = o.life < life || o.n < n
					if !o.again {
						continue
					}
					_, err := l.Log(ctx, o.record())
					o.say(out, err)
				case 1:
					r := o.record()
					message, err := r.SigningBytes()
					var sig pqc.Signature
					if err == nil {
						sig, err = p.Sign(pqc.PurposeRecord, message, key)
					}
					if err == nil {
						_, err = l.LogSigned(ctx, r, sig, public)
					}
					o.durable = true
					o.say(out, err)
					n++
				case 2:
					batch := make([]origin, 1+random.IntN(20))
					rs := make([]audit.Record, len(batch))
					for i := range batch {
						batch[i] = origin{life: life, caller: c, n: n}
						rs[i] = batch[i].record()
						n++
					}
					for i, err := range l.LogBatch(ctx, rs) {
						batch[i].durable = rs[i].SecurityRelevant()
						batch[i].say(out, err)
					}
				default:
					r := o.record()
					_, err := l.Log(ctx, r)
					o.durable = r.SecurityRelevant()
					o.say(out, err)
					n++
				}
			}
		})
	}
	return nil
}

// origin says which record of a load one is.
type origin struct {
	life, caller, n int
	durable         bool // its acknowledgement says that it is on disk
	again           bool // it was logged before
}

func (o origin) id() audit.RecordID {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %d", o.life, o.caller, o.n))
	return audit.RecordID(sum[:16])
}

// record returns the same record each time.
func (o origin) record() audit.Record {
	r := Record(creto.CallModel, o.n)
	r.ID = o.id()
	r.Detail = map[string]string{"origin": fmt.Sprintf("%d %d %d", o.life, o.caller, o.n)}
	if o.n%3 == 0 {
		r.Outcome = audit.Denied
	}
	if o.n%5 == 0 {
		r.OnBehalfOf, r.Why = Human(fmt.Sprintf("human-%d", (o.life+o.n)%37)), "because"
	}
	r.Detail["filling"] = strings.Repeat("x", o.n*131%1500)
	return r
}

// say writes what became of a record, in one piece.
func (o origin) say(out io.Writer, err error) {
	word := "acknowledged"
	if err != nil {
		word = "refused"
	}
	_, _ = fmt.Fprintf(out, "%s %d %d %d %t %t\n", word, o.life, o.caller, o.n, o.durable, o.again)
}

// Ledger knows which records a log has acknowledged over all its lives, and holds
// the log to them. Safe for concurrent use.
type Ledger struct {
	// Durable has Check ask only for records whose acknowledgement says that they
	// are on disk: others may be lost in a power cut.
	Durable bool

	mu       sync.Mutex // guards what follows
	refused  int
	failed   map[[2]int]bool // whether a caller was refused what is durable, by life and number
	believed int
	acked    map[audit.RecordID]origin
	index    map[audit.RecordID]int64
	size     int64
	heads    []audit.Checkpoint
	gaps     int
	lost     uint64
	counted  uint64
}

// placed is where the newest record of a caller is.
type placed struct {
	n     int
	index int64
}

// NewLedger returns the ledger of an empty log.
func NewLedger() *Ledger {
	return &Ledger{acked: make(map[audit.RecordID]origin), index: make(map[audit.RecordID]int64), failed: make(map[[2]int]bool)}
}

// Read notes a line of a load, and reports whether it is one.
func (g *Ledger) Read(line string) bool {
	var word string
	var o origin
	if n, err := fmt.Sscanf(line, "%s %d %d %d %t %t", &word, &o.life, &o.caller, &o.n, &o.durable, &o.again); err != nil || n != 6 {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	who := [2]int{o.life, o.caller}
	if word != "acknowledged" {
		g.refused++
		g.failed[who] = g.failed[who] || o.durable
		return true
	}
	if o.durable && g.failed[who] {
		g.believed++
	}
	if known, ok := g.acked[o.id()]; ok { // the first time counts
		known.durable = known.durable || o.durable
		o = known
	}
	g.acked[o.id()] = o
	return true
}

// Acknowledged returns how many records were acknowledged.
func (g *Ledger) Acknowledged() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.acked)
}

// Refused returns how many were not.
func (g *Ledger) Refused() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refused
}

// Believed returns how many records were acknowledged as durable to callers that
// had been refused one before.
func (g *Ledger) Believed() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.believed
}

// Gaps returns how many records of gaps the tree has, and what they say is lost,
// and was only counted.
func (g *Ledger) Gaps() (records int, lost, counted uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gaps, g.lost, g.counted
}

// Missing returns how many acknowledged records the tree did not have at the last
// Check.
func (g *Ledger) Missing() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for id := range g.acked {
		if _, ok := g.index[id]; !ok {
			n++
		}
	}
	return n
}

// Check holds the log to all that was ever acknowledged: it is in the tree, once,
// in the order of each caller, proven against the head, and readable; and the
// head extends all heads of before.
func (g *Ledger) Check(t testing.TB, h Harness) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	head, err := h.Log.Checkpoint(t.Context())
	if err != nil {
		t.Fatalf("Checkpoint: %v", err)
	}
	if got, err := audit.VerifyCheckpoint(h.Provider, head.Note, h.Keys); err != nil || got.Root != head.Root || got.Size != head.Size {
		t.Fatalf("the head does not verify: %v", err)
	}
	for _, before := range g.heads {
		proof, err := h.Log.Consistency(t.Context(), before.Size, head.Size)
		if err == nil {
			err = audit.VerifyConsistency(before.Size, before.Root, head.Size, head.Root, proof)
		}
		if err != nil {
			t.Fatalf("the head of %d records does not extend that of %d: %v", head.Size, before.Size, err)
		}
	}
	if err := g.readOn(t.Context(), h.Log, head); err != nil {
		t.Fatal(err)
	}
	callers := make(map[[2]int][]origin)
	for id, o := range g.acked {
		if _, ok := g.index[id]; !ok {
			if o.durable || !g.Durable {
				t.Errorf("record %d of caller %d of life %d was acknowledged (durable: %t) and is lost", o.n, o.caller, o.life, o.durable)
			}
			continue
		}
		if !o.again {
			who := [2]int{o.life, o.caller}
			callers[who] = append(callers[who], o)
		}
	}
	for who, list := range callers {
		byN := make(map[int]int64, len(list))
		last := 0
		for _, o := range list {
			byN[o.n] = g.index[o.id()]
			last = max(last, o.n)
		}
		at := placed{-1, -1}
		for n := range last + 1 {
			index, ok := byN[n]
			if !ok {
				continue
			}
			if index < at.index {
				t.Errorf("records %d and %d of caller %d of life %d are in the wrong order", at.n, n, who[1], who[0])
			}
			at = placed{n, index}
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	g.heads = append(g.heads, head)
}

// Prove proves every entry that Check has seen against the newest head.
func (g *Ledger) Prove(t testing.TB, h Harness) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	head := g.heads[len(g.heads)-1]
	f := audit.Filter{Oldest: true, Limit: audit.MaxPage}
	for {
		page, err := h.Log.Query(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page {
			if e.Index < head.Size {
				if err := prove(t.Context(), h.Log, e, head); err != nil {
					t.Fatal(err)
				}
			}
			f.From = e.Index + 1
		}
		if len(page) < f.Limit {
			return
		}
	}
}

// Heads returns the heads of all lives.
func (g *Ledger) Heads() []audit.Checkpoint {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]audit.Checkpoint(nil), g.heads...)
}

// readOn reads what the tree has since the last time.
func (g *Ledger) readOn(ctx context.Context, l audit.Log, head audit.Checkpoint) error {
	f := audit.Filter{Oldest: true, Limit: audit.MaxPage, From: g.size}
	for g.size < head.Size {
		page, err := l.Query(ctx, f)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return fmt.Errorf("the tree ends at %d and its head says %d", g.size, head.Size)
		}
		for _, e := range page {
			if e.Index >= head.Size {
				return nil
			}
			if e.Index != g.size {
				return fmt.Errorf("entry %d follows where %d is expected", e.Index, g.size)
			}
			if at, ok := g.index[e.Record.ID]; ok {
				return fmt.Errorf("record %s is in the tree at %d and at %d", e.Record.ID, at, e.Index)
			}
			if err := errors.Join(g.judge(e), prove(ctx, l, e, head)); err != nil {
				return fmt.Errorf("entry %d: %w", e.Index, err)
			}
			g.index[e.Record.ID] = e.Index
			g.size++
		}
		f.From = g.size
	}
	return nil
}

// judge reports whether an entry is what a load or the log itself logs.
func (g *Ledger) judge(e audit.Entry) error {
	if e.Record.What == audit.EventAuditGap {
		if e.Record.SignatureStatus != "valid" {
			return errors.New("the record of a gap is not signed")
		}
		g.gaps++
		for _, field := range []struct {
			name string
			sum  *uint64
		}{{"lost", &g.lost}, {"counted", &g.counted}} {
			if text := e.Record.Detail[field.name]; text != "" {
				n, err := strconv.ParseUint(text, 10, 64)
				if err != nil {
					return err
				}
				*field.sum += n
			}
		}
		return nil
	}
	var o origin
	if _, err := fmt.Sscanf(e.Record.Detail["origin"], "%d %d %d", &o.life, &o.caller, &o.n); err != nil {
		return fmt.Errorf("nobody logged %+v", e.Record)
	}
	want := o.record()
	switch r := e.Record; {
	case r.ID != want.ID, r.Resource != want.Resource, r.Outcome != want.Outcome, r.Detail["filling"] != want.Detail["filling"], r.Why != want.Why:
		return fmt.Errorf("it is not what was logged: %+v", r)
	case r.OnBehalfOf != want.OnBehalfOf:
		return fmt.Errorf("it is about %s and not %s", r.OnBehalfOf, want.OnBehalfOf)
	case r.Signature != nil && r.SignatureStatus != "valid":
		return errors.New("its signature was valid and is not")
	}
	return nil
}

func prove(ctx context.Context, l audit.Log, e audit.Entry, head audit.Checkpoint) error {
	proof, err := l.Proof(ctx, e.Index, head.Size)
	if err != nil {
		return err
	}
	return audit.VerifyProof(e.Leaf, e.Index, head.Size, head.Root, proof)
}
