package sandboxtest

import (
	"slices"
	"testing"
	"time"

	"creto.dev/sandbox"
)

// Bench measures runs of a command that does nothing. It reports the median
// time to the command's start as start-ms and of the whole run as run-ms, for
// the budget "sandbox start" of the architecture.
func Bench(b *testing.B, backend sandbox.Backend) {
	if err := backend.Available(b.Context()); err != nil {
		Require(b, err.Error())
	}
	s := &suite{backend: backend, probe: Probe(b)}
	spec := s.spec(b, "true")
	var starts, runs []time.Duration
	b.ReportAllocs()
	for b.Loop() {
		result, err := backend.Run(b.Context(), spec)
		if err != nil || result.ExitCode != 0 {
			b.Fatalf("Run = %d, %v", result.ExitCode, err)
		}
		starts, runs = append(starts, result.After), append(runs, result.Duration)
	}
	median := func(all []time.Duration) float64 {
		slices.Sort(all)
		return float64(all[len(all)/2]) / float64(time.Millisecond)
	}
	b.ReportMetric(median(starts), "start-ms")
	b.ReportMetric(median(runs), "run-ms")
}
