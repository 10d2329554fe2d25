package localauthz_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc/localpqc"
)

// TestExplainAgrees holds explanations of random checks to the checks: the
// verdict is that of the fast path, everybody's part adds up to it, and what is
// said of each policy is what is written at the place that is given.
func TestExplainAgrees(t *testing.T) {
	sets := 150
	if os.Getenv("CRETO_TORTURE") != "" {
		sets = 20_000
	}
	chains := worldChains(t)
	seed := rand.Uint64()
	counts, conditions, located := map[string]int{}, 0, 0
	for n := range sets {
		w := world{rand.New(rand.NewPCG(seed, uint64(n)))}
		groups := map[string][]string{}
		for _, name := range append(worldAgents, worldHumans...) {
			for _, g := range worldGroups {
				if w.often(40) {
					groups[name] = append(groups[name], g)
				}
			}
		}
		var text strings.Builder
		for i := range 1 + w.IntN(14) {
			text.WriteString(w.one("", "// é \"{ ;\n", "\n  ") + w.policy(i))
		}
		if w.often(50) {
			text.WriteString(`@oversight("finance") @id("base") permit (principal, action, resource);` + "\n")
		}
		dir := t.TempDir()
		write(t, dir, "p.cedar", text.String())
		lines := strings.Split(text.String(), "\n")
		a, err := open(t, dir, groups, nil, nil)
		if err != nil {
			t.Fatalf("seed %d, set %d: %v\n%s", seed, n, err, &text)
		}
		for range 40 {
			s, err := a.Bind(t.Context(), chains[w.IntN(len(chains))])
			if err != nil {
				t.Fatal(err)
			}
			r := w.request()
			want, wantErr := a.Peek(t.Context(), s, r)
			got, e, err := a.Explain(t.Context(), s, r)
			if (err != nil) != (wantErr != nil) {
				t.Fatalf("seed %d, set %d: Explain(%+v): %v; Peek: %v", seed, n, r, err, wantErr)
			}
			if err != nil {
				continue
			}
			fail := func(format string, args ...any) {
				t.Helper()
				t.Fatalf("seed %d, set %d: %s\n%+v\n%+v\n%s", seed, n, fmt.Sprintf(format, args...), r, e, &text)
			}
			if got.Kind != want.Kind || e.Decision != want.Kind.String() {
				fail("explained as %s, decided as %v", e.Decision, want.Kind)
			}
			counts[e.Decision]++
			if (e.Decision == "allow") != (len(e.Changes) == 0) {
				fail("%s, with %d changes", e.Decision, len(e.Changes))
			}
			var deciding []string
			for _, p := range e.Principals {
				for _, policy := range p.Policies {
					if policy.Decides {
						deciding = append(deciding, policy.ID)
					}
					held := true
					for _, c := range policy.Conditions {
						conditions++
						holds := c.Result == "true" && !c.Unless || c.Result == "false" && c.Unless
						held = held && holds
						if (c.Needs == "") != (holds == (policy.Effect == "permit")) && c.Error == "" || (c.Error != "") != (c.Result == "error") {
							fail("a condition of %s: %+v", policy.ID, c)
						}
						if line := []rune(lines[c.Line-1])[c.Column-1:]; strings.HasPrefix(string(line), strings.TrimSuffix(c.Text, "…")) {
							located++
						}
					}
					if held != (policy.Result == "satisfied") {
						fail("policy %s is %s, its conditions: %+v", policy.ID, policy.Result, policy.Conditions)
					}
				}
			}
			for _, p := range want.Policies {
				if !slices.Contains(deciding, p.ID) {
					fail("policy %s decided, and it does not say so", p.ID)
				}
			}
		}
	}
	t.Logf("seed %d: %v, %d conditions, %d of them in their place", seed, counts, conditions, located)
	if located < conditions*95/100 {
		t.Errorf("only %d of %d conditions are where they are said to be", located, conditions)
	}
}

// TestExplain is what people are told.
func TestExplain(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "shop.cedar", `// The shop.
@id("small")
permit (principal == Creto::Agent::"bot", action == Creto::Action::"http_request", resource)
when {
  context.method == "POST" && // the shop's
  context.body.amount < 100 && (context.body.currency == "EUR" && resource.id like "http://shop.test/*")
}
unless { context.taint || context.body.note like "*urgent*" };
@id("large") @oversight("finance") @timeout("30m")
permit (principal == Creto::Agent::"bot", action == Creto::Action::"http_request", resource)
when { context.body.amount >= 100 };
@id("humans")
permit (principal is Creto::Human, action, resource);
@id("night")
forbid (principal, action == Creto::Action::"call_model", resource) when { context.hour > 22 };
`)
	a, err := open(t, dir, map[string][]string{"alice": {"staff"}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	chain := nhitest.Chain(t, localpqc.New(), time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC), nhi.Everything(), "alice", "bot")
	s, err := a.Bind(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	body := func(amount int, currency, note string) map[string]any {
		return map[string]any{"method": "POST", "taint": false, "api_key": "hunter2", "body": map[string]any{"amount": amount, "currency": currency, "note": note}}
	}
	tests := []struct {
		name    string
		action  string
		context map[string]any
		want    string
	}{
		{"a condition that is false", creto.HTTPRequest, body(50, "USD", ""), `deny
agent:bot large unsatisfied 11:8 context.body.amount >= 100: false [context.body.amount=50]; context.body.amount must be >= 100
agent:bot small unsatisfied 6:33 context.body.currency == "EUR": false [context.body.currency="USD"]; context.body.currency must be "EUR"
-> condition agent:bot: context.body.amount must be >= 100: then policy "large" permits it, with the consent of finance
-> condition agent:bot: context.body.currency must be "EUR": then policy "small" permits it
-> permit agent:bot: a policy must permit it to agent:bot permit (principal == Creto::Agent::"bot", action == Creto::Action::"http_request", resource == Creto::Url::"http://shop.test/1") when { context.method == "POST" };
`},
		{"an unless that holds", creto.HTTPRequest, body(50, "EUR", "urgent!"), `deny
agent:bot large unsatisfied 11:8 context.body.amount >= 100: false [context.body.amount=50]; context.body.amount must be >= 100
agent:bot small unsatisfied 8:27 context.body.note like "*urgent*": true [context.body.note="urgent!"]; context.body.note must not be like "*urgent*"
-> condition agent:bot: context.body.amount must be >= 100: then policy "large" permits it, with the consent of finance
-> condition agent:bot: context.body.note must not be like "*urgent*": then policy "small" permits it
-> permit agent:bot: a policy must permit it to agent:bot permit (principal == Creto::Agent::"bot", action == Creto::Action::"http_request", resource == Creto::Url::"http://shop.test/1") when { context.method == "POST" };
`},
		{"consent", creto.HTTPRequest, body(500, "EUR", ""), `requires_oversight
agent:bot large satisfied decides 11:8 context.body.amount >= 100: true [context.body.amount=500]
agent:bot small unsatisfied 6:3 context.body.amount < 100: false [context.body.amount=500]; context.body.amount must be < 100
-> consent : a member of finance, who is not in the chain, must consent within 30m
`},
		{"a forbid", creto.CallModel, map[string]any{"hour": 23}, `deny
agent:bot night satisfied decides 15:76 context.hour > 22: true [context.hour=23]; context.hour must be <= 22
human:alice night satisfied decides 15:76 context.hour > 22: true [context.hour=23]; context.hour must be <= 22
-> forbid human:alice: policy "night" at shop.cedar:14 forbids it; instead, context.hour must be <= 22
-> forbid agent:bot: policy "night" at shop.cedar:14 forbids it; instead, context.hour must be <= 22
-> permit agent:bot: a policy must permit it to agent:bot permit (principal == Creto::Agent::"bot", action == Creto::Action::"call_model", resource == Creto::Model::"http://shop.test/1");
`},
		{"a forbid that cannot be evaluated", creto.CallModel, map[string]any{}, `deny
agent:bot night error decides 15:76 context.hour > 22: error [context.hour=absent]
human:alice night error decides 15:76 context.hour > 22: error [context.hour=absent]
-> forbid human:alice: policy "night" at shop.cedar:15 forbids what it cannot be evaluated on: the request has no context.hour
-> forbid agent:bot: policy "night" at shop.cedar:15 forbids what it cannot be evaluated on: the request has no context.hour
-> permit agent:bot: a policy must permit it to agent:bot permit (principal == Creto::Agent::"bot", action == Creto::Action::"call_model", resource == Creto::Model::"http://shop.test/1");
`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			kind, _ := creto.ResourceType(test.action)
			_, e, err := a.Explain(t.Context(), s, authz.Request{Action: test.action, Resource: creto.Resource{Type: kind, ID: "http://shop.test/1"}, Context: test.context})
			if err != nil {
				t.Fatal(err)
			}
			got := e.Decision + "\n"
			for _, p := range slices.Backward(e.Principals) {
				for _, policy := range p.Policies {
					if policy.ID == "humans" {
						continue
					}
					line := p.Principal + " " + policy.ID + " " + policy.Result
					if policy.Decides {
						line += " decides"
					}
					for _, c := range policy.Conditions {
						line += fmt.Sprintf(" %d:%d %s: %s [", c.Line, c.Column, c.Text, c.Result)
						for _, read := range c.Reads {
							line += read.Name + "=" + read.Value
						}
						line += "]"
						if c.Needs != "" {
							line += "; " + c.Needs
						}
					}
					got += line + "\n"
				}
			}
			for _, c := range e.Changes {
				got += strings.TrimSuffix(fmt.Sprintf("-> %s %s: %s %s", c.Kind, c.Principal, c.Text, c.Line), " ") + "\n"
			}
			if got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

// TestExplainHides holds what is shown of values: no credentials, and no more
// than fits.
func TestExplainHides(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "p.cedar", `@id("p") permit (principal, action, resource) when { context.body.password == "x" && context.s == "y" && context.body == {a: 1} };
@id("q") permit (principal, action, resource) when { context.s == "y" };
@id("r") permit (principal, action, resource) when { context.body == {a: 1} };`)
	a, err := open(t, dir, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC), nhi.Everything(), "alice", "bot"))
	if err != nil {
		t.Fatal(err)
	}
	_, e, err := a.Explain(t.Context(), s, authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "m"}, Context: map[string]any{
		"s": strings.Repeat("é", 5000), "body": map[string]any{"password": "hunter2", "token": "hunter2"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%+v", e)
	if strings.Contains(text, "hunter2") || len(text) > 10_000 || !strings.Contains(text, "***") {
		t.Errorf("%d bytes: %.2000s", len(text), text)
	}
}

// TestExplainFiles has a policy's file named as it is below the directory.
func TestExplainFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "agents"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "agents"), "bot.cedar", "\n  permit (principal, action, resource);")
	a, err := open(t, dir, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC), nhi.Everything(), "alice", "bot"))
	if err != nil {
		t.Fatal(err)
	}
	_, e, err := a.Explain(t.Context(), s, authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "m"}})
	if err != nil {
		t.Fatal(err)
	}
	if p := e.Principals[0].Policies[0]; p.File != "agents/bot.cedar" || p.Line != 2 || p.Column != 3 || p.ID != "agents/bot#1" {
		t.Errorf("%+v", p)
	}
}
