package faultgrpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"creto.dev/fault"
	"creto.dev/internal/logkey"
)

// UnaryServer returns the interceptor that writes what handlers fail with. It is
// the outermost, so that it also sees what other interceptors refuse. A panic
// becomes Internal without text. log hears of panics and of defects, with their
// causes: that is where those stop travelling.
func UnaryServer(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
		defer func() {
			if err = answer(ctx, log, info.FullMethod, recover(), err); err != nil {
				response = nil
			}
		}()
		return handler(ctx, req)
	}
}

// StreamServer is [UnaryServer] for streams. What a handler's stream fails with is
// a fault too.
func StreamServer(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
		defer func() { err = answer(stream.Context(), log, info.FullMethod, recover(), err) }()
		return handler(srv, &serverStream{stream, reader(stream.Context(), info.FullMethod)})
	}
}

// answer returns the status that a handler's end crosses as.
func answer(ctx context.Context, log *slog.Logger, method string, panicked any, err error) error {
	if panicked != nil {
		log.LogAttrs(ctx, slog.LevelError, "a handler panicked",
			slog.String(logkey.Op, string(opOf(method))), slog.Any(logkey.Panic, panicked), slog.String(logkey.Stack, string(debug.Stack())))
		return Status(fault.Internal).Err()
	}
	if err == nil {
		return nil
	}
	st := Status(err)
	if code := fault.CodeOf(Read(context.WithoutCancel(ctx), "", st.Err())); code.Kind() == fault.Internal || code.Kind() == fault.DataLoss {
		log.LogAttrs(ctx, slog.LevelError, "a handler failed",
			slog.String(logkey.Op, string(opOf(method))), slog.String(logkey.Code, code.String()), slog.String(logkey.Error, err.Error()))
	}
	return st.Err()
}

// UnaryClient returns the interceptor that reads what calls fail with.
func UnaryClient() grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		return Read(ctx, opOf(method), invoke(ctx, method, req, reply, cc, opts...))
	}
}

// StreamClient is [UnaryClient] for streams. The end of a stream stays io.EOF.
func StreamClient() grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		stream, err := open(ctx, desc, cc, method, opts...)
		if err != nil {
			return nil, Read(ctx, opOf(method), err)
		}
		// The stream's own Context would end its transparent retries.
		return &clientStream{stream, reader(ctx, method)}, nil
	}
}

// opOf names a method as creto.pqc.v1.ProviderService/Sign.
func opOf(method string) fault.Op { return fault.Op(strings.TrimPrefix(method, "/")) }

// reader returns what reads the ends of a stream's operations.
func reader(ctx context.Context, method string) func(error) error {
	return func(err error) error {
		if errors.Is(err, io.EOF) {
			return err
		}
		return Read(ctx, opOf(method), err)
	}
}

type clientStream struct {
	grpc.ClientStream
	read func(error) error
}

func (s *clientStream) RecvMsg(m any) error { return s.read(s.ClientStream.RecvMsg(m)) }

func (s *clientStream) SendMsg(m any) error { return s.read(s.ClientStream.SendMsg(m)) }

func (s *clientStream) CloseSend() error { return s.read(s.ClientStream.CloseSend()) }

func (s *clientStream) Header() (metadata.MD, error) {
	md, err := s.ClientStream.Header()
	return md, s.read(err)
}

type serverStream struct {
	grpc.ServerStream
	read func(error) error
}

func (s *serverStream) RecvMsg(m any) error { return s.read(s.ServerStream.RecvMsg(m)) }

func (s *serverStream) SendMsg(m any) error { return s.read(s.ServerStream.SendMsg(m)) }
