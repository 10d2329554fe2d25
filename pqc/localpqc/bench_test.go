package localpqc

import (
	"crypto/ed25519"
	"testing"

	"github.com/cloudflare/circl/sign/mldsa/mldsa65"

	"creto.dev/pqc"
)

// The budget: a composite signature, made or verified through Provider, costs at
// most 1.1 times its two halves with keys that are ready.
func BenchmarkComposite(b *testing.B) {
	p, message := New(), []byte("message")
	key, err := p.SigningKeyFromSeed(pqc.MLDSA65Ed25519, knownSeed(pqc.CompositeSeedSize))
	if err != nil {
		b.Fatal(err)
	}
	public, err := p.Public(key)
	if err != nil {
		b.Fatal(err)
	}
	sig, err := p.Sign(pqc.PurposeRecord, message, key)
	if err != nil {
		b.Fatal(err)
	}
	pqPublic, pqPrivate := mldsa65.NewKeyFromSeed((*[mldsa65.SeedSize]byte)(key.Seed))
	classical := ed25519.NewKeyFromSeed(key.Seed[mldsa65.SeedSize:])
	classicalPublic := classical.Public().(ed25519.PublicKey)
	// ML-DSA tries again a number of times that depends on what is signed.
	m := compositeMessage(pqc.PurposeRecord, message)

	b.Run("sign/provider", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.Sign(pqc.PurposeRecord, message, key); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("sign/halves", func(b *testing.B) {
		pq := make([]byte, mldsa65.SignatureSize)
		for b.Loop() {
			if err := mldsa65.SignTo(pqPrivate, m, []byte(compositeLabel), false, pq); err != nil {
				b.Fatal(err)
			}
			ed25519.Sign(classical, m)
		}
	})
	b.Run("verify/provider", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := p.Verify(pqc.PurposeRecord, message, sig, public); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verify/halves", func(b *testing.B) {
		for b.Loop() {
			if !mldsa65.Verify(pqPublic, m, []byte(compositeLabel), sig.Bytes[:mldsa65.SignatureSize]) ||
				!ed25519.Verify(classicalPublic, m, sig.Bytes[mldsa65.SignatureSize:]) {
				b.Fatal("the signature does not hold")
			}
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for algorithm := range kems {
		p := New()
		key, err := p.GenerateKEMKey(algorithm)
		if err != nil {
			b.Fatal(err)
		}
		public, err := p.Encapsulation(key)
		if err != nil {
			b.Fatal(err)
		}
		plaintext := make([]byte, 1024)
		sealed, err := p.Seal([]byte("i"), []byte("a"), plaintext, public)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(string(algorithm)+"/seal", func(b *testing.B) {
			for b.Loop() {
				if _, err := p.Seal([]byte("i"), []byte("a"), plaintext, public); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(string(algorithm)+"/open", func(b *testing.B) {
			for b.Loop() {
				if _, err := p.Open([]byte("i"), []byte("a"), sealed, key); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
