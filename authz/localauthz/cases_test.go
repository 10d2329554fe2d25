package localauthz_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/localauthz"
	"creto.dev/fault"
)

const casesText = `# The shop's.
principals:
  human:alice: [staff, people]
  agent:bot: []
chain: [human:alice, agent:bot]
cases:
- name: one
  action: http_request
  resource: Url::http://shop.test/1
  context: &c {method: POST, at: 2026-11-22, n: 3, d: -1.25, ok: yes, no: true, none: null, deep: {list: [1, "2", {a: b}]}}
  expect: deny
- name: two
  chain: [workload:ci, agent:other, agent:bot]
  action: call_model
  resource: gpt-4
  context: *c
  expect: requires_oversight
  policy: p
  asks: finance
`

func TestParseCases(t *testing.T) {
	f, err := localauthz.ParseCases("a/b_test.yaml", "acme", []byte(casesText))
	if err != nil {
		t.Fatal(err)
	}
	who := func(kind creto.Kind, name string, groups ...string) localauthz.Principal {
		return localauthz.Principal{ID: creto.ID{TrustDomain: "policy.test", Tenant: "acme", Kind: kind, Name: name}, Groups: groups}
	}
	context := map[string]any{
		"method": "POST", "at": "2026-11-22", "n": json.Number("3"), "d": json.Number("-1.25"), "ok": "yes", "no": true, "none": nil,
		"deep": map[string]any{"list": []any{json.Number("1"), "2", map[string]any{"a": "b"}}},
	}
	bot := who(creto.KindAgent, "bot")
	want := localauthz.CaseFile{Name: "a/b_test.yaml", Cases: []localauthz.Case{
		{
			Name: "one", Line: 7, Principals: []localauthz.Principal{who(creto.KindHuman, "alice", "staff", "people"), bot}, Expect: authz.Deny,
			Request: authz.Request{Action: creto.HTTPRequest, Resource: creto.Resource{Type: "Url", ID: "http://shop.test/1"}, Context: context},
		}, {
			Name: "two", Line: 12, Principals: []localauthz.Principal{who(creto.KindWorkload, "ci"), who(creto.KindAgent, "other"), bot}, Expect: authz.RequiresOversight,
			Request: authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "gpt-4"}, Context: context}, Policy: "p", Asks: "finance",
		},
	}}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("got  %+v\nwant %+v", f, want)
	}
}

// TestParseCasesMistakes holds what is said of files that are wrong: the place,
// and what is.
func TestParseCasesMistakes(t *testing.T) {
	one := func(field string) string {
		return "chain: [human:a, agent:b]\ncases:\n- {name: n, action: call_model, resource: m, expect: allow, " + field + "}\n"
	}
	tests := []struct{ name, text, want string }{
		{"no YAML", "cases: [\n", "f:1:1: did not find expected node content"},
		{"a list", "- a\n", "f:1:1: a file of cases is a mapping"},
		{"two documents", "cases: []\n---\ncases: []\n", "f:2:1: there is a second document; write all cases in one"},
		{"an unknown field", one("expected: allow"), `f:3:61: "expected" is unknown; a case has action, asks, chain, context, expect, name, policy, resource`},
		{"a field twice", one("name: x"), `f:3:61: "name" is there twice`},
		{"a text of two", one("policy: [a, b]"), "f:3:69: policy is a text"},
		{"no chain", "cases:\n- {name: n, action: call_model, resource: m, expect: allow}\n", `f:2:3: the case "n" has no chain, and the file has none either`},
		{"a chain of agents", one("chain: [agent:a, agent:b]"), "f:3:68: a chain leads from a human to an agent, as in [human:alice, agent:shop-bot]"},
		{"a chain of one", one("chain: [human:a]"), "f:3:68: a chain leads from a human to an agent, as in [human:alice, agent:shop-bot]"},
		{"nobody", one("chain: [bob, agent:b]"), `f:3:68: "bob" is no principal: write human:NAME, agent:NAME or workload:NAME`},
		{"a resource of another type", "chain: [human:a, agent:b]\ncases:\n- {name: n, action: call_model, resource: Url::m, expect: allow}\n", `f:3:43: call_model acts on Model, not on "Url"`},
		{"an exponent", one("context: {n: 1e3}"), "f:3:74: the number 1e3 is not written as in JSON without an exponent; if it is a text, put it in quotes"},
		{"a number of another base", one("context: {n: 0x1f}"), "f:3:74: the number 0x1f is not written as in JSON without an exponent; if it is a text, put it in quotes"},
		{"a number too fine", one("context: {n: 1.23456}"), `f:3:70: the number "1.23456" is neither an integer of 64 bits nor a decimal of at most 4 places`},
		{"a merge", one("context: {<<: {a: 1}}"), "f:3:71: a key of a context is a text"},
		{"a list for a context", one("context: [1]"), "f:3:70: context is a mapping"},
		{"asking for nothing", one("asks: finance"), "f:3:54: asks goes with expect: requires_oversight"},
		{"two mistakes", one("policy: []") + "- {nam: x}\n", "f:3:69: policy is a text\nf:4:4: \"nam\" is unknown; a case has action, asks, chain, context, expect, name, policy, resource"},
		{"a bomb", one("context: {a: &a [1,1,1,1,1,1,1,1,1,1], b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a], c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b], d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c], e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d], f: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]}"), "f:3:88: the context is too large"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := localauthz.ParseCases("f", creto.DefaultTenant, []byte(test.text))
			if !errors.Is(err, fault.InvalidArgument) || fault.Message(err) != test.want {
				t.Errorf("%v\nwant %s", fault.Message(err), test.want)
			}
		})
	}
	for _, empty := range []string{"", "# nothing\n", "cases: []", "principals: {}"} {
		if f, err := localauthz.ParseCases("f", creto.DefaultTenant, []byte(empty)); err != nil || len(f.Cases) != 0 {
			t.Errorf("%q: %+v, %v", empty, f, err)
		}
	}
}

// FuzzParseCases holds that any file is taken or refused with its places, and
// that what is taken can be decided on.
func FuzzParseCases(f *testing.F) {
	f.Add(casesText)
	f.Add("cases: &a [*a]")
	f.Add("cases:\n- &a {name: n, chain: [human:a, agent:b], action: call_model, resource: m, expect: allow, context: {a: &b [*b]}}\n")
	f.Add("chain: [human:a, agent:b]\ncases: [{name: \"\\x00\", action: send_message, resource: b, expect: deny, context: {? [a] : b}}]")
	dir := f.TempDir()
	write(f, dir, "p.cedar", `@id("p") permit (principal, action, resource) when { context.n < 3 || principal in Creto::Group::"staff" };`)
	p, err := localauthz.ReadPolicies(dir, creto.DefaultTenant)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		file, err := localauthz.ParseCases("f", creto.DefaultTenant, []byte(text))
		if err != nil {
			if !errors.Is(err, fault.InvalidArgument) {
				t.Fatal(err)
			}
			for line := range strings.SplitSeq(fault.Message(err), "\n") {
				if len(line) > 0 && !strings.HasPrefix(line, "f:") && !strings.Contains(fault.Message(err), "\\n") && strings.Count(text, "\n") == 0 {
					t.Fatalf("no place in %q", line)
				}
			}
			return
		}
		for _, c := range file.Cases {
			r := p.Test(file.Name, c)
			if len(r.Wrong) > 0 && r.Wrong[0].Field == "request" {
				t.Fatalf("%+v cannot be decided on: %+v", c, r.Wrong)
			}
		}
	})
}
