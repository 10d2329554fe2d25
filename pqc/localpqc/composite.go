package localpqc

import (
	"crypto/ed25519"
	"crypto/sha512"

	"github.com/cloudflare/circl/sign/mldsa/mldsa65"

	"creto.dev/fault"
	"creto.dev/pqc"
)

// The composite algorithm id-MLDSA65-Ed25519-SHA512 of
// draft-ietf-lamps-pq-composite-sigs: what both halves sign is
// prefix || label || len(context) || context || SHA-512(message), and the label
// is ML-DSA's own context too.
const (
	compositePrefix = "CompositeAlgorithmSignatures2025"
	compositeLabel  = "COMPSIG-MLDSA65-Ed25519-SHA512"
)

func compositeMessage(purpose pqc.Purpose, message []byte) []byte {
	digest := sha512.Sum512(message)
	m := make([]byte, 0, len(compositePrefix)+len(compositeLabel)+1+len(purpose)+len(digest))
	m = append(m, compositePrefix...)
	m = append(m, compositeLabel...)
	m = append(m, byte(len(purpose)))
	m = append(m, purpose...)
	return append(m, digest[:]...)
}

func compositeKeys(op fault.Op, key pqc.SigningKey) (*mldsa65.PublicKey, *mldsa65.PrivateKey, ed25519.PrivateKey, error) {
	if key.Algorithm != pqc.MLDSA65Ed25519 {
		return nil, nil, nil, unsupported(op, key.Algorithm)
	}
	if err := length(op, key.Seed, pqc.CompositeSeedSize); err != nil {
		return nil, nil, nil, err
	}
	public, private := mldsa65.NewKeyFromSeed((*[mldsa65.SeedSize]byte)(key.Seed))
	return public, private, ed25519.NewKeyFromSeed(key.Seed[mldsa65.SeedSize:]), nil
}

func (provider) Sign(purpose pqc.Purpose, message []byte, key pqc.SigningKey) (pqc.Signature, error) {
	const op fault.Op = "localpqc.Sign"
	if err := purpose.Validate(); err != nil {
		return pqc.Signature{}, err
	}
	_, pq, classical, err := compositeKeys(op, key)
	if err != nil {
		return pqc.Signature{}, err
	}
	m := compositeMessage(purpose, message)
	sig := make([]byte, mldsa65.SignatureSize, pqc.CompositeSignatureSize)
	if err := mldsa65.SignTo(pq, m, []byte(compositeLabel), false, sig); err != nil {
		return pqc.Signature{}, fault.WrapAs(op, fault.CryptoSignatureGenerationFailed, err, "")
	}
	return pqc.Signature{Algorithm: key.Algorithm, Bytes: append(sig, ed25519.Sign(classical, m)...)}, nil
}

func (provider) Verify(purpose pqc.Purpose, message []byte, sig pqc.Signature, key pqc.PublicKey) error {
	const op fault.Op = "localpqc.Verify"
	if err := purpose.Validate(); err != nil {
		return err
	}
	if key.Algorithm != pqc.MLDSA65Ed25519 {
		return unsupported(op, key.Algorithm)
	}
	if err := length(op, key.Bytes, pqc.CompositePublicKeySize); err != nil {
		return err
	}
	failed := fault.New(op, fault.CryptoSignatureVerificationFailed, "the signature does not hold")
	if sig.Algorithm != key.Algorithm || len(sig.Bytes) != pqc.CompositeSignatureSize {
		return failed
	}
	var pq mldsa65.PublicKey
	pq.Unpack((*[mldsa65.PublicKeySize]byte)(key.Bytes))
	m := compositeMessage(purpose, message)
	// Both halves are always computed, so that timing tells nothing of which
	// one failed.
	pqOK := mldsa65.Verify(&pq, m, []byte(compositeLabel), sig.Bytes[:mldsa65.SignatureSize])
	classicalOK := ed25519.Verify(key.Bytes[mldsa65.PublicKeySize:], m, sig.Bytes[mldsa65.SignatureSize:])
	if !pqOK || !classicalOK {
		return failed
	}
	return nil
}

func (provider) Public(key pqc.SigningKey) (pqc.PublicKey, error) {
	pq, _, classical, err := compositeKeys("localpqc.Public", key)
	if err != nil {
		return pqc.PublicKey{}, err
	}
	bytes := make([]byte, 0, pqc.CompositePublicKeySize)
	bytes = append(bytes, pq.Bytes()...)
	bytes = append(bytes, classical.Public().(ed25519.PublicKey)...)
	return pqc.PublicKey{Algorithm: key.Algorithm, Bytes: bytes}, nil
}
