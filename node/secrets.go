package node

import (
	"cmp"
	"context"
	"os"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/call"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/gateway"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/nhi/secretsource"
)

// secretSources opens what the configuration says of secrets, as the authority
// takes it.
func (n *Node) secretSources() ([]localnhi.SecretBinding, error) {
	const op fault.Op = "node.secretSources"
	cfg, identity := n.options.Config.Secrets, n.options.Config.Identity
	sources := make(map[string]nhi.SecretSource) // the store is none
	var err error
	if cfg.Env.Prefix != "" {
		if sources[secretsource.SchemeEnv], err = secretsource.NewEnv(cfg.Env.Prefix, os.LookupEnv); err != nil {
			return nil, fault.Wrap(op, err)
		}
	}
	if cfg.Files.Dir != "" {
		files, err := secretsource.OpenFiles(cfg.Files.Dir)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		n.onClose(files.Close)
		sources[secretsource.SchemeFile] = files
	}
	if cfg.Vault.Address != "" {
		if n.vault, err = secretsource.NewVault(cfg.Vault.source()); err != nil {
			return nil, fault.Wrap(op, err)
		}
		n.onClose(func() error { n.vault.Close(); return nil })
		sources[secretsource.SchemeVault] = secretsource.NewCache(n.vault, time.Duration(cfg.CacheTTL))
	}
	var bindings []localnhi.SecretBinding
	for _, x := range cfg.Names {
		r, err := secretsource.ParseReference(x.From)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		tenant := cmp.Or(x.Tenant, identity.Tenant)
		b := localnhi.SecretBinding{Tenant: tenant, Name: nhi.SecretRef(x.Name), Source: sources[r.Scheme], Locator: r.Locator, From: x.From}
		if b.Source == nil && r.Scheme != secretsource.SchemeStore {
			return nil, fault.New(op, fault.InvalidArgument, "the source of %q is not configured", x.From)
		}
		for _, name := range x.Agents {
			b.Agents = append(b.Agents, creto.ID{TrustDomain: identity.TrustDomain, Tenant: tenant, Kind: creto.KindAgent, Name: name})
		}
		bindings = append(bindings, b)
	}
	return bindings, nil
}

// source returns the section as package secretsource takes it.
func (c SecretVaultConfig) source() secretsource.VaultConfig {
	return secretsource.VaultConfig{
		Address: c.Address, Namespace: c.Namespace, Token: c.Token, RoleID: c.RoleID, SecretID: c.SecretID, AppRoleMount: c.AppRoleMount, CAFile: c.CAFile,
		Calls: call.Policy{Timeout: time.Duration(c.Timeout), Attempts: c.Attempts},
	}
}

// agentIDs returns the full names of agents of the caller's tenant.
func (n *Node) agentIDs(ctx context.Context, names []string) []creto.ID {
	var ids []creto.ID
	for _, name := range names {
		ids = append(ids, n.id(ctx, creto.KindAgent, name))
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
		Tenant: creto.CallerOf(ctx).Tenant, Name: nhi.SecretRef(in.Name), Owner: creto.CallerOf(ctx), Agents: n.agentIDs(ctx, in.Agents),
	}, in.Value)
	if err != nil {
		return client.Secret{}, err
	}
	return secretOf(s), n.adminEvent(ctx, audit.EventSecretSet, "Secret::"+in.Name, nhi.VerifiedChain{})
}

// Secrets implements serve.Admin.
func (n *Node) Secrets(ctx context.Context) ([]client.Secret, error) {
	list, err := n.authority.Secrets(ctx, creto.CallerOf(ctx).Tenant)
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
	if err := n.authority.RemoveSecret(ctx, creto.CallerOf(ctx).Tenant, nhi.SecretRef(name)); err != nil {
		return err
	}
	return n.adminEvent(ctx, audit.EventSecretRemoved, "Secret::"+name, nhi.VerifiedChain{})
}

// credentials are what the gateway adds on the way out.
func (c Config) credentials() []gateway.Credential {
	var list []gateway.Credential
	for _, x := range c.Egress.Credentials {
		list = append(list, x.credential(c.Identity.Tenant))
	}
	return list
}

func (c CredentialConfig) credential(own string) gateway.Credential {
	return gateway.Credential{
		Host: c.Host, Header: c.Header, Format: c.Format, Secret: nhi.SecretRef(c.Secret), Tenant: cmp.Or(c.Tenant, own), Agents: c.Agents,
	}
}
