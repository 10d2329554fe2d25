package provider_test

import (
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
)

// answerCase is an upstream's answer and what it means.
type answerCase struct {
	name   string
	status int
	body   string
	header []string // names and values in turn
	want   fault.Code
	wait   time.Duration
}

// opener returns a client of a handler, with limits of its own.
type opener func(t *testing.T, h http.Handler, change func(*provider.Config)) inference.Model

// holdAnswers holds a client to what answers mean, whole and streamed, and to
// bounds that every client has.
func holdAnswers(t *testing.T, open opener, cases []answerCase) {
	t.Helper()
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := open(t, respond(tt.status, "application/json", tt.body, tt.header...), func(c *provider.Config) { c.Timeout = 30 * time.Second })
			_, err := m.Complete(t.Context(), inferencetest.Ask("hello"))
			check(t, "Complete", err, tt.want, tt.wait)
			check(t, "CompleteStream", streamed(t, m), tt.want, tt.wait)
		})
	}
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		want    fault.Code
	}{
		{"an endless body", endless, fault.InferenceProviderError},
		{"a bomb", bomb, fault.InferenceProviderError},
		{"cut off", cutOff, fault.InferenceProviderUnavailable},
		{"closed without a word", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, fault.InferenceProviderUnavailable},
		{"hang", hang, fault.InferenceTimeout},
		{"a redirect is not followed", respond(307, "", "", "Location", "http://127.0.0.1:1/steal"), fault.InferenceProviderError},
		{"not UTF-8", respond(200, "application/json", "{\"id\":\"\xff\"}"), fault.InferenceProviderError},
		{"malformed", respond(200, "application/json", `{"choices":[`+planted), fault.InferenceProviderError},
		{"not an object", respond(200, "application/json", `null`), fault.InferenceProviderError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := open(t, tt.handler, func(c *provider.Config) {
				c.Timeout, c.MaxResponseBytes = 30*time.Second, 1<<20
				if tt.name == "hang" {
					c.Timeout = 100 * time.Millisecond
				}
			})
			_, err := m.Complete(t.Context(), inferencetest.Ask("hello"))
			check(t, "Complete", err, tt.want, 0)
		})
	}
}

// holdWhole holds that a client asks for embeddings of whole texts: one that is cut
// without a word would be a vector of something else.
func holdWhole(t *testing.T, open opener, want string) {
	t.Helper()
	var body []byte
	m := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ = io.ReadAll(r.Body)
		respond(500, "text/plain", "")(w, r)
	}), nil)
	_, err := m.Embed(t.Context(), inference.EmbedRequest{Model: "m", Input: []string{"a"}})
	check(t, "Embed", err, fault.InferenceProviderUnavailable, 0)
	if !strings.Contains(string(body), want) {
		t.Errorf("sent %s, want %s in it", body, want)
	}
}

// streamed returns why a stream to m ended; nil if it was complete.
func streamed(t *testing.T, m inference.Model) error {
	t.Helper()
	s, err := m.CompleteStream(t.Context(), inferencetest.Ask("hello"))
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	_, _, err = inferencetest.Collect(t, s)
	return err
}

// streamCase is the body of a streamed answer, and how it ends.
type streamCase struct {
	name, body string
	abort      bool
	want       fault.Code // OK: a complete answer
	text       string
}

// holdStreams holds a client to what streams of a media type mean.
func holdStreams(t *testing.T, open opener, mediaType string, cases []streamCase) {
	t.Helper()
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				respond(200, mediaType, tt.body)(w, r)
				if tt.abort {
					_ = http.NewResponseController(w).Flush()
					panic(http.ErrAbortHandler)
				}
			}), func(c *provider.Config) { c.MaxResponseBytes = 6 << 20 })
			s, err := m.CompleteStream(t.Context(), inferencetest.Ask("hello"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			text, _, err := inferencetest.Collect(t, s)
			check(t, "stream", err, tt.want, 0)
			if text != tt.text {
				t.Errorf("text = %q, want %q", text, tt.text)
			}
			if u := s.Usage(); u.PromptTokens == 0 || (u.CompletionTokens > 0) != (tt.text != "") {
				t.Errorf("usage = %+v, want that of what was delivered", u)
			}
			_, again := s.Next()
			if tt.want != fault.OK && fault.CodeOf(again) != tt.want || tt.want == fault.OK && again == nil {
				t.Errorf("Next again = %v, want the same end", again)
			}
		})
	}
}

// holdSilence holds that a stream which falls silent ends by the idle timeout, and
// that one which is left ends its goroutines. begin is the stream's first piece.
func holdSilence(t *testing.T, open opener, mediaType, begin string) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Run("silence", func(t *testing.T) {
		silent := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			respond(200, mediaType, begin)(w, r)
			_ = http.NewResponseController(w).Flush()
			hang(w, r)
		})
		m := open(t, silent, func(c *provider.Config) { c.IdleTimeout = 100 * time.Millisecond })
		check(t, "stream", streamed(t, m), fault.InferenceTimeout, 0)
		m = open(t, silent, nil)
		for range 8 {
			s, err := m.CompleteStream(t.Context(), inferencetest.Ask("hello"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Next(); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if _, err := s.Next(); !errors.Is(err, fault.Canceled) {
				t.Errorf("Next after Close = %v", err)
			}
		}
	})
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, now:\n%s", before, stacks[:runtime.Stack(stacks, true)])
		}
	}
}
