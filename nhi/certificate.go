package nhi

import (
	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/pqc"
)

// The roles of certified keys.
const (
	// RoleCheckpoint: the key signs the audit log's heads.
	RoleCheckpoint = "checkpoint"
	// RoleCheckpointEd25519: likewise, with plain Ed25519 for what knows
	// nothing else (audit.NoteEd25519).
	RoleCheckpointEd25519 = "checkpoint-ed25519"
	// RoleRoot: the key is as good a root as the one that says so, since it
	// replaced it or was replaced by it.
	RoleRoot = "root"
)

// Certificate is the root's word that a platform key has a role.
type Certificate struct {
	Version uint   `cbor:"1,keyasint"`
	Role    string `cbor:"2,keyasint"`
	// Name is what the key signs under, such as the log's origin.
	Name string        `cbor:"3,keyasint"`
	Key  pqc.PublicKey `cbor:"4,keyasint"`
	// NotBefore is in Unix seconds.
	NotBefore int64 `cbor:"5,keyasint"`
}

// SignedCertificate is a certificate's canonical bytes and the root's
// signature for pqc.PurposeKey.
type SignedCertificate struct {
	Body      []byte        `cbor:"1,keyasint"`
	Signature pqc.Signature `cbor:"2,keyasint"`
}

// SignCertificate encodes and signs c.
//
// Errors: those of pqc.Provider.Sign.
func SignCertificate(p pqc.Provider, root pqc.SigningKey, c Certificate) (SignedCertificate, error) {
	const op fault.Op = "nhi.SignCertificate"
	c.Version = 1
	body, err := canon.Marshal(c)
	if err != nil {
		return SignedCertificate{}, fault.Wrap(op, err)
	}
	sig, err := p.Sign(pqc.PurposeKey, body, root)
	return SignedCertificate{Body: body, Signature: sig}, fault.Wrap(op, err)
}

// Certificate decodes the certificate without verifying anything.
//
// Errors: InvalidArgument (Permanent).
func (s SignedCertificate) Certificate() (Certificate, error) {
	var c Certificate
	err := canon.Unmarshal(s.Body, &c)
	return c, fault.Wrap("nhi.SignedCertificate.Certificate", err)
}

// Verify returns the certificate if root signed it.
//
// Errors: CryptoSignatureVerificationFailed (Security), InvalidArgument
// (Permanent).
func (s SignedCertificate) Verify(p pqc.Provider, root pqc.PublicKey) (Certificate, error) {
	const op fault.Op = "nhi.SignedCertificate.Verify"
	if err := p.Verify(pqc.PurposeKey, s.Body, s.Signature, root); err != nil {
		return Certificate{}, fault.Wrap(op, err)
	}
	return s.Certificate()
}

// Fingerprint names a public key: the digest of its canonical bytes, whose
// beginning is the key's id. A root's fingerprint is what a verifier pins.
//
// Errors: none for a well-formed key.
func Fingerprint(key pqc.PublicKey) (creto.Digest, error) {
	data, err := canon.Marshal(key)
	return creto.DigestOf(data), err
}
