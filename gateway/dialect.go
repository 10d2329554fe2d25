package gateway

import (
	"errors"
	"net/http"
	"strings"

	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/provider"
)

// dialect is how one vendor's clients speak. Any provider may stand behind it.
type dialect interface {
	// decode reads a request, and reports whether it asks for a stream.
	decode(h http.Header, body []byte) (r inference.Request, stream bool, err error)
	// encode writes a request as it was understood.
	encode(r inference.Request, stream bool) ([]byte, error)
	// answer writes a whole answer.
	answer(r inference.Response) ([]byte, error)
	// events returns what writes a streamed answer to r.
	events(r inference.Request) events
	// announce writes the headers that go with each answer to a known caller.
	announce(h http.Header, s standing)
	// refuse answers with err.
	refuse(w http.ResponseWriter, err error)
	// broken returns the event that ends a stream which broke. The status is out
	// by then, and nothing that ends a whole answer follows.
	broken(err error) []byte
}

// events writes one streamed answer.
type events interface {
	// chunk returns the events of a piece, which may be none.
	chunk(c inference.Chunk, used func() inference.Usage) ([]byte, error)
	// end returns the events that end a whole answer.
	end(used inference.Usage) ([]byte, error)
}

// openAI is the dialect of /v1/chat/completions.
type openAI struct{}

func (openAI) decode(_ http.Header, body []byte) (inference.Request, bool, error) {
	return provider.DecodeOpenAIRequest(body)
}

func (openAI) encode(r inference.Request, stream bool) ([]byte, error) {
	return provider.EncodeOpenAIRequest(r, stream)
}

func (openAI) answer(r inference.Response) ([]byte, error) { return provider.EncodeOpenAIResponse(r) }

func (openAI) events(r inference.Request) events {
	return openAIEvents{wanted: r.StreamOptions != nil && r.StreamOptions.IncludeUsage}
}

func (openAI) refuse(w http.ResponseWriter, err error) { provider.WriteOpenAIError(w, err) }

func (openAI) broken(err error) []byte {
	_, data := provider.EncodeOpenAIError(err)
	return event(data)
}

// openAIEvents writes chunks. Usage is always asked for, so that it can be
// metered; the caller gets it only as it asked.
type openAIEvents struct{ wanted bool }

func (e openAIEvents) chunk(c inference.Chunk, _ func() inference.Usage) ([]byte, error) {
	if c.Usage != nil && !e.wanted {
		if len(c.Choices) == 0 {
			return nil, nil
		}
		c.Usage = nil
	}
	data, err := provider.EncodeOpenAIChunk(c)
	return event(data), err
}

func (openAIEvents) end(inference.Usage) ([]byte, error) { return event([]byte("[DONE]")), nil }

// event returns one server-sent event.
func event(data []byte) []byte {
	return append(append([]byte("data: "), data...), "\n\n"...)
}

// anthropic is the dialect of /v1/messages.
type anthropic struct{}

// decode reads a request, and the betas that clients ask for beside it.
func (anthropic) decode(h http.Header, body []byte) (inference.Request, bool, error) {
	r, stream, err := provider.DecodeAnthropicRequest(body)
	if err != nil {
		return r, stream, err
	}
	for _, line := range h.Values("Anthropic-Beta") {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); name != "" {
				r.Betas = append(r.Betas, name)
			}
		}
	}
	return r, stream, r.Validate()
}

func (anthropic) encode(r inference.Request, stream bool) ([]byte, error) {
	return provider.EncodeAnthropicRequest(r, stream)
}

func (anthropic) answer(r inference.Response) ([]byte, error) {
	return provider.EncodeAnthropicResponse(r)
}

func (anthropic) events(inference.Request) events { return &anthropicEvents{} }

func (anthropic) refuse(w http.ResponseWriter, err error) { provider.WriteAnthropicError(w, err) }

func (anthropic) broken(err error) []byte { return provider.AnthropicErrorEvent(err) }

// anthropicEvents writes blocks.
type anthropicEvents struct{ provider.AnthropicEvents }

func (e *anthropicEvents) chunk(c inference.Chunk, used func() inference.Usage) ([]byte, error) {
	return e.Chunk(c, used)
}

func (e *anthropicEvents) end(used inference.Usage) ([]byte, error) { return e.End(used) }

// refuse answers with err in a dialect. Who is not known is told how a token is
// presented (RFC 9110, section 15.5.2; RFC 9449, section 7.1).
func refuse(w http.ResponseWriter, d dialect, err error) {
	if errors.Is(err, fault.Unauthenticated) {
		w.Header()["Www-Authenticate"] = []string{"Bearer", `DPoP algs="ES256 EdDSA"`}
	}
	d.refuse(w, err)
}
