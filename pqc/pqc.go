// Package pqc is the contract for cryptography: authenticated encryption, key
// encapsulation, composite signatures (classical and post-quantum together) and
// digests. The specification's name for it is creto-crypto (R-CRY-1…15).
//
// Algorithms are explicit and travel with keys and ciphertexts, so that one can
// be added without changing callers; a key used with another algorithm than its
// own is refused (B-7).
package pqc

import (
	"creto.dev/fault"
)

// Algorithm names one algorithm, as in configuration and in every record.
type Algorithm string

// The algorithms of the specification's defaults (R-CRY-11…15).
const (
	AES256GCM        Algorithm = "aes-256-gcm"
	MLKEM768         Algorithm = "ml-kem-768"
	Ed25519          Algorithm = "ed25519"
	MLDSA65          Algorithm = "ml-dsa-65"
	MLDSA65Ed25519   Algorithm = "id-mldsa65-ed25519-sha512"
	SHA3256          Algorithm = "sha3-256"
	SHA256           Algorithm = "sha-256"
	SymmetricKeySize           = 32 // bytes of an AES-256 key
)

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

// SymmetricKey is a secret key for one symmetric algorithm.
type SymmetricKey struct {
	Algorithm Algorithm
	Bytes     []byte
}

// String hides the key.
func (SymmetricKey) String() string { return "***" }

// EncryptedData is a ciphertext with its nonce in front and its tag behind.
type EncryptedData struct {
	Algorithm Algorithm `cbor:"1,keyasint"`
	Bytes     []byte    `cbor:"2,keyasint"`
}

// PublicKey verifies composite signatures.
type PublicKey struct {
	Algorithm Algorithm `cbor:"1,keyasint"`
	Bytes     []byte    `cbor:"2,keyasint"`
}

// SigningKey makes composite signatures. It is kept as its seeds.
type SigningKey struct {
	Algorithm Algorithm
	Seed      []byte
}

// String hides the key.
func (SigningKey) String() string { return "***" }

// Signature is a composite signature: both halves must verify (R-CRY-5). It is
// never used as an identifier: it is not strongly unforgeable.
type Signature struct {
	Algorithm Algorithm `cbor:"1,keyasint"`
	Bytes     []byte    `cbor:"2,keyasint"`
}

// EncapsulationKey is the public half of a KEM key pair.
type EncapsulationKey struct {
	Algorithm Algorithm `cbor:"1,keyasint"`
	Bytes     []byte    `cbor:"2,keyasint"`
}

// DecapsulationKey is the secret half of a KEM key pair, kept as its seed.
type DecapsulationKey struct {
	Algorithm Algorithm
	Seed      []byte
}

// String hides the key.
func (DecapsulationKey) String() string { return "***" }

// Provider does cryptography. Its methods compute, never block, and are safe
// for concurrent use. They keep no reference to their arguments.
//
// Every method fails with CryptoUnsupportedAlgorithm or CryptoInvalidKeyLength
// (both Permanent) for an algorithm or a key that it does not take.
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
	// every cause (B-10); CryptoInvalidCiphertext (Security) if it is too
	// short to be one.
	Decrypt(data EncryptedData, associated []byte, key SymmetricKey) ([]byte, error)

	// Encapsulate makes a shared secret of 32 bytes and its ciphertext for the
	// key's owner.
	Encapsulate(key EncapsulationKey) (secret, ciphertext []byte, err error)

	// Decapsulate recovers the shared secret. A ciphertext for another key
	// gives another secret, not an error: ML-KEM rejects implicitly.
	//
	// Errors: CryptoInvalidCiphertext (Security) for a wrong length.
	Decapsulate(ciphertext []byte, key DecapsulationKey) (secret []byte, err error)

	// Sign signs message for one purpose.
	Sign(purpose Purpose, message []byte, key SigningKey) (Signature, error)

	// Verify returns nil if both halves of sig are signatures of message for
	// that purpose by key.
	//
	// Errors: CryptoSignatureVerificationFailed (Security).
	Verify(purpose Purpose, message []byte, sig Signature, key PublicKey) error

	// Hash returns the digest of data under a hash algorithm.
	Hash(algorithm Algorithm, data []byte) ([]byte, error)

	// GenerateSymmetricKey returns a fresh random key.
	GenerateSymmetricKey(algorithm Algorithm) (SymmetricKey, error)

	// GenerateSigningKey returns a fresh random key.
	GenerateSigningKey(algorithm Algorithm) (SigningKey, error)

	// GenerateKEMKey returns a fresh random key.
	GenerateKEMKey(algorithm Algorithm) (DecapsulationKey, error)

	// Public returns the key that verifies what key signs.
	Public(key SigningKey) (PublicKey, error)

	// Encapsulation returns the key that encapsulates for key.
	Encapsulation(key DecapsulationKey) (EncapsulationKey, error)
}
