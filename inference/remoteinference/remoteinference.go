// Package remoteinference is an inference.Model in another process, over gRPC:
// [Open] is the client, [Register] the server.
//
// What a request may cost and reach is decided before it gets here: a server of this
// package asks nobody whether it may.
package remoteinference

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/inference"
	inferencev1 "creto.dev/internal/gen/creto/inference/v1"
)

// servedTrailer holds a Served.
const servedTrailer = "creto-served-bin"

type client struct {
	rpc          inferencev1.ModelServiceClient
	policy       call.Policy
	id           string
	capabilities inference.Capabilities
}

var _ inference.TokenCounter = (*client)(nil)

// Open returns the model at the other end of conn, which the caller closes. A call
// that carries an idempotency key is repeated as policy says, one without is not, and
// a stream never is.
//
// Errors: those of inference.Model, if the other end cannot be asked who it is.
func Open(ctx context.Context, conn grpc.ClientConnInterface, policy call.Policy) (inference.TokenCounter, error) {
	const op fault.Op = "remoteinference.Open"
	c := &client{rpc: inferencev1.NewModelServiceClient(conn), policy: policy}
	out, err := do(ctx, c, call.Read(op), c.rpc.Describe, &inferencev1.DescribeRequest{}, nil)
	if err != nil {
		return nil, err
	}
	c.id = out.GetId()
	c.capabilities = inference.Capabilities{
		Streaming: out.GetStreaming(), Tools: out.GetTools(), Vision: out.GetVision(), JSONSchema: out.GetJsonSchema(), Embeddings: out.GetEmbeddings(),
		MaxContextTokens: int(out.GetMaxContextTokens()), Models: out.GetModels(), Region: out.GetRegion(),
		Classifications: texts[inference.Classification](out.GetClassifications()),
	}
	return c, nil
}

// do makes one call, and fills in served from what the other end says of it.
func do[In, Out any](ctx context.Context, c *client, o call.Operation, method func(context.Context, *In, ...grpc.CallOption) (*Out, error), in *In, served *inference.Served) (*Out, error) {
	out, err := call.Do(ctx, c.policy, o, func(ctx context.Context) (*Out, error) {
		var trailer metadata.MD
		out, err := method(ctx, in, grpc.Trailer(&trailer))
		tell(served, trailer)
		return out, named(err)
	})
	return out, named(err)
}

// tell reads a trailer into served, if somebody wants to know.
func tell(served *inference.Served, trailer metadata.MD) {
	values := trailer.Get(servedTrailer)
	var in inferencev1.Served
	if served == nil || len(values) != 1 || proto.Unmarshal([]byte(values[0]), &in) != nil {
		return
	}
	*served = servedFrom(&in)
}

// named gives what happens to every call the contract's name.
func named(err error) error {
	const op fault.Op = "remoteinference"
	switch fault.CodeOf(err) {
	case fault.DeadlineExceeded:
		return fault.WrapAs(op, fault.InferenceTimeout, err, "the model service did not answer in time")
	case fault.Unavailable:
		return fault.WrapAs(op, fault.InferenceProviderUnavailable, err, "the model service cannot be reached")
	}
	return err
}

// ID implements inference.Model.
func (c *client) ID() string { return c.id }

// Capabilities implements inference.Model.
func (c *client) Capabilities() inference.Capabilities {
	known := c.capabilities
	known.Models = append([]string(nil), known.Models...)
	known.Classifications = append([]inference.Classification(nil), known.Classifications...)
	return known
}

// Complete implements inference.Model.
func (c *client) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	const op fault.Op = "remoteinference.Complete"
	if err := r.Validate(); err != nil {
		return inference.Response{}, fault.Wrap(op, err)
	}
	out, err := do(ctx, c, call.Write(op, r.Metadata.IdempotencyKey), c.rpc.Complete, &inferencev1.CompleteRequest{Prompt: promptOf(r)}, r.Metadata.Served)
	if err != nil {
		return inference.Response{}, err
	}
	return inference.Response{
		ID: out.GetId(), Model: out.GetModel(), Created: out.GetCreated(), Choices: list(out.GetChoices(), choiceFrom),
		Usage: usageFrom(out.GetUsage()), Dialect: inference.Dialect(out.GetDialect()), Extra: extraFrom(out.GetExtra()),
	}, nil
}

// Embed implements inference.Model.
func (c *client) Embed(ctx context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	const op fault.Op = "remoteinference.Embed"
	out, err := do(ctx, c, call.Read(op), c.rpc.Embed, &inferencev1.EmbedRequest{
		Model: r.Model, Input: r.Input, Metadata: metadataOf(r.Metadata), Extra: extraOf(r.Extra), Within: withinOf(r.Within),
	}, r.Metadata.Served)
	if err != nil {
		return inference.EmbedResponse{}, err
	}
	return inference.EmbedResponse{
		Model: out.GetModel(), Usage: usageFrom(out.GetUsage()), Embeddings: list(out.GetEmbeddings(), (*inferencev1.Vector).GetValues),
	}, nil
}

// CountTokens implements inference.TokenCounter.
func (c *client) CountTokens(ctx context.Context, r inference.Request) (int64, error) {
	const op fault.Op = "remoteinference.CountTokens"
	out, err := do(ctx, c, call.Read(op), c.rpc.CountTokens, &inferencev1.CountTokensRequest{Prompt: promptOf(r)}, r.Metadata.Served)
	return out.GetTokens(), err
}

// Health implements inference.Model.
func (c *client) Health(ctx context.Context) error {
	_, err := do(ctx, c, call.Read("remoteinference.Health"), c.rpc.Health, &inferencev1.HealthRequest{}, nil)
	return err
}

// CompleteStream implements inference.Model. The other end waits for the first piece
// if its model does.
func (c *client) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	const op fault.Op = "remoteinference.CompleteStream"
	if err := r.Validate(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	begun, err := call.Do(ctx, call.Policy{Attempts: 1, Breaker: c.policy.Breaker, Observer: c.policy.Observer}, call.Read(op), func(context.Context) (grpc.ServerStreamingClient[inferencev1.CompleteStreamResponse], error) {
		pieces, err := c.rpc.CompleteStream(ctx, &inferencev1.CompleteStreamRequest{Prompt: promptOf(r)})
		if err != nil {
			return nil, named(err)
		}
		first, err := pieces.Recv()
		switch {
		case err == nil && first.GetServed() != nil:
			if r.Metadata.Served != nil {
				*r.Metadata.Served = servedFrom(first.GetServed())
			}
			return pieces, nil
		case err == nil || errors.Is(err, io.EOF):
			return nil, fault.New(op, fault.InferenceProviderError, "the model service does not begin its answer as it should")
		}
		tell(r.Metadata.Served, pieces.Trailer())
		return nil, named(err)
	})
	if err != nil {
		cancel()
		return nil, named(err)
	}
	return &stream{pieces: begun, cancel: cancel}, nil
}

// stream is an answer that is being read.
type stream struct {
	pieces grpc.ServerStreamingClient[inferencev1.CompleteStreamResponse]
	cancel context.CancelFunc
	closed atomic.Bool

	// For the one goroutine that calls Next:
	err   error // what Next returns from now on
	usage inference.Usage
}

// Next implements inference.Stream.
func (s *stream) Next() (inference.Chunk, error) {
	const op fault.Op = "remoteinference.Next"
	for s.err == nil {
		piece, err := s.pieces.Recv()
		if s.closed.Load() {
			err = fault.New(op, fault.Canceled, "the stream was closed")
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				err = fault.Wrap(op, named(err))
			}
			s.err = err
			s.cancel()
			break
		}
		if u := piece.GetUsage(); u != nil {
			s.usage = usageFrom(u)
		}
		if c := piece.GetChunk(); c != nil {
			return chunkFrom(c), nil
		}
	}
	return inference.Chunk{}, s.err
}

// Ready implements inference.Stream.
func (s *stream) Ready() bool { return s.err != nil }

// Usage implements inference.Stream.
func (s *stream) Usage() inference.Usage { return s.usage }

// Close implements inference.Stream.
func (s *stream) Close() error {
	s.closed.Store(true)
	s.cancel()
	return nil
}
