package gate_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev/fault"
	"creto.dev/oversight"
)

// A caller with a source waits for its human longer than a token lasts, and
// acts once; a source that turns to another run is refused.
func TestOpenFor(t *testing.T) {
	h := build(t)
	sandbox := "run-1"
	caller, err := h.gate.OpenFor(t.Context(), func(context.Context) (string, error) { return h.token(t, sandbox), nil })
	if err != nil {
		t.Fatal(err)
	}
	action := refund("POST 49.90")
	action.Sandbox = sandbox
	var acted atomic.Int32
	done := make(chan error, 1)
	ask := func() {
		_, err := h.gate.Do(t.Context(), caller, action, nothing(&acted))
		done <- err
	}
	go ask()
	for changed := h.desk.Changed(); len(h.pending(t)) == 0; changed = h.desk.Changed() {
		<-changed
	}
	h.clock.Advance(20 * time.Minute)
	if r := h.decide(t, "POST 49.90", true); r.State != oversight.Approved {
		t.Fatalf("the request is %s", r.State)
	}
	if err := <-done; err != nil || acted.Load() != 1 {
		t.Errorf("Do = %v after %d acts, want one", err, acted.Load())
	}
	sandbox = "run-2"
	h.clock.Advance(20 * time.Minute)
	if ask(); !errors.Is(<-done, fault.NHITokenInvalid) || acted.Load() != 1 {
		t.Errorf("a token of another run was taken")
	}
}
