// Package inferencetest holds what every inference.Model must do, and a model
// for the tests of its users.
package inferencetest

import (
	"context"
	"errors"
	"io"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
)

// What the model under test must know. [Fake] does; a client's test puts a
// server behind it that does.
const (
	// ModelName names a model that answers [EchoPrefix] and the last message's
	// text; asked in a stream, in more than one piece.
	ModelName = "echo-1"
	// UnknownModel names no model.
	UnknownModel = "no-such-model"
	// EchoPrefix begins every answer.
	EchoPrefix = "echo: "
	// ToolPrompt, as the last message, makes the model call the first of the
	// request's tools with [ToolArguments].
	ToolPrompt    = "use the tool"
	ToolArguments = `{"city":"Bern"}`
	// HangPrompt makes the model say nothing until it is given up.
	HangPrompt = "hang"
)

// Ask returns a request with one message.
func Ask(text string) inference.Request {
	return inference.Request{
		Model:    ModelName,
		Messages: []inference.Message{{Role: inference.RoleUser, Content: inference.Text(text)}},
		Metadata: inference.RequestMetadata{
			Sandbox: "sb-1", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", IdempotencyKey: "k-1",
			Agent:          creto.ID{TrustDomain: "creto.local", Tenant: "default", Kind: creto.KindAgent, Name: "bob"},
			Classification: inference.ClassificationPublic,
		},
	}
}

// Run holds the model that open returns to the contract. Each case opens its own.
func Run(t *testing.T, open func(t *testing.T) inference.Model) {
	for _, tt := range []struct {
		name string
		test func(*testing.T, inference.Model)
	}{
		{"identity is constant", testIdentity},
		{"a whole answer", testComplete},
		{"a streamed answer", testStream},
		{"tools", testTools},
		{"the request is not changed", testUnchanged},
		{"a malformed request", testMalformed},
		{"an unknown model", testUnknownModel},
		{"a context that ended before", testEnded},
		{"a context that ends meanwhile", testEndsMeanwhile},
		{"a stream is closed", testClose},
		{"a stream is closed while Next waits", testCloseWhileWaiting},
		{"embeddings", testEmbed},
		{"health", testHealth},
		{"many at once", testConcurrent},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, open(t)) })
	}
}

func testIdentity(t *testing.T, m inference.Model) {
	id := creto.ID{TrustDomain: "x", Tenant: "x", Kind: creto.KindWorkload, Name: m.ID()}
	if err := id.Validate(); err != nil {
		t.Errorf("ID = %q: %v", m.ID(), err)
	}
	c := m.Capabilities()
	if len(c.Models) > 0 {
		c.Models[0] = "changed"
	}
	if again := m.Capabilities(); len(again.Models) > 0 && again.Models[0] == "changed" {
		t.Error("Capabilities hands out its own slice")
	}
}

func testComplete(t *testing.T, m inference.Model) {
	r, err := m.Complete(t.Context(), Ask("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Choices) != 1 || r.Choices[0].Message.Role != inference.RoleAssistant || r.Choices[0].FinishReason != "stop" {
		t.Fatalf("Complete = %+v, want one finished choice of the assistant", r)
	}
	if got := r.Choices[0].Message.Text(); got != EchoPrefix+"hello" {
		t.Errorf("answer = %q, want %q", got, EchoPrefix+"hello")
	}
	checkUsage(t, r.Usage)
}

func checkUsage(t *testing.T, u inference.Usage) {
	t.Helper()
	if u.PromptTokens <= 0 || u.CompletionTokens <= 0 {
		t.Errorf("usage = %+v, want both counts", u)
	}
}

// Collect reads a stream to its end and returns the text and the chunks.
func Collect(t testing.TB, s inference.Stream) (string, []inference.Chunk, error) {
	t.Helper()
	var text strings.Builder
	var chunks []inference.Chunk
	for {
		c, err := s.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return text.String(), chunks, err
		}
		chunks = append(chunks, c)
		for _, choice := range c.Choices {
			text.WriteString(choice.Message.Text())
		}
	}
}

func start(t *testing.T, m inference.Model, r inference.Request) inference.Stream {
	t.Helper()
	s, err := m.CompleteStream(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return s
}

func testStream(t *testing.T, m inference.Model) {
	s := start(t, m, Ask("hello"))
	text, chunks, err := Collect(t, s)
	if err != nil || text != EchoPrefix+"hello" {
		t.Fatalf("stream = %q, %v, want %q", text, err, EchoPrefix+"hello")
	}
	finished := ""
	for _, c := range chunks {
		for _, choice := range c.Choices {
			finished += choice.FinishReason
		}
	}
	if len(chunks) < 2 || finished != "stop" {
		t.Errorf("%d chunks finished with %q, want several and stop", len(chunks), finished)
	}
	checkUsage(t, s.Usage())
	for range 2 {
		if _, err := s.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("Next after the end = %v, want io.EOF", err)
		}
	}
}

func testTools(t *testing.T, m inference.Model) {
	if !m.Capabilities().Tools {
		t.Skip("the model has no tools")
	}
	r := Ask(ToolPrompt)
	r.Tools = []inference.Tool{{Name: "weather", Parameters: []byte(`{"type":"object"}`)}}
	whole, err := m.Complete(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	calls := whole.Choices[0].Message.ToolCalls
	if len(calls) != 1 || calls[0].Name != "weather" || calls[0].Arguments != ToolArguments || calls[0].ID == "" || whole.Choices[0].FinishReason != "tool_calls" {
		t.Errorf("Complete called %+v, finished %q", calls, whole.Choices[0].FinishReason)
	}
	_, chunks, err := Collect(t, start(t, m, r))
	if err != nil {
		t.Fatal(err)
	}
	var name, arguments string
	for _, c := range chunks {
		for _, choice := range c.Choices {
			for _, call := range choice.Message.ToolCalls {
				name += call.Name
				arguments += call.Arguments
			}
		}
	}
	if name != "weather" || arguments != ToolArguments {
		t.Errorf("the stream called %s(%s)", name, arguments)
	}
}

func testUnchanged(t *testing.T, m inference.Model) {
	r, same := full(), full()
	if _, err := m.Complete(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Collect(t, start(t, m, r)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(r, same) {
		t.Errorf("the request became %+v, was %+v", r, same)
	}
}

// full returns a request that uses every field.
func full() inference.Request {
	r := Ask("hello")
	r.Tools = []inference.Tool{{Name: "weather"}}
	r.ResponseFormat = &inference.ResponseFormat{Type: "text"}
	r.MaxTokens, r.Temperature, r.Stop = 100, "0.7", []string{"END"}
	r.StreamOptions = &inference.StreamOptions{}
	r.Extra = inference.Extra{"seed": []byte("7")}
	return r
}

func testMalformed(t *testing.T, m inference.Model) {
	noModel, noMessages, badNumber := Ask("x"), Ask("x"), Ask("x")
	noModel.Model, noMessages.Messages, badNumber.Temperature = "", nil, "warm"
	for name, r := range map[string]inference.Request{"no model": noModel, "no messages": noMessages, "bad number": badNumber} {
		if _, err := m.Complete(t.Context(), r); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: Complete = %v, want InvalidArgument", name, err)
		}
		if _, err := m.CompleteStream(t.Context(), r); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: CompleteStream = %v, want InvalidArgument", name, err)
		}
	}
}

func testUnknownModel(t *testing.T, m inference.Model) {
	r := Ask("hello")
	r.Model = UnknownModel
	if _, err := m.Complete(t.Context(), r); fault.CodeOf(err) != fault.InferenceModelNotFound {
		t.Errorf("Complete = %v, want InferenceModelNotFound", err)
	}
	if _, err := m.CompleteStream(t.Context(), r); fault.CodeOf(err) != fault.InferenceModelNotFound {
		t.Errorf("CompleteStream = %v, want InferenceModelNotFound", err)
	}
}

func testEnded(t *testing.T, m inference.Model) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	for ctx, want := range map[context.Context]fault.Code{canceled: fault.Canceled, late: fault.InferenceTimeout} {
		if _, err := m.Complete(ctx, Ask("hello")); fault.CodeOf(err) != want {
			t.Errorf("Complete = %v, want %v", err, want)
		}
		if _, err := m.CompleteStream(ctx, Ask("hello")); fault.CodeOf(err) != want {
			t.Errorf("CompleteStream = %v, want %v", err, want)
		}
	}
}

func testEndsMeanwhile(t *testing.T, m inference.Model) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.Complete(ctx, Ask(HangPrompt)); fault.CodeOf(err) != fault.InferenceTimeout {
		t.Errorf("Complete = %v, want InferenceTimeout", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	s, err := m.CompleteStream(ctx, Ask(HangPrompt))
	if err == nil {
		_, _, err = Collect(t, s)
		_ = s.Close()
	}
	if fault.CodeOf(err) != fault.Canceled {
		t.Errorf("the stream ended with %v, want Canceled", err)
	}
}

func testClose(t *testing.T, m inference.Model) {
	s := start(t, m, Ask("hello"))
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	if _, err := s.Next(); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("Next after Close = %v, want Canceled", err)
	}
}

// A stream that is given up while its next piece is waited for says so, be it that
// its first piece is waited for before there is a stream.
func testCloseWhileWaiting(t *testing.T, m inference.Model) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := make(chan inference.Stream, 1)
	failed := make(chan error, 1)
	go func() {
		s, err := m.CompleteStream(ctx, Ask(HangPrompt))
		if err != nil {
			failed <- err
			return
		}
		began <- s
		_, _, err = Collect(t, s)
		failed <- err
	}()
	select {
	case s := <-began:
		time.AfterFunc(50*time.Millisecond, func() { _ = s.Close() })
	case <-time.After(200 * time.Millisecond):
		cancel()
	}
	if err := <-failed; fault.CodeOf(err) != fault.Canceled {
		t.Errorf("a stream that was given up ended with %v, want Canceled", err)
	}
	select {
	case s := <-began:
		_ = s.Close()
	default:
	}
}

func testEmbed(t *testing.T, m inference.Model) {
	r, err := m.Embed(t.Context(), inference.EmbedRequest{Model: ModelName, Input: []string{"a", "b", "c"}, Metadata: Ask("").Metadata})
	if !m.Capabilities().Embeddings {
		if fault.CodeOf(err) != fault.InferenceNotSupported {
			t.Errorf("Embed = %v, want InferenceNotSupported", err)
		}
		return
	}
	if err != nil || len(r.Embeddings) != 3 || len(r.Embeddings[0]) == 0 || reflect.DeepEqual(r.Embeddings[0], r.Embeddings[1]) {
		t.Errorf("Embed = %+v, %v, want three vectors that differ", r, err)
	}
	if r.Usage.PromptTokens <= 0 {
		t.Errorf("usage = %+v, want a count", r.Usage)
	}
	if _, err := m.Embed(t.Context(), inference.EmbedRequest{Model: ModelName}); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("Embed of nothing = %v, want InvalidArgument", err)
	}
}

func testHealth(t *testing.T, m inference.Model) {
	if err := m.Health(t.Context()); err != nil {
		t.Errorf("Health = %v", err)
	}
}

func testConcurrent(t *testing.T, m inference.Model) {
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			want := strings.Repeat("x", i+1)
			r, err := m.Complete(t.Context(), Ask(want))
			if err != nil || r.Choices[0].Message.Text() != EchoPrefix+want {
				t.Errorf("Complete = %+v, %v", r, err)
			}
			s, err := m.CompleteStream(t.Context(), Ask(want))
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = s.Close() }()
			if text, _, err := Collect(t, s); err != nil || text != EchoPrefix+want {
				t.Errorf("stream = %q, %v", text, err)
			}
		})
	}
	wg.Wait()
}
