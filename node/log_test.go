package node_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"creto.dev/client"
	"creto.dev/health"
)

// auditState is what the check of the log says.
func auditState(t *testing.T, c *client.Client) string {
	t.Helper()
	_, report, err := c.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return report.Checks["audit"].State.String()
}

// A node may keep its log at another. While that is away nothing is lost and
// nobody is stopped, over lives of this node; then each record is there once
// (R-AUD-28).
func TestRemoteLog(t *testing.T) {
	first, dir := options(t, t.TempDir()), t.TempDir()
	_, keeper, stop := running(t, first)
	o := options(t, dir)
	o.Config.Integrations.Audit.Endpoint = "unix://" + filepath.Join(first.DataDir, client.SocketName)
	_, c, stopSecond := running(t, o)
	if _, err := c.AddHuman(t.Context(), "zoe", nil); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "the other node has it", func() bool { return count(t, keeper, "human_added") == 1 })
	if n := count(t, c, "human_added"); n != 1 {
		t.Errorf("the node itself finds %d records", n)
	}
	if _, err := c.Bundle(t.Context(), client.Query{}); err == nil || !strings.Contains(err.Error(), "is kept by the node at unix://") {
		t.Errorf("Bundle = %v, want where to ask", err)
	}
	stop()
	for _, name := range []string{"anna", "berta"} {
		if _, err := c.AddHuman(t.Context(), name, nil); err != nil {
			t.Fatalf("without the log: %v", err)
		}
	}
	within(t, 20*time.Second, "health says so", func() bool { return auditState(t, c) == health.Unhealthy.String() })
	stopSecond()
	_, c, stopSecond = running(t, o)
	defer stopSecond()
	if _, err := c.AddHuman(t.Context(), "carla", nil); err != nil {
		t.Fatal(err)
	}
	_, keeper, stop = running(t, first)
	defer stop()
	within(t, 30*time.Second, "all of them are there", func() bool { return count(t, keeper, "human_added") == 4 })
	within(t, 20*time.Second, "health says so", func() bool { return auditState(t, c) == health.Healthy.String() })
	if n := count(t, keeper, "human_added"); n != 4 {
		t.Errorf("%d records of four humans", n)
	}
}
