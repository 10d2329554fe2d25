package remoteauthz_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/remoteauthz"
	"creto.dev/internal/wire/wiretest"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc/localpqc"
)

func TestKept(t *testing.T) {
	h := open(t, policies, map[string][]string{"bot": {"bots"}})
	a, s := h.kept(t, wiretest.InMemory(t, h.serve), remoteauthz.Config{})
	asked := func(r authz.Request, want authz.Kind) int64 {
		t.Helper()
		before := h.policies.asked.Load()
		if d, err := a.Check(t.Context(), s, r); err != nil || d.Kind != want {
			t.Fatalf("Check(%+v) = %+v, %v; want %v", r, d, err, want)
		}
		return h.policies.asked.Load() - before
	}
	for _, c := range []struct {
		name  string
		r     authz.Request
		want  authz.Kind
		asked int64
	}{
		{"the same", model(nil), authz.Allow, 0},
		{"with what no policy reads", model(map[string]any{"path": "/v1/x"}), authz.Allow, 0},
		{"with what one reads", model(map[string]any{"amount": 3}), authz.Allow, 1},
		{"the same again", model(map[string]any{"amount": 3}), authz.Allow, 0},
		{"another amount", model(map[string]any{"amount": 1_000_000}), authz.Deny, 1},
		{"a denial is not kept", model(map[string]any{"amount": 1_000_000}), authz.Deny, 1},
		{"another action", tool(), authz.Allow, 1},
		{"and again", tool(), authz.Allow, 0},
		{"with a consent", authz.Request{Action: creto.CallTool, Resource: tool().Resource, Consents: []authz.Consent{authz.NewConsent(authz.Policy{ID: "tools"})}}, authz.Allow, 1},
	} {
		if got := asked(c.r, c.want); got != c.asked {
			t.Errorf("%s: policies were asked %d times, want %d", c.name, got, c.asked)
		}
	}
	// Another chain of the same agent has no part in it.
	other, err := a.Bind(t.Context(), nhitest.Chain(t, localpqc.New(), at, nhi.Scope{Actions: []string{creto.CallTool}, Resources: []string{"*"}}, "alice", "bot"))
	if err != nil {
		t.Fatal(err)
	}
	if d, err := a.Check(t.Context(), other, model(nil)); err != nil || d.Kind != authz.Deny {
		t.Errorf("Check by a narrow chain = %+v, %v; want deny", d, err)
	}
	// Who leaves a group is out of it with the next Bind.
	h.mu.Lock()
	h.groups = nil
	h.mu.Unlock()
	if s, err = a.Bind(t.Context(), s.Chain()); err != nil {
		t.Fatal(err)
	}
	asked(tool(), authz.Deny)
}

func TestNotKeptForLong(t *testing.T) {
	t.Run("policies", func(t *testing.T) {
		h := open(t, policies, nil)
		a, s := h.kept(t, wiretest.InMemory(t, h.serve), remoteauthz.Config{})
		h.write(t, `forbid (principal, action, resource);`)
		if err := h.policies.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		eventually(t, "denied", func() bool {
			d, err := a.Check(t.Context(), s, model(nil))
			return err == nil && d.Kind == authz.Deny
		})
		if took := time.Since(began); took > 3*time.Second { // 1 s, on a machine that is busy
			t.Errorf("denied after %v", took)
		}
	})
	t.Run("a revocation", func(t *testing.T) {
		h := open(t, policies, nil)
		a, s := h.kept(t, wiretest.InMemory(t, h.serve), remoteauthz.Config{})
		h.authority.revoke()
		eventually(t, "denied", func() bool {
			d, err := a.Check(t.Context(), s, model(nil))
			return err != nil && d.Kind == authz.Deny
		})
	})
	t.Run("time", func(t *testing.T) {
		h := open(t, policies, nil)
		a, s := h.kept(t, wiretest.InMemory(t, h.serve), remoteauthz.Config{Cache: remoteauthz.CacheConfig{TTL: 50 * time.Millisecond}})
		before := h.policies.asked.Load()
		eventually(t, "asked again", func() bool {
			if _, err := a.Check(t.Context(), s, model(nil)); err != nil {
				t.Fatal(err)
			}
			return h.policies.asked.Load() > before
		})
	})
}

type spender struct{ left atomic.Int64 }

func (s *spender) Name() string                                                     { return "spender" }
func (s *spender) Bind(context.Context, nhi.VerifiedChain) (authz.Evaluator, error) { return s, nil }
func (s *spender) Refund(authz.Reservation)                                         {}

func (s *spender) Evaluate(context.Context, authz.Request, bool) (authz.Reservation, *authz.Decision, error) {
	if s.left.Add(-1) < 0 {
		return authz.Reservation{}, &authz.Decision{Kind: authz.QuotaExceeded, Reason: "spent"}, nil
	}
	return authz.Reservation{}, nil, nil
}

func TestKeptSpends(t *testing.T) {
	h := open(t, policies, nil)
	quota := &spender{}
	quota.left.Store(1 << 40)
	a, s := h.kept(t, wiretest.InMemory(t, h.serve), remoteauthz.Config{Extensions: authz.Extensions{quota}})
	quota.left.Store(3)
	var kinds []authz.Kind
	for range 5 {
		d, err := a.Check(t.Context(), s, model(nil))
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, d.Kind)
	}
	if kinds[2] != authz.Allow || kinds[3] != authz.QuotaExceeded || kinds[4] != authz.QuotaExceeded {
		t.Errorf("with 3 left five checks are %v", kinds)
	}
}

func TestOnce(t *testing.T) {
	h := open(t, policies, nil)
	a, s := h.kept(t, wiretest.InMemory(t, h.serve), remoteauthz.Config{})
	h.policies.hold = make(chan struct{})
	before := h.policies.asked.Load()
	r := model(map[string]any{"amount": 5})
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			if d, err := a.Check(t.Context(), s, r); err != nil || d.Kind != authz.Allow {
				t.Errorf("Check = %+v, %v", d, err)
			}
		})
	}
	eventually(t, "asked", func() bool { return h.policies.asked.Load() > before })
	time.Sleep(50 * time.Millisecond) // for those who did not ask yet
	close(h.policies.hold)
	group.Wait()
	if n := h.policies.asked.Load() - before; n > 5 {
		t.Errorf("50 callers asked %d times", n)
	}
}

func TestNotKeptUnderOtherGroups(t *testing.T) {
	h := open(t, policies, nil)
	a, s := h.kept(t, wiretest.InMemory(t, h.serve), remoteauthz.Config{})
	join := func(groups map[string][]string) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.groups = groups
	}
	join(map[string][]string{"bot": {"bots"}})
	if d, err := a.Check(t.Context(), s, tool()); err != nil || d.Kind != authz.Allow {
		t.Fatalf("Check = %+v, %v", d, err)
	}
	join(nil)
	s, err := a.Bind(t.Context(), s.Chain())
	if err != nil {
		t.Fatal(err)
	}
	if d, err := a.Check(t.Context(), s, tool()); err != nil || d.Kind != authz.Deny {
		t.Errorf("Check = %+v, %v; want deny", d, err)
	}
}

func TestNotKeptUnderLaterGroups(t *testing.T) {
	h := open(t, policies, map[string][]string{"bot": {"bots"}})
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { _ = h.policies.Run(ctx) })
	defer func() { cancel(); group.Wait() }()
	a, s := h.kept(t, wiretest.InMemory(t, h.serve), remoteauthz.Config{})
	h.mu.Lock()
	h.groups = nil
	h.mu.Unlock()
	// Whatever is allowed until it has asked again, nothing is afterwards.
	deadline := time.Now().Add(2 * time.Second)
	for time.Now().Before(deadline) {
		var err error
		if s, err = a.Bind(t.Context(), s.Chain()); err != nil {
			t.Fatal(err)
		}
		d, err := a.Check(t.Context(), s, tool())
		if err != nil {
			t.Fatal(err)
		}
		if d.Kind == authz.Deny {
			return
		}
	}
	t.Error("an Allow of who left the group is kept")
}

func TestFlightUnderNewPolicies(t *testing.T) {
	h := open(t, policies, nil)
	h.policies.hold = make(chan struct{})
	close(h.policies.hold)
	a, s := h.kept(t, wiretest.InMemory(t, h.serve), remoteauthz.Config{})
	h.write(t, `
@id("urgent") permit (principal is Creto::Agent, action == Creto::Action::"call_tool", resource) when { context has ticket && context.ticket == "T1" };
@id("humans") permit (principal is Creto::Human, action, resource);`)
	if err := h.policies.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	h.policies.hold = hold
	ask := func(ticket string) chan authz.Kind {
		out := make(chan authz.Kind, 1)
		r := tool()
		r.Context = map[string]any{"ticket": ticket}
		go func() {
			d, err := a.Check(t.Context(), s, r)
			if err != nil {
				t.Error(err)
			}
			out <- d.Kind
		}()
		return out
	}
	before := h.policies.asked.Load()
	first := ask("T1")
	eventually(t, "the first asks", func() bool { return h.policies.asked.Load() > before })
	second := ask("T2")
	time.Sleep(20 * time.Millisecond) // so that it waits for the first, if it does
	close(hold)
	if kind := <-first; kind != authz.Allow {
		t.Errorf("T1: %v, want allow", kind)
	}
	if kind := <-second; kind != authz.Deny {
		t.Errorf("T2: %v, want deny", kind)
	}
}
