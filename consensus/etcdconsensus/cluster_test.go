package etcdconsensus_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sys/unix"

	"creto.dev"
	"creto.dev/consensus/consensustest"
	"creto.dev/consensus/etcdconsensus"
)

// The cluster: three machines, each a network namespace with a member of etcd and
// a time node, and a fourth namespace with the switch between them. Nothing of it
// can be seen from outside.
const (
	machines = 3
	subnet   = "10.99.0."
	leaseTTL = 2 * time.Second
	nodeEnv  = "CRETO_TIME_NODE" // a process of this test that is a time node has its name here
)

// cluster is a running one.
type cluster struct {
	t       *testing.T
	prefix  string // of the namespaces' names
	members [machines]*exec.Cmd
	nodes   [machines]*exec.Cmd

	mu      sync.Mutex // guards what follows
	calls   []consensustest.Call
	newest  int // the machine whose stamp came last
	clients int
	started []*exec.Cmd
	reading sync.WaitGroup
}

// ip runs the program of that name.
func ip(t testing.TB, args ...string) error {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (c *cluster) namespace(i int) string { return fmt.Sprintf("%s%d", c.prefix, i) }
func (c *cluster) hub() string            { return c.prefix + "h" }
func address(i int) string                { return fmt.Sprint(subnet, i+1) }

// link takes a machine's cable out, or puts it in.
func (c *cluster) link(i int, state string) {
	c.t.Helper()
	if err := ip(c.t, "-n", c.hub(), "link", "set", fmt.Sprint("port", i), state); err != nil {
		c.t.Fatal(err)
	}
}

// startCluster makes the machines and starts etcd on them.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	program := etcdProgram(t)
	if os.Geteuid() != 0 {
		require(t, "network namespaces need root")
	}
	c := &cluster{t: t, prefix: fmt.Sprintf("creto%d-", os.Getpid())}
	sweep(t)
	steps := [][]string{{"netns", "add", c.hub()}, {"-n", c.hub(), "link", "add", "switch", "type", "bridge"}, {"-n", c.hub(), "link", "set", "switch", "up"}}
	for i := range machines {
		ns, port := c.namespace(i), fmt.Sprint("port", i)
		steps = append(steps,
			[]string{"netns", "add", ns},
			[]string{"-n", c.hub(), "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", ns},
			[]string{"-n", c.hub(), "link", "set", port, "master", "switch", "up"},
			[]string{"-n", ns, "addr", "add", address(i) + "/24", "dev", "eth0"},
			[]string{"-n", ns, "link", "set", "eth0", "up"}, []string{"-n", ns, "link", "set", "lo", "up"},
		)
	}
	t.Cleanup(func() {
		for _, cmd := range c.started {
			_ = cmd.Process.Kill()
		}
		c.reading.Wait()
		for i := range machines {
			_ = ip(t, "netns", "del", c.namespace(i))
		}
		_ = ip(t, "netns", "del", c.hub())
	})
	for _, step := range steps {
		if err := ip(t, step...); err != nil {
			require(t, "network namespaces cannot be made here: %v", err)
		}
	}
	var all []string
	for i := range machines {
		all = append(all, fmt.Sprintf("m%d=http://%s:2380", i, address(i)))
	}
	for i := range machines {
		at := "http://" + address(i)
		c.members[i] = c.start(i, []string{}, program, "--name", fmt.Sprint("m", i), "--data-dir", t.TempDir(), "--log-level", "error", "--logger", "zap",
			"--listen-client-urls", at+":2379", "--advertise-client-urls", at+":2379", "--listen-peer-urls", at+":2380", "--initial-advertise-peer-urls", at+":2380",
			"--initial-cluster", strings.Join(all, ","), "--heartbeat-interval", "50", "--election-timeout", "500")
	}
	return c
}

// sweep removes what a test left that did not come to its end.
func sweep(t *testing.T) {
	t.Helper()
	list, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		return // making one says what is wrong
	}
	for line := range strings.Lines(string(list)) {
		var pid, of int
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, _ := fmt.Sscanf(strings.TrimSuffix(name, "h")+" ", "creto%d-%d", &pid, &of); n == 0 || pid <= 0 || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		inside, _ := exec.Command("ip", "netns", "pids", name).Output()
		for process := range strings.FieldsSeq(string(inside)) {
			if pid, err := strconv.Atoi(process); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		_ = ip(t, "netns", "del", name)
	}
}

// start runs a program on a machine until the test ends.
func (c *cluster) start(i int, env []string, program string, args ...string) *exec.Cmd {
	c.t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", c.namespace(i), program}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	first := 10 * c.clients
	c.clients++
	c.mu.Unlock()
	c.reading.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var call consensustest.Call
			if n, _ := fmt.Sscanf(lines.Text(), "stamp %d %d %d %d %d %s", &call.Client, &call.Began, &call.Ended, &call.Stamp.Logical, &call.Stamp.Physical, &call.Stamp.Node); n != 6 {
				continue // a last line that was cut off
			}
			call.Client += first
			call.Stamp.Source = creto.SourceConsensus
			c.mu.Lock()
			c.calls = append(c.calls, call)
			c.newest = i
			c.mu.Unlock()
		}
		_ = cmd.Wait()
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.started = append(c.started, cmd)
	return cmd
}

// startNode starts the time node of a machine: this test's own program.
func (c *cluster) startNode(i int) {
	c.t.Helper()
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes[i] = c.start(i, []string{nodeEnv + "=n" + fmt.Sprint(i)}, self, "-test.run=^TestTimeNode$")
}

// progress waits for stamps of a machine other than but; -1 takes any. It returns
// whose.
func (c *cluster) progress(but int, why string) int {
	c.t.Helper()
	c.mu.Lock()
	had := len(c.calls)
	c.mu.Unlock()
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c.mu.Lock()
		now, who := len(c.calls), c.newest
		c.mu.Unlock()
		if now > had && who != but {
			return who
		}
		if time.Now().After(until) {
			c.t.Fatalf("%s: no stamps", why)
		}
	}
}

func (c *cluster) signal(cmd *exec.Cmd, s os.Signal) {
	c.t.Helper()
	if err := cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// TestCluster: three nodes and three members of etcd, among which everything fails
// that can; what callers got is a history of one clock.
func TestCluster(t *testing.T) {
	c := startCluster(t)
	for i := range machines {
		c.startNode(i)
	}
	c.progress(-1, "at the start")
	stop := func(cmd *exec.Cmd, i int, why string) { // longer than lease and window
		c.signal(cmd, syscall.SIGSTOP)
		c.progress(i, why)
		time.Sleep(200 * time.Millisecond)
		c.signal(cmd, syscall.SIGCONT)
	}
	events := []func(){
		func() { i := c.progress(-1, "before a pause"); stop(c.nodes[i], i, "while who led stands still") },
		func() {
			i := c.progress(-1, "before a partition")
			c.link(i, "down")
			c.progress(i, "while who led is cut off")
			c.link(i, "up")
		},
		func() {
			i := c.progress(-1, "before a kill")
			c.signal(c.nodes[i], syscall.SIGKILL)
			c.progress(i, "after who led was killed")
			c.startNode(i)
		},
		func() { // a member of etcd, perhaps the one that leads there
			i := rand.IntN(machines)
			c.signal(c.members[i], syscall.SIGSTOP)
			time.Sleep(1500 * time.Millisecond)
			c.signal(c.members[i], syscall.SIGCONT)
		},
		func() {
			i := c.progress(-1, "before an end in order")
			c.signal(c.nodes[i], syscall.SIGTERM)
			began := time.Now()
			c.progress(i, "after who led ended")
			if took := time.Since(began); took > leaseTTL {
				t.Logf("after an end in order the next stamp took %v", took)
			}
			c.startNode(i)
		},
	}
	rounds := 0
	if os.Getenv("CRETO_TORTURE") == "1" {
		rounds = 60
	}
	for _, event := range events {
		event()
	}
	for range rounds {
		events[rand.IntN(len(events))]()
		time.Sleep(rand.N(2 * time.Second))
	}
	c.progress(-1, "at the end")
	for _, node := range c.nodes {
		c.signal(node, syscall.SIGTERM)
	}
	time.Sleep(500 * time.Millisecond)
	c.mu.Lock()
	calls := c.calls
	c.mu.Unlock()
	terms, makers := map[uint64]bool{}, map[string]bool{}
	for _, call := range calls {
		terms[call.Stamp.Term()] = true
		makers[call.Stamp.Node] = true
	}
	t.Logf("%d stamps in %d terms by %d nodes", len(calls), len(terms), len(makers))
	if len(calls) < 150 || len(terms) < 4 || len(makers) < 2 {
		t.Errorf("too little happened")
	}
	if got := consensustest.CheckHistory(calls); got != porcupine.Ok {
		t.Errorf("the history is %v", got)
	}
}

// monotonic is a clock that all processes of a machine share.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// TestTimeNode is no test but a process of TestCluster: a node of which two callers
// take stamps and print them, until SIGTERM.
func TestTimeNode(t *testing.T) {
	name := os.Getenv(nodeEnv)
	if name == "" {
		return
	}
	var endpoints []string
	for i := range machines {
		endpoints = append(endpoints, address(i)+":2379")
	}
	clock, err := etcdconsensus.Open(etcdconsensus.Etcd{Endpoints: endpoints}, etcdconsensus.Config{Node: name, Address: name, Prefix: prefix, LeaseTTL: leaseTTL})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM) //nolint:usetesting // a process, not a test
	defer stop()
	var output sync.Mutex // one line at a time
	for client := range 2 {
		go func() {
			for {
				began := monotonic()
				s, err := clock.Now(ctx)
				ended := monotonic()
				if err != nil {
					time.Sleep(5 * time.Millisecond)
					continue
				}
				output.Lock()
				_, _ = fmt.Fprintf(os.Stdout, "stamp %d %d %d %d %d %s\n", client, began, ended, s.Logical, s.Physical, s.Node)
				output.Unlock()
				time.Sleep(4 * time.Millisecond)
			}
		}()
	}
	if err := clock.Run(ctx); err != nil {
		t.Error(err)
	}
	_ = clock.Close()
	os.Exit(0) // the callers are still asking
}
