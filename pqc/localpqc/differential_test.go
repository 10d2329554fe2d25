package localpqc_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"math/big"
	mathrand "math/rand/v2"
	"testing"

	"filippo.io/mldsa"
	"github.com/cloudflare/circl/hpke"
	"github.com/cloudflare/circl/sign/ed25519"

	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// cases is how many random inputs each comparison has.
const cases = 100

// TestMLDSADifferential compares ML-DSA-65 with another implementation: public
// keys, deterministic signatures, and what each of them refuses.
func TestMLDSADifferential(t *testing.T) {
	p := localpqc.New()
	random := mathrand.New(mathrand.NewPCG(204, 65))
	for i := range cases {
		seed := make([]byte, 32)
		message := make([]byte, random.IntN(2000))
		purpose := pqc.Purpose(bytes.Repeat([]byte{byte(i)}, 1+random.IntN(255)))
		for _, b := range [][]byte{seed, message} {
			for j := range b {
				b[j] = byte(random.Uint32())
			}
		}
		compareMLDSA(t, p, seed, purpose, message, random.IntN(3309*8))
	}
}

func FuzzMLDSADifferential(f *testing.F) {
	f.Add(make([]byte, 32), "p", []byte("message"), uint(0))
	f.Add(bytes.Repeat([]byte{0xff}, 32), "creto/record/v1", []byte{}, uint(3309*8-1))
	f.Fuzz(func(t *testing.T, seed []byte, purpose string, message []byte, bit uint) {
		if len(seed) != 32 || pqc.Purpose(purpose).Validate() != nil {
			return
		}
		compareMLDSA(t, localpqc.New(), seed, pqc.Purpose(purpose), message, int(bit%(3309*8)))
	})
}

func compareMLDSA(t *testing.T, p pqc.Provider, seed []byte, purpose pqc.Purpose, message []byte, bit int) {
	t.Helper()
	theirs, err := mldsa.NewPrivateKey(mldsa.MLDSA65(), seed)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := p.SigningKeyFromSeed(pqc.MLDSA65, seed)
	if err != nil {
		t.Fatal(err)
	}
	public, err := p.Public(ours)
	if err != nil || !bytes.Equal(public.Bytes, theirs.PublicKey().Bytes()) {
		t.Fatalf("seed %x has two public keys (err %v)", seed, err)
	}
	options := &mldsa.Options{Context: string(purpose)}
	want, err := theirs.SignDeterministic(message, options)
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Sign(purpose, message, ours)
	if err != nil || !bytes.Equal(got.Bytes, want) {
		t.Fatalf("seed %x has two signatures (err %v)", seed, err)
	}
	if err := p.Verify(purpose, message, got, public); err != nil {
		t.Errorf("seed %x: %v", seed, err)
	}
	got.Bytes[bit/8] ^= 1 << (bit % 8)
	errOurs := p.Verify(purpose, message, got, public)
	errTheirs := mldsa.Verify(theirs.PublicKey(), message, got.Bytes, options)
	if errOurs == nil || errTheirs == nil {
		t.Errorf("seed %x, flipped bit %d: Verify = %v and %v, want two errors", seed, bit, errOurs, errTheirs)
	}
}

// FuzzMLDSAVerify looks for a signature that one implementation accepts and the
// other refuses.
func FuzzMLDSAVerify(f *testing.F) {
	theirs, err := mldsa.NewPrivateKey(mldsa.MLDSA65(), make([]byte, 32))
	if err != nil {
		f.Fatal(err)
	}
	good, err := theirs.SignDeterministic([]byte("m"), &mldsa.Options{Context: "p"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	p, public := localpqc.New(), pqc.NewPublicKey(pqc.MLDSA65, theirs.PublicKey().Bytes())
	f.Fuzz(func(t *testing.T, sig []byte) {
		errOurs := p.Verify("p", []byte("m"), pqc.Signature{Algorithm: pqc.MLDSA65, Key: public.ID, Bytes: sig}, public)
		errTheirs := mldsa.Verify(theirs.PublicKey(), []byte("m"), sig, &mldsa.Options{Context: "p"})
		if (errOurs == nil) != (errTheirs == nil) {
			t.Errorf("Verify = %v and %v", errOurs, errTheirs)
		}
	})
}

// TestEd25519Differential compares Ed25519ph with another implementation.
func TestEd25519Differential(t *testing.T) {
	p := localpqc.New()
	for i := range cases {
		key, err := p.GenerateSigningKey(pqc.Ed25519)
		if err != nil {
			t.Fatal(err)
		}
		public, err := p.Public(key)
		if err != nil {
			t.Fatal(err)
		}
		message := binary.BigEndian.AppendUint64(nil, uint64(i))
		theirs := ed25519.NewKeyFromSeed(key.Seed)
		want := ed25519.SignPh(theirs, message, string(pqc.PurposeRecord))
		got, err := p.Sign(pqc.PurposeRecord, message, key)
		if err != nil || !bytes.Equal(got.Bytes, want) {
			t.Fatalf("Sign = %x, %v; want %x", got.Bytes, err, want)
		}
		// What a signer without a context signs is nothing here.
		got.Bytes = ed25519.Sign(theirs, message)
		if err := p.Verify(pqc.PurposeRecord, message, got, public); err == nil {
			t.Error("Verify of a plain Ed25519 signature succeeds")
		}
		// The malleable twin S + L of a signature is none (RFC 8032, 5.1.7).
		got.Bytes = malleate(want)
		if err := p.Verify(pqc.PurposeRecord, message, got, public); err == nil {
			t.Error("Verify of S + L succeeds")
		}
	}
}

// malleate adds the group's order to a signature's scalar.
func malleate(sig []byte) []byte {
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	reversed := bytes.Clone(sig[32:])
	reverse(reversed)
	sum := new(big.Int).Add(new(big.Int).SetBytes(reversed), order).FillBytes(make([]byte, 32))
	reverse(sum)
	return append(bytes.Clone(sig[:32]), sum...)
}

func reverse(b []byte) {
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
}

// TestHPKEDifferential seals with each implementation for the other.
func TestHPKEDifferential(t *testing.T) {
	p, suite := localpqc.New(), hpke.NewSuite(hpke.KEM_XWING, hpke.KDF_HKDF_SHA256, hpke.AEAD_AES256GCM)
	info, associated, plaintext := []byte("creto/msg/v1 alice bob"), []byte("message/1/v1"), []byte("meet me")
	for range cases {
		key, err := p.GenerateKEMKey(pqc.MLKEM768X25519)
		if err != nil {
			t.Fatal(err)
		}
		public, err := p.Encapsulation(key)
		if err != nil {
			t.Fatal(err)
		}
		theirPublic, err := hpke.KEM_XWING.Scheme().UnmarshalBinaryPublicKey(public.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		theirPrivate, err := hpke.KEM_XWING.Scheme().UnmarshalBinaryPrivateKey(key.Seed)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := p.Seal(info, associated, plaintext, public)
		if err != nil {
			t.Fatal(err)
		}
		receiver, err := suite.NewReceiver(theirPrivate, info)
		if err != nil {
			t.Fatal(err)
		}
		opener, err := receiver.Setup(sealed.Encapsulated)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := opener.Open(sealed.Ciphertext, associated); err != nil || !bytes.Equal(got, plaintext) {
			t.Fatalf("circl opens %q, %v; want %q", got, err, plaintext)
		}
		sender, err := suite.NewSender(theirPublic, info)
		if err != nil {
			t.Fatal(err)
		}
		encapsulated, sealer, err := sender.Setup(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		ciphertext, err := sealer.Seal(plaintext, associated)
		if err != nil {
			t.Fatal(err)
		}
		theirs := pqc.Sealed{Algorithm: public.Algorithm, Key: public.ID, Encapsulated: encapsulated, Ciphertext: ciphertext}
		if got, err := p.Open(info, associated, theirs, key); err != nil || !bytes.Equal(got, plaintext) {
			t.Fatalf("Open of what circl sealed = %q, %v; want %q", got, err, plaintext)
		}
	}
}
