package node

import (
	"bytes"
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
	"creto.dev/nhi/localnhi"
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
	// arrived hands new runs to the loop that serves them, until stopped.
	arrived chan *run
	stopped chan struct{}
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
	rs := &runs{node: n, active: make(map[string]*run), arrived: make(chan *run), stopped: make(chan struct{})}
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
		r.dir = rs.dir(r.id)
		rs.active[r.id] = r
	}
	return rs, db.Classify(op, errors.Join(rows.Err(), rs.sweep()))
}

// dir is the directory of a run, which the sandbox sees.
func (rs *runs) dir(id string) string { return filepath.Join(rs.node.options.DataDir, "run", id) }

// sweep removes the directories of runs that are not under way: a crash came
// between the two.
func (rs *runs) sweep() error {
	entries, err := os.ReadDir(rs.dir(""))
	for _, e := range entries {
		if rs.active[e.Name()] == nil {
			err = errors.Join(err, os.RemoveAll(rs.dir(e.Name())))
		}
	}
	return fault.WrapAs("node.sweep", fault.Unavailable, err, "what is left of earlier runs in %s cannot be removed", rs.dir(""))
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
		defer close(rs.stopped)
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
	handler := rs.node.requests.count(rs.node.gateway.Sandbox(func(request *http.Request) (gateway.Origin, error) {
		caller, err := rs.caller(request.Context(), r)
		return gateway.Origin{Caller: caller, Sandbox: r.id, Isolation: r.isolation}, err
	}))
	if err := serve.Serve(served, r.listener, handler, rs.node.options.Log); err != nil && served.Err() == nil {
		rs.node.options.Log.LogAttrs(ctx, slog.LevelError, "run is cut off", slog.String(logkey.Sandbox, r.id), slog.Any(logkey.Error, err))
	}
	return nil
}

// renewBefore is how long before its end a run's token is replaced.
const renewBefore = time.Minute

// caller returns who a run's requests come from. Its tokens never leave the
// node, and the caller takes the next one by itself: a request may wait for a
// human for longer than a token lasts.
func (rs *runs) caller(ctx context.Context, r *run) (*gate.Caller, error) {
	return rs.node.gate.OpenFor(ctx, func(ctx context.Context) (string, error) { return rs.tokenOf(ctx, r) })
}

func (rs *runs) tokenOf(ctx context.Context, r *run) (string, error) {
	const op fault.Op = "node.tokenOf"
	stamp, err := rs.node.clock.Now(ctx)
	if err != nil {
		return "", fault.Wrap(op, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if stamp.Time().Add(renewBefore).After(r.expires) {
		if r.token, r.expires, err = rs.node.authority.IssueToken(ctx, r.agent, localnhi.TokenRequest{Sandbox: r.id}); err != nil {
			return "", fault.Wrap(op, err)
		}
	}
	return r.token, nil
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
	id := "run-" + creto.NewUUID().String()[:8] // short: socket paths are
	r := &run{
		id: id, dir: n.runs.dir(id), agent: n.id(ctx, creto.KindAgent, in.Agent), isolation: in.Isolation,
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
		err = fault.Wrap(op, ctx.Err())
	case <-rs.stopped:
		err = fault.New(op, fault.Unavailable, "the node is stopping")
	}
	// Nobody serves it. Its supervisor ends, and the next look finds the run dead.
	return errors.Join(err, r.listener.Close())
}

// Idle waits until no run is under way.
//
// Errors: Canceled, DeadlineExceeded when ctx ends.
func (n *Node) Idle(ctx context.Context) error {
	ticker := time.NewTicker(idleInterval)
	defer ticker.Stop()
	for {
		n.runs.mu.Lock()
		idle := len(n.runs.active) == 0
		n.runs.mu.Unlock()
		if idle {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.Wrap("node.Idle", ctx.Err())
		case <-ticker.C:
		}
	}
}

// idleInterval is how often Idle looks.
const idleInterval = 100 * time.Millisecond

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
		ID: r.eventID(what), Who: r.agent, What: what, Resource: "Image::" + hostImage, Outcome: outcome, Why: why, Sandbox: r.id, Isolation: r.isolation, Detail: detail,
	}
	// A revoked agent's sandbox still ends, with nobody behind it any more.
	if caller, err := rs.caller(ctx, r); err == nil {
		record.OnBehalfOf, record.Chain = caller.Chain().Human(), caller.Chain().Digest()
	}
	_, err := rs.node.log.Log(ctx, record)
	return err
}

// eventID is the record of an event that a run has once. The log keeps the first
// of two with the same id: a report that is sent again after a crash is no second
// record.
func (r *run) eventID(what string) creto.UUID {
	digest := creto.DigestOf([]byte(what + " " + r.id + " " + strconv.Itoa(r.pid) + " " + r.pidStart))
	return creto.UUID(digest[:len(creto.UUID{})])
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
	if errors.Is(err, fault.NotFound) && n.runs.hasEnded(ctx, id) {
		return nil // the first report arrived, its answer did not
	}
	if err != nil {
		return err
	}
	outcome := audit.Success
	if e.ExitCode != 0 || e.Error != "" {
		outcome = audit.Failure
	}
	return n.runs.end(ctx, r, outcome, e.Error, map[string]string{"exit_code": strconv.Itoa(e.ExitCode)})
}

func (rs *runs) hasEnded(ctx context.Context, id string) bool {
	var ended int64
	err := rs.node.db.QueryRowContext(ctx, "SELECT ended_ns FROM sandbox_run WHERE id = $1", id).Scan(&ended)
	return err == nil && ended != 0
}

// end records a run's end, and then forgets the run. What fails can be done
// again: by the supervisor, or once that is gone by reap.
func (rs *runs) end(ctx context.Context, r *run, outcome audit.Outcome, why string, detail map[string]string) error {
	const op fault.Op = "node.end"
	ctx = context.WithoutCancel(ctx) // half of it is no good
	if err := rs.event(ctx, r, audit.EventSandboxTerminated, outcome, why, detail); err != nil {
		return fault.Wrap(op, err)
	}
	now, err := rs.node.clock.Now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if _, err := rs.node.db.ExecContext(ctx, "UPDATE sandbox_run SET ended_ns = $1 WHERE id = $2", now.Physical, r.id); err != nil {
		return db.Classify(op, err)
	}
	if err := rs.node.taints.Ended(ctx, r.id); err != nil {
		return fault.Wrap(op, err)
	}
	rs.mu.Lock()
	if rs.active[r.id] != nil && r.ended != nil {
		close(r.ended) // once: only one call takes a run out of active
	}
	delete(rs.active, r.id)
	rs.mu.Unlock()
	return fault.WrapAs(op, fault.Unavailable, os.RemoveAll(r.dir), "the directory of the run stays")
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
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}
