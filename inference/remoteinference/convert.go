package remoteinference

import (
	"encoding/json"
	"errors"

	"creto.dev/fault"
	"creto.dev/inference"
	inferencev1 "creto.dev/internal/gen/creto/inference/v1"
)

// list converts each element; nil stays nil.
func list[In, Out any](in []In, convert func(In) Out) []Out {
	if in == nil {
		return nil
	}
	out := make([]Out, len(in))
	for i, x := range in {
		out[i] = convert(x)
	}
	return out
}

// texts converts strings of one type to those of another.
func texts[Out, In ~string](in []In) []Out {
	return list(in, func(x In) Out { return Out(x) })
}

func extraOf(in inference.Extra) map[string][]byte {
	if in == nil {
		return nil
	}
	out := make(map[string][]byte, len(in))
	for name, raw := range in {
		out[name] = raw
	}
	return out
}

func extraFrom(in map[string][]byte) inference.Extra {
	if in == nil {
		return nil
	}
	out := make(inference.Extra, len(in))
	for name, raw := range in {
		out[name] = raw
	}
	return out
}

// raw is nil for none.
func raw(in []byte) json.RawMessage {
	if len(in) == 0 {
		return nil
	}
	return in
}

func partOf(p inference.Part) *inferencev1.Part {
	out := &inferencev1.Part{Type: p.Type, Text: p.Text, CacheControl: p.CacheControl, Index: int64(p.Index), Extra: extraOf(p.Extra)}
	if i := p.Image; i != nil {
		out.Image = &inferencev1.Image{Url: i.URL, MediaType: i.MediaType, Data: i.Data, FileId: i.FileID, Extra: extraOf(i.Extra)}
	}
	if r := p.Reasoning; r != nil {
		out.Reasoning = &inferencev1.Reasoning{Signature: r.Signature, Redacted: r.Redacted}
	}
	return out
}

func partFrom(in *inferencev1.Part) inference.Part {
	p := inference.Part{Type: in.GetType(), Text: in.GetText(), CacheControl: raw(in.GetCacheControl()), Index: int(in.GetIndex()), Extra: extraFrom(in.GetExtra())}
	if i := in.GetImage(); i != nil {
		p.Image = &inference.Image{URL: i.GetUrl(), MediaType: i.GetMediaType(), Data: i.GetData(), FileID: i.GetFileId(), Extra: extraFrom(i.GetExtra())}
	}
	if r := in.GetReasoning(); r != nil {
		p.Reasoning = &inference.Reasoning{Signature: r.GetSignature(), Redacted: r.GetRedacted()}
	}
	return p
}

func callOf(c inference.ToolCall) *inferencev1.ToolCall {
	return &inferencev1.ToolCall{
		Index: int64(c.Index), Before: int64(c.Before), Id: c.ID, Type: c.Type, Name: c.Name, Arguments: c.Arguments,
		CacheControl: c.CacheControl, Extra: extraOf(c.Extra), FunctionExtra: extraOf(c.FunctionExtra),
	}
}

func callFrom(in *inferencev1.ToolCall) inference.ToolCall {
	return inference.ToolCall{
		Index: int(in.GetIndex()), Before: int(in.GetBefore()), ID: in.GetId(), Type: in.GetType(), Name: in.GetName(), Arguments: in.GetArguments(),
		CacheControl: raw(in.GetCacheControl()), Extra: extraFrom(in.GetExtra()), FunctionExtra: extraFrom(in.GetFunctionExtra()),
	}
}

func messageOf(m inference.Message) *inferencev1.Message {
	return &inferencev1.Message{
		Role: string(m.Role), Content: list(m.Content, partOf), Name: m.Name, ToolCalls: list(m.ToolCalls, callOf), ToolCallId: m.ToolCallID,
		IsError: m.IsError, Refusal: m.Refusal, CacheControl: m.CacheControl, Extra: extraOf(m.Extra),
	}
}

func messageFrom(in *inferencev1.Message) inference.Message {
	return inference.Message{
		Role: inference.Role(in.GetRole()), Content: list(in.GetContent(), partFrom), Name: in.GetName(), ToolCalls: list(in.GetToolCalls(), callFrom),
		ToolCallID: in.GetToolCallId(), IsError: in.GetIsError(), Refusal: in.GetRefusal(), CacheControl: raw(in.GetCacheControl()), Extra: extraFrom(in.GetExtra()),
	}
}

func toolOf(t inference.Tool) *inferencev1.Tool {
	return &inferencev1.Tool{
		Type: t.Type, Name: t.Name, Description: t.Description, Parameters: t.Parameters, Strict: t.Strict, CacheControl: t.CacheControl,
		Extra: extraOf(t.Extra), FunctionExtra: extraOf(t.FunctionExtra),
	}
}

func toolFrom(in *inferencev1.Tool) inference.Tool {
	return inference.Tool{
		Type: in.GetType(), Name: in.GetName(), Description: in.GetDescription(), Parameters: raw(in.GetParameters()), Strict: in.Strict,
		CacheControl: raw(in.GetCacheControl()), Extra: extraFrom(in.GetExtra()), FunctionExtra: extraFrom(in.GetFunctionExtra()),
	}
}

func metadataOf(m inference.RequestMetadata) *inferencev1.Metadata {
	return &inferencev1.Metadata{
		Sandbox: m.Sandbox, Agent: m.Agent.String(), TraceId: m.TraceID, IdempotencyKey: m.IdempotencyKey,
		Policies: m.Policies, Classification: string(m.Classification), NoStore: m.NoStore, OnBehalfOf: m.OnBehalfOf.String(),
	}
}

// withinOf keeps apart nobody and no bound.
func withinOf(providers []string) *inferencev1.Within {
	if providers == nil {
		return nil
	}
	return &inferencev1.Within{Providers: providers}
}

func withinFrom(in *inferencev1.Within) []string {
	if in == nil {
		return nil
	}
	return append([]string{}, in.GetProviders()...)
}

// metadataFrom reads metadata, with a place for who served.
//
// Errors: InvalidArgument (Permanent) for an agent that is no id.
func metadataFrom(in *inferencev1.Metadata) (inference.RequestMetadata, error) {
	m := inference.RequestMetadata{
		Sandbox: in.GetSandbox(), TraceID: in.GetTraceId(), IdempotencyKey: in.GetIdempotencyKey(), Policies: in.GetPolicies(),
		Classification: inference.Classification(in.GetClassification()), NoStore: in.GetNoStore(), Served: new(inference.Served),
	}
	err := errors.Join(m.Agent.UnmarshalText([]byte(in.GetAgent())), m.OnBehalfOf.UnmarshalText([]byte(in.GetOnBehalfOf())))
	return m, fault.Wrap("remoteinference.metadata", err)
}

func promptOf(r inference.Request) *inferencev1.Prompt {
	out := &inferencev1.Prompt{
		Model: r.Model, Messages: list(r.Messages, messageOf), Tools: list(r.Tools, toolOf), ParallelToolCalls: r.ParallelToolCalls,
		ReasoningEffort: r.ReasoningEffort, MaxTokens: r.MaxTokens, Temperature: r.Temperature, Stop: r.Stop, User: r.User,
		CacheControl: r.CacheControl, Betas: r.Betas, Metadata: metadataOf(r.Metadata), Dialect: string(r.Dialect), Extra: extraOf(r.Extra),
	}
	if c := r.ToolChoice; c != nil {
		out.ToolChoice = &inferencev1.ToolChoice{Mode: string(c.Mode), Name: c.Name, Raw: c.Raw}
	}
	if f := r.ResponseFormat; f != nil {
		out.ResponseFormat = &inferencev1.ResponseFormat{
			Type: f.Type, Name: f.Name, Schema: f.Schema, Strict: f.Strict, Extra: extraOf(f.Extra), SchemaExtra: extraOf(f.SchemaExtra),
		}
	}
	if o := r.StreamOptions; o != nil {
		out.StreamOptions = &inferencev1.StreamOptions{IncludeUsage: o.IncludeUsage, Extra: extraOf(o.Extra)}
	}
	return out
}

// promptFrom reads a request.
//
// Errors: InvalidArgument (Permanent).
func promptFrom(in *inferencev1.Prompt) (inference.Request, error) {
	m, err := metadataFrom(in.GetMetadata())
	if err != nil {
		return inference.Request{}, err
	}
	r := inference.Request{
		Model: in.GetModel(), Messages: list(in.GetMessages(), messageFrom), Tools: list(in.GetTools(), toolFrom), ReasoningEffort: in.GetReasoningEffort(),
		MaxTokens: in.GetMaxTokens(), Temperature: in.GetTemperature(), Stop: in.GetStop(), User: in.GetUser(), CacheControl: raw(in.GetCacheControl()),
		Betas: in.GetBetas(), Metadata: m, Dialect: inference.Dialect(in.GetDialect()), Extra: extraFrom(in.GetExtra()),
	}
	if in != nil {
		r.ParallelToolCalls = in.ParallelToolCalls
	}
	if c := in.GetToolChoice(); c != nil {
		r.ToolChoice = &inference.ToolChoice{Mode: inference.ToolMode(c.GetMode()), Name: c.GetName(), Raw: raw(c.GetRaw())}
	}
	if f := in.GetResponseFormat(); f != nil {
		r.ResponseFormat = &inference.ResponseFormat{
			Type: f.GetType(), Name: f.GetName(), Schema: raw(f.GetSchema()), Strict: f.Strict, Extra: extraFrom(f.GetExtra()), SchemaExtra: extraFrom(f.GetSchemaExtra()),
		}
	}
	if o := in.GetStreamOptions(); o != nil {
		r.StreamOptions = &inference.StreamOptions{IncludeUsage: o.GetIncludeUsage(), Extra: extraFrom(o.GetExtra())}
	}
	return r, fault.Wrap("remoteinference.prompt", r.Validate())
}

func choiceOf(c inference.Choice) *inferencev1.Choice {
	return &inferencev1.Choice{
		Index: int64(c.Index), Message: messageOf(c.Message), FinishReason: c.FinishReason, StopReason: c.StopReason, StopSequence: c.StopSequence, Extra: extraOf(c.Extra),
	}
}

func choiceFrom(in *inferencev1.Choice) inference.Choice {
	return inference.Choice{
		Index: int(in.GetIndex()), Message: messageFrom(in.GetMessage()), FinishReason: in.GetFinishReason(), StopReason: in.GetStopReason(),
		StopSequence: in.GetStopSequence(), Extra: extraFrom(in.GetExtra()),
	}
}

func usageOf(u inference.Usage) *inferencev1.Usage {
	return &inferencev1.Usage{
		PromptTokens: u.PromptTokens, CachedTokens: u.CachedTokens, CacheWriteTokens: u.CacheWriteTokens, CompletionTokens: u.CompletionTokens,
		ReasoningTokens: u.ReasoningTokens, Estimated: u.Estimated, Extra: extraOf(u.Extra),
	}
}

func usageFrom(in *inferencev1.Usage) inference.Usage {
	return inference.Usage{
		PromptTokens: in.GetPromptTokens(), CachedTokens: in.GetCachedTokens(), CacheWriteTokens: in.GetCacheWriteTokens(), CompletionTokens: in.GetCompletionTokens(),
		ReasoningTokens: in.GetReasoningTokens(), Estimated: in.GetEstimated(), Extra: extraFrom(in.GetExtra()),
	}
}

func chunkOf(c inference.Chunk) *inferencev1.Chunk {
	out := &inferencev1.Chunk{
		Id: c.ID, Model: c.Model, Created: c.Created, Choices: list(c.Choices, choiceOf), Dialect: string(c.Dialect), Extra: extraOf(c.Extra),
	}
	if c.Usage != nil {
		out.Usage = usageOf(*c.Usage)
	}
	return out
}

func chunkFrom(in *inferencev1.Chunk) inference.Chunk {
	c := inference.Chunk{
		ID: in.GetId(), Model: in.GetModel(), Created: in.GetCreated(), Choices: list(in.GetChoices(), choiceFrom),
		Dialect: inference.Dialect(in.GetDialect()), Extra: extraFrom(in.GetExtra()),
	}
	if u := in.GetUsage(); u != nil {
		usage := usageFrom(u)
		c.Usage = &usage
	}
	return c
}

func servedOf(s *inference.Served) *inferencev1.Served {
	return &inferencev1.Served{Provider: s.Provider, Model: s.Model, Attempts: int64(s.Attempts), Cache: s.Cache, Similarity: s.Similarity}
}

func servedFrom(in *inferencev1.Served) inference.Served {
	return inference.Served{Provider: in.GetProvider(), Model: in.GetModel(), Attempts: int(in.GetAttempts()), Cache: in.GetCache(), Similarity: in.GetSimilarity()}
}
