package localauthz

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"creto.dev"
	"creto.dev/fault"
)

// tickInterval is how long a chain stays bound for the next Bind, and so how old
// the groups of its principals can be.
const tickInterval = 250 * time.Millisecond

// Run reloads the policies when their directory changes, until ctx ends. While
// it is running, Bind does without asking for groups that it asked for a moment
// before.
func (a *Authorizer) Run(ctx context.Context) error {
	var group sync.WaitGroup
	group.Go(func() { a.tick(ctx) })
	defer group.Wait()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	var refused string // the last mistake that was reported
	var seen listing
	for polls := 0; ; polls++ {
		var now time.Time
		select {
		case <-ctx.Done():
			return nil
		case now = <-ticker.C:
		}
		found := list(a.dir, now)
		if found.same(seen) && polls%fullPoll != 0 {
			continue
		}
		before := a.Version()
		err := a.Reload(ctx)
		if seen = found; err != nil && fault.CodeOf(err) != fault.InvalidArgument {
			seen = listing{} // it was not read
		}
		switch {
		case err != nil && err.Error() != refused:
			refused = err.Error()
			a.changed(ctx, Change{Before: before, After: before, Err: err})
		case err == nil && refused != "":
			refused = ""
			if a.Version() == before { // Reload has not said so
				a.changed(ctx, changeOf(a.current.Load(), a.current.Load()))
			}
		}
	}
}

// listing is what a directory shows without its files being read.
type listing struct {
	digest creto.Digest
	// settled says that every file is older than the grain of the clock that its
	// time is from: a later change shows.
	settled bool
}

// clockGrain is a bound on how coarse the times of files are.
const clockGrain = 2 * time.Second

func (l listing) same(before listing) bool { return before.settled && l.digest == before.digest }

// list returns the listing of a directory's policies; one that is not settled if
// it cannot be listed.
func list(dir string, now time.Time) listing {
	var text bytes.Buffer
	settled := true
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".cedar" {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		settled = settled && now.Sub(info.ModTime()) > clockGrain
		fmt.Fprintf(&text, "%q %v %d %d\n", path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		return nil
	})
	return listing{digest: creto.DigestOf(text.Bytes()), settled: settled && err == nil}
}

const (
	// turnTime is how long a reload works before others have their turn.
	turnTime = 100 * time.Microsecond
	// politeTime is how long it lets everybody on the machine have it.
	politeTime = 300 * time.Millisecond
)

// turns returns what to call between the steps of long work. A goroutine that is ready
// would else wait, for milliseconds, while the reload has one core and the garbage
// collector another; and so would a thread that shares a core with the reload's while
// another core is idle, which the kernel does, by time slices, where cores are few. It
// does not sleep: the more threads wake, the more often they share.
func turns() func() {
	began := time.Now()
	polite := began.Add(politeTime)
	return func() {
		now := time.Now()
		if now.Sub(began) < turnTime {
			return
		}
		runtime.Gosched()
		if now.Before(polite) {
			_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // it does not fail
		}
		began = time.Now()
	}
}

// tick ends, again and again, what Bind remembers.
func (a *Authorizer) tick(ctx context.Context) {
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	a.sessions.tick.Add(1)
	a.sessions.ticking.Store(true)
	defer a.sessions.ticking.Store(false)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			a.sessions.tick.Add(1)
		}
	}
}

// Reload takes the directory's policies into force now: no check that begins
// after it returned is decided by those before.
//
// Errors: as Open; the policies before then stay in force.
func (a *Authorizer) Reload(ctx context.Context) error {
	before, b, err := a.replace()
	if b != nil {
		a.changed(ctx, changeOf(before, b))
	}
	return err
}

// replace takes the directory's policies into force, and returns those before
// and, if they are others, those now.
func (a *Authorizer) replace() (before, now *book, err error) {
	a.reload.Lock()
	defer a.reload.Unlock()
	before = a.current.Load()
	rest := turns()
	b, err := loadBook(a.dir, a.tenant, before, &a.desk, rest)
	if err != nil || b.version == before.version {
		return before, nil, err
	}
	warm := make(map[*table]struct{})
	a.live.each(func(s *session) { s.prepare(b, warm, rest); rest() })
	a.current.Store(b)
	// A session that nobody uses must not keep in memory what was replaced.
	a.live.each(func(s *session) { s.release(b) })
	return before, b, nil
}
