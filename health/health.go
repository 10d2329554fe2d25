// Package health answers whether this process lives, may take traffic, and what
// is wrong with what it depends on (R-HC-1…6).
//
// A [Check] probes one dependency; a [Composite] runs the checks at the same
// time, each within a limit, remembers the answers for a moment so that probing
// is never load, and sums them up: the worst of the critical checks, where the
// failure of another one only degrades.
package health

import (
	"encoding/json"
	"errors"

	"creto.dev/fault"
)

// State is how well something is. The zero State is Unhealthy, so that a
// forgotten answer is not taken for a good one.
type State uint8

// The states, from worst to best.
const (
	// Unhealthy: it does not work.
	Unhealthy State = iota
	// Degraded: it works, with a loss.
	Degraded
	// Healthy: it works.
	Healthy
)

// String returns the state's lower-case name.
func (s State) String() string {
	switch s {
	case Healthy:
		return "healthy"
	case Degraded:
		return "degraded"
	}
	return "unhealthy"
}

// MarshalText writes the state's name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the state's name.
//
// Errors: InvalidArgument (Permanent).
func (s *State) UnmarshalText(text []byte) error {
	for _, known := range []State{Unhealthy, Degraded, Healthy} {
		if known.String() == string(text) {
			*s = known
			return nil
		}
	}
	return fault.New("health.State.UnmarshalText", fault.InvalidArgument, "%q is no state of health", text)
}

// Status is a state and, unless it is Healthy, the reason in words. The reason
// can tell of the inside of a deployment: it is for authenticated callers.
type Status struct {
	State  State  `json:"status"`
	Reason string `json:"reason,omitempty"`
}

// OK reports whether it works, with or without a loss (R-HC-1).
func (s Status) OK() bool { return s.State >= Degraded }

// Of is the rule that most dependencies share (R-NHI-29, R-CON-17, R-AUD-32,
// R-MEM-19, R-STO-24): no error is Healthy, running out of time is Degraded for
// the reason slow, and anything else Unhealthy for the reason down. The text of
// err is not used.
func Of(err error, slow, down string) Status {
	switch {
	case err == nil:
		return Status{State: Healthy}
	case errors.Is(err, fault.DeadlineExceeded) || fault.CodeOf(err) == fault.DeadlineExceeded:
		return Status{State: Degraded, Reason: slow}
	}
	return Status{State: Unhealthy, Reason: down}
}

// Result is what one check said.
type Result struct {
	Status
	// Critical reports whether nothing works without it.
	Critical bool `json:"critical"`
}

// Report is what all checks said, keyed by name, and the sum of it.
type Report struct {
	Status
	Checks map[string]Result `json:"checks,omitempty"`
}

// The reasons of a whole (R-HC-3).
const (
	reasonUnhealthy = "One or more dependencies unhealthy"
	reasonDegraded  = "One or more dependencies degraded"
)

// summarise adds up results: a check that is not critical can only degrade the
// whole. No checks are healthy.
func summarise(results map[string]Result) Status {
	worst := Healthy
	for _, r := range results {
		state := r.State
		if !r.Critical {
			state = max(state, Degraded)
		}
		worst = min(worst, state)
	}
	switch worst {
	case Unhealthy:
		return Status{Unhealthy, reasonUnhealthy}
	case Degraded:
		return Status{Degraded, reasonDegraded}
	}
	return Status{State: Healthy}
}

// public returns r without the reasons of its checks.
func (r Report) public() Report {
	checks := make(map[string]Result, len(r.Checks))
	for name, result := range r.Checks {
		result.Reason = ""
		checks[name] = result
	}
	r.Checks = checks
	return r
}

// body is r as it goes out.
func (r Report) body() []byte {
	body, _ := json.Marshal(r) // strings and bools always marshal
	return append(body, '\n')
}
