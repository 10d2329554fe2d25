// Package pqctest is what every implementation of package pqc must do.
package pqctest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"creto.dev/fault"
	"creto.dev/pqc"
)

// The algorithms that every implementation has.
var (
	signatures = []pqc.Algorithm{pqc.Ed25519, pqc.MLDSA65, pqc.MLDSA65Ed25519}
	kems       = []pqc.Algorithm{pqc.MLKEM768, pqc.MLKEM768X25519}
)

// Run tests the provider that open returns, in this process or behind a wire.
func Run(t *testing.T, open func(*testing.T) pqc.Provider) {
	t.Run("encryption", func(t *testing.T) { testEncryption(t, open(t)) })
	for _, algorithm := range kems {
		t.Run("kem/"+string(algorithm), func(t *testing.T) { testKEM(t, open(t), algorithm) })
		t.Run("hpke/"+string(algorithm), func(t *testing.T) { testHPKE(t, open(t), algorithm) })
	}
	for _, algorithm := range signatures {
		t.Run("signature/"+string(algorithm), func(t *testing.T) { testSignature(t, open(t), algorithm) })
	}
	t.Run("confusion of signatures", func(t *testing.T) { testSignatureConfusion(t, open(t)) })
	t.Run("confusion of ciphertexts", func(t *testing.T) { testCiphertextConfusion(t, open(t)) })
	t.Run("keys", func(t *testing.T) { testKeys(t, open(t)) })
	t.Run("digests", func(t *testing.T) { testHash(t, open(t)) })
	t.Run("unsupported", func(t *testing.T) { testUnsupported(t, open(t)) })
}

// must unwraps what a test cannot do without.
func must[V any](t *testing.T) func(v V, err error) V {
	return func(v V, err error) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// strides returns the positions of data that are flipped: all of what is short,
// and else the ends and what lies evenly between.
func strides(data []byte, most int) []int {
	step := max(1, len(data)/most)
	var at []int
	for i := 0; i < len(data); i += step {
		at = append(at, i)
	}
	return append(at, len(data)-1)
}

// flip returns data with one bit changed.
func flip(data []byte, i int) []byte {
	flipped := bytes.Clone(data)
	flipped[i] ^= 1 << (i % 8)
	return flipped
}

// refusals collects the texts of refused decryptions.
type refusals struct {
	t     *testing.T
	texts []string
}

// add expects a security fault.
func (r *refusals) add(what string, plaintext []byte, err error) {
	r.t.Helper()
	if fault.CategoryOf(err) != fault.Security || plaintext != nil {
		r.t.Errorf("decryption with %s = %x, %v; want nothing and a security fault", what, plaintext, err)
	}
	r.texts = append(r.texts, fault.Message(err))
}

// constant expects that the causes cannot be told apart (B-10).
func (r *refusals) constant() {
	r.t.Helper()
	for _, text := range r.texts {
		if text != r.texts[0] {
			r.t.Errorf("causes can be told apart: %q and %q", text, r.texts[0])
		}
	}
}

func testEncryption(t *testing.T, p pqc.Provider) {
	key := must[pqc.SymmetricKey](t)(p.GenerateSymmetricKey(pqc.AES256GCM))
	plaintext, associated := []byte("four score"), []byte("object/1/v1")
	data := must[pqc.EncryptedData](t)(p.Encrypt(plaintext, associated, key))
	if data.Algorithm != pqc.AES256GCM || data.Key != key.ID || key.ID == "" {
		t.Errorf("the ciphertext names %q and %q, want the key's %q and %q", data.Algorithm, data.Key, key.Algorithm, key.ID)
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
	empty := must[pqc.EncryptedData](t)(p.Encrypt(nil, associated, key))
	if got, err := p.Decrypt(empty, associated, key); err != nil || len(got) != 0 {
		t.Errorf("Decrypt of nothing = %q, %v", got, err)
	}

	other := must[pqc.SymmetricKey](t)(p.GenerateSymmetricKey(pqc.AES256GCM))
	refused := refusals{t: t}
	refuse := func(what string, data pqc.EncryptedData, associated []byte, key pqc.SymmetricKey) {
		t.Helper()
		got, err := p.Decrypt(data, associated, key)
		refused.add(what, got, err)
	}
	for i := range data.Bytes {
		changed := data
		changed.Bytes = flip(data.Bytes, i)
		refuse("a flipped bit", changed, associated, key)
	}
	refuse("another key", data, associated, other)
	renamed := data
	renamed.Key = other.ID
	refuse("another key that it names", renamed, associated, other)
	refuse("the right key under another name", renamed, associated, key)
	renamed.Key = ""
	refuse("no name of a key", renamed, associated, key)
	refuse("another object", data, []byte("object/2/v1"), key)
	refuse("no object", data, nil, key)
	refused.constant()
	for _, n := range []int{0, 1, 27} {
		short := data
		short.Bytes = data.Bytes[:n]
		if got, err := p.Decrypt(short, associated, key); !errors.Is(err, fault.CryptoInvalidCiphertext) || got != nil {
			t.Errorf("Decrypt of %d bytes = %x, %v; want CryptoInvalidCiphertext", n, got, err)
		}
	}
}

func testKEM(t *testing.T, p pqc.Provider, algorithm pqc.Algorithm) {
	key := must[pqc.DecapsulationKey](t)(p.GenerateKEMKey(algorithm))
	public := must[pqc.EncapsulationKey](t)(p.Encapsulation(key))
	if public.ID != key.ID || public.ID == "" || public.Algorithm != algorithm {
		t.Errorf("the halves of a pair are %q and %q of %q", key.ID, public.ID, public.Algorithm)
	}
	secret, ciphertext, err := p.Encapsulate(public)
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Decapsulate(ciphertext, key)
	if err != nil || !bytes.Equal(got, secret) || len(got) != 32 {
		t.Errorf("Decapsulate = %x, %v; want %x", got, err, secret)
	}
	if again, _, err := p.Encapsulate(public); err != nil || bytes.Equal(again, secret) {
		t.Errorf("two encapsulations have one secret (err %v)", err)
	}
	for _, i := range strides(ciphertext, 16) {
		if got, err := p.Decapsulate(flip(ciphertext, i), key); err != nil || bytes.Equal(got, secret) {
			t.Errorf("Decapsulate with bit %d flipped = %x, %v; want another secret", i, got, err)
		}
	}
	for _, bad := range [][]byte{nil, ciphertext[1:], append(bytes.Clone(ciphertext), 0)} {
		if _, err := p.Decapsulate(bad, key); !errors.Is(err, fault.CryptoInvalidCiphertext) {
			t.Errorf("Decapsulate of %d bytes = %v, want CryptoInvalidCiphertext", len(bad), err)
		}
	}
	// FIPS 203, section 7.2: coefficients of 4095 are not below q.
	bad := bytes.Clone(public.Bytes)
	for i := range 3 {
		bad[i] = 0xff
	}
	if _, _, err := p.Encapsulate(pqc.NewEncapsulationKey(algorithm, bad)); !errors.Is(err, fault.CryptoKeyEncapsulationFailed) {
		t.Errorf("Encapsulate for what is no key = %v, want CryptoKeyEncapsulationFailed", err)
	}
	if _, err := p.Seal([]byte("i"), []byte("a"), nil, pqc.NewEncapsulationKey(algorithm, bad)); !errors.Is(err, fault.CryptoKeyEncapsulationFailed) {
		t.Errorf("Seal for what is no key = %v, want CryptoKeyEncapsulationFailed", err)
	}
}

func testHPKE(t *testing.T, p pqc.Provider, algorithm pqc.Algorithm) {
	key := must[pqc.DecapsulationKey](t)(p.GenerateKEMKey(algorithm))
	public := must[pqc.EncapsulationKey](t)(p.Encapsulation(key))
	info, associated, plaintext := []byte("creto/msg/v1 alice bob"), []byte("message/1/v1"), []byte("meet me")
	sealed := must[pqc.Sealed](t)(p.Seal(info, associated, plaintext, public))
	if sealed.Algorithm != algorithm || sealed.Key != key.ID {
		t.Errorf("what is sealed names %q and %q, want %q and %q", sealed.Algorithm, sealed.Key, algorithm, key.ID)
	}
	if got, err := p.Open(info, associated, sealed, key); err != nil || !bytes.Equal(got, plaintext) {
		t.Fatalf("Open = %q, %v; want %q", got, err, plaintext)
	}
	if _, err := p.Seal(nil, associated, plaintext, public); !errors.Is(err, fault.CryptoEncryptionFailed) {
		t.Errorf("Seal without info = %v, want CryptoEncryptionFailed", err)
	}
	if _, err := p.Seal(info, nil, plaintext, public); !errors.Is(err, fault.CryptoEncryptionFailed) {
		t.Errorf("Seal without associated data = %v, want CryptoEncryptionFailed", err)
	}

	other := must[pqc.DecapsulationKey](t)(p.GenerateKEMKey(algorithm))
	refused := refusals{t: t}
	refuse := func(what string, info, associated []byte, sealed pqc.Sealed, key pqc.DecapsulationKey) {
		t.Helper()
		got, err := p.Open(info, associated, sealed, key)
		refused.add(what, got, err)
	}
	for i := range sealed.Ciphertext {
		changed := sealed
		changed.Ciphertext = flip(sealed.Ciphertext, i)
		refuse("a flipped bit", info, associated, changed, key)
	}
	for _, i := range strides(sealed.Encapsulated, 16) {
		changed := sealed
		changed.Encapsulated = flip(sealed.Encapsulated, i)
		refuse("a flipped bit of the encapsulation", info, associated, changed, key)
	}
	refuse("other info", []byte("creto/msg/v1 alice eve"), associated, sealed, key)
	refuse("another object", info, []byte("message/2/v1"), sealed, key)
	refuse("another key", info, associated, sealed, other)
	renamed := sealed
	renamed.Key = other.ID
	refuse("another key that it names", info, associated, renamed, other)
	refuse("the right key under another name", info, associated, renamed, key)
	refused.constant()

	short := sealed
	short.Ciphertext = sealed.Ciphertext[:15]
	if got, err := p.Open(info, associated, short, key); !errors.Is(err, fault.CryptoInvalidCiphertext) || got != nil {
		t.Errorf("Open of a ciphertext without its tag = %x, %v; want CryptoInvalidCiphertext", got, err)
	}
	short = sealed
	short.Encapsulated = sealed.Encapsulated[1:]
	if got, err := p.Open(info, associated, short, key); !errors.Is(err, fault.CryptoInvalidCiphertext) || got != nil {
		t.Errorf("Open of a short encapsulation = %x, %v; want CryptoInvalidCiphertext", got, err)
	}
}

func testSignature(t *testing.T, p pqc.Provider, algorithm pqc.Algorithm) {
	key := must[pqc.SigningKey](t)(p.GenerateSigningKey(algorithm))
	public := must[pqc.PublicKey](t)(p.Public(key))
	message := []byte("pay bob 5")
	sig := must[pqc.Signature](t)(p.Sign(pqc.PurposeRecord, message, key))
	if sig.Algorithm != algorithm || sig.Key != public.ID || key.ID != public.ID || key.ID == "" {
		t.Errorf("the signature names %q and %q, want %q and %q", sig.Algorithm, sig.Key, algorithm, public.ID)
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
	refuse("no message", p.Verify(pqc.PurposeRecord, nil, sig, public))
	// One flipped bit in either half is enough (R-CRY-5).
	at := strides(sig.Bytes, 64)
	if algorithm == pqc.MLDSA65Ed25519 {
		at = append(at, 3308, 3309, 3340, 3341)
	}
	for _, i := range at {
		changed := sig
		changed.Bytes = flip(sig.Bytes, i)
		refuse("a flipped bit", p.Verify(pqc.PurposeRecord, message, changed, public))
	}
	for _, i := range strides(public.Bytes, 16) {
		changed := pqc.NewPublicKey(algorithm, flip(public.Bytes, i))
		refuse("a flipped bit of the key", p.Verify(pqc.PurposeRecord, message, sig, changed))
		changed.ID = public.ID
		if err := p.Verify(pqc.PurposeRecord, message, sig, changed); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("Verify by another key under its name = %v, want InvalidArgument", err)
		}
	}
	for _, n := range []int{0, 32, 64, len(sig.Bytes) - 1} {
		changed := sig
		if changed.Bytes = sig.Bytes[:n]; n < len(sig.Bytes) {
			refuse("part of a signature", p.Verify(pqc.PurposeRecord, message, changed, public))
		}
	}
	changed := sig
	changed.Bytes = append(bytes.Clone(sig.Bytes), 0)
	refuse("a longer signature", p.Verify(pqc.PurposeRecord, message, changed, public))

	other := must[pqc.PublicKey](t)(p.Public(must[pqc.SigningKey](t)(p.GenerateSigningKey(algorithm))))
	refuse("another key", p.Verify(pqc.PurposeRecord, message, sig, other))
	changed = sig
	changed.Key = other.ID
	refuse("another key that it names", p.Verify(pqc.PurposeRecord, message, changed, other))
	refuse("the right key under another name", p.Verify(pqc.PurposeRecord, message, changed, public))
	changed.Key = ""
	refuse("no name of a key", p.Verify(pqc.PurposeRecord, message, changed, public))

	long := pqc.Purpose(bytes.Repeat([]byte("x"), 256))
	for _, purpose := range []pqc.Purpose{"", long} {
		if _, err := p.Sign(purpose, message, key); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("Sign for a purpose of %d bytes = %v, want InvalidArgument", len(purpose), err)
		}
		if err := p.Verify(purpose, message, sig, public); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("Verify for a purpose of %d bytes = %v, want InvalidArgument", len(purpose), err)
		}
	}
}

// testSignatureConfusion tries each algorithm's signature with each other
// algorithm's key, and the halves of a composite as if they were whole (B-7).
func testSignatureConfusion(t *testing.T, p pqc.Provider) {
	message := []byte("pay bob 5")
	seed := bytes.Repeat([]byte{7}, pqc.CompositeSeedSize)
	composite := must[pqc.SigningKey](t)(p.SigningKeyFromSeed(pqc.MLDSA65Ed25519, seed))
	// The same secrets as keys of their own.
	keys := []pqc.SigningKey{
		composite,
		must[pqc.SigningKey](t)(p.SigningKeyFromSeed(pqc.MLDSA65, seed[:32])),
		must[pqc.SigningKey](t)(p.SigningKeyFromSeed(pqc.Ed25519, seed[32:])),
	}
	for _, signer := range keys {
		sig := must[pqc.Signature](t)(p.Sign(pqc.PurposeRecord, message, signer))
		own := must[pqc.PublicKey](t)(p.Public(signer))
		for _, k := range append(keys, pqc.SigningKey{}) {
			claim := sig
			if claim.Algorithm = k.Algorithm; k.Algorithm == signer.Algorithm {
				continue
			}
			if err := p.Verify(pqc.PurposeRecord, message, claim, own); !errors.Is(err, fault.CryptoSignatureVerificationFailed) {
				t.Errorf("Verify of a signature of %s said to be %q = %v, want CryptoSignatureVerificationFailed", signer.Algorithm, k.Algorithm, err)
			}
		}
		for _, k := range keys {
			if k.Algorithm == signer.Algorithm {
				continue
			}
			public := must[pqc.PublicKey](t)(p.Public(k))
			for _, claim := range []pqc.Signature{
				sig,
				{Algorithm: k.Algorithm, Key: sig.Key, Bytes: sig.Bytes},
				{Algorithm: sig.Algorithm, Key: k.ID, Bytes: sig.Bytes},
				{Algorithm: k.Algorithm, Key: k.ID, Bytes: sig.Bytes},
				{Algorithm: k.Algorithm, Key: k.ID, Bytes: sig.Bytes[:min(len(sig.Bytes), 3309)]},
				{Algorithm: k.Algorithm, Key: k.ID, Bytes: sig.Bytes[len(sig.Bytes)-64:]},
			} {
				if err := p.Verify(pqc.PurposeRecord, message, claim, public); !errors.Is(err, fault.CryptoSignatureVerificationFailed) {
					t.Errorf("Verify of a signature of %s (%d bytes, said to be %s) by a key of %s = %v, want CryptoSignatureVerificationFailed",
						signer.Algorithm, len(claim.Bytes), claim.Algorithm, k.Algorithm, err)
				}
			}
			// Nor by the same bytes under the signature's algorithm.
			renamed := pqc.NewPublicKey(signer.Algorithm, public.Bytes)
			if err := p.Verify(pqc.PurposeRecord, message, sig, renamed); err == nil {
				t.Errorf("Verify by a key of %s said to be of %s succeeds", k.Algorithm, signer.Algorithm)
			}
		}
	}
}

// testCiphertextConfusion is testSignatureConfusion for what is secret.
func testCiphertextConfusion(t *testing.T, p pqc.Provider) {
	info, associated := []byte("info"), []byte("object/1/v1")
	for _, from := range kems {
		for _, to := range kems {
			if from == to {
				continue
			}
			key := must[pqc.DecapsulationKey](t)(p.GenerateKEMKey(from))
			other := must[pqc.DecapsulationKey](t)(p.GenerateKEMKey(to))
			sealed := must[pqc.Sealed](t)(p.Seal(info, associated, []byte("x"), must[pqc.EncapsulationKey](t)(p.Encapsulation(key))))
			for _, claim := range []pqc.Sealed{
				sealed,
				{Algorithm: to, Key: sealed.Key, Encapsulated: sealed.Encapsulated, Ciphertext: sealed.Ciphertext},
				{Algorithm: from, Key: other.ID, Encapsulated: sealed.Encapsulated, Ciphertext: sealed.Ciphertext},
				{Algorithm: to, Key: other.ID, Encapsulated: sealed.Encapsulated, Ciphertext: sealed.Ciphertext},
			} {
				if got, err := p.Open(info, associated, claim, other); fault.CategoryOf(err) != fault.Security || got != nil {
					t.Errorf("Open of %s said to be %s by a key of %s = %x, %v; want a security fault", from, claim.Algorithm, to, got, err)
				}
			}
			claim := sealed
			claim.Algorithm = to
			if got, err := p.Open(info, associated, claim, key); fault.CategoryOf(err) != fault.Security || got != nil {
				t.Errorf("Open of %s said to be %s by its own key = %x, %v; want a security fault", from, to, got, err)
			}
		}
	}
	key := must[pqc.SymmetricKey](t)(p.GenerateSymmetricKey(pqc.AES256GCM))
	data := must[pqc.EncryptedData](t)(p.Encrypt([]byte("x"), associated, key))
	for _, algorithm := range []pqc.Algorithm{"", "AES-256-GCM", pqc.MLKEM768, pqc.SHA256} {
		claim := data
		claim.Algorithm = algorithm
		if got, err := p.Decrypt(claim, associated, key); !errors.Is(err, fault.CryptoDecryptionFailed) || got != nil {
			t.Errorf("Decrypt of what is said to be %q = %x, %v; want CryptoDecryptionFailed", algorithm, got, err)
		}
		renamed := key
		renamed.Algorithm = algorithm
		if got, err := p.Decrypt(data, associated, renamed); !errors.Is(err, fault.CryptoUnsupportedAlgorithm) || got != nil {
			t.Errorf("Decrypt by a key said to be of %q = %x, %v; want CryptoUnsupportedAlgorithm", algorithm, got, err)
		}
	}
}

// testKeys shows that a key is its seed, and what is no key.
func testKeys(t *testing.T, p pqc.Provider) {
	is := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s = %v, want %v", what, err, want)
		}
	}
	for _, algorithm := range signatures {
		key := must[pqc.SigningKey](t)(p.GenerateSigningKey(algorithm))
		again := must[pqc.SigningKey](t)(p.SigningKeyFromSeed(algorithm, key.Seed))
		public := must[pqc.PublicKey](t)(p.Public(key))
		if again.ID != key.ID || !bytes.Equal(again.Seed, key.Seed) {
			t.Errorf("%s: the seed of %q gives %q", algorithm, key.ID, again.ID)
		}
		if made := pqc.NewPublicKey(algorithm, public.Bytes); made.ID != public.ID {
			t.Errorf("%s: the bytes of %q give %q", algorithm, public.ID, made.ID)
		}
		if other := must[pqc.SigningKey](t)(p.GenerateSigningKey(algorithm)); other.ID == key.ID {
			t.Errorf("%s: two keys are %q", algorithm, key.ID)
		}
		_, err := p.SigningKeyFromSeed(algorithm, key.Seed[1:])
		is("SigningKeyFromSeed of a short seed", err, fault.CryptoInvalidKeyLength)
		short := key
		short.Seed = key.Seed[1:]
		_, err = p.Sign(pqc.PurposeRecord, nil, short)
		is("Sign by a short key", err, fault.CryptoInvalidKeyLength)
		nameless := key
		nameless.ID = ""
		_, err = p.Sign(pqc.PurposeRecord, nil, nameless)
		is("Sign by a key without id", err, fault.InvalidArgument)
		_, err = p.Public(nameless)
		is("Public of a key without id", err, fault.InvalidArgument)
		misnamed := key
		misnamed.ID = "00000000000000000000000000000000"
		_, err = p.Public(misnamed)
		is("Public of a key under another name", err, fault.InvalidArgument)
		_, err = p.Sign(pqc.PurposeRecord, nil, misnamed)
		is("Sign by a key under another name", err, fault.InvalidArgument)

		sig := must[pqc.Signature](t)(p.Sign(pqc.PurposeRecord, nil, key))
		is("Verify by a short key", p.Verify(pqc.PurposeRecord, nil, sig, pqc.NewPublicKey(algorithm, public.Bytes[1:])), fault.CryptoInvalidKeyLength)
		sig.Key = ""
		is("Verify by a key without id", p.Verify(pqc.PurposeRecord, nil, sig, pqc.PublicKey{Algorithm: algorithm, Bytes: public.Bytes}), fault.InvalidArgument)
	}
	for _, algorithm := range kems {
		key := must[pqc.DecapsulationKey](t)(p.GenerateKEMKey(algorithm))
		again := must[pqc.DecapsulationKey](t)(p.DecapsulationKeyFromSeed(algorithm, key.Seed))
		public := must[pqc.EncapsulationKey](t)(p.Encapsulation(key))
		if again.ID != key.ID || !bytes.Equal(again.Seed, key.Seed) {
			t.Errorf("%s: the seed of %q gives %q", algorithm, key.ID, again.ID)
		}
		if made := pqc.NewEncapsulationKey(algorithm, public.Bytes); made.ID != public.ID {
			t.Errorf("%s: the bytes of %q give %q", algorithm, public.ID, made.ID)
		}
		_, err := p.DecapsulationKeyFromSeed(algorithm, append(bytes.Clone(key.Seed), 0))
		is("DecapsulationKeyFromSeed of a long seed", err, fault.CryptoInvalidKeyLength)
		_, _, err = p.Encapsulate(pqc.NewEncapsulationKey(algorithm, public.Bytes[1:]))
		is("Encapsulate for a short key", err, fault.CryptoInvalidKeyLength)
		_, _, err = p.Encapsulate(pqc.EncapsulationKey{Algorithm: algorithm, Bytes: public.Bytes})
		is("Encapsulate for a key without id", err, fault.InvalidArgument)
		_, err = p.Seal([]byte("i"), []byte("a"), nil, pqc.EncapsulationKey{Algorithm: algorithm, Bytes: public.Bytes})
		is("Seal for a key without id", err, fault.InvalidArgument)
		_, err = p.Decapsulate(nil, pqc.DecapsulationKey{Algorithm: algorithm, Seed: key.Seed})
		is("Decapsulate by a key without id", err, fault.InvalidArgument)
		_, err = p.Seal([]byte("i"), []byte("a"), nil, pqc.EncapsulationKey{Algorithm: algorithm, ID: "x", Bytes: public.Bytes})
		is("Seal for a key under another name", err, fault.InvalidArgument)
		misnamed := key
		misnamed.ID = "00000000000000000000000000000000"
		_, err = p.Encapsulation(misnamed)
		is("Encapsulation of a key under another name", err, fault.InvalidArgument)
	}
	for _, n := range []int{0, 16, 31, 33} {
		_, err := p.Encrypt([]byte("x"), []byte("y"), pqc.NewSymmetricKey(pqc.AES256GCM, make([]byte, n)))
		is("Encrypt by a key of another size", err, fault.CryptoInvalidKeyLength)
	}
	_, err := p.Encrypt([]byte("x"), []byte("y"), pqc.SymmetricKey{Algorithm: pqc.AES256GCM, Bytes: make([]byte, 32)})
	is("Encrypt by a key without id", err, fault.InvalidArgument)
}

// testHash compares with the examples of FIPS 202 and FIPS 180-4.
func testHash(t *testing.T, p pqc.Provider) {
	for _, tt := range []struct {
		algorithm pqc.Algorithm
		data      string
		want      string
	}{
		{pqc.SHA3256, "", "a7ffc6f8bf1ed76651c14756a061d662f580ff4de43b49fa82d80a4b80f8434a"},
		{pqc.SHA3256, "abc", "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"},
		{pqc.SHA256, "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
	} {
		if got, err := p.Hash(tt.algorithm, []byte(tt.data)); err != nil || hex.EncodeToString(got) != tt.want {
			t.Errorf("Hash(%s, %q) = %x, %v; want %s", tt.algorithm, tt.data, got, err, tt.want)
		}
	}
}

func testUnsupported(t *testing.T, p pqc.Provider) {
	for _, unknown := range []pqc.Algorithm{"", "rot13", "ed448"} {
		_, err1 := p.Hash(unknown, nil)
		_, err2 := p.GenerateSymmetricKey(unknown)
		_, err3 := p.GenerateSigningKey(unknown)
		_, err4 := p.GenerateKEMKey(unknown)
		_, err5 := p.Encrypt([]byte("x"), []byte("y"), pqc.NewSymmetricKey(unknown, make([]byte, 32)))
		_, err6 := p.Sign(pqc.PurposeRecord, nil, pqc.SigningKey{Algorithm: unknown, ID: "x"})
		err7 := p.Verify(pqc.PurposeRecord, nil, pqc.Signature{Algorithm: unknown, Key: "x"}, pqc.PublicKey{Algorithm: unknown, ID: "x"})
		_, _, err8 := p.Encapsulate(pqc.NewEncapsulationKey(unknown, nil))
		_, err9 := p.Open([]byte("i"), []byte("a"), pqc.Sealed{Algorithm: unknown, Key: "x"}, pqc.DecapsulationKey{Algorithm: unknown, ID: "x"})
		_, err10 := p.SigningKeyFromSeed(unknown, make([]byte, 32))
		_, err11 := p.DecapsulationKeyFromSeed(unknown, make([]byte, 32))
		for i, err := range []error{err1, err2, err3, err4, err5, err6, err7, err8, err9, err10, err11} {
			if !errors.Is(err, fault.CryptoUnsupportedAlgorithm) {
				t.Errorf("call %d with algorithm %q = %v, want CryptoUnsupportedAlgorithm", i+1, unknown, err)
			}
		}
	}
	// What one kind of algorithm is, another is not.
	_, err1 := p.Hash(pqc.AES256GCM, nil)
	_, err2 := p.GenerateSymmetricKey(pqc.MLKEM768)
	_, err3 := p.GenerateSigningKey(pqc.SHA256)
	_, err4 := p.GenerateKEMKey(pqc.Ed25519)
	for i, err := range []error{err1, err2, err3, err4} {
		if !errors.Is(err, fault.CryptoUnsupportedAlgorithm) {
			t.Errorf("call %d with another kind of algorithm = %v, want CryptoUnsupportedAlgorithm", i+1, err)
		}
	}
}
