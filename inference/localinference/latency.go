package localinference

import (
	"slices"
	"sync"
	"time"
)

const (
	// windowSamples is how many answers a percentile is of at most, and floorSamples
	// how many it needs: the 95th of 20 is the slowest but one.
	windowSamples = 100
	floorSamples  = 20
	// windowAge is how old they may be: who was slow is tried again.
	windowAge = 5 * time.Minute
	// windowFresh is how long a percentile is used again.
	windowFresh = 100 * time.Millisecond
	// maxSeries bounds what is kept: names of models come from requests.
	maxSeries = 1024
)

// series are answers that may be compared: those of a stream are its first pieces.
type series struct {
	model    string
	streamed bool
}

// latencies are how long a provider's answers took. Safe for concurrent use.
type latencies struct {
	mu sync.Mutex // guards of
	of map[series]*window
}

// window is a ring of the last answers.
type window struct {
	took [windowSamples]time.Duration
	at   [windowSamples]time.Time
	next int
	full bool
	// p95 is as of asOf.
	p95  time.Duration
	asOf time.Time
}

// add notes an answer.
func (l *latencies) add(s series, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.of[s]
	if w == nil {
		if len(l.of) >= maxSeries {
			clear(l.of)
		}
		w = new(window)
		l.of[s] = w
	}
	w.took[w.next], w.at[w.next] = took, time.Now()
	w.next = (w.next + 1) % windowSamples
	w.full = w.full || w.next == 0
}

// p95 returns the 95th percentile; ok is false while there are too few answers.
func (l *latencies) p95(s series) (p time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.of[s]
	if w == nil {
		return 0, false
	}
	now := time.Now()
	if now.Sub(w.asOf) < windowFresh {
		return w.p95, true
	}
	n := w.next
	if w.full {
		n = windowSamples
	}
	var fresh [windowSamples]time.Duration
	kept := 0
	for i := range n {
		if now.Sub(w.at[i]) <= windowAge {
			fresh[kept] = w.took[i]
			kept++
		}
	}
	if kept < floorSamples {
		return 0, false
	}
	slices.Sort(fresh[:kept])
	w.p95, w.asOf = fresh[(kept*95+99)/100-1], now
	return w.p95, true
}
