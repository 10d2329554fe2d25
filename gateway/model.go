package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
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
	origin, err := authenticate(r)
	if err != nil {
		provider.WriteOpenAIError(w, err)
		return
	}
	body, err := readBody(w, r)
	if err != nil {
		provider.WriteOpenAIError(w, err)
		return
	}
	request, stream, err := provider.DecodeOpenAIRequest(body)
	if err == nil {
		err = request.Validate()
	}
	if err != nil {
		provider.WriteOpenAIError(w, err)
		return
	}
	request.Metadata = inference.RequestMetadata{
		Sandbox: origin.Sandbox, Agent: origin.Caller.Identity().ID, TraceID: creto.TraceOf(r.Context()), IdempotencyKey: r.Header.Get(IdempotencyHeader),
	}
	sent := &startedWriter{ResponseWriter: w}
	_, err = g.gate.Do(r.Context(), origin.Caller, creto.Action{
		Name: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: request.Model}, Args: body,
		Context:        map[string]any{"stream": stream, "messages": int64(len(request.Messages)), "tools": int64(len(request.Tools)), "max_tokens": request.MaxTokens},
		IdempotencyKey: request.Metadata.IdempotencyKey, Sandbox: origin.Sandbox, Isolation: origin.Isolation,
	}, func(ctx context.Context) (gate.Result, error) {
		ctx, cancel := context.WithTimeout(ctx, g.cfg.Timeout)
		defer cancel()
		model, err := g.pick(request.Model)
		if err != nil {
			return gate.Result{}, err
		}
		if stream {
			return g.stream(ctx, sent, model, request)
		}
		return g.complete(ctx, sent, model, request)
	})
	switch {
	case err == nil:
	case !sent.started:
		provider.WriteOpenAIError(w, err)
	case stream:
		// The status is out; the dialect ends a broken stream with an error
		// event and without [DONE].
		_, data := provider.EncodeOpenAIError(err)
		_ = writeEvent(sent, data)
		panic(http.ErrAbortHandler)
	default:
		panic(http.ErrAbortHandler)
	}
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

func (g *Gateway) complete(ctx context.Context, w http.ResponseWriter, m inference.Model, r inference.Request) (gate.Result, error) {
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
	if _, err := w.Write(data); err != nil {
		return used, fault.WrapAs("gateway.complete", fault.Canceled, err, "the caller went away")
	}
	return used, nil
}

// stream passes pieces on as they come. What was said before an error, or
// before the caller went away, is metered (B-24).
func (g *Gateway) stream(ctx context.Context, w *startedWriter, m inference.Model, r inference.Request) (gate.Result, error) {
	const op fault.Op = "gateway.stream"
	s, err := m.CompleteStream(ctx, r)
	if err != nil {
		return gate.Result{Detail: map[string]string{"provider": m.ID()}}, err
	}
	defer func() { _ = s.Close() }()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	for {
		chunk, err := s.Next()
		if errors.Is(err, io.EOF) {
			err := writeEvent(w, []byte("[DONE]"))
			return result(m, s.Usage()), fault.WrapAs(op, fault.Canceled, err, "the caller went away")
		}
		if err != nil {
			return result(m, s.Usage()), fault.Wrap(op, err)
		}
		data, err := provider.EncodeOpenAIChunk(chunk)
		if err != nil {
			return result(m, s.Usage()), fault.Wrap(op, err)
		}
		if err := writeEvent(w, data); err != nil {
			return result(m, s.Usage()), fault.WrapAs(op, fault.Canceled, err, "the caller went away")
		}
	}
}

func writeEvent(w *startedWriter, data []byte) error {
	event := make([]byte, 0, len(data)+len("data: \n\n"))
	event = append(event, "data: "...)
	event = append(event, data...)
	event = append(event, "\n\n"...)
	if _, err := w.Write(event); err != nil {
		return err
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// list is OpenAI's GET /v1/models: the names that the configuration knows.
// Patterns cannot be listed.
func (g *Gateway) list(w http.ResponseWriter, r *http.Request, authenticate Authenticate) {
	if _, err := authenticate(r); err != nil {
		provider.WriteOpenAIError(w, err)
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
