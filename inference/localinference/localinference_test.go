package localinference_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev/fault"
	"creto.dev/health"
	"creto.dev/inference"
	"creto.dev/inference/localinference"
)

func down() error    { return fault.New(op, fault.InferenceProviderUnavailable, "down") }
func timeout() error { return fault.New(op, fault.InferenceTimeout, "slow") }
func limited(d time.Duration) error {
	return fault.After(fault.New(op, fault.InferenceRateLimited, "wait"), d)
}

// What a failure means for the others (R-INF-32…34, B-27).
func TestFallback(t *testing.T) {
	refused := fault.Wrap(op, errors.Join(fault.New(op, fault.InferenceProviderError, "the key"), inference.ErrKeyRefused))
	for _, test := range []struct {
		name  string
		err   error
		calls int  // of the first
		falls bool // to the second
	}{
		{"unavailable", down(), 3, true},
		{"rate limited for long", limited(time.Hour), 1, true},
		{"timeout", timeout(), 2, true},
		{"a refused key", refused, 1, true},
		{"content filtered", fault.New(op, fault.InferenceContentFiltered, "no"), 1, false},
		{"prompt injection", fault.New(op, fault.InferencePromptInjection, "no"), 1, false},
		{"malformed", fault.New(op, fault.InvalidArgument, "no"), 1, false},
		{"too long", fault.New(op, fault.InferenceTokenLimitExceeded, "no"), 1, false},
		{"not found", fault.New(op, fault.InferenceModelNotFound, "no"), 1, false},
		{"not supported", fault.New(op, fault.InferenceNotSupported, "no"), 1, false},
		{"provider error", fault.New(op, fault.InferenceProviderError, "no"), 1, false},
		{"internal", fault.New(op, fault.InferenceInternal, "no"), 1, false},
	} {
		for _, streamed := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				a, b := cloud("a", test.err), cloud("b", nil)
				r := router(t, localinference.Config{}, one(a, false), one(b, false))
				q, served := request("")
				var err error
				if streamed {
					var s inference.Stream
					if s, err = r.CompleteStream(t.Context(), q); err == nil {
						_ = s.Close()
					}
				} else {
					_, err = r.Complete(t.Context(), q)
				}
				if (err == nil) != test.falls || err != nil && fault.CodeOf(err) != fault.CodeOf(test.err) {
					t.Errorf("%s, streamed %v: the call ended with %v", test.name, streamed, err)
				}
				want := inference.Served{Provider: "a", Model: "m", Attempts: test.calls}
				if test.falls {
					want = inference.Served{Provider: "b", Model: "m", Attempts: test.calls + 1}
				}
				if len(a.asked()) != test.calls || *served != want {
					t.Errorf("%s, streamed %v: a was asked %d times, want %d; served %+v, want %+v", test.name, streamed, len(a.asked()), test.calls, *served, want)
				}
			})
		}
	}
}

// Both errors are there, the first one's code counts, and what must not be lost is
// not.
func TestBothErrors(t *testing.T) { synctest.Test(t, testBothErrors) }

func testBothErrors(t *testing.T) {
	secret := errors.New("the second's own words")
	for _, test := range []struct {
		second error
		want   fault.Code
	}{
		{fault.WrapAs(op, fault.InferenceTimeout, secret, "slow"), fault.InferenceProviderUnavailable},
		{fault.WrapAs(op, fault.InvalidArgument, secret, "malformed there"), fault.InferenceProviderUnavailable},
		{fault.WrapAs(op, fault.InferencePromptInjection, secret, "no"), fault.InferencePromptInjection},
		{fault.WrapAs(op, fault.InferenceContentFiltered, secret, "no"), fault.InferenceContentFiltered},
	} {
		first := down()
		r := router(t, localinference.Config{}, one(cloud("a", first), false), one(cloud("b", test.second), false))
		_, _, err := complete(t, r, "")
		if fault.CodeOf(err) != test.want || !errors.Is(err, first) || !errors.Is(err, secret) || strings.Contains(fault.Message(err), secret.Error()) {
			t.Errorf("after %v: %v, said %q", test.second, err, fault.Message(err))
		}
	}
}

// Nothing is tried again once the caller was told a piece (B-24); before, it is.
func TestMidStream(t *testing.T) {
	a, b := cloud("a", nil), cloud("b", nil)
	a.next = func(n int) error {
		if n == 1 {
			return down()
		}
		return nil
	}
	r := router(t, localinference.Config{}, localinference.Provider{Keys: []inference.Model{a}, Concurrency: 1}, one(b, false))
	q, served := request("")
	s, err := r.CompleteStream(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	if a.streams() != 1 {
		t.Errorf("%d streams are open", a.streams())
	}
	text, err := words(t, s)
	if text != "a" || !errors.Is(err, fault.InferenceProviderUnavailable) || len(b.asked()) != 0 || served.Attempts != 1 {
		t.Errorf("the stream said %q and ended with %v; b was asked %d times, %+v", text, err, len(b.asked()), *served)
	}
	if u := s.Usage(); u.CompletionTokens != 2 {
		t.Errorf("usage = %+v", u)
	}
	// The slot is free again, closed or not: a stream that begins with a failure goes
	// to b.
	a.next = func(int) error { return down() }
	before := s
	s, err = r.CompleteStream(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	_ = before.Close()
	text, err = words(t, s)
	_ = s.Close()
	if text != "b b b" || err != nil || a.streams() != 0 || b.streams() != 0 || served.Provider != "b" || served.Attempts != 4 {
		t.Errorf("the stream said %q and ended with %v, %+v; open are %d and %d", text, err, *served, a.streams(), b.streams())
	}
}

// naive says, from the text of the requirements alone, whether a provider may have a
// request.
func naive(cfg localinference.Config, route *localinference.Route, p localinference.Provider, agent, said inference.Classification, named []inference.Classification) bool {
	strategies := []localinference.Strategy{cfg.Strategy}
	if route != nil {
		strategies = append(strategies, route.Strategy)
	}
	list := p.Keys[0].Capabilities().Classifications
	for _, class := range []inference.Classification{agent, said} {
		if class == "" && said != class && agent != class {
			continue
		}
		if class == "" && agent != "" {
			continue // the request says nothing of itself
		}
		if !p.Local {
			if class == "" && slices.Contains(strategies, localinference.ClassificationBased) {
				return false
			}
			if slices.Contains(cfg.LocalClassifications, class) || class != "" && !slices.Contains(named, class) {
				return false
			}
		}
		if len(list) > 0 && !slices.Contains(list, class) {
			return false
		}
	}
	return p.Local || !slices.Contains(strategies, localinference.LocalOnly)
}

// Whatever is configured and whatever fails, nobody is asked who may not be, and
// whoever may be is, unless an answer came before (R-INF-37).
func TestNeverLessProtected(t *testing.T) { synctest.Test(t, testNeverLessProtected) }

func testNeverLessProtected(t *testing.T) {
	classes := []inference.Classification{"", "public", "internal", "restricted", "own", "never-named"}
	pick := func(list []inference.Classification, n int) (some []inference.Classification) {
		for range n {
			if c := list[rand.IntN(len(list))]; c != "" {
				some = append(some, c)
			}
		}
		return some
	}
	strategies := []localinference.Strategy{"", localinference.CloudFirst, localinference.LocalOnly, localinference.ClassificationBased, localinference.CostOptimized, localinference.LatencyOptimized}
	failures := []error{nil, down(), timeout(), limited(time.Hour), fault.New(op, fault.InferenceContentFiltered, "no")}
	asked := 0
	for round := range 3000 {
		cfg := localinference.Config{
			Strategy: strategies[rand.IntN(len(strategies))], FallbackToLocal: rand.IntN(2) == 0, Tenant: "default",
			LocalClassifications: pick(classes[:5], rand.IntN(3)), Prices: []localinference.Price{{Model: "*", Input: "1"}},
		}
		named := append([]inference.Classification{"public", "internal", "restricted"}, cfg.LocalClassifications...)
		agent := classes[rand.IntN(5)]
		if agent != "" {
			cfg.Classified = []localinference.Classified{{Agents: []string{"b*"}, Classification: agent}, {Agents: []string{"*/*"}, Classification: "public"}}
			named = append(named, agent)
		}
		var stubs []*stub
		var providers []localinference.Provider
		for i := range 1 + rand.IntN(4) {
			s := cloud(fmt.Sprintf("p%d", i), failures[rand.IntN(len(failures))])
			s.capabilities.Classifications = pick(classes[:5], rand.IntN(3))
			named = append(named, s.capabilities.Classifications...)
			stubs = append(stubs, s)
			providers = append(providers, one(s, rand.IntN(2) == 0))
		}
		var route *localinference.Route
		if rand.IntN(2) == 0 {
			route = &localinference.Route{Models: []string{"m"}, Strategy: strategies[rand.IntN(len(strategies))]}
			for _, i := range rand.Perm(len(stubs))[:rand.IntN(len(stubs)+1)] {
				route.Targets = append(route.Targets, localinference.Target{Provider: stubs[i].id, Model: "renamed"})
				if route.Strategy == "" {
					route.Targets[len(route.Targets)-1].Weight = rand.IntN(3)
				}
			}
			if len(route.Targets) == 0 && route.Strategy == "" {
				route.Strategy = localinference.CloudFirst
			}
			cfg.Routes = []localinference.Route{*route}
		}
		said := classes[rand.IntN(len(classes))]
		r := router(t, cfg, providers...)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		q, served := request(said)
		_, err := r.Complete(ctx, q)
		cancel()
		for i, s := range stubs {
			may := naive(cfg, route, providers[i], agent, said, named)
			if len(s.asked()) > 0 {
				asked++
				if !may {
					t.Fatalf("round %d: %s (local %v, %v) was asked for a request of %q that says %q, under %+v", round, s.id, providers[i].Local, s.capabilities.Classifications, agent, said, cfg)
				}
			}
			if err == nil && served.Provider == s.id && !may {
				t.Fatalf("round %d: %s served", round, s.id)
			}
		}
		if err != nil && errors.Is(err, fault.InferenceModelNotFound) && served.Provider == "" {
			for i, p := range providers {
				target := route == nil || len(route.Targets) == 0 || slices.ContainsFunc(route.Targets, func(x localinference.Target) bool { return x.Provider == stubs[i].id })
				if target && naive(cfg, route, p, agent, said, named) {
					t.Fatalf("round %d: %v, but %s (local %v, %v) may serve %q, %q under %+v", round, err, stubs[i].id, p.Local, stubs[i].capabilities.Classifications, agent, said, cfg)
				}
			}
		}
	}
	if asked < 500 {
		t.Errorf("only %d providers were asked in all rounds", asked)
	}
}

// A request that says a classification takes that one's route, but not to where it
// could not have gone without saying so.
func TestSayingLeadsNowhereElse(t *testing.T) {
	a, b, l := cloud("a", nil), cloud("b", nil), cloud("l", nil)
	to := func(names ...string) (list []localinference.Target) {
		for _, n := range names {
			list = append(list, localinference.Target{Provider: n})
		}
		return list
	}
	of := func(class inference.Classification, strategy localinference.Strategy, names ...string) localinference.Route {
		rt := localinference.Route{Strategy: strategy, Targets: to(names...)}
		if class != "" {
			rt.Classifications = []inference.Classification{class}
		}
		return rt
	}
	for _, test := range []struct {
		name        string
		known, said inference.Classification
		routes      []localinference.Route
		want        string
	}{
		{"past local_only", "restricted", "public", []localinference.Route{of("public", "", "a"), of("restricted", localinference.LocalOnly)}, ""},
		{"past a local target", "restricted", "public", []localinference.Route{of("public", "", "a"), of("restricted", "", "l")}, ""},
		{"past another target", "restricted", "public", []localinference.Route{of("public", "", "a", "b"), of("restricted", "", "b")}, "b"},
		{"past what is for the unclassified", "", "public", []localinference.Route{of("public", "", "a"), of("", localinference.ClassificationBased)}, ""},
		{"to what is local", "public", "restricted", []localinference.Route{of("restricted", "", "l"), of("public", "", "a")}, "l"},
		{"to some of all", "", "public", []localinference.Route{of("public", "", "b")}, "b"},
		{"the same", "restricted", "restricted", []localinference.Route{of("public", "", "a"), of("restricted", "", "b")}, "b"},
		{"nothing", "restricted", "", []localinference.Route{of("public", "", "a"), of("restricted", "", "b")}, "b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := localinference.Config{Tenant: "default", Routes: test.routes}
			if test.known != "" {
				cfg.Classified = []localinference.Classified{{Agents: []string{"bob"}, Classification: test.known}}
			}
			r := router(t, cfg, one(a, false), one(b, false), one(l, true))
			got, _, err := complete(t, r, test.said)
			if got != test.want || (err == nil) != (test.want != "") || err != nil && !errors.Is(err, fault.InferenceModelNotFound) {
				t.Errorf("%q, %v; want %q", got, err, test.want)
			}
		})
	}
}

func TestOrder(t *testing.T) {
	a, b, l := cloud("a", nil), cloud("b", nil), cloud("l", nil)
	for _, test := range []struct {
		name string
		cfg  localinference.Config
		said inference.Classification
		want string // the order; those after / are not asked
	}{
		{"cloud first, with fallback", localinference.Config{FallbackToLocal: true}, "", "a b l"},
		{"cloud first, without", localinference.Config{}, "", "a b / l"},
		{"local only", localinference.Config{Strategy: localinference.LocalOnly}, "", "l / a b"},
		{"by classification, without one", localinference.Config{Strategy: localinference.ClassificationBased}, "public", "l / a b"},
		{"by classification", localinference.Config{
			Strategy: localinference.ClassificationBased, Tenant: "default", Classified: []localinference.Classified{{Agents: []string{"bob"}, Classification: "internal"}},
		}, "", "a b / l"},
		{"of another tenant", localinference.Config{
			Strategy: localinference.ClassificationBased, Tenant: "default", Classified: []localinference.Classified{{Agents: []string{"acme/*", "al*"}, Classification: "internal"}},
		}, "", "l / a b"},
		{"what it says counts more", localinference.Config{
			Tenant: "default", LocalClassifications: []inference.Classification{"restricted"}, Classified: []localinference.Classified{{Agents: []string{"*"}, Classification: "public"}},
		}, "restricted", "l / a b"},
		{"what it says counts no less", localinference.Config{
			Tenant: "default", LocalClassifications: []inference.Classification{"restricted"}, Classified: []localinference.Classified{{Agents: []string{"*"}, Classification: "restricted"}},
		}, "public", "l / a b"},
		{"a classification that nobody knows", localinference.Config{}, "top-secret", "l / a b"},
		{"targets", localinference.Config{Routes: []localinference.Route{{Targets: []localinference.Target{{Provider: "l"}, {Provider: "b", Model: "other"}}}}}, "", "l b"},
		{"targets, and what stays local", localinference.Config{
			LocalClassifications: []inference.Classification{"restricted"}, Routes: []localinference.Route{{Targets: []localinference.Target{{Provider: "b"}, {Provider: "l"}}}},
		}, "restricted", "l / b"},
		{"another's route", localinference.Config{Routes: []localinference.Route{{Agents: []string{"default/alice"}, Targets: []localinference.Target{{Provider: "l"}}}}}, "", "a b / l"},
		{"another model's", localinference.Config{Routes: []localinference.Route{{Models: []string{"x*"}, Targets: []localinference.Target{{Provider: "l"}}}}}, "", "a b / l"},
		{"another policy's", localinference.Config{Routes: []localinference.Route{{Policies: []string{"q*"}, Targets: []localinference.Target{{Provider: "l"}}}}}, "", "a b / l"},
		{"the policy's", localinference.Config{Routes: []localinference.Route{{Policies: []string{"cheap/*"}, Targets: []localinference.Target{{Provider: "l"}}}}}, "", "l"},
		{"by price", localinference.Config{Strategy: localinference.CostOptimized, Prices: []localinference.Price{{Provider: "b", Model: "m", Input: "1"}, {Provider: "a", Model: "*", Input: "1.000000001"}}}, "", "b a / l"},
		{"by price, bounded", localinference.Config{Strategy: localinference.CostOptimized, MaxCostPerToken: "0.000001", Prices: []localinference.Price{{Provider: "b", Model: "m", Input: "1", Output: "1"}, {Provider: "a", Model: "*", Input: "1.000000001", Output: "1"}}}, "", "b / l a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := router(t, test.cfg, one(a, false), one(b, false), one(l, true))
			q, _ := request(test.said)
			q.Metadata.Policies = []string{"cheap/models"}
			e := r.Explain(q)
			var got []string
			for i, c := range e.Choices {
				if c.Skipped != "" && (i == 0 || e.Choices[i-1].Skipped == "") {
					got = append(got, "/")
				}
				got = append(got, c.Provider)
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("asked are %+v, want %s", e, test.want)
			}
		})
	}
}

func TestWeights(t *testing.T) {
	a, b, c := cloud("a", nil), cloud("b", nil), cloud("c", nil)
	r := router(t, localinference.Config{Routes: []localinference.Route{{Targets: []localinference.Target{
		{Provider: "c"}, {Provider: "a", Weight: 3}, {Provider: "b", Weight: 1},
	}}}}, one(a, false), one(b, false), one(c, false))
	const n = 4000
	for range n {
		if _, _, err := complete(t, r, ""); err != nil {
			t.Fatal(err)
		}
	}
	// Six standard deviations of a binomial of 4,000 by 3/4 are 164.
	if got := len(a.asked()); got < 3*n/4-164 || got > 3*n/4+164 || len(c.asked()) != 0 || len(a.asked())+len(b.asked()) != n {
		t.Errorf("asked were %d, %d and %d", got, len(b.asked()), len(c.asked()))
	}
}

func TestNobody(t *testing.T) {
	l := cloud("a", nil)
	l.capabilities.Models = []string{"llama-*"}
	for text, r := range map[string]*localinference.Router{
		"no model provider is configured":    router(t, localinference.Config{}),
		"no configured provider serves":      router(t, localinference.Config{}, one(l, false)),
		"the strategy local_only keeps":      router(t, localinference.Config{Strategy: localinference.LocalOnly}, one(cloud("a", nil), false)),
		"its price for this model is not":    router(t, localinference.Config{Strategy: localinference.CostOptimized}, one(cloud("a", nil), false)),
		"what is not classified stays local": router(t, localinference.Config{Strategy: localinference.ClassificationBased}, one(cloud("a", nil), false)),
	} {
		_, served, err := complete(t, r, "")
		if fault.CodeOf(err) != fault.InferenceModelNotFound || !strings.Contains(fault.Message(err), text) || served != (inference.Served{}) {
			t.Errorf("%s: %v, %+v", text, err, served)
		}
	}
}

func TestHealth(t *testing.T) { synctest.Test(t, testHealth) }

func testHealth(t *testing.T) {
	sick := cloud("s", nil)
	sick.health = down()
	limit := cloud("t", limited(time.Hour))
	for _, test := range []struct {
		models []*stub
		want   health.Status
	}{
		{[]*stub{cloud("a", nil), cloud("b", nil)}, health.Status{State: health.Healthy}},
		{[]*stub{cloud("a", nil), sick}, health.Status{State: health.Degraded, Reason: "1/2 providers available"}},
		{[]*stub{limit, sick}, health.Status{State: health.Degraded, Reason: "0.5/2 providers available"}},
		{[]*stub{limit, cloud("a", nil)}, health.Status{State: health.Degraded, Reason: "1.5/2 providers available"}},
		{[]*stub{sick}, health.Status{State: health.Unhealthy, Reason: "All inference providers unavailable"}},
	} {
		var providers []localinference.Provider
		for _, m := range test.models {
			providers = append(providers, one(m, false))
		}
		r := router(t, localinference.Config{}, providers...)
		_, _, _ = complete(t, r, "") // so that one rests
		if got := r.Status(t.Context()); got != test.want {
			t.Errorf("Status = %+v, want %+v", got, test.want)
		}
		if err := r.Health(t.Context()); (err == nil) == (test.want.State == health.Unhealthy) {
			t.Errorf("Health = %v of %+v", err, test.want)
		}
	}
}

func TestBuiltInPrices(t *testing.T) {
	table := localinference.BuiltInPrices()
	if _, err := time.Parse(time.DateOnly, table.Date); err != nil || len(table.Sources) == 0 || len(table.Prices) == 0 {
		t.Fatalf("the table is of %q, from %v: %v", table.Date, table.Sources, err)
	}
	if problems := (localinference.Config{Prices: table.Prices}).Problems(); len(problems) > 0 {
		t.Errorf("the table has %v", problems)
	}
	// Exactly: 2 tokens of prompt at 2.50 and 1,000 of answer at 10 dollars a million.
	a := cloud("a", nil)
	r := router(t, localinference.Config{Strategy: localinference.CostOptimized}, one(a, false))
	q, _ := request("")
	q.Model, q.MaxTokens = "gpt-4o-2024-08-06", 1000
	if e := r.Explain(q); len(e.Choices) != 1 || e.Choices[0].Cost != "0.010005" {
		t.Errorf("Explain = %+v", e)
	}
}

func TestRefusesConfig(t *testing.T) {
	for key, cfg := range map[string]localinference.Config{
		"strategy":                    {Strategy: "best"},
		"max_cost_per_token":          {MaxCostPerToken: "1e-6"},
		"max_latency_ms":              {MaxLatencyMS: -1},
		"local_classifications":       {LocalClassifications: []inference.Classification{""}},
		"classified[0].agents":        {Classified: []localinference.Classified{{Classification: "public"}}},
		"routes[0].targets":           {Routes: []localinference.Route{{Models: []string{"m"}}}},
		"routes[0].targets[0].weight": {Routes: []localinference.Route{{Strategy: localinference.CloudFirst, Targets: []localinference.Target{{Provider: "a", Weight: 1}}}}},
		"routes[0].models":            {Routes: []localinference.Route{{Models: []string{"*a"}, Strategy: localinference.CloudFirst}}},
		"prices[0].input":             {Prices: []localinference.Price{{Model: "m", Input: "-1"}}},
		"prices[0].output":            {Prices: []localinference.Price{{Model: "m", Input: "1", Output: "1.0000000001"}}},
	} {
		problems := cfg.Problems()
		if _, ok := problems[key]; !ok || len(problems) != 1 {
			t.Errorf("%s: Problems = %v", key, problems)
		}
		if _, err := localinference.New(cfg, nil, nil); !errors.Is(err, fault.InvalidArgument) || !strings.Contains(fault.Message(err), key) {
			t.Errorf("%s: New = %v", key, err)
		}
	}
}

// Vectors are asked of who has them, and nobody else.
func TestEmbed(t *testing.T) {
	without, with := cloud("without", nil), cloud("with", nil)
	with.capabilities.Embeddings = true
	r := router(t, localinference.Config{}, localinference.Provider{Keys: []inference.Model{without}}, localinference.Provider{Keys: []inference.Model{with}})
	var served inference.Served
	wanted := inference.EmbedRequest{Model: "m", Input: []string{"x"}, Metadata: inference.RequestMetadata{Served: &served}}
	if answer, err := r.Embed(t.Context(), wanted); err != nil || answer.Model != "with" || served.Attempts != 1 || served.Provider != "with" {
		t.Errorf("Embed = %+v, %v by %+v", answer, err, served)
	}
	r = router(t, localinference.Config{}, localinference.Provider{Keys: []inference.Model{without}})
	if _, err := r.Embed(t.Context(), wanted); !errors.Is(err, fault.InferenceNotSupported) || served.Attempts != 0 {
		t.Errorf("Embed without embeddings = %v after %d attempts", err, served.Attempts)
	}
}

// Who may not see a request may not see its texts by another way; local ones may, if
// they may at all.
func TestEmbedWithin(t *testing.T) {
	house := func(cfg localinference.Config) (*localinference.Router, map[string]*stub) {
		stubs := map[string]*stub{}
		var providers []localinference.Provider
		for _, name := range []string{"a", "b", "house"} {
			s := cloud(name, nil)
			s.capabilities.Embeddings = true
			stubs[name], providers = s, append(providers, localinference.Provider{Keys: []inference.Model{s}, Local: name == "house"})
		}
		stubs["house"].capabilities.Classifications = []inference.Classification{"public"}
		stubs["house"].capabilities.Models = []string{"e"}
		return router(t, cfg, providers...), stubs
	}
	cfg := localinference.Config{Tenant: "default", Routes: []localinference.Route{{Models: []string{"m"}, Targets: []localinference.Target{{Provider: "b"}}}}}
	r, stubs := house(cfg)
	q, _ := request("")
	if got := r.Reaches(q); !slices.Equal(got, []string{"b"}) {
		t.Fatalf("Reaches = %q", got)
	}
	for _, test := range []struct {
		within []string
		class  inference.Classification
		want   string // who answers
	}{
		{nil, "", "a"}, {[]string{"b"}, "", "b"}, {[]string{"b", "a"}, "", "a"}, {[]string{}, "", ""}, {[]string{"nobody"}, "", ""},
	} {
		var served inference.Served
		_, err := r.Embed(t.Context(), inference.EmbedRequest{Model: "e", Input: []string{"x"}, Within: test.within, Metadata: inference.RequestMetadata{Served: &served, Classification: test.class}})
		if served.Provider != test.want || (err == nil) != (test.want != "") {
			t.Errorf("within %q: %q answered, %v", test.within, served.Provider, err)
		}
	}
	// The one that may see it fails: nobody else is asked, in place of it.
	stubs["b"].complete = func(context.Context, inference.Request) error { return down() }
	asked := len(stubs["a"].asked())
	if _, err := r.Embed(t.Context(), inference.EmbedRequest{Model: "e", Input: []string{"x"}, Within: []string{"b"}, Metadata: inference.RequestMetadata{Served: new(inference.Served)}}); err == nil || len(stubs["a"].asked()) != asked {
		t.Errorf("with b down: %v, a was asked %d times more", err, len(stubs["a"].asked())-asked)
	}
	// What is local may see what it is cleared for.
	r, _ = house(localinference.Config{Tenant: "default", Classified: []localinference.Classified{{Agents: []string{"*"}, Classification: "public"}}})
	q, _ = request("")
	var served inference.Served
	if _, err := r.Embed(t.Context(), inference.EmbedRequest{Model: "e", Input: []string{"x"}, Within: []string{}, Metadata: inference.RequestMetadata{Agent: q.Metadata.Agent, Served: &served}}); err != nil || served.Provider != "house" {
		t.Errorf("in the house: %q, %v", served.Provider, err)
	}
}
