package localaudit_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
)

// Whatever of the index is stored, is in memory, or was made again by another life,
// queries find the same: what a walk through all records finds.
func TestIndexBehind(t *testing.T) {
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(4, 2))
	var all []audit.Record
	begin := time.Now().Add(-time.Hour)
	o := open(t, dir, nil)
	for round := range 14 {
		rs := varied(100 + random.IntN(800))
		for i := range rs {
			n := len(all) + i
			rs[i].ID = creto.NewUUID()
			rs[i].Who = audittest.Record(creto.CallModel, random.IntN(60)).Who
			rs[i].Stamp = creto.Timestamp{Logical: uint64(n + 1), Physical: begin.Add(time.Duration(n) * time.Millisecond).UnixNano(), Source: creto.SourceConsensus, Node: "n"}
		}
		if err := errors.Join(append(o.log.LogBatch(t.Context(), rs), o.log.Flush(t.Context()))...); err != nil {
			t.Fatal(err)
		}
		all = append(all, rs...)
		switch round % 4 {
		case 1: // a life that is killed, and one that ends
			o = open(t, dir, nil)
		case 2:
			finish(t, o)
		case 3:
			finish(t, o)
			o = open(t, dir, nil)
		}
		for range 25 {
			hold(t, o, all, filter(random, all))
		}
	}
	if problems := fsck(t, o.db); len(problems) > 0 {
		t.Fatalf("Fsck of %d records: %+v", len(all), problems)
	}
	if len(all) < 5000 {
		t.Errorf("only %d records: the index of none was stored with a batch", len(all))
	}
}

// filter returns a random one.
func filter(random *rand.Rand, all []audit.Record) audit.Filter {
	one := all[random.IntN(len(all))]
	var f audit.Filter
	if random.IntN(2) == 0 {
		f.Actor = one.Who.String()
	}
	if random.IntN(3) == 0 {
		f.Human = one.OnBehalfOf.Name
	}
	if random.IntN(3) == 0 {
		f.Outcome = one.Outcome
	}
	if random.IntN(3) == 0 {
		f.Since = one.Stamp.Time()
	}
	if random.IntN(3) == 0 {
		f.Until = all[random.IntN(len(all))].Stamp.Time()
	}
	f.Limit = 1 + random.IntN(60)
	if f.Oldest = random.IntN(2) == 0; f.Oldest {
		f.From = random.Int64N(int64(len(all)))
	} else {
		f.Before = random.Int64N(int64(len(all)) + 1)
	}
	return f
}

// hold compares a page with what a walk finds.
func hold(t *testing.T, o opened, all []audit.Record, f audit.Filter) {
	t.Helper()
	var want []int64
	for i, r := range all {
		at := r.Stamp.Time()
		if (f.Actor == "" || r.Who.String() == f.Actor) && (f.Human == "" || r.OnBehalfOf.Name == f.Human) && (f.Outcome == "" || r.Outcome == f.Outcome) &&
			(f.Since.IsZero() || !at.Before(f.Since)) && (f.Until.IsZero() || at.Before(f.Until)) && (f.Oldest && int64(i) >= f.From || !f.Oldest && (f.Before == 0 || int64(i) < f.Before)) {
			want = append(want, int64(i))
		}
	}
	if !f.Oldest {
		slices.Reverse(want)
	}
	want = want[:min(len(want), f.Limit)]
	page, err := o.log.Query(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]int64, len(page))
	for i, e := range page {
		if got[i] = e.Index; e.Record.ID != all[e.Index].ID || e.Record.Why != all[e.Index].Why {
			t.Fatalf("record %d is another", e.Index)
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%+v of %d records finds %d: %v\nwant %d: %v", f, len(all), len(got), got, len(want), want)
	}
}
