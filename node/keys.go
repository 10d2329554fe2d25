package node

import (
	"context"
	"errors"
	"slices"
	"strings"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
)

func keyOf(k localnhi.KeyInfo) client.Key {
	return client.Key{
		ID: string(k.ID), Role: k.Role, Owner: k.Owner, Algorithm: string(k.Algorithm), Public: k.Public, Created: k.Created, Retired: k.Retired,
	}
}

// Keys implements serve.Admin: those of the caller's tenant, and those of the
// platform for who administers it.
func (n *Node) Keys(ctx context.Context) (client.Keys, error) {
	_, root, err := n.authority.Root()
	if err != nil {
		return client.Keys{}, err
	}
	list, err := n.authority.Keys(ctx, "")
	if err != nil {
		return client.Keys{}, err
	}
	out := client.Keys{Root: root, Keys: []client.Key{}}
	platform := n.platformOnly(ctx) == nil
	for _, k := range list {
		id, err := creto.ParseID(k.Owner)
		if err == nil && id.Tenant == creto.CallerOf(ctx).Tenant || err != nil && platform {
			out.Keys = append(out.Keys, keyOf(k))
		}
	}
	return out, nil
}

// replaceable are the roles of the platform's keys that can be replaced.
var replaceable = []string{localnhi.RoleRoot, nhi.RoleCheckpoint, localnhi.RoleToken, localnhi.RoleSVID, localnhi.RoleCA}

// RotateKey implements serve.Admin.
func (n *Node) RotateKey(ctx context.Context, name client.KeyName) (client.Key, error) {
	const op fault.Op = "node.RotateKey"
	owner, role, resource := localnhi.Platform, name.Role, "Key::"+name.Role
	switch {
	case (name.Agent == "") == (name.Role == ""):
		return client.Key{}, fault.New(op, fault.InvalidArgument, "name a role of the platform, or an agent")
	case name.Agent != "":
		owner, role, resource = n.id(ctx, creto.KindAgent, name.Agent).String(), localnhi.RolePrincipal, "Agent::"+name.Agent
	case !slices.Contains(replaceable, role):
		return client.Key{}, fault.New(op, fault.InvalidArgument, "%q is no key that can be replaced; there are %s, and agent:NAME", role, strings.Join(replaceable, ", "))
	default:
		if err := n.platformOnly(ctx); err != nil {
			return client.Key{}, err
		}
	}
	n.rotating.Lock()
	defer n.rotating.Unlock()
	k, err := n.authority.Rotate(ctx, owner, role)
	if err != nil {
		return client.Key{}, fault.Wrap(op, err)
	}
	switch role {
	case localnhi.RoleRoot:
		err = n.publishRoot()
	case nhi.RoleCheckpoint:
		signer, signerErr := n.authority.CheckpointSigner(ctx, n.logOrigin())
		if err = signerErr; err == nil {
			if n.tree != nil {
				n.tree.Rekey(signer)
			}
		}
	}
	// It is replaced, whatever else failed.
	return keyOf(k), errors.Join(fault.Wrap(op, err), n.adminEvent(ctx, audit.EventKeyRotated, resource, nhi.VerifiedChain{}))
}

// Revoke implements serve.Admin.
func (n *Node) Revoke(ctx context.Context, r client.Revocation) (client.Revoked, error) {
	const op fault.Op = "node.Revoke"
	out := client.Revoked{Agents: []string{}}
	var resource string
	var gone []creto.ID
	var err error
	switch {
	case r.Delegation != "" && r.OnBehalfOf == "" && !r.All:
		resource = "Agent::" + r.Delegation
		id := n.id(ctx, creto.KindAgent, r.Delegation)
		var links []nhi.SignedLink
		if links, err = n.authority.DelegationChain(ctx, id); err == nil {
			err = n.authority.RevokeLink(ctx, links[len(links)-1].Digest())
		}
		gone = []creto.ID{id}
	case r.OnBehalfOf != "" && r.Delegation == "" && !r.All:
		resource = "Human::" + r.OnBehalfOf
		human := n.id(ctx, creto.KindHuman, r.OnBehalfOf)
		if err = n.authority.Known(ctx, human); err == nil {
			gone, err = n.authority.RevokeBelow(ctx, human)
		}
	case r.All && r.OnBehalfOf == "" && r.Delegation == "":
		resource = "Tenant::" + creto.CallerOf(ctx).Tenant
		gone, err = n.authority.RevokeAgents(ctx, creto.CallerOf(ctx).Tenant)
	default:
		return out, fault.New(op, fault.InvalidArgument, "name one thing to revoke: an agent's delegation, a human's agents, or all")
	}
	if err != nil {
		return out, fault.Wrap(op, err)
	}
	for _, id := range gone {
		out.Agents = append(out.Agents, id.Name)
	}
	return out, n.adminEvent(ctx, audit.EventDelegationRevoked, resource, nhi.VerifiedChain{})
}
