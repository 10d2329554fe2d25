package interop_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"database/sql"
	"errors"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/mod/sumdb/tlog"
	_ "modernc.org/sqlite"

	"creto.dev/audit/witness"
	"creto.dev/health"
)

// litewitness is torchwood's witness, as its authors ship it, of one log.
func litewitness(t *testing.T, name, logOrigin, vkey string) witness.Peer {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "litewitness")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "filippo.io/torchwood/cmd/litewitness").CombinedOutput(); err != nil {
		t.Fatalf("litewitness cannot be built: %v\n%s", err, out)
	}
	// Its key is in an SSH agent.
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32))
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(dir, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	go func() {
		for {
			c, err := socket.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(ring, c) }()
		}
	}()
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	// Its logs are in its database.
	path := filepath.Join(dir, "db")
	d, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := tlog.TreeHash(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.ExecContext(t.Context(), `
		CREATE TABLE log (origin TEXT PRIMARY KEY, tree_size INTEGER NOT NULL, tree_hash TEXT NOT NULL);
		CREATE TABLE key (origin TEXT NOT NULL, key TEXT NOT NULL, FOREIGN KEY(origin) REFERENCES log(origin));
		INSERT INTO log VALUES ($1, 0, $2);
		INSERT INTO key VALUES ($1, $3)`, logOrigin, empty.String(), vkey)
	if err = errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close()
	var said bytes.Buffer
	c := exec.CommandContext(t.Context(), program, "-name", name, "-db", path, "-ssh-agent", filepath.Join(dir, "agent"),
		"-key", ssh.FingerprintSHA256(public), "-listen", address)
	c.Stderr = &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if t.Failed() {
			t.Logf("litewitness said:\n%s", said.String())
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; {
		response, err := http.Get("http://" + address + "/") //nolint:noctx // the test's own
		if err == nil {
			_ = response.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("litewitness does not listen")
		}
		time.Sleep(20 * time.Millisecond)
	}
	signer, err := torchwood.NewCosignatureSigner(name, key)
	if err != nil {
		t.Fatal(err)
	}
	return witness.Peer{Name: "lite", URL: "http://" + address, VKey: signer.Verifier().String()}
}

// TestLitewitnessOfOurs: our log is cosigned by litewitness as it grows, and a
// second log of its name is not.
func TestLitewitnessOfOurs(t *testing.T) {
	s, fork := open(t), open(t)
	plain, _ := s.keys.VKeys()
	peer := litewitness(t, "lite.test/w", origin, plain)
	var alarms []witness.Alarm
	publisher := func(s served) *witness.Publisher {
		p, err := witness.NewPublisher(witness.Config{Witnesses: []witness.Peer{peer}, Quorum: 1}, s.log,
			func(_ context.Context, a witness.Alarm) { alarms = append(alarms, a) }, quiet)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := publisher(s)
	have := 0
	for _, size := range []int{1, 255, 257, 1000} {
		s.grow(t, have, size)
		have = size
		if err := p.Publish(t.Context()); err != nil {
			t.Fatal(err)
		}
		c := p.Checkpoint()
		if got := p.Status(); got.State != health.Healthy || c.Size != int64(size) || !strings.HasPrefix(string(c.Others), "— lite.test/w ") {
			t.Fatalf("at %d: %+v, %d, %s", size, got, c.Size, c.Others)
		}
	}
	fork.grow(t, 0, 1500)
	forked := publisher(fork)
	if err := forked.Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := forked.Status(); got.State != health.Unhealthy || len(alarms) != 1 || len(forked.Checkpoint().Others) > 0 {
		t.Errorf("a fork: %+v, alarms %+v", got, alarms)
	}
}
