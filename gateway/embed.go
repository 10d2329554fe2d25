package gateway

import (
	"context"
	"net/http"

	"creto.dev/inference"
	"creto.dev/inference/injection"
	"creto.dev/inference/provider"
)

// embedOperation is what policies and records call it when vectors are asked for.
const embedOperation = "embeddings"

// embed is OpenAI's POST /v1/embeddings.
func (g *Gateway) embed(w *startedWriter, r *http.Request, v *visit, _ dialect) error {
	body, err := v.json(w, r)
	if err != nil {
		return err
	}
	request, format, err := provider.DecodeOpenAIEmbedRequest(body)
	if err != nil {
		return err
	}
	args, err := provider.EncodeOpenAIEmbedRequest(request)
	if err != nil {
		return err
	}
	class, err := classification(r.Header)
	if err != nil {
		return err
	}
	request.Metadata = metadata(r, v, class)
	ask := asked{
		model: request.Model, metadata: &request.Metadata, args: under(embedOperation, args), facts: embedFacts(request),
		texts: func() []injection.Text { return documents(request.Input) },
	}
	return g.decided(r.Context(), v, ask, func(ctx context.Context) (*inference.Usage, error) {
		response, err := g.models.Embed(ctx, request)
		if err != nil {
			return nil, err
		}
		data, err := provider.EncodeOpenAIEmbeddings(response, format)
		if err != nil {
			return &response.Usage, err
		}
		w.cached(request.Metadata.Served)
		return &response.Usage, w.whole(data)
	})
}

// embedFacts are what policies read of a request for vectors.
func embedFacts(r inference.EmbedRequest) map[string]any {
	return map[string]any{operationFact: embedOperation, "stream": false, "messages": int64(len(r.Input)), "tools": int64(0), "max_tokens": int64(0)}
}

// documents are texts that somebody will find again: nothing obeys them now.
func documents(inputs []string) []injection.Text {
	texts := make([]injection.Text, len(inputs))
	for i, text := range inputs {
		texts[i] = injection.Text{Text: text, From: injection.Document}
	}
	return texts
}
