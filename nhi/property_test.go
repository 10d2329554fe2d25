package nhi_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// quick signs by hashing, so that a million chains are about rules and not about
// signatures, which package pqc tests.
type quick struct{ pqc.Provider }

func (quick) Sign(purpose pqc.Purpose, message []byte, key pqc.SigningKey) (pqc.Signature, error) {
	return pqc.Signature{Algorithm: key.Algorithm, Key: key.ID, Bytes: mac(purpose, message, key.Seed)}, nil
}

func (quick) Verify(purpose pqc.Purpose, message []byte, sig pqc.Signature, key pqc.PublicKey) error {
	if !slices.Equal(sig.Bytes, mac(purpose, message, key.Bytes)) {
		return fault.CryptoSignatureVerificationFailed
	}
	return nil
}

func mac(purpose pqc.Purpose, message, key []byte) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%s/%d/%x/", purpose, len(message), key)
	h.Write(message)
	return h.Sum(nil)
}

// The world of the property: small enough that an oracle tries everything.
var (
	worldActions   = []string{"call_model", "call_tool", "http_request"}
	worldResources = []string{"Model::gpt-4", "Model::gpt-5", "Url::http://a/x", "Url::http://a/y", "Url::http://b/x"}
	worldPatterns  = [2][]string{
		{"*", "call_*", "call_model", "call_tool", "http_request", "c*", ""},
		{"*", "Model::*", "Model::gpt-*", "Model::gpt-4", "Url::*", "Url::http://a/*", "Url::http://a/x", "Url::http://b/x", "U*", "Model::gpt-4*"},
	}
	worldMoney = []string{"", "0 EUR", "5 EUR", "10 EUR", "10 USD", "-1 EUR"}
)

// globMatches is package nhi's pattern, written another way.
func globMatches(pattern, text string) bool {
	if pattern == "" {
		return text == ""
	}
	if pattern[len(pattern)-1] != '*' {
		return pattern == text
	}
	return len(text) >= len(pattern)-1 && text[:len(pattern)-1] == pattern[:len(pattern)-1]
}

func grants(s nhi.Scope) map[[2]string]bool {
	set := make(map[[2]string]bool)
	for _, action := range worldActions {
		for _, resource := range worldResources {
			for _, p := range s.Actions {
				for _, q := range s.Resources {
					if globMatches(p, action) && globMatches(q, resource) {
						set[[2]string{action, resource}] = true
					}
				}
			}
		}
	}
	return set
}

// randomScope mostly narrows parent, so that deep chains are often valid.
func randomScope(r *rand.Rand, parent nhi.Scope) nhi.Scope {
	pick := func(all []string, from []string) []string {
		var list []string
		for range 1 + r.IntN(2) {
			if r.IntN(3) > 0 && len(from) > 0 {
				list = append(list, from[r.IntN(len(from))])
			} else {
				list = append(list, all[r.IntN(len(all))])
			}
		}
		return list
	}
	s := nhi.Scope{Actions: pick(worldPatterns[0], parent.Actions), Resources: pick(worldPatterns[1], parent.Resources), Spend: parent.Spend}
	if r.IntN(3) == 0 {
		s.Spend, _ = creto.ParseMoney(worldMoney[r.IntN(len(worldMoney))])
	}
	return s
}

// TestChildNeverHasMore tries random chains: whatever VerifyDelegation accepts
// gives the last agent nothing that an agent above it, or the human's link, does
// not have: no action, no resource, no money, no time, no depth. And whatever
// breaks a rule that the oracle knows is refused.
func TestChildNeverHasMore(t *testing.T) {
	chains := 30_000
	if os.Getenv("CRETO_TORTURE") != "" {
		chains = 1_000_000
	}
	if testing.Short() {
		chains = 1000
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	p := quick{}
	accepted, deep := 0, 0
	for range chains {
		links, bodies, at := randomChain(t, r, p)
		chain, err := nhi.VerifyDelegation(t.Context(), links, []pqc.PublicKey{keyOf("root")}, p, time.Unix(at, 0), nil)
		why := mustRefuse(bodies, at)
		if err != nil {
			if !errors.Is(err, fault.NHIDelegationVerificationFailed) {
				t.Fatalf("seed %d: %v", seed, err)
			}
			continue
		}
		if why != "" {
			t.Fatalf("seed %d: a chain was accepted that %s: %+v", seed, why, bodies)
		}
		accepted++
		if len(links) > 2 {
			deep++
		}
		last := bodies[len(bodies)-1]
		for pair := range grants(last.Scope) {
			for _, above := range bodies {
				if !grants(above.Scope)[pair] {
					t.Fatalf("seed %d: the last link allows %v, that of %s does not: %+v", seed, pair, above.Subject.Name, bodies)
				}
			}
		}
		for _, action := range worldActions {
			for _, text := range worldResources {
				kind, id, _ := strings.Cut(text, "::")
				got := chain.Covers(action, creto.Resource{Type: kind, ID: id})
				if resolved := chain.Coverage(action, kind); resolved.Covers(id) != got || resolved.Everything() && !got || got != (nhi.Scope{Actions: []string{action}, Resources: resolved.Patterns()}).Covers(action, id) {
					t.Fatalf("seed %d: Coverage(%s, %s).Covers(%s) = %v, want %v: %+v", seed, action, kind, id, !got, got, bodies)
				}
				if want := grants(last.Scope)[[2]string{action, text}]; got != want {
					t.Fatalf("seed %d: Covers(%s, %s) = %v, want %v: %+v", seed, action, text, got, want, bodies)
				}
			}
		}
	}
	t.Logf("%d of %d chains hold, %d of them of more than 2 links", accepted, chains, deep)
	if accepted < chains/100 || deep < chains/1000 {
		t.Errorf("too few chains hold for the property to mean something")
	}
}

func keyOf(name string) pqc.PublicKey { return pqc.NewPublicKey(pqc.MLDSA65Ed25519, []byte(name)) }

// randomChain returns a chain that holds, or one with something wrong in it.
func randomChain(t *testing.T, r *rand.Rand, p pqc.Provider) (links []nhi.SignedLink, bodies []nhi.Link, at int64) {
	names := []string{"alice", "a", "b", "c", "d"}
	at = 1000
	link := nhi.Link{
		Issuer: testID(creto.KindHuman, "alice"), Scope: randomScope(r, nhi.Everything()), NotBefore: at - int64(r.IntN(50)), NotAfter: at + 1 + int64(r.IntN(100)),
		MaxDepth: uint(r.IntN(5)), Proof: nhi.Proof{Kind: nhi.ProofBootstrap},
	}
	signer := "root"
	for i := range 1 + r.IntN(4) {
		link.Subject = testID(creto.KindAgent, names[i+1])
		link.SubjectKey, link.Nonce = keyOf(names[i+1]), creto.NewUUID()
		switch r.IntN(60) { // now and then something is wrong
		case 0:
			link.Subject.Tenant = "other"
		case 1:
			link.Issuer.Name = "mallory"
		case 2:
			link.Parent[0]++
		case 3:
			signer = "mallory"
		case 4:
			link.MaxDepth += 2
		case 5:
			link.NotAfter += 1000
		case 6:
			link.Proof = nhi.Proof{}
		case 7:
			link.Proof = nhi.Proof{Kind: nhi.ProofBootstrap}
		case 8:
			at += 40
		case 9:
			link.NotBefore += 30
		}
		signed, err := nhi.SignLink(p, pqc.SigningKey{Algorithm: pqc.MLDSA65Ed25519, Seed: []byte(signer)}, link)
		if err != nil {
			t.Fatal(err)
		}
		link.Version = 2
		links, bodies = append(links, signed), append(bodies, link)
		signer = names[i+1]
		link.Issuer, link.Parent, link.Proof = link.Subject, signed.Digest(), nhi.Proof{}
		link.Scope = randomScope(r, link.Scope)
		link.NotAfter -= int64(r.IntN(10))
		if link.MaxDepth > 0 {
			link.MaxDepth--
		}
	}
	return links, bodies, at
}

func testID(kind creto.Kind, name string) creto.ID {
	return creto.ID{TrustDomain: "test.local", Tenant: creto.DefaultTenant, Kind: kind, Name: name}
}

// mustRefuse is the naive oracle: why the chain may not be accepted, or "".
func mustRefuse(links []nhi.Link, at int64) string {
	for i, l := range links {
		if l.NotBefore > at || l.NotAfter <= at {
			return "is not in force"
		}
		if l.Issuer.Tenant != l.Subject.Tenant {
			return "crosses tenants"
		}
		if (l.Proof.Kind != "") != (i == 0) {
			return "has a proof in the wrong place"
		}
		if money := l.Scope.Spend.String(); strings.HasPrefix(money, "-") {
			return "allows negative spending"
		}
		if i == 0 {
			continue
		}
		above := links[i-1]
		if l.Issuer != above.Subject {
			return "is broken in between"
		}
		if l.NotAfter > above.NotAfter {
			return "outlives its parent"
		}
		if l.MaxDepth >= above.MaxDepth {
			return "goes too deep"
		}
		for pair := range grants(l.Scope) {
			if !grants(above.Scope)[pair] {
				return "allows more"
			}
		}
		if bound := above.Scope.Spend; !bound.IsZero() {
			order, err := l.Scope.Spend.Compare(bound)
			if err != nil || order > 0 {
				return "may spend more"
			}
		}
	}
	return ""
}
