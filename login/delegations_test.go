package login_test

import (
	"errors"
	"fmt"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/login"
	"creto.dev/nhi"
)

var bootstrap = nhi.Proof{Kind: nhi.ProofBootstrap}

func TestDelegations(t *testing.T) {
	h := open(t)
	ctx := t.Context()
	alice := h.human("alice")
	ask := func(agent string) login.Delegation {
		t.Helper()
		d, err := h.delegations.Ask(ctx, h.draft(t, "alice", agent), login.Shown{Policy: "permit", Quotas: []string{"q"}}, h.human("bob"))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	waiting := func() (names []string) {
		t.Helper()
		list, err := h.delegations.For(ctx, alice)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			names = append(names, d.Link.Subject.Name)
		}
		return names
	}
	first := ask("one")
	ask("two")
	if got := fmt.Sprint(waiting()); got != "[one two]" {
		t.Errorf("waiting are %s", got)
	}
	if list, err := h.delegations.For(ctx, h.human("bob")); err != nil || len(list) > 0 {
		t.Errorf("for bob wait %v, %v", list, err)
	}
	// The newest question about an agent is the one that counts.
	again := ask("one")
	if d, err := h.delegations.Show(ctx, first.ID); err != nil || d.State != login.Declined {
		t.Errorf("the older one is %s, %v", d.State, err)
	}
	_, err := h.delegations.Confirm(ctx, first.ID, alice, bootstrap)
	refused(t, "the older one", err, fault.FailedPrecondition)
	if err := h.delegations.Decline(ctx, again.ID, alice); err != nil {
		t.Fatal(err)
	}
	h.records(t, audit.EventDelegationDeclined, 1)
	_, err = h.delegations.Confirm(ctx, again.ID, alice, bootstrap)
	refused(t, "a declined one", err, fault.FailedPrecondition)
	if _, err := h.authority.Chain(ctx, h.authority.ID(creto.KindAgent, "one")); err == nil {
		t.Error("what was declined is in force")
	}
	_, err = h.delegations.Show(ctx, "nothing")
	refused(t, "an unknown one", err, fault.NotFound)

	// What was revoked since is not passed on.
	three := ask("three")
	if err := h.authority.Revoke(ctx, three.Link.Subject); err != nil {
		t.Fatal(err)
	}
	_, err = h.delegations.Confirm(ctx, three.ID, alice, bootstrap)
	refused(t, "a revoked agent's", err, fault.NHIDelegationVerificationFailed)

	late := ask("four")
	h.clock.Advance(login.PendingTTL)
	_, err = h.delegations.Confirm(ctx, late.ID, alice, bootstrap)
	refused(t, "an old one", err, fault.FailedPrecondition)
	if d, err := h.delegations.Show(ctx, late.ID); err != nil || d.State != login.Expired || len(waiting()) > 0 {
		t.Errorf("it is %s, %v; waiting are %v", d.State, err, waiting())
	}

	link := h.draft(t, "alice", "five")
	link.Issuer.Kind = creto.KindAgent
	_, err = h.delegations.Ask(ctx, link, login.Shown{}, alice)
	refused(t, "an agent's", err, fault.InvalidArgument)
	for n := 0; ; n++ {
		_, err := h.delegations.Ask(ctx, h.draft(t, "alice", fmt.Sprintf("many-%d", n)), login.Shown{}, alice)
		if errors.Is(err, fault.ResourceExhausted) && n == 64 {
			break
		}
		if err != nil {
			t.Fatalf("the %dth: %v", n+1, err)
		}
	}
}

// Of two answers at once one counts.
func TestDelegationRace(t *testing.T) {
	h := open(t)
	d, err := h.delegations.Ask(t.Context(), h.draft(t, "alice", "bot"), login.Shown{}, h.human("alice"))
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan error)
	for range 8 {
		go func() {
			_, err := h.delegations.Confirm(t.Context(), d.ID, h.human("alice"), bootstrap)
			results <- err
		}()
	}
	confirmed := 0
	for range 8 {
		if err := <-results; err == nil {
			confirmed++
		} else if !errors.Is(err, fault.FailedPrecondition) {
			t.Errorf("Confirm = %v, want FailedPrecondition", err)
		}
	}
	if confirmed != 1 {
		t.Errorf("%d of 8 counted, want 1", confirmed)
	}
}

func TestDevices(t *testing.T) {
	h := open(t)
	ctx := t.Context()
	fresh := h.session(t, "alice", login.MethodPasskey)
	begin := func() login.Device {
		t.Helper()
		d, err := h.devices.Begin(ctx, "creto on laptop\x1b")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := begin()
	if _, _, err := h.devices.Token(ctx, d.Code); !errors.Is(err, login.ErrDevicePending) {
		t.Errorf("before an answer: %v", err)
	}
	if client, err := h.devices.Client(ctx, h.human("alice"), " "+d.UserCode[:4]+d.UserCode[5:]); err != nil || client != "creto on laptop\x1b" {
		t.Errorf("Client = %q, %v", client, err)
	}
	refused(t, "a session from another one", h.devices.Answer(ctx, h.session(t, "alice", login.MethodToken), d.UserCode, true), fault.PermissionDenied)
	if err := h.devices.Answer(ctx, fresh, d.UserCode, true); err != nil {
		t.Fatal(err)
	}
	refused(t, "a second answer", h.devices.Answer(ctx, h.session(t, "bob", login.MethodPasskey), d.UserCode, true), fault.NotFound)
	token, _, err := h.devices.Token(ctx, d.Code)
	if err != nil {
		t.Fatal(err)
	}
	s, err := h.sessions.Find(ctx, token)
	if err != nil || s.Human != h.human("alice") || s.Fresh || s.Method != login.MethodToken {
		t.Errorf("the session is %+v, %v", s, err)
	}
	_, _, err = h.devices.Token(ctx, d.Code)
	refused(t, "a second token", err, fault.NotFound)

	d = begin()
	if err := h.devices.Answer(ctx, h.session(t, "alice", login.MethodToken), d.UserCode, false); err != nil {
		t.Fatal(err)
	}
	_, _, err = h.devices.Token(ctx, d.Code)
	refused(t, "a refused one", err, fault.PermissionDenied)
	d = begin()
	h.clock.Advance(login.DeviceTTL)
	_, _, err = h.devices.Token(ctx, d.Code)
	refused(t, "an old one", err, fault.NotFound)

	// Guesses end.
	d = begin()
	for range 10 {
		_, err := h.devices.Client(ctx, h.human("bob"), "BBBB-BBBB")
		refused(t, "a wrong code", err, fault.NotFound)
	}
	_, err = h.devices.Client(ctx, h.human("bob"), d.UserCode)
	refused(t, "the right code after ten wrong ones", err, fault.ResourceExhausted)
	if _, err := h.devices.Client(ctx, h.human("alice"), d.UserCode); err != nil {
		t.Errorf("another human: %v", err)
	}
	// Beyond the bound the oldest ends.
	for range 1024 {
		begin()
	}
	_, _, err = h.devices.Token(ctx, d.Code)
	refused(t, "one of too many", err, fault.NotFound)
}
