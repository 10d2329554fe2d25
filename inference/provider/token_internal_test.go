package provider

import (
	"context"
	"fmt"
	"testing"
	"time"

	"creto.dev/fault"
)

// TestTokenLife holds when a token is replaced, and that one which is still good
// outlives a token endpoint that fails.
func TestTokenLife(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	asked, failing := 0, false
	held := &tokens{now: func() time.Time { return now }, fetch: func(context.Context, fault.Op) (string, time.Duration, error) {
		asked++
		if failing {
			return "", 0, fault.New("test", fault.InferenceProviderUnavailable, "down")
		}
		return fmt.Sprint(asked), time.Hour, nil
	}}
	for _, step := range []struct {
		after   time.Duration // since the start
		failing bool
		want    string // "" is an error
	}{
		{0, false, "1"},
		{54 * time.Minute, false, "1"},
		{56 * time.Minute, true, "1"},
		{59 * time.Minute, false, "3"},
		{59*time.Minute + 54*time.Minute, true, "3"},
		{59*time.Minute + 61*time.Minute, true, ""},
		{59*time.Minute + 62*time.Minute, false, "5"},
	} {
		now, failing = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(step.after), step.failing
		got, err := held.get(t.Context(), "test")
		if got != step.want || (err != nil) != (step.want == "") {
			t.Errorf("after %v: %q, %v, want %q", step.after, got, err, step.want)
		}
	}
	held.forget("Bearer 4") // late: there is another by now
	if got, err := held.get(t.Context(), "test"); got != "5" || err != nil {
		t.Errorf("after an old one was refused: %q, %v", got, err)
	}
	held.forget("Bearer 5")
	if got, err := held.get(t.Context(), "test"); got != "6" || err != nil {
		t.Errorf("after one was refused: %q, %v", got, err)
	}
}
