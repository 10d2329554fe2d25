package nhitest

import (
	"testing"
	"time"

	"creto.dev"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// ID returns the id of a principal of the suite's trust domain.
func ID(kind creto.Kind, name string) creto.ID {
	return creto.ID{TrustDomain: "test.local", Tenant: creto.DefaultTenant, Kind: kind, Name: name}
}

// Chain returns a verified chain from a human down through agents, each link
// with the given scope, signed with fresh keys and in force around at.
func Chain(t testing.TB, p pqc.Provider, at time.Time, scope nhi.Scope, human string, agents ...string) nhi.VerifiedChain {
	t.Helper()
	newKey := func() (pqc.SigningKey, pqc.PublicKey) {
		k, err := p.GenerateSigningKey(pqc.MLDSA65Ed25519)
		if err != nil {
			t.Fatal(err)
		}
		public, err := p.Public(k)
		if err != nil {
			t.Fatal(err)
		}
		return k, public
	}
	signer, root := newKey()
	link := nhi.Link{
		Issuer: ID(creto.KindHuman, human), Scope: scope, NotBefore: at.Add(-time.Hour).Unix(), NotAfter: at.Add(time.Hour).Unix(),
		MaxDepth: uint(len(agents)), Proof: nhi.Proof{Kind: nhi.ProofBootstrap},
	}
	var links []nhi.SignedLink
	for _, name := range agents {
		next, public := newKey()
		link.Subject, link.SubjectKey, link.Nonce = ID(creto.KindAgent, name), public, creto.NewUUID()
		signed, err := nhi.SignLink(p, signer, link)
		if err != nil {
			t.Fatal(err)
		}
		links = append(links, signed)
		signer = next
		link.Issuer, link.Parent, link.Proof = link.Subject, signed.Digest(), nhi.Proof{}
		link.MaxDepth--
	}
	chain, err := nhi.VerifyDelegation(t.Context(), links, []pqc.PublicKey{root}, p, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}
