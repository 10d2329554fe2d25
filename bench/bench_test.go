package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPercentile(t *testing.T) {
	count := func(n int) []float64 {
		var s []float64
		for i := range n {
			s = append(s, float64(i+1))
		}
		return s
	}
	for _, test := range []struct {
		name    string
		samples []float64
		q       float64
		want    *float64
	}{
		{"of nothing", nil, 0.5, nil},
		{"of one", count(1), 0.5, ref(1)},
		{"the middle of ten", count(10), 0.5, ref(5)},
		{"the middle of eleven", count(11), 0.5, ref(6)},
		{"99 of 100", count(100), 0.99, ref(99)},
		{"99 of 1,000", count(1000), 0.99, ref(990)},
		{"99.9 of 1,000", count(1000), 0.999, ref(999)},
		{"all", count(10), 1, ref(10)},
		{"99 of 50 would be the maximum", count(50), 0.99, nil},
		{"99.9 of 999 would be the maximum", count(999), 0.999, nil},
		{"of what is not sorted", []float64{2, 1}, 0.5, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, percentile(test.samples, test.q)); diff != "" {
				t.Errorf("percentile(%v) (-want +got):\n%s", test.q, diff)
			}
		})
	}
}

// What was not measured is absent, and zero is not absent.
func TestForm(t *testing.T) {
	r := &report{
		Subject: "gate", Commit: "c", CPU: "p", Cores: 2, Go: "go1", Started: time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC),
		Rows: []row{{Case: "a", Who: creto, N: 3, P50: ref(1.5), Allocs: ref(0)}, {Case: "a", Who: "peer", N: 1}},
	}
	file := filepath.Join(t.TempDir(), "deep", "gate.json")
	if err := r.write(file); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"subject": "gate", "commit": "c", "cpu": "p", "cores": 2.0, "go": "go1", "started": "2026-11-22T09:00:00Z",
		"rows": []any{
			map[string]any{"case": "a", "who": "creto", "n": 3.0, "p50_ns": 1.5, "allocs": 0.0},
			map[string]any{"case": "a", "who": "peer", "n": 1.0},
		},
	}
	if diff := cmp.Diff(any(want), got); diff != "" {
		t.Errorf("the file (-want +got):\n%s", diff)
	}
	var table bytes.Buffer
	if err := r.print(&table); err != nil || strings.Count(table.String(), "\n") != 5 {
		t.Errorf("the table, %v:\n%s", err, table.String())
	}
}

func TestMeasure(t *testing.T) {
	calls, rests := 0, 0
	b := bench{name: "x", who: creto, n: 1000, interval: 100, do: func() error { calls++; return nil }, rest: func() error { rests++; return nil }}
	r, err := b.measure(t.Context())
	if err != nil || r.N != 1000 || r.P50 == nil || r.P999 != nil || *r.PerSecond <= 0 || *r.Allocs > 0.5 || !strings.Contains(r.Note, "mean of 32") {
		t.Errorf("measure = %+v, %v", r, err)
	}
	if calls != 100+1000+100 || rests < 10 {
		t.Errorf("%d calls and %d rests", calls, rests)
	}
	slow := bench{name: "y", who: creto, n: 20, do: func() error { time.Sleep(2 * time.Millisecond); _ = make([]byte, 1<<16); return nil }}
	if r, err := slow.measure(t.Context()); err != nil || *r.P50 < 2e6 || r.P99 != nil || r.Note != "" || *r.PerSecond > 500 {
		t.Errorf("measure = %+v, %v; want single operations of 2 ms", r, err)
	}
	broken := errors.New("broken")
	b.do = func() error { return broken }
	if _, err := b.measure(t.Context()); !errors.Is(err, broken) {
		t.Errorf("measure of what fails = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := slow.measure(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("measure after the end = %v", err)
	}
}

func TestSpan(t *testing.T) {
	for want, ns := range map[string]*float64{"-": nil, "0ns": ref(0), "9999ns": ref(9999), "10.0µs": ref(10_000), "9999.9µs": ref(9_999_900), "10.0ms": ref(10e6)} {
		if got := span(ns); got != want {
			t.Errorf("span = %q, want %q", got, want)
		}
	}
}

func TestCommandLine(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-list"}, &out); err != nil || !strings.HasPrefix(out.String(), "identity ") || !strings.Contains(out.String(), "\ngate ") {
		t.Errorf("-list = %q, %v", out.String(), err)
	}
	for _, args := range [][]string{{"-subject", "nonsense"}, {"gate"}} {
		if err := run(t.Context(), args, &out); err == nil {
			t.Errorf("run %q = nil, want an error", args)
		}
	}
}

// The parts of the gate's benchmark work: each once, in a small house.
func TestHouse(t *testing.T) {
	h, err := build(t.Context(), 10, 3, true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := h.gate.Do(t.Context(), h.caller, allowed(), noop); err != nil {
		t.Errorf("allowed: %v", err)
	}
	if _, err := h.gate.Do(t.Context(), h.caller, refused(), noop); err == nil {
		t.Error("refused: it was allowed")
	}
	peer, err := cedarPeer("x", h.policies, 3, allowed())
	if err != nil || peer.do() != nil {
		t.Errorf("cedar-go: %v", err)
	}
	if err := h.drain(t.Context()); err != nil {
		t.Error(err)
	}
}

// The contestants of authz answer alike, and each probe is allowed.
func TestAgree(t *testing.T) {
	f, err := openFleet(t.Context(), 3, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.house.close(); err != nil {
			t.Error(err)
		}
	}()
	e := newEstate(100, 3, 8)
	h, err := f.checker(t.Context(), e, e.cedarText(""), true)
	if err != nil {
		t.Fatal(err)
	}
	defer h.stop()
	peers, err := peersOf(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if err := agree(e, append([]contestant{{who: creto, do: h.session(t.Context())}}, peers...)); err != nil {
		t.Error(err)
	}
	if err := h.settle(); err != nil {
		t.Error(err)
	}
	for _, p := range e.probes("hot") {
		if ok, err := h.strings(t.Context())(p); err != nil || !ok {
			t.Errorf("%+v is denied: %v", p, err)
		}
	}
}
