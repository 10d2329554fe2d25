package localnhi_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/internal/db"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

func open(t testing.TB) (*localnhi.Authority, *consensustest.Manual, func(kek pqc.SymmetricKey) (*localnhi.Authority, error)) {
	t.Helper()
	d, err := db.Open(t.Context(), filepath.Join(t.TempDir(), "creto.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
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
				id, err := a.AddHuman(t.Context(), name, groups...)
				must(t, err)
				return id
			},
			Delegated: func(t *testing.T, name string, issuer creto.ID, scope nhi.Scope) creto.ID {
				id, err := a.AddAgent(t.Context(), name)
				must(t, err)
				_, err = a.Delegate(t.Context(), issuer, id, scope, time.Hour, nhi.Proof{Kind: nhi.ProofBootstrap})
				must(t, err)
				return id
			},
			Token: func(t *testing.T, agent creto.ID) string {
				token, _, err := a.IssueToken(t.Context(), agent, "")
				must(t, err)
				return token
			},
			Revoke: func(t *testing.T, id creto.ID) { must(t, a.Revoke(t.Context(), id)) },
			Now: func() time.Time {
				now, err := clock.Now(t.Context())
				must(t, err)
				return now.Time()
			},
			Advance: clock.Advance,
		}
	})
}

func TestDelegateRefusesWidening(t *testing.T) {
	a, _, _ := open(t)
	alice, err := a.AddHuman(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	narrow := nhi.Scope{Actions: []string{creto.CallModel}, Resources: []string{"*"}}
	parent, err := a.AddAgent(t.Context(), "parent")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Delegate(t.Context(), alice, parent, narrow, time.Hour, nhi.Proof{Kind: nhi.ProofBootstrap}); err != nil {
		t.Fatal(err)
	}
	child, err := a.AddAgent(t.Context(), "child")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Delegate(t.Context(), parent, child, nhi.Everything(), time.Hour, nhi.Proof{}); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
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
	alice, err := a.AddHuman(b.Context(), "alice")
	if err != nil {
		b.Fatal(err)
	}
	bot, err := a.AddAgent(b.Context(), "bot")
	if err != nil {
		b.Fatal(err)
	}
	if _, err := a.Delegate(b.Context(), alice, bot, nhi.Everything(), time.Hour, nhi.Proof{Kind: nhi.ProofBootstrap}); err != nil {
		b.Fatal(err)
	}
	token, _, err := a.IssueToken(b.Context(), bot, "")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Resolve(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}
