// Package nhitest is what every implementation of package nhi must do.
package nhitest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// Harness is an authority with the means to arrange what the suite observes.
type Harness struct {
	Authority nhi.Authority
	Provider  pqc.Provider
	// Delegated adds an agent on behalf of issuer: a human's name, or an
	// agent's id.
	Human     func(t *testing.T, name string, groups ...string) creto.ID
	Delegated func(t *testing.T, name string, issuer creto.ID, scope nhi.Scope) creto.ID
	// Token issues a token; Revoke revokes a principal.
	Token  func(t *testing.T, agent creto.ID) string
	Revoke func(t *testing.T, id creto.ID)
	// Now and Advance read and move the authority's clock.
	Now     func() time.Time
	Advance func(time.Duration)
}

// Run tests the authorities that open returns, a fresh one a case.
func Run(t *testing.T, open func(*testing.T) Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"tokens resolve":            testResolve,
		"bad tokens are refused":    testBadTokens,
		"chains lead to the human":  testChain,
		"revocation ends it all":    testRevocation,
		"unknown principals":        testUnknown,
		"groups":                    testGroups,
		"scope narrows on each way": testScope,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func verify(t *testing.T, h Harness, agent creto.ID) (nhi.VerifiedChain, error) {
	t.Helper()
	links, err := h.Authority.DelegationChain(t.Context(), agent)
	if err != nil {
		return nhi.VerifiedChain{}, err
	}
	roots, err := h.Authority.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return nhi.VerifyDelegation(t.Context(), links, roots, h.Provider, h.Now(), h.Authority.Epochs)
}

func testResolve(t *testing.T, h Harness) {
	agent := h.Delegated(t, "bot", h.Human(t, "alice"), nhi.Everything())
	token := h.Token(t, agent)
	chain, err := verify(t, h, agent)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time may come from memory
		got, err := h.Authority.Resolve(t.Context(), token)
		if err != nil || got.ID != agent || got.Chain != chain.Digest() || got.TokenID == "" {
			t.Fatalf("Resolve = %+v, %v; want %s under chain %s", got, err, agent, chain.Digest())
		}
		if left := got.ExpiresAt.Sub(h.Now()); left <= 0 || left > nhi.MaxTokenTTL {
			t.Errorf("the token lives for another %v; allowed are %v", left, nhi.MaxTokenTTL)
		}
	}
	h.Advance(nhi.MaxTokenTTL + time.Second)
	if _, err := h.Authority.Resolve(t.Context(), token); !errors.Is(err, fault.NHITokenExpired) {
		t.Errorf("Resolve of an old token = %v, want NHITokenExpired", err)
	}
}

func testBadTokens(t *testing.T, h Harness) {
	agent := h.Delegated(t, "bot", h.Human(t, "alice"), nhi.Everything())
	good := h.Token(t, agent)
	parts := strings.Split(good, ".")
	for name, token := range map[string]string{
		"empty":              "",
		"garbage":            "not a token",
		"no signature":       parts[0] + "." + parts[1] + ".",
		"algorithm none":     "eyJhbGciOiJub25lIn0." + parts[1] + ".",
		"another's claims":   parts[0] + "." + parts[1][:len(parts[1])-2] + "AA." + parts[2],
		"flipped signature":  parts[0] + "." + parts[1] + "." + flip(parts[2]),
		"huge":               strings.Repeat("a", 1<<20),
		"trailing data":      good + ".x",
		"with spaces around": " " + good + " ",
	} {
		if _, err := h.Authority.Resolve(t.Context(), token); !errors.Is(err, fault.NHITokenInvalid) {
			t.Errorf("Resolve of a token that is %s = %v, want NHITokenInvalid", name, err)
		}
	}
}

func flip(s string) string {
	if s[0] == 'A' {
		return "B" + s[1:]
	}
	return "A" + s[1:]
}

func testChain(t *testing.T, h Harness) {
	alice := h.Human(t, "alice")
	boss := h.Delegated(t, "boss", alice, nhi.Everything())
	helper := h.Delegated(t, "helper", boss, nhi.Everything())
	chain, err := verify(t, h, helper)
	if err != nil {
		t.Fatal(err)
	}
	want := []creto.ID{alice, boss, helper}
	if got := chain.Principals(); len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("Principals = %v, want %v", got, want)
	}
	if chain.Human() != alice || chain.Agent() != helper || !chain.Valid() || chain.Proof() == "" {
		t.Errorf("the chain is %v from %v by proof %q", chain.Agent(), chain.Human(), chain.Proof())
	}
	keys, err := h.Authority.PublicKeys(t.Context(), helper)
	if err != nil || len(keys.Signing.Bytes) == 0 || keys.Signing.ID == "" {
		t.Errorf("PublicKeys = %v, %v", keys, err)
	}
}

func testRevocation(t *testing.T, h Harness) {
	boss := h.Delegated(t, "boss", h.Human(t, "alice"), nhi.Everything())
	helper := h.Delegated(t, "helper", boss, nhi.Everything())
	token, above := h.Token(t, helper), h.Token(t, boss)
	if _, err := h.Authority.Resolve(t.Context(), above); err != nil {
		t.Fatal(err)
	}
	before := h.Authority.Epoch()
	h.Revoke(t, boss)
	if h.Authority.Epoch() == before {
		t.Error("Epoch did not change with a revocation")
	}
	if _, err := h.Authority.Resolve(t.Context(), above); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Resolve of a revoked agent's token = %v, want NHITokenInvalid", err)
	}
	if _, err := verify(t, h, helper); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("the chain below a revoked agent: %v, want NHIDelegationVerificationFailed", err)
	}
	if _, err := h.Authority.Resolve(t.Context(), token); err != nil {
		t.Errorf("Resolve of a token below: %v; its chain is what is refused", err)
	}
}

func testUnknown(t *testing.T, h Harness) {
	nobody := h.Human(t, "alice")
	nobody.Kind, nobody.Name = creto.KindAgent, "nobody"
	if _, err := h.Authority.DelegationChain(t.Context(), nobody); !errors.Is(err, fault.NHINotFound) {
		t.Errorf("DelegationChain = %v, want NHINotFound", err)
	}
	if _, err := h.Authority.PublicKeys(t.Context(), nobody); !errors.Is(err, fault.NotFound) {
		t.Errorf("PublicKeys = %v, want NotFound", err)
	}
	if _, err := h.Authority.Epochs(t.Context(), nobody); !errors.Is(err, fault.NHINotFound) {
		t.Errorf("Epochs = %v, want NHINotFound", err)
	}
	if groups, err := h.Authority.Groups(t.Context(), nobody); err != nil || len(groups) != 0 {
		t.Errorf("Groups = %v, %v; want none", groups, err)
	}
	if err := h.Authority.Ping(t.Context()); err != nil {
		t.Errorf("Ping = %v", err)
	}
}

func testGroups(t *testing.T, h Harness) {
	bob := h.Human(t, "bob", "finance", "approvers")
	got, err := h.Authority.Groups(t.Context(), bob)
	if err != nil || len(got) != 2 || got[0] != "approvers" || got[1] != "finance" {
		t.Errorf("Groups = %v, %v; want approvers and finance", got, err)
	}
	h.Revoke(t, bob)
	if got, err := h.Authority.Groups(t.Context(), bob); err != nil || len(got) != 0 {
		t.Errorf("Groups of a revoked human = %v, %v; want none", got, err)
	}
}

func testScope(t *testing.T, h Harness) {
	scope := nhi.Scope{Actions: []string{creto.CallModel}, Resources: []string{"Model::gpt-*"}}
	agent := h.Delegated(t, "bot", h.Human(t, "alice"), scope)
	chain, err := verify(t, h, agent)
	if err != nil {
		t.Fatal(err)
	}
	if !chain.Covers(creto.CallModel, creto.Resource{Type: "Model", ID: "gpt-4o"}) {
		t.Error("the chain does not cover what its link names")
	}
	if chain.Covers(creto.CallModel, creto.Resource{Type: "Model", ID: "claude"}) || chain.Covers(creto.HTTPRequest, creto.Resource{Type: "Url", ID: "http://x/"}) {
		t.Error("the chain covers more than its link names")
	}
	if (nhi.VerifiedChain{}).Covers(creto.CallModel, creto.Resource{Type: "Model", ID: "gpt-4o"}) {
		t.Error("the zero chain covers something")
	}
}
