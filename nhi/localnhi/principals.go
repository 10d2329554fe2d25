package localnhi

import (
	"context"
	"database/sql"
	"errors"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/nhi"
)

// Principal is one row of the authority's register.
type Principal struct {
	ID     creto.ID
	Groups []string
	// OnBehalfOf delegated to it, and Human is where its chain begins; zero
	// for a human, and without a delegation.
	OnBehalfOf, Human creto.ID
	// Link is its newest link as signed, its digest what RevokeLink takes.
	Link   nhi.Link
	Digest creto.Digest
	Active bool
}

// AddTenant makes room for principals that see nothing of any other tenant's.
//
// Errors: AlreadyExists, InvalidArgument (Permanent).
func (a *Authority) AddTenant(ctx context.Context, name string) error {
	const op fault.Op = "localnhi.AddTenant"
	if err := a.IDOf(name, creto.KindHuman, "x").Validate(); err != nil {
		return fault.Wrap(op, err)
	}
	now, err := a.now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	_, err = a.db.ExecContext(ctx, "INSERT INTO tenant (name, created_ns) VALUES ($1, $2)", name, now.UnixNano())
	if err = db.Classify(op, err); errors.Is(err, fault.AlreadyExists) {
		return fault.New(op, fault.AlreadyExists, "there is a tenant %q already", name)
	}
	return err
}

// Tenants lists the tenants by name.
//
// Errors: NHIUnavailable (Degraded).
func (a *Authority) Tenants(ctx context.Context) ([]string, error) {
	names, err := collect(ctx, a.db, func(rows *sql.Rows) (name string, err error) { return name, rows.Scan(&name) }, "SELECT name FROM tenant ORDER BY name")
	return names, unavailable("localnhi.Tenants", err)
}

// AddMember registers a human, or a workload that answers in a group, or adds
// groups to one that is registered.
//
// Errors: InvalidArgument (Permanent) for a bad name; NotFound (Permanent) for
// an unknown tenant.
func (a *Authority) AddMember(ctx context.Context, id creto.ID, groups ...string) error {
	const op fault.Op = "localnhi.AddMember"
	if id.Kind == creto.KindAgent {
		return fault.New(op, fault.InvalidArgument, "an agent is in no group")
	}
	for _, g := range groups {
		if err := a.ID(creto.KindHuman, g).Validate(); err != nil {
			return fault.New(op, fault.InvalidArgument, "%q is no name of a group", g)
		}
	}
	if err := a.register(ctx, id); errors.Is(err, fault.AlreadyExists) {
		if err := a.Known(ctx, id); errors.Is(err, fault.NHINotFound) {
			return fault.New(op, fault.AlreadyExists, "there was a %s %q, who was removed; names are not used twice", id.Kind, id.Name)
		} else if err != nil {
			return fault.Wrap(op, err)
		}
	} else if err != nil {
		return fault.Wrap(op, err)
	}
	for _, g := range groups {
		_, err := a.db.ExecContext(ctx, "INSERT INTO membership (principal, group_name) VALUES ($1, $2) ON CONFLICT DO NOTHING", id.String(), g)
		if err != nil {
			return db.Classify(op, err)
		}
	}
	return nil
}

// Leave takes a principal out of a group, at once.
//
// Errors: NotFound (Permanent) if it was not in it.
func (a *Authority) Leave(ctx context.Context, id creto.ID, group string) error {
	const op fault.Op = "localnhi.Leave"
	return a.revoke(ctx, id.String(), changed, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, "DELETE FROM membership WHERE principal = $1 AND group_name = $2", id.String(), group)
		if err != nil {
			return db.Classify(op, err)
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return fault.New(op, fault.NotFound, "%s is not in the group %q", id.Name, group)
		}
		return nil
	}, func() {})
}

func (a *Authority) register(ctx context.Context, id creto.ID) error {
	const op fault.Op = "localnhi.register"
	if err := id.Validate(); err != nil {
		return fault.Wrap(op, err)
	}
	if id.TrustDomain != a.cfg.TrustDomain {
		return fault.New(op, fault.InvalidArgument, "%s is not of the trust domain %s", id, a.cfg.TrustDomain)
	}
	now, err := a.now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	return db.Tx(ctx, a.db, func(tx *sql.Tx) error {
		var known int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM tenant WHERE name = $1", id.Tenant).Scan(&known); err != nil {
			return db.Classify(op, err)
		}
		if known == 0 {
			return fault.New(op, fault.NotFound, "there is no tenant %q; add it with: creto tenant add %s", id.Tenant, id.Tenant)
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO principal (id, tenant, kind, name, created_ns) VALUES ($1, $2, $3, $4, $5)",
			id.String(), id.Tenant, string(id.Kind), id.Name, now.UnixNano())
		return db.Classify(op, err)
	})
}

// AddAgent registers an agent that nobody has delegated to yet.
//
// Errors: AlreadyExists, InvalidArgument, NotFound (Permanent).
func (a *Authority) AddAgent(ctx context.Context, id creto.ID) error {
	const op fault.Op = "localnhi.AddAgent"
	if id.Kind != creto.KindAgent {
		return fault.New(op, fault.InvalidArgument, "%s is no agent", id)
	}
	if err := a.register(ctx, id); err != nil {
		if errors.Is(err, fault.AlreadyExists) {
			return fault.New(op, fault.AlreadyExists, "there is an agent %q already", id.Name)
		}
		return fault.Wrap(op, err)
	}
	for _, role := range []string{RolePrincipal, RoleEncryption} {
		if _, err := a.key(ctx, id.String(), role); err != nil {
			return fault.Wrap(op, err)
		}
	}
	return nil
}

// Known returns nil if id is registered and active.
//
// Errors: NHINotFound (Permanent).
func (a *Authority) Known(ctx context.Context, id creto.ID) error {
	const op fault.Op = "localnhi.Known"
	s, err := a.standingOf(ctx, id)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if !s.active {
		return fault.New(op, fault.NHINotFound, "there is no active %s %q", id.Kind, id.Name)
	}
	return nil
}

// Principals lists the registered principals of a tenant and kind, by name.
//
// Errors: NHIUnavailable (Degraded).
func (a *Authority) Principals(ctx context.Context, tenant string, kind creto.Kind) ([]Principal, error) {
	const op fault.Op = "localnhi.Principals"
	list, err := collect(ctx, a.db, func(rows *sql.Rows) (p Principal, err error) {
		return p, rows.Scan(scanText{&p.ID}, &p.Active)
	}, "SELECT id, active FROM principal WHERE tenant = $1 AND kind = $2 ORDER BY name", tenant, string(kind))
	if err != nil {
		return nil, unavailable(op, err)
	}
	for i := range list {
		if list[i].Groups, err = a.Groups(ctx, list[i].ID); err != nil {
			return nil, err
		}
		if kind == creto.KindHuman || !list[i].Active {
			continue
		}
		if err := a.fillChain(ctx, &list[i]); err != nil {
			return nil, fault.Wrap(op, err)
		}
	}
	return list, nil
}

// fillChain says on whose behalf an agent acts, if it has a delegation.
func (a *Authority) fillChain(ctx context.Context, p *Principal) error {
	links, err := a.DelegationChain(ctx, p.ID)
	if err != nil || len(links) == 0 {
		if errors.Is(err, fault.NHINotFound) {
			return nil
		}
		return err
	}
	first, err := links[0].Link()
	if err != nil {
		return err
	}
	last := links[len(links)-1]
	if p.Link, err = last.Link(); err != nil {
		return err
	}
	p.Digest, p.OnBehalfOf, p.Human = last.Digest(), p.Link.Issuer, first.Issuer
	return nil
}

// scanText scans a column of text into something that reads text.
type scanText struct {
	to interface{ UnmarshalText([]byte) error }
}

// Scan implements sql.Scanner.
func (s scanText) Scan(value any) error {
	switch v := value.(type) {
	case string:
		return s.to.UnmarshalText([]byte(v))
	case []byte:
		return s.to.UnmarshalText(v)
	}
	return fault.New("localnhi.Scan", fault.DataLoss, "a column holds %T instead of text", value)
}
