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
	for _, name := range []string{"", "c", "fly", "call_modem", "call_model ", "Call_model"} {
		if n := creto.ActionNumber(name); n != -1 {
			t.Errorf("%q has the number %d", name, n)
		}
	}
	if len(names) != creto.Actions {
		t.Errorf("%d of %d actions are named", len(names), creto.Actions)
	}
}
