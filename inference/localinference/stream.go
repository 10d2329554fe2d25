package localinference

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"creto.dev/fault"
	"creto.dev/inference"
)

// CompleteStream implements inference.Model. It returns once the first piece is
// there, and until then tries again and falls back; never after (B-24).
func (r *Router) CompleteStream(ctx context.Context, request inference.Request) (inference.Stream, error) {
	const op fault.Op = "localinference.CompleteStream"
	if err := request.Validate(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	s, release, err := reply(ctx, r, op, ask(request, true), func(ctx context.Context, m inference.Model, model string, limit time.Duration) (*stream, error) {
		asked := request
		asked.Model, asked.Metadata.Served = model, nil
		return begin(ctx, op, m, asked, limit)
	})
	if err != nil {
		return nil, err
	}
	s.release = release
	return s, nil
}

// begin begins a stream and waits for its first piece, for limit at most if that is
// not 0.
func begin(ctx context.Context, op fault.Op, m inference.Model, r inference.Request, limit time.Duration) (*stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	inTime := func() bool { return true }
	var late atomic.Bool
	if limit > 0 {
		inTime = time.AfterFunc(limit, func() { late.Store(true); cancel() }).Stop
	}
	give := func(s inference.Stream, err error) error {
		if s != nil {
			_ = s.Close() // it failed already
		}
		inTime()
		cancel()
		if late.Load() {
			return fault.WrapAs(op, fault.InferenceTimeout, err, "provider %s did not begin its answer in time", m.ID())
		}
		return err
	}
	inner, err := m.CompleteStream(ctx, r)
	if err != nil {
		return nil, give(nil, err)
	}
	first, err := inner.Next()
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, give(inner, err)
	case !inTime(): // what ends its context has begun
		late.Store(true)
		return nil, give(inner, context.DeadlineExceeded)
	case err != nil: // it is complete, and says nothing
		return &stream{inner: inner, cancel: cancel}, nil
	}
	return &stream{inner: inner, first: &first, cancel: cancel}, nil
}

// stream is an answer whose first piece was read. It holds its provider's slot until
// it is over.
type stream struct {
	inner   inference.Stream
	first   *inference.Chunk // nil once it was returned
	cancel  context.CancelFunc
	release func()
	closed  atomic.Bool
	ending  sync.Once
}

// Next implements inference.Stream.
func (s *stream) Next() (inference.Chunk, error) {
	if first := s.first; first != nil && !s.closed.Load() {
		s.first = nil
		return *first, nil
	}
	chunk, err := s.inner.Next()
	if err != nil {
		s.end()
	}
	return chunk, err
}

// Ready implements inference.Stream.
func (s *stream) Ready() bool { return s.first != nil || s.inner.Ready() }

// Usage implements inference.Stream.
func (s *stream) Usage() inference.Usage { return s.inner.Usage() }

// Close implements inference.Stream.
func (s *stream) Close() error {
	s.closed.Store(true)
	err := s.inner.Close()
	s.end()
	return err
}

// end gives back what the stream held.
func (s *stream) end() {
	s.ending.Do(func() {
		s.cancel()
		s.release()
	})
}
