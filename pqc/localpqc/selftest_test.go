package localpqc

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha3"
	"encoding/hex"
	"os"
	"testing"

	"filippo.io/mldsa"
	"github.com/cloudflare/circl/kem/xwing"
	"github.com/cloudflare/circl/sign/ed25519"

	"creto.dev/pqc"
)

func TestSelfTest(t *testing.T) {
	if err := SelfTest(); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkSelfTest(b *testing.B) {
	for b.Loop() {
		if err := SelfTest(); err != nil {
			b.Fatal(err)
		}
	}
}

// wrong is a provider of which one part does not work.
type wrong struct {
	pqc.Provider

	part string
}

func (w wrong) Verify(purpose pqc.Purpose, message []byte, sig pqc.Signature, key pqc.PublicKey) error {
	if w.part == "verify" {
		return nil
	}
	return w.Provider.Verify(purpose, message, sig, key)
}

func (w wrong) Decrypt(data pqc.EncryptedData, associated []byte, key pqc.SymmetricKey) ([]byte, error) {
	if w.part == "decrypt" {
		return []byte("self-test"), nil
	}
	return w.Provider.Decrypt(data, associated, key)
}

func (w wrong) Hash(algorithm pqc.Algorithm, data []byte) ([]byte, error) {
	if w.part == "hash" {
		return make([]byte, 32), nil
	}
	return w.Provider.Hash(algorithm, data)
}

func TestSelfTestNotices(t *testing.T) {
	for part, run := range map[string]func(pqc.Provider) (bool, error){
		"verify": selfTestSignature, "hash": selfTestSignature, "decrypt": selfTestAEAD,
	} {
		if ok, err := run(wrong{New(), part}); ok || err != nil {
			t.Errorf("a self-test with a wrong %s = %v, %v; want false", part, ok, err)
		}
	}
	if ok, err := selfTestKEM(New(), pqc.MLKEM768, 64, make([]byte, 1088), knownSecret); ok || err != nil {
		t.Errorf("a self-test with a wrong secret = %v, %v; want false", ok, err)
	}
}

// TestSelfTestAnswers makes the known answers with other implementations where
// there are any. UPDATE=1 writes the ciphertexts.
func TestSelfTestAnswers(t *testing.T) {
	key, err := mlkem.NewDecapsulationKey768(knownSeed(64))
	if err != nil {
		t.Fatal(err)
	}
	secret, ciphertext, err := mlkemtest.Encapsulate768(key.EncapsulationKey(), knownSeed(32))
	if err != nil {
		t.Fatal(err)
	}
	_, packed := xwing.DeriveKeyPairPacked(knownSeed(32))
	xsecret, xciphertext, err := xwing.Encapsulate(packed, knownSeed(64))
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("UPDATE") == "1" {
		for name, data := range map[string][]byte{"ml-kem-768": ciphertext, "mlkem768-x25519": xciphertext} {
			if err := os.WriteFile("testdata/"+name+".ciphertext", data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !bytes.Equal(ciphertext, knownMLKEM) || !bytes.Equal(xciphertext, knownXWing) {
		t.Error("the files differ; rewrite them with UPDATE=1")
	}

	pq, err := mldsa.NewPrivateKey(mldsa.MLDSA65(), knownSeed(64)[:32])
	if err != nil {
		t.Fatal(err)
	}
	classical := ed25519.NewKeyFromSeed(knownSeed(64)[32:])
	m := compositeMessage(pqc.PurposeKey, []byte("self-test"))
	sig, err := pq.SignDeterministic(m, &mldsa.Options{Context: compositeLabel})
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(knownSeed(32))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := knownSeed(12)
	digest := func(parts ...[]byte) string {
		sum := sha3.Sum256(bytes.Join(parts, nil))
		return hex.EncodeToString(sum[:])
	}
	for _, tt := range []struct{ name, known, want string }{
		{"knownPublic", knownPublic, digest(pq.PublicKey().Bytes(), classical.Public().(ed25519.PublicKey))},
		{"knownSignature", knownSignature, digest(sig, ed25519.Sign(classical, m))},
		{"knownSecret", knownSecret, hex.EncodeToString(secret)},
		{"knownXSecret", knownXSecret, hex.EncodeToString(xsecret)},
		{"knownCiphertext", knownCiphertext, hex.EncodeToString(gcm.Seal(nonce, nonce, []byte("self-test"), []byte("probe")))},
	} {
		if tt.known != tt.want {
			t.Errorf("%s is %q, want %q", tt.name, tt.known, tt.want)
		}
	}
}
