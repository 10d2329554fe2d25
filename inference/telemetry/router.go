package telemetry

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/semconv/v1.41.0/genaiconv"

	"creto.dev/inference"
)

// operationCountTokens has no name in the conventions.
const operationCountTokens genaiconv.OperationNameAttr = "count_tokens"

// Router returns r, each of whose calls is a span and is measured.
func (t *Telemetry) Router(r inference.Router) inference.Router { return &router{r, t} }

type router struct {
	inference.Router
	telemetry *Telemetry
}

var _ inference.Router = (*router)(nil)

// Complete implements inference.Model.
func (m *router) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	ctx, o := m.telemetry.begin(ctx, genaiconv.OperationNameChat, r.Model, &r.Metadata, func() []attribute.KeyValue { return said(r, false) })
	response, err := m.Router.Complete(ctx, r)
	out := outcome{id: response.ID, model: response.Model}
	if err == nil {
		out.usage = &response.Usage
	}
	for _, c := range response.Choices {
		if c.FinishReason != "" {
			out.finish = append(out.finish, c.FinishReason)
		}
	}
	o.end(out, err)
	return response, err
}

// CompleteStream implements inference.Model.
func (m *router) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	ctx, o := m.telemetry.begin(ctx, genaiconv.OperationNameChat, r.Model, &r.Metadata, func() []attribute.KeyValue { return said(r, true) })
	s, err := m.Router.CompleteStream(ctx, r)
	if err != nil {
		o.end(outcome{}, err)
		return nil, err
	}
	return newStream(s, o.began, o.end), nil
}

// Embed implements inference.Model.
func (m *router) Embed(ctx context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	ctx, o := m.telemetry.begin(ctx, genaiconv.OperationNameEmbeddings, r.Model, &r.Metadata, func() []attribute.KeyValue { return nil })
	response, err := m.Router.Embed(ctx, r)
	out := outcome{model: response.Model}
	if err == nil {
		out.usage = &response.Usage
	}
	o.end(out, err)
	return response, err
}

// CountTokens implements inference.TokenCounter.
func (m *router) CountTokens(ctx context.Context, r inference.Request) (int64, error) {
	ctx, o := m.telemetry.begin(ctx, operationCountTokens, r.Model, &r.Metadata, func() []attribute.KeyValue { return nil })
	n, err := m.Router.CountTokens(ctx, r)
	o.end(outcome{}, err)
	return n, err
}
