package node

import (
	"context"
	"errors"
	"path/filepath"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// id returns the full name of a principal of the caller's tenant: nobody
// administers, or sees, those of another.
func (n *Node) id(ctx context.Context, kind creto.Kind, name string) creto.ID {
	return n.authority.IDOf(creto.CallerOf(ctx).Tenant, kind, name)
}

// ownerOf is who the owner of the data directory is in a tenant: its first
// administrator. The node's own tenant is "".
//
// Errors: NotFound (Permanent).
func (n *Node) ownerOf(ctx context.Context, tenant string) (creto.ID, error) {
	if tenant == "" || tenant == n.owner.Tenant {
		return n.owner, nil
	}
	owner := n.authority.IDOf(tenant, creto.KindHuman, BootstrapHuman)
	err := n.authority.Known(ctx, owner)
	if errors.Is(err, fault.NotFound) {
		err = fault.New("node.ownerOf", fault.NotFound, "there is no tenant %q; add it with: creto tenant add %s", tenant, tenant)
	}
	return owner, err
}

// platformOnly refuses administrators of a single tenant.
func (n *Node) platformOnly(ctx context.Context) error {
	if caller := creto.CallerOf(ctx); caller.Tenant != n.owner.Tenant {
		return fault.New("node.platformOnly", fault.PermissionDenied, "%s administers the tenant %q; this belongs to the node's own, %q", caller.Name, caller.Tenant, n.owner.Tenant)
	}
	return nil
}

// reload takes the policies on disk into force. What is wrong with them names
// agents of every tenant, and is for the node's own administrators.
//
// Errors: those of localauthz.Authorizer.Reload; FailedPrecondition (Permanent)
// instead, for administrators of a single tenant.
func (n *Node) reload(ctx context.Context) error {
	err := n.authorizer.Reload(ctx)
	if err != nil && n.platformOnly(ctx) != nil {
		return fault.New("node.reload", fault.FailedPrecondition, "the policies on disk are wrong, and those before stay in force; an administrator of the node finds where with: creto health")
	}
	return err
}

// policyDirOf is where a tenant's policies are.
func (n *Node) policyDirOf(tenant string) string {
	if tenant == n.owner.Tenant {
		return n.policyDir
	}
	return filepath.Join(n.policyDir, "tenants", tenant)
}

// policyFile is where an agent's own policies are.
func (n *Node) policyFile(agent creto.ID) string {
	return filepath.Join(n.policyDirOf(agent.Tenant), "agents", agent.Name+".cedar")
}

// AddTenant implements serve.Admin. A tenant that is there already gets what it
// lacks, so that a half-made one can be finished.
func (n *Node) AddTenant(ctx context.Context, in client.Tenant) (client.Tenant, error) {
	const op fault.Op = "node.AddTenant"
	if err := n.platformOnly(ctx); err != nil {
		return client.Tenant{}, err
	}
	added := n.authority.AddTenant(ctx, in.Name)
	if added != nil && !errors.Is(added, fault.AlreadyExists) {
		return client.Tenant{}, fault.Wrap(op, added)
	}
	owner := n.authority.IDOf(in.Name, creto.KindHuman, BootstrapHuman)
	known := n.authority.Known(ctx, owner) == nil
	if err := n.authority.AddMember(ctx, owner, AdminGroup); err != nil {
		return client.Tenant{}, fault.Wrap(op, err)
	}
	dir := n.policyDirOf(in.Name)
	if err := writeBasePolicies(dir); err != nil {
		return client.Tenant{}, fault.Wrap(op, err)
	}
	if err := n.reload(ctx); err != nil {
		return client.Tenant{}, fault.Wrap(op, err)
	}
	if added != nil && known {
		return client.Tenant{}, fault.Wrap(op, added)
	}
	return client.Tenant{Name: in.Name, PolicyDir: dir}, n.adminEvent(ctx, audit.EventTenantAdded, "Tenant::"+in.Name, nhi.VerifiedChain{})
}

// Tenants implements serve.Admin.
func (n *Node) Tenants(ctx context.Context) ([]client.Tenant, error) {
	if err := n.platformOnly(ctx); err != nil {
		return nil, err
	}
	names, err := n.authority.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]client.Tenant, 0, len(names))
	for _, name := range names {
		list = append(list, client.Tenant{Name: name, PolicyDir: n.policyDirOf(name)})
	}
	return list, nil
}
