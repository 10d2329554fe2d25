package cache

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"creto.dev/fault"
	"creto.dev/inference"
)

// recording is an answer that is kept when it is complete: when it broke off, was
// closed before, or is too large, nothing of it is.
type recording struct {
	inference.Stream
	keep func([][]byte)
	// under counts the bytes of all answers that are under way; held are this one's.
	under  *pool
	held   atomic.Int64
	closed atomic.Bool

	// Of the goroutine that reads.
	pieces [][]byte
	room   int64
	off    bool
}

// pool bounds what answers that are under way hold together, beside those that are
// kept.
type pool struct {
	limit int64
	bytes atomic.Int64
}

// take holds n bytes more, if there is room, and if s is open.
func (s *recording) take(n int64) bool {
	if s.under.bytes.Add(n) > s.under.limit {
		s.under.bytes.Add(-n)
		return false
	}
	s.held.Add(n)
	if s.closed.Load() {
		s.release()
		return false
	}
	return true
}

func (s *recording) release() { s.under.bytes.Add(-s.held.Swap(0)) }

// Close implements inference.Stream.
func (s *recording) Close() error {
	s.closed.Store(true)
	s.release()
	return s.Stream.Close()
}

// Next implements inference.Stream.
func (s *recording) Next() (inference.Chunk, error) {
	chunk, err := s.Stream.Next()
	switch {
	case s.off:
	case errors.Is(err, io.EOF):
		pieces := s.pieces
		s.forget()
		s.keep(pieces)
	case err != nil || !keepable(chunk.Choices):
		s.forget()
	default:
		data, err := encode(chunk)
		n := int64(len(data)) + pieceBytes
		if s.room -= n; err != nil || s.room < 0 || !s.take(n) {
			s.forget()
			break
		}
		s.pieces = append(s.pieces, data)
	}
	return chunk, err
}

func (s *recording) forget() {
	s.off, s.pieces = true, nil
	s.release()
}

// replay returns a kept answer as a stream.
func replay(ctx context.Context, e *entry) inference.Stream {
	return &replayed{pieces: e.pieces, ended: ctx.Err}
}

// readable reports whether every piece can be read again: what is not UTF-8 cannot.
func readable(pieces [][]byte) bool {
	return !slices.ContainsFunc(pieces, func(data []byte) bool {
		var chunk inference.Chunk
		return decode(data, &chunk) != nil
	})
}

// replayed is a stream of what is there already, read piece by piece.
type replayed struct {
	ended func() error

	mu     sync.Mutex // guards what follows
	pieces [][]byte
	closed bool
}

// Next implements inference.Stream.
func (s *replayed) Next() (inference.Chunk, error) {
	const op fault.Op = "cache.Next"
	s.mu.Lock()
	defer s.mu.Unlock()
	switch err := s.ended(); {
	case len(s.pieces) == 0 && !s.closed:
		return inference.Chunk{}, io.EOF
	case s.closed:
		return inference.Chunk{}, fault.New(op, fault.Canceled, "the stream was closed")
	case errors.Is(err, context.DeadlineExceeded):
		return inference.Chunk{}, fault.WrapAs(op, fault.InferenceTimeout, err, "no time is left for the call")
	case err != nil:
		return inference.Chunk{}, fault.WrapAs(op, fault.Canceled, err, "the call was canceled")
	}
	var c inference.Chunk
	if err := decode(s.pieces[0], &c); err != nil {
		return c, fault.WrapAs(op, fault.InferenceInternal, err, "an answer that was kept cannot be read")
	}
	s.pieces = s.pieces[1:]
	if c.Usage != nil { // this time nothing was used
		c.Usage = new(inference.Usage)
	}
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
	s.closed, s.pieces = true, nil
	return nil
}
