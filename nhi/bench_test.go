package nhi_test

import (
	"testing"
	"time"

	"creto.dev"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// accepting accepts every signature, so that what is measured is the rest.
type accepting struct{ pqc.Provider }

func (accepting) Verify(pqc.Purpose, []byte, pqc.Signature, pqc.PublicKey) error { return nil }

// The budgets: warm at most 10 µs; cold at most 1.1 of the signatures, which
// take some 250 µs, so that all the rest may take 25 µs.
func BenchmarkChain(b *testing.B) {
	at := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	p := localpqc.New()
	links := nhitest.Chain(b, p, at, nhi.Everything(), "alice", "boss", "helper", "bot").Links()
	roots := []pqc.PublicKey{{}}
	b.Run("warm", func(b *testing.B) {
		v := nhi.NewVerifier(accepting{p}, 0)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := v.Verify(b.Context(), links, roots, at, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cold without signatures", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := nhi.VerifyDelegation(b.Context(), links, roots, accepting{p}, at, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("digest", func(b *testing.B) {
		for b.Loop() {
			creto.DigestOf(links[0].Body)
		}
	})
}
