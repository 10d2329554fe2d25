package telemetry_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/localinference"
	"creto.dev/inference/telemetry"
	"creto.dev/internal/otlp"
)

// quick answers at once, so that what is measured is what is around it.
type quick struct{ inferencetest.Fake }

// BenchmarkComplete is a call of a router without telemetry, with telemetry whose
// traces are not sampled, and with all of them.
func BenchmarkComplete(b *testing.B) {
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	b.Cleanup(collector.Close)
	for _, test := range []struct {
		name  string
		ratio float64
	}{{"off", -1}, {"unsampled", 0}, {"sampled", 1}} {
		b.Run(test.name, func(b *testing.B) {
			var m inference.Model = new(quick)
			made := (*telemetry.Telemetry)(nil)
			if test.ratio >= 0 {
				p, err := otlp.Open(b.Context(), otlp.Config{Endpoint: collector.URL, SampleRatio: test.ratio}, slog.New(slog.DiscardHandler))
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { _ = p.Close() })
				if made, err = telemetry.New(p.Tracer, p.Meter, map[string]telemetry.Place{"fake": {System: "openai", Address: "a.example", Port: 443}}); err != nil {
					b.Fatal(err)
				}
				m = made.Provider(m)
			}
			local, err := localinference.New(localinference.Config{}, []localinference.Provider{{Keys: []inference.Model{m}}}, nil)
			if err != nil {
				b.Fatal(err)
			}
			var r inference.Router = local
			if made != nil {
				r = made.Router(local)
			}
			q := inferencetest.Ask("x")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Complete(b.Context(), q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
