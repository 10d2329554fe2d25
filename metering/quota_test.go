package metering_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/authz"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/gate/gatetest"
	"creto.dev/internal/db/dbtest"
	"creto.dev/internal/journal"
	"creto.dev/metering"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

var at = time.Date(2026, 11, 22, 9, 30, 0, 0, time.UTC)

type house struct {
	db    *sql.DB
	clock *consensustest.Manual
	log   *localaudit.Log
	chain nhi.VerifiedChain
	quota *metering.Quota
}

func open(t testing.TB) *house {
	t.Helper()
	dir := t.TempDir()
	d := dbtest.OpenIn(t, dir)
	h := &house{db: d, clock: &consensustest.Manual{}}
	h.clock.Set(at)
	p := localpqc.New()
	signer, err := audittest.Signer(p, "test.local/log")
	if err != nil {
		t.Fatal(err)
	}
	h.log, err = localaudit.Open(t.Context(), localaudit.Config{Intake: intake.Config{Journal: journal.Config{Dir: dir, RingBytes: 4 << 20}}}, d, p, h.clock, signer, pqc.NewSymmetricKey(pqc.AES256GCM, make([]byte, pqc.SymmetricKeySize)), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(h.log.Close(), d.Close()); err != nil {
			t.Error(err)
		}
	})
	h.chain = nhitest.Chain(t, p, at, nhi.Everything(), "alice", "bot")
	h.reopen(t)
	return h
}

func (h *house) reopen(t testing.TB) {
	t.Helper()
	var err error
	if h.quota, err = metering.OpenQuota(t.Context(), h.db, h.clock, h.log); err != nil {
		t.Fatal(err)
	}
}

func (h *house) limit(t testing.TB, amount int64, window time.Duration) {
	t.Helper()
	if err := h.quota.SetLimit(t.Context(), h.subject(), metering.Limit{Amount: amount, Window: window}); err != nil {
		t.Fatal(err)
	}
}

// subject is model calls of the agent.
func (h *house) subject() metering.Subject {
	return metering.Subject{Agent: h.chain.Agent(), Action: creto.CallModel}
}

// clear removes every quota of model calls.
func (h *house) clear(t testing.TB, window time.Duration) int {
	t.Helper()
	n, err := h.quota.ClearLimit(t.Context(), h.subject(), window)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (h *house) bind(t testing.TB) authz.Evaluator {
	t.Helper()
	e, err := h.quota.Bind(t.Context(), h.chain)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (h *house) evaluate(t testing.TB, reserve bool) authz.Decision {
	t.Helper()
	held, d, err := h.bind(t).Evaluate(t.Context(), authz.Request{Action: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "m"}}, reserve)
	if err != nil {
		t.Fatal(err)
	}
	if d == nil {
		return authz.Decision{Reservation: held}
	}
	return *d
}

// left counts what can still be reserved, and refunds it.
func (h *house) left(t testing.TB) int {
	t.Helper()
	var held []authz.Reservation
	for {
		d := h.evaluate(t, true)
		if d.Kind == authz.QuotaExceeded {
			break
		}
		held = append(held, d.Reservation)
	}
	for _, r := range held {
		h.quota.Refund(r)
	}
	return len(held)
}

// act reserves, commits and records n actions.
func (h *house) act(t testing.TB, n int, outcome audit.Outcome, usage *audit.Usage) {
	t.Helper()
	for range n {
		r := audit.Record{
			ID: creto.NewUUID(), Who: h.chain.Agent(), What: creto.CallModel, Resource: "Model::m", Outcome: outcome, Usage: usage,
		}
		if _, err := h.log.Log(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMeter(t *testing.T) {
	gatetest.RunMeter(t, func(t *testing.T) gatetest.Meter {
		h := open(t)
		h.limit(t, 1000, time.Hour)
		return gatetest.Meter{Extension: h.quota, Meter: h.quota, Chain: h.chain, Limit: 1000}
	})
}

// 64 goroutines against a limit of 1,000 get exactly 1,000.
func TestContention(t *testing.T) {
	h := open(t)
	h.limit(t, 1000, time.Hour)
	var group sync.WaitGroup
	granted := make(chan struct{}, 64*50)
	for range 64 {
		group.Go(func() {
			for range 50 {
				if d := h.evaluate(t, true); d.Kind != authz.QuotaExceeded {
					h.quota.Commit(d.Reservation)
					granted <- struct{}{}
				}
			}
		})
	}
	group.Wait()
	if len(granted) != 1000 {
		t.Errorf("granted %d, want 1000", len(granted))
	}
}

// A window begins on the hour, and what belongs to the one before stays there.
func TestWindow(t *testing.T) {
	h := open(t)
	h.limit(t, 3, time.Hour)
	first := h.evaluate(t, true).Reservation
	h.quota.Commit(h.evaluate(t, true).Reservation)
	h.evaluate(t, true)
	d := h.evaluate(t, true)
	if d.Kind != authz.QuotaExceeded || !d.ResetAt.Equal(at.Add(30*time.Minute)) || d.Used != 3 || d.Limit != 3 {
		t.Errorf("Evaluate = %+v; want it used up until 10:00", d)
	}
	h.clock.Advance(30*time.Minute - time.Nanosecond)
	if d := h.evaluate(t, true); d.Kind != authz.QuotaExceeded {
		t.Errorf("Evaluate just before the end = %+v", d)
	}
	h.clock.Advance(time.Nanosecond)
	if n := h.left(t); n != 3 {
		t.Errorf("the new window has %d, want 3", n)
	}
	// A refund of the old window is none of the new one's.
	h.evaluate(t, true)
	h.quota.Refund(first)
	if n := h.left(t); n != 2 {
		t.Errorf("after a refund of the window before, %d are left, want 2", n)
	}
	// A clock that goes back grants nothing twice.
	h.clock.Advance(-2 * time.Hour)
	if n := h.left(t); n != 2 {
		t.Errorf("after the clock went back, %d are left, want 2", n)
	}
}

// What is taken just when a window ends is of the next one.
func TestWindowsEdge(t *testing.T) {
	h := open(t)
	h.limit(t, 3, time.Hour)
	h.evaluate(t, true)
	h.clock.Advance(30 * time.Minute)
	h.evaluate(t, true)
	limits, _, err := h.quota.Limits(t.Context())
	if err != nil || limits[0].Used != 1 || !limits[0].ResetAt.Equal(at.Add(90*time.Minute)) {
		t.Errorf("Limits = %+v, %v; want 1 used until 11:00", limits, err)
	}
}

// Those who find a window over at once get one new one.
func TestRollAtOnce(t *testing.T) {
	h := open(t)
	h.limit(t, 3, time.Hour)
	quota := h.bind(t)
	const callers = 8
	for range 500 {
		h.clock.Advance(time.Hour)
		var group sync.WaitGroup
		var granted atomic.Int64
		begin := make(chan struct{})
		for range callers {
			group.Go(func() {
				<-begin
				for range 3 {
					held, d, err := quota.Evaluate(t.Context(), modelCall, true)
					if err != nil {
						t.Error(err)
					}
					if d == nil {
						granted.Add(1)
						h.quota.Commit(held)
					}
				}
			})
		}
		close(begin)
		group.Wait()
		if granted.Load() != 3 {
			t.Fatalf("%d were granted in a window of 3", granted.Load())
		}
	}
}

// After a restart the log says what was used, as it was accounted for.
func TestRecount(t *testing.T) {
	h := open(t)
	h.limit(t, 100, time.Hour)
	h.clock.Advance(-time.Hour) // the window before
	h.act(t, 5, audit.Success, nil)
	h.clock.Advance(time.Hour)
	h.act(t, 7, audit.Success, nil)
	h.act(t, 1, audit.Unknown, nil)
	h.act(t, 1, audit.Timeout, nil)
	h.act(t, 1, audit.Failure, &audit.Usage{PromptTokens: 1})
	h.act(t, 20, audit.Failure, nil)
	h.act(t, 20, audit.Denied, nil)
	h.reopen(t)
	if n := h.left(t); n != 90 {
		t.Errorf("%d are left, want 90", n)
	}
}

// A log of just so many records that its last page is full ends the count.
func TestRecountWholePages(t *testing.T) {
	h := open(t)
	h.limit(t, 5000, time.Hour)
	h.act(t, 1000, audit.Success, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	q, err := metering.OpenQuota(ctx, h.db, h.clock, h.log)
	if err != nil {
		t.Fatal(err)
	}
	h.quota = q
	if n := h.left(t); n != 4000 {
		t.Errorf("%d are left, want 4000", n)
	}
}

func TestSetLimit(t *testing.T) {
	h := open(t)
	if n := h.evaluate(t, true); n.Reservation != (authz.Reservation{}) {
		t.Errorf("Evaluate without a limit = %+v", n)
	}
	h.act(t, 4, audit.Success, nil)
	h.limit(t, 10, time.Hour) // a new limit counts what was used already
	if n := h.left(t); n != 6 {
		t.Errorf("%d are left of a new limit, want 6", n)
	}
	held := h.evaluate(t, true).Reservation
	h.limit(t, 8, time.Hour)
	if n := h.left(t); n != 3 {
		t.Errorf("%d are left of a lower limit, want 3", n)
	}
	h.limit(t, 2, time.Hour)
	if d := h.evaluate(t, true); d.Kind != authz.QuotaExceeded || d.Used != 5 {
		t.Errorf("Evaluate below what was used = %+v", d)
	}
	h.limit(t, 10, 24*time.Hour) // another window counts from the log, and what is held; both bound it
	if d := h.evaluate(t, true); d.Kind != authz.QuotaExceeded || d.Limit != 2 {
		t.Errorf("Evaluate beside another window = %+v", d)
	}
	if n := h.clear(t, time.Hour); n != 1 {
		t.Errorf("%d quotas of an hour were removed, want 1", n)
	}
	if n := h.left(t); n != 5 {
		t.Errorf("%d are left of another window, want 5", n)
	}
	h.quota.Refund(held)
	if n := h.left(t); n != 6 {
		t.Errorf("%d are left after the refund, want 6", n)
	}
	h.clear(t, 0)
	if d := h.evaluate(t, true); d.Kind == authz.QuotaExceeded || d.Reservation != (authz.Reservation{}) {
		t.Errorf("Evaluate after the limit was removed = %+v", d)
	}
	h.reopen(t)
	if d := h.evaluate(t, true); d.Reservation != (authz.Reservation{}) {
		t.Errorf("the removed limit came back: %+v", d)
	}
	for name, l := range map[string]metering.Limit{
		"negative": {Amount: -1, Window: time.Hour}, "nothing": {Window: time.Hour}, "no window": {Amount: 1}, "too short a window": {Amount: 1, Window: time.Millisecond},
	} {
		if err := h.quota.SetLimit(t.Context(), h.subject(), l); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("SetLimit %s = %v, want InvalidArgument", name, err)
		}
	}
	for name, subject := range map[string]metering.Subject{
		"no action": {Agent: h.chain.Agent(), Action: "fly"}, "nobody": {Action: creto.CallModel}, "a human": {Agent: h.chain.Human(), Action: creto.CallModel},
		"for an agent": {Agent: h.chain.Agent(), Human: h.chain.Agent(), Action: creto.CallModel},
	} {
		err := h.quota.SetLimit(t.Context(), subject, metering.Limit{Amount: 1, Window: time.Hour})
		if err2 := h.quota.SetRate(t.Context(), subject, metering.Rate{Count: 1, Period: time.Hour, Burst: 1}); fault.CodeOf(err) != fault.InvalidArgument || fault.CodeOf(err2) != fault.InvalidArgument {
			t.Errorf("%s: SetLimit = %v, SetRate = %v; want InvalidArgument", name, err, err2)
		}
	}
}

// Without time there is no quota, and no answer.
func TestNoTime(t *testing.T) {
	h := open(t)
	h.limit(t, 10, time.Hour)
	h.clock.Fail(true)
	r := authz.Request{Action: creto.CallModel}
	if held, d, err := h.bind(t).Evaluate(t.Context(), r, true); !errors.Is(err, fault.ConsensusUnavailable) || held != (authz.Reservation{}) {
		t.Errorf("Evaluate = %+v, %+v, %v; want ConsensusUnavailable", held, d, err)
	}
	h.clock.Fail(false)
	if n := h.left(t); n != 10 {
		t.Errorf("%d are left, want 10", n)
	}
}

func TestDamagedLimit(t *testing.T) {
	h := open(t)
	if _, err := h.db.ExecContext(t.Context(), "INSERT INTO quota_limit (agent, human, action, amount, window_ns) VALUES ('nobody', '', 'call_model', 1, 0)"); err != nil {
		t.Fatal(err)
	}
	if _, err := metering.OpenQuota(t.Context(), h.db, h.clock, h.log); !errors.Is(err, fault.DataLoss) {
		t.Errorf("OpenQuota = %v, want DataLoss", err)
	}
}

// ExampleLimit is three model calls a minute.
func ExampleLimit() {
	l, err := metering.ParseLimit("3/m")
	if err != nil {
		fmt.Println(err)
	}
	fmt.Printf("%d in %v, or %s\n", l.Amount, l.Window, l)
	// Output: 3 in 1m0s, or 3/1m
}
