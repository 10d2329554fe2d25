package localpqc

import (
	"bytes"
	"crypto/hpke"
	"crypto/mlkem"

	"github.com/cloudflare/circl/kem/xwing"

	"creto.dev/fault"
	"creto.dev/pqc"
)

// kem is a key encapsulation mechanism and HPKE over it. Sizes are in bytes.
type kem struct {
	seedSize, publicSize, ciphertextSize int

	// hpke is the mechanism as HPKE's; its private keys are our seeds.
	hpke func() hpke.KEM
	// encapsulate and decapsulate are the bare mechanism. They are given what
	// has the right size.
	encapsulate func(public []byte) (secret, ciphertext []byte, err error)
	decapsulate func(seed, ciphertext []byte) (secret []byte, err error)
}

var kems = map[pqc.Algorithm]kem{
	pqc.MLKEM768: {
		mlkem.SeedSize, mlkem.EncapsulationKeySize768, mlkem.CiphertextSize768,
		hpke.MLKEM768, encapsulateMLKEM, decapsulateMLKEM,
	},
	pqc.MLKEM768X25519: {
		xwing.SeedSize, xwing.PublicKeySize, xwing.CiphertextSize,
		hpke.MLKEM768X25519, encapsulateXWing, decapsulateXWing,
	},
}

func encapsulateMLKEM(public []byte) (secret, ciphertext []byte, err error) {
	k, err := mlkem.NewEncapsulationKey768(public)
	if err != nil {
		return nil, nil, err
	}
	secret, ciphertext = k.Encapsulate()
	return secret, ciphertext, nil
}

func decapsulateMLKEM(seed, ciphertext []byte) ([]byte, error) {
	k, err := mlkem.NewDecapsulationKey768(seed)
	if err != nil {
		return nil, err
	}
	return k.Decapsulate(ciphertext)
}

func encapsulateXWing(public []byte) (secret, ciphertext []byte, err error) {
	return xwing.Encapsulate(public, nil)
}

func decapsulateXWing(seed, ciphertext []byte) ([]byte, error) {
	return xwing.Decapsulate(ciphertext, seed), nil
}

// publicKEM returns the mechanism of a public key that it can use.
func publicKEM(op fault.Op, key pqc.EncapsulationKey) (kem, error) {
	k, ok := kems[key.Algorithm]
	if !ok {
		return kem{}, unsupported(op, key.Algorithm)
	}
	if err := usable(op, key.ID, key.Bytes, k.publicSize); err != nil {
		return kem{}, err
	}
	if pqc.NewEncapsulationKey(key.Algorithm, key.Bytes).ID != key.ID {
		return kem{}, misnamed(op)
	}
	return k, nil
}

// secretKEM returns the mechanism of a secret key that it can use.
func secretKEM(op fault.Op, key pqc.DecapsulationKey) (kem, error) {
	k, ok := kems[key.Algorithm]
	if !ok {
		return kem{}, unsupported(op, key.Algorithm)
	}
	return k, usable(op, key.ID, key.Seed, k.seedSize)
}

// aeadOfHPKE and kdfOfHPKE complete the suite of each KEM.
func aeadOfHPKE() hpke.AEAD { return hpke.AES256GCM() }
func kdfOfHPKE() hpke.KDF   { return hpke.HKDFSHA256() }

// tagSize is what HPKE's AEAD adds to a plaintext, in bytes.
const tagSize = 16

func (*provider) Seal(info, associated, plaintext []byte, key pqc.EncapsulationKey) (pqc.Sealed, error) {
	const op fault.Op = "localpqc.Seal"
	if len(info) == 0 || len(associated) == 0 {
		return pqc.Sealed{}, fault.New(op, fault.CryptoEncryptionFailed, "info and associated data are required")
	}
	k, err := publicKEM(op, key)
	if err != nil {
		return pqc.Sealed{}, err
	}
	public, err := k.hpke().NewPublicKey(key.Bytes)
	if err != nil {
		return pqc.Sealed{}, fault.WrapAs(op, fault.CryptoKeyEncapsulationFailed, err, "the key's bytes are no key")
	}
	encapsulated, sender, err := hpke.NewSender(public, kdfOfHPKE(), aeadOfHPKE(), info)
	if err != nil {
		return pqc.Sealed{}, fault.WrapAs(op, fault.CryptoKeyEncapsulationFailed, err, "")
	}
	ciphertext, err := sender.Seal(associated, plaintext)
	if err != nil {
		return pqc.Sealed{}, fault.WrapAs(op, fault.CryptoEncryptionFailed, err, "")
	}
	return pqc.Sealed{Algorithm: key.Algorithm, Key: key.ID, Encapsulated: encapsulated, Ciphertext: ciphertext}, nil
}

func (*provider) Open(info, associated []byte, sealed pqc.Sealed, key pqc.DecapsulationKey) ([]byte, error) {
	const op fault.Op = "localpqc.Open"
	k, err := secretKEM(op, key)
	switch {
	case err != nil:
		return nil, err
	case sealed.Algorithm != key.Algorithm, sealed.Key != key.ID:
		return nil, notDecrypted(op)
	case len(sealed.Encapsulated) != k.ciphertextSize, len(sealed.Ciphertext) < tagSize:
		return nil, fault.New(op, fault.CryptoInvalidCiphertext, "the ciphertext is too short")
	}
	private, err := k.hpke().NewPrivateKey(key.Seed)
	if err != nil {
		return nil, fault.WrapAs(op, fault.CryptoInternal, err, "")
	}
	recipient, err := hpke.NewRecipient(sealed.Encapsulated, private, kdfOfHPKE(), aeadOfHPKE(), info)
	if err != nil {
		return nil, notDecrypted(op)
	}
	plaintext, err := recipient.Open(associated, sealed.Ciphertext)
	if err != nil {
		return nil, notDecrypted(op)
	}
	return plaintext, nil
}

func (*provider) Encapsulate(key pqc.EncapsulationKey) (secret, ciphertext []byte, err error) {
	const op fault.Op = "localpqc.Encapsulate"
	k, err := publicKEM(op, key)
	if err != nil {
		return nil, nil, err
	}
	secret, ciphertext, err = k.encapsulate(key.Bytes)
	return secret, ciphertext, fault.WrapAs(op, fault.CryptoKeyEncapsulationFailed, err, "the key's bytes are no key")
}

func (*provider) Decapsulate(ciphertext []byte, key pqc.DecapsulationKey) ([]byte, error) {
	const op fault.Op = "localpqc.Decapsulate"
	k, err := secretKEM(op, key)
	if err != nil {
		return nil, err
	}
	if len(ciphertext) != k.ciphertextSize {
		return nil, fault.New(op, fault.CryptoInvalidCiphertext, "the ciphertext has %d bytes instead of %d", len(ciphertext), k.ciphertextSize)
	}
	secret, err := k.decapsulate(key.Seed, ciphertext)
	return secret, fault.WrapAs(op, fault.CryptoKeyDecapsulationFailed, err, "the ciphertext cannot be decapsulated")
}

func (p *provider) GenerateKEMKey(algorithm pqc.Algorithm) (pqc.DecapsulationKey, error) {
	const op fault.Op = "localpqc.GenerateKEMKey"
	k, ok := kems[algorithm]
	if !ok {
		return pqc.DecapsulationKey{}, unsupported(op, algorithm)
	}
	key, err := p.DecapsulationKeyFromSeed(algorithm, random(k.seedSize))
	return key, fault.Wrap(op, err)
}

func (*provider) DecapsulationKeyFromSeed(algorithm pqc.Algorithm, seed []byte) (pqc.DecapsulationKey, error) {
	public, err := encapsulationOf("localpqc.DecapsulationKeyFromSeed", algorithm, seed)
	if err != nil {
		return pqc.DecapsulationKey{}, err
	}
	return pqc.DecapsulationKey{Algorithm: algorithm, ID: public.ID, Seed: bytes.Clone(seed)}, nil
}

func (*provider) Encapsulation(key pqc.DecapsulationKey) (pqc.EncapsulationKey, error) {
	const op fault.Op = "localpqc.Encapsulation"
	public, err := encapsulationOf(op, key.Algorithm, key.Seed)
	if err == nil && public.ID != key.ID {
		return pqc.EncapsulationKey{}, misnamed(op)
	}
	return public, err
}

func encapsulationOf(op fault.Op, algorithm pqc.Algorithm, seed []byte) (pqc.EncapsulationKey, error) {
	k, ok := kems[algorithm]
	if !ok {
		return pqc.EncapsulationKey{}, unsupported(op, algorithm)
	}
	if err := length(op, seed, k.seedSize); err != nil {
		return pqc.EncapsulationKey{}, err
	}
	private, err := k.hpke().NewPrivateKey(seed)
	if err != nil {
		return pqc.EncapsulationKey{}, fault.WrapAs(op, fault.CryptoInternal, err, "")
	}
	return pqc.NewEncapsulationKey(algorithm, private.PublicKey().Bytes()), nil
}
