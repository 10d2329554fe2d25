package serve_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/internal/serve"
)

// decideByResource allows what is called good, asks about what is called big, and
// knows one agent.
func decideByResource(ctx context.Context, c client.Check) (client.Decision, error) {
	if creto.CallerOf(ctx).IsZero() {
		return client.Decision{}, fault.New("test", fault.Internal, "nobody asks")
	}
	d := client.Decision{Decision: "deny", Reason: "no policy permits " + c.Resource, Version: creto.DigestOf([]byte("v"))}
	switch {
	case c.Agent != "bot":
		return client.Decision{}, fault.New("test", fault.NHINotFound, "there is no agent %q", c.Agent)
	case c.Resource == "Model::down":
		return client.Decision{}, fault.New("test", fault.AuthzUnavailable, "no policies")
	case c.Resource == "Model::wrong":
		return client.Decision{}, fault.New("test", fault.AuthzInvalidRequest, "the number is none")
	case c.Resource == "Model::big":
		d.Decision, d.Reason, d.Ask = "requires_oversight", "ask", "finance"
	case c.Resource == "Model::good", c.Context["method"] == "GET" && c.Context["amount"] == json.Number("9007199254740993"):
		d.Decision, d.Reason, d.Policies = "allow", "", []string{"p"}
	}
	return d, nil
}

func startAuthZEN(t *testing.T) *node {
	return startWith(t, func(p *serve.Parts) {
		p.Admin.(*admin).decide = decideByResource
		p.Authenticate = func(ctx context.Context, method string, p serve.Peer) (context.Context, error) {
			if p.Token.Reveal() != "admin" || !strings.HasPrefix(method, "/access/v1/") {
				return nil, fault.New("test", fault.Unauthenticated, "log in")
			}
			return creto.WithCaller(ctx, human("anna")), nil
		}
	})
}

// ask sends a request and returns the answer as JSON.
func (n *node) ask(t *testing.T, path, body string) (int, map[string]any) {
	t.Helper()
	resp := n.do(t, http.MethodPost, path, body, http.Header{"Authorization": {"Bearer admin"}, "Content-Type": {"application/json"}, "X-Request-Id": {"r-1"}})
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	if got := resp.Header.Get("X-Request-Id"); resp.StatusCode == http.StatusOK && got != "r-1" {
		t.Errorf("X-Request-Id = %q", got)
	}
	return resp.StatusCode, out
}

const bot = `"subject": {"type": "agent", "id": "bot"}, "action": {"name": "call_model"}`

func TestEvaluation(t *testing.T) {
	n := startAuthZEN(t)
	for _, c := range []struct {
		name, body string
		status     int
		decision   bool
		kind       string
	}{
		{"allowed", `{` + bot + `, "resource": {"type": "Model", "id": "good"}}`, 200, true, "allow"},
		{"a SPIFFE id", `{"subject": {"type": "Agent", "id": "spiffe://test.local/default/agent/bot"}, "action": {"name": "call_model"}, "resource": {"type": "Model", "id": "good"}}`, 200, true, "allow"},
		{"what is not known is passed over", `{` + bot + `, "resource": {"type": "Model", "id": "good", "properties": {"a": 1}}, "x": [1]}`, 200, true, "allow"},
		{"denied", `{` + bot + `, "resource": {"type": "Model", "id": "bad"}}`, 200, false, "deny"},
		{"a question for a human", `{` + bot + `, "resource": {"type": "Model", "id": "big"}}`, 200, false, "requires_oversight"},
		{"properties of the action, and exact numbers", `{"subject": {"type": "agent", "id": "bot"}, "action": {"name": "call_model", "properties": {"method": "GET"}}, "resource": {"type": "Model", "id": "x"}, "context": {"amount": 9007199254740993}}`, 200, true, "allow"},
		{"a name twice", `{"subject": {"type": "agent", "id": "bot"}, "action": {"name": "call_model", "properties": {"method": {}}}, "resource": {"type": "Model", "id": "x"}, "context": {"method": {}}}`, 400, false, ""},
		{"an unknown agent", `{"subject": {"type": "agent", "id": "eve"}, "action": {"name": "call_model"}, "resource": {"type": "Model", "id": "good"}}`, 200, false, "deny"},
		{"no subject", `{"action": {"name": "call_model"}, "resource": {"type": "Model", "id": "good"}}`, 400, false, ""},
		{"a human", `{"subject": {"type": "user", "id": "bot"}, "action": {"name": "call_model"}, "resource": {"type": "Model", "id": "good"}}`, 400, false, ""},
		{"another trust domain's", `{"subject": {"type": "agent", "id": "spiffe://evil.local/default/agent/bot"}, "action": {"name": "call_model"}, "resource": {"type": "Model", "id": "good"}}`, 400, false, ""},
		{"another tenant's", `{"subject": {"type": "agent", "id": "spiffe://test.local/acme/agent/bot"}, "action": {"name": "call_model"}, "resource": {"type": "Model", "id": "good"}}`, 400, false, ""},
		{"an unknown action", `{"subject": {"type": "agent", "id": "bot"}, "action": {"name": "fly"}, "resource": {"type": "Model", "id": "good"}}`, 400, false, ""},
		{"the wrong type", `{` + bot + `, "resource": {"type": "Tool", "id": "good"}}`, 400, false, ""},
		{"no resource", `{` + bot + `}`, 400, false, ""},
		{"no JSON", `{`, 400, false, ""},
		{"two objects", `{} {}`, 400, false, ""},
		{"too much", `{"x": "` + strings.Repeat("x", 2<<20) + `"}`, 400, false, ""},
		{"not decided", `{` + bot + `, "resource": {"type": "Model", "id": "down"}}`, 503, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, out := n.ask(t, "/access/v1/evaluation", c.body)
			why, _ := out["context"].(map[string]any)
			if status != c.status || out["decision"] == true != c.decision || c.status == 200 && why["kind"] != c.kind {
				t.Errorf("%d %v; want %d, %v, %s", status, out, c.status, c.decision, c.kind)
			}
		})
	}
}

func TestEvaluations(t *testing.T) {
	n := startAuthZEN(t)
	items := `"evaluations": [{"resource": {"type": "Model", "id": "good"}}, {"resource": {"type": "Model", "id": "bad"}}, {"resource": {"type": "Model", "id": "wrong"}}, {"action": {"name": "fly"}, "resource": {"type": "Model", "id": "good"}}, {"resource": {"type": "Model", "id": "good"}}]`
	for semantic, want := range map[string][]any{
		"": {true, false, false, false, true}, "execute_all": {true, false, false, false, true},
		"deny_on_first_deny": {true, false}, "permit_on_first_permit": {true},
	} {
		status, out := n.ask(t, "/access/v1/evaluations", `{`+bot+`, `+items+`, "options": {"evaluations_semantic": "`+semantic+`"}}`)
		var got []any
		list, _ := out["evaluations"].([]any)
		for _, e := range list {
			one, _ := e.(map[string]any)
			got = append(got, one["decision"])
		}
		if diff := cmp.Diff(want, got); status != http.StatusOK || diff != "" {
			t.Errorf("%q: %d (-want +got):\n%s", semantic, status, diff)
		}
	}
	if status, out := n.ask(t, "/access/v1/evaluations", `{`+bot+`, "resource": {"type": "Model", "id": "good"}}`); status != http.StatusOK || out["decision"] != true {
		t.Errorf("without a list: %d %v; want one decision", status, out)
	}
	for name, body := range map[string]string{
		"an unknown semantic": `{` + bot + `, ` + items + `, "options": {"evaluations_semantic": "best"}}`,
		"too many":            `{` + bot + `, "evaluations": [{}` + strings.Repeat(",{}", 1000) + `]}`,
	} {
		if status, out := n.ask(t, "/access/v1/evaluations", body); status != http.StatusBadRequest {
			t.Errorf("%s: %d %v", name, status, out)
		}
	}
}

// Nobody asks without saying who they are, and no other site's page asks.
func TestEvaluationIsForCallers(t *testing.T) {
	n := startAuthZEN(t)
	body := `{` + bot + `, "resource": {"type": "Model", "id": "good"}}`
	for name, c := range map[string]struct {
		header http.Header
		want   int
	}{
		"no token":     {http.Header{}, http.StatusUnauthorized},
		"a wrong one":  {http.Header{"Authorization": {"Bearer x"}}, http.StatusUnauthorized},
		"another site": {http.Header{"Authorization": {"Bearer admin"}, "Sec-Fetch-Site": {"cross-site"}}, http.StatusForbidden},
	} {
		resp := n.do(t, http.MethodPost, "/access/v1/evaluation", body, c.header)
		_ = resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s: %d, want %d", name, resp.StatusCode, c.want)
		}
	}
	resp := n.do(t, http.MethodGet, "/.well-known/authzen-configuration", "", nil)
	defer func() { _ = resp.Body.Close() }()
	var meta map[string]string
	if err := json.NewDecoder(resp.Body).Decode(&meta); err != nil || meta["access_evaluation_endpoint"] != "http://"+n.address+"/access/v1/evaluation" {
		t.Errorf("metadata = %v, %v", meta, err)
	}
}
