package localnhi_test

import (
	"encoding/base64"
	"errors"
	"slices"
	"testing"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/pqc"
)

// breakAt makes the database refuse a kind of statement, as it would if the
// process ended there: the transaction does not commit.
func (h *house) breakAt(t *testing.T, when string) (mend func()) {
	t.Helper()
	return dbtest.Break(t, h.db, when)
}

// TestRotationEndsAnywhere: whatever statement of it fails, the key before stays
// in use, in this life and the next, and the next try replaces it.
func TestRotationEndsAnywhere(t *testing.T) {
	for role, statements := range map[string][]string{
		localnhi.RoleRoot:      {"UPDATE ON signing_key", "INSERT ON signing_key", "INSERT ON key_certificate"},
		localnhi.RoleToken:     {"UPDATE ON signing_key", "INSERT ON signing_key"},
		localnhi.RoleSVID:      {"UPDATE ON signing_key", "INSERT ON signing_key"},
		localnhi.RoleCA:        {"UPDATE ON signing_key", "INSERT ON signing_key"},
		localnhi.RolePrincipal: {"UPDATE ON signing_key", "INSERT ON signing_key"},
		nhi.RoleCheckpoint:     {"UPDATE ON signing_key", "INSERT ON signing_key"},
	} {
		for _, statement := range statements {
			t.Run(role+" "+statement, func(t *testing.T) {
				h := newHouse(t)
				bot := h.agent(t, "bot", h.alice, nhi.Everything())
				_, err := h.CheckpointSigner(t.Context(), "test.local/log")
				h.must(t, err)
				owner := localnhi.Platform
				if role == localnhi.RolePrincipal {
					owner = bot.String()
				}
				token := h.token(t, bot, localnhi.TokenRequest{})
				active := func(a *localnhi.Authority) (active []pqc.KeyID) {
					t.Helper()
					keys, err := a.Keys(t.Context(), owner)
					h.must(t, err)
					for _, k := range keys {
						if k.Role == role && k.Retired.IsZero() {
							active = append(active, k.ID)
						}
					}
					return active
				}
				before := active(h.Authority)
				mend := h.breakAt(t, statement)
				if _, err := h.Rotate(t.Context(), owner, role); err == nil {
					t.Fatal("nothing broke")
				}
				mend()
				for name, a := range map[string]*localnhi.Authority{"now": h.Authority, "after a restart": h.again(t)} {
					if got := active(a); !slices.Equal(got, before) || len(got) != 1 {
						t.Errorf("%s the keys in use are %v, want %v", name, got, before)
					}
					who, err := a.Resolve(t.Context(), nhi.Credential{Token: token})
					h.must(t, err)
					_, err = a.Sign(t.Context(), who, pqc.PurposeMessage, []byte("hello"))
					h.must(t, err)
					_, _, err = a.IssueToken(t.Context(), bot, localnhi.TokenRequest{})
					h.must(t, err)
					certificates, err := a.Certificates(t.Context(), "log")
					if err != nil || len(certificates) != 2 {
						t.Errorf("%s there are %d certificates, %v; want the log's alone", name, len(certificates), err)
					}
				}
				next, err := h.Rotate(t.Context(), owner, role)
				h.must(t, err)
				if got := active(h.again(t)); !slices.Equal(got, []pqc.KeyID{next.ID}) || slices.Contains(before, next.ID) {
					t.Errorf("after the next try the keys in use are %v, want %s", got, next.ID)
				}
			})
		}
	}
}

// TestRevocationEndsAnywhere: one that does not reach the disk is none, neither
// in memory nor in the next life, and says so; and the epoch stays.
func TestRevocationEndsAnywhere(t *testing.T) {
	for name, test := range map[string]struct {
		statements []string
		revoke     func(*house, nhi.Identity) error
	}{
		"a principal": {[]string{"UPDATE ON principal", "INSERT ON revocation"}, func(h *house, who nhi.Identity) error { return h.Revoke(t.Context(), who.ID) }},
		"its tokens":  {[]string{"UPDATE ON principal", "INSERT ON revocation"}, func(h *house, who nhi.Identity) error { return h.RevokeTokens(t.Context(), who.ID) }},
		"a token":     {[]string{"INSERT ON revoked_token", "INSERT ON revocation"}, func(h *house, who nhi.Identity) error { return h.RevokeToken(t.Context(), who) }},
		"all below": {[]string{"UPDATE ON principal", "INSERT ON revocation"}, func(h *house, who nhi.Identity) error {
			gone, err := h.RevokeBelow(t.Context(), who.Human)
			if err != nil && len(gone) > 0 {
				t.Errorf("RevokeBelow claims %v", gone)
			}
			return err
		}},
		"a replaced delegation": {[]string{"INSERT ON revoked_link", "INSERT ON delegation_link", "UPDATE ON principal", "INSERT ON revocation"}, func(h *house, who nhi.Identity) error {
			return delegate(t, h.Authority, h.alice, who.ID, nhi.Everything())
		}},
	} {
		for _, statement := range test.statements {
			t.Run(name+" "+statement, func(t *testing.T) {
				h := newHouse(t)
				bot := h.agent(t, "bot", h.alice, nhi.Everything())
				token := h.token(t, bot, localnhi.TokenRequest{})
				who, err := h.Resolve(t.Context(), nhi.Credential{Token: token})
				h.must(t, err)
				before, err := h.Epoch()
				h.must(t, err)
				mend := h.breakAt(t, statement)
				if err := test.revoke(h, who); err == nil {
					t.Fatal("nothing broke")
				}
				mend()
				for life, a := range map[string]*localnhi.Authority{"now": h.Authority, "after a restart": h.again(t)} {
					if epoch, err := a.Epoch(); err != nil || epoch != before {
						t.Errorf("%s the epoch is %d, %v; want %d", life, epoch, err, before)
					}
					if _, err := a.Resolve(t.Context(), nhi.Credential{Token: token}); err != nil {
						t.Errorf("%s Resolve = %v", life, err)
					}
					if chain, err := a.Chain(t.Context(), bot); err != nil || chain.Digest() != who.Chain {
						t.Errorf("%s the chain is %s, %v", life, chain.Digest(), err)
					}
				}
				h.must(t, test.revoke(h, who))
				for life, a := range map[string]*localnhi.Authority{"now": h.Authority, "after a restart": h.again(t)} {
					if epoch, err := a.Epoch(); err != nil || epoch != before+1 {
						t.Errorf("%s, revoked, the epoch is %d, %v; want %d", life, epoch, err, before+1)
					}
					_, err := a.Inspect(t.Context(), token)
					if !errors.Is(err, fault.NHITokenInvalid) {
						t.Errorf("%s, revoked, Inspect = %v, want NHITokenInvalid", life, err)
					}
				}
			})
		}
	}
}

// TestRootsOfAllGenerations: a chain under a root that was replaced twice holds,
// with links of each generation in it, in this life and the next.
func TestRootsOfAllGenerations(t *testing.T) {
	h := newHouse(t)
	issuer := h.alice
	agents := make([]creto.ID, 0, 3)
	for _, name := range []string{"first", "second", "third"} {
		agents = append(agents, h.agent(t, name, issuer, nhi.Everything()))
		_, err := h.Rotate(t.Context(), localnhi.Platform, localnhi.RoleRoot)
		h.must(t, err)
	}
	for life, a := range map[string]*localnhi.Authority{"now": h.Authority, "after a restart": h.again(t)} {
		for _, id := range agents {
			if _, err := a.Chain(t.Context(), id); err != nil {
				t.Errorf("%s, the chain of %s: %v", life, id.Name, err)
			}
		}
		certificates, err := a.Certificates(t.Context(), "log")
		if err != nil || len(certificates) != 2+2*len(agents) {
			t.Errorf("%s there are %d certificates, %v", life, len(certificates), err)
		}
	}
	var sealed int
	h.must(t, h.db.QueryRowContext(t.Context(), "SELECT count(*) FROM signing_key WHERE role = 'root' AND length(sealed) > 0").Scan(&sealed))
	if sealed != 1 {
		t.Errorf("%d roots have a secret, want the one in use", sealed)
	}
}

// TestAgentKeyIsReplaced: what it signed and whom it delegated to stay good, it
// signs with the new key, and delegates further only once it was delegated to
// under that.
func TestAgentKeyIsReplaced(t *testing.T) {
	h := newHouse(t)
	boss := h.agent(t, "boss", h.alice, nhi.Everything())
	helper := h.agent(t, "helper", boss, nhi.Everything())
	who, err := h.Resolve(t.Context(), nhi.Credential{Token: h.token(t, boss, localnhi.TokenRequest{})})
	h.must(t, err)
	next, err := h.Rotate(t.Context(), boss.String(), localnhi.RolePrincipal)
	h.must(t, err)
	if _, err := h.Chain(t.Context(), helper); err != nil {
		t.Errorf("the chain below: %v", err)
	}
	sig, err := h.Sign(t.Context(), who, pqc.PurposeMessage, []byte("hello"))
	if err != nil || sig.Key != next.ID {
		t.Errorf("Sign = key %s, %v; want the new one, %s", sig.Key, err, next.ID)
	}
	other := h.ID(creto.KindAgent, "other")
	h.must(t, h.AddAgent(t.Context(), other))
	if err := delegate(t, h.Authority, boss, other, nhi.Everything()); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("Delegate with a key that no link names = %v, want FailedPrecondition", err)
	}
	h.must(t, delegate(t, h.Authority, h.alice, boss, nhi.Everything()))
	if err := delegate(t, h.Authority, boss, other, nhi.Everything()); err != nil {
		t.Errorf("Delegate once it was delegated to again = %v", err)
	}
}

// TestKeysAreSealedInTheirPlace: whoever can write the database cannot have one
// key do another's work (B-6).
func TestKeysAreSealedInTheirPlace(t *testing.T) {
	for name, change := range map[string]string{
		"another key's secret":  "UPDATE signing_key SET sealed = (SELECT sealed FROM signing_key WHERE role = 'checkpoint') WHERE role = 'root'",
		"another key's role":    "UPDATE signing_key SET role = CASE role WHEN 'root' THEN 'checkpoint' ELSE 'root' END WHERE role IN ('root', 'checkpoint')",
		"an agent's as root":    "UPDATE signing_key SET role = 'root', owner = 'platform' WHERE role = 'principal'",
		"an earlier key's name": "UPDATE signing_key SET kid = 'x' WHERE role = 'root'",
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.agent(t, "bot", h.alice, nhi.Everything())
			_, err := h.CheckpointSigner(t.Context(), "test.local/log")
			h.must(t, err)
			if name == "an agent's as root" {
				_, err := h.db.ExecContext(t.Context(), "DELETE FROM signing_key WHERE role = 'root'")
				h.must(t, err)
			}
			_, err = h.db.ExecContext(t.Context(), "DROP INDEX signing_key_active")
			h.must(t, err)
			_, err = h.db.ExecContext(t.Context(), change)
			h.must(t, err)
			if err := h.open(); !errors.Is(err, fault.FailedPrecondition) {
				t.Errorf("Open = %v, want FailedPrecondition", err)
			}
		})
	}
}

// TestNoCertificateIsNone: a token that claims the binding to no certificate is
// not good without one.
func TestNoCertificateIsNone(t *testing.T) {
	h := newHouse(t)
	zero := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	token := h.token(t, h.agent(t, "bot", h.alice, nhi.Everything()), localnhi.TokenRequest{Confirmation: nhi.Confirmation{X5T: zero}})
	if _, err := h.Resolve(t.Context(), nhi.Credential{Token: token}); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Resolve without a certificate = %v, want NHITokenInvalid", err)
	}
}
