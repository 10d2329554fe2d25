package provider

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// errTooLarge says that a stream or one of its events exceeds its limit.
var errTooLarge = errors.New("event stream exceeds its limit")

// events reads server-sent events (WHATWG HTML, section 9.2.6) as far as model
// providers use them: the data of each event, and nothing else.
type events struct {
	r    *bufio.Reader
	left int64 // bytes that may still be read
}

func newEvents(r io.Reader, limit int64) *events {
	return &events{r: bufio.NewReaderSize(r, readBufferBytes), left: limit}
}

// eventReader is how a stream is read: next returns the data of an event, and ready
// reports that one is there.
type eventReader struct {
	next  func() ([]byte, error)
	ready func() bool
}

// serverSentEvents returns what reads the data of each event of r.
func serverSentEvents(r io.Reader, limit int64) eventReader {
	e := newEvents(r, limit)
	return eventReader{e.next, func() bool { return e.holds("\n\n") || e.holds("\n\r\n") }}
}

// jsonLines returns what reads each line of r that is not empty
// (https://github.com/ndjson/ndjson-spec).
func jsonLines(r io.Reader, limit int64) eventReader {
	e := newEvents(r, limit)
	next := func() ([]byte, error) {
		for {
			line, err := e.line()
			if len(line) > 0 && (err == nil || errors.Is(err, io.EOF)) {
				return bytes.Clone(line), nil
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return eventReader{next, func() bool { return e.holds("\n") }}
}

// holds reports whether what was received and not read yet has an end.
func (e *events) holds(end string) bool {
	buffered, _ := e.r.Peek(e.r.Buffered()) // it is there
	return bytes.Contains(buffered, []byte(end))
}

// next returns the data of the next event that has any. At the end it returns
// io.EOF; what follows the last blank line counts as an event too, because some
// servers do not end theirs.
func (e *events) next() ([]byte, error) {
	var data []byte
	for {
		line, err := e.line()
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if value, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			if len(data) > 0 {
				data = append(data, '\n')
			}
			data = append(data, bytes.TrimPrefix(value, []byte(" "))...)
			if len(data) > maxEventBytes {
				return nil, errTooLarge
			}
		}
		if len(data) > 0 && (len(line) == 0 || err != nil) {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// line returns the next line without its end, valid until the next one is read.
func (e *events) line() ([]byte, error) {
	var line []byte
	for {
		piece, err := e.r.ReadSlice('\n')
		if e.left -= int64(len(piece)); e.left < 0 || len(line)+len(piece) > maxEventBytes {
			return nil, errTooLarge
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			line = append(line, piece...)
			continue
		}
		if line != nil {
			piece = append(line, piece...)
		}
		return bytes.TrimRight(piece, "\r\n"), err
	}
}
