package localauthz_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/authztest"
	"creto.dev/authz/localauthz"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc/localpqc"
)

func open(t testing.TB, dir string, groups map[string][]string, extensions []authz.Extension, changed func(context.Context, localauthz.Change)) (*localauthz.Authorizer, error) {
	t.Helper()
	of := func(_ context.Context, id creto.ID) ([]string, error) { return groups[id.Name], nil }
	if changed == nil {
		changed = func(context.Context, localauthz.Change) {}
	}
	return localauthz.Open(dir, creto.DefaultTenant, of, extensions, changed)
}

func write(t testing.TB, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAuthorizer(t *testing.T) {
	authztest.Run(t, localpqc.New(), func(t *testing.T, policies string, groups map[string][]string, extensions ...authz.Extension) authz.Authorizer {
		dir := t.TempDir()
		write(t, dir, "suite.cedar", policies)
		a, err := open(t, dir, groups, extensions, nil)
		if err != nil {
			t.Fatal(err)
		}
		return a
	})
}

func TestBadPolicies(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"syntax", "permit (principal, action, resource)", "sub/bad.cedar:2:37: at the end: expected ;"},
		{"unknown type", `permit (principal is Creto::Robot, action, resource);`, "Creto::Robot"},
		{"unknown type in a condition", `permit (principal, action, resource) when { context has x && principal is Creto::Robot in Creto::Group::"x" };`, "Creto::Robot"},
		{"unknown entity in a set", `permit (principal, action, resource) when { [[Creto::Group::"x", Creto::Robot::"y"]].contains(principal) };`, "Creto::Robot"},
		{"unknown action in a list", `permit (principal, action in [Creto::Action::"call_model", Creto::Action::"fly"], resource);`, "fly"},
		{"unknown type of resource", `permit (principal, action, resource is Creto::Robot in Creto::Group::"x");`, "Creto::Robot"},
		{"unknown action", `permit (principal, action == Creto::Action::"fly", resource);`, "fly"},
		{"no namespace", `permit (principal == Agent::"x", action, resource);`, "Agent"},
		{"oversight on forbid", `@oversight("x") forbid (principal, action, resource);`, "belongs on a permit"},
		{"timeout alone", `@timeout("5m") permit (principal, action, resource);`, "beside @oversight"},
		{"same id twice", `@id("a") permit (principal, action, resource); @id("a") permit (principal, action, resource);`, "second policy"},
		{"too long", "permit (principal, action, resource) when { \"\\\";\" == \"\" }; // it's ; \"fine\n\npermit (principal, action, resource) when { \";\" == " + strings.Repeat("(", 2<<20), "bad.cedar:4: the policy has more than"},
		{"too deep", "permit (principal, action, resource) when { " + strings.Repeat("!", 60_000) + "true };", "bad.cedar"},
		{"quorum of none", `@oversight("x") @quorum("0") permit (principal, action, resource);`, "must be 1 to 5"},
		{"quorum of many", `@oversight("x") @quorum("6") permit (principal, action, resource);`, "must be 1 to 5"},
		{"quorum in words", `@oversight("x") @quorum("two") permit (principal, action, resource);`, "must be 1 to 5"},
		{"quorum alone", `@quorum("2") permit (principal, action, resource);`, "beside @oversight"},
		{"quorum of the principal", `@oversight("principal") @quorum("2") permit (principal, action, resource);`, "name a group"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "sub/bad.cedar", "\n"+test.text)
			_, err := open(t, dir, nil, nil, nil)
			if fault.CodeOf(err) != fault.InvalidArgument || !strings.Contains(fault.Message(err), test.want) || !strings.Contains(fault.Message(err), "bad.cedar") {
				t.Errorf("Open = %v; want InvalidArgument that names the file and %q", err, test.want)
			}
		})
	}
}

// A change takes effect; a mistake does not, is reported once, and leaves what
// was in force.
func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "a.cedar", `permit (principal is Creto::Human, action, resource);`)
		var versions []creto.Digest
		var mistakes []error
		var last localauthz.Change
		a, err := open(t, dir, nil, nil, func(_ context.Context, c localauthz.Change) {
			if last = c; c.Err != nil {
				mistakes = append(mistakes, c.Err)
			} else {
				versions = append(versions, c.After)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go func() { _ = a.Run(ctx) }()
		before := a.Version()
		write(t, dir, "b.cedar", `permit (principal, action, resource);`)
		time.Sleep(time.Second)
		synctest.Wait()
		after := a.Version()
		if after == before || len(versions) != 1 || versions[0] != after {
			t.Errorf("version %v after %v, reported %v", after, before, versions)
		}
		if want := (localauthz.Change{Before: before, After: after, Added: []string{"b.cedar"}, PoliciesBefore: 1, Policies: 2}); fmt.Sprintf("%+v", last) != fmt.Sprintf("%+v", want) {
			t.Errorf("the change is %+v, want %+v", last, want)
		}
		write(t, dir, "b.cedar", `permit (principal`)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if a.Version() != after || len(mistakes) != 1 {
			t.Errorf("with a mistake in place: version %v, want %v; reported %d times, want 1", a.Version(), after, len(mistakes))
		}
		write(t, dir, "b.cedar", `permit (principal, action, resource);`)
		time.Sleep(time.Second)
		synctest.Wait()
		if a.Version() != after || len(versions) != 2 {
			t.Errorf("with the mistake taken back: version %v, want %v; reported %d times, want 2", a.Version(), after, len(versions))
		}
		if want := (localauthz.Change{Before: after, After: after, PoliciesBefore: 2, Policies: 2}); fmt.Sprintf("%+v", last) != fmt.Sprintf("%+v", want) {
			t.Errorf("the change is %+v, want %+v", last, want)
		}
		write(t, dir, "a.cedar", `// Nobody.`)
		if err := errors.Join(os.Remove(filepath.Join(dir, "b.cedar")), a.Reload(ctx)); err != nil {
			t.Fatal(err)
		}
		if want := (localauthz.Change{Before: after, After: a.Version(), Edited: []string{"a.cedar"}, Removed: []string{"b.cedar"}, PoliciesBefore: 2}); fmt.Sprintf("%+v", last) != fmt.Sprintf("%+v", want) {
			t.Errorf("the change is %+v, want %+v", last, want)
		}
	})
}

// What a flag writes permits just what it says.
func TestPolicyText(t *testing.T) {
	p := localpqc.New()
	chain := nhitest.Chain(t, p, time.Now(), nhi.Everything(), "alice", "bot")
	text, err := localauthz.PolicyText(chain.Agent(), []localauthz.Rule{
		{Text: "call_model=gpt-4o"}, {Text: `http_request=GET http://shop.test/orders/*`}, {Text: "network_egress=*:443"},
		{Text: `http_request=POST http://shop.test/refunds`, Ask: "finance"}, {Text: "access_secret=shop-*"}, {Text: "access_secret=raw own"},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, "humans.cedar", `permit (principal is Creto::Human, action, resource);`)
	write(t, dir, "agents/bot.cedar", text)
	a, err := open(t, dir, nil, nil, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	s, err := a.Bind(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		action, id, how string // the method, or the delivery
		want            authz.Kind
	}{
		{creto.CallModel, "gpt-4o", "", authz.Allow},
		{creto.CallModel, "gpt-4o-mini", "", authz.Deny},
		{creto.HTTPRequest, "http://shop.test/orders/7", "GET", authz.Allow},
		{creto.HTTPRequest, "http://shop.test/orders/7", "DELETE", authz.Deny},
		{creto.HTTPRequest, "http://shop.test/customers", "GET", authz.Deny},
		{creto.HTTPRequest, "http://shop.test/refunds", "POST", authz.RequiresOversight},
		{creto.NetworkEgress, "example.com:443", "", authz.Allow},
		{creto.NetworkEgress, "example.com:22", "", authz.Deny},
		{creto.AccessSecret, "shop-key", "gateway", authz.Allow},
		{creto.AccessSecret, "shop-key", "raw", authz.Deny},
		{creto.AccessSecret, "own", "raw", authz.Allow},
		{creto.AccessSecret, "own", "gateway", authz.Deny},
	} {
		kind, _ := creto.ResourceType(test.action)
		r := authz.Request{Action: test.action, Resource: creto.Resource{Type: kind, ID: test.id}}
		switch {
		case test.action == creto.AccessSecret:
			r.Context = map[string]any{"delivery": test.how, "method": "GET"}
		case test.how != "":
			r.Context = map[string]any{"method": test.how}
		}
		d, err := a.Check(t.Context(), s, r)
		if err != nil || d.Kind != test.want {
			t.Errorf("%s %s %s = %v %q, %v; want %v", test.action, test.how, test.id, d.Kind, d.Reason, err, test.want)
		}
		// The line that a denial prints permits it.
		if d.Kind == authz.Deny {
			dir := t.TempDir()
			write(t, dir, "a.cedar", "permit (principal is Creto::Human, action, resource);\n"+localauthz.PermitFor(chain.Agent(), r))
			b, err := open(t, dir, nil, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			session, err := b.Bind(t.Context(), chain)
			if err != nil {
				t.Fatal(err)
			}
			if d, err := b.Check(t.Context(), session, r); err != nil || d.Kind != authz.Allow {
				t.Errorf("with the printed line: %+v, %v; want allow", d, err)
			}
		}
	}
	for _, bad := range []string{
		"", "fly=*", "call_model", "call_model=", "http_request=http://shop.test*", "http_request=http://shop.test", "http_request=https://shop.test/",
		"http_request=http://Shop.test/", "http_request=GET http://shop.*/x", "access_secret=any key",
	} {
		if _, err := localauthz.PolicyText(chain.Agent(), []localauthz.Rule{{Text: bad}}); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("PolicyText(%q) = %v, want InvalidArgument", bad, err)
		}
	}
	// A rule cannot write more than itself.
	evil, err := localauthz.PolicyText(chain.Agent(), []localauthz.Rule{{Text: "call_model=\"); permit (principal, action, resource);//"}})
	if err != nil || strings.Count(evil, "permit (") != 2 || !strings.Contains(evil, `\"`) {
		t.Errorf("a quote in a rule is not escaped: %v\n%s", err, evil)
	}
}

func FuzzParsePolicies(f *testing.F) {
	f.Add(authztest.Policies)
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		write(t, dir, "a.cedar", text)
		_, err := open(t, dir, nil, nil, nil)
		if err != nil && fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("Open = %v, want InvalidArgument or nothing", err)
		}
	})
}

// A tenant's policies are in a directory of their own, and decide for nobody else.
func TestTenants(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const everything = "@id(\"all\") permit (principal, action, resource);\n"
	write("base.cedar", everything)
	write("tenants/acme/base.cedar", "@id(\"all\") forbid (principal, action, resource);\n") // the same id, another policy
	nobody := func(context.Context, creto.ID) ([]string, error) { return nil, nil }
	a, err := localauthz.Open(dir, creto.DefaultTenant, nobody, nil, func(context.Context, localauthz.Change) {})
	if err != nil {
		t.Fatal(err)
	}
	before := a.Version()
	write("tenants/acme/base.cedar", everything)
	if err := a.Reload(t.Context()); err != nil || a.Version() == before {
		t.Errorf("Reload after a change of a tenant's policies = %v, version changed: %v", err, a.Version() != before)
	}
	for _, name := range []string{"tenants/loose.cedar", "tenants/default/base.cedar"} {
		write(name, everything)
		if err := a.Reload(t.Context()); !errors.Is(err, fault.InvalidArgument) || !strings.Contains(fault.Message(err), name) {
			t.Errorf("Reload with %s = %v, want InvalidArgument that names it", name, err)
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMessageToOneself: who is also what is acted on stays in their groups and
// tenant.
func TestMessageToOneself(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "p.cedar", `permit (principal, action, resource);
@id("quarantine") forbid (principal in Creto::Group::"quarantined", action, resource);
@id("by-id") forbid (principal, action, resource) when { resource.id == "boss" };`)
	a, err := open(t, dir, map[string][]string{"bot": {"quarantined"}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	for name, agents := range map[string][]string{"itself": {"bot"}, "who delegated": {"bot", "helper"}} {
		s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "alice", agents...))
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range []string{"bot", "other"} {
			d, err := a.Check(t.Context(), s, authz.Request{Action: creto.SendMessage, Resource: creto.Resource{Type: "Agent", ID: to}})
			if err != nil || d.Kind != authz.Deny || len(d.Policies) != 1 || d.Policies[0].ID != "quarantine" {
				t.Errorf("%s: a message to %s from a chain with one in quarantine: %+v, %v", name, to, d, err)
			}
		}
	}
	s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "alice", "boss", "helper"))
	if err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]authz.Kind{"boss": authz.Deny, "helper": authz.Allow} {
		d, err := a.Check(t.Context(), s, authz.Request{Action: creto.SendMessage, Resource: creto.Resource{Type: "Agent", ID: to}})
		if err != nil || d.Kind != want {
			t.Errorf("a message to %s: %+v, %v; want %v", to, d, err, want)
		}
	}
}

// TestTenantsDirectory: what is not in one tenant's directory is a mistake, and
// the node's own tenant has none below the others.
func TestTenantsDirectory(t *testing.T) {
	for _, name := range []string{"tenants/stray.cedar", "tenants/" + creto.DefaultTenant + "/agents/bot.cedar"} {
		dir := t.TempDir()
		write(t, dir, name, "permit (principal, action, resource);")
		if _, err := open(t, dir, nil, nil, nil); !errors.Is(err, fault.InvalidArgument) || !strings.Contains(fault.Message(err), name) {
			t.Errorf("a policy in %s: %v, want InvalidArgument", name, err)
		}
	}
	dir := t.TempDir()
	write(t, dir, "agents/tenants.cedar", "permit (principal, action, resource);") // of an agent of that name
	write(t, dir, "tenants/acme/agents/bot.cedar", "forbid (principal, action, resource);")
	a, err := open(t, dir, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC), nhi.Everything(), "alice", "bot"))
	if err != nil {
		t.Fatal(err)
	}
	if d, err := a.Check(t.Context(), s, authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "m"}}); err != nil || d.Kind != authz.Allow {
		t.Errorf("Check = %+v, %v; want what the tenant's own policies say", d, err)
	}
}
