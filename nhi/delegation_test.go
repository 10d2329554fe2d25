package nhi_test

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// chainOf makes a valid chain alice → boss → helper and lets edit change the
// second link before it is signed.
func chainOf(t *testing.T, edit func(*nhi.Link)) ([]nhi.SignedLink, pqc.PublicKey) {
	t.Helper()
	p := localpqc.New()
	key := func() (pqc.SigningKey, pqc.PublicKey) {
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
	sign := func(k pqc.SigningKey, l nhi.Link) nhi.SignedLink {
		s, err := nhi.SignLink(p, k, l)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	id := func(kind creto.Kind, name string) creto.ID {
		return creto.ID{TrustDomain: "test.local", Tenant: "default", Kind: kind, Name: name}
	}
	root, rootPublic := key()
	boss, bossPublic := key()
	_, helperPublic := key()
	first := nhi.Link{
		Issuer: id(creto.KindHuman, "alice"), Subject: id(creto.KindAgent, "boss"), SubjectKey: bossPublic,
		Scope: nhi.Scope{Actions: []string{"call_*"}, Resources: []string{"*"}}, NotBefore: 1000, NotAfter: 2000, MaxDepth: 2,
		Proof: nhi.Proof{Kind: nhi.ProofBootstrap}, Nonce: creto.NewUUID(),
	}
	signed := sign(root, first)
	second := nhi.Link{
		Issuer: first.Subject, Subject: id(creto.KindAgent, "helper"), SubjectKey: helperPublic,
		Scope: nhi.Scope{Actions: []string{"call_model"}, Resources: []string{"Model::*"}}, NotBefore: 1000, NotAfter: 1900, MaxDepth: 1,
		Parent: signed.Digest(), Nonce: creto.NewUUID(),
	}
	if edit != nil {
		edit(&second)
	}
	return []nhi.SignedLink{signed, sign(boss, second)}, rootPublic
}

func TestVerifyDelegation(t *testing.T) {
	at := time.Unix(1500, 0)
	verify := func(links []nhi.SignedLink, root pqc.PublicKey, now time.Time) error {
		_, err := nhi.VerifyDelegation(t.Context(), links, []pqc.PublicKey{root}, localpqc.New(), now, nil)
		return err
	}
	links, root := chainOf(t, nil)
	if err := verify(links, root, at); err != nil {
		t.Fatalf("a good chain: %v", err)
	}
	refuse := func(name string, err error) {
		t.Helper()
		if !errors.Is(err, fault.NHIDelegationVerificationFailed) {
			t.Errorf("%s: %v, want NHIDelegationVerificationFailed", name, err)
		}
	}
	refuse("no links", verify(nil, root, at))
	refuse("too early", verify(links, root, time.Unix(999, 0)))
	refuse("too late", verify(links, root, time.Unix(1900, 0)))
	refuse("without its head", verify(links[1:], root, at))
	refuse("in another order", verify([]nhi.SignedLink{links[1], links[0]}, root, at))
	_, other := chainOf(t, nil)
	refuse("another root", verify(links, other, at))
	for i := range links[1].Body {
		flipped := []nhi.SignedLink{links[0], {Body: bytes.Clone(links[1].Body), Signature: links[1].Signature}}
		flipped[1].Body[i] ^= 1
		if i%37 == 0 {
			refuse("a flipped byte", verify(flipped, root, at))
		}
	}
	for name, edit := range map[string]func(*nhi.Link){
		"more actions":      func(l *nhi.Link) { l.Scope.Actions = []string{"*"} },
		"outlives":          func(l *nhi.Link) { l.NotAfter = 2001 },
		"too deep":          func(l *nhi.Link) { l.MaxDepth = 2 },
		"another tenant":    func(l *nhi.Link) { l.Subject.Tenant = "other" },
		"another domain":    func(l *nhi.Link) { l.Subject.TrustDomain = "other.test" },
		"another issuer":    func(l *nhi.Link) { l.Issuer.Name = "stranger" },
		"another parent":    func(l *nhi.Link) { l.Parent = creto.DigestOf(nil) },
		"to a human":        func(l *nhi.Link) { l.Subject.Kind = creto.KindHuman },
		"claims a proof":    func(l *nhi.Link) { l.Proof.Kind = nhi.ProofBootstrap },
		"issued by a human": func(l *nhi.Link) { l.Issuer.Kind = creto.KindHuman },
		"never in force":    func(l *nhi.Link) { l.NotBefore = l.NotAfter },
		"the end of time":   func(l *nhi.Link) { l.NotBefore, l.NotAfter = math.MaxInt64-1, math.MaxInt64 },
		"for all time":      func(l *nhi.Link) { l.NotBefore, l.NotAfter = math.MinInt64, math.MaxInt64 },
		"before all time":   func(l *nhi.Link) { l.NotBefore, l.NotAfter = math.MinInt64, math.MinInt64+1 },
		"depth wraps":       func(l *nhi.Link) { l.MaxDepth = math.MaxUint },
		"many actions":      func(l *nhi.Link) { l.Scope.Actions = slices.Repeat([]string{"call_model"}, 257) },
		"many resources":    func(l *nhi.Link) { l.Scope.Resources = slices.Repeat([]string{"Model::x"}, 257) },
		"a long pattern":    func(l *nhi.Link) { l.Scope.Resources = []string{strings.Repeat("x", 1025)} },
		"less than nothing": func(l *nhi.Link) { l.Scope.Spend = money(t, "-1.00 EUR") },
	} {
		links, root := chainOf(t, edit)
		refuse(name, verify(links, root, at))
	}
}

// TestTheEndOfTime: times that do not fit into a time.Time are in force at no
// time, rather than at a wrong one.
func TestTheEndOfTime(t *testing.T) {
	p := localpqc.New()
	key, err := p.GenerateSigningKey(pqc.MLDSA65Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	root, err := p.Public(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ from, to int64 }{
		"wraps":   {math.MaxInt64 - 1, math.MaxInt64},
		"long":    {0, math.MaxInt64},
		"longest": {math.MinInt64, math.MaxInt64},
	} {
		link, err := nhi.SignLink(p, key, nhi.Link{
			Issuer: nhitest.ID(creto.KindHuman, "alice"), Subject: nhitest.ID(creto.KindAgent, "bot"), SubjectKey: root,
			Scope: nhi.Everything(), NotBefore: test.from, NotAfter: test.to, Proof: nhi.Proof{Kind: nhi.ProofBootstrap},
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []time.Time{{}, time.Unix(1500, 0), time.Unix(math.MaxInt64, 0)} {
			if _, err := nhi.VerifyDelegation(t.Context(), []nhi.SignedLink{link}, []pqc.PublicKey{root}, p, at, nil); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
				t.Errorf("%s, at %v: %v, want NHIDelegationVerificationFailed", name, at, err)
			}
		}
	}
}

// TestEmptyScope: no actions, or no resources, are none.
func TestEmptyScope(t *testing.T) {
	for name, s := range map[string]nhi.Scope{
		"empty": {}, "no actions": {Resources: []string{"*"}}, "no resources": {Actions: []string{"*"}},
		"a star within": {Actions: []string{"call_*del"}, Resources: []string{"*"}},
	} {
		if s.Covers(creto.CallModel, "Model::m") {
			t.Errorf("the scope that is %s covers something", name)
		}
	}
}

func money(t *testing.T, text string) creto.Money {
	t.Helper()
	m, err := creto.ParseMoney(text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestSpendWithin: under a bound there is always one, as low and in the same
// currency; nothing at all is a bound too.
func TestSpendWithin(t *testing.T) {
	for _, test := range []struct {
		child, parent string
		want          bool
	}{
		{"", "", true}, {"5.00 EUR", "", true}, {"", "5.00 EUR", false}, {"5.00 EUR", "5.00 EUR", true}, {"5.01 EUR", "5.00 EUR", false},
		{"4.00 USD", "5.00 EUR", false}, {"0.00 EUR", "5.00 EUR", true}, {"0.00 USD", "5.00 EUR", false}, {"0.01 EUR", "0.00 EUR", false}, {"", "0.00 EUR", false},
	} {
		scope := func(text string) nhi.Scope {
			s := nhi.Everything()
			if text != "" {
				s.Spend = money(t, text)
			}
			return s
		}
		if got := scope(test.child).Within(scope(test.parent)); got != test.want {
			t.Errorf("%q within %q = %v, want %v", test.child, test.parent, got, test.want)
		}
	}
}

func TestScopeWithin(t *testing.T) {
	for _, test := range []struct {
		child, parent string
		want          bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "*", true}, {"*", "a", false},
		{"ab", "a*", true}, {"a*", "a*", true}, {"ab*", "a*", true}, {"a*", "ab*", false},
		{"a*", "a", false}, {"", "*", true}, {"*", "*", true}, {"*", "a*", false},
	} {
		child := nhi.Scope{Actions: []string{test.child}, Resources: []string{"*"}}
		parent := nhi.Scope{Actions: []string{test.parent}, Resources: []string{"*"}}
		if got := child.Within(parent); got != test.want {
			t.Errorf("%q within %q = %v, want %v", test.child, test.parent, got, test.want)
		}
	}
}

func FuzzParseLink(f *testing.F) {
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, data []byte) {
		link, err := nhi.SignedLink{Body: data}.Link()
		if err == nil && link.Version != 2 {
			t.Errorf("accepted version %d", link.Version)
		}
	})
}
