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
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/inference"
)

// model opens a door for models, in the dialect of its callers.
func (g *Gateway) model(w http.ResponseWriter, r *http.Request, authenticate Authenticate, d dialect, way func(*startedWriter, *http.Request, *visit, dialect) error) {
	sent := &startedWriter{ResponseWriter: w}
	v, err := g.admit(r, authenticate)
	if err == nil {
		defer v.leave()
		err = way(sent, r, v, d)
	}
	switch {
	case err == nil:
	case !sent.started:
		refuse(w, d, err)
	case sent.Header().Get("Content-Type") == eventStream:
		_ = sent.send(d.broken(err)) // the connection is cut either way
		panic(http.ErrAbortHandler)
	default:
		panic(http.ErrAbortHandler)
	}
}

// answer is OpenAI's POST /v1/chat/completions and Anthropic's POST /v1/messages.
func (g *Gateway) answer(w *startedWriter, r *http.Request, v *visit, d dialect) error {
	return g.call(w, r, v, d, "", func(ctx context.Context, m inference.Model, request inference.Request, stream bool) (gate.Result, error) {
		if stream {
			return g.stream(ctx, w, d, m, request)
		}
		return g.complete(ctx, w, d, m, request)
	})
}

// count is Anthropic's POST /v1/messages/count_tokens. Only a provider that counts
// is asked: a guess would be taken for a count.
func (g *Gateway) count(w *startedWriter, r *http.Request, v *visit, d dialect) error {
	const op fault.Op = "gateway.count"
	return g.call(w, r, v, d, countOperation, func(ctx context.Context, m inference.Model, request inference.Request, _ bool) (gate.Result, error) {
		none := result(m, inference.Usage{})
		counter, ok := m.(inference.TokenCounter)
		if !ok {
			return none, fault.New(op, fault.InferenceNotSupported, "provider %s does not count tokens", m.ID())
		}
		n, err := counter.CountTokens(ctx, request)
		if err != nil {
			return none, err
		}
		data, err := json.Marshal(struct {
			InputTokens int64 `json:"input_tokens"`
		}{n})
		if err != nil {
			return none, fault.Wrap(op, err)
		}
		return none, w.whole(data)
	})
}

// countOperation is what policies and records call it when tokens are counted: the
// provider sees the prompt, and answers nothing.
const countOperation = "count_tokens"

// call decides on one call of a model, and has act make it if that is permitted.
func (g *Gateway) call(w *startedWriter, r *http.Request, v *visit, d dialect, operation string, act func(context.Context, inference.Model, inference.Request, bool) (gate.Result, error)) error {
	body, err := v.body(w, r)
	if err != nil {
		return err
	}
	request, stream, err := d.decode(r.Header, body)
	if err != nil {
		return err
	}
	// What is shown and bound is what was understood, not what was sent: that
	// may say a thing twice.
	args, err := d.encode(request, stream)
	if err != nil {
		return err
	}
	request.Metadata = inference.RequestMetadata{
		Sandbox: v.Sandbox, Agent: v.agent, TraceID: creto.TraceOf(r.Context()), IdempotencyKey: v.key,
	}
	facts := map[string]any{"stream": stream, "messages": int64(len(request.Messages)), "tools": int64(len(request.Tools)), "max_tokens": request.MaxTokens}
	if operation != "" {
		facts["operation"] = operation
		// Consent to this is no consent to the same prompt's answer.
		args = slices.Concat([]byte(`{"`+operation+`":`), args, []byte("}"))
	}
	_, err = g.gate.Do(r.Context(), v.Caller, creto.Action{
		Name: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: request.Model}, Args: args, Context: facts,
		IdempotencyKey: v.key, Sandbox: v.Sandbox, Isolation: v.Isolation,
	}, v.inForce(func(ctx context.Context) (gate.Result, error) {
		ctx, cancel := context.WithTimeout(ctx, g.cfg.Timeout)
		defer cancel()
		model, err := g.pick(request.Model)
		if err != nil {
			return gate.Result{}, err
		}
		return act(ctx, model, request, stream)
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
	r := gate.Result{
		Usage:  &audit.Usage{PromptTokens: u.PromptTokens, CompletionTokens: u.CompletionTokens, Estimated: u.Estimated},
		Detail: map[string]string{"provider": m.ID()},
	}
	for name, n := range map[string]int64{"cached_tokens": u.CachedTokens, "cache_write_tokens": u.CacheWriteTokens, "reasoning_tokens": u.ReasoningTokens} {
		if n > 0 {
			r.Detail[name] = strconv.FormatInt(n, 10)
		}
	}
	return r
}

func (g *Gateway) complete(ctx context.Context, w *startedWriter, d dialect, m inference.Model, r inference.Request) (gate.Result, error) {
	response, err := m.Complete(ctx, r)
	if err != nil {
		return gate.Result{Detail: map[string]string{"provider": m.ID()}}, err
	}
	used := result(m, response.Usage)
	data, err := d.answer(response)
	if err != nil {
		return used, err
	}
	return used, w.whole(data)
}

// whole sends an answer that is complete.
func (w *startedWriter) whole(data []byte) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	return w.send(data)
}

// eventStream is the media type of a streamed answer.
const eventStream = "text/event-stream"

// stream passes pieces on as they come. What was said before an error, or
// before the caller went away, is metered (B-24).
func (g *Gateway) stream(ctx context.Context, w *startedWriter, d dialect, m inference.Model, r inference.Request) (gate.Result, error) {
	const op fault.Op = "gateway.stream"
	s, err := m.CompleteStream(ctx, r)
	if err != nil {
		return gate.Result{Detail: map[string]string{"provider": m.ID()}}, err
	}
	defer func() { _ = s.Close() }()
	w.Header().Set("Content-Type", eventStream)
	w.Header().Set("Cache-Control", "no-store")
	events := d.events(r)
	for {
		chunk, err := s.Next()
		var data []byte
		over := errors.Is(err, io.EOF)
		switch {
		case over:
			data, err = events.end(s.Usage())
		case err == nil:
			data, err = events.chunk(chunk, s.Usage)
		}
		if err != nil {
			return result(m, s.Usage()), fault.Wrap(op, err)
		}
		if len(data) > 0 {
			err = w.send(data)
		}
		if over || err != nil {
			return result(m, s.Usage()), err
		}
	}
}

// list is GET /v1/models, of OpenAI and of Anthropic in one: the names that the
// configuration knows. Patterns cannot be listed. Who asks by Anthropic's headers
// is refused in its dialect.
func (g *Gateway) list(w http.ResponseWriter, r *http.Request, authenticate Authenticate) {
	if _, err := authenticate(r); err != nil {
		var d dialect = openAI{}
		if r.Header.Get("Anthropic-Version") != "" {
			d = anthropic{}
		}
		refuse(w, d, err)
		return
	}
	type entry struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		OwnedBy string `json:"owned_by"`
		Type    string `json:"type"`
		Name    string `json:"display_name"`
		// The epoch, as Anthropic does where it is not known.
		Created time.Time `json:"created_at"`
	}
	answer := struct {
		Object  string  `json:"object"`
		Data    []entry `json:"data"`
		HasMore bool    `json:"has_more"`
		First   *string `json:"first_id"`
		Last    *string `json:"last_id"`
	}{Object: "list", Data: []entry{}}
	for _, m := range g.models {
		for _, name := range m.Capabilities().Models {
			if !strings.HasSuffix(name, "*") {
				answer.Data = append(answer.Data, entry{ID: name, Object: "model", OwnedBy: m.ID(), Type: "model", Name: name, Created: time.Unix(0, 0).UTC()})
			}
		}
	}
	if n := len(answer.Data); n > 0 {
		answer.First, answer.Last = &answer.Data[0].ID, &answer.Data[n-1].ID
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // a reader who left needs no answer
}
