// Package localnhi is the identity authority of one node. Tenants, principals,
// links and sealed keys live in the node's database; tokens are EdDSA JWTs.
package localnhi

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// Config names the authority.
type Config struct {
	// TrustDomain is the first part of every SPIFFE id. Required.
	TrustDomain string
	// Tenant is the second part of those that are given no other; it always
	// exists. Required.
	Tenant string
	// Issuer is the URL that tokens are issued under, where their keys are
	// found. "" means spiffe://TrustDomain.
	Issuer string
	// TokenTTL is the life of a token. 0 means nhi.MaxTokenTTL.
	TokenTTL time.Duration
	// Secrets are those whose value is elsewhere than in the store.
	Secrets []SecretBinding
}

// Authority is the local nhi.Authority, and what administers it. Safe for
// concurrent use.
type Authority struct {
	cfg      Config
	db       *sql.DB
	pqc      pqc.Provider
	clock    consensus.Clock
	kek      pqc.SymmetricKey
	verifier *nhi.Verifier
	tokens   *tokens
	svids    *svids
	revoked  *revoked
	secrets  map[secretKey]SecretBinding // read-only

	revoking sync.Mutex // held from a revocation's transaction until it is visible

	mu    sync.RWMutex // guards roots
	roots []root       // the newest, which signs, first
}

// root is a key of the trust domain; its seed is nil once it is retired.
type root struct {
	public pqc.PublicKey
	secret pqc.SigningKey
}

var _ nhi.Authority = (*Authority)(nil)

// Open reads the authority's keys, or makes them on the first start. kek seals
// them in the database.
//
// Errors: FailedPrecondition (Permanent), caused by CryptoDecryptionFailed, if
// kek does not open the keys;
// InvalidArgument (Permanent) for bindings of secrets that cannot be;
// Unavailable (Degraded) if the database cannot be used.
func Open(ctx context.Context, cfg Config, d *sql.DB, p pqc.Provider, clock consensus.Clock, kek pqc.SymmetricKey) (*Authority, error) {
	const op fault.Op = "localnhi.Open"
	a := &Authority{cfg: cfg, db: d, pqc: p, clock: clock, kek: kek, verifier: nhi.NewVerifier(p, 0)}
	if a.cfg.TokenTTL == 0 {
		a.cfg.TokenTTL = nhi.MaxTokenTTL
	}
	if a.cfg.Issuer == "" {
		a.cfg.Issuer = "spiffe://" + cfg.TrustDomain
	}
	var err error
	if a.secrets, err = bind(cfg.Secrets); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if err := a.AddTenant(ctx, cfg.Tenant); err != nil && !errors.Is(err, fault.AlreadyExists) {
		return nil, fault.Wrap(op, err)
	}
	if a.revoked, err = loadRevoked(ctx, d); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if err := a.loadRoots(ctx); err != nil {
		return nil, fault.Wrap(op, err)
	}
	began, err := a.now(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	a.tokens, a.svids = newTokens(a.cfg.Issuer, began), &svids{}
	if err := a.loadTokenKeys(ctx); err != nil {
		return nil, fault.Wrap(op, err)
	}
	return a, fault.Wrap(op, a.loadSVIDKeys(ctx))
}

// ID returns the full name of a principal of this authority's own tenant.
func (a *Authority) ID(kind creto.Kind, name string) creto.ID {
	return a.IDOf(a.cfg.Tenant, kind, name)
}

// IDOf returns the full name of a principal of a tenant.
func (a *Authority) IDOf(tenant string, kind creto.Kind, name string) creto.ID {
	return creto.ID{TrustDomain: a.cfg.TrustDomain, Tenant: tenant, Kind: kind, Name: name}
}

// Issuer is the URL that tokens are issued under.
func (a *Authority) Issuer() string { return a.cfg.Issuer }

// now is the current time in the order of events, so that an expiry never
// depends on a clock that was set back.
func (a *Authority) now(ctx context.Context) (time.Time, error) {
	stamp, err := a.clock.Now(ctx)
	return stamp.Time(), err
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

// Chain returns an agent's chain, verified as it is in force now.
//
// Errors: NHINotFound (Permanent); NHIDelegationVerificationFailed (Security).
func (a *Authority) Chain(ctx context.Context, agent creto.ID) (nhi.VerifiedChain, error) {
	const op fault.Op = "localnhi.Chain"
	links, err := a.DelegationChain(ctx, agent)
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	now, err := a.now(ctx)
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	chain, err := a.verifier.Verify(ctx, links, a.rootKeys(), now, a)
	return chain, fault.Wrap(op, err)
}

// ChainByDigest returns the chain of that digest that who acted under at some
// time, in force or not.
//
// Errors: NHINotFound (Permanent).
func (a *Authority) ChainByDigest(ctx context.Context, who creto.ID, digest creto.Digest) ([]nhi.SignedLink, error) {
	const op fault.Op = "localnhi.ChainByDigest"
	leaves, err := collect(ctx, a.db, func(rows *sql.Rows) (leaf []byte, err error) { return leaf, rows.Scan(&leaf) },
		"SELECT digest FROM delegation_link WHERE subject = $1", who.String())
	if err != nil {
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

// Groups implements nhi.Authority.
func (a *Authority) Groups(ctx context.Context, id creto.ID) ([]string, error) {
	const op fault.Op = "localnhi.Groups"
	groups, err := collect(ctx, a.db, func(rows *sql.Rows) (g string, err error) { return g, rows.Scan(&g) },
		`SELECT m.group_name FROM membership m JOIN principal p ON p.id = m.principal AND p.active = 1
		WHERE m.principal = $1 ORDER BY m.group_name`, id.String())
	return groups, unavailable(op, err)
}

// collect runs a query and scans its rows.
func collect[T any](ctx context.Context, d *sql.DB, scan func(*sql.Rows) (T, error), query string, args ...any) ([]T, error) {
	rows, err := d.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var list []T
	for rows.Next() {
		item, err := scan(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, item)
	}
	return list, rows.Err()
}

// Ping implements nhi.Authority.
func (a *Authority) Ping(ctx context.Context) error {
	return unavailable("localnhi.Ping", a.db.PingContext(ctx))
}

func unavailable(op fault.Op, err error) error {
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return fault.Wrap(op, err)
	}
	return fault.WrapAs(op, fault.NHIUnavailable, err, "the identity store cannot be used")
}
