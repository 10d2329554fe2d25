package provider

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"creto.dev/fault"
	"creto.dev/inference"
)

// vertexAnswer is an answer of generateContent, or a piece of one.
type vertexAnswer struct {
	id, model string
	candidate bool // choice is there
	choice    inference.Choice
	usage     inference.Usage
	blocked   bool // the prompt was
	failed    bool // it is an error
}

// vertexFinish translates a reason to stop; one that is not known stays.
func vertexFinish(reason string) string {
	switch reason {
	case "STOP":
		return "stop"
	case "MAX_TOKENS":
		return "length"
	case "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION":
		return filtered
	case "FINISH_REASON_UNSPECIFIED":
		return ""
	}
	return reason
}

// decodeVertex reads an answer; the first of its calls is the one after tools
// others. What is not known, such as ratings and citations, is in Extra.
func decodeVertex(body []byte, tools int) (a vertexAnswer, err error) {
	o := parseObject(body, "")
	a.id, a.model = o.str("responseId"), o.str("modelVersion")
	a.failed = o.raw("error") != nil
	if feedback := o.object("promptFeedback"); feedback != nil {
		a.blocked = feedback.str("blockReason") != ""
	}
	if u := o.object("usageMetadata"); u != nil {
		prompt, tool := u.integer("promptTokenCount"), u.integer("toolUsePromptTokenCount")
		thoughts := u.integer("thoughtsTokenCount")
		a.usage = inference.Usage{
			PromptTokens: prompt + tool, CachedTokens: u.integer("cachedContentTokenCount"),
			CompletionTokens: u.integer("candidatesTokenCount") + thoughts, ReasoningTokens: thoughts,
		}
		for _, n := range []int64{prompt, tool, thoughts, a.usage.CachedTokens, a.usage.CompletionTokens} {
			if n < 0 || n > maxCount {
				u.fail("", "expected counts")
			}
		}
		if u.err != nil {
			return a, u.err
		}
	}
	for i, raw := range o.list("candidates") {
		if i > 0 {
			break // one was asked for
		}
		a.candidate = true
		if a.choice, err = decodeCandidate(raw, tools); err != nil {
			return a, err
		}
	}
	return a, o.err
}

func decodeCandidate(raw []byte, tools int) (inference.Choice, error) {
	o := parseObject(raw, "candidates[0]")
	o.raw("index")
	reason := o.str("finishReason")
	choice := inference.Choice{Message: inference.Message{Role: inference.RoleAssistant}, StopReason: reason, FinishReason: vertexFinish(reason)}
	m := &choice.Message
	if content := o.object("content"); content != nil {
		for i, raw := range content.list("parts") {
			if err := decodeVertexPart(raw, fmt.Sprintf("candidates[0].content.parts[%d]", i), m, tools); err != nil {
				return choice, err
			}
		}
		if content.err != nil {
			return choice, content.err
		}
	}
	for i := range m.ToolCalls {
		m.ToolCalls[i].Before = len(m.Content) - m.ToolCalls[i].Before
	}
	if choice.FinishReason == "stop" && tools+len(m.ToolCalls) > 0 {
		choice.FinishReason = "tool_calls"
	}
	var err error
	choice.Extra, err = o.rest()
	return choice, err
}

// decodeVertexPart adds a part to m.
func decodeVertexPart(raw []byte, path string, m *inference.Message, tools int) error {
	o := parseObject(raw, path)
	signature := o.str("thoughtSignature")
	thought := o.boolean("thought")
	text, isText := o.strIf("text")
	switch call := o.object("functionCall"); {
	case o.err != nil:
		return o.err
	case call != nil:
		name, id, arguments := call.str("name"), call.str("id"), call.raw("args")
		if arguments == nil {
			arguments = json.RawMessage("{}")
		}
		var compact bytes.Buffer // whole answers are indented
		if call.err != nil || name == "" || !isObject(string(arguments)) || json.Compact(&compact, arguments) != nil {
			return fmt.Errorf("%s.functionCall: not a call", path)
		}
		if id == "" {
			id = "call_" + rand.Text()
		}
		m.ToolCalls = append(m.ToolCalls, inference.ToolCall{
			Index: tools + len(m.ToolCalls), Type: functionType, ID: withThought(id, signature), Name: name, Arguments: compact.String(), Before: len(m.Content),
		})
	case thought:
		m.Content = append(m.Content, inference.Part{Type: thinkingType, Text: text, Reasoning: &inference.Reasoning{}})
	case isText:
		p := inference.Part{Type: textBlock, Text: text}
		var err error
		if p.Extra, err = o.rest(); err != nil {
			return err
		}
		if text != "" || len(p.Extra) > 0 {
			m.Content = append(m.Content, p)
		}
	default:
		rest, err := o.rest()
		for name := range rest {
			m.Content = append(m.Content, inference.Part{Type: name, Extra: rest})
			break
		}
		return err
	}
	return nil
}

// vertexPieces are the events of a streamed answer.
type vertexPieces struct {
	tools    int
	said     bool
	finished bool
	counted  inference.Usage
}

func (p *vertexPieces) decode(op fault.Op, data []byte) (inference.Chunk, bool, error) {
	c := inference.Chunk{Dialect: inference.DialectVertex}
	a, err := decodeVertex(data, p.tools)
	switch {
	case err != nil:
		return c, false, refuse("provider.vertexPieces", err)
	case a.failed:
		return c, false, vertexStreamFault(op, data)
	case a.blocked && !p.said:
		return c, false, fault.New(op, fault.InferenceContentFiltered, "the provider's content filter refused the request")
	}
	if a.usage.TotalTokens() > 0 {
		p.counted = a.usage // of all so far
	}
	c.ID, c.Model = a.id, a.model
	if !a.candidate {
		return c, false, nil
	}
	for i := range a.choice.Message.ToolCalls {
		a.choice.Message.ToolCalls[i].Before = 0
	}
	p.tools += len(a.choice.Message.ToolCalls)
	p.said = p.said || a.choice.Message.SizeBytes() > 0
	if a.choice.FinishReason == filtered && !p.said {
		return c, false, fault.New(op, fault.InferenceContentFiltered, "the provider's content filter kept the answer")
	}
	c.Choices = []inference.Choice{a.choice}
	if a.choice.FinishReason != "" {
		p.finished = true
		if p.counted.TotalTokens() > 0 {
			usage := p.counted
			c.Usage = &usage
		}
	}
	return c, true, nil
}

// complete reports whether the answer said how it ended. What comes after that is
// counts.
func (p *vertexPieces) complete() bool { return p.finished }

func (p *vertexPieces) usage() (inference.Usage, bool) { return p.counted, p.finished }

// googleError is the error object of Google's APIs
// (https://cloud.google.com/apis/design/errors).
type googleError struct {
	Status  string `json:"status"`
	Message string `json:"message"`
	Details []struct {
		Reason     string `json:"reason"`
		RetryDelay string `json:"retryDelay"`
	} `json:"details"`
}

// parseGoogleError finds the error object in a body, which is a list where a
// stream was asked for.
func parseGoogleError(body []byte) (googleError, bool) {
	var wrapped struct {
		Error *googleError `json:"error"`
	}
	var list []json.RawMessage
	if json.Unmarshal(body, &list) == nil && len(list) > 0 {
		body = list[0]
	}
	if json.Unmarshal(body, &wrapped) != nil || wrapped.Error == nil {
		return googleError{}, false
	}
	return *wrapped.Error, true
}

func (e googleError) meaning() (fault.Code, string, bool) {
	says := strings.ToLower(e.Message)
	switch e.Status {
	case "INVALID_ARGUMENT", "OUT_OF_RANGE":
		switch {
		case strings.Contains(says, "token count") || strings.Contains(says, "number of tokens") || strings.Contains(says, "input context"):
			return fault.InferenceTokenLimitExceeded, "the prompt and answer are longer than the model's context", true
		case e.hasReason("API_KEY_INVALID"):
			return fault.InferenceProviderError, "the provider refused this node's credentials", true
		}
		return fault.InvalidArgument, "the provider refused the request as malformed", true
	case "FAILED_PRECONDITION":
		return fault.InferenceProviderError, "the provider does not serve this account", true
	case "UNAUTHENTICATED", "PERMISSION_DENIED":
		return fault.InferenceProviderError, "the provider refused this node's credentials", true
	case "NOT_FOUND":
		return fault.InferenceModelNotFound, "the provider has no such model", true
	case "RESOURCE_EXHAUSTED":
		return fault.InferenceRateLimited, "the provider limits the rate of requests", true
	case "DEADLINE_EXCEEDED":
		return fault.InferenceTimeout, "the provider ran out of time", true
	case "UNIMPLEMENTED":
		return fault.InferenceNotSupported, "the provider does not support this", true
	case "CANCELLED", "ABORTED", "UNAVAILABLE", "INTERNAL", "UNKNOWN", "DATA_LOSS":
		return fault.InferenceProviderUnavailable, "the provider failed", true
	}
	return 0, "", false
}

func (e googleError) hasReason(reason string) bool {
	for _, d := range e.Details {
		if d.Reason == reason {
			return true
		}
	}
	return false
}

// wait is how long to wait, as google.rpc.RetryInfo says.
func (e googleError) wait() time.Duration {
	for _, d := range e.Details {
		if wait, err := time.ParseDuration(d.RetryDelay); err == nil && wait > 0 && wait <= time.Hour {
			return wait
		}
	}
	return 0
}

func (e googleError) cause(status int) error {
	text := e.Message
	if len(text) > maxCauseBytes {
		text = text[:maxCauseBytes]
	}
	return fmt.Errorf("upstream answered %d, status %.64q: %q", status, e.Status, text)
}

// vertexFault is what an answer that is no success means.
func vertexFault(op fault.Op, status int, header http.Header, body []byte) error {
	e, structured := parseGoogleError(body)
	code, message := statusMeaning(status, structured)
	if c, m, ok := e.meaning(); ok && status < http.StatusInternalServerError {
		code, message = c, m
	}
	err := fault.WrapAs(op, code, e.cause(status), "%s", message)
	if e.hasReason("API_KEY_INVALID") {
		return fault.Wrap(op, errors.Join(err, inference.ErrKeyRefused))
	}
	if !fault.Retryable(err) {
		return err
	}
	if wait := slices.Max([]time.Duration{retryAfter(header), e.wait()}); wait > 0 {
		err = fault.After(err, wait)
	}
	return err
}

// vertexStreamFault is what an error in the middle of a stream means.
func vertexStreamFault(op fault.Op, data []byte) error {
	e, _ := parseGoogleError(data)
	code, message, ok := e.meaning()
	if !ok {
		code, message = fault.InferenceProviderUnavailable, "the provider broke off its answer with an error"
	}
	return fault.WrapAs(op, code, e.cause(http.StatusOK), "%s", message)
}
