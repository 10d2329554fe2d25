package localpqc

import (
	"crypto/ed25519"
	"crypto/sha512"

	"github.com/cloudflare/circl/sign/mldsa/mldsa65"

	"creto.dev/pqc"
)

// The composite algorithm id-MLDSA65-Ed25519-SHA512 of
// draft-ietf-lamps-pq-composite-sigs: what both halves sign is
// prefix || label || len(context) || context || SHA-512(message), and the label
// is ML-DSA's own context too.
const (
	compositePrefix = "CompositeAlgorithmSignatures2025"
	compositeLabel  = "COMPSIG-MLDSA65-Ed25519-SHA512"
)

func compositeMessage(purpose pqc.Purpose, message []byte) []byte {
	digest := sha512.Sum512(message)
	m := make([]byte, 0, len(compositePrefix)+len(compositeLabel)+1+len(purpose)+len(digest))
	m = append(m, compositePrefix...)
	m = append(m, compositeLabel...)
	m = append(m, byte(len(purpose)))
	m = append(m, purpose...)
	return append(m, digest[:]...)
}

type compositeSigner struct {
	pq        signer
	classical ed25519.PrivateKey
}

func newCompositeSigner(seed []byte) signer {
	return compositeSigner{newMLDSASigner(seed[:mldsa65.SeedSize]), ed25519.NewKeyFromSeed(seed[mldsa65.SeedSize:])}
}

func (s compositeSigner) public() []byte {
	key := make([]byte, 0, pqc.CompositePublicKeySize)
	key = append(key, s.pq.public()...)
	return append(key, s.classical.Public().(ed25519.PublicKey)...)
}

func (s compositeSigner) sign(purpose pqc.Purpose, message []byte) ([]byte, error) {
	m := compositeMessage(purpose, message)
	signature, err := s.pq.sign(compositeLabel, m)
	if err != nil {
		return nil, err
	}
	return append(signature, ed25519.Sign(s.classical, m)...), nil
}

type compositeVerifier struct {
	pq        verifier
	classical ed25519.PublicKey
}

func newCompositeVerifier(public []byte) verifier {
	return compositeVerifier{newMLDSAVerifier(public[:mldsa65.PublicKeySize]), public[mldsa65.PublicKeySize:]}
}

// verify always computes both halves, so that timing tells nothing of which one
// failed.
func (v compositeVerifier) verify(purpose pqc.Purpose, message, signature []byte) bool {
	m := compositeMessage(purpose, message)
	pq := v.pq.verify(compositeLabel, m, signature[:mldsa65.SignatureSize])
	classical := ed25519.Verify(v.classical, m, signature[mldsa65.SignatureSize:])
	return pq && classical
}
