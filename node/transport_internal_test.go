package node

import (
	"net/netip"
	"testing"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/serve"
)

// A token that crossed a network in clear is refused before it is looked at: it is
// everybody's.
func TestTokenInClear(t *testing.T) {
	p := serve.Peer{Address: netip.MustParseAddrPort("192.0.2.1:1"), Token: creto.NewSecret("of a session")}
	if _, err := new(Node).authenticate(t.Context(), "/x/Y", p); fault.CodeOf(err) != fault.Unauthenticated {
		t.Errorf("authenticate = %v, want Unauthenticated", err)
	}
}
