package provider

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"creto.dev/fault"
	"creto.dev/inference"
)

// errIdle ends a stream whose provider fell silent.
var errIdle = errors.New("no piece within the idle timeout")

// errClosed ends a stream that its reader closed.
var errClosed = errors.New("stream closed")

// drainPatience is how long the end of a complete answer is waited for.
const drainPatience = 100 * time.Millisecond

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
	body, err := EncodeOpenAIRequest(r, true)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	ctx, stopTimer := context.WithTimeout(ctx, o.config.Timeout)
	ctx, cancel := context.WithCancelCause(ctx)
	end := func(cause error) {
		cancel(cause)
		stopTimer()
	}
	resp, err := o.send(ctx, op, http.MethodPost, "chat/completions", body, r.Metadata.IdempotencyKey)
	if err != nil {
		end(nil)
		return nil, err
	}
	if resp.StatusCode != http.StatusOK || !isEventStream(resp.Header) {
		defer end(nil)
		defer func() { _ = resp.Body.Close() }() // it was only read
		defer drain(resp.Body)
		if resp.StatusCode != http.StatusOK {
			return nil, o.refusal(op, resp)
		}
		return nil, fault.New(op, fault.InferenceProviderError, "the provider's answer is not a stream")
	}
	return &openAIStream{
		request: r, limit: o.config.MaxResponseBytes, idle: o.config.IdleTimeout,
		broken: func(op fault.Op, err error) error { return broken(ctx, op, err) },
		end:    end, body: resp.Body, events: newEvents(resp.Body, o.config.MaxResponseBytes),
		finished: map[int]bool{},
	}, nil
}

// openAIStream is an answer that is being read.
type openAIStream struct {
	request inference.Request
	limit   int64
	idle    time.Duration
	broken  func(fault.Op, error) error
	end     func(cause error)
	body    io.ReadCloser
	events  *events

	// For the one goroutine that calls Next:
	err      error            // what Next returns from now on
	finished map[int]bool     // by index of the choices heard of
	said     int              // bytes of answer
	counted  *inference.Usage // what the provider said

	closed  atomic.Bool // by Close
	closing sync.Once
}

var _ inference.Stream = (*openAIStream)(nil)

// Next implements [inference.Stream].
func (s *openAIStream) Next() (inference.Chunk, error) {
	if s.err != nil {
		return inference.Chunk{}, s.err
	}
	chunk, err := s.read()
	if s.closed.Load() {
		err = fault.New("provider.OpenAI.Next", fault.Canceled, "the stream was closed")
	}
	if err != nil {
		s.err = err
		s.finish(errors.Is(err, io.EOF))
		return inference.Chunk{}, err
	}
	for _, c := range chunk.Choices {
		s.said += c.Message.SizeBytes()
		s.finished[c.Index] = s.finished[c.Index] || c.FinishReason != ""
	}
	if chunk.Usage != nil {
		usage := *chunk.Usage
		s.counted = &usage
	}
	return chunk, nil
}

// read returns the next chunk, or why there is none; io.EOF only if the answer
// is complete.
func (s *openAIStream) read() (inference.Chunk, error) {
	const op fault.Op = "provider.OpenAI.Next"
	silence := time.AfterFunc(s.idle, func() { s.end(errIdle) })
	defer silence.Stop()
	data, err := s.events.next()
	switch {
	case errors.Is(err, io.EOF) && s.complete():
		return inference.Chunk{}, io.EOF
	case errors.Is(err, io.EOF):
		return inference.Chunk{}, fault.New(op, fault.InferenceProviderUnavailable, "the provider broke off in the middle of its answer")
	case errors.Is(err, errTooLarge):
		return inference.Chunk{}, tooLarge(op, s.limit)
	case err != nil:
		return inference.Chunk{}, s.broken(op, err)
	case string(data) == doneMark:
		return inference.Chunk{}, io.EOF
	}
	chunk, err := DecodeOpenAIChunk(data)
	if err != nil {
		return inference.Chunk{}, fault.WrapAs(op, fault.InferenceProviderError, foreign(err), "a piece of the provider's answer is not in the dialect")
	}
	if _, failed := chunk.Extra["error"]; failed && len(chunk.Choices) == 0 {
		return inference.Chunk{}, openAIStreamFault(op, data)
	}
	return chunk, nil
}

// complete reports whether every choice has said how it ended.
func (s *openAIStream) complete() bool {
	return len(s.finished) > 0 && !slices.Contains(slices.Collect(maps.Values(s.finished)), false)
}

// Usage implements [inference.Stream].
func (s *openAIStream) Usage() inference.Usage {
	if s.counted != nil && s.counted.TotalTokens() > 0 {
		return *s.counted
	}
	return estimate(s.request, s.said)
}

// finish frees the connection; after a clean end it can be used again.
func (s *openAIStream) finish(clean bool) {
	s.closing.Do(func() {
		if clean {
			// The body ends at once, or the connection is not worth waiting for.
			patience := time.AfterFunc(drainPatience, func() { s.end(errClosed) })
			drain(s.body)
			patience.Stop()
		}
		s.end(errClosed)
		_ = s.body.Close() // it was only read
	})
}

// Close implements [inference.Stream].
func (s *openAIStream) Close() error {
	s.closed.Store(true)
	s.finish(false)
	return nil
}
