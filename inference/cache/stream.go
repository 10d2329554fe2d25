package cache

import (
	"context"
	"errors"
	"io"
	"sync"

	"creto.dev/fault"
	"creto.dev/inference"
)

// recording is an answer that is kept when it is complete: when it broke off, was
// closed before, or is too large, nothing of it is.
type recording struct {
	inference.Stream
	keep func([][]byte)

	// Of the goroutine that reads.
	pieces [][]byte
	room   int64
	off    bool
}

// Next implements inference.Stream.
func (s *recording) Next() (inference.Chunk, error) {
	chunk, err := s.Stream.Next()
	switch {
	case s.off:
	case errors.Is(err, io.EOF):
		s.off = true
		s.keep(s.pieces)
	case err != nil || !keepable(chunk.Choices):
		s.forget()
	default:
		data, err := encode(chunk)
		if s.room -= int64(len(data)) + pieceBytes; err != nil || s.room < 0 {
			s.forget()
			break
		}
		s.pieces = append(s.pieces, data)
	}
	return chunk, err
}

func (s *recording) forget() { s.off, s.pieces = true, nil }

// replay returns a kept answer as a stream.
func replay(ctx context.Context, e *entry) (inference.Stream, error) {
	s := &replayed{chunks: make([]inference.Chunk, len(e.pieces)), ended: ctx.Err}
	for i, data := range e.pieces {
		if err := decode(data, &s.chunks[i]); err != nil {
			return nil, err
		}
		if s.chunks[i].Usage != nil { // this time nothing was used
			s.chunks[i].Usage = new(inference.Usage)
		}
	}
	return s, nil
}

// replayed is a stream of what is there already.
type replayed struct {
	ended func() error

	mu     sync.Mutex // guards what follows
	chunks []inference.Chunk
	closed bool
}

// Next implements inference.Stream.
func (s *replayed) Next() (inference.Chunk, error) {
	const op fault.Op = "cache.Next"
	s.mu.Lock()
	defer s.mu.Unlock()
	switch err := s.ended(); {
	case len(s.chunks) == 0 && !s.closed:
		return inference.Chunk{}, io.EOF
	case s.closed:
		return inference.Chunk{}, fault.New(op, fault.Canceled, "the stream was closed")
	case errors.Is(err, context.DeadlineExceeded):
		return inference.Chunk{}, fault.WrapAs(op, fault.InferenceTimeout, err, "no time is left for the call")
	case err != nil:
		return inference.Chunk{}, fault.WrapAs(op, fault.Canceled, err, "the call was canceled")
	}
	c := s.chunks[0]
	s.chunks = s.chunks[1:]
	return c, nil
}

// Ready implements inference.Stream: Next never waits.
func (s *replayed) Ready() bool { return true }

// Usage implements inference.Stream: nothing.
func (s *replayed) Usage() inference.Usage { return inference.Usage{} }

// Close implements inference.Stream.
func (s *replayed) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.chunks = true, nil
	return nil
}
