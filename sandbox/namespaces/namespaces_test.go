package namespaces_test

import (
	"testing"

	"creto.dev/sandbox/namespaces"
	"creto.dev/sandbox/sandboxtest"
)

func TestBackend(t *testing.T) { sandboxtest.Run(t, namespaces.New()) }
