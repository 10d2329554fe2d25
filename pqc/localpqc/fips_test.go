package localpqc

import (
	"crypto/fips140"
	"os"
	"strings"
	"testing"
)

// TestFIPS is run by `make fips` in builds with a frozen Go Cryptographic Module,
// whose version it is told; elsewhere there is nothing to see.
func TestFIPS(t *testing.T) {
	want := os.Getenv("CRETO_TEST_FIPS")
	if want == "" {
		t.Skip("not a build with the Go Cryptographic Module; see make fips")
	}
	if !fips140.Enabled() || !strings.HasPrefix(fips140.Version(), want) {
		t.Errorf("FIPS 140-3 mode is %v with module %s, want it on with %s", fips140.Enabled(), fips140.Version(), want)
	}
	if err := SelfTest(); err != nil {
		t.Error(err)
	}
}
