package provider

import (
	"encoding/json"

	"creto.dev/fault"
	"creto.dev/inference"
)

// EncodeOpenAIRequest writes the body of POST /v1/chat/completions. The same
// request gives the same bytes. Metadata is not part of it.
//
// Errors: InvalidArgument (Permanent) for a request that does not validate or
// whose Extra is not JSON.
func EncodeOpenAIRequest(r inference.Request, stream bool) ([]byte, error) {
	const op fault.Op = "provider.EncodeOpenAIRequest"
	if err := r.Validate(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	f := fieldsOf(r.Extra)
	f["model"] = r.Model
	messages := make([]fields, len(r.Messages))
	for i, m := range r.Messages {
		messages[i] = encodeMessage(m, true)
	}
	f["messages"] = messages
	if len(r.Tools) > 0 {
		tools := make([]fields, len(r.Tools))
		for i, t := range r.Tools {
			tools[i] = encodeTool(t)
		}
		f["tools"] = tools
	}
	if rf := r.ResponseFormat; rf != nil {
		format := fieldsOf(rf.Extra)
		format["type"] = rf.Type
		if rf.Schema != nil {
			format["json_schema"] = rf.Schema
		}
		f["response_format"] = format
	}
	delete(f, "max_tokens")
	if _, newer := r.Extra[maxCompletionTokens]; newer {
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
	body, err := encode(f)
	return body, fault.WrapAs(op, fault.InvalidArgument, err, "a field of the request is not JSON")
}

// encodeMessage writes a message; whole is false for a piece of one, which says
// only what is new.
func encodeMessage(m inference.Message, whole bool) fields {
	f := fieldsOf(m.Extra)
	f.text("role", string(m.Role))
	f.text("name", m.Name)
	f.text("tool_call_id", m.ToolCallID)
	f.text("refusal", m.Refusal)
	switch {
	case m.Content == nil && whole:
		f["content"] = nil
	case m.Content == nil:
		delete(f, "content")
	case len(m.Content) == 1 && m.Content[0].Type == "":
		f["content"] = m.Content[0].Text
	default:
		parts := make([]fields, len(m.Content))
		for i, p := range m.Content {
			parts[i] = fieldsOf(p.Extra)
			parts[i]["type"] = p.Type
			if p.Text != "" || p.Type == "text" {
				parts[i]["text"] = p.Text
			}
		}
		f["content"] = parts
	}
	delete(f, "tool_calls")
	if len(m.ToolCalls) > 0 {
		calls := make([]fields, len(m.ToolCalls))
		for i, c := range m.ToolCalls {
			calls[i] = encodeToolCall(c, whole)
		}
		f["tool_calls"] = calls
	}
	return f
}

func encodeToolCall(c inference.ToolCall, whole bool) fields {
	f := fieldsOf(c.Extra)
	f.text("id", c.ID)
	f.text("type", c.Type)
	delete(f, "index")
	if !whole {
		f["index"] = c.Index
	}
	isFunction := c.Type == "" || c.Type == functionType
	if isFunction || c.Name != "" {
		function := fieldsOf(c.FunctionExtra)
		function.text("name", c.Name)
		function["arguments"] = c.Arguments
		f[functionType] = function
	}
	if whole && c.Type == "" {
		f["type"] = functionType
	}
	return f
}

// functionType is the type of a tool, and the field that describes it.
const functionType = "function"

func encodeTool(t inference.Tool) fields {
	f := fieldsOf(t.Extra)
	f["type"] = t.Type
	if t.Type == "" {
		f["type"] = functionType
	}
	if f["type"] == functionType || t.Name != "" {
		function := fieldsOf(t.FunctionExtra)
		function["name"] = t.Name
		function.text("description", t.Description)
		if t.Parameters != nil {
			function["parameters"] = t.Parameters
		}
		f[functionType] = function
	}
	return f
}

// EncodeOpenAIResponse writes the body of an answer to /v1/chat/completions.
//
// Errors: Internal (Permanent) for an Extra that is not JSON.
func EncodeOpenAIResponse(r inference.Response) ([]byte, error) {
	f := fieldsOf(r.Extra)
	f["object"] = "chat.completion"
	f["id"], f["model"], f["created"] = r.ID, r.Model, r.Created
	f["choices"] = encodeChoices(r.Choices, "message")
	f["usage"] = encodeUsage(r.Usage)
	body, err := encode(f)
	return body, fault.Wrap("provider.EncodeOpenAIResponse", err)
}

// EncodeOpenAIChunk writes the data of one event of a streamed answer.
//
// Errors: Internal (Permanent) for an Extra that is not JSON.
func EncodeOpenAIChunk(c inference.Chunk) ([]byte, error) {
	f := fieldsOf(c.Extra)
	f["object"] = "chat.completion.chunk"
	f["id"], f["model"], f["created"] = c.ID, c.Model, c.Created
	f["choices"] = encodeChoices(c.Choices, "delta")
	delete(f, "usage")
	if c.Usage != nil {
		f["usage"] = encodeUsage(*c.Usage)
	}
	body, err := encode(f)
	return body, fault.Wrap("provider.EncodeOpenAIChunk", err)
}

// encodeChoices writes choices with their message in the field named message.
func encodeChoices(choices []inference.Choice, message string) []fields {
	list := make([]fields, len(choices)) // an empty list, not null: clients index it
	for i, c := range choices {
		f := fieldsOf(c.Extra)
		f["index"] = c.Index
		f[message] = encodeMessage(c.Message, message == "message")
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
	return f
}
