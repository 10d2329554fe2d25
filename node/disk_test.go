package node_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit/audittest"
	"creto.dev/client"
	"creto.dev/health"
	"creto.dev/internal/db/dbtest"
	"creto.dev/node"
)

// A node whose disk goes read-only denies what must be on disk before it counts,
// says so in its health, and starts again when the disk is back.
func TestReadOnlyDisk(t *testing.T) {
	if dbtest.Engine(t) != dbtest.SQLite {
		t.Skip("the database's files are the server's own")
	}
	disk := audittest.NewDisk(t, 128)
	o := options(t, disk.Dir)
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
	if _, err := c.AddAgent(t.Context(), client.NewAgent{Name: "bob", Allow: []string{"http_request=GET http://shop.test/*"}}); err != nil {
		t.Fatal(err)
	}
	spawn := client.NewRun{Agent: "bob", Isolation: "namespaces", Command: []string{"x"}, Dir: "/w", PID: os.Getpid()}
	if _, err := c.StartRun(t.Context(), spawn); err != nil {
		t.Fatal(err)
	}
	disk.Abort(t)
	if _, err := c.StartRun(t.Context(), spawn); err == nil {
		t.Error("an agent was started, and there is no record of it")
	}
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		code, report, err := c.Health(t.Context())
		if err == nil && report.Checks["audit"].State == health.Unhealthy {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("Health = %d, %+v, %v", code, report, err)
		}
	}
	c.Close()
	cancel()
	t.Logf("the node ends: %v", errors.Join(<-done, n.Close()))
	disk.Unmount(t)
	disk.Mount(t)
	_, c, stop := running(t, o)
	defer stop()
	defer c.Close()
	if got := count(t, c, "spawn_sandbox"); got != 1 {
		t.Errorf("%d records of spawn_sandbox, want that of the run that was started", got)
	}
}
