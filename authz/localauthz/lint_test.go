package localauthz_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cedar-policy/cedar-go/x/exp/schema"

	"creto.dev"
	"creto.dev/authz/localauthz"
	"creto.dev/fault"
)

// relative writes a policy that has something to do with another one.
func (w world) relative(of, id string) string {
	_, rest, _ := strings.Cut(of, `") `)
	text := fmt.Sprintf("@id(%q) ", id) + rest
	if asks, rest, ok := strings.Cut(text, `") permit`); ok && strings.Contains(asks, "@oversight") && w.often(30) {
		text = fmt.Sprintf("@id(%q) permit", id) + rest
	}
	for range 1 + w.IntN(2) {
		switch w.IntN(9) {
		case 7:
			text = strings.NewReplacer("when {", "unless {", "unless {", "when {").Replace(text)
		case 0:
			text = strings.Replace(text, "(principal, ", `(principal == Creto::Agent::"`+w.one(worldAgents...)+`", `, 1)
		case 1:
			text = strings.Replace(text, "principal is Creto::Agent, ", `principal is Creto::Agent in `+w.group()+`, `, 1)
		case 2:
			text = strings.Replace(text, "action, ", "action == "+w.action()+", ", 1)
		case 3:
			text = strings.Replace(text, ", resource)", ", resource == "+w.resource()+")", 1)
		case 4:
			text = strings.Replace(text, ";\n", " "+w.one("when", "unless")+" { "+w.boolean(2)+" };\n", 1)
		case 5:
			text = strings.Replace(text, ";\n", " when { "+w.one(`context.n < 42`, `context.n <= 1`, `context.n == 7`, `resource.id like "r*"`, `resource.id like "r1*"`, `context.method == "POST"`, `context.method like "P*"`)+" };\n", 1)
		case 6:
			text = strings.Replace(text, "permit (", "forbid (", 1)
			if strings.Contains(text, "@oversight") {
				return w.relative(of, id)
			}
		}
	}
	return text
}

// TestLintIsRight removes policies of which lint says that they change nothing:
// no decision of random requests may change.
func TestLintIsRight(t *testing.T) {
	sets := 250
	if os.Getenv("CRETO_TORTURE") != "" {
		sets = 20_000
	}
	chains := worldChains(t)
	seed := rand.Uint64()
	claims := map[string]int{}
	without := func(texts []string, id string) string {
		return strings.Join(slices.DeleteFunc(slices.Clone(texts), func(text string) bool { return strings.HasPrefix(text, fmt.Sprintf("@id(%q)", id)) }), "")
	}
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
		var texts []string
		for range 3 + w.IntN(6) {
			id := fmt.Sprintf("p%02d", len(texts))
			if len(texts) > 0 && w.often(65) {
				texts = append(texts, w.relative(texts[w.IntN(len(texts))], id))
				continue
			}
			texts = append(texts, w.policy(len(texts)))
		}
		texts = append(texts, "@id(\"humans\") permit (principal is Creto::Human, action, resource);\n")
		dir := t.TempDir()
		write(t, dir, "p.cedar", strings.Join(texts, ""))
		findings, err := localauthz.Lint(dir, creto.DefaultTenant, localauthz.Known{})
		if err != nil {
			t.Fatal(err)
		}
		before, err := open(t, dir, groups, nil, nil)
		if err != nil {
			t.Fatalf("seed %d, set %d: %v\n%s", seed, n, err, texts)
		}
		for _, f := range findings {
			switch f.Rule {
			case "shadowed", "duplicate", "never-permits", "oversight-never-asked", "never-matches":
			case "never-holds":
				if strings.Contains(f.Text, "the forbid denies only") {
					continue
				}
			default:
				continue
			}
			claims[f.Rule]++
			other := t.TempDir()
			write(t, other, "p.cedar", without(texts, f.Policy))
			after, err := open(t, other, groups, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, chain := range chains {
				one, err := before.Bind(t.Context(), chain)
				if err != nil {
					t.Fatal(err)
				}
				two, err := after.Bind(t.Context(), chain)
				if err != nil {
					t.Fatal(err)
				}
				for range 12 {
					r := w.request()
					want, err := before.Peek(t.Context(), one, r)
					if err != nil {
						continue
					}
					got, err := after.Peek(t.Context(), two, r)
					if err != nil || got.Kind != want.Kind || got.Approvers != want.Approvers || got.Timeout != want.Timeout {
						t.Fatalf("seed %d, set %d: %+v\nwithout it %+v is %v instead of %v\n%s", seed, n, f, r, got, want, strings.Join(texts, ""))
					}
				}
			}
		}
	}
	t.Logf("seed %d: %v", seed, claims)
	for _, rule := range []string{"shadowed", "duplicate", "never-permits", "oversight-never-asked", "never-matches", "never-holds"} {
		if claims[rule] < sets/50 {
			t.Errorf("only %d of %d sets have a policy that is %s", claims[rule], sets, rule)
		}
	}
}

// TestLint has each rule find what it is for, and nothing in policies that are
// right.
func TestLint(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string // rule line:column
	}{
		{"nothing", `@id("a") permit (principal == Creto::Agent::"a", action == Creto::Action::"call_model", resource) when { resource.id like "gpt-*" && context.max_tokens < 100 };
@id("b") permit (principal is Creto::Human, action, resource);
@id("c") forbid (principal, action == Creto::Action::"http_request", resource) when { context has body && context.body has amount && context.body.amount > 10 };
@id("d") @oversight("finance") @timeout("1h") @doc("why") permit (principal == Creto::Agent::"a", action == Creto::Action::"http_request", resource) when { context.body.x.y == 3 };`, nil},
		{"mistakes", "permit (principal, action, resource)\n", []string{"mistake 2:1"}},
		{"two mistakes", `@oversight("x") forbid (principal, action, resource); permit (principal, action == Creto::Action::"fly", resource);`, []string{"mistake 1:0", "mistake 1:0"}},
		{"an annotation", `@id("a") @oversigth("finance") permit (principal == Creto::Agent::"a", action, resource);`, []string{"misspelt-annotation 1:1"}},
		{"another annotation", `@id("a") @colour("red") permit (principal == Creto::Agent::"a", action, resource);`, []string{"unknown-annotation 1:1"}},
		{"a group that acts", `@id("a") permit (principal == Creto::Group::"g", action, resource);`, []string{"never-matches 1:1"}},
		{"a resource of another action", `@id("a") forbid (principal, action == Creto::Action::"call_model", resource is Creto::Url);`, []string{"never-matches 1:1"}},
		{"a resource in a group", `@id("a") permit (principal, action == Creto::Action::"call_model", resource in Creto::Group::"g");`, []string{"never-matches 1:1"}},
		{"an agent in a group", `@id("a") permit (principal, action == Creto::Action::"send_message", resource in Creto::Group::"g");`, nil},
		{"no action", `@id("a") permit (principal, action in [], resource);`, []string{"never-matches 1:1"}},
		{"a constant", `@id("a") permit (principal == Creto::Agent::"a", action, resource) when { true } unless { 1 < 2 };`, []string{"never-holds 1:91"}},
		{"two methods", `@id("a") permit (principal, action == Creto::Action::"http_request", resource) when { context.method == "GET" } when { "POST" == context.method };`, []string{"never-holds 1:1"}},
		{"an empty interval", `@id("a") permit (principal, action == Creto::Action::"call_model", resource) when { context.messages > 5 && !(context.messages > 5) };`, []string{"never-holds 1:1"}},
		{"an interval of one", `@id("a") permit (principal, action == Creto::Action::"call_model", resource) when { context.messages >= 5 && context.messages <= 5 };`, nil},
		{"two prefixes", `@id("a") permit (principal, action == Creto::Action::"call_model", resource) when { resource.id like "a*" && resource.id like "b*" };`, []string{"never-holds 1:1"}},
		{"a resource unlike its pattern", `@id("a") permit (principal, action, resource == Creto::Model::"x") when { resource.id like "a*" };`, []string{"never-holds 1:1"}},
		{"an attribute", `@id("a") permit (principal, action == Creto::Action::"http_request", resource) when { context.metod == "GET" };`, []string{"unknown-attribute 1:87"}},
		{"an attribute below one that has none", `@id("a") permit (principal, action == Creto::Action::"http_request", resource) when { context.method.x == "GET" };`, []string{"unknown-attribute 1:87"}},
		{"a principal's attribute", `@id("a") permit (principal, action == Creto::Action::"call_model", resource) when { principal.email == "x" };`, []string{"unknown-attribute 1:85"}},
		{"a tool's attribute", `@id("a") permit (principal, action == Creto::Action::"call_tool", resource) when { context.x == 1 };`, []string{"undeclared-attribute 1:84"}},
		{"a forbid of everything", `@id("a") forbid (principal, action, resource) when { context.method == "GET" };`, []string{"forbid-beyond 1:54"}},
		{"a forbid of a body", `@id("a") forbid (principal, action == Creto::Action::"http_request", resource) when { context.body.amount > 1 };`, []string{"unguarded-forbid 1:87"}},
		{"types", `@id("a") permit (principal, action == Creto::Action::"call_model", resource) when { context.messages == "3" } unless { context.stream < 2 };`, []string{"type-error 1:85", "type-error 1:120"}},
		{"everything", `@id("a") permit (principal, action, resource);`, []string{"permits-everything 1:1"}},
		{"a narrower permit", `@id("a") permit (principal in Creto::Group::"g", action == Creto::Action::"call_model", resource);
@id("b") permit (principal is Creto::Agent in Creto::Group::"g", action in [Creto::Action::"call_model"], resource is Creto::Model) when { context.messages < 5 };`, []string{"shadowed 2:1"}},
		{"a narrower condition", `@id("a") permit (principal == Creto::Agent::"g", action == Creto::Action::"call_model", resource) when { resource.id like "gpt-*" && context.messages < 10 };
@id("b") permit (principal == Creto::Agent::"g", action == Creto::Action::"call_model", resource == Creto::Model::"gpt-4") when { context.messages < 5 };`, []string{"shadowed 2:1"}},
		{"a wider condition", `@id("a") permit (principal == Creto::Agent::"g", action == Creto::Action::"call_model", resource) when { resource.id like "gpt-*" && context.messages < 10 };
@id("b") permit (principal == Creto::Agent::"g", action == Creto::Action::"call_model", resource == Creto::Model::"gpt-4") when { context.messages < 11 };`, nil},
		{"a wider permit that asks", `@id("a") @oversight("f") permit (principal == Creto::Agent::"g", action == Creto::Action::"call_model", resource);
@id("b") permit (principal == Creto::Agent::"g", action == Creto::Action::"call_model", resource == Creto::Model::"gpt-4");`, nil},
		{"the opposite condition", `@id("a") permit (principal == Creto::Agent::"g", action == Creto::Action::"call_model", resource) when { context.stream };
@id("b") permit (principal == Creto::Agent::"g", action == Creto::Action::"call_model", resource) unless { context.stream };`, nil},
		{"twice", `@id("b") permit (principal == Creto::Agent::"g", action, resource);
@id("a") permit (principal == Creto::Agent::"g", action, resource);`, []string{"duplicate 1:1"}},
		{"never asked", `@id("a") permit (principal == Creto::Agent::"g", action, resource);
@id("b") @oversight("f") permit (principal == Creto::Agent::"g", action == Creto::Action::"call_tool", resource);`, []string{"oversight-never-asked 2:1"}},
		{"never permits", `@id("a") forbid (principal, action == Creto::Action::"call_tool", resource);
@id("b") permit (principal == Creto::Agent::"g", action == Creto::Action::"call_tool", resource) when { context.isolation == "gvisor" };`, []string{"never-permits 2:1"}},
		{"a forbid behind a condition", `@id("a") forbid (principal, action == Creto::Action::"http_request", resource) when { context.method == "DELETE" };
@id("b") forbid (principal, action == Creto::Action::"http_request", resource) when { context.method == "DELETE" && context.path == "/" };
@id("c") forbid (principal, action == Creto::Action::"http_request", resource) when { context.query == "/" && context.method == "DELETE" };`, []string{"shadowed 2:1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "p.cedar", test.text)
			findings, err := localauthz.Lint(dir, creto.DefaultTenant, localauthz.Known{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range findings {
				got = append(got, fmt.Sprintf("%s %d:%d", f.Rule, f.Line, f.Column))
				if f.File != "p.cedar" || f.Text == "" || f.Reason == "" || f.Fix == "" {
					t.Errorf("%+v", f)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("found %v, want %v\n%+v", got, test.want, findings)
			}
		})
	}
}

// TestLintKnown finds groups and principals that are not there.
func TestLintKnown(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "p.cedar", `@id("a") @oversight("finance") permit (principal == Creto::Agent::"bob", action == Creto::Action::"call_tool", resource);
@id("b") @oversight("principal") permit (principal in Creto::Group::"staf", action == Creto::Action::"call_model", resource);
@id("c") forbid (principal == Creto::Human::"eve", action, resource);`)
	known := localauthz.Known{Tenant: creto.DefaultTenant, Groups: []string{"finance", "staff"}, Principals: []string{"agent:bob", "human:alice"}}
	var got []string
	for range 2 {
		findings, err := localauthz.Lint(dir, creto.DefaultTenant, known)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			got = append(got, f.Rule+" "+f.Policy)
		}
		known.Groups = known.Groups[1:]
	}
	want := []string{"unknown-group b", "unknown-principal c", "unknown-group a", "unknown-group b", "unknown-principal c"}
	if !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

// TestSchema holds the schema to the actions that there are: it is one that
// Cedar's own tools read, and policies that Creto writes conform to it.
func TestSchema(t *testing.T) {
	var s schema.Schema
	if err := s.UnmarshalCedar([]byte(localauthz.Schema())); err != nil {
		t.Fatal(err)
	}
	resolved, err := s.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(resolved.Actions), len(creto.ActionNames()); got != want {
		t.Errorf("the schema has %d actions, want %d", got, want)
	}
	text, err := localauthz.PolicyText(creto.ID{Kind: creto.KindAgent, Name: "bot", Tenant: creto.DefaultTenant}, []localauthz.Rule{
		{Text: "call_model=gpt-*"}, {Text: "http_request=GET http://shop.test/*"}, {Text: "http_request=http://shop.test/refunds", Ask: "finance"},
		{Text: "access_secret=raw key"}, {Text: "access_secret=other"}, {Text: "network_egress=example.com:443"}, {Text: "send_message=*"}, {Text: "spawn_sandbox=*"}, {Text: "call_tool=crm/*"}, {Text: "consume_quota=*"},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bot.cedar"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	findings, err := localauthz.Lint(dir, creto.DefaultTenant, localauthz.Known{})
	if err != nil || len(findings) > 0 {
		t.Errorf("%v: %+v\n%s", err, findings, text)
	}
}

// TestLintRules have all that people read.
func TestLintRules(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range localauthz.LintRules() {
		if r.Name == "" || r.Reason == "" || r.Fix == "" || seen[r.Name] || r.Severity != localauthz.SeverityError && r.Severity != localauthz.SeverityWarning {
			t.Errorf("%+v", r)
		}
		seen[r.Name] = true
	}
}

// TestLintErrors tells what is wrong with policies from what cannot be read.
func TestLintErrors(t *testing.T) {
	if _, err := localauthz.Lint(filepath.Join(t.TempDir(), "nowhere"), creto.DefaultTenant, localauthz.Known{}); fault.CodeOf(err) != fault.Unavailable {
		t.Errorf("Lint of nowhere: %v", err)
	}
}
