// Package remotepqc is a pqc.Provider in another process, over gRPC: [New] is the
// client, [Register] the server. Secret keys cross with each call, so the
// connection must be one of package wire's: mutual TLS, or this machine's own.
//
// A message is as large as the wire lets it be (4 MiB, see package wire); a larger
// one is ResourceExhausted.
package remotepqc

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"creto.dev/call"
	"creto.dev/fault"
	pqcv1 "creto.dev/internal/gen/creto/pqc/v1"
	"creto.dev/pqc"
)

// DefaultTimeout bounds each attempt where the policy does not: the contract's
// methods have no context of their own.
const DefaultTimeout = 5 * time.Second

type client struct {
	rpc    pqcv1.ProviderServiceClient
	policy call.Policy
}

var _ pqc.Provider = (*client)(nil)

// New returns the provider at the other end of conn, which the caller closes. Its
// methods wait for the network, for as long as policy says, and besides the
// contract's errors fail with Unavailable and CircuitOpen (Degraded) and
// DeadlineExceeded (Transient). None changes anything, so each is repeated as
// policy says.
func New(conn grpc.ClientConnInterface, policy call.Policy) pqc.Provider {
	if policy.Timeout == 0 {
		policy.Timeout = DefaultTimeout
	}
	return &client{pqcv1.NewProviderServiceClient(conn), policy}
}

// do makes one call. On an error the answer is nil, whose fields read as empty.
func do[In, Out any](c *client, op fault.Op, method func(context.Context, *In, ...grpc.CallOption) (*Out, error), in *In) (*Out, error) {
	return call.Do(context.Background(), c.policy, call.Read(op), func(ctx context.Context) (*Out, error) { return method(ctx, in) })
}

// complete returns err, or a fault if the answer lacks what it must have.
func complete(op fault.Op, err error, have ...bool) error {
	if err != nil {
		return err
	}
	for _, ok := range have {
		if !ok {
			return fault.New(op, fault.CryptoInternal, "the provider's answer is not what was asked for")
		}
	}
	return nil
}

// Encrypt implements pqc.Provider.
func (c *client) Encrypt(plaintext, associated []byte, key pqc.SymmetricKey) (pqc.EncryptedData, error) {
	const op fault.Op = "remotepqc.Encrypt"
	out, err := do(c, op, c.rpc.Encrypt, &pqcv1.EncryptRequest{Plaintext: plaintext, Associated: associated, Key: symmetricOf(key)})
	data := encryptedFrom(out.GetData())
	if err := complete(op, err, len(data.Bytes) > 0, data.Algorithm == key.Algorithm, data.Key == key.ID); err != nil {
		return pqc.EncryptedData{}, err
	}
	return data, nil
}

// Decrypt implements pqc.Provider.
func (c *client) Decrypt(data pqc.EncryptedData, associated []byte, key pqc.SymmetricKey) ([]byte, error) {
	out, err := do(c, "remotepqc.Decrypt", c.rpc.Decrypt, &pqcv1.DecryptRequest{Data: encryptedOf(data), Associated: associated, Key: symmetricOf(key)})
	return out.GetPlaintext(), err
}

// Seal implements pqc.Provider.
func (c *client) Seal(info, associated, plaintext []byte, key pqc.EncapsulationKey) (pqc.Sealed, error) {
	const op fault.Op = "remotepqc.Seal"
	out, err := do(c, op, c.rpc.Seal, &pqcv1.SealRequest{Info: info, Associated: associated, Plaintext: plaintext, Key: encapsulationOf(key)})
	sealed := sealedFrom(out.GetSealed())
	if err := complete(op, err, len(sealed.Encapsulated) > 0, len(sealed.Ciphertext) > 0, sealed.Algorithm == key.Algorithm, sealed.Key == key.ID); err != nil {
		return pqc.Sealed{}, err
	}
	return sealed, nil
}

// Open implements pqc.Provider.
func (c *client) Open(info, associated []byte, sealed pqc.Sealed, key pqc.DecapsulationKey) ([]byte, error) {
	out, err := do(c, "remotepqc.Open", c.rpc.Open, &pqcv1.OpenRequest{Info: info, Associated: associated, Sealed: sealedOf(sealed), Key: decapsulationOf(key)})
	return out.GetPlaintext(), err
}

// Encapsulate implements pqc.Provider.
func (c *client) Encapsulate(key pqc.EncapsulationKey) (secret, ciphertext []byte, err error) {
	const op fault.Op = "remotepqc.Encapsulate"
	out, err := do(c, op, c.rpc.Encapsulate, &pqcv1.EncapsulateRequest{Key: encapsulationOf(key)})
	if err := complete(op, err, len(out.GetSecret()) == secretBytes, len(out.GetCiphertext()) > 0); err != nil {
		return nil, nil, err
	}
	return out.GetSecret(), out.GetCiphertext(), nil
}

// secretBytes is the size of a shared secret.
const secretBytes = 32

// Decapsulate implements pqc.Provider.
func (c *client) Decapsulate(ciphertext []byte, key pqc.DecapsulationKey) ([]byte, error) {
	const op fault.Op = "remotepqc.Decapsulate"
	out, err := do(c, op, c.rpc.Decapsulate, &pqcv1.DecapsulateRequest{Ciphertext: ciphertext, Key: decapsulationOf(key)})
	if err := complete(op, err, len(out.GetSecret()) == secretBytes); err != nil {
		return nil, err
	}
	return out.GetSecret(), nil
}

// Sign implements pqc.Provider.
func (c *client) Sign(purpose pqc.Purpose, message []byte, key pqc.SigningKey) (pqc.Signature, error) {
	const op fault.Op = "remotepqc.Sign"
	out, err := do(c, op, c.rpc.Sign, &pqcv1.SignRequest{Purpose: string(purpose), Message: message, Key: signingOf(key)})
	s := signatureFrom(out.GetSignature())
	if err := complete(op, err, len(s.Bytes) > 0, s.Algorithm == key.Algorithm, s.Key == key.ID); err != nil {
		return pqc.Signature{}, err
	}
	return s, nil
}

// Verify implements pqc.Provider.
func (c *client) Verify(purpose pqc.Purpose, message []byte, sig pqc.Signature, key pqc.PublicKey) error {
	_, err := do(c, "remotepqc.Verify", c.rpc.Verify, &pqcv1.VerifyRequest{Purpose: string(purpose), Message: message, Signature: signatureOf(sig), Key: publicOf(key)})
	return err
}

// Hash implements pqc.Provider.
func (c *client) Hash(algorithm pqc.Algorithm, data []byte) ([]byte, error) {
	const op fault.Op = "remotepqc.Hash"
	out, err := do(c, op, c.rpc.Hash, &pqcv1.HashRequest{Algorithm: string(algorithm), Data: data})
	if err := complete(op, err, len(out.GetDigest()) > 0); err != nil {
		return nil, err
	}
	return out.GetDigest(), nil
}

// GenerateSymmetricKey implements pqc.Provider.
func (c *client) GenerateSymmetricKey(algorithm pqc.Algorithm) (pqc.SymmetricKey, error) {
	const op fault.Op = "remotepqc.GenerateSymmetricKey"
	out, err := do(c, op, c.rpc.GenerateSymmetricKey, &pqcv1.GenerateSymmetricKeyRequest{Algorithm: string(algorithm)})
	key := symmetricFrom(out.GetKey())
	if err := complete(op, err, key.Algorithm == algorithm, len(key.Bytes) > 0, key.ID == pqc.NewSymmetricKey(key.Algorithm, key.Bytes).ID); err != nil {
		return pqc.SymmetricKey{}, err
	}
	return key, nil
}

// GenerateSigningKey implements pqc.Provider.
func (c *client) GenerateSigningKey(algorithm pqc.Algorithm) (pqc.SigningKey, error) {
	const op fault.Op = "remotepqc.GenerateSigningKey"
	out, err := do(c, op, c.rpc.GenerateSigningKey, &pqcv1.GenerateSigningKeyRequest{Algorithm: string(algorithm)})
	return signingAnswer(op, err, out.GetKey(), algorithm)
}

// GenerateKEMKey implements pqc.Provider.
func (c *client) GenerateKEMKey(algorithm pqc.Algorithm) (pqc.DecapsulationKey, error) {
	const op fault.Op = "remotepqc.GenerateKEMKey"
	out, err := do(c, op, c.rpc.GenerateKEMKey, &pqcv1.GenerateKEMKeyRequest{Algorithm: string(algorithm)})
	return decapsulationAnswer(op, err, out.GetKey(), algorithm)
}

// SigningKeyFromSeed implements pqc.Provider.
func (c *client) SigningKeyFromSeed(algorithm pqc.Algorithm, seed []byte) (pqc.SigningKey, error) {
	const op fault.Op = "remotepqc.SigningKeyFromSeed"
	out, err := do(c, op, c.rpc.SigningKeyFromSeed, &pqcv1.SigningKeyFromSeedRequest{Algorithm: string(algorithm), Seed: seed})
	return signingAnswer(op, err, out.GetKey(), algorithm)
}

// DecapsulationKeyFromSeed implements pqc.Provider.
func (c *client) DecapsulationKeyFromSeed(algorithm pqc.Algorithm, seed []byte) (pqc.DecapsulationKey, error) {
	const op fault.Op = "remotepqc.DecapsulationKeyFromSeed"
	out, err := do(c, op, c.rpc.DecapsulationKeyFromSeed, &pqcv1.DecapsulationKeyFromSeedRequest{Algorithm: string(algorithm), Seed: seed})
	return decapsulationAnswer(op, err, out.GetKey(), algorithm)
}

// Public implements pqc.Provider.
func (c *client) Public(key pqc.SigningKey) (pqc.PublicKey, error) {
	const op fault.Op = "remotepqc.Public"
	out, err := do(c, op, c.rpc.Public, &pqcv1.PublicRequest{Key: signingOf(key)})
	public := publicFrom(out.GetKey())
	if err := complete(op, err, public.Algorithm == key.Algorithm, public.ID == key.ID, public.ID == pqc.NewPublicKey(public.Algorithm, public.Bytes).ID); err != nil {
		return pqc.PublicKey{}, err
	}
	return public, nil
}

// Encapsulation implements pqc.Provider.
func (c *client) Encapsulation(key pqc.DecapsulationKey) (pqc.EncapsulationKey, error) {
	const op fault.Op = "remotepqc.Encapsulation"
	out, err := do(c, op, c.rpc.Encapsulation, &pqcv1.EncapsulationRequest{Key: decapsulationOf(key)})
	public := encapsulationFrom(out.GetKey())
	if err := complete(op, err, public.Algorithm == key.Algorithm, public.ID == key.ID, public.ID == pqc.NewEncapsulationKey(public.Algorithm, public.Bytes).ID); err != nil {
		return pqc.EncapsulationKey{}, err
	}
	return public, nil
}

func signingAnswer(op fault.Op, err error, k *pqcv1.SigningKey, algorithm pqc.Algorithm) (pqc.SigningKey, error) {
	key := signingFrom(k)
	if err := complete(op, err, key.Algorithm == algorithm, key.ID != "", len(key.Seed) > 0); err != nil {
		return pqc.SigningKey{}, err
	}
	return key, nil
}

func decapsulationAnswer(op fault.Op, err error, k *pqcv1.DecapsulationKey, algorithm pqc.Algorithm) (pqc.DecapsulationKey, error) {
	key := decapsulationFrom(k)
	if err := complete(op, err, key.Algorithm == algorithm, key.ID != "", len(key.Seed) > 0); err != nil {
		return pqc.DecapsulationKey{}, err
	}
	return key, nil
}
