package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// stubModel is the name under which the stub answers, whatever it was asked for.
const stubModel = "creto-demo-stub"

// api is the vendor's HTTP interface in front of the rules.
type api struct {
	key    string   // the bearer to require; "" requires none
	models []string // the names to answer to
	now    func() time.Time
}

// handler returns the interface, rooted at /v1.
func (a *api) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", a.answer(a.complete))
	mux.HandleFunc("GET /v1/models", a.answer(a.listModels))
	mux.HandleFunc("GET /v1/models/{model}", a.answer(a.getModel))
	mux.HandleFunc("/v1/chat/completions", a.answer(func(_ http.ResponseWriter, r *http.Request) error {
		return newError(http.StatusMethodNotAllowed, "", "method_not_supported", "Not allowed to %s on /v1/chat/completions.", r.Method)
	}))
	mux.HandleFunc("/", a.answer(func(_ http.ResponseWriter, r *http.Request) error {
		return newError(http.StatusNotFound, "", "unknown_url", "Unknown request URL: %s %s.", r.Method, r.URL.Path)
	}))
	return mux
}

// answer requires the key and turns serve's error into the vendor's form.
func (a *api) answer(serve func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := a.authenticate(r)
		if err == nil {
			err = serve(w, r)
		}
		if err == nil {
			return
		}
		bad, ok := errors.AsType[*apiError](err)
		if !ok {
			return // the client has gone
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(bad.Status)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": bad})
	}
}

func (a *api) authenticate(r *http.Request) error {
	if a.key == "" {
		return nil
	}
	key, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return newError(http.StatusUnauthorized, "", "", "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth.")
	}
	if subtle.ConstantTimeCompare([]byte(key), []byte(a.key)) != 1 {
		return newError(http.StatusUnauthorized, "", "invalid_api_key", "Incorrect API key provided.")
	}
	return nil
}

// modelInfo describes a model.
type modelInfo struct {
	ID      string `json:"id"`
	Object  string `json:"object"` // always "model"
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func (a *api) listModels(w http.ResponseWriter, _ *http.Request) error {
	list := make([]modelInfo, len(a.models))
	for i, name := range a.models {
		list[i] = modelInfo{ID: name, Object: "model", OwnedBy: stubModel}
	}
	return writeJSON(w, map[string]any{"object": "list", "data": list})
}

func (a *api) getModel(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("model")
	if err := a.checkModel(name); err != nil {
		return err
	}
	return writeJSON(w, modelInfo{ID: name, Object: "model", OwnedBy: stubModel})
}

func (a *api) checkModel(name string) error {
	if !slices.Contains(a.models, name) {
		return newError(http.StatusNotFound, "", "model_not_found", "The model `%s` does not exist or you do not have access to it.", name)
	}
	return nil
}

// usage counts tokens, estimated as characters divided by four.
type usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	TotalTokens      int `json:"total_tokens"`
}

// tokens estimates the tokens of text. It is an estimate: the stub has no
// tokenizer.
func tokens(text ...string) int {
	characters := 0
	for _, t := range text {
		characters += utf8.RuneCountInString(t)
	}
	return (characters + 3) / 4
}

// promptText returns the parts of r that a model would read.
func promptText(r *request) []string {
	var text []string
	for _, m := range r.Messages {
		text = append(text, m.Content.Text)
		for _, c := range m.ToolCalls {
			text = append(text, c.Function.Name, c.Function.Arguments)
		}
	}
	for _, t := range r.Tools {
		text = append(text, t.Function.Name, t.Function.Description, string(t.Function.Parameters))
	}
	return text
}

// answerText returns the parts of s that count as written by the model.
func answerText(s step) []string {
	text := []string{s.Text}
	for _, c := range s.Calls {
		text = append(text, c.Name, c.Arguments)
	}
	return text
}

// completion is an answer, or one chunk of it.
type completion struct {
	ID                string   `json:"id"`
	Object            string   `json:"object"`
	Created           int64    `json:"created"`
	Model             string   `json:"model"`
	SystemFingerprint string   `json:"system_fingerprint"`
	Choices           []choice `json:"choices"`
	Usage             *usage   `json:"usage,omitempty"`
}

// choice holds a Message when whole, a Delta when streamed.
type choice struct {
	Index        int      `json:"index"`
	Message      *written `json:"message,omitempty"`
	Delta        *delta   `json:"delta,omitempty"`
	Logprobs     *string  `json:"logprobs"` // always null
	FinishReason *string  `json:"finish_reason"`
}

// written is a whole message by the model.
type written struct {
	Role        string     `json:"role"`
	Content     *string    `json:"content"` // null when the model calls tools
	Refusal     *string    `json:"refusal"` // always null
	ToolCalls   []toolCall `json:"tool_calls,omitempty"`
	Annotations []string   `json:"annotations"` // always empty
}

// delta is what a chunk adds to the message.
type delta struct {
	Role      string      `json:"role,omitempty"`
	Content   *string     `json:"content,omitempty"`
	ToolCalls []callDelta `json:"tool_calls,omitempty"`
}

// callDelta is what a chunk adds to a tool call.
type callDelta struct {
	Index    int    `json:"index"`
	ID       string `json:"id,omitempty"`
	Type     string `json:"type,omitempty"`
	Function struct {
		Name      string `json:"name,omitempty"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

// complete answers POST /v1/chat/completions.
func (a *api) complete(w http.ResponseWriter, r *http.Request) error {
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		return newError(http.StatusBadRequest, "", "", "Invalid Content-Type header (%s), expected application/json.", r.Header.Get("Content-Type"))
	}
	req, err := parseRequest(r.Body)
	if err != nil {
		return err
	}
	if err := a.checkModel(req.Model); err != nil {
		return err
	}
	next := plan(req)
	finish := "stop"
	if len(next.Calls) > 0 {
		finish = "tool_calls"
	} else if limit := req.tokenLimit(); limit > 0 && tokens(next.Text) > limit {
		next.Text = string([]rune(next.Text)[:4*limit])
		finish = "length"
	}
	id := conversationID(req)
	calls := make([]toolCall, len(next.Calls))
	for i, c := range next.Calls {
		calls[i] = toolCall{ID: fmt.Sprintf("call_%s%02d", id[:20], i), Type: "function", Function: c}
	}
	out := completion{
		ID: "chatcmpl-" + id[:29], Object: "chat.completion", Created: a.now().Unix(),
		Model: stubModel, SystemFingerprint: stubModel,
	}
	used := usage{PromptTokens: tokens(promptText(req)...), CompletionTokens: tokens(answerText(next)...)}
	used.TotalTokens = used.PromptTokens + used.CompletionTokens
	if req.Stream {
		includeUsage := req.StreamOptions != nil && req.StreamOptions.IncludeUsage
		return stream(w, out, next.Text, calls, finish, used, includeUsage)
	}
	m := &written{Role: "assistant", ToolCalls: calls, Annotations: []string{}}
	if len(calls) == 0 {
		m.Content = &next.Text
	}
	out.Choices = []choice{{Message: m, FinishReason: &finish}}
	out.Usage = &used
	return writeJSON(w, out)
}

// tokenLimit returns the most tokens that the answer may have, or 0.
func (r *request) tokenLimit() int {
	switch {
	case r.MaxCompletion != nil:
		return *r.MaxCompletion
	case r.MaxTokens != nil:
		return *r.MaxTokens
	}
	return 0
}

// conversationID returns hexadecimal digits that depend on what was said, so
// that ids are unique within a conversation and the same in every run.
func conversationID(r *request) string {
	sum := sha256.New()
	for _, part := range promptText(r) {
		fmt.Fprintf(sum, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// fragmentRunes is the size of the pieces in which the stub streams.
const fragmentRunes = 16

// stream sends the answer as server-sent events, in the vendor's order: the
// role, the text or the calls piece by piece, the reason for the end, the usage
// if asked for, and [DONE].
func stream(w http.ResponseWriter, head completion, text string, calls []toolCall, finish string, used usage, includeUsage bool) error {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	head.Object = "chat.completion.chunk"
	send := func(choices []choice, u *usage) error {
		chunk := head
		chunk.Choices, chunk.Usage = choices, u
		body, err := json.Marshal(chunk)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "data: %s\n\n", body); err != nil {
			return err
		}
		return http.NewResponseController(w).Flush()
	}
	deltas := []delta{{Role: "assistant", Content: new(string)}}
	for _, piece := range fragments(text) {
		deltas = append(deltas, delta{Content: &piece})
	}
	for i, c := range calls {
		d := callDelta{Index: i, ID: c.ID, Type: c.Type}
		d.Function.Name = c.Function.Name
		deltas = append(deltas, delta{ToolCalls: []callDelta{d}})
		for _, piece := range fragments(c.Function.Arguments) {
			d := callDelta{Index: i}
			d.Function.Arguments = piece
			deltas = append(deltas, delta{ToolCalls: []callDelta{d}})
		}
	}
	if len(calls) > 0 {
		deltas[0].Content = nil
	}
	for _, d := range deltas {
		if err := send([]choice{{Delta: &d}}, nil); err != nil {
			return err
		}
	}
	if err := send([]choice{{Delta: &delta{}, FinishReason: &finish}}, nil); err != nil {
		return err
	}
	if includeUsage {
		if err := send([]choice{}, &used); err != nil {
			return err
		}
	}
	_, err := fmt.Fprint(w, "data: [DONE]\n\n")
	return err
}

// fragments cuts text into the pieces in which it is streamed.
func fragments(text string) []string {
	var pieces []string
	for runes := range slices.Chunk([]rune(text), fragmentRunes) {
		pieces = append(pieces, string(runes))
	}
	return pieces
}

func writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}
