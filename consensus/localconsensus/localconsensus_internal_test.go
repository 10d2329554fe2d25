package localconsensus

import (
	"context"
	"database/sql"
	"errors"
	"math"
	"sync"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
)

// handTime is moved by hand. Safe for concurrent use.
type handTime struct {
	mu                   sync.Mutex // guards what follows
	wall, elapsed, slept int64
}

func (h *handTime) now() (wall, elapsed int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wall, h.elapsed
}

func (h *handTime) awake() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.elapsed + h.slept
}

// pass lets time pass: on every clock, on the system's alone, and while the
// machine sleeps.
func (h *handTime) pass(d, step, sleep time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wall += int64(d + step + sleep)
	h.elapsed += int64(d)
	h.slept += int64(sleep)
}

func openDB(t testing.TB) *sql.DB {
	t.Helper()
	return dbtest.Open(t)
}

func openAt(t testing.TB, d *sql.DB, source timeSource) *Clock {
	t.Helper()
	c, err := open(t.Context(), d, "n1", source)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func now(t testing.TB, c *Clock) creto.Timestamp {
	t.Helper()
	s, err := c.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func saved(t testing.TB, d *sql.DB) (mark int64) {
	t.Helper()
	if err := d.QueryRow("SELECT mark_ns FROM clock").Scan(&mark); err != nil {
		t.Fatal(err)
	}
	return mark
}

const second = int64(time.Second)

// No stamp is later than a mark that is in the database, so that a life that
// begins with a clock set back goes on after all of them.
func TestMark(t *testing.T) {
	d := openDB(t)
	source := &handTime{wall: 1000 * second}
	c := openAt(t, d, source)
	var last creto.Timestamp
	for range 200 {
		s := now(t, c)
		if mark := saved(t, d); s.Physical > mark {
			t.Fatalf("a stamp at %d is later than the mark %d", s.Physical, mark)
		}
		last = s
		source.pass(137*time.Millisecond, 0, 0)
	}
	for _, back := range []time.Duration{time.Second, time.Hour, -time.Millisecond} {
		source = &handTime{wall: last.Physical - int64(back)}
		c = openAt(t, d, source)
		s := now(t, c)
		if s.Physical < last.Physical || creto.Order(last, s) >= 0 {
			t.Errorf("after a restart with the clock %v back: %+v is not after %+v", back, s, last)
		}
		last = s
	}
}

// A life that ended in order does not begin ahead of time.
func TestClose(t *testing.T) {
	d := openDB(t)
	source := &handTime{wall: 1000 * second}
	c := openAt(t, d, source)
	source.pass(time.Second, 0, 0)
	last := now(t, c)
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Now(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("Now of a closed clock = %v, want ConsensusUnavailable", err)
	}
	if err := c.Ping(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("Ping of a closed clock = %v, want ConsensusUnavailable", err)
	}
	if s := now(t, openAt(t, d, source)); s.Physical != last.Physical || creto.Order(last, s) >= 0 {
		t.Errorf("the next life begins at %d, want %d", s.Physical, last.Physical)
	}
}

// A life that was taken over gives no stamp once its mark has passed, and its
// farewell does not lower the mark of the next.
func TestTermFence(t *testing.T) {
	d := openDB(t)
	source := &handTime{wall: 1000 * second}
	old := openAt(t, d, source)
	openAt(t, d, source)
	mark := saved(t, d)
	source.pass(markAhead+1, 0, 0)
	if s, err := old.Now(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("Now of the old life = %+v, %v; want ConsensusUnavailable", s, err)
	}
	if err := old.Close(); err == nil || saved(t, d) != mark {
		t.Errorf("Close of the old life = %v and the mark %d, want a fault and %d", err, saved(t, d), mark)
	}
	if err := old.Raise(t.Context(), creto.Timestamp{Logical: creto.LogicalOf(77, 0)}); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("Raise of the old life = %v, want ConsensusUnavailable", err)
	}
}

// While the machine sleeps Go's monotonic clock stands still. The first stamp
// after is not behind.
func TestSleep(t *testing.T) {
	d := openDB(t)
	source := &handTime{wall: 1000 * second}
	c := openAt(t, d, source)
	now(t, c)
	for range 3 {
		source.pass(time.Second, 0, 8*time.Hour)
		if s := now(t, c); s.Physical != source.wall {
			t.Errorf("after a sleep of hours: %v behind", time.Duration(source.wall-s.Physical))
		}
	}
	source.pass(time.Second, -8*time.Hour, 8*time.Hour) // asleep, and set back by as much
	c.slew(0)
	if s := now(t, c); s.Physical != source.wall+8*3600*second {
		t.Errorf("a sleep that a step hides is %v off", time.Duration(source.wall+8*3600*second-s.Physical))
	}
}

// A step of the system's clock changes no stamp at once; Run brings the two
// together at an eighth of the time that passes.
func TestStep(t *testing.T) {
	for _, step := range []time.Duration{time.Second, -time.Second, 100 * 365 * 24 * time.Hour, -20 * 365 * 24 * time.Hour} {
		d := openDB(t)
		source := &handTime{wall: time.Hour.Nanoseconds() * 24 * 365 * 56}
		c := openAt(t, d, source)
		first := now(t, c)
		source.pass(time.Second, step, 0)
		if s := now(t, c); s.Physical-first.Physical != second {
			t.Errorf("a step of %v shows: %v passed", step, time.Duration(s.Physical-first.Physical))
		}
		var last creto.Timestamp
		for range 20 {
			source.pass(tick, 0, 0)
			c.slew(tick / 8)
			s := now(t, c)
			if s.Physical < last.Physical {
				t.Errorf("slewing goes backwards by %v", time.Duration(last.Physical-s.Physical))
			}
			last = s
		}
		passed := time.Duration(last.Physical - first.Physical)
		want := 11*time.Second + max(-20*tick/8, min(20*tick/8, step))
		if passed != want {
			t.Errorf("after a step of %v and 11 s, %v passed, want %v", step, passed, want)
		}
	}
}

// tikv/pd #3616: comparing times more finely than they are kept set the counter
// back while the physical part stayed. Here the counter never goes back in a
// term, whatever the physical part does.
func TestPD3616CounterIsNotResetWithTime(t *testing.T) {
	d := openDB(t)
	source := &handTime{wall: 1000 * second}
	c := openAt(t, d, source)
	last := now(t, c)
	for i := range 1000 {
		source.pass(time.Duration(i%3), time.Duration(i%7-3), 0) // some ns, or none, or the clock goes back
		if i%10 == 0 {
			c.slew(tick / 8)
			c.advance(t.Context())
		}
		s := now(t, c)
		if s.Logical != last.Logical+1 || s.Physical < last.Physical {
			t.Fatalf("%+v after %+v", s, last)
		}
		last = s
	}
}

// tikv/pd #6768: a node whose clock was wrong moved time far ahead, and nothing
// could be recovered after. Here order does not hang on it: the next life goes on
// at once, and its durations are right.
func TestPD6768ClockFarAheadDoesNotStop(t *testing.T) {
	d := openDB(t)
	ahead := &handTime{wall: 5_000_000_000 * second} // the year 2128
	last := now(t, openAt(t, d, ahead))
	source := &handTime{wall: 1_800_000_000 * second}
	c := openAt(t, d, source)
	s := now(t, c)
	if s.Physical < last.Physical || creto.Order(last, s) >= 0 {
		t.Errorf("%+v is not after %+v", s, last)
	}
	source.pass(time.Second, 0, 0)
	if next := now(t, c); next.Physical-s.Physical != second {
		t.Errorf("a second lasts %v", time.Duration(next.Physical-s.Physical))
	}
}

// tikv/pd #6698: two groups of timestamps were merged and the result fell behind
// one of them. Here a clock that takes over from another is raised above it.
func TestPD6698TakesOverFromAnotherSource(t *testing.T) {
	d := openDB(t)
	c := openAt(t, d, &handTime{wall: 1000 * second})
	for _, other := range []creto.Timestamp{
		{Logical: creto.LogicalOf(900, 5), Physical: 2000 * second}, {Logical: creto.LogicalOf(1, 5), Physical: 3000 * second}, {Logical: creto.LogicalOf(5000, 0), Physical: 1},
	} {
		before := now(t, c)
		if err := c.Raise(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		s := now(t, c)
		if s.Logical <= max(other.Logical, before.Logical) || s.Physical < max(other.Physical, before.Physical) || s.Physical > saved(t, d) {
			t.Errorf("%+v after %+v and %+v, mark %d", s, before, other, saved(t, d))
		}
	}
	if err := c.Raise(t.Context(), creto.Timestamp{Logical: math.MaxUint64}); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("Raise above the last term = %v, want FailedPrecondition", err)
	}
	now(t, c)
}

// A counter that is used up begins another term; terms that are used up end the
// clock.
func TestOverflow(t *testing.T) {
	d := openDB(t)
	c := openAt(t, d, &handTime{wall: 1000 * second})
	c.counter = creto.MaxCounter - 2
	last := now(t, c)
	for range 5 {
		s := now(t, c)
		if creto.Order(last, s) >= 0 {
			t.Fatalf("%+v is not after %+v", s, last)
		}
		last = s
	}
	if last.Term() != 2 || last.Logical != creto.LogicalOf(2, 4) {
		t.Errorf("after the overflow: term %d, %x", last.Term(), last.Logical)
	}
	if _, err := d.Exec("UPDATE clock SET term = $1", creto.MaxTerm-1); err != nil {
		t.Fatal(err)
	}
	c = openAt(t, d, &handTime{wall: 1000 * second})
	id := creto.DigestOf([]byte("x"))
	first, err := c.Register(t.Context(), id)
	if err != nil || first.Term() != creto.MaxTerm {
		t.Fatalf("Register in the last term = %+v, %v", first, err)
	}
	if again, err := c.Register(t.Context(), id); err != nil || again != first {
		t.Errorf("a stamp of the last term comes back as %+v, %v", again, err)
	}
	c.counter = creto.MaxCounter
	if s, err := c.Now(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("Now after the last term = %+v, %v; want ConsensusUnavailable", s, err)
	}
	if _, err := open(t.Context(), d, "n1", &handTime{}); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("Open after the last term = %v, want FailedPrecondition", err)
	}
}

// While Run runs, nobody waits for the disk: here it is busy for longer than a
// caller may wait, while stamps are taken all the time.
func TestNobodyWaitsForTheDisk(t *testing.T) {
	d := openDB(t)
	source := &handTime{wall: 1000 * second}
	c := openAt(t, d, source)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	source.pass(1500*time.Millisecond, 0, 0)
	now(t, c) // asks for a mark
	until := time.Now().Add(5 * time.Second)
	for saved(t, d) < source.wall+int64(markAhead) {
		if time.Now().After(until) {
			t.Fatal("Run saves no mark")
		}
		time.Sleep(time.Millisecond)
	}
	tx, err := d.BeginTx(t.Context(), nil) // takes the one write lock
	if err != nil {
		t.Fatal(err)
	}
	for range 2900 {
		source.pass(time.Millisecond, 0, 0)
		begin := time.Now()
		now(t, c)
		if took := time.Since(begin); took > time.Second {
			t.Fatalf("a stamp took %v", took)
		}
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
}

// The mark is never lowered by whoever is late.
func TestLateSave(t *testing.T) {
	d := openDB(t)
	c := openAt(t, d, &handTime{wall: 1000 * second})
	if err := errors.Join(c.write(t.Context(), d, c.term, 5000*second), c.write(t.Context(), d, c.term, 4000*second)); err != nil {
		t.Fatal(err)
	}
	if mark := saved(t, d); mark != 5000*second {
		t.Errorf("the mark is %d, want 5000 s", mark)
	}
}

// What a database cannot do becomes a fault of the contract.
func TestBrokenDatabase(t *testing.T) {
	d := openDB(t)
	source := &handTime{wall: 1000 * second}
	c := openAt(t, d, source)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	now(t, c) // below the mark nothing is asked of it
	source.pass(time.Hour, 0, 0)
	_, nowErr := c.Now(t.Context())
	_, registerErr := c.Register(t.Context(), creto.DigestOf(nil))
	_, orderErr := c.OrderEvents(t.Context(), make([]creto.Digest, 1))
	for _, err := range []error{nowErr, registerErr, orderErr, c.Ping(t.Context())} {
		if !errors.Is(err, fault.ConsensusUnavailable) || fault.CategoryOf(err) != fault.Degraded {
			t.Errorf("with a broken database: %v, want ConsensusUnavailable", err)
		}
	}
	if err := classify("x", context.DeadlineExceeded); !errors.Is(err, fault.ConsensusTimeout) {
		t.Errorf("a database that is slow: %v, want ConsensusTimeout", err)
	}
}
