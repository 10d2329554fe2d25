package health

import (
	"testing"
	"testing/synctest"
	"time"
)

// A quantile is that of the last minute, within an eighth.
func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Latency
		if d, n := l.Quantile(0.99); d != 0 || n != 0 {
			t.Errorf("Quantile of nothing = %v of %d", d, n)
		}
		record := func(d time.Duration, times int) {
			for range times {
				l.End(time.Now().Add(-d))
			}
		}
		record(time.Millisecond, 1000)
		if d, n := l.Quantile(0.99); n != 1000 || d < time.Millisecond || d > time.Millisecond*9/8 {
			t.Errorf("Quantile = %v of %d, want 1ms of 1000", d, n)
		}
		time.Sleep(75 * time.Second)
		record(200*time.Nanosecond, 990)
		record(50*time.Microsecond, 9)
		if d, n := l.Quantile(0.99); n != 999 || d < 200 || d > 225 {
			t.Errorf("Quantile a minute later = %v of %d, want 200ns of 999", d, n)
		}
		record(50*time.Microsecond, 9)
		if d, _ := l.Quantile(0.99); d < 50*time.Microsecond || d > 57*time.Microsecond {
			t.Errorf("Quantile with more than 1%% slow = %v, want 50µs", d)
		}
	})
	for d := time.Duration(0); d < 1<<20; d++ {
		if b := bucketOf(d); limitOf(b) < d || b > 0 && limitOf(b-1) >= d {
			t.Fatalf("%d ns are in bucket %d, which ends at %d", d, b, limitOf(b))
		}
	}
	if b := bucketOf(1<<63 - 1); b >= latencyBuckets {
		t.Errorf("the longest duration is in bucket %d", b)
	}
	synctest.Test(t, func(t *testing.T) { // many count as they are, and the next window begins anew
		var l Latency
		began := time.Now()
		for range manySamples {
			l.End(began)
		}
		if picked(&l) > 200 {
			t.Errorf("where there are many, %d of 64,000 are measured, want about 62", picked(&l))
		}
		for range manySamples / fewWeight {
			l.End(began.Add(-time.Millisecond))
		}
		if d, n := l.Quantile(0.6); n != 2*manySamples || d < time.Millisecond {
			t.Errorf("Quantile = %v of %d, want 1ms of %d", d, n, 2*manySamples)
		}
		time.Sleep(2 * latencySpan)
		l.End(time.Now())
		if n := picked(&l); n < 500 {
			t.Errorf("in the next window %d of 64,000 are measured, want about 1,000", n)
		}
	})
	var l Latency
	if n := picked(&l); n < 500 || n > 2000 {
		t.Errorf("%d of 64000 calls are measured, want about 1000", n)
	}
}

func picked(l *Latency) (n int) {
	for range 64_000 {
		if _, ok := l.Start(); ok {
			n++
		}
	}
	return n
}
