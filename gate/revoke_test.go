package gate_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
)

// TestRevocationUnderLoad: callers check as fast as they can while something of
// theirs is revoked. No check that begins after the revocation returned is
// allowed, and every check before it was.
func TestRevocationUnderLoad(t *testing.T) {
	const warmup = 20_000 // checks before the revocation
	for _, tt := range []struct {
		name   string
		revoke func(*testing.T, *house, nhi.Identity) error
	}{
		{"the token", func(t *testing.T, h *house, who nhi.Identity) error { return h.authority.RevokeToken(t.Context(), who) }},
		{"the agent", func(t *testing.T, h *house, who nhi.Identity) error { return h.authority.Revoke(t.Context(), who.ID) }},
		{"the human", func(t *testing.T, h *house, who nhi.Identity) error {
			return h.authority.Revoke(t.Context(), who.Human)
		}},
		{"the link above", func(t *testing.T, h *house, who nhi.Identity) error {
			links, err := h.authority.DelegationChain(t.Context(), who.ID)
			return errors.Join(err, h.authority.RevokeLink(t.Context(), links[0].Digest()))
		}},
		{"everything of the human's", func(t *testing.T, h *house, who nhi.Identity) error {
			_, err := h.authority.RevokeBelow(t.Context(), who.Human)
			return err
		}},
		{"by another delegation", func(t *testing.T, h *house, who nhi.Identity) error {
			link, err := h.authority.Draft(t.Context(), h.alice, who.ID, nhi.Grant{Scope: nhi.Everything(), TTL: time.Hour})
			if err != nil {
				return err
			}
			_, err = h.authority.Delegate(t.Context(), link, nhi.Proof{Kind: nhi.ProofBootstrap})
			return err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := build(t)
			boss := h.authority.ID(creto.KindAgent, "boss")
			if err := h.authority.AddAgent(t.Context(), boss); err != nil {
				t.Fatal(err)
			}
			h.delegate(t, h.alice, boss, time.Hour)
			h.delegate(t, boss, h.bot, time.Hour)
			token, _, err := h.authority.IssueToken(t.Context(), h.bot, localnhi.TokenRequest{})
			if err != nil {
				t.Fatal(err)
			}
			caller, err := h.gate.Open(t.Context(), nhi.Credential{Token: token})
			if err != nil {
				t.Fatal(err)
			}
			session, err := h.authorizer.Bind(t.Context(), caller.Chain())
			if err != nil {
				t.Fatal(err)
			}
			request := authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "gpt-4o"}}
			var checks, late, early, wrong atomic.Int64
			var revoking, revoked, stop atomic.Bool
			var group sync.WaitGroup
			for range 4 {
				group.Go(func() {
					for !stop.Load() {
						after := revoked.Load()
						_, err := h.gate.Open(t.Context(), nhi.Credential{Token: token})
						if err == nil {
							var d authz.Decision
							if d, err = h.authorizer.Peek(t.Context(), session, request); err == nil && d.Kind != authz.Allow {
								err = fault.AuthzDenied
							}
						}
						checks.Add(1)
						switch {
						case err == nil && after:
							late.Add(1)
						case err != nil && !revoking.Load():
							early.Add(1)
						case err != nil && fault.CategoryOf(err) != fault.Security && !errors.Is(err, fault.AuthzDenied):
							wrong.Add(1)
						}
					}
				})
			}
			start := time.Now()
			for checks.Load() < warmup {
				time.Sleep(time.Millisecond)
			}
			rate := float64(checks.Load()) / time.Since(start).Seconds()
			revoking.Store(true)
			begin := time.Now()
			if err := tt.revoke(t, h, caller.Identity()); err != nil {
				t.Error(err)
			}
			took := time.Since(begin)
			revoked.Store(true)
			for n := checks.Load(); checks.Load() < n+1000; {
				time.Sleep(time.Millisecond)
			}
			stop.Store(true)
			group.Wait()
			t.Logf("%.0f checks a second; the revocation took %v", rate, took)
			if late.Load() > 0 || early.Load() > 0 || wrong.Load() > 0 {
				t.Errorf("%d checks were allowed after the revocation, %d refused before it, %d failed otherwise", late.Load(), early.Load(), wrong.Load())
			}
		})
	}
}
