package node

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/gateway"
	"creto.dev/internal/db"
	"creto.dev/internal/logkey"
	"creto.dev/internal/serve"
	"creto.dev/sandbox"
)

// runs are the sandboxed runs under way: for each a directory with the socket
// that is its only way out. The sandbox itself belongs to its supervisor, the
// creto run process, so it outlives a restart of the node; a restarted node
// listens again where it did.
type runs struct {
	node *Node

	mu     sync.Mutex // guards active
	active map[string]*run
	// arrived hands new runs to the loop that serves them.
	arrived chan *run
}

// run is one of them.
type run struct {
	id        string
	agent     creto.ID
	isolation string
	pid       int
	pidStart  string
	dir       string
	listener  net.Listener
	ended     chan struct{} // closed when the run has ended

	mu      sync.Mutex // guards token
	token   string
	expires time.Time
}

// openRuns listens again for the runs that an earlier life had.
func openRuns(ctx context.Context, n *Node) (*runs, error) {
	const op fault.Op = "node.openRuns"
	rs := &runs{node: n, active: make(map[string]*run), arrived: make(chan *run)}
	rows, err := n.db.QueryContext(ctx, "SELECT id, agent, isolation, pid, pid_start FROM sandbox_run WHERE ended_ns = 0")
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		r := &run{}
		var agent string
		if err := rows.Scan(&r.id, &agent, &r.isolation, &r.pid, &r.pidStart); err != nil {
			return nil, db.Classify(op, err)
		}
		if r.agent, err = creto.ParseID(agent); err != nil {
			return nil, fault.Wrap(op, err)
		}
		rs.active[r.id] = r
	}
	return rs, db.Classify(op, rows.Err())
}

// reapInterval is how often runs are looked at whose supervisor may have died.
const reapInterval = 2 * time.Second

// run serves the sockets until ctx ends.
func (rs *runs) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	rs.mu.Lock()
	for _, r := range rs.active {
		if err := rs.listen(r); err != nil {
			rs.node.options.Log.LogAttrs(ctx, slog.LevelError, "run is cut off", slog.String(logkey.Sandbox, r.id), slog.Any(logkey.Error, err))
			continue
		}
		group.Go(func() error { return rs.serve(ctx, r) })
	}
	rs.mu.Unlock()
	group.Go(func() error {
		ticker := time.NewTicker(reapInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case r := <-rs.arrived:
				group.Go(func() error { return rs.serve(ctx, r) })
			case <-ticker.C:
				rs.reap(ctx)
			}
		}
	})
	return group.Wait()
}

// listen makes the run's socket. The caller holds mu, or the run is not shared
// yet.
func (rs *runs) listen(r *run) error {
	r.dir = filepath.Join(rs.node.options.DataDir, "run", r.id)
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fault.WrapAs("node.listen", fault.Unavailable, err, "the directory of the run cannot be made")
	}
	l, err := serve.ListenUnix(filepath.Join(r.dir, sandbox.SocketName))
	if err != nil {
		return err
	}
	r.listener = l
	r.ended = make(chan struct{})
	return nil
}

func (rs *runs) serve(ctx context.Context, r *run) error {
	served, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-r.ended:
			cancel()
		case <-served.Done():
		}
	}()
	handler := rs.node.gateway.Sandbox(func(request *http.Request) (gateway.Origin, error) {
		caller, err := rs.caller(request.Context(), r)
		return gateway.Origin{Caller: caller, Sandbox: r.id, Isolation: r.isolation}, err
	})
	if err := serve.Serve(served, r.listener, handler, rs.node.options.Log); err != nil && served.Err() == nil {
		rs.node.options.Log.LogAttrs(ctx, slog.LevelError, "run is cut off", slog.String(logkey.Sandbox, r.id), slog.Any(logkey.Error, err))
	}
	return nil
}

// renewBefore is how long before its end a run's token is replaced.
const renewBefore = time.Minute

// caller returns who a run's requests come from. Its token never leaves the
// node.
func (rs *runs) caller(ctx context.Context, r *run) (*gate.Caller, error) {
	const op fault.Op = "node.caller"
	stamp, err := rs.node.clock.Now(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if stamp.Time().Add(renewBefore).After(r.expires) {
		if r.token, r.expires, err = rs.node.authority.IssueToken(ctx, r.agent, r.id); err != nil {
			return nil, fault.Wrap(op, err)
		}
	}
	return rs.node.gate.Open(ctx, r.token)
}

// hostImage is the resource of a sandbox whose root is this host's.
const hostImage = "host"

// StartRun implements serve.Admin: it asks gate whether the agent may have the
// sandbox, and makes its way out.
func (n *Node) StartRun(ctx context.Context, in client.NewRun) (client.Run, error) {
	const op fault.Op = "node.StartRun"
	start := processStart(in.PID)
	if start == "" || len(in.Command) == 0 {
		return client.Run{}, fault.New(op, fault.InvalidArgument, "a run needs a command and the number of the process that supervises it")
	}
	uuid := creto.NewUUID().String()
	r := &run{
		id: "run-" + uuid[:8], agent: n.authority.ID(creto.KindAgent, in.Agent), isolation: in.Isolation,
		pid: in.PID, pidStart: start,
	}
	caller, err := n.runs.caller(ctx, r)
	if err != nil {
		return client.Run{}, fault.Wrap(op, err)
	}
	args, err := json.Marshal(in)
	if err != nil {
		return client.Run{}, fault.WrapAs(op, fault.InvalidArgument, err, "the run cannot be encoded")
	}
	_, err = n.gate.Do(ctx, caller, creto.Action{
		Name: creto.SpawnSandbox, Resource: creto.Resource{Type: "Image", ID: hostImage}, Args: args,
		Context: map[string]any{"command": in.Command[0], "dir": in.Dir}, Sandbox: r.id, Isolation: in.Isolation,
	}, func(ctx context.Context) (gate.Result, error) {
		return gate.Result{Detail: map[string]string{"engine": in.Engine, "command": strings.Join(in.Command, " ")}}, n.runs.start(ctx, r)
	})
	if err != nil {
		return client.Run{}, err
	}
	return client.Run{ID: r.id, GatewayDir: r.dir}, nil
}

func (rs *runs) start(ctx context.Context, r *run) error {
	const op fault.Op = "node.start"
	now, err := rs.node.clock.Now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if err := rs.listen(r); err != nil {
		return fault.Wrap(op, err)
	}
	_, err = rs.node.db.ExecContext(ctx, "INSERT INTO sandbox_run (id, agent, isolation, pid, pid_start, started_ns) VALUES ($1, $2, $3, $4, $5, $6)",
		r.id, r.agent.String(), r.isolation, r.pid, r.pidStart, now.Physical)
	if err != nil {
		return errors.Join(db.Classify(op, err), r.listener.Close(), os.RemoveAll(r.dir))
	}
	rs.mu.Lock()
	rs.active[r.id] = r
	rs.mu.Unlock()
	select {
	case rs.arrived <- r:
		return nil
	case <-ctx.Done():
		return fault.Wrap(op, ctx.Err())
	}
}

func (rs *runs) find(id string) (*run, error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if r := rs.active[id]; r != nil {
		return r, nil
	}
	return nil, fault.New("node.find", fault.NotFound, "there is no run %q under way", id)
}

// event records something of a run's life.
func (rs *runs) event(ctx context.Context, r *run, what string, outcome audit.Outcome, why string, detail map[string]string) error {
	record := audit.Record{
		Who: r.agent, What: what, Resource: "Image::" + hostImage, Outcome: outcome, Why: why, Sandbox: r.id, Isolation: r.isolation, Detail: detail,
	}
	// A revoked agent's sandbox still ends, with nobody behind it any more.
	if caller, err := rs.caller(ctx, r); err == nil {
		record.OnBehalfOf, record.Chain = caller.Chain().Human(), caller.Chain().Digest()
	}
	_, err := rs.node.log.Log(ctx, record)
	return err
}

// RunStarted implements serve.Admin.
func (n *Node) RunStarted(ctx context.Context, id string, s client.RunStarted) error {
	r, err := n.runs.find(id)
	if err != nil {
		return err
	}
	return n.runs.event(ctx, r, audit.EventSandboxSpawned, audit.Success, "", map[string]string{
		"start_ns": strconv.FormatInt(s.StartNS, 10), "config": s.Config.String(), "unenforced": strings.Join(s.Unenforced, " "),
	})
}

// EndRun implements serve.Admin.
func (n *Node) EndRun(ctx context.Context, id string, e client.RunEnded) error {
	r, err := n.runs.find(id)
	if err != nil {
		return err
	}
	outcome := audit.Success
	if e.ExitCode != 0 || e.Error != "" {
		outcome = audit.Failure
	}
	return n.runs.end(ctx, r, outcome, e.Error, map[string]string{"exit_code": strconv.Itoa(e.ExitCode)})
}

func (rs *runs) end(ctx context.Context, r *run, outcome audit.Outcome, why string, detail map[string]string) error {
	const op fault.Op = "node.end"
	rs.mu.Lock()
	_, live := rs.active[r.id]
	delete(rs.active, r.id)
	rs.mu.Unlock()
	if !live {
		return nil
	}
	err := rs.event(ctx, r, audit.EventSandboxTerminated, outcome, why, detail)
	if r.ended != nil {
		close(r.ended) // once: only one call takes a run out of active
	}
	now, clock := rs.node.clock.Now(ctx)
	_, updated := rs.node.db.ExecContext(ctx, "UPDATE sandbox_run SET ended_ns = $1 WHERE id = $2", now.Physical, r.id)
	return errors.Join(err, clock, db.Classify(op, updated), fault.WrapAs(op, fault.Unavailable, os.RemoveAll(r.dir), "the directory of the run stays"))
}

// reap ends the runs whose supervisor is gone; their sandboxes died with it.
func (rs *runs) reap(ctx context.Context) {
	rs.mu.Lock()
	var dead []*run
	for _, r := range rs.active {
		if processStart(r.pid) != r.pidStart {
			dead = append(dead, r)
		}
	}
	rs.mu.Unlock()
	for _, r := range dead {
		if err := rs.end(ctx, r, audit.Unknown, "the supervisor died, and the sandbox with it", nil); err != nil {
			rs.node.options.Log.LogAttrs(ctx, slog.LevelError, "dead run is not cleaned up", slog.String(logkey.Sandbox, r.id), slog.Any(logkey.Error, err))
		}
	}
}

// processStart returns when a process started, in the kernel's own unit, which
// tells it from another that got its number; "" if there is none.
func processStart(pid int) string {
	if pid <= 0 || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return ""
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The name in parentheses may hold anything; starttime is field 22, the
	// 20th behind it (proc(5)).
	_, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}
