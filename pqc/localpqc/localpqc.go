// Package localpqc does the cryptography of package pqc in this process.
//
// AES-256-GCM, ML-KEM-768, HPKE, Ed25519 and the digests are the standard
// library's; ML-DSA-65 is circl's until the standard library has it
// (docs/decisions.md, D-004), and so is X-Wing where its bare secret is asked
// for. Which of them are validated says docs/fips.md.
//
// Each kind of algorithm has a table: aeads, kems, signatures, hashes. Adding an
// algorithm is adding a line to one (R-CRY-10).
package localpqc

import (
	"crypto/rand"

	"creto.dev/fault"
	"creto.dev/pqc"
)

type provider struct {
	signers   *ready[signer]
	verifiers *ready[verifier]
}

var _ pqc.Provider = (*provider)(nil)

// New returns a provider. It keeps the keys that it used last ready for their
// next use, and no other state; what shares a provider shares them.
func New() pqc.Provider {
	return &provider{signers: newReady[signer](), verifiers: newReady[verifier]()}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // documented never to return an error
	return b
}

func unsupported(op fault.Op, algorithm pqc.Algorithm) error {
	return fault.New(op, fault.CryptoUnsupportedAlgorithm, "the algorithm %q is not supported here", algorithm)
}

func length(op fault.Op, b []byte, want int) error {
	if len(b) == want {
		return nil
	}
	return fault.New(op, fault.CryptoInvalidKeyLength, "the key has %d bytes instead of %d", len(b), want)
}

func misnamed(op fault.Op) error {
	return fault.New(op, fault.InvalidArgument, "the key's id is not its own: it was not made by a constructor")
}

// usable reports whether a key has an id and the right length.
func usable(op fault.Op, id pqc.KeyID, key []byte, want int) error {
	if id == "" {
		return fault.New(op, fault.InvalidArgument, "the key has no id: it was not made by a constructor")
	}
	return length(op, key, want)
}
