package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"creto.dev/authz"
)

const (
	// coreRounds are how often the cores take turns, of coreTurn each: short ones, of
	// which the median counts, as the machine has other things to do now and then.
	coreRounds = 21
	coreTurn   = 50 * time.Millisecond
	// coreSteps is how many operations are done between two looks at the clock.
	coreSteps = 1024
)

// benchCores measures how checks scale, and beside them, in the same turns, what
// shares nothing: what two cores of this machine are worth.
func benchCores(ctx context.Context, r *report, e *estate, h *checker) error {
	if e.depth == 0 {
		return nil
	}
	all := slices.Compact([]int{1, min(2, runtime.GOMAXPROCS(0))})
	// Each goroutine has requests of its own, as callers do.
	requests := make([][]probe, slices.Max(all))
	for core := range requests {
		requests[core] = newEstate(len(e.rules), e.depth, e.chains).probes("spread")
	}
	checks := func(core, from int) error {
		probes := requests[core]
		for i := range coreSteps {
			p := &probes[(from+i+core*len(probes)/2)%len(probes)]
			if d, err := h.authorizer.Check(ctx, h.sessions[p.chain], p.request); err != nil || d.Kind != authz.Allow {
				return errors.Join(err, errors.New("denied"))
			}
		}
		return nil
	}
	contestants := []struct {
		name, note string
		steps      func(core, from int) error
		rows       []coreRow
	}{
		{"spread/quota=off", "as many goroutines, all checking, each requests of its own, for 50 ms; the median of 21 turns; budget 1.9 times as many on 2", checks, nil},
		{"alone", "what the machine gives: in the same turns, arithmetic that shares nothing and touches no memory", arithmetic, nil},
	}
	for i := range contestants {
		contestants[i].rows = make([]coreRow, len(all))
	}
	for range coreRounds {
		for i := range contestants {
			for j, cores := range all {
				if err := contestants[i].rows[j].turn(cores, contestants[i].steps); err != nil {
					return err
				}
			}
		}
	}
	for _, c := range contestants {
		for j, cores := range all {
			one := &c.rows[j]
			slices.Sort(one.perSecond)
			r.add(row{
				Case: fmt.Sprintf("cores=%d/%s/%s", cores, e.setting(), c.name), Who: creto, N: one.n,
				PerSecond: ref(one.perSecond[coreRounds/2]), CPU: ref(float64(one.busy) / float64(one.n)), Note: c.note,
			})
		}
	}
	return nil
}

// coreRow is what was measured on so many cores.
type coreRow struct {
	perSecond []float64
	n         int
	busy      int64 // CPU time
}

// turn has so many goroutines work until its time is over, all until then: were each
// to do as much as the others, the last would work alone.
func (c *coreRow) turn(cores int, steps func(core, from int) error) error {
	var group sync.WaitGroup
	errs, done := make([]error, cores), make([]int, cores)
	before, begin := cpuTime(), time.Now()
	for core := range cores {
		group.Go(func() {
			var err error
			n := 0
			for err == nil && time.Since(begin) < coreTurn {
				err = steps(core, n)
				n += coreSteps
			}
			done[core], errs[core] = n, err
		})
	}
	group.Wait()
	elapsed, n := time.Since(begin), 0
	for _, some := range done {
		n += some
	}
	c.perSecond, c.n, c.busy = append(c.perSecond, float64(n)/elapsed.Seconds()), c.n+n, c.busy+cpuTime()-before
	return errors.Join(errs...)
}

// arithmetic takes about as long as checks do.
func arithmetic(core, from int) error {
	x := uint64(core+from)<<1 | 1
	for range coreSteps * 32 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	if x == 0 { // it never is
		return errors.New("there is no randomness in nothing")
	}
	return nil
}
