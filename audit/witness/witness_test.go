package witness_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/witness"
	"creto.dev/fault"
	"creto.dev/health"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

const origin = "test.local/log"

// tree is a log in memory.
type tree struct {
	signer *audit.Signer

	mu     sync.Mutex // guards what follows
	hashes []tlog.Hash
	size   int64
}

func (l *tree) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, p := range at {
		out[i] = l.hashes[p]
	}
	return out, nil
}

func newTree(t testing.TB, leaves ...string) *tree {
	t.Helper()
	signer, err := audittest.Signer(localpqc.New(), origin)
	if err != nil {
		t.Fatal(err)
	}
	l := &tree{signer: signer}
	l.add(leaves...)
	return l
}

func (l *tree) add(leaves ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, leaf := range leaves {
		hashes, err := tlog.StoredHashes(l.size, []byte(leaf), l)
		if err != nil {
			panic(err)
		}
		l.hashes = append(l.hashes, hashes...)
		l.size++
	}
}

// grow returns n leaves.
func grow(n int, of string) (leaves []string) {
	for i := range n {
		leaves = append(leaves, fmt.Sprintf("%s %d", of, i))
	}
	return leaves
}

func (l *tree) Checkpoint(context.Context) (audit.Checkpoint, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at(l.size)
}

func (l *tree) at(size int64) (audit.Checkpoint, error) {
	root, err := tlog.TreeHash(size, l)
	if err != nil {
		return audit.Checkpoint{}, err
	}
	if size == 0 {
		root = sha256.Sum256(nil)
	}
	return l.signer.Sign(size, root)
}

func (l *tree) Consistency(_ context.Context, from, to int64) ([][32]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hashes, err := tlog.ProveTree(to, from, l)
	proof := make([][32]byte, len(hashes))
	for i, h := range hashes {
		proof[i] = h
	}
	return proof, err
}

// body is a request of tlog-witness.
func (l *tree) body(t testing.TB, old, size int64) []byte {
	t.Helper()
	c, err := l.at(size)
	if err != nil {
		t.Fatal(err)
	}
	b := fmt.Sprintf("old %d\n", old)
	if 0 < old && old < size {
		proof, err := l.Consistency(t.Context(), old, size)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range proof {
			b += tlog.Hash(h).String() + "\n"
		}
	}
	return []byte(b + "\n" + string(c.Note))
}

func (l *tree) vkey() string {
	plain, _ := l.signer.Keys().VKeys()
	return plain
}

// key is a witness's.
func key(t testing.TB, name string) *torchwood.CosignatureSigner {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	s, err := torchwood.NewCosignatureSigner(name, ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t testing.TB, dir, name string, vkeys ...string) *witness.Witness {
	t.Helper()
	w, err := witness.Open(dir, key(t, name), vkeys, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() }) // some tests close it
	return w
}

// post asks as tlog-witness says.
func post(t testing.TB, url string, body []byte) (status int, kind, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header.Get("Content-Type"), string(text)
}

// Every answer of tlog-witness, in its order.
func TestAddCheckpoint(t *testing.T) {
	l := newTree(t, grow(300, "leaf")...)
	fork := newTree(t, grow(300, "other")...)
	stranger := newTree(t)
	foreign, err := audit.NewSigner(localpqc.New(), compositeKey(t), ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32)), origin)
	if err != nil {
		t.Fatal(err)
	}
	stranger.signer = foreign
	stranger.add(grow(300, "leaf")...)
	w := open(t, t.TempDir(), "w.test/1", l.vkey())
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	replace := func(body []byte, old, by string) []byte { return bytes.Replace(body, []byte(old), []byte(by), 1) }
	emptyFork := newTree(t)
	bad, err := emptyFork.signer.Sign(0, [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name   string
		body   []byte
		status int
		answer string
	}{
		{"another size than none", l.body(t, 7, 100), 409, "0\n"},
		{"a proof from nothing", replace(l.body(t, 0, 100), "old 0\n", "old 0\n"+tlog.Hash{}.String()+"\n"), 422, ""},
		{"an empty tree that is not", append([]byte("old 0\n\n"), bad.Note...), 422, ""},
		{"the empty tree", l.body(t, 0, 0), 200, "— w.test/1 "},
		{"the first head", l.body(t, 0, 100), 200, "— w.test/1 "},
		{"again", l.body(t, 100, 100), 200, "— w.test/1 "},
		{"an old size of before", l.body(t, 0, 200), 409, "100\n"},
		{"another tree of that size", fork.body(t, 100, 100), 422, ""},
		{"a tree that forks", fork.body(t, 100, 200), 422, ""},
		{"a proof that was cut", func() []byte {
			b := l.body(t, 100, 200)
			first, rest, _ := bytes.Cut(b, []byte("\n"))
			_, rest, _ = bytes.Cut(rest, []byte("\n"))
			return append(append(first, '\n'), rest...)
		}(), 422, ""},
		{"a larger old size", l.body(t, 200, 100), 400, ""},
		{"a smaller tree", replace(l.body(t, 50, 50), "old 50", "old 100"), 400, ""},
		{"another log", replace(l.body(t, 100, 200), origin+"\n200", "other.local/log\n200"), 404, ""},
		{"another key", stranger.body(t, 100, 200), 403, ""},
		{"a changed head", replace(l.body(t, 100, 200), "\n200\n", "\n201\n"), 403, ""},
		{"no signature", replace(l.body(t, 100, 200), "— "+origin+" ", "— "+origin+"/x "), 403, ""},
		{"a size with a zero in front", replace(l.body(t, 100, 200), "old 100", "old 0100"), 400, ""},
		{"a negative size", replace(l.body(t, 100, 200), "old 100", "old -1"), 400, ""},
		{"no size", replace(l.body(t, 100, 200), "old 100\n", ""), 400, ""},
		{"a proof of other text", replace(l.body(t, 100, 200), "old 100\n", "old 100\nAAAA\n"), 400, ""},
		{"too long a proof", replace(l.body(t, 100, 200), "old 100\n", "old 100\n"+strings.Repeat(tlog.Hash{}.String()+"\n", 64)), 400, ""},
		{"nothing", nil, 400, ""},
		{"too much", bytes.Repeat([]byte{'x'}, 1<<20), 413, ""},
		{"the next head", l.body(t, 100, 300), 200, "— w.test/1 "},
	} {
		status, kind, answer := post(t, server.URL, step.body)
		if status != step.status || !strings.HasPrefix(answer, step.answer) || (status == 409) != (kind == "text/x.tlog.size") {
			t.Fatalf("%s: %d %q %q, want %d %q", step.name, status, kind, answer, step.status, step.answer)
		}
		if status != http.StatusOK {
			continue
		}
		// Torchwood's policy takes it: the log's line and the witness's.
		_, signed, _ := bytes.Cut(step.body, []byte("\n\n"))
		logKey, err := note.NewVerifier(l.vkey())
		if err != nil {
			t.Fatal(err)
		}
		policy := torchwood.ThresholdPolicy(3, torchwood.OriginPolicy(origin), torchwood.SingleVerifierPolicy(logKey), torchwood.SingleVerifierPolicy(key(t, "w.test/1").Verifier()))
		if _, _, err := torchwood.VerifyCheckpoint(append(bytes.Clone(signed), answer...), policy); err != nil {
			t.Errorf("%s: torchwood.VerifyCheckpoint = %v", step.name, err)
		}
	}
	for method, want := range map[string]int{http.MethodGet: 405} {
		r, err := http.NewRequestWithContext(t.Context(), method, server.URL+"/add-checkpoint", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil || res.StatusCode != want {
			t.Errorf("%s = %v, %v", method, res, err)
		}
		_ = res.Body.Close()
	}
}

// What was cosigned holds in the next life, and a damaged head is no beginning.
func TestRestart(t *testing.T) {
	l, dir := newTree(t, grow(20, "leaf")...), t.TempDir()
	w := open(t, dir, "w.test", l.vkey())
	if _, no := w.Cosign(l.body(t, 0, 10)); no != nil {
		t.Fatal("the first head is refused")
	}
	if _, err := witness.Open(dir, key(t, "w.test"), []string{l.vkey()}, slog.New(slog.DiscardHandler)); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("a second witness in one directory = %v, want FailedPrecondition", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = open(t, dir, "w.test", l.vkey())
	fork := newTree(t, grow(20, "other")...)
	if _, no := w.Cosign(fork.body(t, 0, 12)); no == nil {
		t.Fatal("after a restart another log of the same name is cosigned")
	}
	if _, no := w.Cosign(l.body(t, 10, 20)); no != nil {
		t.Fatal("after a restart the log is refused")
	}
	_ = w.Close()
	files, err := filepath.Glob(filepath.Join(dir, "*.head"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the heads are %v, %v", files, err)
	}
	if err := os.WriteFile(files[0], []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := witness.Open(dir, key(t, "w.test"), []string{l.vkey()}, slog.New(slog.DiscardHandler)); !errors.Is(err, fault.DataLoss) {
		t.Errorf("Open with a damaged head = %v, want DataLoss", err)
	}
}

// When a head cannot be kept it is not cosigned.
func TestDiskFails(t *testing.T) {
	l, dir := newTree(t, grow(20, "leaf")...), t.TempDir()
	w := open(t, dir, "w.test", l.vkey())
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	if status, _, answer := post(t, server.URL, l.body(t, 0, 10)); status != 500 || strings.Contains(answer, "—") {
		t.Errorf("without a disk: %d %q", status, answer)
	}
}

// Of requests at the same time from one size, only trees that extend each other
// are cosigned.
func TestRace(t *testing.T) {
	l := newTree(t, grow(40, "leaf")...)
	forks := make([]*tree, 8)
	for i := range forks {
		forks[i] = newTree(t, grow(10, "leaf")...)
		forks[i].add(grow(30, fmt.Sprint("fork", i))...)
	}
	w := open(t, t.TempDir(), "w.test", l.vkey())
	if _, no := w.Cosign(l.body(t, 0, 10)); no != nil {
		t.Fatal("the first head is refused")
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	cosigned := 0
	for _, f := range forks {
		body := f.body(t, 10, 40)
		group.Go(func() {
			if _, no := w.Cosign(body); no == nil {
				mu.Lock()
				defer mu.Unlock()
				cosigned++
			}
		})
	}
	group.Wait()
	if cosigned != 1 {
		t.Errorf("%d of %d forks were cosigned, want 1", cosigned, len(forks))
	}
}

// publisher publishes l to witnesses.
func publisher(t testing.TB, l witness.Log, cfg witness.Config, alarms *[]witness.Alarm) *witness.Publisher {
	t.Helper()
	p, err := witness.NewPublisher(cfg, l, func(_ context.Context, a witness.Alarm) { *alarms = append(*alarms, a) }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// peer starts a witness.
func peer(t testing.TB, dir, name string, vkeys ...string) (witness.Peer, *httptest.Server) {
	t.Helper()
	w := open(t, dir, name, vkeys...)
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	return witness.Peer{Name: name, URL: server.URL + "/", VKey: w.VKey()}, server
}

func TestPublish(t *testing.T) {
	l := newTree(t, grow(5, "leaf")...)
	one, _ := peer(t, t.TempDir(), "w.test/1", l.vkey())
	two, server := peer(t, t.TempDir(), "w.test/2", l.vkey())
	var alarms []witness.Alarm
	file := filepath.Join(t.TempDir(), "heads")
	cfg := witness.Config{Witnesses: []witness.Peer{one, two}, Quorum: 2, File: file}
	p := publisher(t, l, cfg, &alarms)
	if got := p.Status(); got.State != health.Degraded {
		t.Errorf("before the first head: %+v", got)
	}
	cosigned := func(size int64, by int, state health.State) {
		t.Helper()
		if err := p.Publish(t.Context()); err != nil {
			t.Fatal(err)
		}
		c := p.Checkpoint()
		if _, err := audit.VerifyCheckpoint(localpqc.New(), append(bytes.Clone(c.Note), c.Others...), l.signer.Keys()); err != nil || c.Size != size || bytes.Count(c.Others, []byte("\n")) != by {
			t.Errorf("published is %d, cosigned %q (%v), want %d by %d", c.Size, c.Others, err, size, by)
		}
		if got := p.Status(); got.State != state {
			t.Errorf("Status = %+v, want %v", got, state)
		}
	}
	cosigned(5, 2, health.Healthy)
	cosigned(5, 2, health.Healthy)
	l.add(grow(300, "more")...)
	cosigned(305, 2, health.Healthy)
	server.Close()
	l.add("x")
	cosigned(306, 1, health.Degraded)
	// A publisher that knows nothing is told by the witness where it is.
	cfg.Witnesses, cfg.Quorum = []witness.Peer{one}, 1
	l.add("y")
	p = publisher(t, l, cfg, &alarms)
	cosigned(307, 1, health.Healthy)
	if len(alarms) > 0 {
		t.Errorf("alarms: %+v", alarms)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	heads, err := witness.ParseHeads(text)
	if err != nil || len(heads) != 4 || heads[0].Size != 5 || heads[3].Size != 307 {
		t.Errorf("the file has %d heads, %v", len(heads), err)
	}
}

// A log that shows one tree to one and another to others is found out by the
// first witness that both have, as is one whose records were rolled back.
func TestSplitView(t *testing.T) {
	for _, test := range []struct {
		name  string
		other func(l *tree) *tree
		want  string
	}{
		{"a fork", func(*tree) *tree {
			f := newTree(t, grow(40, "leaf")...)
			f.add(grow(20, "other")...)
			return f
		}, "two logs of one name"},
		{"another tree of the same size", func(*tree) *tree { return newTree(t, grow(50, "other")...) }, "two logs of one name"},
		{"rolled back", func(*tree) *tree { return newTree(t, grow(30, "leaf")...) }, "rolled back"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newTree(t, grow(50, "leaf")...)
			w, _ := peer(t, t.TempDir(), "w.test", l.vkey())
			file := filepath.Join(t.TempDir(), "heads")
			cfg := witness.Config{Witnesses: []witness.Peer{w}, Quorum: 1, File: file}
			var alarms []witness.Alarm
			honest := publisher(t, l, cfg, &alarms)
			if err := honest.Publish(t.Context()); err != nil || honest.Status().State != health.Healthy {
				t.Fatalf("Publish = %v, %+v", err, honest.Status())
			}
			other := test.other(l)
			cfg.File = ""
			p := publisher(t, other, cfg, &alarms)
			for range 3 {
				if err := p.Publish(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := p.Status(); got.State != health.Unhealthy || !strings.Contains(got.Reason, test.want) {
				t.Errorf("Status = %+v, want Unhealthy with %q", got, test.want)
			}
			if len(alarms) != 1 || alarms[0].By != "w.test" || alarms[0].Theirs != 50 {
				t.Errorf("alarms = %+v, want one", alarms)
			}
			if c := p.Checkpoint(); len(c.Others) > 0 {
				t.Errorf("the forked head is cosigned: %q", c.Others)
			}
			// The file of heads knows it without a witness.
			alarms = nil
			cfg = witness.Config{File: file, Interval: time.Hour}
			p = publisher(t, other, cfg, &alarms)
			ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer stop()
			if err := p.Run(ctx); err != nil || p.Status().State != health.Unhealthy || len(alarms) != 1 {
				t.Errorf("with the file of heads: %v, %+v, alarms %+v", err, p.Status(), alarms)
			}
		})
	}
}

// What a witness that lies may say changes nothing but its own standing.
func TestHostileWitness(t *testing.T) {
	l := newTree(t, grow(5, "leaf")...)
	other := key(t, "other.test")
	line := func(s *torchwood.CosignatureSigner, l *tree, size int64) string {
		c, err := l.at(size)
		if err != nil {
			t.Fatal(err)
		}
		text, _, _ := strings.Cut(string(c.Note), "\n\n")
		n, err := note.Sign(&note.Note{Text: text + "\n"}, s)
		if err != nil {
			t.Fatal(err)
		}
		_, sig, _ := strings.Cut(string(n), "\n\n")
		return sig
	}
	mine := key(t, "w.test")
	for name, test := range map[string]struct {
		status int
		kind   string
		answer string
		state  health.State
	}{
		"another's signature":     {200, "", line(other, l, 5), health.Degraded},
		"a signature of another":  {200, "", line(mine, newTree(t, grow(5, "x")...), 5), health.Degraded},
		"nothing":                 {200, "", "", health.Degraded},
		"no lines":                {200, "", "hello\n", health.Degraded},
		"endless":                 {200, "", strings.Repeat("x", 1<<20), health.Degraded},
		"the size it was told":    {409, "text/x.tlog.size", "0\n", health.Degraded},
		"no size":                 {409, "text/x.tlog.size", "many\n", health.Degraded},
		"a size with spaces":      {409, "text/x.tlog.size", " 3\n", health.Degraded},
		"a size of another type":  {409, "text/plain", "9\n", health.Degraded},
		"a size beyond ours":      {409, "text/x.tlog.size", "9\n", health.Unhealthy},
		"no proof is good enough": {422, "", "", health.Unhealthy},
		"unknown":                 {404, "", "", health.Degraded},
		"elsewhere":               {307, "", "", health.Degraded},
		"both":                    {200, "", line(other, l, 5) + line(mine, l, 5), health.Healthy},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", test.kind)
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, test.answer)
			}))
			t.Cleanup(server.Close)
			var alarms []witness.Alarm
			p := publisher(t, l, witness.Config{Quorum: 1, Witnesses: []witness.Peer{{Name: "w", URL: server.URL, VKey: mine.Verifier().String()}}}, &alarms)
			if err := p.Publish(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := p.Status(); got.State != test.state {
				t.Errorf("Status = %+v, want %v", got, test.state)
			}
			if c := p.Checkpoint(); (len(c.Others) > 0) != (test.state == health.Healthy) || bytes.Contains(c.Others, []byte("other.test")) {
				t.Errorf("published with %q", c.Others)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	vkey := key(t, "w.test").Verifier().String()
	good := witness.Peer{Name: "w", URL: "https://w.test", VKey: vkey}
	for name, cfg := range map[string]witness.Config{
		"no name":       {Witnesses: []witness.Peer{{URL: good.URL, VKey: vkey}}},
		"no url":        {Witnesses: []witness.Peer{{Name: "w", VKey: vkey}}},
		"a file":        {Witnesses: []witness.Peer{{Name: "w", URL: "file:///x", VKey: vkey}}},
		"no key":        {Witnesses: []witness.Peer{{Name: "w", URL: good.URL}}},
		"a log's key":   {Witnesses: []witness.Peer{{Name: "w", URL: good.URL, VKey: newTree(t).vkey()}}},
		"one key twice": {Witnesses: []witness.Peer{good, {Name: "v", URL: good.URL, VKey: vkey}}},
		"a high quorum": {Witnesses: []witness.Peer{good}, Quorum: 2},
		"a low quorum":  {Witnesses: []witness.Peer{good}, Quorum: -1},
	} {
		if _, err := witness.NewPublisher(cfg, newTree(t), nil, slog.New(slog.DiscardHandler)); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: NewPublisher = %v, want InvalidArgument", name, err)
		}
	}
	if problems := (witness.Config{Witnesses: []witness.Peer{good}, Quorum: 1}).Problems(); len(problems) > 0 {
		t.Errorf("a good configuration: %v", problems)
	}
}

func TestKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if _, err := witness.OpenKey(path, ""); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("a key without a name = %v, want InvalidArgument", err)
	}
	made, err := witness.OpenKey(path, "w.test/1")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file is %v, %v", info, err)
	}
	again, err := witness.OpenKey(path, "")
	if err != nil || again.Verifier().String() != made.Verifier().String() {
		t.Errorf("read again: %v, %v", again, err)
	}
	if _, err := witness.OpenKey(path, "other"); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("under another name = %v, want InvalidArgument", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := witness.OpenKey(path, ""); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("a key that others may read = %v, want FailedPrecondition", err)
	}
	if err := os.WriteFile(path, []byte("PRIVATE+KEY+w+AAAA\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := witness.OpenKey(path, ""); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("a key that is none = %v, want FailedPrecondition", err)
	}
}

// TestKill kills a witness again and again while two logs of one name compete
// for it. Whatever it cosigned, in all its lives, is of one log.
func TestKill(t *testing.T) {
	if os.Getenv("CRETO_WITNESS_DIR") != "" {
		serveForKill(t)
		return
	}
	l, fork := newTree(t, grow(400, "leaf")...), newTree(t, grow(400, "other")...)
	dir := t.TempDir()
	lives := 10
	if os.Getenv("CRETO_TORTURE") == "1" {
		lives = 200
	}
	type cosigned struct {
		by   *tree
		size int64
	}
	var all []cosigned
	for life := range lives {
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestKill$")
		c.Env = append(os.Environ(), "CRETO_WITNESS_DIR="+dir, "CRETO_WITNESS_LOG="+l.vkey())
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		scanner := bufio.NewScanner(out)
		if !scanner.Scan() {
			t.Fatal("the witness does not start")
		}
		url := scanner.Text()
		var mu sync.Mutex
		var group sync.WaitGroup
		ctx, stop := context.WithCancel(t.Context())
		for _, contender := range []*tree{l, fork} {
			group.Go(func() {
				for old := int64(0); ctx.Err() == nil && old < 400; {
					next := min(400, old+1+int64(life%7))
					status, answer := tryPost(ctx, url, contender.body(t, old, next))
					switch status {
					case http.StatusOK:
						mu.Lock()
						all = append(all, cosigned{contender, next})
						mu.Unlock()
						old = next
					case http.StatusConflict:
						if _, err := fmt.Sscan(answer, &old); err != nil {
							return
						}
					default:
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(5+life%11*7) * time.Millisecond)
		_ = c.Process.Kill()
		stop()
		group.Wait()
		_ = c.Wait()
	}
	if len(all) == 0 {
		t.Fatal("nothing was cosigned")
	}
	t.Logf("%d heads cosigned in %d lives", len(all), lives)
	for _, c := range all[1:] {
		if c.by != all[0].by {
			t.Fatal("heads of both logs were cosigned")
		}
	}
}

func tryPost(ctx context.Context, url string, body []byte) (int, string) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return 0, ""
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, ""
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, "" // killed before the answer was whole
	}
	return res.StatusCode, string(text)
}

// serveForKill is the process that is killed.
func serveForKill(t *testing.T) {
	w := open(t, os.Getenv("CRETO_WITNESS_DIR"), "w.test", os.Getenv("CRETO_WITNESS_LOG"))
	server := httptest.NewServer(w)
	fmt.Println(server.URL)
	select {}
}

func FuzzCosign(f *testing.F) {
	l := newTree(f, grow(20, "leaf")...)
	f.Add(l.body(f, 0, 10))
	f.Add(l.body(f, 10, 20))
	f.Add([]byte("old 0\n\n\n"))
	w := open(f, f.TempDir(), "w.test", l.vkey())
	f.Fuzz(func(t *testing.T, body []byte) {
		line, no := w.Cosign(body)
		if (line == nil) == (no == nil) {
			t.Fatal("neither a cosignature nor a refusal")
		}
		if no == nil {
			// Only what the log signed, and only forward.
			_, signed, _ := bytes.Cut(body, []byte("\n\n"))
			head, err := audit.ParseHead(signed, origin)
			if err != nil || head.Size != 10 && head.Size != 20 {
				t.Fatalf("cosigned what nobody signed: %q", body)
			}
		}
	})
}

func FuzzParseHeads(f *testing.F) {
	l := newTree(f, grow(20, "leaf")...)
	c, err := l.at(20)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.Note)
	f.Add(append(append(bytes.Clone(c.Note), '\n'), c.Note...))
	f.Fuzz(func(t *testing.T, text []byte) {
		heads, _ := witness.ParseHeads(text)
		for _, h := range heads {
			if h.Size < 0 || !bytes.Contains(text, h.Note[:len(h.Note)-1]) {
				t.Errorf("head %+v is not in the text", h)
			}
		}
	})
}

func compositeKey(t testing.TB) pqc.SigningKey {
	t.Helper()
	k, err := localpqc.New().SigningKeyFromSeed(pqc.MLDSA65Ed25519, make([]byte, pqc.CompositeSeedSize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}
