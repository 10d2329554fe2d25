package inference

import (
	"encoding/json"
	"math"
	"slices"
	"strings"

	"creto.dev/fault"
)

// Extra holds fields that this package does not know, as they came. A name that
// differs from a known field's only by case does not belong here: some providers
// would read it as that field, past the policy that decided on the other.
type Extra map[string]json.RawMessage

// Dialect names the vendor's dialect that Extra, and types and names that this
// package does not know, are words of. A client of another dialect leaves out what
// is only a hint, and refuses what it cannot say with InferenceNotSupported
// (Permanent). "" is understood by all.
type Dialect string

// The dialects.
const (
	DialectOpenAI    Dialect = "openai"
	DialectAnthropic Dialect = "anthropic"
	// DialectBedrock is that of the Converse API.
	DialectBedrock Dialect = "bedrock"
	// DialectVertex is that of generateContent.
	DialectVertex Dialect = "vertex"
	// DialectOllama is Ollama's own.
	DialectOllama Dialect = "ollama"
)

// Is reports whether words of d can be sent where to is spoken.
func (d Dialect) Is(to Dialect) bool { return d == "" || d == to }

// Role says who speaks.
type Role string

// The roles. RoleDeveloper is OpenAI's newer name for RoleSystem.
const (
	RoleSystem    Role = "system"
	RoleDeveloper Role = "developer"
	RoleUser      Role = "user"
	RoleAssistant Role = "assistant"
	RoleTool      Role = "tool"
)

// Part is a piece of a message's content: text, an image, reasoning, or what the
// dialect has beside these.
type Part struct {
	// Type is the dialect's name for it, such as "text", "image_url" or
	// "thinking". "" is text that was, and is, written as a plain string; beside
	// it there is nothing but reasoning.
	Type string
	// Text is the text of a text part, and of reasoning.
	Text string
	// Image is set for an image that this package understands.
	Image *Image
	// Reasoning is set for what a model thought before it answered.
	Reasoning *Reasoning
	// CacheControl asks the provider to keep the prompt up to here, in
	// Anthropic's words; nil does not. It is a hint.
	CacheControl json.RawMessage
	// Index joins the pieces of one part in a stream; 0 elsewhere.
	Index int
	// Extra holds other fields, as they came.
	Extra Extra
}

// Image is a picture: one of URL, Data and FileID.
type Image struct {
	// URL is where the provider finds it.
	URL string
	// MediaType and Data, base64 as it came, are the picture itself.
	MediaType, Data string
	// FileID names a file that the provider has.
	FileID string
	// Extra holds other fields, such as detail.
	Extra Extra
}

// Reasoning marks what a model thought. Providers that sign it want it back,
// unchanged, in the next request.
type Reasoning struct {
	// Signature is the provider's, or "".
	Signature string
	// Redacted is reasoning that only the provider can read, or "".
	Redacted string
}

// IsText reports whether p is text and no more.
func (p Part) IsText() bool {
	return (p.Type == "" || p.Type == "text") && p.Image == nil && p.Reasoning == nil
}

// Text returns content that is a plain string.
func Text(text string) []Part { return []Part{{Text: text}} }

// Message is one turn of a conversation, or in a [Chunk] a piece of one.
type Message struct {
	Role Role
	// Content is nil where there is none, as beside tool calls.
	Content []Part
	// Name tells apart speakers of one role, or is "".
	Name string
	// ToolCalls is what an assistant wants done.
	ToolCalls []ToolCall
	// ToolCallID says whose result a message of RoleTool is.
	ToolCallID string
	// IsError says that the tool failed.
	IsError bool
	// Refusal is what an assistant says instead of an answer.
	Refusal string
	// CacheControl is that of a tool's result as a whole; see [Part].
	CacheControl json.RawMessage
	Extra        Extra
}

// Text returns the text of all parts, without reasoning.
func (m Message) Text() string {
	if len(m.Content) == 1 && m.Content[0].Reasoning == nil {
		return m.Content[0].Text
	}
	var b strings.Builder
	for _, p := range m.Content {
		if p.Reasoning == nil {
			b.WriteString(p.Text)
		}
	}
	return b.String()
}

// ToolCall is a function that the model wants called.
type ToolCall struct {
	// Index joins the pieces of one call in a stream; 0 elsewhere.
	Index int
	// Before is how many parts of the message's content come after the call: 0
	// in dialects that keep the two apart, and in a stream.
	Before int
	ID     string
	// Type is "function"; "" means the same, and in a chunk that an earlier
	// piece said it.
	Type string
	Name string
	// Arguments is what the model wrote: usually JSON, and not to be trusted.
	Arguments string
	// CacheControl is as in [Part].
	CacheControl json.RawMessage
	// Extra is of the call, FunctionExtra of the function inside it.
	Extra, FunctionExtra Extra
}

// Tool is a function that the model may want called.
type Tool struct {
	// Type is "function"; "" means the same. Tools of other types are in Extra.
	Type        string
	Name        string
	Description string
	// Parameters is a JSON schema, or nil.
	Parameters json.RawMessage
	// Strict asks that arguments follow the schema; nil leaves it to the
	// provider.
	Strict *bool
	// CacheControl is as in [Part].
	CacheControl json.RawMessage
	// Extra is of the tool, FunctionExtra of the function inside it.
	Extra, FunctionExtra Extra
}

// ToolMode says whether tools may be called.
type ToolMode string

// The modes.
const (
	ToolsAuto     ToolMode = "auto"
	ToolsNone     ToolMode = "none"
	ToolsRequired ToolMode = "required"
	// ToolsNamed requires the one that ToolChoice names.
	ToolsNamed ToolMode = "named"
)

// ToolChoice says which tools the model may or must call.
type ToolChoice struct {
	// Mode is "" if the choice is one of the dialect's own, in Raw.
	Mode ToolMode
	Name string
	Raw  json.RawMessage
}

// ResponseFormat says what form the answer must have.
type ResponseFormat struct {
	// Type is "text", "json_object" or "json_schema".
	Type string
	// Name is what the schema is called, or "".
	Name string
	// Schema is a JSON schema, or nil.
	Schema json.RawMessage
	// Strict is as in [Tool].
	Strict *bool
	// Extra is of the format, SchemaExtra of what surrounds the schema.
	Extra, SchemaExtra Extra
}

// StreamOptions are for CompleteStream.
type StreamOptions struct {
	// IncludeUsage asks for a last chunk that has usage and no choices.
	IncludeUsage bool
	Extra        Extra
}

// Request asks for an answer.
type Request struct {
	// Model is the name that the provider knows. Required.
	Model string
	// Messages is the conversation, system prompts included. Required.
	Messages []Message
	Tools    []Tool
	// ToolChoice is nil for the provider's own default.
	ToolChoice *ToolChoice
	// ParallelToolCalls allows several calls in one answer; nil leaves it to the
	// provider.
	ParallelToolCalls *bool
	// ReasoningEffort is "none", "minimal", "low", "medium", "high" or the
	// provider's own; "" leaves it to the provider.
	ReasoningEffort string
	// ResponseFormat is nil for free text.
	ResponseFormat *ResponseFormat
	// MaxTokens bounds the answer; 0 means the provider's own bound.
	MaxTokens int64
	// Temperature is decimal text such as "0.7", or "" for the provider's own.
	Temperature string
	// Stop holds texts that end the answer.
	Stop          []string
	StreamOptions *StreamOptions
	// User tells apart those on whose behalf the caller asks, or is "".
	User string
	// CacheControl is as in [Part], for the whole prompt.
	CacheControl json.RawMessage
	// Betas are features of the dialect that the caller asks for by name.
	Betas    []string
	Metadata RequestMetadata
	// Dialect is whose words Extra holds.
	Dialect Dialect
	Extra   Extra
}

// MaxModelBytes bounds the name of a model.
const MaxModelBytes = 512

// What bounds a request: its messages and tools, its betas, and their names,
// which become a header.
const (
	maxItems     = 100_000
	maxBetas     = 64
	maxBetaBytes = 128
)

func isBeta(name string) bool {
	return name != "" && len(name) <= maxBetaBytes && !strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == ',' })
}

// Validate reports whether r can be sent. It does not judge what only the
// provider knows.
//
// Errors: InvalidArgument (Permanent).
func (r Request) Validate() error {
	const op fault.Op = "inference.Request.Validate"
	switch {
	case r.Model == "" || len(r.Model) > MaxModelBytes:
		return fault.New(op, fault.InvalidArgument, "model: a name of 1 to %d bytes is required", MaxModelBytes)
	case len(r.Messages) == 0:
		return fault.New(op, fault.InvalidArgument, "messages: at least one is required")
	case len(r.Messages) > maxItems || len(r.Tools) > maxItems:
		return fault.New(op, fault.InvalidArgument, "messages and tools: at most %d are allowed", maxItems)
	case r.MaxTokens < 0 || r.MaxTokens > math.MaxInt32:
		return fault.New(op, fault.InvalidArgument, "max_tokens: %d is outside 0 to %d", r.MaxTokens, math.MaxInt32)
	case r.Temperature != "" && !isDecimal(r.Temperature):
		return fault.New(op, fault.InvalidArgument, "temperature: not a decimal number")
	}
	if c := r.ToolChoice; c != nil {
		switch c.Mode {
		case ToolsAuto, ToolsNone, ToolsRequired:
		case ToolsNamed:
			if c.Name == "" {
				return fault.New(op, fault.InvalidArgument, "tool_choice: a name is required")
			}
		default:
			if c.Mode != "" || len(c.Raw) == 0 {
				return fault.New(op, fault.InvalidArgument, "tool_choice: %q is no mode", c.Mode)
			}
		}
	}
	if len(r.Betas) > maxBetas || slices.ContainsFunc(r.Betas, func(name string) bool { return !isBeta(name) }) {
		return fault.New(op, fault.InvalidArgument, "betas: at most %d names of 1 to %d visible characters without commas", maxBetas, maxBetaBytes)
	}
	for i, m := range r.Messages {
		if m.Role == "" {
			return fault.New(op, fault.InvalidArgument, "messages[%d].role: required", i)
		}
		plain, others := 0, 0
		for _, p := range m.Content {
			switch {
			case p.Type == "" && p.IsText():
				plain++
			case p.Reasoning == nil:
				others++
			}
		}
		if plain > 1 || plain == 1 && others > 0 {
			return fault.New(op, fault.InvalidArgument, "messages[%d].content: a plain string stands alone", i)
		}
	}
	return nil
}

// isDecimal reports whether text is a number that every language reads alike: a
// JSON number (RFC 8259, section 6) of modest length.
func isDecimal(text string) bool {
	c := text[len(text)-1]
	return len(text) <= 32 && '0' <= c && c <= '9' && (text[0] == '-' || '0' <= text[0] && text[0] <= '9') && json.Valid([]byte(text))
}

// System returns the text of all system prompts.
func (r Request) System() string {
	var texts []string
	for _, m := range r.Messages {
		if m.Role == RoleSystem || m.Role == RoleDeveloper {
			texts = append(texts, m.Text())
		}
	}
	return strings.Join(texts, "\n")
}

// Response is a whole answer.
type Response struct {
	ID string
	// Model is the one that answered, which may be named more exactly than the
	// one that was asked.
	Model string
	// Created is Unix time in seconds by the provider's clock; 0 if not said.
	Created int64
	Choices []Choice
	Usage   Usage
	// Dialect is whose words Extra holds.
	Dialect Dialect
	Extra   Extra
}

// SizeBytes returns how much text the answer holds.
func (r Response) SizeBytes() int {
	n := 0
	for _, c := range r.Choices {
		n += c.Message.SizeBytes()
	}
	return n
}

// Choice is one of the alternative answers.
type Choice struct {
	Index   int
	Message Message
	// FinishReason is "stop", "length", "tool_calls", "content_filter" or the
	// provider's own; "" in a chunk means not finished.
	FinishReason string
	// StopReason is what the provider said where FinishReason is a translation.
	StopReason string
	// StopSequence is the text of Request.Stop that ended the answer, if the
	// provider says so.
	StopSequence string
	Extra        Extra
}

// Chunk is a piece of an answer. Its choices' messages hold what is new.
type Chunk struct {
	ID      string
	Model   string
	Created int64
	Choices []Choice
	// Usage is that of the whole answer; nil in all chunks but the last.
	Usage *Usage
	// Dialect is whose words Extra holds.
	Dialect Dialect
	Extra   Extra
}

// Usage is what an answer cost, in tokens.
type Usage struct {
	// PromptTokens are all of the prompt, those of CachedTokens, which the
	// provider had kept, and CacheWriteTokens, which it keeps now, included.
	PromptTokens                   int64
	CachedTokens, CacheWriteTokens int64
	// CompletionTokens are all of the answer, ReasoningTokens included.
	CompletionTokens int64
	ReasoningTokens  int64
	// Estimated says that the provider did not count, and Creto guessed.
	Estimated bool
	Extra     Extra
}

// TotalTokens returns the sum.
func (u Usage) TotalTokens() int64 { return u.PromptTokens + u.CompletionTokens }

// bytesPerToken is the usual rule of thumb for English text in the tokenizers of
// 2024–2026.
const bytesPerToken = 4

// EstimateTokens guesses how many tokens sizeBytes bytes of text are.
func EstimateTokens(sizeBytes int) int64 { return int64(sizeBytes+bytesPerToken-1) / bytesPerToken }

// SizeBytes returns how much text m holds: what an estimate is made from.
func (m Message) SizeBytes() int {
	n := len(m.Refusal) + len(m.Name)
	for _, p := range m.Content {
		n += len(p.Text)
		if p.Image != nil {
			n += len(p.Image.URL) + len(p.Image.Data)
		}
		if p.Reasoning != nil {
			n += len(p.Reasoning.Redacted)
		}
		for _, raw := range p.Extra {
			n += len(raw)
		}
	}
	for _, c := range m.ToolCalls {
		n += len(c.Name) + len(c.Arguments)
	}
	for _, raw := range m.Extra {
		n += len(raw)
	}
	return n
}

// SizeBytes returns how much text the prompt holds.
func (r Request) SizeBytes() int {
	n := 0
	for _, m := range r.Messages {
		n += m.SizeBytes()
	}
	for _, t := range r.Tools {
		n += len(t.Name) + len(t.Description) + len(t.Parameters)
	}
	return n
}
