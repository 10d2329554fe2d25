package localaudit

import (
	"math/bits"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
)

// Who has few records does not wait until those of others are read, which say the
// same of other agents.
func TestOtherTenantsAreNotRead(t *testing.T) {
	l := openInternal(t)
	const records = (firstBundles + 4) * tileWidth
	for i := range records {
		r := audittest.Record(creto.CallModel, 0)
		if i == 7 {
			r.Who.Tenant = "acme"
		}
		if _, err := l.Log(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 {
			if err := l.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	f := audit.Filter{Tenant: "acme", What: creto.CallModel}
	page, err := l.Query(t.Context(), f)
	if err != nil || len(page) != 1 || page[0].Index != 7 {
		t.Fatalf("Query = %d records, %v", len(page), err)
	}
	s, err := l.selection(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	found, _, err := l.bundles(t.Context(), s, (records-1)>>tileHeight, false, 2*firstBundles)
	if err != nil {
		t.Fatal(err)
	}
	candidates := 0
	for _, c := range found {
		for _, b := range c.bits {
			candidates += bits.OnesCount8(b)
		}
	}
	if candidates != 1 {
		t.Errorf("%d records are read to find the one of a tenant", candidates)
	}
}
