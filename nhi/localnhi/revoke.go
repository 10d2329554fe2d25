package localnhi

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/nhi"
)

// revoked is what was revoked, in memory: a check costs no query. The database
// is written first, then this, then the epoch is raised, so that whoever reads
// the epoch and then this never misses what the epoch stands for.
type revoked struct {
	epoch atomic.Uint64

	mu         sync.RWMutex // guards the maps and changed
	principals map[creto.ID]standing
	links      map[creto.Digest]bool
	tokens     map[string]time.Time // jti → when it expires anyway
	changed    chan struct{}        // closed with the next epoch
}

// standing is a principal's; only known ones are kept.
type standing struct {
	epoch  uint64
	active bool
}

func loadRevoked(ctx context.Context, d *sql.DB) (*revoked, error) {
	const op fault.Op = "localnhi.loadRevoked"
	r := &revoked{
		principals: make(map[creto.ID]standing), links: make(map[creto.Digest]bool),
		tokens: make(map[string]time.Time), changed: make(chan struct{}),
	}
	var epoch uint64
	if err := d.QueryRowContext(ctx, "SELECT coalesce(max(epoch), 0) FROM revocation").Scan(&epoch); err != nil {
		return nil, db.Classify(op, err)
	}
	r.epoch.Store(epoch)
	digests, err := collect(ctx, d, func(rows *sql.Rows) (digest []byte, err error) { return digest, rows.Scan(&digest) }, "SELECT digest FROM revoked_link")
	if err != nil {
		return nil, db.Classify(op, err)
	}
	for _, text := range digests {
		var digest creto.Digest
		if err := digest.UnmarshalBinary(text); err != nil {
			return nil, fault.Wrap(op, err)
		}
		r.links[digest] = true
	}
	type token struct {
		jti     string
		expires int64
	}
	tokens, err := collect(ctx, d, func(rows *sql.Rows) (t token, err error) { return t, rows.Scan(&t.jti, &t.expires) }, "SELECT jti, expires_ns FROM revoked_token")
	if err != nil {
		return nil, db.Classify(op, err)
	}
	for _, t := range tokens {
		r.tokens[t.jti] = time.Unix(0, t.expires)
	}
	return r, nil
}

// raise makes a change visible under its epoch.
func (r *revoked) raise(epoch uint64, change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	r.epoch.Store(epoch)
	close(r.changed)
	r.changed = make(chan struct{})
}

// standingOf returns a principal's epoch and whether it is active; the zero
// standing for an unknown one.
func (a *Authority) standingOf(ctx context.Context, id creto.ID) (standing, error) {
	r := a.revoked
	r.mu.RLock()
	s, ok := r.principals[id]
	r.mu.RUnlock()
	if ok {
		return s, nil
	}
	const op fault.Op = "localnhi.standingOf"
	before := r.epoch.Load()
	err := a.db.QueryRowContext(ctx, "SELECT epoch, active FROM principal WHERE id = $1", id.String()).Scan(&s.epoch, &s.active)
	if errors.Is(err, sql.ErrNoRows) {
		return standing{}, nil
	}
	if err != nil {
		return standing{}, unavailable(op, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// A revocation in between would have been forgotten by this entry.
	if r.epoch.Load() == before {
		r.principals[id] = s
	}
	return s, nil
}

// Revoked implements nhi.Revocations.
func (a *Authority) Revoked(ctx context.Context, links []nhi.LinkRef) (int, error) {
	for i, link := range links {
		a.revoked.mu.RLock()
		gone := a.revoked.links[link.Digest]
		a.revoked.mu.RUnlock()
		if gone {
			return i, nil
		}
		issuer, err := a.standingOf(ctx, link.Issuer)
		if err != nil {
			return 0, err
		}
		subject, err := a.standingOf(ctx, link.Subject)
		if err != nil {
			return 0, err
		}
		if !issuer.active || !subject.active || link.IssuerEpoch != issuer.epoch || link.SubjectEpoch != subject.epoch {
			return i, nil
		}
	}
	return -1, nil
}

// Epoch implements nhi.Authority. This process is the authority, so that it is
// always heard.
func (a *Authority) Epoch() (uint64, error) { return a.revoked.epoch.Load(), nil }

// Watch implements nhi.Authority.
func (a *Authority) Watch(ctx context.Context, seen func(epoch uint64)) error {
	for last, first := uint64(0), true; ; first = false {
		a.revoked.mu.RLock()
		epoch, changed := a.revoked.epoch.Load(), a.revoked.changed
		a.revoked.mu.RUnlock()
		if first || epoch != last {
			seen(epoch)
			last = epoch
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fault.Wrap("localnhi.Watch", ctx.Err())
		}
	}
}

// The kinds of rows in the table of revocations.
const (
	revokedPrincipal = "principal"
	revokedLink      = "link"
	revokedToken     = "token"
	changed          = "changed" // nothing is revoked, but what was verified must be verified again
)

// nextEpoch writes a revocation's row and returns its epoch.
func nextEpoch(ctx context.Context, tx *sql.Tx, what, kind string, now time.Time) (epoch uint64, err error) {
	err = tx.QueryRowContext(ctx, `INSERT INTO revocation (epoch, principal, at_ns, kind)
		VALUES ((SELECT coalesce(max(epoch), 0) + 1 FROM revocation), $1, $2, $3) RETURNING epoch`, what, now.UnixNano(), kind).Scan(&epoch)
	return epoch, db.Classify("localnhi.nextEpoch", err)
}

// revoke writes a revocation and then makes it visible, one after the other: of
// whoever sees an epoch, nothing that is older stays hidden.
func (a *Authority) revoke(ctx context.Context, what, kind string, write func(*sql.Tx) error, change func()) error {
	const op fault.Op = "localnhi.revoke"
	now, err := a.now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	a.revoking.Lock()
	defer a.revoking.Unlock()
	var epoch uint64
	err = db.Tx(ctx, a.db, func(tx *sql.Tx) error {
		if err := write(tx); err != nil {
			return err
		}
		epoch, err = nextEpoch(ctx, tx, what, kind, now)
		return err
	})
	if err == nil {
		a.revoked.raise(epoch, change)
	}
	return err
}

// Revoke ends every token and link of a principal, and whatever was delegated
// below it, at once. The principal stays registered but inactive.
//
// Errors: NHINotFound (Permanent).
func (a *Authority) Revoke(ctx context.Context, id creto.ID) error {
	const op fault.Op = "localnhi.Revoke"
	return a.revoke(ctx, id.String(), revokedPrincipal, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, "UPDATE principal SET epoch = epoch + 1, active = 0 WHERE id = $1 AND active = 1", id.String())
		if err != nil {
			return db.Classify(op, err)
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return fault.New(op, fault.NHINotFound, "there is no active %s %q", id.Kind, id.Name)
		}
		return nil
	}, func() { delete(a.revoked.principals, id) })
}

// RevokeTokens ends every token of a principal and every link from and to it,
// and whatever was delegated below it, but leaves it active: it can be
// delegated to again.
//
// Errors: NHINotFound (Permanent).
func (a *Authority) RevokeTokens(ctx context.Context, id creto.ID) error {
	const op fault.Op = "localnhi.RevokeTokens"
	return a.revoke(ctx, id.String(), revokedPrincipal, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, "UPDATE principal SET epoch = epoch + 1, leaf = NULL WHERE id = $1 AND active = 1", id.String())
		if err != nil {
			return db.Classify(op, err)
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return fault.New(op, fault.NHINotFound, "there is no active %s %q", id.Kind, id.Name)
		}
		return nil
	}, func() { delete(a.revoked.principals, id) })
}

// RevokeLink ends one link, and whatever was delegated below it.
//
// Errors: NHINotFound (Permanent).
func (a *Authority) RevokeLink(ctx context.Context, digest creto.Digest) error {
	const op fault.Op = "localnhi.RevokeLink"
	return a.revoke(ctx, digest.String(), revokedLink, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, "INSERT INTO revoked_link (digest) SELECT digest FROM delegation_link WHERE digest = $1 ON CONFLICT DO NOTHING", digest[:])
		if err != nil {
			return db.Classify(op, err)
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return fault.New(op, fault.NHINotFound, "there is no link %s in force", digest)
		}
		return nil
	}, func() { a.revoked.links[digest] = true })
}

// RevokeToken ends one token. It takes what Resolve said of it.
//
// Errors: Unavailable (Degraded).
func (a *Authority) RevokeToken(ctx context.Context, who nhi.Identity) error {
	const op fault.Op = "localnhi.RevokeToken"
	now, err := a.now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	return a.revoke(ctx, who.TokenID, revokedToken, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM revoked_token WHERE expires_ns <= $1", now.UnixNano()); err != nil {
			return db.Classify(op, err)
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO revoked_token (jti, expires_ns) VALUES ($1, $2) ON CONFLICT DO NOTHING", who.TokenID, who.ExpiresAt.UnixNano())
		return db.Classify(op, err)
	}, func() {
		for jti, expires := range a.revoked.tokens {
			if !now.Before(expires) {
				delete(a.revoked.tokens, jti)
			}
		}
		a.revoked.tokens[who.TokenID] = who.ExpiresAt
	})
}

// RevokeBelow is the kill switch: it revokes every agent that acts for a human,
// however far below, all or none. It returns those that it found active.
//
// Errors: those of the store.
func (a *Authority) RevokeBelow(ctx context.Context, human creto.ID) ([]creto.ID, error) {
	return a.revokeAgents(ctx, human.Tenant, human.String(), func(p Principal) bool { return p.Human == human })
}

// RevokeAgents is RevokeBelow for all agents of a tenant.
func (a *Authority) RevokeAgents(ctx context.Context, tenant string) ([]creto.ID, error) {
	return a.revokeAgents(ctx, tenant, tenant, func(Principal) bool { return true })
}

// revokeAgents revokes agents in one transaction, recorded under a name.
func (a *Authority) revokeAgents(ctx context.Context, tenant, name string, which func(Principal) bool) ([]creto.ID, error) {
	const op fault.Op = "localnhi.revokeAgents"
	agents, err := a.Principals(ctx, tenant, creto.KindAgent)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	var gone []creto.ID
	err = a.revoke(ctx, name, revokedPrincipal, func(tx *sql.Tx) error {
		for _, p := range agents {
			if !p.Active || !which(p) {
				continue
			}
			if _, err := tx.ExecContext(ctx, "UPDATE principal SET epoch = epoch + 1, active = 0 WHERE id = $1 AND active = 1", p.ID.String()); err != nil {
				return db.Classify(op, err)
			}
			gone = append(gone, p.ID)
		}
		return nil
	}, func() {
		for _, id := range gone {
			delete(a.revoked.principals, id)
		}
	})
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	return gone, nil
}
