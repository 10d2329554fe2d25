package provider

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
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

// pieces makes events of a dialect into pieces of an answer.
type pieces interface {
	// decode reads the data of one event; ok is false for one that has no news.
	// io.EOF says that the answer is complete, with this piece if ok;
	// fault.InvalidArgument that the data is not in the dialect.
	decode(op fault.Op, data []byte) (chunk inference.Chunk, ok bool, err error)
	// complete reports whether the answer may end without another event.
	complete() bool
	// usage returns what the provider counted so far; whole says that it is of
	// the whole answer.
	usage() (u inference.Usage, whole bool)
}

// stream begins an answer to r, whose body in the dialect is given. next names
// the reader of its pieces.
func (c *client) stream(ctx context.Context, op, next fault.Op, path string, body []byte, header http.Header, r inference.Request, p pieces) (inference.Stream, error) {
	ctx, end := c.withEnd(ctx)
	resp, err := c.send(ctx, op, http.MethodPost, path, body, header)
	if err != nil {
		end(nil)
		return nil, err
	}
	if resp.StatusCode != http.StatusOK || !c.isStream(resp.Header) {
		defer end(nil)
		defer func() { _ = resp.Body.Close() }() // it was only read
		defer drain(resp.Body)
		if resp.StatusCode != http.StatusOK {
			return nil, c.refusal(op, resp)
		}
		return nil, fault.New(op, fault.InferenceProviderError, "the provider's answer is not a stream")
	}
	return &stream{
		request: r, limit: c.config.MaxResponseBytes, idle: c.config.IdleTimeout, op: next,
		broken: func(op fault.Op, err error) error { return broken(ctx, op, err) },
		end:    end, body: resp.Body, events: c.split(resp.Body, c.config.MaxResponseBytes), pieces: p, sent: resp.Request.Header,
	}, nil
}

// withEnd returns the context of a stream and what ends it. Its caller must call
// that.
func (c *client) withEnd(ctx context.Context) (context.Context, func(cause error)) {
	ctx, stopTimer := context.WithTimeout(ctx, c.config.Timeout)
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, func(cause error) {
		cancel(cause)
		stopTimer()
	}
}

// stream is an answer that is being read.
type stream struct {
	request inference.Request
	limit   int64
	idle    time.Duration
	op      fault.Op // of Next
	broken  func(fault.Op, error) error
	end     func(cause error)
	body    io.ReadCloser
	events  eventReader
	sent    http.Header // whose credentials no error quotes; nil if none could

	// For the one goroutine that calls Next:
	pieces  pieces
	silence *time.Timer // ends a stream that fell silent; nil until it is waited for
	ahead   *piece      // what Next returns next, if it was read already
	err     error       // what Next returns from now on
	last    bool        // the piece that was read completed the answer
	said    int         // bytes of answer

	closed  atomic.Bool // by Close
	closing sync.Once
}

// piece is what one event came to.
type piece struct {
	chunk inference.Chunk
	err   error
}

var _ inference.Stream = (*stream)(nil)

// Next implements [inference.Stream].
func (s *stream) Next() (inference.Chunk, error) {
	if s.err != nil {
		return inference.Chunk{}, s.err
	}
	chunk, err := s.read()
	if s.closed.Load() {
		err = fault.New(s.op, fault.Canceled, "the stream was closed")
	}
	if err != nil {
		s.err = err
		s.finish(errors.Is(err, io.EOF))
		return inference.Chunk{}, err
	}
	for _, c := range chunk.Choices {
		s.said += c.Message.SizeBytes()
	}
	return chunk, nil
}

// Ready implements [inference.Stream].
func (s *stream) Ready() bool {
	for s.ahead == nil && s.err == nil && !s.last {
		if !s.events.ready() {
			return false
		}
		if chunk, ok, err := s.step(); ok || err != nil {
			s.ahead = &piece{chunk, err}
		}
	}
	return true
}

// read returns the next chunk, or why there is none; io.EOF only if the answer
// is complete.
func (s *stream) read() (inference.Chunk, error) {
	if p := s.ahead; p != nil {
		s.ahead = nil
		return p.chunk, p.err
	}
	if s.last {
		return inference.Chunk{}, io.EOF
	}
	for {
		ready := s.events.ready()
		if !ready {
			s.await()
		}
		chunk, ok, err := s.step()
		if !ready {
			s.silence.Stop()
		}
		if ok || err != nil {
			return chunk, err
		}
	}
}

// await begins to wait for an event.
func (s *stream) await() {
	if s.silence == nil {
		s.silence = time.AfterFunc(s.idle, func() { s.end(errIdle) })
		return
	}
	s.silence.Reset(s.idle)
}

// step reads one event; ok is false for one that has no news.
func (s *stream) step() (chunk inference.Chunk, ok bool, err error) {
	data, err := s.events.next()
	switch {
	case errors.Is(err, io.EOF) && s.pieces.complete():
		return chunk, false, io.EOF
	case errors.Is(err, io.EOF):
		// A call that was given up may look like this too.
		if err := s.broken(s.op, io.ErrUnexpectedEOF); fault.CodeOf(err) != fault.InferenceProviderUnavailable {
			return chunk, false, err
		}
		return chunk, false, fault.New(s.op, fault.InferenceProviderUnavailable, "the provider broke off in the middle of its answer")
	case errors.Is(err, errTooLarge):
		return chunk, false, tooLarge(s.op, s.limit)
	case err != nil:
		return chunk, false, s.broken(s.op, err)
	}
	chunk, ok, err = s.pieces.decode(s.op, data)
	if err != nil && !errors.Is(err, io.EOF) && s.quotes(data) {
		_, _, err = s.pieces.decode(s.op, redact(data, s.sent))
		if err == nil {
			err = fault.InferenceProviderUnavailable // that it failed stands
		}
	}
	if errors.Is(err, fault.InvalidArgument) {
		err = fault.WrapAs(s.op, fault.InferenceProviderError, foreign(err), "a piece of the provider's answer is not in the dialect")
	}
	if ok && errors.Is(err, io.EOF) {
		s.last = true
		err = nil
	}
	return chunk, ok, err
}

// quotes reports whether an event holds a credential of the request.
func (s *stream) quotes(data []byte) bool { return !bytes.Equal(data, redact(data, s.sent)) }

// Usage implements [inference.Stream].
func (s *stream) Usage() inference.Usage {
	counted, whole := s.pieces.usage()
	if whole && counted.TotalTokens() > 0 {
		return counted
	}
	u := estimate(s.request, s.said)
	if counted.PromptTokens > 0 {
		u.PromptTokens, u.CachedTokens, u.CacheWriteTokens, u.Extra = counted.PromptTokens, counted.CachedTokens, counted.CacheWriteTokens, counted.Extra
	}
	return u
}

// finish frees the connection; after a clean end it can be used again.
func (s *stream) finish(clean bool) {
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
func (s *stream) Close() error {
	s.closed.Store(true)
	s.finish(false)
	return nil
}
