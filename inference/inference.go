// Package inference is the contract of a language model (R-INF-1…19).
//
// A [Model] takes a [Request] and answers with a [Response] or, piece by piece,
// with a [Stream]. Requests and responses are a superset of what vendors' dialects
// say (B-25): tools and their results, system prompts, images, response formats,
// reasoning, cache control, cached tokens; and what this package does not know
// travels untouched in Extra, to a provider of the same [Dialect]. Numbers that
// records hold are integers or decimal text, never binary fractions (B-58).
//
// Every call is attributed by its [RequestMetadata]. Nothing here retries, falls
// back or routes: a Model makes one call to one place.
package inference

import (
	"context"

	"creto.dev"
)

// Model is one provider of models. Safe for concurrent use.
//
// Errors of all methods that take a context: Canceled (Permanent) and
// InferenceTimeout (Transient) when ctx ends; InferenceProviderUnavailable
// (Degraded) when the provider cannot be reached, answers with a 5xx or breaks
// off; InferenceProviderError (Permanent) when its answer makes no sense or it
// refuses this node; InferenceRateLimited (Transient), with the time to wait
// where the provider says it. The text of a provider's own error is never part
// of a fault's message.
type Model interface {
	// ID names the provider in records and policies, as configured: 1 to 63 of
	// a-z, 0-9, '-', '_' and '.'. It never changes.
	ID() string

	// Capabilities says what the provider can do. It never changes and is the
	// caller's to keep.
	Capabilities() Capabilities

	// Complete returns the whole answer, with at least one choice and with
	// usage, which is marked when it had to be estimated. It does not change r.
	//
	// Errors: also InvalidArgument (Permanent) for a request that
	// [Request.Validate] or the provider refuses as malformed;
	// InferenceModelNotFound (Permanent); InferenceTokenLimitExceeded
	// (Permanent) for a prompt longer than the model's context;
	// InferenceContentFiltered (Permanent), which must not be tried elsewhere;
	// InferenceNotSupported (Permanent).
	Complete(ctx context.Context, r Request) (Response, error)

	// CompleteStream begins an answer. Its errors are those of Complete: a
	// refusal comes from here, before the first piece. The stream ends with ctx;
	// the caller must Close it. It does not change r.
	CompleteStream(ctx context.Context, r Request) (Stream, error)

	// Embed returns one vector for each input, in order.
	//
	// Errors: also InvalidArgument, InferenceModelNotFound,
	// InferenceTokenLimitExceeded, InferenceNotSupported (Permanent).
	Embed(ctx context.Context, r EmbedRequest) (EmbedResponse, error)

	// Health asks the provider whether it answers, without spending tokens.
	Health(ctx context.Context) error
}

// TokenCounter is a [Model] whose provider counts the tokens of a prompt without
// answering it.
type TokenCounter interface {
	Model

	// CountTokens returns how many tokens the prompt of r has, as the provider
	// counts. It does not change r.
	//
	// Errors: those of [Model.Complete].
	CountTokens(ctx context.Context, r Request) (int64, error)
}

// Stream is an answer in pieces. Next and Usage are for one goroutine; Close is
// for any.
type Stream interface {
	// Next returns the next piece. After the last one it returns io.EOF, and
	// goes on to. io.EOF means that the answer is complete: one that broke off
	// ends with another error (B-24), so that it is never taken for a whole one.
	// What came before an error was said and is metered by Usage.
	//
	// Errors: those of [Model]; Canceled (Permanent) after Close;
	// InferenceContentFiltered (Permanent) when the provider stops for that.
	Next() (Chunk, error)

	// Usage returns what the answer used so far: what the provider said, or an
	// estimate that is marked as one.
	Usage() Usage

	// Close ends the stream and frees its connection; a Next that waits returns.
	// Closing twice is harmless.
	Close() error
}

// Capabilities says what a provider can do (R-INF-2, R-GAP-6). What is not known
// is zero.
type Capabilities struct {
	Streaming  bool
	Tools      bool
	Vision     bool
	JSONSchema bool
	Embeddings bool
	// MaxContextTokens bounds prompt and answer together; 0 means not known.
	MaxContextTokens int
	// Models are names, or prefixes followed by *.
	Models []string
	// Classifications are those that may be sent there; empty means that none
	// was named, which allows only data that is classified as public.
	Classifications []Classification
	// Region says where the data goes, such as "eu-west-1" or "local".
	Region string
}

// Classification says how confidential a request is. The zero value counts as
// the most restricted one (R-INF-29).
type Classification string

// The classifications that Creto knows; a deployment may add its own.
const (
	ClassificationPublic     Classification = "public"
	ClassificationInternal   Classification = "internal"
	ClassificationRestricted Classification = "restricted"
)

// RequestMetadata says on whose account a call is made (R-INF-8). It is for this
// side; a provider sees the idempotency key only.
type RequestMetadata struct {
	// Sandbox is the run that asks, if any.
	Sandbox string
	// Agent asks. Required at the gate, not here.
	Agent creto.ID
	// TraceID is a W3C trace id, or "".
	TraceID string
	// IdempotencyKey makes a repeated request recognisable, or is "".
	IdempotencyKey string
	// Classification is of everything in the request.
	Classification Classification
}

// EmbedRequest asks for vectors.
type EmbedRequest struct {
	Model    string
	Input    []string
	Metadata RequestMetadata
	// Extra holds what the caller said beyond that, such as dimensions.
	Extra Extra
}

// EmbedResponse holds a vector for each input, in order.
type EmbedResponse struct {
	Model      string
	Embeddings [][]float32
	Usage      Usage
}
