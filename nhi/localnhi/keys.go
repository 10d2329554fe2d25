package localnhi

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"database/sql"
	"errors"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/internal/db"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// The roles of keys in the store.
const (
	RoleRoot       = "root"       // signs human links and certificates
	RoleToken      = "token"      // signs access tokens
	RoleSVID       = "svid"       // signs JWT-SVIDs
	RoleCA         = "ca"         // signs X.509-SVIDs
	RolePrincipal  = "principal"  // an agent's own
	RoleEncryption = "encryption" // what others encrypt for an agent with
)

// Platform owns the keys that are nobody's own.
const Platform = "platform"

// ecdsaP256 is for SVIDs: SPIFFE knows neither EdDSA nor ML-DSA. It is no
// algorithm of package pqc, whose signatures have a purpose.
const ecdsaP256 pqc.Algorithm = "ecdsa-p256"

// ecdsaP256CA is the same with a certificate, in DER, as its public half: peers
// trust the certificate, and it must outlive the key's secret.
const ecdsaP256CA pqc.Algorithm = "ecdsa-p256-x509"

// algorithmOf returns what a role's keys are made with. Tokens are verified by
// ordinary JWT libraries, hence Ed25519 alone.
func algorithmOf(role string) pqc.Algorithm {
	switch role {
	case RoleToken:
		return pqc.Ed25519
	case nhi.RoleCheckpointEd25519:
		return audit.NoteEd25519
	case RoleSVID:
		return ecdsaP256
	case RoleCA:
		return ecdsaP256CA
	case RoleEncryption:
		return pqc.MLKEM768X25519
	}
	return pqc.MLDSA65Ed25519
}

// KeyInfo is a key of the store without its secret.
type KeyInfo struct {
	ID        pqc.KeyID     `json:"id"`
	Owner     string        `json:"owner"` // a SPIFFE id, or "platform"
	Role      string        `json:"role"`
	Algorithm pqc.Algorithm `json:"algorithm"`
	Public    []byte        `json:"public"`
	Created   time.Time     `json:"created"`
	// Retired is when it was replaced; zero while it is in use. What it signed
	// until then still verifies; its secret is gone.
	Retired time.Time `json:"retired,omitzero"`
}

// secret is a key in use.
type secret struct {
	KeyInfo
	seed []byte
}

// associated binds a sealed seed to its place, so that it cannot be moved to
// another key's row (B-6).
func associated(kid pqc.KeyID, owner, role string) []byte {
	return []byte("signing_key/v2/" + string(kid) + "/" + owner + "/" + role)
}

// key returns the key that owner uses in role, made on first use.
func (a *Authority) key(ctx context.Context, owner, role string) (secret, error) {
	const op fault.Op = "localnhi.key"
	s := secret{KeyInfo: KeyInfo{Owner: owner, Role: role}}
	var sealed []byte
	var created int64
	err := a.db.QueryRowContext(ctx, `SELECT kid, algorithm, public_key, sealed, created_ns FROM signing_key
		WHERE owner = $1 AND role = $2 AND retired_ns = 0`, owner, role).Scan(&s.ID, &s.Algorithm, &s.Public, &sealed, &created)
	if errors.Is(err, sql.ErrNoRows) {
		err := db.Tx(ctx, a.db, func(tx *sql.Tx) error {
			s, err = a.newKey(ctx, tx, owner, role)
			return err
		})
		if errors.Is(err, fault.AlreadyExists) { // somebody else was faster
			return a.key(ctx, owner, role)
		}
		return s, err
	}
	if err != nil {
		return s, unavailable(op, err)
	}
	s.Created = time.Unix(0, created)
	s.seed, err = a.pqc.Decrypt(pqc.EncryptedData{Algorithm: a.kek.Algorithm, Key: a.kek.ID, Bytes: sealed}, associated(s.ID, owner, role), a.kek)
	if err != nil {
		return s, fault.WrapAs(op, fault.FailedPrecondition, err, "the key-encryption key does not open the key of %s; is the key-encryption key of another data directory?", owner)
	}
	return s, nil
}

// newKey makes and stores a key.
func (a *Authority) newKey(ctx context.Context, tx *sql.Tx, owner, role string) (secret, error) {
	const op fault.Op = "localnhi.newKey"
	s := secret{KeyInfo: KeyInfo{Owner: owner, Role: role, Algorithm: algorithmOf(role)}}
	var err error
	if s.seed, s.Public, err = a.generate(ctx, s.Algorithm); err != nil {
		return s, fault.Wrap(op, err)
	}
	s.ID = pqc.NewPublicKey(s.Algorithm, s.Public).ID
	sealed, err := a.pqc.Encrypt(s.seed, associated(s.ID, owner, role), a.kek)
	if err != nil {
		return s, fault.Wrap(op, err)
	}
	if s.Created, err = a.now(ctx); err != nil {
		return s, fault.Wrap(op, err)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO signing_key (kid, owner, role, algorithm, public_key, sealed, created_ns)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`, string(s.ID), owner, role, string(s.Algorithm), s.Public, sealed.Bytes, s.Created.UnixNano())
	return s, db.Classify(op, err)
}

// generate returns a fresh seed and its public key.
func (a *Authority) generate(ctx context.Context, algorithm pqc.Algorithm) (seed, public []byte, err error) {
	const op fault.Op = "localnhi.generate"
	switch algorithm {
	case pqc.Ed25519, audit.NoteEd25519:
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, nil, fault.WrapAs(op, fault.CryptoInternal, err, "")
		}
		return private.Seed(), public, nil
	case ecdsaP256:
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, fault.WrapAs(op, fault.CryptoInternal, err, "")
		}
		if seed, err = private.Bytes(); err == nil {
			public, err = private.PublicKey.Bytes()
		}
		return seed, public, fault.WrapAs(op, fault.CryptoInternal, err, "")
	case ecdsaP256CA:
		return a.generateCA(ctx)
	case pqc.MLKEM768X25519:
		key, err := a.pqc.GenerateKEMKey(algorithm)
		if err != nil {
			return nil, nil, err
		}
		encapsulation, err := a.pqc.Encapsulation(key)
		return key.Seed, encapsulation.Bytes, err
	}
	key, err := a.pqc.GenerateSigningKey(algorithm)
	if err != nil {
		return nil, nil, err
	}
	verifying, err := a.pqc.Public(key)
	return key.Seed, verifying.Bytes, err
}

// signer is a secret of a composite role as package pqc takes it.
func (a *Authority) signer(s secret) (pqc.SigningKey, error) {
	return a.pqc.SigningKeyFromSeed(s.Algorithm, s.seed)
}

// Keys lists the keys of an owner, the newest first in each role; "" means all
// keys, those of the platform first.
//
// Errors: NHIUnavailable (Degraded).
func (a *Authority) Keys(ctx context.Context, owner string) ([]KeyInfo, error) {
	keys, err := collect(ctx, a.db, func(rows *sql.Rows) (k KeyInfo, err error) {
		var created, retired int64
		err = rows.Scan(&k.ID, &k.Owner, &k.Role, &k.Algorithm, &k.Public, &created, &retired)
		if k.Created = time.Unix(0, created); retired > 0 {
			k.Retired = time.Unix(0, retired)
		}
		return k, err
	}, `SELECT kid, owner, role, algorithm, public_key, created_ns, retired_ns FROM signing_key
		WHERE owner = $1 OR $1 = '' ORDER BY owner <> 'platform', owner, role, retired_ns <> 0, created_ns DESC`, owner)
	return keys, unavailable("localnhi.Keys", err)
}

// Rotate replaces the key that owner uses in role; owner is a principal's
// SPIFFE id or "platform". The old key's secret is destroyed; what it signed
// still verifies: tokens until they end, links and records for good. A new root
// and the old one certify each other, so that whoever pinned either trusts both.
// The two keys of the log's heads are replaced together.
//
// Errors: NHIPublicKeyNotFound (Permanent) if there is no such key.
func (a *Authority) Rotate(ctx context.Context, owner, role string) (KeyInfo, error) {
	const op fault.Op = "localnhi.Rotate"
	old, err := a.existing(ctx, owner, role)
	if err != nil {
		return KeyInfo{}, fault.Wrap(op, err)
	}
	var plain secret // what signs the log's heads beside the other
	if role == nhi.RoleCheckpoint {
		if plain, err = a.key(ctx, owner, nhi.RoleCheckpointEd25519); err != nil {
			return KeyInfo{}, fault.Wrap(op, err)
		}
	}
	var next secret
	err = db.Tx(ctx, a.db, func(tx *sql.Tx) (err error) {
		if next, err = a.replace(ctx, tx, old); err != nil {
			return err
		}
		switch role {
		case RoleRoot:
			return a.crossCertify(ctx, tx, old, next)
		case nhi.RoleCheckpoint:
			_, err = a.replace(ctx, tx, plain)
		}
		return err
	})
	if err != nil {
		return KeyInfo{}, fault.Wrap(op, err)
	}
	switch role {
	case RoleRoot:
		err = a.loadRoots(ctx)
	case RoleToken:
		err = a.loadTokenKeys(ctx)
	case RoleSVID, RoleCA:
		err = a.loadSVIDKeys(ctx)
	}
	return next.KeyInfo, fault.Wrap(op, err)
}

// replace retires a key, destroying its secret, and makes the next.
func (a *Authority) replace(ctx context.Context, tx *sql.Tx, old secret) (secret, error) {
	const op fault.Op = "localnhi.replace"
	now, err := a.now(ctx)
	if err != nil {
		return secret{}, err
	}
	result, err := tx.ExecContext(ctx, "UPDATE signing_key SET retired_ns = $1, sealed = $2 WHERE kid = $3 AND retired_ns = 0", now.UnixNano(), []byte{}, string(old.ID))
	if err != nil {
		return secret{}, db.Classify(op, err)
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return secret{}, fault.New(op, fault.FailedPrecondition, "the key was replaced at the same time")
	}
	return a.newKey(ctx, tx, old.Owner, old.Role)
}

// existing is key without making one.
func (a *Authority) existing(ctx context.Context, owner, role string) (secret, error) {
	const op fault.Op = "localnhi.existing"
	keys, err := a.Keys(ctx, owner)
	if err != nil {
		return secret{}, err
	}
	for _, k := range keys {
		if owner != "" && k.Role == role && k.Retired.IsZero() {
			return a.key(ctx, owner, role)
		}
	}
	return secret{}, fault.New(op, fault.NHIPublicKeyNotFound, "%q has no key in the role %q", owner, role)
}

// crossCertify has the two roots certify each other.
func (a *Authority) crossCertify(ctx context.Context, tx *sql.Tx, old, next secret) error {
	const op fault.Op = "localnhi.crossCertify"
	for _, pair := range [][2]secret{{old, next}, {next, old}} {
		by, err := a.signer(pair[0])
		if err != nil {
			return fault.Wrap(op, err)
		}
		cert, err := nhi.SignCertificate(a.pqc, by, nhi.Certificate{
			Role: nhi.RoleRoot, Name: a.cfg.TrustDomain, Key: pqc.NewPublicKey(pair[1].Algorithm, pair[1].Public), NotBefore: next.Created.Unix(),
		})
		if err != nil {
			return fault.Wrap(op, err)
		}
		body, err := canon.Marshal(cert)
		if err != nil {
			return fault.Wrap(op, err)
		}
		digest := creto.DigestOf(body)
		if _, err := tx.ExecContext(ctx, "INSERT INTO key_certificate (digest, body) VALUES ($1, $2)", digest[:], body); err != nil {
			return db.Classify(op, err)
		}
	}
	return nil
}

// loadRoots reads the roots, making the first.
func (a *Authority) loadRoots(ctx context.Context) error {
	const op fault.Op = "localnhi.loadRoots"
	active, err := a.key(ctx, Platform, RoleRoot)
	if err != nil {
		return fault.Wrap(op, err)
	}
	signing, err := a.signer(active)
	if err != nil {
		return fault.Wrap(op, err)
	}
	keys, err := a.Keys(ctx, Platform)
	if err != nil {
		return fault.Wrap(op, err)
	}
	roots := []root{{public: pqc.NewPublicKey(active.Algorithm, active.Public), secret: signing}}
	for _, k := range keys {
		if k.Role == RoleRoot && !k.Retired.IsZero() {
			roots = append(roots, root{public: pqc.NewPublicKey(k.Algorithm, k.Public)})
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roots = roots
	return nil
}

// rootKey returns the root that signs.
func (a *Authority) rootKey() root {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.roots[0]
}

func (a *Authority) rootKeys() []pqc.PublicKey {
	a.mu.RLock()
	defer a.mu.RUnlock()
	keys := make([]pqc.PublicKey, len(a.roots))
	for i, r := range a.roots {
		keys[i] = r.public
	}
	return keys
}

// Roots implements nhi.Authority.
func (a *Authority) Roots(context.Context) ([]pqc.PublicKey, error) { return a.rootKeys(), nil }

// Root returns the public key of the root that signs, and its fingerprint.
func (a *Authority) Root() (pqc.PublicKey, creto.Digest, error) {
	public := a.rootKey().public
	fingerprint, err := nhi.Fingerprint(public)
	return public, fingerprint, err
}

// CheckpointSigner returns what signs the heads of the log called origin.
//
// Errors: those of opening a key, and of audit.NewSigner.
func (a *Authority) CheckpointSigner(ctx context.Context, origin string) (*audit.Signer, error) {
	const op fault.Op = "localnhi.CheckpointSigner"
	s, err := a.key(ctx, Platform, nhi.RoleCheckpoint)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	plain, err := a.key(ctx, Platform, nhi.RoleCheckpointEd25519)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	key, err := a.signer(s)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	signer, err := audit.NewSigner(a.pqc, key, ed25519.NewKeyFromSeed(plain.seed), origin)
	return signer, fault.Wrap(op, err)
}

// Certificates returns the root's word for the two keys that sign the heads of
// the log called origin, and then that of the roots for each other.
//
// Errors: those of opening a key.
func (a *Authority) Certificates(ctx context.Context, origin string) ([]nhi.SignedCertificate, error) {
	const op fault.Op = "localnhi.Certificates"
	var own []nhi.SignedCertificate
	for _, role := range []string{nhi.RoleCheckpoint, nhi.RoleCheckpointEd25519} {
		s, err := a.key(ctx, Platform, role)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		cert, err := nhi.SignCertificate(a.pqc, a.rootKey().secret, nhi.Certificate{
			Role: role, Name: origin, Key: pqc.NewPublicKey(s.Algorithm, s.Public), NotBefore: s.Created.Unix(),
		})
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		own = append(own, cert)
	}
	cross, err := collect(ctx, a.db, func(rows *sql.Rows) (c nhi.SignedCertificate, err error) {
		var body []byte
		if err = rows.Scan(&body); err == nil {
			err = canon.Unmarshal(body, &c)
		}
		return c, err
	}, "SELECT body FROM key_certificate ORDER BY digest")
	return append(own, cross...), unavailable(op, err)
}

// PublicKeys implements nhi.Authority.
func (a *Authority) PublicKeys(ctx context.Context, agent creto.ID) (nhi.PublicKeys, error) {
	const op fault.Op = "localnhi.PublicKeys"
	list, err := a.Keys(ctx, agent.String())
	if err != nil {
		return nhi.PublicKeys{}, fault.Wrap(op, err)
	}
	var keys nhi.PublicKeys
	for _, k := range list {
		switch {
		case k.Role == RolePrincipal:
			keys.Signing = append(keys.Signing, nhi.Key{Public: pqc.NewPublicKey(k.Algorithm, k.Public), NotBefore: k.Created, NotAfter: k.Retired})
		case k.Role == RoleEncryption && k.Retired.IsZero():
			keys.Encryption = pqc.NewEncapsulationKey(k.Algorithm, k.Public)
		}
	}
	if len(keys.Signing) == 0 || agent.IsZero() {
		return nhi.PublicKeys{}, fault.New(op, fault.NHIPublicKeyNotFound, "there is no key of %q", agent.Name)
	}
	return keys, nil
}

// Sign implements nhi.Authority.
func (a *Authority) Sign(ctx context.Context, who nhi.Identity, purpose pqc.Purpose, message []byte) (pqc.Signature, error) {
	const op fault.Op = "localnhi.Sign"
	if err := nhi.CheckAgentPurpose(purpose); err != nil {
		return pqc.Signature{}, fault.Wrap(op, err)
	}
	if err := a.acting(ctx, who); err != nil {
		return pqc.Signature{}, fault.Wrap(op, err)
	}
	s, err := a.existing(ctx, who.ID.String(), RolePrincipal)
	if err != nil {
		return pqc.Signature{}, fault.Wrap(op, err)
	}
	key, err := a.signer(s)
	if err != nil {
		return pqc.Signature{}, fault.Wrap(op, err)
	}
	sig, err := a.pqc.Sign(purpose, message, key)
	return sig, fault.Wrap(op, err)
}

func encodeLink(link nhi.SignedLink) ([]byte, error) { return canon.Marshal(link) }

func decodeLink(data []byte) (nhi.SignedLink, error) {
	var link nhi.SignedLink
	err := canon.Unmarshal(data, &link)
	return link, err
}
