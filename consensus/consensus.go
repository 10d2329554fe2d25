// Package consensus is the contract for ordered time: every record, transition
// and bill takes its place in one order from here (R-CON-1…17).
package consensus

import (
	"context"

	"creto.dev"
)

// EventID names an event by its digest (R-GAP-3).
type EventID = creto.Digest

// Ordered is an event with its place in the order.
type Ordered struct {
	ID    EventID
	Stamp creto.Timestamp
}

// Clock gives out timestamps. Safe for concurrent use.
//
// Errors of every method: ConsensusUnavailable (Degraded), ConsensusTimeout
// (Transient).
type Clock interface {
	// Now returns a stamp that is greater, in creto.Order, than every stamp
	// that this clock or an earlier life of it has returned.
	Now(ctx context.Context) (creto.Timestamp, error)

	// Register gives an event its place. It is idempotent: an event keeps its
	// first stamp.
	Register(ctx context.Context, id EventID) (creto.Timestamp, error)

	// OrderEvents returns the events sorted by their stamps.
	//
	// Errors: ConsensusOrderingConflict (Permanent) if one was never
	// registered.
	OrderEvents(ctx context.Context, ids []EventID) ([]Ordered, error)

	// Ping reports whether the clock can order events now. It takes no stamp
	// (B-54).
	Ping(ctx context.Context) error
}
