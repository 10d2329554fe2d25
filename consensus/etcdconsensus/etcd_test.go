package etcdconsensus_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/consensus"
	"creto.dev/consensus/consensustest"
	"creto.dev/consensus/etcdconsensus"
	"creto.dev/consensus/remoteconsensus"
	"creto.dev/fault"
	"creto.dev/internal/wire/wiretest"

	"google.golang.org/grpc"
)

// require skips t, or fails it where CRETO_TEST_REQUIRE=1 says that nothing may
// be skipped.
func require(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CRETO_TEST_REQUIRE") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// etcdProgram is Debian's etcd.
func etcdProgram(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		require(t, "there is no etcd; apt-get install etcd-server")
	}
	return path
}

// freePort returns a port that was free a moment ago.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// startEtcd runs one on loopback until the test ends, and returns its address.
func startEtcd(t testing.TB, scheme string, args ...string) string {
	t.Helper()
	program := etcdProgram(t)
	address, peer := freePort(t), freePort(t)
	args = append([]string{
		"--name", "m1", "--data-dir", t.TempDir(), "--logger", "zap", "--log-level", "error",
		"--listen-client-urls", scheme + "://" + address, "--advertise-client-urls", scheme + "://" + address,
		"--listen-peer-urls", "http://" + peer, "--initial-advertise-peer-urls", "http://" + peer, "--initial-cluster", "m1=http://" + peer,
	}, args...)
	var output bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("etcd: %s", output.String())
		}
	})
	return address
}

// admin is a plain client of an etcd.
func admin(t testing.TB, c clientv3.Config) *clientv3.Client {
	t.Helper()
	c.DialTimeout = 10 * time.Second
	client, err := clientv3.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		_, err := client.Get(ctx, "x")
		if err == nil {
			return client
		}
		if ctx.Err() != nil {
			t.Fatalf("etcd does not answer: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// life is a running clock.
type life struct {
	*etcdconsensus.Clock
	stop func() // in order
}

// start runs a clock until the test ends.
func start(t testing.TB, e etcdconsensus.Etcd, c etcdconsensus.Config) life {
	t.Helper()
	clock, err := etcdconsensus.Open(e, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- clock.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run = %v", err)
		}
		if err := clock.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	t.Cleanup(stop)
	return life{clock, stop}
}

// serving waits until c answers.
func serving(t testing.TB, c consensus.Clock) creto.Timestamp {
	t.Helper()
	until := time.Now().Add(30 * time.Second)
	for {
		s, err := c.Now(t.Context())
		if err == nil {
			return s
		}
		if time.Now().After(until) {
			t.Fatalf("the clock does not answer: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

const prefix = "/creto/test/"

// The contract's suite on one etcd: with the node that leads, with one that passes
// on to it over gRPC, and behind a fallback as a node has it. Each life ends in
// another way.
func TestClock(t *testing.T) {
	address := startEtcd(t, "http")
	admin(t, clientv3.Config{Endpoints: []string{address}})
	e := etcdconsensus.Etcd{Endpoints: []string{address}}
	t.Run("leader", func(t *testing.T) {
		var last life
		n := 0
		consensustest.Run(t, func(t *testing.T) consensus.Clock {
			if n++; last.Clock != nil {
				last.stop() // two nodes at once are the next test
			}
			last = start(t, e, etcdconsensus.Config{Node: fmt.Sprint("n", n), Address: fmt.Sprint("a", n), Prefix: prefix})
			serving(t, last)
			return last.Clock
		})
	})
	t.Run("follower", func(t *testing.T) {
		leader := start(t, e, etcdconsensus.Config{Node: "leader", Address: "leader:1", Prefix: prefix + "f/"})
		serving(t, leader)
		consensustest.Run(t, func(t *testing.T) consensus.Clock {
			follower := start(t, e, etcdconsensus.Config{Node: "follower", Prefix: prefix + "f/", Forward: func(address string) (etcdconsensus.Forwarder, error) {
				if address != "leader:1" {
					return nil, fmt.Errorf("asked for %s", address)
				}
				conn := wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { remoteconsensus.Register(s, leader.Clock, leader.Leading()) })
				return forwarder{remoteconsensus.NewForwarder(conn, call.Policy{Timeout: 10 * time.Second})}, nil
			}})
			serving(t, follower)
			return consensus.NewFallback(consensus.NewGuard(follower), consensus.FallbackConfig{Node: "follower", Local: true, Policy: call.Policy{Timeout: 10 * time.Second}})
		})
	})
}

type forwarder struct{ consensus.Batcher }

func (forwarder) Close() error { return nil }

// A leader that goes in order is followed at once; one that dies, after its lease
// and a window. What it gave is before what the next gives.
func TestSuccession(t *testing.T) {
	address := startEtcd(t, "http")
	client := admin(t, clientv3.Config{Endpoints: []string{address}})
	e := etcdconsensus.Etcd{Endpoints: []string{address}}
	config := func(n string) etcdconsensus.Config {
		return etcdconsensus.Config{Node: n, Address: n, Prefix: prefix, LeaseTTL: 2 * time.Second}
	}
	first := start(t, e, config("n1"))
	a := serving(t, first)
	second := start(t, e, config("n2"))
	if s, err := second.Now(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("a follower without a way to the leader gives %+v, %v", s, err)
	}
	left := time.Now()
	first.stop()
	b := serving(t, second)
	if took := time.Since(left); took > 2*time.Second {
		t.Errorf("after a farewell the next leader took %v", took)
	}
	if creto.HappenedBefore(a, b) != creto.Yes || b.Physical < a.Physical || b.Term() <= a.Term() || b.Node != "n2" {
		t.Errorf("%+v after %+v", b, a)
	}
	// Somebody takes its key away: it notices with its next renewal, and stops.
	if _, err := client.Delete(t.Context(), prefix+"leader"); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(10 * time.Second)
	for {
		s, err := second.Now(t.Context())
		if err == nil && s.Term() > b.Term() {
			break // it was elected again, in another term
		}
		if time.Now().After(until) {
			t.Fatal("a leader whose key is gone stays leader")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := second.Ping(t.Context()); err != nil {
		t.Errorf("Ping = %v", err)
	}
}

// Who resigns before the windows of others have ended leaves no farewell, and who
// does after leaves one.
func TestFarewell(t *testing.T) {
	address := startEtcd(t, "http")
	client := admin(t, clientv3.Config{Endpoints: []string{address}})
	if _, err := client.Put(t.Context(), prefix+"term", "5"); err != nil { // somebody led, and died
		t.Fatal(err)
	}
	get := func(key string) string {
		got, err := client.Get(t.Context(), prefix+key)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Kvs) == 0 {
			return ""
		}
		return string(got.Kvs[0].Value)
	}
	config := etcdconsensus.Config{Node: "n1", Address: "a1", Prefix: prefix, LeaseTTL: time.Minute} // a window of 30 s
	c := start(t, etcdconsensus.Etcd{Endpoints: []string{address}}, config)
	for until := time.Now().Add(20 * time.Second); get("leader") == ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("nobody is elected")
		}
	}
	c.stop()
	if got := get("farewell"); got != "" || get("leader") != "" || get("term") != "6" {
		t.Errorf("after a leader that had not waited: farewell %q, leader %q, term %q", got, get("leader"), get("term"))
	}
	config.LeaseTTL = 2 * time.Second
	c = start(t, etcdconsensus.Etcd{Endpoints: []string{address}}, config)
	serving(t, c)
	c.stop()
	if got := get("farewell"); got != "7" || get("leader") != "" {
		t.Errorf("after a leader that had waited: farewell %q, leader %q", got, get("leader"))
	}
}

// A renewal that etcd refuses ends the leadership though the lease lasts.
func TestFence(t *testing.T) {
	address := startEtcd(t, "http")
	client := admin(t, clientv3.Config{Endpoints: []string{address}})
	c := start(t, etcdconsensus.Etcd{Endpoints: []string{address}}, etcdconsensus.Config{Node: "n1", Address: "a1", Prefix: prefix, LeaseTTL: 2 * time.Second})
	first := serving(t, c)
	mark := "9000000000000000000" // in the year 2255
	_, err := client.Txn(t.Context()).Then(clientv3.OpPut(prefix+"term", "77"), clientv3.OpPut(prefix+"mark", mark)).Commit()
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s, err := c.Now(t.Context())
		if err == nil && s.Term() > 77 && s.Physical >= 9_000_000_000_000_000_000 {
			break
		}
		if err == nil && s.Term() != first.Term() {
			t.Fatalf("%+v, below the term and the mark of another", s)
		}
		if time.Now().After(until) {
			t.Fatalf("the leader goes on after another term began: %+v, %v", s, err)
		}
	}
}

// Etcd's users: a login that is wrong is a fault of the clock, and shows the
// password nowhere.
func TestPassword(t *testing.T) {
	const password = "correct horse battery"
	address := startEtcd(t, "http")
	client := admin(t, clientv3.Config{Endpoints: []string{address}})
	ctx := t.Context()
	_, err1 := client.UserAdd(ctx, "root", password)
	_, err2 := client.UserGrantRole(ctx, "root", "root")
	_, err3 := client.AuthEnable(ctx)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	config := etcdconsensus.Config{Node: "n1", Address: "a1", Prefix: prefix, LeaseTTL: 2 * time.Second}
	login := func(secret string) etcdconsensus.Etcd {
		return etcdconsensus.Etcd{Endpoints: []string{address}, Username: "root", Password: creto.NewSecret(secret)}
	}
	serving(t, start(t, login(password), config))
	const wrong = "wrong but secret"
	c, err := etcdconsensus.Open(login(wrong), config)
	if err == nil {
		defer func() { _ = c.Close() }()
		err = errors.Join(c.Ping(ctx), func() error { _, err := c.OrderEvents(ctx, make([]consensus.EventID, 1)); return err }())
	}
	if err == nil || strings.Contains(err.Error(), wrong) || strings.Contains(fmt.Sprintf("%+v %v", login(wrong), config), wrong) {
		t.Errorf("with a wrong password: %v", err)
	}
}

func TestTLS(t *testing.T) {
	ca := wiretest.NewCA(t)
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	server, client := ca.Issue(t, wiretest.ID("etcd"), nil), ca.Issue(t, wiretest.ID("n1"), nil)
	key, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	address := startEtcd(t, "https", "--cert-file", write("cert", "CERTIFICATE", server.Certificate[0]), "--key-file", write("key", "PRIVATE KEY", key),
		"--client-cert-auth", "--trusted-ca-file", write("ca", "CERTIFICATE", ca.Certificate().Raw))
	config := etcdconsensus.Config{Node: "n1", Address: "a1", Prefix: prefix, LeaseTTL: 2 * time.Second}
	good := &tls.Config{RootCAs: ca.Roots(), Certificates: []tls.Certificate{client}, MinVersion: tls.VersionTLS12}
	admin(t, clientv3.Config{Endpoints: []string{"https://" + address}, TLS: good})
	serving(t, start(t, etcdconsensus.Etcd{Endpoints: []string{address}, TLS: good}, config))
	for name, bad := range map[string]*tls.Config{
		"no certificate": {RootCAs: ca.Roots(), MinVersion: tls.VersionTLS12}, "other roots": {RootCAs: wiretest.NewCA(t).Roots(), Certificates: good.Certificates, MinVersion: tls.VersionTLS12}, "plaintext": nil,
	} {
		c, err := etcdconsensus.Open(etcdconsensus.Etcd{Endpoints: []string{address}, TLS: bad}, config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.OrderEvents(t.Context(), make([]consensus.EventID, 1)); !errors.Is(err, fault.ConsensusUnavailable) && !errors.Is(err, fault.ConsensusTimeout) {
			t.Errorf("%s: %v, want a fault of the clock", name, err)
		}
		_ = c.Close()
	}
}

// What etcd holds and is no clock's is a fault, not a stamp.
func TestDamagedEtcd(t *testing.T) {
	address := startEtcd(t, "http")
	client := admin(t, clientv3.Config{Endpoints: []string{address}})
	for _, key := range []string{"leader", "term", "mark"} {
		at := prefix + key + "/"
		if _, err := client.Put(t.Context(), at+key, "nonsense"); err != nil {
			t.Fatal(err)
		}
		c := start(t, etcdconsensus.Etcd{Endpoints: []string{address}}, etcdconsensus.Config{Node: "n1", Address: "a1", Prefix: at, LeaseTTL: 2 * time.Second})
		time.Sleep(500 * time.Millisecond)
		if s, err := c.Now(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
			t.Errorf("with a %s that is nonsense: %+v, %v; want ConsensusUnavailable", key, s, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []etcdconsensus.Config{{}, {Node: "n"}, {Prefix: "/p/"}} {
		if _, err := etcdconsensus.Open(etcdconsensus.Etcd{Endpoints: []string{"127.0.0.1:1"}}, c); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("Open(%+v) = %v, want InvalidArgument", c, err)
		}
	}
	if _, err := etcdconsensus.Open(etcdconsensus.Etcd{}, etcdconsensus.Config{Node: "n", Prefix: "/p/"}); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("Open without endpoints = %v, want InvalidArgument", err)
	}
}
