package localnhi

import (
	"context"
	"database/sql"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// Draft returns the link with which issuer would pass grant on to agent: what
// a human is shown and proves to want, by a proof over its Challenge, before
// Delegate signs it. It bounds the grant by what the issuer has.
//
// Errors: NHINotFound (Permanent) for an unknown or inactive principal;
// InvalidArgument (Permanent) for a grant that is none;
// NHIDelegationVerificationFailed (Security) if issuer may not pass this on.
func (a *Authority) Draft(ctx context.Context, issuer, agent creto.ID, grant nhi.Grant) (nhi.Link, error) {
	const op fault.Op = "localnhi.Draft"
	if grant.TTL <= 0 {
		return nhi.Link{}, fault.New(op, fault.InvalidArgument, "a delegation of %v is none", grant.TTL)
	}
	keys, err := a.PublicKeys(ctx, agent)
	if err != nil {
		return nhi.Link{}, fault.Wrap(op, err)
	}
	now, err := a.now(ctx)
	if err != nil {
		return nhi.Link{}, fault.Wrap(op, err)
	}
	link := nhi.Link{
		Issuer: issuer, Subject: agent, SubjectKey: keys.Signing[0].Public, Scope: grant.Scope,
		NotBefore: now.Unix(), NotAfter: now.Add(grant.TTL).Unix(), MaxDepth: min(grant.MaxDepth, nhi.MaxChain-1), Nonce: creto.NewUUID(),
	}
	if link.IssuerEpoch, err = a.activeEpoch(ctx, issuer); err != nil {
		return nhi.Link{}, fault.Wrap(op, err)
	}
	if link.SubjectEpoch, err = a.activeEpoch(ctx, agent); err != nil {
		return nhi.Link{}, fault.Wrap(op, err)
	}
	if issuer.Kind == creto.KindHuman {
		return link, nil
	}
	above, err := a.DelegationChain(ctx, issuer)
	if err != nil {
		return nhi.Link{}, fault.Wrap(op, err)
	}
	parent, err := above[len(above)-1].Link()
	if err != nil {
		return nhi.Link{}, fault.Wrap(op, err)
	}
	if parent.MaxDepth == 0 {
		return nhi.Link{}, fault.New(op, fault.NHIDelegationVerificationFailed, "%s may not delegate further", issuer)
	}
	link.Parent = above[len(above)-1].Digest()
	link.NotAfter = min(link.NotAfter, parent.NotAfter)
	link.MaxDepth = min(link.MaxDepth, parent.MaxDepth-1)
	if link.Scope.Spend.IsZero() { // what has no bound of its own has its parent's
		link.Scope.Spend = parent.Scope.Spend
	}
	return link, nil
}

// Delegate signs a drafted link and replaces an earlier delegation to its
// subject. That one is revoked, and with it whatever was delegated below it. A human's link is signed by the root and
// holds proof; an agent's is signed by the agent's own key and has none.
//
// Errors: NHIDelegationVerificationFailed (Security) if the link does not hold:
// not proven, more than its issuer has, or something was revoked since it was
// drafted; those of the store.
func (a *Authority) Delegate(ctx context.Context, link nhi.Link, proof nhi.Proof) (nhi.VerifiedChain, error) {
	const op fault.Op = "localnhi.Delegate"
	var above []nhi.SignedLink
	signer := a.rootKey().secret
	if link.Issuer.Kind == creto.KindHuman {
		link.Proof = proof
	} else {
		var err error
		if above, err = a.DelegationChain(ctx, link.Issuer); err != nil {
			return nhi.VerifiedChain{}, fault.Wrap(op, err)
		}
		if signer, err = a.keyFor(ctx, link.Issuer, above[len(above)-1]); err != nil {
			return nhi.VerifiedChain{}, fault.Wrap(op, err)
		}
	}
	signed, err := nhi.SignLink(a.pqc, signer, link)
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	now, err := a.now(ctx)
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	chain, err := a.verifier.Verify(ctx, append(above, signed), a.rootKeys(), now, a)
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	return chain, fault.Wrap(op, a.store(ctx, link, signed))
}

// keyFor returns the issuer's key if it is still the one that its own link
// names: after a rotation it must be delegated to again.
func (a *Authority) keyFor(ctx context.Context, issuer creto.ID, own nhi.SignedLink) (pqc.SigningKey, error) {
	const op fault.Op = "localnhi.keyFor"
	link, err := own.Link()
	if err != nil {
		return pqc.SigningKey{}, fault.Wrap(op, err)
	}
	s, err := a.existing(ctx, issuer.String(), RolePrincipal)
	if err != nil {
		return pqc.SigningKey{}, fault.Wrap(op, err)
	}
	if s.ID != link.SubjectKey.ID {
		return pqc.SigningKey{}, fault.New(op, fault.FailedPrecondition, "the key of agent %q was replaced since it was delegated to; delegate to it again first", issuer.Name)
	}
	return a.signer(s)
}

func (a *Authority) activeEpoch(ctx context.Context, id creto.ID) (uint64, error) {
	if err := a.Known(ctx, id); err != nil {
		return 0, err
	}
	s, err := a.standingOf(ctx, id)
	return s.epoch, err
}

// store keeps the link in place of the one before, which is revoked: what was
// delegated below that one may be more than the new one allows.
func (a *Authority) store(ctx context.Context, link nhi.Link, signed nhi.SignedLink) error {
	const op fault.Op = "localnhi.store"
	body, err := encodeLink(signed)
	if err != nil {
		return fault.Wrap(op, err)
	}
	digest := signed.Digest()
	var parent, before []byte
	if !link.Parent.IsZero() {
		parent = link.Parent[:]
	}
	return a.revoke(ctx, link.Subject.String(), changed, func(tx *sql.Tx) error {
		if err := tx.QueryRowContext(ctx, "SELECT leaf FROM principal WHERE id = $1", link.Subject.String()).Scan(&before); err != nil {
			return db.Classify(op, err)
		}
		if before != nil {
			if _, err := tx.ExecContext(ctx, "INSERT INTO revoked_link (digest) VALUES ($1) ON CONFLICT DO NOTHING", before); err != nil {
				return db.Classify(op, err)
			}
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO delegation_link (digest, subject, parent, body) VALUES ($1, $2, $3, $4)", digest[:], link.Subject.String(), parent, body); err != nil {
			return db.Classify(op, err)
		}
		_, err := tx.ExecContext(ctx, "UPDATE principal SET leaf = $1 WHERE id = $2", digest[:], link.Subject.String())
		return db.Classify(op, err)
	}, func() {
		var old creto.Digest
		if old.UnmarshalBinary(before) == nil {
			a.revoked.links[old] = true
		}
	})
}
