// Package inference is the contract of a language model (R-INF-1…19).
//
// A [Model] takes a [Request] and answers with a [Response] or, piece by piece,
// with a [Stream]. Requests and responses are a superset of what vendors' dialects
// say (B-25): tools and their results, system prompts, images, response formats,
// reasoning, cache control, cached tokens; and what this package does not know
// travels untouched in Extra, to a provider of the same [Dialect]. Numbers that
// records hold are integers or decimal text, never binary fractions (B-58).
//
// Every call is attributed by its [RequestMetadata]. A Model makes one call to one
// place, and neither retries nor falls back; a [Router] is the Model that does.
package inference

import (
	"context"
	"errors"
	"strings"

	"creto.dev"
	"creto.dev/fault"
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

	// CompleteStream begins an answer, and may wait for its first piece. Its
	// errors are those of Complete: a refusal comes from here, before the first
	// piece. The stream ends with ctx; the caller must Close it. It does not
	// change r.
	CompleteStream(ctx context.Context, r Request) (Stream, error)

	// Embed returns one vector for each input, in order.
	//
	// Errors: also InvalidArgument, InferenceModelNotFound,
	// InferenceTokenLimitExceeded, InferenceNotSupported (Permanent).
	Embed(ctx context.Context, r EmbedRequest) (EmbedResponse, error)

	// Health asks the provider whether it answers, without spending tokens.
	Health(ctx context.Context) error
}

// ErrKeyRefused is in the chain of an error of a [Model] whose provider refused its
// key, which says nothing of the request. It does not cross a wire.
var ErrKeyRefused = errors.New("the provider refused the key")

// Router is a [Model] that has others answer: for each request it chooses among
// them, tries again and falls back. What it may not do is in RequestMetadata: a
// request never reaches a provider that its classification forbids (R-INF-37), and
// is tried nowhere else once its answer began (B-24) or where the failure was an
// answer (B-27). It fills in RequestMetadata.Served.
//
// Errors: those of the provider that was tried first, joined with those of the
// others; InferenceModelNotFound (Permanent) if none may serve the model;
// InferenceNotSupported (Permanent) of CountTokens if who would answer does not
// count.
type Router interface {
	TokenCounter

	// Providers returns those that it chooses from, in their order.
	Providers() []Model
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

// Stream is an answer in pieces. Close is for any goroutine, all else for one.
type Stream interface {
	// Next returns the next piece. After the last one it returns io.EOF, and
	// goes on to. io.EOF means that the answer is complete: one that broke off
	// ends with another error (B-24), so that it is never taken for a whole one.
	// What came before an error was said and is metered by Usage.
	//
	// Errors: those of [Model]; Canceled (Permanent) after Close;
	// InferenceContentFiltered (Permanent) when the provider stops for that.
	Next() (Chunk, error)

	// Ready reports that Next would return without waiting, so that who passes
	// pieces on may pass on several at once. It is never wrong about that, but may
	// say false of what is there.
	Ready() bool

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
	// Classifications are those that may be sent there, and no other; empty
	// leaves it to the router.
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

// Validate reports whether c is a name: 1 to 63 of a-z, 0-9, '-', '_' and '.'.
//
// Errors: InvalidArgument (Permanent).
func (c Classification) Validate() error {
	if (creto.ID{TrustDomain: "x", Tenant: "x", Kind: creto.KindWorkload, Name: string(c)}).Validate() != nil {
		return fault.New("inference.Classification.Validate", fault.InvalidArgument, "%.64q is no classification; use a-z, 0-9, '-', '_' and '.'", c)
	}
	return nil
}

// RequestMetadata says on whose account a call is made (R-INF-8). It is for this
// side; a provider sees the idempotency key only.
type RequestMetadata struct {
	// Sandbox is the run that asks, if any.
	Sandbox string
	// Agent asks. Required at the gate, not here.
	Agent creto.ID
	// OnBehalfOf is the human that the agent acts for, if any.
	OnBehalfOf creto.ID
	// TraceID is a W3C trace id, or "".
	TraceID string
	// IdempotencyKey makes a repeated request recognisable, or is "".
	IdempotencyKey string
	// Policies are the ids of the policies that permitted the call.
	Policies []string
	// Classification is what the request says of itself. It adds to what is known
	// of its agent, and never takes away from that.
	Classification Classification
	// NoStore has the answer neither taken from those that are kept nor kept.
	NoStore bool
	// Embedder asks for vectors on the account of this call, for whoever between its
	// caller and its provider looks for texts that are alike. nil where nobody may. It
	// does not cross a wire.
	Embedder Embedder
	// Served is filled in by a [Router] before its method returns, also with an
	// error; nil if nobody wants to know.
	Served *Served
}

// Embedder asks for vectors on the account of a call, by a call of its own that is
// decided on and recorded. Safe for concurrent use.
type Embedder interface {
	// Embed is [Model.Embed]. Of the metadata of r only Served counts.
	//
	// Errors: also those of the gate, AuthzDenied (Security) foremost.
	Embed(ctx context.Context, r EmbedRequest) (EmbedResponse, error)
}

// Served says who answered a request.
type Served struct {
	// Provider is the ID of who answered, or else of who was tried last; "" if
	// nobody was.
	Provider string
	// Model is what it was asked for.
	Model string
	// Attempts is how many calls were made, of all providers.
	Attempts int
	// Cache is CacheHit or CacheSemantic where the answer was given before and kept;
	// Provider is who gave it then. "" otherwise.
	Cache string
	// Similarity is how alike the question of a CacheSemantic is to that which was
	// answered: the cosine of their vectors, as decimal text with three places. "" of
	// others.
	Similarity string
}

// The values of [Served.Cache] for a kept answer.
const (
	// CacheHit is one to exactly the same request.
	CacheHit = "hit"
	// CacheSemantic is one to a request whose last text is alike, and the same in all
	// else.
	CacheSemantic = "semantic"
)

// Match reports whether a pattern, which is a name, or a prefix followed by *, is of
// name.
func Match(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}

// MatchAgent reports whether a pattern is of an agent: NAME is one of tenant,
// TENANT/NAME says whose, and each part may be a prefix followed by *.
func MatchAgent(pattern, tenant string, agent creto.ID) bool {
	if t, name, both := strings.Cut(pattern, "/"); both {
		tenant, pattern = t, name
	}
	return Match(tenant, agent.Tenant) && Match(pattern, agent.Name)
}

// EmbedRequest asks for vectors.
type EmbedRequest struct {
	Model    string
	Input    []string
	Metadata RequestMetadata
	// Within are the providers that may see the inputs, beside local ones: those that
	// may see them anyway, where they are part of another request. nil is no bound.
	Within []string
	// Extra holds what the caller said beyond that, such as dimensions.
	Extra Extra
}

// EmbedResponse holds a vector for each input, in order.
type EmbedResponse struct {
	Model      string
	Embeddings [][]float32
	Usage      Usage
}
