package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
)

// request is the body of POST /v1/chat/completions. It names every parameter
// that the vendor documents, so that an unknown one can be refused; those that
// the stub has no use for are raw.
type request struct {
	Model         string         `json:"model"`
	Messages      []message      `json:"messages"`
	Tools         []tool         `json:"tools"`
	ToolChoice    toolChoice     `json:"tool_choice"`
	Stream        bool           `json:"stream"`
	StreamOptions *streamOptions `json:"stream_options"`
	N             *int           `json:"n"`
	Temperature   *float64       `json:"temperature"`
	TopP          *float64       `json:"top_p"`
	MaxTokens     *int           `json:"max_tokens"`
	MaxCompletion *int           `json:"max_completion_tokens"`

	Audio                json.RawMessage `json:"audio"`
	FrequencyPenalty     json.RawMessage `json:"frequency_penalty"`
	FunctionCall         json.RawMessage `json:"function_call"`
	Functions            json.RawMessage `json:"functions"`
	LogitBias            json.RawMessage `json:"logit_bias"`
	Logprobs             json.RawMessage `json:"logprobs"`
	Metadata             json.RawMessage `json:"metadata"`
	Modalities           json.RawMessage `json:"modalities"`
	ParallelToolCalls    json.RawMessage `json:"parallel_tool_calls"`
	Prediction           json.RawMessage `json:"prediction"`
	PresencePenalty      json.RawMessage `json:"presence_penalty"`
	PromptCacheKey       json.RawMessage `json:"prompt_cache_key"`
	PromptCacheRetention json.RawMessage `json:"prompt_cache_retention"`
	ReasoningEffort      json.RawMessage `json:"reasoning_effort"`
	ResponseFormat       json.RawMessage `json:"response_format"`
	SafetyIdentifier     json.RawMessage `json:"safety_identifier"`
	Seed                 json.RawMessage `json:"seed"`
	ServiceTier          json.RawMessage `json:"service_tier"`
	Stop                 json.RawMessage `json:"stop"`
	Store                json.RawMessage `json:"store"`
	TopLogprobs          json.RawMessage `json:"top_logprobs"`
	User                 json.RawMessage `json:"user"`
	Verbosity            json.RawMessage `json:"verbosity"`
	WebSearchOptions     json.RawMessage `json:"web_search_options"`
}

// streamOptions is meaningful only when streaming.
type streamOptions struct {
	IncludeUsage       bool  `json:"include_usage"`
	IncludeObfuscation *bool `json:"include_obfuscation"`
}

// message is one message of the conversation.
type message struct {
	Role       string          `json:"role"`
	Content    content         `json:"content"`
	Name       string          `json:"name"`
	ToolCalls  []toolCall      `json:"tool_calls"`
	ToolCallID string          `json:"tool_call_id"`
	Refusal    json.RawMessage `json:"refusal"`
	Audio      json.RawMessage `json:"audio"`
	Annotation json.RawMessage `json:"annotations"`
}

// content is a message's text: a string, null, or a list of text parts, which
// are joined.
type content struct {
	Text string
	Set  bool // neither absent nor null
}

// UnmarshalJSON implements json.Unmarshaler.
func (c *content) UnmarshalJSON(text []byte) error {
	if bytes.Equal(text, []byte("null")) {
		return nil
	}
	c.Set = true
	if text[0] == '"' {
		return json.Unmarshal(text, &c.Text)
	}
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if err := json.Unmarshal(text, &parts); err != nil {
		return errors.New("expected a string or a list of content parts")
	}
	for _, p := range parts {
		if p.Type != "text" {
			return fmt.Errorf("content parts of type %q are not supported by this model", p.Type)
		}
		c.Text += p.Text
	}
	return nil
}

// tool is a function that the model may call.
type tool struct {
	Type     string `json:"type"`
	Function struct {
		Name        string          `json:"name"`
		Description string          `json:"description"`
		Parameters  json.RawMessage `json:"parameters"`
		Strict      *bool           `json:"strict"`
	} `json:"function"`
}

// toolCall is a call that the model made.
type toolCall struct {
	ID       string       `json:"id"`
	Type     string       `json:"type"`
	Function functionCall `json:"function"`
}

// functionCall names a function and its arguments, which are JSON text.
type functionCall struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

// toolChoice is "none" or "auto"; "" means auto if there are tools. The vendor
// can also force a call ("required", or a named function); the stub cannot and
// says so.
type toolChoice string

// UnmarshalJSON implements json.Unmarshaler.
func (c *toolChoice) UnmarshalJSON(text []byte) error {
	var mode string
	if json.Unmarshal(text, &mode) != nil {
		mode = "function"
	}
	*c = toolChoice(mode)
	return nil
}

// maxRequestBytes bounds a request's body.
const maxRequestBytes = 4 << 20

// parseRequest reads and checks a request; the error is an [*apiError].
func parseRequest(body io.Reader) (*request, error) {
	text, err := io.ReadAll(io.LimitReader(body, maxRequestBytes+1))
	if err != nil || len(text) > maxRequestBytes {
		return nil, invalid("", "", "The request body could not be read or is above %d bytes.", maxRequestBytes)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	var r request
	if err := decoder.Decode(&r); err != nil {
		if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
			return nil, invalid(strings.Trim(field, `"`), "unknown_parameter", "Unrecognized request argument supplied: %s", strings.Trim(field, `"`))
		}
		if bad, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, invalid(bad.Field, "invalid_type", "Invalid type for '%s': got %s instead.", bad.Field, bad.Value)
		}
		return nil, invalid("", "", "We could not parse the JSON body of your request: %v", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, invalid("", "", "We could not parse the JSON body of your request: trailing data")
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return &r, nil
}

// functionName is what the vendor accepts as a function's name.
var functionName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// check reports the first parameter that the vendor would refuse.
func (r *request) check() error {
	switch {
	case r.Model == "":
		return invalid("model", "", "you must provide a model parameter")
	case len(r.Messages) == 0:
		return invalid("messages", "empty_array", "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.")
	case r.StreamOptions != nil && !r.Stream:
		return invalid("stream_options", "", "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
	case r.N != nil && *r.N != 1:
		return invalid("n", "unsupported_value", "This model answers with one choice: n must be 1.")
	case r.Temperature != nil && (*r.Temperature < 0 || *r.Temperature > 2):
		return invalid("temperature", "decimal_out_of_range", "Invalid 'temperature': expected a value between 0 and 2, but got %v instead.", *r.Temperature)
	case r.TopP != nil && (*r.TopP < 0 || *r.TopP > 1):
		return invalid("top_p", "decimal_out_of_range", "Invalid 'top_p': expected a value between 0 and 1, but got %v instead.", *r.TopP)
	case r.MaxTokens != nil && *r.MaxTokens < 1:
		return invalid("max_tokens", "integer_below_min_value", "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got %d instead.", *r.MaxTokens)
	case r.MaxCompletion != nil && *r.MaxCompletion < 1:
		return invalid("max_completion_tokens", "integer_below_min_value", "Invalid 'max_completion_tokens': integer below minimum value. Expected a value >= 1, but got %d instead.", *r.MaxCompletion)
	}
	if err := r.checkTools(); err != nil {
		return err
	}
	return r.checkMessages()
}

func (r *request) checkTools() error {
	for i, t := range r.Tools {
		if t.Type != "function" {
			return invalid(fmt.Sprintf("tools[%d].type", i), "invalid_value", "Invalid value: '%s'. Supported values are: 'function'.", t.Type)
		}
		if !functionName.MatchString(t.Function.Name) {
			return invalid(fmt.Sprintf("tools[%d].function.name", i), "invalid_value", "Invalid 'tools[%d].function.name': string does not match pattern '%s'.", i, functionName)
		}
	}
	switch r.ToolChoice {
	case "", "none", "auto":
		return nil
	case "required", "function":
		return invalid("tool_choice", "unsupported_value", "This model decides for itself what to call: tool_choice must be none or auto.")
	}
	return invalid("tool_choice", "invalid_value", "Invalid value: '%s'. Supported values are: 'none', 'auto', and 'required'.", r.ToolChoice)
}

// offers reports whether the function may be called.
func (r *request) offers(name string) bool {
	for _, t := range r.Tools {
		if t.Function.Name == name {
			return true
		}
	}
	return false
}

// checkMessages checks the roles, and that each tool call is answered by
// exactly one tool message before the conversation goes on.
func (r *request) checkMessages() error {
	open := map[string]bool{} // tool calls without an answer
	for i, m := range r.Messages {
		at := fmt.Sprintf("messages.[%d]", i)
		if m.Role == "tool" {
			if !open[m.ToolCallID] {
				return invalid(at+".role", "", "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with 'tool_calls'.") //nolint:misspell // the vendor's spelling
			}
			delete(open, m.ToolCallID)
			continue
		}
		if len(open) > 0 {
			return invalid(at+".role", "", "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'.")
		}
		switch m.Role {
		case "system", "developer", "user":
			if !m.Content.Set {
				return invalid(at+".content", "", "Invalid value for 'content': expected a string, got null.")
			}
		case "assistant":
			if !m.Content.Set && len(m.ToolCalls) == 0 {
				return invalid(at+".content", "", "Invalid value for 'content': expected a string, got null.")
			}
			for _, c := range m.ToolCalls {
				if c.ID == "" || c.Type != "function" || !functionName.MatchString(c.Function.Name) || open[c.ID] {
					return invalid(at+".tool_calls", "invalid_value", "Invalid tool call: id, type 'function' and a function name are required.")
				}
				open[c.ID] = true
			}
		default:
			return invalid(at+".role", "invalid_value", "Invalid value: '%s'. Supported values are: 'system', 'assistant', 'user', 'tool', and 'developer'.", m.Role)
		}
	}
	if len(open) > 0 {
		return invalid("messages", "", "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'.")
	}
	return nil
}

// apiError is the vendor's form of an error.
type apiError struct {
	Status  int     `json:"-"`
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"` // null when it is nobody's
	Code    *string `json:"code"`
}

// Error implements error.
func (e *apiError) Error() string { return e.Message }

// invalid returns a 400 about a parameter; empty param and code are null.
func invalid(param, code, format string, args ...any) error {
	return newError(http.StatusBadRequest, param, code, format, args...)
}

func newError(status int, param, code, format string, args ...any) error {
	e := &apiError{Status: status, Type: "invalid_request_error", Message: fmt.Sprintf(format, args...)}
	if param != "" {
		e.Param = &param
	}
	if code != "" {
		e.Code = &code
	}
	return e
}
