package consensus

import (
	"context"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/fault"
)

// Episode is a time in which consensus could not be reached and a node gave local
// stamps instead. They are anchored by the stamp that consensus gave first after:
// all of them were given before it.
type Episode struct {
	// Node gave Count local stamps, from First to Last.
	Node        string
	First, Last creto.Timestamp
	Count       uint64
	// Before is the newest stamp of consensus that the node had seen; zero if it
	// had seen none. After is the anchor; zero while the episode lasts.
	Before, After creto.Timestamp
	// Cause is why it began: a fault's code.
	Cause fault.Code
}

// FallbackConfig is how a [Fallback] stands in for its clock.
type FallbackConfig struct {
	// Node is named in local stamps. Required.
	Node string
	// Policy is of each call of the clock (R-CFG-21, R-CFG-23). It needs no
	// breaker where local stamps are given: while they are, the clock is asked
	// once in half a second.
	Policy call.Policy
	// Local says whether local stamps are given at all (R-CFG-22).
	Local bool
	// Report hears of the beginning of an episode (After is zero), unless it
	// has ended meanwhile, and of its end, again until it returns nil. It is
	// called by Run, one call at a time, and may use the clock. nil hears
	// nothing.
	Report func(context.Context, Episode) error
}

// What a local stamp's uncertainty grows by: the two clocks drift apart by no
// more than 200 parts in a million, as Spanner and chrony assume.
const driftPPM = 200

// suspicion is how far the system's clock runs away from the monotonic one while
// nothing happens to either.
const suspicion = time.Second

// pause is how often Run looks whether consensus is back, and reports.
const pause = 500 * time.Millisecond

// Fallback asks a clock as its policy says, and where the clock fails with a
// Transient or Degraded fault stands in for Now (R-CON-14, R-CON-15): it gives a
// hybrid logical stamp (Kulkarni et al., 2014) that says that it is local and how
// uncertain it is. Its Logical is the newest that was seen of consensus, its
// Physical what consensus said then and the time that has passed since; it is
// later, in creto.Order, than everything that this Fallback returned before.
//
// An ordering conflict is an answer and never falls back (R-CON-16), and neither
// do Register and OrderEvents: a place in the order is for consensus to give.
// Run reports episodes, and notices when they end. Safe for concurrent use.
type Fallback struct {
	clock  Clock
	config FallbackConfig
	wall   func() time.Time
	wake   chan struct{} // tells Run that there is something to report

	mu       sync.Mutex // guards what follows
	seen     creto.Timestamp
	seenAt   time.Time // when seen was asked for; zero if it was not by this process
	error    time.Duration
	last     int64 // Physical of the newest stamp
	episode  *Episode
	tried    time.Time // when it was last asked whether that is over
	reported bool      // that episode has begun
	ended    []Episode // to be reported
}

var _ Batcher = (*Fallback)(nil)

// NewFallback puts one around clock.
func NewFallback(clock Clock, config FallbackConfig) *Fallback {
	return &Fallback{clock: clock, config: config, wall: time.Now, wake: make(chan struct{}, 1)}
}

// Observe tells of a stamp that an earlier life of this process saw, so that local
// ones sort behind it even if consensus was never reached since.
func (f *Fallback) Observe(s creto.Timestamp) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = max(f.last, s.Physical)
	if s.Source == creto.SourceConsensus && s.Logical > f.seen.Logical && f.seenAt.IsZero() {
		f.seen = s
	}
}

// Now implements Clock.
//
// Errors: those of the clock, where they do not fall back.
func (f *Fallback) Now(ctx context.Context) (creto.Timestamp, error) {
	stamps, err := f.take(ctx, "consensus.Now", 1)
	if err != nil {
		return creto.Timestamp{}, err
	}
	return stamps[0], nil
}

// Stamps implements Batcher.
func (f *Fallback) Stamps(ctx context.Context, n int) ([]creto.Timestamp, error) {
	if err := CheckBatch(n); err != nil {
		return nil, err
	}
	return f.take(ctx, "consensus.Stamps", n)
}

func (f *Fallback) take(ctx context.Context, op fault.Op, n int) ([]creto.Timestamp, error) {
	asked, given := f.begin()
	ask := func(ctx context.Context) ([]creto.Timestamp, error) {
		if n > 1 {
			return Stamps(ctx, f.clock, n)
		}
		s, err := f.clock.Now(ctx)
		return []creto.Timestamp{s}, timedOut(err)
	}
	if !f.config.Local {
		return call.Do(ctx, f.config.Policy, call.Read(op), ask)
	}
	policy := f.config.Policy
	if cause, lasting, soon := f.lasting(asked); soon {
		return f.local(n, cause), nil
	} else if lasting {
		policy.Attempts = 1
	}
	answered := true
	stamps, err := call.DoOr(ctx, policy, call.Read(op), ask, func(_ context.Context, why error) ([]creto.Timestamp, error) {
		answered = false
		return f.local(n, fault.CodeOf(why)), nil
	})
	if err != nil {
		return nil, err
	}
	if answered {
		f.heard(stamps[len(stamps)-1], asked, given)
	}
	return stamps, nil
}

// timedOut gives the end of an attempt's time the contract's name.
func timedOut(err error) error {
	if fault.CodeOf(err) == fault.DeadlineExceeded {
		return fault.WrapAs("consensus", fault.ConsensusTimeout, err, "the time service is slow")
	}
	return err
}

// lasting reports whether an episode lasts, since when for what cause, and whether
// it is too soon to ask again: a service that is away is asked once in a while,
// and callers do not wait for that each time.
func (f *Fallback) lasting(now time.Time) (cause fault.Code, lasting, soon bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.episode == nil {
		return fault.OK, false, false
	}
	if since := now.Sub(f.tried); since >= 0 && since < pause {
		return f.episode.Cause, true, true
	}
	f.tried = now
	return f.episode.Cause, true, false
}

// begin says when a question is asked, and how many local stamps had been given
// by then.
func (f *Fallback) begin() (asked time.Time, given uint64) {
	asked = f.wall()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.episode != nil {
		given = f.episode.Count
	}
	return asked, given
}

// heard takes note of a stamp of consensus. It ends an episode if it was asked
// for after the last local stamp had been given.
func (f *Fallback) heard(s creto.Timestamp, asked time.Time, given uint64) {
	took := f.wall().Sub(asked)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = max(f.last, s.Physical)
	if s.Logical > f.seen.Logical || f.seenAt.IsZero() {
		f.seen, f.seenAt, f.error = s, asked, took
	}
	if e := f.episode; e != nil && e.Count == given {
		e.After = s
		f.ended = append(f.ended, *e)
		f.episode = nil
		f.signal()
	}
}

// local gives n local stamps.
func (f *Fallback) local(n int, cause fault.Code) []creto.Timestamp {
	now := f.wall()
	f.mu.Lock()
	defer f.mu.Unlock()
	physical, uncertainty := now.UnixNano(), int64(creto.UncertaintyUnknown)
	if !f.seenAt.IsZero() {
		since := now.Sub(f.seenAt) // monotonic: no step of the system's clock is in it, and no sleep
		var doubt time.Duration
		if wall := now.Round(0).Sub(f.seenAt.Round(0)); wall > since+suspicion {
			since, doubt = wall, wall-since // the machine slept, or its clock was set
		}
		physical = f.seen.Physical + int64(since)
		uncertainty = int64(f.error) + int64(doubt) + int64(since)/1e6*driftPPM
	}
	stamps := make([]creto.Timestamp, n)
	for i := range stamps {
		ahead := f.last + 1 - physical // what keeps the stamps apart is uncertain too
		physical = max(physical, f.last+1)
		f.last = physical
		bound := uncertainty
		if bound >= 0 {
			bound = max(1, bound+max(0, ahead))
		}
		stamps[i] = creto.Timestamp{Logical: f.seen.Logical, Physical: physical, Source: creto.SourceLocal, Node: f.config.Node, Uncertainty: bound}
	}
	if f.episode == nil {
		f.episode = &Episode{Node: f.config.Node, First: stamps[0], Before: f.seen, Cause: cause}
		f.reported, f.tried = false, now
		f.signal()
	}
	f.episode.Last = stamps[n-1]
	f.episode.Count += uint64(n)
	return stamps
}

// signal wakes Run.
func (f *Fallback) signal() {
	select {
	case f.wake <- struct{}{}:
	default: // it has been woken
	}
}

// Run reports episodes, and asks for a stamp now and then while one lasts, so
// that it ends when consensus is back. It returns nil when ctx ends.
func (f *Fallback) Run(ctx context.Context) error {
	timer := time.NewTicker(pause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		case <-timer.C:
			f.probe(ctx)
		}
		f.report(ctx)
	}
}

// probe looks whether consensus is back.
func (f *Fallback) probe(ctx context.Context) {
	f.mu.Lock()
	lasting := f.episode != nil
	f.mu.Unlock()
	if !lasting {
		return
	}
	asked, given := f.begin()
	once := f.config.Policy
	once.Attempts = 1
	s, err := call.Do(ctx, once, call.Read("consensus.probe"), f.clock.Now)
	if err == nil {
		f.heard(s, asked, given)
	}
}

// report tells what has not been told. What nobody takes is told again later.
func (f *Fallback) report(ctx context.Context) {
	if f.config.Report == nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.reported, f.ended = true, nil
		return
	}
	for {
		f.mu.Lock()
		var next Episode
		ending := len(f.ended) > 0
		switch {
		case ending:
			next = f.ended[0]
		case f.episode != nil && !f.reported:
			next = *f.episode
		default:
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		if err := f.config.Report(ctx, next); err != nil {
			return
		}
		f.mu.Lock()
		if ending {
			f.ended = f.ended[1:] // only Run takes from it
		} else if f.episode != nil && f.episode.First == next.First {
			f.reported = true
		}
		f.mu.Unlock()
	}
}

// Degraded returns the episode that lasts, if one does.
func (f *Fallback) Degraded() (Episode, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.episode == nil {
		return Episode{}, false
	}
	return *f.episode, true
}

// Register implements Clock.
func (f *Fallback) Register(ctx context.Context, id EventID) (creto.Timestamp, error) {
	// An event keeps its first stamp, so that it may be asked for twice.
	s, err := call.Do(ctx, f.config.Policy, call.Write("consensus.Register", id.String()), func(ctx context.Context) (creto.Timestamp, error) {
		s, err := f.clock.Register(ctx, id)
		return s, timedOut(err)
	})
	if err != nil {
		return creto.Timestamp{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	// It may have been given long ago, to somebody else: it anchors nothing.
	f.seen.Logical, f.last = max(f.seen.Logical, s.Logical), max(f.last, s.Physical)
	return s, nil
}

// OrderEvents implements Clock.
func (f *Fallback) OrderEvents(ctx context.Context, ids []EventID) ([]Ordered, error) {
	return call.Do(ctx, f.config.Policy, call.Read("consensus.OrderEvents"), func(ctx context.Context) ([]Ordered, error) {
		events, err := f.clock.OrderEvents(ctx, ids)
		return events, timedOut(err)
	})
}

// Ping implements Clock: it asks the clock, whether or not local stamps are given.
func (f *Fallback) Ping(ctx context.Context) error {
	once := f.config.Policy
	once.Attempts, once.Breaker = 1, nil // a probe is not traffic, and traffic's breaker would answer for it
	_, err := call.Do(ctx, once, call.Read("consensus.Ping"), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, timedOut(f.clock.Ping(ctx))
	})
	return err
}
