package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"creto.dev/client"
	"creto.dev/fault"
)

// prepare finds the example's programs and lays out the agent's directory.
func (d *demo) prepare() error {
	const op fault.Op = "creto.demo"
	self, err := os.Executable()
	if err != nil {
		return fault.WrapAs(op, fault.Internal, err, "")
	}
	bin := filepath.Dir(self)
	if d.example == "" {
		d.example = filepath.Join(bin, "..", "examples", "shop-bot")
	}
	d.programs = map[string]string{"creto": self}
	for _, name := range []string{"shop-agent", "shop-api", "shop-model"} {
		path := filepath.Join(bin, name)
		if _, err := os.Stat(path); err != nil {
			return fault.New(op, fault.NotFound, "the demo's program %s is not beside creto in %s; run: make demo", name, bin)
		}
		d.programs[name] = path
	}
	if _, err := os.Stat(filepath.Join(d.example, "mailbox")); err != nil {
		return fault.New(op, fault.NotFound, "the demo's mailbox is not in %s; name the directory of examples/shop-bot with --example", d.example)
	}
	if d.work, err = os.MkdirTemp("", "creto-demo-work-"); err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "no temporary directory can be made")
	}
	d.config = filepath.Join(d.work, "creto.toml")
	agent := filepath.Join(d.work, "agent")
	err = errors.Join(
		os.CopyFS(filepath.Join(agent, "mailbox"), os.DirFS(filepath.Join(d.example, "mailbox"))),
		copyProgram(d.programs["shop-agent"], filepath.Join(agent, "shop-agent")),
		os.MkdirAll(d.work+"-shop", 0o700), os.MkdirAll(d.app.dataDir, 0o700),
	)
	return fault.WrapAs(op, fault.Unavailable, err, "the demo's files cannot be written below %s", d.work)
}

func copyProgram(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o700)
}

// stop ends what the demo started.
func (d *demo) stop() {
	// The runs end first, while there is a node to tell.
	for _, c := range d.commands {
		c.end()
	}
	for _, p := range []*process{d.node, d.shop, d.stub} {
		if p != nil {
			p.terminate()
		}
	}
	if d.work != "" {
		_ = errors.Join(os.RemoveAll(d.work), os.RemoveAll(d.work+"-shop")) // temporary directories
	}
}

// process is a server that the demo started.
type process struct {
	cmd  *exec.Cmd
	out  *bufio.Reader
	url  string
	errs bytes.Buffer
}

// startTimeout bounds the start of a server.
const startTimeout = 20 * time.Second

func launch(ctx context.Context, env []string, program string, args ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(context.WithoutCancel(ctx), program, args...)}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = &p.errs
	// A demo that dies takes its servers with it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	pipe, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, fault.WrapAs("creto.launch", fault.Unavailable, err, "%s cannot be started", program)
	}
	p.out = bufio.NewReader(pipe)
	return p, nil
}

// start starts a server of the example and waits for its address.
func start(ctx context.Context, program string, args ...string) (*process, error) {
	p, err := launch(ctx, nil, program, args...)
	if err != nil {
		return nil, err
	}
	timer := time.AfterFunc(startTimeout, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	line, err := p.out.ReadString('\n')
	rest, ok := strings.CutPrefix(line, "listening on ")
	if err != nil || !ok {
		p.kill()
		return nil, fault.New("creto.start", fault.Unavailable, "%s did not start: %s", filepath.Base(program), lastLine(p.errs.String()))
	}
	p.url, _, _ = strings.Cut(strings.TrimSpace(rest), " ")
	return p, nil
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
}

func (p *process) terminate() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	timer := time.AfterFunc(startTimeout, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	_ = p.cmd.Wait()
}

// serve starts the node, at the address that it had before.
func (d *demo) serve(ctx context.Context) (served, error) {
	var ready served
	if d.listen == "" {
		d.listen = "localhost:0"
	}
	key := os.Getenv("OPENAI_API_KEY")
	if d.model == "" || key == "" {
		key = "none"
	}
	p, err := launch(ctx, []string{"DEMO_MODEL_KEY=" + key}, d.programs["creto"], "serve", "--json", "--data", d.app.dataDir, "--config", d.config, "--listen", d.listen)
	if err != nil {
		return ready, err
	}
	d.node = p
	timer := time.AfterFunc(startTimeout, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	if err := json.NewDecoder(p.out).Decode(&ready); err != nil {
		p.kill()
		return ready, fault.New("creto.demo", fault.Unavailable, "the node did not start: %s", lastLine(p.errs.String()))
	}
	d.listen = ready.Listen
	d.client, err = d.app.client()
	return ready, err
}

// command is a program that runs to its end.
type command struct {
	cmd   *exec.Cmd
	out   bytes.Buffer
	echo  io.Writer
	begun error
	done  chan struct{}
}

// creto returns a command of this program.
func (d *demo) creto(ctx context.Context, args ...string) *command {
	c := &command{cmd: exec.CommandContext(ctx, d.programs["creto"], append([]string{"--data", d.app.dataDir}, args...)...)}
	// Ending the demo ends a run as its user would.
	c.cmd.Cancel = func() error { return c.cmd.Process.Signal(syscall.SIGTERM) }
	c.cmd.WaitDelay = startTimeout
	return c
}

// agent returns a run of a program as shop-bot.
func (d *demo) agent(ctx context.Context, args ...string) *command {
	c := d.creto(ctx, append([]string{"run", "--config", d.config, "shop-bot", "--"}, args...)...)
	c.cmd.Dir = filepath.Join(d.work, "agent")
	c.cmd.Env = append(os.Environ(), "DEMO_MODEL_KEY=unused")
	d.commands = append(d.commands, c)
	return c
}

func (c *command) begin() {
	var out io.Writer = &c.out
	if c.echo != nil {
		out = io.MultiWriter(&c.out, c.echo)
	}
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.done = make(chan struct{})
	c.begun = c.cmd.Start()
	go func() {
		defer close(c.done)
		if c.begun == nil {
			_ = c.cmd.Wait() // the exit code says it
		}
	}()
}

// end stops the program, if it runs, and waits for it.
func (c *command) end() {
	if c.done == nil || c.begun != nil {
		return
	}
	select {
	case <-c.done:
		return
	default:
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	<-c.done
}

// wait returns the exit code and what the program printed.
func (c *command) wait() (int, string, error) {
	if c.done == nil {
		c.begin()
	}
	<-c.done
	if c.begun != nil {
		return 0, "", fault.WrapAs("creto.wait", fault.Unavailable, c.begun, "%s cannot be started", c.cmd.Path)
	}
	return c.cmd.ProcessState.ExitCode(), c.out.String(), nil
}

// pollInterval is how often the demo looks.
const pollInterval = 100 * time.Millisecond

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return fault.Wrap("creto.pause", ctx.Err())
	case <-time.After(pollInterval):
		return nil
	}
}

// pending waits for a request for consent that is not known yet.
func (d *demo) pending(ctx context.Context, work *command, known map[string]bool) (client.Approval, error) {
	for {
		list, err := d.client.Approvals(ctx, "pending")
		if err != nil {
			return client.Approval{}, err
		}
		for _, x := range list {
			if !known[x.ID] {
				return x, nil
			}
		}
		select {
		case <-work.done:
			return client.Approval{}, fault.New("creto.demo", fault.Internal, "the agent ended without asking for consent: %s", lastLine(work.out.String()))
		default:
		}
		if err := pause(ctx); err != nil {
			return client.Approval{}, err
		}
	}
}

// records returns what the log has, at least one.
func (d *demo) records(ctx context.Context, q client.Query) ([]client.Receipt, error) {
	list, err := d.client.Receipts(ctx, q)
	if err == nil && len(list) == 0 {
		err = fault.New("creto.demo", fault.Internal, "the log has no record of %s", q.What)
	}
	return list, err
}

// indented shows a program's output below the step it belongs to, line by line;
// with --json it is left out.
func indented(a *app) io.Writer {
	if a.asJSON {
		return io.Discard
	}
	return &indenter{out: a.out}
}

// indenter is not safe for concurrent use; exec.Cmd writes from one goroutine.
type indenter struct {
	out  io.Writer
	line []byte // that has no end yet
}

// Write implements io.Writer.
func (i *indenter) Write(p []byte) (int, error) {
	i.line = append(i.line, p...)
	for {
		line, rest, whole := bytes.Cut(i.line, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		fmt.Fprintf(i.out, "      %s\n", oneLine(string(line)))
		i.line = rest
	}
}
