package localnhi_test

import (
	"errors"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

func open(t testing.TB) (*localnhi.Authority, *consensustest.Manual, func(kek pqc.SymmetricKey) (*localnhi.Authority, error)) {
	t.Helper()
	d := dbtest.Open(t)
	p := localpqc.New()
	kek, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		t.Fatal(err)
	}
	clock := &consensustest.Manual{}
	clock.Set(time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC))
	cfg := localnhi.Config{TrustDomain: "test.local", Tenant: creto.DefaultTenant}
	again := func(kek pqc.SymmetricKey) (*localnhi.Authority, error) {
		return localnhi.Open(t.Context(), cfg, d, p, clock, kek)
	}
	a, err := again(kek)
	if err != nil {
		t.Fatal(err)
	}
	return a, clock, again
}

func TestAuthority(t *testing.T) {
	nhitest.Run(t, func(t *testing.T) nhitest.Harness {
		a, clock, _ := open(t)
		must := func(t *testing.T, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		return nhitest.Harness{
			Authority: a, Provider: localpqc.New(),
			Human: func(t *testing.T, name string, groups ...string) creto.ID {
				id := a.ID(creto.KindHuman, name)
				must(t, a.AddMember(t.Context(), id, groups...))
				return id
			},
			Delegated: func(t *testing.T, name string, issuer creto.ID, scope nhi.Scope) creto.ID {
				id := a.ID(creto.KindAgent, name)
				must(t, a.AddAgent(t.Context(), id))
				must(t, delegate(t, a, issuer, id, scope))
				return id
			},
			Redelegate: func(t *testing.T, agent, issuer creto.ID, scope nhi.Scope) {
				must(t, delegate(t, a, issuer, agent, scope))
			},
			Token: func(t *testing.T, agent creto.ID, audience string, cnf nhi.Confirmation) string {
				token, _, err := a.IssueToken(t.Context(), agent, localnhi.TokenRequest{Audience: audience, Confirmation: cnf})
				must(t, err)
				return token
			},
			Revoke: func(t *testing.T, id creto.ID) { must(t, a.Revoke(t.Context(), id)) },
			RevokeLink: func(t *testing.T, id creto.ID) {
				links, err := a.DelegationChain(t.Context(), id)
				must(t, err)
				must(t, a.RevokeLink(t.Context(), links[len(links)-1].Digest()))
			},
			RevokeToken: func(t *testing.T, who nhi.Identity) { must(t, a.RevokeToken(t.Context(), who)) },
			Secret: func(t *testing.T, agent creto.ID, name, value string) {
				info := localnhi.SecretInfo{Tenant: agent.Tenant, Name: nhi.SecretRef(name), Owner: a.ID(creto.KindHuman, "alice"), Agents: []creto.ID{agent}}
				_, err := a.SetSecret(t.Context(), info, creto.NewSecret(value))
				must(t, err)
			},
			Now:     func() time.Time { stamp, _ := clock.Now(t.Context()); return stamp.Time() },
			Advance: func(d time.Duration) { clock.Advance(d) },
		}
	})
}

// delegate passes scope on for an hour.
func delegate(t testing.TB, a *localnhi.Authority, issuer, agent creto.ID, scope nhi.Scope) error {
	t.Helper()
	link, err := a.Draft(t.Context(), issuer, agent, nhi.Grant{Scope: scope, TTL: time.Hour, MaxDepth: nhi.DefaultMaxDepth})
	if err != nil {
		return err
	}
	var proof nhi.Proof
	if issuer.Kind == creto.KindHuman {
		proof.Kind = nhi.ProofBootstrap
	}
	_, err = a.Delegate(t.Context(), link, proof)
	return err
}

func TestDelegateNoMoreThanOneHas(t *testing.T) {
	a, _, _ := open(t)
	alice, parent, child := a.ID(creto.KindHuman, "alice"), a.ID(creto.KindAgent, "parent"), a.ID(creto.KindAgent, "child")
	if err := errors.Join(a.AddMember(t.Context(), alice), a.AddAgent(t.Context(), parent), a.AddAgent(t.Context(), child)); err != nil {
		t.Fatal(err)
	}
	narrow := nhi.Scope{Actions: []string{creto.CallModel}, Resources: []string{"*"}}
	if err := delegate(t, a, alice, parent, narrow); err != nil {
		t.Fatal(err)
	}
	if err := delegate(t, a, parent, child, nhi.Everything()); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("Delegate of more than one has = %v, want NHIDelegationVerificationFailed", err)
	}
}

func TestOpenWithAnotherKey(t *testing.T) {
	_, _, again := open(t)
	other, err := localpqc.New().GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again(other); !errors.Is(err, fault.CryptoDecryptionFailed) {
		t.Errorf("Open with another key-encryption key = %v, want CryptoDecryptionFailed", err)
	}
}

func BenchmarkResolve(b *testing.B) {
	a, _, _ := open(b)
	alice, bot := a.ID(creto.KindHuman, "alice"), a.ID(creto.KindAgent, "bot")
	if err := errors.Join(a.AddMember(b.Context(), alice), a.AddAgent(b.Context(), bot), delegate(b, a, alice, bot, nhi.Everything())); err != nil {
		b.Fatal(err)
	}
	token, _, err := a.IssueToken(b.Context(), bot, localnhi.TokenRequest{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Resolve(b.Context(), nhi.Credential{Token: token}); err != nil {
			b.Fatal(err)
		}
	}
}
