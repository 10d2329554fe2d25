package provider

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"creto.dev/fault"
	"creto.dev/inference"
)

// responsesOnly is what the Responses API has and chat completions have not, beside
// what package inference has words for.
var responsesOnly = vocabulary{
	// metadata is kept with what is stored, and goes back with the answer.
	hints: []string{"metadata", "truncation", "stream_options", "prompt_cache_options", "context_management"},
	needs: map[string][]string{
		"background": {"false"}, "store": {"false"}, "top_logprobs": {"0"}, "previous_response_id": nil, "conversation": nil, "prompt": nil,
		"max_tool_calls": nil, "moderation": nil, "access_programs": nil,
	},
}

// responsesRepeat are the fields of a request that its answer repeats, with what
// stands for one that was not there.
var responsesRepeat = map[string]any{
	"instructions": nil, "metadata": fields{}, "temperature": nil, "top_p": nil, "tool_choice": inference.ToolsAuto, "tools": []fields{},
	"parallel_tool_calls": true, "max_output_tokens": nil, "reasoning": fields{"effort": nil, "summary": nil},
	"text": fields{"format": fields{"type": "text"}}, "truncation": "disabled", "user": nil, "safety_identifier": nil, "prompt_cache_key": nil,
}

// DecodeOpenAIResponsesRequest reads the body of POST /v1/responses as a request in
// the words of chat completions, reports whether it asks for a stream, and returns
// what writes its answer. Nothing is stored: what hangs on that is refused, as are
// tools that the provider itself would run. What it does not know is in Extra.
// Reasoning comes back signed in encrypted_content; other reasoning is left out.
//
// Errors: InvalidArgument (Permanent), naming the field; InferenceNotSupported
// (Permanent) for what chat completions cannot say.
func DecodeOpenAIResponsesRequest(body []byte) (r inference.Request, stream bool, answer *OpenAIResponses, err error) {
	const op fault.Op = "provider.DecodeOpenAIResponsesRequest"
	if values(body) > maxValues {
		return r, false, nil, fault.New(op, fault.InvalidArgument, "the request has more than %d JSON values", maxValues)
	}
	o := parseObject(body, "")
	answer = &OpenAIResponses{asked: fields{}}
	for name, otherwise := range responsesRepeat {
		answer.asked[name] = otherwise
		if raw := o.peek(name); raw != nil && string(raw) != "null" {
			answer.asked[name] = raw
		}
	}
	d := &responsesDecoder{extra: inference.Extra{}}
	stream = o.boolean("stream")
	d.request(o)
	r = d.r
	if r.Extra, err = o.rest(); err == nil {
		err = d.err
	}
	more := fieldsOf(r.Extra)
	if err == nil {
		err = more.without(responsesOnly, "what is translated to chat completions")
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return r, stream, nil, fault.Wrap(op, err)
	} else if err != nil {
		return r, stream, nil, refuse(op, err)
	}
	maps.DeleteFunc(r.Extra, func(name string, _ json.RawMessage) bool { return more[name] == nil })
	maps.Copy(d.extra, r.Extra)
	r.Extra = d.extra
	return r, stream, answer, fault.Wrap(op, r.Validate())
}

// responsesDecoder reads a request. It keeps the first thing that is wrong.
type responsesDecoder struct {
	r     inference.Request
	extra inference.Extra // what chat completions call otherwise
	err   error
}

func (d *responsesDecoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *responsesDecoder) cannot(format string, args ...any) {
	d.fail(fault.New("provider.responsesDecoder", fault.InferenceNotSupported, format, args...))
}

// done ends an object whose other fields are of no use to anybody.
func (d *responsesDecoder) done(o *object, ignored ...string) {
	for _, name := range ignored {
		o.raw(name)
	}
	rest, err := o.rest()
	if err != nil {
		d.fail(err)
	}
	for name := range rest {
		d.cannot("%s: not supported", o.at(name))
	}
}

func (d *responsesDecoder) request(o *object) {
	r := &d.r
	r.Dialect = inference.DialectOpenAI
	r.Model, r.User = o.str("model"), o.str("user")
	if text := o.str("instructions"); text != "" {
		r.Messages = append(r.Messages, inference.Message{Role: inference.RoleSystem, Content: inference.Text(text)})
	}
	d.input(o)
	for i, raw := range o.list("tools") {
		d.tool(parseObject(raw, fmt.Sprintf("tools[%d]", i)))
	}
	d.choice(o.raw("tool_choice"))
	r.ParallelToolCalls = o.flag("parallel_tool_calls")
	if r.MaxTokens = o.integer("max_output_tokens"); r.MaxTokens > 0 {
		d.extra[maxCompletionTokens] = strconv.AppendInt(nil, r.MaxTokens, 10)
	}
	r.Temperature = o.number("temperature")
	if reasoning := o.object("reasoning"); reasoning != nil {
		r.ReasoningEffort = reasoning.str("effort")
		d.done(reasoning, "summary", "generate_summary")
	}
	if text := o.object("text"); text != nil {
		if verbosity := text.raw("verbosity"); verbosity != nil {
			d.extra["verbosity"] = verbosity
		}
		if f := text.object("format"); f != nil {
			d.format(f)
		}
		d.done(text)
	}
	var include []string
	o.into("include", &include, "a list of names")
	for _, name := range include {
		if strings.Contains(name, "logprobs") {
			d.cannot("include: %q is not supported", name)
		}
	}
}

func (d *responsesDecoder) format(f *object) {
	rf := &inference.ResponseFormat{Type: f.str("type"), Name: f.str("name"), Schema: f.raw("schema"), Strict: f.flag("strict")}
	if description := f.raw("description"); description != nil {
		rf.SchemaExtra = inference.Extra{"description": description}
	}
	d.done(f)
	if rf.Type != "text" {
		d.r.ResponseFormat = rf
	}
}

func (d *responsesDecoder) tool(o *object) {
	t := inference.Tool{Type: o.str("type")}
	if t.Type != functionType {
		if o.err != nil || t.Type == "" {
			d.fail(fmt.Errorf("%s: required", o.at("type")))
		}
		d.cannot("%s: a tool of type %q is run by the provider, or has a form of its own; only functions are supported", o.at("type"), t.Type)
		return
	}
	t.Name, t.Description, t.Parameters, t.Strict = o.str("name"), o.str("description"), o.raw("parameters"), o.flag("strict")
	d.done(o)
	d.r.Tools = append(d.r.Tools, t)
}

func (d *responsesDecoder) choice(raw json.RawMessage) {
	if raw == nil {
		return
	}
	var mode inference.ToolMode
	if json.Unmarshal(raw, &mode) == nil {
		d.r.ToolChoice = &inference.ToolChoice{Mode: mode}
		if mode != inference.ToolsAuto && mode != inference.ToolsNone && mode != inference.ToolsRequired {
			d.cannot("tool_choice: %q is not supported", mode)
		}
		return
	}
	o := parseObject(raw, "tool_choice")
	if kind := o.str("type"); kind != functionType && o.err == nil {
		d.cannot("tool_choice: a choice of type %q is not supported", kind)
		return
	}
	d.r.ToolChoice = &inference.ToolChoice{Mode: inference.ToolsNamed, Name: o.str("name")}
	d.done(o)
}

func (d *responsesDecoder) input(o *object) {
	raw := o.raw("input")
	var text string
	if raw == nil || json.Unmarshal(raw, &text) == nil {
		if text != "" {
			d.r.Messages = append(d.r.Messages, inference.Message{Role: inference.RoleUser, Content: inference.Text(text)})
		}
		return
	}
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		o.fail("input", "expected a text or a list of items")
	}
	for i, item := range items {
		d.item(parseObject(item, fmt.Sprintf("input[%d]", i)))
	}
	for i := range d.r.Messages {
		m := &d.r.Messages[i]
		m.Content = plain(m.Role, m.Content)
	}
}

// plain makes content that is nothing but text a plain string, where many servers
// take nothing else.
func plain(role inference.Role, content []inference.Part) []inference.Part {
	if len(content) > 1 && role == inference.RoleUser {
		return content
	}
	var b strings.Builder
	for _, p := range content {
		if !p.IsText() {
			return content
		}
		b.WriteString(p.Text)
	}
	if content == nil {
		return nil
	}
	return inference.Text(b.String())
}

// item reads one item. What an assistant says, thinks and calls in a row is one
// message of chat completions.
func (d *responsesDecoder) item(o *object) {
	kind := o.str("type")
	if kind == "" && o.peek("role") != nil {
		kind = "message"
	}
	o.raw("id")
	o.raw("status")
	switch kind {
	case "message":
		role := inference.Role(o.str("role"))
		m := &inference.Message{Role: role}
		switch role {
		case inference.RoleAssistant:
			m = d.assistant()
		case inference.RoleUser, inference.RoleSystem, inference.RoleDeveloper:
		default:
			o.fail("role", "%q is no role", role)
		}
		said := len(m.Content)
		d.content(o, "content", m)
		for i := range m.ToolCalls {
			m.ToolCalls[i].Before += len(m.Content) - said
		}
		if role != inference.RoleAssistant {
			d.r.Messages = append(d.r.Messages, *m)
		}
		d.done(o, "phase")
	case "function_call":
		m := d.assistant()
		m.ToolCalls = append(m.ToolCalls, inference.ToolCall{ID: o.str("call_id"), Type: functionType, Name: o.str("name"), Arguments: o.str("arguments")})
		d.done(o)
	case "function_call_output":
		m := inference.Message{Role: inference.RoleTool, ToolCallID: o.str("call_id")}
		d.content(o, "output", &m)
		d.r.Messages = append(d.r.Messages, m)
		d.done(o)
	case "reasoning":
		d.reasoning(o)
	case "":
		o.fail("type", "required")
		d.done(o)
	case "item_reference":
		d.cannot("%s: nothing is stored that could be referred to; send the item itself", o.at("type"))
	default:
		d.cannot("%s: an item of type %q is not supported", o.at("type"), kind)
	}
}

// assistant returns the message that an assistant's next item belongs to.
func (d *responsesDecoder) assistant() *inference.Message {
	if n := len(d.r.Messages); n == 0 || d.r.Messages[n-1].Role != inference.RoleAssistant {
		d.r.Messages = append(d.r.Messages, inference.Message{Role: inference.RoleAssistant})
	}
	return &d.r.Messages[len(d.r.Messages)-1]
}

// content reads a field that is a text, or a list of parts, into m.
func (d *responsesDecoder) content(o *object, name string, m *inference.Message) {
	raw := o.raw(name)
	var text string
	if raw == nil || json.Unmarshal(raw, &text) == nil {
		m.Content = append(m.Content, inference.Part{Type: "text", Text: text})
		return
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(raw, &parts); err != nil {
		o.fail(name, "expected a text or a list of parts")
	}
	for i, raw := range parts {
		p := parseObject(raw, fmt.Sprintf("%s[%d]", o.at(name), i))
		switch kind := p.str("type"); kind {
		case "input_text", "output_text", "text", "summary_text":
			m.Content = append(m.Content, inference.Part{Type: "text", Text: p.str("text")})
		case "refusal":
			m.Refusal += p.str("refusal")
		case "input_image":
			image := imageAt(p.str(imageType))
			if image.FileID = p.str("file_id"); image.FileID == "" && image.URL+image.Data == "" {
				p.fail(imageType, "required")
			}
			if detail := p.raw("detail"); detail != nil {
				image.Extra = inference.Extra{"detail": detail}
			}
			m.Content = append(m.Content, inference.Part{Type: imageType, Image: image})
		default:
			d.cannot("%s: content of type %q is not supported", p.at("type"), kind)
			continue
		}
		d.done(p, "annotations", "logprobs", "prompt_cache_breakpoint")
	}
}

// signedPrefix begins the encrypted_content of reasoning that a provider signed:
// the rest is a block of Anthropic's, in base64. That of others begins otherwise.
const signedPrefix = "thinking."

// reasoning keeps what was signed, as clients of chat completions send it back.
func (d *responsesDecoder) reasoning(o *object) {
	signed, ours := strings.CutPrefix(o.str("encrypted_content"), signedPrefix)
	d.done(o, "summary", "content")
	if !ours {
		return
	}
	block, err := base64.StdEncoding.DecodeString(signed)
	if err != nil || !json.Valid(block) {
		d.fail(fmt.Errorf("%s: damaged", o.at("encrypted_content")))
		return
	}
	m := d.assistant()
	var blocks []json.RawMessage
	_ = json.Unmarshal(m.Extra[thinkingBlocks], &blocks) // none, at first
	all, err := encode(append(blocks, json.RawMessage(block)))
	if err != nil {
		d.fail(err)
	}
	m.Extra = inference.Extra{thinkingBlocks: all}
}
