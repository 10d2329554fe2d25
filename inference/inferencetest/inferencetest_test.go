package inferencetest_test

import (
	"testing"

	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
)

func TestFake(t *testing.T) {
	inferencetest.Run(t, func(*testing.T) inference.Model { return new(inferencetest.Fake) })
}
