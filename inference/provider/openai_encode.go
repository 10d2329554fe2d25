package provider

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"creto.dev/fault"
	"creto.dev/inference"
)

// EncodeOpenAIRequest writes the body of POST /v1/chat/completions. The same
// request gives the same bytes. Metadata and Betas are not part of it.
//
// Of a request in another dialect, hints are left out (cache control, earlier
// reasoning, budgets for it), and top-level fields that are not known are passed
// on, for the upstream to judge.
//
// Errors: InvalidArgument (Permanent) for a request that does not validate or
// whose Extra is not JSON; InferenceNotSupported (Permanent) for one that this
// dialect cannot say.
func EncodeOpenAIRequest(r inference.Request, stream bool) ([]byte, error) {
	const op fault.Op = "provider.EncodeOpenAIRequest"
	if err := r.Validate(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if body, ok := appendRequest(r, stream); ok {
		return body, nil
	}
	body, err := encodeRequest(r, stream)
	return body, fault.Wrap(op, err)
}

// encodeRequest writes any request.
func encodeRequest(r inference.Request, stream bool) ([]byte, error) {
	const op fault.Op = "provider.encodeRequest"
	e := &openAIEncoder{native: r.Dialect.Is(inference.DialectOpenAI), whole: true, request: true}
	f, err := fieldsOf(r.Extra).from(r.Dialect, inference.DialectOpenAI)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	f["model"] = r.Model
	messages := make([]fields, len(r.Messages))
	for i, m := range r.Messages {
		e.at = fmt.Sprintf("messages[%d]", i)
		messages[i] = e.message(m)
	}
	f["messages"] = messages
	if len(r.Tools) > 0 {
		tools := make([]fields, len(r.Tools))
		for i, t := range r.Tools {
			e.at = fmt.Sprintf("tools[%d]", i)
			tools[i] = e.tool(t)
		}
		f["tools"] = tools
	}
	delete(f, "tool_choice")
	if c := r.ToolChoice; c != nil {
		e.at = "tool_choice"
		f["tool_choice"] = e.toolChoice(*c)
	}
	f.flag("parallel_tool_calls", r.ParallelToolCalls)
	if !e.native && len(r.Tools) == 0 {
		delete(f, "parallel_tool_calls") // means nothing, and OpenAI refuses it
	}
	f.text("reasoning_effort", r.ReasoningEffort)
	f.text("user", r.User)
	delete(f, "cache_control")
	if e.native {
		f.raw("cache_control", r.CacheControl)
	}
	if rf := r.ResponseFormat; rf != nil {
		f["response_format"] = e.format(*rf)
	}
	delete(f, "max_tokens")
	if _, newer := r.Extra[maxCompletionTokens]; newer || !e.native && r.MaxTokens > 0 {
		f[maxCompletionTokens] = r.MaxTokens
	} else if r.MaxTokens > 0 {
		f["max_tokens"] = r.MaxTokens
	}
	delete(f, "temperature")
	if r.Temperature != "" {
		f["temperature"] = json.Number(r.Temperature)
	}
	delete(f, "stop")
	if len(r.Stop) > 0 {
		f["stop"] = r.Stop
	}
	delete(f, "stream")
	delete(f, "stream_options")
	if stream {
		f["stream"] = true
		if o := r.StreamOptions; o != nil {
			options := fieldsOf(o.Extra)
			options["include_usage"] = o.IncludeUsage
			f["stream_options"] = options
		}
	}
	if e.err != nil {
		return nil, fault.Wrap(op, e.err)
	}
	body, err := encode(f)
	return body, fault.WrapAs(op, fault.InvalidArgument, err, "a field of the request is not JSON")
}

// openAIEncoder writes what is said, in a request or an answer.
type openAIEncoder struct {
	native  bool // it is in this dialect already
	whole   bool // it is no piece of a stream, which says only what is new
	request bool
	at      string // where we are, for messages
	err     error  // the first thing that cannot be said
}

func (e *openAIEncoder) cannot(format string, args ...any) {
	if e.err == nil {
		e.err = fault.New("provider.openAIEncoder", fault.InferenceNotSupported, "%s: %s cannot be said in OpenAI's dialect", e.at, fmt.Sprintf(format, args...))
	}
}

// extra are the fields of something smaller than a request. In another dialect
// they mean something else, or nothing.
func (e *openAIEncoder) extra(x inference.Extra) fields {
	if !e.native {
		return fields{}
	}
	return fieldsOf(x)
}

func (e *openAIEncoder) message(m inference.Message) fields {
	f := e.extra(m.Extra)
	f.text("role", string(m.Role))
	f.text("name", m.Name)
	f.text("tool_call_id", m.ToolCallID)
	f.text("refusal", m.Refusal)
	var thought, said []inference.Part
	for _, p := range m.Content {
		if p.Reasoning != nil {
			thought = append(thought, p)
		} else {
			said = append(said, p)
		}
	}
	e.reasoning(f, thought)
	switch {
	case said == nil && (m.Content == nil || len(thought) > 0):
		delete(f, "content")
		if e.whole {
			f["content"] = nil
		}
	case len(said) == 1 && said[0].Type == "" && said[0].IsText():
		f["content"] = said[0].Text
	case !e.native && (!e.request || m.Role != inference.RoleUser || len(said) == 1):
		e.flat(f, m.Role, said)
	default:
		f["content"] = e.parts(said)
	}
	delete(f, "tool_calls")
	if len(m.ToolCalls) > 0 {
		calls := make([]fields, len(m.ToolCalls))
		for i, c := range m.ToolCalls {
			calls[i] = e.toolCall(c)
		}
		f["tool_calls"] = calls
	}
	return f
}

// reasoning writes what was thought. It is sent back only to who said it: some
// servers refuse what others wrote.
func (e *openAIEncoder) reasoning(f fields, thought []inference.Part) {
	if len(thought) == 0 || !e.native && e.request {
		return
	}
	name, text := reasoningFields[0], ""
	var blocks []fields
	for _, p := range thought {
		if p.Type == reasoningFields[1] {
			name = p.Type
		}
		text += p.Text
		if p.Reasoning.Signature != "" || p.Reasoning.Redacted != "" {
			blocks = append(blocks, thinkingBlock(p))
		}
	}
	if text != "" || e.native {
		f[name] = text
	}
	// As LiteLLM calls it: what a client must send back for a provider that signs.
	if len(blocks) > 0 {
		f[thinkingBlocks] = blocks
	}
}

// flat writes the content of another dialect as one text where that is possible:
// in an answer everywhere, and in what assistants and tools say, because many
// servers take nothing else there.
func (e *openAIEncoder) flat(f fields, role inference.Role, said []inference.Part) {
	between := ""
	if role != inference.RoleAssistant && e.request {
		between = "\n"
	}
	var texts []string
	for _, p := range said {
		switch {
		case p.IsText():
			texts = append(texts, p.Text)
		case e.request && p.Image != nil:
			f["content"] = e.parts(said)
			return
		case e.request:
			e.cannot("content of type %q", p.Type)
			return
		}
	}
	switch {
	case texts != nil:
		f["content"] = strings.Join(texts, between)
	case e.whole:
		f["content"] = nil
	}
}

func (e *openAIEncoder) parts(said []inference.Part) []fields {
	parts := make([]fields, len(said))
	for i, p := range said {
		f := e.extra(p.Extra)
		f["type"] = p.Type
		switch {
		case p.Image != nil:
			f["type"], f[imageType] = imageType, e.image(*p.Image)
		case !e.native && !p.IsText():
			e.cannot("content of type %q", p.Type)
		case p.Type == "":
			f["type"] = "text"
		}
		if p.Text != "" || f["type"] == "text" {
			f["text"] = p.Text
		}
		if e.native {
			f.raw("cache_control", p.CacheControl)
		}
		parts[i] = f
	}
	return parts
}

func (e *openAIEncoder) image(image inference.Image) fields {
	f := e.extra(image.Extra)
	switch {
	case image.FileID != "":
		e.cannot("an image that is a file of the provider's")
	case image.MediaType != "":
		f["url"] = "data:" + image.MediaType + ";base64," + image.Data
	default:
		f["url"] = image.URL
	}
	return f
}

func (e *openAIEncoder) toolCall(c inference.ToolCall) fields {
	f := e.extra(c.Extra)
	f.text("id", c.ID)
	f.text("type", c.Type)
	delete(f, "index")
	if !e.whole {
		f["index"] = c.Index
	}
	isFunction := c.Type == "" || c.Type == functionType
	if isFunction || c.Name != "" {
		function := e.extra(c.FunctionExtra)
		function.text("name", c.Name)
		function["arguments"] = c.Arguments
		f[functionType] = function
	}
	if e.whole && c.Type == "" {
		f["type"] = functionType
	}
	return f
}

// functionType is the type of a tool, and the field that describes it.
const functionType = "function"

func (e *openAIEncoder) tool(t inference.Tool) fields {
	f := e.extra(t.Extra)
	f["type"] = t.Type
	if t.Type == "" {
		f["type"] = functionType
	} else if t.Type != functionType && !e.native {
		e.cannot("a tool of type %q", t.Type)
	}
	if e.native {
		f.raw("cache_control", t.CacheControl)
	}
	if f["type"] == functionType || t.Name != "" {
		function := e.extra(t.FunctionExtra)
		function["name"] = t.Name
		function.text("description", t.Description)
		if t.Parameters != nil {
			function["parameters"] = t.Parameters
		}
		function.flag("strict", t.Strict)
		f[functionType] = function
	}
	return f
}

func (e *openAIEncoder) toolChoice(c inference.ToolChoice) any {
	switch c.Mode {
	case "":
		if !e.native {
			e.cannot("this choice")
		}
		return c.Raw
	case inference.ToolsNamed:
		return fields{"type": functionType, functionType: fields{"name": c.Name}}
	default:
		return c.Mode
	}
}

func (e *openAIEncoder) format(rf inference.ResponseFormat) fields {
	f := e.extra(rf.Extra)
	f["type"] = rf.Type
	delete(f, "json_schema")
	if rf.Schema != nil || rf.Name != "" || rf.Strict != nil || rf.SchemaExtra != nil {
		schema := e.extra(rf.SchemaExtra)
		schema.text("name", rf.Name)
		if rf.Name == "" && !e.native {
			schema["name"] = "answer" // OpenAI wants one
		}
		schema.raw("schema", rf.Schema)
		schema.flag("strict", rf.Strict)
		f["json_schema"] = schema
	}
	return f
}

// EncodeOpenAIResponse writes the body of an answer to /v1/chat/completions.
//
// Errors: Internal (Permanent) for an Extra that is not JSON.
func EncodeOpenAIResponse(r inference.Response) ([]byte, error) {
	if body, ok := appendResponse(r); ok {
		return body, nil
	}
	body, err := encodeResponse(r)
	return body, fault.Wrap("provider.EncodeOpenAIResponse", err)
}

// encodeResponse writes any answer.
func encodeResponse(r inference.Response) ([]byte, error) {
	f := fieldsOf(r.Extra)
	f["object"] = "chat.completion"
	f["id"], f["model"], f["created"] = r.ID, r.Model, r.Created
	e := &openAIEncoder{native: r.Dialect.Is(inference.DialectOpenAI), whole: true}
	f["choices"] = e.choices(r.Choices, "message")
	f["usage"] = encodeUsage(r.Usage)
	return encode(f)
}

// EncodeOpenAIChunk writes the data of one event of a streamed answer.
//
// Errors: Internal (Permanent) for an Extra that is not JSON.
func EncodeOpenAIChunk(c inference.Chunk) ([]byte, error) {
	if body, ok := encodeTextChunk(c); ok {
		return body, nil
	}
	body, err := encodeFields(c)
	return body, fault.Wrap("provider.EncodeOpenAIChunk", err)
}

// encodeFields writes any chunk.
func encodeFields(c inference.Chunk) ([]byte, error) {
	f := fieldsOf(c.Extra)
	f["object"] = "chat.completion.chunk"
	f["id"], f["model"], f["created"] = c.ID, c.Model, c.Created
	e := &openAIEncoder{native: c.Dialect.Is(inference.DialectOpenAI)}
	f["choices"] = e.choices(c.Choices, "delta")
	delete(f, "usage")
	if c.Usage != nil {
		f["usage"] = encodeUsage(*c.Usage)
	}
	return encode(f)
}

// choices writes choices with their message in the field named message.
func (e *openAIEncoder) choices(choices []inference.Choice, message string) []fields {
	list := make([]fields, len(choices)) // an empty list, not null: clients index it
	for i, c := range choices {
		f := e.extra(c.Extra)
		f["index"] = c.Index
		f[message] = e.message(c.Message)
		f["finish_reason"] = nil
		if c.FinishReason != "" {
			f["finish_reason"] = c.FinishReason
		}
		list[i] = f
	}
	return list
}

func encodeUsage(u inference.Usage) fields {
	f := fieldsOf(u.Extra)
	f["prompt_tokens"], f["completion_tokens"], f["total_tokens"] = u.PromptTokens, u.CompletionTokens, u.TotalTokens()
	if _, there := f[promptDetails]; !there && u.CachedTokens+u.CacheWriteTokens > 0 {
		f[promptDetails] = fields{"cached_tokens": u.CachedTokens, "cache_write_tokens": u.CacheWriteTokens}
	}
	if _, there := f[completionDetails]; !there && u.ReasoningTokens > 0 {
		f[completionDetails] = fields{"reasoning_tokens": u.ReasoningTokens}
	}
	return f
}

// encodeTextChunk writes a chunk that is a piece of text and no more, as nearly all
// are, without collecting its fields; false if it is another.
func encodeTextChunk(c inference.Chunk) ([]byte, bool) {
	if len(c.Choices) != 1 || len(c.Extra) > 0 || c.Usage != nil {
		return nil, false
	}
	choice := &c.Choices[0]
	m := &choice.Message
	if len(choice.Extra) > 0 || len(m.Extra) > 0 || len(m.Content) != 1 || m.Name != "" || m.ToolCallID != "" || m.Refusal != "" || len(m.ToolCalls) > 0 {
		return nil, false
	}
	if p := &m.Content[0]; p.Type != "" || !p.IsText() {
		return nil, false
	}
	b := make([]byte, 0, 256+len(m.Content[0].Text))
	b = appendText(append(b, `{"choices":[{"delta":{"content":`...), m.Content[0].Text)
	if m.Role != "" {
		b = appendText(append(b, `,"role":`...), string(m.Role))
	}
	b = append(b, `},"finish_reason":`...)
	if choice.FinishReason == "" {
		b = append(b, "null"...)
	} else {
		b = appendText(b, choice.FinishReason)
	}
	b = strconv.AppendInt(append(b, `,"index":`...), int64(choice.Index), 10)
	b = strconv.AppendInt(append(b, `}],"created":`...), c.Created, 10)
	b = appendText(append(b, `,"id":`...), c.ID)
	b = appendText(append(b, `,"model":`...), c.Model)
	return append(b, `,"object":"chat.completion.chunk"}`...), true
}
