package gvisor_test

import (
	"testing"

	"creto.dev/sandbox/gvisor"
	"creto.dev/sandbox/sandboxtest"
)

func TestBackend(t *testing.T) { sandboxtest.Run(t, gvisor.New(gvisor.Config{})) }

// BenchmarkRun is the whole of a run that does nothing.
func BenchmarkRun(b *testing.B) { sandboxtest.Bench(b, gvisor.New(gvisor.Config{})) }
