package localpqc_test

import (
	"encoding/json"
	"errors"
	"os"
	"testing"

	"creto.dev/fault"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
	"creto.dev/pqc/pqctest"
)

func TestProvider(t *testing.T) {
	pqctest.Run(t, func(*testing.T) pqc.Provider { return localpqc.New() })
}

// The draft's own vector, signed by another implementation.
func TestCompositeVector(t *testing.T) {
	data, err := os.ReadFile("testdata/composite.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		M, Ctx, PK, SK []byte
		S              []byte `json:"sWithContext"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	p := localpqc.New()
	public := pqc.NewPublicKey(pqc.MLDSA65Ed25519, v.PK)
	sig := pqc.Signature{Algorithm: public.Algorithm, Key: public.ID, Bytes: v.S}
	if err := p.Verify(pqc.Purpose(v.Ctx), v.M, sig, public); err != nil {
		t.Errorf("Verify of the draft's signature: %v", err)
	}
	key, err := p.SigningKeyFromSeed(pqc.MLDSA65Ed25519, v.SK)
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Public(key)
	if err != nil || string(got.Bytes) != string(v.PK) {
		t.Errorf("Public of the draft's secret key differs from its public key (err %v)", err)
	}
}

// Every byte of a composite signature counts; pqctest tries some.
func TestEveryByteCounts(t *testing.T) {
	p := localpqc.New()
	key, err := p.GenerateSigningKey(pqc.MLDSA65Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	public, err := p.Public(key)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := p.Sign(pqc.PurposeRecord, []byte("message"), key)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sig.Bytes {
		sig.Bytes[i] ^= 1 << (i % 8)
		if err := p.Verify(pqc.PurposeRecord, []byte("message"), sig, public); !errors.Is(err, fault.CryptoSignatureVerificationFailed) {
			t.Errorf("Verify with byte %d changed = %v, want CryptoSignatureVerificationFailed", i, err)
		}
		sig.Bytes[i] ^= 1 << (i % 8)
	}
	if err := p.Verify(pqc.PurposeRecord, []byte("message"), sig, public); err != nil {
		t.Errorf("Verify of the signature itself: %v", err)
	}
}
