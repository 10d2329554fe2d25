package consensustest

import (
	"cmp"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"creto.dev"
)

// Call is one call of Clock.Now that returned a stamp. Calls that failed, or whose
// caller died, leave nothing to check: a stamp that nobody has may be missing.
type Call struct {
	Client int // 0, 1, 2…
	// Began and Ended are on one clock for all clients, in any unit. Two calls of
	// which one ends when the other begins are concurrent.
	Began, Ended int64
	Stamp        creto.Timestamp
}

// checkTimeout bounds CheckHistory. It needs milliseconds for 10,000 calls.
const checkTimeout = 2 * time.Minute

// CheckHistory returns porcupine.Ok if the calls are a history of one clock that
// keeps what Clock.Now promises: they can be put into an order in which each comes
// after all that had ended when it began, Logical increases, and Physical does not
// decrease. It returns porcupine.Illegal if they cannot.
func CheckHistory(calls []Call) porcupine.CheckResult {
	// A stamp's place among all is the only one that it can have. With that given
	// the checker need not try others, and is fast.
	sorted := slices.Clone(calls)
	slices.SortStableFunc(sorted, func(a, b Call) int { return cmp.Compare(a.Stamp.Logical, b.Stamp.Logical) })
	operations := make([]porcupine.Operation, len(sorted))
	for i, c := range sorted {
		operations[i] = porcupine.Operation{ClientId: c.Client, Input: i, Call: c.Began, Output: c.Stamp, Return: c.Ended}
	}
	return porcupine.CheckOperationsTimeout(oracle(), operations, checkTimeout)
}

// state is a timestamp oracle's: how many stamps it gave, and the newest.
type state struct {
	given int
	stamp creto.Timestamp
}

// oracle is the model of a clock.
func oracle() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return state{} },
		Step: func(before, place, stamp any) (bool, any) {
			was, ok := before.(state)
			next, isStamp := stamp.(creto.Timestamp)
			legal := ok && isStamp && place == was.given && next.Source == creto.SourceConsensus &&
				(was.given == 0 || next.Logical > was.stamp.Logical && next.Physical >= was.stamp.Physical)
			return legal, state{was.given + 1, next}
		},
	}
}
