// Package etcdconsensus orders events for a cluster of nodes that share an etcd.
//
// One node leads and makes all stamps; the others pass questions on to it. What
// makes that safe is not etcd's lease, which a stuck etcd has been known to end
// early, but what etcd orders itself:
//
//   - A term is raised in the transaction that elects a leader. It is the upper
//     part of every stamp, so that the stamps of two leaders never interleave.
//   - Each renewal is a transaction that is refused once another leads. It lets
//     the leader make stamps for one window, counted from before it was sent.
//   - A new leader waits for a window before its first stamp, unless the one
//     before said farewell: by then the windows of all before have ended.
//   - The leader looks at its window before it makes a stamp and after, by the
//     clock that goes on while the machine sleeps. Either would keep the order;
//     looking again throws away a stamp whose time is long past.
//   - The renewal saves a mark, ahead of every Physical of its window, below which
//     no later leader begins.
//
// This is bounded by how fast clocks run, never by what they say: a tenth of the
// window is kept as a margin.
package etcdconsensus

import (
	"context"
	"errors"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
)

// DefaultLeaseTTL is Config.LeaseTTL where that is 0.
const DefaultLeaseTTL = 3 * time.Second

// Config is one node of the cluster.
type Config struct {
	// Node names this node in its stamps. Required.
	Node string
	// Address is where other nodes reach this one, as Forward understands it.
	// "" means that they cannot: a node without it never leads.
	Address string
	// Prefix begins every key in etcd. Nodes with one prefix are one clock.
	// Required.
	Prefix string
	// LeaseTTL is how long a leader that is silent stays it; a leader that died
	// is replaced after one and a half times that. 0 means DefaultLeaseTTL; etcd
	// raises what is less than its election timeout.
	LeaseTTL time.Duration
	// Forward connects to the node at an address, which answers only if it
	// leads. The clock keeps what it returns for as long as that address leads.
	// nil means that questions are not passed on.
	Forward func(address string) (Forwarder, error)
}

// Forwarder is a connection to the leader.
type Forwarder interface {
	consensus.Batcher
	// Close ends it.
	Close() error
}

// window is how long a leader may make stamps after a renewal that succeeded, by
// the clocks of others; its own counts a tenth less.
func (c Config) window() time.Duration { return c.ttl() / 2 }

// renewal is how often a leader renews.
func (c Config) renewal() time.Duration { return c.ttl() / 6 }

func (c Config) ttl() time.Duration {
	if c.LeaseTTL > 0 {
		return c.LeaseTTL
	}
	return DefaultLeaseTTL
}

// margin is what a duration loses here for clocks that run at another speed.
func margin(d time.Duration) int64 { return int64(d - d/10) }

// markAhead is how far ahead of time the mark is saved: more than the longest
// window.
func (c Config) markAhead() int64 { return int64(c.window() + c.window()/2) }

// Clock is a node of the cluster. Its Run must run: without it this node never
// leads, and does not know who does. Safe for concurrent use.
type Clock struct {
	config Config
	store  store
	time   timeSource
	broken broken

	mu      sync.Mutex // guards what follows
	lead    leadership // the zero leadership while another leads
	leader  leader     // who was last known to lead
	forward Forwarder  // to forwardTo
	to      string
	raise   creto.Timestamp // what the next term must be later than
}

var _ consensus.Batcher = (*Clock)(nil)

// leadership is one time of leading. Its end is a new value, so that whatever is
// late finds its own gone.
type leadership struct {
	term    uint64 // 0 means none
	counter uint64
	last    int64 // Physical of the newest stamp
	offset  int64 // Physical is the awake time plus this
	mark    int64 // the mark in etcd
	until   int64 // awake time at which the window ends
	spent   bool  // the counter is used up
}

// leader is who leads, as etcd says.
type leader struct {
	Node    string `json:"node"`
	Address string `json:"address"`
}

// Now implements consensus.Clock.
func (c *Clock) Now(ctx context.Context) (creto.Timestamp, error) {
	s, err := c.allocate(1)
	if err == nil {
		return s.at(0), nil
	}
	f, err := c.forwarder(err)
	if err != nil {
		return creto.Timestamp{}, err
	}
	return f.Now(ctx)
}

// Stamps implements consensus.Batcher.
func (c *Clock) Stamps(ctx context.Context, n int) ([]creto.Timestamp, error) {
	if err := consensus.CheckBatch(n); err != nil {
		return nil, err
	}
	stamps, err := c.own(n)
	if err == nil {
		return stamps, nil
	}
	f, err := c.forwarder(err)
	if err != nil {
		return nil, err
	}
	return f.Stamps(ctx, n)
}

func (c *Clock) own(n int) ([]creto.Timestamp, error) {
	s, err := c.allocate(uint64(n))
	if err != nil {
		return nil, err
	}
	stamps := make([]creto.Timestamp, n)
	for i := range stamps {
		stamps[i] = s.at(uint64(i))
	}
	return stamps, nil
}

// block is the stamps of one allocation.
type block struct {
	term, first uint64
	physical    int64
	node        string
}

func (b block) at(i uint64) creto.Timestamp {
	return creto.Timestamp{Logical: creto.LogicalOf(b.term, b.first+i), Physical: b.physical, Source: creto.SourceConsensus, Node: b.node}
}

// allocate makes n stamps, if this node leads. The clock is read outside of the
// lock: where this process is stopped, or for how long, does not matter.
func (c *Clock) allocate(n uint64) (block, error) {
	const op fault.Op = "etcdconsensus.allocate"
	before := c.time.awake()
	c.mu.Lock()
	l := &c.lead
	switch {
	case l.term == 0:
		c.mu.Unlock()
		return block{}, fault.New(op, fault.ConsensusUnavailable, "this node does not lead")
	case before >= l.until && !c.broken.window:
		c.mu.Unlock()
		return block{}, fault.New(op, fault.ConsensusUnavailable, "this node has not reached etcd in time to go on leading")
	case l.spent || l.counter+n > creto.MaxCounter:
		l.spent = true // Run finds that and begins another term
		c.mu.Unlock()
		return block{}, fault.New(op, fault.ConsensusUnavailable, "the term is used up")
	}
	// Below the mark, whatever the clock says.
	l.last = max(l.last, min(before+l.offset, l.mark))
	b := block{term: l.term, first: l.counter + 1, physical: l.last, node: c.config.Node}
	l.counter += n
	until := l.until
	c.mu.Unlock()
	if c.time.awake() >= until && !c.broken.window {
		return block{}, fault.New(op, fault.ConsensusUnavailable, "this node was stopped for so long that another may lead")
	}
	return b, nil
}

// forwarder returns a way to who leads, where this node could not answer itself.
func (c *Clock) forwarder(why error) (Forwarder, error) {
	const op fault.Op = "etcdconsensus.forward"
	c.mu.Lock()
	defer c.mu.Unlock()
	address := c.leader.Address
	if address == "" || address == c.config.Address || c.config.Forward == nil {
		return nil, fault.Wrap(op, why)
	}
	if c.forward != nil && c.to == address {
		return c.forward, nil
	}
	f, err := c.config.Forward(address)
	if err != nil {
		return nil, fault.WrapAs(op, fault.ConsensusUnavailable, errors.Join(err, why), "who leads cannot be reached")
	}
	old := c.forward
	c.forward, c.to = f, address
	if old != nil {
		return f, fault.Wrap(op, old.Close())
	}
	return f, nil
}

// Register implements consensus.Clock. Events stay in etcd for good: it is for few
// of them, and their number is etcd's to bear.
func (c *Clock) Register(ctx context.Context, id consensus.EventID) (creto.Timestamp, error) {
	s, err := c.Now(ctx)
	if err != nil {
		return creto.Timestamp{}, err
	}
	return c.store.register(ctx, id, s)
}

// OrderEvents implements consensus.Clock.
func (c *Clock) OrderEvents(ctx context.Context, ids []consensus.EventID) ([]consensus.Ordered, error) {
	distinct, err := consensus.Distinct(ids)
	if err != nil {
		return nil, err
	}
	events, err := c.store.events(ctx, distinct)
	if err != nil {
		return nil, err
	}
	consensus.Sort(events)
	return events, nil
}

// Ping implements consensus.Clock: this node leads and etcd agrees, or who leads
// says so.
func (c *Clock) Ping(ctx context.Context) error {
	const op fault.Op = "etcdconsensus.Ping"
	err := c.pingOwn(ctx)
	if err == nil {
		return nil
	}
	f, err := c.forwarder(err)
	if err != nil {
		return fault.Wrap(op, err)
	}
	return f.Ping(ctx)
}

func (c *Clock) pingOwn(ctx context.Context) error {
	const op fault.Op = "etcdconsensus.Ping"
	now := c.time.awake()
	c.mu.Lock()
	leads := c.lead.term != 0 && now < c.lead.until
	c.mu.Unlock()
	if !leads {
		return fault.New(op, fault.ConsensusUnavailable, "this node does not lead")
	}
	who, err := c.store.leader(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if who.Node != c.config.Node {
		return fault.New(op, fault.ConsensusUnavailable, "another node leads")
	}
	return nil
}

// Leading answers only while this node leads: it is what other nodes reach
// through Config.Forward.
func (c *Clock) Leading() consensus.Batcher { return leading{c} }

type leading struct{ *Clock }

func (l leading) Now(context.Context) (creto.Timestamp, error) {
	s, err := l.allocate(1)
	if err != nil {
		return creto.Timestamp{}, err
	}
	return s.at(0), nil
}

func (l leading) Stamps(_ context.Context, n int) ([]creto.Timestamp, error) {
	if err := consensus.CheckBatch(n); err != nil {
		return nil, err
	}
	return l.own(n)
}

func (l leading) Ping(ctx context.Context) error { return l.pingOwn(ctx) }

// Raise has the terms that this node begins be later than s: for a cluster whose
// nodes took their time elsewhere before. Call it before Run.
//
// Errors: FailedPrecondition (Permanent) if no term is later.
func (c *Clock) Raise(s creto.Timestamp) error {
	if s.Term() >= creto.MaxTerm {
		return fault.New("etcdconsensus.Raise", fault.FailedPrecondition, "no term is later than %d", s.Term())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raise.Logical, c.raise.Physical = max(c.raise.Logical, s.Logical), max(c.raise.Physical, s.Physical)
	return nil
}

// Close ends what the clock holds. Run must have returned.
func (c *Clock) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.forward != nil {
		err = c.forward.Close()
		c.forward = nil
	}
	return errors.Join(err, c.store.close())
}
