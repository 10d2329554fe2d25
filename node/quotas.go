package node

import (
	"context"
	"log/slog"
	"strconv"
	"strings"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/gateway"
	"creto.dev/metering"
	"creto.dev/metering/remotemetering"
)

// limits are what the gate enforces: this node's, or on loan another's.
type limits interface {
	authz.Extension
	gate.Meter
	gateway.Limits
	Rates() metering.Rates
	Run(ctx context.Context, log *slog.Logger) error
}

// openLimits opens the node's limits.
func (n *Node) openLimits(ctx context.Context) error {
	const op fault.Op = "node.openLimits"
	cfg := n.options.Config.Integrations.Metering
	address, elsewhere := cfg.address()
	if !elsewhere {
		var err error
		n.quota, err = metering.OpenQuota(ctx, n.db, n.clock, n.log)
		n.limits = n.quota
		return fault.Wrap(op, err)
	}
	conn, err := n.dialNode(address)
	if err != nil {
		return fault.Wrap(op, err)
	}
	n.onClose(conn.Close)
	n.lender = remotemetering.New(conn, cfg.CallPolicy())
	n.limits = metering.NewBorrower(n.lender, n.clock, nodeName())
	return nil
}

// quotaOf is a quota of an agent that is being added.
type quotaOf struct {
	action string
	metering.Limit
}

// parseQuotas reads ACTION=AMOUNT/WINDOW.
func (n *Node) parseQuotas(texts []string) ([]quotaOf, error) {
	const op fault.Op = "node.parseQuotas"
	if len(texts) == 0 {
		return nil, nil
	}
	if _, err := n.ownLimits(op); err != nil {
		return nil, err
	}
	var list []quotaOf
	for _, text := range texts {
		action, rest, _ := strings.Cut(text, "=")
		limit, err := metering.ParseLimit(rest)
		if _, known := creto.ResourceType(action); err != nil || !known && action != metering.AnyAction {
			return nil, fault.New(op, fault.InvalidArgument, "%q is not ACTION=AMOUNT/WINDOW, such as call_model=100/1h", text)
		}
		list = append(list, quotaOf{action, limit})
	}
	return list, nil
}

// ownLimits returns the limits, if this node has them.
func (n *Node) ownLimits(op fault.Op) (*metering.Quota, error) {
	if n.quota == nil {
		return nil, fault.New(op, fault.FailedPrecondition, "the limits are kept by the node at %s; set them there", n.options.Config.Integrations.Metering.Endpoint)
	}
	return n.quota, nil
}

// subject is whose use a limit counts: of an agent and, unless that is "", for a
// human, both of the caller's tenant and known.
func (n *Node) subject(ctx context.Context, agent, human, action string) (metering.Subject, error) {
	const op fault.Op = "node.subject"
	s := metering.Subject{Agent: n.id(ctx, creto.KindAgent, agent), Action: action}
	if human != "" {
		s.Human = n.id(ctx, creto.KindHuman, human)
	}
	if err := s.Validate(); err != nil {
		return s, fault.Wrap(op, err)
	}
	if err := n.authority.Known(ctx, s.Agent); err != nil {
		return s, fault.Wrap(op, err)
	}
	if human != "" {
		return s, fault.Wrap(op, n.authority.Known(ctx, s.Human))
	}
	return s, nil
}

// SetLimit implements serve.Admin.
func (n *Node) SetLimit(ctx context.Context, in client.Limit) (client.Limit, error) {
	const op fault.Op = "node.SetLimit"
	q, err := n.ownLimits(op)
	if err != nil {
		return client.Limit{}, err
	}
	s, err := n.subject(ctx, in.Agent, in.For, in.Action)
	if err != nil {
		return client.Limit{}, fault.Wrap(op, err)
	}
	out := client.Limit{Agent: in.Agent, For: in.For, Action: in.Action}
	switch {
	case in.Quota != "" && in.Rate == "" && in.Burst == 0:
		l, err := metering.ParseLimit(in.Quota)
		if err != nil {
			return client.Limit{}, fault.Wrap(op, err)
		}
		if err := n.setLimit(ctx, s, l); err != nil {
			return client.Limit{}, fault.Wrap(op, err)
		}
		out.Quota = l.String()
	case in.Rate != "" && in.Quota == "":
		r, err := metering.ParseRate(in.Rate, in.Burst)
		if err != nil {
			return client.Limit{}, fault.Wrap(op, err)
		}
		if err := q.SetRate(ctx, s, r); err != nil {
			return client.Limit{}, fault.Wrap(op, err)
		}
		out.Rate, out.Burst = r.String(), r.Burst
		if err := n.limitChanged(ctx, s, map[string]string{"rate": out.Rate, "burst": strconv.FormatInt(out.Burst, 10)}); err != nil {
			return client.Limit{}, fault.Wrap(op, err)
		}
	default:
		return client.Limit{}, fault.New(op, fault.InvalidArgument, "a limit is a quota or a rate")
	}
	list, err := n.Limits(ctx, in.Agent)
	for _, x := range list {
		if x.For == out.For && x.Action == out.Action && x.Quota == out.Quota && x.Rate == out.Rate {
			return x, nil
		}
	}
	return out, fault.Wrap(op, err)
}

func (n *Node) setLimit(ctx context.Context, s metering.Subject, l metering.Limit) error {
	if err := n.quota.SetLimit(ctx, s, l); err != nil {
		return err
	}
	return n.limitChanged(ctx, s, map[string]string{"quota": l.String()})
}

// limitChanged records that an administrator changed a limit.
func (n *Node) limitChanged(ctx context.Context, s metering.Subject, detail map[string]string) error {
	detail["action"] = s.Action
	if !s.Human.IsZero() {
		detail["human"] = s.Human.String()
	}
	_, err := n.log.Log(ctx, audit.Record{
		Who: creto.CallerOf(ctx), What: audit.EventLimitChanged, Resource: "Agent::" + s.Agent.Name, Outcome: audit.Success, Detail: detail,
	})
	return err
}

// Limits implements serve.Admin: those of an agent, or of all for "".
func (n *Node) Limits(ctx context.Context, agent string) ([]client.Limit, error) {
	const op fault.Op = "node.Limits"
	q, err := n.ownLimits(op)
	if err != nil {
		return nil, err
	}
	tenant := creto.CallerOf(ctx).Tenant
	if agent != "" {
		if err := n.authority.Known(ctx, n.id(ctx, creto.KindAgent, agent)); err != nil {
			return nil, fault.Wrap(op, err)
		}
	}
	quotas, rates, err := q.Limits(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	theirs := func(s metering.Subject) bool {
		return s.Agent.Tenant == tenant && (agent == "" || s.Agent.Name == agent)
	}
	list := []client.Limit{}
	for _, x := range quotas {
		if theirs(x.Subject) {
			list = append(list, client.Limit{
				Agent: x.Agent.Name, For: x.Human.Name, Action: x.Action, Quota: x.Limit.String(),
				Used: x.Used, Lent: x.Lent, Left: max(0, x.Amount-x.Used), Reset: x.ResetAt,
			})
		}
	}
	for _, x := range rates {
		if theirs(x.Subject) {
			list = append(list, client.Limit{Agent: x.Agent.Name, For: x.Human.Name, Action: x.Action, Rate: x.Rate.String(), Burst: x.Burst, Left: x.Left})
		}
	}
	return list, nil
}

// ClearLimit implements serve.Admin.
func (n *Node) ClearLimit(ctx context.Context, in client.LimitName) (client.Cleared, error) {
	const op fault.Op = "node.ClearLimit"
	q, err := n.ownLimits(op)
	if err != nil {
		return client.Cleared{}, err
	}
	s, err := n.subject(ctx, in.Agent, in.For, in.Action)
	if err != nil {
		return client.Cleared{}, fault.Wrap(op, err)
	}
	var out client.Cleared
	if !in.Rate {
		if out.Quotas, err = q.ClearLimit(ctx, s, in.Window); err != nil {
			return client.Cleared{}, fault.Wrap(op, err)
		}
	}
	if in.Rate || in.Window == 0 {
		rate, err := q.ClearRate(ctx, s)
		if err != nil {
			return client.Cleared{}, fault.Wrap(op, err)
		}
		if rate {
			out.Rates = 1
		}
	}
	if out == (client.Cleared{}) {
		return out, fault.New(op, fault.NotFound, "%s has no such limit on %s; see: creto quota list", in.Agent, in.Action)
	}
	return out, fault.Wrap(op, n.limitChanged(ctx, s, map[string]string{
		"removed_quotas": strconv.Itoa(out.Quotas), "removed_rates": strconv.Itoa(out.Rates),
	}))
}
