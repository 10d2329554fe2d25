package remotemetering

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/fault"
	meteringv1 "creto.dev/internal/gen/creto/metering/v1"
	"creto.dev/metering"
)

// Register has s serve l. Who may borrow is decided before (package serve): whoever
// does can use up every budget.
func Register(s grpc.ServiceRegistrar, l metering.Lender) {
	meteringv1.RegisterLenderServiceServer(s, server{lender: l})
}

type server struct {
	meteringv1.UnimplementedLenderServiceServer
	lender metering.Lender
}

// Terms implements meteringv1.LenderServiceServer.
func (s server) Terms(ctx context.Context, in *meteringv1.TermsRequest) (*meteringv1.TermsResponse, error) {
	var agent, human creto.ID
	if err := errors.Join(agent.UnmarshalText([]byte(in.GetAgent())), human.UnmarshalText([]byte(in.GetHuman()))); err != nil {
		return nil, fault.Wrap("remotemetering.Terms", err)
	}
	t, err := s.lender.Terms(ctx, agent, human)
	if err != nil {
		return nil, err
	}
	out := &meteringv1.TermsResponse{}
	for _, x := range t.Limits {
		out.Quotas = append(out.Quotas, &meteringv1.Quota{Subject: subjectOf(x.Subject), Amount: x.Amount, WindowNs: int64(x.Window)})
	}
	for _, x := range t.Rates {
		out.Rates = append(out.Rates, &meteringv1.Rate{Subject: subjectOf(x.Subject), Count: x.Count, PeriodNs: int64(x.Period), Burst: x.Burst})
	}
	return out, nil
}

// Lease implements meteringv1.LenderServiceServer.
func (s server) Lease(ctx context.Context, in *meteringv1.LeaseRequest) (*meteringv1.LeaseResponse, error) {
	subject, err := subjectFrom(in.GetSubject())
	if err != nil {
		return nil, err
	}
	if in.GetBorrower() == "" {
		return nil, fault.New("remotemetering.Lease", fault.InvalidArgument, "a lease is for a borrower")
	}
	l, err := s.lender.Lease(ctx, metering.LeaseRequest{
		// Nobody gives back what another has.
		Borrower: creto.CallerOf(ctx).String() + " " + in.GetBorrower(), Sequence: in.GetSequence(),
		Subject: subject, Window: time.Duration(in.GetWindowNs()), Start: in.GetStartNs(), Had: in.GetHad(), Held: in.GetHeld(), Want: in.GetWant(),
	})
	if err != nil {
		return nil, err
	}
	return &meteringv1.LeaseResponse{
		StartNs: l.Start, Held: l.Held, TtlNs: int64(l.TTL), Limit: l.Limit, Used: l.Used, ResetNs: int64(l.Reset),
	}, nil
}

// Ping implements meteringv1.LenderServiceServer.
func (s server) Ping(ctx context.Context, _ *meteringv1.PingRequest) (*meteringv1.PingResponse, error) {
	return &meteringv1.PingResponse{}, s.lender.Ping(ctx)
}
