// Package metering accounts for what agents use, and bounds it. So far it holds
// limits: how much of an action an agent may take within a window (quota), and how
// fast (rate).
//
// metering.go says what limits are; enforce.go, budget.go, hold.go and now.go are
// the path of one check; rate.go is the rate limiter; quota.go keeps the limits of
// a node; lend.go and borrow.go let other nodes use them; summary.go records what
// windows came to.
package metering

import (
	"strconv"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/fault"
)

// AnyAction as a Subject's action stands for every action.
const AnyAction = "*"

// Subject is whose use a limit counts.
type Subject struct {
	Agent creto.ID
	// Human is the root of the chains that count: what the agent does on behalf of
	// anybody else does not. The zero ID means whoever it acts for.
	Human creto.ID
	// Action is an action's name, or AnyAction.
	Action string
}

// Validate reports whether s names an agent and an action.
//
// Errors: InvalidArgument (Permanent).
func (s Subject) Validate() error {
	const op fault.Op = "metering.Subject"
	if _, ok := creto.ResourceType(s.Action); !ok && s.Action != AnyAction {
		return fault.New(op, fault.InvalidArgument, "%q is no action; use one's name, or %s for all", s.Action, AnyAction)
	}
	if err := s.Agent.Validate(); err != nil {
		return fault.Wrap(op, err)
	}
	switch {
	case s.Agent.Kind != creto.KindAgent:
		return fault.New(op, fault.InvalidArgument, "%s is no agent", s.Agent)
	case s.Human.IsZero():
		return nil
	case s.Human.Kind != creto.KindHuman:
		return fault.New(op, fault.InvalidArgument, "%s is no human; agents act on behalf of humans", s.Human)
	}
	return fault.Wrap(op, s.Human.Validate())
}

// covers reports whether an action of an agent for a human counts.
func (s Subject) covers(agent, human creto.ID, action string) bool {
	return s.Agent == agent && (s.Human.IsZero() || s.Human == human) && (s.Action == action || s.Action == AnyAction)
}

// Limit allows Amount units in each Window. Windows are aligned to Go's zero time,
// in UTC: those of hours and days begin on the hour and at midnight.
type Limit struct {
	Amount int64
	Window time.Duration
}

// The bounds of a Limit. Its windows begin and end in the years that Unix
// nanoseconds have, and several amounts can be added up.
const (
	MinWindow = time.Second
	MaxWindow = 100 * 365 * 24 * time.Hour
	MaxLimit  = 1 << 60
)

// Validate reports whether l is one.
//
// Errors: InvalidArgument (Permanent).
func (l Limit) Validate() error {
	if l.Amount < 1 || l.Amount > MaxLimit || l.Window < MinWindow || l.Window > MaxWindow {
		return fault.New("metering.Limit", fault.InvalidArgument, "a quota is an amount of 1 to %d per window of 1s to 100 years, such as 100/1h", int64(MaxLimit))
	}
	return nil
}

// String returns the limit as ParseLimit reads it.
func (l Limit) String() string { return strconv.FormatInt(l.Amount, 10) + "/" + brief(l.Window) }

// ParseLimit reads AMOUNT/WINDOW, such as 100/1h.
//
// Errors: InvalidArgument (Permanent).
func ParseLimit(text string) (Limit, error) {
	amount, window, ok := ratio(text)
	l := Limit{Amount: amount, Window: window}
	if !ok || l.Validate() != nil {
		return Limit{}, fault.New("metering.ParseLimit", fault.InvalidArgument, "%q is not AMOUNT/WINDOW, such as 100/1h; a window has 1s to 100 years", text)
	}
	return l, nil
}

// Rate allows Count units in each Period, evenly spread, and Burst at once after a
// time in which none was used.
type Rate struct {
	Count  int64
	Period time.Duration
	// Burst is at least 1, and the most units that one request may have.
	Burst int64
}

// maxDebt bounds a period, and how much time a full burst stands for, far from
// overflow.
const maxDebt = 366 * 24 * time.Hour

// Validate reports whether r is one.
//
// Errors: InvalidArgument (Permanent).
func (r Rate) Validate() error {
	const op fault.Op = "metering.Rate"
	switch {
	case r.Count < 1 || r.Period < time.Millisecond || r.Period > maxDebt:
		return fault.New(op, fault.InvalidArgument, "a rate is a positive count per period of 1ms to a year, such as 10/s")
	case r.Count > int64(r.Period):
		return fault.New(op, fault.InvalidArgument, "a rate of more than 1 in a nanosecond is none")
	case r.Burst < 1 || r.Burst > int64(maxDebt)/r.interval():
		return fault.New(op, fault.InvalidArgument, "a burst of %d is none for %d in %v", r.Burst, r.Count, r.Period)
	}
	return nil
}

// interval is how long a unit takes, rounded up so that a rate is never more than
// it says.
func (r Rate) interval() int64 { return (int64(r.Period) + r.Count - 1) / r.Count }

// String returns the rate as ParseRate reads it, without the burst.
func (r Rate) String() string { return strconv.FormatInt(r.Count, 10) + "/" + brief(r.Period) }

// ParseRate reads COUNT/PERIOD, such as 10/s or 100/5m. A burst of 0 is COUNT.
//
// Errors: InvalidArgument (Permanent).
func ParseRate(text string, burst int64) (Rate, error) {
	count, period, ok := ratio(text)
	r := Rate{Count: count, Period: period, Burst: burst}
	if burst == 0 {
		r.Burst = count
	}
	if !ok {
		return Rate{}, fault.New("metering.ParseRate", fault.InvalidArgument, "%q is not COUNT/PERIOD, such as 10/s", text)
	}
	return r, r.Validate()
}

// ratio reads a count and, behind a slash, a duration whose 1 may be left out.
func ratio(text string) (int64, time.Duration, bool) {
	count, per, ok := strings.Cut(text, "/")
	n, err := strconv.ParseInt(count, 10, 64)
	if per != "" && (per[0] < '0' || per[0] > '9') {
		per = "1" + per
	}
	d, err2 := time.ParseDuration(per)
	return n, d, ok && err == nil && err2 == nil
}

// brief writes a duration without zeros at its end, and a single unit without 1's
// neighbours: 1h rather than 1h0m0s.
func brief(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
