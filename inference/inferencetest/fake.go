package inferencetest

import (
	"context"
	"io"
	"strings"
	"sync"

	"creto.dev/fault"
	"creto.dev/inference"
)

// Fake is a model in memory that does what [Run] asks for. The zero Fake is
// ready. Safe for concurrent use.
type Fake struct {
	// Fail, if not nil, says what a request fails with; nil lets it pass.
	Fail func(inference.Request) error

	mu   sync.Mutex // guards seen
	seen []inference.Request
}

var _ inference.Model = (*Fake)(nil)

// Seen returns the requests that were answered, in order.
func (f *Fake) Seen() []inference.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]inference.Request(nil), f.seen...)
}

// ID implements inference.Model.
func (f *Fake) ID() string { return "fake" }

// Capabilities implements inference.Model.
func (f *Fake) Capabilities() inference.Capabilities {
	return inference.Capabilities{Streaming: true, Tools: true, Embeddings: true, Models: []string{ModelName}, Region: "local"}
}

// Complete implements inference.Model.
func (f *Fake) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	const op fault.Op = "inferencetest.Fake.Complete"
	message, finish, err := f.answer(ctx, op, r)
	if err == nil && last(r) == HangPrompt {
		<-ctx.Done()
		err = ended(ctx, op)
	}
	if err != nil {
		return inference.Response{}, err
	}
	return inference.Response{
		ID: "fake-1", Model: r.Model, Usage: usage(r, message),
		Choices: []inference.Choice{{Message: message, FinishReason: finish}},
	}, nil
}

// answer decides what to say.
func (f *Fake) answer(ctx context.Context, op fault.Op, r inference.Request) (inference.Message, string, error) {
	if err := r.Validate(); err != nil {
		return inference.Message{}, "", fault.Wrap(op, err)
	}
	if err := ended(ctx, op); err != nil {
		return inference.Message{}, "", err
	}
	if r.Model != ModelName {
		return inference.Message{}, "", fault.New(op, fault.InferenceModelNotFound, "no model %q", r.Model)
	}
	if f.Fail != nil {
		if err := f.Fail(r); err != nil {
			return inference.Message{}, "", fault.Wrap(op, err)
		}
	}
	f.mu.Lock()
	f.seen = append(f.seen, r)
	f.mu.Unlock()
	message := inference.Message{Role: inference.RoleAssistant}
	if last(r) == ToolPrompt && len(r.Tools) > 0 {
		message.ToolCalls = []inference.ToolCall{{ID: "call-1", Type: "function", Name: r.Tools[0].Name, Arguments: ToolArguments}}
		return message, "tool_calls", nil
	}
	message.Content = inference.Text(EchoPrefix + last(r))
	return message, "stop", nil
}

// last is the text of the last message.
func last(r inference.Request) string { return r.Messages[len(r.Messages)-1].Text() }

// ended is what an ended context means; nil while it has not.
func ended(ctx context.Context, op fault.Op) error {
	switch fault.CodeOf(ctx.Err()) {
	case fault.OK:
		return nil
	case fault.DeadlineExceeded:
		return fault.New(op, fault.InferenceTimeout, "out of time")
	default:
		return fault.New(op, fault.Canceled, "canceled")
	}
}

func usage(r inference.Request, m inference.Message) inference.Usage {
	return inference.Usage{
		PromptTokens: inference.EstimateTokens(r.SizeBytes()), CompletionTokens: inference.EstimateTokens(m.SizeBytes()), Estimated: true,
	}
}

// CompleteStream implements inference.Model.
func (f *Fake) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	const op fault.Op = "inferencetest.Fake.CompleteStream"
	message, finish, err := f.answer(ctx, op, r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &fakeStream{
		ended: func() error { return ended(ctx, op) }, done: ctx.Done(), cancel: cancel,
		hang: last(r) == HangPrompt, model: r.Model, usage: usage(r, message),
	}
	s.say(inference.Message{Role: message.Role}, "")
	for _, word := range strings.SplitAfter(message.Text(), " ") {
		s.say(inference.Message{Content: inference.Text(word)}, "")
	}
	for _, call := range message.ToolCalls {
		s.say(inference.Message{ToolCalls: []inference.ToolCall{call}}, "")
	}
	s.say(inference.Message{}, finish)
	return s, nil
}

// Embed implements inference.Model: a vector of the text's length and first byte.
func (f *Fake) Embed(_ context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	if r.Model == "" || len(r.Input) == 0 {
		return inference.EmbedResponse{}, fault.New("inferencetest.Fake.Embed", fault.InvalidArgument, "model and input are required")
	}
	out := inference.EmbedResponse{Model: r.Model, Usage: inference.Usage{Estimated: true}}
	for _, text := range r.Input {
		out.Embeddings = append(out.Embeddings, []float32{float32(len(text)), float32((text + "\x00")[0])})
		out.Usage.PromptTokens += inference.EstimateTokens(len(text))
	}
	return out, nil
}

// Health implements inference.Model.
func (f *Fake) Health(context.Context) error { return nil }

// fakeStream says what was prepared.
type fakeStream struct {
	ended  func() error
	done   <-chan struct{}
	cancel context.CancelFunc
	hang   bool
	model  string
	usage  inference.Usage
	chunks []inference.Chunk
	over   bool
}

func (s *fakeStream) say(m inference.Message, finish string) {
	s.chunks = append(s.chunks, inference.Chunk{
		ID: "fake-1", Model: s.model, Choices: []inference.Choice{{Message: m, FinishReason: finish}},
	})
}

// Next implements inference.Stream.
func (s *fakeStream) Next() (inference.Chunk, error) {
	if s.over {
		return inference.Chunk{}, io.EOF
	}
	if s.hang {
		<-s.done
	}
	if err := s.ended(); err != nil {
		return inference.Chunk{}, err
	}
	if len(s.chunks) == 0 {
		s.over = true
		return inference.Chunk{}, io.EOF
	}
	c := s.chunks[0]
	s.chunks = s.chunks[1:]
	return c, nil
}

// Ready implements inference.Stream.
func (s *fakeStream) Ready() bool { return !s.hang }

// Usage implements inference.Stream.
func (s *fakeStream) Usage() inference.Usage { return s.usage }

// Close implements inference.Stream.
func (s *fakeStream) Close() error {
	s.cancel()
	return nil
}
