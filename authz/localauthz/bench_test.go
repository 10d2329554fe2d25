package localauthz_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/localauthz"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc/localpqc"
)

// checkBudget is what R-NUM-1 asks of a check from a session: 10,000 policies, a
// human and three agents, with quota.
const checkBudget = 168 * time.Nanosecond

// allowance grants without end, at the price of an atomic operation.
type allowance struct{ used atomic.Int64 }

func (a *allowance) Name() string { return "allowance" }

func (a *allowance) Bind(context.Context, nhi.VerifiedChain) (authz.Evaluator, error) {
	return &allowance{}, nil
}

func (a *allowance) Evaluate(_ context.Context, _ authz.Request, reserve bool) (authz.Reservation, *authz.Decision, error) {
	if !reserve {
		return authz.Reservation{}, nil, nil
	}
	a.used.Add(1)
	return authz.Reservation{ID: 1, Amount: 1}, nil, nil
}

func (*allowance) Refund(authz.Reservation) {}

// company is a set of policies for teams of ten each, and chains of people and
// agents of neighbouring teams.
type company struct {
	authorizer *localauthz.Authorizer
	dir        string
	chains     []nhi.VerifiedChain
	sessions   []authz.Session
	teams      int
}

// teamPolicies writes the ten policies of a team: its members may call the models
// of the teams around, but for one; they may fetch what is small; and they get
// secrets from the gateway alone.
func teamPolicies(text *strings.Builder, team, teams int) {
	group := "Creto::Group::\"team-" + strconv.Itoa(team) + "\""
	for near := range 7 {
		fmt.Fprintf(text, "permit (principal in %s, action == Creto::Action::\"call_model\", resource == Creto::Model::\"model-%d\");\n", group, (team+near+teams-3)%teams)
	}
	fmt.Fprintf(text, "forbid (principal in %s, action == Creto::Action::\"call_model\", resource == Creto::Model::\"secret-%d\");\n", group, team)
	fmt.Fprintf(text, "permit (principal in %s, action == Creto::Action::\"http_request\", resource is Creto::Url) when { context.method == \"POST\" && context.body.amount < 100 && resource.id like \"http://shop/*\" };\n", group)
	fmt.Fprintf(text, "forbid (principal in %s, action == Creto::Action::\"access_secret\", resource) unless { context has delivery && context.delivery == \"gateway\" };\n", group)
}

// companyChains is how many callers take turns in a benchmark.
const companyChains = 1000

func newCompany(b testing.TB, policies, depth, chains int) *company {
	c := &company{teams: policies / 10}
	var text strings.Builder
	for team := range c.teams {
		teamPolicies(&text, team, c.teams)
	}
	dir := b.TempDir()
	c.dir = dir
	write(b, dir, "teams.cedar", text.String())
	of := func(_ context.Context, id creto.ID) ([]string, error) {
		return []string{"team" + id.Name[strings.LastIndexByte(id.Name, '-'):]}, nil
	}
	a, err := localauthz.Open(dir, creto.DefaultTenant, of, []authz.Extension{&allowance{}}, func(context.Context, localauthz.Change) {})
	if err != nil {
		b.Fatal(err)
	}
	c.authorizer = a
	ctx, stop := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() { _ = a.Run(ctx); close(done) }()
	b.Cleanup(func() { stop(); <-done })
	p := localpqc.New()
	for i := range chains { // as many, however many teams there are
		agents := make([]string, max(depth, 1))
		for d := range agents {
			agents[d] = fmt.Sprintf("agent-%d-%d", i, (i+min(d+1, depth))%c.teams)
		}
		chain := nhitest.Chain(b, p, time.Now(), nhi.Everything(), fmt.Sprintf("human-%d-%d", i, i%c.teams), agents...)
		s, err := a.Bind(b.Context(), chain)
		if err != nil {
			b.Fatal(err)
		}
		c.chains, c.sessions = append(c.chains, chain), append(c.sessions, s)
	}
	return c
}

// question is one request of a benchmark.
type question struct {
	chain   nhi.VerifiedChain
	session authz.Session
	request authz.Request
}

// questions returns n requests that are allowed.
func (c *company) questions(b testing.TB, n int, withContext bool) []question {
	list := make([]question, n)
	for i := range list {
		at := i * 7919 % len(c.chains)
		team := at % c.teams
		q := question{chain: c.chains[at], session: c.sessions[at]}
		q.request = authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: fmt.Sprintf("model-%d", (team+i%3)%c.teams)}}
		if withContext {
			q.request = authz.Request{
				Action: creto.HTTPRequest, Resource: creto.Resource{Type: "Url", ID: fmt.Sprintf("http://shop/orders/%d", i)},
				Context: map[string]any{"method": "POST", "body": map[string]any{"amount": json.Number("50"), "note": "for tea"}},
			}
		}
		if d, err := c.authorizer.Peek(b.Context(), q.session, q.request); err != nil || d.Kind != authz.Allow {
			b.Fatalf("%v: %+v, %v; want allow", q.request, d, err)
		}
		list[i] = q
	}
	return list
}

// BenchmarkCheck defends checkBudget.
func BenchmarkCheck(b *testing.B) {
	for _, policies := range []int{10, 100, 1_000, 10_000} {
		for _, depth := range []int{0, 3} {
			c := newCompany(b, policies, depth, companyChains)
			for _, requests := range []int{64, 4096} {
				for _, how := range []string{"session", "strings", "context"} {
					spread := map[int]string{64: "hot", 4096: "spread"}[requests]
					b.Run(fmt.Sprintf("%s/n=%d/depth=%d/%s", how, policies, depth, spread), func(b *testing.B) {
						list := c.questions(b, requests, how == "context")
						ctx := b.Context()
						b.ReportAllocs()
						for i := 0; b.Loop(); i++ {
							q := &list[i%len(list)]
							session := q.session
							if how == "strings" {
								var err error
								if session, err = c.authorizer.Bind(ctx, q.chain); err != nil {
									b.Fatal(err)
								}
							}
							d, err := c.authorizer.Check(ctx, session, q.request)
							if err != nil || d.Kind != authz.Allow {
								b.Fatalf("%+v, %v", d, err)
							}
						}
						if per := b.Elapsed() / time.Duration(b.N); how == "session" && per > checkBudget {
							b.Logf("%v a check, budget %v", per, checkBudget)
						}
					})
				}
			}
		}
	}
}

// BenchmarkCheckParallel shows what more cores bring: ns/op is the time that one
// core's worth of checks take together.
func BenchmarkCheckParallel(b *testing.B) {
	c := newCompany(b, 10_000, 3, companyChains)
	list := c.questions(b, 4096, false)
	var started atomic.Int64
	b.ResetTimer()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		// Each core has its own callers, or it is their quota that is measured.
		for i := int(started.Add(1)) * len(list) / 2; pb.Next(); i++ {
			q := &list[i%len(list)]
			if d, err := c.authorizer.Check(b.Context(), q.session, q.request); err != nil || d.Kind != authz.Allow {
				b.Errorf("%+v, %v", d, err)
				return
			}
		}
	})
}

// BenchmarkOpen is what it takes to read and compile 10,000 policies.
func BenchmarkOpen(b *testing.B) {
	var text strings.Builder
	for team := range 1000 {
		teamPolicies(&text, team, 1000)
	}
	dir := b.TempDir()
	write(b, dir, "teams.cedar", text.String())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := open(b, dir, nil, nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSwap is the first check of each of many sessions after 10,000 policies
// were replaced; the longest is reported as well.
func BenchmarkSwap(b *testing.B) {
	c := newCompany(b, 10_000, 3, companyChains)
	list := c.questions(b, len(c.sessions), false)
	var text strings.Builder
	for team := range c.teams {
		teamPolicies(&text, team, c.teams)
	}
	var first []time.Duration
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		write(b, c.dir, "teams.cedar", text.String()+fmt.Sprintf("// %d\n", n))
		if err := c.authorizer.Reload(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for i := range list {
			q := &list[i]
			began := time.Now()
			if d, err := c.authorizer.Check(b.Context(), q.session, q.request); err != nil || d.Kind != authz.Allow {
				b.Fatalf("%+v, %v", d, err)
			}
			first = append(first, time.Since(began))
		}
	}
	slices.Sort(first)
	b.ReportMetric(float64(first[len(first)/2]), "p50-ns/check")
	b.ReportMetric(float64(first[len(first)*99/100]), "p99-ns/check")
	b.ReportMetric(float64(first[len(first)-1]), "max-ns/check")
}

// BenchmarkDeny is a denial, which is explained.
func BenchmarkDeny(b *testing.B) {
	c := newCompany(b, 10_000, 3, companyChains)
	q := c.questions(b, 1, false)[0]
	q.request.Resource.ID = "secret-0"
	b.ReportAllocs()
	for b.Loop() {
		if d, err := c.authorizer.Check(b.Context(), q.session, q.request); err != nil || d.Kind != authz.Deny {
			b.Fatalf("%+v, %v", d, err)
		}
	}
}
