package gateway

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
)

// Without a tracer and without a trace, a request costs nothing more.
func TestUntracedIsFree(t *testing.T) {
	var w http.ResponseWriter = httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/chat/completions", nil)
	id, agent, err := audit.RecordID{1}, creto.ID{Name: "bot"}, fault.New("t", fault.Internal, "x")
	handler := new(Gateway).traced(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		known(r.Context(), agent, "run-1")
		allowed(r.Context())
		recorded(r.Context(), id, err)
	}))
	if n := testing.AllocsPerRun(100, func() { handler.ServeHTTP(w, r) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// BenchmarkUntraced is what TestUntracedIsFree measures, in time.
func BenchmarkUntraced(b *testing.B) {
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/v1/chat/completions", nil)
	handler := new(Gateway).traced(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		known(r.Context(), creto.ID{}, "run-1")
		allowed(r.Context())
		recorded(r.Context(), audit.RecordID{1}, nil)
	}))
	b.ReportAllocs()
	for b.Loop() {
		handler.ServeHTTP(w, r)
	}
}
