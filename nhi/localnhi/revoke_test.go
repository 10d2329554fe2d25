package localnhi_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/internal/db/dbtest"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// hooked is a clock that does something once, at a call to come.
type hooked struct {
	consensus.Clock
	calls int
	do    func()
}

func (h *hooked) Now(ctx context.Context) (creto.Timestamp, error) {
	if h.calls--; h.calls == 0 {
		h.do()
	}
	return h.Clock.Now(ctx)
}

// house is an authority that can be opened again.
type house struct {
	*localnhi.Authority
	clock *hooked
	time  *consensustest.Manual
	open  func() error
	db    *sql.DB
	alice creto.ID
}

func newHouse(t *testing.T) *house {
	t.Helper()
	d := dbtest.Open(t)
	p := localpqc.New()
	kek, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		t.Fatal(err)
	}
	h := &house{time: &consensustest.Manual{}, db: d}
	h.time.Set(time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC))
	h.clock = &hooked{Clock: h.time}
	h.open = func() (err error) {
		h.Authority, err = localnhi.Open(t.Context(), localnhi.Config{TrustDomain: "test.local", Tenant: creto.DefaultTenant}, d, p, h.clock, kek)
		return err
	}
	h.must(t, h.open())
	h.alice = h.ID(creto.KindHuman, "alice")
	h.must(t, h.AddMember(t.Context(), h.alice))
	return h
}

// again is the authority after a restart that nothing was closed for, as after
// kill -9; h stays what it is.
func (h *house) again(t *testing.T) *localnhi.Authority {
	t.Helper()
	before := h.Authority
	h.must(t, h.open())
	a := h.Authority
	h.Authority = before
	return a
}

func (h *house) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (h *house) agent(t *testing.T, name string, issuer creto.ID, scope nhi.Scope) creto.ID {
	t.Helper()
	id := h.ID(creto.KindAgent, name)
	h.must(t, h.AddAgent(t.Context(), id))
	h.must(t, delegate(t, h.Authority, issuer, id, scope))
	return id
}

func (h *house) token(t *testing.T, agent creto.ID, r localnhi.TokenRequest) string {
	t.Helper()
	token, _, err := h.IssueToken(t.Context(), agent, r)
	h.must(t, err)
	return token
}

// TestIssueRacesWithRevocation: a token that was asked for before a revocation
// never belongs to the time after it, whenever in its making that comes.
func TestIssueRacesWithRevocation(t *testing.T) {
	for call := 1; call <= 2; call++ {
		for name, revoke := range map[string]func(*house, creto.ID) error{
			"tokens":    func(h *house, id creto.ID) error { return h.RevokeTokens(t.Context(), id) },
			"principal": func(h *house, id creto.ID) error { return h.Revoke(t.Context(), id) },
		} {
			t.Run(fmt.Sprint(name, call), func(t *testing.T) {
				h := newHouse(t)
				bot := h.agent(t, "bot", h.alice, nhi.Everything())
				h.clock.calls, h.clock.do = call, func() { h.must(t, revoke(h, bot)) }
				token, _, err := h.IssueToken(t.Context(), bot, localnhi.TokenRequest{})
				if h.clock.calls > 0 {
					t.Fatal("nothing was revoked")
				}
				if err != nil {
					return
				}
				if who, err := h.Resolve(t.Context(), nhi.Credential{Token: token}); !errors.Is(err, fault.NHITokenInvalid) {
					t.Errorf("Resolve of a token from before the revocation = epoch %d, %v; want NHITokenInvalid", who.Epoch, err)
				}
			})
		}
	}
}

// TestRevokedStaysRevoked: what was revoked is so after a restart, and the epoch
// never goes back, also once what was revoked has ended and is forgotten.
func TestRevokedStaysRevoked(t *testing.T) {
	h := newHouse(t)
	bot := h.agent(t, "bot", h.alice, nhi.Everything())
	linked := h.agent(t, "linked", h.alice, nhi.Everything())
	gone := h.agent(t, "gone", h.alice, nhi.Everything())
	tokens := map[string]string{"token": h.token(t, bot, localnhi.TokenRequest{}), "principal": h.token(t, gone, localnhi.TokenRequest{})}
	good := h.token(t, bot, localnhi.TokenRequest{})
	who, err := h.Resolve(t.Context(), nhi.Credential{Token: tokens["token"]})
	h.must(t, err)
	h.must(t, h.RevokeToken(t.Context(), who))
	links, err := h.DelegationChain(t.Context(), linked)
	h.must(t, err)
	h.must(t, h.RevokeLink(t.Context(), links[0].Digest()))
	h.must(t, h.Revoke(t.Context(), gone))
	epoch, err := h.Epoch()
	h.must(t, err)
	again := h.again(t)
	if got, err := again.Epoch(); err != nil || got != epoch {
		t.Errorf("after a restart the epoch is %d, %v; it was %d", got, err, epoch)
	}
	for name, token := range tokens {
		if _, err := again.Resolve(t.Context(), nhi.Credential{Token: token}); !errors.Is(err, fault.NHITokenInvalid) {
			t.Errorf("after a restart the revoked %s: Resolve = %v, want NHITokenInvalid", name, err)
		}
	}
	if _, err := again.Resolve(t.Context(), nhi.Credential{Token: good}); err != nil {
		t.Errorf("after a restart a good token: %v", err)
	}
	if _, err := again.Chain(t.Context(), linked); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
		t.Errorf("after a restart the chain of a revoked link = %v", err)
	}
	h.time.Advance(nhi.MaxTokenTTL + time.Second)
	other, err := again.Resolve(t.Context(), nhi.Credential{Token: h.token(t, bot, localnhi.TokenRequest{})})
	h.must(t, err)
	h.must(t, again.RevokeToken(t.Context(), other)) // forgets the one that has ended
	if got, err := h.again(t).Epoch(); err != nil || got != epoch+1 {
		t.Errorf("after the old were forgotten the epoch is %d, %v; want %d", got, err, epoch+1)
	}
}

// TestNarrowerDelegationBindsWhoIsBelow: who passed on what they had before
// cannot keep it alive below them.
func TestNarrowerDelegationBindsWhoIsBelow(t *testing.T) {
	h := newHouse(t)
	boss := h.agent(t, "boss", h.alice, nhi.Everything())
	helper := h.agent(t, "helper", boss, nhi.Everything())
	if _, err := h.Chain(t.Context(), helper); err != nil {
		t.Fatal(err)
	}
	h.must(t, delegate(t, h.Authority, h.alice, boss, nhi.Scope{Actions: []string{creto.CallModel}, Resources: []string{"*"}}))
	for name, a := range map[string]*localnhi.Authority{"now": h.Authority, "after a restart": h.again(t)} {
		if chain, err := a.Chain(t.Context(), helper); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
			t.Errorf("%s, below a delegation that was replaced: %v, %v; want NHIDelegationVerificationFailed", name, chain.Principals(), err)
		}
		if _, err := a.Chain(t.Context(), boss); err != nil {
			t.Errorf("%s, the new delegation: %v", name, err)
		}
	}
	h.must(t, delegate(t, h.Authority, boss, helper, nhi.Scope{Actions: []string{creto.CallModel}, Resources: []string{"*"}}))
	if _, err := h.Chain(t.Context(), helper); err != nil {
		t.Errorf("delegated to again: %v", err)
	}
}

// TestNothingIsGivenBelowARevocation: an agent whose chain has broken above it
// signs nothing and gets no secret, though its own token is good.
func TestNothingIsGivenBelowARevocation(t *testing.T) {
	for name, end := range map[string]func(*house) error{
		"the human": func(h *house) error { return h.Revoke(t.Context(), h.alice) },
		"an agent":  func(h *house) error { return h.Revoke(t.Context(), h.ID(creto.KindAgent, "boss")) },
		"a link": func(h *house) error {
			links, err := h.DelegationChain(t.Context(), h.ID(creto.KindAgent, "boss"))
			return errors.Join(err, h.RevokeLink(t.Context(), links[0].Digest()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			helper := h.agent(t, "helper", h.agent(t, "boss", h.alice, nhi.Everything()), nhi.Everything())
			_, err := h.SetSecret(t.Context(), localnhi.SecretInfo{Tenant: helper.Tenant, Name: "key", Owner: h.alice, Agents: []creto.ID{helper}}, creto.NewSecret("s3cr3t"))
			h.must(t, err)
			who, err := h.Resolve(t.Context(), nhi.Credential{Token: h.token(t, helper, localnhi.TokenRequest{})})
			h.must(t, err)
			_, err = h.Sign(t.Context(), who, pqc.PurposeMessage, []byte("hello"))
			h.must(t, err)
			h.must(t, end(h))
			if sig, err := h.Sign(t.Context(), who, pqc.PurposeMessage, []byte("hello")); !errors.Is(err, fault.NHIDelegationVerificationFailed) || len(sig.Bytes) > 0 {
				t.Errorf("Sign = %v, want NHIDelegationVerificationFailed", err)
			}
			if secrets, err := h.DelegatedSecrets(t.Context(), who, []nhi.SecretRef{"key"}); !errors.Is(err, fault.NHIDelegationVerificationFailed) || len(secrets) > 0 {
				t.Errorf("DelegatedSecrets = %d, %v; want NHIDelegationVerificationFailed", len(secrets), err)
			}
		})
	}
}

// TestNothingIsGivenUnderAnotherDelegation: nor one whose delegation was
// replaced since its token was issued.
func TestNothingIsGivenUnderAnotherDelegation(t *testing.T) {
	h := newHouse(t)
	bot := h.agent(t, "bot", h.alice, nhi.Everything())
	who, err := h.Resolve(t.Context(), nhi.Credential{Token: h.token(t, bot, localnhi.TokenRequest{})})
	h.must(t, err)
	h.must(t, delegate(t, h.Authority, h.alice, bot, nhi.Scope{Actions: []string{creto.CallModel}, Resources: []string{"*"}}))
	if _, err := h.Sign(t.Context(), who, pqc.PurposeMessage, []byte("hello")); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Sign under a delegation that was replaced = %v, want NHITokenInvalid", err)
	}
}

const doorURL = "http://localhost:7300/v1/models"

// TestProofAcrossRestart: a proof that was used before a restart is not good
// after it, although nothing remembers it.
func TestProofAcrossRestart(t *testing.T) {
	h := newHouse(t)
	p := nhitest.NewProver(t, "ES256")
	token := h.token(t, h.agent(t, "bot", h.alice, nhi.Everything()), localnhi.TokenRequest{Confirmation: nhi.Confirmation{JKT: p.Thumbprint(t)}})
	present := func(at time.Time) nhi.Credential {
		return nhi.Credential{Token: token, DPoP: p.Prove(t, "dpop+jwt", p.Claims("GET", doorURL, token, at)), Method: "GET", URL: doorURL}
	}
	now := func() time.Time { stamp, _ := h.time.Now(t.Context()); return stamp.Time() }
	used := present(now())
	_, err := h.Resolve(t.Context(), used)
	h.must(t, err)
	h.time.Advance(time.Second)
	again := h.again(t)
	if _, err := again.Resolve(t.Context(), used); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("after a restart a used proof = %v, want NHITokenInvalid", err)
	}
	if _, err := again.Resolve(t.Context(), present(now())); err != nil {
		t.Errorf("after a restart a fresh proof = %v", err)
	}
	if _, err := again.Resolve(t.Context(), present(now().Add(30*time.Second))); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("a proof that is good in half a minute = %v, want NHITokenInvalid", err)
	}
}

// TestProofsAreRemembered: as long as their time passes, however often the
// memory turns over.
func TestProofsAreRemembered(t *testing.T) {
	h := newHouse(t)
	p := nhitest.NewProver(t, "EdDSA")
	token := h.token(t, h.agent(t, "bot", h.alice, nhi.Everything()), localnhi.TokenRequest{Confirmation: nhi.Confirmation{JKT: p.Thumbprint(t)}})
	start, err := h.time.Now(t.Context())
	h.must(t, err)
	var used []nhi.Credential
	for second := 0; second < 300; second += 5 {
		at := start.Time().Add(time.Duration(second) * time.Second)
		h.time.Set(at)
		ahead := at.Add(time.Duration(second%7) * time.Second)
		c := nhi.Credential{Token: token, DPoP: p.Prove(t, "dpop+jwt", p.Claims("GET", doorURL, token, ahead)), Method: "GET", URL: doorURL}
		_, err := h.Resolve(t.Context(), c)
		h.must(t, err)
		used = append(used, c)
		for i, old := range used[max(0, len(used)-16):] {
			if _, err := h.Resolve(t.Context(), old); !errors.Is(err, fault.NHITokenInvalid) {
				t.Fatalf("at %d s the proof %d of the last 16 passes again: %v", second, i, err)
			}
		}
	}
}

// TestKillSwitch: one revocation ends all who act for a human, at once, and
// nobody else.
func TestKillSwitch(t *testing.T) {
	h := newHouse(t)
	bob := h.ID(creto.KindHuman, "bob")
	h.must(t, h.AddMember(t.Context(), bob))
	h.must(t, h.AddTenant(t.Context(), "acme"))
	theirs := h.IDOf("acme", creto.KindHuman, "alice")
	h.must(t, h.AddMember(t.Context(), theirs))
	other := h.IDOf("acme", creto.KindAgent, "boss")
	h.must(t, h.AddAgent(t.Context(), other))
	h.must(t, delegate(t, h.Authority, theirs, other, nhi.Everything()))
	boss := h.agent(t, "boss", h.alice, nhi.Everything())
	helper := h.agent(t, "helper", boss, nhi.Everything())
	bobs := h.agent(t, "bobs", bob, nhi.Everything())
	before, err := h.Epoch()
	h.must(t, err)
	active := func(want ...creto.ID) {
		t.Helper()
		for _, id := range []creto.ID{boss, helper, bobs, other} {
			if err := h.Known(t.Context(), id); (err == nil) != slices.Contains(want, id) {
				t.Errorf("%s: %v; want only %v active", id, err, want)
			}
		}
	}
	active(boss, helper, bobs, other)
	gone, err := h.RevokeBelow(t.Context(), h.alice)
	if err != nil || !slices.Equal(gone, []creto.ID{boss, helper}) {
		t.Errorf("RevokeBelow = %v, %v", gone, err)
	}
	active(bobs, other)
	gone, err = h.RevokeAgents(t.Context(), bob.Tenant)
	if err != nil || !slices.Equal(gone, []creto.ID{bobs}) {
		t.Errorf("RevokeAgents = %v, %v", gone, err)
	}
	active(other)
	if epoch, err := h.Epoch(); err != nil || epoch != before+2 {
		t.Errorf("the epoch is %d, %v; want %d", epoch, err, before+2)
	}
}

// TestRevokeTokens: an agent that must begin anew has no token, no delegation and
// nobody below it, and what was below it does not come back with it.
func TestRevokeTokens(t *testing.T) {
	h := newHouse(t)
	boss := h.agent(t, "boss", h.alice, nhi.Everything())
	helper := h.agent(t, "helper", boss, nhi.Everything())
	token, below := h.token(t, boss, localnhi.TokenRequest{}), h.token(t, helper, localnhi.TokenRequest{})
	h.must(t, h.RevokeTokens(t.Context(), boss))
	dead := func(when string) {
		t.Helper()
		if _, err := h.Resolve(t.Context(), nhi.Credential{Token: token}); !errors.Is(err, fault.NHITokenInvalid) {
			t.Errorf("%s, Resolve = %v, want NHITokenInvalid", when, err)
		}
		if _, err := h.Chain(t.Context(), helper); !errors.Is(err, fault.NHIDelegationVerificationFailed) {
			t.Errorf("%s, the chain below = %v, want NHIDelegationVerificationFailed", when, err)
		}
		if _, err := h.Inspect(t.Context(), below); !errors.Is(err, fault.NHITokenInvalid) {
			t.Errorf("%s, Inspect of the token below = %v, want NHITokenInvalid", when, err)
		}
	}
	dead("revoked")
	if _, err := h.DelegationChain(t.Context(), boss); !errors.Is(err, fault.NHINotFound) {
		t.Errorf("DelegationChain = %v, want NHINotFound", err)
	}
	h.must(t, delegate(t, h.Authority, h.alice, boss, nhi.Everything()))
	if _, err := h.Chain(t.Context(), boss); err != nil {
		t.Errorf("delegated to again: %v", err)
	}
	dead("delegated to again")
	// Who delegates is revoked by its epoch too, not only by its link.
	links, err := h.DelegationChain(t.Context(), boss)
	h.must(t, err)
	link, err := links[0].Link()
	h.must(t, err)
	ref := nhi.LinkRef{Digest: creto.DigestOf([]byte("another")), Issuer: boss, Subject: helper, IssuerEpoch: link.SubjectEpoch}
	for epoch, want := range map[uint64]int{link.SubjectEpoch: -1, link.SubjectEpoch - 1: 0, link.SubjectEpoch + 1: 0} {
		ref.IssuerEpoch = epoch
		if got, err := h.Revoked(t.Context(), []nhi.LinkRef{ref}); err != nil || got != want {
			t.Errorf("Revoked of a link from epoch %d of its issuer = %d, %v; want %d", epoch, got, err, want)
		}
	}
}

// TestUnknownTenant: nobody is of a tenant that is not there, whatever they are
// called.
func TestUnknownTenant(t *testing.T) {
	h := newHouse(t)
	h.must(t, h.AddTenant(t.Context(), "acme"))
	for _, id := range []creto.ID{
		h.IDOf("other", creto.KindHuman, "alice"), h.IDOf("other", creto.KindAgent, "bot"), h.IDOf("acme2", creto.KindWorkload, "ci"),
	} {
		add := h.AddMember
		if id.Kind == creto.KindAgent {
			add = func(ctx context.Context, id creto.ID, _ ...string) error { return h.AddAgent(ctx, id) }
		}
		if err := add(t.Context(), id); !errors.Is(err, fault.NotFound) {
			t.Errorf("adding %s = %v, want NotFound", id, err)
		}
		if err := h.Known(t.Context(), id); !errors.Is(err, fault.NHINotFound) {
			t.Errorf("Known of %s = %v, want NHINotFound", id, err)
		}
	}
	for _, name := range []string{"", "..", "../x", "a/b", "Acme", "x\x00", strings.Repeat("x", 300)} {
		if err := h.AddTenant(t.Context(), name); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("AddTenant %q = %v, want InvalidArgument", name, err)
		}
	}
	stranger := h.alice
	stranger.TrustDomain = "other.test"
	if err := h.AddMember(t.Context(), stranger); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("AddMember of another trust domain = %v, want InvalidArgument", err)
	}
}
