package provider

import (
	"context"
	"encoding/json"
	"fmt"

	"creto.dev/fault"
	"creto.dev/inference"
)

// Embed implements [inference.Model].
func (o *OpenAI) Embed(ctx context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	const op fault.Op = "provider.OpenAI.Embed"
	var none inference.EmbedResponse
	switch {
	case !o.config.Capabilities.Embeddings:
		return none, fault.New(op, fault.InferenceNotSupported, "provider %s has no embeddings", o.config.Name)
	case r.Model == "":
		return none, fault.New(op, fault.InvalidArgument, "model: required")
	case len(r.Input) == 0:
		return none, fault.New(op, fault.InvalidArgument, "input: at least one text is required")
	}
	path, name, err := o.route(op, r.Model, "embeddings")
	if err != nil {
		return none, err
	}
	f := fieldsOf(r.Extra)
	f["model"], f["input"], f["encoding_format"] = name, r.Input, "float"
	body, err := encode(f)
	if err != nil {
		return none, fault.WrapAs(op, fault.InvalidArgument, err, "a field of the request is not JSON")
	}
	answer, err := o.exchange(ctx, op, path, body, idempotency(r.Metadata))
	if err != nil {
		return none, err
	}
	response, err := decodeEmbeddings(answer, len(r.Input))
	if err != nil {
		return none, fault.WrapAs(op, fault.InferenceProviderError, err, "the provider's answer is not in the dialect")
	}
	if response.Usage.TotalTokens() == 0 {
		for _, text := range r.Input {
			response.Usage.PromptTokens += inference.EstimateTokens(len(text))
		}
		response.Usage.Estimated = true
	}
	return response, nil
}

// decodeEmbeddings reads an answer that must have n vectors.
func decodeEmbeddings(body []byte, n int) (inference.EmbedResponse, error) {
	o := parseObject(body, "")
	r := inference.EmbedResponse{Model: o.str("model"), Embeddings: make([][]float32, n)}
	for i, raw := range o.list("data") {
		var item struct {
			Index     *int      `json:"index"`
			Embedding []float32 `json:"embedding"`
		}
		if err := json.Unmarshal(raw, &item); err != nil {
			return r, fmt.Errorf("data[%d]: %w", i, err)
		}
		at := i
		if item.Index != nil {
			at = *item.Index
		}
		if at < 0 || at >= n || r.Embeddings[at] != nil {
			return r, fmt.Errorf("data[%d]: index %d is not one of %d, or there twice", i, at, n)
		}
		r.Embeddings[at] = item.Embedding
	}
	for i, vector := range r.Embeddings {
		if len(vector) == 0 {
			return r, fmt.Errorf("data: vector %d of %d is missing", i, n)
		}
	}
	usage, err := decodeUsage(o)
	if usage != nil {
		r.Usage = *usage
	}
	if err == nil {
		err = o.err
	}
	return r, err
}
