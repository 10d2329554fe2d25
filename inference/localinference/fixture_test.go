package localinference_test

import (
	"context"
	"io"
	"strings"
	"sync"
	"testing"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/localinference"
)

const op fault.Op = "test"

// stub is a model that does what a test says.
type stub struct {
	id           string
	capabilities inference.Capabilities
	complete     func(ctx context.Context, r inference.Request) error
	next         func(n int) error // of the stream's nth piece, from 0; io.EOF ends it
	health       error

	mu    sync.Mutex // guards calls, open
	calls []string   // the models that were asked for
	open  int        // streams
}

func (s *stub) ID() string                           { return s.id }
func (s *stub) Capabilities() inference.Capabilities { return s.capabilities }
func (s *stub) Health(context.Context) error         { return s.health }

func (s *stub) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.calls...)
}

func (s *stub) streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

func (s *stub) call(ctx context.Context, r inference.Request) error {
	s.mu.Lock()
	s.calls = append(s.calls, r.Model)
	s.mu.Unlock()
	if s.complete == nil {
		return nil
	}
	return s.complete(ctx, r)
}

func (s *stub) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	if err := s.call(ctx, r); err != nil {
		return inference.Response{}, err
	}
	return inference.Response{Model: r.Model, Choices: []inference.Choice{{Message: inference.Message{Role: inference.RoleAssistant, Content: inference.Text(s.id)}}}}, nil
}

func (s *stub) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	if err := s.call(ctx, r); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.open++
	s.mu.Unlock()
	return &stubStream{stub: s, done: ctx.Done()}, nil
}

func (s *stub) Embed(ctx context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	return inference.EmbedResponse{Model: s.id}, s.call(ctx, inference.Request{Model: r.Model})
}

type stubStream struct {
	stub *stub
	done <-chan struct{}
	n    int
	once sync.Once
}

func (s *stubStream) Next() (inference.Chunk, error) {
	n := s.n
	s.n++
	if s.stub.next == nil {
		if n > 2 {
			return inference.Chunk{}, io.EOF
		}
	} else if err := s.stub.next(n); err != nil {
		return inference.Chunk{}, err
	}
	return inference.Chunk{Choices: []inference.Choice{{Message: inference.Message{Content: inference.Text(s.stub.id + " ")}}}}, nil
}

func (s *stubStream) Ready() bool { return false }

func (s *stubStream) Usage() inference.Usage {
	return inference.Usage{PromptTokens: 1, CompletionTokens: int64(s.n)}
}

func (s *stubStream) Close() error {
	s.once.Do(func() {
		s.stub.mu.Lock()
		defer s.stub.mu.Unlock()
		s.stub.open--
	})
	return nil
}

// cloud and local are providers that serve every model and, with err, fail.
func cloud(id string, err error) *stub {
	s := &stub{id: id, capabilities: inference.Capabilities{Models: []string{"*"}}}
	if err != nil {
		s.complete = func(context.Context, inference.Request) error { return err }
	}
	return s
}

func one(s *stub, local bool) localinference.Provider {
	return localinference.Provider{Keys: []inference.Model{s}, Local: local}
}

func router(t testing.TB, cfg localinference.Config, providers ...localinference.Provider) *localinference.Router {
	t.Helper()
	r, err := localinference.New(cfg, providers, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// request is by bob, and says class of itself.
func request(class inference.Classification) (inference.Request, *inference.Served) {
	served := new(inference.Served)
	return inference.Request{
		Model: "m", Messages: []inference.Message{{Role: inference.RoleUser, Content: inference.Text("hello")}},
		Metadata: inference.RequestMetadata{
			Agent: creto.ID{TrustDomain: "x", Tenant: "default", Kind: creto.KindAgent, Name: "bob"}, Classification: class, Served: served,
		},
	}, served
}

func complete(t testing.TB, r *localinference.Router, class inference.Classification) (string, inference.Served, error) {
	t.Helper()
	q, served := request(class)
	response, err := r.Complete(t.Context(), q)
	if err != nil {
		return "", *served, err
	}
	return response.Choices[0].Message.Text(), *served, nil
}

func TestConformance(t *testing.T) {
	inferencetest.Run(t, func(t *testing.T) inference.Model {
		return router(t, localinference.Config{}, localinference.Provider{Keys: []inference.Model{new(inferencetest.Fake), new(inferencetest.Fake)}, Concurrency: 4})
	})
	// The one that cannot serve is passed over, and the one that fails.
	inferencetest.Run(t, func(t *testing.T) inference.Model {
		other := cloud("other", nil)
		other.capabilities.Models = []string{"other-*"}
		down := cloud("down", fault.New(op, fault.InferenceProviderUnavailable, "down"))
		down.capabilities.Models = []string{inferencetest.ModelName}
		return router(t, localinference.Config{}, one(other, false), one(down, false), one2(new(inferencetest.Fake)))
	})
}

func one2(m inference.Model) localinference.Provider {
	return localinference.Provider{Keys: []inference.Model{m}}
}

func words(t testing.TB, s inference.Stream) (string, error) {
	text, _, err := inferencetest.Collect(t, s)
	return strings.TrimSpace(text), err
}
