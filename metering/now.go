package metering

import (
	"context"
	"sync/atomic"
	"time"

	"creto.dev/consensus"
	"creto.dev/fault"
)

const (
	// tick is how old a reading of the clock may be, as far as the scheduler
	// keeps to it. What is late is the end of a window, never early.
	tick = time.Millisecond
	// askTimeout is how long the clock may take to answer; meanwhile time stands
	// still for who asks, and afterwards they ask themselves.
	askTimeout = 5 * time.Millisecond
	// idleTicks is how many ticks in which nobody asks for the time end the
	// ticking, and wakeAsks how many questions to the clock begin it.
	idleTicks = 3
	wakeAsks  = 8
)

// ticking is the clock's time to within a tick, for who asks often: a stamp costs
// as much as the rest of a check. While run runs and the time is asked for more
// than once a tick, it is read once a tick; otherwise, and whenever the clock
// cannot tell, each question goes to the clock. It never goes ahead of it.
type ticking struct {
	clock consensus.Clock
	wake  chan struct{}
	asks  atomic.Uint32 // of the clock itself

	_     [64]byte // what follows is read by every check, and written once a tick
	now   atomic.Int64
	asked atomic.Bool // since the last tick
	_     [48]byte
}

// read returns the time in Unix nanoseconds.
//
// Errors: those of consensus.Clock.Now.
func (t *ticking) read(ctx context.Context) (int64, error) {
	if now := t.now.Load(); now != 0 {
		if !t.asked.Load() {
			t.asked.Store(true)
		}
		return now, nil
	}
	return t.ask(ctx)
}

func (t *ticking) ask(ctx context.Context) (int64, error) {
	stamp, err := t.clock.Now(ctx)
	if err != nil {
		return 0, fault.Wrap("metering.now", err)
	}
	if t.asks.Add(1)%wakeAsks == 0 {
		select {
		case t.wake <- struct{}{}:
		default: // it has been asked
		}
	}
	return stamp.Physical, nil
}

// run ticks while that is worth it, until ctx ends.
func (t *ticking) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
			t.tick(ctx)
		}
	}
}

// tick reads the clock once a tick, until nobody asks for the time any more or the
// clock cannot tell it.
func (t *ticking) tick(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	defer t.now.Store(0)
	for idle := 0; idle < idleTicks; {
		soon, cancel := context.WithTimeout(ctx, askTimeout)
		stamp, err := t.clock.Now(soon)
		cancel()
		if err != nil {
			return
		}
		t.now.Store(stamp.Physical)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		idle++
		if t.asked.Swap(false) {
			idle = 0
		}
	}
}
