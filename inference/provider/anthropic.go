package provider

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"creto.dev/fault"
	"creto.dev/inference"
)

// anthropicVersion is the version of the API that this package speaks
// (https://docs.anthropic.com/en/api/versioning).
const anthropicVersion = "2023-06-01"

// DefaultMaxTokens bounds an answer of Anthropic's where the request does not,
// because the API demands a bound: what every model of theirs accepts.
const DefaultMaxTokens = 4096

// AnthropicConfig is where an upstream is that speaks Anthropic's dialect.
type AnthropicConfig struct {
	Config
	// MaxTokens bounds an answer where the request does not. 0 means
	// DefaultMaxTokens.
	MaxTokens int64
}

// Anthropic is a client of one upstream that speaks Anthropic's dialect (the
// Messages API). Make it with [NewAnthropic]; close it when it is no longer needed.
type Anthropic struct {
	*client
	maxTokens int64
}

var _ inference.TokenCounter = (*Anthropic)(nil)

// NewAnthropic returns a client. It connects only when it is used.
//
// Errors: InvalidArgument (Permanent), with every problem of the configuration.
func NewAnthropic(c AnthropicConfig) (*Anthropic, error) {
	const op fault.Op = "provider.NewAnthropic"
	var bound error
	if c.MaxTokens < 0 {
		bound = errors.New("max tokens: must not be negative")
	}
	client, err := newClient(op, c.Config, bound)
	if err != nil {
		return nil, err
	}
	client.config.Capabilities.Embeddings = false
	client.fault = anthropicFault
	client.sign = func(_ context.Context, _ fault.Op, h http.Header) error {
		h.Set("Anthropic-Version", anthropicVersion)
		if !c.APIKey.IsZero() {
			h.Set("X-Api-Key", c.APIKey.Reveal())
		}
		return nil
	}
	if c.MaxTokens == 0 {
		c.MaxTokens = DefaultMaxTokens
	}
	return &Anthropic{client, c.MaxTokens}, nil
}

// Complete implements [inference.Model].
func (a *Anthropic) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	const op fault.Op = "provider.Anthropic.Complete"
	body, header, err := a.prepare(op, r, false)
	if err != nil {
		return inference.Response{}, err
	}
	answer, err := a.exchange(ctx, op, "messages", body, header)
	if err != nil {
		return inference.Response{}, err
	}
	response, err := DecodeAnthropicResponse(answer)
	if err != nil {
		return inference.Response{}, fault.WrapAs(op, fault.InferenceProviderError, foreign(err), "the provider's answer is not in the dialect")
	}
	if response.Usage.TotalTokens() == 0 {
		response.Usage = estimate(r, response.SizeBytes())
	}
	return response, nil
}

// CompleteStream implements [inference.Model]. The last chunk has usage and no
// choices.
func (a *Anthropic) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	const op fault.Op = "provider.Anthropic.CompleteStream"
	body, header, err := a.prepare(op, r, true)
	if err != nil {
		return nil, err
	}
	return a.stream(ctx, op, "provider.Anthropic.Next", "messages", body, header, r, &anthropicPieces{open: map[int64]openBlock{}})
}

// Embed implements [inference.Model]: Anthropic has no embeddings.
func (a *Anthropic) Embed(context.Context, inference.EmbedRequest) (inference.EmbedResponse, error) {
	return inference.EmbedResponse{}, fault.New("provider.Anthropic.Embed", fault.InferenceNotSupported, "provider %s has no embeddings", a.config.Name)
}

// CountTokens implements [inference.TokenCounter].
func (a *Anthropic) CountTokens(ctx context.Context, r inference.Request) (int64, error) {
	const op fault.Op = "provider.Anthropic.CountTokens"
	// What bounds and shapes the answer has no place here, and is refused.
	r.MaxTokens, r.Temperature, r.Stop, r.User = 0, "", nil, ""
	body, header, err := a.encode(op, r, false)
	if err != nil {
		return 0, err
	}
	answer, err := a.exchange(ctx, op, "messages/count_tokens", body, header)
	if err != nil {
		return 0, err
	}
	o := parseObject(answer, "")
	n := o.integer("input_tokens")
	if o.err != nil || n <= 0 || n > maxCount {
		return 0, fault.New(op, fault.InferenceProviderError, "the provider's answer holds no count")
	}
	return n, nil
}

// prepare returns the body and the headers of a request for an answer.
func (a *Anthropic) prepare(op fault.Op, r inference.Request, stream bool) ([]byte, http.Header, error) {
	if r.MaxTokens == 0 {
		r.MaxTokens = a.maxTokens
	}
	return a.encode(op, r, stream)
}

// encode returns the body and the headers of a request. Betas go into a header.
func (a *Anthropic) encode(op fault.Op, r inference.Request, stream bool) ([]byte, http.Header, error) {
	if err := r.Validate(); err != nil {
		return nil, nil, fault.Wrap(op, err)
	}
	if err := a.config.stays(op, r); err != nil {
		return nil, nil, err
	}
	header := idempotency(r.Metadata)
	if r.Dialect.Is(inference.DialectAnthropic) && len(r.Betas) > 0 {
		header.Set("Anthropic-Beta", strings.Join(r.Betas, ","))
	}
	r.Betas = nil
	body, err := EncodeAnthropicRequest(r, stream)
	return body, header, fault.Wrap(op, err)
}
