package gateway

import (
	"net/http"

	"creto.dev/inference"
	"creto.dev/inference/provider"
)

// responses is OpenAI's dialect of one request to /v1/responses, whose answer repeats
// what was asked. All but the forms of request and answer is that of chat
// completions.
type responses struct {
	openAI
	writer *provider.OpenAIResponses
}

func (d *responses) decode(_ http.Header, body []byte) (r inference.Request, stream bool, err error) {
	r, stream, d.writer, err = provider.DecodeOpenAIResponsesRequest(body)
	return r, stream, err
}

func (d *responses) answer(r inference.Response) ([]byte, error) { return d.writer.Answer(r) }

func (d *responses) events(inference.Request) events { return responsesEvents{d.writer} }

func (d *responses) broken(err error) []byte { return d.writer.Broken(err) }

// responsesEvents writes items.
type responsesEvents struct{ *provider.OpenAIResponses }

func (e responsesEvents) chunk(c inference.Chunk, _ func() inference.Usage) ([]byte, error) {
	return e.Chunk(c)
}

func (e responsesEvents) end(used inference.Usage) ([]byte, error) { return e.End(used) }
