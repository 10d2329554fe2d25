package remotepqc

import (
	"context"

	"google.golang.org/grpc"

	pqcv1 "creto.dev/internal/gen/creto/pqc/v1"
	"creto.dev/pqc"
)

// Register has s serve p. Who may call it is decided before (package serve): it
// computes for whoever gets here, with the keys that they send.
func Register(s grpc.ServiceRegistrar, p pqc.Provider) {
	pqcv1.RegisterProviderServiceServer(s, server{provider: p})
}

type server struct {
	pqcv1.UnimplementedProviderServiceServer
	provider pqc.Provider
}

// Encrypt implements pqcv1.ProviderServiceServer.
func (s server) Encrypt(_ context.Context, r *pqcv1.EncryptRequest) (*pqcv1.EncryptResponse, error) {
	data, err := s.provider.Encrypt(r.GetPlaintext(), r.GetAssociated(), symmetricFrom(r.GetKey()))
	return &pqcv1.EncryptResponse{Data: encryptedOf(data)}, err
}

// Decrypt implements pqcv1.ProviderServiceServer.
func (s server) Decrypt(_ context.Context, r *pqcv1.DecryptRequest) (*pqcv1.DecryptResponse, error) {
	plaintext, err := s.provider.Decrypt(encryptedFrom(r.GetData()), r.GetAssociated(), symmetricFrom(r.GetKey()))
	return &pqcv1.DecryptResponse{Plaintext: plaintext}, err
}

// Seal implements pqcv1.ProviderServiceServer.
func (s server) Seal(_ context.Context, r *pqcv1.SealRequest) (*pqcv1.SealResponse, error) {
	sealed, err := s.provider.Seal(r.GetInfo(), r.GetAssociated(), r.GetPlaintext(), encapsulationFrom(r.GetKey()))
	return &pqcv1.SealResponse{Sealed: sealedOf(sealed)}, err
}

// Open implements pqcv1.ProviderServiceServer.
func (s server) Open(_ context.Context, r *pqcv1.OpenRequest) (*pqcv1.OpenResponse, error) {
	plaintext, err := s.provider.Open(r.GetInfo(), r.GetAssociated(), sealedFrom(r.GetSealed()), decapsulationFrom(r.GetKey()))
	return &pqcv1.OpenResponse{Plaintext: plaintext}, err
}

// Encapsulate implements pqcv1.ProviderServiceServer.
func (s server) Encapsulate(_ context.Context, r *pqcv1.EncapsulateRequest) (*pqcv1.EncapsulateResponse, error) {
	secret, ciphertext, err := s.provider.Encapsulate(encapsulationFrom(r.GetKey()))
	return &pqcv1.EncapsulateResponse{Secret: secret, Ciphertext: ciphertext}, err
}

// Decapsulate implements pqcv1.ProviderServiceServer.
func (s server) Decapsulate(_ context.Context, r *pqcv1.DecapsulateRequest) (*pqcv1.DecapsulateResponse, error) {
	secret, err := s.provider.Decapsulate(r.GetCiphertext(), decapsulationFrom(r.GetKey()))
	return &pqcv1.DecapsulateResponse{Secret: secret}, err
}

// Sign implements pqcv1.ProviderServiceServer.
func (s server) Sign(_ context.Context, r *pqcv1.SignRequest) (*pqcv1.SignResponse, error) {
	sig, err := s.provider.Sign(pqc.Purpose(r.GetPurpose()), r.GetMessage(), signingFrom(r.GetKey()))
	return &pqcv1.SignResponse{Signature: signatureOf(sig)}, err
}

// Verify implements pqcv1.ProviderServiceServer.
func (s server) Verify(_ context.Context, r *pqcv1.VerifyRequest) (*pqcv1.VerifyResponse, error) {
	return &pqcv1.VerifyResponse{}, s.provider.Verify(pqc.Purpose(r.GetPurpose()), r.GetMessage(), signatureFrom(r.GetSignature()), publicFrom(r.GetKey()))
}

// Hash implements pqcv1.ProviderServiceServer.
func (s server) Hash(_ context.Context, r *pqcv1.HashRequest) (*pqcv1.HashResponse, error) {
	digest, err := s.provider.Hash(pqc.Algorithm(r.GetAlgorithm()), r.GetData())
	return &pqcv1.HashResponse{Digest: digest}, err
}

// GenerateSymmetricKey implements pqcv1.ProviderServiceServer.
func (s server) GenerateSymmetricKey(_ context.Context, r *pqcv1.GenerateSymmetricKeyRequest) (*pqcv1.GenerateSymmetricKeyResponse, error) {
	key, err := s.provider.GenerateSymmetricKey(pqc.Algorithm(r.GetAlgorithm()))
	return &pqcv1.GenerateSymmetricKeyResponse{Key: symmetricOf(key)}, err
}

// GenerateSigningKey implements pqcv1.ProviderServiceServer.
func (s server) GenerateSigningKey(_ context.Context, r *pqcv1.GenerateSigningKeyRequest) (*pqcv1.GenerateSigningKeyResponse, error) {
	key, err := s.provider.GenerateSigningKey(pqc.Algorithm(r.GetAlgorithm()))
	return &pqcv1.GenerateSigningKeyResponse{Key: signingOf(key)}, err
}

// GenerateKEMKey implements pqcv1.ProviderServiceServer.
func (s server) GenerateKEMKey(_ context.Context, r *pqcv1.GenerateKEMKeyRequest) (*pqcv1.GenerateKEMKeyResponse, error) {
	key, err := s.provider.GenerateKEMKey(pqc.Algorithm(r.GetAlgorithm()))
	return &pqcv1.GenerateKEMKeyResponse{Key: decapsulationOf(key)}, err
}

// SigningKeyFromSeed implements pqcv1.ProviderServiceServer.
func (s server) SigningKeyFromSeed(_ context.Context, r *pqcv1.SigningKeyFromSeedRequest) (*pqcv1.SigningKeyFromSeedResponse, error) {
	key, err := s.provider.SigningKeyFromSeed(pqc.Algorithm(r.GetAlgorithm()), r.GetSeed())
	return &pqcv1.SigningKeyFromSeedResponse{Key: signingOf(key)}, err
}

// DecapsulationKeyFromSeed implements pqcv1.ProviderServiceServer.
func (s server) DecapsulationKeyFromSeed(_ context.Context, r *pqcv1.DecapsulationKeyFromSeedRequest) (*pqcv1.DecapsulationKeyFromSeedResponse, error) {
	key, err := s.provider.DecapsulationKeyFromSeed(pqc.Algorithm(r.GetAlgorithm()), r.GetSeed())
	return &pqcv1.DecapsulationKeyFromSeedResponse{Key: decapsulationOf(key)}, err
}

// Public implements pqcv1.ProviderServiceServer.
func (s server) Public(_ context.Context, r *pqcv1.PublicRequest) (*pqcv1.PublicResponse, error) {
	key, err := s.provider.Public(signingFrom(r.GetKey()))
	return &pqcv1.PublicResponse{Key: publicOf(key)}, err
}

// Encapsulation implements pqcv1.ProviderServiceServer.
func (s server) Encapsulation(_ context.Context, r *pqcv1.EncapsulationRequest) (*pqcv1.EncapsulationResponse, error) {
	key, err := s.provider.Encapsulation(decapsulationFrom(r.GetKey()))
	return &pqcv1.EncapsulationResponse{Key: encapsulationOf(key)}, err
}
