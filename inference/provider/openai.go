package provider

import (
	"context"
	"net/http"

	"creto.dev/fault"
	"creto.dev/inference"
)

// OpenAI is a client of one upstream that speaks OpenAI's dialect. Make it with
// [NewOpenAI]; close it when it is no longer needed.
type OpenAI struct{ *client }

var _ inference.Model = (*OpenAI)(nil)

// NewOpenAI returns a client. It connects only when it is used.
//
// Errors: InvalidArgument (Permanent), with every problem of the configuration.
func NewOpenAI(c Config) (*OpenAI, error) {
	client, err := newClient("provider.NewOpenAI", c)
	if err != nil {
		return nil, err
	}
	client.fault = openAIFault
	client.sign = func(h http.Header) {
		if !c.APIKey.IsZero() {
			h.Set("Authorization", "Bearer "+c.APIKey.Reveal())
		}
	}
	return &OpenAI{client}, nil
}

// idempotency is the header that makes a repeated request recognisable.
func idempotency(m inference.RequestMetadata) http.Header {
	h := http.Header{}
	if m.IdempotencyKey != "" {
		h.Set("Idempotency-Key", m.IdempotencyKey)
	}
	return h
}

// Complete implements [inference.Model].
func (o *OpenAI) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	const op fault.Op = "provider.OpenAI.Complete"
	body, err := EncodeOpenAIRequest(r, false)
	if err != nil {
		return inference.Response{}, fault.Wrap(op, err)
	}
	answer, err := o.exchange(ctx, op, "chat/completions", body, idempotency(r.Metadata))
	if err != nil {
		return inference.Response{}, err
	}
	response, err := DecodeOpenAIResponse(answer)
	if err != nil {
		return inference.Response{}, fault.WrapAs(op, fault.InferenceProviderError, foreign(err), "the provider's answer is not in the dialect")
	}
	if len(response.Choices) == 0 {
		return inference.Response{}, fault.New(op, fault.InferenceProviderError, "the provider's answer has no choices")
	}
	if response.Usage.TotalTokens() == 0 {
		response.Usage = estimate(r, response.SizeBytes())
	}
	return response, nil
}
