// Package remoteconsensus is a consensus.Clock in another process, over gRPC:
// [New] is the client, [Register] the server.
//
// One question is under way at a time and asks for as many stamps as there are
// callers who wait, as TiKV's client of its timestamp oracle does. Who comes while
// it is under way waits for the next one, so that each stamp was made after its
// caller asked for it.
package remoteconsensus

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/consensus"
	"creto.dev/fault"
	consensusv1 "creto.dev/internal/gen/creto/consensus/v1"
)

// DefaultTimeout bounds each attempt of a call where the policy does not.
const DefaultTimeout = time.Second

type client struct {
	rpc     consensusv1.ClockServiceClient
	policy  call.Policy
	leading bool

	mu      sync.Mutex // guards what follows
	waiting []chan<- answer
	asking  bool // somebody runs ask
}

// answer is what one caller of Now gets.
type answer struct {
	stamp creto.Timestamp
	err   error
}

var _ consensus.Batcher = (*client)(nil)

// New returns the clock at the other end of conn, which the caller closes. It
// refuses stamps that are no later than those it gave before.
func New(conn grpc.ClientConnInterface, policy call.Policy) *consensus.Guard {
	return consensus.NewGuard(newClient(conn, policy, false))
}

// NewForwarder returns the clock at the other end of conn for a node of the same
// cluster that passes questions on to the one that leads: the other end answers
// only if it leads, so that no question goes in circles.
func NewForwarder(conn grpc.ClientConnInterface, policy call.Policy) *consensus.Guard {
	return consensus.NewGuard(newClient(conn, policy, true))
}

func newClient(conn grpc.ClientConnInterface, policy call.Policy, leading bool) *client {
	if policy.Timeout == 0 {
		policy.Timeout = DefaultTimeout
	}
	return &client{rpc: consensusv1.NewClockServiceClient(conn), policy: policy, leading: leading}
}

// do makes one call. On an error the answer is nil, whose fields read as empty.
func do[In, Out any](ctx context.Context, c *client, o call.Operation, method func(context.Context, *In, ...grpc.CallOption) (*Out, error), in *In) (*Out, error) {
	out, err := call.Do(ctx, c.policy, o, func(ctx context.Context) (*Out, error) {
		out, err := method(ctx, in)
		return out, named(err)
	})
	return out, err
}

// named gives what happens to every call the contract's name.
func named(err error) error {
	const op fault.Op = "remoteconsensus"
	switch fault.CodeOf(err) {
	case fault.DeadlineExceeded:
		return fault.WrapAs(op, fault.ConsensusTimeout, errors.Join(err, fault.ConsensusTimeout), "the time service is slow")
	case fault.Unavailable:
		return fault.WrapAs(op, fault.ConsensusUnavailable, errors.Join(err, fault.ConsensusUnavailable), "the time service cannot be reached")
	}
	return err
}

// Now implements consensus.Clock.
func (c *client) Now(ctx context.Context) (creto.Timestamp, error) {
	const op fault.Op = "remoteconsensus.Now"
	if err := ctx.Err(); err != nil {
		return creto.Timestamp{}, fault.Wrap(op, err)
	}
	mine := make(chan answer, 1) // whoever left is answered too
	c.mu.Lock()
	c.waiting = append(c.waiting, mine)
	first := !c.asking
	c.asking = true
	c.mu.Unlock()
	if first {
		// It ends with the last caller who waits, and each of its calls is
		// bounded by the policy. No caller ends it for the others.
		go c.ask(context.WithoutCancel(ctx))
	}
	select {
	case a := <-mine:
		return a.stamp, fault.Wrap(op, a.err)
	case <-ctx.Done():
		return creto.Timestamp{}, fault.Wrap(op, ctx.Err())
	}
}

// ask asks for those who wait until nobody does.
func (c *client) ask(ctx context.Context) {
	for {
		c.mu.Lock()
		n := min(len(c.waiting), consensus.MaxBatch)
		batch := c.waiting[:n:n]
		c.waiting = c.waiting[n:]
		c.asking = n > 0
		c.mu.Unlock()
		if n == 0 {
			return
		}
		stamps, err := c.Stamps(ctx, n)
		for i, caller := range batch {
			a := answer{err: err}
			if err == nil {
				a.stamp = stamps[i]
			}
			caller <- a
		}
	}
}

// Stamps implements consensus.Batcher.
func (c *client) Stamps(ctx context.Context, n int) ([]creto.Timestamp, error) {
	const op fault.Op = "remoteconsensus.Stamps"
	if err := consensus.CheckBatch(n); err != nil {
		return nil, err
	}
	// A stamp that is lost with its answer is one that nobody has: asking again
	// is safe.
	out, err := do(ctx, c, call.Read(op), c.rpc.Stamps, &consensusv1.StampsRequest{Count: uint32(n), Leading: c.leading})
	if err != nil {
		return nil, err
	}
	if got := len(out.GetStamps()); got != n {
		return nil, fault.New(op, fault.ConsensusOrderingConflict, "the time service gives %d stamps instead of %d", got, n)
	}
	stamps := make([]creto.Timestamp, n)
	for i, s := range out.GetStamps() {
		stamps[i] = stampFrom(s)
	}
	return stamps, nil
}

// Register implements consensus.Clock.
func (c *client) Register(ctx context.Context, id consensus.EventID) (creto.Timestamp, error) {
	out, err := do(ctx, c, call.Write("remoteconsensus.Register", id.String()), c.rpc.Register, &consensusv1.RegisterRequest{Id: id[:]})
	return stampFrom(out.GetStamp()), err
}

// OrderEvents implements consensus.Clock.
func (c *client) OrderEvents(ctx context.Context, ids []consensus.EventID) ([]consensus.Ordered, error) {
	distinct, err := consensus.Distinct(ids)
	if err != nil {
		return nil, err
	}
	in := &consensusv1.OrderEventsRequest{}
	for _, id := range distinct {
		in.Ids = append(in.Ids, id[:])
	}
	out, err := do(ctx, c, call.Read("remoteconsensus.OrderEvents"), c.rpc.OrderEvents, in)
	if err != nil {
		return nil, err
	}
	var events []consensus.Ordered
	for _, e := range out.GetEvents() {
		id, err := idFrom("remoteconsensus.OrderEvents", e.GetId())
		if err != nil {
			return nil, fault.WrapAs("remoteconsensus.OrderEvents", fault.ConsensusOrderingConflict, err, "the time service orders what is no event")
		}
		events = append(events, consensus.Ordered{ID: id, Stamp: stampFrom(e.GetStamp())})
	}
	return events, nil
}

// Ping implements consensus.Clock.
func (c *client) Ping(ctx context.Context) error {
	_, err := do(ctx, c, call.Read("remoteconsensus.Ping"), c.rpc.Ping, &consensusv1.PingRequest{Leading: c.leading})
	return err
}

func stampOf(s creto.Timestamp) *consensusv1.Timestamp {
	return &consensusv1.Timestamp{Logical: s.Logical, Physical: s.Physical, Source: string(s.Source), Node: s.Node, Uncertainty: s.Uncertainty}
}

func stampFrom(s *consensusv1.Timestamp) creto.Timestamp {
	return creto.Timestamp{Logical: s.GetLogical(), Physical: s.GetPhysical(), Source: creto.Source(s.GetSource()), Node: s.GetNode(), Uncertainty: s.GetUncertainty()}
}

// idFrom reads the digest that names an event.
//
// Errors: InvalidArgument (Permanent).
func idFrom(op fault.Op, b []byte) (consensus.EventID, error) {
	var id consensus.EventID
	if len(b) != len(id) {
		return id, fault.New(op, fault.InvalidArgument, "an event is named by %d bytes, not %d", len(id), len(b))
	}
	copy(id[:], b)
	return id, nil
}
