package provider

import (
	"encoding/json"
	"fmt"
	"strings"

	"creto.dev/fault"
	"creto.dev/inference"
)

// speaker says a request in a dialect that no client of Creto speaks, so that
// nothing in it is native. It keeps the first thing that cannot be said.
type speaker struct {
	dialect string // for messages
	at      string // where we are, for messages
	err     error
}

func (s *speaker) fail(code fault.Code, format string, args ...any) {
	if s.err == nil {
		s.err = fault.New("provider.speaker", code, "%s: %s", s.at, fmt.Sprintf(format, args...))
	}
}

func (s *speaker) cannot(format string, args ...any) {
	s.fail(fault.InferenceNotSupported, "%s cannot be said in %s's dialect", fmt.Sprintf(format, args...), s.dialect)
}

// turn is what one side says, until the other does. These dialects want turns to
// alternate, and all results of tools in the turn after the calls.
type turn struct {
	role     inference.Role // of user and assistant
	messages []inference.Message
}

// turns tells system prompts, which come first, from turns.
func (s *speaker) turns(messages []inference.Message) (system []inference.Message, turns []turn) {
	for i, m := range messages {
		s.at = fmt.Sprintf("messages[%d]", i)
		role := m.Role
		switch role {
		case inference.RoleSystem, inference.RoleDeveloper:
			system = append(system, m)
			continue
		case inference.RoleTool:
			role = inference.RoleUser
		case inference.RoleUser, inference.RoleAssistant:
		default:
			s.cannot("a message of the role %q", m.Role)
		}
		if n := len(turns); n > 0 && turns[n-1].role == role {
			turns[n-1].messages = append(turns[n-1].messages, m)
		} else {
			turns = append(turns, turn{role, []inference.Message{m}})
		}
	}
	if len(turns) == 0 {
		s.at = "messages"
		s.fail(fault.InvalidArgument, "there is nothing but system prompts")
	}
	return system, turns
}

// each calls part for each part of what m says, and call for each call, in order.
// Reasoning that nobody signed, and empty text, are left out; what remains is
// text, an image or reasoning.
func (s *speaker) each(m inference.Message, part func(inference.Part), call func(inference.ToolCall)) {
	say := func(p inference.Part) {
		switch {
		case p.Reasoning != nil:
			if p.Reasoning.Signature+p.Reasoning.Redacted != "" {
				part(p)
			}
		case p.Image != nil:
			part(p)
		case p.IsText():
			if p.Text != "" {
				part(p)
			}
		default:
			s.cannot("content of type %q", p.Type)
		}
	}
	if raw := m.Extra[thinkingBlocks]; raw != nil {
		// What a client of OpenAI's dialect sends back.
		said, err := decodeBlocks(raw, thinkingBlocks)
		for _, p := range said.parts {
			if p.Reasoning == nil {
				err = fmt.Errorf("%s: holds more than reasoning", thinkingBlocks)
				break
			}
			say(p)
		}
		if err != nil || len(said.calls)+len(said.results) > 0 {
			s.fail(fault.InvalidArgument, "%s: not a list of reasoning", thinkingBlocks)
		}
	}
	calls := m.ToolCalls
	for i, p := range m.Content {
		for len(calls) > 0 && len(m.Content)-calls[0].Before <= i {
			s.call(calls[0], call)
			calls = calls[1:]
		}
		say(p)
	}
	if m.Refusal != "" {
		say(inference.Part{Text: m.Refusal})
	}
	for _, c := range calls {
		s.call(c, call)
	}
}

func (s *speaker) call(c inference.ToolCall, call func(inference.ToolCall)) {
	if c.Type != "" && c.Type != functionType {
		s.cannot("a call of type %q", c.Type)
		return
	}
	if c.Arguments == "" {
		c.Arguments = "{}"
	}
	if !isObject(c.Arguments) {
		s.fail(fault.InvalidArgument, "the arguments of the call of %q are not a JSON object", c.Name)
		return
	}
	call(c)
}

func isObject(text string) bool {
	return strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "{") && json.Valid([]byte(text))
}

// tool checks that a tool can be described.
func (s *speaker) tool(i int, t inference.Tool) {
	s.at = fmt.Sprintf("tools[%d]", i)
	if t.Type != "" && t.Type != functionType {
		s.cannot("a tool of type %q", t.Type)
	}
	if t.Parameters != nil && !isObject(string(t.Parameters)) {
		s.fail(fault.InvalidArgument, "the parameters of %q are not a JSON object", t.Name)
	}
}

// toolless reports whether tools need not be said: there are none, or none may be
// called and none was.
func (s *speaker) toolless(r inference.Request) bool {
	s.at = "tool_choice"
	if c := r.ToolChoice; c != nil && c.Mode == "" {
		s.cannot("this choice")
	}
	if len(r.Tools) == 0 {
		return true
	}
	if r.ToolChoice == nil || r.ToolChoice.Mode != inference.ToolsNone {
		return false
	}
	for _, m := range r.Messages {
		if len(m.ToolCalls) > 0 || m.Role == inference.RoleTool {
			return false
		}
	}
	return true
}

// oneCall refuses to promise one call at a time where no dialect word asks for it.
func (s *speaker) oneCall(r inference.Request) {
	if r.ParallelToolCalls != nil && !*r.ParallelToolCalls && len(r.Tools) > 0 {
		s.at = "parallel_tool_calls"
		s.cannot("one call at a time")
	}
}

// schema returns the schema of a format; nil for text.
func (s *speaker) schema(rf *inference.ResponseFormat) json.RawMessage {
	s.at = "response_format"
	switch {
	case rf == nil || rf.Type == "text":
		return nil
	case rf.Type != "json_schema" || rf.Schema == nil:
		s.cannot("%q", rf.Type)
		return nil
	case !isObject(string(rf.Schema)):
		s.fail(fault.InvalidArgument, "the schema is not a JSON object")
		return nil
	}
	return rf.Schema
}

// reserve refuses fields that would say again, past what was decided on, what is
// said already.
func (s *speaker) reserve(f fields, names ...string) {
	for _, name := range names {
		if _, there := f[name]; there {
			s.at = name
			s.cannot("this field")
		}
	}
}

// take returns a field and removes it; nil if it is absent or null.
func (f fields) take(name string) json.RawMessage {
	raw, _ := f[name].(json.RawMessage)
	delete(f, name)
	if string(raw) == "null" {
		return nil
	}
	return raw
}

// take32 takes a number of single precision.
func (s *speaker) take32(f fields, name string) *float32 {
	raw := f.take(name)
	if raw == nil {
		return nil
	}
	var n float32
	if json.Unmarshal(raw, &n) != nil {
		s.at = name
		s.fail(fault.InvalidArgument, "expected a number")
	}
	return &n
}
