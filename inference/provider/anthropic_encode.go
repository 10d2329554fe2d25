package provider

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"creto.dev/fault"
	"creto.dev/inference"
)

// EncodeAnthropicRequest writes the body of POST /v1/messages, with Betas in
// anthropic_beta, where the clouds that resell the API want them. The same request
// gives the same bytes. Metadata is not part of it.
//
// Of a request in another dialect, all system prompts come first; hints are left
// out, and reasoning that is not signed; top-level fields that are not known are
// passed on, for the upstream to judge.
//
// Errors: InvalidArgument (Permanent) for a request that does not validate, whose
// Extra is not JSON or whose calls have arguments that are no object;
// InferenceNotSupported (Permanent) for one that this dialect cannot say.
func EncodeAnthropicRequest(r inference.Request, stream bool) ([]byte, error) {
	const op fault.Op = "provider.EncodeAnthropicRequest"
	if err := r.Validate(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	e := &anthropicEncoder{native: r.Dialect.Is(inference.DialectAnthropic)}
	f, err := fieldsOf(r.Extra).from(r.Dialect, inference.DialectAnthropic)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	f["model"] = r.Model
	system, turns := e.split(r.Messages)
	delete(f, "system")
	if len(system) > 0 {
		f["system"] = e.system(system)
	}
	f["messages"] = e.turns(turns)
	delete(f, "tools")
	if len(r.Tools) > 0 {
		tools := make([]fields, len(r.Tools))
		for i, t := range r.Tools {
			e.at = fmt.Sprintf("tools[%d]", i)
			tools[i] = e.tool(t)
		}
		f["tools"] = tools
	}
	delete(f, "tool_choice")
	if e.native || len(r.Tools) > 0 {
		e.at = "tool_choice"
		if choice := e.toolChoice(r); choice != nil {
			f["tool_choice"] = choice
		}
	}
	delete(f, "max_tokens")
	if r.MaxTokens > 0 {
		f["max_tokens"] = r.MaxTokens
	}
	delete(f, "temperature")
	if r.Temperature != "" {
		f["temperature"] = json.Number(r.Temperature)
	}
	delete(f, "stop_sequences")
	if len(r.Stop) > 0 {
		f["stop_sequences"] = r.Stop
	}
	delete(f, betasField)
	if e.native && len(r.Betas) > 0 {
		f[betasField] = r.Betas
	}
	f.raw("cache_control", r.CacheControl)
	user := fields{}
	if r.User != "" {
		user["user_id"] = r.User
	}
	f.merge("metadata", user)
	f.merge(outputConfig, e.output(r))
	switch {
	case e.native:
	case r.ReasoningEffort == "none":
		f[thinkingType] = fields{"type": "disabled"}
	}
	delete(f, "stream")
	if stream {
		f["stream"] = true
	}
	if e.err != nil {
		return nil, fault.Wrap(op, e.err)
	}
	body, err := encode(f)
	return body, fault.WrapAs(op, fault.InvalidArgument, err, "a field of the request is not JSON")
}

// merge sets fields of an object whose other fields are there already.
func (f fields) merge(name string, known fields) {
	var rest map[string]json.RawMessage
	if raw, there := f[name].(json.RawMessage); there {
		_ = json.Unmarshal(raw, &rest) // another kind of value gives way
	}
	whole := fieldsOf(rest)
	maps.Copy(whole, known)
	delete(f, name)
	if len(whole) > 0 {
		f[name] = whole
	}
}

// anthropicEncoder writes what is said, in a request or an answer.
type anthropicEncoder struct {
	native bool   // it is in this dialect already
	at     string // where we are, for messages
	err    error  // the first thing that cannot be said
}

func (e *anthropicEncoder) fail(code fault.Code, format string, args ...any) {
	if e.err == nil {
		e.err = fault.New("provider.anthropicEncoder", code, "%s: %s", e.at, fmt.Sprintf(format, args...))
	}
}

func (e *anthropicEncoder) cannot(format string, args ...any) {
	e.fail(fault.InferenceNotSupported, "%s cannot be said in Anthropic's dialect", fmt.Sprintf(format, args...))
}

// extra are the fields of something smaller than a request. In another dialect
// they mean something else, or nothing.
func (e *anthropicEncoder) extra(x inference.Extra) fields {
	if !e.native {
		return fields{}
	}
	return fieldsOf(x)
}

// split tells system prompts from turns.
func (e *anthropicEncoder) split(messages []inference.Message) (system, turns []inference.Message) {
	for _, m := range messages {
		isSystem := m.Role == inference.RoleSystem || m.Role == inference.RoleDeveloper
		if isSystem && (!e.native || len(turns) == 0) {
			system = append(system, m)
		} else {
			turns = append(turns, m)
		}
	}
	return system, turns
}

func (e *anthropicEncoder) system(messages []inference.Message) any {
	e.at = "system"
	if text, plain := plainText(messages[0].Content); plain && len(messages) == 1 {
		return text
	}
	list := []fields{}
	for _, m := range messages {
		list = append(list, e.content(m.Content, nil)...)
	}
	return list
}

// plainText returns content that is a plain string.
func plainText(content []inference.Part) (string, bool) {
	if len(content) != 1 || content[0].Type != "" || !content[0].IsText() {
		return "", false
	}
	return content[0].Text, true
}

// turns writes the conversation. What tools answered, and what the user says
// next, is one turn: Anthropic wants all results right after the calls.
func (e *anthropicEncoder) turns(messages []inference.Message) []fields {
	turns := []fields{} // a list, not null
	var results []fields
	for i, m := range messages {
		e.at = fmt.Sprintf("messages[%d]", i)
		switch {
		case m.Role == inference.RoleTool:
			result := e.toolResult(m)
			if results != nil {
				results = append(results, result)
				turns[len(turns)-1]["content"] = results
				continue
			}
			results = []fields{result}
			turns = append(turns, fields{"role": inference.RoleUser, "content": results})
			continue
		case m.Role == inference.RoleUser && results != nil:
			turn := e.extra(m.Extra)
			maps.Copy(turn, turns[len(turns)-1])
			turn["content"] = append(results, e.content(m.Content, m.ToolCalls)...)
			turns[len(turns)-1] = turn
		default:
			turns = append(turns, e.turn(m))
		}
		results = nil
	}
	return turns
}

func (e *anthropicEncoder) turn(m inference.Message) fields {
	f := e.extra(m.Extra)
	f["role"] = m.Role
	if !e.native && m.Role != inference.RoleUser && m.Role != inference.RoleAssistant {
		e.cannot("a message of the role %q", m.Role)
	}
	if text, plain := plainText(m.Content); plain && len(m.ToolCalls) == 0 && (e.native || m.Extra[thinkingBlocks] == nil) {
		f["content"] = text
		return f
	}
	list := append(e.signed(m), e.content(m.Content, m.ToolCalls)...)
	if m.Refusal != "" {
		list = append(list, fields{"type": textBlock, "text": m.Refusal})
	}
	f["content"] = list
	return f
}

// signed returns the reasoning that a client of OpenAI's dialect sends back.
func (e *anthropicEncoder) signed(m inference.Message) []fields {
	raw := m.Extra[thinkingBlocks]
	if e.native || raw == nil {
		return []fields{}
	}
	said, err := decodeBlocks(raw, thinkingBlocks)
	list := []fields{}
	for _, p := range said.parts {
		if p.Reasoning == nil {
			err = fmt.Errorf("%s: holds more than reasoning", thinkingBlocks)
		} else {
			list = append(list, thinkingBlock(p))
		}
	}
	if err != nil || len(said.calls)+len(said.results) > 0 {
		e.fail(fault.InvalidArgument, "%s: not a list of reasoning", thinkingBlocks)
	}
	return list
}

// content writes parts and the calls among them.
func (e *anthropicEncoder) content(parts []inference.Part, calls []inference.ToolCall) []fields {
	list := []fields{}
	for i, p := range parts {
		for len(calls) > 0 && len(parts)-calls[0].Before <= i {
			list = append(list, e.toolUse(calls[0]))
			calls = calls[1:]
		}
		if f := e.block(p); f != nil {
			list = append(list, f)
		}
	}
	for _, c := range calls {
		list = append(list, e.toolUse(c))
	}
	return list
}

// block writes a part; nil if it is not said in this dialect.
func (e *anthropicEncoder) block(p inference.Part) fields {
	f := e.extra(p.Extra)
	switch {
	case p.Reasoning != nil:
		if !e.native {
			return nil // nobody but its author takes it
		}
		return thinkingBlock(p)
	case p.Image != nil:
		f["type"], f["source"] = imageBlock, e.source(*p.Image)
	case p.IsText():
		if !e.native && p.Text == "" {
			return nil // Anthropic refuses it
		}
		f["type"], f["text"] = textBlock, p.Text
	default:
		if !e.native {
			e.cannot("content of type %q", p.Type)
		}
		f["type"] = p.Type
	}
	f.raw("cache_control", p.CacheControl)
	return f
}

// thinkingBlock writes reasoning.
func thinkingBlock(p inference.Part) fields {
	f := fieldsOf(p.Extra)
	f.raw("cache_control", p.CacheControl)
	if p.Type == redactedType || p.Reasoning.Redacted != "" {
		f["type"], f["data"] = redactedType, p.Reasoning.Redacted
	} else {
		f["type"], f["thinking"], f["signature"] = thinkingType, p.Text, p.Reasoning.Signature
	}
	return f
}

func (e *anthropicEncoder) source(image inference.Image) fields {
	f := e.extra(image.Extra)
	switch {
	case image.FileID != "":
		f["type"], f["file_id"] = "file", image.FileID
	case image.MediaType != "":
		f["type"], f["media_type"], f["data"] = "base64", image.MediaType, image.Data
	default:
		f["type"], f["url"] = "url", image.URL
	}
	return f
}

func (e *anthropicEncoder) toolUse(c inference.ToolCall) fields {
	f := e.extra(c.Extra)
	if c.Type != "" && c.Type != functionType {
		e.cannot("a call of type %q", c.Type)
	}
	f["type"], f["id"], f["name"] = toolUseBlock, c.ID, c.Name
	f["input"] = json.RawMessage("{}")
	if c.Arguments != "" {
		f["input"] = json.RawMessage(c.Arguments)
		if !json.Valid([]byte(c.Arguments)) || !e.native && !strings.HasPrefix(strings.TrimLeft(c.Arguments, " \t\r\n"), "{") {
			f["input"] = nil
			e.fail(fault.InvalidArgument, "the arguments of the call of %q are not a JSON object", c.Name)
		}
	}
	f.raw("cache_control", c.CacheControl)
	return f
}

func (e *anthropicEncoder) toolResult(m inference.Message) fields {
	f := e.extra(m.Extra)
	f["type"], f["tool_use_id"] = toolResultBlock, m.ToolCallID
	delete(f, "content")
	if text, plain := plainText(m.Content); plain {
		f["content"] = text
	} else if m.Content != nil {
		f["content"] = e.content(m.Content, nil)
	}
	delete(f, "is_error")
	if m.IsError {
		f["is_error"] = true
	}
	f.raw("cache_control", m.CacheControl)
	return f
}

func (e *anthropicEncoder) tool(t inference.Tool) fields {
	f := e.extra(t.Extra)
	delete(f, "type")
	isFunction := t.Type == "" || t.Type == functionType
	switch {
	case !isFunction && !e.native:
		e.cannot("a tool of type %q", t.Type)
	case !isFunction:
		f["type"] = t.Type
	}
	f.text("name", t.Name)
	f.text("description", t.Description)
	f.raw("input_schema", t.Parameters)
	if isFunction && t.Parameters == nil && !e.native {
		f["input_schema"] = fields{"type": "object"} // required; and this is what absent means
	}
	f.flag("strict", t.Strict)
	f.raw("cache_control", t.CacheControl)
	return f
}

// toolChoice writes which tools must be called and whether several may be; nil
// for neither.
func (e *anthropicEncoder) toolChoice(r inference.Request) any {
	c := r.ToolChoice
	switch {
	case c != nil && c.Mode == "":
		if !e.native {
			e.cannot("this choice")
		}
		return c.Raw
	case c == nil && (r.ParallelToolCalls == nil || *r.ParallelToolCalls):
		return nil
	case c == nil:
		c = &inference.ToolChoice{Mode: inference.ToolsAuto}
	}
	f := fields{}
	for name, mode := range anthropicModes {
		if mode == c.Mode {
			f["type"] = name
		}
	}
	if c.Mode == inference.ToolsNamed {
		f["name"] = c.Name
	}
	if r.ParallelToolCalls != nil && c.Mode != inference.ToolsNone && (e.native || !*r.ParallelToolCalls) {
		f["disable_parallel_tool_use"] = !*r.ParallelToolCalls
	}
	return f
}

// output writes effort and format.
func (e *anthropicEncoder) output(r inference.Request) fields {
	f := fields{}
	switch {
	case r.ReasoningEffort == "":
	case e.native:
		f["effort"] = r.ReasoningEffort
	case r.ReasoningEffort == "minimal":
		f["effort"] = "low" // the least there is
	case r.ReasoningEffort != "none":
		f["effort"] = r.ReasoningEffort
	}
	rf := r.ResponseFormat
	if rf == nil || rf.Type == "text" && !e.native {
		return f
	}
	e.at = "response_format"
	if rf.Type != "json_schema" && !e.native {
		e.cannot("%q", rf.Type)
	}
	format := e.extra(rf.Extra)
	format["type"] = rf.Type
	format.raw("schema", rf.Schema)
	f["format"] = format
	return f
}

// EncodeAnthropicResponse writes the body of an answer to /v1/messages: the first
// choice of r.
//
// Errors: InferenceProviderError (Permanent) for an answer that has no choice or
// calls a tool with arguments that are no object; Internal (Permanent) for an Extra
// that is not JSON.
func EncodeAnthropicResponse(r inference.Response) ([]byte, error) {
	const op fault.Op = "provider.EncodeAnthropicResponse"
	if len(r.Choices) == 0 {
		return nil, fault.New(op, fault.InferenceProviderError, "the answer has no choices")
	}
	c := r.Choices[0]
	e := &anthropicEncoder{native: r.Dialect.Is(inference.DialectAnthropic), at: "the answer"}
	f := fieldsOf(r.Extra)
	f["type"], f["role"] = "message", inference.RoleAssistant
	f["id"], f["model"] = r.ID, r.Model
	f["content"] = e.answer(c.Message)
	f["stop_reason"], f["stop_sequence"] = e.stop(c)
	f["usage"] = encodeAnthropicUsage(r.Usage)
	if e.err != nil {
		return nil, fault.WrapAs(op, fault.InferenceProviderError, foreign(e.err), "%s", fault.Message(e.err))
	}
	body, err := encode(f)
	return body, fault.Wrap(op, err)
}

// answer writes what an assistant said. What only another dialect has words for,
// such as the results of tools at its provider, is left out.
func (e *anthropicEncoder) answer(m inference.Message) []fields {
	if e.native {
		list := e.content(m.Content, m.ToolCalls)
		if m.Refusal != "" {
			list = append(list, fields{"type": textBlock, "text": m.Refusal})
		}
		return list
	}
	list := []fields{}
	for _, p := range m.Content {
		switch {
		case p.Reasoning != nil && p.Text+p.Reasoning.Redacted != "":
			list = append(list, thinkingBlock(inference.Part{Text: p.Text, Reasoning: p.Reasoning}))
		case p.IsText() && p.Text != "":
			list = append(list, e.block(p))
		}
	}
	if m.Refusal != "" {
		list = append(list, fields{"type": textBlock, "text": m.Refusal})
	}
	for _, c := range m.ToolCalls {
		list = append(list, e.toolUse(c))
	}
	return list
}

// stop returns why the answer ended, and the text that ended it, or null.
func (e *anthropicEncoder) stop(c inference.Choice) (reason string, sequence any) {
	reason = c.StopReason
	if reason == "" || !e.native {
		reason = stopReason(c.FinishReason)
	}
	if c.StopSequence != "" && !e.native {
		reason = "stop_sequence"
	}
	if !e.native && c.Message.Refusal != "" {
		reason = "refusal"
	}
	if c.StopSequence != "" {
		return reason, c.StopSequence
	}
	return reason, nil
}

func encodeAnthropicUsage(u inference.Usage) fields {
	f := fieldsOf(u.Extra)
	f["input_tokens"] = max(0, u.PromptTokens-u.CachedTokens-u.CacheWriteTokens)
	f["cache_read_input_tokens"], f["cache_creation_input_tokens"] = u.CachedTokens, u.CacheWriteTokens
	f["output_tokens"] = u.CompletionTokens
	if _, there := f[outputDetails]; !there && u.ReasoningTokens > 0 {
		f[outputDetails] = fields{"thinking_tokens": u.ReasoningTokens}
	}
	return f
}
