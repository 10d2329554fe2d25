package faultgrpc_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"creto.dev/fault"
	"creto.dev/fault/faultgrpc"
	wiretestv1 "creto.dev/internal/gen/creto/wiretest/v1"
)

const patience = 20 * time.Second

// echo fails as it is told: with the error that fail holds, or, where the text is
// "panic" or "wait", so.
type echo struct {
	wiretestv1.UnimplementedEchoServiceServer
	fail func() error
}

func (e echo) end(ctx context.Context, text string) error {
	switch text {
	case "panic":
		panic("the password is " + secret)
	case "wait":
		<-ctx.Done()
		return fault.Wrap("test.Echo", ctx.Err())
	}
	return e.fail()
}

func (e echo) Echo(ctx context.Context, r *wiretestv1.EchoRequest) (*wiretestv1.EchoResponse, error) {
	return &wiretestv1.EchoResponse{Text: secret}, e.end(ctx, r.GetText())
}

func (e echo) Count(r *wiretestv1.CountRequest, s grpc.ServerStreamingServer[wiretestv1.CountResponse]) error {
	for n := range r.GetTo() {
		if err := s.Send(&wiretestv1.CountResponse{N: n}); err != nil {
			return err
		}
	}
	return e.end(s.Context(), r.GetText())
}

func (e echo) Chat(s grpc.BidiStreamingServer[wiretestv1.ChatRequest, wiretestv1.ChatResponse]) error {
	for {
		in, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := e.end(s.Context(), in.GetText()); err != nil {
			return err
		}
	}
}

const secret = "hunter2-of-the-database"

// tap keeps a copy of what a server writes.
type tap struct {
	net.Listener
	mu    sync.Mutex // guards conns
	conns []*tapped
}

type tapped struct {
	net.Conn
	mu   sync.Mutex // guards sent
	sent bytes.Buffer
}

func (l *tap) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &tapped{Conn: conn}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, c)
	return c, nil
}

func (c *tapped) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent.Write(b)
	return c.Conn.Write(b)
}

// text returns everything that a connection's server said, header fields
// decompressed and binary ones decoded.
func (c *tapped) text(t *testing.T) string {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var out strings.Builder
	framer := http2.NewFramer(nil, bytes.NewReader(c.sent.Bytes()))
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := framer.ReadFrame()
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			t.Fatalf("reading what the server sent: %v", err)
		}
		switch f := frame.(type) {
		case *http2.DataFrame:
			out.Write(f.Data())
		case *http2.MetaHeadersFrame:
			for _, field := range f.Fields {
				fmt.Fprintf(&out, "%s: %s\n", field.Name, field.Value)
				if raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(field.Value, "=")); err == nil && strings.HasSuffix(field.Name, "-bin") {
					out.Write(raw)
				}
			}
		case *http2.GoAwayFrame:
			out.Write(f.DebugData())
		}
	}
}

type world struct {
	wiretestv1.EchoServiceClient
	server *grpc.Server
	tap    *tap
	log    *bytes.Buffer // complete once the server has stopped
}

// start serves echo over TCP.
func start(t *testing.T, fail func() error) *world {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{tap: &tap{Listener: l}, log: new(bytes.Buffer)}
	log := slog.New(slog.NewTextHandler(w.log, nil))
	w.server = grpc.NewServer(grpc.ChainUnaryInterceptor(faultgrpc.UnaryServer(log)), grpc.ChainStreamInterceptor(faultgrpc.StreamServer(log)))
	wiretestv1.RegisterEchoServiceServer(w.server, echo{fail: fail})
	served := make(chan error, 1)
	go func() { served <- w.server.Serve(w.tap) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithChainUnaryInterceptor(faultgrpc.UnaryClient()), grpc.WithChainStreamInterceptor(faultgrpc.StreamClient()))
	if err != nil {
		t.Fatal(err)
	}
	w.EchoServiceClient = wiretestv1.NewEchoServiceClient(conn)
	t.Cleanup(func() {
		_ = conn.Close()
		w.server.Stop()
		<-served
	})
	return w
}

// shapes are the ways to call.
var shapes = []struct {
	name string
	call func(context.Context, *world, string) error
}{
	{"unary", func(ctx context.Context, w *world, text string) error {
		_, err := w.Echo(ctx, &wiretestv1.EchoRequest{Text: text})
		return err
	}},
	{"server stream", func(ctx context.Context, w *world, text string) error {
		s, err := w.Count(ctx, &wiretestv1.CountRequest{To: 2, Text: text})
		for err == nil {
			_, err = s.Recv()
		}
		return err
	}},
	{"both streams", func(ctx context.Context, w *world, text string) error {
		s, err := w.Chat(ctx)
		if err != nil {
			return err
		}
		if err := s.Send(&wiretestv1.ChatRequest{Text: text}); err != nil {
			return err
		}
		_, err = s.Recv()
		return err
	}},
}

// Every code crosses in each way to call, with its category, message and wait,
// and nothing of its cause.
func TestEveryCode(t *testing.T) {
	var failure error
	w := start(t, func() error { return failure })
	for _, code := range fault.Codes() {
		if code == fault.OK {
			continue
		}
		cause := fault.WrapAs("engine.Op", code, errors.New("dsn postgres://u:"+secret+"@db"), "the thing %q is so; naïve\x1b[31m", "x")
		failure = fault.After(fault.Wrap("service.Op", cause), 1500*time.Millisecond)
		for _, shape := range shapes {
			err := shape.call(t.Context(), w, "")
			if got := fault.CodeOf(err); got != code || fault.CategoryOf(err) != code.Category() || fault.Retryable(err) != code.Retryable() || !errors.Is(err, code.Kind()) {
				t.Errorf("%s: %v arrived as %v (%v)", shape.name, code, got, err)
			}
			want := strings.ReplaceAll(fault.Message(failure), "\x1b", " ")
			if got := fault.Message(err); got != want {
				t.Errorf("%s: %v: message %q, want %q", shape.name, code, got, want)
			}
			if got := fault.RetryAfter(err); got != 1500*time.Millisecond {
				t.Errorf("%s: %v: RetryAfter = %v", shape.name, code, got)
			}
		}
	}
	said := w.tap.conns[0].text(t)
	if strings.Contains(said, secret) || !strings.Contains(said, "NHI_TOKEN_EXPIRED") {
		t.Error("the text of a cause crossed the wire, or nothing did")
	}
}

// Reasons name one code each.
func TestReasons(t *testing.T) {
	seen := map[string]fault.Code{}
	for _, code := range fault.Codes()[1:] {
		info := detailOf(t, faultgrpc.Status(code))
		if other, ok := seen[info.GetReason()]; ok || info.GetDomain() != faultgrpc.Domain {
			t.Errorf("%v has the reason %s of %s, as %v", code, info.GetReason(), info.GetDomain(), other)
		}
		seen[info.GetReason()] = code
	}
}

func detailOf(t *testing.T, st *status.Status) *errdetails.ErrorInfo {
	t.Helper()
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	t.Fatalf("%v has no ErrorInfo", st)
	return nil
}

// The end of a call's time is the same fault whoever notices it.
func TestDeadlineAndCancel(t *testing.T) {
	w := start(t, func() error { return nil })
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			for _, test := range []struct {
				name string
				ctx  func() (context.Context, context.CancelFunc)
				want fault.Code
			}{
				{"deadline", func() (context.Context, context.CancelFunc) {
					return context.WithTimeout(t.Context(), 50*time.Millisecond)
				}, fault.DeadlineExceeded},
				{"deadline passed", func() (context.Context, context.CancelFunc) {
					return context.WithTimeout(t.Context(), -1)
				}, fault.DeadlineExceeded},
				{"canceled", func() (context.Context, context.CancelFunc) {
					ctx, cancel := context.WithCancel(t.Context())
					timer := time.AfterFunc(50*time.Millisecond, cancel)
					return ctx, func() { timer.Stop(); cancel() }
				}, fault.Canceled},
			} {
				ctx, cancel := test.ctx()
				err := shape.call(ctx, w, "wait")
				cancel()
				if fault.CodeOf(err) != test.want || fault.Message(err) != test.want.String() {
					t.Errorf("%s: %v (%v), want %v", test.name, fault.CodeOf(err), err, test.want)
				}
			}
		})
	}
}

// A server that dies, and one that was never there, are unavailable; so is one
// that stops while it works.
func TestTransport(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			w := start(t, func() error { return nil })
			done := make(chan error, 1)
			go func() { done <- shape.call(t.Context(), w, "wait") }()
			for deadline := time.Now().Add(patience); ; {
				w.tap.mu.Lock()
				n := len(w.tap.conns)
				w.tap.mu.Unlock()
				if n > 0 || time.Now().After(deadline) {
					break
				}
				time.Sleep(time.Millisecond)
			}
			time.Sleep(20 * time.Millisecond) // let the call arrive
			w.server.Stop()
			if err := <-done; fault.CodeOf(err) != fault.Unavailable || fault.CategoryOf(err) != fault.Degraded {
				t.Errorf("a server that stops: %v", err)
			}
			err := shape.call(t.Context(), w, "")
			if fault.CodeOf(err) != fault.Unavailable || strings.Contains(fault.Message(err), "127.0.0.1") {
				t.Errorf("a server that is not there: %v, message %q", err, fault.Message(err))
			}
		})
	}
}

func TestPanic(t *testing.T) {
	w := start(t, func() error { return nil })
	for _, shape := range shapes {
		err := shape.call(t.Context(), w, "panic")
		if fault.CodeOf(err) != fault.Internal || fault.Message(err) != "internal" {
			t.Errorf("%s: %v, message %q", shape.name, err, fault.Message(err))
		}
	}
	w.server.Stop()
	if said := w.tap.conns[0].text(t); strings.Contains(said, secret) {
		t.Error("the value of a panic crossed the wire")
	}
	if log := w.log.String(); strings.Count(log, "a handler panicked") != 3 || !strings.Contains(log, secret) || !strings.Contains(log, "faultgrpc_test.go") {
		t.Errorf("the log does not say what panicked:\n%s", log)
	}
}

// What is no fault crosses without its text, and only a defect is logged.
func TestForeignErrors(t *testing.T) {
	var failure error
	w := start(t, func() error { return failure })
	for _, test := range []struct {
		err  error
		want fault.Code
	}{
		{errors.New(secret), fault.Internal},
		{fmt.Errorf("%s: %w", secret, context.Canceled), fault.Canceled},
		{fmt.Errorf("%s: %w", secret, context.DeadlineExceeded), fault.DeadlineExceeded},
		{status.Error(codes.NotFound, secret), fault.NotFound},
		{fmt.Errorf("%s: %w", secret, status.Error(codes.Unavailable, secret)), fault.Unavailable},
		{status.Error(codes.Unknown, secret), fault.Internal},
		{status.Error(codes.Code(99), secret), fault.Internal},
		{fault.OK, fault.Internal},
		{fault.NHINotFound, fault.NHINotFound},
	} {
		failure = test.err
		for _, shape := range shapes {
			if err := shape.call(t.Context(), w, ""); fault.CodeOf(err) != test.want || strings.Contains(err.Error(), secret) {
				t.Errorf("%s: %v arrived as %v, want %v", shape.name, test.err, err, test.want)
			}
		}
	}
	w.server.Stop()
	if strings.Contains(w.tap.conns[0].text(t), secret) {
		t.Error("the text of a foreign error crossed the wire")
	}
	if n := strings.Count(w.log.String(), "a handler failed"); n != 4*len(shapes) {
		t.Errorf("%d failures are logged, want %d", n, 4*len(shapes))
	}
}

// Read believes only what fits together.
func TestRead(t *testing.T) {
	with := func(code codes.Code, details ...protoadapt.MessageV1) error {
		st, err := status.New(code, secret).WithDetails(details...)
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	info := func(domain, reason string) *errdetails.ErrorInfo {
		return &errdetails.ErrorInfo{Domain: domain, Reason: reason}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		name string
		left bool // the caller did, before
		err  error
		want fault.Code
		wait time.Duration
	}{
		{"foreign invalid argument", false, status.Error(codes.InvalidArgument, secret), fault.InvalidArgument, 0},
		{"out of range", false, status.Error(codes.OutOfRange, secret), fault.InvalidArgument, 0},
		{"deadline", false, status.Error(codes.DeadlineExceeded, secret), fault.DeadlineExceeded, 0},
		{"not found", false, status.Error(codes.NotFound, secret), fault.NotFound, 0},
		{"already exists", false, status.Error(codes.AlreadyExists, secret), fault.AlreadyExists, 0},
		{"denied", false, status.Error(codes.PermissionDenied, secret), fault.PermissionDenied, 0},
		{"exhausted", false, status.Error(codes.ResourceExhausted, secret), fault.ResourceExhausted, 0},
		{"precondition", false, status.Error(codes.FailedPrecondition, secret), fault.FailedPrecondition, 0},
		{"aborted", false, status.Error(codes.Aborted, secret), fault.Aborted, 0},
		{"unimplemented", false, status.Error(codes.Unimplemented, secret), fault.Unimplemented, 0},
		{"internal", false, status.Error(codes.Internal, secret), fault.Internal, 0},
		{"unavailable", false, status.Error(codes.Unavailable, secret), fault.Unavailable, 0},
		{"data loss", false, status.Error(codes.DataLoss, secret), fault.DataLoss, 0},
		{"unauthenticated", false, status.Error(codes.Unauthenticated, secret), fault.Unauthenticated, 0},
		{"unknown", false, status.Error(codes.Unknown, secret), fault.Internal, 0},
		{"a number of the future", false, status.Error(codes.Code(77), secret), fault.Internal, 0},
		{"canceled by the other side", false, status.Error(codes.Canceled, secret), fault.Unavailable, 0},
		{"canceled by us", true, status.Error(codes.Canceled, secret), fault.Canceled, 0},
		{"broken while we left", true, status.Error(codes.Unavailable, secret), fault.Canceled, 0},
		{"denied while we left", true, status.Error(codes.PermissionDenied, secret), fault.PermissionDenied, 0},
		{"no status", false, errors.New(secret), fault.Internal, 0},
		{"another's reason", false, with(codes.Unauthenticated, info("example.com", "NHI_TOKEN_INVALID")), fault.Unauthenticated, 0},
		{"an unknown reason", false, with(codes.NotFound, info(faultgrpc.Domain, "NO_SUCH")), fault.NotFound, 0},
		{"an unknown reason and number", false, with(codes.Unknown, info(faultgrpc.Domain, "NO_SUCH")), fault.Internal, 0},
		{"a reason that does not go with the number", false, with(codes.PermissionDenied, info(faultgrpc.Domain, "UNAVAILABLE")), fault.PermissionDenied, 0},
		{"a wait of another's", false, with(codes.ResourceExhausted, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Minute)}), fault.ResourceExhausted, time.Minute},
		{"an absurd wait", false, with(codes.Unavailable, &errdetails.RetryInfo{RetryDelay: durationpb.New(1<<63 - 1)}), fault.Unavailable, 24 * time.Hour},
		{"a negative wait", false, with(codes.Unavailable, &errdetails.RetryInfo{RetryDelay: durationpb.New(-time.Hour)}), fault.Unavailable, 0},
		{"an invalid wait", false, with(codes.Unavailable, &errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: 1 << 62}}), fault.Unavailable, 0},
		{"no wait", false, with(codes.Unavailable, &errdetails.RetryInfo{}), fault.Unavailable, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := t.Context()
			if test.left {
				ctx = ended
			}
			err := faultgrpc.Read(ctx, "test.Op", test.err)
			if fault.CodeOf(err) != test.want || fault.RetryAfter(err) != test.wait || strings.Contains(fault.Message(err), secret) {
				t.Errorf("Read = %v, %q, after %v; want %v after %v", fault.CodeOf(err), fault.Message(err), fault.RetryAfter(err), test.want, test.wait)
			}
		})
	}
	if err := faultgrpc.Read(t.Context(), "x", nil); err != nil {
		t.Errorf("Read(nil) = %v", err)
	}
	if st := faultgrpc.Status(nil); st.Code() != codes.OK {
		t.Errorf("Status(nil) = %v", st)
	}
	// What is shown is what was said, in its order and on one line.
	st := status.New(codes.NotFound, "a\u202eb\u2066c\u2028d\x1b[31me\u009bf\r\ng\xffh")
	st, err := st.WithDetails(info(faultgrpc.Domain, "NOT_FOUND"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fault.Message(faultgrpc.Read(t.Context(), "x", st.Err())), "a b c d [31me f  g h"; got != want {
		t.Errorf("the message is %q, want %q", got, want)
	}
	long := fault.New("x", fault.NotFound, "%s", strings.Repeat("é", 1<<20))
	if n := len(faultgrpc.Status(long).Message()); n > 8<<10 {
		t.Errorf("a message of 2 MiB crosses as %d bytes", n)
	}
}

// Whatever a peer sends, the fault is one of ours and its text is fit for a
// terminal.
func FuzzRead(f *testing.F) {
	f.Add(uint32(5), "no agent", "NHI_NOT_FOUND", faultgrpc.Domain, int64(1), int32(0))
	f.Add(uint32(14), "\x1b[2J", "UNAVAILABLE", faultgrpc.Domain, int64(-1), int32(5))
	f.Fuzz(func(t *testing.T, number uint32, message, reason, domain string, seconds int64, nanos int32) {
		if number == 0 {
			return
		}
		st, err := status.New(codes.Code(number), message).WithDetails(
			&errdetails.ErrorInfo{Domain: domain, Reason: reason}, &errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: seconds, Nanos: nanos}})
		if err != nil {
			return
		}
		got := faultgrpc.Read(t.Context(), "x", st.Err())
		code := fault.CodeOf(got)
		if code == fault.OK || fault.RetryAfter(got) < 0 || fault.RetryAfter(got) > 24*time.Hour || strings.ContainsAny(fault.Message(got), "\x1b\r\n\x00") {
			t.Errorf("Read(%v) = %v, %q, after %v", st, code, fault.Message(got), fault.RetryAfter(got))
		}
		again := faultgrpc.Read(t.Context(), "x", faultgrpc.Status(got).Err())
		if fault.CodeOf(again) != code || fault.Message(again) != fault.Message(got) || fault.RetryAfter(again) != fault.RetryAfter(got) {
			t.Errorf("%v, %q crosses as %v, %q", code, fault.Message(got), fault.CodeOf(again), fault.Message(again))
		}
	})
}
