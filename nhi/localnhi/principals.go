package localnhi

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// maxDepth is how many links may follow a human's.
const maxDepth = 4

// Principal is one row of the authority's register.
type Principal struct {
	ID         creto.ID
	Groups     []string
	OnBehalfOf creto.ID // who delegated to it; zero for a human
	Active     bool
}

// AddHuman registers a human, or adds groups to one who is registered.
//
// Errors: InvalidArgument (Permanent) for a bad name.
func (a *Authority) AddHuman(ctx context.Context, name string, groups ...string) (creto.ID, error) {
	return a.addMember(ctx, a.ID(creto.KindHuman, name), groups)
}

// AddWorkload is AddHuman for a program that answers in a group.
//
// Errors: InvalidArgument (Permanent) for a bad name.
func (a *Authority) AddWorkload(ctx context.Context, name string, groups ...string) (creto.ID, error) {
	return a.addMember(ctx, a.ID(creto.KindWorkload, name), groups)
}

func (a *Authority) addMember(ctx context.Context, id creto.ID, groups []string) (creto.ID, error) {
	const op fault.Op = "localnhi.addMember"
	for _, g := range groups {
		if err := a.ID(creto.KindHuman, g).Validate(); err != nil {
			return id, fault.New(op, fault.InvalidArgument, "%q is no name of a group", g)
		}
	}
	if err := a.register(ctx, id); err != nil && !errors.Is(err, fault.AlreadyExists) {
		return id, fault.Wrap(op, err)
	}
	for _, g := range groups {
		_, err := a.db.ExecContext(ctx, "INSERT INTO membership (principal, group_name) VALUES ($1, $2) ON CONFLICT DO NOTHING", id.String(), g)
		if err != nil {
			return id, db.Classify(op, err)
		}
	}
	return id, nil
}

func (a *Authority) register(ctx context.Context, id creto.ID) error {
	const op fault.Op = "localnhi.register"
	if err := id.Validate(); err != nil {
		return fault.Wrap(op, err)
	}
	now, err := a.now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	_, err = a.db.ExecContext(ctx, "INSERT INTO principal (id, tenant, kind, name, created_ns) VALUES ($1, $2, $3, $4, $5)",
		id.String(), id.Tenant, string(id.Kind), id.Name, now.UnixNano())
	return db.Classify(op, err)
}

// AddAgent registers an agent that nobody has delegated to yet.
//
// Errors: AlreadyExists, InvalidArgument (Permanent).
func (a *Authority) AddAgent(ctx context.Context, name string) (creto.ID, error) {
	const op fault.Op = "localnhi.AddAgent"
	id := a.ID(creto.KindAgent, name)
	if err := a.register(ctx, id); err != nil {
		if errors.Is(err, fault.AlreadyExists) {
			return id, fault.New(op, fault.AlreadyExists, "there is an agent %q already", name)
		}
		return id, fault.Wrap(op, err)
	}
	_, err := a.signingKey(ctx, id.String(), rolePrincipal)
	return id, fault.Wrap(op, err)
}

// Delegate passes authority from issuer to agent for ttl; it replaces an
// earlier delegation to agent. A human's link is signed by the root and holds
// proof; an agent's is signed by the agent's own key.
//
// Errors: NHINotFound (Permanent) for an unknown or inactive principal;
// NHIDelegationVerificationFailed (Security) if issuer may not pass this on.
func (a *Authority) Delegate(ctx context.Context, issuer, agent creto.ID, scope nhi.Scope, ttl time.Duration, proof nhi.Proof) (nhi.VerifiedChain, error) {
	const op fault.Op = "localnhi.Delegate"
	key, err := a.PublicKeys(ctx, agent)
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	now, err := a.now(ctx)
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	link := nhi.Link{
		Issuer: issuer, Subject: agent, SubjectKey: key.Signing, Scope: scope,
		NotBefore: now.Unix(), NotAfter: now.Add(ttl).Unix(), MaxDepth: maxDepth, Nonce: creto.NewUUID(),
	}
	if link.IssuerEpoch, err = a.activeEpoch(ctx, issuer); err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	if link.SubjectEpoch, err = a.activeEpoch(ctx, agent); err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	signer, above := a.root, []nhi.SignedLink(nil)
	if issuer.Kind == creto.KindHuman {
		link.Proof = proof
	} else if signer, above, err = a.below(ctx, issuer, &link); err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	signed, err := nhi.SignLink(a.pqc, signer, link)
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	chain, err := nhi.VerifyDelegation(ctx, append(above, signed), []pqc.PublicKey{a.public}, a.pqc, now, a.Epochs)
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	return chain, fault.Wrap(op, a.store(ctx, agent, link, signed))
}

// below makes link a continuation of the issuing agent's own chain.
func (a *Authority) below(ctx context.Context, issuer creto.ID, link *nhi.Link) (pqc.SigningKey, []nhi.SignedLink, error) {
	above, err := a.DelegationChain(ctx, issuer)
	if err != nil {
		return pqc.SigningKey{}, nil, err
	}
	parent, err := above[len(above)-1].Link()
	if err != nil {
		return pqc.SigningKey{}, nil, err
	}
	link.Parent = above[len(above)-1].Digest()
	link.NotAfter = min(link.NotAfter, parent.NotAfter)
	if parent.MaxDepth == 0 {
		return pqc.SigningKey{}, nil, fault.New("localnhi.below", fault.NHIDelegationVerificationFailed, "%s may not delegate further", issuer)
	}
	link.MaxDepth = parent.MaxDepth - 1
	key, err := a.signingKey(ctx, issuer.String(), rolePrincipal)
	return key, above, err
}

func (a *Authority) activeEpoch(ctx context.Context, id creto.ID) (uint64, error) {
	const op fault.Op = "localnhi.activeEpoch"
	var epoch uint64
	err := a.db.QueryRowContext(ctx, "SELECT epoch FROM principal WHERE id = $1 AND active = 1", id.String()).Scan(&epoch)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, fault.New(op, fault.NHINotFound, "there is no active %s %q", id.Kind, id.Name)
	}
	return epoch, db.Classify(op, err)
}

func (a *Authority) store(ctx context.Context, agent creto.ID, link nhi.Link, signed nhi.SignedLink) error {
	const op fault.Op = "localnhi.store"
	body, err := encodeLink(signed)
	if err != nil {
		return fault.Wrap(op, err)
	}
	digest := signed.Digest()
	var parent []byte
	if !link.Parent.IsZero() {
		parent = link.Parent[:]
	}
	return db.Tx(ctx, a.db, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "INSERT INTO delegation_link (digest, subject, parent, body) VALUES ($1, $2, $3, $4)", digest[:], agent.String(), parent, body); err != nil {
			return db.Classify(op, err)
		}
		_, err := tx.ExecContext(ctx, "UPDATE principal SET leaf = $1 WHERE id = $2", digest[:], agent.String())
		return db.Classify(op, err)
	})
}

// Revoke ends every token and link of a principal, and whatever was delegated
// below it, at once. The principal stays registered but inactive.
//
// Errors: NHINotFound (Permanent).
func (a *Authority) Revoke(ctx context.Context, id creto.ID) error {
	const op fault.Op = "localnhi.Revoke"
	now, err := a.now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	var global uint64
	err = db.Tx(ctx, a.db, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, "UPDATE principal SET epoch = epoch + 1, active = 0 WHERE id = $1 AND active = 1", id.String())
		if err != nil {
			return db.Classify(op, err)
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return fault.New(op, fault.NHINotFound, "there is no active %s %q", id.Kind, id.Name)
		}
		return db.Classify(op, tx.QueryRowContext(ctx, "INSERT INTO revocation (principal, at_ns) VALUES ($1, $2) RETURNING epoch", id.String(), now.UnixNano()).Scan(&global))
	})
	if err != nil {
		return err
	}
	a.mu.Lock()
	delete(a.epochs, id)
	a.epoch.Store(global)
	a.mu.Unlock()
	return nil
}

// Principals lists the registered principals of a kind, by name.
func (a *Authority) Principals(ctx context.Context, kind creto.Kind) ([]Principal, error) {
	const op fault.Op = "localnhi.Principals"
	rows, err := a.db.QueryContext(ctx, "SELECT id, active FROM principal WHERE tenant = $1 AND kind = $2 ORDER BY name", a.cfg.Tenant, string(kind))
	if err != nil {
		return nil, unavailable(op, err)
	}
	defer func() { _ = rows.Close() }()
	var list []Principal
	for rows.Next() {
		var text string
		var p Principal
		if err := rows.Scan(&text, &p.Active); err != nil {
			return nil, unavailable(op, err)
		}
		if p.ID, err = creto.ParseID(text); err != nil {
			return nil, fault.Wrap(op, err)
		}
		list = append(list, p)
	}
	if err := rows.Err(); err != nil {
		return nil, unavailable(op, err)
	}
	for i := range list {
		if list[i].Groups, err = a.Groups(ctx, list[i].ID); err != nil {
			return nil, err
		}
		if kind == creto.KindHuman || !list[i].Active {
			continue
		}
		links, err := a.DelegationChain(ctx, list[i].ID)
		if err != nil && !errors.Is(err, fault.NHINotFound) {
			return nil, err
		}
		if len(links) > 0 {
			link, err := links[len(links)-1].Link()
			if err != nil {
				return nil, err
			}
			list[i].OnBehalfOf = link.Issuer
		}
	}
	return list, nil
}
