package receipt_test

import (
	"sync/atomic"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
	"creto.dev/receipt"
)

// counting counts the signatures of links that are verified.
type counting struct {
	pqc.Provider
	links atomic.Int64
}

func (c *counting) Verify(purpose pqc.Purpose, message []byte, sig pqc.Signature, key pqc.PublicKey) error {
	if purpose == pqc.PurposeDelegation {
		c.links.Add(1)
	}
	return c.Provider.Verify(purpose, message, sig, key)
}

// TestLinksAreVerifiedOnce: however many records share a chain, so that a bundle
// costs no more than its bytes.
func TestLinksAreVerifiedOnce(t *testing.T) {
	w := build(t)
	chain := w.chain(t, "boss", "bot")
	var entries []audit.Entry
	for range 20 {
		entries = append(entries, w.record(t, chain, nil))
	}
	p := &counting{Provider: localpqc.New()}
	v, err := receipt.Verify(t.Context(), p, w.make(t, entries...), creto.Digest{})
	if err != nil || len(v.Records) != len(entries) {
		t.Fatalf("Verify = %d records, %v", len(v.Records), err)
	}
	if got := int(p.links.Load()); got != len(chain.Links()) {
		t.Errorf("%d signatures of links were verified for %d records of one chain of %d", got, len(entries), len(chain.Links()))
	}
}
