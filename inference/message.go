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

// Part is a piece of a message's content.
type Part struct {
	// Type is "text", "image_url" and the like. "" is text that was, and is,
	// written as a plain string; such a part stands alone.
	Type string
	// Text is the text of a text part.
	Text string
	// Extra holds the fields of other parts, as they came.
	Extra Extra
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
	// Refusal is what an assistant says instead of an answer.
	Refusal string
	Extra   Extra
}

// Text returns the text of all parts.
func (m Message) Text() string {
	if len(m.Content) == 1 {
		return m.Content[0].Text
	}
	var b strings.Builder
	for _, p := range m.Content {
		b.WriteString(p.Text)
	}
	return b.String()
}

// ToolCall is a function that the model wants called.
type ToolCall struct {
	// Index joins the pieces of one call in a stream; 0 elsewhere.
	Index int
	ID    string
	// Type is "function"; "" means the same, and in a chunk that an earlier
	// piece said it.
	Type string
	Name string
	// Arguments is what the model wrote: usually JSON, and not to be trusted.
	Arguments string
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
	// Extra is of the tool, FunctionExtra of the function inside it.
	Extra, FunctionExtra Extra
}

// ResponseFormat says what form the answer must have.
type ResponseFormat struct {
	// Type is "text", "json_object" or "json_schema".
	Type string
	// Schema is OpenAI's json_schema object (name, schema, strict), or nil.
	Schema json.RawMessage
	Extra  Extra
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
	// ResponseFormat is nil for free text.
	ResponseFormat *ResponseFormat
	// MaxTokens bounds the answer; 0 means the provider's own bound.
	MaxTokens int64
	// Temperature is decimal text such as "0.7", or "" for the provider's own.
	Temperature string
	// Stop holds texts that end the answer.
	Stop          []string
	StreamOptions *StreamOptions
	Metadata      RequestMetadata
	Extra         Extra
}

// maxItems bounds the messages and the tools of a request.
const maxItems = 100_000

// Validate reports whether r can be sent. It does not judge what only the
// provider knows.
//
// Errors: InvalidArgument (Permanent).
func (r Request) Validate() error {
	const op fault.Op = "inference.Request.Validate"
	switch {
	case r.Model == "" || len(r.Model) > 512:
		return fault.New(op, fault.InvalidArgument, "model: a name of 1 to 512 bytes is required")
	case len(r.Messages) == 0:
		return fault.New(op, fault.InvalidArgument, "messages: at least one is required")
	case len(r.Messages) > maxItems || len(r.Tools) > maxItems:
		return fault.New(op, fault.InvalidArgument, "messages and tools: at most %d are allowed", maxItems)
	case r.MaxTokens < 0 || r.MaxTokens > math.MaxInt32:
		return fault.New(op, fault.InvalidArgument, "max_tokens: %d is outside 0 to %d", r.MaxTokens, math.MaxInt32)
	case r.Temperature != "" && !isDecimal(r.Temperature):
		return fault.New(op, fault.InvalidArgument, "temperature: not a decimal number")
	}
	for i, m := range r.Messages {
		if m.Role == "" {
			return fault.New(op, fault.InvalidArgument, "messages[%d].role: required", i)
		}
		if len(m.Content) > 1 && slices.ContainsFunc(m.Content, func(p Part) bool { return p.Type == "" }) {
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
	Extra   Extra
}

// Choice is one of the alternative answers.
type Choice struct {
	Index   int
	Message Message
	// FinishReason is "stop", "length", "tool_calls", "content_filter" or the
	// provider's own; "" in a chunk means not finished.
	FinishReason string
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
	Extra Extra
}

// Usage is what an answer cost, in tokens.
type Usage struct {
	PromptTokens     int64
	CompletionTokens int64
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
