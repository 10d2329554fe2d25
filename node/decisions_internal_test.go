package node

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc/localpqc"
)

// verdicts is an authorizer whose answers are given.
type verdicts struct {
	authz.Authorizer
	decision authz.Decision
	err      error
}

func (v *verdicts) Check(context.Context, authz.Session, authz.Request) (authz.Decision, error) {
	return v.decision, v.err
}

// bearerOf is a session.
type bearerOf struct{ nhi.VerifiedChain }

func (b bearerOf) Chain() nhi.VerifiedChain { return b.VerifiedChain }

// TestDecisionLog holds what the process's log says of decisions: every one that
// is no Allow, a share of the others, and nothing of what the request holds.
func TestDecisionLog(t *testing.T) {
	chain := nhitest.Chain(t, localpqc.New(), time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC), nhi.Everything(), "alice", "bot")
	r := authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "m" + strings.Repeat("x", 1000)}, Context: map[string]any{"password": "hunter2"}}
	lines := func(share float64, level slog.Level, v verdicts, times int) []map[string]any {
		t.Helper()
		var out bytes.Buffer
		a := withDecisionLog(t.Context(), &v, slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level})), share)
		for range times {
			d, err := a.Check(t.Context(), bearerOf{chain}, r)
			if d.Kind != v.decision.Kind || fault.CodeOf(err) != fault.CodeOf(v.err) {
				t.Errorf("Check = %v, %v", d, err)
			}
		}
		if strings.Contains(out.String(), "hunter2") || strings.Contains(out.String(), strings.Repeat("x", 300)) {
			t.Errorf("it says %s", &out)
		}
		var all []map[string]any
		for line := range strings.Lines(out.String()) {
			var one map[string]any
			if err := json.Unmarshal([]byte(line), &one); err != nil {
				t.Fatal(err)
			}
			all = append(all, one)
		}
		return all
	}
	denied := verdicts{decision: authz.Decision{Kind: authz.Deny, Reason: "because of hunter2", Policies: []authz.Policy{{ID: "p"}}}}
	allowed := verdicts{decision: authz.Decision{Kind: authz.Allow, Policies: []authz.Policy{{ID: "p"}}}}
	got := lines(0, slog.LevelInfo, denied, 3)
	if len(got) != 3 || got[0]["msg"] != "action not allowed" || got[0]["agent"] != "spiffe://test.local/default/agent/bot" || got[0]["decision"] != "deny" || got[0]["policy_id"] != "p" || got[0]["action"] != "call_model" {
		t.Errorf("denials are logged as %v", got)
	}
	if got := lines(0, slog.LevelInfo, verdicts{err: fault.New("test", fault.AuthzTimeout, "hunter2")}, 1); len(got) != 1 || got[0]["code"] != fault.AuthzTimeout.String() {
		t.Errorf("an error is logged as %v", got)
	}
	if got := lines(0, slog.LevelInfo, allowed, 1000); len(got) != 0 {
		t.Errorf("%d of 1000 allowed actions are logged, want none", len(got))
	}
	if got := lines(1, slog.LevelInfo, allowed, 100); len(got) != 100 || got[0]["msg"] != "action allowed" {
		t.Errorf("%d of 100 allowed actions are logged, want all", len(got))
	}
	if n := len(lines(0.1, slog.LevelInfo, allowed, 10_000)); n < 700 || n > 1300 {
		t.Errorf("%d of 10000 allowed actions are logged, want about 1000", n)
	}
	if got := lines(1, slog.LevelWarn, denied, 5); len(got) != 0 {
		t.Errorf("a log that takes warnings has %v", got)
	}
}
