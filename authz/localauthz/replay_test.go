package localauthz_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/authz/localauthz"
	"creto.dev/nhi"
)

// partly is where a policy reads a part of the context that TestPossible knows,
// and not the context as a whole.
var partly = regexp.MustCompile(`context(\.(method|s|flag|n|risk|dec|list|ip|at|body|deep)\b| has|\["a b"\])`)

// TestPossible holds what replay says of requests whose context is known in
// part: what is decided on all of it is always among what may be, and is all
// that may be where everything is known.
func TestPossible(t *testing.T) {
	sets := 400
	if os.Getenv("CRETO_TORTURE") != "" {
		sets = 20_000
	}
	seed := rand.Uint64()
	settled, open := 0, 0
	for n := range sets {
		w := world{rand.New(rand.NewPCG(seed, uint64(n)))}
		var text strings.Builder
		for i := range 1 + w.IntN(8) {
			text.WriteString(w.policy(i))
		}
		text.WriteString("@id(\"humans\") permit (principal is Creto::Human, action, resource);\n")
		dir := t.TempDir()
		write(t, dir, "p.cedar", text.String())
		p, err := localauthz.ReadPolicies(dir, creto.DefaultTenant)
		if err != nil {
			t.Fatal(err)
		}
		for range 30 {
			var principals []localauthz.Principal
			for _, name := range []string{"h0", "a1", "a2"}[:2+w.IntN(2)] {
				id := creto.ID{TrustDomain: "test.local", Tenant: creto.DefaultTenant, Kind: creto.KindAgent, Name: name}
				if name == "h0" {
					id.Kind = creto.KindHuman
				}
				principals = append(principals, localauthz.Principal{ID: id, Groups: worldGroups[:w.IntN(3)]})
			}
			r := w.request()
			e, err := p.Explain(principals, r)
			if err != nil {
				continue
			}
			all, some := map[string]bool{}, map[string]bool{}
			for _, name := range []string{"method", "s", "flag", "n", "risk", "dec", "list", "ip", "at", "a b", "null", "body", "deep", "name", "amount", "id", "none"} {
				if all[name] = true; w.often(50) {
					some[name] = true
				}
			}
			contains := func(kinds []authz.Kind) bool {
				return slices.ContainsFunc(kinds, func(k authz.Kind) bool { return k.String() == e.Decision })
			}
			if r.Context == nil {
				r.Context = map[string]any{}
			}
			kinds := p.Possible(principals, r, some)
			if !contains(kinds) {
				t.Fatalf("seed %d, set %d: %+v, of which %v is known, is %s, and may be %v\n%s", seed, n, r, some, e.Decision, kinds, &text)
			}
			if len(kinds) == 1 {
				settled++
			} else {
				open++
			}
			for name := range r.Context {
				all[name] = true
			}
			// The context as a whole is never known.
			if kinds := p.Possible(principals, r, all); !contains(kinds) || len(kinds) > 1 && !strings.Contains(partly.ReplaceAllString(text.String(), ""), "context") {
				t.Fatalf("seed %d, set %d: %+v, of which all is known, is %s, and may be %v\n%s", seed, n, r, e.Decision, kinds, &text)
			}
		}
	}
	t.Logf("seed %d: %d settled, %d open", seed, settled, open)
	if settled < 1000 || open < 100 {
		t.Errorf("%d are settled and %d open", settled, open)
	}
}

// TestReplay is what single records come to.
func TestReplay(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "p.cedar", `@id("humans") permit (principal is Creto::Human, action, resource);
@id("models") permit (principal == Creto::Agent::"bot", action == Creto::Action::"call_model", resource) when { resource.id like "gpt-*" };
@id("get") permit (principal == Creto::Agent::"bot", action == Creto::Action::"http_request", resource) when { context.method == "GET" && context.path like "/orders/*" };
@id("small") permit (principal == Creto::Agent::"bot", action == Creto::Action::"http_request", resource == Creto::Url::"http://shop.test/refunds") when { context.body.amount < 100 };
@id("large") @oversight("finance") permit (principal == Creto::Agent::"bot", action == Creto::Action::"http_request", resource == Creto::Url::"http://shop.test/refunds");
@id("walls") forbid (principal, action, resource) unless { context has isolation && context.isolation == "gvisor" };
@id("raw") permit (principal == Creto::Agent::"bot", action == Creto::Action::"access_secret", resource) when { context.delivery == "gateway" };
`)
	p, err := localauthz.ReadPolicies(dir, creto.DefaultTenant)
	if err != nil {
		t.Fatal(err)
	}
	id := func(kind creto.Kind, name string) creto.ID {
		return creto.ID{TrustDomain: "test.local", Tenant: creto.DefaultTenant, Kind: kind, Name: name}
	}
	past := localauthz.Past{Principals: []localauthz.Principal{{ID: id(creto.KindHuman, "alice")}, {ID: id(creto.KindAgent, "bot")}}, Scopes: []nhi.Scope{nhi.Everything()}}
	record := func(what, resource, kind string, change func(*audit.Record)) audit.Record {
		r := audit.Record{What: what, Resource: resource, Isolation: "gvisor", Decision: &audit.Decision{Kind: kind}}
		if change != nil {
			change(&r)
		}
		return r
	}
	detail := func(pairs ...string) func(*audit.Record) {
		return func(r *audit.Record) {
			r.Detail = map[string]string{}
			for i := 0; i < len(pairs); i += 2 {
				r.Detail[pairs[i]] = pairs[i+1]
			}
		}
	}
	tests := []struct {
		name   string
		record audit.Record
		past   localauthz.Past
		want   localauthz.Replayed
	}{
		{"the same", record(creto.CallModel, "Model::gpt-4", "allow", nil), past, localauthz.Replayed{Was: "allow", Would: "allow", By: []string{"humans", "models"}}},
		{"denied now", record(creto.CallModel, "Model::claude", "allow", nil), past, localauthz.Replayed{Was: "allow", Would: "deny"}},
		{"a spent quota", record(creto.CallModel, "Model::gpt-4", "quota_exceeded", nil), past, localauthz.Replayed{Was: "quota_exceeded", Would: "quota_exceeded", By: []string{"humans", "models"}}},
		{"other walls", record(creto.CallModel, "Model::gpt-4", "allow", func(r *audit.Record) { r.Isolation = "namespaces" }), past, localauthz.Replayed{Was: "allow", Would: "deny", By: []string{"walls"}}},
		{"no walls", record(creto.CallModel, "Model::gpt-4", "allow", func(r *audit.Record) { r.Isolation = "" }), past, localauthz.Replayed{Was: "allow", Would: "deny", By: []string{"walls"}}},
		{"a method", record(creto.HTTPRequest, "Url::http://shop.test/orders/1", "allow", detail("method", "GET")), past, localauthz.Replayed{Was: "allow", Would: "allow", By: []string{"get", "humans"}}},
		{"an unknown method", record(creto.HTTPRequest, "Url::http://shop.test/orders/1", "deny", nil), past, localauthz.Replayed{Was: "deny", Would: "unknown", Missing: []string{"context.method"}}},
		{"a method that does not matter", record(creto.HTTPRequest, "Url::http://shop.test/x", "deny", nil), past, localauthz.Replayed{Was: "deny", Would: "deny"}},
		{"an unknown amount", record(creto.HTTPRequest, "Url::http://shop.test/refunds", "allow", detail("method", "POST", "decided_on", "method, path and body")), past, localauthz.Replayed{Was: "allow", Would: "unknown", Missing: []string{"context.body.amount"}}},
		{"no body", record(creto.HTTPRequest, "Url::http://shop.test/refunds", "allow", detail("method", "POST", "decided_on", "method and path")), past, localauthz.Replayed{Was: "allow", Would: "requires_oversight", By: []string{"large"}}},
		{"a consent", record(creto.HTTPRequest, "Url::http://shop.test/refunds", "allow", func(r *audit.Record) {
			detail("method", "POST", "decided_on", "method and path")(r)
			r.Consents = []audit.Consent{{}}
		}), past, localauthz.Replayed{Was: "requires_oversight", Would: "requires_oversight", By: []string{"large"}}},
		{"a secret", record(creto.AccessSecret, "Secret::k", "allow", detail("delivery", "raw")), past, localauthz.Replayed{Was: "allow", Would: "deny"}},
		{"nobody", record(creto.CallModel, "Model::gpt-4", "allow", nil), localauthz.Past{}, localauthz.Replayed{Was: "allow", Would: "unknown", Missing: []string{"the chain"}}},
		{"a narrow link", record(creto.CallModel, "Model::gpt-4", "deny", nil), localauthz.Past{Principals: past.Principals, Scopes: []nhi.Scope{{Actions: []string{"*"}, Resources: []string{"Model::claude"}}}}, localauthz.Replayed{Was: "deny", Would: "deny"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := p.Replay(test.record, test.past)
			slices.Sort(got.By)
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if got.Same() != (got.Was == got.Would) || !localauthz.Decided(test.record) {
				t.Error(fmt.Sprint(test.record))
			}
		})
	}
	for _, r := range []audit.Record{{What: audit.EventPolicyChanged, Decision: &audit.Decision{}}, {What: creto.CallModel}, {What: creto.CallModel, Decision: &audit.Decision{}}} {
		if localauthz.Decided(r) {
			t.Errorf("%+v has a decision", r)
		}
	}
}
