// Package localnhi is the identity authority of one node. Principals, links and
// sealed keys live in the node's database; tokens are EdDSA JWTs.
package localnhi

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// Config names the authority.
type Config struct {
	// TrustDomain is the first part of every SPIFFE id. Required.
	TrustDomain string
	// Tenant is the second part. Required.
	Tenant string
	// TokenTTL is the life of a token. 0 means nhi.MaxTokenTTL.
	TokenTTL time.Duration
}

// Authority is the local nhi.Authority, and what administers it. Safe for
// concurrent use.
type Authority struct {
	cfg    Config
	db     *sql.DB
	pqc    pqc.Provider
	clock  consensus.Clock
	kek    pqc.SymmetricKey
	root   pqc.SigningKey
	public pqc.PublicKey // of root
	tokens *tokens
	epoch  atomic.Uint64

	mu     sync.Mutex // guards epochs
	epochs map[creto.ID]uint64
}

var _ nhi.Authority = (*Authority)(nil)

// Open reads the authority's keys, or makes them on the first start. kek seals
// them in the database.
//
// Errors: CryptoDecryptionFailed (Security) if kek does not open the keys;
// Unavailable (Degraded) if the database cannot be used.
func Open(ctx context.Context, cfg Config, d *sql.DB, p pqc.Provider, clock consensus.Clock, kek pqc.SymmetricKey) (*Authority, error) {
	const op fault.Op = "localnhi.Open"
	a := &Authority{cfg: cfg, db: d, pqc: p, clock: clock, kek: kek, epochs: make(map[creto.ID]uint64)}
	if a.cfg.TokenTTL == 0 {
		a.cfg.TokenTTL = nhi.MaxTokenTTL
	}
	var err error
	if a.root, err = a.signingKey(ctx, "platform", roleRoot); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if a.public, err = p.Public(a.root); err != nil {
		return nil, fault.Wrap(op, err)
	}
	token, err := a.signingKey(ctx, "platform", roleToken)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	if a.tokens, err = newTokens(token, a.issuer()); err != nil {
		return nil, fault.Wrap(op, err)
	}
	var epoch uint64
	if err := d.QueryRowContext(ctx, "SELECT coalesce(max(epoch), 0) FROM revocation").Scan(&epoch); err != nil {
		return nil, fault.Wrap(op, db.Classify(op, err))
	}
	a.epoch.Store(epoch)
	return a, nil
}

func (a *Authority) issuer() string { return "spiffe://" + a.cfg.TrustDomain }

// ID returns the full name of a principal of this authority's tenant.
func (a *Authority) ID(kind creto.Kind, name string) creto.ID {
	return creto.ID{TrustDomain: a.cfg.TrustDomain, Tenant: a.cfg.Tenant, Kind: kind, Name: name}
}

// now is the current time in the order of events, so that an expiry never
// depends on a clock that was set back.
func (a *Authority) now(ctx context.Context) (time.Time, error) {
	stamp, err := a.clock.Now(ctx)
	return stamp.Time(), err
}

// Resolve implements nhi.Authority.
func (a *Authority) Resolve(ctx context.Context, token string) (nhi.Identity, error) {
	const op fault.Op = "localnhi.Resolve"
	claims, err := a.tokens.verify(token)
	if err != nil {
		return nhi.Identity{}, err
	}
	now, err := a.now(ctx)
	if err != nil {
		return nhi.Identity{}, fault.Wrap(op, err)
	}
	if !now.Before(claims.identity.ExpiresAt) {
		return nhi.Identity{}, fault.New(op, fault.NHITokenExpired, "the token has expired")
	}
	epoch, err := a.Epochs(ctx, claims.identity.ID)
	if err != nil {
		return nhi.Identity{}, fault.Wrap(op, err)
	}
	if claims.epoch < epoch {
		return nhi.Identity{}, fault.New(op, fault.NHITokenInvalid, "the token has been revoked")
	}
	return claims.identity, nil
}

// DelegationChain implements nhi.Authority.
func (a *Authority) DelegationChain(ctx context.Context, agent creto.ID) ([]nhi.SignedLink, error) {
	const op fault.Op = "localnhi.DelegationChain"
	var leaf []byte
	err := a.db.QueryRowContext(ctx, "SELECT leaf FROM principal WHERE id = $1 AND active = 1", agent.String()).Scan(&leaf)
	if errors.Is(err, sql.ErrNoRows) || err == nil && leaf == nil {
		return nil, fault.New(op, fault.NHINotFound, "there is no agent %q with a delegation", agent.Name)
	}
	if err != nil {
		return nil, unavailable(op, err)
	}
	return a.linksUp(ctx, leaf)
}

// ChainByDigest returns the chain of that digest that who acted under at some
// time, in force or not.
//
// Errors: NHINotFound (Permanent).
func (a *Authority) ChainByDigest(ctx context.Context, who creto.ID, digest creto.Digest) ([]nhi.SignedLink, error) {
	const op fault.Op = "localnhi.ChainByDigest"
	rows, err := a.db.QueryContext(ctx, "SELECT digest FROM delegation_link WHERE subject = $1", who.String())
	if err != nil {
		return nil, unavailable(op, err)
	}
	defer func() { _ = rows.Close() }()
	var leaves [][]byte
	for rows.Next() {
		var leaf []byte
		if err := rows.Scan(&leaf); err != nil {
			return nil, unavailable(op, err)
		}
		leaves = append(leaves, leaf)
	}
	if err := rows.Err(); err != nil {
		return nil, unavailable(op, err)
	}
	for _, leaf := range leaves {
		links, err := a.linksUp(ctx, leaf)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		if got, err := nhi.ChainDigest(links); err == nil && got == digest {
			return links, nil
		}
	}
	return nil, fault.New(op, fault.NHINotFound, "there is no chain %s of %s", digest, who.Name)
}

// linksUp collects a chain from its lowest link, the human's link first.
func (a *Authority) linksUp(ctx context.Context, leaf []byte) ([]nhi.SignedLink, error) {
	const op fault.Op = "localnhi.linksUp"
	var links []nhi.SignedLink
	for leaf != nil {
		var body, parent []byte
		if err := a.db.QueryRowContext(ctx, "SELECT body, parent FROM delegation_link WHERE digest = $1", leaf).Scan(&body, &parent); err != nil {
			return nil, unavailable(op, err)
		}
		link, err := decodeLink(body)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		links = append([]nhi.SignedLink{link}, links...)
		if leaf = parent; len(links) > nhi.MaxChain {
			return nil, fault.New(op, fault.NHIInternal, "a chain of more than %d links", nhi.MaxChain)
		}
	}
	return links, nil
}

// PublicKeys implements nhi.Authority.
func (a *Authority) PublicKeys(ctx context.Context, agent creto.ID) (nhi.PublicKeys, error) {
	const op fault.Op = "localnhi.PublicKeys"
	var algorithm pqc.Algorithm
	var key []byte
	err := a.db.QueryRowContext(ctx, "SELECT algorithm, public_key FROM signing_key WHERE owner = $1 AND role = $2", agent.String(), rolePrincipal).
		Scan(&algorithm, &key)
	if errors.Is(err, sql.ErrNoRows) {
		return nhi.PublicKeys{}, fault.New(op, fault.NHIPublicKeyNotFound, "there is no key of %q", agent.Name)
	}
	return nhi.PublicKeys{Signing: pqc.NewPublicKey(algorithm, key)}, unavailable(op, err)
}

// Groups implements nhi.Authority.
func (a *Authority) Groups(ctx context.Context, id creto.ID) ([]string, error) {
	const op fault.Op = "localnhi.Groups"
	rows, err := a.db.QueryContext(ctx, `SELECT m.group_name FROM membership m
		JOIN principal p ON p.id = m.principal AND p.active = 1 WHERE m.principal = $1 ORDER BY m.group_name`, id.String())
	if err != nil {
		return nil, unavailable(op, err)
	}
	defer func() { _ = rows.Close() }()
	var groups []string
	for rows.Next() {
		var g string
		if err := rows.Scan(&g); err != nil {
			return nil, unavailable(op, err)
		}
		groups = append(groups, g)
	}
	return groups, unavailable(op, rows.Err())
}

// Roots implements nhi.Authority.
func (a *Authority) Roots(context.Context) ([]pqc.PublicKey, error) {
	return []pqc.PublicKey{a.public}, nil
}

// Epoch implements nhi.Authority.
func (a *Authority) Epoch() uint64 { return a.epoch.Load() }

// Epochs implements nhi.Authority.
func (a *Authority) Epochs(ctx context.Context, id creto.ID) (uint64, error) {
	a.mu.Lock()
	epoch, ok := a.epochs[id]
	a.mu.Unlock()
	if ok {
		return epoch, nil
	}
	const op fault.Op = "localnhi.Epochs"
	before := a.epoch.Load()
	err := a.db.QueryRowContext(ctx, "SELECT epoch FROM principal WHERE id = $1", id.String()).Scan(&epoch)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, fault.New(op, fault.NHINotFound, "there is no principal %q", id.Name)
	}
	if err != nil {
		return 0, unavailable(op, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	// A revocation in between would have been forgotten by this entry.
	if a.epoch.Load() == before {
		a.epochs[id] = epoch
	}
	return epoch, nil
}

// Ping implements nhi.Authority.
func (a *Authority) Ping(ctx context.Context) error {
	return unavailable("localnhi.Ping", a.db.PingContext(ctx))
}

func unavailable(op fault.Op, err error) error {
	return fault.WrapAs(op, fault.NHIUnavailable, err, "the identity store cannot be used")
}
