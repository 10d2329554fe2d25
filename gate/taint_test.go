package gate_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/inference/injection"
	"creto.dev/internal/db/dbtest"
	"creto.dev/nhi"
	"creto.dev/pqc/localpqc"
)

// tainting is a house whose gate taints, with a policy that forbids tools to what is
// tainted and one that only what is tainted passes.
func tainting(t *testing.T) *house {
	t.Helper()
	h := build(t)
	taints, err := injection.OpenTaints(t.Context(), dbtest.OpenIn(t, t.TempDir()), h.clock, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	h.gate = gate.New(h.authority, localpqc.New(), h.clock, h.authorizer, h.log, h.desk, h.meter, taints)
	h.legislate(t, policies+`
@id("tools") permit (principal == Creto::Agent::"bot", action == Creto::Action::"call_tool", resource);
@id("clean") forbid (principal, action == Creto::Action::"call_tool", resource) when { context has taint };
@id("bait") permit (principal == Creto::Agent::"bot", action == Creto::Action::"send_message", resource) when { context has taint && context.taint == "forged" };
`)
	return h
}

func tool(run string, context map[string]any) creto.Action {
	return creto.Action{Name: creto.CallTool, Resource: creto.Resource{Type: "Tool", ID: "mail"}, Sandbox: run, Context: context}
}

// denied reports what became of an action.
func (h *house) denied(t *testing.T, c *gate.Caller, a creto.Action) bool {
	t.Helper()
	var n atomic.Int32
	_, err := h.gate.Do(t.Context(), c, a, nothing(&n))
	if err != nil && !errors.Is(err, fault.AuthzDenied) || (err == nil) != (n.Load() == 1) {
		t.Fatalf("%s: %v, acted %d times", a.Name, err, n.Load())
	}
	return err != nil
}

func TestTaint(t *testing.T) {
	h := tainting(t)
	c := h.caller(t)
	if h.denied(t, c, tool("", nil)) || h.denied(t, c, tool("run-1", nil)) {
		t.Fatal("a clean session is denied")
	}
	// Nobody but gate says that a session is tainted, or that it is not.
	forged := tool("", map[string]any{"taint": "forged"})
	if h.denied(t, c, forged) {
		t.Error("a forged taint reached the policies")
	}
	bait := creto.Action{Name: creto.SendMessage, Resource: creto.Resource{Type: "Agent", ID: "x"}, Context: map[string]any{"taint": "forged"}}
	if !h.denied(t, c, bait) {
		t.Error("a forged taint was of use")
	}
	for range 2 { // the second time is no news
		if err := h.gate.Taint(t.Context(), c, "run-1", "prompt_injection", map[string]string{"risk": "700", "x\xff": strings.Repeat("y", 1<<20)}); err != nil {
			t.Fatal(err)
		}
	}
	if !h.denied(t, c, tool("run-1", nil)) || !h.denied(t, c, tool("run-1", map[string]any{"taint": ""})) {
		t.Error("a tainted run passes")
	}
	if h.denied(t, c, tool("run-2", nil)) || h.denied(t, c, tool("", nil)) {
		t.Error("what was not tainted is denied")
	}
	records := h.records(t, audit.EventSessionTainted)
	if len(records) != 1 || records[0].Who != h.bot || records[0].OnBehalfOf != h.alice || records[0].Chain != c.Identity().Chain ||
		records[0].Sandbox != "run-1" || records[0].Why != "prompt_injection" || records[0].Detail["risk"] != "700" || records[0].Outcome != audit.Success {
		t.Errorf("recorded %+v", records)
	}
	// The record of what was denied says why it was.
	last := h.records(t, creto.CallTool)
	if r := last[4]; r.Outcome != audit.Denied || r.Detail["taint"] != "prompt_injection" {
		t.Errorf("recorded %+v", r)
	}

	// A token that is bound to a run taints that run, whatever its door says.
	bound, err := h.gate.Open(t.Context(), nhi.Credential{Token: h.token(t, "run-3")})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.gate.Taint(t.Context(), bound, "run-2", "canary", nil); err != nil {
		t.Fatal(err)
	}
	if !h.denied(t, bound, tool("", nil)) || !h.denied(t, c, tool("run-3", nil)) || h.denied(t, c, tool("run-2", nil)) {
		t.Error("the taint of a bound token went elsewhere")
	}

	// Outside of runs the agent itself is tainted, for its time, with whatever token.
	if err := h.gate.Taint(t.Context(), c, "", "canary", nil); err != nil {
		t.Fatal(err)
	}
	if !h.denied(t, h.caller(t), tool("", nil)) || h.denied(t, c, tool("run-2", nil)) {
		t.Error("another token of the agent is clean, or its runs are not")
	}
	h.clock.Set(at.Add(61 * time.Minute))
	if h.denied(t, h.caller(t), tool("", nil)) || !h.denied(t, h.caller(t), tool("run-1", nil)) {
		t.Error("the agent is tainted for ever, or the run for its hour")
	}
	h.check(t)
}

// What taints while a human thinks counts.
func TestTaintMeanwhile(t *testing.T) {
	h := tainting(t)
	h.legislate(t, `@id("humans") permit (principal is Creto::Human, action, resource);
@id("refund") @oversight("finance") permit (principal == Creto::Agent::"bot", action == Creto::Action::"http_request", resource);
@id("clean") forbid (principal, action == Creto::Action::"http_request", resource) when { context has taint };`)
	c := h.caller(t)
	done := make(chan error, 1)
	var n atomic.Int32
	go func() {
		_, err := h.gate.Do(t.Context(), c, refund("1"), nothing(&n))
		done <- err
	}()
	for len(h.pending(t)) == 0 {
		<-h.desk.Changed()
	}
	if err := h.gate.Taint(t.Context(), c, "", "prompt_injection", nil); err != nil {
		t.Fatal(err)
	}
	h.decide(t, "1", true)
	if err := <-done; !errors.Is(err, fault.AuthzDenied) || n.Load() != 0 {
		t.Errorf("Do = %v, acted %d times", err, n.Load())
	}
	h.check(t)
}

// brokenTaints keeps nothing.
type brokenTaints struct{ first bool }

func (brokenTaints) Tainted(creto.ID, string, time.Time) string { return "" }
func (b brokenTaints) Taint(context.Context, creto.ID, string, string) (bool, error) {
	if b.first {
		return true, nil
	}
	return true, fault.New("test", fault.Unavailable, "the disk is full")
}

func TestTaintFails(t *testing.T) {
	h := build(t)
	c := h.caller(t)
	if err := h.gate.Taint(t.Context(), c, "", "x", nil); err != nil { // where nothing taints
		t.Error(err)
	}
	with := func(taints gate.Taints, clock *consensustest.Manual) *gate.Gate {
		return gate.New(h.authority, localpqc.New(), clock, h.authorizer, h.log, h.desk, h.meter, taints)
	}
	if err := with(brokenTaints{}, h.clock).Taint(t.Context(), c, "", "x", nil); !errors.Is(err, fault.Unavailable) {
		t.Errorf("a taint that is not durable: %v", err)
	}
	h.log.down.Store(true)
	g := with(brokenTaints{first: true}, h.clock)
	if err := g.Taint(t.Context(), c, "", "x", nil); !errors.Is(err, fault.AuditUnavailable) {
		t.Errorf("a taint that is not recorded: %v", err)
	}
	// Until the log answers again, nothing acts.
	var n atomic.Int32
	if _, err := g.Do(t.Context(), c, callModel(), nothing(&n)); err == nil || n.Load() != 0 {
		t.Errorf("Do = %v, acted %d times", err, n.Load())
	}
	h.log.down.Store(false)
}

func TestRefuse(t *testing.T) {
	h := build(t)
	c := h.caller(t)
	why := fault.New("test", fault.InferencePromptInjection, "it looks like an attack")
	a := callModel()
	a.Context = map[string]any{"risk": int64(950)}
	id, err := h.gate.Refuse(t.Context(), c, a, why, map[string]string{"event": "x", "noise\xff": strings.Repeat("y", 1<<20)})
	if !errors.Is(err, fault.InferencePromptInjection) || fault.CodeOf(err) != fault.InferencePromptInjection {
		t.Errorf("Refuse = %v", err)
	}
	records := h.records(t, creto.CallModel)
	if len(records) != 1 || records[0].ID != id {
		t.Fatalf("%d records", len(records))
	}
	r := records[0]
	if r.Outcome != audit.Denied || r.Why != "it looks like an attack" || r.Who != h.bot || r.OnBehalfOf != h.alice || r.Chain != c.Identity().Chain ||
		r.Args != a.ArgsDigest() || r.Detail["risk"] != "950" || r.Detail["event"] != "x" || r.Decision != nil {
		t.Errorf("recorded %+v", r)
	}
	if len(h.meter.seen) != 0 {
		t.Errorf("it touched quota: %v", h.meter.seen)
	}

	// What is no action is refused for that, and recorded if it has the name of one.
	if _, err := h.gate.Refuse(t.Context(), c, creto.Action{Name: "dance"}, why, nil); !errors.Is(err, fault.InvalidArgument) || errors.Is(err, fault.InferencePromptInjection) {
		t.Errorf("no action: %v", err)
	}
	bound, err := h.gate.Open(t.Context(), nhi.Credential{Token: h.token(t, "run-1")})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := callModel()
	elsewhere.Sandbox = "run-2"
	if _, err := h.gate.Refuse(t.Context(), bound, elsewhere, why, nil); !errors.Is(err, fault.NHITokenInvalid) {
		t.Errorf("a token of another run: %v", err)
	}
	if _, err := h.gate.Refuse(t.Context(), bound, callModel(), why, nil); !errors.Is(err, fault.InferencePromptInjection) {
		t.Errorf("a bound token: %v", err)
	}
	records = h.records(t, creto.CallModel)
	if len(records) != 3 || records[2].Sandbox != "run-1" {
		t.Errorf("recorded %+v", records)
	}

	// An identity that is over claims no chain.
	h.clock.Set(at.Add(25 * time.Hour))
	if _, err := h.gate.Refuse(t.Context(), c, callModel(), why, nil); err == nil || errors.Is(err, fault.InferencePromptInjection) {
		t.Errorf("an identity that is over: %v", err)
	}
	records = h.records(t, creto.CallModel)
	if r := records[3]; !r.Chain.IsZero() || r.Outcome != audit.Denied || r.Detail["token"] == "" {
		t.Errorf("recorded %+v", r)
	}
	h.check(t)

	// A refusal that cannot be recorded says so, and stays one.
	h = build(t)
	c = h.caller(t)
	h.log.down.Store(true)
	if _, err := h.gate.Refuse(t.Context(), c, callModel(), why, nil); !errors.Is(err, fault.InferencePromptInjection) || !errors.Is(err, fault.AuditUnavailable) {
		t.Errorf("without a log: %v", err)
	}
	h.log.down.Store(false)
}

// An act learns what allowed it, after a human's consent too, and nothing of what
// another action was decided on.
func TestDoDecided(t *testing.T) {
	h := build(t)
	c := h.caller(t)
	var got authz.Decision
	act := func(_ context.Context, d authz.Decision) (gate.Result, error) {
		got = d
		return gate.Result{}, nil
	}
	if _, err := h.gate.DoDecided(t.Context(), c, callModel(), act); err != nil || got.Kind != authz.Allow || len(got.Policies) != 2 || got.Policies[1].ID != "models" {
		t.Errorf("%v, decided %+v", err, got)
	}
	got = authz.Decision{}
	if _, err := h.gate.DoDecided(t.Context(), c, tool("", nil), act); !errors.Is(err, fault.AuthzDenied) || got.Kind == authz.Allow {
		t.Errorf("a denial: %v, act saw %+v", err, got)
	}
	done := make(chan error, 1)
	go func() {
		_, err := h.gate.DoDecided(t.Context(), c, refund("1"), act)
		done <- err
	}()
	h.decide(t, "1", true)
	if err := <-done; err != nil || got.Kind != authz.Allow || len(got.Policies) != 2 || got.Policies[1].ID != "refund" {
		t.Errorf("after a consent: %v, decided %+v", err, got)
	}
	// Nobody is asked about an action that is part of another.
	got = authz.Decision{}
	if _, err := h.gate.DoUnasked(t.Context(), c, refund("2"), act); !errors.Is(err, fault.AuthzDenied) || got.Kind == authz.Allow || len(h.pending(t)) != 0 {
		t.Errorf("unasked: %v, act saw %+v", err, got)
	}
	if _, err := h.gate.DoUnasked(t.Context(), c, callModel(), act); err != nil || got.Kind != authz.Allow {
		t.Errorf("unasked, and permitted: %v, decided %+v", err, got)
	}
	h.check(t)
}

func TestTainted(t *testing.T) {
	h := tainting(t)
	c := h.caller(t)
	if by, err := h.gate.Tainted(t.Context(), c, "run-1"); by != "" || err != nil {
		t.Errorf("clean: %q, %v", by, err)
	}
	if err := h.gate.Taint(t.Context(), c, "run-1", "canary", nil); err != nil {
		t.Fatal(err)
	}
	if by, err := h.gate.Tainted(t.Context(), c, "run-1"); by != "canary" || err != nil {
		t.Errorf("tainted: %q, %v", by, err)
	}
	if by, err := h.gate.Tainted(t.Context(), c, ""); by != "" || err != nil {
		t.Errorf("another session: %q, %v", by, err)
	}
}
