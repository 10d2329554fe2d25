package localauthz_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/authztest"
	"creto.dev/authz/localauthz"
	"creto.dev/fault"
	"creto.dev/health"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc/localpqc"
)

// A check that is allowed, or that asks for consent, allocates nothing, from a
// session and from a chain.
func TestNoAllocations(t *testing.T) {
	c := newCompany(t, 1000, 3, 100)
	named, conditional := c.questions(t, 1, false)[0], c.questions(t, 1, true)[0]
	dir := t.TempDir()
	write(t, dir, "p.cedar", authztest.Policies)
	a, err := open(t, dir, map[string][]string{"bot": {"bots"}}, []authz.Extension{&allowance{}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), time.Now(), nhi.Everything(), "alice", "bot"))
	if err != nil {
		t.Fatal(err)
	}
	asked := authz.Request{
		Action: creto.HTTPRequest, Resource: creto.Resource{Type: "Url", ID: "http://shop/refunds"},
		Context: map[string]any{"method": "POST", "body": map[string]any{"amount": json.Number("50.00")}},
	}
	like := authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "gpt-4o"}}
	var failed error
	check := func(a *localauthz.Authorizer, s authz.Session, r authz.Request, want authz.Kind) {
		if d, err := a.Check(t.Context(), s, r); err != nil || d.Kind != want {
			failed = fmt.Errorf("Check = %+v, %w; want %v", d, err, want)
		}
	}
	for name, run := range map[string]func(){
		"a named resource": func() { check(c.authorizer, named.session, named.request, authz.Allow) },
		"a condition":      func() { check(c.authorizer, conditional.session, conditional.request, authz.Allow) },
		"a pattern":        func() { check(a, s, like, authz.Allow) },
		"consent":          func() { check(a, s, asked, authz.RequiresOversight) },
		"from a chain": func() {
			s, err := c.authorizer.Bind(t.Context(), named.chain)
			if err != nil {
				failed = err
			}
			check(c.authorizer, s, named.request, authz.Allow)
		},
	} {
		if n := testing.AllocsPerRun(2000, run); n != 0 || failed != nil {
			t.Errorf("%s: %v allocations, %v", name, n, failed)
		}
	}
}

// While policies are swapped under checks at full speed, each decision is of one
// set, and none is of a set that was replaced before its check began.
func TestSwap(t *testing.T) {
	dir := t.TempDir()
	// The even sets permit x and forbid y, the odd ones the reverse.
	install := func(n int64) {
		permitted, forbidden := "x", "y"
		if n%2 == 1 {
			permitted, forbidden = "y", "x"
		}
		text := fmt.Sprintf(`permit (principal is Creto::Human, action, resource);
@id("%[1]d") permit (principal is Creto::Agent, action, resource == Creto::Model::%[2]q);
@id("%[1]d-not") forbid (principal, action, resource == Creto::Model::%[3]q);`, n, permitted, forbidden)
		path := filepath.Join(dir, "p.cedar")
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Error(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Error(err)
		}
	}
	install(0)
	a, err := open(t, dir, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	chain := nhitest.Chain(t, localpqc.New(), time.Now(), nhi.Everything(), "alice", "boss", "bot")
	var (
		inForce  atomic.Int64 // the set that the last complete Reload loaded
		checks   atomic.Int64
		longest  atomic.Int64
		versions sync.Map // by number of the set
		checkers sync.WaitGroup
	)
	check := func(s authz.Session, i int64) bool {
		id := [2]string{"x", "y"}[i%2]
		atLeast, began := inForce.Load(), time.Now()
		d, err := a.Check(t.Context(), s, authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: id}})
		longest.Store(max(longest.Load(), int64(time.Since(began))))
		checks.Add(1)
		if err != nil || len(d.Policies) == 0 {
			t.Errorf("Check = %+v, %v", d, err)
			return false
		}
		named, forbids := strings.CutSuffix(d.Policies[len(d.Policies)-1].ID, "-not")
		set, err := strconv.ParseInt(named, 10, 64)
		version, _ := versions.LoadOrStore(set, d.Version)
		switch {
		case err != nil || forbids != (d.Kind == authz.Deny) || (d.Kind == authz.Allow) != (set%2 == i%2) || version != d.Version:
			t.Errorf("torn: %s is %v under set %d, %v; the version of that set is %v", id, d.Kind, set, d, version)
		case set < atLeast:
			t.Errorf("stale: %s is decided by set %d when %d was in force", id, set, atLeast)
		default:
			return true
		}
		return false
	}
	ctx, stop := context.WithCancel(t.Context())
	for range 4 {
		s, err := a.Bind(ctx, chain)
		if err != nil {
			t.Fatal(err)
		}
		checkers.Go(func() {
			for i := int64(0); ctx.Err() == nil && check(s, i); i++ {
				continue
			}
		})
	}
	const swaps = 200
	for n := int64(1); n <= swaps && !t.Failed(); n++ {
		install(n)
		if err := a.Reload(t.Context()); err != nil {
			t.Error(err)
		}
		inForce.Store(n)
	}
	stop()
	checkers.Wait()
	t.Logf("%d checks under %d swaps; the longest took %v", checks.Load(), swaps, time.Duration(longest.Load()))
}

// What was asked for before policies changed is laid out when they have: the first
// check under them does without memory, and so without the garbage collector.
func TestSwapWarm(t *testing.T) {
	dir := t.TempDir()
	const policies = `permit (principal is Creto::Human, action, resource);
permit (principal is Creto::Agent, action, resource == Creto::Model::"x");
permit (principal is Creto::Agent, action, resource) when { resource.id like "y/*" };
`
	write(t, dir, "p.cedar", policies)
	a, err := open(t, dir, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), time.Now(), nhi.Everything(), "alice", "bot"))
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		for _, id := range []string{"x", "y/z"} {
			d, err := a.Check(t.Context(), s, authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: id}})
			if err != nil || d.Kind != authz.Allow || d.Version != a.Version() {
				t.Fatalf("Check = %+v, %v", d, err)
			}
		}
	}
	check()
	least := uint64(math.MaxUint64) // whatever else allocates meanwhile
	for i := range 5 {
		write(t, dir, "p.cedar", policies+strings.Repeat("\n", i+1))
		if err := a.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		check()
		runtime.ReadMemStats(&after)
		least = min(least, after.Mallocs-before.Mallocs)
	}
	if least > 0 {
		t.Errorf("the first checks after policies changed allocate %d times", least)
	}
}

// Bind asks for groups each time; while Run is running, not more often than it
// ticks, so that nobody stays in a group for a second.
func TestBindAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "p.cedar", `permit (principal is Creto::Human, action, resource); permit (principal in Creto::Group::"bots", action, resource);`)
		var asked int
		groups := []string{"bots"}
		var broken error
		of := func(context.Context, creto.ID) ([]string, error) {
			asked++
			return groups, broken
		}
		a, err := localauthz.Open(dir, creto.DefaultTenant, of, nil, func(context.Context, localauthz.Change) {})
		if err != nil {
			t.Fatal(err)
		}
		chain := nhitest.Chain(t, localpqc.New(), time.Now(), nhi.Everything(), "alice", "bot")
		bind := func() authz.Session {
			t.Helper()
			s, err := a.Bind(t.Context(), chain)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		kind := func(s authz.Session) authz.Kind {
			t.Helper()
			d, err := a.Check(t.Context(), s, authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "m"}})
			if err != nil {
				t.Fatal(err)
			}
			return d.Kind
		}
		if bind(); asked != 2 {
			t.Errorf("Bind asked for the groups of %d, want 2", asked)
		}
		if bind(); asked != 4 {
			t.Errorf("without Run, a second Bind asked for %d in all, want 4", asked)
		}
		ctx, stop := context.WithCancel(t.Context())
		go func() { _ = a.Run(ctx) }()
		synctest.Wait()
		first := bind()
		if second := bind(); second != first || asked != 6 {
			t.Errorf("a Bind at once is another session, or asked: %d in all, want 6", asked)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if third := bind(); third != first || asked != 8 {
			t.Errorf("a Bind of the same groups a second later: same session %v, asked %d in all; want the same, and 8", third == first, asked)
		}
		groups = nil
		time.Sleep(time.Second)
		synctest.Wait()
		if s := bind(); s == first || kind(s) != authz.Deny {
			t.Errorf("a second after the group was left: %v, want deny", kind(s))
		}
		broken = errors.New("gone")
		time.Sleep(time.Second)
		synctest.Wait()
		if _, err := a.Bind(t.Context(), chain); !errors.Is(err, fault.AuthzUnavailable) {
			t.Errorf("Bind without an answer = %v, want AuthzUnavailable", err)
		}
		stop()
		synctest.Wait()
		broken, groups, asked = nil, []string{"bots"}, 0
		if s := bind(); kind(s) != authz.Allow || asked != 2 {
			t.Errorf("after Run: %v, asked %d; want allow, and 2", kind(s), asked)
		}
	})
}

// More conditions than an entry has room for are evaluated one by one.
func TestManyConditions(t *testing.T) {
	var text strings.Builder
	for i := range 300 {
		fmt.Fprintf(&text, "@id(\"p%03d\") permit (principal, action, resource) when { context.n > %d };\n", i, i)
	}
	want, err := newOracle(text.String())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, "p.cedar", text.String())
	a, err := open(t, dir, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	chain := nhitest.Chain(t, localpqc.New(), time.Now(), nhi.Everything(), "alice", "bot")
	s, err := a.Bind(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 64, 299, 300} {
		r := authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "m"}, Context: map[string]any{"n": n}}
		expected, err := want.check(chain, nil, r)
		if err != nil {
			t.Fatal(err)
		}
		d, err := a.Check(t.Context(), s, r)
		if err != nil || d.Kind != expected.Kind || !slices.Equal(d.Policies, expected.Policies) {
			t.Errorf("with %d: %v by %d policies, %v; want %v by %d", n, d.Kind, len(d.Policies), err, expected.Kind, len(expected.Policies))
		}
	}
}

// What is laid out for sessions is bounded, shared, and freed with them.
func TestTables(t *testing.T) {
	c := newCompany(t, 1000, 3, 100)
	c.questions(t, 64, false)
	used := c.authorizer.TablesUsed()
	if used == 0 {
		t.Fatal("nothing is laid out")
	}
	func() {
		again, err := c.authorizer.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), time.Now(), nhi.Everything(), "someone-0", "x-1", "y-2", "z-3"))
		if err != nil {
			t.Fatal(err)
		}
		r := authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "model-0"}}
		if d, err := c.authorizer.Check(t.Context(), again, r); err != nil || d.Kind != authz.Allow {
			t.Errorf("Check = %+v, %v", d, err)
		}
		if n := c.authorizer.TablesUsed(); n != used {
			t.Errorf("another chain of the same groups takes %d more", n-used)
		}
	}()
	c.authorizer.LimitTables(used)
	other, err := c.authorizer.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), time.Now(), nhi.Everything(), "someone-0", "x-2", "y-1"))
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]authz.Kind{"model-0": authz.Allow, "model-50": authz.Deny} {
		r := authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: id}}
		if d, err := c.authorizer.Check(t.Context(), other, r); err != nil || d.Kind != want {
			t.Errorf("without room, Check of %s = %+v, %v; want %v", id, d, err, want)
		}
	}
	if n := c.authorizer.TablesUsed(); n != used {
		t.Errorf("%d more than the limit are laid out", n-used)
	}
	c.sessions, c.chains = nil, nil
	c.authorizer.Forget()
	for range 200 {
		runtime.GC()
		if c.authorizer.TablesUsed() == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%d are still laid out, for nobody", c.authorizer.TablesUsed())
}

// A session that nobody uses does not keep policies in memory that were replaced.
func TestReplacedPolicies(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "p.cedar", authztest.Policies)
	a, err := open(t, dir, map[string][]string{"bot": {"bots"}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), time.Now(), nhi.Everything(), "alice", "bot"))
	if err != nil {
		t.Fatal(err)
	}
	r := authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "gpt-4"}}
	check := func() {
		t.Helper()
		if d, err := a.Check(t.Context(), s, r); err != nil || d.Kind != authz.Allow || d.Version != a.Version() {
			t.Errorf("Check = %+v, %v", d, err)
		}
	}
	check()
	freed := a.Freed()
	write(t, dir, "p.cedar", authztest.Policies+"// another")
	if err := a.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := 0; !freed(); n++ {
		if n == 200 {
			t.Fatal("the policies before are kept")
		}
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
	check()
}

// Many first checks at once lay a table out once.
func TestFirstChecks(t *testing.T) {
	for range 20 {
		dir := t.TempDir()
		write(t, dir, "p.cedar", authztest.Policies)
		a, err := open(t, dir, map[string][]string{"bot": {"bots"}}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), time.Now(), nhi.Everything(), "alice", "bot"))
		if err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				for id, want := range map[string]authz.Kind{"gpt-4": authz.Allow, "gpt-2": authz.Deny, fmt.Sprint("gpt-", i+10): authz.Allow} {
					if d, err := a.Check(t.Context(), s, authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: id}}); err != nil || d.Kind != want {
						t.Errorf("Check of %s = %+v, %v; want %v", id, d, err, want)
					}
				}
			})
		}
		group.Wait()
	}
}

// slow takes its time in a synctest bubble.
type slow struct{ allowance }

func (*slow) Bind(context.Context, nhi.VerifiedChain) (authz.Evaluator, error) { return &slow{}, nil }

func (*slow) Evaluate(context.Context, authz.Request, bool) (authz.Reservation, *authz.Decision, error) {
	time.Sleep(20 * time.Microsecond)
	return authz.Reservation{}, nil, nil
}

// Health degrades while checks are slow, and makes none.
func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "p.cedar", "permit (principal, action, resource);")
		a, err := open(t, dir, nil, []authz.Extension{&slow{}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if status := a.Health(t.Context()); status.State != health.Healthy {
			t.Errorf("Health = %+v, want healthy", status)
		}
		s, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), time.Now(), nhi.Everything(), "alice", "bot"))
		if err != nil {
			t.Fatal(err)
		}
		for range 64 * 2 * 100 {
			if _, err := a.Check(t.Context(), s, authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "m"}}); err != nil {
				t.Fatal(err)
			}
		}
		if status := a.Health(t.Context()); status.State != health.Degraded || !strings.HasPrefix(status.Reason, "AuthZ slow: 2") {
			t.Errorf("Health after slow checks = %+v, want degraded: AuthZ slow: 2…µs", status)
		}
		time.Sleep(2 * time.Minute)
		if status := a.Health(t.Context()); status.State != health.Healthy {
			t.Errorf("Health two minutes later = %+v, want healthy", status)
		}
	})
}

// A change that shows neither in a file's size nor in its time is found, if
// later.
func TestHiddenChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		install := func(text string) {
			write(t, dir, "p.cedar", text)
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(filepath.Join(dir, "p.cedar"), time.Time{}, old.Truncate(24*time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		install("permit (principal, action, resource);")
		a, err := open(t, dir, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		before := a.Version()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go func() { _ = a.Run(ctx) }()
		time.Sleep(time.Second) // it was read, and is settled
		install("forbid (principal, action, resource);")
		time.Sleep(time.Second)
		synctest.Wait()
		if a.Version() != before {
			t.Error("files are read though nothing shows")
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if a.Version() == before {
			t.Error("the change was not found")
		}
	})
}
