package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera"
	tclient "github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	product "creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/consensus/localconsensus"
	"creto.dev/internal/db"
	"creto.dev/internal/journal"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// tesseraPeer is what the log is compared with.
const tesseraPeer = "tessera"

// How much is logged.
const (
	callerTimes   = 40_000
	batchRecords  = 120_000 // durable ones, of each batch size but 1
	singleRecords = 400
	proofTree     = 40_000
	proofTimes    = 10_000
)

// benchAudit compares the log with Tessera on POSIX files: the same record, made
// and encoded for each, N at once, the next N when those are durable.
//
// durable counts until everything is in the tree, and its times are those until a
// batch is acknowledged: with Creto on disk, where a power cut leaves it, with
// Tessera on disk and in the tree, which are one there. tree is both until a batch
// is in the tree, one batch after the other.
func benchAudit(ctx context.Context, r *report) (err error) {
	dir, err := os.MkdirTemp("", "creto-bench-audit-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ours, err := openOurs(ctx, filepath.Join(dir, "creto"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.close()) }()
	if err := ours.caller(ctx, r); err != nil {
		return err
	}
	if err := callerOfTessera(ctx, r, filepath.Join(dir, "caller")); err != nil {
		return err
	}
	if err := ours.proofs(ctx, r); err != nil { // in a tree as large as Tessera's
		return err
	}
	for _, batch := range []int{1, 100, 1000} {
		records := batchRecords
		if batch == 1 {
			records = singleRecords
		}
		// Ours first and theirs second, then the other way round: neither has the
		// quieter half of the run.
		var mine, theirs []float64
		var elapsed [2]time.Duration
		for half := range 2 {
			peer, err := openTessera(ctx, filepath.Join(dir, fmt.Sprintf("tessera-%d-%d", batch, half)), batch)
			if err != nil {
				return err
			}
			for i := range 2 {
				begin := time.Now()
				if i == half {
					mine, err = appended(mine)(ours.durable(ctx, batch, records/2))
					elapsed[0] += time.Since(begin)
				} else {
					theirs, err = appended(theirs)(peer.durable(ctx, batch, records/2))
					elapsed[1] += time.Since(begin)
				}
				if err != nil {
					return err
				}
			}
			if err := peer.shutdown(ctx); err != nil {
				return err
			}
		}
		name := fmt.Sprintf("durable/batch=%d", batch)
		r.Rows = append(r.Rows, durableRow(name, creto, mine, elapsed[0], batch, "LogBatch of records that are synced; the drain beside it, as in a node; SQLite, synchronous=FULL"),
			durableRow(name, tesseraPeer, theirs, elapsed[1], batch, "Add, then all have their index; POSIX, fsync"))
		begin := time.Now()
		treed, err := ours.treed(ctx, batch, records/2)
		if err != nil {
			return err
		}
		r.Rows = append(r.Rows, durableRow(fmt.Sprintf("tree/batch=%d", batch), creto, treed, time.Since(begin), batch, "until they are in the tree, one batch after the other"))
	}
	return proofsOfTessera(ctx, r, filepath.Join(dir, "proofs"))
}

func appended(all []float64) func([]float64, error) ([]float64, error) {
	return func(more []float64, err error) ([]float64, error) { return append(all, more...), err }
}

// durableRow sums up what took each batch how long.
func durableRow(name, who string, samples []float64, elapsed time.Duration, batch int, note string) row {
	n := len(samples) * batch
	slices.Sort(samples)
	return row{
		Case: name, Who: who, N: n, P50: percentile(samples, 0.5), P99: percentile(samples, 0.99), PerSecond: ref(float64(n) / elapsed.Seconds()),
		Note: joined(note, "times are of a batch"),
	}
}

// ours is a log as a node has it.
type ours struct {
	log   *localaudit.Log
	close func() error
	n     int
}

func openOurs(ctx context.Context, dir string) (*ours, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d, err := db.Open(ctx, filepath.Join(dir, "creto.db"))
	if err != nil {
		return nil, err
	}
	clock, err := localconsensus.Open(ctx, d, "bench")
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	p := localpqc.New()
	signer, err := audittest.Signer(p, "bench.local/log")
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	key := pqc.NewSymmetricKey(pqc.AES256GCM, make([]byte, pqc.SymmetricKeySize))
	l, err := localaudit.Open(ctx, localaudit.Config{Intake: intake.Config{Journal: journal.Config{Dir: filepath.Join(dir, "audit")}}}, d, p, clock, signer, key, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return &ours{log: l, close: func() error { return errors.Join(l.Close(), d.Close()) }}, nil
}

// chain and args stand for what the gate computed before.
var chain, args = product.DigestOf([]byte("chain")), product.DigestOf([]byte("args"))

// record is the nth as the gate makes it for a model call.
func record(n int) audit.Record {
	r := audittest.Record(product.CallModel, n%50)
	r.ID = audit.RecordID{} // the log gives it one
	r.Chain, r.Args = chain, args
	r.OnBehalfOf = audittest.Human("alice")
	r.Decision = &audit.Decision{Kind: "allow", Policies: []audit.PolicyRef{{ID: "agents/bot.cedar#0", Digest: r.Chain}}, Version: r.Args}
	r.Usage = &audit.Usage{PromptTokens: 1200, CompletionTokens: 340}
	r.Sandbox, r.Isolation = "run-0123abcd", "gvisor"
	r.Detail = map[string]string{"provider": "openai", "status": "200"}
	return r
}

func (o *ours) caller(ctx context.Context, r *report) error {
	rows, err := bench{
		name: "caller", who: creto, n: callerTimes, note: "Log of an informational record: it survives kill -9", interval: 4000,
		do: func() error {
			o.n++
			_, err := o.log.Log(ctx, record(o.n))
			return err
		},
		rest: func() error { return o.settle(ctx) },
	}.measure(ctx)
	r.Rows = append(r.Rows, rows)
	return err
}

// settle moves everything into the tree.
func (o *ours) settle(ctx context.Context) error {
	_, err := o.log.Checkpoint(ctx)
	return err
}

// durable returns how long each batch took until it was on disk, while the drain
// moves what is there into the tree; it returns when all of it is.
func (o *ours) durable(ctx context.Context, batch, records int) ([]float64, error) {
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- o.log.Run(running) }()
	defer stop()
	var samples []float64
	rs := make([]audit.Record, batch)
	for range records / batch {
		begin := time.Now()
		for i := range rs {
			o.n++
			rs[i] = record(o.n)
			rs[i].Outcome = audit.Denied // so that it waits for the disk
		}
		if err := errors.Join(o.log.LogBatch(ctx, rs)...); err != nil {
			return nil, err
		}
		samples = append(samples, float64(time.Since(begin)))
	}
	stop()
	return samples, <-done
}

// treed returns how long each batch took until it was in the tree.
func (o *ours) treed(ctx context.Context, batch, records int) ([]float64, error) {
	var samples []float64
	rs := make([]audit.Record, batch)
	for range records / batch {
		begin := time.Now()
		for i := range rs {
			o.n++
			rs[i] = record(o.n)
		}
		if err := errors.Join(append(o.log.LogBatch(ctx, rs), o.log.Flush(ctx))...); err != nil {
			return nil, err
		}
		samples = append(samples, float64(time.Since(begin)))
	}
	return samples, nil
}

func (o *ours) proofs(ctx context.Context, r *report) error {
	head, err := o.log.Checkpoint(ctx)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(1, 2))
	note := fmt.Sprintf("of random leaves in a tree of %d", head.Size)
	built, err := bench{name: "proof/build", who: creto, n: proofTimes, note: note + "; each tile on the way verified against the root", do: func() error {
		_, err := o.log.Proof(ctx, random.Int64N(head.Size), head.Size)
		return err
	}}.measure(ctx)
	if err != nil {
		return err
	}
	page, err := o.log.Query(ctx, audit.Filter{Limit: 1})
	if err != nil {
		return err
	}
	path, err := o.log.Proof(ctx, page[0].Index, head.Size)
	if err != nil {
		return err
	}
	verified, err := bench{name: "proof/verify", who: creto, n: proofTimes, note: note, do: func() error {
		return audit.VerifyProof(page[0].Leaf, page[0].Index, head.Size, head.Root, path)
	}}.measure(ctx)
	r.Rows = append(r.Rows, built, verified)
	return err
}

// peer is a Tessera log on POSIX files.
type peer struct {
	appender *tessera.Appender
	reader   tessera.LogReader
	shutdown func(context.Context) error
	n        int
}

func openTessera(ctx context.Context, dir string, batch int) (*peer, error) {
	secret, _, err := note.GenerateKey(nil, "bench.local/tessera")
	if err != nil {
		return nil, err
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		return nil, err
	}
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		return nil, err
	}
	options := tessera.NewAppendOptions().WithCheckpointSigner(signer).WithBatching(uint(batch), 100*time.Millisecond).WithCheckpointInterval(time.Second)
	a, shutdown, reader, err := tessera.NewAppender(ctx, driver, options)
	return &peer{appender: a, reader: reader, shutdown: shutdown}, err
}

// add adds the next record, encoded as ours are.
func (p *peer) add(ctx context.Context) (tessera.IndexFuture, error) {
	p.n++
	r := record(p.n)
	r.ID, r.Stamp = product.NewUUID(), product.Timestamp{Logical: uint64(p.n), Physical: int64(p.n), Source: product.SourceConsensus, Node: "bench"}
	leaf, err := r.Encode()
	if err != nil {
		return nil, err
	}
	return p.appender.Add(ctx, tessera.NewEntry(leaf)), nil
}

func (p *peer) durable(ctx context.Context, batch, records int) ([]float64, error) {
	var samples []float64
	futures := make([]tessera.IndexFuture, batch)
	for range records / batch {
		begin := time.Now()
		for i := range futures {
			var err error
			if futures[i], err = p.add(ctx); err != nil {
				return nil, err
			}
		}
		for _, f := range futures {
			if _, err := f(); err != nil {
				return nil, err
			}
		}
		samples = append(samples, float64(time.Since(begin)))
	}
	return samples, nil
}

func callerOfTessera(ctx context.Context, r *report, dir string) (err error) {
	p, err := openTessera(ctx, dir, 1000)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.shutdown(ctx)) }()
	var waiting []tessera.IndexFuture
	row, err := bench{
		name: "caller", who: tesseraPeer, n: callerTimes, note: "Add, without waiting: in memory only", interval: 4000,
		do: func() error {
			f, err := p.add(ctx)
			waiting = append(waiting, f)
			return err
		},
		rest: func() error {
			for _, f := range waiting {
				if _, err := f(); err != nil {
					return err
				}
			}
			waiting = waiting[:0]
			return nil
		},
	}.measure(ctx)
	r.Rows = append(r.Rows, row)
	return err
}

func proofsOfTessera(ctx context.Context, r *report, dir string) (err error) {
	p, err := openTessera(ctx, dir, 1000)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.shutdown(ctx)) }()
	if _, err := p.durable(ctx, 1000, proofTree); err != nil {
		return err
	}
	size, err := p.reader.IntegratedSize(ctx)
	if err != nil {
		return err
	}
	builder, err := tclient.NewProofBuilder(ctx, size, p.reader.ReadTile)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(1, 2))
	note := fmt.Sprintf("of random leaves in a tree of %d", size)
	built, err := bench{name: "proof/build", who: tesseraPeer, n: proofTimes, note: note + "; its client, which keeps tiles in memory", do: func() error {
		_, err := builder.InclusionProof(ctx, uint64(random.Int64N(int64(size))))
		return err
	}}.measure(ctx)
	if err != nil {
		return err
	}
	index := size - 1
	path, err := builder.InclusionProof(ctx, index)
	if err != nil {
		return err
	}
	bundle, err := tclient.GetEntryBundle(ctx, p.reader.ReadEntryBundle, index/256, size)
	if err != nil {
		return err
	}
	leaf := bundle.Entries[index%256]
	root, err := proof.RootFromInclusionProof(rfc6962.DefaultHasher, index, size, rfc6962.DefaultHasher.HashLeaf(leaf), path)
	if err != nil {
		return err
	}
	verified, err := bench{name: "proof/verify", who: tesseraPeer, n: proofTimes, note: note + "; transparency-dev/merkle", do: func() error {
		return proof.VerifyInclusion(rfc6962.DefaultHasher, index, size, rfc6962.DefaultHasher.HashLeaf(leaf), path, root)
	}}.measure(ctx)
	r.Rows = append(r.Rows, built, verified)
	return err
}
