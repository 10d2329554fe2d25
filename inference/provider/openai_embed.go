package provider

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strconv"

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
	if err := o.config.staysModel(op, r.Model); err != nil {
		return none, err
	}
	path, name, err := o.route(op, r.Model, "embeddings")
	if err != nil {
		return none, err
	}
	r.Model = name
	body, err := EncodeOpenAIEmbedRequest(r)
	if err != nil {
		return none, fault.Wrap(op, err)
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

// EmbeddingFormat says how vectors are written: "float" or "base64".
type EmbeddingFormat string

// The formats.
const (
	// EmbeddingFloat is a list of numbers.
	EmbeddingFloat EmbeddingFormat = "float"
	// EmbeddingBase64 is the numbers' bytes: IEEE 754 binary32, little-endian.
	EmbeddingBase64 EmbeddingFormat = "base64"
)

// The fields of a request for vectors that say how they shall be.
const (
	encodingFormat = "encoding_format"
	dimensions     = "dimensions"
)

// DecodeOpenAIEmbedRequest reads the body of POST /v1/embeddings and returns how the
// answer shall be written. What it does not know is in Extra;
// [EncodeOpenAIEmbedRequest] writes all of it again. Tokens in place of text are
// refused: they are another text to another model, and nobody on the way can read
// them.
//
// Errors: InvalidArgument (Permanent), naming the field; InferenceNotSupported
// (Permanent) for tokens.
func DecodeOpenAIEmbedRequest(body []byte) (r inference.EmbedRequest, format EmbeddingFormat, err error) {
	const op fault.Op = "provider.DecodeOpenAIEmbedRequest"
	if values(body) > maxValues {
		return r, "", fault.New(op, fault.InvalidArgument, "the request has more than %d JSON values", maxValues)
	}
	o := parseObject(body, "")
	r.Model = o.str("model")
	input := o.raw("input")
	var one string
	switch {
	case o.err != nil:
	case input != nil && json.Unmarshal(input, &one) == nil:
		r.Input = []string{one}
	case input != nil && json.Unmarshal(input, &r.Input) == nil && len(r.Input) > 0:
	case isTokens(input):
		return r, "", fault.New(op, fault.InferenceNotSupported, "input: tokens are not accepted, send the text itself")
	default:
		o.fail("input", "expected a text, or a list of at least one")
	}
	for i, text := range r.Input {
		if text == "" {
			o.fail("input", "the text %d is empty", i)
		}
	}
	format = EmbeddingFormat(o.str(encodingFormat))
	switch format {
	case "":
		format = EmbeddingFloat
	case EmbeddingFloat, EmbeddingBase64:
	default:
		o.fail(encodingFormat, "expected %q or %q", EmbeddingFloat, EmbeddingBase64)
	}
	wanted := o.number(dimensions)
	if n, err := strconv.ParseInt(wanted, 10, 32); wanted != "" && (err != nil || n < 1) {
		o.fail(dimensions, "expected a positive whole number")
	}
	if len(r.Model) > inference.MaxModelBytes || r.Model == "" {
		o.fail("model", "a name of 1 to %d bytes is required", inference.MaxModelBytes)
	}
	if r.Extra, err = o.rest(); err != nil {
		return r, "", refuse(op, err)
	}
	if wanted != "" {
		if r.Extra == nil {
			r.Extra = inference.Extra{}
		}
		r.Extra[dimensions] = json.RawMessage(wanted)
	}
	return r, format, nil
}

// isTokens reports whether an input is a list of numbers, or of lists of them.
func isTokens(input json.RawMessage) bool {
	var one []json.Number
	var many [][]json.Number
	return json.Unmarshal(input, &one) == nil && len(one) > 0 || json.Unmarshal(input, &many) == nil && len(many) > 0
}

// EncodeOpenAIEmbedRequest writes the body of POST /v1/embeddings, which asks for
// numbers. The same request gives the same bytes. Metadata is not part of it.
//
// Errors: InvalidArgument (Permanent) for an Extra that is not JSON.
func EncodeOpenAIEmbedRequest(r inference.EmbedRequest) ([]byte, error) {
	f := fieldsOf(r.Extra)
	f["model"], f["input"], f[encodingFormat] = r.Model, r.Input, EmbeddingFloat
	body, err := encode(f)
	return body, fault.WrapAs("provider.EncodeOpenAIEmbedRequest", fault.InvalidArgument, err, "a field of the request is not JSON")
}

// EncodeOpenAIEmbeddings writes the body of an answer to /v1/embeddings.
//
// Errors: InferenceProviderError (Permanent) for a number that JSON has not.
func EncodeOpenAIEmbeddings(r inference.EmbedResponse, format EmbeddingFormat) ([]byte, error) {
	data := make([]fields, len(r.Embeddings))
	for i, vector := range r.Embeddings {
		data[i] = fields{"object": "embedding", "index": i, "embedding": vector}
		if format == EmbeddingBase64 {
			data[i]["embedding"] = base64.StdEncoding.EncodeToString(littleEndian(vector))
		}
	}
	usage := fieldsOf(r.Usage.Extra)
	usage["prompt_tokens"], usage["total_tokens"] = r.Usage.PromptTokens, r.Usage.TotalTokens()
	body, err := encode(fields{"object": "list", "model": r.Model, "data": data, "usage": usage})
	return body, fault.WrapAs("provider.EncodeOpenAIEmbeddings", fault.InferenceProviderError, err, "the provider's answer holds what is no number")
}

// littleEndian returns the bytes of a vector.
func littleEndian(vector []float32) []byte {
	data := make([]byte, 0, 4*len(vector))
	for _, x := range vector {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(x))
	}
	return data
}
