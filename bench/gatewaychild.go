package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// streamEvents is how many events a streamed answer has, without its [DONE].
const streamEvents = 65

// answerJSON is a chat's whole answer, of the size that such answers have.
var answerJSON = fmt.Sprintf(`{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"gpt-bench","choices":[{"index":0,"message":{"role":"assistant","content":%q},"finish_reason":"stop"}],"usage":{"prompt_tokens":310,"completion_tokens":64,"total_tokens":374}}`,
	strings.Repeat("The refund of order 1007 was sent to the card that paid. ", 6))

// serveUpstream is a model's API that answers at once, or after 50 ms if the model's
// name says so.
func serveUpstream(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if bytes.Contains(body, []byte("gpt-50ms")) {
		time.Sleep(50 * time.Millisecond) //nolint:forbidigo // it stands for a model that thinks
	}
	if !bytes.Contains(body, []byte(`"stream":true`)) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answerJSON) // who left needs no answer
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w)
	for i := range streamEvents {
		finish := "null"
		if i == streamEvents-1 {
			finish = `"stop"`
		}
		if _, err := fmt.Fprintf(w, `data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"gpt-bench","choices":[{"index":0,"delta":{"content":" word%d"},"finish_reason":%s}]}`+"\n\n", i, finish); err != nil {
			return
		}
		if flush.Flush() != nil {
			return
		}
	}
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}

// childEnv makes this program serve instead of measure: upstream, or a reverse
// proxy to the address that follows.
const childEnv = "CRETO_BENCH_CHILD"

// child serves until it is killed, and says where.
func child(what string) error {
	var handler http.Handler = http.HandlerFunc(serveUpstream)
	if target, ok := strings.CutPrefix(what, "reverseproxy "); ok {
		to, err := url.Parse(target)
		if err != nil {
			return err
		}
		handler = &httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
			Transport: &http.Transport{MaxIdleConns: 256, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute},
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("listening on http://%s\n", listener.Addr())
	return (&http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}).Serve(listener)
}

// process is a contestant, or what it needs.
type process struct {
	cmd     *exec.Cmd
	address string
}

// start runs a command and waits for the address that it prints after a word.
func start(cmd *exec.Cmd, word string) (*process, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, address, ok := strings.Cut(lines.Text(), word); ok {
			go func() { _, _ = io.Copy(io.Discard, out) }() // until it ends
			return &process{cmd: cmd, address: strings.TrimSpace(address)}, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("%s ended before it said where it listens", cmd.Path), cmd.Wait())
}

func startChild(ctx context.Context, what string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	cmd.Stderr = os.Stderr
	return start(cmd, "listening on ")
}

// stop asks it to end, and waits.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	err := p.cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && !exit.Exited() {
		return nil // by the signal
	}
	return err
}

// cpu is the processor time that it has used.
func (p *process) cpu() (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The name, in brackets, may hold anything; utime and stime are the 14th and
	// 15th field, in ticks of 10 ms.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", p.cmd.Process.Pid, len(fields))
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// peak is the most memory that it had resident, in bytes.
func (p *process) peak() (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmHWM")
}

// startNode starts the product as its users do: built from this source, one
// provider, one agent whose delegation a passkey confirmed, a policy that permits
// every model, and an access token.
func startNode(ctx context.Context, dir, upstream string) (node *process, token string, err error) {
	var said bytes.Buffer // shown if something fails
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, said.Bytes())
		}
	}()
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, filepath.Join(dir, name), args...)
		cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+filepath.Join(dir, "data"))
		cmd.Stderr = &said
		return cmd
	}
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
		return nil, "", err
	}
	for name, source := range map[string]string{"creto": "./cmd/creto", "soft-passkey": "./examples/soft-passkey"} {
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), source)
		build.Dir, build.Stderr = "..", os.Stderr
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if err := build.Run(); err != nil {
			return nil, "", fmt.Errorf("building %s: %w", source, err)
		}
	}
	config := filepath.Join(dir, "creto.toml")
	text := fmt.Sprintf("[server]\nlisten = \"localhost:0\"\n[[inference.providers]]\nname = \"upstream\"\nbase_url = \"%s/v1\"\n", upstream)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, "", err
	}
	serve := command("creto", "serve", "--config", config)
	serve.Stderr = nil // it is about what the commands do
	node, err = start(serve, "console ")
	if err != nil {
		return nil, "", err
	}
	node.address = strings.TrimSuffix(node.address, "/console")
	passkey := filepath.Join(dir, "passkey")
	run := func(name string, args ...string) (string, error) {
		out, err := command(name, args...).Output()
		return strings.TrimSpace(string(out)), err
	}
	if _, err := run("creto", "human", "add", "alice"); err != nil {
		return node, "", err
	}
	login, err := run("creto", "human", "login", "alice")
	if err != nil {
		return node, "", err
	}
	if _, err := run("soft-passkey", "-file", passkey, "-enrol", login); err != nil {
		return node, "", err
	}
	added, err := run("creto", "agent", "add", "bot", "--on-behalf-of", "alice", "--wait=false", "--json", "--allow", "call_model=*")
	if err != nil {
		return node, "", err
	}
	_, confirm, _ := strings.Cut(added, node.address+"/console/delegations/")
	confirm, _, _ = strings.Cut(confirm, `"`)
	if _, err := run("soft-passkey", "-file", passkey, "-confirm", node.address+"/console/delegations/"+confirm); err != nil {
		return node, "", err
	}
	token, err = run("creto", "token", "bot")
	return node, token, err
}
