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
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/inference"
	"creto.dev/inference/injection"
)

// model opens a door for models, in the dialect of its callers.
func (g *Gateway) model(w http.ResponseWriter, r *http.Request, authenticate Authenticate, d dialect, way func(*startedWriter, *http.Request, *visit, dialect) error) {
	sent := &startedWriter{ResponseWriter: w}
	v, err := g.admit(r, authenticate)
	if err == nil {
		defer v.leave()
		sent.before = announcement{g.cfg.Limits, r, v, d}.write
		err = way(sent, r, v, d)
	}
	switch {
	case err == nil:
	case !sent.started:
		refuse(sent, d, err)
	case sent.Header().Get("Content-Type") == eventStream:
		_ = sent.send(d.broken(err)) // the connection is cut either way
		panic(http.ErrAbortHandler)
	default:
		panic(http.ErrAbortHandler)
	}
}

// answer is OpenAI's POST /v1/chat/completions and Anthropic's POST /v1/messages.
func (g *Gateway) answer(w *startedWriter, r *http.Request, v *visit, d dialect) error {
	return g.call(w, r, v, d, "", func(ctx context.Context, request inference.Request, stream bool) (*inference.Usage, error) {
		models := v.seen.watched(g.models)
		if stream {
			return streamed(ctx, w, d, models, request)
		}
		return complete(ctx, w, d, models, request)
	})
}

// count is Anthropic's POST /v1/messages/count_tokens. Only a provider that counts
// is asked: a guess would be taken for a count.
func (g *Gateway) count(w *startedWriter, r *http.Request, v *visit, d dialect) error {
	const op fault.Op = "gateway.count"
	return g.call(w, r, v, d, countOperation, func(ctx context.Context, request inference.Request, _ bool) (*inference.Usage, error) {
		n, err := g.models.CountTokens(ctx, request)
		if err != nil {
			return nil, err
		}
		data, err := json.Marshal(struct {
			InputTokens int64 `json:"input_tokens"`
		}{n})
		if err != nil {
			return &inference.Usage{}, fault.Wrap(op, err)
		}
		return &inference.Usage{}, w.whole(data)
	})
}

// countOperation is what policies and records call it when tokens are counted: the
// provider sees the prompt, and answers nothing.
const countOperation = "count_tokens"

// call decides on one call of a model, and has act make it if that is permitted. act
// returns what was used, also with an error; nil is nothing.
func (g *Gateway) call(w *startedWriter, r *http.Request, v *visit, d dialect, operation string, act func(context.Context, inference.Request, bool) (*inference.Usage, error)) error {
	body, err := v.json(w, r)
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
	class, err := classification(r.Header)
	if err != nil {
		return err
	}
	request.Metadata = metadata(r, v, class)
	facts := map[string]any{"stream": stream, "messages": int64(len(request.Messages)), "tools": int64(len(request.Tools)), "max_tokens": request.MaxTokens}
	if operation != "" {
		facts[operationFact], args = operation, under(operation, args)
	}
	ask := asked{model: request.Model, metadata: &request.Metadata, args: args, facts: facts, texts: func() []injection.Text { return textsOf(request) }}
	return g.decided(r.Context(), v, ask, func(ctx context.Context) (*inference.Usage, error) {
		return act(ctx, v.seen.marked(request), stream)
	})
}

// asked is what one call of a model asks for, as it is decided on.
type asked struct {
	model    string
	metadata *inference.RequestMetadata
	args     []byte
	facts    map[string]any
	// texts are what a model would read, to be judged.
	texts func() []injection.Text
}

// metadata says on whose account a call is made.
func metadata(r *http.Request, v *visit, class inference.Classification) inference.RequestMetadata {
	return inference.RequestMetadata{
		Sandbox: v.Sandbox, Agent: v.agent, OnBehalfOf: v.Caller.Chain().Human(), TraceID: creto.TraceOf(r.Context()), IdempotencyKey: v.key, Classification: class, NoStore: noStore(r.Header), Served: new(inference.Served),
	}
}

// decided has act make a call that is permitted, and records it.
func (g *Gateway) decided(ctx context.Context, v *visit, a asked, act func(context.Context) (*inference.Usage, error)) error {
	action := a.action(v)
	seen, err := g.inspect(ctx, v, action, a.texts)
	if err != nil {
		return err
	}
	v.seen = seen
	id, err := g.gate.DoDecided(ctx, v.Caller, action, func(ctx context.Context, allowed authz.Decision) (gate.Result, error) {
		a.permitted(allowed)
		a.metadata.Embedder = g.embedder(ctx, v, a.metadata)
		return v.inForce(g.cfg.Timeout, func(ctx context.Context) (gate.Result, error) {
			used, err := act(ctx)
			return v.seen.noted(result(a, used)), err
		})(ctx)
	})
	recorded(ctx, id, err)
	return err
}

// action is what is decided on.
func (a asked) action(v *visit) creto.Action {
	if class := a.metadata.Classification; class != "" {
		a.facts["classification"] = string(class)
	}
	return creto.Action{
		Name: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: a.model}, Args: a.args, Context: a.facts,
		IdempotencyKey: v.key, Sandbox: v.Sandbox, Isolation: v.Isolation,
	}
}

// permitted notes what permitted the call.
func (a asked) permitted(by authz.Decision) {
	for _, policy := range by.Policies {
		a.metadata.Policies = append(a.metadata.Policies, policy.ID)
	}
}

// What policies and records call the operation of a call that is no answer.
const operationFact = "operation"

// under wraps the arguments of an operation: consent to it is none to another's.
func under(operation string, args []byte) []byte {
	return slices.Concat([]byte(`{"`+operation+`":`), args, []byte("}"))
}

// classification returns what a request says of itself.
//
// Errors: InvalidArgument (Permanent) for what is no name, or more than one.
func classification(h http.Header) (inference.Classification, error) {
	values := h.Values(ClassificationHeader)
	if len(values) == 0 {
		return "", nil
	}
	class := inference.Classification(values[0])
	if err := class.Validate(); err != nil || len(values) > 1 {
		return "", fault.New("gateway.classification", fault.InvalidArgument, "%s: one classification is expected, such as %s", ClassificationHeader, inference.ClassificationInternal)
	}
	return class, nil
}

// result is what a record says of a call.
func result(a asked, used *inference.Usage) gate.Result {
	served := a.metadata.Served
	r := gate.Result{Detail: map[string]string{"provider": served.Provider}}
	if served.Provider == "" {
		delete(r.Detail, "provider")
	}
	if served.Model != "" && served.Model != a.model {
		r.Detail["model"] = served.Model
	}
	if served.Attempts > 1 {
		r.Detail["attempts"] = strconv.Itoa(served.Attempts)
	}
	if served.Cache != "" {
		r.Detail["cache"] = served.Cache
	}
	if served.Similarity != "" {
		r.Detail["similarity"] = served.Similarity
	}
	if class := a.metadata.Classification; class != "" {
		r.Detail["classification"] = string(class)
	}
	if used == nil {
		return r
	}
	r.Usage = &audit.Usage{PromptTokens: used.PromptTokens, CompletionTokens: used.CompletionTokens, Estimated: used.Estimated}
	for name, n := range map[string]int64{"cached_tokens": used.CachedTokens, "cache_write_tokens": used.CacheWriteTokens, "reasoning_tokens": used.ReasoningTokens} {
		if n > 0 {
			r.Detail[name] = strconv.FormatInt(n, 10)
		}
	}
	return r
}

func complete(ctx context.Context, w *startedWriter, d dialect, m inference.Model, r inference.Request) (*inference.Usage, error) {
	response, err := m.Complete(ctx, r)
	if err != nil && response.Usage.PromptTokens == 0 && response.Usage.CompletionTokens == 0 {
		return nil, err
	}
	if err != nil { // there was an answer, which may not be passed on
		return &response.Usage, err
	}
	data, err := d.answer(response)
	if err != nil {
		return &response.Usage, err
	}
	w.cached(r.Metadata.Served)
	return &response.Usage, w.whole(data)
}

// whole sends an answer that is complete.
func (w *startedWriter) whole(data []byte) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	return w.send(data)
}

// eventStream is the media type of a streamed answer.
const eventStream = "text/event-stream"

// streamed passes pieces on as they come, those that come together at once. What was
// said before an error, or before the caller went away, is metered (B-24).
func streamed(ctx context.Context, w *startedWriter, d dialect, m inference.Model, r inference.Request) (*inference.Usage, error) {
	const op fault.Op = "gateway.stream"
	used := func(u inference.Usage) *inference.Usage { return &u }
	s, err := m.CompleteStream(ctx, r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	w.cached(r.Metadata.Served)
	w.Header().Set("Content-Type", eventStream)
	w.Header().Set("Cache-Control", "no-store")
	events := d.events(r)
	flushed := true
	for {
		if !flushed && !s.Ready() {
			if err := w.send(nil); err != nil {
				return used(s.Usage()), err
			}
			flushed = true
		}
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
			return used(s.Usage()), fault.Wrap(op, err)
		}
		switch {
		case over:
			return used(s.Usage()), w.send(data)
		case len(data) > 0:
			if _, err := w.Write(data); err != nil {
				return used(s.Usage()), left(err)
			}
			flushed = false
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
	seen := map[string]bool{}
	for _, m := range append(g.models.Providers(), g.models) { // last what routes alone name
		for _, name := range m.Capabilities().Models {
			if !strings.HasSuffix(name, "*") && !seen[name] {
				seen[name] = true
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
