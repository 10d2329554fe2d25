package provider

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	"creto.dev/fault"
	"creto.dev/inference"
)

// vertexReserved are names of what is said already, in both ways that Google reads
// them, and of what was said by somebody else.
var vertexReserved = []string{
	"contents", "system_instruction", "systemInstruction", "tools", "tool_config", "toolConfig", "generation_config", "generationConfig",
	"model", "cached_content", "cachedContent",
}

// vertexNumbers are the numbers of OpenAI's and Anthropic's dialects that Google
// has too.
var vertexNumbers = map[string]string{
	"top_p": "topP", "top_k": "topK", "seed": "seed", "frequency_penalty": "frequencyPenalty", "presence_penalty": "presencePenalty",
}

// vertexBudgets are what Google's own layer for OpenAI's clients makes of effort
// (https://ai.google.dev/gemini-api/docs/openai, "Thinking"), in tokens.
var vertexBudgets = map[string]int{"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}

// encodeVertexRequest writes the body of generateContent.
//
// Errors: those of [EncodeAnthropicRequest].
func encodeVertexRequest(r inference.Request) (fields, error) {
	e := &vertexEncoder{speaker: speaker{dialect: "Vertex AI"}, names: map[string]string{}}
	all := fieldsOf(r.Extra)
	generation := e.generation(r, all)
	f, err := all.from(r.Dialect, inference.DialectVertex)
	if err != nil {
		return nil, err
	}
	e.reserve(f, vertexReserved...)
	system, turns := e.turns(r.Messages)
	if parts := e.system(system); len(parts) > 0 {
		f["systemInstruction"] = fields{"parts": parts}
	}
	contents := []fields{}
	for _, t := range turns {
		if parts := e.parts(t); len(parts) > 0 {
			role := "user"
			if t.role == inference.RoleAssistant {
				role = "model"
			}
			contents = append(contents, fields{"role": role, "parts": parts})
		}
	}
	f["contents"] = contents
	if len(generation) > 0 {
		f["generationConfig"] = generation
	}
	e.oneCall(r)
	if !e.toolless(r) {
		f["tools"], f["toolConfig"] = e.tools(r)
	}
	return f, e.err
}

// vertexEncoder writes what is said.
type vertexEncoder struct {
	speaker
	names map[string]string // of functions, by the ids of their calls
}

// generation takes what Google has in one object.
func (e *vertexEncoder) generation(r inference.Request, f fields) fields {
	g := fields{}
	for name, theirs := range vertexNumbers {
		raw := f.take(name)
		if raw == nil {
			continue
		}
		var n float64
		if json.Unmarshal(raw, &n) != nil {
			e.at = name
			e.fail(fault.InvalidArgument, "expected a number")
		}
		g[theirs] = raw
	}
	if r.MaxTokens > 0 {
		g["maxOutputTokens"] = r.MaxTokens
	}
	if r.Temperature != "" {
		g["temperature"] = json.Number(r.Temperature)
	}
	if len(r.Stop) > 0 {
		g["stopSequences"] = r.Stop
	}
	if schema := e.schemaOrObject(r.ResponseFormat, g); schema != nil {
		g["responseJsonSchema"] = schema
	}
	if r.ReasoningEffort != "" {
		budget, known := vertexBudgets[r.ReasoningEffort]
		if !known {
			e.at = "reasoning_effort"
			e.cannot("%q", r.ReasoningEffort)
		}
		g["thinkingConfig"] = fields{"thinkingBudget": budget}
	}
	return g
}

// schemaOrObject returns the schema of a format, if any. JSON of any form is
// another type of answer.
func (e *vertexEncoder) schemaOrObject(rf *inference.ResponseFormat, g fields) json.RawMessage {
	if rf == nil || rf.Type == "text" {
		return nil
	}
	g["responseMimeType"] = "application/json"
	if rf.Type == "json_object" {
		return nil
	}
	return e.schema(rf)
}

func (e *vertexEncoder) system(messages []inference.Message) []fields {
	var parts []fields
	for _, m := range messages {
		e.at = "system"
		e.each(m, func(p inference.Part) {
			if !p.IsText() {
				e.cannot("content of type %q", p.Type)
			}
			parts = append(parts, fields{"text": p.Text})
		}, func(inference.ToolCall) { e.cannot("a call") })
	}
	return parts
}

// parts writes a turn. What a model thought is not sent back: Google signs calls.
func (e *vertexEncoder) parts(t turn) []fields {
	var parts []fields
	for _, m := range t.messages {
		e.at = string(m.Role)
		if m.Role == inference.RoleTool {
			parts = append(parts, e.result(m))
			continue
		}
		e.each(m, func(p inference.Part) {
			switch {
			case p.Image != nil:
				parts = append(parts, e.image(*p.Image))
			case p.Reasoning == nil:
				parts = append(parts, fields{"text": p.Text})
			}
		}, func(c inference.ToolCall) {
			e.names[c.ID] = c.Name
			part := fields{"functionCall": fields{"name": c.Name, "args": json.RawMessage(c.Arguments)}}
			if signature := thoughtOf(c.ID); signature != "" {
				part["thoughtSignature"] = signature
			}
			parts = append(parts, part)
		})
	}
	return parts
}

// image writes a picture, which must be here: Google would fetch it with this
// node's rights.
func (e *vertexEncoder) image(image inference.Image) fields {
	if image.MediaType == "" {
		e.cannot("an image by its address")
	}
	if _, err := base64.StdEncoding.DecodeString(image.Data); err != nil {
		e.fail(fault.InvalidArgument, "an image is not base64")
	}
	return fields{"inlineData": fields{"mimeType": image.MediaType, "data": image.Data}}
}

// result writes what a tool answered, to the function that was called.
func (e *vertexEncoder) result(m inference.Message) fields {
	name, known := e.names[m.ToolCallID]
	if !known {
		e.fail(fault.InvalidArgument, "the result of %q, which was not called", m.ToolCallID)
	}
	var said []string
	e.each(m, func(p inference.Part) {
		if !p.IsText() {
			e.cannot("content of type %q", p.Type)
		}
		said = append(said, p.Text)
	}, func(inference.ToolCall) { e.cannot("a call") })
	key := "output"
	if m.IsError {
		key = "error"
	}
	return fields{"functionResponse": fields{"name": name, "response": fields{key: strings.Join(said, "\n")}}}
}

func (e *vertexEncoder) tools(r inference.Request) (tools []fields, choice fields) {
	declarations := make([]fields, len(r.Tools))
	strict := false
	for i, t := range r.Tools {
		e.tool(i, t)
		d := fields{"name": t.Name}
		d.text("description", t.Description)
		d.raw("parametersJsonSchema", t.Parameters)
		declarations[i] = d
		strict = strict || t.Strict != nil && *t.Strict
	}
	mode := fields{"mode": "AUTO"}
	if strict {
		mode["mode"] = "VALIDATED" // as AUTO, with arguments that follow the schema
	}
	if c := r.ToolChoice; c != nil {
		switch c.Mode {
		case inference.ToolsAuto:
		case inference.ToolsNone:
			mode["mode"] = "NONE"
		case inference.ToolsRequired:
			mode["mode"] = "ANY"
		case inference.ToolsNamed:
			mode["mode"], mode["allowedFunctionNames"] = "ANY", []string{c.Name}
			if !slices.ContainsFunc(r.Tools, func(t inference.Tool) bool { return t.Name == c.Name }) {
				e.at = "tool_choice"
				e.fail(fault.InvalidArgument, "%q is no tool", c.Name)
			}
		}
	}
	return []fields{{"functionDeclarations": declarations}}, fields{"functionCallingConfig": mode}
}

// thoughtMark comes in the id of a call before what Google signed with it, which
// it wants back. Clients of any dialect return ids as they were; LiteLLM does the
// same.
const thoughtMark = "__thought__"

// withThought adds a signature to an id.
func withThought(id, signature string) string {
	if signature == "" {
		return id
	}
	return id + thoughtMark + base64.RawURLEncoding.EncodeToString([]byte(signature))
}

// thoughtOf returns the signature in an id, or "".
func thoughtOf(id string) string {
	_, encoded, found := strings.Cut(id, thoughtMark)
	signature, err := base64.RawURLEncoding.DecodeString(encoded)
	if !found || err != nil {
		return ""
	}
	return string(signature)
}
