package etcdconsensus

import (
	"context"
	"errors"
	"time"

	"creto.dev"
	"creto.dev/fault"
)

// timeSource is what a clock reads time from, and waits by.
type timeSource interface {
	// wall returns the system's time in Unix nanoseconds.
	wall() int64
	// awake returns nanoseconds of a clock that nobody sets and that goes on
	// while the machine sleeps.
	awake() int64
	// sleep waits for d or the end of ctx.
	sleep(ctx context.Context, d time.Duration)
}

// broken takes checks away, for tests that show what they are for.
type broken struct {
	window bool // the window is not looked at, before or after
	mark   bool // a new leader does not begin above the mark
	wait   bool // a new leader does not wait for the window of the one before
}

// errFenced is a renewal that was refused because another leads.
var errFenced = errors.New("another leads")

// grant is what an election gave.
type grant struct {
	term  uint64
	fence int64 // the revision at which the leader's key was made
	lease int64
	// leased is the awake time before the lease was last asked for, and ttl how
	// long it lasts.
	leased int64
	ttl    time.Duration
	mark   int64 // as the leader before left it
	// clean says that no window of a leader before is open: the one before said
	// farewell, or this one has waited.
	clean bool
}

// store is what the cluster shares. Each method is one transaction of etcd (or a
// lease's request and one), and bounded in time by the store.
type store interface {
	// campaign tries to lead, in a term that is above floor. It is nil where
	// another leads.
	campaign(ctx context.Context, me leader, ttl time.Duration, floor uint64) (*grant, error)
	// renew keeps the lease and raises the mark. It returns errFenced if g no
	// longer leads. It moves g.leased.
	renew(ctx context.Context, g *grant, mark int64) error
	// resign gives the leadership up, if g has it, says how far it came, and, if
	// g is clean, farewell.
	resign(ctx context.Context, g *grant, mark int64) error
	// leader returns who leads, or nobody.
	leader(ctx context.Context) (leader, error)
	// changed waits until somebody else may lead, for d at most.
	changed(ctx context.Context, d time.Duration)

	events
}

// Run campaigns, leads, and follows, until ctx ends; then it resigns. It returns
// nil.
func (c *Clock) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		g := c.campaign(ctx)
		if g == nil {
			c.store.changed(ctx, c.config.renewal())
			continue
		}
		c.reign(ctx, g)
	}
	return nil
}

// campaign learns who leads, and tries to if nobody does.
func (c *Clock) campaign(ctx context.Context) *grant {
	who, err := c.store.leader(ctx)
	if err != nil {
		return nil // who led may still do
	}
	c.follow(who)
	if who != (leader{}) || c.config.Address == "" {
		return nil
	}
	c.mu.Lock()
	floor := c.raise.Term()
	c.mu.Unlock()
	me := leader{Node: c.config.Node, Address: c.config.Address}
	g, err := c.store.campaign(ctx, me, c.config.ttl(), floor)
	if err != nil || g == nil {
		return nil
	}
	return g
}

// follow takes note of who leads.
func (c *Clock) follow(who leader) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader = who
}

// reign leads until ctx ends, another leads, or the lease or the term has ended.
func (c *Clock) reign(ctx context.Context, g *grant) {
	defer c.resign(ctx, g)
	if !c.outwait(ctx, g) {
		return
	}
	l := c.begin(g)
	for ctx.Err() == nil {
		next, ok := c.extend(ctx, g, l)
		if !ok || !c.publish(next) || c.time.awake() >= g.leased+margin(g.ttl) {
			return
		}
		l = next
		c.time.sleep(ctx, c.config.renewal())
	}
}

// outwait waits for the windows of all who led before: they were granted before
// the election. It keeps the lease meanwhile, and reports false if it is lost.
func (c *Clock) outwait(ctx context.Context, g *grant) bool {
	if g.clean || c.broken.wait {
		return true
	}
	end := c.time.awake() + int64(c.config.window())
	for now := c.time.awake(); now < end; now = c.time.awake() {
		c.time.sleep(ctx, min(time.Duration(end-now), c.config.renewal()))
		if ctx.Err() != nil || errors.Is(c.store.renew(ctx, g, g.mark), errFenced) {
			return false
		}
	}
	g.clean = true // not before: a farewell says that nobody's window is open
	return true
}

// begin is the leadership that g gives, without a window yet.
func (c *Clock) begin(g *grant) leadership {
	c.mu.Lock()
	floor := max(g.mark, c.raise.Physical)
	c.mu.Unlock()
	if c.broken.mark {
		floor = 0
	}
	now := c.time.awake()
	last := max(c.time.wall(), floor)
	return leadership{term: g.term, last: last, offset: last - now, mark: g.mark}
}

// extend renews in etcd and returns l with a window and a mark; as it was if etcd
// cannot be reached; and false if another leads.
func (c *Clock) extend(ctx context.Context, g *grant, l leadership) (leadership, bool) {
	asked := c.time.awake()
	// Time is brought back to the system's clock as adjtime(3) does it.
	limit := int64(c.config.renewal() / 8)
	l.offset += max(-limit, min(limit, c.time.wall()-(asked+l.offset)))
	mark := max(l.mark, max(l.last, asked+l.offset)+c.config.markAhead())
	err := c.store.renew(ctx, g, mark)
	if err == nil {
		l.mark = mark
		l.until = min(asked+margin(c.config.window()), g.leased+margin(g.ttl))
	}
	return l, !errors.Is(err, errFenced)
}

// publish lets callers have stamps of l. It reports false if the term is used up.
func (c *Clock) publish(l leadership) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lead.term != l.term {
		c.lead, c.leader = l, leader{Node: c.config.Node, Address: c.config.Address}
		return true
	}
	c.lead.until, c.lead.mark, c.lead.offset = l.until, l.mark, l.offset
	return !c.lead.spent
}

// resign stops making stamps, and then says so.
func (c *Clock) resign(ctx context.Context, g *grant) {
	c.mu.Lock()
	l := c.lead
	if l.term == g.term {
		c.lead, c.leader = leadership{}, leader{}
	}
	c.mu.Unlock()
	mark := g.mark
	if l.term == g.term {
		mark = l.last // no stamp is later, whatever was saved ahead
	}
	// Nobody waits for it: if it does not arrive, the lease ends by itself.
	_ = c.store.resign(context.WithoutCancel(ctx), g, mark)
}

// nextTerm is the term that follows current, above floor.
//
// Errors: ConsensusUnavailable (Degraded) if there is none.
func nextTerm(current, floor uint64) (uint64, error) {
	next := max(current, floor) + 1
	if next > creto.MaxTerm {
		return 0, fault.New("etcdconsensus.campaign", fault.ConsensusUnavailable, "the cluster has had %d terms and has none left", current)
	}
	return next, nil
}
