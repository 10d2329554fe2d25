package health

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"creto.dev/fault"
	"creto.dev/internal/logkey"
)

const (
	// checkLimit is how long one check may take (R-HC-6).
	checkLimit = time.Second
	// freshFor is how long an answer is used again (R-HC-6).
	freshFor = time.Second
)

// reasonSlow is said of a check that did not answer within the limit.
const reasonSlow = "no answer within 1s"

// Check probes one dependency.
type Check struct {
	// Name is the key in a report: that of a contract, such as "nhi". Everybody
	// may see it. Required, and unique in a composite.
	Name string
	// Critical means that nothing works without this dependency, so that its
	// failure takes the node out of traffic (R-PAT-4).
	Critical bool
	// Probe finds out. It gets 1 s and should return when ctx ends; it must not
	// change what it probes. It never runs twice at once. Required.
	Probe func(ctx context.Context) Status
}

// Composite is several checks taken together. Safe for concurrent use. Make it
// with [New].
type Composite struct {
	log    *slog.Logger
	probes []*probe
}

// New returns a composite of checks. The log hears of probes that panic; nil
// means nobody does.
//
// Errors: InvalidArgument (Permanent) for a check without a name or a probe and
// for a name used twice.
func New(log *slog.Logger, checks ...Check) (*Composite, error) {
	const op fault.Op = "health.New"
	c := &Composite{log: log}
	if log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	seen := map[string]bool{}
	for _, check := range checks {
		if check.Name == "" || check.Probe == nil || seen[check.Name] {
			return nil, fault.New(op, fault.InvalidArgument, "check %q has no name, no probe, or the name of another", check.Name)
		}
		seen[check.Name] = true
		c.probes = append(c.probes, &probe{Check: check, log: c.log})
	}
	return c, nil
}

// Report returns what every check says now, or said within the last second. It
// takes about a second at most, whatever the checks do.
func (c *Composite) Report(ctx context.Context) Report { return c.report(ctx, false) }

// Ready is Report of the critical checks alone.
func (c *Composite) Ready(ctx context.Context) Report { return c.report(ctx, true) }

func (c *Composite) report(ctx context.Context, criticalOnly bool) Report {
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex // guards results
		results = map[string]Result{}
	)
	for _, p := range c.probes {
		if criticalOnly && !p.Critical {
			continue
		}
		wg.Go(func() {
			status := p.status(ctx)
			mu.Lock()
			defer mu.Unlock()
			results[p.Name] = Result{Status: status, Critical: p.Critical}
		})
	}
	wg.Wait()
	return Report{Status: summarise(results), Checks: results}
}

// probe is a check with its last answer. At most one goroutine runs it, however
// long it hangs: later callers wait for that one, or for its limit.
type probe struct {
	Check
	log *slog.Logger

	mu      sync.Mutex // guards the fields below
	running *run       // nil when none runs
	last    Status
	asOf    time.Time // of last; zero before the first
}

// run is one execution of a probe.
type run struct {
	done  chan struct{} // closed when it ended
	limit time.Time
}

func (p *probe) status(ctx context.Context) Status {
	p.mu.Lock()
	r := p.running
	if r == nil {
		if !p.asOf.IsZero() && time.Since(p.asOf) < freshFor {
			defer p.mu.Unlock()
			return p.last
		}
		r = &run{done: make(chan struct{}), limit: time.Now().Add(checkLimit)}
		p.running = r
		// The answer is for every caller, so none of them may cut it short.
		go p.run(context.WithoutCancel(ctx), r)
	}
	p.mu.Unlock()

	timer := time.NewTimer(time.Until(r.limit))
	defer timer.Stop()
	select {
	case <-r.done:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.last
	case <-timer.C:
	case <-ctx.Done():
	}
	return Status{Unhealthy, reasonSlow}
}

// run executes the probe and keeps its answer. A panic or runtime.Goexit in the
// probe leaves the answer Unhealthy.
func (p *probe) run(ctx context.Context, r *run) {
	answer := Status{Unhealthy, "the check did not finish"}
	defer func() {
		if cause := recover(); cause != nil {
			answer = Status{Unhealthy, "the check panicked"}
			p.log.LogAttrs(ctx, slog.LevelError, "health check panicked", slog.String(logkey.Check, p.Name),
				slog.String(logkey.Panic, fmt.Sprint(cause)), slog.String(logkey.Stack, string(debug.Stack())))
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		now := time.Now()
		// Callers were told so at the limit; a late answer does not change it.
		if !now.Before(r.limit) {
			answer = Status{Unhealthy, reasonSlow}
		}
		p.running, p.last, p.asOf = nil, answer, now
		close(r.done)
	}()
	ctx, cancel := context.WithDeadline(ctx, r.limit)
	defer cancel()
	answer = p.Probe(ctx)
}
