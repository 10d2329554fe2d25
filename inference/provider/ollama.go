package provider

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"

	"creto.dev/fault"
	"creto.dev/inference"
)

// Ollama is a client of one server of Ollama in its own dialect, which has words
// for its options, such as num_ctx, that its layer for OpenAI's clients has not.
// Make it with [NewOllama]; close it when it is no longer needed.
type Ollama struct{ *client }

var _ inference.Model = (*Ollama)(nil)

// NewOllama returns a client. BaseURL is the server's address, without /api. It
// connects only when it is used.
//
// Errors: InvalidArgument (Permanent), with every problem of the configuration.
func NewOllama(c Config) (*Ollama, error) {
	client, err := newClient("provider.NewOllama", c)
	if err != nil {
		return nil, err
	}
	client.list, client.media, client.split = "api/tags", "application/x-ndjson", jsonLines
	client.fault = ollamaFault
	client.sign = func(_ context.Context, _ fault.Op, h http.Header) error {
		if !c.APIKey.IsZero() { // of a proxy, or of Ollama's cloud
			h.Set("Authorization", "Bearer "+c.APIKey.Reveal())
		}
		return nil
	}
	return &Ollama{client}, nil
}

// Complete implements [inference.Model].
func (o *Ollama) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	const op fault.Op = "provider.Ollama.Complete"
	var none inference.Response
	if err := o.config.stays(op, r); err != nil {
		return none, err
	}
	body, err := encodeOllamaRequest(r, false)
	if err != nil {
		return none, fault.Wrap(op, err)
	}
	answer, err := o.exchange(ctx, op, "api/chat", body, idempotency(r.Metadata))
	if err != nil {
		return none, err
	}
	said, err := decodeOllama(answer, 0)
	if err == nil && !said.done {
		err = errors.New("done: the answer is not whole")
	}
	if err != nil {
		return none, fault.WrapAs(op, fault.InferenceProviderError, err, "the provider's answer is not in the dialect")
	}
	response := inference.Response{Model: said.model, Dialect: inference.DialectOllama, Usage: said.usage, Choices: []inference.Choice{said.choice}}
	if !counted(said.usage) {
		response.Usage = estimate(r, response.SizeBytes())
	}
	return response, nil
}

// counted reports whether a server counted all: it leaves out a prompt that it had
// kept.
func counted(u inference.Usage) bool { return u.PromptTokens > 0 && u.CompletionTokens > 0 }

// CompleteStream implements [inference.Model].
func (o *Ollama) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	const op fault.Op = "provider.Ollama.CompleteStream"
	if err := o.config.stays(op, r); err != nil {
		return nil, err
	}
	body, err := encodeOllamaRequest(r, true)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	return o.stream(ctx, op, "provider.Ollama.Next", "api/chat", body, idempotency(r.Metadata), r, &ollamaPieces{})
}

// Embed implements [inference.Model]. A text that is too long is refused, not cut.
func (o *Ollama) Embed(ctx context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	const op fault.Op = "provider.Ollama.Embed"
	var none inference.EmbedResponse
	switch {
	case !o.config.Capabilities.Embeddings:
		return none, fault.New(op, fault.InferenceNotSupported, "provider %s has no embeddings", o.config.Name)
	case r.Model == "":
		return none, fault.New(op, fault.InvalidArgument, "model: required")
	case len(r.Input) == 0:
		return none, fault.New(op, fault.InvalidArgument, "input: at least one text is required")
	}
	if err := o.config.staysModel(op, r.Model); err != nil {
		return none, err
	}
	f := fieldsOf(r.Extra)
	delete(f, "encoding_format") // how a client wants the numbers
	delete(f, "user")
	f["model"], f["input"], f["truncate"] = r.Model, r.Input, false
	body, err := encode(f)
	if err != nil {
		return none, fault.WrapAs(op, fault.InvalidArgument, err, "a field of the request is not JSON")
	}
	answer, err := o.exchange(ctx, op, "api/embed", body, idempotency(r.Metadata))
	if err != nil {
		return none, err
	}
	var said struct {
		Model      string      `json:"model"`
		Embeddings [][]float32 `json:"embeddings"`
		Count      int64       `json:"prompt_eval_count"`
	}
	err = json.Unmarshal(answer, &said)
	if err == nil && len(said.Embeddings) != len(r.Input) {
		err = fmt.Errorf("embeddings: %d of %d", len(said.Embeddings), len(r.Input))
	}
	for i, vector := range said.Embeddings {
		if len(vector) == 0 && err == nil {
			err = fmt.Errorf("embeddings[%d]: holds no vector", i)
		}
	}
	if err != nil {
		return none, fault.WrapAs(op, fault.InferenceProviderError, foreign(err), "the provider's answer is not in the dialect")
	}
	response := inference.EmbedResponse{Model: said.Model, Embeddings: said.Embeddings, Usage: inference.Usage{PromptTokens: said.Count}}
	if said.Count <= 0 || said.Count > maxCount {
		response.Usage = inference.Usage{Estimated: true}
		for _, text := range r.Input {
			response.Usage.PromptTokens += inference.EstimateTokens(len(text))
		}
	}
	return response, nil
}

// ollamaTop are fields that stand beside the options.
var ollamaTop = []string{"keep_alive", "think", "logprobs", "truncate", "shift"}

// encodeOllamaRequest writes the body of POST /api/chat. What is not known is an
// option: the server ignores those that it does not know either.
//
// Errors: those of [EncodeAnthropicRequest].
func encodeOllamaRequest(r inference.Request, stream bool) ([]byte, error) {
	const op fault.Op = "provider.encodeOllamaRequest"
	if err := r.Validate(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	e := &speaker{dialect: "Ollama"}
	rest := fieldsOf(r.Extra)
	options := e.ollamaOptions(r, rest)
	rest, err := rest.from(r.Dialect, inference.DialectOllama)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	e.reserve(rest, "messages", "model", "tools", "format", "stream", "system", "template", "prompt", "suffix", "raw", "context", "images")
	f := fields{"model": r.Model, "stream": stream}
	for _, name := range ollamaTop {
		f.raw(name, rest.take(name))
	}
	for name, value := range rest {
		if _, known := options[name]; !known {
			options[name] = value
		}
	}
	if len(options) > 0 {
		f["options"] = options
	}
	f["messages"] = e.ollamaMessages(r.Messages)
	e.oneCall(r)
	if tools := e.ollamaTools(r); tools != nil {
		f["tools"] = tools
	}
	if rf := r.ResponseFormat; rf != nil && rf.Type == "json_object" {
		f["format"] = "json"
	} else if schema := e.schema(rf); schema != nil {
		f["format"] = schema
	}
	e.at = "reasoning_effort"
	switch r.ReasoningEffort {
	case "":
	case "none":
		f["think"] = false
	case "minimal":
		f["think"] = "low" // the least there is
	case "low", "medium", "high":
		f["think"] = r.ReasoningEffort
	default:
		e.cannot("%q", r.ReasoningEffort)
	}
	if e.err != nil {
		return nil, fault.Wrap(op, e.err)
	}
	body, err := encode(f)
	return body, fault.WrapAs(op, fault.InvalidArgument, err, "a field of the request is not JSON")
}

// ollamaOptions takes what Ollama has in one object.
func (s *speaker) ollamaOptions(r inference.Request, f fields) fields {
	options := fields{}
	if raw := f.take("options"); raw != nil {
		o := parseObject(raw, "options")
		if o.err != nil {
			s.at = "options"
			s.fail(fault.InvalidArgument, "expected an object")
		}
		maps.Copy(options, fieldsOf(o.left()))
	}
	for name := range vertexNumbers { // which are called alike here
		if raw := f.take(name); raw != nil {
			options[name] = raw
		}
	}
	if r.MaxTokens > 0 {
		options["num_predict"] = r.MaxTokens
	}
	if r.Temperature != "" {
		options["temperature"] = json.Number(r.Temperature)
	}
	if len(r.Stop) > 0 {
		options["stop"] = r.Stop
	}
	return options
}

func (s *speaker) ollamaMessages(messages []inference.Message) []fields {
	list := make([]fields, 0, len(messages))
	names := map[string]string{} // of functions, by the ids of their calls
	for i, m := range messages {
		s.at = fmt.Sprintf("messages[%d]", i)
		f := fields{"role": m.Role}
		switch m.Role {
		case inference.RoleDeveloper:
			f["role"] = inference.RoleSystem
		case inference.RoleTool:
			name, known := names[m.ToolCallID]
			if !known {
				s.fail(fault.InvalidArgument, "the result of %q, which was not called", m.ToolCallID)
			}
			f["tool_name"] = name
		case inference.RoleSystem, inference.RoleUser, inference.RoleAssistant:
		default:
			s.cannot("a message of the role %q", m.Role)
		}
		var texts, images []string
		var calls []fields
		s.each(m, func(p inference.Part) {
			switch {
			case p.Image != nil:
				if _, err := base64.StdEncoding.DecodeString(p.Image.Data); p.Image.MediaType == "" || err != nil {
					s.cannot("an image that is not here, in base64")
				}
				images = append(images, p.Image.Data)
			case p.Reasoning == nil:
				texts = append(texts, p.Text)
			}
		}, func(c inference.ToolCall) {
			names[c.ID] = c.Name
			calls = append(calls, fields{functionType: fields{"name": c.Name, "arguments": json.RawMessage(c.Arguments)}})
		})
		f["content"] = strings.Join(texts, "\n")
		if images != nil {
			f["images"] = images
		}
		if calls != nil {
			f["tool_calls"] = calls
		}
		list = append(list, f)
	}
	return list
}

func (s *speaker) ollamaTools(r inference.Request) []fields {
	s.at = "tool_choice"
	if c := r.ToolChoice; c != nil && len(r.Tools) > 0 {
		switch c.Mode {
		case inference.ToolsAuto:
		case inference.ToolsNone:
			return nil
		default:
			s.cannot("a call that must be made")
		}
	}
	var tools []fields
	for i, t := range r.Tools {
		s.tool(i, t)
		function := fields{"name": t.Name}
		function.text("description", t.Description)
		function["parameters"] = json.RawMessage(`{"type":"object"}`)
		if t.Parameters != nil {
			function["parameters"] = t.Parameters
		}
		tools = append(tools, fields{"type": functionType, functionType: function})
	}
	return tools
}

// ollamaAnswer is an answer of /api/chat, or a piece of one.
type ollamaAnswer struct {
	model  string
	choice inference.Choice
	usage  inference.Usage
	done   bool
	failed bool // it is an error
}

// decodeOllama reads an answer; the first of its calls is the one after tools
// others. How long things took is left out.
func decodeOllama(body []byte, tools int) (a ollamaAnswer, err error) {
	o := parseObject(body, "")
	if o.err != nil {
		return a, o.err
	}
	a.failed = o.raw("error") != nil
	a.model, a.done = o.str("model"), o.boolean("done")
	a.usage = inference.Usage{PromptTokens: o.integer("prompt_eval_count"), CompletionTokens: o.integer("eval_count")}
	for _, n := range []int64{a.usage.PromptTokens, a.usage.CompletionTokens} {
		if n < 0 || n > maxCount {
			o.fail("eval_count", "expected a count")
		}
	}
	reason := o.str("done_reason")
	m := &a.choice.Message
	if said := o.object("message"); said != nil {
		m.Role = inference.Role(said.str("role"))
		if text := said.str("thinking"); text != "" {
			m.Content = append(m.Content, inference.Part{Type: thinkingType, Text: text, Reasoning: &inference.Reasoning{}})
		}
		if text := said.str("content"); text != "" {
			m.Content = append(m.Content, inference.Part{Type: textBlock, Text: text})
		}
		for i, raw := range said.list("tool_calls") {
			c := parseObject(raw, fmt.Sprintf("message.tool_calls[%d]", i))
			id := c.str("id")
			f := c.object(functionType)
			if f == nil {
				return a, fmt.Errorf("%s: not a call", c.path)
			}
			name, arguments := f.str("name"), f.raw("arguments")
			if arguments == nil {
				arguments = json.RawMessage("{}")
			}
			if f.err != nil || c.err != nil || name == "" || !isObject(string(arguments)) {
				return a, fmt.Errorf("%s: not a call", c.path)
			}
			if id == "" {
				id = "call_" + rand.Text()
			}
			m.ToolCalls = append(m.ToolCalls, inference.ToolCall{Index: tools + i, Type: functionType, ID: id, Name: name, Arguments: string(arguments)})
		}
		if said.err != nil {
			return a, said.err
		}
	}
	if a.done {
		a.choice.StopReason, a.choice.FinishReason = reason, reason
		if reason == "" {
			a.choice.FinishReason = "stop"
		}
		if a.choice.FinishReason == "stop" && tools+len(m.ToolCalls) > 0 {
			a.choice.FinishReason = "tool_calls"
		}
	}
	return a, o.err
}

// ollamaPieces are the lines of a streamed answer.
type ollamaPieces struct {
	tools   int
	counted inference.Usage
}

func (p *ollamaPieces) decode(op fault.Op, data []byte) (inference.Chunk, bool, error) {
	c := inference.Chunk{Dialect: inference.DialectOllama}
	a, err := decodeOllama(data, p.tools)
	switch {
	case err != nil:
		return c, false, refuse("provider.ollamaPieces", err)
	case a.failed:
		e, _ := parseOpenAIError(data)
		code, message, ok := ollamaMeaning(e.Message)
		if !ok {
			code, message = fault.InferenceProviderUnavailable, "the provider broke off its answer with an error"
		}
		return c, false, fault.WrapAs(op, code, e.cause(http.StatusOK), "%s", message)
	}
	p.tools += len(a.choice.Message.ToolCalls)
	c.Model, c.Choices = a.model, []inference.Choice{a.choice}
	if a.done {
		p.counted = a.usage
		if counted(a.usage) {
			c.Usage = &a.usage
		}
		return c, true, io.EOF
	}
	return c, true, nil
}

// complete implements pieces: an answer ends with done, and never without.
func (p *ollamaPieces) complete() bool { return false }

func (p *ollamaPieces) usage() (inference.Usage, bool) { return p.counted, counted(p.counted) }

// ollamaMeaning is what an error is, by what is said: there are no codes.
func ollamaMeaning(says string) (fault.Code, string, bool) {
	switch says = strings.ToLower(says); {
	case strings.Contains(says, "not found"):
		return fault.InferenceModelNotFound, "the provider has no such model", true
	case strings.Contains(says, "does not support"):
		return fault.InferenceNotSupported, "the model does not support this", true
	case strings.Contains(says, "context length"):
		return fault.InferenceTokenLimitExceeded, "the prompt and answer are longer than the model's context", true
	}
	return 0, "", false
}

// ollamaFault is what an answer that is no success means.
func ollamaFault(op fault.Op, status int, header http.Header, body []byte) error {
	e, structured := parseOpenAIError(body)
	code, message := statusMeaning(status, structured)
	if c, m, ok := ollamaMeaning(e.Message); ok && structured && status < http.StatusInternalServerError {
		code, message = c, m
	}
	err := fault.WrapAs(op, code, e.cause(status), "%s", message)
	if wait := retryAfter(header); wait > 0 && fault.Retryable(err) {
		err = fault.After(err, wait)
	}
	return err
}
