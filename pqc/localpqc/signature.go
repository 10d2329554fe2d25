package localpqc

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha512"

	"github.com/cloudflare/circl/sign/mldsa/mldsa65"

	"creto.dev/fault"
	"creto.dev/pqc"
)

// scheme is a signature scheme with a context. Sizes are in bytes; its functions
// are given what has the right size.
type scheme struct {
	seedSize, publicSize, signatureSize int

	signer   func(seed []byte) signer
	verifier func(public []byte) verifier
}

// signer is a secret key made ready.
type signer interface {
	public() []byte
	sign(purpose pqc.Purpose, message []byte) ([]byte, error)
}

// verifier is a public key made ready.
type verifier interface {
	verify(purpose pqc.Purpose, message, signature []byte) bool
}

var schemes = map[pqc.Algorithm]scheme{
	pqc.Ed25519: {ed25519.SeedSize, ed25519.PublicKeySize, ed25519.SignatureSize, newEdSigner, newEdVerifier},
	pqc.MLDSA65: {mldsa65.SeedSize, mldsa65.PublicKeySize, mldsa65.SignatureSize, newMLDSASigner, newMLDSAVerifier},
	pqc.MLDSA65Ed25519: {
		pqc.CompositeSeedSize, pqc.CompositePublicKeySize, pqc.CompositeSignatureSize,
		newCompositeSigner, newCompositeVerifier,
	},
}

// Ed25519ph (RFC 8032, section 5.1), and not Ed25519ctx: both take a context,
// but FIPS 186-5 approves only the former.
type (
	edSigner   struct{ key ed25519.PrivateKey }
	edVerifier struct{ key ed25519.PublicKey }
)

func newEdSigner(seed []byte) signer       { return edSigner{ed25519.NewKeyFromSeed(seed)} }
func newEdVerifier(public []byte) verifier { return edVerifier{public} }

func edOptions(purpose pqc.Purpose) *ed25519.Options {
	return &ed25519.Options{Hash: crypto.SHA512, Context: string(purpose)}
}

func (s edSigner) public() []byte { return s.key.Public().(ed25519.PublicKey) }

func (s edSigner) sign(purpose pqc.Purpose, message []byte) ([]byte, error) {
	digest := sha512.Sum512(message)
	return s.key.Sign(nil, digest[:], edOptions(purpose))
}

func (v edVerifier) verify(purpose pqc.Purpose, message, signature []byte) bool {
	digest := sha512.Sum512(message)
	return ed25519.VerifyWithOptions(v.key, digest[:], signature, edOptions(purpose)) == nil
}

type (
	mldsaSigner struct {
		key    *mldsa65.PrivateKey
		packed []byte // the public key
	}
	mldsaVerifier struct{ key *mldsa65.PublicKey }
)

func newMLDSASigner(seed []byte) signer {
	public, private := mldsa65.NewKeyFromSeed((*[mldsa65.SeedSize]byte)(seed))
	return mldsaSigner{private, public.Bytes()}
}

func newMLDSAVerifier(public []byte) verifier {
	var key mldsa65.PublicKey
	key.Unpack((*[mldsa65.PublicKeySize]byte)(public))
	return mldsaVerifier{&key}
}

func (s mldsaSigner) public() []byte { return s.packed }

func (s mldsaSigner) sign(purpose pqc.Purpose, message []byte) ([]byte, error) {
	signature := make([]byte, mldsa65.SignatureSize, pqc.CompositeSignatureSize)
	err := mldsa65.SignTo(s.key, message, []byte(purpose), false, signature)
	return signature, err
}

func (v mldsaVerifier) verify(purpose pqc.Purpose, message, signature []byte) bool {
	return mldsa65.Verify(v.key, message, []byte(purpose), signature)
}

func (p *provider) Sign(purpose pqc.Purpose, message []byte, key pqc.SigningKey) (pqc.Signature, error) {
	const op fault.Op = "localpqc.Sign"
	if err := purpose.Validate(); err != nil {
		return pqc.Signature{}, fault.Wrap(op, err)
	}
	s, ok := schemes[key.Algorithm]
	if !ok {
		return pqc.Signature{}, unsupported(op, key.Algorithm)
	}
	if err := usable(op, key.ID, key.Seed, s.seedSize); err != nil {
		return pqc.Signature{}, err
	}
	signing, err := p.signers.get(key.Algorithm, key.ID, key.Seed, func(seed []byte) (signer, error) {
		k := s.signer(seed)
		if pqc.NewPublicKey(key.Algorithm, k.public()).ID != key.ID {
			return nil, misnamed(op)
		}
		return k, nil
	})
	if err != nil {
		return pqc.Signature{}, err
	}
	signature, err := signing.sign(purpose, message)
	if err != nil {
		return pqc.Signature{}, fault.WrapAs(op, fault.CryptoSignatureGenerationFailed, err, "")
	}
	return pqc.Signature{Algorithm: key.Algorithm, Key: key.ID, Bytes: signature}, nil
}

func (p *provider) Verify(purpose pqc.Purpose, message []byte, sig pqc.Signature, key pqc.PublicKey) error {
	const op fault.Op = "localpqc.Verify"
	if err := purpose.Validate(); err != nil {
		return fault.Wrap(op, err)
	}
	s, ok := schemes[key.Algorithm]
	if !ok {
		return unsupported(op, key.Algorithm)
	}
	if err := usable(op, key.ID, key.Bytes, s.publicSize); err != nil {
		return err
	}
	failed := fault.New(op, fault.CryptoSignatureVerificationFailed, "the signature does not hold")
	if sig.Algorithm != key.Algorithm || sig.Key != key.ID || len(sig.Bytes) != s.signatureSize {
		return failed
	}
	verifying, err := p.verifiers.get(key.Algorithm, key.ID, key.Bytes, func(public []byte) (verifier, error) {
		if pqc.NewPublicKey(key.Algorithm, public).ID != key.ID {
			return nil, misnamed(op)
		}
		return s.verifier(public), nil
	})
	if err != nil {
		return err
	}
	if !verifying.verify(purpose, message, sig.Bytes) {
		return failed
	}
	return nil
}

func (p *provider) GenerateSigningKey(algorithm pqc.Algorithm) (pqc.SigningKey, error) {
	const op fault.Op = "localpqc.GenerateSigningKey"
	s, ok := schemes[algorithm]
	if !ok {
		return pqc.SigningKey{}, unsupported(op, algorithm)
	}
	key, err := p.SigningKeyFromSeed(algorithm, random(s.seedSize))
	return key, fault.Wrap(op, err)
}

func (*provider) SigningKeyFromSeed(algorithm pqc.Algorithm, seed []byte) (pqc.SigningKey, error) {
	public, err := publicOf("localpqc.SigningKeyFromSeed", algorithm, seed)
	if err != nil {
		return pqc.SigningKey{}, err
	}
	return pqc.SigningKey{Algorithm: algorithm, ID: public.ID, Seed: bytes.Clone(seed)}, nil
}

func (*provider) Public(key pqc.SigningKey) (pqc.PublicKey, error) {
	const op fault.Op = "localpqc.Public"
	public, err := publicOf(op, key.Algorithm, key.Seed)
	if err == nil && public.ID != key.ID {
		return pqc.PublicKey{}, misnamed(op)
	}
	return public, err
}

func publicOf(op fault.Op, algorithm pqc.Algorithm, seed []byte) (pqc.PublicKey, error) {
	s, ok := schemes[algorithm]
	if !ok {
		return pqc.PublicKey{}, unsupported(op, algorithm)
	}
	if err := length(op, seed, s.seedSize); err != nil {
		return pqc.PublicKey{}, err
	}
	return pqc.NewPublicKey(algorithm, s.signer(seed).public()), nil
}
