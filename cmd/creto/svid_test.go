package main_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// TestSVIDFiles: SPIFFE's library reads what creto svid writes, with the key that
// nobody else can read.
func TestSVIDFiles(t *testing.T) {
	n := newNode(t, "[identity]\ntrust_domain = 'test.local'\n")
	n.must("agent", "add", "bot")
	dir := filepath.Join(n.home, "svid")
	for range 2 { // the second replaces the first
		n.must("svid", "x509", "bot", "--out", dir)
		svid, err := x509svid.Load(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid_key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := x509bundle.Load(spiffeid.RequireTrustDomainFromString("test.local"), filepath.Join(dir, "svid_bundle.pem"))
		if err != nil {
			t.Fatal(err)
		}
		if id, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil || id.String() != "spiffe://test.local/default/agent/bot" {
			t.Errorf("Verify = %s, %v", id, err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 3 {
		t.Fatalf("the directory holds %v, %v", files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
}
