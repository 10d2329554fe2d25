package wire

import (
	"strings"
	"testing"
)

// A name of this machine that resolves to another is not connected to.
func TestLoopbackOnly(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:1": true, "[::1]:1": true, "[::ffff:127.0.0.1]:1": true,
		"10.0.0.1:1": false, "0.0.0.0:1": false, "[fe80::1%lo]:1": false, "localhost:1": false, "": false,
	} {
		if err := loopbackOnly("tcp", address, nil); (err == nil) != want {
			t.Errorf("loopbackOnly(%q) = %v", address, err)
		}
	}
	if _, _, dial, err := (Config{Address: "localhost:1"}).target(); err != nil {
		t.Fatal(err)
	} else if _, err := dial(t.Context(), "192.0.2.1:1"); err == nil || !strings.Contains(err.Error(), errNotLocal.Error()) {
		t.Errorf("localhost that resolves to another machine: %v", err)
	}
}
