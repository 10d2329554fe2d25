package localpqc

import (
	"bytes"
	"encoding/hex"

	// The known ciphertexts are files.
	_ "embed"

	"creto.dev/fault"
	"creto.dev/pqc"
)

// What a known key must decapsulate, one for each KEM; TestSelfTestAnswers makes
// them with other implementations.
var (
	//go:embed testdata/ml-kem-768.ciphertext
	knownMLKEM []byte
	//go:embed testdata/mlkem768-x25519.ciphertext
	knownXWing []byte
)

// The answers that the seeds 00 01 02 … must give. Keys and signatures are known
// by their SHA3-256.
const (
	knownPublic     = "a9bbc344f78d3a053fd8b655aa6a2bf50ccaf17dc2c0d50bebb2917e163195a6"
	knownSignature  = "576bb02256ce28002f66b4afe57a6764590bc1569dcfa2e024c5be48a48b719d"
	knownSecret     = "42f558b0bc5d700a911b0fc67f62376f7aee4667f1969e03f18bdfdf3c59fbdc"
	knownXSecret    = "6a05d1e95ce5c4c0d128aa41e1e027c319cb700ff700f6b05c5d60c1a55d0b21"
	knownCiphertext = "000102030405060708090a0b3467ba7de891a768f98e4820466c120d05b19154487d7ea870"
)

// knownSeed returns 00 01 02 … of some length.
func knownSeed(n int) []byte {
	seed := make([]byte, n)
	for i := range seed {
		seed[i] = byte(i)
	}
	return seed
}

// SelfTest computes known answers with each algorithm that keys, messages and
// records depend on: the composite signature, both KEMs, HPKE, AES-256-GCM and
// SHA3-256 (R-CRY-34). It takes about a millisecond; run it before the first use.
//
// Errors: CryptoInternal (Permanent), naming what does not work.
func SelfTest() error {
	p := New()
	for _, test := range []struct {
		name string
		run  func(pqc.Provider) (bool, error)
	}{
		{"the signature", selfTestSignature},
		{"ML-KEM", func(p pqc.Provider) (bool, error) { return selfTestKEM(p, pqc.MLKEM768, 64, knownMLKEM, knownSecret) }},
		{"X-Wing", func(p pqc.Provider) (bool, error) {
			return selfTestKEM(p, pqc.MLKEM768X25519, 32, knownXWing, knownXSecret)
		}},
		{"HPKE", selfTestHPKE},
		{"authenticated encryption", selfTestAEAD},
	} {
		ok, err := test.run(p)
		if err != nil {
			return fault.WrapAs("localpqc.SelfTest", fault.CryptoInternal, err, "%s does not work on this machine", test.name)
		}
		if !ok {
			return fault.New("localpqc.SelfTest", fault.CryptoInternal, "%s gives a wrong answer on this machine", test.name)
		}
	}
	return nil
}

// isKnown reports whether data has this SHA3-256.
func isKnown(p pqc.Provider, data []byte, digest string) (bool, error) {
	sum, err := p.Hash(pqc.SHA3256, data)
	return hex.EncodeToString(sum) == digest, err
}

func selfTestSignature(p pqc.Provider) (bool, error) {
	message := []byte("self-test")
	key, err := p.SigningKeyFromSeed(pqc.MLDSA65Ed25519, knownSeed(pqc.CompositeSeedSize))
	if err != nil {
		return false, err
	}
	public, err := p.Public(key)
	if err != nil {
		return false, err
	}
	if ok, err := isKnown(p, public.Bytes, knownPublic); !ok {
		return false, err
	}
	sig, err := p.Sign(pqc.PurposeKey, message, key)
	if err != nil {
		return false, err
	}
	if ok, err := isKnown(p, sig.Bytes, knownSignature); !ok {
		return false, err
	}
	if err := p.Verify(pqc.PurposeKey, message, sig, public); err != nil {
		return false, err
	}
	// A verifier that accepts everything would pass so far.
	for _, i := range []int{0, len(sig.Bytes) - 1} {
		wrong := sig
		wrong.Bytes = bytes.Clone(sig.Bytes)
		wrong.Bytes[i] ^= 1
		if p.Verify(pqc.PurposeKey, message, wrong, public) == nil {
			return false, nil
		}
	}
	return true, nil
}

func selfTestKEM(p pqc.Provider, algorithm pqc.Algorithm, seedSize int, ciphertext []byte, want string) (bool, error) {
	key, err := p.DecapsulationKeyFromSeed(algorithm, knownSeed(seedSize))
	if err != nil {
		return false, err
	}
	secret, err := p.Decapsulate(ciphertext, key)
	return hex.EncodeToString(secret) == want, err
}

func selfTestHPKE(p pqc.Provider) (bool, error) {
	info, associated, probe := []byte("creto/self-test/v1"), []byte("probe"), []byte("self-test")
	key, err := p.DecapsulationKeyFromSeed(pqc.MLKEM768X25519, knownSeed(32))
	if err != nil {
		return false, err
	}
	public, err := p.Encapsulation(key)
	if err != nil {
		return false, err
	}
	sealed, err := p.Seal(info, associated, probe, public)
	if err != nil {
		return false, err
	}
	opened, err := p.Open(info, associated, sealed, key)
	return bytes.Equal(opened, probe), err
}

func selfTestAEAD(p pqc.Provider) (bool, error) {
	key := pqc.NewSymmetricKey(pqc.AES256GCM, knownSeed(pqc.SymmetricKeySize))
	data, err := hex.DecodeString(knownCiphertext)
	if err != nil {
		return false, err
	}
	opened, err := p.Decrypt(pqc.EncryptedData{Algorithm: key.Algorithm, Key: key.ID, Bytes: data}, []byte("probe"), key)
	if err != nil || string(opened) != "self-test" {
		return false, err
	}
	data[len(data)-1] ^= 1
	_, err = p.Decrypt(pqc.EncryptedData{Algorithm: key.Algorithm, Key: key.ID, Bytes: data}, []byte("probe"), key)
	return fault.CategoryOf(err) == fault.Security, nil
}
