package provider

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
)

// Types of errors in OpenAI's dialect.
const (
	openAIInvalidRequest = "invalid_request_error"
	openAIServerError    = "server_error"
)

// openAIErrorCode maps the codes that upstreams use to what they mean. A code that
// is not here is foreign text and goes no further than the log.
func openAIErrorCode(code string) (fault.Code, string, bool) {
	switch code {
	case "context_length_exceeded", "string_above_max_length", "exceed_context_size_error": // the last is of llama.cpp
		return fault.InferenceTokenLimitExceeded, "the prompt and answer are longer than the model's context", true
	case "content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation":
		return fault.InferenceContentFiltered, "the provider's content filter refused the request", true
	case "model_not_found", "NotFoundError", "DeploymentNotFound":
		return fault.InferenceModelNotFound, "the provider has no such model", true
	case "insufficient_quota", "billing_hard_limit_reached":
		return fault.InferenceProviderError, "the provider's account has no quota left", true
	case "invalid_api_key", "authentication_error":
		return fault.InferenceProviderError, "the provider refused this node's credentials", true
	case "rate_limit_exceeded", "rate_limit_error":
		return fault.InferenceRateLimited, "the provider limits the rate of requests", true
	case "OperationNotSupported":
		return fault.InferenceNotSupported, "the model does not support this", true
	case "unsupported_parameter", "unsupported_value":
		return fault.InvalidArgument, "the model does not support a parameter of the request", true
	}
	return 0, "", false
}

// openAIError is the error object of the dialect, in the forms that are in use:
// vLLM's code is a number and its object has no wrapper.
type openAIError struct {
	Message string          `json:"message"`
	Type    string          `json:"type"`
	Code    json.RawMessage `json:"code"`
	// Inner is Azure's more exact reason.
	Inner struct {
		Code string `json:"code"`
	} `json:"innererror"`
}

// parseOpenAIError finds the error object in a body.
func parseOpenAIError(body []byte) (openAIError, bool) {
	var wrapped struct {
		Error json.RawMessage `json:"error"`
		openAIError
	}
	if json.Unmarshal(body, &wrapped) != nil {
		return openAIError{}, false
	}
	if len(wrapped.Error) == 0 || string(wrapped.Error) == "null" {
		return wrapped.openAIError, wrapped.Message != ""
	}
	var e openAIError
	if json.Unmarshal(wrapped.Error, &e) == nil {
		return e, true
	}
	return e, json.Unmarshal(wrapped.Error, &e.Message) == nil
}

// meaning returns the fault that the object's code or type stands for.
func (e openAIError) meaning() (fault.Code, string, bool) {
	var code string
	_ = json.Unmarshal(e.Code, &code) // a number says no more than the status
	if c, message, ok := openAIErrorCode(code); ok {
		return c, message, true
	}
	if c, message, ok := openAIErrorCode(e.Type); ok {
		return c, message, true
	}
	if c, message, ok := openAIErrorCode(e.Inner.Code); ok {
		return c, message, true
	}
	// Older servers say it in words only, and TGI always does.
	if strings.Contains(e.Message, "maximum context length") || strings.Contains(e.Message, "`inputs` tokens") || strings.Contains(e.Message, "`inputs` must have less than") {
		return openAIErrorCode("context_length_exceeded")
	}
	return 0, "", false
}

// maxCauseBytes bounds how much of an upstream's own text goes to the log.
const maxCauseBytes = 512

// cause is the upstream's text, for the local log.
func (e openAIError) cause(status int) error {
	text := e.Message
	if len(text) > maxCauseBytes {
		text = text[:maxCauseBytes]
	}
	return fmt.Errorf("upstream answered %d, type %.64q, code %.64q: %q", status, e.Type, e.Code, text)
}

// openAIFault is what an answer that is no success means.
func openAIFault(op fault.Op, status int, header http.Header, body []byte) error {
	e, structured := parseOpenAIError(body)
	code, message := statusMeaning(status, structured)
	if c, m, ok := e.meaning(); ok && status < http.StatusInternalServerError {
		code, message = c, m
	}
	err := fault.WrapAs(op, code, e.cause(status), "%s", message)
	if wait := retryAfter(header); wait > 0 && fault.Retryable(err) {
		err = fault.After(err, wait)
	}
	return err
}

// openAIStreamFault is what an error object in the middle of a stream means. The
// status was 200 before it went wrong, so it says nothing.
func openAIStreamFault(op fault.Op, data []byte) error {
	e, _ := parseOpenAIError(data)
	code, message, ok := e.meaning()
	if !ok {
		code, message = fault.InferenceProviderUnavailable, "the provider broke off its answer with an error"
	}
	return fault.WrapAs(op, code, e.cause(http.StatusOK), "%s", message)
}

// statusMeaning is what a status alone means. structured says that the body was
// in the dialect.
func statusMeaning(status int, structured bool) (fault.Code, string) {
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return fault.InferenceProviderError, "the provider refused this node's credentials"
	case status == http.StatusNotFound && structured:
		return fault.InferenceModelNotFound, "the provider has no such model"
	case status == http.StatusRequestTimeout || status == http.StatusGatewayTimeout:
		return fault.InferenceTimeout, "the provider ran out of time"
	case status == http.StatusTooManyRequests:
		return fault.InferenceRateLimited, "the provider limits the rate of requests"
	case status == http.StatusNotImplemented:
		return fault.InferenceNotSupported, "the provider does not support this"
	case status == http.StatusFailedDependency: // of TGI: the model broke
		return fault.InferenceProviderUnavailable, "the provider failed"
	case status >= http.StatusInternalServerError:
		return fault.InferenceProviderUnavailable, fmt.Sprintf("the provider answered %d", status)
	case status == http.StatusBadRequest || status == http.StatusUnprocessableEntity || status == http.StatusRequestEntityTooLarge:
		return fault.InvalidArgument, "the provider refused the request as malformed"
	}
	return fault.InferenceProviderError, fmt.Sprintf("the provider answered %d", status)
}

// retryAfter reads OpenAI's header in milliseconds, else the standard one.
func retryAfter(h http.Header) time.Duration {
	if ms, err := strconv.ParseUint(h.Get("Retry-After-Ms"), 10, 31); err == nil && ms > 0 {
		return time.Duration(ms) * time.Millisecond
	}
	return faulthttp.RetryAfter(h)
}

// EncodeOpenAIError returns err as the body of an error in OpenAI's dialect, for
// a response or an event of a stream, and the status that goes with it. The
// message is [fault.Message]; the code is Creto's own, except where the dialect
// has one that clients act on.
func EncodeOpenAIError(err error) (status int, body []byte) {
	code := fault.CodeOf(err)
	status = statusOf(err)
	if status < http.StatusBadRequest {
		status, code, err = http.StatusInternalServerError, fault.Internal, fault.Internal
	}
	kind := openAIServerError
	switch {
	case status == http.StatusUnauthorized:
		kind = "authentication_error"
	case status == http.StatusForbidden:
		kind = "permission_error"
	case status == http.StatusTooManyRequests:
		kind = "rate_limit_error"
	case status < http.StatusInternalServerError:
		kind = openAIInvalidRequest
	}
	body, _ = encode(map[string]any{"error": map[string]any{ // strings always encode
		"message": fault.Message(err), "type": kind, "code": openAIErrorName(code), "param": nil,
	}})
	return status, body
}

// statusOf is the status that goes with err. What is wrong with a request before its
// content is, the errors of net/http say.
func statusOf(err error) int {
	code := fault.CodeOf(err)
	_, tooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case code != fault.InvalidArgument:
		return code.HTTPStatus()
	case tooLarge:
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, http.ErrNotSupported):
		return http.StatusUnsupportedMediaType
	case errors.Is(err, os.ErrDeadlineExceeded):
		return http.StatusRequestTimeout
	}
	return code.HTTPStatus()
}

// openAIErrorName is a code as clients of the dialect know it, where they act on it,
// and otherwise Creto's own.
func openAIErrorName(code fault.Code) string {
	switch code {
	case fault.InferenceTokenLimitExceeded:
		return "context_length_exceeded"
	case fault.InferenceModelNotFound:
		return "model_not_found"
	case fault.InferenceContentFiltered:
		return "content_filter"
	case fault.InferenceRateLimited, fault.RateLimited:
		return "rate_limit_exceeded"
	case fault.ResourceExhausted:
		return "insufficient_quota"
	default:
		return code.String()
	}
}

// WriteOpenAIError answers a request with err in OpenAI's dialect, with
// Retry-After where err says how long to wait. A fault that will not go away
// says so in x-should-retry, which OpenAI's clients obey.
func WriteOpenAIError(w http.ResponseWriter, err error) {
	status, body := EncodeOpenAIError(err)
	writeError(w, err, status, body)
}

// writeError writes what err is in a dialect, and what clients do about it.
func writeError(w http.ResponseWriter, err error, status int, body []byte) {
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Encoding", "Etag"} {
		h.Del(name)
	}
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Should-Retry", strconv.FormatBool(fault.Retryable(err)))
	if wait := fault.RetryAfter(err); wait > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((wait+time.Second-1)/time.Second), 10))
	}
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that went away is no fault of ours
}
