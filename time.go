package creto

import (
	"cmp"
	"time"
)

// Source says who vouches for a timestamp.
type Source string

// The sources of timestamps.
const (
	// SourceConsensus marks a stamp whose Logical part is authoritative.
	SourceConsensus Source = "consensus"
	// SourceLocal marks a fallback stamp: order against others is uncertain.
	SourceLocal Source = "local"
)

// termShift splits Logical into term (above) and counter (below).
const termShift = 40

// Timestamp is a point in the order of events (R-CON-4, B-12, B-13). Two
// stamps of source consensus are ordered by Logical alone, so order never
// depends on clocks. The zero Timestamp is absent.
type Timestamp struct {
	// Logical is term<<40 | counter.
	Logical uint64 `cbor:"1,keyasint" json:"logical"`
	// Physical is Unix time in nanoseconds, for people.
	Physical int64 `cbor:"2,keyasint" json:"physical"`
	// Source says whether Logical is authoritative.
	Source Source `cbor:"3,keyasint" json:"source"`
	// Node names the node that made the stamp.
	Node string `cbor:"4,keyasint" json:"node"`
	// Uncertainty is how far Physical may be from what consensus would have
	// said, in nanoseconds: absent in a stamp of consensus, above 0 in a local
	// one, [UncertaintyUnknown] in one of a node that never reached consensus.
	Uncertainty int64 `cbor:"5,keyasint,omitempty" json:"uncertainty,omitempty"`
}

// UncertaintyUnknown is the Uncertainty of a local stamp that nothing bounds.
const UncertaintyUnknown = -1

// The largest term and counter that fit into Timestamp.Logical.
const (
	MaxTerm    = 1<<(64-termShift) - 1
	MaxCounter = 1<<termShift - 1
)

// LogicalOf joins a term of at most [MaxTerm] and a counter of at most
// [MaxCounter]. Whoever counts keeps to these: what is beyond is cut off.
func LogicalOf(term, counter uint64) uint64 { return term<<termShift | counter&MaxCounter }

// Term returns the term of the stamp's Logical part.
func (t Timestamp) Term() uint64 { return t.Logical >> termShift }

// IsZero reports whether the stamp is absent.
func (t Timestamp) IsZero() bool { return t == Timestamp{} }

// Time returns the physical part.
func (t Timestamp) Time() time.Time { return time.Unix(0, t.Physical).UTC() }

// String returns the physical time and the logical position.
func (t Timestamp) String() string {
	s := t.Time().Format("2006-01-02T15:04:05.000Z")
	if t.Source == SourceLocal {
		s += " (local)"
	}
	return s
}

// Order is a total order for sorting: negative if a sorts before b, 0 only if
// they are the same stamp. Logical comes first, then consensus before local,
// then Physical, Node and Uncertainty. It agrees with [HappenedBefore] wherever
// that is certain. A local stamp carries the last Logical that its node saw, so
// it sorts behind that one and before the next of consensus, which is a
// convention and no claim (B-12).
func Order(a, b Timestamp) int {
	return cmp.Or(
		cmp.Compare(a.Logical, b.Logical),
		cmp.Compare(a.Source, b.Source), // "consensus" < "local"
		cmp.Compare(a.Physical, b.Physical),
		cmp.Compare(a.Node, b.Node),
		cmp.Compare(a.Uncertainty, b.Uncertainty),
	)
}

// Answer is yes, no or uncertain.
type Answer uint8

// The answers of [HappenedBefore]. The zero value is Uncertain.
const (
	Uncertain Answer = iota
	No
	Yes
)

// HappenedBefore reports whether a came before b. It is uncertain as soon as a
// local stamp is involved, unless both are the same stamp.
func HappenedBefore(a, b Timestamp) Answer {
	switch {
	case a == b:
		return No
	case a.Source != SourceConsensus || b.Source != SourceConsensus:
		return Uncertain
	case a.Logical < b.Logical:
		return Yes
	}
	return No
}
