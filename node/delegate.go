package node

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/login"
	"creto.dev/nhi"
)

// grantOf reads what is to be passed on.
func grantOf(in client.NewAgent) (nhi.Grant, error) {
	const op fault.Op = "node.grantOf"
	g := nhi.Grant{Scope: nhi.Everything(), TTL: in.TTL, MaxDepth: nhi.DefaultMaxDepth}
	switch {
	case g.TTL == 0:
		g.TTL = defaultDelegation
	case g.TTL < time.Second:
		return g, fault.New(op, fault.InvalidArgument, "a delegation of %v is none; give it at least a second", g.TTL)
	}
	if in.Depth != nil {
		g.MaxDepth = *in.Depth
	}
	if len(in.Actions) > 0 {
		g.Scope.Actions = in.Actions
	}
	if len(in.Resources) > 0 {
		g.Scope.Resources = in.Resources
	}
	// A pattern that covers nothing there is would be a mistake that only shows
	// when the agent is denied.
	names := creto.ActionNames()
	for _, pattern := range g.Scope.Actions {
		one := nhi.Scope{Actions: []string{pattern}, Resources: []string{"*"}}
		if !slices.ContainsFunc(names, func(name string) bool { return one.Covers(name, "") }) {
			slices.Sort(names)
			return g, fault.New(op, fault.InvalidArgument, "%q is no action, nor the beginning of one and a *; there are %s", pattern, strings.Join(names, ", "))
		}
	}
	for _, pattern := range g.Scope.Resources {
		kind, _, named := strings.Cut(pattern, "::")
		known := pattern == "*" || named && slices.ContainsFunc(names, func(name string) bool { t, _ := creto.ResourceType(name); return t == kind })
		if !known {
			return g, fault.New(op, fault.InvalidArgument, "%q is no resource; write Type::id or Type::prefix*, such as Model::gpt-*, or *", pattern)
		}
	}
	return g, nil
}

// Delegate implements serve.Admin: what an agent was given before ends.
func (n *Node) Delegate(ctx context.Context, in client.NewAgent) (client.Agent, error) {
	const op fault.Op = "node.Delegate"
	id := n.id(ctx, creto.KindAgent, in.Name)
	if len(in.Allow) > 0 || len(in.Ask) > 0 || len(in.Quota) > 0 {
		return client.Agent{}, fault.New(op, fault.InvalidArgument, "what an agent may do is in its policy, %s; a delegation bounds it", n.policyFile(id))
	}
	if err := n.authority.Known(ctx, id); err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	issuer, err := n.issuer(ctx, in.OnBehalfOf)
	if err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	grant, err := grantOf(in)
	if err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	file := n.policyFile(id)
	policy, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // it may be elsewhere
		return client.Agent{}, fault.WrapAs(op, fault.Unavailable, err, "%s cannot be read", file)
	}
	waits, err := n.delegateFor(ctx, issuer, id, grant, login.Shown{Policy: string(policy)}, in)
	if err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	return client.Agent{Name: in.Name, ID: id.String(), OnBehalfOf: issuer.Name, Active: true, PolicyFile: file, Policy: string(policy), Waits: waits}, nil
}
