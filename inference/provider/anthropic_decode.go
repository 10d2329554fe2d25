package provider

import (
	"encoding/json"
	"fmt"
	"slices"

	"creto.dev/fault"
	"creto.dev/inference"
)

// Types of content blocks in Anthropic's dialect.
const (
	textBlock       = "text"
	imageBlock      = "image"
	thinkingType    = "thinking"
	redactedType    = "redacted_thinking"
	toolUseBlock    = "tool_use"
	toolResultBlock = "tool_result"
)

// thinkingBlocks is the field of a message in OpenAI's dialect that holds signed
// reasoning as Anthropic says it.
const thinkingBlocks = "thinking_blocks"

// betasField is what Bedrock and Vertex call the header anthropic-beta in a body.
const betasField = "anthropic_beta"

// DecodeAnthropicRequest reads the body of POST /v1/messages, or of
// /v1/messages/count_tokens, and reports whether it asks for a stream. What it does
// not know is in Extra; [EncodeAnthropicRequest] writes all of it again, with
// results of tools and what follows them in one message. Names are read in their
// exact case, and one that differs from a known one only by case is refused.
//
// Errors: InvalidArgument (Permanent), naming the field.
func DecodeAnthropicRequest(body []byte) (r inference.Request, stream bool, err error) {
	const op fault.Op = "provider.DecodeAnthropicRequest"
	if values(body) > maxValues {
		return r, stream, fault.New(op, fault.InvalidArgument, "the request has more than %d JSON values", maxValues)
	}
	o := parseObject(body, "")
	r.Dialect = inference.DialectAnthropic
	r.Model = o.str("model")
	stream = o.boolean("stream")
	if raw := o.raw("system"); raw != nil {
		said, err := decodeBlocks(raw, "system")
		if err != nil {
			return r, stream, refuse(op, err)
		}
		if len(said.calls)+len(said.results) > 0 {
			return r, stream, refuse(op, fmt.Errorf("system: calls no tools"))
		}
		r.Messages = append(r.Messages, inference.Message{Role: inference.RoleSystem, Content: said.parts})
	}
	for i, raw := range o.list("messages") {
		messages, err := decodeTurn(raw, fmt.Sprintf("messages[%d]", i))
		if err != nil {
			return r, stream, refuse(op, err)
		}
		r.Messages = append(r.Messages, messages...)
	}
	for i, raw := range o.list("tools") {
		t, err := decodeAnthropicTool(raw, fmt.Sprintf("tools[%d]", i))
		if err != nil {
			return r, stream, refuse(op, err)
		}
		r.Tools = append(r.Tools, t)
	}
	if raw := o.raw("tool_choice"); raw != nil {
		if r.ToolChoice, r.ParallelToolCalls, err = decodeAnthropicChoice(raw); err != nil {
			return r, stream, refuse(op, err)
		}
	}
	r.MaxTokens = o.integer("max_tokens")
	r.Temperature = o.number("temperature")
	o.into("stop_sequences", &r.Stop, "a list of strings")
	o.into(betasField, &r.Betas, "a list of strings")
	r.CacheControl = o.raw("cache_control")
	metadata, err := decodeMetadata(o, &r)
	if err != nil {
		return r, stream, refuse(op, err)
	}
	output, err := decodeOutputConfig(o, &r)
	if err != nil {
		return r, stream, refuse(op, err)
	}
	if r.Extra, err = o.rest(); err != nil {
		return r, stream, refuse(op, err)
	}
	for name, rest := range map[string]inference.Extra{"metadata": metadata, outputConfig: output} {
		if len(rest) == 0 {
			continue
		}
		raw, err := encode(rest)
		if err != nil {
			return r, stream, refuse(op, err)
		}
		if r.Extra == nil {
			r.Extra = inference.Extra{}
		}
		r.Extra[name] = raw
	}
	return r, stream, fault.Wrap(op, r.Validate())
}

func decodeMetadata(o *object, r *inference.Request) (inference.Extra, error) {
	m := o.object("metadata")
	if m == nil {
		return nil, nil
	}
	r.User = m.str("user_id")
	return m.rest()
}

// outputConfig is the field that holds effort and format.
const outputConfig = "output_config"

func decodeOutputConfig(o *object, r *inference.Request) (inference.Extra, error) {
	c := o.object(outputConfig)
	if c == nil {
		return nil, nil
	}
	r.ReasoningEffort = c.str("effort")
	if f := c.object("format"); f != nil {
		r.ResponseFormat = &inference.ResponseFormat{Type: f.str("type"), Schema: f.raw("schema")}
		var err error
		if r.ResponseFormat.Extra, err = f.rest(); err != nil {
			return nil, err
		}
	}
	return c.rest()
}

// decodeTurn reads one message, which is several here if it has results of tools.
func decodeTurn(raw []byte, path string) ([]inference.Message, error) {
	o := parseObject(raw, path)
	m := inference.Message{Role: inference.Role(o.str("role"))}
	if m.Role == inference.RoleTool || m.Role == inference.RoleDeveloper {
		o.fail("role", "not one of this dialect's")
	}
	content := o.raw("content")
	var err error
	if m.Extra, err = o.rest(); err != nil || content == nil {
		return []inference.Message{m}, err
	}
	said, err := decodeBlocks(content, path+".content")
	if err != nil {
		return nil, err
	}
	if len(said.results) > 0 && m.Role != inference.RoleUser {
		return nil, fmt.Errorf("%s: only users tell results of tools", path)
	}
	var messages []inference.Message
	from := 0
	for _, result := range said.results {
		if result.after > from {
			messages = append(messages, inference.Message{Role: m.Role, Content: said.parts[from:result.after:result.after]})
			from = result.after
		}
		messages = append(messages, result.message)
	}
	m.Content, m.ToolCalls = said.parts[from:], said.calls
	if len(messages) == 0 || len(m.Content)+len(m.ToolCalls)+len(m.Extra) > 0 {
		messages = append(messages, m)
	}
	return messages, nil
}

// blocks is the content of a message.
type blocks struct {
	parts   []inference.Part
	calls   []inference.ToolCall
	results []toolResult
}

// toolResult comes after so many parts.
type toolResult struct {
	message inference.Message
	after   int
}

// decodeBlocks reads a string or a list of content blocks.
func decodeBlocks(raw []byte, path string) (b blocks, err error) {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		b.parts = inference.Text(text)
		return b, nil
	}
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return b, fmt.Errorf("%s: expected a string or a list of blocks", path)
	}
	b.parts = []inference.Part{}
	for i, item := range items {
		at := fmt.Sprintf("%s[%d]", path, i)
		o := parseObject(item, at)
		switch kind := o.str("type"); {
		case o.err != nil:
			return b, o.err
		case kind == "":
			return b, fmt.Errorf("%s.type: required", at)
		case kind == toolUseBlock:
			c, err := decodeToolUse(o)
			if err != nil {
				return b, err
			}
			c.Before = len(b.parts) // so far: before it; what is after it is known at the end
			b.calls = append(b.calls, c)
		case kind == toolResultBlock:
			m, err := decodeToolResult(o)
			if err != nil {
				return b, err
			}
			b.results = append(b.results, toolResult{m, len(b.parts)})
		default:
			p, err := decodeBlock(o, kind)
			if err != nil {
				return b, err
			}
			b.parts = append(b.parts, p)
		}
	}
	for i := range b.calls {
		b.calls[i].Before = len(b.parts) - b.calls[i].Before
	}
	return b, nil
}

// decodeBlock reads a block that is part of the content.
func decodeBlock(o *object, kind string) (p inference.Part, err error) {
	p.Type = kind
	p.CacheControl = o.raw("cache_control")
	switch kind {
	case textBlock:
		p.Text = o.str("text")
	case thinkingType:
		p.Text = o.str("thinking")
		p.Reasoning = &inference.Reasoning{Signature: o.str("signature")}
	case redactedType:
		p.Reasoning = &inference.Reasoning{Redacted: o.str("data")}
	case imageBlock:
		if p.Image, err = decodeSource(o); err != nil {
			return p, err
		}
	}
	p.Extra, err = o.rest()
	return p, err
}

// decodeSource reads where an image comes from; nil, with the source left where it
// is, if that is not known.
func decodeSource(o *object) (*inference.Image, error) {
	raw := o.peek("source")
	source := parseObject(raw, o.at("source"))
	image := &inference.Image{}
	switch kind := source.str("type"); kind {
	case "base64":
		image.MediaType, image.Data = source.str("media_type"), source.str("data")
	case "url":
		image.URL = source.str("url")
	case "file":
		image.FileID = source.str("file_id")
	default:
		return nil, source.err
	}
	var err error
	if image.Extra, err = source.rest(); err != nil {
		return nil, err
	}
	if image.URL+image.FileID == "" && image.MediaType == "" {
		return nil, fmt.Errorf("%s: names no image", o.at("source"))
	}
	o.raw("source")
	return image, nil
}

// decodeToolUse reads a call; its arguments stay as they were written.
func decodeToolUse(o *object) (c inference.ToolCall, err error) {
	c.Type = functionType
	c.ID, c.Name = o.str("id"), o.str("name")
	c.Arguments = string(o.raw("input"))
	c.CacheControl = o.raw("cache_control")
	c.Extra, err = o.rest()
	return c, err
}

func decodeToolResult(o *object) (m inference.Message, err error) {
	m.Role = inference.RoleTool
	m.ToolCallID = o.str("tool_use_id")
	m.IsError = o.boolean("is_error")
	m.CacheControl = o.raw("cache_control")
	if content := o.raw("content"); content != nil {
		said, err := decodeBlocks(content, o.at("content"))
		if err != nil {
			return m, err
		}
		if len(said.calls)+len(said.results) > 0 {
			return m, fmt.Errorf("%s: calls no tools", o.at("content"))
		}
		m.Content = said.parts
	}
	m.Extra, err = o.rest()
	return m, err
}

func decodeAnthropicTool(raw []byte, path string) (t inference.Tool, err error) {
	o := parseObject(raw, path)
	if t.Type = o.str("type"); t.Type == "custom" {
		t.Type = "" // which is what it means
	}
	if t.Type == functionType {
		o.fail("type", "not one of this dialect's")
	}
	t.Name, t.Description = o.str("name"), o.str("description")
	t.Parameters = o.raw("input_schema")
	t.Strict = o.flag("strict")
	t.CacheControl = o.raw("cache_control")
	t.Extra, err = o.rest()
	return t, err
}

// anthropicModes are what the dialect calls the modes of tools.
var anthropicModes = map[string]inference.ToolMode{
	"auto": inference.ToolsAuto, "none": inference.ToolsNone, "any": inference.ToolsRequired, "tool": inference.ToolsNamed,
}

// decodeAnthropicChoice reads which tools must be called. Choices of other kinds
// stay as they are.
func decodeAnthropicChoice(raw json.RawMessage) (*inference.ToolChoice, *bool, error) {
	o := parseObject(raw, "tool_choice")
	c := &inference.ToolChoice{Mode: anthropicModes[o.str("type")]}
	disabled := o.flag("disable_parallel_tool_use")
	if c.Mode == inference.ToolsNamed {
		c.Name = o.str("name")
	}
	rest, err := o.rest()
	if err != nil {
		return nil, nil, err
	}
	if len(rest) > 0 || c.Mode == "" || c.Mode == inference.ToolsNone && disabled != nil {
		return &inference.ToolChoice{Raw: raw}, nil, nil
	}
	if disabled == nil {
		return c, nil, nil
	}
	parallel := !*disabled
	return c, &parallel, nil
}

// DecodeAnthropicResponse reads the body of an answer to /v1/messages.
//
// Errors: InvalidArgument (Permanent), naming the field.
func DecodeAnthropicResponse(body []byte) (r inference.Response, err error) {
	const op fault.Op = "provider.DecodeAnthropicResponse"
	o := parseObject(body, "")
	r.Dialect = inference.DialectAnthropic
	if kind := o.str("type"); kind != "message" {
		o.fail("type", "expected message")
	}
	r.ID, r.Model = o.str("id"), o.str("model")
	choice := inference.Choice{Message: inference.Message{Role: inference.Role(o.str("role"))}}
	if raw := o.raw("content"); raw != nil {
		said, err := decodeBlocks(raw, "content")
		if err != nil {
			return r, refuse(op, err)
		}
		if len(said.results) > 0 {
			return r, refuse(op, fmt.Errorf("content: only users tell results of tools"))
		}
		choice.Message.Content, choice.Message.ToolCalls = said.parts, said.calls
		if len(said.parts) == 0 && len(said.calls) > 0 {
			choice.Message.Content = nil
		}
	}
	choice.StopReason, choice.StopSequence = o.str("stop_reason"), o.str("stop_sequence")
	choice.FinishReason = finishReason(choice.StopReason)
	if u := o.object("usage"); u != nil {
		if err := decodeAnthropicUsage(u, &r.Usage); err != nil {
			return r, refuse(op, err)
		}
	}
	if r.Extra, err = o.rest(); err != nil {
		return r, refuse(op, err)
	}
	r.Choices = []inference.Choice{choice}
	return r, nil
}

// maxCount bounds a count of tokens, so that sums do not overflow.
const maxCount = 1 << 50

// decodeAnthropicUsage reads counts into u; what is not there stays as it is, as
// later events of a stream may tell a part only. Anthropic counts what it had
// kept, and what it keeps, beside the prompt; u counts them in.
func decodeAnthropicUsage(o *object, u *inference.Usage) error {
	fresh := u.PromptTokens - u.CachedTokens - u.CacheWriteTokens
	for name, count := range map[string]*int64{
		"input_tokens": &fresh, "cache_read_input_tokens": &u.CachedTokens, "cache_creation_input_tokens": &u.CacheWriteTokens, "output_tokens": &u.CompletionTokens,
	} {
		if raw := o.peek(name); raw != nil && string(raw) != "null" {
			*count = o.integer(name)
		}
		o.raw(name)
		if *count < 0 || *count > maxCount {
			o.fail(name, "expected a count")
			*count = 0
		}
	}
	u.PromptTokens = fresh + u.CachedTokens + u.CacheWriteTokens
	if details := o.peek(outputDetails); details != nil {
		u.ReasoningTokens = detail(details, "thinking_tokens")
	}
	rest, err := o.rest()
	for name, raw := range rest {
		if u.Extra == nil {
			u.Extra = inference.Extra{}
		}
		u.Extra[name] = raw
	}
	return err
}

// outputDetails is the field of usage that says what the answer's count is made of.
const outputDetails = "output_tokens_details"

// stopReasons are what the dialect calls the reasons to stop; the first that
// means one is its translation.
var stopReasons = []struct{ stop, finish string }{
	{"end_turn", "stop"},
	{"stop_sequence", "stop"},
	{"max_tokens", "length"},
	{"model_context_window_exceeded", "length"},
	{toolUseBlock, "tool_calls"},
	{toolUseBlock, "function_call"},
	{"refusal", "content_filter"},
	{"pause_turn", "stop"},
}

// finishReason translates; a reason that is not known stays.
func finishReason(stop string) string {
	if i := slices.IndexFunc(stopReasons, func(r struct{ stop, finish string }) bool { return r.stop == stop }); i >= 0 {
		return stopReasons[i].finish
	}
	return stop
}

// stopReason translates back; a reason that is not known ended the turn.
func stopReason(finish string) string {
	if i := slices.IndexFunc(stopReasons, func(r struct{ stop, finish string }) bool { return r.finish == finish }); i >= 0 {
		return stopReasons[i].stop
	}
	return stopReasons[0].stop
}
