package etcdconsensus

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
)

// desk is a cluster in memory whose time is moved by hand and whose answers can be
// held back. It is both the store and the time of one clock.
type desk struct {
	mu       sync.Mutex // guards what follows
	now      int64
	system   int64
	who      leader
	term     uint64
	mark     int64
	farewell uint64
	fence    int64
	down     bool
	onAwake  func() // runs at the next look at the clock
	onRenew  func() // runs before the next renewal
}

func (d *desk) wall() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.system
}

func (d *desk) awake() int64 {
	d.mu.Lock()
	now, then := d.now, d.onAwake
	d.onAwake = nil
	d.mu.Unlock()
	if then != nil {
		then()
	}
	return now
}

func (d *desk) sleep(_ context.Context, wait time.Duration) { d.pass(wait) }

func (d *desk) pass(wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now += int64(wait)
	d.system += int64(wait)
}

func (d *desk) set(change func(d *desk)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

func (d *desk) leader(context.Context) (leader, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return leader{}, errSim
	}
	return d.who, nil
}

func (d *desk) campaign(_ context.Context, me leader, ttl time.Duration, floor uint64) (*grant, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.who != (leader{}) {
		return nil, nil //nolint:nilnil // as documented
	}
	before := d.term
	next, err := nextTerm(d.term, floor)
	if err != nil {
		return nil, err
	}
	d.who, d.term = me, next
	d.fence++
	return &grant{term: next, fence: d.fence, leased: d.now, ttl: ttl, mark: d.mark, clean: before == 0 || before == d.farewell}, nil
}

func (d *desk) renew(_ context.Context, g *grant, mark int64) error {
	d.mu.Lock()
	then := d.onRenew
	d.onRenew = nil
	d.mu.Unlock()
	if then != nil {
		then()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.down:
		return errSim
	case d.fence != g.fence:
		return errFenced
	}
	d.mark, g.leased = mark, d.now
	return nil
}

func (d *desk) resign(_ context.Context, g *grant, mark int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.down && d.fence == g.fence {
		d.who, d.mark = leader{}, mark
		d.fence++
		if g.clean {
			d.farewell = g.term
		}
	}
	return nil
}

func (d *desk) changed(_ context.Context, wait time.Duration) { d.pass(wait) }

func (*desk) register(_ context.Context, _ consensus.EventID, s creto.Timestamp) (creto.Timestamp, error) {
	return s, nil
}

func (*desk) events(context.Context, []consensus.EventID) ([]consensus.Ordered, error) {
	return nil, nil
}
func (*desk) close() error { return nil }

func newDesk() (*desk, *Clock) {
	d := &desk{now: 1, system: int64(1000 * time.Second)}
	return d, newClock(Config{Node: "n1", Address: "a1", Prefix: "/t/"}, d, d)
}

// elect has c lead, up to where it would wait for its next renewal.
func elect(t *testing.T, c *Clock) *grant {
	t.Helper()
	g := c.campaign(t.Context())
	if g == nil {
		t.Fatal("not elected")
	}
	if !c.outwait(t.Context(), g) {
		t.Fatal("the lease was lost while waiting")
	}
	l, ok := c.extend(t.Context(), g, c.begin(g))
	if !ok || !c.publish(l) {
		t.Fatal("not leading")
	}
	return g
}

func mustNow(t *testing.T, c *Clock) creto.Timestamp {
	t.Helper()
	s, err := c.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustRefuse(t *testing.T, c *Clock, why string) {
	t.Helper()
	if s, err := c.Now(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("%s: Now = %+v, %v; want ConsensusUnavailable", why, s, err)
	}
}

// Another node leads, and gives stamps an hour ahead.
func (d *desk) another(t *testing.T) creto.Timestamp {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.who = leader{}
	d.fence++
	d.term++
	d.mark = d.system + int64(time.Hour)
	d.farewell = d.term
	return creto.Timestamp{Logical: creto.LogicalOf(d.term, 1000), Physical: d.mark, Source: creto.SourceConsensus, Node: "n2"}
}

// tikv/pd #4885: a node that resigned updated its timestamp once more after it was
// reset, and served that when it led again, before it had asked what others did.
func TestPD4885NothingOfAnEarlierTermIsServed(t *testing.T) {
	d, c := newDesk()
	g := elect(t, c)
	old, ok := c.extend(t.Context(), g, c.lead) // an update of the first time, which comes late
	if !ok {
		t.Fatal("not leading")
	}
	c.resign(t.Context(), g)
	mustRefuse(t, c, "after it resigned")
	other := d.another(t)
	again := c.campaign(t.Context())
	if again == nil {
		t.Fatal("not elected again")
	}
	mustRefuse(t, c, "elected again, before it has saved a mark")
	if l, ok := c.extend(t.Context(), g, old); ok || l.term == again.term {
		t.Errorf("the late update of an earlier term gives %+v", l)
	}
	mustRefuse(t, c, "after the late update")
	l, ok := c.extend(t.Context(), again, c.begin(again))
	if !ok || !c.publish(l) {
		t.Fatal("not leading")
	}
	if s := mustNow(t, c); s.Logical <= other.Logical || s.Physical < other.Physical {
		t.Errorf("%+v is not after %+v", s, other)
	}
}

// tikv/pd #9157: a former leader saved its timestamp after it had lost the
// leadership.
func TestPD9157FormerLeaderCannotSave(t *testing.T) {
	d, c := newDesk()
	g := elect(t, c)
	var mark int64
	d.set(func(d *desk) {
		d.onRenew = func() { // while the renewal is on its way
			d.another(t)
			mark = d.mark
		}
	})
	if l, ok := c.extend(t.Context(), g, c.lead); ok {
		t.Errorf("a renewal after another was elected gives %+v", l)
	}
	c.resign(t.Context(), g)
	if d.mark != mark {
		t.Errorf("the former leader moved the mark from %d to %d", mark, d.mark)
	}
	mustRefuse(t, c, "after another was elected")
}

// tikv/pd #8836: a leader that stepped down kept its timestamps and served them
// when it led for the second time, without asking how far others had come.
func TestPD8836SecondTermBeginsAboveOthers(t *testing.T) {
	d, c := newDesk()
	g := elect(t, c)
	first := mustNow(t, c)
	c.resign(t.Context(), g)
	other := d.another(t)
	elect(t, c)
	if s := mustNow(t, c); creto.Order(other, s) >= 0 || s.Physical < other.Physical || creto.Order(first, s) >= 0 {
		t.Errorf("%+v is not after %+v and %+v", s, first, other)
	}
}

// tikv/pd #6698: two groups of timestamps were merged and the result fell behind
// one of them. Here a cluster takes over from another clock above it.
func TestPD6698ClusterBeginsAboveAnotherSource(t *testing.T) {
	_, c := newDesk()
	before := creto.Timestamp{Logical: creto.LogicalOf(41, 7), Physical: int64(5000 * time.Second), Source: creto.SourceConsensus}
	if err := c.Raise(before); err != nil {
		t.Fatal(err)
	}
	elect(t, c)
	if s := mustNow(t, c); creto.Order(before, s) >= 0 || s.Physical < before.Physical {
		t.Errorf("%+v is not after %+v", s, before)
	}
	if err := c.Raise(creto.Timestamp{Logical: 1<<64 - 1}); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("Raise above the last term = %v, want FailedPrecondition", err)
	}
}

// tikv/pd #3616 and #6768: neither what the system's clock says nor how finely
// changes the order or stops it.
func TestPD6768WrongClockDoesNotStopTheCluster(t *testing.T) {
	d, c := newDesk()
	d.set(func(d *desk) { d.system = int64(5_000_000_000 * time.Second) })
	g := elect(t, c)
	last := mustNow(t, c)
	c.resign(t.Context(), g)
	d.set(func(d *desk) { d.system = int64(1_800_000_000 * time.Second) })
	g = elect(t, c)
	for range 20 {
		s := mustNow(t, c)
		if creto.Order(last, s) >= 0 || s.Physical < last.Physical || s.Physical > d.mark {
			t.Fatalf("%+v is not after %+v, or above the mark %d", s, last, d.mark)
		}
		last = s
		d.pass(100 * time.Millisecond)
		l, ok := c.extend(t.Context(), g, c.lead)
		if !ok || !c.publish(l) {
			t.Fatal("not leading")
		}
	}
}

// A window ends by itself, a tenth early, and no stamp is made after.
func TestWindow(t *testing.T) {
	d, c := newDesk()
	g := elect(t, c)
	mustNow(t, c)
	d.set(func(d *desk) { d.down = true })
	d.pass(c.config.window()*9/10 - 1)
	mustNow(t, c)
	d.pass(1)
	mustRefuse(t, c, "after the window")
	if err := c.Ping(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("Ping after the window = %v, want ConsensusUnavailable", err)
	}
	l, ok := c.extend(t.Context(), g, c.lead)
	if !ok || !c.publish(l) {
		t.Fatal("gives up because etcd is away for a moment")
	}
	mustRefuse(t, c, "while etcd is away")
	d.set(func(d *desk) { d.down = false })
	l, ok = c.extend(t.Context(), g, l)
	if !ok || !c.publish(l) {
		t.Fatal("not leading")
	}
	mustNow(t, c)
}

// A stamp that took longer than the window is thrown away.
func TestStoppedWhileStamping(t *testing.T) {
	d, c := newDesk()
	elect(t, c)
	d.set(func(d *desk) { d.onAwake = func() { d.pass(time.Hour) } })
	mustRefuse(t, c, "stopped between the look at the clock and the stamp")
}

// A leader that waits for the windows of others makes no stamp, and says no
// farewell for them.
func TestNoFarewellForOthers(t *testing.T) {
	d, c := newDesk()
	d.set(func(d *desk) { d.term = 7 }) // somebody led, and died
	g := c.campaign(t.Context())
	if g == nil || g.clean {
		t.Fatalf("campaign = %+v, want a grant after somebody who died", g)
	}
	mustRefuse(t, c, "before the windows of others have ended")
	c.resign(t.Context(), g)
	if d.farewell == g.term {
		t.Error("a farewell that others' windows outlive")
	}
	begun := d.now
	g = elect(t, c)
	if waited := time.Duration(d.now - begun); waited < c.config.window() {
		t.Errorf("the first stamp %v after the election, want %v", waited, c.config.window())
	}
	c.resign(t.Context(), g)
	if d.farewell != g.term {
		t.Error("no farewell of a leader that had waited")
	}
}

// No stamp is above the mark, whatever the clocks say.
func TestStampsStayBelowTheMark(t *testing.T) {
	d, c := newDesk()
	elect(t, c)
	c.lead.offset += int64(time.Hour)
	if s := mustNow(t, c); s.Physical > d.mark {
		t.Errorf("%+v is above the mark %d", s, d.mark)
	}
}

// A term whose counter is used up ends, and the next begins.
func TestCounterOverflow(t *testing.T) {
	_, c := newDesk()
	g := elect(t, c)
	c.lead.counter = creto.MaxCounter - 1
	last := mustNow(t, c)
	mustRefuse(t, c, "after the last of a term")
	l, ok := c.extend(t.Context(), g, c.lead)
	if !ok || c.publish(l) {
		t.Fatal("the term goes on though its counter is used up")
	}
	mustRefuse(t, c, "after a renewal of a term that is used up")
	c.resign(t.Context(), g)
	elect(t, c)
	if s := mustNow(t, c); creto.Order(last, s) >= 0 {
		t.Errorf("%+v is not after %+v", s, last)
	}
	d := &desk{term: creto.MaxTerm}
	if g := newClock(Config{Node: "n", Address: "a", Prefix: "p"}, d, d).campaign(t.Context()); g != nil {
		t.Errorf("elected in term %d", g.term)
	}
}

// fakeForwarder is a way to a leader.
type fakeForwarder struct {
	consensus.Batcher
	closed bool
}

func (f *fakeForwarder) Close() error {
	f.closed = true
	return nil
}

// A follower passes questions on to who leads, over one connection for each
// leader, and one that cannot be reached never leads.
func TestForwarding(t *testing.T) {
	d, far := newDesk()
	elect(t, far)
	dialled := map[string]int{}
	way := &fakeForwarder{Batcher: far.Leading()}
	follower := newClock(Config{Node: "n2", Prefix: "/t/", Forward: func(address string) (Forwarder, error) {
		dialled[address]++
		return way, nil
	}}, d, d)
	mustRefuse(t, follower, "before it knows who leads")
	if g := follower.campaign(t.Context()); g != nil {
		t.Fatalf("campaign = %+v while another leads", g)
	}
	last := mustNow(t, far)
	for range 3 {
		s := mustNow(t, follower)
		if s.Node != "n1" || creto.Order(last, s) >= 0 {
			t.Errorf("a follower gives %+v after %+v", s, last)
		}
		last = s
	}
	if stamps, err := follower.Stamps(t.Context(), 5); err != nil || len(stamps) != 5 {
		t.Errorf("Stamps of a follower = %v, %v", stamps, err)
	}
	if err := follower.Ping(t.Context()); err != nil {
		t.Errorf("Ping of a follower = %v", err)
	}
	if s, err := follower.Leading().Now(t.Context()); !errors.Is(err, fault.ConsensusUnavailable) {
		t.Errorf("a follower answers what was passed on to it: %+v, %v", s, err)
	}
	if len(dialled) != 1 || dialled["a1"] != 1 {
		t.Errorf("connections: %v", dialled)
	}
	if err := follower.Close(); err != nil || !way.closed {
		t.Errorf("Close = %v, and the connection closed: %v", err, way.closed)
	}
	d.set(func(d *desk) { d.who = leader{} })
	if g := follower.campaign(t.Context()); g != nil {
		t.Error("a node without an address leads")
	}
}

// Run leads, and gives the leadership up when it ends.
func TestRun(t *testing.T) {
	d, c := newDesk()
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- c.Run(ctx) }()
	until := time.Now().Add(10 * time.Second)
	for {
		if _, err := c.Now(t.Context()); err == nil {
			break
		} else if time.Now().After(until) {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("Run = %v", err)
	}
	mustRefuse(t, c, "after Run")
	if d.who != (leader{}) || d.farewell != d.term {
		t.Errorf("after Run etcd has leader %+v and the farewell of term %d, want none and %d", d.who, d.farewell, d.term)
	}
}
