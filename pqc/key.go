package pqc

import (
	"crypto/sha3"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"

	"creto.dev/internal/canon"
)

// KeyID names a key: 32 hexadecimal digits. The two halves of a key pair have
// one id. It says which key to look for, and what was signed or sealed with one
// key is refused for another; it proves nothing by itself.
type KeyID string

// keyIDBytes is how much of the digest names a key. 128 bits make it infeasible
// to find a key for a given id, which is all that is asked of it.
const keyIDBytes = 16

// keyIDOf returns the first bytes of the SHA3-256 of a key's canonical encoding,
// which is also what nhi.Fingerprint digests.
func keyIDOf(algorithm Algorithm, key []byte) KeyID {
	encoded, err := canon.Marshal(identified{algorithm, key})
	if err != nil {
		panic("pqc: a key has no canonical form: " + err.Error()) // it is text and bytes
	}
	return keyIDOfEncoded(encoded)
}

func keyIDOfEncoded(encoded []byte) KeyID {
	sum := sha3.Sum256(encoded)
	return KeyID(hex.EncodeToString(sum[:keyIDBytes]))
}

// identified is what identifies a key, and the encoding of public keys: an id
// that is not sent cannot be wrong.
type identified struct {
	Algorithm Algorithm `cbor:"1,keyasint"`
	Bytes     []byte    `cbor:"2,keyasint"`
}

// redacted hides the struct that embeds it from whatever prints.
type redacted struct{}

// String hides the key.
func (redacted) String() string { return "***" }

// Format hides the key from every verb.
func (redacted) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "***") }

// LogValue hides the key.
func (redacted) LogValue() slog.Value { return slog.StringValue("***") }

// MarshalJSON hides the key.
func (redacted) MarshalJSON() ([]byte, error) { return []byte(`"***"`), nil }

// SymmetricKey is a secret key for one symmetric algorithm. NewSymmetricKey and
// Provider make it.
type SymmetricKey struct {
	redacted

	Algorithm Algorithm
	// ID is part of a digest of the key, which must therefore be random: never
	// a passphrase.
	ID    KeyID
	Bytes []byte
}

// NewSymmetricKey returns the key of these bytes, which it keeps. Their length is
// checked where the key is used.
func NewSymmetricKey(algorithm Algorithm, bytes []byte) SymmetricKey {
	return SymmetricKey{Algorithm: algorithm, ID: keyIDOf(algorithm, bytes), Bytes: bytes}
}

// EncryptedData is a ciphertext with its nonce in front and its tag behind.
type EncryptedData struct {
	Algorithm Algorithm `cbor:"1,keyasint"`
	Bytes     []byte    `cbor:"2,keyasint"`
	// Key names the key that opens it.
	Key KeyID `cbor:"3,keyasint"`
}

// PublicKey verifies signatures. NewPublicKey and Provider make it. Its encoding
// is {1: Algorithm, 2: Bytes}: the id follows from them.
type PublicKey struct {
	Algorithm Algorithm
	ID        KeyID
	Bytes     []byte
}

// NewPublicKey returns the key of these bytes, which it keeps. Their length is
// checked where the key is used.
func NewPublicKey(algorithm Algorithm, bytes []byte) PublicKey {
	return PublicKey{Algorithm: algorithm, ID: keyIDOf(algorithm, bytes), Bytes: bytes}
}

// MarshalCBOR implements cbor.Marshaler.
func (k PublicKey) MarshalCBOR() ([]byte, error) {
	return canon.Marshal(identified{k.Algorithm, k.Bytes})
}

// UnmarshalCBOR implements cbor.Unmarshaler and derives the id.
//
// Errors: InvalidArgument (Permanent).
func (k *PublicKey) UnmarshalCBOR(data []byte) error {
	var raw identified
	if err := canon.UnmarshalPart(data, &raw); err != nil {
		return err
	}
	*k = PublicKey{Algorithm: raw.Algorithm, ID: keyIDOfEncoded(data), Bytes: raw.Bytes}
	return nil
}

// SigningKey makes signatures. It is kept as its seed, from which
// Provider.SigningKeyFromSeed makes it again.
type SigningKey struct {
	redacted

	Algorithm Algorithm
	ID        KeyID // that of its public key
	Seed      []byte
}

// Signature says by which key and algorithm it was made. It is never used as an
// identifier: a composite is not strongly unforgeable.
type Signature struct {
	Algorithm Algorithm `cbor:"1,keyasint"`
	Bytes     []byte    `cbor:"2,keyasint"`
	// Key names the key that verifies it.
	Key KeyID `cbor:"3,keyasint"`
}

// EncapsulationKey is the public half of a KEM key pair. NewEncapsulationKey and
// Provider make it. Its encoding is that of PublicKey.
type EncapsulationKey struct {
	Algorithm Algorithm
	ID        KeyID
	Bytes     []byte
}

// NewEncapsulationKey returns the key of these bytes, which it keeps. Their length
// is checked where the key is used.
func NewEncapsulationKey(algorithm Algorithm, bytes []byte) EncapsulationKey {
	return EncapsulationKey{Algorithm: algorithm, ID: keyIDOf(algorithm, bytes), Bytes: bytes}
}

// MarshalCBOR implements cbor.Marshaler.
func (k EncapsulationKey) MarshalCBOR() ([]byte, error) {
	return canon.Marshal(identified{k.Algorithm, k.Bytes})
}

// UnmarshalCBOR implements cbor.Unmarshaler and derives the id.
//
// Errors: InvalidArgument (Permanent).
func (k *EncapsulationKey) UnmarshalCBOR(data []byte) error {
	var raw identified
	if err := canon.UnmarshalPart(data, &raw); err != nil {
		return err
	}
	*k = EncapsulationKey{Algorithm: raw.Algorithm, ID: keyIDOfEncoded(data), Bytes: raw.Bytes}
	return nil
}

// DecapsulationKey is the secret half of a KEM key pair. It is kept as its seed,
// from which Provider.DecapsulationKeyFromSeed makes it again.
type DecapsulationKey struct {
	redacted

	Algorithm Algorithm
	ID        KeyID // that of its encapsulation key
	Seed      []byte
}

// Sealed is what Provider.Seal encrypted to the owner of a key. The algorithm is
// the KEM; HPKE's other two follow from it.
type Sealed struct {
	Algorithm Algorithm `cbor:"1,keyasint"`
	// Key names the key that opens it.
	Key KeyID `cbor:"2,keyasint"`
	// Encapsulated is the KEM's ciphertext.
	Encapsulated []byte `cbor:"3,keyasint"`
	// Ciphertext has its tag behind.
	Ciphertext []byte `cbor:"4,keyasint"`
}
