package etcdconsensus

import (
	"container/heap"
	"context"
	"flag"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
)

// sim runs the code of three nodes, an etcd and their callers on one goroutine, in
// an order and with delays, pauses, partitions, crashes and clocks that follow
// from a seed alone. Every look at a clock, every wait and every message is a
// point at which somebody else may go on.
type sim struct {
	r       *rand.Rand
	now     int64 // true time, nanoseconds
	queue   queue
	seq     int
	current *process
	nodes   []*simNode
	etcd    simEtcd
	calls   []consensustest.Call
	began   int64 // a count: it orders what happens at one time
	broken  simBroken
}

// simBroken takes away checks of the clock, and of the store.
type simBroken struct {
	broken
	fence bool // renewals of an old leader are not refused
	term  bool // the term is not raised
	bye   bool // a leader says farewell though others' windows may be open
	quiet bool // nothing goes wrong
}

// process is one coroutine.
type process struct {
	node  *simNode
	life  int
	next  func() (time.Duration, bool)
	stop  func()
	yield func(time.Duration) bool
}

type event struct {
	at  int64
	seq int
	p   *process
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}

// killed unwinds a process whose node crashed.
type killed struct{}

// spawn starts a process after d.
func (s *sim) spawn(n *simNode, d time.Duration, run func()) {
	p := &process{node: n, life: n.life}
	p.next, p.stop = iter.Pull(func(yield func(time.Duration) bool) {
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(killed); !ok {
					panic(r)
				}
			}
		}()
		p.yield = yield
		run()
	})
	s.push(p, d)
}

func (s *sim) push(p *process, d time.Duration) {
	s.seq++
	heap.Push(&s.queue, event{at: s.now + int64(d), seq: s.seq, p: p})
}

// wait lets others go on for d.
func (s *sim) wait(d time.Duration) {
	if !s.current.yield(d) {
		panic(killed{})
	}
}

// moment is a short random wait: between any two instructions.
func (s *sim) moment() { s.wait(time.Duration(s.r.Int64N(int64(20 * time.Microsecond)))) }

// simNode is a machine with one Creto process.
type simNode struct {
	s       *sim
	name    string
	life    int
	paused  int64 // until when it stands still
	cut     int64 // until when it does not reach etcd
	skew    int64 // of its system's clock
	rate    int64 // of its other clock, in parts in a thousand of true time
	clock   *Clock
	cancel  context.CancelFunc
	clients int
}

// What was read from a clock may be old when it is used.
func (n *simNode) wall() int64 {
	defer n.s.moment()
	return n.s.now + n.skew
}

func (n *simNode) awake() int64 {
	defer n.s.moment()
	return n.s.now / 1000 * n.rate
}

func (n *simNode) sleep(ctx context.Context, d time.Duration) {
	for step := d; step > 0 && ctx.Err() == nil; step -= min(step, 50*time.Millisecond) { // it notices the end of ctx so late
		n.s.wait(min(step, 50*time.Millisecond))
	}
}

// simEtcd is what etcd keeps. Every transaction happens at one moment, as etcd's
// do.
type simEtcd struct {
	who      leader
	fence    int64
	lease    int64 // of the leader's key
	expiry   int64 // true time
	revision int64
	leases   int64
	term     uint64
	mark     int64
	farewell uint64
}

// expire ends the leader's lease when its time has come.
func (s *sim) expire() {
	if e := &s.etcd; e.fence != 0 && s.now >= e.expiry {
		e.who, e.fence, e.lease = leader{}, 0, 0
	}
}

var errSim = fault.New("sim", fault.ConsensusTimeout, "no answer")

// ask sends a message to etcd and waits for the answer, of which either may be
// lost.
func (n *simNode) ask(do func(e *simEtcd)) error {
	s := n.s
	timeout := n.clock.config.renewal()
	delay := func() time.Duration {
		d := time.Duration(s.r.ExpFloat64() * float64(2*time.Millisecond))
		if !s.broken.quiet && s.r.IntN(50) == 0 {
			d += time.Duration(s.r.Int64N(int64(time.Second)))
		}
		return d
	}
	there := delay()
	if there > 5*timeout {
		there = 5 * timeout
	}
	s.wait(there) // it may arrive after its sender has given up
	if s.now < n.cut {
		s.wait(timeout)
		return errSim
	}
	s.expire()
	do(&s.etcd)
	s.wait(delay())
	if there > timeout || s.now < n.cut {
		return errSim
	}
	return nil
}

func (n *simNode) leader(context.Context) (who leader, err error) {
	err = n.ask(func(e *simEtcd) { who = e.who })
	return who, err
}

func (n *simNode) campaign(_ context.Context, me leader, ttl time.Duration, floor uint64) (*grant, error) {
	g := &grant{leased: n.awake(), ttl: ttl}
	elected := false
	err := n.ask(func(e *simEtcd) {
		if e.fence != 0 {
			return
		}
		elected = true
		e.revision++
		e.leases++
		before := e.term
		if !n.s.broken.term || before == 0 {
			e.term, _ = nextTerm(e.term, floor)
		}
		e.who, e.fence, e.lease, e.expiry = me, e.revision, e.leases, n.s.now+int64(ttl)
		g.term, g.fence, g.lease, g.mark, g.clean = e.term, e.fence, e.lease, e.mark, before == 0 || before == e.farewell
	})
	if err != nil || !elected {
		return nil, err
	}
	return g, nil
}

func (n *simNode) renew(_ context.Context, g *grant, mark int64) error {
	asked := n.awake()
	fenced := false
	// The lease, and then the mark: anything may happen in between.
	if err := n.ask(func(e *simEtcd) {
		if e.lease == g.lease {
			e.expiry = n.s.now + int64(g.ttl)
		} else {
			fenced = !n.s.broken.fence
		}
	}); err != nil {
		return err
	}
	if fenced {
		return errFenced
	}
	if err := n.ask(func(e *simEtcd) {
		if e.fence == g.fence && e.term == g.term || n.s.broken.fence {
			e.mark = mark
		} else {
			fenced = true
		}
	}); err != nil {
		return err
	}
	if fenced {
		return errFenced
	}
	g.leased = asked
	return nil
}

func (n *simNode) resign(_ context.Context, g *grant, mark int64) error {
	return n.ask(func(e *simEtcd) {
		if e.fence == g.fence && e.term == g.term {
			e.who, e.fence, e.lease, e.mark = leader{}, 0, 0, mark
			if g.clean || n.s.broken.bye {
				e.farewell = g.term
			}
		}
	})
}

func (n *simNode) changed(ctx context.Context, d time.Duration) {
	n.sleep(ctx, time.Duration(n.s.r.Int64N(int64(d))))
}

func (n *simNode) register(context.Context, consensus.EventID, creto.Timestamp) (creto.Timestamp, error) {
	return creto.Timestamp{}, errSim
}

func (n *simNode) events(context.Context, []consensus.EventID) ([]consensus.Ordered, error) {
	return nil, errSim
}

func (n *simNode) close() error { return nil }

// start begins a life: its Run, and callers who take stamps from it.
func (n *simNode) start(d time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.clock = newClock(Config{Node: n.name, Address: n.name, Prefix: "/sim/", LeaseTTL: 3 * time.Second}, n, n)
	n.clock.broken = n.s.broken.broken
	clock := n.clock
	n.s.spawn(n, d, func() { _ = clock.Run(ctx) })
	for range 2 {
		client := n.clients
		n.clients++
		n.s.spawn(n, d, func() {
			for {
				n.s.wait(time.Duration(n.s.r.ExpFloat64() * float64(60*time.Millisecond)))
				n.s.began++
				began := n.s.began
				stamp, err := clock.Now(ctx)
				n.s.began++
				if err == nil {
					n.s.calls = append(n.s.calls, consensustest.Call{Client: client, Began: began, Ended: n.s.began, Stamp: stamp})
				}
			}
		})
	}
}

// crash ends a life at once, wherever it is.
func (n *simNode) crash() {
	n.life++
	n.cancel()
}

// trouble is what goes wrong, now and then.
func (s *sim) trouble() {
	n := s.nodes[s.r.IntN(len(s.nodes))]
	some := func(limit time.Duration) int64 { return s.now + s.r.Int64N(int64(limit)) }
	switch s.r.IntN(9) {
	case 0, 1:
		n.paused = some(8 * time.Second)
	case 2, 3:
		n.cut = some(8 * time.Second)
	case 4:
		n.skew = s.r.Int64N(int64(400*time.Millisecond)) - int64(200*time.Millisecond)
	case 5:
		n.crash()
		n.start(time.Duration(s.r.Int64N(int64(2 * time.Second))))
	case 6:
		// In order: its callers get nothing more, and it resigns.
		n.cancel()
		after := n
		s.spawn(n, 500*time.Millisecond, func() { after.crash(); after.start(0) })
	case 7:
		// Etcd ends a lease early, as it did when its own leader hung.
		s.etcd.expiry = s.now
	case 8:
		for _, n := range s.nodes { // etcd is gone for all
			n.cut = some(4 * time.Second)
		}
	}
}

// run lives through so much time.
func (s *sim) run(length time.Duration) {
	world := &simNode{s: s, name: "world"}
	if !s.broken.quiet {
		s.spawn(world, time.Second, func() {
			for {
				s.trouble()
				s.wait(time.Duration(s.r.ExpFloat64() * float64(1500*time.Millisecond)))
			}
		})
	}
	var left []*process
	for len(s.queue) > 0 {
		e, ok := heap.Pop(&s.queue).(event)
		if !ok || e.at >= int64(length) {
			left = append(left, e.p)
			continue
		}
		s.now = e.at
		switch p := e.p; {
		case p.life != p.node.life:
			s.current = p
			p.stop()
		case p.node.paused > s.now:
			s.push(p, time.Duration(p.node.paused-s.now))
		default:
			s.current = p
			// A machine may stop between any two instructions, for longer than
			// any window.
			if d, alive := p.next(); alive {
				if !s.broken.quiet && p.node != world && s.r.IntN(2000) == 0 {
					p.node.paused = s.now + int64(d) + s.r.Int64N(int64(6*time.Second))
				}
				s.push(p, d)
			}
		}
	}
	for _, p := range left {
		s.current = p
		p.stop()
	}
}

// simulate returns the history of one seed.
func simulate(seed uint64, length time.Duration, b simBroken) *sim {
	s := &sim{r: rand.New(rand.NewPCG(seed, 0xc2e70)), broken: b}
	for i := range 3 {
		n := &simNode{s: s, name: fmt.Sprintf("n%d", i), rate: 970 + s.r.Int64N(61), skew: s.r.Int64N(int64(400*time.Millisecond)) - int64(200*time.Millisecond)}
		n.clients = 100 * i
		s.nodes = append(s.nodes, n)
		n.start(time.Duration(s.r.Int64N(int64(time.Second))))
	}
	s.run(length)
	return s
}

var seeds = flag.Int("sim.seeds", 0, "histories that TestSimulation makes; 0 means as many as fit into some seconds, or 200,000 with CRETO_TORTURE=1")

// What fits into an ordinary run of the tests; the race detector makes it ten
// times slower.
const (
	fewSeeds  = 300
	manySeeds = 2000
	patience  = 5 * time.Second
)

// TestSimulation: whatever goes wrong, what callers get is a history of one clock.
func TestSimulation(t *testing.T) {
	n, least, until := *seeds, *seeds, time.Now().Add(patience)
	if n == 0 {
		n, least = manySeeds, fewSeeds
		if os.Getenv("CRETO_TORTURE") == "1" {
			n, least = 200_000, 200_000
		}
	}
	var calls, leaders, idle, done int
	for seed := range uint64(n) {
		if done >= least && time.Now().After(until) {
			break
		}
		done++
		s := simulate(seed, 30*time.Second, simBroken{})
		if got := consensustest.CheckHistory(s.calls); got != porcupine.Ok {
			t.Fatalf("seed %d: %v", seed, got)
		}
		calls += len(s.calls)
		leaders += int(s.etcd.term)
		if len(s.calls) == 0 {
			idle++
		}
	}
	t.Logf("%d histories of 30 s: %d stamps by %d leaders; %d histories without any", done, calls, leaders, idle)
	if leaders < 3*done || calls < 200*done {
		t.Errorf("%d leaders and %d stamps in %d histories: too little happens", leaders, calls, done)
	}
}

// One seed is one history.
func TestSimulationIsDeterministic(t *testing.T) {
	a, b := simulate(7, 30*time.Second, simBroken{}), simulate(7, 30*time.Second, simBroken{})
	if len(a.calls) == 0 || len(a.calls) != len(b.calls) || a.calls[len(a.calls)-1] != b.calls[len(b.calls)-1] || a.seq != b.seq {
		t.Errorf("seed 7 gives %d calls in %d steps, and then %d in %d", len(a.calls), a.seq, len(b.calls), b.seq)
	}
}

// When nothing goes wrong, there is one leader for good, and it answers.
func TestSimulationQuiet(t *testing.T) {
	s := simulate(1, 30*time.Second, simBroken{quiet: true})
	if got := consensustest.CheckHistory(s.calls); got != porcupine.Ok || s.etcd.term != 1 || len(s.calls) < 700 {
		t.Errorf("a quiet day: %v, %d leaders, %d stamps", got, s.etcd.term, len(s.calls))
	}
}

// Each of the checks is needed: without it the checker finds a history that no
// clock has.
func TestMutants(t *testing.T) {
	for name, c := range map[string]struct {
		from uint64 // a seed that is near one that finds it
		with simBroken
	}{
		"without the window":              {0, simBroken{broken: broken{window: true}}},
		"without the high-water mark":     {40, simBroken{broken: broken{mark: true}}},
		"without the wait for the window": {0, simBroken{broken: broken{wait: true}}},
		"without the fence":               {0, simBroken{fence: true}},
		"without a term of its own":       {0, simBroken{term: true}},
		"with a farewell for others":      {800, simBroken{bye: true}},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := c.from; seed < c.from+20_000; seed++ {
				if consensustest.CheckHistory(simulate(seed, 30*time.Second, c.with).calls) == porcupine.Illegal {
					t.Logf("found with seed %d", seed)
					return
				}
			}
			t.Error("nobody notices")
		})
	}
}

var _ store = (*simNode)(nil)
