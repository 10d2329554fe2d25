// Package localpqc does the cryptography of package pqc in this process.
//
// AES-256-GCM, ML-KEM-768, Ed25519 and the digests are the standard library's;
// ML-DSA-65 is circl's until the standard library has it (docs/decisions.md,
// D-004).
package localpqc

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha3"

	"creto.dev/fault"
	"creto.dev/pqc"
)

type provider struct{}

var _ pqc.Provider = provider{}

// New returns a provider. It holds no state.
func New() pqc.Provider { return provider{} }

// errDecrypt is the one error of decryption, whatever went wrong (B-10).
var errDecrypt = fault.New("localpqc.Decrypt", fault.CryptoDecryptionFailed, "the ciphertext cannot be decrypted")

func (provider) Encrypt(plaintext, associated []byte, key pqc.SymmetricKey) (pqc.EncryptedData, error) {
	const op fault.Op = "localpqc.Encrypt"
	if len(associated) == 0 {
		return pqc.EncryptedData{}, fault.New(op, fault.CryptoEncryptionFailed, "associated data is required")
	}
	aead, err := gcm(op, key)
	if err != nil {
		return pqc.EncryptedData{}, err
	}
	return pqc.EncryptedData{Algorithm: key.Algorithm, Bytes: aead.Seal(nil, nil, plaintext, associated)}, nil
}

func (provider) Decrypt(data pqc.EncryptedData, associated []byte, key pqc.SymmetricKey) ([]byte, error) {
	const op fault.Op = "localpqc.Decrypt"
	aead, err := gcm(op, key)
	switch {
	case err != nil:
		return nil, err
	case data.Algorithm != key.Algorithm:
		return nil, errDecrypt
	case len(data.Bytes) < aead.Overhead():
		return nil, fault.New(op, fault.CryptoInvalidCiphertext, "the ciphertext is too short")
	}
	plaintext, err := aead.Open(nil, nil, data.Bytes, associated)
	if err != nil {
		return nil, errDecrypt
	}
	return plaintext, nil
}

func gcm(op fault.Op, key pqc.SymmetricKey) (cipher.AEAD, error) {
	if key.Algorithm != pqc.AES256GCM {
		return nil, unsupported(op, key.Algorithm)
	}
	if err := length(op, key.Bytes, pqc.SymmetricKeySize); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key.Bytes)
	if err != nil {
		return nil, fault.WrapAs(op, fault.CryptoInternal, err, "")
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return aead, fault.WrapAs(op, fault.CryptoInternal, err, "")
}

func (provider) Encapsulate(key pqc.EncapsulationKey) (secret, ciphertext []byte, err error) {
	const op fault.Op = "localpqc.Encapsulate"
	if key.Algorithm != pqc.MLKEM768 {
		return nil, nil, unsupported(op, key.Algorithm)
	}
	if err := length(op, key.Bytes, mlkem.EncapsulationKeySize768); err != nil {
		return nil, nil, err
	}
	k, err := mlkem.NewEncapsulationKey768(key.Bytes)
	if err != nil {
		return nil, nil, fault.WrapAs(op, fault.CryptoKeyEncapsulationFailed, err, "")
	}
	secret, ciphertext = k.Encapsulate()
	return secret, ciphertext, nil
}

func (provider) Decapsulate(ciphertext []byte, key pqc.DecapsulationKey) ([]byte, error) {
	const op fault.Op = "localpqc.Decapsulate"
	k, err := kemKey(op, key)
	if err != nil {
		return nil, err
	}
	if len(ciphertext) != mlkem.CiphertextSize768 {
		return nil, fault.New(op, fault.CryptoInvalidCiphertext, "the ciphertext has %d bytes instead of %d", len(ciphertext), mlkem.CiphertextSize768)
	}
	secret, err := k.Decapsulate(ciphertext)
	return secret, fault.WrapAs(op, fault.CryptoKeyDecapsulationFailed, err, "the ciphertext cannot be decapsulated")
}

func kemKey(op fault.Op, key pqc.DecapsulationKey) (*mlkem.DecapsulationKey768, error) {
	if key.Algorithm != pqc.MLKEM768 {
		return nil, unsupported(op, key.Algorithm)
	}
	if err := length(op, key.Seed, mlkem.SeedSize); err != nil {
		return nil, err
	}
	k, err := mlkem.NewDecapsulationKey768(key.Seed)
	return k, fault.WrapAs(op, fault.CryptoInternal, err, "")
}

func (provider) Hash(algorithm pqc.Algorithm, data []byte) ([]byte, error) {
	switch algorithm {
	case pqc.SHA3256:
		sum := sha3.Sum256(data)
		return sum[:], nil
	case pqc.SHA256:
		sum := sha256.Sum256(data)
		return sum[:], nil
	}
	return nil, unsupported("localpqc.Hash", algorithm)
}

func (provider) GenerateSymmetricKey(algorithm pqc.Algorithm) (pqc.SymmetricKey, error) {
	if algorithm != pqc.AES256GCM {
		return pqc.SymmetricKey{}, unsupported("localpqc.GenerateSymmetricKey", algorithm)
	}
	return pqc.SymmetricKey{Algorithm: algorithm, Bytes: random(pqc.SymmetricKeySize)}, nil
}

func (provider) GenerateSigningKey(algorithm pqc.Algorithm) (pqc.SigningKey, error) {
	if algorithm != pqc.MLDSA65Ed25519 {
		return pqc.SigningKey{}, unsupported("localpqc.GenerateSigningKey", algorithm)
	}
	return pqc.SigningKey{Algorithm: algorithm, Seed: random(pqc.CompositeSeedSize)}, nil
}

func (provider) GenerateKEMKey(algorithm pqc.Algorithm) (pqc.DecapsulationKey, error) {
	if algorithm != pqc.MLKEM768 {
		return pqc.DecapsulationKey{}, unsupported("localpqc.GenerateKEMKey", algorithm)
	}
	return pqc.DecapsulationKey{Algorithm: algorithm, Seed: random(mlkem.SeedSize)}, nil
}

func (provider) Encapsulation(key pqc.DecapsulationKey) (pqc.EncapsulationKey, error) {
	k, err := kemKey("localpqc.Encapsulation", key)
	if err != nil {
		return pqc.EncapsulationKey{}, err
	}
	return pqc.EncapsulationKey{Algorithm: key.Algorithm, Bytes: k.EncapsulationKey().Bytes()}, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // documented never to return an error
	return b
}

func unsupported(op fault.Op, algorithm pqc.Algorithm) error {
	return fault.New(op, fault.CryptoUnsupportedAlgorithm, "the algorithm %q is not supported here", algorithm)
}

func length(op fault.Op, b []byte, want int) error {
	if len(b) == want {
		return nil
	}
	return fault.New(op, fault.CryptoInvalidKeyLength, "the key has %d bytes instead of %d", len(b), want)
}
