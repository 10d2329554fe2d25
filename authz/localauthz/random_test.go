package localauthz_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cedar-policy/cedar-go"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc/localpqc"
)

// world draws policies, requests and contexts from few names, so that they meet.
type world struct{ *rand.Rand }

func (w world) one(of ...string) string { return of[w.IntN(len(of))] }

func (w world) often(percent int) bool { return w.IntN(100) < percent }

var (
	worldAgents = []string{"a0", "a1", "a2", "a3"}
	worldHumans = []string{"h0", "h1"}
	worldGroups = []string{"g0", "g1", "g2"}
	worldIDs    = []string{"r0", "r1", "r1/x", "a1", "a2", "*", "é", "http://shop/1"}
)

func (w world) group() string { return `Creto::Group::"` + w.one(worldGroups...) + `"` }

func (w world) entity() string {
	switch w.IntN(6) {
	case 0:
		return `Creto::Agent::"` + w.one(worldAgents...) + `"`
	case 1:
		return `Creto::Human::"` + w.one(worldHumans...) + `"`
	case 2:
		return `Creto::Tenant::"` + w.one("default", "acme") + `"`
	case 3:
		return w.resource()
	case 4:
		return w.action()
	}
	return w.group()
}

func (w world) resource() string {
	return `Creto::` + w.one("Model", "Model", "Url", "Agent", "Secret") + `::"` + w.one(worldIDs...) + `"`
}

func (w world) action() string {
	return `Creto::Action::"` + w.one(creto.CallModel, creto.CallModel, creto.HTTPRequest, creto.SendMessage, creto.AccessSecret) + `"`
}

// policy writes one policy.
func (w world) policy(id int) string {
	var text strings.Builder
	fmt.Fprintf(&text, "@id(\"p%02d\") ", id)
	effect := "permit"
	if w.often(20) {
		effect = "forbid"
	} else if w.often(40) {
		approvers := w.one("finance", "principal")
		fmt.Fprintf(&text, "@oversight(%q) ", approvers)
		if approvers == "finance" && w.often(30) {
			text.WriteString(`@quorum("2") `)
		}
		if w.often(50) {
			text.WriteString(`@timeout("30m") `)
		}
	}
	principal := w.one(
		"principal", "principal", "principal", "principal in "+w.group(), "principal in "+w.group(), `principal in Creto::Tenant::"default"`,
		"principal is Creto::Agent", "principal is Creto::Human", "principal is Creto::Agent in "+w.group(),
		`principal == Creto::Agent::"`+w.one(worldAgents...)+`"`, `principal == Creto::Human::"`+w.one(worldHumans...)+`"`,
		`principal in Creto::Agent::"`+w.one(worldAgents...)+`"`,
	)
	action := w.one("action", "action", "action == "+w.action(), "action in "+w.action(), "action in ["+w.action()+", "+w.action()+"]", "action in []")
	resource := w.one("resource", "resource", "resource == "+w.resource(), "resource == "+w.resource(), "resource is Creto::Model", "resource is Creto::Agent",
		"resource in "+w.resource(), "resource is Creto::Model in "+w.resource(), "resource in "+w.group())
	fmt.Fprintf(&text, "%s (%s, %s, %s)", effect, principal, action, resource)
	if w.often(25) {
		fmt.Fprintf(&text, " %s { %s }", w.one("when", "when", "unless"), w.beginning(2))
	}
	for w.often(45) {
		fmt.Fprintf(&text, " %s { %s }", w.one("when", "when", "unless"), w.boolean(3))
	}
	text.WriteString(";\n")
	return text.String()
}

// beginning writes a condition on how the resource's id begins.
func (w world) beginning(depth int) string {
	if depth > 0 && w.often(40) {
		left, right := w.beginning(depth-1), w.beginning(depth-1)
		return w.one("!("+left+")", "("+left+" && "+right+")", "("+left+" || "+right+")", "("+left+" && context.flag)")
	}
	of := w.one("resource.id", "resource.id", "resource.id", "resource.id", "principal.id", "resource.name")
	return of + ` like "` + w.one("*", "r*", "r1*", "r1/*", "r1/x*", "a*", "http://*", "é*", `\**`, "other*", "r*x", "*1") + `"`
}

// any writes an expression of any type.
func (w world) any(depth int) string {
	switch w.IntN(7) {
	case 0:
		return w.boolean(depth)
	case 1:
		return w.long(depth)
	case 2:
		return w.set(depth)
	case 3:
		return w.entityExpression(depth)
	case 4:
		return w.record(depth)
	case 5:
		return w.extension(depth)
	}
	return w.text(depth)
}

func (w world) boolean(depth int) string {
	if w.often(3) {
		return w.any(depth - 1) // a mistake
	}
	if depth <= 0 {
		return "(" + w.one("true", "false", "context.flag", "context has flag", "context has body.amount", "principal has name", "resource has id", "resource has name", "action has id") + ")"
	}
	d := depth - 1
	switch w.IntN(32) {
	case 0, 1:
		return "(" + w.boolean(d) + " && " + w.boolean(d) + ")"
	case 2, 3:
		return "(" + w.boolean(d) + " || " + w.boolean(d) + ")"
	case 4:
		return "!(" + w.boolean(d) + ")"
	case 5:
		return "(if " + w.boolean(d) + " then " + w.boolean(d) + " else " + w.boolean(d) + ")"
	case 6:
		return "(" + w.any(d) + w.one(" == ", " != ") + w.any(d) + ")"
	case 7:
		return "(" + w.text(d) + w.one(" == ", " != ") + w.text(d) + ")"
	case 8, 9:
		return "(" + w.long(d) + w.one(" < ", " <= ", " > ", " >= ", " == ", " != ") + w.long(d) + ")"
	case 10:
		return "(" + w.entityExpression(d) + " in " + w.one(w.entityExpression(d), "["+w.entity()+", "+w.entity()+"]", "["+w.any(0)+"]", "[]", w.set(d)) + ")"
	case 11:
		return "(" + w.entityExpression(d) + " is " + w.one("Creto::Agent", "Creto::Human", "Creto::Model") + w.one("", " in "+w.entityExpression(d), " in ["+w.entity()+"]") + ")"
	case 12, 13:
		return "(" + w.text(d) + " like \"" + w.one("r*", "*", "", "*1", "*/*", "r*x", "a*", `\*`, "*é*", "http://*/1", "*r*1*", "POST") + "\")"
	case 14:
		return w.set(d) + ".contains(" + w.any(d) + ")"
	case 15:
		return w.set(d) + w.one(".containsAll(", ".containsAny(") + w.set(d) + ")"
	case 16:
		return w.set(d) + ".isEmpty()"
	case 17:
		return w.decimal(d) + w.one(".lessThan(", ".lessThanOrEqual(", ".greaterThan(", ".greaterThanOrEqual(") + w.decimal(d) + ")"
	case 18:
		return "(" + w.one("context", "context.body", "principal", "resource", "action", w.entity(), w.record(d), w.any(d)) + " has " + w.one("name", "amount", "id", "body", "none", `"a b"`, "null") + ")"
	case 19:
		return w.ip(d) + w.one(".isIpv4()", ".isIpv6()", ".isLoopback()", ".isMulticast()", ".isInRange("+w.ip(d)+")")
	case 20:
		return "(" + w.datetime(d) + w.one(" < ", " >= ", " == ") + w.datetime(d) + ")"
	case 21:
		return w.entityExpression(d) + ".hasTag(" + w.text(d) + ")"
	case 22:
		return w.entityExpression(d) + ".getTag(\"x\")"
	}
	return "(" + w.one("context.flag", "context.method == \"POST\"", "context.body.amount < 100", "principal.name == \"a1\"", "principal in "+w.group(), "resource.id like \"r*\"",
		"context.list.contains(\"x\")", "principal == resource", "resource.name == \"r1\"", `Creto::Agent::"a1" in `+w.group(), `Creto::Agent::"a1" has name`, `resource in `+w.entity(), "["+w.entity()+", "+w.entity()+"].contains(principal)", "context.dec.lessThan(decimal(\"1.5\"))") + ")"
}

func (w world) long(depth int) string {
	if depth <= 0 || w.often(40) {
		return w.one("0", "1", "(-1)", "42", "9223372036854775807", "(-9223372036854775808)", "context.n", "context.body.amount", "context.risk")
	}
	d := depth - 1
	switch w.IntN(5) {
	case 0:
		return "(" + w.long(d) + " + " + w.long(d) + ")"
	case 1:
		return "(" + w.long(d) + " - " + w.long(d) + ")"
	case 2:
		return "(" + w.long(d) + " * " + w.long(d) + ")"
	case 3:
		return "(-(" + w.long(d) + "))"
	}
	return "(if " + w.boolean(d) + " then " + w.long(d) + " else " + w.any(d) + ")"
}

func (w world) text(depth int) string {
	if depth <= 0 || w.often(70) {
		return w.one(`""`, `"x"`, `"r1"`, `"POST"`, `"é"`, "context.method", "context.s", "context.body.note", "resource.id", "principal.name", "principal.id", "principal.tenant", "action.id", `context["a b"]`)
	}
	return w.one(w.entityExpression(depth-1)+".name", w.record(depth-1)+".s", "(if "+w.boolean(depth-1)+" then "+w.text(depth-1)+" else "+w.text(depth-1)+")")
}

func (w world) set(depth int) string {
	if depth <= 0 || w.often(40) {
		return w.one(`["x", "POST", "r1"]`, "[1, 2, 42]", "[]", "context.list", "context.deep.list", `[decimal("1.5"), true]`, "[[1], {a: 1}]", "["+w.entity()+"]")
	}
	return "[" + w.any(depth-1) + ", " + w.any(depth-1) + "]"
}

func (w world) record(depth int) string {
	if depth <= 0 || w.often(50) {
		return w.one("context", "context.body", "{a: 1}", `{s: "x", "a b": 2}`, "context.deep")
	}
	return "{s: " + w.any(depth-1) + ", amount: " + w.any(depth-1) + "}"
}

func (w world) entityExpression(depth int) string {
	if depth <= 0 || w.often(70) {
		return w.one("principal", "resource", "action", w.entity())
	}
	return "(if " + w.boolean(depth-1) + " then principal else " + w.one("resource", w.entity(), w.any(depth-1)) + ")"
}

func (w world) decimal(depth int) string {
	return w.one(`decimal("1.5")`, `decimal("-0.0001")`, `decimal("922337203685477.5807")`, "context.dec", "context.body.amount", `decimal("1.23456")`, "decimal("+w.text(depth-1)+")")
}

func (w world) ip(depth int) string {
	return w.one(`ip("10.0.0.1")`, `ip("10.0.0.0/8")`, `ip("::1")`, "ip(context.ip)", "ip("+w.text(depth-1)+")", w.any(0))
}

func (w world) datetime(int) string {
	return w.one(`datetime("2024-10-15")`, `datetime("2024-10-15T11:35:00Z")`, `datetime(context.at)`, `datetime("2024-10-15").offset(duration("1d"))`, `datetime("2024-10-15").toDate()`, "context.n")
}

func (w world) extension(depth int) string {
	return w.one(w.decimal(depth), w.ip(depth), w.datetime(depth), `duration("1h30m")`, `datetime("2024-10-15").durationSince(datetime("2024-01-01")).toHours()`)
}

// context returns what a request holds.
func (w world) context(depth int) map[string]any {
	if w.often(10) {
		return nil
	}
	m := map[string]any{}
	for _, name := range []string{"method", "s", "flag", "n", "risk", "dec", "list", "ip", "at", "a b", "null"} {
		if w.often(40) {
			m[name] = w.item(name, depth)
		}
	}
	for _, name := range []string{"body", "deep"} {
		if w.often(60) {
			if depth > 0 {
				m[name] = map[string]any(w.context(depth - 1))
			}
			if inner, ok := m[name].(map[string]any); ok && inner != nil && w.often(80) {
				inner["amount"], inner["note"] = w.item("n", 0), w.item("s", 0)
			}
		}
	}
	return m
}

func (w world) item(name string, depth int) any {
	if w.often(8) {
		name = w.one("method", "flag", "n", "dec", "list", "null", "bad")
	}
	switch name {
	case "method", "s", "a b":
		return w.one("POST", "x", "", "r1", "é", "bad \xff text", "http://shop/1")
	case "flag":
		return w.often(50)
	case "n", "risk":
		return [...]any{1, int64(42), -1, int64(-1 << 63), 7.0, 1e15, json.Number("42"), json.Number("-9223372036854775808"), json.Number("99.5"), 3.25}[w.IntN(10)]
	case "dec":
		return [...]any{json.Number("1.5"), json.Number("-0.0001"), json.Number("922337203685477.5807"), 1.25, -2.5, json.Number("+1.50")}[w.IntN(6)]
	case "ip":
		return w.one("10.1.2.3", "::1", "224.0.0.1", "no")
	case "at":
		return w.one("2024-10-15", "2023-01-01T00:00:00Z", "never")
	case "null":
		return nil
	case "bad":
		if w.often(70) {
			return "fine"
		}
		return [...]any{struct{}{}, json.Number("1.23456"), json.Number("1e3"), json.Number("9223372036854775808"), json.Number(""), json.Number("."), 1e300, 0.00001, json.Number("-922337203685477.5809"), json.Number("1_0"), int32(1)}[w.IntN(11)]
	}
	list := make([]any, w.IntN(4))
	for i := range list {
		list[i] = w.item(w.one("method", "n", "dec", "flag", "null"), depth)
		if depth > 0 && w.often(10) {
			list[i] = map[string]any(w.context(0))
		}
	}
	return list
}

// request returns a question about one of few resources.
func (w world) request() authz.Request {
	action := w.one(creto.CallModel, creto.CallModel, creto.HTTPRequest, creto.SendMessage, creto.AccessSecret, creto.CallTool)
	kind, _ := creto.ResourceType(action)
	r := authz.Request{Action: action, Resource: creto.Resource{Type: kind, ID: w.one(append(worldIDs, "other", "r12")...)}, Context: w.context(2)}
	switch w.IntN(60) {
	case 0:
		r.Action = "fly"
	case 1:
		r.Resource.Type = "Url"
	case 2:
		r.Resource.ID = w.one("", "\xff", strings.Repeat("x", 1<<17))
	case 3:
		r.Context = map[string]any{"deep": deep(w.IntN(20))}
	}
	return r
}

func deep(n int) any {
	if n == 0 {
		return []any{"x"}
	}
	return map[string]any{"deep": deep(n - 1), "list": []any{1}}
}

// worldChains are chains of everybody, with and without bounds.
func worldChains(t testing.TB) []nhi.VerifiedChain {
	p, at := localpqc.New(), time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	models := nhi.Scope{Actions: []string{"call_*", creto.SendMessage}, Resources: []string{"Model::r*", "Agent::*", "Url::http://shop/1"}}
	return []nhi.VerifiedChain{
		{},
		nhitest.Chain(t, p, at, nhi.Everything(), "h0", "a0"),
		nhitest.Chain(t, p, at, nhi.Everything(), "h1", "a1"),
		nhitest.Chain(t, p, at, nhi.Everything(), "h0", "a0", "a1"),
		nhitest.Chain(t, p, at, nhi.Everything(), "h0", "a1", "a2", "a3"),
		nhitest.Chain(t, p, at, models, "h0", "a2"),
		nhitest.Chain(t, p, at, models, "h1", "a2", "a1"),
	}
}

// TestOracle compares random checks with what cedar-go says of everybody in the
// chain, over all policies: decision, reason, policies and faults.
func TestOracle(t *testing.T) {
	triples := 20_000
	if os.Getenv("CRETO_TORTURE") != "" {
		triples = 1_000_000
	}
	const perSet = 50
	chains := worldChains(t)
	seed := rand.Uint64()
	counts := map[authz.Kind]int{}
	faults := 0
	for n := range triples / perSet {
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
			text.WriteString(w.policy(i))
		}
		if w.often(50) {
			text.WriteString(w.one("", `@oversight("finance") `) + "@id(\"base\") permit (principal, action, resource);\n")
		}
		want, err := newOracle(text.String())
		if err != nil {
			t.Fatalf("seed %d, set %d: %v\n%s", seed, n, err, &text)
		}
		dir := t.TempDir()
		write(t, dir, "p.cedar", text.String())
		a, err := open(t, dir, groups, nil, nil)
		if err != nil {
			t.Fatalf("seed %d, set %d: %v\n%s", seed, n, err, &text)
		}
		if w.often(25) {
			a.LimitTables(0) // each check looks for its policies
		}
		sessions := make([]authz.Session, len(chains))
		for i, chain := range chains {
			if sessions[i], err = a.Bind(t.Context(), chain); err != nil {
				t.Fatal(err)
			}
		}
		i := w.IntN(len(chains))
		if problem := w.compareList(t, a, sessions[i]); problem != "" {
			t.Fatalf("seed %d, set %d: %v: %s\n%s", seed, n, chains[i].Principals(), problem, &text)
		}
		for range perSet {
			i := w.IntN(len(chains))
			r := w.request()
			for range w.IntN(3) * w.IntN(2) {
				p := want.policies[cedar.PolicyID(fmt.Sprintf("p%02d", w.IntN(14)))]
				r.Consents = append(r.Consents, authz.NewConsent(p.ref))
				if w.often(50) {
					r.Consents = append(r.Consents, authz.NewConsent(p.ref))
				}
			}
			expected, expectedErr := want.check(chains[i], groups, r)
			got, err := a.Check(t.Context(), sessions[i], r)
			if (err != nil) != (expectedErr != nil) || err != nil && (!errors.Is(err, fault.AuthzInvalidRequest) || got.Kind != authz.Deny) {
				t.Fatalf("seed %d, set %d: Check(%+v) = %+v, %v; want %+v, %v\n%s", seed, n, r, got, err, expected, expectedErr, &text)
			}
			if err != nil {
				faults++
				continue
			}
			counts[got.Kind]++
			if chains[i].Valid() && got.Version != a.Version() {
				t.Fatalf("a decision of version %v, policies are %v", got.Version, a.Version())
			}
			if got.Version = (creto.Digest{}); !reflect.DeepEqual(got, expected) {
				t.Fatalf("seed %d, set %d: %v: Check(%+v) = %+v; want %+v\n%s", seed, n, chains[i].Principals(), r, got, expected, &text)
			}
		}
	}
	t.Logf("seed %d: %v, %d malformed", seed, counts, faults)
	for _, kind := range []authz.Kind{authz.Deny, authz.Allow, authz.RequiresOversight} {
		if counts[kind] < triples/100 {
			t.Errorf("only %d of %d checks end in %v", counts[kind], triples, kind)
		}
	}
}

// compareList returns how what is listed of an action differs from what is allowed;
// "" if it does not.
func (w world) compareList(t *testing.T, a authz.Authorizer, s authz.Session) string {
	t.Helper()
	q := authz.Query{Action: w.one(w.request().Action, creto.SendMessage), Limit: 1 + w.IntN(4)}
	kind, known := creto.ResourceType(q.Action)
	if !known {
		return ""
	}
	check := func(id string) authz.Decision {
		d, err := a.Check(t.Context(), s, authz.Request{Action: q.Action, Resource: creto.Resource{Type: kind, ID: id}, Context: w.context(2)})
		if err != nil && !errors.Is(err, fault.AuthzInvalidRequest) {
			t.Fatal(err)
		}
		return d
	}
	named := map[string]bool{}
	for _, id := range append(append(worldAgents, worldHumans...), worldIDs...) {
		named[id] = true
	}
	listed, prefixes := map[string]bool{}, []string{}
	for more := true; more; {
		page, err := a.List(t.Context(), s, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range page.Grants {
			id := g.Resource.ID
			if g.Prefix {
				prefixes = append(prefixes, id)
				for id += w.one("~", "1~", "/~", "x~"); named[id]; {
					id += "~"
				}
			} else {
				listed[id] = true
			}
			if d := check(id); !g.Conditional && d.Kind != authz.Allow && d.Reason != "" {
				return fmt.Sprintf("%+v is listed, and %s is %v: %s", g, id, d.Kind, d.Reason)
			}
			q.After = g
		}
		more = page.More
	}
	for _, id := range append([]string{"other", "r12", "r1/x1", "a~", "https://"}, worldIDs...) {
		covered := slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(id, p) })
		for _, p := range s.Chain().Principals() {
			covered = covered && (q.Action != creto.SendMessage || p.Name != id) // they are listed each
		}
		if d := check(id); d.Kind != authz.Deny && !listed[id] && !covered {
			return fmt.Sprintf("%s is %v, and List has %v and %q", id, d.Kind, listed, prefixes)
		}
	}
	return ""
}
