package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"creto.dev/sandbox"
	"creto.dev/sandbox/gvisor"
	"creto.dev/sandbox/namespaces"
)

// requireEnv turns tests that skip for want of an engine into failures.
const requireEnv = "CRETO_TEST_REQUIRE"

// skip ends a test that needs what is not here.
func skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(requireEnv) == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// bin is the directory of the programs under test, as they are shipped: without
// cgo, since the first process in a sandbox must be a static program and this
// test, built with -race, is none.
var bin string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "creto-test-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin = filepath.Join(dir, "bin")
	// Other users run it too.
	err = errors.Join(os.Chmod(dir, 0o755), build(".", "creto", "."))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build compiles a package of the module in dir to a program.
func build(dir, program, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(bin, program), pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", program, err, out)
	}
	return nil
}

// buildExample compiles the programs of examples, once.
var buildExample = sync.OnceValue(func() error {
	dir := filepath.Join("..", "..", "examples", "shop-bot")
	return errors.Join(build(dir, "shop-agent", "./agent"), build(dir, "shop-api", "./shop"), build(dir, "shop-model", "./model"), build(filepath.Join("..", ".."), "soft-passkey", "./examples/soft-passkey"))
})

// sandboxed reports why no sandbox can be built here.
var sandboxed = sync.OnceValue(func() error {
	var errs []error
	for _, b := range []sandbox.Backend{gvisor.New(gvisor.Config{}), namespaces.New()} {
		err := b.Available(context.Background())
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
})

// needSandbox skips a test where none can be built.
func needSandbox(t testing.TB) {
	t.Helper()
	if err := sandboxed(); err != nil {
		skip(t, "no sandbox works here; run as root, or install runsc with: make runsc (%v)", err)
	}
}

// environment is what a program under test gets: nothing of the machine's but
// where its programs are.
func environment(home string) []string {
	path := bin + ":" + os.Getenv("PATH")
	if runsc, err := exec.LookPath("runsc"); err == nil {
		path += ":" + filepath.Dir(runsc)
	} else if own, err := os.UserHomeDir(); err == nil {
		path += ":" + filepath.Join(own, "go", "bin")
	}
	return []string{"PATH=" + path, "HOME=" + home, "XDG_DATA_HOME=" + filepath.Join(home, "data"), "TMPDIR=" + os.TempDir(), "LANG=C.UTF-8"}
}

// upstream is the world outside: a shop and a model.
type upstream struct {
	*httptest.Server
	orders, refunds atomic.Int64
}

func newUpstream() *upstream {
	u := &upstream{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		u.orders.Add(1)
		fmt.Fprintf(w, "order %s\n", r.PathValue("id"))
	})
	mux.HandleFunc("GET /locked", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer canary-77" {
			http.Error(w, "locked", http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "open\n")
	})
	mux.HandleFunc("POST /refunds", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "refund %d: %s\n", u.refunds.Add(1), body)
	})
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":"stop",`+
			`"message":{"role":"assistant","content":"hello from the stub"}}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}`)
	})
	u.Server = httptest.NewServer(mux)
	return u
}

// address is host:port.
func (u *upstream) address() string { return u.Listener.Addr().String() }

// server is a creto serve.
type server struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	// What it said when it was ready.
	Console string `json:"console"`
	Login   string `json:"login"`
	Listen  string `json:"listen"`
	DataDir string `json:"data_dir"`
	Root    string `json:"root"`
	ReadyMS int64  `json:"ready_ms"`
}

// patience bounds what a test waits for. It is far beyond what anything takes.
const patience = 30 * time.Second

// startServer runs creto serve --json with args until it is ready.
func startServer(env []string, dir string, args ...string) (*server, error) {
	s := &server{cmd: exec.Command(filepath.Join(bin, "creto"), append([]string{"serve", "--json", "--listen", "localhost:0"}, args...)...)}
	s.cmd.Dir, s.cmd.Env, s.cmd.Stderr = dir, env, &s.stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	timer := time.AfterFunc(patience, func() { _ = s.cmd.Process.Kill() })
	defer timer.Stop()
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(s); err != nil {
		_ = s.kill()
		return nil, fmt.Errorf("the server did not start: %w: %s", err, s.stderr.String())
	}
	return s, nil
}

// kill is kill -9.
func (s *server) kill() error {
	err := s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	return err
}

// stop is SIGTERM; an exit code other than 0 is an error.
func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.AfterFunc(patience, func() { _ = s.cmd.Process.Kill() })
	defer timer.Stop()
	if err := s.cmd.Wait(); err != nil {
		return fmt.Errorf("the server did not end cleanly: %w: %s", err, s.stderr.String())
	}
	return nil
}

// node is a data directory whose server is started, killed and started again, at
// one address.
type node struct {
	testing.TB
	home   string // also where programs work
	data   string
	env    []string
	listen string
	*server
}

// newNode starts a node with alice, and bob of group finance.
func newNode(t testing.TB, config string) *node {
	t.Helper()
	home := t.TempDir()
	n := &node{TB: t, home: filepath.Join(home, "work"), data: filepath.Join(home, "data"), listen: "localhost:0", env: environment(home)}
	if err := errors.Join(os.MkdirAll(n.home, 0o755), os.WriteFile(filepath.Join(home, "creto.toml"), []byte(config), 0o600)); err != nil {
		t.Fatal(err)
	}
	n.start()
	t.Cleanup(func() {
		if n.server != nil {
			if err := n.stop(); err != nil {
				t.Error(err)
			}
		}
	})
	n.must("human", "add", "alice")
	n.must("human", "add", "bob", "--group", "finance")
	return n
}

// start starts the server, at the address that it had before.
func (n *node) start() {
	n.Helper()
	s, err := startServer(n.env, n.home, "--data", n.data, "--config", filepath.Join(filepath.Dir(n.home), "creto.toml"), "--listen", n.listen)
	if err != nil {
		n.Fatal(err)
	}
	n.server, n.listen = s, s.Listen
}

// restart is kill -9 and a new start.
func (n *node) restart() {
	n.Helper()
	if err := n.kill(); err != nil {
		n.Fatal(err)
	}
	n.start()
}

// command returns a creto command on the node.
func (n *node) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(n.Context(), filepath.Join(bin, "creto"), append([]string{"--data", n.data}, args...)...)
	cmd.Dir, cmd.Env = n.home, n.env
	return cmd
}

// must returns the output of a command that must succeed.
func (n *node) must(args ...string) string {
	n.Helper()
	cmd := n.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		n.Fatalf("creto %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// process is a program that runs beside the test.
type process struct {
	testing.TB
	*exec.Cmd
	out  output
	done chan struct{}
	err  error
}

// output may be read while it is written.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// String returns what was written.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// background starts a program.
func background(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{TB: t, Cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.done
	})
	return p
}

// wait returns the output of a program that must succeed.
func (p *process) wait() string {
	p.Helper()
	select {
	case <-p.done:
	case <-time.After(2 * patience):
		p.Fatalf("%v does not end: %s", p.Args, p.out.String())
	}
	if p.err != nil {
		p.Fatalf("%v: %v\n%s", p.Args, p.err, p.out.String())
	}
	return p.out.String()
}

// eventually tries until ok.
func eventually(t testing.TB, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
		if ok() {
			return time.Since(began)
		}
		if time.Since(began) > patience {
			t.Fatalf("after %v: not yet %s", patience, what)
		}
	}
}

// record is what tests read of one.
type record struct {
	Index  int64
	Record struct {
		What, Resource, Outcome, Why, Sandbox string
		Detail                                map[string]string
		Decision                              struct{ Version string }
	}
}

// records returns the node's newest records of one kind.
func (n *node) records(what string) []record {
	n.Helper()
	var list []record
	if err := json.Unmarshal([]byte(n.must("receipts", "--json", "--limit", "1000", "--what", what)), &list); err != nil {
		n.Fatal(err)
	}
	return list
}

// pending waits for one request for consent and returns its id.
func (n *node) pending() string {
	n.Helper()
	var id string
	eventually(n, "asked for consent", func() bool {
		var list []struct{ ID string }
		if err := json.Unmarshal([]byte(n.must("approvals", "list", "--json")), &list); err != nil {
			n.Fatal(err)
		}
		if len(list) > 0 {
			id = list[0].ID
		}
		return id != ""
	})
	return id
}
