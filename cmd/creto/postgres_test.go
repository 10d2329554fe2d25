package main_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev/internal/db/dbtest"
)

// ask makes one model call as an agent and returns the status.
func (n *node) ask(ctx context.Context, token string) (int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(n.Console, "/console")+"/v1/chat/completions", strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"hello"}]}`))
	if err != nil {
		return 0, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// TestPostgres: a node on PostgreSQL has it to itself, does nothing while it is
// away, goes on by itself when it is back, and has lost no record.
func TestPostgres(t *testing.T) {
	s := dbtest.NewServer(t)
	u := newUpstream()
	defer u.Close()
	config := fmt.Sprintf("[database]\nurl = %q\n[[inference.providers]]\nname = \"stub\"\nbase_url = %q\n", s.URL(""), u.URL+"/v1")
	n := newNode(t, config)
	n.must("agent", "add", "bob-bot", "--on-behalf-of", "bob", "--allow", "call_model=*")
	token := strings.TrimSpace(n.must("token", "bob-bot"))

	// A second node is refused, and the first goes on.
	other := n.command("serve", "--data", filepath.Join(n.home, "other"), "--config", filepath.Join(filepath.Dir(n.home), "creto.toml"), "--listen", "localhost:0")
	if out, err := other.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("in use by another creto")) || bytes.Contains(out, []byte("postgres://")) {
		t.Fatalf("a second node: %v\n%s", err, out)
	}

	// Calls go on all the time, so that the server ends in the middle of some.
	ctx, stop := context.WithCancel(t.Context())
	var allowed, refused atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			switch status, err := n.ask(t.Context(), token); {
			case err == nil && status == http.StatusOK:
				allowed.Add(1)
			default:
				refused.Add(1)
				time.Sleep(5 * time.Millisecond)
			}
		}
	}()
	for range 3 {
		before := allowed.Load()
		eventually(t, "calls are answered", func() bool { return allowed.Load() > before+20 })
		s.Stop(t)
		was := refused.Load()
		eventually(t, "calls are refused", func() bool { return refused.Load() > was })
		s.Start(t)
		took := eventually(t, "the node is well again", func() bool { return n.command("health").Run() == nil })
		t.Logf("well again %v after the server was back", took)
	}
	stop()
	<-done
	if n.server.cmd.ProcessState != nil {
		t.Fatal("the node ended")
	}
	count := func() (made int64) {
		for _, r := range n.records("call_model") {
			if r.Record.Outcome == "success" {
				made++
			}
		}
		return made
	}
	if want := min(allowed.Load(), 1000); count() < want {
		t.Errorf("%d calls were answered, %d are recorded", want, count())
		for _, r := range n.records("call_model") {
			if r.Record.Outcome != "success" {
				t.Log(r)
			}
		}
		t.Log(n.stderr.String())
	}
	n.restart() // a crash of the node, which then need not wait for itself
	if want := min(allowed.Load(), 1000); count() < want {
		t.Errorf("%d calls were answered, %d are recorded after a crash of the node", want, count())
	}
	bundle := filepath.Join(n.home, "call.bundle")
	n.must("receipts", "--what", "call_model", "--bundle", bundle)
	if out := n.must("verify", bundle); !strings.Contains(out, "root trusted") {
		t.Errorf("verify:\n%s", out)
	}
	last := n.server
	n.server = nil // it ends here, so that its log can be read
	if err := last.stop(); err != nil {
		t.Error(err)
	}
	if strings.Contains(last.stderr.String(), "postgres://") {
		t.Error("the URL is in the log")
	}
}
