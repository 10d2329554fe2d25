package localaudit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/localaudit"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/internal/db/dbtest"
	"creto.dev/pqc/localpqc"
)

// sqliteOnly skips what is about files of ours: a server's are elsewhere.
func sqliteOnly(t *testing.T) {
	t.Helper()
	if dbtest.Engine(t) != dbtest.SQLite {
		t.Skip("the database's files are the server's own")
	}
}

// fill writes until no more than leave bytes are free, and returns the file.
func fill(t *testing.T, dir string, leave int64) string {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for n := 0; ; n++ {
		var disk unix.Statfs_t
		if err := unix.Statfs(dir, &disk); err != nil {
			t.Fatal(err)
		}
		free := int64(disk.Bavail)*disk.Bsize - leave
		if free < 4096 {
			break
		}
		if _, err := f.Write(make([]byte, min(free, 1<<20))); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return path
}

// Power cuts under load: what the disk (a file, under ext4) holds while the
// process stands still is all that the next life gets. What was durable is there,
// the rest is there or counted, and the log goes on.
func TestPowerCut(t *testing.T) {
	sqliteOnly(t)
	disk := audittest.NewDisk(t, 64)
	ledger := audittest.NewLedger()
	ledger.Durable = true
	cuts := min(lives(t), 60) / 3
	for life := range cuts {
		dir, location := filepath.Join(disk.Dir, "audit"), filepath.Join(disk.Dir, "creto.db")
		p := start(t, ledger, life, []string{willing, busy, stuck}[rand.IntN(3)], dir, location)
		p.await(t, p.acknowledged)
		time.Sleep(rand.N(150 * time.Millisecond))
		if err := p.Process.Signal(unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond) // each of its threads stands still
		if out, err := exec.Command("cp", "--sparse=always", disk.File, disk.File+".cut").CombinedOutput(); err != nil {
			t.Fatalf("cp: %v\n%s", err, out)
		}
		p.kill(t) // what it says until here, it said before the cut
		disk.Unmount(t)
		if err := os.Rename(disk.File+".cut", disk.File); err != nil {
			t.Fatal(err)
		}
		disk.Mount(t)
		newBoot(t, dir)
		check(t, ledger, dir, location, life == cuts-1)
	}
	gaps, lost, _ := ledger.Gaps()
	t.Logf("%d power cuts: %d records acknowledged; of those that were not durable %d are lost, %d of them counted in %d records", cuts, ledger.Acknowledged(), ledger.Missing(), lost, gaps)
}

// newBoot makes the ring one of another start of the kernel.
func newBoot(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "front.ring"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 16), 88); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// A log on a full disk is not opened, says so, and leaves no half ring behind.
func TestOpenFull(t *testing.T) {
	sqliteOnly(t)
	for name, dir := range map[string]string{"tmpfs": audittest.Tmpfs(t, 4), "ext4": audittest.NewDisk(t, 16).Dir} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			d := dbtest.OpenIn(t, data)
			front := filepath.Join(dir, "audit")
			filler := fill(t, dir, 32<<10) // half of what the ring needs
			if _, _, err := openAt(t.Context(), front, d); !errors.Is(err, fault.AuditUnavailable) || !strings.Contains(fault.Message(err), "full") {
				t.Errorf("Open on a full disk = %v, want AuditUnavailable and why", err)
			}
			if info, err := os.Stat(filepath.Join(front, "front.ring")); err == nil && info.Size() > 0 {
				t.Errorf("a ring of %d bytes is left", info.Size())
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			l, _, err := openAt(t.Context(), front, d)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.Log(t.Context(), audittest.Record(creto.CallModel, 1)); err != nil {
				t.Error(err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// The disk fills while records are logged: the database refuses them, the ring and
// the spool take what fits, from four fifths on Ping says so, and at the end what
// is security-relevant is denied and the rest counted. With room again all that
// was acknowledged is in the tree once, and one signed record has the count.
func TestFillsUp(t *testing.T) {
	sqliteOnly(t)
	disk := audittest.Tmpfs(t, 8)
	location := filepath.Join(disk, "creto.db")
	d, err := db.Open(t.Context(), location)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	l, _, err := openAt(t.Context(), filepath.Join(disk, "audit"), d)
	if err != nil {
		t.Fatal(err)
	}
	run(t, l)
	filler := fill(t, disk, 600<<10)
	logged := map[audit.RecordID]bool{}
	informational := map[audit.RecordID]bool{}
	warned, denied, after := false, 0, 0
	for n := 0; after < 50; n++ {
		if n > 50_000 {
			t.Fatal("the disk is never full")
		}
		r := audittest.Record(creto.CallModel, n)
		r.Why = strings.Repeat("x", 500)
		if _, err := l.Log(t.Context(), r); err == nil {
			logged[r.ID], informational[r.ID] = true, true
		}
		relevant := audittest.Record(creto.CallModel, n)
		relevant.Outcome = audit.Denied
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := l.Log(ctx, relevant)
		cancel()
		switch {
		case err == nil:
			logged[relevant.ID] = true
		case errors.Is(err, fault.AuditUnavailable):
			denied++
		default:
			t.Fatalf("Log on a full disk = %v, want AuditUnavailable", err)
		}
		if denied == 0 && errors.Is(l.Intake.Ping(), fault.AuditTimeout) {
			warned = true
		}
		if denied > 0 {
			after++
		}
	}
	if !warned || denied < 10 {
		t.Errorf("Ping warned before: %t; %d security-relevant records were denied", warned, denied)
	}
	if err := l.Ping(t.Context()); !errors.Is(err, fault.AuditTimeout) {
		t.Errorf("Ping without room = %v, want AuditTimeout", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	await(t, l, audit.EventAuditGap)
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	told := l.Acknowledged()
	time.Sleep(50 * time.Millisecond)
	if now := l.Acknowledged(); now != told {
		t.Errorf("%d records more, of what was told", now-told)
	}
	gaps, counted := 0, 0
	for _, e := range entries(t, l) {
		if e.Record.What == audit.EventAuditGap {
			n, err := strconv.Atoi(e.Record.Detail["counted"])
			if err != nil || e.Record.SignatureStatus != "valid" {
				t.Errorf("the gap's record says %+v", e.Record)
			}
			gaps, counted = gaps+1, counted+n
			continue
		}
		if !logged[e.Record.ID] {
			if e.Record.Outcome != audit.Denied {
				t.Errorf("record %s is there and was not acknowledged, or twice", e.Record.ID)
			}
			continue
		}
		delete(logged, e.Record.ID)
	}
	for id := range logged {
		if !informational[id] {
			t.Errorf("record %s was acknowledged as durable and is lost", id)
		}
	}
	if gaps != 1 || counted != len(logged) {
		t.Errorf("%d records tell of %d that were only counted; %d are not there", gaps, counted, len(logged))
	}
}

// The disk fails to sync from some moment on (EIO, injected by strace): nothing is
// acknowledged as durable any more, not even when a later sync succeeds, which
// proves nothing; the error says what to do; the next life has all that was.
func TestSyncFails(t *testing.T) {
	sqliteOnly(t)
	strace, err := exec.LookPath("strace")
	if err != nil {
		audittest.Unable(t, "there is no strace: run make debian")
	}
	for name, what := range map[string][]string{
		"the ring's, once":       {"-P", "%s/front.ring", "-e", "inject=fdatasync:error=EIO:when=9"},
		"the ring's, for good":   {"-P", "%s/front.ring", "-e", "inject=fdatasync:error=EIO:when=9+"},
		"every sync, for good":   {"-e", "inject=fsync,fdatasync:error=EIO:when=25+"},
		"the spool's names, all": {"-P", "%s", "-e", "inject=fsync:error=EIO:when=3+"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			dir, location := filepath.Join(root, "audit"), filepath.Join(root, "creto.db")
			ledger := audittest.NewLedger()
			first := start(t, ledger, 0, willing, dir, location) // makes the files
			first.await(t, first.acknowledged)
			first.kill(t)
			wrap := []string{strace, "-f", "-qq", "-o", filepath.Join(root, "trace"), "-e", "trace=fsync,fdatasync"}
			for _, arg := range what {
				if strings.Contains(arg, "%s") {
					arg = fmt.Sprintf(arg, dir)
				}
				wrap = append(wrap, arg)
			}
			mood := willing
			if strings.HasPrefix(name, "the spool's") {
				mood = stuck
			}
			p := start(t, ledger, 1, mood, dir, location, wrap...)
			p.await(t, p.acknowledged)
			for until := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				trace, err := os.ReadFile(filepath.Join(root, "trace"))
				if err == nil && strings.Contains(string(trace), "INJECTED") {
					break
				}
				if time.Now().After(until) {
					p.end(t)
					t.Fatalf("nothing failed: %v", err)
				}
			}
			time.Sleep(300 * time.Millisecond)
			p.end(t)
			if n := ledger.Believed(); n > 0 {
				t.Errorf("%d records were acknowledged as durable after the disk had failed", n)
			}
			if strings.HasPrefix(name, "the ring's") && ledger.Refused() == 0 {
				t.Error("nothing was refused")
			}
			// Without a spool there is no room, and what is informational is counted.
			ledger.Durable = true
			check(t, ledger, dir, location, true)
			if ledger.Missing() == 0 {
				return
			}
			l := open(t, root, func(c *localaudit.Config) { c.Intake = tight(dir) })
			run(t, l.log)
			for until := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				ledger.Check(t, audittest.Harness{Log: l.log, Provider: localpqc.New(), Keys: l.keys})
				records, _, counted := ledger.Gaps()
				if counted >= uint64(ledger.Missing()) { // a repetition that was counted, too
					break
				}
				if time.Now().After(until) {
					t.Fatalf("%d records say that %d are only counted; %d are not there", records, counted, ledger.Missing())
				}
			}
		})
	}
}

// A disk that fails to sync what an earlier life left (EIO, injected by strace)
// is not built on: the log is not opened.
func TestSyncFailsAtStart(t *testing.T) {
	sqliteOnly(t)
	strace, err := exec.LookPath("strace")
	if err != nil {
		audittest.Unable(t, "there is no strace: run make debian")
	}
	for file, call := range map[string]string{"front.ring": "fdatasync", "spool-*": "fsync", ".": "fsync"} {
		t.Run(file, func(t *testing.T) {
			root := t.TempDir()
			dir, location := filepath.Join(root, "audit"), filepath.Join(root, "creto.db")
			ledger := audittest.NewLedger()
			var found []string
			for life := 0; len(found) == 0; life++ {
				p := start(t, ledger, life, stuck, dir, location)
				p.await(t, p.acknowledged)
				time.Sleep(200 * time.Millisecond)
				p.kill(t)
				if found, err = filepath.Glob(filepath.Join(dir, file)); err != nil || life > 20 {
					t.Fatalf("there is no %s: %v", file, err)
				}
			}
			p := start(t, ledger, 99, willing, dir, location, strace, "-f", "-qq", "-o", filepath.Join(root, "trace"),
				"-P", found[0], "-e", "trace=fsync,fdatasync", "-e", "inject="+call+":error=EIO:when=1+")
			select {
			case <-p.acknowledged:
				t.Error("the log was opened, and acknowledges")
				p.end(t)
			case <-p.ended():
			}
			if words := strings.Join(p.words, " "); !strings.Contains(words, "AuditUnavailable") && !strings.Contains(words, "disk") && !strings.Contains(words, "spool") {
				t.Errorf("the victim says %q", words)
			}
			check(t, ledger, dir, location, true)
		})
	}
}

// A disk whose file system goes read-only under the log (as ext4 does on an
// error): nothing is acknowledged as durable, Ping says so, a log is not opened on
// it; and when it is mounted again all that was acknowledged as durable is there.
func TestReadOnly(t *testing.T) {
	sqliteOnly(t)
	disk := audittest.NewDisk(t, 64)
	dir, location := filepath.Join(disk.Dir, "audit"), filepath.Join(disk.Dir, "creto.db")
	ledger := audittest.NewLedger()
	ledger.Durable = true
	d, err := db.Open(t.Context(), location)
	if err != nil {
		t.Fatal(err)
	}
	l, h, err := openAt(t.Context(), dir, d)
	if err != nil {
		t.Fatal(err)
	}
	out := &lines{ledger: ledger}
	ctx, stop := cancelled(t)
	var group sync.WaitGroup
	group.Go(func() { _ = l.Run(ctx) })
	group.Go(func() { _ = audittest.Load(ctx, l, h.Provider, 0, 2, out) })
	time.Sleep(200 * time.Millisecond)
	disk.Abort(t)
	time.Sleep(200 * time.Millisecond)
	stop()
	group.Wait()
	denied := audittest.Record(creto.CallModel, 1)
	denied.Outcome = audit.Denied
	if _, err := l.Log(t.Context(), denied); !errors.Is(err, fault.AuditUnavailable) {
		t.Errorf("Log on a read-only disk = %v, want AuditUnavailable", err)
	}
	// A ring that was full at that moment is not synced again: then there is no room.
	if err := l.Ping(t.Context()); !errors.Is(err, fault.AuditTimeout) && (!errors.Is(err, fault.AuditUnavailable) || !strings.Contains(fault.Message(err), "repair it and restart")) {
		t.Errorf("Ping on a read-only disk = %v, want AuditUnavailable and what to do, or AuditTimeout", err)
	}
	if err := errors.Join(l.Close(), d.Close()); err != nil {
		t.Logf("closing: %v", err)
	}
	if d, err := db.Open(t.Context(), location); err == nil {
		_, _, err = openAt(t.Context(), dir, d)
		if !errors.Is(err, fault.AuditUnavailable) && !errors.Is(err, fault.Unavailable) {
			t.Errorf("Open on a read-only disk = %v, want Unavailable", err)
		}
		_ = d.Close()
	}
	disk.Unmount(t)
	disk.Mount(t)
	newBoot(t, dir)
	check(t, ledger, dir, location, true)
	if ledger.Refused() == 0 || ledger.Acknowledged() < 20 {
		t.Errorf("%d records were acknowledged and %d refused; the test shows little", ledger.Acknowledged(), ledger.Refused())
	}
}

// lines gives what is written to a ledger.
type lines struct{ ledger *audittest.Ledger }

func (l *lines) Write(p []byte) (int, error) {
	if !l.ledger.Read(string(p)) {
		return 0, io.ErrUnexpectedEOF
	}
	return len(p), nil
}
