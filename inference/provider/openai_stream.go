package provider

import (
	"context"
	"io"
	"maps"
	"slices"

	"creto.dev/fault"
	"creto.dev/inference"
)

// doneMark is the data of the event that ends a stream.
const doneMark = "[DONE]"

// CompleteStream implements [inference.Model]. It asks the upstream for usage
// whether or not r does, so that the caller can meter the answer; the chunk that
// carries it has no choices.
func (o *OpenAI) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	const op fault.Op = "provider.OpenAI.CompleteStream"
	options := inference.StreamOptions{IncludeUsage: true}
	if r.StreamOptions != nil {
		options.Extra = r.StreamOptions.Extra
	}
	r.StreamOptions = &options
	path, body, err := o.prepare(op, r, true)
	if err != nil {
		return nil, err
	}
	return o.stream(ctx, op, "provider.OpenAI.Next", path, body, idempotency(r.Metadata), r, &openAIPieces{finished: map[int]bool{}})
}

// openAIPieces are the chunks of a streamed answer.
type openAIPieces struct {
	finished map[int]bool // by index of the choices heard of
	counted  inference.Usage
	objects  objects
}

func (p *openAIPieces) decode(op fault.Op, data []byte) (inference.Chunk, bool, error) {
	if string(data) == doneMark {
		return inference.Chunk{}, false, io.EOF
	}
	chunk, err := decodeOpenAIChunk(p.objects.parse(data))
	if err != nil {
		return inference.Chunk{}, false, err
	}
	if _, failed := chunk.Extra["error"]; failed && len(chunk.Choices) == 0 {
		return inference.Chunk{}, false, openAIStreamFault(op, data)
	}
	for _, c := range chunk.Choices {
		p.finished[c.Index] = p.finished[c.Index] || c.FinishReason != ""
	}
	if chunk.Usage != nil {
		p.counted = *chunk.Usage
	}
	return chunk, true, nil
}

// complete reports whether every choice has said how it ended.
func (p *openAIPieces) complete() bool {
	return len(p.finished) > 0 && !slices.Contains(slices.Collect(maps.Values(p.finished)), false)
}

func (p *openAIPieces) usage() (inference.Usage, bool) { return p.counted, p.counted.TotalTokens() > 0 }
