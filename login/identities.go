package login

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

// maxClaimGroups bounds the groups that a provider's claim gives.
const maxClaimGroups = 256

// Identity is a human at an identity provider.
type Identity struct {
	Issuer, Subject string
	// Provider is its name, "" if it is not configured any more.
	Provider string
	// Label is what the provider called the human when it was linked.
	Label         string
	Created, Used time.Time
}

// human finds whose identity it is, or makes it somebody's where that is
// configured.
func (p *Providers) human(ctx context.Context, o *provider, id *oidc.IDToken, said claims, asked Asked) (creto.ID, error) {
	const op fault.Op = "login.Providers.human"
	nobody := func(why string) error {
		return fault.WrapAs(op, fault.PermissionDenied, errors.New(why), "nobody here is known by this identity of %s; log in otherwise and link it to your account, or ask an administrator", o.Name)
	}
	if !o.allowed(id, said) {
		return creto.ID{}, nobody("not of an allowed domain or subject")
	}
	now, err := p.clock.Now(ctx)
	if err != nil {
		return creto.ID{}, fault.Wrap(op, err)
	}
	tenant := p.people.ID(o.Tenant, "x").Tenant
	if asked.Purpose != ToLogin && asked.Human.Tenant != tenant {
		return creto.ID{}, nobody("of another tenant")
	}
	var principal string
	err = db.Tx(ctx, p.db, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "UPDATE oidc_identity SET used_ns = $4 WHERE tenant = $1 AND issuer = $2 AND subject = $3 RETURNING principal",
			tenant, id.Issuer, id.Subject, now.Physical).Scan(&principal)
	})
	known := err == nil
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return creto.ID{}, db.Classify(op, err)
	}
	var human creto.ID
	switch {
	case known:
		if human, err = creto.ParseID(principal); err != nil {
			return creto.ID{}, fault.Wrap(op, err)
		}
		if asked.Purpose == ToLink && human != asked.Human {
			return creto.ID{}, fault.New(op, fault.AlreadyExists, "this identity of %s is linked to somebody else here", o.Name)
		}
	case asked.Purpose == ToLink:
		human = asked.Human
	case asked.Purpose == ToConfirm:
		return creto.ID{}, nobody("not linked")
	default:
		name, ok := o.nameOf(id, said)
		if human = p.people.ID(o.Tenant, name); !ok || human.Validate() != nil || slices.Contains(p.people.Reserved, name) {
			return creto.ID{}, nobody("no name that counts")
		}
		if err := p.claim(ctx, o, human); err != nil {
			return creto.ID{}, err
		}
	}
	if err := p.people.Known(ctx, human); err != nil {
		if errors.Is(err, fault.NHINotFound) {
			return creto.ID{}, nobody("revoked")
		}
		return creto.ID{}, fault.Wrap(op, err)
	}
	if asked.Purpose == ToConfirm && human != asked.Human {
		return creto.ID{}, fault.New(op, fault.PermissionDenied, "%s says that you are %s; only %s can confirm this", o.Name, human.Name, asked.Human.Name)
	}
	if !known {
		if err := p.link(ctx, human, id, said, now.Physical); err != nil {
			return creto.ID{}, err
		}
	}
	return human, p.group(ctx, o, human, id, now.Time())
}

// claim decides whether a name that a provider gives may become that human: one
// who is known otherwise already links the identity themselves.
func (p *Providers) claim(ctx context.Context, o *provider, human creto.ID) error {
	const op fault.Op = "login.Providers.claim"
	err := p.people.Known(ctx, human)
	switch {
	case errors.Is(err, fault.NHINotFound):
		if !o.CreateHumans {
			return fault.New(op, fault.PermissionDenied, "nobody here is known by this identity of %s; log in otherwise and link it to your account, or ask an administrator", o.Name)
		}
		return fault.Wrap(op, p.people.Add(ctx, human))
	case err != nil:
		return fault.Wrap(op, err)
	}
	var ways int
	err = p.db.QueryRowContext(ctx, "SELECT (SELECT count(*) FROM passkey WHERE principal = $1) + (SELECT count(*) FROM oidc_identity WHERE principal = $1)", human.String()).Scan(&ways)
	if err != nil {
		return db.Classify(op, err)
	}
	if ways > 0 {
		return fault.New(op, fault.PermissionDenied, "nobody here is known by this identity of %s; log in otherwise and link it to your account, or ask an administrator", o.Name)
	}
	return nil
}

// link makes an identity somebody's.
func (p *Providers) link(ctx context.Context, human creto.ID, id *oidc.IDToken, said claims, now int64) error {
	const op fault.Op = "login.Providers.link"
	label := said.Email
	if len(label) > maxPasskeyName {
		label = ""
	}
	_, err := p.db.ExecContext(ctx, "INSERT INTO oidc_identity (principal, tenant, issuer, subject, label, created_ns, used_ns) VALUES ($1, $2, $3, $4, $5, $6, $6)",
		human.String(), human.Tenant, id.Issuer, id.Subject, label, now)
	if err != nil {
		return db.Classify(op, err)
	}
	_, err = p.log.Log(ctx, audit.Record{
		Who: human, What: audit.EventIdentityLinked, Resource: "Human::" + human.Name, Outcome: audit.Success,
		Detail: map[string]string{"issuer": id.Issuer, "subject": id.Subject},
	})
	return fault.Wrap(op, err)
}

// group replaces the groups that a provider gave before with those it gives now.
func (p *Providers) group(ctx context.Context, o *provider, human creto.ID, id *oidc.IDToken, now time.Time) error {
	const op fault.Op = "login.Providers.group"
	var theirs []string
	if o.GroupsClaim != "" {
		all := make(map[string]json.RawMessage)
		if err := id.Claims(&all); err != nil {
			return errRefused(op, err)
		}
		var one string
		if value, ok := all[o.GroupsClaim]; ok && json.Unmarshal(value, &theirs) != nil {
			if json.Unmarshal(value, &one) != nil {
				return errRefused(op, errors.New("the groups are no list of names"))
			}
			theirs = []string{one}
		}
		if len(theirs) > maxClaimGroups {
			return errRefused(op, errors.New("too many groups"))
		}
	}
	return db.Tx(ctx, p.db, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM oidc_group WHERE principal = $1 AND issuer = $2", human.String(), o.Issuer); err != nil {
			return db.Classify(op, err)
		}
		for _, name := range theirs {
			ours, ok := o.Groups[name]
			if !ok {
				continue
			}
			if _, err := tx.ExecContext(ctx, "INSERT INTO oidc_group (principal, issuer, group_name, expires_ns) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
				human.String(), o.Issuer, ours, now.Add(SessionTTL).UnixNano()); err != nil {
				return db.Classify(op, err)
			}
		}
		return nil
	})
}

// Groups returns the groups that providers gave a human, sorted: those of the
// last login, as long as a session may last, and while the provider is
// configured.
//
// Errors: Unavailable (Degraded).
func (p *Providers) Groups(ctx context.Context, human creto.ID) ([]string, error) {
	const op fault.Op = "login.Providers.Groups"
	if len(p.list) == 0 {
		return nil, nil
	}
	now, err := p.clock.Now(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	rows, err := p.db.QueryContext(ctx, `SELECT g.issuer, g.group_name FROM oidc_group g JOIN principal p ON p.id = g.principal AND p.active = 1
		WHERE g.principal = $1 AND g.expires_ns > $2 ORDER BY g.group_name`, human.String(), now.Physical)
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	var groups []string
	for rows.Next() {
		var issuer, group string
		if err := rows.Scan(&issuer, &group); err != nil {
			return nil, db.Classify(op, err)
		}
		if p.byIssuer(issuer) != nil && !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
	}
	return groups, db.Classify(op, rows.Err())
}

func (p *Providers) byIssuer(issuer string) *provider {
	for _, one := range p.list {
		if one.Issuer == issuer {
			return one
		}
	}
	return nil
}

// List returns a human's identities, the oldest first.
//
// Errors: Unavailable (Degraded).
func (p *Providers) List(ctx context.Context, human creto.ID) ([]Identity, error) {
	const op fault.Op = "login.Providers.List"
	rows, err := p.db.QueryContext(ctx, "SELECT issuer, subject, label, created_ns, used_ns FROM oidc_identity WHERE principal = $1 ORDER BY created_ns, issuer, subject", human.String())
	if err != nil {
		return nil, db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	var list []Identity
	for rows.Next() {
		var i Identity
		var created, used int64
		if err := rows.Scan(&i.Issuer, &i.Subject, &i.Label, &created, &used); err != nil {
			return nil, db.Classify(op, err)
		}
		i.Created, i.Used = time.Unix(0, created), time.Unix(0, used)
		if o := p.byIssuer(i.Issuer); o != nil {
			i.Provider = o.Name
		}
		list = append(list, i)
	}
	return list, db.Classify(op, rows.Err())
}

// Usable returns the names of the providers by which a human can confirm
// something.
//
// Errors: Unavailable (Degraded).
func (p *Providers) Usable(ctx context.Context, human creto.ID) ([]string, error) {
	list, err := p.List(ctx, human)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range list {
		if i.Provider != "" && !slices.Contains(names, i.Provider) {
			names = append(names, i.Provider)
		}
	}
	return names, nil
}

// Unlink forgets an identity of s's human, who must have been known just now,
// and the groups that it gave.
//
// Errors: PermissionDenied (Security) for a session that is not fresh; NotFound
// (Permanent); Unavailable (Degraded).
func (p *Providers) Unlink(ctx context.Context, s Session, issuer, subject string) error {
	const op fault.Op = "login.Providers.Unlink"
	if !s.Fresh {
		return errNotFresh(op)
	}
	err := db.Tx(ctx, p.db, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, "DELETE FROM oidc_identity WHERE principal = $1 AND issuer = $2 AND subject = $3", s.Human.String(), issuer, subject)
		if err != nil {
			return db.Classify(op, err)
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return errors.Join(fault.New(op, fault.NotFound, "there is no such identity"), err)
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM oidc_group WHERE principal = $1 AND issuer = $2", s.Human.String(), issuer)
		return db.Classify(op, err)
	})
	if err != nil {
		return err
	}
	_, err = p.log.Log(ctx, audit.Record{
		Who: s.Human, What: audit.EventIdentityUnlinked, Resource: "Human::" + s.Human.Name, Outcome: audit.Success,
		Detail: map[string]string{"issuer": issuer, "subject": subject},
	})
	return fault.Wrap(op, err)
}
