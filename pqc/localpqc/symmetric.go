package localpqc

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"crypto/sha3"

	"creto.dev/fault"
	"creto.dev/pqc"
)

// aead is authenticated encryption that puts a random nonce before what it
// seals.
type aead struct {
	keySize int // in bytes
	open    func(key []byte) (cipher.AEAD, error)
}

var aeads = map[pqc.Algorithm]aead{
	pqc.AES256GCM: {pqc.SymmetricKeySize, openGCM},
}

var hashes = map[pqc.Algorithm]func(data []byte) []byte{
	pqc.SHA3256: func(data []byte) []byte { sum := sha3.Sum256(data); return sum[:] },
	pqc.SHA256:  func(data []byte) []byte { sum := sha256.Sum256(data); return sum[:] },
}

func openGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func openAEAD(op fault.Op, key pqc.SymmetricKey) (cipher.AEAD, error) {
	a, ok := aeads[key.Algorithm]
	if !ok {
		return nil, unsupported(op, key.Algorithm)
	}
	if err := usable(op, key.ID, key.Bytes, a.keySize); err != nil {
		return nil, err
	}
	opened, err := a.open(key.Bytes)
	return opened, fault.WrapAs(op, fault.CryptoInternal, err, "")
}

// notDecrypted is the one error of decryption, whatever went wrong (B-10).
func notDecrypted(op fault.Op) error {
	return fault.New(op, fault.CryptoDecryptionFailed, "the ciphertext cannot be decrypted")
}

func (*provider) Encrypt(plaintext, associated []byte, key pqc.SymmetricKey) (pqc.EncryptedData, error) {
	const op fault.Op = "localpqc.Encrypt"
	if len(associated) == 0 {
		return pqc.EncryptedData{}, fault.New(op, fault.CryptoEncryptionFailed, "associated data is required")
	}
	a, err := openAEAD(op, key)
	if err != nil {
		return pqc.EncryptedData{}, err
	}
	return pqc.EncryptedData{Algorithm: key.Algorithm, Key: key.ID, Bytes: a.Seal(nil, nil, plaintext, associated)}, nil
}

func (*provider) Decrypt(data pqc.EncryptedData, associated []byte, key pqc.SymmetricKey) ([]byte, error) {
	const op fault.Op = "localpqc.Decrypt"
	a, err := openAEAD(op, key)
	switch {
	case err != nil:
		return nil, err
	case data.Algorithm != key.Algorithm, data.Key != key.ID:
		return nil, notDecrypted(op)
	case len(data.Bytes) < a.Overhead():
		return nil, fault.New(op, fault.CryptoInvalidCiphertext, "the ciphertext is too short")
	}
	plaintext, err := a.Open(nil, nil, data.Bytes, associated)
	if err != nil {
		return nil, notDecrypted(op)
	}
	return plaintext, nil
}

func (*provider) Hash(algorithm pqc.Algorithm, data []byte) ([]byte, error) {
	hash, ok := hashes[algorithm]
	if !ok {
		return nil, unsupported("localpqc.Hash", algorithm)
	}
	return hash(data), nil
}

func (*provider) GenerateSymmetricKey(algorithm pqc.Algorithm) (pqc.SymmetricKey, error) {
	a, ok := aeads[algorithm]
	if !ok {
		return pqc.SymmetricKey{}, unsupported("localpqc.GenerateSymmetricKey", algorithm)
	}
	return pqc.NewSymmetricKey(algorithm, random(a.keySize)), nil
}
