package cache_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev/inference"
	"creto.dev/inference/cache"
	"creto.dev/inference/inferencetest"
)

// space is an embedder in which a test says where texts lie; all texts that it does not
// name lie at one place, as alike as can be.
type space struct {
	mu    sync.Mutex // guards asked
	asked []inference.EmbedRequest

	at     func(text string) []float32
	by     inference.Served
	err    error
	wait   time.Duration
	change func(*inference.EmbedResponse)
}

func (s *space) Embed(ctx context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	s.mu.Lock()
	s.asked = append(s.asked, r)
	s.mu.Unlock()
	if s.wait > 0 {
		select {
		case <-ctx.Done():
			return inference.EmbedResponse{}, ctx.Err()
		case <-time.After(s.wait):
		}
	}
	if s.err != nil {
		return inference.EmbedResponse{}, s.err
	}
	*r.Metadata.Served = s.by
	var response inference.EmbedResponse
	for _, text := range r.Input {
		at := []float32{3, 0, 4}
		if s.at != nil {
			at = s.at(text)
		}
		response.Embeddings = append(response.Embeddings, at)
	}
	if s.change != nil {
		s.change(&response)
	}
	return response, nil
}

func (s *space) calls() []inference.EmbedRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func semantic(change ...func(*cache.Config)) cache.Config {
	cfg := all()
	cfg.Rules[0].Semantic, cfg.Semantic = true, cache.Semantic{Model: "embed-1"}
	for _, f := range change {
		f(&cfg)
	}
	return cfg
}

func paraphrases(cfg *cache.Config) { cfg.Semantic.Paraphrases = true }

// asking is a request with a way to ask for vectors.
func asking(s *space, text string, change ...func(*inference.Request)) inference.Request {
	r := ask()
	r.Messages = []inference.Message{{Role: "system", Content: inference.Text("Be brief.")}, {Role: "user", Content: inference.Text(text)}}
	if s != nil {
		r.Metadata.Embedder = s
	}
	for _, f := range change {
		f(&r)
	}
	return r
}

// Who asks the same in another form gets the answer, of nobody, and is told how it was
// found; who may see the texts is who may see the request.
func TestSemantic(t *testing.T) {
	for name, way := range ways(t) {
		if name == "embedded" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			near := map[string][]float32{"What is the capital of France?": {1, 0}, "please tell me what the capital of France is": {0.98, 0.198997}}
			s := &space{at: func(text string) []float32 { return near[text] }, by: inference.Served{Provider: "e", Model: "embed-1"}}
			inner := new(counted)
			c := open(t, semantic(), inner, nil)
			if said, _, err := way(c, asking(s, "What is the capital of France?")); err != nil || said != "answer 1" || len(s.calls()) != 0 {
				t.Fatalf("first: %q, %v, after %d calls for vectors", said, err, len(s.calls()))
			}
			for i := range 2 {
				r := asking(s, "please tell me what the capital of France is")
				said, used, err := way(c, r)
				want := inference.Served{Provider: "p", Model: "m-1", Cache: inference.CacheSemantic, Similarity: "0.980"}
				if err != nil || said != "answer 1" || used.TotalTokens() != 0 || *r.Metadata.Served != want {
					t.Errorf("hit %d: %q, %+v, %v, %+v", i, said, used, err, r.Metadata.Served)
				}
			}
			if inner.asked() != 1 {
				t.Errorf("the provider was asked %d times", inner.asked())
			}
			calls := s.calls()
			// The kept text's vector is asked for once.
			if len(calls) != 2 || len(calls[0].Input) != 2 || len(calls[1].Input) != 1 || calls[0].Model != "embed-1" || !slices.Equal(calls[0].Within, []string{"a", "p"}) {
				t.Errorf("asked for vectors: %+v", calls)
			}
			r := asking(s, "What is the capital of France?")
			if said, _, err := way(c, r); err != nil || said != "answer 1" || r.Metadata.Served.Cache != inference.CacheHit || r.Metadata.Served.Similarity != "" || len(s.calls()) != 2 {
				t.Errorf("exactly the same: %q, %v, %+v, %d calls for vectors", said, err, r.Metadata.Served, len(s.calls()))
			}
		})
	}
}

// formsOf are pairs that say the same in other forms.
var formsOf = [][2]string{
	{"What is the capital of France?", "what is the capital of France"},
	{"What's the capital of France?", "Please tell me what the capital of France is."},
	{"Hello, could you please summarise the report?", "Summarise the report?"},
	{"Summarise  the report. Thanks!", "summarise the report"},
	{"Don't delete it.", "do not delete it"},
	{"How is the weather in Oslo", "Hi! How's the weather in Oslo?"},
}

// paraphrasesOf are pairs that say the same in other words.
var paraphrasesOf = [][2]string{
	{"How do I reset my password?", "What are the steps to reset my password?"},
	{"Explain photosynthesis", "Describe how photosynthesis works"},
	{"Which payment methods are supported by Acme?", "How do customers pay Acme?"},
}

// neverAlike are pairs that ask for something else, though embeddings find them alike:
// most are of the reports named in D-107.
var neverAlike = [][2]string{
	{"Refund 100 euros", "Refund 1000 euros"}, {"Refund 100 euros", "refund 100.0 euros"}, {"Refund $100", "Refund €100"}, {"refund ten euros", "refund twenty euros"},
	{"What happened on 2024-05-01?", "What happened on 2024-05-02?"}, {"What is due on Monday?", "What is due on Friday?"}, {"revenue in March", "revenue in May"},
	{"Do delete the file", "Do not delete the file"}, {"You can delete it", "You can't delete it"}, {"It is safe to proceed", "It isn't safe to proceed"},
	{"Is it safe?", "Is it unsafe?"}, {"Is this legal here", "Is this illegal here"}, {"Pay with a card", "Pay without a card"},
	{"How do I turn on dark mode?", "How do I turn off dark mode?"}, {"How to enable the feature", "How to disable the feature"}, {"Is port 6379 open by default?", "Is port 6379 closed by default?"},
	{"Is port 6379 open by default?", "Is port 6380 open by default?"},
	{"merge develop into main", "merge main into develop"}, {"copy the config to the backup", "copy the backup to the config"}, {"rename old.go to new.go", "rename new.go to old.go"},
	{"replace foo with bar", "replace bar with foo"}, {"revert the fix that broke the test", "revert the test that broke the fix"}, {"Did Ann pay Bob", "Did Bob pay Ann"},
	{"how do I delete this branch", "how do I delete this repo"}, {"delete the branch", "delete the remote branch"}, {"delete all branches", "delete merged branches"},
	{"review my changes", "review your changes"}, {"send it to us", "send it to them"}, {"run it before the deploy", "run it after the deploy"},
	{"What is the capital of France?", "What is the capital of Germany?"}, {"Who is Ann Smith?", "Who is Ann Jones?"}, {"who leads Apple", "who leads Amazon"},
	{`Translate "bank" please`, `Translate "bench" please`}, {"Translate 'open' into French", "Translate 'closed' into French"}, {"grep `a b`", "grep `b a`"}, {`say “yes”`, `say “no”`},
	{"what is the maximum", "what is the minimum"}, {"at least five", "at most five"}, {"more than 3 items", "fewer than 3 items"}, {"only the first page", "all but the first page"},
	{"Convert 5 USD to EUR", "Convert 5 EUR to USD"}, {"--max-cost", "--max-heads"}, {"internal/awsconf", "internal/executor"}, {"x = a + b", "x = a - b"}, {"f(x)[0]", "f(x)[1]"},
	{"Delete it.", "Delete it?"}, {"eats, shoots and leaves", "eats shoots and leaves"}, {"polish my text", "my Polish text"}, {"Was the US right", "Was the us right"},
	{"line one\nline two", "line one line two"}, {"\tx", "  x y"}, {"東京の天気は", "大阪の天気は"}, {"Ist das erlaubt", "Ist das nicht erlaubt"}, {"C'est permis", "Ce n'est pas permis"},
	{"пить можно", "пить нельзя"}, {"ｒefund 100", "refund 200"}, {"refund 1\u200b00", "refund 100"}, {"pay paypal.com", "pay pаypal.com"}, {"version 1.2.3 notes", "version 1.3.2 notes"},
	{"explain how customers pay suppliers", "suppliers pay customers, describe briefly what happens"}, {"summarise the chapter about whales hunting squid", "summarise the chapter about sharks hunting seals"},
	{"explain authorised bank payments", "what counts as unauthorised bank payments overall"}, {"\xff", "\xfe"}, {"", " "}, {"a\x00b", "ab"}, {"can you delete files", "delete files"}, {"do you know Bob", "Bob"},
}

// Whatever vectors say: who asks something else gets an answer of its own.
func TestWords(t *testing.T) {
	check := func(pair [2]string, paraphrases, want bool) {
		t.Helper()
		if a, b := cache.Alike(pair[0], pair[1], paraphrases), cache.Alike(pair[1], pair[0], paraphrases); a != want || b != want {
			t.Errorf("%q and %q, paraphrases %v: %v and %v, want %v", pair[0], pair[1], paraphrases, a, b, want)
		}
		s := new(space)
		cfg := semantic()
		cfg.Semantic.Paraphrases = paraphrases
		c := open(t, cfg, new(counted), nil)
		for i, text := range pair {
			response, err := c.Complete(t.Context(), asking(s, text))
			if same := i == 1 && want; err != nil || (response.Choices[0].Message.Text() == "answer 1") != (i == 0 || same) {
				t.Errorf("%q after %q: %v, %v", text, pair[0], response.Choices, err)
			}
		}
	}
	for _, pair := range neverAlike {
		check(pair, false, false)
		check(pair, true, false)
	}
	for _, pair := range formsOf {
		check(pair, false, true)
		check(pair, true, true)
	}
	for _, pair := range paraphrasesOf {
		check(pair, false, false)
		check(pair, true, true)
	}
}

// FuzzWords: to be alike has no direction, and a digit that changes is a miss.
func FuzzWords(f *testing.F) {
	for _, pair := range slices.Concat(neverAlike, formsOf, paraphrasesOf) {
		f.Add(pair[0], pair[1], uint8(0))
	}
	f.Fuzz(func(t *testing.T, a, b string, at uint8) {
		if len(a)+len(b) > 8<<10 {
			t.Skip("it is not looked for")
		}
		for _, paraphrases := range []bool{false, true} {
			if cache.Alike(a, b, paraphrases) != cache.Alike(b, a, paraphrases) {
				t.Errorf("%q and %q: it depends on who was first", a, b)
			}
			if cache.Alike(a, b, false) && !cache.Alike(a, b, true) {
				t.Errorf("%q and %q are alike in form and not in words", a, b)
			}
		}
		digits := func(s string) string {
			return strings.Map(func(c rune) rune {
				if '0' <= c && c <= '9' {
					return c
				}
				return -1
			}, s)
		}
		if digits(a) != digits(b) && cache.Alike(a, b, true) {
			t.Errorf("%q and %q have other digits", a, b)
		}
		if i := int(at) % (len(a) + 1); strings.ContainsAny(digits(a), "1") && i >= 0 {
			if other := strings.Replace(a, "1", "7", 1); cache.Alike(a, other, true) {
				t.Errorf("%q and %q are alike", a, other)
			}
		}
	})
}

// Of two requests whose texts are alike, a difference in anything else is a miss.
func TestNothingElseMayDiffer(t *testing.T) {
	request := func(s *space, text string) inference.Request {
		r := full()
		r.Messages = []inference.Message{r.Messages[0], {Role: "user", Content: inference.Text("earlier")}, {Role: "assistant", Content: inference.Text("so")}, {Role: "user", Name: "n", Content: []inference.Part{{Type: "text", Text: text}}}}
		r.Tools, r.ToolChoice = nil, nil
		r.Metadata.Embedder = s
		return r
	}
	change := func(r *inference.Request) []edit { return edits("", reflect.ValueOf(r).Elem()) }
	cfg := semantic(paraphrases, func(c *cache.Config) { c.Rules[0].AnyTemperature = true })
	r := request(nil, "x")
	n, hits := len(change(&r)), 0
	free := map[string]bool{".Metadata.Sandbox": true, ".Metadata.TraceID": true, ".Metadata.IdempotencyKey": true, ".Metadata.Served=new": true}
	for i := range n {
		s := new(space)
		c := open(t, cfg, new(counted), nil)
		if _, err := c.Complete(t.Context(), request(s, "What is it")); err != nil {
			t.Fatal(err)
		}
		r := request(s, "what is it?")
		edit := change(&r)[i]
		edit.do()
		response, err := c.Complete(t.Context(), r)
		hit := response.Choices[0].Message.Text() == "answer 1"
		if hit {
			hits++
		}
		if err != nil || hit != free[strings.TrimSuffix(edit.path, "'")] {
			t.Errorf("%s changed: %v, %v", edit.path, response.Choices, err)
		}
	}
	if n < 80 || hits < len(free) {
		t.Errorf("%d edits, %d hits", n, hits)
	}
}

// Nobody gets an answer to another's question, whatever is asked in whatever order.
func TestSemanticIsolation(t *testing.T) {
	c := open(t, semantic(paraphrases, func(c *cache.Config) { c.MaxBytes = 64 << 10 }), new(counted), nil)
	random, s, owner := rand.New(rand.NewPCG(1, 2)), new(space), map[string]string{}
	semantics := 0
	for range 4000 {
		pick := func(list ...string) string { return list[random.IntN(len(list))] }
		tenant, agent, model, system := pick("default", "acme"), pick("bob", "ann"), pick("m", "n"), pick("s", "S")
		pair := formsOf[1+2*random.IntN(3)]
		r := asking(s, pick(pair[:]...)+pick("", " "))
		r.Model, r.Metadata.Agent.Tenant, r.Metadata.Agent.Name, r.Metadata.Policies = model, tenant, agent, []string{pick("p", "q")}
		r.Messages[0].Content = inference.Text(system)
		response, err := c.Complete(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		who := fmt.Sprint(tenant, agent, model, system, r.Metadata.Policies, pair)
		said := response.Choices[0].Message.Text()
		if before, ok := owner[said]; ok && before != who {
			t.Fatalf("%s got what %s was answered", who, before)
		}
		owner[said] = who
		if r.Metadata.Served.Cache == inference.CacheSemantic {
			semantics++
		}
		if random.IntN(500) == 0 {
			c.Clear()
		}
	}
	if said, kept := cache.Bytes(c); semantics < 100 || said != kept || said > 64<<10 {
		t.Errorf("%d answers to what is alike; %d bytes are said to be kept, %d are", semantics, said, kept)
	}
}

// What is no text alone, or may not be compared, is a matter of exactness.
func TestNotAlike(t *testing.T) {
	text := func(p inference.Part) func(*inference.Request) {
		return func(r *inference.Request) { r.Messages[1].Content = append(r.Messages[1].Content, p) }
	}
	for name, test := range map[string]struct {
		cfg    func(*cache.Config)
		change func(*inference.Request)
	}{
		"the rule says no":        {cfg: func(c *cache.Config) { c.Rules[0].Semantic = false }},
		"nobody may ask":          {change: func(r *inference.Request) { r.Metadata.Embedder = nil }},
		"the temperature is high": {change: func(r *inference.Request) { r.Temperature = "0.7" }},
		"no store":                {change: func(r *inference.Request) { r.Metadata.NoStore = true }},
		"tools":                   {change: func(r *inference.Request) { r.Tools = []inference.Tool{{Name: "f"}} }},
		"a result of a tool": {change: func(r *inference.Request) {
			r.Messages = []inference.Message{{Role: "assistant", ToolCalls: []inference.ToolCall{{ID: "1", Name: "f"}}}, {Role: "tool", ToolCallID: "1", Content: inference.Text("x")}, r.Messages[1]}
		}},
		"an image": {change: text(inference.Part{Type: "image_url", Image: &inference.Image{URL: "data:x"}})},
		"two texts": {change: func(r *inference.Request) {
			r.Messages[1].Content = []inference.Part{{Type: "text", Text: "a"}, {Type: "text", Text: r.Messages[1].Text()}}
		}},
		"reasoning": {change: func(r *inference.Request) {
			r.Messages[0].Content = []inference.Part{{Text: "t", Reasoning: &inference.Reasoning{}}}
		}},
		"the assistant's last": {change: func(r *inference.Request) { r.Messages[1].Role = "assistant" }},
		"a long text": {change: func(r *inference.Request) {
			r.Messages[1].Content = inference.Text(r.Messages[1].Text() + strings.Repeat(" x", 4<<10))
		}},
		"far": {cfg: func(c *cache.Config) { c.Semantic.Threshold = 1 }},
	} {
		s := &space{at: func(text string) []float32 { return []float32{1, float32(len(text)) / 100} }}
		cfg := semantic()
		if test.cfg != nil {
			test.cfg(&cfg)
		}
		if test.change == nil {
			test.change = func(*inference.Request) {}
		}
		c := open(t, cfg, new(counted), nil)
		for i, asked := range []string{"What is it?", "what is it"} {
			if response, err := c.Complete(t.Context(), asking(s, asked, test.change)); err != nil || response.Choices[0].Message.Text() != "answer "+strconv.Itoa(i+1) {
				t.Errorf("%s, call %d: %v, %v", name, i, response.Choices, err)
			}
		}
		if n := len(s.calls()); n > 0 && name != "far" {
			t.Errorf("%s: vectors were asked for", name)
		}
	}
}

// Without vectors an answer is given all the same, by the provider, and for a while
// nobody asks for any on the agent's account.
func TestNoVectors(t *testing.T) {
	nan, huge := float32(math.NaN()), float32(math.Inf(1))
	for name, s := range map[string]*space{
		"an error":        {err: errors.New("no")},
		"a slow one":      {wait: time.Hour},
		"too few":         {change: func(r *inference.EmbedResponse) { r.Embeddings = r.Embeddings[:1] }},
		"too many":        {change: func(r *inference.EmbedResponse) { r.Embeddings = append(r.Embeddings, []float32{1}) }},
		"none":            {change: func(r *inference.EmbedResponse) { r.Embeddings = nil }},
		"no dimensions":   {at: func(string) []float32 { return nil }},
		"no length":       {at: func(string) []float32 { return []float32{0, 0} }},
		"no number":       {at: func(string) []float32 { return []float32{1, nan} }},
		"infinite":        {at: func(string) []float32 { return []float32{huge, 1} }},
		"many dimensions": {at: func(string) []float32 { return make([]float32, 1<<20) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := open(t, semantic(func(c *cache.Config) { c.TTL = time.Hour }), new(counted), nil)
				began := time.Now()
				for i, test := range []struct {
					text  string
					asked int
				}{{"What is it?", 0}, {"what is it", 1}, {"What is it", 1}} {
					response, err := c.Complete(t.Context(), asking(s, test.text))
					if err != nil || response.Choices[0].Message.Text() != "answer "+strconv.Itoa(i+1) || len(s.calls()) != test.asked {
						t.Errorf("%q: %v, %v; vectors were asked for %d times", test.text, response.Choices, err, len(s.calls()))
					}
				}
				if took := time.Since(began); took > cache.DefaultSemanticTimeout {
					t.Errorf("it took %v", took)
				}
				*s = space{asked: s.asked}
				time.Sleep(31 * time.Second)
				r := asking(s, "what is it ?")
				if response, err := c.Complete(t.Context(), asking(s, "Please, what is it?")); err != nil || !strings.HasPrefix(response.Choices[0].Message.Text(), "answer ") || len(s.calls()) != 2 {
					t.Errorf("after a while: %v, %v, %+v; %d calls", response.Choices, err, r.Metadata.Served, len(s.calls()))
				}
			})
		})
	}
}

// Vectors of two models are never compared, nor those of two lengths.
func TestSpaces(t *testing.T) {
	s := new(space)
	c := open(t, semantic(), new(counted), nil)
	for i, test := range []struct {
		by     inference.Served
		at     []float32
		text   string
		answer string
	}{
		{inference.Served{Provider: "a", Model: "e"}, []float32{1, 0}, "What is it?", "answer 1"},
		{inference.Served{Provider: "a", Model: "e"}, []float32{1, 0}, "what is it", "answer 1"},
		{inference.Served{Provider: "b", Model: "e"}, []float32{1, 0}, "What  is it", "answer 2"},
		{inference.Served{Provider: "a", Model: "f"}, []float32{1, 0}, "what is  it", "answer 3"},
		{inference.Served{Provider: "a", Model: "e"}, []float32{1, 0, 0}, "what  is it", "answer 4"},
		{inference.Served{Provider: "a", Model: "e"}, []float32{-1, 0}, "What is  it?", "answer 5"},
	} {
		s.by, s.at = test.by, func(string) []float32 { return test.at }
		if response, err := c.Complete(t.Context(), asking(s, test.text)); err != nil || response.Choices[0].Message.Text() != test.answer {
			t.Errorf("step %d: %v, %v, want %s", i, response.Choices, err, test.answer)
		}
	}
}

// What is alike is found as long as it says, and not while policies change; the newest
// are found, and all count in memory.
func TestSemanticBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		said := func(c *cache.Router, s *space, text string) string {
			t.Helper()
			response, err := c.Complete(t.Context(), asking(s, text))
			if err != nil {
				t.Fatal(err)
			}
			return response.Choices[0].Message.Text()
		}
		s := new(space)
		c := open(t, semantic(func(c *cache.Config) { c.TTL, c.Semantic.TTL, c.Semantic.MaxEntries = time.Hour, time.Minute, 2 }), new(counted), nil)
		said(c, s, "What is it?")
		time.Sleep(61 * time.Second)
		if got := said(c, s, "what is it"); got != "answer 2" {
			t.Errorf("after its time: %s", got)
		}
		if got := said(c, s, "What is it?"); got != "answer 1" {
			t.Errorf("the same after that time: %s", got)
		}
		said(c, s, "one")
		said(c, s, "two") // "what is it" is no longer of the newest two
		if got := said(c, s, "What is it"); got != "answer 5" {
			t.Errorf("what was pushed out: %s", got)
		}
		if got := said(c, s, "what is it"); got != "answer 2" {
			t.Errorf("what was pushed out, exactly: %s", got)
		}
		// Everything is forgotten while a vector is on its way.
		s = &space{change: func(*inference.EmbedResponse) { c.Clear() }}
		if got := said(c, s, "what is  it"); got != "answer 6" || len(s.calls()) != 1 {
			t.Errorf("policies changed: %s after %d calls", got, len(s.calls()))
		}
		if a, b := cache.Bytes(c); a != b || a != 0 {
			t.Errorf("%d and %d bytes are kept of an answer that was under way", a, b)
		}
	})
}

// BenchmarkAlike is a text that agrees with as many as may be, none of which is near.
func BenchmarkAlike(b *testing.B) {
	for _, dimensions := range []int{384, 1536} {
		b.Run(strconv.Itoa(dimensions), func(b *testing.B) {
			random := rand.New(rand.NewPCG(1, 2))
			s := &space{at: func(string) []float32 {
				at := make([]float32, dimensions)
				for i := range at {
					at[i] = float32(random.NormFloat64())
				}
				return at
			}}
			c := open(b, semantic(func(c *cache.Config) { c.MaxBytes = 1 << 30 }), new(counted), nil)
			fill := func(i int) inference.Request {
				return asking(s, "What is it"+strings.Repeat(" ", i), func(r *inference.Request) { r.Temperature = "0" })
			}
			for i := range 1000 {
				if _, err := c.Complete(b.Context(), fill(i)); err != nil {
					b.Fatal(err)
				}
			}
			at := s.at("")
			s.at = func(string) []float32 { return at }
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				n++
				r := fill(1)
				r.Messages[1].Content = inference.Text("What is it?" + strings.Repeat(" ", n%2+1000))
				if _, err := c.Complete(b.Context(), r); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/entry")
		})
	}
}

// Streams that are under way hold no more than is allowed, however many there are, and
// nothing once they are over.
func TestUnderWay(t *testing.T) {
	const limit = 64 << 10
	inner := &counted{size: 6 << 10}
	c := open(t, cache.Config{MaxBytes: limit, Rules: all().Rules, Tenant: "default"}, inner, nil)
	var streams []inference.Stream
	for i := range 40 {
		r := ask()
		r.MaxTokens = int64(i + 1)
		s, err := c.CompleteStream(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // all of its text
			if _, err := s.Next(); err != nil {
				t.Fatal(err)
			}
		}
		streams = append(streams, s)
		if n := cache.UnderWay(c); n > limit || n == 0 {
			t.Fatalf("%d streams hold %d bytes", i+1, n)
		}
	}
	for i, s := range streams {
		if i%2 == 0 {
			if _, _, err := inferencetest.Collect(t, s); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := cache.UnderWay(c); n != 0 {
		t.Errorf("%d bytes are held of streams that are over", n)
	}
	if said, kept := cache.Bytes(c); said != kept || said == 0 || said > limit {
		t.Errorf("%d bytes are said to be kept, %d are", said, kept)
	}
}

// An answer that could not be read again is not kept.
func TestUnreadable(t *testing.T) {
	for name, way := range ways(t) {
		inner := &counted{finish: "st\xffop"}
		c := open(t, all(), inner, nil)
		for i := range 2 {
			if text, _, err := way(c, ask()); name != "embedded" && (err != nil || text != "answer "+strconv.Itoa(i+1)) {
				t.Errorf("%s: %q, %v", name, text, err)
			}
		}
	}
}
