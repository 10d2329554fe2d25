package gate_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/pqc/localpqc"
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
		"Secret::key denied raw ", "Secret::other denied gateway ", "Secret::../key denied gateway ", "Secret:: denied gateway ",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("recorded\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	h.check(t)
}

// authority answers for secrets as a test says.
type authority struct {
	nhi.Authority
	secrets func(context.Context, nhi.Identity, []nhi.SecretRef) ([]creto.Secret, error)
}

func (a authority) DelegatedSecrets(ctx context.Context, who nhi.Identity, refs []nhi.SecretRef) ([]creto.Secret, error) {
	return a.secrets(ctx, who, refs)
}

func TestSecretAuthority(t *testing.T) {
	for _, test := range []struct {
		name    string
		secrets func(h *house, call int) ([]creto.Secret, error)
		want    fault.Code
	}{
		{"the log fails before it", nil, fault.AuditUnavailable},
		// What cannot be recorded is not handed out.
		{"the log fails meanwhile", func(h *house, _ int) ([]creto.Secret, error) {
			h.log.down.Store(true)
			return []creto.Secret{creto.NewSecret("canary-1")}, nil
		}, fault.AuditUnavailable},
		{"it has forgotten the token", func(_ *house, call int) ([]creto.Secret, error) {
			if call == 1 {
				return nil, fault.New("test", fault.NHITokenInvalid, "who?")
			}
			return []creto.Secret{creto.NewSecret("canary-1")}, nil
		}, fault.OK},
		{"it does not know the token", func(*house, int) ([]creto.Secret, error) {
			return nil, fault.New("test", fault.NHITokenInvalid, "who?")
		}, fault.NHITokenInvalid},
		{"it answers with nothing", func(*house, int) ([]creto.Secret, error) { return nil, nil }, fault.NHIInternal},
		{"it answers with too much", func(*house, int) ([]creto.Secret, error) {
			return []creto.Secret{creto.NewSecret("a"), creto.NewSecret("b")}, nil
		}, fault.NHIInternal},
		{"it answers with an empty value", func(*house, int) ([]creto.Secret, error) { return make([]creto.Secret, 1), nil }, fault.NHIInternal},
		{"it is down", func(*house, int) ([]creto.Secret, error) {
			return nil, fault.New("test", fault.NHIUnavailable, "down")
		}, fault.NHIUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, calls := build(t), 0
			h.legislate(t, secretPolicies)
			h.gate = gate.New(authority{h.authority, func(context.Context, nhi.Identity, []nhi.SecretRef) ([]creto.Secret, error) {
				calls++
				return test.secrets(h, calls)
			}}, localpqc.New(), h.clock, h.authorizer, h.log, h.desk, h.meter, nil)
			c := h.caller(t)
			h.log.down.Store(test.secrets == nil)
			got, _, err := h.gate.Secret(t.Context(), c, gate.Access{Secret: "key", Delivery: gate.DeliveryGateway})
			if fault.CodeOf(err) != test.want || (err == nil) != (got.Reveal() == "canary-1") || calls > 2 || strings.Contains(fmt.Sprint(err), "canary") {
				t.Errorf("Secret = %d bytes, %v after %d calls; want %v", len(got.Reveal()), err, calls, test.want)
			}
		})
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

// BenchmarkSecret is what one access costs: policy, an unsealed row, and a
// record on disk before the value is anybody's.
func BenchmarkSecret(b *testing.B) {
	h := build(b)
	h.legislate(b, secretPolicies)
	h.secret(b, "key", "canary-1")
	c := h.caller(b)
	ctx, stop := context.WithCancel(b.Context())
	drained := make(chan error, 1)
	go func() { drained <- h.log.auditLog.(interface{ Run(context.Context) error }).Run(ctx) }()
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := h.gate.Secret(b.Context(), c, gate.Access{Secret: "key", Delivery: gate.DeliveryGateway}); err != nil {
			b.Fatal(err)
		}
	}
	stop()
	<-drained
}
