// Package pqctest is what every implementation of package pqc must do.
package pqctest

import (
	"bytes"
	"errors"
	"testing"

	"creto.dev/fault"
	"creto.dev/pqc"
)

// Run tests the provider that open returns.
func Run(t *testing.T, open func(*testing.T) pqc.Provider) {
	t.Run("encryption", func(t *testing.T) { testEncryption(t, open(t)) })
	t.Run("kem", func(t *testing.T) { testKEM(t, open(t)) })
	t.Run("signature", func(t *testing.T) { testSignature(t, open(t)) })
	t.Run("unsupported", func(t *testing.T) { testUnsupported(t, open(t)) })
}

func testEncryption(t *testing.T, p pqc.Provider) {
	key, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		t.Fatal(err)
	}
	plaintext, associated := []byte("four score"), []byte("object/1/v1")
	data, err := p.Encrypt(plaintext, associated, key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Decrypt(data, associated, key)
	if err != nil || !bytes.Equal(got, plaintext) {
		t.Fatalf("Decrypt = %q, %v; want %q", got, err, plaintext)
	}
	again, err := p.Encrypt(plaintext, associated, key)
	if err != nil || bytes.Equal(again.Bytes, data.Bytes) {
		t.Errorf("two encryptions of one plaintext are equal: nonces repeat (err %v)", err)
	}
	if _, err := p.Encrypt(plaintext, nil, key); !errors.Is(err, fault.CryptoEncryptionFailed) {
		t.Errorf("Encrypt without associated data = %v, want CryptoEncryptionFailed", err)
	}
	other, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	refuse := func(what string, d pqc.EncryptedData, associated []byte, key pqc.SymmetricKey) {
		t.Helper()
		_, err := p.Decrypt(d, associated, key)
		if fault.CategoryOf(err) != fault.Security {
			t.Errorf("Decrypt with %s = %v, want a security fault", what, err)
		}
		texts = append(texts, fault.Message(err))
	}
	for i := range data.Bytes {
		flipped := pqc.EncryptedData{Algorithm: data.Algorithm, Bytes: bytes.Clone(data.Bytes)}
		flipped.Bytes[i] ^= 1
		refuse("a flipped byte", flipped, associated, key)
	}
	refuse("another key", data, associated, other)
	refuse("another object", data, []byte("object/2/v1"), key)
	refuse("another algorithm", pqc.EncryptedData{Algorithm: pqc.MLKEM768, Bytes: data.Bytes}, associated, key)
	for _, text := range texts {
		if text != texts[0] {
			t.Errorf("causes can be told apart: %q and %q", text, texts[0])
		}
	}
}

func testKEM(t *testing.T, p pqc.Provider) {
	key, err := p.GenerateKEMKey(pqc.MLKEM768)
	if err != nil {
		t.Fatal(err)
	}
	public, err := p.Encapsulation(key)
	if err != nil {
		t.Fatal(err)
	}
	secret, ciphertext, err := p.Encapsulate(public)
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Decapsulate(ciphertext, key)
	if err != nil || !bytes.Equal(got, secret) || len(got) != 32 {
		t.Errorf("Decapsulate = %x, %v; want %x", got, err, secret)
	}
	ciphertext[7] ^= 1
	if got, err := p.Decapsulate(ciphertext, key); err != nil || bytes.Equal(got, secret) {
		t.Errorf("Decapsulate of a flipped ciphertext = %x, %v; want another secret", got, err)
	}
	if _, err := p.Decapsulate(ciphertext[1:], key); !errors.Is(err, fault.CryptoInvalidCiphertext) {
		t.Errorf("Decapsulate of a short ciphertext = %v, want CryptoInvalidCiphertext", err)
	}
}

func testSignature(t *testing.T, p pqc.Provider) {
	key, err := p.GenerateSigningKey(pqc.MLDSA65Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	public, err := p.Public(key)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("pay bob 5")
	sig, err := p.Sign(pqc.PurposeRecord, message, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Verify(pqc.PurposeRecord, message, sig, public); err != nil {
		t.Fatalf("Verify of a good signature: %v", err)
	}
	refuse := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, fault.CryptoSignatureVerificationFailed) {
			t.Errorf("Verify with %s = %v, want CryptoSignatureVerificationFailed", what, err)
		}
	}
	refuse("another purpose", p.Verify(pqc.PurposeInvoice, message, sig, public))
	refuse("another message", p.Verify(pqc.PurposeRecord, []byte("pay bob 6"), sig, public))
	// One flipped bit in either half is enough (R-CRY-5).
	for _, i := range []int{0, 1700, 3308, 3309, len(sig.Bytes) - 1} {
		flipped := pqc.Signature{Algorithm: sig.Algorithm, Bytes: bytes.Clone(sig.Bytes)}
		flipped.Bytes[i] ^= 0x10
		refuse("a flipped byte", p.Verify(pqc.PurposeRecord, message, flipped, public))
	}
	refuse("half a signature", p.Verify(pqc.PurposeRecord, message, pqc.Signature{Algorithm: sig.Algorithm, Bytes: sig.Bytes[:64]}, public))
	refuse("a downgraded algorithm", p.Verify(pqc.PurposeRecord, message, pqc.Signature{Algorithm: pqc.Ed25519, Bytes: sig.Bytes}, public))
	if _, err := p.Sign("", message, key); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("Sign without a purpose = %v, want InvalidArgument", err)
	}
}

func testUnsupported(t *testing.T, p pqc.Provider) {
	const unknown pqc.Algorithm = "rot13"
	_, err1 := p.Hash(unknown, nil)
	_, err2 := p.GenerateSymmetricKey(unknown)
	_, err3 := p.GenerateSigningKey(unknown)
	_, err4 := p.GenerateKEMKey(unknown)
	_, err5 := p.Encrypt([]byte("x"), []byte("y"), pqc.SymmetricKey{Algorithm: unknown, Bytes: make([]byte, 32)})
	_, err6 := p.Sign(pqc.PurposeRecord, nil, pqc.SigningKey{Algorithm: unknown})
	for i, err := range []error{err1, err2, err3, err4, err5, err6} {
		if !errors.Is(err, fault.CryptoUnsupportedAlgorithm) {
			t.Errorf("call %d with an unknown algorithm = %v, want CryptoUnsupportedAlgorithm", i+1, err)
		}
	}
	if _, err := p.Encrypt([]byte("x"), []byte("y"), pqc.SymmetricKey{Algorithm: pqc.AES256GCM, Bytes: make([]byte, 31)}); !errors.Is(err, fault.CryptoInvalidKeyLength) {
		t.Errorf("Encrypt with a short key = %v, want CryptoInvalidKeyLength", err)
	}
	if sum, err := p.Hash(pqc.SHA3256, nil); err != nil || len(sum) != 32 {
		t.Errorf("Hash = %x, %v", sum, err)
	}
}
