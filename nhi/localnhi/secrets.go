package localnhi

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// SecretBinding says where a tenant's secret has its value, instead of under
// its own name in the authority's store.
type SecretBinding struct {
	// Tenant and Name are what it is asked for by. Required.
	Tenant string
	Name   nhi.SecretRef
	// Agents may have it, all of Tenant; none means that policy alone decides.
	Agents []creto.ID
	// Source has the value at Locator; without one, the store has it under
	// that name, whose own grant holds too.
	Source  nhi.SecretSource
	Locator string
	// From is how a person writes the two, for lists.
	From string
}

// SecretInfo is a secret without its value.
type SecretInfo struct {
	Tenant string
	Name   nhi.SecretRef
	// From is where the value is: "store", or as SecretBinding has it.
	From string
	// Version counts how often the stored value was set; 0 for one that is
	// elsewhere.
	Version int64
	// Owner set it, at Set; both zero for one that is elsewhere.
	Owner creto.ID
	Set   time.Time
	// Agents may have it; none means that policy alone decides.
	Agents []creto.ID
}

// storeName is SecretInfo.From of what is in the store under its own name.
const storeName = "store"

// secretKey is what no look-up goes without.
type secretKey struct {
	tenant string
	name   nhi.SecretRef
}

// bind indexes what the configuration says of secrets.
func bind(list []SecretBinding) (map[secretKey]SecretBinding, error) {
	const op fault.Op = "localnhi.bind"
	bound := make(map[secretKey]SecretBinding, len(list))
	for _, b := range list {
		if err := b.Name.Validate(); err != nil {
			return nil, fault.Wrap(op, err)
		}
		key := secretKey{b.Tenant, b.Name}
		if _, twice := bound[key]; twice {
			return nil, fault.New(op, fault.InvalidArgument, "the secret %q is there twice", b.Name)
		}
		for _, agent := range b.Agents {
			if err := agent.Validate(); err != nil || agent.Tenant != b.Tenant || agent.Kind != creto.KindAgent {
				return nil, fault.New(op, fault.InvalidArgument, "%q is no agent of the tenant %q", agent.Name, b.Tenant)
			}
		}
		bound[key] = b
	}
	return bound, nil
}

// DelegatedSecrets implements nhi.Authority. Nothing is kept of a value.
func (a *Authority) DelegatedSecrets(ctx context.Context, who nhi.Identity, refs []nhi.SecretRef) ([]creto.Secret, error) {
	const op fault.Op = "localnhi.DelegatedSecrets"
	if err := a.acting(ctx, who); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if len(refs) > nhi.MaxSecretRefs {
		return nil, fault.New(op, fault.InvalidArgument, "%d secrets at once, limit %d", len(refs), nhi.MaxSecretRefs)
	}
	values := make([]creto.Secret, 0, len(refs))
	for _, ref := range refs {
		value, err := a.secretFor(ctx, who.ID, ref)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		values = append(values, value)
	}
	// A source may have taken its time: who was revoked meanwhile gets nothing.
	if err := a.acting(ctx, who); err != nil {
		return nil, fault.Wrap(op, err)
	}
	return values, nil
}

// secretFor returns the value of a secret of agent's tenant.
func (a *Authority) secretFor(ctx context.Context, agent creto.ID, ref nhi.SecretRef) (creto.Secret, error) {
	const op fault.Op = "localnhi.secretFor"
	key := secretKey{agent.Tenant, ref}
	b, bound := a.secrets[key]
	if bound {
		if err := granted(agent, b.Agents); err != nil {
			return creto.Secret{}, named(op, err, ref)
		}
		key.name = nhi.SecretRef(b.Locator)
	}
	if b.Source == nil {
		value, err := a.stored(ctx, agent, key)
		return value, named(op, err, ref)
	}
	value, err := b.Source.Secret(ctx, b.Locator)
	return value, named(op, err, ref)
}

// granted reports whether agent is one of agents, if there are any.
func granted(agent creto.ID, agents []creto.ID) error {
	if len(agents) == 0 || slices.Contains(agents, agent) {
		return nil
	}
	return fault.New("localnhi.granted", fault.NHISecretAccessDenied, "its owner does not let %s have it", agent.Name)
}

// named says of an error which secret it is about, as it was asked for: where
// that is kept is not an agent's to know.
func named(op fault.Op, err error, ref nhi.SecretRef) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fault.NHISecretNotFound):
		return fault.New(op, fault.NHISecretNotFound, "there is no secret %q", ref)
	}
	return fault.WrapAs(op, fault.CodeOf(err), err, "the secret %q cannot be had", ref)
}

// secretRow is a row of the store.
type secretRow struct {
	secretKey
	version int64
	owner   string
	agents  string
	kek     pqc.KeyID
	sealed  []byte // nil once it is removed
	set     int64  // Unix nanoseconds
}

// secretColumns are those of a secretRow, in scan's order.
const secretColumns = "tenant, name, version, owner, agents, kek, sealed, set_ns"

func (r *secretRow) scan(scan func(...any) error) error {
	return scan(&r.tenant, &r.name, &r.version, &r.owner, &r.agents, &r.kek, &r.sealed, &r.set)
}

// associated binds a sealed value to its row (B-6).
func (r *secretRow) associated() []byte {
	return fmt.Appendf(nil, "secret/v1 %q %q %d %q %q", r.tenant, r.name, r.version, r.owner, r.agents)
}

// granted returns who may have it.
func (r *secretRow) granted() ([]creto.ID, error) {
	var agents []creto.ID
	for text := range strings.FieldsSeq(r.agents) {
		id, err := creto.ParseID(text)
		if err != nil {
			return nil, err
		}
		agents = append(agents, id)
	}
	return agents, nil
}

// stored opens a value of the store. Grant and value are one row, read at once.
func (a *Authority) stored(ctx context.Context, agent creto.ID, key secretKey) (creto.Secret, error) {
	const op fault.Op = "localnhi.stored"
	var r secretRow
	err := r.scan(a.db.QueryRowContext(ctx, "SELECT "+secretColumns+" FROM secret WHERE tenant = $1 AND name = $2", key.tenant, string(key.name)).Scan)
	if errors.Is(err, sql.ErrNoRows) || err == nil && r.sealed == nil || key.name.Validate() != nil {
		return creto.Secret{}, fault.New(op, fault.NHISecretNotFound, "there is no secret %q", key.name)
	}
	if err != nil {
		return creto.Secret{}, unavailable(op, err)
	}
	// It is opened before its grant is believed: the seal covers that too.
	value, err := a.pqc.Decrypt(pqc.EncryptedData{Algorithm: a.kek.Algorithm, Key: r.kek, Bytes: r.sealed}, r.associated(), a.kek)
	if err != nil {
		return creto.Secret{}, fault.WrapAs(op, fault.DataLoss, err, "it cannot be unsealed: its row was changed, or the key-encryption key is another")
	}
	defer clear(value)
	agents, err := r.granted()
	if err != nil {
		return creto.Secret{}, fault.WrapAs(op, fault.DataLoss, err, "its grant cannot be read")
	}
	if err := granted(agent, agents); err != nil {
		return creto.Secret{}, err
	}
	return creto.NewSecret(string(value)), nil
}

// SetSecret stores a value, in place of one that is there; that is gone then.
// s.Version, s.From and s.Set are ignored.
//
// Errors: InvalidArgument (Permanent) for a bad name, or a value that is empty,
// not UTF-8 or larger than nhi.MaxSecretBytes; NHINotFound (Permanent) for an
// agent that is not active; FailedPrecondition (Permanent) if the configuration
// says that the value is elsewhere; Aborted (Transient) if it was set at the
// same time.
func (a *Authority) SetSecret(ctx context.Context, s SecretInfo, value creto.Secret) (SecretInfo, error) {
	const op fault.Op = "localnhi.SetSecret"
	if err := a.settable(ctx, s, value); err != nil {
		return SecretInfo{}, fault.Wrap(op, err)
	}
	now, err := a.now(ctx)
	if err != nil {
		return SecretInfo{}, fault.Wrap(op, err)
	}
	agents := make([]string, 0, len(s.Agents))
	for _, agent := range s.Agents {
		agents = append(agents, agent.String())
	}
	slices.Sort(agents)
	r := secretRow{
		secretKey: secretKey{s.Tenant, s.Name}, owner: s.Owner.String(), agents: strings.Join(slices.Compact(agents), " "), kek: a.kek.ID, set: now.UnixNano(),
	}
	err = db.Tx(ctx, a.db, func(tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, "SELECT version FROM secret WHERE tenant = $1 AND name = $2", r.tenant, string(r.name)).Scan(&r.version)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return unavailable(op, err)
		}
		r.version++
		plain := []byte(value.Reveal())
		defer clear(plain)
		sealed, err := a.pqc.Encrypt(plain, r.associated(), a.kek)
		if err != nil {
			return err
		}
		result, err := tx.ExecContext(ctx, "INSERT INTO secret ("+secretColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
			ON CONFLICT (tenant, name) DO UPDATE SET version = $3, owner = $4, agents = $5, kek = $6, sealed = $7, set_ns = $8 WHERE secret.version = $3 - 1`,
			r.tenant, string(r.name), r.version, r.owner, r.agents, string(r.kek), sealed.Bytes, r.set)
		if err != nil {
			return unavailable(op, db.Classify(op, err))
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 {
			return fault.New(op, fault.Aborted, "the secret %q was set at the same time", r.name)
		}
		return nil
	})
	if err != nil {
		return SecretInfo{}, fault.Wrap(op, err)
	}
	return r.info()
}

// settable reports whether s may be set to value.
func (a *Authority) settable(ctx context.Context, s SecretInfo, value creto.Secret) error {
	const op fault.Op = "localnhi.settable"
	if err := s.Name.Validate(); err != nil {
		return err
	}
	switch n := len(value.Reveal()); {
	case n == 0:
		return fault.New(op, fault.InvalidArgument, "the value of the secret %q is empty", s.Name)
	case n > nhi.MaxSecretBytes:
		return fault.New(op, fault.InvalidArgument, "the value of the secret %q has %d bytes, limit %d", s.Name, n, nhi.MaxSecretBytes)
	case !utf8.ValidString(value.Reveal()):
		return fault.New(op, fault.InvalidArgument, "the value of the secret %q is not UTF-8; encode it, as in base64", s.Name)
	}
	if b, ok := a.secrets[secretKey{s.Tenant, s.Name}]; ok && (b.Source != nil || b.Locator != string(s.Name)) {
		return fault.New(op, fault.FailedPrecondition, "the configuration has the secret %q from %s; set it there", s.Name, b.From)
	}
	for _, agent := range s.Agents {
		standing, err := a.standingOf(ctx, agent)
		if err != nil {
			return err
		}
		if !standing.active || agent.Kind != creto.KindAgent || agent.Tenant != s.Tenant {
			return fault.New(op, fault.NHINotFound, "there is no active agent %q", agent.Name)
		}
	}
	return nil
}

func (r *secretRow) info() (SecretInfo, error) {
	const op fault.Op = "localnhi.info"
	owner, err := creto.ParseID(r.owner)
	if err != nil {
		return SecretInfo{}, fault.WrapAs(op, fault.DataLoss, err, "the owner of the secret %q cannot be read", r.name)
	}
	agents, err := r.granted()
	if err != nil {
		return SecretInfo{}, fault.WrapAs(op, fault.DataLoss, err, "the grant of the secret %q cannot be read", r.name)
	}
	return SecretInfo{Tenant: r.tenant, Name: r.name, From: storeName, Version: r.version, Owner: owner, Set: time.Unix(0, r.set).UTC(), Agents: agents}, nil
}

// Secrets lists the secrets of a tenant by name, wherever they are kept.
//
// Errors: NHIUnavailable (Degraded).
func (a *Authority) Secrets(ctx context.Context, tenant string) ([]SecretInfo, error) {
	const op fault.Op = "localnhi.Secrets"
	list, err := collect(ctx, a.db, func(rows *sql.Rows) (SecretInfo, error) {
		var r secretRow
		if err := r.scan(rows.Scan); err != nil {
			return SecretInfo{}, err
		}
		return r.info()
	}, "SELECT "+secretColumns+" FROM secret WHERE tenant = $1 AND sealed IS NOT NULL", tenant)
	if err != nil {
		return nil, unavailable(op, err)
	}
	// A binding hides what the store has under its name.
	list = slices.DeleteFunc(list, func(s SecretInfo) bool { _, hidden := a.secrets[secretKey{s.Tenant, s.Name}]; return hidden })
	for key, b := range a.secrets {
		if key.tenant == tenant {
			list = append(list, SecretInfo{Tenant: tenant, Name: b.Name, From: b.From, Agents: b.Agents})
		}
	}
	slices.SortFunc(list, func(x, y SecretInfo) int { return cmp.Compare(x.Name, y.Name) })
	return list, nil
}

// RemoveSecret destroys a stored value. Its versions go on when it is set again.
//
// Errors: NHISecretNotFound (Permanent).
func (a *Authority) RemoveSecret(ctx context.Context, tenant string, name nhi.SecretRef) error {
	const op fault.Op = "localnhi.RemoveSecret"
	result, err := a.db.ExecContext(ctx, "UPDATE secret SET sealed = NULL WHERE tenant = $1 AND name = $2 AND sealed IS NOT NULL", tenant, string(name))
	if err != nil {
		return unavailable(op, db.Classify(op, err))
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return fault.New(op, fault.NHISecretNotFound, "there is no secret %q in the store", name)
	}
	return nil
}
