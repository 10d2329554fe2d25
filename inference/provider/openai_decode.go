package provider

import (
	"encoding/json"
	"fmt"
	"strings"

	"creto.dev/fault"
	"creto.dev/inference"
)

// DecodeOpenAIRequest reads the body of POST /v1/chat/completions and reports
// whether it asks for a stream. What it does not know is in Extra;
// [EncodeOpenAIRequest] writes all of it again. Names are read in their exact
// case, and one that differs from a known one only by case is refused.
//
// Errors: InvalidArgument (Permanent), naming the field.
func DecodeOpenAIRequest(body []byte) (r inference.Request, stream bool, err error) {
	const op fault.Op = "provider.DecodeOpenAIRequest"
	if len(body) > maxValues && values(body) > maxValues {
		return r, stream, fault.New(op, fault.InvalidArgument, "the request has more than %d JSON values", maxValues)
	}
	o := new(objects).parse(body)
	r.Dialect = inference.DialectOpenAI
	r.Model = o.str("model")
	stream = o.boolean("stream")
	messages := o.list("messages")
	if n := len(messages); n > 0 {
		r.Messages = make([]inference.Message, 0, n)
	}
	for i, raw := range messages {
		below := o.below("messages", i+1, raw)
		m, err := decodeMessage(below)
		if err != nil {
			return r, stream, refuse(op, err)
		}
		below.done()
		r.Messages = append(r.Messages, m)
	}
	for i, raw := range o.list("tools") {
		below := o.below("tools", i+1, raw)
		t, err := decodeTool(below)
		if err != nil {
			return r, stream, refuse(op, err)
		}
		below.done()
		r.Tools = append(r.Tools, t)
	}
	if f := o.object("response_format"); f != nil {
		r.ResponseFormat = &inference.ResponseFormat{Type: f.str("type")}
		if s := f.object("json_schema"); s != nil {
			r.ResponseFormat.Name, r.ResponseFormat.Schema, r.ResponseFormat.Strict = s.str("name"), s.raw("schema"), s.flag("strict")
			if r.ResponseFormat.SchemaExtra, err = s.rest(); err != nil {
				return r, stream, refuse(op, err)
			}
		}
		if r.ResponseFormat.Extra, err = f.rest(); err != nil {
			return r, stream, refuse(op, err)
		}
	}
	if r.ToolChoice, err = decodeToolChoice(o.raw("tool_choice")); err != nil {
		return r, stream, refuse(op, err)
	}
	r.ParallelToolCalls = o.flag("parallel_tool_calls")
	r.ReasoningEffort, r.User = o.str("reasoning_effort"), o.str("user")
	r.CacheControl = o.raw("cache_control")
	r.MaxTokens = o.integer("max_tokens")
	newer := o.raw(maxCompletionTokens)
	if newer != nil {
		// Which of the two names a model accepts depends on the model, so the
		// caller's stays: in Extra, where the encoder finds it.
		if err := json.Unmarshal(newer, &r.MaxTokens); err != nil {
			o.fail(maxCompletionTokens, "expected a whole number")
		}
	}
	r.Temperature = o.number("temperature")
	r.Stop = decodeStop(o)
	if s := o.object("stream_options"); s != nil {
		r.StreamOptions = &inference.StreamOptions{IncludeUsage: s.boolean("include_usage")}
		if r.StreamOptions.Extra, err = s.rest(); err != nil {
			return r, stream, refuse(op, err)
		}
	}
	if r.Extra, err = o.rest(); err != nil {
		return r, stream, refuse(op, err)
	}
	if newer != nil {
		if r.Extra == nil {
			r.Extra = inference.Extra{}
		}
		r.Extra[maxCompletionTokens] = newer
	}
	return r, stream, fault.Wrap(op, r.Validate())
}

// maxCompletionTokens is OpenAI's newer name for max_tokens.
const maxCompletionTokens = "max_completion_tokens"

// refuse makes a decoder's mistake, which quotes nothing but names of fields,
// into a fault.
func refuse(op fault.Op, err error) error {
	return fault.New(op, fault.InvalidArgument, "%s", err)
}

// decodeStop reads a string or a list of them.
func decodeStop(o *object) []string {
	raw := o.raw("stop")
	if raw == nil {
		return nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}
	}
	var many []string
	if err := json.Unmarshal(raw, &many); err != nil {
		o.fail("stop", "expected a string or a list of strings")
	}
	return many
}

// decodeToolChoice reads a mode or the function that must be called. Choices of
// other kinds stay as they are.
func decodeToolChoice(raw json.RawMessage) (*inference.ToolChoice, error) {
	if raw == nil {
		return nil, nil
	}
	var mode inference.ToolMode
	if json.Unmarshal(raw, &mode) == nil {
		switch mode {
		case inference.ToolsAuto, inference.ToolsNone, inference.ToolsRequired:
			return &inference.ToolChoice{Mode: mode}, nil
		}
		return &inference.ToolChoice{Raw: raw}, nil
	}
	o := parseObject(raw, "tool_choice")
	c := &inference.ToolChoice{Mode: inference.ToolsNamed}
	kind := o.str("type")
	function := o.object(functionType)
	if function == nil || kind != functionType {
		return &inference.ToolChoice{Raw: raw}, o.err
	}
	c.Name = function.str("name")
	more, err := function.rest()
	if err != nil {
		return nil, err
	}
	rest, err := o.rest()
	if len(more) > 0 || len(rest) > 0 || c.Name == "" {
		c = &inference.ToolChoice{Raw: raw}
	}
	return c, err
}

func decodeMessage(o *object) (m inference.Message, err error) {
	m.Role = inference.Role(o.word("role"))
	m.Name = o.str("name")
	m.ToolCallID = o.str("tool_call_id")
	m.Refusal = o.str("refusal")
	if content := o.raw("content"); content != nil {
		if m.Content, err = decodeContent(o, content); err != nil {
			return m, err
		}
	}
	for _, name := range reasoningFields {
		if text, ok := o.strIf(name); ok {
			m.Content = append([]inference.Part{{Type: name, Text: text, Reasoning: &inference.Reasoning{}}}, m.Content...)
			break
		}
	}
	for i, raw := range o.list("tool_calls") {
		below := o.below("tool_calls", i+1, raw)
		c, err := decodeToolCall(below)
		if err != nil {
			return m, err
		}
		below.done()
		m.ToolCalls = append(m.ToolCalls, c)
	}
	m.Extra, err = o.rest()
	return m, err
}

// reasoningFields hold what a model thought, in a message: as DeepSeek and vLLM
// call it, and as OpenRouter and newer versions of vLLM do.
var reasoningFields = []string{"reasoning_content", "reasoning"}

// decodeContent reads the content of a message, which was taken already.
func decodeContent(m *object, raw []byte) ([]inference.Part, error) {
	if raw[0] == '"' {
		return inference.Text(unquoted(raw)), nil
	}
	items, ok := itemsOf(raw)
	if !ok {
		return nil, fmt.Errorf("%s: expected a string or a list of parts", m.at("content"))
	}
	parts := make([]inference.Part, len(items))
	for i, item := range items {
		o := m.below("content", i+1, item)
		p := inference.Part{Type: o.word("type"), Text: o.str("text"), CacheControl: o.raw("cache_control")}
		if p.Type == "" {
			o.fail("type", "required")
		}
		var err error
		if p.Type == imageType {
			if p.Image, err = decodeImage(o); err != nil {
				return nil, err
			}
		}
		if p.Extra, err = o.rest(); err != nil {
			return nil, err
		}
		o.done()
		parts[i] = p
	}
	return parts, nil
}

// imageType is the type of an image, and the field that describes it.
const imageType = "image_url"

// decodeImage reads an image: an address, which may hold the picture itself
// (RFC 2397).
func decodeImage(o *object) (*inference.Image, error) {
	described := o.object(imageType)
	if described == nil {
		return nil, o.err
	}
	image := imageAt(described.str("url"))
	var err error
	image.Extra, err = described.rest()
	return image, err
}

// imageAt returns the image of an address.
func imageAt(url string) *inference.Image {
	media, data, ok := strings.Cut(strings.TrimPrefix(url, "data:"), ";base64,")
	if !ok || !strings.HasPrefix(url, "data:") || media == "" || strings.ContainsAny(media, ";,") {
		return &inference.Image{URL: url}
	}
	return &inference.Image{MediaType: media, Data: data}
}

func decodeToolCall(o *object) (c inference.ToolCall, err error) {
	c.Index = int(o.integer("index"))
	c.ID = o.str("id")
	c.Type = o.word("type")
	if f := o.object("function"); f != nil {
		c.Name = f.str("name")
		c.Arguments = f.str("arguments")
		if c.FunctionExtra, err = f.rest(); err != nil {
			return c, err
		}
	}
	c.Extra, err = o.rest()
	return c, err
}

func decodeTool(o *object) (t inference.Tool, err error) {
	t.Type = o.word("type")
	t.CacheControl = o.raw("cache_control")
	if f := o.object("function"); f != nil {
		t.Name = f.str("name")
		t.Description = f.str("description")
		t.Parameters = f.raw("parameters")
		t.Strict = f.flag("strict")
		if t.FunctionExtra, err = f.rest(); err != nil {
			return t, err
		}
	}
	t.Extra, err = o.rest()
	return t, err
}

// DecodeOpenAIResponse reads the body of an answer to /v1/chat/completions.
//
// Errors: InvalidArgument (Permanent), naming the field.
func DecodeOpenAIResponse(body []byte) (r inference.Response, err error) {
	const op fault.Op = "provider.DecodeOpenAIResponse"
	o := new(objects).parse(body)
	r.Dialect = inference.DialectOpenAI
	r.ID, r.Model, r.Created = o.str("id"), o.str("model"), o.integer("created")
	o.raw("object")
	if r.Choices, err = decodeChoices(o, "message"); err != nil {
		return r, refuse(op, err)
	}
	usage, err := decodeUsage(o)
	if err != nil {
		return r, refuse(op, err)
	}
	if usage != nil {
		r.Usage = *usage
	}
	if r.Extra, err = o.rest(); err != nil {
		return r, refuse(op, err)
	}
	return r, nil
}

// DecodeOpenAIChunk reads the data of one event of a streamed answer.
//
// Errors: InvalidArgument (Permanent), naming the field.
func DecodeOpenAIChunk(data []byte) (c inference.Chunk, err error) {
	return decodeOpenAIChunk(parseObject(data, ""))
}

func decodeOpenAIChunk(o *object) (c inference.Chunk, err error) {
	const op fault.Op = "provider.DecodeOpenAIChunk"
	c.Dialect = inference.DialectOpenAI
	c.ID, c.Model, c.Created = o.str("id"), o.str("model"), o.integer("created")
	o.raw("object")
	if c.Choices, err = decodeChoices(o, "delta"); err != nil {
		return c, refuse(op, err)
	}
	if c.Usage, err = decodeUsage(o); err != nil {
		return c, refuse(op, err)
	}
	if c.Extra, err = o.rest(); err != nil {
		return c, refuse(op, err)
	}
	return c, nil
}

// decodeChoices reads choices whose message is in the field named message.
func decodeChoices(o *object, message string) ([]inference.Choice, error) {
	var choices []inference.Choice
	for i, raw := range o.list("choices") {
		c := o.below("choices", i+1, raw)
		choice := inference.Choice{Index: int(c.integer("index")), FinishReason: c.word("finish_reason")}
		if raw := c.raw(message); raw != nil {
			var err error
			if choice.Message, err = decodeMessage(c.below(message, 0, raw)); err != nil {
				return nil, err
			}
		}
		var err error
		if choice.Extra, err = c.rest(); err != nil {
			return nil, err
		}
		c.done()
		choices = append(choices, choice)
	}
	return choices, nil
}

// decodeUsage returns nil where there is no usage.
func decodeUsage(o *object) (*inference.Usage, error) {
	u := o.object("usage")
	if u == nil {
		return nil, nil
	}
	usage := &inference.Usage{PromptTokens: u.integer("prompt_tokens"), CompletionTokens: u.integer("completion_tokens")}
	u.raw("total_tokens")
	if usage.PromptTokens < 0 || usage.CompletionTokens < 0 {
		u.fail("", "negative")
	}
	// Details stay in Extra, as they came: some are counted and some are not.
	if details := u.peek(promptDetails); details != nil {
		usage.CachedTokens, usage.CacheWriteTokens = detail(details, "cached_tokens"), detail(details, "cache_write_tokens")
	}
	usage.ReasoningTokens = detail(u.peek(completionDetails), "reasoning_tokens")
	var err error
	usage.Extra, err = u.rest()
	return usage, err
}

// The fields of usage that say what its counts are made of.
const (
	promptDetails     = "prompt_tokens_details"
	completionDetails = "completion_tokens_details"
)

// detail returns a count among the details of usage; 0 if there is none that
// makes sense.
func detail(details json.RawMessage, name string) int64 {
	var counts map[string]json.RawMessage
	var n int64
	if len(details) == 0 || json.Unmarshal(details, &counts) != nil || json.Unmarshal(counts[name], &n) != nil || n < 0 {
		return 0
	}
	return n
}

// maxValues bounds the JSON values of a request. Decoding takes some hundred
// bytes for each, so that a body of many tiny ones would take a hundred times
// its size.
const maxValues = 100_000

// values returns at most how many values a JSON text has, without decoding it:
// one more than its separators and openings outside of strings.
func values(body []byte) int {
	n, quoted := 1, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ',' || c == ':' || c == '[' || c == '{'):
			n++
		}
	}
	return n
}
