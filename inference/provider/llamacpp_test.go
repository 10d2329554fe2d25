package provider_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/provider"
	"creto.dev/internal/llamacpptest"
)

// A real llama.cpp: its loader, tokenizer, sampler and graph, behind an HTTP
// server of ours (package llamacpptest says why). The model has random weights,
// so its words mean nothing; that they are the same twice, how many there are and
// when they end is what is tested.
func TestLlamaCpp(t *testing.T) {
	server := llamacpptest.Start(t)
	client, err := provider.NewOpenAI(provider.Config{
		Name: "llamacpp", BaseURL: server.URL, APIKey: server.APIKey,
		Capabilities: inference.Capabilities{Streaming: true, Embeddings: true, Models: []string{"random-*"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	ask := func(text string, limit int64) inference.Request {
		return inference.Request{
			Model: llamacpptest.ModelName, Temperature: "0", MaxTokens: limit,
			Messages: []inference.Message{{Role: inference.RoleUser, Content: inference.Text(text)}},
		}
	}
	complete := func(t *testing.T, r inference.Request) inference.Response {
		t.Helper()
		response, err := client.Complete(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	stream := func(t *testing.T, r inference.Request) (text, finish string, pieces int, usage inference.Usage) {
		t.Helper()
		s, err := client.CompleteStream(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for {
			chunk, err := s.Next()
			if errors.Is(err, io.EOF) {
				return text, finish, pieces, s.Usage()
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range chunk.Choices {
				if c.Message.Text() != "" {
					text, pieces = text+c.Message.Text(), pieces+1
				}
				if c.FinishReason != "" {
					finish = c.FinishReason
				}
			}
		}
	}

	t.Run("an answer ends at max_tokens and is counted", func(t *testing.T) {
		r := complete(t, ask("hello world", 24))
		// Of the prompt: <s>, <|user|>, two words, <|assistant|>.
		want := inference.Usage{PromptTokens: 5, CompletionTokens: 24}
		if got := r.Usage; got.PromptTokens != want.PromptTokens || got.CompletionTokens != want.CompletionTokens || got.Estimated {
			t.Errorf("usage %+v; want %+v", got, want)
		}
		if r.Choices[0].FinishReason != "length" || r.Choices[0].Message.Text() == "" {
			t.Errorf("answer %+v", r.Choices[0])
		}
		// Each letter of a word that the vocabulary has not is bytes.
		if r := complete(t, ask("ü", 1)); r.Usage.PromptTokens != 3+1+2 || r.Usage.CompletionTokens != 1 {
			t.Errorf("usage of another alphabet %+v", r.Usage)
		}
	})
	t.Run("a stream says the same, as it comes", func(t *testing.T) {
		request := ask("the river", 40)
		whole := complete(t, request)
		text, finish, pieces, usage := stream(t, request)
		if text != whole.Choices[0].Message.Text() || finish != "length" || pieces < 20 || usage.CompletionTokens != 40 || usage.PromptTokens != whole.Usage.PromptTokens || usage.Estimated {
			t.Errorf("streamed %q (%s, %d pieces, %+v); whole %q, %+v", text, finish, pieces, usage, whole.Choices[0].Message.Text(), whole.Usage)
		}
		if other := complete(t, ask("seven stone", 40)); other.Choices[0].Message.Text() == text {
			t.Error("another prompt has the same answer: the prompt did not get there")
		}
		request.Messages = append([]inference.Message{{Role: inference.RoleSystem, Content: inference.Text("light")}}, request.Messages...)
		if other := complete(t, request); other.Choices[0].Message.Text() == text || other.Usage.PromptTokens != whole.Usage.PromptTokens+2 {
			t.Errorf("with a system prompt %+v", other)
		}
	})
	t.Run("a seed fixes what is drawn", func(t *testing.T) {
		request := ask("the model", 32)
		request.Temperature = "1.5"
		draw := func(seed string) string {
			request.Extra = inference.Extra{"seed": json.RawMessage(seed)}
			text, _, _, _ := stream(t, request)
			return text
		}
		if one, two := draw("7"), draw("8"); one != draw("7") || one == two {
			t.Errorf("seed 7 said %q, 8 %q", one, two)
		}
	})
	t.Run("stop ends the answer", func(t *testing.T) {
		request := ask("the receipt", 40)
		full := complete(t, request).Choices[0].Message.Text()
		words := strings.Fields(full)
		request.Stop = []string{words[len(words)/2]}
		want, _, _ := strings.Cut(full, request.Stop[0])
		r := complete(t, request)
		text, finish, _, usage := stream(t, request)
		if got := r.Choices[0]; got.Message.Text() != want || got.FinishReason != "stop" || text != want || finish != "stop" || usage.CompletionTokens >= 40 {
			t.Errorf("stopped at %q: %+v, streamed %q %s %+v; want %q", request.Stop, got, text, finish, usage, want)
		}
	})
	t.Run("a prompt beyond the context is refused", func(t *testing.T) {
		_, err := client.Complete(t.Context(), ask(strings.Repeat("seven ", 9000), 1))
		if fault.CodeOf(err) != fault.InferenceTokenLimitExceeded {
			t.Errorf("error %v; want InferenceTokenLimitExceeded", err)
		}
	})
	t.Run("embeddings", func(t *testing.T) {
		r, err := client.Embed(t.Context(), inference.EmbedRequest{Model: llamacpptest.ModelName, Input: []string{"hello world", "policy", "hello world"}})
		if err != nil || len(r.Embeddings) != 3 || r.Usage.PromptTokens != 5 || r.Usage.Estimated {
			t.Fatalf("%+v, %v", r.Usage, err)
		}
		dot := func(a, b []float32) (sum float64) {
			for i := range a {
				sum += float64(a[i]) * float64(b[i])
			}
			return sum
		}
		if same, other := dot(r.Embeddings[0], r.Embeddings[2]), dot(r.Embeddings[0], r.Embeddings[1]); math.Abs(same-1) > 1e-4 || other > 0.99 {
			t.Errorf("of the same text %f, of another %f", same, other)
		}
	})
	t.Run("who goes away stops it", func(t *testing.T) {
		before := server.Slots(t)
		s, err := client.CompleteStream(t.Context(), ask("the light", 8000))
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if _, err := s.Next(); err != nil {
				t.Fatal(err)
			}
		}
		if server.Slots(t).Active != 1 {
			t.Error("the engine does not say that it works")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		for after, late := server.Slots(t), time.Now().Add(20*time.Second); ; after = server.Slots(t) {
			if after.Active == 0 && after.GivenUp == before.GivenUp+1 {
				if n := after.Tokens - before.Tokens; n < 3 || n >= 8000 {
					t.Errorf("%d tokens were generated", n)
				}
				break
			}
			if time.Now().After(late) {
				t.Fatalf("still at work: %+v, before %+v", after, before)
			}
		}
		// And a whole answer that nobody waits for.
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := client.Complete(ctx, ask("the light", 8000)); err == nil {
			t.Error("8000 tokens in 50 ms")
		}
		if r := complete(t, ask("hello", 3)); r.Usage.CompletionTokens != 3 {
			t.Errorf("the next answer: %+v", r)
		}
		if after := server.Slots(t); after.GivenUp != before.GivenUp+2 {
			t.Errorf("slots %+v, before %+v", after, before)
		}
	})
}
