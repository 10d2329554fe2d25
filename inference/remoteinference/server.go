package remoteinference

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"creto.dev/fault"
	"creto.dev/inference"
	inferencev1 "creto.dev/internal/gen/creto/inference/v1"
)

// Register has s serve m. Who may call it is decided before: whoever does is asked for
// no policy and no quota here, and says of itself what agent it calls for.
func Register(s grpc.ServiceRegistrar, m inference.Model) {
	inferencev1.RegisterModelServiceServer(s, server{model: m})
}

type server struct {
	inferencev1.UnimplementedModelServiceServer
	model inference.Model
}

// Describe implements inferencev1.ModelServiceServer.
func (s server) Describe(context.Context, *inferencev1.DescribeRequest) (*inferencev1.DescribeResponse, error) {
	c := s.model.Capabilities()
	return &inferencev1.DescribeResponse{
		Id: s.model.ID(), Streaming: c.Streaming, Tools: c.Tools, Vision: c.Vision, JsonSchema: c.JSONSchema, Embeddings: c.Embeddings,
		MaxContextTokens: int64(c.MaxContextTokens), Models: c.Models, Classifications: texts[string](c.Classifications), Region: c.Region,
	}, nil
}

// say tells the caller who served, whatever came of it.
func say(set func(metadata.MD), served *inference.Served) {
	if data, err := proto.Marshal(servedOf(served)); err == nil {
		set(metadata.Pairs(servedTrailer, string(data)))
	}
}

// trailer sets the trailer of a unary call.
func trailer(ctx context.Context) func(metadata.MD) {
	return func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) } // it fails outside a call alone
}

// Complete implements inferencev1.ModelServiceServer.
func (s server) Complete(ctx context.Context, in *inferencev1.CompleteRequest) (*inferencev1.CompleteResponse, error) {
	r, err := promptFrom(in.GetPrompt())
	if err != nil {
		return nil, err
	}
	out, err := s.model.Complete(ctx, r)
	say(trailer(ctx), r.Metadata.Served)
	if err != nil {
		return nil, err
	}
	return &inferencev1.CompleteResponse{
		Id: out.ID, Model: out.Model, Created: out.Created, Choices: list(out.Choices, choiceOf), Usage: usageOf(out.Usage),
		Dialect: string(out.Dialect), Extra: extraOf(out.Extra),
	}, nil
}

// CompleteStream implements inferencev1.ModelServiceServer.
func (s server) CompleteStream(in *inferencev1.CompleteStreamRequest, pieces grpc.ServerStreamingServer[inferencev1.CompleteStreamResponse]) error {
	r, err := promptFrom(in.GetPrompt())
	if err != nil {
		return err
	}
	answer, err := s.model.CompleteStream(pieces.Context(), r)
	if err != nil {
		say(pieces.SetTrailer, r.Metadata.Served)
		return err
	}
	defer func() { _ = answer.Close() }()
	if err := pieces.Send(&inferencev1.CompleteStreamResponse{Served: servedOf(r.Metadata.Served)}); err != nil {
		return err
	}
	for {
		chunk, err := answer.Next()
		out := &inferencev1.CompleteStreamResponse{Usage: usageOf(answer.Usage())}
		if err == nil {
			out.Chunk = chunkOf(chunk)
		}
		failed := pieces.Send(out)
		switch {
		case errors.Is(err, io.EOF):
			return failed
		case err != nil:
			return err
		case failed != nil:
			return failed
		}
	}
}

// Embed implements inferencev1.ModelServiceServer.
func (s server) Embed(ctx context.Context, in *inferencev1.EmbedRequest) (*inferencev1.EmbedResponse, error) {
	m, err := metadataFrom(in.GetMetadata())
	if err != nil {
		return nil, err
	}
	out, err := s.model.Embed(ctx, inference.EmbedRequest{Model: in.GetModel(), Input: in.GetInput(), Metadata: m, Extra: extraFrom(in.GetExtra()), Within: withinFrom(in.GetWithin())})
	say(trailer(ctx), m.Served)
	if err != nil {
		return nil, err
	}
	return &inferencev1.EmbedResponse{
		Model: out.Model, Usage: usageOf(out.Usage),
		Embeddings: list(out.Embeddings, func(v []float32) *inferencev1.Vector { return &inferencev1.Vector{Values: v} }),
	}, nil
}

// CountTokens implements inferencev1.ModelServiceServer.
func (s server) CountTokens(ctx context.Context, in *inferencev1.CountTokensRequest) (*inferencev1.CountTokensResponse, error) {
	r, err := promptFrom(in.GetPrompt())
	if err != nil {
		return nil, err
	}
	counter, ok := s.model.(inference.TokenCounter)
	if !ok {
		return nil, fault.New("remoteinference.CountTokens", fault.InferenceNotSupported, "provider %s does not count tokens", s.model.ID())
	}
	n, err := counter.CountTokens(ctx, r)
	say(trailer(ctx), r.Metadata.Served)
	return &inferencev1.CountTokensResponse{Tokens: n}, err
}

// Health implements inferencev1.ModelServiceServer.
func (s server) Health(ctx context.Context, _ *inferencev1.HealthRequest) (*inferencev1.HealthResponse, error) {
	return &inferencev1.HealthResponse{}, s.model.Health(ctx)
}
