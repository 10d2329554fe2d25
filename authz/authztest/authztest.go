// Package authztest is what every implementation of package authz must do.
package authztest

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc"
)

// Open returns an authorizer with the policies (one Cedar text), the groups of
// each principal by name, and the extensions given.
type Open func(t *testing.T, policies string, groups map[string][]string, extensions ...authz.Extension) authz.Authorizer

// Policies is the set that the suite runs on.
const Policies = `
@id("humans") permit (principal is Creto::Human, action, resource);
@id("models") permit (principal in Creto::Group::"bots", action == Creto::Action::"call_model", resource is Creto::Model) when { resource.id like "gpt-*" };
@id("no-old") forbid (principal, action == Creto::Action::"call_model", resource == Creto::Model::"gpt-2");
@id("refund") @oversight("finance") @timeout("30m")
permit (principal == Creto::Agent::"bot", action == Creto::Action::"http_request", resource == Creto::Url::"http://shop/refunds") when { context.method == "POST" && context.body.amount.lessThan(decimal("100.0")) };
@id("small") permit (principal == Creto::Agent::"bot", action == Creto::Action::"http_request", resource == Creto::Url::"http://shop/refunds") when { context.body.amount.lessThan(decimal("1.0")) };
@id("pay") @oversight("finance") @quorum("2") permit (principal == Creto::Agent::"bot", action == Creto::Action::"consume_quota", resource);
@id("mine") @oversight("principal") permit (principal == Creto::Agent::"bot", action == Creto::Action::"network_egress", resource);
@id("careful") forbid (principal, action == Creto::Action::"spawn_sandbox", resource) when { context.risk > 5 };
@id("spawn") permit (principal, action == Creto::Action::"spawn_sandbox", resource);
@id("tools") permit (principal, action == Creto::Action::"call_tool", resource);
@id("hammer") permit (principal, action == Creto::Action::"call_tool", resource == Creto::Tool::"hammer");
@id("broken") forbid (principal, action == Creto::Action::"call_tool", resource == Creto::Tool::"broken") when { resource.name == "broken" };
`

var at = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

// Run tests the authorizers that open returns.
func Run(t *testing.T, p pqc.Provider, open Open) {
	groups := map[string][]string{"bot": {"bots"}}
	bind := func(t *testing.T, a authz.Authorizer, chain nhi.VerifiedChain) authz.Session {
		t.Helper()
		s, err := a.Bind(t.Context(), chain)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	bot := nhitest.Chain(t, p, at, nhi.Everything(), "alice", "bot")
	t.Run("decisions", func(t *testing.T) { testDecisions(t, open, bind, groups, bot, p) })
	t.Run("consent", func(t *testing.T) {
		a := open(t, Policies, groups)
		s := bind(t, a, bot)
		r := refund("50.00")
		d, err := a.Check(t.Context(), s, r)
		if err != nil || d.Kind != authz.RequiresOversight || d.Approvers != "finance" || d.Timeout != 30*time.Minute || len(d.Policies) != 1 {
			t.Fatalf("Check = %+v, %v; want to ask finance for 30m", d, err)
		}
		r.Consents = []authz.Consent{authz.NewConsent(d.Policies[0])}
		if d, err := a.Check(t.Context(), s, r); err != nil || d.Kind != authz.Allow {
			t.Errorf("Check with consent = %+v, %v; want allow", d, err)
		}
		changed := d.Policies[0]
		changed.Digest = creto.DigestOf([]byte("another text"))
		r.Consents = []authz.Consent{authz.NewConsent(changed)}
		if d, err := a.Check(t.Context(), s, r); err != nil || d.Kind != authz.RequiresOversight {
			t.Errorf("Check with consent to another text of the policy = %+v, %v; want to ask", d, err)
		}
		r = refund("500.00")
		r.Consents = []authz.Consent{authz.NewConsent(d.Policies[0])}
		if d, err := a.Check(t.Context(), s, r); err != nil || d.Kind != authz.Deny {
			t.Errorf("Check of what no policy permits, with consent = %+v, %v; want deny", d, err)
		}
	})
	t.Run("list", func(t *testing.T) { testList(t, open, bind, groups, p) })
	t.Run("quorum", func(t *testing.T) {
		a := open(t, Policies, groups)
		s := bind(t, a, bot)
		r := authz.Request{Action: creto.ConsumeQuota, Resource: creto.Resource{Type: "Meter", ID: "bank"}}
		for given := range 3 {
			d, err := a.Check(t.Context(), s, r)
			if want := given == 2; err != nil || (d.Kind == authz.Allow) != want || !want && (d.Kind != authz.RequiresOversight || d.Quorum != 2) {
				t.Errorf("Check with %d consents = %+v, %v", given, d, err)
			}
			if len(d.Policies) > 0 && d.Kind == authz.RequiresOversight {
				r.Consents = append(r.Consents, authz.NewConsent(d.Policies[0]))
			}
		}
	})
	t.Run("extensions", func(t *testing.T) { testExtensions(t, open, bind, groups, bot) })
	t.Run("zero chain", func(t *testing.T) {
		a := open(t, "permit (principal, action, resource);", nil)
		if d, err := a.Check(t.Context(), bind(t, a, nhi.VerifiedChain{}), model("gpt-4")); err != nil || d.Kind != authz.Deny {
			t.Errorf("Check of the zero chain = %+v, %v; want deny", d, err)
		}
	})
	t.Run("malformed", func(t *testing.T) {
		a := open(t, Policies, groups)
		s := bind(t, a, bot)
		deep := map[string]any{}
		for at, n := deep, 0; n < 100; n++ {
			next := map[string]any{}
			at["x"], at = next, next
		}
		for name, r := range map[string]authz.Request{
			"unknown action":    {Action: "fly", Resource: creto.Resource{Type: "Model", ID: "x"}},
			"wrong type":        {Action: creto.CallModel, Resource: creto.Resource{Type: "Url", ID: "x"}},
			"empty resource":    {Action: creto.CallModel, Resource: creto.Resource{Type: "Model"}},
			"invalid UTF-8":     {Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "\xff"}},
			"huge id":           {Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: strings.Repeat("x", 1<<20)}},
			"deep context":      {Action: creto.CallModel, Resource: model("gpt-4").Resource, Context: deep},
			"too fine a number": {Action: creto.CallModel, Resource: model("gpt-4").Resource, Context: map[string]any{"x": json.Number("1.23456")}},
			"a strange value":   {Action: creto.CallModel, Resource: model("gpt-4").Resource, Context: map[string]any{"x": struct{}{}}},
		} {
			if d, err := a.Check(t.Context(), s, r); !errors.Is(err, fault.AuthzInvalidRequest) || d.Kind != authz.Deny {
				t.Errorf("%s: Check = %+v, %v; want AuthzInvalidRequest", name, d, err)
			}
		}
		if err := a.Ping(t.Context()); err != nil {
			t.Errorf("Ping = %v", err)
		}
	})
}

func model(id string) authz.Request {
	return authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: id}}
}

func tool(id string) authz.Request {
	return authz.Request{Action: creto.CallTool, Resource: creto.Resource{Type: "Tool", ID: id}}
}

func refund(amount string) authz.Request {
	return authz.Request{
		Action: creto.HTTPRequest, Resource: creto.Resource{Type: "Url", ID: "http://shop/refunds"},
		Context: map[string]any{"method": "POST", "body": map[string]any{"amount": json.Number(amount), "note": nil}},
	}
}

func testDecisions(t *testing.T, open Open, bind func(*testing.T, authz.Authorizer, nhi.VerifiedChain) authz.Session, groups map[string][]string, bot nhi.VerifiedChain, p pqc.Provider) {
	a := open(t, Policies, groups)
	below := nhitest.Chain(t, p, at, nhi.Everything(), "alice", "stranger", "bot")
	narrow := nhitest.Chain(t, p, at, nhi.Scope{Actions: []string{creto.HTTPRequest}, Resources: []string{"*"}}, "alice", "bot")
	spawn := func(context map[string]any) authz.Request {
		return authz.Request{Action: creto.SpawnSandbox, Resource: creto.Resource{Type: "Image", ID: "host"}, Context: context}
	}
	for _, test := range []struct {
		name    string
		chain   nhi.VerifiedChain
		request authz.Request
		want    authz.Kind
		reason  string
	}{
		{"permitted by group and pattern", bot, model("gpt-4o"), authz.Allow, ""},
		{"not matching the pattern", bot, model("claude"), authz.Deny, "this line would"},
		{"forbid wins", bot, model("gpt-2"), authz.Deny, `"no-old" forbids`},
		{"everyone in the chain must be allowed", below, model("gpt-4o"), authz.Deny, "stranger"},
		{"the links' scopes count", narrow, model("gpt-4o"), authz.Deny, "delegation"},
		{"what policies name is allowed", bot, tool("hammer"), authz.Allow, ""},
		{"the links' scopes count for what policies name", narrow, tool("hammer"), authz.Deny, "delegation"},
		{"an error that no request can mend", bot, tool("broken"), authz.Deny, "cannot be evaluated"},
		{"a condition on the body", bot, refund("500.00"), authz.Deny, "no policy permits"},
		{"oversight when every permit asks", bot, refund("50.00"), authz.RequiresOversight, "finance"},
		{"no oversight when one permit does not ask", bot, refund("0.50"), authz.Allow, ""},
		{"an error in a permit permits nothing", bot, authz.Request{Action: creto.HTTPRequest, Resource: refund("1").Resource}, authz.Deny, ""},
		{"a forbid that holds not", bot, spawn(map[string]any{"risk": int64(1)}), authz.Allow, ""},
		{"a forbid that holds", bot, spawn(map[string]any{"risk": int64(9)}), authz.Deny, "careful"},
		{"an error in a forbid denies", bot, spawn(nil), authz.Deny, "cannot be evaluated"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := bind(t, a, test.chain)
			for _, ask := range []func(context.Context, authz.Session, authz.Request) (authz.Decision, error){a.Check, a.Peek} {
				d, err := ask(t.Context(), s, test.request)
				if err != nil || d.Kind != test.want || !strings.Contains(d.Reason, test.reason) {
					t.Errorf("decision = %v %q, %v; want %v with %q", d.Kind, d.Reason, err, test.want, test.reason)
				}
				if d.Version.IsZero() || d.Kind != authz.Deny && len(d.Policies) == 0 {
					t.Errorf("the decision %+v does not name its policies", d)
				}
			}
		})
	}
	batch, err := a.CheckBatch(t.Context(), bind(t, a, bot), []authz.Request{model("gpt-4o"), {Action: "fly"}, model("gpt-2"), model("gpt-4")})
	if err != nil || len(batch) != 4 || batch[0].Kind != authz.Allow || batch[1].Kind != authz.Deny || batch[2].Kind != authz.Deny || batch[3].Kind != authz.Allow {
		t.Errorf("CheckBatch = %v, %v; want allow, deny, deny, allow in order", batch, err)
	}
	if len(batch) == 4 && !strings.Contains(batch[1].Reason, "fly") {
		t.Errorf("CheckBatch answers what is malformed with %q, want what is wrong", batch[1].Reason)
	}
}

// testList compares what is listed with what is allowed.
func testList(t *testing.T, open Open, bind func(*testing.T, authz.Authorizer, nhi.VerifiedChain) authz.Session, groups map[string][]string, p pqc.Provider) {
	const policies = Policies + `
@id("claude") permit (principal, action == Creto::Action::"call_model", resource in Creto::Model::"claude");
@id("no-tool") forbid (principal, action, resource == Creto::Tool::"shop/delete");
@id("at-night") forbid (principal, action, resource == Creto::Tool::"shop/pay") when { context.hour < 6 };
@id("not-oneself") forbid (principal, action == Creto::Action::"send_message", resource in Creto::Group::"bots");
@id("talk") permit (principal, action == Creto::Action::"send_message", resource);
@id("team") permit (principal, action == Creto::Action::"access_secret", resource) when { resource.id like "team/*" };
@id("sealed") forbid (principal, action == Creto::Action::"access_secret", resource) when { resource.id like "team/prod/*" || resource.id like "team/root*" };
@id("read") permit (principal, action == Creto::Action::"access_secret", resource) when { resource.id like "team/prod/read/*" };
@id("lab") permit (principal, action == Creto::Action::"access_secret", resource) when { resource.id like "lab/*" && context.hour > 6 };
@id("desk") permit (principal, action == Creto::Action::"access_secret", resource) when { resource.id like "lab/desk/*" };
@id("shed") permit (principal, action == Creto::Action::"access_secret", resource) when { resource.id like "lab/shed/*" && context.hour > 7 };
@id("shelf") permit (principal, action == Creto::Action::"access_secret", resource) when { resource.id like "lab/desk/a*" };
`
	a := open(t, policies, groups)
	resources := func(patterns ...string) nhi.Scope { return nhi.Scope{Actions: []string{"*"}, Resources: patterns} }
	for _, test := range []struct {
		name   string
		scope  nhi.Scope
		action string
		want   []string // ids, with '*' after prefixes and '?' where it depends
	}{
		{"named, and by their beginning", nhi.Everything(), creto.CallModel, []string{"claude", "gpt-*"}},
		{"beginnings within others", nhi.Everything(), creto.AccessSecret, []string{"lab/*?", "lab/desk/*", "team/*?"}},
		{"beginnings within the links' scopes", resources("Secret::team/dev/*", "Secret::team/pro*", "Secret::lab/desk/b*"), creto.AccessSecret, []string{"lab/desk/b*", "team/dev/*", "team/pro*?"}},
		{"a forbid, and one that depends", nhi.Everything(), creto.CallTool, []string{"hammer", "shop/pay?", "*"}},
		{"consent", nhi.Everything(), creto.NetworkEgress, []string{"*?"}},
		{"named alone", nhi.Everything(), creto.HTTPRequest, []string{"http://shop/refunds?"}},
		{"nothing", resources("Secret::other/*", "Secret::team/prod/*"), creto.AccessSecret, nil},
		{"who is in the chain", nhi.Everything(), creto.SendMessage, []string{"*"}},
		{"the links' scopes", resources("Tool::shop/*", "Tool::other", "Tool::shop/a*"), creto.CallTool, []string{"other", "shop/pay?", "shop/*"}},
		{"a scope of another type", resources("Model::*"), creto.CallTool, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := bind(t, a, nhitest.Chain(t, p, at, test.scope, "alice", "bot"))
			var got []string
			for q := (authz.Query{Action: test.action, Limit: 1}); ; {
				page, err := a.List(t.Context(), s, q)
				if err != nil || len(page.Grants) > 1 {
					t.Fatalf("List = %+v, %v; want one grant", page, err)
				}
				for _, g := range page.Grants {
					got = append(got, listed(g))
					q.After = g
					d, err := a.Peek(t.Context(), s, authz.Request{Action: test.action, Resource: creto.Resource{Type: g.Resource.Type, ID: g.Resource.ID + map[bool]string{true: "x"}[g.Prefix]}})
					if err != nil || !g.Conditional && d.Kind != authz.Allow {
						t.Errorf("%s is listed without a condition, and Peek = %+v, %v", listed(g), d, err)
					}
				}
				if !page.More {
					break
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("List = %q, want %q", got, test.want)
			}
		})
	}
	s := bind(t, a, nhitest.Chain(t, p, at, nhi.Everything(), "alice", "bot"))
	if page, err := a.List(t.Context(), s, authz.Query{Action: "fly"}); !errors.Is(err, fault.AuthzInvalidRequest) {
		t.Errorf("List of no action = %+v, %v; want AuthzInvalidRequest", page, err)
	}
	if page, err := a.List(t.Context(), bind(t, a, nhi.VerifiedChain{}), authz.Query{Action: creto.CallTool}); err != nil || len(page.Grants) > 0 {
		t.Errorf("List of the zero chain = %+v, %v; want nothing", page, err)
	}
}

func listed(g authz.Grant) string {
	return g.Resource.ID + map[bool]string{true: "*"}[g.Prefix] + map[bool]string{true: "?"}[g.Conditional]
}

// extension grants up to limit and counts.
type extension struct {
	mu       sync.Mutex // guards what follows
	left     int64
	asked    int
	refunded int
	fail     bool
}

func (e *extension) Name() string { return "test" }

func (e *extension) Bind(context.Context, nhi.VerifiedChain) (authz.Evaluator, error) { return e, nil }

func (e *extension) Evaluate(_ context.Context, _ authz.Request, reserve bool) (authz.Reservation, *authz.Decision, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked++
	switch {
	case e.fail:
		return authz.Reservation{}, nil, errors.New("broken")
	case e.left == 0:
		return authz.Reservation{}, &authz.Decision{Kind: authz.QuotaExceeded, Reason: "spent"}, nil
	case !reserve:
		return authz.Reservation{}, nil, nil
	}
	e.left--
	return authz.Reservation{ID: 1, Amount: 1}, nil, nil
}

func (e *extension) Refund(authz.Reservation) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.refunded++
	e.left++
}

func testExtensions(t *testing.T, open Open, bind func(*testing.T, authz.Authorizer, nhi.VerifiedChain) authz.Session, groups map[string][]string, bot nhi.VerifiedChain) {
	quota := &extension{left: 2}
	a := open(t, Policies, groups, quota)
	s := bind(t, a, bot)
	check := func(ask func(context.Context, authz.Session, authz.Request) (authz.Decision, error), r authz.Request, want authz.Kind) authz.Decision {
		t.Helper()
		d, err := ask(t.Context(), s, r)
		if err != nil || d.Kind != want {
			t.Fatalf("decision = %+v, %v; want %v", d, err, want)
		}
		return d
	}
	check(a.Check, model("claude"), authz.Deny)
	check(a.Check, refund("50.00"), authz.RequiresOversight)
	if quota.asked != 0 {
		t.Errorf("quota was asked %d times before policy allowed", quota.asked)
	}
	check(a.Peek, model("gpt-4"), authz.Allow)
	check(a.Check, model("gpt-4"), authz.Allow)
	if d := check(a.Check, model("gpt-4"), authz.Allow); d.Reservation.Amount != 1 {
		t.Errorf("Check allowed without its reservation: %+v", d)
	}
	check(a.Check, model("gpt-4"), authz.QuotaExceeded)

	// What the first reserved is given back when the second says no.
	first, second := &extension{left: 5}, &extension{left: 0}
	a = open(t, Policies, groups, first, second)
	s = bind(t, a, bot)
	check(a.Check, model("gpt-4"), authz.QuotaExceeded)
	if first.left != 5 || first.refunded != 1 {
		t.Errorf("after a denial behind it the first extension has %d left, refunded %d times; want 5 and 1", first.left, first.refunded)
	}
	a = open(t, Policies, groups, &extension{fail: true})
	if d, err := a.Check(t.Context(), bind(t, a, bot), model("gpt-4")); err == nil || d.Kind == authz.Allow {
		t.Errorf("Check with a broken extension = %+v, %v; want an error", d, err)
	}
}
