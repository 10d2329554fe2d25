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
	// Token issues a token, bound to cnf if that is not zero, for an audience
	// or for the gates if it is "".
	Token func(t *testing.T, agent creto.ID, audience string, cnf nhi.Confirmation) string
	// Revoke revokes a principal, RevokeLink the newest link to it, and
	// RevokeToken what a token resolved to.
	Revoke, RevokeLink func(t *testing.T, id creto.ID)
	RevokeToken        func(t *testing.T, who nhi.Identity)
	// Redelegate replaces an agent's delegation.
	Redelegate func(t *testing.T, agent, issuer creto.ID, scope nhi.Scope)
	// Secret keeps a secret of an agent's tenant that this agent alone may
	// have.
	Secret func(t *testing.T, agent creto.ID, name, value string)
	// Now and Advance read and move the authority's clock.
	Now     func() time.Time
	Advance func(time.Duration)
}

// Run tests the authorities that open returns, a fresh one a case.
func Run(t *testing.T, open func(*testing.T) Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"tokens resolve":                          testResolve,
		"bad tokens are refused":                  testBadTokens,
		"chains lead to the human":                testChain,
		"revocation ends it all":                  testRevocation,
		"unknown principals":                      testUnknown,
		"groups":                                  testGroups,
		"scope narrows on each way":               testScope,
		"what resolved is rechecked":              testRecheck,
		"links and tokens are revoked one by one": testRevokeOne,
		"a new delegation ends the old":           testRedelegate,
		"every revocation is seen":                testWatch,
		"agents sign for their purposes":          testSign,
		"secrets":                                 testSecrets,
		"a token bound to a certificate needs it": testCertificate,
		"a token bound to a key needs a proof":    testDPoP,
		"tokens are for one audience":             testAudience,
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
	return nhi.VerifyDelegation(t.Context(), links, roots, h.Provider, h.Now(), h.Authority)
}

func testResolve(t *testing.T, h Harness) {
	agent := h.Delegated(t, "bot", h.Human(t, "alice"), nhi.Everything())
	token := h.token(t, agent)
	chain, err := verify(t, h, agent)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time may come from memory
		got, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: token})
		if err != nil || got.ID != agent || got.Chain != chain.Digest() || got.TokenID == "" {
			t.Fatalf("Resolve = %+v, %v; want %s under chain %s", got, err, agent, chain.Digest())
		}
		if left := got.ExpiresAt.Sub(h.Now()); left <= 0 || left > nhi.MaxTokenTTL {
			t.Errorf("the token lives for another %v; allowed are %v", left, nhi.MaxTokenTTL)
		}
	}
	h.Advance(nhi.MaxTokenTTL + time.Second)
	if _, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: token}); !errors.Is(err, fault.NHITokenExpired) {
		t.Errorf("Resolve of an old token = %v, want NHITokenExpired", err)
	}
}

func testBadTokens(t *testing.T, h Harness) {
	agent := h.Delegated(t, "bot", h.Human(t, "alice"), nhi.Everything())
	good := h.token(t, agent)
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
		if _, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: token}); !errors.Is(err, fault.NHITokenInvalid) {
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
	if chain.Human() != alice || chain.Agent() != helper || !chain.Valid() || chain.Proof() != nhi.ProofBootstrap {
		t.Errorf("the chain is %v from %v by proof %q", chain.Agent(), chain.Human(), chain.Proof())
	}
	keys, err := h.Authority.PublicKeys(t.Context(), helper)
	last, linkErr := chain.Links()[1].Link()
	if err != nil || linkErr != nil || len(keys.Signing) != 1 || keys.Signing[0].Public.ID != last.SubjectKey.ID || !keys.Signing[0].NotAfter.IsZero() || keys.Encryption.Algorithm != pqc.MLKEM768X25519 {
		t.Errorf("PublicKeys = %v, %v", keys, err)
	}
}

func testRevocation(t *testing.T, h Harness) {
	boss := h.Delegated(t, "boss", h.Human(t, "alice"), nhi.Everything())
	helper := h.Delegated(t, "helper", boss, nhi.Everything())
	token, above := h.token(t, helper), h.token(t, boss)
	if _, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: above}); err != nil {
		t.Fatal(err)
	}
	before := h.epoch(t)
	h.Revoke(t, boss)
	h.later(t, before)
	if _, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: above}); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Resolve of a revoked agent's token = %v, want NHITokenInvalid", err)
	}
	if _, err := verify(t, h, helper); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("the chain below a revoked agent: %v, want NHIDelegationVerificationFailed", err)
	}
	if _, err := h.Authority.Resolve(t.Context(), nhi.Credential{Token: token}); err != nil {
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
	if i, err := h.Authority.Revoked(t.Context(), []nhi.LinkRef{{Issuer: nobody, Subject: nobody}}); err != nil || i != 0 {
		t.Errorf("Revoked = %v, %v; want that a link of unknown principals is", i, err)
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
