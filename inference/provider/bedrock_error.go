package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"creto.dev/fault"
	"creto.dev/inference"
	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// bedrockMeaning is what an exception is, by its name and, where one name means
// several things, by what is said.
func bedrockMeaning(code, says string) (fault.Code, string, bool) {
	says = strings.ToLower(says)
	said := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(says, w) {
				return true
			}
		}
		return false
	}
	switch code {
	case "ValidationException":
		switch {
		case said("too long", "too many input tokens", "too many tokens", "maximum number of tokens", "context window", "exceeds the maximum length", "exceed context limit"):
			return fault.InferenceTokenLimitExceeded, "the prompt and answer are longer than the model's context", true
		case said("content filter", "blocked by content"):
			return fault.InferenceContentFiltered, "the provider's content filter refused the request", true
		case said("model identifier is invalid", "invalid model", "model id is invalid"):
			return fault.InferenceModelNotFound, "the provider has no such model", true
		}
		return fault.InvalidArgument, "the provider refused the request as malformed", true
	case "ResourceNotFoundException":
		return fault.InferenceModelNotFound, "the provider has no such model", true
	case "ThrottlingException", "TooManyRequestsException", "Throttling", "RequestLimitExceeded":
		return fault.InferenceRateLimited, "the provider limits the rate of requests", true
	case "ServiceQuotaExceededException":
		return fault.InferenceProviderError, "the provider's account has no quota left", true
	case "AccessDeniedException", "UnrecognizedClientException", "ExpiredTokenException", "ExpiredToken", "InvalidSignatureException",
		"IncompleteSignatureException", "MissingAuthenticationTokenException", "InvalidClientTokenId", "SignatureDoesNotMatch":
		return fault.InferenceProviderError, "the provider refused this node's credentials", true
	case "ModelTimeoutException":
		return fault.InferenceTimeout, "the provider ran out of time", true
	case "ModelNotReadyException":
		return fault.InferenceProviderUnavailable, "the model is not ready", true
	case "ModelErrorException", "ModelStreamErrorException", "InternalServerException", "ServiceUnavailableException", "InternalFailure", "ServiceUnavailable":
		return fault.InferenceProviderUnavailable, "the provider failed", true
	}
	return 0, "", false
}

// bedrockFault is what an error of the SDK means. sent is what it came in answer to, of
// whose credentials it quotes none.
func bedrockFault(ctx context.Context, op fault.Op, limit int64, sent http.Header, err error) error {
	var header http.Header
	status := 0
	if e, ok := errors.AsType[*smithyhttp.ResponseError](err); ok && e.Response != nil && e.Response.Response != nil {
		status, header = e.Response.StatusCode, e.Response.Header
	}
	exception, isException := errors.AsType[smithy.APIError](err)
	_, invalid := errors.AsType[smithy.InvalidParamsError](err)
	_, garbled := errors.AsType[eventstream.ChecksumError](err)
	_, misfit := errors.AsType[eventstream.LengthError](err)
	_, deserialization := errors.AsType[*smithy.DeserializationError](err)
	_, netErr := errors.AsType[net.Error](err)
	_, urlErr := errors.AsType[*url.Error](err)
	switch {
	case ctx.Err() != nil:
		return broken(ctx, op, err)
	case errors.Is(err, errTooLarge):
		return tooLarge(op, limit)
	case invalid:
		return fault.WrapAs(op, fault.InvalidArgument, quoted(err, sent), "the request lacks what the provider demands")
	case isException || status >= http.StatusMultipleChoices:
		return exceptionFault(op, status, header, sent, exception)
	case urlErr || netErr || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return broken(ctx, op, err)
	case garbled || misfit || deserialization || status != 0:
		return fault.WrapAs(op, fault.InferenceProviderError, quoted(err, sent), "the provider's answer is not in the dialect")
	}
	return fault.WrapAs(op, fault.InferenceProviderError, quoted(err, sent), "the request cannot be signed with this node's credentials")
}

// quoted is an error of somebody else's code as its text alone, without the credentials
// that it may quote.
func quoted(err error, sent http.Header) error {
	return errors.New(string(redact([]byte(err.Error()), sent)))
}

// exceptionFault is what an exception means, as an answer, or in the middle of a
// stream, where the status is 0 or 200. e is nil for an answer that names none.
func exceptionFault(op fault.Op, status int, header, sent http.Header, e smithy.APIError) error {
	name, says := "", ""
	if e != nil {
		name, says = e.ErrorCode(), e.ErrorMessage()
	}
	code, message := fault.InferenceProviderUnavailable, "the provider broke off its answer with an error"
	if status >= http.StatusMultipleChoices {
		code, message = statusMeaning(status, false)
	}
	if c, m, ok := bedrockMeaning(name, says); ok && status < http.StatusInternalServerError {
		code, message = c, m
	}
	name, says = string(redact([]byte(name), sent)), string(redact([]byte(says), sent))
	if len(says) > maxCauseBytes {
		says = says[:maxCauseBytes]
	}
	err := fault.WrapAs(op, code, fmt.Errorf("upstream answered %d, exception %.64q: %q", status, name, says), "%s", message)
	if refused := status == http.StatusUnauthorized || status == http.StatusForbidden; refused && code == fault.InferenceProviderError {
		return fault.Wrap(op, errors.Join(err, inference.ErrKeyRefused))
	}
	if wait := retryAfter(header); wait > 0 && fault.Retryable(err) {
		err = fault.After(err, wait)
	}
	return err
}
