package node_test

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/health"
	"creto.dev/internal/wire/wiretest"
	"creto.dev/node"
	"creto.dev/sandbox/sandboxtest"
)

// within waits until ok.
func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(d); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%s: not within %v", what, d)
		}
	}
}

// clockHealth is what the check says.
func clockHealth(t *testing.T, c *client.Client) string {
	t.Helper()
	_, report, err := c.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check := report.Checks["consensus"]
	return check.State.String() + " " + check.Reason
}

// stamps returns the stamps of a node's records of an event, the newest first.
func stamps(t *testing.T, c *client.Client, what string) []creto.Timestamp {
	t.Helper()
	page, err := c.Receipts(t.Context(), client.Query{What: what, Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	var list []creto.Timestamp
	for _, r := range page {
		list = append(list, r.Record.Stamp)
	}
	return list
}

// A node may take its time from another: then its records are in that one's
// order. While it is away stamps are local and say so; two records say since when
// and until when (R-CON-14, B-13).
func TestRemoteClock(t *testing.T) {
	first, dir := options(t, t.TempDir()), t.TempDir()
	_, _, stop := running(t, first)
	o := options(t, dir)
	o.Config.Integrations.Consensus.Endpoint = "unix://" + filepath.Join(first.DataDir, client.SocketName)
	o.Config.Integrations.Consensus.TimeoutMS = 500 // a busy machine
	_, c, stopSecond := running(t, o)
	defer stopSecond()
	if got := clockHealth(t, c); got != "healthy " {
		t.Errorf("health of time: %q, want healthy", got)
	}
	if n := count(t, c, "clock_degraded"); n != 0 {
		t.Errorf("%d records say that the clock is degraded", n)
	}
	stop()
	within(t, 20*time.Second, "the beginning is recorded", func() bool {
		_, _ = c.Login(t.Context(), node.BootstrapHuman) // anything that needs a stamp
		return count(t, c, "clock_degraded") == 1
	})
	within(t, 20*time.Second, "health says so", func() bool {
		return strings.HasPrefix(clockHealth(t, c), health.Unhealthy.String()+" Consensus service unavailable")
	})
	if n := count(t, c, "clock_anchored"); n != 0 {
		t.Errorf("%d anchors while the clock is away", n)
	}
	_, _, stop = running(t, first)
	defer stop()
	within(t, 30*time.Second, "the end is recorded", func() bool { return count(t, c, "clock_anchored") == 1 })
	within(t, 20*time.Second, "health says so", func() bool { return clockHealth(t, c) == "healthy " })
	if n := count(t, c, "clock_degraded"); n != 1 {
		t.Errorf("%d records of one episode's beginning", n)
	}
}

// Without the fallback an action that needs a stamp fails (R-CFG-22).
func TestRemoteClockWithoutFallback(t *testing.T) {
	first := options(t, t.TempDir())
	_, _, stop := running(t, first)
	o := options(t, t.TempDir())
	o.Config.Integrations.Consensus.Endpoint = "unix://" + filepath.Join(first.DataDir, client.SocketName)
	o.Config.Integrations.Consensus.FallbackToLocalTimestamp = false
	_, c, stopSecond := running(t, o)
	defer stopSecond()
	stop()
	if _, err := c.Login(t.Context(), node.BootstrapHuman); err == nil {
		t.Error("a login was issued without time")
	}
}

// startEtcd runs one until the test ends, and returns the endpoint for it.
func startEtcd(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("etcd")
	if err != nil {
		sandboxtest.Require(t, "there is no etcd; apt-get install etcd-server")
	}
	address := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		return l.Addr().String()
	}
	clients, peers := "http://"+address(), "http://"+address()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	etcd := exec.CommandContext(ctx, program, "--data-dir", t.TempDir(), "--listen-client-urls", clients, "--advertise-client-urls", clients,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers)
	if err := etcd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = etcd.Wait() })
	return "etcd://" + strings.TrimPrefix(clients, "http://")
}

// Of two nodes that share an etcd one leads, and the other asks it, over the port of
// its contracts and with its certificate. When the one that leads ends, the other
// does.
func TestEtcdClockOfTwo(t *testing.T) {
	endpoint := startEtcd(t)
	ca := wiretest.NewCA(t)
	set := func(name string) node.Options {
		dir := t.TempDir()
		o := options(t, t.TempDir())
		o.Config.TLS = writePEM(t, dir, ca.Issue(t, creto.ID{TrustDomain: "creto.local", Tenant: creto.DefaultTenant, Kind: creto.KindWorkload, Name: name}, nil))
		o.Config.TLS.ClientCA = filepath.Join(dir, "ca.pem")
		writeRoot(t, o.Config.TLS.ClientCA, ca)
		o.Config.Integrations.Consensus.Endpoint = endpoint
		o.Config.Integrations.Consensus.TimeoutMS = 500
		return o
	}
	_, one, stopOne := running(t, set("one"))
	if _, err := one.AddApprover(t.Context(), "two", []string{node.NodeGroup}); err != nil {
		t.Fatal(err)
	}
	_, two, stopTwo := running(t, set("two"))
	defer stopTwo()
	for range 20 { // in turn, each after the other
		for _, c := range []*client.Client{one, two} {
			if _, err := c.Login(t.Context(), node.BootstrapHuman); err != nil {
				t.Fatal(err)
			}
		}
	}
	a, b := stamps(t, one, "login_issued"), stamps(t, two, "login_issued")
	for i := range b {
		if creto.HappenedBefore(a[i], b[i]) != creto.Yes || i > 0 && creto.HappenedBefore(b[i], a[i-1]) != creto.Yes {
			t.Fatalf("the two do not stamp in one order: %+v, %+v", a[i], b[i])
		}
	}
	if got := clockHealth(t, two); len(b) < 20 || got != "healthy " || count(t, two, "clock_degraded") != 0 {
		t.Errorf("who follows has %d stamps, health %q, and %d episodes", len(b), got, count(t, two, "clock_degraded"))
	}
	stopOne()
	within(t, 20*time.Second, "the other leads", func() bool { return clockHealth(t, two) == "healthy " })
	if _, err := two.Login(t.Context(), node.BootstrapHuman); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "it leads in a term of its own", func() bool {
		_, err := two.Login(t.Context(), node.BootstrapHuman)
		newest := stamps(t, two, "login_issued")[0]
		return err == nil && newest.Source == creto.SourceConsensus && newest.Term() > b[0].Term()
	})
}

// A node that had its own clock before goes on after it with the cluster's, and the
// other way round.
func TestEtcdClock(t *testing.T) {
	endpoint := startEtcd(t)
	o := options(t, t.TempDir())
	_, _, stop := running(t, o) // its own clock first
	stop()
	_, c, stop := running(t, o)
	own := stamps(t, c, "node_started")
	stop()
	o.Config.Integrations.Consensus.Endpoint = endpoint
	o.Config.Integrations.Consensus.TimeoutMS = 500
	_, c, stop = running(t, o)
	if got := clockHealth(t, c); got != "healthy " {
		t.Errorf("health of time: %q, want healthy", got)
	}
	shared := stamps(t, c, "node_started")
	if len(own) != 2 || len(shared) != 3 || shared[0].Logical <= own[0].Logical || shared[0].Source != creto.SourceConsensus {
		t.Errorf("the node's starts, the newest first: %+v with its own clock, %+v with etcd's", own, shared)
	}
	for range 50 {
		if _, err := c.Login(t.Context(), node.BootstrapHuman); err != nil {
			t.Fatal(err)
		}
	}
	last := stamps(t, c, "login_issued")[0]
	stop()
	// And back: its own clock goes on after the cluster's.
	o.Config.Integrations.Consensus.Endpoint = ""
	_, c, stop = running(t, o)
	defer stop()
	if back := stamps(t, c, "node_started"); len(back) != 4 || back[0].Logical <= last.Logical {
		t.Errorf("after the way back %+v, want later than %+v", back, last)
	}
}

// A time service that was restored from a backup, or is another one at the same
// address, gives what a node has seen already. The node notices, also in another
// life, and does nothing: no fallback hides that.
func TestRestoredClock(t *testing.T) {
	dir := t.TempDir()
	first := options(t, dir)
	for range 3 { // some terms
		_, _, stop := running(t, first)
		stop()
	}
	_, _, stop := running(t, first)
	o := options(t, t.TempDir())
	o.Config.Integrations.Consensus.Endpoint = "unix://" + filepath.Join(dir, client.SocketName)
	_, _, stopSecond := running(t, o)
	stopSecond()
	stop()
	other := options(t, t.TempDir()) // in its first term
	_, _, stop = running(t, other)
	defer stop()
	o.Config.Integrations.Consensus.Endpoint = "unix://" + filepath.Join(other.DataDir, client.SocketName)
	n, err := node.Open(t.Context(), o)
	if !errors.Is(err, fault.ConsensusOrderingConflict) {
		t.Errorf("Open with a clock that is behind = %v, want ConsensusOrderingConflict", err)
	}
	if err == nil {
		_ = n.Close()
	}
}
