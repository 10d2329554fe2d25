package main

import (
	"context"
	"fmt"
	"slices"
)

const (
	flatRounds = 41
	flatChecks = 64 * settleEvery // in one turn
)

// benchFlat measures how a check depends on the number of policies, in turns: the rows
// of two sizes are else a minute apart, in which the machine itself may become a tenth
// slower.
func benchFlat(ctx context.Context, r *report, c *fleet, depth int) (err error) {
	type contestant struct {
		bench
		took []float64
	}
	all := make([]contestant, len(sizes))
	for i, n := range sizes {
		e := newEstate(n, depth, authzChains)
		h, err := c.checker(ctx, e, e.cedarText(""), true)
		if err != nil {
			return err
		}
		defer h.stop()
		all[i].bench = contest("flat/"+e.setting()+"/spread", creto, "", e.probes("spread"), h.session(ctx))
		all[i].n, all[i].rest, all[i].interval = flatChecks, h.settle, settleEvery
	}
	for range flatRounds {
		for i := range all {
			one, err := all[i].measure(ctx)
			if err != nil {
				return err
			}
			all[i].took = append(all[i].took, *one.P50)
		}
	}
	for i := range all {
		slices.Sort(all[i].took)
		r.add(row{
			Case: all[i].name, Who: creto, N: flatRounds * flatChecks, P50: ref(all[i].took[flatRounds/2]),
			Note: fmt.Sprintf("as session/spread, the sizes in turns; the median of %d turns; budget 1.3 times what 10 policies take: %.2f", flatRounds, all[i].took[flatRounds/2]/all[0].took[flatRounds/2]),
		})
	}
	return nil
}
