package localinference_test

import (
	"context"
	"io"
	"testing"

	"creto.dev/inference"
	"creto.dev/inference/localinference"
)

// still is a model that costs nothing.
type still struct {
	inference.Model
	answer inference.Response
}

func (s *still) ID() string { return "still" }
func (s *still) Capabilities() inference.Capabilities {
	return inference.Capabilities{Models: []string{"*"}}
}
func (s *still) Complete(context.Context, inference.Request) (inference.Response, error) {
	return s.answer, nil
}
func (s *still) CompleteStream(context.Context, inference.Request) (inference.Stream, error) {
	return &stillStream{}, nil
}

type stillStream struct{ n int }

func (s *stillStream) Next() (inference.Chunk, error) {
	if s.n++; s.n > 1 {
		return inference.Chunk{}, io.EOF
	}
	return inference.Chunk{}, nil
}
func (*stillStream) Ready() bool { return false }

func (*stillStream) Usage() inference.Usage { return inference.Usage{} }
func (*stillStream) Close() error           { return nil }

// BenchmarkRouter is what the router adds to a call: at most 2 µs.
func BenchmarkRouter(b *testing.B) {
	m := &still{answer: inference.Response{Choices: []inference.Choice{{}}}}
	routes := make([]localinference.Route, 20)
	for i := range routes {
		routes[i] = localinference.Route{Agents: []string{"nobody"}, Models: []string{"m"}, Strategy: localinference.CloudFirst}
	}
	for _, bench := range []struct {
		name string
		cfg  localinference.Config
	}{
		{"plain", localinference.Config{}},
		{"20 routes", localinference.Config{Routes: routes, Tenant: "default"}},
		{"cost", localinference.Config{Strategy: localinference.CostOptimized, Prices: []localinference.Price{{Model: "*", Input: "1", Output: "2"}}}},
		{"latency", localinference.Config{Strategy: localinference.LatencyOptimized}},
	} {
		q, _ := request("")
		r := router(b, bench.cfg, localinference.Provider{Keys: []inference.Model{m}, Concurrency: 100}, one(cloud("b", nil), true))
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Complete(b.Context(), q); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(bench.name+", streamed", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s, err := r.CompleteStream(b.Context(), q)
				if err != nil {
					b.Fatal(err)
				}
				_ = s.Close()
			}
		})
	}
}
