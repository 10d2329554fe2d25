package localaudit_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/consensus/localconsensus"
	"creto.dev/internal/db"
	"creto.dev/internal/db/dbtest"
	"creto.dev/internal/journal"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// Of the victim: these make the test binary one, and say where its journal and
// its database are, which life it is, and how the database treats it.
const (
	victimEnv   = "CRETO_TEST_AUDIT_DIR"
	databaseEnv = "CRETO_TEST_AUDIT_DATABASE"
	lifeEnv     = "CRETO_TEST_AUDIT_LIFE"
	moodEnv     = "CRETO_TEST_AUDIT_MOOD"
)

// The moods of a database.
const (
	willing = "willing"
	busy    = "busy"  // somebody else writes every few milliseconds
	stuck   = "stuck" // somebody else holds the turn to write
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimEnv); dir != "" {
		fmt.Println("died", victim(context.Background(), dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// tight is a front that laps and spills at once.
func tight(dir string) intake.Config {
	return intake.Config{
		Journal: journal.Config{Dir: dir, RingBytes: 64 << 10, Slots: 64, Patience: time.Millisecond, SpoolBytes: 64 << 20},
		Flush:   3 * time.Millisecond, Batch: 20,
	}
}

// openAt opens the log with a front in dir and the database d.
func openAt(ctx context.Context, dir string, d *sql.DB) (*localaudit.Log, audittest.Harness, error) {
	clock, err := localconsensus.Open(ctx, d, "n1")
	if err != nil {
		return nil, audittest.Harness{}, err
	}
	p := localpqc.New()
	signer, err := audittest.Signer(p, origin)
	if err != nil {
		return nil, audittest.Harness{}, err
	}
	key := pqc.NewSymmetricKey(pqc.AES256GCM, make([]byte, pqc.SymmetricKeySize))
	l, err := localaudit.Open(ctx, localaudit.Config{Intake: tight(dir)}, d, p, clock, signer, key, slog.New(slog.DiscardHandler))
	return l, audittest.Harness{Log: l, Provider: p, Keys: signer.Keys()}, err
}

// victim logs until it is killed.
func victim(ctx context.Context, dir string) error {
	d, err := db.Open(ctx, os.Getenv(databaseEnv))
	if err != nil {
		return err
	}
	life, err := strconv.Atoi(os.Getenv(lifeEnv))
	if err != nil {
		return err
	}
	fmt.Println("opening")
	l, _, err := openAt(ctx, dir, d)
	if err != nil {
		return err
	}
	fmt.Println("open")
	go func() { _ = l.Run(ctx) }()
	go func() { disturb(ctx, os.Getenv(moodEnv)) }()
	return audittest.Load(ctx, l, localpqc.New(), life, 4, os.Stdout)
}

// disturb takes the turn to write away from the log.
func disturb(ctx context.Context, mood string) {
	if mood == willing {
		return
	}
	d, err := db.Open(ctx, os.Getenv(databaseEnv))
	if err != nil {
		return
	}
	for ctx.Err() == nil {
		_ = db.Tx(ctx, d, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, "DELETE FROM clock WHERE name = 'nobody'"); err != nil {
				return err
			}
			if mood == stuck {
				<-ctx.Done()
			}
			time.Sleep(rand.N(30 * time.Millisecond))
			return nil
		})
		time.Sleep(rand.N(10 * time.Millisecond))
	}
}

// process is a victim as its killer sees it.
type process struct {
	*exec.Cmd

	opening, acknowledged chan struct{} // closed when it says so
	said                  sync.WaitGroup
	mu                    sync.Mutex
	words                 []string // that are no acknowledgement
	errors                bytes.Buffer
}

// start starts a victim whose acknowledgements go into the ledger.
func start(t *testing.T, ledger *audittest.Ledger, life int, mood, dir, location string, wrap ...string) *process {
	t.Helper()
	args := append(wrap, os.Args[0])
	p := &process{Cmd: exec.Command(args[0], args[1:]...), opening: make(chan struct{}), acknowledged: make(chan struct{})}
	p.Env = append(os.Environ(), victimEnv+"="+dir, databaseEnv+"="+location, lifeEnv+"="+strconv.Itoa(life), moodEnv+"="+mood)
	p.Stderr = &p.errors
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	p.said.Go(func() {
		first := true
		for lines := bufio.NewScanner(out); lines.Scan(); {
			switch line := lines.Text(); {
			case ledger.Read(line):
				if first && strings.HasPrefix(line, "acknowledged") {
					first = false
					close(p.acknowledged)
				}
			case line == "opening":
				close(p.opening)
			default:
				p.mu.Lock()
				p.words = append(p.words, line)
				p.mu.Unlock()
			}
		}
	})
	return p
}

// await waits until the victim says what closes said.
func (p *process) await(t *testing.T, said <-chan struct{}) {
	t.Helper()
	select {
	case <-said:
	case <-time.After(30 * time.Second):
		_ = p.Process.Kill()
		p.said.Wait()
		t.Fatalf("the victim says nothing: %v\n%s", p.words, p.errors.String())
	}
}

// kill ends the victim, if nothing else has.
func (p *process) kill(t *testing.T) {
	t.Helper()
	_ = p.Process.Kill()
	p.said.Wait()
	_ = p.Wait()
	if status, ok := p.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the victim ended by itself: %v, %v\n%s", p.ProcessState, p.words, p.errors.String())
	}
}

// end ends the victim below another program, which ends with it.
func (p *process) end(t *testing.T) {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.Process.Pid, p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, child := range strings.Fields(string(children)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	p.said.Wait()
	_ = p.Wait()
}

// ended is closed when the victim has ended by itself.
func (p *process) ended() <-chan struct{} {
	done := make(chan struct{})
	go func() {
		p.said.Wait()
		_ = p.Wait()
		close(done)
	}()
	return done
}

// cancelled returns a context that ends when it is told to, or with the test.
func cancelled(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(context.WithoutCancel(t.Context()))
}

// check opens the log in this process and holds it to the ledger.
func check(t *testing.T, ledger *audittest.Ledger, dir, location string, whole bool) {
	t.Helper()
	d, err := db.Open(t.Context(), location)
	if err != nil {
		t.Fatal(err)
	}
	l, h, err := openAt(t.Context(), dir, d)
	if err != nil {
		t.Fatal(err)
	}
	ledger.Check(t, h)
	if whole {
		ledger.Prove(t, h)
		checked, err := l.Fsck(t.Context(), ledger.Heads(), func(p localaudit.Problem) { t.Errorf("fsck: %+v", p) })
		if err != nil || checked.Size == 0 {
			t.Errorf("Fsck = %+v, %v", checked, err)
		}
	}
	if err := errors.Join(l.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
}

// lives is how many times a process is killed: 20, with CRETO_TORTURE=1 200, or
// what CRETO_TEST_LIVES says (scripts/kill-log).
func lives(t *testing.T) int {
	t.Helper()
	if text := os.Getenv("CRETO_TEST_LIVES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if os.Getenv("CRETO_TORTURE") != "" {
		return 200
	}
	return 20
}

// kill -9 at random moments, also while the log is opened, with a database that
// is willing, busy, stuck, or (PostgreSQL) killed itself: each acknowledged record
// is in the tree once, in order, proven and readable, and every head extends those
// of the lives before.
func TestKill(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "audit")
	location := filepath.Join(root, "creto.db")
	var server *dbtest.Server
	if dbtest.Engine(t) == dbtest.PostgreSQL {
		server = dbtest.NewServer(t)
		location = server.URL("")
	}
	ledger := audittest.NewLedger()
	moods := map[string]int{}
	inOpen, lives := 0, lives(t)
	begin := time.Now()
	for life := range lives {
		mood := []string{willing, busy, stuck}[rand.IntN(3)]
		moods[mood]++
		if rand.IntN(4) == 0 { // one that does not get far
			p := start(t, ledger, life, willing, dir, location)
			p.await(t, p.opening)
			time.Sleep(rand.N(12 * time.Millisecond))
			p.kill(t)
			inOpen++
		}
		p := start(t, ledger, life, mood, dir, location)
		p.await(t, p.acknowledged)
		time.Sleep(time.Millisecond + rand.N(80*time.Millisecond))
		if server != nil && life%5 == 3 {
			server.Stop(t)
			time.Sleep(rand.N(100 * time.Millisecond))
			if life%2 == 0 { // both are down
				p.kill(t)
			}
			server.Start(t)
			time.Sleep(rand.N(50 * time.Millisecond))
		}
		if p.ProcessState == nil {
			p.kill(t)
		}
		check(t, ledger, dir, location, life%10 == 9 && lives <= 20)
	}
	check(t, ledger, dir, location, true)
	if gaps, lost, counted := ledger.Gaps(); gaps != 0 {
		t.Errorf("%d records tell of gaps: %d lost, %d counted", gaps, lost, counted)
	}
	n := ledger.Acknowledged()
	t.Logf("%d lives, and %d that ended while the log was opened, in %v: %d records acknowledged, %d refused, none lost or doubled; %v",
		lives, inOpen, time.Since(begin).Round(time.Second), n, ledger.Refused(), moods)
	if n < 10*lives {
		t.Errorf("only %d records were acknowledged; the test shows little", n)
	}
}

// entries are all of a log.
func entries(t *testing.T, l audit.Log) []audit.Entry {
	t.Helper()
	var all []audit.Entry
	for f := (audit.Filter{Oldest: true, Limit: audit.MaxPage}); ; {
		page, err := l.Query(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page...)
		if len(page) < f.Limit {
			return all
		}
		f.From = page[len(page)-1].Index + 1
	}
}
