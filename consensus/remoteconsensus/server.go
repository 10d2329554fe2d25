package remoteconsensus

import (
	"context"

	"google.golang.org/grpc"

	"creto.dev/consensus"
	"creto.dev/fault"
	consensusv1 "creto.dev/internal/gen/creto/consensus/v1"
)

// Register has s serve c. leading answers instead of c what another node of a
// cluster passes on; nil refuses that. Who may ask is decided before (package
// serve). c must be no fallback: whoever asks has one of their own, and knows for
// how long.
func Register(s grpc.ServiceRegistrar, c, leading consensus.Clock) {
	consensusv1.RegisterClockServiceServer(s, server{clock: c, leading: leading})
}

type server struct {
	consensusv1.UnimplementedClockServiceServer
	clock   consensus.Clock
	leading consensus.Clock
}

// of is who answers.
func (s server) of(leading bool) (consensus.Clock, error) {
	if !leading {
		return s.clock, nil
	}
	if s.leading == nil {
		return nil, fault.New("remoteconsensus", fault.ConsensusUnavailable, "this node is of no cluster")
	}
	return s.leading, nil
}

// Stamps implements consensusv1.ClockServiceServer.
func (s server) Stamps(ctx context.Context, r *consensusv1.StampsRequest) (*consensusv1.StampsResponse, error) {
	c, err := s.of(r.GetLeading())
	if err != nil {
		return nil, err
	}
	stamps, err := consensus.Stamps(ctx, c, int(r.GetCount()))
	if err != nil {
		return nil, err
	}
	out := &consensusv1.StampsResponse{Stamps: make([]*consensusv1.Timestamp, len(stamps))}
	for i, stamp := range stamps {
		out.Stamps[i] = stampOf(stamp)
	}
	return out, nil
}

// Register implements consensusv1.ClockServiceServer.
func (s server) Register(ctx context.Context, r *consensusv1.RegisterRequest) (*consensusv1.RegisterResponse, error) {
	id, err := idFrom("remoteconsensus.Register", r.GetId())
	if err != nil {
		return nil, err
	}
	stamp, err := s.clock.Register(ctx, id)
	return &consensusv1.RegisterResponse{Stamp: stampOf(stamp)}, err
}

// OrderEvents implements consensusv1.ClockServiceServer.
func (s server) OrderEvents(ctx context.Context, r *consensusv1.OrderEventsRequest) (*consensusv1.OrderEventsResponse, error) {
	const op fault.Op = "remoteconsensus.OrderEvents"
	ids := make([]consensus.EventID, len(r.GetIds()))
	for i, raw := range r.GetIds() {
		var err error
		if ids[i], err = idFrom(op, raw); err != nil {
			return nil, err
		}
	}
	events, err := s.clock.OrderEvents(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := &consensusv1.OrderEventsResponse{}
	for _, e := range events {
		out.Events = append(out.Events, &consensusv1.OrderedEvent{Id: e.ID[:], Stamp: stampOf(e.Stamp)})
	}
	return out, nil
}

// Ping implements consensusv1.ClockServiceServer.
func (s server) Ping(ctx context.Context, r *consensusv1.PingRequest) (*consensusv1.PingResponse, error) {
	c, err := s.of(r.GetLeading())
	if err != nil {
		return nil, err
	}
	return &consensusv1.PingResponse{}, c.Ping(ctx)
}
