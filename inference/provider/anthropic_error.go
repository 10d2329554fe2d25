package provider

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"creto.dev/fault"
)

// Types of errors in Anthropic's dialect.
const (
	anthropicInvalidRequest = "invalid_request_error"
	anthropicAPIError       = "api_error"
)

// statusOverloaded is Anthropic's status for too many requests of everybody.
const statusOverloaded = 529

// anthropicError is the error object of the dialect.
type anthropicError struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// parseAnthropicError finds the error object in a body.
func parseAnthropicError(body []byte) (anthropicError, bool) {
	var wrapped struct {
		Error *anthropicError `json:"error"`
	}
	if json.Unmarshal(body, &wrapped) != nil || wrapped.Error == nil {
		return anthropicError{}, false
	}
	return *wrapped.Error, true
}

// meaning is what an error is, by its type and, where one type means several
// things, by what is said. A type that is not here is foreign text and goes no
// further than the log.
func (e anthropicError) meaning() (fault.Code, string, bool) {
	says := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(strings.ToLower(e.Message), w) {
				return true
			}
		}
		return false
	}
	switch e.Type {
	case anthropicInvalidRequest:
		switch {
		case says("prompt is too long", "exceed context limit", "context window"):
			return fault.InferenceTokenLimitExceeded, "the prompt and answer are longer than the model's context", true
		case says("content filtering policy"):
			return fault.InferenceContentFiltered, "the provider's content filter refused the request", true
		case says("credit balance"):
			return fault.InferenceProviderError, "the provider's account has no credit left", true
		}
		return fault.InvalidArgument, "the provider refused the request as malformed", true
	case "request_too_large":
		return fault.InvalidArgument, "the request is larger than the provider takes", true
	case "authentication_error", "permission_error":
		return fault.InferenceProviderError, "the provider refused this node's credentials", true
	case "billing_error":
		return fault.InferenceProviderError, "the provider's account has no credit left", true
	case "not_found_error":
		return fault.InferenceModelNotFound, "the provider has no such model", true
	case "rate_limit_error":
		return fault.InferenceRateLimited, "the provider limits the rate of requests", true
	case "timeout_error":
		return fault.InferenceTimeout, "the provider ran out of time", true
	case "overloaded_error":
		return fault.InferenceProviderUnavailable, "the provider is overloaded", true
	}
	return 0, "", false
}

// cause keeps what was said for the log.
func (e anthropicError) cause(status int) error {
	text := e.Message
	if len(text) > maxCauseBytes {
		text = text[:maxCauseBytes]
	}
	return fmt.Errorf("upstream answered %d, type %.64q: %q", status, e.Type, text)
}

// anthropicFault is what an answer that is no success means.
func anthropicFault(op fault.Op, status int, header http.Header, body []byte) error {
	e, structured := parseAnthropicError(body)
	code, message := statusMeaning(status, structured)
	if status == statusOverloaded {
		message = "the provider is overloaded"
	}
	if c, m, ok := e.meaning(); ok && status < http.StatusInternalServerError {
		code, message = c, m
	}
	err := fault.WrapAs(op, code, e.cause(status), "%s", message)
	if wait := retryAfter(header); wait > 0 && fault.Retryable(err) {
		err = fault.After(err, wait)
	}
	return err
}

// anthropicStreamFault is what an error event means. The status was 200 before it
// went wrong, so it says nothing.
func anthropicStreamFault(op fault.Op, data []byte) error {
	e, _ := parseAnthropicError(data)
	code, message, ok := e.meaning()
	if !ok {
		code, message = fault.InferenceProviderUnavailable, "the provider broke off its answer with an error"
	}
	return fault.WrapAs(op, code, e.cause(http.StatusOK), "%s", message)
}

// EncodeAnthropicError returns err as the body of an error in Anthropic's dialect,
// and the status that goes with it. The message is [fault.Message], which begins as
// clients expect it where they act on it; code is Creto's own.
func EncodeAnthropicError(err error) (status int, body []byte) {
	code := fault.CodeOf(err)
	status = statusOf(err)
	if status < http.StatusBadRequest {
		status, code, err = http.StatusInternalServerError, fault.Internal, fault.Internal
	}
	kind := anthropicAPIError
	switch {
	case status == http.StatusUnauthorized:
		kind = "authentication_error"
	case status == http.StatusForbidden:
		kind = "permission_error"
	case status == http.StatusNotFound:
		kind = "not_found_error"
	case status == http.StatusRequestEntityTooLarge:
		kind = "request_too_large"
	case status == http.StatusTooManyRequests:
		kind = "rate_limit_error"
	case status == http.StatusGatewayTimeout:
		kind = "timeout_error"
	case status < http.StatusInternalServerError:
		kind = anthropicInvalidRequest
	}
	message := fault.Message(err)
	if code == fault.InferenceTokenLimitExceeded {
		message = "prompt is too long: " + message
	}
	body, _ = encode(map[string]any{ // strings always encode
		"type": "error", "error": map[string]any{"type": kind, "message": message, "code": code.String()},
	})
	return status, body
}

// WriteAnthropicError answers a request with err in Anthropic's dialect, with the
// headers of [WriteOpenAIError], which Anthropic's clients obey too.
func WriteAnthropicError(w http.ResponseWriter, err error) {
	status, body := EncodeAnthropicError(err)
	writeError(w, err, status, body)
}
