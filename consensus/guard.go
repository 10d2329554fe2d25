package consensus

import (
	"context"
	"sync"

	"creto.dev"
	"creto.dev/fault"
)

// Guard refuses what a clock may not say: a stamp that is no later than one that
// it gave before, as after a restore from a backup, or from another cluster at
// the same address. It is put around every clock that is not in this process.
// Safe for concurrent use.
type Guard struct {
	clock Clock

	mu   sync.Mutex // guards seen
	seen creto.Timestamp
}

var _ Batcher = (*Guard)(nil)

// NewGuard puts one around clock. What was seen before is unknown until
// [Guard.Observe].
func NewGuard(clock Clock) *Guard { return &Guard{clock: clock} }

// Observe has every later stamp be later than s, a stamp of consensus: for what an
// earlier life of this process saw. Local stamps say nothing and are ignored.
func (g *Guard) Observe(s creto.Timestamp) {
	if s.Source != creto.SourceConsensus {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.Logical > g.seen.Logical {
		g.seen.Logical = s.Logical
	}
	if s.Physical > g.seen.Physical {
		g.seen.Physical = s.Physical
	}
}

// floor is the newest that was seen. Answers to questions that are asked from
// here on are later; those of questions under way need not be.
func (g *Guard) floor() creto.Timestamp {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seen
}

// admit checks stamps against what had been seen when they were asked for.
//
// Errors: ConsensusOrderingConflict (Permanent): somebody must look.
func (g *Guard) admit(op fault.Op, floor creto.Timestamp, stamps ...creto.Timestamp) error {
	for _, s := range stamps {
		switch {
		case s.Source != creto.SourceConsensus || s.Node == "" || s.Uncertainty != 0:
			return fault.New(op, fault.ConsensusOrderingConflict, "the time service gives what is no stamp of consensus")
		case s.Logical <= floor.Logical || s.Physical < floor.Physical:
			return fault.New(op, fault.ConsensusOrderingConflict, "the time service went backwards: it gives %x at %d after %x at %d; was it restored from a backup, or is it another one?",
				s.Logical, s.Physical, floor.Logical, floor.Physical)
		}
		floor = s
	}
	g.Observe(floor)
	return nil
}

// Now implements Clock.
//
// Errors: besides the contract's, ConsensusOrderingConflict (Permanent) if the
// clock went backwards.
func (g *Guard) Now(ctx context.Context) (creto.Timestamp, error) {
	floor := g.floor()
	s, err := g.clock.Now(ctx)
	if err == nil {
		err = g.admit("consensus.Now", floor, s)
	}
	if err != nil {
		return creto.Timestamp{}, err
	}
	return s, nil
}

// Stamps implements Batcher.
//
// Errors: those of Now.
func (g *Guard) Stamps(ctx context.Context, n int) ([]creto.Timestamp, error) {
	const op fault.Op = "consensus.Stamps"
	floor := g.floor()
	stamps, err := Stamps(ctx, g.clock, n)
	if err == nil && len(stamps) != n {
		err = fault.New(op, fault.ConsensusInternal, "%d stamps instead of %d", len(stamps), n)
	}
	if err == nil {
		err = g.admit(op, floor, stamps...)
	}
	if err != nil {
		return nil, err
	}
	return stamps, nil
}

// Register implements Clock. An event's stamp may be old.
func (g *Guard) Register(ctx context.Context, id EventID) (creto.Timestamp, error) {
	s, err := g.clock.Register(ctx, id)
	if err == nil {
		err = g.admit("consensus.Register", creto.Timestamp{}, s)
	}
	if err != nil {
		return creto.Timestamp{}, err
	}
	return s, nil
}

// OrderEvents implements Clock.
//
// Errors: besides the contract's, ConsensusOrderingConflict (Permanent) if the
// answer is not in order, or not of these events.
func (g *Guard) OrderEvents(ctx context.Context, ids []EventID) ([]Ordered, error) {
	const op fault.Op = "consensus.OrderEvents"
	distinct, err := Distinct(ids)
	if err != nil {
		return nil, err
	}
	events, err := g.clock.OrderEvents(ctx, distinct)
	if err != nil {
		return nil, err
	}
	if len(events) != len(distinct) {
		return nil, fault.New(op, fault.ConsensusOrderingConflict, "%d events instead of %d", len(events), len(distinct))
	}
	asked := make(map[EventID]bool, len(distinct))
	for _, id := range distinct {
		asked[id] = true
	}
	for i, e := range events {
		if !asked[e.ID] || i > 0 && creto.Order(events[i-1].Stamp, e.Stamp) >= 0 {
			return nil, fault.New(op, fault.ConsensusOrderingConflict, "the time service orders what was not asked, or not in order")
		}
		delete(asked, e.ID)
	}
	return events, nil
}

// Ping implements Clock.
func (g *Guard) Ping(ctx context.Context) error { return g.clock.Ping(ctx) }
