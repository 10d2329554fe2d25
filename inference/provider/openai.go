package provider

import (
	"context"
	"net/http"

	"creto.dev/fault"
	"creto.dev/inference"
)

// OpenAI is a client of one upstream that speaks OpenAI's dialect. Make it with
// [NewOpenAI]; close it when it is no longer needed.
type OpenAI struct {
	*client
	// route returns where a call for a model goes and what the model is called
	// there.
	route func(op fault.Op, model, call string) (path, name string, err error)
}

var _ inference.Model = (*OpenAI)(nil)

// NewOpenAI returns a client. It connects only when it is used.
//
// Errors: InvalidArgument (Permanent), with every problem of the configuration.
func NewOpenAI(c Config) (*OpenAI, error) { return newOpenAI("provider.NewOpenAI", c) }

func newOpenAI(op fault.Op, c Config, others ...error) (*OpenAI, error) {
	client, err := newClient(op, c, others...)
	if err != nil {
		return nil, err
	}
	client.fault = openAIFault
	client.sign = func(_ context.Context, _ fault.Op, h http.Header) error {
		if !c.APIKey.IsZero() {
			h.Set("Authorization", "Bearer "+c.APIKey.Reveal())
		}
		return nil
	}
	return &OpenAI{client, func(_ fault.Op, model, call string) (path, name string, err error) { return call, model, nil }}, nil
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
	path, body, err := o.prepare(op, r, false)
	if err != nil {
		return inference.Response{}, err
	}
	answer, err := o.exchange(ctx, op, path, body, idempotency(r.Metadata))
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

// prepare returns where a request for an answer goes, and its body.
func (o *OpenAI) prepare(op fault.Op, r inference.Request, stream bool) (path string, body []byte, err error) {
	if err := r.Validate(); err != nil {
		return "", nil, fault.Wrap(op, err)
	}
	if err := o.config.stays(op, r); err != nil {
		return "", nil, err
	}
	path, r.Model, err = o.route(op, r.Model, "chat/completions")
	if err != nil {
		return "", nil, err
	}
	body, err = EncodeOpenAIRequest(r, stream)
	return path, body, fault.Wrap(op, err)
}
