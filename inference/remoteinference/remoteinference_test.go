package remoteinference_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/localinference"
	"creto.dev/inference/remoteinference"
	inferencev1 "creto.dev/internal/gen/creto/inference/v1"
	"creto.dev/internal/wire"
	"creto.dev/internal/wire/wiretest"
)

func open(t *testing.T, connect func(testing.TB, func(grpc.ServiceRegistrar)) *grpc.ClientConn, m inference.Model) inference.TokenCounter {
	t.Helper()
	c, err := remoteinference.Open(t.Context(), connect(t, func(s grpc.ServiceRegistrar) { remoteinference.Register(s, m) }), call.Policy{Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The contract holds across a wire, of a model and of the router.
func TestWire(t *testing.T) {
	for name, connect := range map[string]func(testing.TB, func(grpc.ServiceRegistrar)) *grpc.ClientConn{
		"in memory": wiretest.InMemory, "over TLS": wiretest.OverTLS,
	} {
		t.Run(name, func(t *testing.T) {
			inferencetest.Run(t, func(t *testing.T) inference.Model { return open(t, connect, new(inferencetest.Fake)) })
		})
	}
	t.Run("the router", func(t *testing.T) {
		inferencetest.Run(t, func(t *testing.T) inference.Model {
			r, err := localinference.New(localinference.Config{}, []localinference.Provider{{Keys: []inference.Model{new(inferencetest.Fake)}}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return open(t, wiretest.InMemory, r)
		})
	})
}

// fill sets everything in v to something that is not zero and differs.
func fill(v reflect.Value, n *int) {
	*n++
	switch {
	case v.Type() == reflect.TypeFor[creto.ID]():
		v.Set(reflect.ValueOf(creto.ID{TrustDomain: "x", Tenant: "t", Kind: creto.KindAgent, Name: "bob"}))
		return
	case v.Type() == reflect.TypeFor[json.RawMessage]():
		v.SetBytes([]byte{'"', byte('a' + *n%26), '"'})
		return
	case v.Type() == reflect.TypeFor[*inference.Served]():
		return // it is filled in on the way back
	case v.Type() == reflect.TypeFor[inference.Embedder]():
		return // it stays on its side
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(string(rune('a'+*n%26)) + string(rune('a'+*n/26%26)))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float32:
		v.SetFloat(float64(*n))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		value := reflect.New(v.Type().Elem()).Elem()
		fill(value, n)
		v.SetMapIndex(reflect.ValueOf("k"), value)
	default:
		panic(v.Kind().String())
	}
}

// full has everything set. What a request must be is put right.
func full() (r inference.Request, e inference.EmbedRequest, answer inference.Response, chunk inference.Chunk, vectors inference.EmbedResponse) {
	n := 0
	for _, v := range []any{&r, &e, &answer, &chunk, &vectors} {
		fill(reflect.ValueOf(v).Elem(), &n)
	}
	r.Temperature, r.ToolChoice.Mode = "0.5", inference.ToolsNamed
	return r, e, answer, chunk, vectors
}

// echo answers with everything, and remembers what it was asked.
type echo struct {
	asked  inference.Request
	embeds inference.EmbedRequest
	fail   error
}

var served = inference.Served{Provider: "p", Model: "q", Attempts: 3, Cache: inference.CacheHit}

func (*echo) ID() string { return "echo" }
func (*echo) Capabilities() (c inference.Capabilities) {
	n := 0
	fill(reflect.ValueOf(&c).Elem(), &n)
	return c
}
func (*echo) Health(context.Context) error { return nil }
func (e *echo) Complete(_ context.Context, r inference.Request) (inference.Response, error) {
	*r.Metadata.Served = served
	e.asked = r
	_, _, answer, _, _ := full()
	return answer, e.fail
}
func (e *echo) CountTokens(_ context.Context, r inference.Request) (int64, error) {
	*r.Metadata.Served = served
	return 42, e.fail
}
func (e *echo) Embed(_ context.Context, r inference.EmbedRequest) (inference.EmbedResponse, error) {
	*r.Metadata.Served = served
	e.embeds = r
	_, _, _, _, vectors := full()
	return vectors, e.fail
}
func (e *echo) CompleteStream(_ context.Context, r inference.Request) (inference.Stream, error) {
	*r.Metadata.Served = served
	if e.fail != nil {
		return nil, e.fail
	}
	return &echoStream{}, nil
}

// echoStream says one chunk and breaks off.
type echoStream struct{ n int }

func (s *echoStream) Next() (inference.Chunk, error) {
	if s.n++; s.n > 1 {
		return inference.Chunk{}, fault.New("test", fault.InferenceContentFiltered, "no more")
	}
	_, _, _, chunk, _ := full()
	return chunk, nil
}
func (s *echoStream) Ready() bool { return false }

func (s *echoStream) Usage() inference.Usage { return inference.Usage{CompletionTokens: int64(s.n)} }
func (*echoStream) Close() error             { return nil }

// Nothing is lost on the way, and a field that somebody adds is noticed.
func TestEverythingTravels(t *testing.T) {
	e := &echo{}
	c := open(t, wiretest.InMemory, e)
	request, embed, answer, chunk, vectors := full()
	if c.ID() != "echo" || !reflect.DeepEqual(c.Capabilities(), e.Capabilities()) {
		t.Errorf("capabilities:\n%s", cmp.Diff(e.Capabilities(), c.Capabilities()))
	}
	var who inference.Served
	request.Metadata.Served, embed.Metadata.Served = &who, &who
	got, err := c.Complete(t.Context(), request)
	if diff := cmp.Diff(answer, got); err != nil || diff != "" || who != served {
		t.Errorf("Complete: %v, by %+v\n%s", err, who, diff)
	}
	e.asked.Metadata.Served = request.Metadata.Served
	if diff := cmp.Diff(request, e.asked); diff != "" {
		t.Errorf("the request became\n%s", diff)
	}
	who = inference.Served{}
	v, err := c.Embed(t.Context(), embed)
	if diff := cmp.Diff(vectors, v); err != nil || diff != "" || who != served {
		t.Errorf("Embed: %v, by %+v\n%s", err, who, diff)
	}
	e.embeds.Metadata.Served = embed.Metadata.Served
	if diff := cmp.Diff(embed, e.embeds); diff != "" {
		t.Errorf("the request for vectors became\n%s", diff)
	}
	if n, err := c.CountTokens(t.Context(), request); n != 42 || err != nil {
		t.Errorf("CountTokens = %d, %v", n, err)
	}
	who = inference.Served{}
	s, err := c.CompleteStream(t.Context(), request)
	if err != nil || who != served {
		t.Fatalf("CompleteStream: %v, by %+v", err, who)
	}
	first, err := s.Next()
	if diff := cmp.Diff(chunk, first); err != nil || diff != "" || s.Usage().CompletionTokens != 1 {
		t.Errorf("Next: %v, %+v\n%s", err, s.Usage(), diff)
	}
	for range 2 {
		if _, err := s.Next(); fault.CodeOf(err) != fault.InferenceContentFiltered || errors.Is(err, io.EOF) || s.Usage().CompletionTokens != 2 {
			t.Errorf("Next = %v, %+v", err, s.Usage())
		}
	}
	_ = s.Close()
	// Who failed is said too.
	e.fail = fault.New("test", fault.InferenceRateLimited, "wait")
	for name, ask := range map[string]func() error{
		"Complete":       func() error { _, err := c.Complete(t.Context(), request); return err },
		"CompleteStream": func() error { _, err := c.CompleteStream(t.Context(), request); return err },
		"Embed":          func() error { _, err := c.Embed(t.Context(), embed); return err },
		"CountTokens":    func() error { _, err := c.CountTokens(t.Context(), request); return err },
	} {
		who = inference.Served{}
		if err := ask(); fault.CodeOf(err) != fault.InferenceRateLimited || who != served {
			t.Errorf("%s: %v, by %+v", name, err, who)
		}
	}
}

// liar begins no answer.
type liar struct {
	inferencev1.UnimplementedModelServiceServer
}

func (liar) Describe(context.Context, *inferencev1.DescribeRequest) (*inferencev1.DescribeResponse, error) {
	return &inferencev1.DescribeResponse{Id: "liar"}, nil
}
func (liar) CompleteStream(*inferencev1.CompleteStreamRequest, grpc.ServerStreamingServer[inferencev1.CompleteStreamResponse]) error {
	return nil
}

// Nobody there, and nonsense, have the contract's codes.
func TestNobody(t *testing.T) {
	if _, err := remoteinference.Open(t.Context(), wiretest.Dial(t, wire.Config{Address: "127.0.0.1:1"}), call.Policy{Attempts: 1}); fault.CodeOf(err) != fault.InferenceProviderUnavailable {
		t.Errorf("Open of nobody = %v", err)
	}
	conn := wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { inferencev1.RegisterModelServiceServer(s, liar{}) })
	c, err := remoteinference.Open(t.Context(), conn, call.Policy{Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CompleteStream(t.Context(), inferencetest.Ask("x")); fault.CodeOf(err) != fault.InferenceProviderError {
		t.Errorf("an answer without a beginning = %v", err)
	}
	rpc := inferencev1.NewModelServiceClient(wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { remoteinference.Register(s, new(inferencetest.Fake)) }))
	for name, in := range map[string]*inferencev1.CompleteRequest{
		"nothing": {}, "an agent that is none": {Prompt: &inferencev1.Prompt{Model: "m", Metadata: &inferencev1.Metadata{Agent: "bob"}}},
	} {
		if _, err := rpc.Complete(t.Context(), in); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: Complete = %v", name, err)
		}
	}
	if _, err := rpc.CountTokens(t.Context(), &inferencev1.CountTokensRequest{Prompt: &inferencev1.Prompt{Model: "m", Messages: []*inferencev1.Message{{Role: "user"}}}}); fault.CodeOf(err) != fault.InferenceNotSupported {
		t.Errorf("CountTokens of who does not count = %v", err)
	}
}
