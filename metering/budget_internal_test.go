package metering

import (
	"sync"
	"testing"
	"time"
)

// Of those who found a window over at once, one makes the next.
func TestOneNextWindow(t *testing.T) {
	b := &budget{length: time.Hour, amount: 3}
	b.current.Store(newWindow(0, int64(time.Hour), 3, 3))
	b.mu.Lock()
	var group sync.WaitGroup
	windows := make([]*window, 8)
	for i := range windows {
		group.Go(func() { windows[i] = b.at(int64(time.Hour)) })
	}
	time.Sleep(20 * time.Millisecond) // they have seen that it is over, and wait
	b.mu.Unlock()
	group.Wait()
	for _, w := range windows {
		if w != windows[0] || w.start != int64(time.Hour) {
			t.Fatalf("there are several windows, or the wrong one: %v", windows)
		}
	}
	if b.at(0) != windows[0] {
		t.Error("a clock that went back finds another window")
	}
}
