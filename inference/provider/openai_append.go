package provider

import (
	"encoding/json"
	"slices"
	"strconv"

	"creto.dev/inference"
)

// What is said most is written field by field, in the order of their names, without
// collecting them first; it gives the same bytes, or says that it cannot, and then
// the encoder that can say everything does.

// appender writes one object after the other. can is false from the first thing on
// that only the other encoder writes.
type appender struct {
	b   []byte
	can bool
}

// members writes the members of one object. Those of Extra find their places among
// the known ones.
type members struct {
	*appender
	extra inference.Extra
	names []string // of extra, in order, that are not written yet
	more  bool     // a comma comes before the next
}

// object begins an object. extra must have none of the known names: the caller's
// fields would be written twice.
func (a *appender) object(extra inference.Extra, known ...string) members {
	a.b = append(a.b, '{')
	m := members{appender: a, extra: extra}
	if len(extra) == 0 {
		return m
	}
	m.names = make([]string, 0, len(extra))
	for name := range extra {
		a.can = a.can && !slices.Contains(known, name)
		m.names = append(m.names, name)
	}
	slices.Sort(m.names)
	return m
}

// name begins a member. Names come in order.
func (m *members) name(name string) {
	for len(m.names) > 0 && m.names[0] < name {
		m.raw(m.names[0], m.extra[m.names[0]])
	}
	m.key(name)
}

func (m *members) key(name string) {
	if m.more {
		m.b = append(m.b, ',')
	}
	m.more = true
	m.b = append(appendText(m.b, name), ':')
}

// raw writes the next of extra.
func (m *members) raw(name string, value json.RawMessage) {
	m.names = m.names[1:]
	m.key(name)
	m.value(value)
}

// end writes what is left of extra, and ends the object.
func (m *members) end() {
	for len(m.names) > 0 {
		m.raw(m.names[0], m.extra[m.names[0]])
	}
	m.b = append(m.b, '}')
}

func (m *members) text(name, value string) {
	m.name(name)
	m.b = appendText(m.b, value)
}

// some writes a text unless it is empty.
func (m *members) some(name, value string) {
	if value != "" {
		m.text(name, value)
	}
}

func (m *members) integer(name string, value int64) {
	m.name(name)
	m.b = strconv.AppendInt(m.b, value, 10)
}

// flag writes true or false unless it is absent.
func (m *members) flag(name string, value *bool) {
	if value != nil {
		m.name(name)
		m.b = strconv.AppendBool(m.b, *value)
	}
}

// value writes what [appendJSON] does.
func (a *appender) value(v any) {
	b, err := appendJSON(a.b, v)
	if a.can = a.can && err == nil; a.can {
		a.b = b
	}
}

// present writes a value unless it is absent.
func (m *members) present(name string, value json.RawMessage) {
	if value != nil {
		m.name(name)
		m.value(value)
	}
}

// appendRequest writes a request in the dialect; false if the other encoder must.
func appendRequest(r inference.Request, stream bool) ([]byte, bool) {
	if _, newer := r.Extra[maxCompletionTokens]; newer || !r.Dialect.Is(inference.DialectOpenAI) || r.ResponseFormat != nil {
		return nil, false
	}
	a := &appender{b: make([]byte, 0, 512+r.SizeBytes()*17/16+64*len(r.Messages)), can: true}
	e := &openAIEncoder{native: true, whole: true, request: true}
	m := a.object(r.Extra, "cache_control", "max_tokens", "messages", "model", "parallel_tool_calls", "reasoning_effort", "response_format", "stop", "stream", "stream_options", "temperature", "tool_choice", "tools", "user")
	m.present("cache_control", r.CacheControl)
	if r.MaxTokens > 0 {
		m.integer("max_tokens", r.MaxTokens)
	}
	m.name("messages")
	a.b = append(a.b, '[')
	for i := range r.Messages {
		if i > 0 {
			a.b = append(a.b, ',')
		}
		a.message(e, &r.Messages[i])
	}
	a.b = append(a.b, ']')
	m.text("model", r.Model)
	m.flag("parallel_tool_calls", r.ParallelToolCalls)
	m.some("reasoning_effort", r.ReasoningEffort)
	if len(r.Stop) > 0 {
		m.name("stop")
		a.value(r.Stop)
	}
	if stream {
		m.name("stream")
		a.b = append(a.b, "true"...)
		if o := r.StreamOptions; o != nil {
			m.name("stream_options")
			options := a.object(o.Extra, "include_usage")
			options.flag("include_usage", &o.IncludeUsage)
			options.end()
		}
	}
	if r.Temperature != "" {
		m.name("temperature")
		if n := []byte(r.Temperature); scanNumber(n, 0) == len(n) {
			a.b = append(a.b, n...)
		} else {
			a.can = false
		}
	}
	if c := r.ToolChoice; c != nil {
		m.name("tool_choice")
		a.value(e.toolChoice(*c))
	}
	if len(r.Tools) > 0 {
		m.name("tools")
		a.b = append(a.b, '[')
		for i := range r.Tools {
			if i > 0 {
				a.b = append(a.b, ',')
			}
			a.tool(&r.Tools[i])
		}
		a.b = append(a.b, ']')
	}
	m.some("user", r.User)
	m.end()
	return a.b, a.can && e.err == nil
}

// message writes a message of a request or a whole answer.
func (a *appender) message(e *openAIEncoder, said *inference.Message) {
	m := a.object(said.Extra, "content", "name", "refusal", "role", "tool_call_id", "tool_calls")
	m.name("content")
	switch content := said.Content; {
	case content == nil:
		a.b = append(a.b, "null"...)
	case len(content) == 1 && content[0].Type == "" && content[0].IsText():
		a.b = appendText(a.b, content[0].Text)
	case slices.ContainsFunc(content, func(p inference.Part) bool { return p.Reasoning != nil }):
		a.can = false
	default:
		a.value(e.parts(content))
	}
	m.some("name", said.Name)
	m.some("refusal", said.Refusal)
	m.some("role", string(said.Role))
	m.some("tool_call_id", said.ToolCallID)
	if len(said.ToolCalls) > 0 {
		m.name("tool_calls")
		a.b = append(a.b, '[')
		for i := range said.ToolCalls {
			if i > 0 {
				a.b = append(a.b, ',')
			}
			a.toolCall(&said.ToolCalls[i])
		}
		a.b = append(a.b, ']')
	}
	m.end()
}

// toolCall writes a function that a model wants called.
func (a *appender) toolCall(c *inference.ToolCall) {
	if c.Type != "" && c.Type != functionType {
		a.can = false
		return
	}
	m := a.object(c.Extra, functionType, "id", "index", "type")
	m.name(functionType)
	function := a.object(c.FunctionExtra, "arguments", "name")
	function.text("arguments", c.Arguments)
	function.some("name", c.Name)
	function.end()
	m.some("id", c.ID)
	m.text("type", functionType)
	m.end()
}

// tool writes a function that a model may call.
func (a *appender) tool(t *inference.Tool) {
	if t.Type != "" && t.Type != functionType {
		a.can = false
		return
	}
	m := a.object(t.Extra, "cache_control", functionType, "type")
	m.present("cache_control", t.CacheControl)
	m.name(functionType)
	function := a.object(t.FunctionExtra, "description", "name", "parameters", "strict")
	function.some("description", t.Description)
	function.text("name", t.Name)
	function.present("parameters", t.Parameters)
	function.flag("strict", t.Strict)
	function.end()
	m.text("type", functionType)
	m.end()
}

// appendResponse writes a whole answer; false if the other encoder must.
func appendResponse(r inference.Response) ([]byte, bool) {
	if !r.Dialect.Is(inference.DialectOpenAI) {
		return nil, false
	}
	a := &appender{b: make([]byte, 0, 320+r.SizeBytes()*17/16), can: true}
	e := &openAIEncoder{native: true, whole: true}
	m := a.object(r.Extra, "choices", "created", "id", "model", "object", "usage")
	m.name("choices")
	a.b = append(a.b, '[')
	for i := range r.Choices {
		if i > 0 {
			a.b = append(a.b, ',')
		}
		c := &r.Choices[i]
		choice := a.object(c.Extra, "finish_reason", "index", "message")
		choice.name("finish_reason")
		if c.FinishReason == "" {
			a.b = append(a.b, "null"...)
		} else {
			a.b = appendText(a.b, c.FinishReason)
		}
		choice.integer("index", int64(c.Index))
		choice.name("message")
		a.message(e, &c.Message)
		choice.end()
	}
	a.b = append(a.b, ']')
	m.integer("created", r.Created)
	m.text("id", r.ID)
	m.text("model", r.Model)
	m.text("object", "chat.completion")
	m.name("usage")
	if u := &r.Usage; len(u.Extra) > 0 || u.CachedTokens+u.CacheWriteTokens > 0 || u.ReasoningTokens > 0 {
		a.value(encodeUsage(*u))
	} else {
		usage := a.object(nil)
		usage.integer("completion_tokens", u.CompletionTokens)
		usage.integer("prompt_tokens", u.PromptTokens)
		usage.integer("total_tokens", u.TotalTokens())
		usage.end()
	}
	m.end()
	return a.b, a.can && e.err == nil
}
