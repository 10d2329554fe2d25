package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/inference"
	"creto.dev/inference/provider"
)

// chat is OpenAI's POST /v1/chat/completions.
func (g *Gateway) chat(w http.ResponseWriter, r *http.Request, authenticate Authenticate) {
	sent := &startedWriter{ResponseWriter: w}
	v, err := g.admit(r, authenticate)
	if err == nil {
		defer v.leave()
		err = g.answer(sent, r, v)
	}
	switch {
	case err == nil:
	case !sent.started:
		refuse(w, err)
	case sent.Header().Get("Content-Type") == eventStream:
		// The status is out; the dialect ends a broken stream with an error
		// event and without [DONE].
		_, data := provider.EncodeOpenAIError(err)
		_ = sent.event(data) // the connection is cut either way
		panic(http.ErrAbortHandler)
	default:
		panic(http.ErrAbortHandler)
	}
}

func (g *Gateway) answer(w *startedWriter, r *http.Request, v *visit) error {
	body, err := v.body(w, r)
	if err != nil {
		return err
	}
	request, stream, err := provider.DecodeOpenAIRequest(body)
	if err != nil {
		return err
	}
	// What is shown and bound is what was understood, not what was sent: that
	// may say a thing twice.
	args, err := provider.EncodeOpenAIRequest(request, stream)
	if err != nil {
		return err
	}
	request.Metadata = inference.RequestMetadata{
		Sandbox: v.Sandbox, Agent: v.agent, TraceID: creto.TraceOf(r.Context()), IdempotencyKey: v.key,
	}
	_, err = g.gate.Do(r.Context(), v.Caller, creto.Action{
		Name: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: request.Model}, Args: args,
		Context:        map[string]any{"stream": stream, "messages": int64(len(request.Messages)), "tools": int64(len(request.Tools)), "max_tokens": request.MaxTokens},
		IdempotencyKey: v.key, Sandbox: v.Sandbox, Isolation: v.Isolation,
	}, v.inForce(func(ctx context.Context) (gate.Result, error) {
		ctx, cancel := context.WithTimeout(ctx, g.cfg.Timeout)
		defer cancel()
		model, err := g.pick(request.Model)
		if err != nil {
			return gate.Result{}, err
		}
		if stream {
			return g.stream(ctx, w, model, request)
		}
		return g.complete(ctx, w, model, request)
	}))
	return err
}

// pick returns the first provider that serves a model.
func (g *Gateway) pick(name string) (inference.Model, error) {
	const op fault.Op = "gateway.pick"
	if len(g.models) == 0 {
		return nil, fault.New(op, fault.InferenceModelNotFound, "no model provider is configured; add one under [[inference.providers]]")
	}
	for _, m := range g.models {
		if slices.ContainsFunc(m.Capabilities().Models, func(pattern string) bool { return matches(pattern, name) }) {
			return m, nil
		}
	}
	return nil, fault.New(op, fault.InferenceModelNotFound, "no configured provider serves the model %q", name)
}

func matches(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}

func result(m inference.Model, u inference.Usage) gate.Result {
	return gate.Result{
		Usage:  &audit.Usage{PromptTokens: u.PromptTokens, CompletionTokens: u.CompletionTokens, Estimated: u.Estimated},
		Detail: map[string]string{"provider": m.ID()},
	}
}

func (g *Gateway) complete(ctx context.Context, w *startedWriter, m inference.Model, r inference.Request) (gate.Result, error) {
	response, err := m.Complete(ctx, r)
	if err != nil {
		return gate.Result{Detail: map[string]string{"provider": m.ID()}}, err
	}
	used := result(m, response.Usage)
	data, err := provider.EncodeOpenAIResponse(response)
	if err != nil {
		return used, err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	return used, w.send(data)
}

// eventStream is the media type of a streamed answer.
const eventStream = "text/event-stream"

// stream passes pieces on as they come. What was said before an error, or
// before the caller went away, is metered (B-24).
func (g *Gateway) stream(ctx context.Context, w *startedWriter, m inference.Model, r inference.Request) (gate.Result, error) {
	const op fault.Op = "gateway.stream"
	s, err := m.CompleteStream(ctx, r)
	if err != nil {
		return gate.Result{Detail: map[string]string{"provider": m.ID()}}, err
	}
	defer func() { _ = s.Close() }()
	w.Header().Set("Content-Type", eventStream)
	w.Header().Set("Cache-Control", "no-store")
	// Usage is always asked for, so that it can be metered; the caller gets it
	// only as it asked.
	wanted := r.StreamOptions != nil && r.StreamOptions.IncludeUsage
	for {
		chunk, err := s.Next()
		if errors.Is(err, io.EOF) {
			return result(m, s.Usage()), w.event([]byte("[DONE]"))
		}
		if err != nil {
			return result(m, s.Usage()), fault.Wrap(op, err)
		}
		if chunk.Usage != nil && !wanted {
			if len(chunk.Choices) == 0 {
				continue
			}
			chunk.Usage = nil
		}
		data, err := provider.EncodeOpenAIChunk(chunk)
		if err != nil {
			return result(m, s.Usage()), fault.Wrap(op, err)
		}
		if err := w.event(data); err != nil {
			return result(m, s.Usage()), err
		}
	}
}

// event sends one server-sent event.
func (w *startedWriter) event(data []byte) error {
	return w.send(append(append([]byte("data: "), data...), "\n\n"...))
}

// list is OpenAI's GET /v1/models: the names that the configuration knows.
// Patterns cannot be listed.
func (g *Gateway) list(w http.ResponseWriter, r *http.Request, authenticate Authenticate) {
	if _, err := authenticate(r); err != nil {
		refuse(w, err)
		return
	}
	type entry struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		OwnedBy string `json:"owned_by"`
	}
	answer := struct {
		Object string  `json:"object"`
		Data   []entry `json:"data"`
	}{Object: "list", Data: []entry{}}
	for _, m := range g.models {
		for _, name := range m.Capabilities().Models {
			if !strings.HasSuffix(name, "*") {
				answer.Data = append(answer.Data, entry{ID: name, Object: "model", OwnedBy: m.ID()})
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // a reader who left needs no answer
}
