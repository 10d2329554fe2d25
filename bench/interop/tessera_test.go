package interop_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api"
	tclient "github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/audit/witness"
	"creto.dev/consensus/localconsensus"
	"creto.dev/internal/db"
	"creto.dev/internal/journal"
	"creto.dev/internal/serve"
	"creto.dev/node"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

const origin = "interop.test/log"

// quiet discards.
var quiet = slog.New(slog.DiscardHandler)

// served is the product's log and tile server.
type served struct {
	log  *localaudit.Log
	keys audit.LogKeys
}

func (s served) Checkpoint(ctx context.Context) ([]byte, error) {
	c, err := s.log.Checkpoint(ctx)
	return c.Note, err
}

func (s served) Tile(ctx context.Context, t tlog.Tile) ([]byte, error) { return s.log.Tile(ctx, t) }

func open(t testing.TB) served {
	t.Helper()
	dir, ctx, p := t.TempDir(), t.Context(), localpqc.New()
	d, err := db.Open(ctx, filepath.Join(dir, "creto.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	clock, err := localconsensus.Open(ctx, d, "n1")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audittest.Signer(p, origin)
	if err != nil {
		t.Fatal(err)
	}
	l, err := localaudit.Open(ctx, localaudit.Config{Intake: intake.Config{Journal: journal.Config{Dir: filepath.Join(dir, "audit")}}}, d, p, clock, signer, pqc.NewSymmetricKey(pqc.AES256GCM, make([]byte, pqc.SymmetricKeySize)), quiet)
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- l.Run(running) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = l.Close()
	})
	return served{l, signer.Keys()}
}

// grow logs until there are size records.
func (s served) grow(t testing.TB, from, size int) {
	t.Helper()
	for i := from; i < size; i++ {
		if _, err := s.log.Log(t.Context(), audittest.Record(creto.CallModel, i)); err != nil {
			t.Fatal(err)
		}
	}
}

// verifier is the log's Ed25519 key as other programs take it.
func verifier(t testing.TB, vkey string) note.Verifier {
	t.Helper()
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// fetcher is Tessera's HTTP client, with a switch that flips a byte.
type fetcher struct {
	fsck.Fetcher

	flip func(kind string, level, index uint64, data []byte)
}

func (f fetcher) ReadTile(ctx context.Context, l, i uint64, p uint8) ([]byte, error) {
	data, err := f.Fetcher.ReadTile(ctx, l, i, p)
	if err == nil && f.flip != nil {
		f.flip("tile", l, i, data)
	}
	return data, err
}

func (f fetcher) ReadEntryBundle(ctx context.Context, i uint64, p uint8) ([]byte, error) {
	data, err := f.Fetcher.ReadEntryBundle(ctx, i, p)
	if err == nil && f.flip != nil {
		f.flip("entries", 0, i, data)
	}
	return data, err
}

func newFetcher(t testing.TB, base string) *tclient.HTTPFetcher {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	f, err := tclient.NewHTTPFetcher(u, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// hashes is how Tessera's fsck reads a bundle.
func hashes(bundle []byte) ([][]byte, error) {
	var b api.EntryBundle
	if err := b.UnmarshalText(bundle); err != nil {
		return nil, err
	}
	var all [][]byte
	for _, e := range b.Entries {
		all = append(all, rfc6962.DefaultHasher.HashLeaf(e))
	}
	return all, nil
}

func check(t testing.TB, f fsck.Fetcher, v note.Verifier, name string) error {
	t.Helper()
	return fsck.New(name, v, f, hashes, fsck.Opts{N: 4}).Check(t.Context())
}

// TestTesseraReadsOurLog: client and fsck of Tessera verify it over HTTP at each
// size, and one flipped byte of any resource fails.
func TestTesseraReadsOurLog(t *testing.T) {
	s := open(t)
	server := httptest.NewServer(serve.TileServer(s, func(*http.Request, bool) (bool, error) { return true, nil }))
	t.Cleanup(server.Close)
	plain, _ := s.keys.VKeys()
	v := verifier(t, plain)
	sizes := []int{1, 255, 256, 257, 70_000}
	if testing.Short() {
		sizes = sizes[:4]
	}
	have := 0
	var state *tclient.LogStateTracker
	for _, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s.grow(t, have, size)
			have = size
			f := fetcher{Fetcher: newFetcher(t, server.URL+"/log/")}
			cp, _, _, err := tclient.FetchCheckpoint(t.Context(), f.ReadCheckpoint, v, origin)
			if err != nil || cp.Size != uint64(size) {
				t.Fatalf("FetchCheckpoint = %+v, %v", cp, err)
			}
			if err := check(t, f, v, origin); err != nil {
				t.Fatalf("fsck: %v", err)
			}
			// Inclusion and consistency by Tessera's own proof builder.
			builder, err := tclient.NewProofBuilder(t.Context(), cp.Size, f.ReadTile)
			if err != nil {
				t.Fatal(err)
			}
			for _, index := range []uint64{0, cp.Size / 2, cp.Size - 1} {
				path, err := builder.InclusionProof(t.Context(), index)
				if err != nil {
					t.Fatal(err)
				}
				bundle, err := tclient.GetEntryBundle(t.Context(), f.ReadEntryBundle, index/256, cp.Size)
				if err != nil {
					t.Fatal(err)
				}
				leaf := bundle.Entries[index%256]
				if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, cp.Size, rfc6962.DefaultHasher.HashLeaf(leaf), path, cp.Hash); err != nil {
					t.Errorf("the inclusion of %d: %v", index, err)
				}
				if _, err := audit.DecodeRecord(leaf); err != nil {
					t.Errorf("entry %d is no record: %v", index, err)
				}
			}
			if state == nil {
				state, err = tclient.NewLogStateTracker(context.WithoutCancel(t.Context()), f.ReadTile, nil, v, origin, tclient.UnilateralConsensus(f.ReadCheckpoint))
			} else {
				_, _, _, err = state.Update(t.Context())
			}
			if latest := state.Latest(); err != nil || latest.Size != uint64(size) {
				t.Errorf("the tracker is at %d, %v", latest.Size, err)
			}
			type resource struct {
				kind         string
				level, index uint64
			}
			broken := []resource{{"entries", 0, 0}, {"tile", 0, 0}}
			if size >= 256 {
				broken = append(broken, resource{"tile", 1, 0})
			}
			if size > 256 {
				broken = append(broken, resource{"entries", 0, uint64(size) / 256}, resource{"tile", 0, uint64(size) / 256})
			}
			if size > 65_536 {
				broken = append(broken, resource{"tile", 1, 1}, resource{"tile", 2, 0})
			}
			for _, r := range broken {
				f.flip = func(kind string, level, index uint64, data []byte) {
					if r == (resource{kind, level, index}) {
						data[len(data)/2] ^= 1
					}
				}
				if err := check(t, f, v, origin); err == nil {
					t.Errorf("fsck does not see a flipped byte in %+v", r)
				}
			}
		})
	}
}

// TestTesseraReadsANode: a whole node, as it is configured to publish.
func TestTesseraReadsANode(t *testing.T) {
	cfg := node.Default()
	cfg.Server.Listen = "localhost:0"
	cfg.Audit.Publish = node.PublishAll
	n, err := node.Open(t.Context(), node.Options{DataDir: t.TempDir(), Version: "test", Config: cfg, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = n.Close()
	})
	status, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := n.LogKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := check(t, newFetcher(t, "http://"+status.Listen+"/log/"), verifier(t, keys.Ed25519), keys.Origin); err != nil {
		t.Errorf("fsck: %v", err)
	}
}

// TestOurWitnessOfTessera: Tessera's own log, with Tessera's own client of
// witnesses, is cosigned by ours, and publishes nothing that is not.
func TestOurWitnessOfTessera(t *testing.T) {
	skey, vkey, err := note.GenerateKey(rand.Reader, "tessera.test/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := torchwood.NewCosignatureSigner("creto.test/w1", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{5}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	w, err := witness.Open(t.TempDir(), ours, []string{vkey}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := tessera.NewWitness(w.VKey(), at)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	driver, err := posix.New(t.Context(), posix.Config{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	appender, shutdown, reader, err := tessera.NewAppender(t.Context(), driver, tessera.NewAppendOptions().
		WithCheckpointSigner(signer).WithCheckpointInterval(200*time.Millisecond).WithBatching(10, 50*time.Millisecond).
		WithWitnesses(tessera.NewWitnessGroup(1, peer), &tessera.WitnessOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	awaiter := tessera.NewPublicationAwaiter(t.Context(), reader.ReadCheckpoint, 50*time.Millisecond)
	var last []byte
	for round := range 3 {
		for i := range 300 {
			appender.Add(t.Context(), tessera.NewEntry(fmt.Appendf(nil, "entry %d %d", round, i)))
		}
		if _, last, err = awaiter.Await(t.Context(), appender.Add(t.Context(), tessera.NewEntry(fmt.Appendf(nil, "last %d", round)))); err != nil {
			t.Fatal(err)
		}
	}
	if err := shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	policy := torchwood.ThresholdPolicy(3, torchwood.OriginPolicy("tessera.test/log"), torchwood.SingleVerifierPolicy(verifier(t, vkey)), torchwood.SingleVerifierPolicy(ours.Verifier()))
	head, _, err := torchwood.VerifyCheckpoint(last, policy)
	if err != nil || head.N != 903 {
		t.Errorf("Tessera's checkpoint, of %d entries, is not cosigned: %v\n%s", head.N, err, last)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "checkpoint")); err != nil || !strings.Contains(string(text), "— creto.test/w1 ") {
		t.Errorf("published is %s (%v)", text, err)
	}
}
