package localnhi

import (
	"context"
	"database/sql"
	"errors"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/internal/db"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// The roles of keys in the store.
const (
	roleRoot      = "root"
	roleToken     = "token"
	rolePrincipal = "principal"
)

// algorithmOf returns what a role's keys are made with. Tokens are verified by
// ordinary JWT libraries, hence Ed25519 alone.
func algorithmOf(role string) pqc.Algorithm {
	if role == roleToken {
		return pqc.Ed25519
	}
	return pqc.MLDSA65Ed25519
}

// associated binds a sealed seed to its place, so that it cannot be moved to
// another key's row (B-6).
func associated(kid, owner, role string) []byte {
	return []byte("signing_key/v1/" + kid + "/" + owner + "/" + role)
}

// signingKey returns the key of owner in role, made on first use.
func (a *Authority) signingKey(ctx context.Context, owner, role string) (pqc.SigningKey, error) {
	const op fault.Op = "localnhi.signingKey"
	var kid string
	var algorithm pqc.Algorithm
	var sealed []byte
	err := a.db.QueryRowContext(ctx, "SELECT kid, algorithm, sealed FROM signing_key WHERE owner = $1 AND role = $2", owner, role).
		Scan(&kid, &algorithm, &sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return a.newSigningKey(ctx, a.db, owner, role)
	}
	if err != nil {
		return pqc.SigningKey{}, unavailable(op, err)
	}
	seed, err := a.pqc.Decrypt(pqc.EncryptedData{Algorithm: a.kek.Algorithm, Key: a.kek.ID, Bytes: sealed}, associated(kid, owner, role), a.kek)
	if err != nil {
		return pqc.SigningKey{}, fault.WrapAs(op, fault.CodeOf(err), err, "the key-encryption key does not open the key of %s; is keys/kek of another data directory?", owner)
	}
	key, err := a.pqc.SigningKeyFromSeed(algorithm, seed)
	return key, fault.Wrap(op, err)
}

// execer is a database or a transaction.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func (a *Authority) newSigningKey(ctx context.Context, e execer, owner, role string) (pqc.SigningKey, error) {
	const op fault.Op = "localnhi.newSigningKey"
	key, public, err := a.generate(algorithmOf(role))
	if err != nil {
		return key, fault.Wrap(op, err)
	}
	fingerprint, err := nhi.Fingerprint(public)
	if err != nil {
		return key, fault.Wrap(op, err)
	}
	kid := fingerprint.String()
	sealed, err := a.pqc.Encrypt(key.Seed, associated(kid, owner, role), a.kek)
	if err != nil {
		return key, fault.Wrap(op, err)
	}
	now, err := a.now(ctx)
	if err != nil {
		return key, fault.Wrap(op, err)
	}
	_, err = e.ExecContext(ctx, `INSERT INTO signing_key (kid, owner, role, algorithm, public_key, sealed, created_ns)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`, kid, owner, role, string(key.Algorithm), public.Bytes, sealed.Bytes, now.UnixNano())
	return key, db.Classify(op, err)
}

func (a *Authority) generate(algorithm pqc.Algorithm) (pqc.SigningKey, pqc.PublicKey, error) {
	key, err := a.pqc.GenerateSigningKey(algorithm)
	if err != nil {
		return key, pqc.PublicKey{}, err
	}
	public, err := a.pqc.Public(key)
	return key, public, err
}

// CheckpointKey returns the key that signs the heads of the log called origin,
// and the root's certificate for it.
//
// Errors: those of opening a key.
func (a *Authority) CheckpointKey(ctx context.Context, origin string) (pqc.SigningKey, nhi.SignedCertificate, error) {
	const op fault.Op = "localnhi.CheckpointKey"
	key, err := a.signingKey(ctx, "platform", nhi.RoleCheckpoint)
	if err != nil {
		return key, nhi.SignedCertificate{}, fault.Wrap(op, err)
	}
	public, err := a.pqc.Public(key)
	if err != nil {
		return key, nhi.SignedCertificate{}, fault.Wrap(op, err)
	}
	var created int64
	if err := a.db.QueryRowContext(ctx, "SELECT created_ns FROM signing_key WHERE owner = 'platform' AND role = $1", nhi.RoleCheckpoint).Scan(&created); err != nil {
		return key, nhi.SignedCertificate{}, unavailable(op, err)
	}
	cert, err := nhi.SignCertificate(a.pqc, a.root, nhi.Certificate{
		Role: nhi.RoleCheckpoint, Name: origin, Key: public, NotBefore: created / 1e9,
	})
	return key, cert, fault.Wrap(op, err)
}

// Root returns the root's public key and its fingerprint.
func (a *Authority) Root() (pqc.PublicKey, creto.Digest, error) {
	fingerprint, err := nhi.Fingerprint(a.public)
	return a.public, fingerprint, err
}

func encodeLink(link nhi.SignedLink) ([]byte, error) { return canon.Marshal(link) }

func decodeLink(data []byte) (nhi.SignedLink, error) {
	var link nhi.SignedLink
	err := canon.Unmarshal(data, &link)
	return link, err
}
