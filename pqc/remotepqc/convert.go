package remotepqc

import (
	pqcv1 "creto.dev/internal/gen/creto/pqc/v1"
	"creto.dev/pqc"
)

// Ids cross as they are, wrong ones too: it is the provider that refuses them.

func symmetricOf(k pqc.SymmetricKey) *pqcv1.SymmetricKey {
	return &pqcv1.SymmetricKey{Algorithm: string(k.Algorithm), Id: string(k.ID), Bytes: k.Bytes}
}

func symmetricFrom(k *pqcv1.SymmetricKey) pqc.SymmetricKey {
	return pqc.SymmetricKey{Algorithm: pqc.Algorithm(k.GetAlgorithm()), ID: pqc.KeyID(k.GetId()), Bytes: k.GetBytes()}
}

func encryptedOf(d pqc.EncryptedData) *pqcv1.EncryptedData {
	return &pqcv1.EncryptedData{Algorithm: string(d.Algorithm), Bytes: d.Bytes, Key: string(d.Key)}
}

func encryptedFrom(d *pqcv1.EncryptedData) pqc.EncryptedData {
	return pqc.EncryptedData{Algorithm: pqc.Algorithm(d.GetAlgorithm()), Bytes: d.GetBytes(), Key: pqc.KeyID(d.GetKey())}
}

func publicOf(k pqc.PublicKey) *pqcv1.PublicKey {
	return &pqcv1.PublicKey{Algorithm: string(k.Algorithm), Id: string(k.ID), Bytes: k.Bytes}
}

func publicFrom(k *pqcv1.PublicKey) pqc.PublicKey {
	return pqc.PublicKey{Algorithm: pqc.Algorithm(k.GetAlgorithm()), ID: pqc.KeyID(k.GetId()), Bytes: k.GetBytes()}
}

func signingOf(k pqc.SigningKey) *pqcv1.SigningKey {
	return &pqcv1.SigningKey{Algorithm: string(k.Algorithm), Id: string(k.ID), Seed: k.Seed}
}

func signingFrom(k *pqcv1.SigningKey) pqc.SigningKey {
	return pqc.SigningKey{Algorithm: pqc.Algorithm(k.GetAlgorithm()), ID: pqc.KeyID(k.GetId()), Seed: k.GetSeed()}
}

func signatureOf(s pqc.Signature) *pqcv1.Signature {
	return &pqcv1.Signature{Algorithm: string(s.Algorithm), Bytes: s.Bytes, Key: string(s.Key)}
}

func signatureFrom(s *pqcv1.Signature) pqc.Signature {
	return pqc.Signature{Algorithm: pqc.Algorithm(s.GetAlgorithm()), Bytes: s.GetBytes(), Key: pqc.KeyID(s.GetKey())}
}

func encapsulationOf(k pqc.EncapsulationKey) *pqcv1.EncapsulationKey {
	return &pqcv1.EncapsulationKey{Algorithm: string(k.Algorithm), Id: string(k.ID), Bytes: k.Bytes}
}

func encapsulationFrom(k *pqcv1.EncapsulationKey) pqc.EncapsulationKey {
	return pqc.EncapsulationKey{Algorithm: pqc.Algorithm(k.GetAlgorithm()), ID: pqc.KeyID(k.GetId()), Bytes: k.GetBytes()}
}

func decapsulationOf(k pqc.DecapsulationKey) *pqcv1.DecapsulationKey {
	return &pqcv1.DecapsulationKey{Algorithm: string(k.Algorithm), Id: string(k.ID), Seed: k.Seed}
}

func decapsulationFrom(k *pqcv1.DecapsulationKey) pqc.DecapsulationKey {
	return pqc.DecapsulationKey{Algorithm: pqc.Algorithm(k.GetAlgorithm()), ID: pqc.KeyID(k.GetId()), Seed: k.GetSeed()}
}

func sealedOf(s pqc.Sealed) *pqcv1.Sealed {
	return &pqcv1.Sealed{Algorithm: string(s.Algorithm), Key: string(s.Key), Encapsulated: s.Encapsulated, Ciphertext: s.Ciphertext}
}

func sealedFrom(s *pqcv1.Sealed) pqc.Sealed {
	return pqc.Sealed{Algorithm: pqc.Algorithm(s.GetAlgorithm()), Key: pqc.KeyID(s.GetKey()), Encapsulated: s.GetEncapsulated(), Ciphertext: s.GetCiphertext()}
}
