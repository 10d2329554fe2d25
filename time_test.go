package creto_test

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"

	"creto.dev"
	"creto.dev/internal/canon"
)

// someStamp draws from few values, so that ties are common.
func someStamp(r *rand.Rand) creto.Timestamp {
	s := creto.Timestamp{
		Logical: creto.LogicalOf(r.Uint64N(3), r.Uint64N(3)), Physical: r.Int64N(3), Source: creto.SourceConsensus, Node: string(rune('a' + r.IntN(2))),
	}
	if r.IntN(2) == 0 {
		s.Source, s.Uncertainty = creto.SourceLocal, []int64{creto.UncertaintyUnknown, 1, 2}[r.IntN(3)]
	}
	return s
}

// Order is a total order: exactly one of before, same and after, and transitive.
func TestOrderIsTotal(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		a, b, c := someStamp(r), someStamp(r), someStamp(r)
		if creto.Order(a, b) != -creto.Order(b, a) {
			t.Fatalf("Order(%+v, %+v) = %d and the other way round %d", a, b, creto.Order(a, b), creto.Order(b, a))
		}
		if (creto.Order(a, b) == 0) != (a == b) {
			t.Fatalf("Order(%+v, %+v) = %d", a, b, creto.Order(a, b))
		}
		if creto.Order(a, b) <= 0 && creto.Order(b, c) <= 0 && creto.Order(a, c) > 0 {
			t.Fatalf("Order is not transitive on %+v, %+v, %+v", a, b, c)
		}
	}
}

// Where HappenedBefore is certain, Order agrees; and it is certain for stamps of
// consensus only (B-12, B-13).
func TestHappenedBefore(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 200_000 {
		a, b := someStamp(r), someStamp(r)
		got := creto.HappenedBefore(a, b)
		local := a.Source == creto.SourceLocal || b.Source == creto.SourceLocal
		switch {
		case a == b && got != creto.No:
			t.Fatalf("HappenedBefore(%+v, itself) = %v, want No", a, got)
		case a != b && local != (got == creto.Uncertain):
			t.Fatalf("HappenedBefore(%+v, %+v) = %v", a, b, got)
		case got == creto.Yes && (creto.Order(a, b) >= 0 || creto.HappenedBefore(b, a) != creto.No):
			t.Fatalf("HappenedBefore(%+v, %+v) = Yes, Order = %d and the other way round %v", a, b, creto.Order(a, b), creto.HappenedBefore(b, a))
		}
	}
}

// Order agrees with causality: nodes that stamp by one counter and fall back to
// local stamps behind the last one that they saw never have an effect sort
// before its cause on the same node.
func TestOrderAgreesWithCausality(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 5))
		var counter uint64
		type node struct {
			logical  uint64
			physical int64
			history  []creto.Timestamp
		}
		nodes := [3]node{}
		for range 200 {
			i := r.IntN(len(nodes))
			n := &nodes[i]
			stamp := creto.Timestamp{Source: creto.SourceConsensus, Node: "c"}
			if r.IntN(4) > 0 {
				counter++
				stamp.Logical, stamp.Physical = creto.LogicalOf(1, counter), r.Int64N(10) // the physical part may be anything
				n.logical = stamp.Logical
				n.physical = stamp.Physical
			} else {
				n.physical++
				stamp = creto.Timestamp{Logical: n.logical, Physical: n.physical, Source: creto.SourceLocal, Node: string(rune('a' + i)), Uncertainty: 1}
			}
			n.history = append(n.history, stamp)
		}
		for i, n := range nodes {
			if !slices.IsSortedFunc(n.history, creto.Order) {
				t.Fatalf("seed %d: the history of node %d is not in order", seed, i)
			}
		}
	}
}

func TestLogical(t *testing.T) {
	l := creto.LogicalOf(creto.MaxTerm, creto.MaxCounter)
	if l != 1<<64-1 || (creto.Timestamp{Logical: l}).Term() != creto.MaxTerm {
		t.Errorf("LogicalOf(MaxTerm, MaxCounter) = %x", l)
	}
	if got := creto.LogicalOf(1, creto.MaxCounter+1); (creto.Timestamp{Logical: got}).Term() != 1 {
		t.Errorf("a counter that overflows changes the term: %x", got)
	}
}

// A stamp of consensus is encoded as it was before there was an uncertainty.
func TestTimestampEncoding(t *testing.T) {
	s := creto.Timestamp{Logical: 1, Physical: 2, Source: creto.SourceConsensus, Node: "n"}
	for _, want := range []struct {
		stamp      creto.Timestamp
		keys       byte
		text, tell string
	}{
		{s, 0xa4, `{"logical":1,"physical":2,"source":"consensus","node":"n"}`, "1970-01-01T00:00:00.000Z"},
		{creto.Timestamp{Logical: 1, Physical: 2, Source: creto.SourceLocal, Node: "n", Uncertainty: 7}, 0xa5, `{"logical":1,"physical":2,"source":"local","node":"n","uncertainty":7}`, "1970-01-01T00:00:00.000Z (local)"},
	} {
		text, err := json.Marshal(want.stamp)
		if err != nil || string(text) != want.text {
			t.Errorf("Marshal = %s, %v; want %s", text, err, want.text)
		}
		raw, err := canon.Marshal(want.stamp)
		if err != nil || raw[0] != want.keys {
			t.Errorf("canonical encoding = %x, %v; want a map of %d", raw, err, want.keys&0x1f)
		}
		var back creto.Timestamp
		if err := canon.Unmarshal(raw, &back); err != nil || back != want.stamp {
			t.Errorf("decoded %+v, %v; want %+v", back, err, want.stamp)
		}
		if want.stamp.String() != want.tell {
			t.Errorf("String = %s, want %s", want.stamp, want.tell)
		}
	}
}
