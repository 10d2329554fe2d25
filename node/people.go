package node

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/console"
	"creto.dev/fault"
	"creto.dev/login"
	"creto.dev/metering"
	"creto.dev/nhi"
)

// groups returns the groups of a principal: those that it was given here, and
// those that identity providers say.
func (n *Node) groups(ctx context.Context, id creto.ID) ([]string, error) {
	own, err := n.authority.Groups(ctx, id)
	if err != nil || id.Kind != creto.KindHuman {
		return own, err
	}
	theirs, err := n.providers.Groups(ctx, id)
	if err != nil {
		return nil, err
	}
	all := slices.Concat(own, theirs)
	slices.Sort(all)
	return slices.Compact(all), nil
}

// people are the humans whom identity providers speak of.
func (n *Node) people() login.People {
	return login.People{
		ID: func(tenant, name string) creto.ID {
			return n.authority.IDOf(cmp.Or(tenant, n.options.Config.Identity.Tenant), creto.KindHuman, name)
		},
		Known: n.authority.Known, Reserved: []string{BootstrapHuman},
		Add: func(ctx context.Context, human creto.ID) error {
			if err := n.authority.AddMember(ctx, human); err != nil {
				return err
			}
			return n.adminEvent(creto.WithCaller(ctx, human), audit.EventHumanAdded, "Human::"+human.Name, nhi.VerifiedChain{})
		},
	}
}

// openLogin opens how humans are known.
func (n *Node) openLogin(context.Context) error {
	const op fault.Op = "node.openLogin"
	n.sessions = login.NewSessions(n.db, n.clock)
	n.providers = login.NewProviders(n.origin, n.options.Config.Login.OIDC, n.people(), n.db, n.clock, n.log)
	n.delegations = login.NewDelegations(n.db, n.clock, n.log, n.authority.Delegate)
	n.devices = login.NewDevices(n.sessions, n.clock, n.log)
	var err error
	n.passkeys, err = login.OpenPasskeys(n.origin, n.db, n.clock, n.log)
	return fault.Wrap(op, err)
}

// delegateFor passes grant on from issuer to agent: at once if that takes no
// human's proof, or only that of who holds the data directory; else it waits
// for the human, and the returned delegation says so.
func (n *Node) delegateFor(ctx context.Context, issuer, agent creto.ID, grant nhi.Grant, shown login.Shown, in client.NewAgent) (*client.Delegation, error) {
	const op fault.Op = "node.delegateFor"
	wait, err := n.waitsFor(ctx, issuer, in)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	link, err := n.authority.Draft(ctx, issuer, agent, grant)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	if wait {
		asked, err := n.delegations.Ask(ctx, link, shown, creto.CallerOf(ctx))
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		out := n.delegation(asked)
		return &out, nil
	}
	chain, err := n.authority.Delegate(ctx, link, nhi.Proof{Kind: nhi.ProofBootstrap})
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	return nil, n.adminEvent(ctx, audit.EventDelegationIssued, "Agent::"+agent.Name, chain)
}

// actsForCaller refuses to pass on, over TCP, what an agent has of a human who is
// not the caller: they have not been asked.
func (n *Node) actsForCaller(ctx context.Context, agent creto.ID, remote bool) error {
	const op fault.Op = "node.actsForCaller"
	if !remote {
		return nil
	}
	chain, err := n.authority.Chain(ctx, agent)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if caller := creto.CallerOf(ctx); chain.Human() != caller {
		return fault.New(op, fault.PermissionDenied, "%s acts for %s; over TCP, %s may pass on only what acts for themselves", agent.Name, chain.Human().Name, caller.Name)
	}
	return nil
}

// waitsFor reports whether a delegation by issuer waits for them: a human who
// can prove who they are must, unless the holder of the data directory answers
// for them and says so. Over TCP nobody is that holder.
func (n *Node) waitsFor(ctx context.Context, issuer creto.ID, in client.NewAgent) (bool, error) {
	const op fault.Op = "node.waitsFor"
	if issuer.Kind != creto.KindHuman {
		return false, n.actsForCaller(ctx, issuer, in.Remote)
	}
	usable, err := n.passkeys.Usable(ctx, issuer)
	if err != nil {
		return false, fault.Wrap(op, err)
	}
	providers, err := n.providers.Usable(ctx, issuer)
	if err != nil {
		return false, fault.Wrap(op, err)
	}
	able := usable || len(providers) > 0
	switch {
	case in.Remote && (in.Proof == nhi.ProofBootstrap || !able):
		return false, fault.New(op, fault.PermissionDenied, "%s has confirmed nothing: over TCP a delegation waits for its human's passkey or identity provider; add one in the console's account page, or run this on the node's machine", issuer.Name)
	case in.Proof == nhi.ProofBootstrap:
		return false, nil
	case in.Proof != "":
		return false, fault.New(op, fault.InvalidArgument, "--proof=%s: choose bootstrap, or leave it out", in.Proof)
	}
	return able, nil
}

// delegation is d for the command line.
func (n *Node) delegation(d login.Delegation) client.Delegation {
	return client.Delegation{
		ID: d.ID, State: string(d.State), Agent: d.Link.Subject.Name, OnBehalfOf: d.Link.Issuer.Name,
		URL: n.origin + "/console/delegations/" + d.ID, Expires: d.Expires,
	}
}

// Delegation implements serve.Admin.
func (n *Node) Delegation(ctx context.Context, id string) (client.Delegation, error) {
	d, err := n.delegations.Show(ctx, id)
	if err == nil && d.Link.Issuer.Tenant != creto.CallerOf(ctx).Tenant {
		err = fault.New("node.Delegation", fault.NotFound, "there is no such delegation")
	}
	if err != nil {
		return client.Delegation{}, err
	}
	return n.delegation(d), nil
}

// agentsOf are the agents that act for people, for the console.
type agentsOf struct{ n *Node }

var _ console.Agents = agentsOf{}

// Of implements console.Agents.
func (a agentsOf) Of(ctx context.Context, human creto.ID) ([]nhi.VerifiedChain, error) {
	const op fault.Op = "node.agentsOf.Of"
	list, err := a.n.authority.Principals(ctx, human.Tenant, creto.KindAgent)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	var chains []nhi.VerifiedChain
	for _, p := range list {
		if !p.Active || p.Human != human {
			continue
		}
		chain, err := a.n.authority.Chain(ctx, p.ID)
		switch {
		case errors.Is(err, fault.NHIDelegationVerificationFailed): // it ended
		case err != nil:
			return nil, fault.Wrap(op, err)
		default:
			chains = append(chains, chain)
		}
	}
	return chains, nil
}

// Limits implements console.Agents.
func (a agentsOf) Limits(ctx context.Context, human, agent creto.ID) ([]console.Limit, error) {
	if a.n.quota == nil {
		return nil, nil
	}
	quotas, rates, err := a.n.quota.Limits(ctx)
	if err != nil {
		return nil, err
	}
	var list []console.Limit
	theirs := func(s metering.Subject) bool { return s.Agent == agent && (s.Human.IsZero() || s.Human == human) }
	for _, x := range quotas {
		if theirs(x.Subject) {
			list = append(list, console.Limit{Action: x.Action, Text: x.Limit.String(), Left: max(0, x.Amount-x.Used), Reset: x.ResetAt})
		}
	}
	for _, x := range rates {
		if theirs(x.Subject) {
			list = append(list, console.Limit{Action: x.Action, Text: x.Rate.String(), Left: x.Left})
		}
	}
	return list, nil
}

// Revoke implements console.Agents.
func (a agentsOf) Revoke(ctx context.Context, human creto.ID, agent string) error {
	const op fault.Op = "node.agentsOf.Revoke"
	list, err := a.n.authority.Principals(ctx, human.Tenant, creto.KindAgent)
	if err != nil {
		return fault.Wrap(op, err)
	}
	for _, p := range list {
		if p.ID.Name == agent && p.Active && p.Human == human {
			if err := a.n.authority.Revoke(ctx, p.ID); err != nil {
				return fault.Wrap(op, err)
			}
			return a.n.adminEvent(ctx, audit.EventDelegationRevoked, "Agent::"+agent, nhi.VerifiedChain{})
		}
	}
	return fault.New(op, fault.NHINotFound, "no agent %q acts for you", agent)
}
