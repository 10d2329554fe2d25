package creto_test

import (
	"testing"

	"creto.dev"
)

func TestActionNumber(t *testing.T) {
	names := creto.ActionNames()
	for i, name := range names {
		if got := creto.ActionNumber(name); got != i {
			t.Errorf("%s has the number %d and stands at %d", name, got, i)
		}
		if kind, ok := creto.ResourceType(name); !ok || kind == "" {
			t.Errorf("%s acts on nothing", name)
		}
	}
	if len(names) != creto.Actions || creto.ActionNumber("fly") != -1 {
		t.Errorf("%d of %d actions are named; fly has the number %d", len(names), creto.Actions, creto.ActionNumber("fly"))
	}
}
