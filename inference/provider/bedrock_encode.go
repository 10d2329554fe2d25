package provider

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"creto.dev/fault"
	"creto.dev/inference"
	"github.com/aws/aws-sdk-go-v2/service/bedrockruntime/document"
	"github.com/aws/aws-sdk-go-v2/service/bedrockruntime/types"
)

// converse is a request of the Converse API, in what its operations share.
type converse struct {
	messages   []types.Message
	system     []types.SystemContentBlock
	inference  *types.InferenceConfiguration
	tools      *types.ToolConfiguration
	output     *types.OutputConfig
	additional document.Interface
}

// rawJSON is a document as it came. The SDK's own encoder knows Go's values only,
// whose numbers are not those of JSON.
type rawJSON struct {
	document.Interface // makes it one of the SDK's documents
	text               json.RawMessage
}

// MarshalSmithyDocument implements document.Marshaler.
func (d rawJSON) MarshalSmithyDocument() ([]byte, error) { return d.text, nil }

func documentOf(text json.RawMessage) document.Interface {
	return rawJSON{document.NewLazyDocument(nil), text}
}

// bedrockReserved are names in models' own dialects of what Converse says in its
// own words: beside them, they would say it again.
var bedrockReserved = []string{
	"messages", "system", "prompt", "input", "instructions", "tools", "tool_choice", "toolConfig", "model", "stream", "anthropic_version",
	"max_tokens", "max_tokens_to_sample", "max_gen_len", "max_new_tokens", "temperature", "top_p", "stop", "stop_sequences", "response_format",
	"inputText", "inferenceConfig", "images", "image", "documents", "chat_history", "message", "preamble", "schemaVersion", "guardrailConfig",
}

// encode writes a request. What is not known goes into the additional fields,
// which Bedrock passes to the model.
//
// Errors: those of [EncodeAnthropicRequest]; InferenceModelNotFound (Permanent)
// for a name that no model can have.
func (b *Bedrock) encode(op fault.Op, r inference.Request) (converse, error) {
	var c converse
	if err := r.Validate(); err != nil {
		return c, fault.Wrap(op, err)
	}
	if !bedrockModel.MatchString(r.Model) || strings.Contains(r.Model, "..") { // a proxy may decode the path
		return c, fault.New(op, fault.InferenceModelNotFound, "no model can have this name")
	}
	f, err := fieldsOf(r.Extra).from(r.Dialect, inference.DialectBedrock)
	if err != nil {
		return c, fault.Wrap(op, err)
	}
	anthropic := speaksAnthropic(r.Model)
	if anthropic && r.Dialect == inference.DialectAnthropic {
		f.raw(thinkingType, r.Extra[thinkingType])
		if len(r.Betas) > 0 {
			f[betasField] = r.Betas
		}
	}
	e := &bedrockEncoder{speaker: speaker{dialect: "Bedrock"}, cachePoints: anthropic}
	c.inference = e.inference(r, f)
	e.reserve(f, bedrockReserved...)
	if len(f) > 0 {
		body, err := encode(f)
		if err != nil {
			return c, fault.WrapAs(op, fault.InvalidArgument, err, "a field of the request is not JSON")
		}
		c.additional = documentOf(body)
	}
	system, turns := e.turns(r.Messages)
	c.system = e.system(system)
	for _, t := range turns {
		if content := e.content(t); len(content) > 0 {
			c.messages = append(c.messages, types.Message{Role: types.ConversationRole(t.role), Content: content})
		}
	}
	e.oneCall(r)
	if !e.toolless(r) {
		c.tools = e.tools(r)
	}
	c.output = e.output(r)
	return c, fault.Wrap(op, e.err)
}

// bedrockEncoder writes what is said.
type bedrockEncoder struct {
	speaker
	cachePoints bool // the model takes them
}

func (e *bedrockEncoder) inference(r inference.Request, f fields) *types.InferenceConfiguration {
	c := &types.InferenceConfiguration{StopSequences: r.Stop, TopP: e.take32(f, "top_p")}
	if r.MaxTokens > 0 {
		n := int32(r.MaxTokens) // Validate bounds it
		c.MaxTokens = &n
	}
	if r.Temperature != "" {
		n, err := strconv.ParseFloat(r.Temperature, 32)
		if err != nil {
			e.at = "temperature"
			e.fail(fault.InvalidArgument, "out of range")
		}
		t := float32(n)
		c.Temperature = &t
	}
	return c
}

func (e *bedrockEncoder) system(messages []inference.Message) []types.SystemContentBlock {
	var blocks []types.SystemContentBlock
	for _, m := range messages {
		e.at = "system"
		e.each(m, func(p inference.Part) {
			if !p.IsText() {
				e.cannot("content of type %q", p.Type)
				return
			}
			blocks = append(blocks, &types.SystemContentBlockMemberText{Value: p.Text})
			if point := e.cachePoint(p.CacheControl); point != nil {
				blocks = append(blocks, &types.SystemContentBlockMemberCachePoint{Value: *point})
			}
		}, func(inference.ToolCall) { e.cannot("a call") })
	}
	return blocks
}

// content writes a turn.
func (e *bedrockEncoder) content(t turn) []types.ContentBlock {
	var blocks []types.ContentBlock
	point := func(control json.RawMessage) {
		if point := e.cachePoint(control); point != nil {
			blocks = append(blocks, &types.ContentBlockMemberCachePoint{Value: *point})
		}
	}
	for _, m := range t.messages {
		e.at = string(m.Role)
		if m.Role == inference.RoleTool {
			blocks = append(blocks, &types.ContentBlockMemberToolResult{Value: e.toolResult(m)})
			point(m.CacheControl)
			continue
		}
		e.each(m, func(p inference.Part) {
			if block := e.block(p); block != nil {
				blocks = append(blocks, block)
			}
			point(p.CacheControl)
		}, func(c inference.ToolCall) {
			blocks = append(blocks, &types.ContentBlockMemberToolUse{Value: types.ToolUseBlock{
				ToolUseId: &c.ID, Name: &c.Name, Input: documentOf(json.RawMessage(c.Arguments)),
			}})
			point(c.CacheControl)
		})
	}
	return blocks
}

// block writes a part; nil for one that is only a hint.
func (e *bedrockEncoder) block(p inference.Part) types.ContentBlock {
	switch {
	case p.Reasoning == nil && p.Image == nil:
		return &types.ContentBlockMemberText{Value: p.Text}
	case p.Image != nil:
		return &types.ContentBlockMemberImage{Value: e.image(*p.Image)}
	case p.Reasoning.Redacted != "":
		data, err := base64.StdEncoding.DecodeString(p.Reasoning.Redacted)
		if err != nil {
			return nil // another provider's
		}
		return &types.ContentBlockMemberReasoningContent{Value: &types.ReasoningContentBlockMemberRedactedContent{Value: data}}
	default:
		return &types.ContentBlockMemberReasoningContent{Value: &types.ReasoningContentBlockMemberReasoningText{
			Value: types.ReasoningTextBlock{Text: &p.Text, Signature: &p.Reasoning.Signature},
		}}
	}
}

// bedrockImages are the formats of images by media type.
var bedrockImages = map[string]types.ImageFormat{
	"image/png": types.ImageFormatPng, "image/jpeg": types.ImageFormatJpeg, "image/jpg": types.ImageFormatJpeg,
	"image/gif": types.ImageFormatGif, "image/webp": types.ImageFormatWebp,
}

// image writes a picture, which must be here: Bedrock fetches nothing but from S3,
// and that with this node's rights.
func (e *bedrockEncoder) image(image inference.Image) types.ImageBlock {
	if image.MediaType == "" {
		e.cannot("an image by its address")
		return types.ImageBlock{}
	}
	format, known := bedrockImages[image.MediaType]
	data, err := base64.StdEncoding.DecodeString(image.Data)
	switch {
	case !known:
		e.cannot("an image of type %q", image.MediaType)
	case err != nil:
		e.fail(fault.InvalidArgument, "an image is not base64")
	}
	return types.ImageBlock{Format: format, Source: &types.ImageSourceMemberBytes{Value: data}}
}

func (e *bedrockEncoder) toolResult(m inference.Message) types.ToolResultBlock {
	result := types.ToolResultBlock{ToolUseId: &m.ToolCallID, Content: []types.ToolResultContentBlock{}}
	if m.IsError {
		result.Status = types.ToolResultStatusError
	}
	e.each(m, func(p inference.Part) {
		switch {
		case p.Image != nil:
			result.Content = append(result.Content, &types.ToolResultContentBlockMemberImage{Value: e.image(*p.Image)})
		case p.IsText():
			result.Content = append(result.Content, &types.ToolResultContentBlockMemberText{Value: p.Text})
		default:
			e.cannot("content of type %q", p.Type)
		}
	}, func(inference.ToolCall) { e.cannot("a call") })
	return result
}

// cachePoint writes cache control in Anthropic's words; nil for none.
func (e *bedrockEncoder) cachePoint(control json.RawMessage) *types.CachePointBlock {
	if control == nil || !e.cachePoints {
		return nil
	}
	var said struct {
		TTL string `json:"ttl"`
	}
	_ = json.Unmarshal(control, &said) // it is a hint
	point := &types.CachePointBlock{Type: types.CachePointTypeDefault}
	if said.TTL == string(types.CacheTTLOneHour) {
		point.Ttl = types.CacheTTLOneHour
	}
	return point
}

func (e *bedrockEncoder) tools(r inference.Request) *types.ToolConfiguration {
	c := &types.ToolConfiguration{}
	for i, t := range r.Tools {
		e.tool(i, t)
		schema := t.Parameters
		if schema == nil {
			schema = json.RawMessage(`{"type":"object"}`) // required; and this is what absent means
		}
		spec := types.ToolSpecification{Name: &t.Name, InputSchema: &types.ToolInputSchemaMemberJson{Value: documentOf(schema)}, Strict: t.Strict}
		if t.Description != "" {
			spec.Description = &t.Description
		}
		c.Tools = append(c.Tools, &types.ToolMemberToolSpec{Value: spec})
		if point := e.cachePoint(t.CacheControl); point != nil {
			c.Tools = append(c.Tools, &types.ToolMemberCachePoint{Value: *point})
		}
	}
	if r.ToolChoice == nil {
		return c
	}
	e.at = "tool_choice"
	switch r.ToolChoice.Mode {
	case inference.ToolsAuto:
		c.ToolChoice = &types.ToolChoiceMemberAuto{}
	case inference.ToolsRequired:
		c.ToolChoice = &types.ToolChoiceMemberAny{}
	case inference.ToolsNamed:
		c.ToolChoice = &types.ToolChoiceMemberTool{Value: types.SpecificToolChoice{Name: &r.ToolChoice.Name}}
	case inference.ToolsNone:
		e.cannot("no call after earlier ones")
	}
	return c
}

func (e *bedrockEncoder) output(r inference.Request) *types.OutputConfig {
	var c types.OutputConfig
	if effort := r.ReasoningEffort; effort == "minimal" {
		least := "low" // the least there is
		c.Effort = &least
	} else if effort != "" && effort != "none" {
		c.Effort = &effort
	}
	if schema := e.schema(r.ResponseFormat); schema != nil {
		text := string(schema)
		definition := types.JsonSchemaDefinition{Schema: &text}
		if r.ResponseFormat.Name != "" {
			definition.Name = &r.ResponseFormat.Name
		}
		c.TextFormat = &types.OutputFormat{Type: types.OutputFormatTypeJsonSchema, Structure: &types.OutputFormatStructureMemberJsonSchema{Value: definition}}
	}
	if c == (types.OutputConfig{}) {
		return nil
	}
	return &c
}

// documentText returns a document of an answer as JSON text.
func documentText(d document.Interface) (string, error) {
	if d == nil {
		return "{}", nil
	}
	text, err := d.MarshalSmithyDocument()
	if err != nil {
		return "", fmt.Errorf("input: %w", err)
	}
	// The SDK writes < and > as escapes.
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return "", fmt.Errorf("input: %w", err)
	}
	text, err = encode(value)
	return string(text), err
}
