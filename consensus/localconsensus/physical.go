package localconsensus

import (
	"time"

	"golang.org/x/sys/unix"
)

// timeSource is what a clock reads time from.
type timeSource interface {
	// now returns the system's time in Unix nanoseconds, which may be set to
	// anything at any moment, and the nanoseconds since the source was made,
	// which only grow and leave out the time in which the machine slept.
	now() (wall, elapsed int64)
	// awake returns the nanoseconds since the source was made, sleep included.
	awake() int64
}

// systemTime is the machine's.
type systemTime struct {
	start time.Time
	boot  int64
}

func newSystemTime() *systemTime { return &systemTime{start: time.Now(), boot: bootTime()} }

func (s *systemTime) now() (wall, elapsed int64) {
	t := time.Now()
	return t.UnixNano(), int64(t.Sub(s.start))
}

func (s *systemTime) awake() int64 { return bootTime() - s.boot }

// bootTime reads the clock that goes on while the machine sleeps, which Go's
// monotonic clock does not (clock_gettime(2), CLOCK_BOOTTIME).
func bootTime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every Linux since 2.6.39 has it
	}
	return ts.Nano()
}

// suspicion is how far the system's clock may run away from the monotonic one
// before it is looked whether the machine slept.
const suspicion = int64(time.Second)

// physical says what time it is: a base, plus the time that has passed since,
// plus the time that the machine slept. A step of the system's clock is not
// followed at once; slew brings the two together.
type physical struct {
	base  int64
	slept int64 // what base has of it
	ahead int64 // how far the system's clock was ahead when last compared
}

// newPhysical begins at the system's time, or at floor, if that is later.
func newPhysical(source timeSource, floor int64) physical {
	wall, elapsed := source.now()
	p := physical{base: max(wall, floor) - elapsed, slept: max(0, source.awake()-elapsed)}
	p.ahead = wall - p.at(elapsed)
	return p
}

func (p *physical) at(elapsed int64) int64 { return p.base + elapsed }

// suspicious reports whether the system's clock has run ahead, as it does while
// the machine sleeps.
func (p *physical) suspicious(wall, elapsed int64) bool {
	return wall-p.at(elapsed) > p.ahead+suspicion
}

// resync adds the time that the machine slept since the last time.
func (p *physical) resync(source timeSource) {
	awake := source.awake() // first: a sleep in between is found the next time
	wall, elapsed := source.now()
	if slept := awake - elapsed; slept > p.slept+int64(time.Millisecond) { // two readings are never at once
		p.base += slept - p.slept
		p.slept = slept
	}
	p.ahead = wall - p.at(elapsed)
}

// raise moves it forward.
func (p *physical) raise(by int64) {
	p.base += by
	p.ahead -= by
}

// slew moves it towards the system's clock, by at most limit.
func (p *physical) slew(source timeSource, limit int64) {
	wall, elapsed := source.now()
	p.raise(max(-limit, min(limit, wall-p.at(elapsed))))
}
