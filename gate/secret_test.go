package gate_test

import (
	"errors"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
)

const secretPolicies = policies + `
@id("key") permit (principal == Creto::Agent::"bot", action == Creto::Action::"access_secret", resource == Creto::Secret::"key") when { context.delivery == "gateway" };
@id("lost") permit (principal == Creto::Agent::"bot", action == Creto::Action::"access_secret", resource == Creto::Secret::"lost") when { context.delivery == "gateway" };
@id("asked") @oversight("finance")
permit (principal == Creto::Agent::"bot", action == Creto::Action::"access_secret", resource == Creto::Secret::"asked") when { context.delivery == "raw" };
`

func (h *house) secret(t testing.TB, name, value string, agents ...creto.ID) {
	t.Helper()
	info := localnhi.SecretInfo{Tenant: h.bot.Tenant, Name: nhi.SecretRef(name), Owner: h.alice, Agents: agents}
	if _, err := h.authority.SetSecret(t.Context(), info, creto.NewSecret(value)); err != nil {
		t.Fatal(err)
	}
}

func TestSecret(t *testing.T) {
	h := build(t)
	h.legislate(t, secretPolicies)
	h.secret(t, "key", "canary-1")
	h.secret(t, "other", "canary-2")
	c := h.caller(t)
	via := func(name, delivery string) (creto.Secret, error) {
		got, _, err := h.gate.Secret(t.Context(), c, gate.Access{Secret: nhi.SecretRef(name), Delivery: delivery, Args: []byte("x"), Context: map[string]any{"delivery": "gateway", "host": "shop.test"}})
		return got, err
	}
	if got, err := via("key", gate.DeliveryGateway); err != nil || got.Reveal() != "canary-1" {
		t.Errorf("Secret = %q, %v", got.Reveal(), err)
	}
	for _, test := range []struct {
		name, delivery string
		want           fault.Code
	}{
		{"lost", gate.DeliveryGateway, fault.NHISecretNotFound}, // permitted, and not there
		{"key", gate.DeliveryRaw, fault.AuthzDenied},            // whatever the context claims
		{"other", gate.DeliveryGateway, fault.AuthzDenied},
		{"../key", gate.DeliveryGateway, fault.AuthzDenied},
		{"", gate.DeliveryGateway, fault.InvalidArgument},
		{"key", "", fault.InvalidArgument},
		{"key", "carrier pigeon", fault.InvalidArgument},
	} {
		if got, err := via(test.name, test.delivery); !errors.Is(err, test.want) || !got.IsZero() {
			t.Errorf("Secret(%q, %q) = %d bytes, %v; want %v", test.name, test.delivery, len(got.Reveal()), err, test.want)
		}
	}
	var got []string
	for _, r := range h.records(t, creto.AccessSecret) {
		got = append(got, strings.Join([]string{r.Resource, string(r.Outcome), r.Detail["delivery"], r.Detail[audit.DetailEvent]}, " "))
		if r.Who != h.bot || r.OnBehalfOf != h.alice && r.Resource != "Secret::" || strings.Contains(r.Why, "canary") {
			t.Errorf("recorded %+v", r)
		}
	}
	want := []string{
		"Secret::key success gateway secret_accessed", "Secret::lost failure gateway secret_missing",
		"Secret::key denied  ", "Secret::other denied  ", "Secret::../key denied  ", "Secret:: denied  ",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("recorded\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	h.check(t)
}

// What cannot be recorded is not handed out.
func TestSecretUnrecorded(t *testing.T) {
	h := build(t)
	h.legislate(t, secretPolicies)
	h.secret(t, "key", "canary-1")
	c := h.caller(t)
	h.log.down.Store(true)
	if got, _, err := h.gate.Secret(t.Context(), c, gate.Access{Secret: "key", Delivery: gate.DeliveryGateway}); !errors.Is(err, fault.AuditUnavailable) || !got.IsZero() {
		t.Errorf("Secret without a log = %d bytes, %v; want AuditUnavailable", len(got.Reveal()), err)
	}
}

// The owner's grant holds beside policy, and each is looked at when it counts:
// both may change while a human thinks.
func TestSecretAsked(t *testing.T) {
	h := build(t)
	h.legislate(t, secretPolicies)
	h.secret(t, "asked", "canary-1")
	c := h.caller(t)
	ask := func() chan error {
		done := make(chan error, 1)
		go func() {
			got, _, err := h.gate.Secret(t.Context(), c, gate.Access{Secret: "asked", Delivery: gate.DeliveryRaw, Args: []byte("why")})
			if err == nil && got.Reveal() != "canary-1" {
				err = errors.New("another value")
			}
			done <- err
		}()
		return done
	}
	done := ask()
	h.decide(t, "why", true)
	if err := <-done; err != nil {
		t.Errorf("after consent: %v", err)
	}
	boss := h.authority.ID(creto.KindAgent, "boss")
	if err := h.authority.AddAgent(t.Context(), boss); err != nil {
		t.Fatal(err)
	}
	done = ask()
	h.secret(t, "asked", "canary-2", boss)
	h.decide(t, "why", true)
	if err := <-done; !errors.Is(err, fault.NHISecretAccessDenied) {
		t.Errorf("after the grant was taken away: %v, want NHISecretAccessDenied", err)
	}
	done = ask()
	for len(h.pending(t)) == 0 {
	}
	if err := h.authority.Revoke(t.Context(), h.bot); err != nil {
		t.Fatal(err)
	}
	h.decide(t, "why", true)
	if err := <-done; err == nil || fault.CategoryOf(err) == fault.Transient {
		t.Errorf("after the agent was revoked: %v", err)
	}
}
