package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"creto.dev/call"
	"creto.dev/consensus"
	"creto.dev/consensus/etcdconsensus"
	"creto.dev/consensus/localconsensus"
	"creto.dev/consensus/remoteconsensus"
	"creto.dev/internal/db"
	"creto.dev/internal/wire"
)

// How many stamps are timed where each crosses a wire, and by how many callers at
// once.
const (
	wireTimes = 5000
	callers   = 100
)

// benchConsensus measures stamps: in this process, over a wire, and of a cluster's
// leader. The peers are what one would write instead: a mutex around the system's
// clock, which forgets; and etcd's own revision, one write for each stamp.
func benchConsensus(ctx context.Context, r *report) (err error) {
	dir, err := os.MkdirTemp("", "creto-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d, err := db.Open(ctx, filepath.Join(dir, "creto.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	local, err := localconsensus.Open(ctx, d, "bench")
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { _ = local.Run(running) }) // it returns nil
	defer group.Wait()
	defer stop()

	var mu sync.Mutex
	var last int64
	cases := []bench{
		{name: "now/local", who: creto, n: hotTimes, note: "budget 100 ns", do: stampOf(ctx, local)},
		{name: "now/local", who: "mutex", n: hotTimes, note: "forgets: a restart may go backwards", do: func() error {
			mu.Lock()
			defer mu.Unlock()
			last = max(last+1, time.Now().UnixNano())
			return nil
		}},
	}
	conn, closeWire, err := overWire(ctx, func(s grpc.ServiceRegistrar) { remoteconsensus.Register(s, local, nil) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeWire()) }()
	remote := remoteconsensus.New(conn, call.Policy{})
	cases = append(cases,
		bench{name: "now/wire", who: creto, n: wireTimes, note: "gRPC on loopback", do: stampOf(ctx, remote)},
		bench{name: fmt.Sprintf("now/wire, %d callers at once", callers), who: creto, n: wireTimes / 10, note: fmt.Sprintf("an operation is %d stamps", callers), do: atOnce(ctx, remote)},
	)
	if err := measureAll(ctx, r, cases); err != nil {
		return err
	}
	return benchEtcd(ctx, r, dir)
}

func stampOf(ctx context.Context, c consensus.Clock) func() error {
	return func() error { _, err := c.Now(ctx); return err }
}

// atOnce has all callers take one stamp.
func atOnce(ctx context.Context, c consensus.Clock) func() error {
	return func() error {
		failed := make(chan error, callers)
		for range callers {
			go func() { _, err := c.Now(ctx); failed <- err }()
		}
		var errs []error
		for range callers {
			errs = append(errs, <-failed)
		}
		return errors.Join(errs...)
	}
}

// overWire serves contracts on loopback and connects to them.
func overWire(ctx context.Context, register func(grpc.ServiceRegistrar)) (*grpc.ClientConn, func() error, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	server := grpc.NewServer(wire.ServerOptions(wire.ServerConfig{Log: slog.New(slog.DiscardHandler)})...)
	register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := wire.Dial(wire.Config{Address: l.Addr().String()})
	if err != nil {
		server.Stop()
		return nil, nil, errors.Join(err, <-served)
	}
	return conn, func() error {
		err := conn.Close()
		server.Stop()
		return errors.Join(err, <-served)
	}, nil
}

// benchEtcd measures a cluster's leader, where etcd is installed.
func benchEtcd(ctx context.Context, r *report, dir string) (err error) {
	program, err := exec.LookPath("etcd")
	if err != nil {
		return nil //nolint:nilerr // what was not measured is absent
	}
	ports, err := freePorts(ctx, 2)
	if err != nil {
		return err
	}
	clients, peers := "http://"+ports[0], "http://"+ports[1]
	ctx, cancel := context.WithCancel(ctx)
	etcd := exec.CommandContext(ctx, program, "--data-dir", filepath.Join(dir, "etcd"), "--listen-client-urls", clients, "--advertise-client-urls", clients, //nolint:gosec // found above
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers)
	if err := etcd.Start(); err != nil {
		cancel()
		return err
	}
	defer func() { cancel(); _ = etcd.Wait() }()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{clients}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	clock, err := etcdconsensus.Open(etcdconsensus.Etcd{Endpoints: ports[:1]}, etcdconsensus.Config{Node: "bench", Address: "bench", Prefix: "/bench/"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clock.Close()) }()
	running, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { _ = clock.Run(running) }) // it returns nil
	defer group.Wait()
	defer stop()
	for start := time.Now(); ; {
		_, err := clock.Now(ctx)
		if err == nil {
			break
		}
		if time.Since(start) > 20*time.Second {
			return err
		}
	}
	return measureAll(ctx, r, []bench{
		{name: "now/etcd", who: creto, n: hotTimes / 10, note: "the leader; the clock is looked at twice", do: stampOf(ctx, clock)},
		{name: "now/etcd", who: "etcd", n: wireTimes / 5, note: "its revision, one write a stamp", do: func() error { _, err := client.Put(ctx, "stamp", ""); return err }},
	})
}

// freePorts returns addresses that were free a moment ago.
func freePorts(ctx context.Context, n int) (addresses []string, err error) {
	for range n {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}
