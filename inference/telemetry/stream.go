package telemetry

import (
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"creto.dev/fault"
	"creto.dev/inference"
)

// stream is an answer whose end is heard of once: when it is complete, breaks off, or
// is closed, whichever comes first.
type stream struct {
	inference.Stream
	end func(outcome, error)
	// began is when the call did; zero has nothing of the answer remembered.
	began time.Time

	mu                    sync.Mutex // guards what follows
	reading, closed, over bool
	out                   outcome
	usage                 inference.Usage // at the end of the last Next
	finish                map[int]string  // by choice
}

// newStream returns s, heard of by end; what it says of the answer is remembered if
// began is not zero.
func newStream(s inference.Stream, began time.Time, end func(outcome, error)) *stream {
	t := &stream{Stream: s, began: began, end: end}
	if !began.IsZero() {
		t.usage = s.Usage()
	}
	return t
}

// Next implements inference.Stream.
func (s *stream) Next() (inference.Chunk, error) {
	s.mu.Lock()
	s.reading = true
	s.mu.Unlock()
	chunk, err := s.Stream.Next()
	s.mu.Lock()
	s.reading = false
	if !s.began.IsZero() {
		// Close, which any goroutine may call, must not.
		s.usage = s.Stream.Usage()
		if err == nil {
			s.saw(chunk)
		}
	}
	why := err
	if why == nil && s.closed {
		why = closedEarly()
	}
	report := s.ends(why)
	s.mu.Unlock()
	report()
	return chunk, err
}

// saw remembers what a piece says of the answer.
func (s *stream) saw(c inference.Chunk) {
	if s.out.first == 0 {
		s.out.first = max(time.Since(s.began), 1)
	}
	if c.ID != "" {
		s.out.id = c.ID
	}
	if c.Model != "" {
		s.out.model = c.Model
	}
	for _, choice := range c.Choices {
		if choice.FinishReason != "" {
			if s.finish == nil {
				s.finish = map[int]string{}
			}
			s.finish[choice.Index] = choice.FinishReason
		}
	}
}

// Close implements inference.Stream. If the answer is being read, its reader reports.
func (s *stream) Close() error {
	err := s.Stream.Close()
	s.mu.Lock()
	s.closed = true
	report := func() {}
	if !s.reading {
		report = s.ends(closedEarly())
	}
	s.mu.Unlock()
	report()
	return err
}

// ends returns what reports that the stream ended because of err; nothing if it did
// not, or did before. What was said before an answer broke off was used.
func (s *stream) ends(err error) func() {
	if err == nil || s.over {
		return func() {}
	}
	s.over = true
	if errors.Is(err, io.EOF) {
		err = nil
	}
	out, usage := s.out, s.usage
	out.usage = &usage
	for _, index := range slices.Sorted(maps.Keys(s.finish)) {
		out.finish = append(out.finish, s.finish[index])
	}
	return func() { s.end(out, err) }
}

// closedEarly is what became of an answer that its reader did not want to the end.
func closedEarly() error {
	return fault.New("telemetry.Close", fault.Canceled, "the stream was closed")
}
