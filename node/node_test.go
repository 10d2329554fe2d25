package node_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	"creto.dev/node"
	"creto.dev/sandbox"
)

// options are those of a node in dir, at a free port.
func options(t testing.TB, dir string) node.Options {
	t.Helper()
	cfg := node.Default()
	cfg.Server.Listen = "localhost:0"
	if dbtest.Engine(t) == dbtest.PostgreSQL {
		cfg.Database.URL = creto.NewSecret(dbtest.Location(t, dir))
	}
	return node.Options{DataDir: dir, Version: "test", Config: cfg, Log: slog.New(slog.DiscardHandler)}
}

// running starts a node and returns its client, and a function that stops it.
func running(t *testing.T, o node.Options) (*node.Node, *client.Client, func()) {
	t.Helper()
	n, err := node.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(filepath.Join(o.DataDir, client.SocketName), creto.Secret{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	stop := func() {
		t.Helper()
		cancel()
		if err := errors.Join(<-done, n.Close()); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	return n, c, stop
}

// settled waits until no more goroutines run than before, but for those of idle
// HTTP connections, which it closes.
func settled(t *testing.T, before int) {
	t.Helper()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines run, %d did before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	dir := t.TempDir()
	for range 3 { // each finds everything given back by the one before
		n, err := node.Open(t.Context(), options(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		// Without Run, and twice.
		if err := errors.Join(n.Close(), n.Close()); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	settled(t, before)
}

func TestRun(t *testing.T) {
	before := runtime.NumGoroutine()
	o := options(t, t.TempDir())
	for range 2 {
		_, c, stop := running(t, o)
		if _, err := c.Status(t.Context()); err != nil {
			t.Error(err)
		}
		if _, _, err := c.Health(t.Context()); err != nil {
			t.Error(err)
		}
		c.Close()
		stop()
	}
	settled(t, before)
}

// TestOpenFails: whatever stage fails, everything is given back, so that a second
// try in the same process works.
func TestOpenFails(t *testing.T) {
	taken, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	write := func(name, text string) func(*testing.T, *node.Options) {
		return func(t *testing.T, o *node.Options) {
			t.Helper()
			path := filepath.Join(o.DataDir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name  string
		spoil func(*testing.T, *node.Options)
		mend  string // the file to remove
		code  fault.Code
		says  string
	}{
		{"port in use", func(_ *testing.T, o *node.Options) { o.Config.Server.Listen = taken.Addr().String() }, "", fault.Unavailable, "choose another with --listen"},
		{"damaged database", func(t *testing.T, o *node.Options) {
			t.Helper()
			write("creto.db", "this is not a database, whatever its name says")(t, o)
			o.Config.Database.URL = creto.Secret{}
		}, "creto.db", 0, "database"},
		{"no server", func(_ *testing.T, o *node.Options) {
			o.Config.Database.URL = creto.NewSecret("postgres://creto:canary@localhost:1/creto")
		}, "", fault.Unavailable, "the database cannot be reached"},
		{"another database", func(_ *testing.T, o *node.Options) {
			o.Config.Database.URL = creto.NewSecret("mysql://creto:canary@localhost/creto")
		}, "", fault.InvalidArgument, "database.url: it does not begin with postgres://"},
		{"damaged key", write("keys/kek", "short\n"), "keys/kek", fault.DataLoss, "restore it from a backup"},
		{"bad policy", write("policies/x.cedar", "permit ("), "policies/x.cedar", fault.InvalidArgument, "x.cedar"},
		{"bad configuration", func(_ *testing.T, o *node.Options) { o.Config.Server.Listen = "nonsense" }, "", fault.InvalidArgument, "nonsense"},
		{"bad console", func(_ *testing.T, o *node.Options) { o.Config.Console.Origin = "http://127.0.0.1" }, "", fault.InvalidArgument, "console"},
		{"a file for a directory", write("run", ""), "run", fault.Unavailable, "choose another with --data"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			o := options(t, t.TempDir())
			good := o
			test.spoil(t, &o)
			n, err := node.Open(t.Context(), o)
			if err == nil {
				_ = n.Close()
				t.Fatal("Open succeeded")
			}
			if test.code != 0 && !errors.Is(err, test.code) || !strings.Contains(fault.Message(err), test.says) {
				t.Errorf("Open = %v (%q), want %v with %q", err, fault.Message(err), test.code, test.says)
			}
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("Open shows a password: %v", err)
			}
			settled(t, before)
			if test.mend != "" {
				if err := os.Remove(filepath.Join(o.DataDir, test.mend)); err != nil {
					t.Fatal(err)
				}
			}
			if n, err = node.Open(t.Context(), good); err != nil {
				t.Fatalf("the second try: %v", err)
			}
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOpenTwice(t *testing.T) {
	dir := t.TempDir()
	n, err := node.Open(t.Context(), options(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	if _, err := node.Open(t.Context(), options(t, dir)); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("a second Open of one directory = %v, want FailedPrecondition", err)
	}
	// It has not taken the first one's socket away.
	if _, err := os.Stat(filepath.Join(dir, client.SocketName)); err != nil {
		t.Error(err)
	}
}

// TestOpenCanceled: an impatient user leaves nothing behind.
func TestOpenCanceled(t *testing.T) {
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := node.Open(ctx, options(t, t.TempDir())); err == nil {
		_ = n.Close()
		t.Error("Open under an ended context succeeded")
	}
	settled(t, before)
}

func TestDataDir(t *testing.T) {
	t.Run("relative", func(t *testing.T) {
		t.Chdir(t.TempDir())
		n, err := node.Open(t.Context(), options(t, "some data"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = n.Close() }()
		if status, err := n.Status(t.Context()); err != nil || !filepath.IsAbs(status.DataDir) {
			t.Errorf("Status = %+v, %v; want an absolute directory", status, err)
		}
	})
	t.Run("private", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		_, _, stop := running(t, options(t, dir))
		defer stop()
		err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().Perm()&0o077 != 0 && filepath.Dir(path) != dir {
				t.Errorf("%s is open to others: %v", path, info.Mode())
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("the directory is %v, %v; want it closed to others", info.Mode(), err)
		}
	})
	t.Run("what a crash left", func(t *testing.T) {
		o := options(t, t.TempDir())
		orphan := filepath.Join(o.DataDir, "run", "run-00000000")
		if err := os.MkdirAll(orphan, 0o700); err != nil {
			t.Fatal(err)
		}
		_, _, stop := running(t, o)
		defer stop()
		if _, err := os.Stat(orphan); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the directory of a run that never was is left: %v", err)
		}
	})
}

// supervisor is a process that a run belongs to.
func supervisor(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func count(t *testing.T, c *client.Client, what string) int {
	t.Helper()
	list, err := c.Receipts(t.Context(), client.Query{What: what, Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestRuns(t *testing.T) {
	before := runtime.NumGoroutine()
	o := options(t, t.TempDir())
	n, c, stop := running(t, o)
	if _, err := c.AddAgent(t.Context(), client.NewAgent{Name: "bob"}); err != nil {
		t.Fatal(err)
	}
	owner := supervisor(t)
	start := client.NewRun{Agent: "bob", Isolation: "namespaces", Engine: "test", Command: []string{"one\ntwo"}, Dir: "/w", PID: owner.Process.Pid}
	for name, bad := range map[string]client.NewRun{
		"no command":    {Agent: "bob", PID: owner.Process.Pid},
		"no supervisor": {Agent: "bob", Command: []string{"true"}},
		"dead one":      {Agent: "bob", Command: []string{"true"}, PID: 1 << 30},
		"unknown agent": {Agent: "nobody", Command: []string{"true"}, PID: owner.Process.Pid},
	} {
		if r, err := c.StartRun(t.Context(), bad); err == nil {
			t.Errorf("StartRun with %s = %+v", name, r)
		}
	}
	run, err := c.StartRun(t.Context(), start)
	if err != nil {
		t.Fatal(err)
	}
	reachable := func() error {
		conn, err := net.Dial("unix", filepath.Join(run.GatewayDir, sandbox.SocketName))
		if err == nil {
			err = conn.Close()
		}
		return err
	}
	if err := reachable(); err != nil {
		t.Errorf("the run's gateway: %v", err)
	}
	if entries, err := os.ReadDir(run.GatewayDir); err != nil || len(entries) != 1 {
		t.Errorf("the sandbox sees %v, %v; want the socket alone", entries, err)
	}
	// A report that comes twice is recorded once.
	for range 2 {
		if err := c.RunStarted(t.Context(), run.ID, client.RunStarted{StartNS: 1}); err != nil {
			t.Error(err)
		}
	}
	idle, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	if err := n.Idle(idle); err == nil {
		t.Error("Idle returned while a run is under way")
	}
	cancel()

	// The node restarts, the run goes on.
	c.Close()
	stop()
	n, c, stop = running(t, o)
	for deadline := time.Now().Add(10 * time.Second); reachable() != nil; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the run's gateway did not come back")
		}
	}
	for range 2 {
		if err := c.EndRun(t.Context(), run.ID, client.RunEnded{ExitCode: 3}); err != nil {
			t.Error(err)
		}
	}
	if err := n.Idle(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.EndRun(t.Context(), "run-none", client.RunEnded{}); !errors.Is(err, fault.NotFound) {
		t.Errorf("EndRun of no run = %v, want NotFound", err)
	}
	if _, err := os.Stat(run.GatewayDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the run's directory is left: %v", err)
	}
	for _, what := range []string{"sandbox_spawned", "sandbox_terminated"} {
		if got := count(t, c, what); got != 1 {
			t.Errorf("%d records of %s, want 1", got, what)
		}
	}

	// A supervisor that dies ends its run.
	if _, err = c.StartRun(t.Context(), start); err != nil {
		t.Fatal(err)
	}
	_ = owner.Process.Kill()
	_ = owner.Wait()
	dead, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := n.Idle(dead); err != nil {
		t.Errorf("the run of a dead supervisor goes on: %v", err)
	}
	list, err := c.Receipts(t.Context(), client.Query{What: "sandbox_terminated", Limit: 1})
	if err != nil || len(list) != 1 || list[0].Record.Outcome != "unknown" {
		t.Errorf("its end is recorded as %+v, %v; want unknown", list, err)
	}
	c.Close()
	stop()
	settled(t, before)
}

// TestLog: what is logged holds neither a login nor a token.
func TestLog(t *testing.T) {
	var log bytes.Buffer
	o := options(t, t.TempDir())
	o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	n, c, stop := running(t, o)
	login, err := n.BootstrapLogin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddAgent(t.Context(), client.NewAgent{Name: "bob"}); err != nil {
		t.Fatal(err)
	}
	token, err := c.Token(t.Context(), "bob", client.NewToken{})
	if err != nil {
		t.Fatal(err)
	}
	stop()
	_, code, _ := strings.Cut(login, "code=")
	for what, secret := range map[string]string{"login": code, "token": token.Token} {
		if secret == "" || strings.Contains(log.String(), secret) {
			t.Errorf("the log holds the %s:\n%s", what, log.String())
		}
	}
}

// TestStopUnderLoad: what is cut off by a stop is recorded all the same.
func TestStopUnderLoad(t *testing.T) {
	before := runtime.NumGoroutine()
	arrived := make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	}))
	o := options(t, t.TempDir())
	o.Config.Egress.Hosts = map[string]string{"shop.test": strings.TrimPrefix(upstream.URL, "http://")}
	_, c, stop := running(t, o)
	if _, err := c.AddAgent(t.Context(), client.NewAgent{Name: "bob", Allow: []string{"http_request=GET http://shop.test/*", "network_egress=shop.test:80"}}); err != nil {
		t.Fatal(err)
	}
	run, err := c.StartRun(t.Context(), client.NewRun{Agent: "bob", Isolation: "namespaces", Command: []string{"x"}, Dir: "/w", PID: os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	const requests = 8
	var group sync.WaitGroup
	for i := range requests {
		group.Go(func() {
			conn, err := net.Dial("unix", filepath.Join(run.GatewayDir, sandbox.SocketName))
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			text := "GET http://shop.test/slow HTTP/1.1\r\nHost: shop.test\r\n\r\n"
			if i%2 == 1 { // a tunnel, which outlives the server's own list of connections
				text = "CONNECT shop.test:80 HTTP/1.1\r\nHost: shop.test:80\r\n\r\n"
			}
			_, _ = io.WriteString(conn, text)
			if i%2 == 1 {
				if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
					t.Errorf("the tunnel: %v", err)
				}
				_, _ = io.WriteString(conn, "GET /slow HTTP/1.1\r\nHost: shop.test\r\n\r\n")
			}
			_, _ = io.Copy(io.Discard, conn) // until it is cut
		})
	}
	for range requests {
		<-arrived
	}
	c.Close()
	stop()
	group.Wait()
	upstream.Close()
	settled(t, before)

	_, c, stop = running(t, o)
	defer stop()
	for what, want := range map[string]int{"http_request": requests / 2, "network_egress": requests / 2} {
		if got := count(t, c, what); got != want {
			t.Errorf("%d records of %s, want %d", got, what, want)
		}
	}
	c.Close()
}
