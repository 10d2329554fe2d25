package gvisor_test

import (
	"testing"

	"creto.dev/sandbox/gvisor"
	"creto.dev/sandbox/sandboxtest"
)

func TestBackend(t *testing.T) { sandboxtest.Run(t, gvisor.New(gvisor.Config{})) }
