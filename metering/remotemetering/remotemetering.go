// Package remotemetering is a metering.Lender in another process, over gRPC: [New]
// is the client, [Register] the server.
package remotemetering

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/fault"
	meteringv1 "creto.dev/internal/gen/creto/metering/v1"
	"creto.dev/metering"
)

// DefaultTimeout bounds each attempt of a call where the policy does not.
const DefaultTimeout = time.Second

type client struct {
	rpc    meteringv1.LenderServiceClient
	policy call.Policy
}

// New returns the lender at the other end of conn, which the caller closes.
func New(conn grpc.ClientConnInterface, policy call.Policy) metering.Lender {
	if policy.Timeout == 0 {
		policy.Timeout = DefaultTimeout
	}
	return &client{rpc: meteringv1.NewLenderServiceClient(conn), policy: policy}
}

// do makes one call. On an error the answer is nil, whose fields read as empty.
func do[In, Out any](ctx context.Context, c *client, o call.Operation, method func(context.Context, *In, ...grpc.CallOption) (*Out, error), in *In) (*Out, error) {
	return call.Do(ctx, c.policy, o, func(ctx context.Context) (*Out, error) {
		out, err := method(ctx, in)
		return out, named(err)
	})
}

// named gives what happens to every call the contract's name.
func named(err error) error {
	const op fault.Op = "remotemetering"
	switch fault.CodeOf(err) {
	case fault.DeadlineExceeded:
		return fault.WrapAs(op, fault.AuthzTimeout, errors.Join(err, fault.AuthzTimeout), "the node that keeps the limits is slow")
	case fault.Unavailable:
		return fault.WrapAs(op, fault.AuthzUnavailable, errors.Join(err, fault.AuthzUnavailable), "the node that keeps the limits cannot be reached")
	}
	return err
}

// Terms implements metering.Lender.
func (c *client) Terms(ctx context.Context, agent, human creto.ID) (metering.Terms, error) {
	const op fault.Op = "remotemetering.Terms"
	out, err := do(ctx, c, call.Read(op), c.rpc.Terms, &meteringv1.TermsRequest{Agent: agent.String(), Human: human.String()})
	if err != nil {
		return metering.Terms{}, err
	}
	var t metering.Terms
	var errs []error
	// theirs reads a subject, which is of no other agent or human.
	theirs := func(in *meteringv1.Subject) metering.Subject {
		s, err := subjectFrom(in)
		if err == nil && (s.Agent != agent || !s.Human.IsZero() && s.Human != human) {
			err = fault.New(op, fault.AuthzUnavailable, "the lender tells of another agent's limits")
		}
		errs = append(errs, err)
		return s
	}
	for _, x := range out.GetQuotas() {
		l := metering.Limit{Amount: x.GetAmount(), Window: time.Duration(x.GetWindowNs())}
		t.Limits = append(t.Limits, metering.BudgetTerm{Subject: theirs(x.GetSubject()), Limit: l})
		errs = append(errs, l.Validate())
	}
	for _, x := range out.GetRates() {
		r := metering.Rate{Count: x.GetCount(), Period: time.Duration(x.GetPeriodNs()), Burst: x.GetBurst()}
		t.Rates = append(t.Rates, metering.RateTerm{Subject: theirs(x.GetSubject()), Rate: r})
		errs = append(errs, r.Validate())
	}
	if err := errors.Join(errs...); err != nil {
		return metering.Terms{}, fault.WrapAs(op, fault.AuthzUnavailable, err, "the node that keeps the limits tells of some that are none")
	}
	return t, nil
}

// Lease implements metering.Lender. It is not repeated: the borrower asks anew.
func (c *client) Lease(ctx context.Context, r metering.LeaseRequest) (metering.Lease, error) {
	out, err := do(ctx, c, call.Write("remotemetering.Lease", ""), c.rpc.Lease, &meteringv1.LeaseRequest{
		Borrower: r.Borrower, Sequence: r.Sequence, Subject: subjectOf(r.Subject), WindowNs: int64(r.Window),
		StartNs: r.Start, Had: r.Had, Held: r.Held, Want: r.Want,
	})
	if err != nil {
		return metering.Lease{}, err
	}
	return metering.Lease{
		Start: out.GetStartNs(), Held: out.GetHeld(), TTL: time.Duration(out.GetTtlNs()),
		Limit: out.GetLimit(), Used: out.GetUsed(), Reset: time.Duration(out.GetResetNs()),
	}, nil
}

// Ping implements metering.Lender.
func (c *client) Ping(ctx context.Context) error {
	_, err := do(ctx, c, call.Read("remotemetering.Ping"), c.rpc.Ping, &meteringv1.PingRequest{})
	return err
}

func subjectOf(s metering.Subject) *meteringv1.Subject {
	return &meteringv1.Subject{Agent: s.Agent.String(), Human: s.Human.String(), Action: s.Action}
}

// subjectFrom reads a subject.
//
// Errors: InvalidArgument (Permanent).
func subjectFrom(in *meteringv1.Subject) (metering.Subject, error) {
	s := metering.Subject{Action: in.GetAction()}
	err := errors.Join(s.Agent.UnmarshalText([]byte(in.GetAgent())), s.Human.UnmarshalText([]byte(in.GetHuman())))
	if err == nil {
		err = s.Validate()
	}
	return s, fault.Wrap("remotemetering.subject", err)
}
