package main

import (
	"bufio"
	"bytes"
	"context"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"creto.dev/internal/logkey"
)

// settleAfter is when the start is over, and what an administrator does first.
const settleAfter = time.Second

// gcPercent is how much garbage there may be for what lives, in hundredths: less than
// the 100 of the Go runtime, which GOGC in the environment restores. It takes some 5 %
// more processor time and 4 MB less.
const gcPercent = 75

// settle gives back what only the start needed: garbage, and the pages of the program's
// own file that are mapped, most of which ran once; these once more a little later.
// Those that are needed again are mapped again, from the page cache. What fails is only
// logged. stop ends that, and waits.
func settle(log *slog.Logger, after time.Duration) (stop func()) {
	forget := func() {
		if err := forgetText(); err != nil {
			log.LogAttrs(context.Background(), slog.LevelDebug, "the pages of the start stay mapped", slog.Any(logkey.Error, err))
		}
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	runtime.GC() // what is in pools outlives one collection
	debug.FreeOSMemory()
	forget()
	var running sync.WaitGroup
	running.Add(1)
	timer := time.AfterFunc(after, func() {
		defer running.Done()
		forget()
	})
	return func() {
		if timer.Stop() {
			running.Done()
		}
		running.Wait()
	}
}

// forgetText unmaps the pages of the program's own file that nobody writes: its code
// and its constants.
func forgetText() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		begin, end, ok := unwritten(lines.Text(), self)
		if !ok {
			continue
		}
		// Of a private mapping of a file that was never written, the pages that are
		// dropped are read from that file when they are touched (madvise(2)).
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, begin, end-begin, unix.MADV_DONTNEED); errno != 0 {
			return errno
		}
	}
	return nil
}

// unwritten returns the range of a line of /proc/self/maps, if it is a private mapping
// of a file that cannot be written (proc_pid_maps(5)).
func unwritten(line, file string) (begin, end uintptr, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 6 || fields[1] != "r-xp" && fields[1] != "r--p" || !strings.HasSuffix(line, " "+file) {
		return 0, 0, false
	}
	from, to, found := strings.Cut(fields[0], "-")
	first, err := strconv.ParseUint(from, 16, 64)
	last, wrong := strconv.ParseUint(to, 16, 64)
	if !found || err != nil || wrong != nil || first >= last {
		return 0, 0, false
	}
	return uintptr(first), uintptr(last), true
}
