package localpqc

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"creto.dev/fault"
	"creto.dev/pqc"
)

func TestReadyIsBounded(t *testing.T) {
	r := newReady[int]()
	for i := range 3 * maxReady {
		id := pqc.KeyID(fmt.Sprint(i))
		if _, err := r.get(pqc.Ed25519, id, []byte{byte(i)}, func([]byte) (int, error) { return i, nil }); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.keys) != maxReady {
		t.Errorf("%d keys are kept, want %d", len(r.keys), maxReady)
	}
	failed := errors.New("no key")
	if _, err := r.get(pqc.Ed25519, "bad", nil, func([]byte) (int, error) { return 0, failed }); !errors.Is(err, failed) {
		t.Errorf("get of what is no key = %v, want %v", err, failed)
	}
	if _, ok := r.keys[readyKey{pqc.Ed25519, "bad"}]; ok {
		t.Error("what is no key is kept")
	}
}

func TestReadyComparesBytes(t *testing.T) {
	r, expanded := newReady[string](), 0
	get := func(algorithm pqc.Algorithm, bytes string) string {
		raw := []byte(bytes)
		got, err := r.get(algorithm, "id", raw, func(own []byte) (string, error) {
			expanded++
			return string(own), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		raw[0] = '!' // the caller's
		return got
	}
	for _, tt := range []struct {
		algorithm pqc.Algorithm
		bytes     string
		expanded  int
	}{
		{pqc.Ed25519, "a", 1}, {pqc.Ed25519, "a", 1},
		{pqc.Ed25519, "b", 2}, {pqc.Ed25519, "b", 2},
		{pqc.MLDSA65, "b", 3}, {pqc.Ed25519, "bb", 4},
	} {
		if got := get(tt.algorithm, tt.bytes); got != tt.bytes || expanded != tt.expanded {
			t.Errorf("get(%s, %q) = %q after %d expansions, want itself after %d", tt.algorithm, tt.bytes, got, expanded, tt.expanded)
		}
	}
}

// A key that is ready must not vouch for another key under its name.
func TestMisnamedKeys(t *testing.T) {
	p := New()
	alice, err := p.GenerateSigningKey(pqc.MLDSA65Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	public, err := p.Public(alice)
	if err != nil {
		t.Fatal(err)
	}
	mallory, err := p.GenerateSigningKey(pqc.MLDSA65Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := p.Sign(pqc.PurposeRecord, nil, alice)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Verify(pqc.PurposeRecord, nil, sig, public); err != nil {
		t.Fatal(err)
	}
	posing := mallory
	posing.ID = alice.ID
	if sig, err := p.Sign(pqc.PurposeRecord, nil, posing); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("Sign as another = %v, %v; want InvalidArgument", sig.Key, err)
	}
	theirs, err := p.Public(mallory)
	if err != nil {
		t.Fatal(err)
	}
	theirs.ID = public.ID
	if err := p.Verify(pqc.PurposeRecord, nil, sig, theirs); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("Verify by another key under the name = %v, want InvalidArgument", err)
	}
	if err := p.Verify(pqc.PurposeRecord, nil, sig, public); err != nil {
		t.Errorf("Verify afterwards: %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	p := New()
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 10 {
				key, err := p.GenerateSigningKey(pqc.Ed25519)
				if err != nil {
					t.Error(err)
					return
				}
				public, err := p.Public(key)
				if err != nil {
					t.Error(err)
					return
				}
				sig, err := p.Sign(pqc.PurposeRecord, nil, key)
				if err != nil {
					t.Error(err)
					return
				}
				if err := p.Verify(pqc.PurposeRecord, nil, sig, public); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}
