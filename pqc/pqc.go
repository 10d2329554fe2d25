// Package pqc is the contract for cryptography: authenticated encryption, key
// encapsulation, public-key encryption (HPKE), signatures (classical and
// post-quantum together) and digests. The specification's name for it is
// creto-crypto (R-CRY-1…15).
//
// Algorithms are explicit and travel with keys, ciphertexts and signatures, so
// that one can be added without changing callers. What a key made names the key
// too; with another key, or another algorithm than the key's own, it is refused
// (B-4, B-7).
package pqc

import (
	"creto.dev/fault"
)

// Algorithm names one algorithm, as in configuration and in every record.
type Algorithm string

// The algorithms of the specification (R-CRY-11…15, X-26).
const (
	// AES256GCM is authenticated encryption (NIST SP 800-38D).
	AES256GCM Algorithm = "aes-256-gcm"
	// MLKEM768 is a key encapsulation mechanism (FIPS 203).
	MLKEM768 Algorithm = "ml-kem-768"
	// MLKEM768X25519 is ML-KEM-768 and X25519 together, also called X-Wing
	// (draft-connolly-cfrg-xwing-kem).
	MLKEM768X25519 Algorithm = "mlkem768-x25519"
	// Ed25519 is Ed25519ph, the variant of RFC 8032 and FIPS 186-5 whose
	// context is the signature's purpose: what a plain Ed25519 signer signs is
	// no signature here.
	Ed25519 Algorithm = "ed25519"
	// MLDSA65 is ML-DSA-65 (FIPS 204) whose context is the signature's purpose.
	MLDSA65 Algorithm = "ml-dsa-65"
	// MLDSA65Ed25519 is both together: each half must verify
	// (draft-ietf-lamps-pq-composite-sigs).
	MLDSA65Ed25519 Algorithm = "id-mldsa65-ed25519-sha512"
	// SHA3256 is a digest (FIPS 202).
	SHA3256 Algorithm = "sha3-256"
	// SHA256 is a digest (FIPS 180-4).
	SHA256 Algorithm = "sha-256"
)

// SymmetricKeySize is the bytes of an AES-256 key.
const SymmetricKeySize = 32

// Sizes of the composite algorithm, in bytes (FIPS 204, table 2; RFC 8032).
const (
	CompositeSeedSize      = 32 + 32
	CompositePublicKeySize = 1952 + 32
	CompositeSignatureSize = 3309 + 64
)

// Purpose says what a signature is for. It is the signature's context, so that
// a signature for one purpose is none for another (B-2).
type Purpose string

// The purposes of signatures.
const (
	PurposeDelegation Purpose = "creto/delegation/v1"
	PurposeKey        Purpose = "creto/key/v1"
	PurposeCheckpoint Purpose = "creto/checkpoint/v1"
	PurposeRecord     Purpose = "creto/record/v1"
	PurposeMessage    Purpose = "creto/msg/v1"
	PurposeInvoice    Purpose = "creto/invoice/v1"
)

// maxPurposeBytes is the longest context that a composite signature allows.
const maxPurposeBytes = 255

// Validate reports whether p can be a signature's context.
//
// Errors: InvalidArgument (Permanent).
func (p Purpose) Validate() error {
	if p == "" || len(p) > maxPurposeBytes {
		return fault.New("pqc.Purpose.Validate", fault.InvalidArgument, "a signature's purpose has %d bytes; allowed are 1 to %d", len(p), maxPurposeBytes)
	}
	return nil
}

// Provider does cryptography. Its methods compute, never block, and are safe
// for concurrent use. They keep no reference to their arguments.
//
// Every method fails with CryptoUnsupportedAlgorithm or CryptoInvalidKeyLength
// for an algorithm or a key that it does not take, and with InvalidArgument for
// a key without an id, or a public or signing key with another's (all
// Permanent).
type Provider interface {
	// Encrypt seals plaintext under key. The associated data is required; it
	// names the thing, its owner and its version, so that a ciphertext cannot
	// be moved (B-6). Nonces are random: a key must be replaced before 2³²
	// messages.
	//
	// Errors: CryptoEncryptionFailed (Permanent) without associated data.
	Encrypt(plaintext, associated []byte, key SymmetricKey) (EncryptedData, error)

	// Decrypt opens what Encrypt sealed under the same key and associated data.
	//
	// Errors: CryptoDecryptionFailed (Security), with one constant message for
	// every cause (B-10), among them that data names another key or algorithm;
	// CryptoInvalidCiphertext (Security) if it is too short to be one.
	Decrypt(data EncryptedData, associated []byte, key SymmetricKey) ([]byte, error)

	// Seal encrypts plaintext to the owner of key with HPKE (RFC 9180, base
	// mode; HKDF-SHA256 and AES-256-GCM beside the key's KEM). info and
	// associated data are required: info binds the protocol and its parties,
	// associated data names the thing as for Encrypt. Who sealed is not
	// authenticated: sign what is sealed.
	//
	// Errors: CryptoEncryptionFailed (Permanent) without info or associated
	// data; CryptoKeyEncapsulationFailed (Permanent) if key's bytes are no key.
	Seal(info, associated, plaintext []byte, key EncapsulationKey) (Sealed, error)

	// Open decrypts what Seal sealed to key under the same info and associated
	// data.
	//
	// Errors: those of Decrypt.
	Open(info, associated []byte, sealed Sealed, key DecapsulationKey) ([]byte, error)

	// Encapsulate makes a shared secret of 32 bytes and its ciphertext for the
	// key's owner. The secret is bound to nothing but the key: messages are for
	// Seal (B-8).
	//
	// Errors: CryptoKeyEncapsulationFailed (Permanent) if key's bytes are no
	// key.
	Encapsulate(key EncapsulationKey) (secret, ciphertext []byte, err error)

	// Decapsulate recovers the shared secret. A ciphertext for another key
	// gives another secret, not an error: ML-KEM rejects implicitly.
	//
	// Errors: CryptoInvalidCiphertext (Security) for a wrong length.
	Decapsulate(ciphertext []byte, key DecapsulationKey) (secret []byte, err error)

	// Sign signs message for one purpose.
	//
	// Errors: InvalidArgument (Permanent) without a purpose.
	Sign(purpose Purpose, message []byte, key SigningKey) (Signature, error)

	// Verify returns nil if sig is a signature of message for that purpose by
	// key; of a composite, both halves are (R-CRY-5). sig must name the key and
	// its algorithm.
	//
	// Errors: CryptoSignatureVerificationFailed (Security); InvalidArgument
	// (Permanent) without a purpose.
	Verify(purpose Purpose, message []byte, sig Signature, key PublicKey) error

	// Hash returns the digest of data under a hash algorithm.
	Hash(algorithm Algorithm, data []byte) ([]byte, error)

	// GenerateSymmetricKey returns a fresh random key.
	GenerateSymmetricKey(algorithm Algorithm) (SymmetricKey, error)

	// GenerateSigningKey returns a fresh random key.
	GenerateSigningKey(algorithm Algorithm) (SigningKey, error)

	// GenerateKEMKey returns a fresh random key.
	GenerateKEMKey(algorithm Algorithm) (DecapsulationKey, error)

	// SigningKeyFromSeed returns the key that a seed stands for, as it was kept
	// by SigningKey.Seed.
	SigningKeyFromSeed(algorithm Algorithm, seed []byte) (SigningKey, error)

	// DecapsulationKeyFromSeed returns the key that a seed stands for, as it
	// was kept by DecapsulationKey.Seed.
	DecapsulationKeyFromSeed(algorithm Algorithm, seed []byte) (DecapsulationKey, error)

	// Public returns the key that verifies what key signs.
	Public(key SigningKey) (PublicKey, error)

	// Encapsulation returns the key that encapsulates for key.
	Encapsulation(key DecapsulationKey) (EncapsulationKey, error)
}
