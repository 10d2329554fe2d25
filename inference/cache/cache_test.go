package cache_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/cache"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/localinference"
)

// counted is a router that never says the same twice, and fails as a test says.
type counted struct {
	inference.Router

	mu     sync.Mutex // guards what follows
	calls  int
	finish string
	err    error // of everything, or with cut of a stream's piece
	cut    int
	size   int    // of an answer, in bytes
	during func() // while an answer is given
}

func (c *counted) next() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if c.err != nil && c.cut == 0 {
		return "", c.err
	}
	return "answer " + strconv.Itoa(c.calls) + strings.Repeat("x", c.size), nil
}

func (c *counted) asked() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls
}

func (c *counted) say(text string, m *inference.RequestMetadata) inference.Choice {
	if m.Served != nil {
		*m.Served = inference.Served{Provider: "p", Model: "m-1", Attempts: 1}
	}
	if c.during != nil {
		c.during()
	}
	finish := c.finish
	if finish == "" {
		finish = "stop"
	}
	return inference.Choice{Message: inference.Message{Role: inference.RoleAssistant, Content: inference.Text(text)}, FinishReason: finish}
}

func (c *counted) Complete(_ context.Context, r inference.Request) (inference.Response, error) {
	text, err := c.next()
	if err != nil {
		return inference.Response{}, err
	}
	return inference.Response{ID: "id", Model: "m-1", Created: 7, Choices: []inference.Choice{c.say(text, &r.Metadata)}, Usage: inference.Usage{PromptTokens: 3, CompletionTokens: 4}, Extra: inference.Extra{"a": json.RawMessage(`{"b": 1}`)}}, nil
}

func (c *counted) Embed(_ context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	text, err := c.next()
	if err != nil {
		return inference.EmbedResponse{}, err
	}
	c.say(text, &r.Metadata)
	return inference.EmbedResponse{Model: text, Embeddings: [][]float32{{0.1, -2.5, 3e-9}}, Usage: inference.Usage{PromptTokens: 3}}, nil
}

func (c *counted) CompleteStream(_ context.Context, r inference.Request) (inference.Stream, error) {
	text, err := c.next()
	if err != nil {
		return nil, err
	}
	s := &pieces{of: c}
	for word := range strings.SplitSeq(text, " ") {
		s.chunks = append(s.chunks, inference.Chunk{ID: "id", Model: "m-1", Choices: []inference.Choice{{Message: inference.Message{Content: inference.Text(word + " ")}}}})
	}
	last := c.say("", &r.Metadata)
	s.chunks = append(s.chunks, inference.Chunk{Choices: []inference.Choice{{FinishReason: last.FinishReason}}}, inference.Chunk{Usage: &inference.Usage{PromptTokens: 3, CompletionTokens: 4}})
	return s, nil
}

type pieces struct {
	of     *counted
	chunks []inference.Chunk
	n      int
}

func (s *pieces) Next() (inference.Chunk, error) {
	switch {
	case s.of.cut > 0 && s.n == s.of.cut:
		return inference.Chunk{}, s.of.err
	case s.n == len(s.chunks):
		return inference.Chunk{}, io.EOF
	}
	s.n++
	return s.chunks[s.n-1], nil
}

func (s *pieces) Usage() inference.Usage {
	return inference.Usage{PromptTokens: 3, CompletionTokens: int64(s.n)}
}
func (s *pieces) Ready() bool  { return true }
func (s *pieces) Close() error { return nil }

// ways are how a router is asked; each returns what was said and what was used.
func ways(t *testing.T) map[string]func(inference.Router, inference.Request) (string, inference.Usage, error) {
	return map[string]func(inference.Router, inference.Request) (string, inference.Usage, error){
		"whole": func(r inference.Router, q inference.Request) (string, inference.Usage, error) {
			response, err := r.Complete(t.Context(), q)
			if err != nil {
				return "", inference.Usage{}, err
			}
			return response.Choices[0].Message.Text(), response.Usage, nil
		},
		"streamed": func(r inference.Router, q inference.Request) (string, inference.Usage, error) {
			s, err := r.CompleteStream(t.Context(), q)
			if err != nil {
				return "", inference.Usage{}, err
			}
			defer func() { _ = s.Close() }()
			text, _, err := inferencetest.Collect(t, s)
			return strings.TrimSpace(text), s.Usage(), err
		},
		"embedded": func(r inference.Router, q inference.Request) (string, inference.Usage, error) {
			response, err := r.Embed(t.Context(), inference.EmbedRequest{Model: q.Model, Input: []string{q.Messages[0].Text()}, Metadata: q.Metadata})
			return response.Model, response.Usage, err
		},
	}
}

func all() cache.Config {
	return cache.Config{Tenant: "default", Rules: []cache.Rule{{Classifications: []inference.Classification{"public", "internal"}, Unclassified: true}}}
}

// inner is a router of which the cache asks what it must know.
type inner struct {
	inference.Router
	known map[string]inference.Classification
}

func (i inner) Classification(agent creto.ID) inference.Classification { return i.known[agent.Name] }
func (i inner) Reaches(inference.Request) []string                     { return []string{"p", "a"} }

func open(t testing.TB, cfg cache.Config, r inference.Router, known map[string]inference.Classification) *cache.Router {
	t.Helper()
	c, err := cache.New(cfg, inner{r, known})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ask() inference.Request {
	r := inferencetest.Ask("hello")
	r.Temperature = "0"
	r.Metadata.Served = new(inference.Served)
	return r
}

func TestConformance(t *testing.T) {
	inferencetest.Run(t, func(t *testing.T) inference.Model {
		local, err := localinference.New(localinference.Config{}, []localinference.Provider{{Keys: []inference.Model{new(inferencetest.Fake)}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		cfg := all()
		cfg.Rules[0].AnyTemperature = true
		return open(t, cfg, local, nil)
	})
}

// Who asks the same again gets the same, of nobody, for nothing, and is told so.
func TestHit(t *testing.T) {
	for name, way := range ways(t) {
		t.Run(name, func(t *testing.T) {
			inner := new(counted)
			c := open(t, all(), inner, nil)
			first := ask()
			said, used, err := way(c, first)
			if err != nil || used.PromptTokens != 3 || first.Metadata.Served.Cache != "" || first.Metadata.Served.Attempts != 1 {
				t.Fatalf("first: %q, %+v, %v, %+v", said, used, err, first.Metadata.Served)
			}
			for range 2 {
				again := ask()
				// What an answer does not depend on.
				again.Metadata.Sandbox, again.Metadata.TraceID, again.Metadata.IdempotencyKey = "another", "another", "another"
				text, used, err := way(c, again)
				if err != nil || text != said || !reflect.DeepEqual(used, inference.Usage{}) {
					t.Errorf("again: %q, %+v, %v; want %q for nothing", text, used, err, said)
				}
				if s := *again.Metadata.Served; s != (inference.Served{Provider: "p", Model: "m-1", Cache: inference.CacheHit}) {
					t.Errorf("again: served by %+v", s)
				}
			}
			if n := inner.asked(); n != 1 {
				t.Errorf("%d calls, want 1", n)
			}
			for other, way := range ways(t) {
				if text, _, err := way(c, ask()); err != nil || (text == said) != (other == name) {
					t.Errorf("%s, kept by %s: %q, %v", other, name, text, err)
				}
			}
		})
	}
}

// A kept answer is the answer, to the last field, in the same pieces; who changes one
// changes it for nobody else.
func TestSame(t *testing.T) {
	c := open(t, all(), new(counted), nil)
	first, err := c.Complete(t.Context(), ask())
	if err != nil {
		t.Fatal(err)
	}
	first.Usage = inference.Usage{}
	for range 2 {
		again, err := c.Complete(t.Context(), ask())
		if err != nil || !reflect.DeepEqual(first, again) {
			t.Fatalf("again %+v, %v; want %+v", again, err, first)
		}
		again.Choices[0].Message.Content[0].Text, again.Extra["a"] = "changed", nil
	}
	chunks := func() (list []inference.Chunk) {
		s, err := c.CompleteStream(t.Context(), ask())
		for err == nil {
			var chunk inference.Chunk
			if chunk, err = s.Next(); err == nil {
				list = append(list, chunk)
			}
		}
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return list
	}
	before := chunks()
	before[len(before)-1].Usage = &inference.Usage{} // of a kept one
	for range 2 {
		after := chunks()
		if !reflect.DeepEqual(before, after) {
			t.Errorf("again %+v, want %+v", after, before)
		}
		after[0].Choices[0].Message.Content[0].Text = "changed"
	}
}

// edit is one place in a value, and how to make it another.
type edit struct {
	path string
	do   func()
}

// edits returns a change for each field that v leads to. Interfaces and maps are not
// entered; a map gets an entry.
func edits(path string, v reflect.Value) []edit {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return []edit{{path + "=new", func() { v.Set(reflect.New(v.Type().Elem())) }}}
		}
		return append(edits(path, v.Elem()), edit{path + "=nil", func() { v.SetZero() }})
	case reflect.Struct:
		var list []edit
		for i := range v.NumField() {
			list = append(list, edits(path+"."+v.Type().Field(i).Name, v.Field(i))...)
		}
		return list
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return []edit{{path, func() { v.SetBytes(append(v.Bytes()[:v.Len():v.Len()], ' ')) }}}
		}
		list := []edit{{path + "+1", func() { v.Set(reflect.Append(v, reflect.New(v.Type().Elem()).Elem())) }}}
		for i := range v.Len() {
			list = append(list, edits(path+"["+strconv.Itoa(i)+"]", v.Index(i))...)
		}
		return list
	case reflect.Map:
		return []edit{{path + "+1", func() {
			m := reflect.MakeMap(v.Type())
			for it := v.MapRange(); it.Next(); {
				m.SetMapIndex(it.Key(), it.Value())
			}
			m.SetMapIndex(reflect.ValueOf("top_k"), reflect.ValueOf(json.RawMessage("1")))
			v.Set(m)
		}}}
	case reflect.Interface:
		return nil // what asks for vectors is no part of what is asked
	case reflect.String:
		return []edit{{path, func() { v.SetString(v.String() + "\xff") }}, {path + "'", func() { v.SetString(v.String() + "\xfe") }}}
	case reflect.Bool:
		return []edit{{path, func() { v.SetBool(!v.Bool()) }}}
	case reflect.Int, reflect.Int64:
		return []edit{{path, func() { v.SetInt(v.Int() + 1) }}}
	}
	panic("no edit for " + path + " of " + v.Type().String())
}

// full is a request with something in every field.
func full() inference.Request {
	yes, extra := true, func() inference.Extra { return inference.Extra{"seed": json.RawMessage("1")} }
	raw := json.RawMessage(`{"type":"ephemeral"}`)
	return inference.Request{
		Model: "m", Messages: []inference.Message{
			{Role: "system", Content: []inference.Part{{Type: "text", Text: "s", CacheControl: raw, Extra: extra()}}},
			{Role: "user", Name: "n", Content: []inference.Part{{Type: "text", Text: "u"}, {Type: "image", Image: &inference.Image{URL: "data:x", MediaType: "image/png", Data: "QUJD", Extra: extra()}}}, Extra: extra()},
			{Role: "assistant", Content: []inference.Part{{Text: "t", Reasoning: &inference.Reasoning{Signature: "s", Redacted: "r"}}}, ToolCalls: []inference.ToolCall{{ID: "1", Type: "function", Name: "f", Arguments: "{}", CacheControl: raw, Extra: extra(), FunctionExtra: extra()}}, Refusal: "r"},
			{Role: "tool", ToolCallID: "1", IsError: true, CacheControl: raw, Content: inference.Text("x")},
		},
		Tools:      []inference.Tool{{Type: "function", Name: "f", Description: "d", Parameters: raw, Strict: &yes, CacheControl: raw, Extra: extra(), FunctionExtra: extra()}},
		ToolChoice: &inference.ToolChoice{Mode: "named", Name: "f", Raw: raw}, ParallelToolCalls: &yes, ReasoningEffort: "low",
		ResponseFormat: &inference.ResponseFormat{Type: "json_schema", Name: "n", Schema: raw, Strict: &yes, Extra: extra(), SchemaExtra: extra()},
		MaxTokens:      9, Temperature: "0.0", Stop: []string{"x"}, StreamOptions: &inference.StreamOptions{IncludeUsage: true, Extra: extra()},
		User: "u", CacheControl: raw, Betas: []string{"b"}, Dialect: "openai", Extra: extra(),
		Metadata: inference.RequestMetadata{
			Agent:    creto.ID{TrustDomain: "x", Tenant: "default", Kind: creto.KindAgent, Name: "bob"},
			Policies: []string{"p/1"}, Classification: "public",
		},
	}
}

// A hit crosses nothing: a request that differs in any field, however little, from
// the one whose answer was kept is asked for.
func TestNothingIsCrossed(t *testing.T) {
	free := map[string]bool{".Metadata.Sandbox": true, ".Metadata.TraceID": true, ".Metadata.IdempotencyKey": true, ".Metadata.Served=new": true,
		".Metadata.OnBehalfOf.TrustDomain": true, ".Metadata.OnBehalfOf.Tenant": true, ".Metadata.OnBehalfOf.Kind": true, ".Metadata.OnBehalfOf.Name": true}
	count := func(r inference.Request) []edit { return edits("", reflect.ValueOf(&r).Elem()) }
	n := len(count(full()))
	if n < 100 {
		t.Fatalf("%d edits of a request", n)
	}
	for name, way := range ways(t) {
		if name == "embedded" {
			continue
		}
		for i := range n {
			inner := new(counted)
			cfg := all()
			cfg.Rules[0].AnyTemperature = true
			c := open(t, cfg, inner, nil)
			if _, _, err := way(c, full()); err != nil {
				t.Fatal(err)
			}
			if text, _, err := way(c, full()); err != nil || text != "answer 1" {
				t.Fatalf("the same again: %q, %v", text, err)
			}
			r := full()
			change := edits("", reflect.ValueOf(&r).Elem())[i]
			change.do()
			text, _, err := way(c, r)
			if hit := text == "answer 1"; err != nil || hit != free[strings.TrimSuffix(change.path, "'")] {
				t.Errorf("%s, %s changed: %q, %v", name, change.path, text, err)
			}
		}
	}
	// Two texts that are not UTF-8 are not the same because both are none.
	c := open(t, all(), new(counted), nil)
	for i, text := range []string{"\xff", "\xfe", "\ufffd"} {
		r := ask()
		r.Messages[0].Content = inference.Text(text)
		if got, err := c.Complete(t.Context(), r); err != nil || got.Choices[0].Message.Text() != "answer "+strconv.Itoa(i+1) {
			t.Errorf("%q: %v, %v", text, got.Choices, err)
		}
	}
}

// Nor does one cross what is known of an agent, or the kinds of embeddings.
func TestNothingElseIsCrossed(t *testing.T) {
	known := map[string]inference.Classification{}
	inner := new(counted)
	c := open(t, all(), inner, known)
	for i, class := range []inference.Classification{"", "public", "internal"} {
		known["bob"] = class
		for range 2 {
			if got, err := c.Complete(t.Context(), ask()); err != nil || got.Choices[0].Message.Text() != "answer "+strconv.Itoa(i+1) {
				t.Errorf("%q: %v, %v", class, got.Choices, err)
			}
		}
	}
	before := inner.asked()
	for i, change := range []func(*inference.EmbedRequest){
		func(*inference.EmbedRequest) {},
		func(r *inference.EmbedRequest) { r.Model += "2" },
		func(r *inference.EmbedRequest) { r.Input[0] += " " },
		func(r *inference.EmbedRequest) { r.Input = []string{"hel", "lo"} },
		func(r *inference.EmbedRequest) { r.Extra = inference.Extra{"dimensions": json.RawMessage("2")} },
		func(r *inference.EmbedRequest) { r.Metadata.Agent.Tenant = "other" },
		func(r *inference.EmbedRequest) { r.Metadata.Policies = []string{"p"} },
	} {
		for range 2 {
			r := inference.EmbedRequest{Model: "m", Input: []string{"hello"}, Metadata: ask().Metadata}
			change(&r)
			if got, err := c.Embed(t.Context(), r); err != nil || got.Model != "answer "+strconv.Itoa(before+i+1) {
				t.Errorf("change %d: %+v, %v", i, got, err)
			}
		}
	}
}

// What may not be kept is asked for each time, and leaves nothing.
func TestNotKept(t *testing.T) {
	type rule = cache.Rule
	classes := []inference.Classification{"public"}
	for _, test := range []struct {
		name   string
		rules  []cache.Rule
		known  inference.Classification
		change func(*inference.Request)
		kept   bool
	}{
		{"no rule", nil, "public", func(*inference.Request) {}, false},
		{"a rule", []rule{{Classifications: classes}}, "public", func(*inference.Request) {}, true},
		{"of its agent and model", []rule{{Classifications: classes, Agents: []string{"b*"}, Models: []string{"echo-*"}}}, "public", func(*inference.Request) {}, true},
		{"of its tenant", []rule{{Classifications: classes, Agents: []string{"default/bob"}}}, "public", func(*inference.Request) {}, true},
		{"of another agent", []rule{{Classifications: classes, Agents: []string{"alice"}}}, "public", func(*inference.Request) {}, false},
		{"of another tenant", []rule{{Classifications: classes, Agents: []string{"acme/*"}}}, "public", func(*inference.Request) {}, false},
		{"another tenant's agent of the name", []rule{{Classifications: classes, Agents: []string{"bob"}}}, "public", func(r *inference.Request) { r.Metadata.Agent.Tenant = "acme" }, false},
		{"of another model", []rule{{Classifications: classes, Models: []string{"gpt-*"}}}, "public", func(*inference.Request) {}, false},
		{"the first rule counts", []rule{{Classifications: []inference.Classification{"internal"}}, {Classifications: classes}}, "public", func(*inference.Request) {}, false},
		{"its agent's class may not be kept", []rule{{Classifications: classes, Unclassified: true}}, "restricted", func(*inference.Request) {}, false},
		{"nothing is known of its agent", []rule{{Classifications: classes}}, "", func(*inference.Request) {}, false},
		{"it says what is not known of its agent", []rule{{Classifications: classes}}, "", func(r *inference.Request) { r.Metadata.Classification = "public" }, false},
		{"it says of itself what may not be kept", []rule{{Classifications: classes}}, "public", func(r *inference.Request) { r.Metadata.Classification = "restricted" }, false},
		{"what is not classified may be", []rule{{Unclassified: true}}, "", func(r *inference.Request) { r.Metadata.Classification = "" }, true},
		{"it says no", []rule{{Classifications: classes}}, "public", func(r *inference.Request) { r.Metadata.NoStore = true }, false},
		{"nobody asks", []rule{{Classifications: classes, Unclassified: true}}, "public", func(r *inference.Request) { r.Metadata.Agent = creto.ID{} }, false},
		{"the temperature is not said", []rule{{Classifications: classes}}, "public", func(r *inference.Request) { r.Temperature = "" }, false},
		{"the temperature is not 0", []rule{{Classifications: classes}}, "public", func(r *inference.Request) { r.Temperature = "0.01" }, false},
		{"the temperature is 0 in other words", []rule{{Classifications: classes}}, "public", func(r *inference.Request) { r.Temperature = "-0.00e5" }, true},
		{"any temperature", []rule{{Classifications: classes, AnyTemperature: true}}, "public", func(r *inference.Request) { r.Temperature = "" }, true},
		{"a seed", []rule{{Classifications: classes}}, "public", func(r *inference.Request) { r.Extra = inference.Extra{"seed": json.RawMessage("7")} }, true},
		{"a search at the provider", []rule{{Classifications: classes}}, "public", func(r *inference.Request) { r.Extra = inference.Extra{"web_search_options": json.RawMessage("{}")} }, false},
		{"a conversation at the provider", []rule{{Classifications: classes}}, "public", func(r *inference.Request) { r.Extra = inference.Extra{"previous_response_id": json.RawMessage(`"x"`)} }, false},
		{"a tool at the provider", []rule{{Classifications: classes}}, "public", func(r *inference.Request) { r.Tools = []inference.Tool{{Type: "web_search"}} }, false},
		{"a picture at an address", []rule{{Classifications: classes}}, "public", func(r *inference.Request) {
			r.Messages[0].Content = []inference.Part{{Type: "image", Image: &inference.Image{URL: "https://a.example/x.png"}}}
		}, false},
		{"a file", []rule{{Classifications: classes}}, "public", func(r *inference.Request) {
			r.Messages[0].Content = []inference.Part{{Type: "image", Image: &inference.Image{FileID: "f"}}}
		}, false},
		{"a part that nobody knows", []rule{{Classifications: classes}}, "public", func(r *inference.Request) {
			r.Messages[0].Content = []inference.Part{{Type: "document", Extra: inference.Extra{"url": json.RawMessage(`"x"`)}}}
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, way := range ways(t) {
				if name == "embedded" {
					continue
				}
				c := open(t, cache.Config{Tenant: "default", Rules: test.rules}, new(counted), map[string]inference.Classification{"bob": test.known})
				for i := range 2 {
					r := ask()
					test.change(&r)
					want := "answer " + strconv.Itoa(i+1)
					if test.kept {
						want = "answer 1"
					}
					if text, _, err := way(c, r); err != nil || text != want {
						t.Errorf("%s, call %d: %q, %v; want %q", name, i, text, err, want)
					}
				}
			}
		})
	}
}

// Who wants nothing kept gets nothing that is.
func TestNoStore(t *testing.T) {
	c := open(t, all(), new(counted), nil)
	for i, test := range []struct {
		no   bool
		want string
	}{{true, "1"}, {false, "2"}, {true, "3"}, {false, "2"}} {
		r := ask()
		r.Metadata.NoStore = test.no
		if got, err := c.Complete(t.Context(), r); err != nil || got.Choices[0].Message.Text() != "answer "+test.want {
			t.Errorf("call %d: %v, %v", i, got.Choices, err)
		}
	}
}

// An error is never kept, nor what a filter cut, nor a stream that broke off or that
// nobody read to its end.
func TestHalfAnswers(t *testing.T) {
	down := fault.New("t", fault.InferenceProviderUnavailable, "down")
	for name, way := range ways(t) {
		inner := &counted{err: down}
		c := open(t, all(), inner, nil)
		if _, _, err := way(c, ask()); !errors.Is(err, fault.InferenceProviderUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		inner.err = nil
		if text, _, err := way(c, ask()); err != nil || text != "answer 2" {
			t.Errorf("%s, after an error: %q, %v", name, text, err)
		}
		if name == "embedded" {
			continue
		}
		inner = &counted{finish: "content_filter"}
		c = open(t, all(), inner, nil)
		for i := range 2 {
			if text, _, err := way(c, ask()); err != nil || text != "answer "+strconv.Itoa(i+1) {
				t.Errorf("%s, filtered: %q, %v", name, text, err)
			}
		}
	}
	for cut := 1; cut < 4; cut++ {
		inner := &counted{err: down, cut: cut}
		c := open(t, all(), inner, nil)
		s, err := c.CompleteStream(t.Context(), ask())
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = s.Next()
		}
		_, _ = s.Next()
		inner.cut, inner.err = 0, nil
		if text, _, err := ways(t)["streamed"](c, ask()); err != nil || text != "answer 2" {
			t.Errorf("after one that broke off at %d: %q, %v", cut, text, err)
		}
	}
	for read := range 4 {
		c := open(t, all(), new(counted), nil)
		s, err := c.CompleteStream(t.Context(), ask())
		if err != nil {
			t.Fatal(err)
		}
		for range read {
			if _, err := s.Next(); err != nil {
				t.Fatal(err)
			}
		}
		_ = s.Close()
		if text, _, err := ways(t)["streamed"](c, ask()); err != nil || text != "answer 2" {
			t.Errorf("after one of which %d pieces were read: %q, %v", read, text, err)
		}
	}
}

// A kept stream ends as any does when it is closed, or its context is over.
func TestReplayEnds(t *testing.T) {
	c := open(t, all(), new(counted), nil)
	if _, _, err := ways(t)["streamed"](c, ask()); err != nil {
		t.Fatal(err)
	}
	s, err := c.CompleteStream(t.Context(), ask())
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if _, err := s.Next(); !errors.Is(err, fault.Canceled) {
		t.Errorf("Next after Close = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if s, err = c.CompleteStream(ctx, ask()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := s.Next(); !errors.Is(err, fault.Canceled) {
		t.Errorf("Next after the context ended = %v", err)
	}
}

// What is older than the TTL is asked for again.
func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := all()
		cfg.TTL = time.Minute
		c := open(t, cfg, new(counted), nil)
		for _, test := range []struct {
			wait time.Duration
			want string
		}{{0, "1"}, {time.Minute - 1, "1"}, {1, "2"}, {time.Second, "2"}} {
			time.Sleep(test.wait)
			if got, err := c.Complete(t.Context(), ask()); err != nil || got.Choices[0].Message.Text() != "answer "+test.want {
				t.Errorf("after %v: %v, %v; want %s", test.wait, got.Choices, err, test.want)
			}
		}
	})
}

// Clear forgets what is kept, and what is being answered.
func TestClear(t *testing.T) {
	inner := new(counted)
	c := open(t, all(), inner, nil)
	for i, during := range []func(){nil, c.Clear, nil} {
		c.Clear()
		inner.during = during
		for name, way := range ways(t) {
			before := inner.asked()
			_, _, err := way(c, ask())
			inner.during = nil
			_, _, err2 := way(c, ask())
			want := 1
			if during != nil {
				want = 2
			}
			if n := inner.asked() - before; err != nil || err2 != nil || n != want {
				t.Errorf("round %d, %s: %d calls, want %d", i, name, n, want)
			}
			inner.during = during
		}
	}
}

// However much is asked, the memory stays within its bound; what was asked for the
// longest ago goes first, and what is too large is never kept.
func TestBound(t *testing.T) {
	cfg := all()
	cfg.MaxBytes = 64 << 10
	inner := &counted{size: 1 << 10}
	c := open(t, cfg, inner, nil)
	of := func(i int) inference.Request {
		r := ask()
		r.Messages[0].Content = inference.Text(strconv.Itoa(i))
		return r
	}
	hit := func(r inference.Request) bool {
		before := inner.asked()
		if _, err := c.Complete(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		return inner.asked() == before
	}
	for i := range 500 {
		hit(of(i))
		if i > 0 && !hit(of(0)) {
			t.Fatalf("what is asked for all the time went, after %d", i)
		}
		if size, bytes := cache.Bytes(c); size > cfg.MaxBytes || size != bytes {
			t.Fatalf("%d bytes are said to be kept, and %d are", size, bytes)
		}
	}
	if hit(of(1)) || !hit(of(499)) {
		t.Error("the oldest is there, or the newest is not")
	}
	for name, way := range ways(t) {
		if name == "embedded" {
			continue
		}
		inner.size = 9 << 10
		large := ask()
		large.User = name
		before := inner.asked()
		for range 2 {
			if _, _, err := way(c, large); err != nil {
				t.Fatal(err)
			}
		}
		if inner.asked()-before != 2 {
			t.Errorf("%s: an answer of an eighth is kept", name)
		}
	}
}

// Many at once, in every way, each gets an answer to its own question.
func TestConcurrent(t *testing.T) {
	local, err := localinference.New(localinference.Config{}, []localinference.Provider{{Keys: []inference.Model{new(inferencetest.Fake)}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := all()
	cfg.MaxBytes = 32 << 10
	c := open(t, cfg, local, nil)
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(worker)))
			for range 200 {
				n := random.IntN(40)
				r := ask()
				r.Messages[0].Content = inference.Text(fmt.Sprint("question ", n))
				r.Metadata.Agent.Name = "agent-" + strconv.Itoa(n%3)
				way := ways(t)[[]string{"whole", "streamed"}[random.IntN(2)]]
				if text, _, err := way(c, r); err != nil || text != fmt.Sprint(inferencetest.EchoPrefix, "question ", n) {
					t.Errorf("question %d: %q, %v", n, text, err)
				}
				if random.IntN(50) == 0 {
					c.Clear()
				}
			}
		})
	}
	group.Wait()
}

func TestProblems(t *testing.T) {
	for _, test := range []struct {
		config cache.Config
		key    string
	}{
		{cache.Config{}, ""}, {all(), ""},
		{cache.Config{TTL: -1}, "ttl"}, {cache.Config{TTL: cache.MaxTTL + 1}, "ttl"}, {cache.Config{MaxBytes: -1}, "max_mib"},
		{cache.Config{Rules: []cache.Rule{{}}}, "rules[0].classifications"},
		{cache.Config{Rules: []cache.Rule{{Classifications: []inference.Classification{"A B"}}}}, "rules[0].classifications"},
		{cache.Config{Rules: []cache.Rule{{Unclassified: true, Models: []string{"a*b"}}}}, "rules[0].models"},
		{cache.Config{Rules: []cache.Rule{{Unclassified: true, Agents: []string{"acme/"}}}}, "rules[0].agents"},
	} {
		problems := test.config.Problems()
		if _, found := problems[test.key]; len(problems) > 1 || found != (test.key != "") {
			t.Errorf("Problems(%+v) = %v, want %q", test.config, problems, test.key)
		}
		if _, err := cache.New(test.config, inner{new(counted), nil}); (err == nil) != (test.key == "") {
			t.Errorf("New(%+v) = %v", test.config, err)
		}
	}
}

// BenchmarkHit is a chat of 1.4 KB that was asked before, and one that no rule names.
func BenchmarkHit(b *testing.B) {
	for name, cfg := range map[string]cache.Config{"hit": all(), "no rule": {}} {
		b.Run(name, func(b *testing.B) {
			c := open(b, cfg, new(counted), nil)
			r := ask()
			r.Messages[0].Content = inference.Text(strings.Repeat("All work and no play. ", 64))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Complete(b.Context(), r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
