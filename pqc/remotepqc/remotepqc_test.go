package remotepqc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"creto.dev/call"
	"creto.dev/fault"
	pqcv1 "creto.dev/internal/gen/creto/pqc/v1"
	"creto.dev/internal/wire"
	"creto.dev/internal/wire/wiretest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
	"creto.dev/pqc/pqctest"
	"creto.dev/pqc/remotepqc"
)

func register(s grpc.ServiceRegistrar) { remotepqc.Register(s, localpqc.New()) }

func TestProvider(t *testing.T) {
	for name, connect := range map[string]func(testing.TB, func(grpc.ServiceRegistrar)) *grpc.ClientConn{
		"in memory": wiretest.InMemory, "over TLS": wiretest.OverTLS,
	} {
		t.Run(name, func(t *testing.T) {
			conn := connect(t, register)
			pqctest.Run(t, func(*testing.T) pqc.Provider { return remotepqc.New(conn, call.Policy{}) })
		})
	}
}

// liar answers with nothing, or with what another key made.
type liar struct {
	pqcv1.UnimplementedProviderServiceServer
}

func (liar) Encrypt(context.Context, *pqcv1.EncryptRequest) (*pqcv1.EncryptResponse, error) {
	return &pqcv1.EncryptResponse{Data: &pqcv1.EncryptedData{Algorithm: string(pqc.AES256GCM), Bytes: []byte("x"), Key: "another"}}, nil
}

func (liar) Seal(context.Context, *pqcv1.SealRequest) (*pqcv1.SealResponse, error) {
	return &pqcv1.SealResponse{}, nil
}

func (liar) Encapsulate(context.Context, *pqcv1.EncapsulateRequest) (*pqcv1.EncapsulateResponse, error) {
	return &pqcv1.EncapsulateResponse{Secret: make([]byte, 31), Ciphertext: []byte("x")}, nil
}

func (liar) Decapsulate(context.Context, *pqcv1.DecapsulateRequest) (*pqcv1.DecapsulateResponse, error) {
	return &pqcv1.DecapsulateResponse{}, nil
}

func (liar) Sign(context.Context, *pqcv1.SignRequest) (*pqcv1.SignResponse, error) {
	return &pqcv1.SignResponse{}, nil
}

func (liar) Hash(context.Context, *pqcv1.HashRequest) (*pqcv1.HashResponse, error) {
	return &pqcv1.HashResponse{}, nil
}

func (liar) GenerateSymmetricKey(context.Context, *pqcv1.GenerateSymmetricKeyRequest) (*pqcv1.GenerateSymmetricKeyResponse, error) {
	return &pqcv1.GenerateSymmetricKeyResponse{Key: &pqcv1.SymmetricKey{Algorithm: string(pqc.AES256GCM), Id: "wrong", Bytes: make([]byte, 32)}}, nil
}

func (liar) GenerateSigningKey(context.Context, *pqcv1.GenerateSigningKeyRequest) (*pqcv1.GenerateSigningKeyResponse, error) {
	return &pqcv1.GenerateSigningKeyResponse{Key: &pqcv1.SigningKey{Algorithm: string(pqc.Ed25519), Id: "x", Seed: make([]byte, 32)}}, nil
}

func (liar) GenerateKEMKey(context.Context, *pqcv1.GenerateKEMKeyRequest) (*pqcv1.GenerateKEMKeyResponse, error) {
	return &pqcv1.GenerateKEMKeyResponse{}, nil
}

func (liar) SigningKeyFromSeed(context.Context, *pqcv1.SigningKeyFromSeedRequest) (*pqcv1.SigningKeyFromSeedResponse, error) {
	return &pqcv1.SigningKeyFromSeedResponse{}, nil
}

func (liar) DecapsulationKeyFromSeed(context.Context, *pqcv1.DecapsulationKeyFromSeedRequest) (*pqcv1.DecapsulationKeyFromSeedResponse, error) {
	return &pqcv1.DecapsulationKeyFromSeedResponse{}, nil
}

func (liar) Public(context.Context, *pqcv1.PublicRequest) (*pqcv1.PublicResponse, error) {
	return &pqcv1.PublicResponse{Key: &pqcv1.PublicKey{Algorithm: string(pqc.MLDSA65), Id: "x", Bytes: []byte("y")}}, nil
}

func (liar) Encapsulation(context.Context, *pqcv1.EncapsulationRequest) (*pqcv1.EncapsulationResponse, error) {
	return &pqcv1.EncapsulationResponse{}, nil
}

// An answer that is not what was asked for is no answer.
func TestLiar(t *testing.T) {
	p := remotepqc.New(wiretest.InMemory(t, func(s grpc.ServiceRegistrar) { pqcv1.RegisterProviderServiceServer(s, liar{}) }), call.Policy{})
	symmetric := pqc.NewSymmetricKey(pqc.AES256GCM, make([]byte, 32))
	signing := pqc.SigningKey{Algorithm: pqc.MLDSA65, ID: "x", Seed: make([]byte, 32)}
	for name, call := range map[string]func() (any, error){
		"Encrypt":                  func() (any, error) { return p.Encrypt([]byte("a"), []byte("b"), symmetric) },
		"Seal":                     func() (any, error) { return p.Seal(nil, nil, nil, pqc.EncapsulationKey{}) },
		"Encapsulate":              func() (any, error) { s, _, err := p.Encapsulate(pqc.EncapsulationKey{}); return s, err },
		"Decapsulate":              func() (any, error) { return p.Decapsulate(nil, pqc.DecapsulationKey{}) },
		"Sign":                     func() (any, error) { return p.Sign("x", nil, signing) },
		"Hash":                     func() (any, error) { return p.Hash(pqc.SHA256, nil) },
		"GenerateSymmetricKey":     func() (any, error) { return p.GenerateSymmetricKey(pqc.AES256GCM) },
		"GenerateSigningKey":       func() (any, error) { return p.GenerateSigningKey(pqc.MLDSA65) },
		"GenerateKEMKey":           func() (any, error) { return p.GenerateKEMKey(pqc.MLKEM768) },
		"SigningKeyFromSeed":       func() (any, error) { return p.SigningKeyFromSeed(pqc.Ed25519, nil) },
		"DecapsulationKeyFromSeed": func() (any, error) { return p.DecapsulationKeyFromSeed(pqc.MLKEM768, nil) },
		"Public":                   func() (any, error) { return p.Public(signing) },
		"Encapsulation":            func() (any, error) { return p.Encapsulation(pqc.DecapsulationKey{Algorithm: pqc.MLKEM768, ID: "x"}) },
	} {
		if got, err := call(); fault.CodeOf(err) != fault.CryptoInternal {
			t.Errorf("%s = %v, %v; want CryptoInternal", name, got, err)
		}
	}
	// What it does not implement fails too: nothing verifies by default.
	if err := p.Verify(pqc.PurposeRecord, nil, pqc.Signature{}, pqc.PublicKey{}); !errors.Is(err, fault.Unimplemented) {
		t.Errorf("Verify = %v", err)
	}
}

// A provider that cannot be reached, or hangs, is Degraded or Transient, in time,
// and opens the circuit.
func TestDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // accepts, and never answers
	policy := call.Policy{Timeout: 50 * time.Millisecond, Attempts: 1, Breaker: &call.Breaker{Threshold: 2}}
	p := remotepqc.New(wiretest.Dial(t, wire.Config{Address: l.Addr().String()}), policy)
	for _, want := range []fault.Code{fault.DeadlineExceeded, fault.DeadlineExceeded, fault.CircuitOpen} {
		if err := p.Verify(pqc.PurposeRecord, nil, pqc.Signature{}, pqc.PublicKey{}); fault.CodeOf(err) != want {
			t.Errorf("Verify = %v, want %v", err, want)
		}
	}
}

// Larger than the wire takes is a fault of the caller's, and keys are not printed.
func TestLimits(t *testing.T) {
	p := remotepqc.New(wiretest.InMemory(t, register), call.Policy{})
	if _, err := p.Hash(pqc.SHA256, make([]byte, wire.DefaultMaxMessageBytes)); !errors.Is(err, fault.ResourceExhausted) {
		t.Errorf("Hash of 4 MiB = %v", err)
	}
	key, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%v %+v %#v", key, key, key); strings.Contains(text, fmt.Sprint(key.Bytes[:4])) {
		t.Errorf("the key is printed: %s", text)
	}
}

func BenchmarkSign(b *testing.B) {
	p := remotepqc.New(wiretest.InMemory(b, register), call.Policy{})
	key, err := p.GenerateSigningKey(pqc.MLDSA65Ed25519)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Sign(pqc.PurposeRecord, []byte("record"), key); err != nil {
			b.Fatal(err)
		}
	}
}
