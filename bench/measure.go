package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// bench is one case to measure.
type bench struct {
	name string
	who  string
	note string
	// n is how many operations are timed; a tenth more warm up.
	n  int
	do func() error
	// rest runs after each interval operations and is not measured: whatever
	// else must be done now and then.
	rest     func() error
	interval int
}

// batchBelow is from where on single operations are timed. The clock itself
// takes some 25 to 50 ns, which is in every sample: of what is faster than this, one
// sample is the mean of batchSize operations.
const (
	batchBelow = 500 * time.Nanosecond
	batchSize  = 32
)

// measure runs b: first to warm up, then for time and CPU, then for
// allocations, so that taking samples is in neither.
func (b bench) measure(ctx context.Context) (row, error) {
	warm := max(b.n/10, 1)
	begin := time.Now()
	if err := b.loop(ctx, warm); err != nil {
		return row{}, err
	}
	batch := 1
	if time.Since(begin)/time.Duration(warm) < batchBelow {
		batch = batchSize
	}
	samples := make([]float64, 0, b.n/batch+1)
	var elapsed time.Duration
	var cpu int64
	count := 0
	for left := b.n; left > 0; {
		chunk := left
		if b.interval > 0 {
			chunk = min(left, b.interval)
		}
		busy, started := cpuTime(), time.Now()
		for i := 0; i < chunk; i += batch {
			calls := min(batch, chunk-i)
			t := time.Now()
			for range calls {
				if err := b.do(); err != nil {
					return row{}, fmt.Errorf("%s: %w", b.name, err)
				}
			}
			samples = append(samples, float64(time.Since(t))/float64(calls))
			count += calls
		}
		elapsed += time.Since(started)
		cpu += cpuTime() - busy
		left -= chunk
		if err := b.pause(ctx); err != nil {
			return row{}, err
		}
	}
	slices.Sort(samples)
	r := row{Case: b.name, Who: b.who, N: count, Note: b.note, P50: percentile(samples, 0.5), P99: percentile(samples, 0.99)}
	if batch == 1 {
		r.P999 = percentile(samples, 0.999)
	} else {
		// A batch's mean hides its slowest: no claim beyond the 99th.
		r.Note = joined(r.Note, fmt.Sprintf("a sample is the mean of %d operations", batch))
	}
	r.PerSecond = ref(float64(count) / elapsed.Seconds())
	r.CPU = ref(float64(cpu) / float64(count))
	allocs, err := b.allocs(ctx)
	r.Allocs = ref(allocs)
	return r, err
}

// allocs counts the allocations of an operation.
func (b bench) allocs(ctx context.Context) (float64, error) {
	n := min(b.n, 1000)
	if b.interval > 0 {
		n = min(n, b.interval)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		if err := b.do(); err != nil {
			return 0, err
		}
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(n), b.pause(ctx)
}

func (b bench) loop(ctx context.Context, n int) error {
	for i := range n {
		if err := b.do(); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		if b.interval > 0 && (i+1)%b.interval == 0 {
			if err := b.pause(ctx); err != nil {
				return err
			}
		}
	}
	return b.pause(ctx)
}

func (b bench) pause(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if b.rest == nil {
		return nil
	}
	return b.rest()
}

// cpuTime is the CPU time of the whole process so far, in nanoseconds.
func cpuTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// clockOverhead is what one reading of the clock adds to a sample.
func clockOverhead() time.Duration {
	samples := make([]time.Duration, 10_000)
	for i := range samples {
		t := time.Now()
		samples[i] = time.Since(t)
	}
	slices.Sort(samples)
	return samples[len(samples)/2]
}

func ref(x float64) *float64 { return &x }

func joined(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
