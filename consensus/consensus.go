// Package consensus is the contract for ordered time: every record, transition
// and bill takes its place in one order from here (R-CON-1…17).
//
// A [Clock] is one source of stamps, however many nodes ask it and however often
// it is started again. Its order is that of Timestamp.Logical, a term and a
// counter, and never depends on anybody's clock; Timestamp.Physical is what time
// it was, for people and for expiries.
package consensus

import (
	"context"
	"slices"

	"creto.dev"
	"creto.dev/fault"
)

// EventID names an event by its digest (R-GAP-3).
type EventID = creto.Digest

// Ordered is an event with its place in the order.
type Ordered struct {
	ID    EventID
	Stamp creto.Timestamp
}

// MaxEvents is how many events one call of Clock.OrderEvents takes.
const MaxEvents = 1000

// Clock gives out timestamps. Safe for concurrent use.
//
// Errors of every method: ConsensusUnavailable (Degraded), ConsensusTimeout
// (Transient), and Canceled (Permanent) or DeadlineExceeded (Transient) if ctx
// ended while it waited.
type Clock interface {
	// Now returns a stamp of source consensus that names who made it. Its
	// Logical is greater than that of every stamp that this source returned to
	// anybody before the call began, in this life or an earlier one, and its
	// Physical is not less. No stamp is returned twice.
	Now(ctx context.Context) (creto.Timestamp, error)

	// Register gives an event its place. It is idempotent: an event keeps its
	// first stamp, whoever registers it again, in whatever life.
	Register(ctx context.Context, id EventID) (creto.Timestamp, error)

	// OrderEvents returns each of the events once, sorted by their stamps: the
	// same answer for the same events, in whatever order and however often they
	// are named. It changes nothing.
	//
	// Errors: ConsensusOrderingConflict (Permanent) if one was never
	// registered; InvalidArgument (Permanent) for more than MaxEvents.
	OrderEvents(ctx context.Context, ids []EventID) ([]Ordered, error)

	// Ping reports whether the clock can order events now. It reads and takes no
	// stamp (R-CON-17, B-54).
	Ping(ctx context.Context) error
}

// Batcher is a clock that gives several stamps for one question, as the client of
// a remote one does.
type Batcher interface {
	Clock

	// Stamps returns n stamps, in order, each of which keeps what Now promises.
	//
	// Errors: InvalidArgument (Permanent) if n is outside 1 to MaxBatch.
	Stamps(ctx context.Context, n int) ([]creto.Timestamp, error)
}

// MaxBatch is how many stamps may be asked for at once.
const MaxBatch = 1024

// Stamps takes n stamps from c, with one question where c is a [Batcher].
//
// Errors: InvalidArgument (Permanent) if n is outside 1 to MaxBatch; those of
// Clock.Now.
func Stamps(ctx context.Context, c Clock, n int) ([]creto.Timestamp, error) {
	if err := CheckBatch(n); err != nil {
		return nil, err
	}
	if b, ok := c.(Batcher); ok {
		return b.Stamps(ctx, n)
	}
	stamps := make([]creto.Timestamp, n)
	for i := range stamps {
		var err error
		if stamps[i], err = c.Now(ctx); err != nil {
			return nil, err
		}
	}
	return stamps, nil
}

// CheckBatch is what every Batcher asks of n.
//
// Errors: InvalidArgument (Permanent).
func CheckBatch(n int) error {
	if n < 1 || n > MaxBatch {
		return fault.New("consensus.Stamps", fault.InvalidArgument, "%d stamps at once; 1 to %d are given", n, MaxBatch)
	}
	return nil
}

// Distinct returns the events that ids name, each once, and checks how many it
// was asked for. It is how implementations begin OrderEvents.
//
// Errors: InvalidArgument (Permanent) for more than MaxEvents.
func Distinct(ids []EventID) ([]EventID, error) {
	if len(ids) > MaxEvents {
		return nil, fault.New("consensus.OrderEvents", fault.InvalidArgument, "%d events at once; at most %d are ordered", len(ids), MaxEvents)
	}
	distinct := slices.Clone(ids)
	slices.SortFunc(distinct, func(a, b EventID) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(distinct), nil
}

// Sort brings events into the order of their stamps. It is how implementations
// end OrderEvents.
func Sort(events []Ordered) {
	slices.SortFunc(events, func(a, b Ordered) int { return creto.Order(a.Stamp, b.Stamp) })
}

// Unregistered is the fault for an event that has no place.
func Unregistered(op fault.Op, id EventID) error {
	return fault.New(op, fault.ConsensusOrderingConflict, "the event %s was never registered", id)
}
