package node_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/node"
)

// model is a provider of one model.
func model(t *testing.T) node.InferenceConfig {
	t.Helper()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`)
	}))
	t.Cleanup(upstream.Close)
	return node.InferenceConfig{Timeout: node.Duration(time.Minute), Providers: []node.ProviderConfig{{Name: "p", BaseURL: upstream.URL + "/v1"}}}
}

// calls returns what calls the model as an agent of a node, and the status.
func calls(t *testing.T, c *client.Client, agent string) func(context.Context) int {
	t.Helper()
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Token(t.Context(), agent, client.NewToken{})
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context) int { return modelCall(ctx, "http://"+status.Listen, token.Token) }
}

// Nodes that have their limits from one use no more than they are, together, also
// while some start again.
func TestSharedQuota(t *testing.T) {
	inference := model(t)
	first := options(t, t.TempDir())
	first.Config.Inference = inference
	_, owner, stopOwner := running(t, first)
	defer stopOwner()
	agent := client.NewAgent{Name: "bot", Allow: []string{"call_model=*"}}
	limited := agent
	limited.Quota = []string{"call_model=40/100000h"}
	if _, err := owner.AddAgent(t.Context(), limited); err != nil {
		t.Fatal(err)
	}
	o := options(t, t.TempDir())
	o.Config.Inference = inference
	o.Config.Integrations.Metering.Endpoint = "unix://" + filepath.Join(first.DataDir, client.SocketName)
	_, borrower, stop := running(t, o)
	if _, err := borrower.AddAgent(t.Context(), agent); err != nil {
		t.Fatal(err)
	}
	// What is kept elsewhere is set elsewhere.
	_, err := borrower.Limits(t.Context(), "")
	_, err2 := borrower.SetLimit(t.Context(), client.Limit{Agent: "bot", Action: "call_model", Quota: "1/1h"})
	_, err3 := borrower.ClearLimit(t.Context(), client.LimitName{Agent: "bot", Action: "call_model"})
	_, err4 := borrower.AddAgent(t.Context(), client.NewAgent{Name: "other", Quota: []string{"call_model=1/1h"}})
	for _, err := range []error{err, err2, err3, err4} {
		if !errors.Is(err, fault.FailedPrecondition) {
			t.Errorf("limits on a node that has none: %v, want FailedPrecondition", err)
		}
	}
	ours, theirs := calls(t, owner, "bot"), calls(t, borrower, "bot")
	granted := 0
	for range 5 {
		for _, call := range []func(context.Context) int{ours, theirs} {
			if status := call(t.Context()); status != http.StatusOK {
				t.Fatalf("status %d", status)
			}
			granted++
		}
	}
	list, err := owner.Limits(t.Context(), "bot")
	if err != nil || len(list) != 1 || list[0].Lent < 5 || list[0].Used != 5+list[0].Lent {
		t.Errorf("Limits = %+v, %v; want 5 used and some lent", list, err)
	}
	stop() // it gives back what it did not use
	list, err = owner.Limits(t.Context(), "bot")
	if err != nil || list[0].Lent != 5 || list[0].Used != 10 {
		t.Errorf("after the other has stopped, Limits = %+v, %v; want what each used", list, err)
	}
	_, borrower, stop = running(t, o)
	theirs = calls(t, borrower, "bot")
	var mu sync.Mutex // guards granted
	var group sync.WaitGroup
	for _, call := range []func(context.Context) int{ours, theirs, theirs} {
		group.Go(func() {
			for {
				status := call(t.Context())
				if status != http.StatusOK {
					if status != http.StatusTooManyRequests {
						t.Errorf("status %d", status)
					}
					return
				}
				mu.Lock()
				granted++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if granted != 40 {
		t.Errorf("two nodes were granted %d of 40", granted)
	}
	if n := count(t, borrower, "quota_exceeded"); n == 0 {
		t.Error("nothing says that the quota is exceeded")
	}
	stop()
}

// A rate is enforced behind the gate, and each change of a limit is in the log.
func TestRateOfNode(t *testing.T) {
	o := options(t, t.TempDir())
	o.Config.Inference = model(t)
	_, c, stop := running(t, o)
	defer stop()
	if _, err := c.AddAgent(t.Context(), client.NewAgent{Name: "bot", Allow: []string{"call_model=*"}, Quota: []string{"call_model=100/100000h"}}); err != nil {
		t.Fatal(err)
	}
	if l, err := c.SetLimit(t.Context(), client.Limit{Agent: "bot", Action: "*", For: node.BootstrapHuman, Rate: "1/h", Burst: 2}); err != nil || l.Left != 2 || l.Rate != "1/1h" {
		t.Fatalf("SetLimit = %+v, %v", l, err)
	}
	call := calls(t, c, "bot")
	for i := range 4 {
		if status := call(t.Context()); (status == http.StatusOK) != (i < 2) || i >= 2 && status != http.StatusTooManyRequests {
			t.Errorf("call %d: status %d", i, status)
		}
	}
	list, err := c.Limits(t.Context(), "bot")
	if err != nil || len(list) != 2 || list[0].Used != 2 || list[1].Left != 0 || list[1].For != node.BootstrapHuman {
		t.Errorf("Limits = %+v, %v; want 2 used: what the rate denies is given back to the quota", list, err)
	}
	for _, bad := range []client.Limit{
		{Agent: "bot", Action: "*"}, {Agent: "bot", Action: "*", Quota: "1/h", Rate: "1/h"}, {Agent: "bot", Action: "*", Quota: "1/h", Burst: 1}, {Action: "*", Quota: "1/h"},
	} {
		if _, err := c.SetLimit(t.Context(), bad); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("SetLimit(%+v) = %v, want InvalidArgument", bad, err)
		}
	}
	page, err := c.Receipts(t.Context(), client.Query{What: "limit_changed"})
	if err != nil || len(page) != 2 || page[0].Record.Detail["rate"] != "1/1h" || page[0].Record.Detail["human"] == "" || page[1].Record.Detail["quota"] != "100/100000h" {
		t.Errorf("the log says %+v, %v", page, err)
	}
}
