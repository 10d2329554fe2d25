package health

import (
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Latency estimates how long a frequent operation takes, over the last minute,
// from one in 64 of its calls: a clock costs more than the operations it is
// made for. Where there are many it is one in 1,024, which counts for 16, as cores
// that count the same wait for each other. The zero Latency is ready. Safe for
// concurrent use.
type Latency struct {
	windows [latencyWindows]latencyWindow
	many    atomic.Bool // there were many in the window that is being filled
}

const (
	latencySpan    = 10 * time.Second
	latencyWindows = 7 // those of the last minute, and the one being filled
	// sampleMask picks one call in 64, and fewMask one in 1,024, from the call on that
	// is the manySamples-th of a window to be picked.
	sampleMask  = 63
	fewMask     = 1023
	fewWeight   = (fewMask + 1) / (sampleMask + 1)
	manySamples = 2048
	// stepBits is how finely each power of two is divided: a quantile is at most
	// an eighth too high.
	stepBits       = 3
	latencySteps   = 1 << stepBits
	latencyBuckets = 64 * latencySteps
)

// latencyWindow counts the calls of ten seconds by how long they took.
type latencyWindow struct {
	number  atomic.Int64 // of the window, since the Unix epoch
	samples atomic.Uint32
	buckets [latencyBuckets]atomic.Uint32
}

// Start returns the time if this call is to be measured, and else false.
func (l *Latency) Start() (time.Time, bool) {
	mask := uint32(sampleMask)
	if l.many.Load() {
		mask = fewMask
	}
	if rand.Uint32()&mask != 0 {
		return time.Time{}, false
	}
	return time.Now(), true
}

// End counts a call that began at the time that Start returned.
func (l *Latency) End(began time.Time) {
	now := time.Now()
	number := now.UnixNano() / int64(latencySpan)
	w := &l.windows[number%latencyWindows]
	if old := w.number.Load(); old != number && w.number.CompareAndSwap(old, number) {
		for i := range w.buckets {
			w.buckets[i].Store(0)
		}
		w.samples.Store(0)
		l.many.Store(false)
	}
	weight := uint32(1)
	if l.many.Load() {
		weight = fewWeight
	} else if w.samples.Add(1) == manySamples {
		l.many.Store(true)
	}
	w.buckets[bucketOf(now.Sub(began))].Add(weight)
}

// bucketOf returns the bucket of a duration.
func bucketOf(d time.Duration) int {
	n := uint64(max(d, 0))
	if n < latencySteps {
		return int(n)
	}
	shift := bits.Len64(n) - stepBits - 1
	return (shift+1)<<stepBits + int(n>>shift)&(latencySteps-1)
}

// limitOf returns the longest duration of a bucket.
func limitOf(bucket int) time.Duration {
	if bucket < latencySteps {
		return time.Duration(bucket)
	}
	shift := bucket>>stepBits - 1
	return time.Duration(1)<<shift*time.Duration(latencySteps+bucket&(latencySteps-1)+1) - 1
}

// Quantile returns what the given share of the last minute's calls stayed
// within, such as 0.99, and how many of them were measured, or stood for.
func (l *Latency) Quantile(share float64) (time.Duration, int) {
	newest := time.Now().UnixNano() / int64(latencySpan)
	var counts [latencyBuckets]int
	total := 0
	for i := range l.windows {
		w := &l.windows[i]
		if age := newest - w.number.Load(); age < 0 || age >= latencyWindows {
			continue
		}
		for b := range w.buckets {
			n := int(w.buckets[b].Load())
			counts[b] += n
			total += n
		}
	}
	rest := total - int(share*float64(total))
	for b := latencyBuckets - 1; b > 0; b-- {
		rest -= counts[b]
		if rest < 0 {
			return limitOf(b), total
		}
	}
	return 0, total
}
