package remoteaudit_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/audit/remoteaudit"
	"creto.dev/call"
	"creto.dev/consensus/localconsensus"
	"creto.dev/internal/db"
	"creto.dev/internal/db/dbtest"
	"creto.dev/internal/journal"
	"creto.dev/internal/wire"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// Of a victim: these make the test binary one end, in a directory, and number its
// life.
const (
	endEnv  = "CRETO_TEST_AUDIT_END"
	dirEnv  = "CRETO_TEST_AUDIT_DIR"
	lifeEnv = "CRETO_TEST_AUDIT_LIFE"
)

func TestMain(m *testing.M) {
	ends := map[string]func(context.Context, string) error{"client": client, "server": server}
	if end := ends[os.Getenv(endEnv)]; end != nil {
		fmt.Println("died", end(context.Background(), os.Getenv(dirEnv)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// front is a journal in dir that laps and spills at once.
func front(dir string) intake.Config {
	return intake.Config{
		Journal: journal.Config{Dir: dir, RingBytes: 64 << 10, Slots: 64, Patience: time.Millisecond, SpoolBytes: 64 << 20},
		Flush:   3 * time.Millisecond, Batch: 20,
	}
}

func socket(dir string) string { return filepath.Join(dir, "s") }

// openServer opens the log in dir.
func openServer(ctx context.Context, dir string) (*localaudit.Log, audittest.Harness, error) {
	d, err := db.Open(ctx, filepath.Join(dir, "creto.db"))
	if err != nil {
		return nil, audittest.Harness{}, err
	}
	p := localpqc.New()
	clock, err := localconsensus.Open(ctx, d, "server")
	if err != nil {
		return nil, audittest.Harness{}, err
	}
	signer, err := audittest.Signer(p, origin)
	if err != nil {
		return nil, audittest.Harness{}, err
	}
	key := pqc.NewSymmetricKey(pqc.AES256GCM, make([]byte, pqc.SymmetricKeySize))
	l, err := localaudit.Open(ctx, localaudit.Config{Intake: front(filepath.Join(dir, "server"))}, d, p, clock, signer, key, quiet)
	return l, audittest.Harness{Log: l, Provider: p, Keys: signer.Keys()}, err
}

// openClient opens the client whose journal is in dir.
func openClient(ctx context.Context, dir string) (*remoteaudit.Log, error) {
	conn, err := wire.Dial(wire.Config{Address: "unix:" + socket(dir)})
	if err != nil {
		return nil, err
	}
	d, err := db.Open(ctx, filepath.Join(dir, "client.db"))
	if err != nil {
		return nil, err
	}
	p := localpqc.New()
	clock, err := localconsensus.Open(ctx, d, "client")
	if err != nil {
		return nil, err
	}
	signer, err := audittest.Signer(p, origin)
	if err != nil {
		return nil, err
	}
	sign := func(r audit.Record) (pqc.Signature, pqc.PublicKey, error) {
		sig, err := signer.SignRecord(r)
		return sig, signer.Keys().Key, err
	}
	return remoteaudit.Open(remoteaudit.Config{
		Intake: front(filepath.Join(dir, "client")), Name: origin,
		Policy: call.Policy{Timeout: 5 * time.Second, Attempts: 2, InitialDelay: time.Millisecond, MaxDelay: 2 * time.Millisecond},
		Self:   creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: creto.KindWorkload, Name: "client"},
	}, conn, p, clock, sign, quiet)
}

// server serves the log until it is killed.
func server(ctx context.Context, dir string) error {
	l, _, err := openServer(ctx, dir)
	if err != nil {
		return err
	}
	go func() { _ = l.Run(ctx) }()
	s := grpc.NewServer(wire.ServerOptions(wire.ServerConfig{Log: quiet})...)
	remoteaudit.Register(s, l)
	listener, err := listen(ctx, dir)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return s.Serve(listener)
}

func listen(ctx context.Context, dir string) (net.Listener, error) {
	if err := os.Remove(socket(dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return (&net.ListenConfig{}).Listen(ctx, "unix", socket(dir))
}

// client logs until it is killed.
func client(ctx context.Context, dir string) error {
	life, err := strconv.Atoi(os.Getenv(lifeEnv))
	if err != nil {
		return err
	}
	l, err := openClient(ctx, dir)
	if err != nil {
		return err
	}
	go func() { _ = l.Run(ctx) }()
	fmt.Println("ready")
	return audittest.Load(ctx, l, localpqc.New(), life, 4, os.Stdout)
}

// process is one end as its killer sees it.
type process struct {
	*exec.Cmd

	ready chan struct{} // closed when it says so, or ends
	said  sync.WaitGroup
	out   bytes.Buffer
}

func start(t *testing.T, ledger *audittest.Ledger, end, dir string, life int) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0]), ready: make(chan struct{})}
	p.Env = append(os.Environ(), endEnv+"="+end, dirEnv+"="+dir, lifeEnv+"="+strconv.Itoa(life))
	p.Stderr = &p.out
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	p.said.Go(func() {
		once := sync.OnceFunc(func() { close(p.ready) })
		defer once()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if !ledger.Read(lines.Text()) && strings.HasPrefix(lines.Text(), "ready") {
				once()
			}
		}
	})
	return p
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	_ = p.Process.Kill()
	p.said.Wait()
	_ = p.Wait()
	if status, ok := p.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("an end ended by itself: %v\n%s", p.ProcessState, p.out.String())
	}
}

// kill -9 of either end at random moments, also while it starts: each record that
// the client acknowledged is in the server's tree once, and proven.
func TestKill(t *testing.T) {
	if dbtest.Engine(t) != dbtest.SQLite {
		t.Skip("package localaudit kills PostgreSQL")
	}
	kills := 20
	if text := os.Getenv("CRETO_TEST_LIVES"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	} else if os.Getenv("CRETO_TORTURE") != "" {
		kills = 200
	}
	dir := t.TempDir()
	ledger := audittest.NewLedger()
	killed := map[string]int{}
	ends := map[string]*process{}
	for life := range kills {
		for _, end := range []string{"client", "server"} {
			if ends[end] != nil {
				continue
			}
			ends[end] = start(t, ledger, end, dir, life)
			if rand.IntN(3) > 0 {
				select {
				case <-ends[end].ready:
				case <-time.After(30 * time.Second):
					t.Fatalf("the %s says nothing", end)
				}
			}
		}
		time.Sleep(rand.N(120 * time.Millisecond))
		end := []string{"client", "server"}[rand.IntN(2)]
		ends[end].kill(t)
		killed[end]++
		ends[end] = nil
		if life%5 == 4 || life == kills-1 {
			for _, p := range ends {
				if p != nil {
					p.kill(t)
				}
			}
			clear(ends)
			drain(t, ledger, dir, life == kills-1)
		}
	}
	t.Logf("killed %v: %d records acknowledged, %d refused, none lost or doubled", killed, ledger.Acknowledged(), ledger.Refused())
	if ledger.Acknowledged() < 10*kills {
		t.Errorf("only %d records were acknowledged; the test shows little", ledger.Acknowledged())
	}
}

// drain opens both ends in this process, hands on what waits, and holds the log to
// the ledger.
func drain(t *testing.T, ledger *audittest.Ledger, dir string, whole bool) {
	t.Helper()
	local, h, err := openServer(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, local)
	s := grpc.NewServer(wire.ServerOptions(wire.ServerConfig{Log: quiet})...)
	remoteaudit.Register(s, local)
	listener, err := listen(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(listener) }()
	remote, err := openClient(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(remote.Flush(t.Context()), remote.Close()); err != nil {
		t.Fatal(err)
	}
	ledger.Check(t, h)
	if whole {
		ledger.Prove(t, h)
		if _, err := local.Fsck(t.Context(), ledger.Heads(), func(p localaudit.Problem) { t.Errorf("fsck: %+v", p) }); err != nil {
			t.Error(err)
		}
	}
	if gaps, _, _ := ledger.Gaps(); gaps != 0 {
		t.Errorf("%d records tell of gaps", gaps)
	}
	s.Stop()
	stop()
}
