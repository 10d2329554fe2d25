package program_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"creto.dev/authz/localauthz/program"
	"creto.dev/fault"
)

func compile(t testing.TB, text string) (*program.Program, *cedar.PolicySet) {
	t.Helper()
	set, err := cedar.NewPolicySetFromBytes("test.cedar", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := compileSet(set)
	if err != nil {
		t.Fatal(err)
	}
	return p, set
}

func compileSet(set *cedar.PolicySet) (*program.Program, error) {
	compiler := program.NewCompiler(nil)
	var all []program.Named
	for id, source := range set.All() {
		one, err := compiler.Compile(source)
		if err != nil {
			return nil, err
		}
		all = append(all, program.Named{ID: id, Policy: one})
	}
	compiler.Done()
	return program.New(all, func() {}), nil
}

// same compares a program with cedar-go on one request.
func same(t *testing.T, p *program.Program, set *cedar.PolicySet, entities cedar.EntityMap, r cedar.Request) {
	t.Helper()
	decision, diagnostic := p.Authorize(entities, r)
	wanted, wantedDiagnostic := cedar.Authorize(set, entities, r)
	wantedReasons, wantedErrors := reasons(wantedDiagnostic), failures(t, wantedDiagnostic)
	slices.Sort(wantedReasons)
	slices.Sort(wantedErrors)
	if decision != wanted || !slices.Equal(reasons(diagnostic), wantedReasons) || !slices.Equal(failures(t, diagnostic), wantedErrors) {
		t.Errorf("Authorize(%+v) = %v, %v; want %v, %v\n%s", r, decision, diagnostic, wanted, wantedDiagnostic, set.MarshalCedar())
	}
}

var (
	alice = cedar.NewEntityUID("U", "alice")
	read  = cedar.NewEntityUID("Action", "read")
	file  = cedar.NewEntityUID("File", "f")
)

// Hierarchies end, though they are cyclic, and reach as far as Cedar's.
func TestHierarchy(t *testing.T) {
	g := func(n int) cedar.EntityUID { return cedar.NewEntityUID("G", types.String(strconv.Itoa(n))) }
	entities := cedar.EntityMap{
		alice: {UID: alice, Parents: cedar.NewEntityUIDSet(g(0))},
		g(0):  {UID: g(0), Parents: cedar.NewEntityUIDSet(g(1), alice)},
		g(1):  {UID: g(1), Parents: cedar.NewEntityUIDSet(g(0), g(2), g(9))},
		g(2):  {UID: g(2), Parents: cedar.NewEntityUIDSet(g(2))},
		file:  {UID: file, Parents: cedar.NewEntityUIDSet(cedar.NewEntityUID("Dir", "d"))},
		read:  {UID: read, Parents: cedar.NewEntityUIDSet(cedar.NewEntityUID("Action", "any"))},
	}
	var text strings.Builder
	for i := range 11 {
		fmt.Fprintf(&text, "permit (principal in G::\"%d\", action, resource);\n", i)
		fmt.Fprintf(&text, "permit (principal is U in G::\"%d\", action, resource);\n", i)
		fmt.Fprintf(&text, "permit (principal, action, resource) when { principal in [G::\"%d\"] };\n", i)
		fmt.Fprintf(&text, "permit (principal, action, resource) when { principal is U in G::\"%d\" };\n", i)
	}
	text.WriteString(`
permit (principal, action in Action::"any", resource in Dir::"d");
permit (principal, action in [Action::"any", Action::"none"], resource is File in Dir::"d");
permit (principal is G, action, resource);
permit (principal, action == Action::"any", resource);
permit (principal in U::"alice", action, resource);`)
	p, set := compile(t, text.String())
	for _, principal := range []cedar.EntityUID{alice, g(0), g(1), g(2), g(9), cedar.NewEntityUID("U", "nobody"), {}} {
		for _, action := range []cedar.EntityUID{read, cedar.NewEntityUID("Action", "any")} {
			same(t, p, set, entities, cedar.Request{Principal: principal, Action: action, Resource: file})
		}
	}
	if _, diagnostic := p.Authorize(nil, cedar.Request{Principal: alice, Action: read, Resource: file}); len(diagnostic.Reasons) != 1 {
		t.Errorf("without entities: %v", diagnostic)
	}
}

// Tags and attributes of entities, and what is wrong with them.
func TestEntities(t *testing.T) {
	entities := cedar.EntityMap{alice: {
		UID: alice, Tags: cedar.NewRecord(cedar.RecordMap{"team": cedar.String("a")}),
		Attributes: cedar.NewRecord(cedar.RecordMap{
			"boss": alice, "limit": types.Value(must(t, "1.5")), "set": cedar.NewSet(cedar.Long(1), alice), "record": cedar.NewRecord(cedar.RecordMap{"x": cedar.True}),
		}),
	}}
	for _, condition := range []string{
		`principal.getTag("team") == "a"`, `principal.hasTag("team")`, `principal.hasTag("x")`, `principal.getTag("x") == 1`, `resource.hasTag("x")`, `resource.getTag("x") == 1`,
		`context.hasTag("x")`, `principal.hasTag(1)`, `principal.boss.boss == principal`, `principal.limit.lessThan(decimal("1.6"))`, `principal.set.contains(principal)`,
		`principal.set.containsAll([1])`, `[U::"alice", U::"bob"].contains(principal)`, `[G::"alice"].contains(principal)`, `["alice"].contains(principal)`, `principal.set == [U::"alice", 1, 1]`, `principal.record.x`, `principal.record == {x: true}`, `principal.record has x && principal has record.x`,
		`principal.none == 1`, `resource.none == 1`, `resource has none`, `U::"alice".boss == principal`, `principal.boss in principal`, `principal.set.containsAny(context.s)`,
		`[context.s].contains(context.s)`, `{a: context.s} == {a: context.s}`, `context == context`, `context.s.isEmpty()`, `ip("10.0.0.1") < ip("10.0.0.2")`, `decimal("1.0") < decimal("2.0")`,
		`datetime("2024-01-01") < datetime("2024-01-02")`, `duration("1h") >= duration("60m")`, `datetime("2024-01-01") < duration("1h")`, `1 < duration("1h")`,
	} {
		p, set := compile(t, "permit (principal, action, resource) when { "+condition+" };\nforbid (principal, action, resource) unless { "+condition+" };")
		same(t, p, set, entities, cedar.Request{Principal: alice, Action: read, Resource: file, Context: cedar.NewRecord(cedar.RecordMap{"s": cedar.NewSet(cedar.Long(1))})})
	}
}

func must(t *testing.T, text string) types.Decimal {
	t.Helper()
	d, err := types.ParseDecimal(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A condition that is nested without end is refused; a long one is not.
func TestDepth(t *testing.T) {
	for n, want := range map[int]bool{100: true, 1000: true, 6000: false} {
		for _, text := range []string{strings.Repeat("(1 + ", n) + "1" + strings.Repeat(")", n) + " == " + strconv.Itoa(n+1), strings.Repeat("1 == 2 || ", n) + "1 == 1"} {
			set, err := cedar.NewPolicySetFromBytes("deep.cedar", []byte("permit (principal, action, resource) when { context has x || "+text+" };"))
			if err != nil {
				t.Fatal(err)
			}
			p, err := compileSet(set)
			if (err == nil) != want || err != nil && !errors.Is(err, fault.InvalidArgument) {
				t.Errorf("Compile of %d levels = %v", n, err)
			}
			if err == nil && p.Evaluate(0, &program.Env{}) != program.Satisfied {
				t.Errorf("%d levels do not hold", n)
			}
		}
	}
}

// Numbers of a context are what strconv and Cedar's decimal make of them.
func TestNumbers(t *testing.T) {
	p, _ := compile(t, `
@id("long") permit (principal, action, resource) when { context.n < context.limit || context.n >= context.limit };
@id("decimal") permit (principal, action, resource) when { context.n.lessThan(decimal("0.0")) || context.n.greaterThanOrEqual(decimal("0.0")) };
@id("equal") permit (principal, action, resource) when { context.n == context.same };`)
	r := rand.New(rand.NewPCG(1, 2))
	texts := []string{
		"", "-", "+", ".", "-.", "1.", ".1", "-0.5", "+0.5", "00.10", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "+1",
		"922337203685477.5807", "922337203685477.5808", "-922337203685477.5808", "-922337203685477.5809", "922337203685478.0", "1.2.3", "1e3", "0x1", "1_0", "1.23456", "1.-2", "1.+2", " 1", "1 ", "１", "1.٢",
		"99999999999999999999999999", "18446744073709551616", "18446744073709551617.0", "NaN", "Inf", "-00000000000000000000000000001", "0.0000", "-0.0001", "1.00000",
	}
	for range 20_000 {
		text := make([]byte, r.IntN(22))
		for i := range text {
			text[i] = "0123456789012345678999..-+e_ "[r.IntN(29)]
		}
		texts = append(texts, string(text))
	}
	for _, text := range texts {
		context := map[string]any{"n": json.Number(text), "limit": 0}
		isLong, isDecimal := false, false
		long, err := strconv.ParseInt(text, 10, 64)
		if isLong = err == nil; !isLong {
			_, err := types.ParseDecimal(text)
			isDecimal = err == nil
		}
		if err := program.CheckContext(context); (err == nil) != (isLong || isDecimal) || err != nil && !errors.Is(err, fault.AuthzInvalidRequest) {
			t.Errorf("CheckContext of %q = %v; it is a long: %v, a decimal: %v", text, err, isLong, isDecimal)
		}
		if !isLong && !isDecimal {
			continue
		}
		context["same"] = long
		if isDecimal {
			context["same"] = json.Number(must(t, text).String())
		}
		env := program.Env{Principal: alice, Action: read, Resource: file, Fields: context}
		for i, want := range map[string]bool{"long": isLong, "decimal": isDecimal, "equal": true} {
			for number := range p.Len() {
				if p.ID(number) == cedar.PolicyID(i) && (p.Evaluate(number, &env) == program.Satisfied) != want {
					t.Errorf("%q: %s is %v, want %v", text, i, !want, want)
				}
			}
		}
	}
}

// Text of a context that is not UTF-8 is what Cedar can hold of it.
func TestInvalidText(t *testing.T) {
	p, _ := compile(t, `permit (principal, action, resource) when { context.s == "a\u{fffd}b" && context.list.contains("\u{fffd}") };`)
	env := program.Env{Principal: alice, Action: read, Resource: file, Fields: map[string]any{"s": "a\xffb", "list": []any{"\xfe\xff"}}}
	if v := p.Evaluate(0, &env); v != program.Satisfied {
		t.Errorf("Evaluate = %v, want satisfied", v)
	}
}

// Patterns match what Cedar's do.
func TestPatterns(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	text := func(alphabet string, most int) string {
		var b strings.Builder
		for range r.IntN(most) {
			b.WriteByte(alphabet[r.IntN(len(alphabet))])
		}
		return b.String()
	}
	matched := 0
	for range 5000 {
		pattern := text("ab**", 7)
		p, set := compile(t, `permit (principal, action, resource) when { context.s like "`+pattern+`" };`)
		for range 20 {
			s := text("ab", 8)
			context := cedar.NewRecord(cedar.RecordMap{"s": cedar.String(s)})
			request := cedar.Request{Principal: alice, Action: read, Resource: file, Context: context}
			got, _ := p.Authorize(nil, request)
			want, _ := cedar.Authorize(set, nil, request)
			if got != want {
				t.Fatalf("%q like %q = %v, want %v", s, pattern, got, want)
			}
			if got == cedar.Allow {
				matched++
			}
		}
	}
	if matched < 1000 {
		t.Errorf("only %d matched", matched)
	}
}

// The usual conditions evaluate without allocating.
func TestNoAllocations(t *testing.T) {
	context := map[string]any{
		"method": "POST", "n": int64(7), "flag": true, "amount": json.Number("12.50"), "ratio": 0.25,
		"body": map[string]any{"amount": json.Number("42"), "tags": []any{"a", "b", json.Number("3")}},
	}
	if n := testing.AllocsPerRun(1000, func() { _ = program.CheckContext(context) }); n != 0 {
		t.Errorf("CheckContext allocates %v times", n)
	}
	group := cedar.NewEntityUID("G", "g")
	entities := cedar.EntityMap{alice: {UID: alice, Parents: cedar.NewEntityUIDSet(group), Attributes: cedar.NewRecord(cedar.RecordMap{"name": cedar.String("alice")})}}
	for _, condition := range []string{
		`context.method == "POST" && context.method != "GET"`, `context.n > 5 && context.n + 1 <= 8 && -context.n < 0 && context.n * 2 - 1 == 13`,
		`context.amount.lessThan(decimal("100.0"))`, `context.ratio == decimal("0.25")`, `context.body.amount < 100`, `context has body.amount && !(context has none)`,
		`context.body.tags.contains("a")`, `context.body.tags.containsAny(["x", "b"])`, `context.body.tags.containsAll(["a", "b"])`, `["GET", "POST"].contains(context.method)`, `!context.body.tags.isEmpty()`,
		`resource.id like "f*"`, `resource has id`, `principal in G::"g"`, `principal in [G::"x", G::"g"]`, `principal is U in G::"g"`, `principal is U`, `principal.name == "alice"`,
		`if context.flag then true else context.none`, `context.flag || context.none`, `principal == U::"alice" && resource != principal`, `action == Action::"read"`,
	} {
		p, _ := compile(t, "permit (principal, action, resource) when { "+condition+" };")
		n := testing.AllocsPerRun(1000, func() {
			env := program.Env{Principal: alice, Action: read, Resource: file, Entities: entities, Itself: true, Fields: context}
			if v := p.Evaluate(0, &env); v != program.Satisfied {
				t.Fatalf("%s = %v", condition, v)
			}
		})
		if n != 0 {
			t.Errorf("%s allocates %v times", condition, n)
		}
	}
}

// FuzzAuthorize compares whatever parses with cedar-go.
func FuzzAuthorize(f *testing.F) {
	f.Add(`permit (principal in G::"g", action, resource is File) when { context.a.b < 3 && resource.id like "*x" } unless { [1, context].contains(2) };`, `{"a": {"b": 2, "c": [1.5, "x", null, {"d": true}]}, "s": "é"}`)
	f.Add(`forbid (principal, action in [Action::"read"], resource == File::"f") when { principal.hasTag("x") || ip("1.2.3.4").isInRange(ip(context.ip)) };`, `{"ip": "1.2.0.0/16"}`)
	f.Add(`permit (principal, action, resource) when { if context has x then decimal("1.0") == context.x else -9223372036854775808 < {a: 1}.a };`, `{"x": 1.0}`)
	group := cedar.NewEntityUID("G", "g")
	entities := cedar.EntityMap{
		alice: {UID: alice, Parents: cedar.NewEntityUIDSet(group), Tags: cedar.NewRecord(cedar.RecordMap{"x": cedar.Long(1)})},
		group: {UID: group, Parents: cedar.NewEntityUIDSet(alice)},
	}
	f.Fuzz(func(t *testing.T, text, context string) {
		if len(text) > 4<<10 || len(context) > 4<<10 {
			return
		}
		set, err := cedar.NewPolicySetFromBytes("fuzz.cedar", []byte(text))
		if err != nil {
			return
		}
		p, err := compileSet(set)
		if err != nil {
			if !errors.Is(err, fault.InvalidArgument) {
				t.Errorf("Compile = %v", err)
			}
			return
		}
		decoder := json.NewDecoder(strings.NewReader(context))
		decoder.UseNumber()
		var fields map[string]any
		if decoder.Decode(&fields) != nil {
			fields = nil
		}
		if program.CheckContext(fields) != nil {
			return
		}
		r := cedar.Request{Principal: alice, Action: read, Resource: file, Context: record(t, fields)}
		same(t, p, set, entities, r)
		for i := range p.Len() {
			raw := program.Env{Principal: alice, Action: read, Resource: file, Entities: entities, Fields: fields}
			whole := program.Env{Principal: alice, Action: read, Resource: file, Entities: entities, Context: r.Context}
			if got, want := p.Evaluate(i, &raw), p.Evaluate(i, &whole); got != want {
				t.Errorf("on the caller's own context policy %d is %v, on Cedar's %v", i, got, want)
			}
		}
	})
}

// record turns a context into Cedar's form.
func record(t *testing.T, fields map[string]any) cedar.Record {
	t.Helper()
	v, ok := cedarValue(t, fields).(cedar.Record)
	if !ok {
		return cedar.Record{}
	}
	return v
}

func cedarValue(t *testing.T, item any) cedar.Value {
	t.Helper()
	switch v := item.(type) {
	case string:
		return cedar.String(strings.ToValidUTF8(v, "\uFFFD"))
	case bool:
		return cedar.Boolean(v)
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return cedar.Long(n)
		}
		return must(t, v.String())
	case []any:
		var items []cedar.Value
		for _, item := range v {
			if item != nil {
				items = append(items, cedarValue(t, item))
			}
		}
		return cedar.NewSet(items...)
	case map[string]any:
		fields := cedar.RecordMap{}
		for name, item := range v {
			if item != nil {
				fields[cedar.String(name)] = cedarValue(t, item)
			}
		}
		return cedar.NewRecord(fields)
	}
	t.Fatalf("a %T", item)
	return nil
}
