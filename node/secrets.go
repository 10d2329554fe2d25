package node

import (
	"context"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/gateway"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
)

// agentIDs returns the full names of agents of the node's own tenant.
func (n *Node) agentIDs(names []string) []creto.ID {
	var ids []creto.ID
	for _, name := range names {
		ids = append(ids, n.authority.ID(creto.KindAgent, name))
	}
	return ids
}

func secretOf(s localnhi.SecretInfo) client.Secret {
	out := client.Secret{Name: string(s.Name), From: s.From, Version: s.Version, Set: s.Set, Agents: []string{}}
	if !s.Owner.IsZero() {
		out.Owner = s.Owner.String()
	}
	for _, agent := range s.Agents {
		out.Agents = append(out.Agents, agent.Name)
	}
	return out
}

// SetSecret implements serve.Admin.
func (n *Node) SetSecret(ctx context.Context, in client.NewSecret) (client.Secret, error) {
	s, err := n.authority.SetSecret(ctx, localnhi.SecretInfo{
		Tenant: n.owner.Tenant, Name: nhi.SecretRef(in.Name), Owner: creto.CallerOf(ctx), Agents: n.agentIDs(in.Agents),
	}, in.Value)
	if err != nil {
		return client.Secret{}, err
	}
	return secretOf(s), n.adminEvent(ctx, audit.EventSecretSet, "Secret::"+in.Name, nhi.VerifiedChain{})
}

// Secrets implements serve.Admin.
func (n *Node) Secrets(ctx context.Context) ([]client.Secret, error) {
	list, err := n.authority.Secrets(ctx, n.owner.Tenant)
	if err != nil {
		return nil, err
	}
	out := make([]client.Secret, 0, len(list))
	for _, s := range list {
		out = append(out, secretOf(s))
	}
	return out, nil
}

// RemoveSecret implements serve.Admin.
func (n *Node) RemoveSecret(ctx context.Context, name string) error {
	if err := n.authority.RemoveSecret(ctx, n.owner.Tenant, nhi.SecretRef(name)); err != nil {
		return err
	}
	return n.adminEvent(ctx, audit.EventSecretRemoved, "Secret::"+name, nhi.VerifiedChain{})
}

// credentials are what the gateway adds on the way out.
func (c EgressConfig) credentials() []gateway.Credential {
	var list []gateway.Credential
	for _, x := range c.Credentials {
		list = append(list, x.credential())
	}
	return list
}

func (c CredentialConfig) credential() gateway.Credential {
	return gateway.Credential{Host: c.Host, Header: c.Header, Format: c.Format, Secret: nhi.SecretRef(c.Secret), Agents: c.Agents}
}
