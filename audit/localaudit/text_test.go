package localaudit_test

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
)

// Text that a database cannot hold or index as it is holds up nothing, and is
// found.
func TestOddText(t *testing.T) {
	o := open(t, t.TempDir(), nil)
	noise := make([]byte, 6<<10) // which no compression makes shorter
	_, _ = rand.Read(noise)
	long := "Url::http://shop.test/" + hex.EncodeToString(noise)
	for i, resource := range []string{"Url::a\x00b", long, long + "x", "Url::a" + strings.Repeat("ä", 600)} {
		r := audittest.Record(creto.CallModel, i)
		r.Resource = resource
		id, err := o.log.Log(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.log.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		entries, err := o.log.Query(t.Context(), audit.Filter{Resource: resource})
		if err != nil || len(entries) != 1 || entries[0].Record.ID != id || entries[0].Record.Resource != resource {
			t.Errorf("a record of %.20q… is found as %d records, %v", resource, len(entries), err)
		}
	}
}
