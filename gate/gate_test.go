package gate_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/metering"
	"creto.dev/nhi"
	"creto.dev/oversight"
)

// Whatever act does, it is recorded once, and its reservation settled once.
func TestOutcomes(t *testing.T) {
	usage := &audit.Usage{PromptTokens: 7}
	returns := func(r gate.Result, err error) gate.Act {
		return func(context.Context) (gate.Result, error) { return r, err }
	}
	for _, test := range []struct {
		name      string
		act       gate.Act
		want      audit.Outcome
		why       string
		code      fault.Code
		committed bool
	}{
		{"success", returns(gate.Result{Usage: usage, Detail: map[string]string{"status": "200"}}, nil), audit.Success, "", fault.OK, true},
		{"failure", returns(gate.Result{}, fault.New("x", fault.Unavailable, "upstream is down")), audit.Failure, "upstream is down", fault.Unavailable, false},
		{"failure of a foreign kind", returns(gate.Result{}, errors.New("secret=hunter2")), audit.Failure, "internal", fault.Internal, false},
		{"failure that used something", returns(gate.Result{Usage: usage}, fault.New("x", fault.Unavailable, "cut off")), audit.Failure, "cut off", fault.Unavailable, true},
		{"timeout", returns(gate.Result{}, fmt.Errorf("post: %w", context.DeadlineExceeded)), audit.Timeout, "deadline_exceeded", fault.DeadlineExceeded, true},
		{"given up", returns(gate.Result{}, fmt.Errorf("post: %w", context.Canceled)), audit.Timeout, "canceled", fault.Canceled, true},
		{"panic", func(context.Context) (gate.Result, error) { panic(http.ErrAbortHandler) }, audit.Unknown, "panic", fault.OK, true},
		{"end of its goroutine", func(context.Context) (gate.Result, error) { runtime.Goexit(); return gate.Result{}, nil }, audit.Unknown, "panic", fault.OK, true},
		{"noise in its details", returns(gate.Result{Detail: map[string]string{"\xff": "\xfe"}}, nil), audit.Success, "", fault.OK, true},
		{"details without end", returns(gate.Result{Detail: many(1000)}, fault.New("x", fault.Unavailable, "%s", strings.Repeat("x", 1<<20))), audit.Failure, "x", fault.Unavailable, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := build(t)
			h.limit(t, creto.CallModel, 10)
			c := h.caller(t)
			var id audit.RecordID
			var err error
			var raised any
			var group sync.WaitGroup
			group.Go(func() {
				defer func() { raised = recover() }()
				id, err = h.gate.Do(t.Context(), c, callModel(), test.act)
			})
			group.Wait()
			passed, _ := raised.(error)
			if fault.CodeOf(err) != test.code || test.name == "panic" && !errors.Is(passed, http.ErrAbortHandler) {
				t.Errorf("Do = %v (panic %v), want %v", err, raised, test.code)
			}
			records := h.records(t, creto.CallModel)
			if len(records) != 1 {
				t.Fatalf("there are %d records, want 1", len(records))
			}
			r := records[0]
			if r.Outcome != test.want || !strings.Contains(r.Why, test.why) || strings.Contains(r.Why, "hunter2") {
				t.Errorf("outcome %s %q, want %s with %q", r.Outcome, r.Why, test.want, test.why)
			}
			if r.Who != h.bot || r.OnBehalfOf != h.alice || r.Chain != c.Identity().Chain || r.Args != callModel().ArgsDigest() ||
				r.Decision == nil || r.Decision.Kind != "allow" || len(r.Decision.Policies) != 2 || test.want != audit.Unknown && r.ID != id {
				t.Errorf("the record is %+v", r)
			}
			h.meter.mu.Lock()
			if got := h.meter.committed == 1; got != test.committed || h.meter.committed+h.meter.refunded != 1 {
				t.Errorf("committed %d, refunded %d; want committed %v", h.meter.committed, h.meter.refunded, test.committed)
			}
			h.meter.mu.Unlock()
			if test.committed != gate.Charged(r) {
				t.Errorf("Charged = %v, but it was committed: %v", gate.Charged(r), test.committed)
			}
			h.check(t)
		})
	}
}

func many(n int) map[string]string {
	m := make(map[string]string)
	for i := range n {
		m[fmt.Sprint(i)] = strings.Repeat("y", 5000)
	}
	return m
}

// Nothing reaches act without an Allow, and every refusal is recorded once.
func TestNothingWithoutAllow(t *testing.T) {
	model, tool := callModel(), creto.Action{Name: creto.CallTool, Resource: creto.Resource{Type: "Tool", ID: "x/y"}}
	forged := tool
	forged.Context = map[string]any{"isolation": "gvisor", "taint": "none"}
	long := model
	long.Resource.ID = strings.Repeat("x", 20<<10)
	noise := model
	noise.Resource.ID = "\xff"
	unknown := creto.Action{Name: "fly", Resource: creto.Resource{Type: "Model", ID: "x"}}
	elsewhere := model
	elsewhere.Sandbox = "run-2"
	for _, test := range []struct {
		name    string
		arrange func(t *testing.T, h *house, c *gate.Caller) *gate.Caller
		action  creto.Action
		want    fault.Code
		silent  bool // there is nobody or nothing to record
	}{
		{"no policy", nil, creto.Action{Name: creto.NetworkEgress, Resource: creto.Resource{Type: "Host", ID: "x:443"}}, fault.AuthzDenied, false},
		{"expired token", func(_ *testing.T, h *house, c *gate.Caller) *gate.Caller { h.clock.Advance(time.Hour); return c }, model, fault.NHITokenExpired, false},
		{"revoked agent", func(t *testing.T, h *house, c *gate.Caller) *gate.Caller { h.revoke(t, h.bot); return c }, model, fault.NHITokenInvalid, false},
		{"revoked human", func(t *testing.T, h *house, c *gate.Caller) *gate.Caller { h.revoke(t, h.alice); return c }, model, fault.NHIDelegationVerificationFailed, false},
		{"another delegation", func(t *testing.T, h *house, c *gate.Caller) *gate.Caller {
			h.delegate(t, h.alice, h.bot, time.Hour)
			h.clock.Advance(time.Second)
			return c
		}, model, fault.NHITokenInvalid, false},
		{"the delegation ends", func(t *testing.T, h *house, _ *gate.Caller) *gate.Caller {
			h.delegate(t, h.alice, h.bot, time.Minute)
			c := h.caller(t)
			h.clock.Advance(time.Minute)
			return c
		}, model, fault.NHITokenExpired, false},
		{"spent quota", func(t *testing.T, h *house, c *gate.Caller) *gate.Caller {
			h.limit(t, creto.SpawnSandbox, 1)
			spawn := creto.Action{Name: creto.SpawnSandbox, Resource: creto.Resource{Type: "Image", ID: "host"}}
			if _, err := h.gate.Do(t.Context(), c, spawn, nothing(new(atomic.Int32))); err != nil {
				t.Fatal(err)
			}
			return c
		}, creto.Action{Name: creto.SpawnSandbox, Resource: creto.Resource{Type: "Image", ID: "host2"}}, fault.ResourceExhausted, false},
		{"forged isolation", nil, forged, fault.AuthzDenied, false},
		{"a resource without end", nil, long, fault.InvalidArgument, false},
		{"a resource of noise", nil, noise, fault.InvalidArgument, false},
		{"no action", nil, unknown, fault.InvalidArgument, true},
		{"another run's token", func(t *testing.T, h *house, _ *gate.Caller) *gate.Caller {
			c, err := h.gate.Open(t.Context(), nhi.Credential{Token: h.token(t, "run-1")})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}, elsewhere, fault.NHITokenInvalid, false},
		{"the zero caller", func(*testing.T, *house, *gate.Caller) *gate.Caller { return &gate.Caller{} }, model, fault.NHITokenExpired, true},
		{"no time", func(_ *testing.T, h *house, c *gate.Caller) *gate.Caller { h.clock.Fail(true); return c }, model, fault.ConsensusUnavailable, true},
		{"no policies left", func(t *testing.T, h *house, c *gate.Caller) *gate.Caller { h.legislate(t, ""); return c }, model, fault.AuthzDenied, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := build(t)
			c := h.caller(t)
			if _, err := h.gate.Do(t.Context(), c, model, nothing(new(atomic.Int32))); err != nil {
				t.Fatal(err) // the caller is warm
			}
			if test.arrange != nil {
				c = test.arrange(t, h, c)
			}
			before := 0
			if !test.silent {
				before = len(h.records(t, test.action.Name))
			}
			var acted atomic.Int32
			_, err := h.gate.Do(t.Context(), c, test.action, nothing(&acted))
			if fault.CodeOf(err) != test.want || acted.Load() != 0 {
				t.Errorf("Do = %v and acted %d times, want %v and none", err, acted.Load(), test.want)
			}
			if test.want == fault.ResourceExhausted && fault.RetryAfter(err) != time.Hour {
				t.Errorf("RetryAfter = %v, want 1h", fault.RetryAfter(err))
			}
			h.clock.Fail(false)
			if test.silent {
				return
			}
			records := h.records(t, test.action.Name)
			if len(records) != before+1 || records[before].Outcome != audit.Denied || records[before].Why == "" {
				t.Fatalf("the refusal left %+v", records[before:])
			}
			h.check(t)
		})
	}
}

func (h *house) revoke(t testing.TB, id creto.ID) {
	t.Helper()
	if err := h.authority.Revoke(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// A token is opened once and remembered, until it is good no more.
func TestOpen(t *testing.T) {
	h := build(t)
	token := h.token(t, "run-1")
	c, err := h.gate.Open(t.Context(), nhi.Credential{Token: token})
	if err != nil || c.Identity().ID != h.bot || c.Chain().Human() != h.alice {
		t.Fatalf("Open = %+v, %v", c, err)
	}
	if again, err := h.gate.Open(t.Context(), nhi.Credential{Token: token}); err != nil || again != c {
		t.Errorf("Open again = %p, %v; want the caller %p", again, err, c)
	}
	// The run of a bound token is recorded without being told.
	if _, err := h.gate.Do(t.Context(), c, callModel(), nothing(new(atomic.Int32))); err != nil {
		t.Fatal(err)
	}
	if r := h.records(t, creto.CallModel)[0]; r.Sandbox != "run-1" {
		t.Errorf("the record names the run %q, want run-1", r.Sandbox)
	}
	if c, err := h.gate.Open(t.Context(), nhi.Credential{Token: token + "x"}); !errors.Is(err, fault.NHITokenInvalid) || c != nil {
		t.Errorf("Open of a forged token = %v, %v", c, err)
	}
	h.delegate(t, h.alice, h.bot, time.Hour)
	h.clock.Advance(time.Second)
	if c, err := h.gate.Open(t.Context(), nhi.Credential{Token: token}); !errors.Is(err, fault.NHITokenInvalid) || c != nil {
		t.Errorf("Open after another delegation = %v, %v; want NHITokenInvalid", c, err)
	}
	if _, err := h.gate.Do(t.Context(), c, callModel(), nothing(new(atomic.Int32))); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("Do after another delegation = %v, want NHITokenInvalid", err)
	}
	if c.Chain().Valid() {
		t.Error("a caller that is good no more has a chain")
	}
	h.check(t)
}

// Agents come and go; the gate does not remember them for ever, and forgetting
// costs nobody anything.
func TestManyTokens(t *testing.T) {
	h := build(t)
	h.gate.SetMaxCallers(10)
	first := h.caller(t)
	for range 25 {
		h.caller(t)
	}
	if n := h.gate.Remembered(); n != 10 {
		t.Errorf("%d callers are remembered, want 10", n)
	}
	if _, err := h.gate.Do(t.Context(), first, callModel(), nothing(new(atomic.Int32))); err != nil {
		t.Errorf("Do of the first = %v", err)
	}
	// The expired make room for the others.
	h.clock.Advance(time.Hour)
	h.caller(t)
	if n := h.gate.Remembered(); n != 1 {
		t.Errorf("%d callers are remembered, want the only one whose token is good", n)
	}
}

// do runs an action beside the test and returns its end.
func (h *house) do(ctx context.Context, c *gate.Caller, a creto.Action, act gate.Act) <-chan error {
	end := make(chan error, 1)
	go func() {
		_, err := h.gate.Do(ctx, c, a, act)
		end <- err
	}()
	return end
}

// A human approves, and the record proves it: of these arguments, once.
func TestConsent(t *testing.T) {
	h := build(t)
	h.limit(t, creto.HTTPRequest, 100)
	c := h.caller(t)
	var acted atomic.Int32
	end := h.do(t.Context(), c, refund("50"), nothing(&acted))
	request := h.decide(t, "50", true)
	if err := <-end; err != nil || acted.Load() != 1 {
		t.Fatalf("Do = %v, acted %d times", err, acted.Load())
	}
	records := h.records(t, creto.HTTPRequest)
	if len(records) != 1 || len(records[0].Consents) != 1 || records[0].ID.String() != request.ID || records[0].CheckConsents() != nil || !records[0].Consents[0].Human {
		t.Errorf("the record is %+v", records)
	}
	// The same again, and other arguments, ask again.
	for _, args := range []string{"50", "60"} {
		end := h.do(t.Context(), c, refund(args), nothing(&acted))
		h.decide(t, args, false)
		if err := <-end; !errors.Is(err, fault.AuthzDenied) || !strings.Contains(fault.Message(err), "denied by bob") {
			t.Errorf("Do of %s = %v, want a denial by bob", args, err)
		}
	}
	if acted.Load() != 1 {
		t.Errorf("acted %d times, want once", acted.Load())
	}
	// A retry with its key finds the denial.
	keyed := refund("70")
	keyed.IdempotencyKey = "k"
	end = h.do(t.Context(), c, keyed, nothing(&acted))
	h.decide(t, "70", false)
	<-end
	if _, err := h.gate.Do(t.Context(), c, keyed, nothing(&acted)); !errors.Is(err, fault.AuthzDenied) || len(h.pending(t)) != 0 {
		t.Errorf("the retry = %v with %d questions waiting; want the denial", err, len(h.pending(t)))
	}
	h.check(t)
}

// One approval, two identical actions: one acts, the other asks again.
func TestConsentCountsOnce(t *testing.T) {
	h := build(t)
	h.limit(t, creto.HTTPRequest, 100)
	c := h.caller(t)
	var acted atomic.Int32
	ends := make(chan error, 2)
	for range 2 {
		go func() { ends <- <-h.do(t.Context(), c, refund("50"), nothing(&acted)) }()
	}
	h.decide(t, "50", true)
	if err := <-ends; err != nil || acted.Load() != 1 {
		t.Fatalf("the first ended with %v, acted %d times", err, acted.Load())
	}
	h.decide(t, "50", false) // the second's own question
	if err := <-ends; !errors.Is(err, fault.AuthzDenied) || acted.Load() != 1 {
		t.Errorf("the second ended with %v, acted %d times; want a denial and 1", err, acted.Load())
	}
	h.check(t)
}

// While a human thinks, everything may change; what holds when the answer comes
// is what counts.
func TestChangesWhileWaiting(t *testing.T) {
	reworded := strings.Replace(policies, `@timeout("30m")`, `@timeout("29m")`, 1)
	for _, test := range []struct {
		name   string
		change func(*testing.T, *house)
		want   fault.Code
		state  oversight.State // of the approval afterwards
	}{
		{"nothing", func(*testing.T, *house) {}, fault.OK, oversight.Consumed},
		{"policy forbids", func(t *testing.T, h *house) {
			h.legislate(t, policies+`forbid (principal, action == Creto::Action::"http_request", resource);`)
		}, fault.AuthzDenied, oversight.Approved},
		{"policy asks no more", func(t *testing.T, h *house) {
			h.legislate(t, `permit (principal, action, resource);`)
		}, fault.OK, oversight.Approved},
		{"the agent is revoked", func(t *testing.T, h *house) { h.revoke(t, h.bot) }, fault.NHITokenInvalid, oversight.Approved},
		{"the human is revoked", func(t *testing.T, h *house) { h.revoke(t, h.alice) }, fault.NHIDelegationVerificationFailed, oversight.Approved},
		{"the token expires", func(_ *testing.T, h *house) { h.clock.Advance(20 * time.Minute) }, fault.NHITokenExpired, oversight.Approved},
		{"another delegation", func(t *testing.T, h *house) {
			h.delegate(t, h.alice, h.bot, time.Hour)
			h.clock.Advance(time.Second)
		}, fault.NHITokenInvalid, oversight.Approved},
		{"quota is spent", func(t *testing.T, h *house) {
			h.limit(t, creto.HTTPRequest, 1)
			quota, err := h.quota.Bind(t.Context(), h.caller(t).Chain())
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := quota.Evaluate(t.Context(), request(refund("")), true); err != nil {
				t.Fatal(err)
			}
		}, fault.ResourceExhausted, oversight.Approved},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := build(t)
			c := h.caller(t)
			var acted atomic.Int32
			changed := h.desk.Changed()
			end := h.do(t.Context(), c, refund("50"), nothing(&acted))
			<-changed
			test.change(t, h)
			r := h.decide(t, "50", true)
			err := <-end
			if fault.CodeOf(err) != test.want || (acted.Load() == 1) != (test.want == fault.OK) {
				t.Errorf("Do = %v, acted %d times; want %v", err, acted.Load(), test.want)
			}
			if r, err := h.desk.Show(t.Context(), r.ID); err != nil || r.State != test.state {
				t.Errorf("the approval is %s (err %v), want %s", r.State, err, test.state)
			}
			if n := len(h.records(t, creto.HTTPRequest)); n != 1 {
				t.Errorf("there are %d records, want 1", n)
			}
			h.check(t)
		})
	}
	t.Run("policy is reworded", func(t *testing.T) {
		h := build(t)
		changed := h.desk.Changed()
		var acted atomic.Int32
		end := h.do(t.Context(), h.caller(t), refund("50"), nothing(&acted))
		<-changed
		h.legislate(t, reworded)
		first := h.decide(t, "50", true)
		second := h.decide(t, "50", true) // another text, another question
		if err := <-end; err != nil || acted.Load() != 1 || first.ID == second.ID {
			t.Errorf("Do = %v, acted %d times on %s and %s", err, acted.Load(), first.ID, second.ID)
		}
		if r, err := h.desk.Show(t.Context(), first.ID); err != nil || r.State != oversight.Approved {
			t.Errorf("the approval that was not needed is %s (err %v)", r.State, err)
		}
		if r := h.records(t, creto.HTTPRequest); len(r) != 1 || len(r[0].Consents) != 1 || r[0].Consents[0].ID != second.ID {
			t.Errorf("the records are %+v, want one with the second consent", r)
		}
		h.check(t)
	})
}

// A caller that goes away is refused and recorded; its question stays for when
// it comes back.
func TestCallerGoesAway(t *testing.T) {
	h := build(t)
	c := h.caller(t)
	var acted atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	changed := h.desk.Changed()
	end := h.do(ctx, c, refund("50"), nothing(&acted))
	<-changed
	cancel()
	if err := <-end; !errors.Is(err, fault.Canceled) || acted.Load() != 0 || len(h.pending(t)) != 1 {
		t.Errorf("Do = %v, acted %d times, %d questions wait; want Canceled, 0 and 1", err, acted.Load(), len(h.pending(t)))
	}
	if r := h.records(t, creto.HTTPRequest); len(r) != 1 || r[0].Outcome != audit.Denied || r[0].Decision.Kind != "requires_oversight" {
		t.Errorf("the records are %+v", r)
	}
	h.decide(t, "50", true)
	if _, err := h.gate.Do(t.Context(), c, refund("50"), nothing(&acted)); err != nil || acted.Load() != 1 {
		t.Errorf("after the approval Do = %v, acted %d times", err, acted.Load())
	}
	if _, err := h.gate.Do(ctx, c, callModel(), nothing(&acted)); !errors.Is(err, fault.Canceled) || acted.Load() != 1 {
		t.Errorf("Do for a caller that is gone = %v, acted %d times", err, acted.Load())
	}
	h.check(t)
}

// What cannot be recorded does not happen, if it matters; the rest happens once
// and no more until the log answers.
func TestLogFails(t *testing.T) {
	h := build(t)
	h.limit(t, creto.CallModel, 100)
	h.limit(t, creto.HTTPRequest, 100)
	h.limit(t, creto.SpawnSandbox, 100)
	c := h.caller(t)
	var acted atomic.Int32
	do := func(a creto.Action, act gate.Act, code fault.Code, acts int32) error {
		t.Helper()
		before := acted.Load()
		_, err := h.gate.Do(t.Context(), c, a, act)
		if fault.CodeOf(err) != code || acted.Load()-before != acts {
			t.Errorf("Do of %s = %v, acted %d times; want %v and %d", a.Name, err, acted.Load()-before, code, acts)
		}
		return err
	}
	spawn := creto.Action{Name: creto.SpawnSandbox, Resource: creto.Resource{Type: "Image", ID: "host"}}
	h.log.down.Store(true)
	do(spawn, nothing(&acted), fault.AuditUnavailable, 0)
	h.log.down.Store(false)
	do(spawn, nothing(&acted), fault.OK, 1)

	// Approved, and then the log fails: the approval stays good.
	ctx, cancel := context.WithCancel(t.Context())
	changed := h.desk.Changed()
	end := h.do(ctx, c, refund("50"), nothing(&acted))
	<-changed
	cancel()
	<-end
	h.decide(t, "50", true)
	h.log.down.Store(true)
	do(refund("50"), nothing(&acted), fault.AuditUnavailable, 0)
	h.log.down.Store(false)
	do(refund("50"), nothing(&acted), fault.OK, 1)

	// Informational: it fails behind act, then nothing acts.
	failing := func(context.Context) (gate.Result, error) {
		acted.Add(1)
		h.log.down.Store(true)
		return gate.Result{}, nil
	}
	do(callModel(), failing, fault.AuditUnavailable, 1)
	do(callModel(), nothing(&acted), fault.AuditUnavailable, 0)
	h.log.down.Store(false)
	do(callModel(), nothing(&acted), fault.OK, 1)
	pings := h.log.pings.Load()
	do(callModel(), nothing(&acted), fault.OK, 1)
	if h.log.pings.Load() != pings {
		t.Error("a model call pings the log although there is no doubt")
	}

	// Both act and log fail: the caller learns both, act's first.
	both := func(ctx context.Context) (gate.Result, error) {
		_, _ = failing(ctx)
		return gate.Result{}, fault.New("x", fault.InferenceProviderError, "upstream said no")
	}
	if err := do(callModel(), both, fault.InferenceProviderError, 1); !errors.Is(err, fault.AuditUnavailable) || !strings.HasPrefix(fault.Message(err), "upstream said no") {
		t.Errorf("Do = %v, want both reasons", err)
	}
	h.log.down.Store(false)
	h.check(t)
}

// An action that outlives its delegation is recorded as of when it was allowed,
// so that its receipt verifies.
func TestActOutlivesDelegation(t *testing.T) {
	h := build(t)
	h.delegate(t, h.alice, h.bot, time.Minute)
	act := func(context.Context) (gate.Result, error) {
		h.clock.Advance(time.Hour)
		return gate.Result{}, nil
	}
	if _, err := h.gate.Do(t.Context(), h.caller(t), callModel(), act); err != nil {
		t.Fatal(err)
	}
	if r := h.records(t, creto.CallModel)[0]; !r.Stamp.Time().Equal(at) || r.Detail["ended"] == "" {
		t.Errorf("the record is of %v with %v; want %v and when it ended", r.Stamp, r.Detail, at)
	}
	h.check(t)
}

// An action that outlives the clock is recorded all the same.
func TestActOutlivesClock(t *testing.T) {
	h := build(t)
	h.delegate(t, h.alice, h.bot, time.Minute)
	act := func(context.Context) (gate.Result, error) {
		h.clock.Fail(true)
		return gate.Result{}, nil
	}
	_, err := h.gate.Do(t.Context(), h.caller(t), callModel(), act)
	h.clock.Fail(false)
	if err != nil {
		t.Fatal(err)
	}
	if r := h.records(t, creto.CallModel)[0]; !r.Stamp.Time().Equal(at) || r.Outcome != audit.Success || r.Detail["ended"] == "" {
		t.Errorf("the record is %v of %v with %v; want a success of %v that says so", r.Outcome, r.Stamp, r.Detail, at)
	}
	h.check(t)
}

// A decision that a thousand policies made finds room in a record.
func TestManyPolicies(t *testing.T) {
	h := build(t)
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, "@id(%q) permit (principal, action, resource);\n", fmt.Sprint(strings.Repeat("p", 2000), i))
	}
	h.legislate(t, text.String())
	if _, err := h.gate.Do(t.Context(), h.caller(t), callModel(), nothing(new(atomic.Int32))); err != nil {
		t.Fatal(err)
	}
	if r := h.records(t, creto.CallModel)[0]; r.Outcome != audit.Success || r.Decision.Reason == "" {
		t.Errorf("the record is %+v", r)
	}
	h.check(t)
}

// A callers' race with revocation: no action begins after Revoke returned.
func TestRevocationRace(t *testing.T) {
	h := build(t)
	c := h.caller(t)
	var revoked atomic.Bool
	var late atomic.Int32
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 200 {
				after := revoked.Load()
				_, err := h.gate.Do(t.Context(), c, callModel(), nothing(new(atomic.Int32)))
				if err == nil && after {
					late.Add(1)
				}
			}
		})
	}
	h.revoke(t, h.bot)
	revoked.Store(true)
	group.Wait()
	if late.Load() != 0 {
		t.Errorf("%d actions began after the agent was revoked", late.Load())
	}
}

// The record of an action says how many units it used, whatever the act says; a
// restart counts them again.
func TestUnits(t *testing.T) {
	h := build(t)
	h.legislate(t, "permit (principal, action, resource);")
	if err := h.quota.SetLimit(t.Context(), metering.Subject{Agent: h.bot, Action: creto.ConsumeQuota}, metering.Limit{Amount: 10, Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	c := h.caller(t)
	said, resource, sandbox := map[string]string{authz.AmountKey: "1"}, "m", ""
	consume := func(amount int64) error {
		_, err := h.gate.Do(t.Context(), c, creto.Action{
			Name: creto.ConsumeQuota, Resource: creto.Resource{Type: "Meter", ID: resource}, Context: map[string]any{authz.AmountKey: amount}, Sandbox: sandbox, Isolation: sandbox,
		}, func(context.Context) (gate.Result, error) {
			return gate.Result{Detail: said}, nil
		})
		return err
	}
	if err := consume(7); err != nil {
		t.Fatal(err)
	}
	said = make(map[string]string) // more than a record has room for
	for i := range 32 {
		said[fmt.Sprint(i)+strings.Repeat("k", 300)] = strings.Repeat("v", 2<<10)
	}
	resource, sandbox = strings.Repeat("m", 16<<10), strings.Repeat("s", 2<<10)
	if err := consume(2); err != nil {
		t.Fatal(err)
	}
	if err := consume(2); !errors.Is(err, fault.ResourceExhausted) {
		t.Errorf("Do of 2 where 1 is left = %v, want ResourceExhausted", err)
	}
	units := int64(0)
	for _, r := range h.records(t, creto.ConsumeQuota) {
		units += gate.Units(r)
	}
	if units != 9 {
		t.Errorf("the log says that %d units were used, want 9", units)
	}
}
