package metering_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/authz"
	"creto.dev/consensus"
	"creto.dev/consensus/consensustest"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/metering"
	"creto.dev/nhi"
	"creto.dev/nhi/nhitest"
	"creto.dev/pqc/localpqc"
)

// set sets a quota.
func (h *house) set(t testing.TB, s metering.Subject, amount int64, window time.Duration) {
	t.Helper()
	if err := h.quota.SetLimit(t.Context(), s, metering.Limit{Amount: amount, Window: window}); err != nil {
		t.Fatal(err)
	}
}

// take asks for an action by a chain, and reports whether it was granted.
func (h *house) take(t testing.TB, chain nhi.VerifiedChain, r authz.Request) (authz.Decision, bool) {
	t.Helper()
	e, err := h.quota.Bind(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	held, d, err := e.Evaluate(t.Context(), r, true)
	if err != nil {
		t.Fatal(err)
	}
	if d == nil {
		return authz.Decision{Reservation: held}, true
	}
	return *d, d.Kind != authz.QuotaExceeded
}

// A quota for one human counts what the agent does for them, beside one for all.
func TestForOneHuman(t *testing.T) {
	h := open(t)
	forBob := nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "bob", "bot")
	s := h.subject()
	h.set(t, s, 5, time.Hour)
	s.Human = h.chain.Human()
	h.set(t, s, 2, time.Hour)
	for i := range 3 {
		d, ok := h.take(t, h.chain, modelCall)
		if ok != (i < 2) || !ok && (d.Limit != 2 || !strings.Contains(d.Reason, "on behalf of alice")) {
			t.Errorf("call %d for alice: %+v", i, d)
		}
	}
	for i := range 4 {
		if d, ok := h.take(t, forBob, modelCall); ok != (i < 3) || !ok && d.Limit != 5 {
			t.Errorf("call %d for bob: %+v", i, d)
		}
	}
	// After a restart each is counted again.
	for _, human := range []creto.ID{h.chain.Human(), h.chain.Human(), forBob.Human()} {
		r := audittest.Record(creto.CallModel, 1)
		r.Who, r.OnBehalfOf, r.Outcome = h.chain.Agent(), human, audit.Success
		if _, err := h.log.Log(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	stampNow(t, h)
	h.reopen(t)
	if _, ok := h.take(t, h.chain, modelCall); ok {
		t.Error("after a restart, alice's quota is not used up")
	}
	for i := range 3 {
		if _, ok := h.take(t, forBob, modelCall); ok != (i < 2) {
			t.Errorf("after a restart, call %d for bob: %v", i, ok)
		}
	}
}

// stampNow checks that the records of a test are of now.
func stampNow(t *testing.T, h *house) {
	t.Helper()
	page, err := h.log.Query(t.Context(), audit.Filter{Limit: 1})
	if err != nil || len(page) != 1 {
		t.Fatalf("%v, %v", page, err)
	}
	if age := at.Sub(page[0].Record.Stamp.Time()).Abs(); age > time.Minute {
		t.Fatalf("the test's records are of %v", page[0].Record.Stamp)
	}
}

// A quota of all actions counts each; of several quotas all have room, or nothing is
// taken.
func TestSeveral(t *testing.T) {
	h := open(t)
	tool := authz.Request{Action: creto.CallTool, Resource: creto.Resource{Type: "Tool", ID: "x/y"}}
	all := metering.Subject{Agent: h.chain.Agent(), Action: metering.AnyAction}
	h.set(t, all, 4, 24*time.Hour)
	h.limit(t, 3, time.Hour)
	h.limit(t, 100, 2*time.Hour)
	for range 2 {
		if _, ok := h.take(t, h.chain, tool); !ok {
			t.Fatal("a tool call is denied")
		}
	}
	for i := range 4 {
		if d, ok := h.take(t, h.chain, modelCall); ok != (i < 2) || !ok && (d.Limit != 4 || !strings.Contains(d.Reason, "4 actions")) {
			t.Errorf("model call %d: %+v", i, d)
		}
	}
	limits, _, err := h.quota.Limits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, l := range limits {
		got[l.Limit.String()+" "+l.Action] = l.Used
	}
	if want := map[string]int64{"4/24h *": 4, "3/1h call_model": 2, "100/2h call_model": 2}; !maps.Equal(got, want) {
		t.Errorf("used are %v, want %v: what is denied is taken of none", got, want)
	}
	// Of two that are used up, the one that is reset last is told.
	h.limit(t, 2, time.Hour)
	if d, _ := h.take(t, h.chain, modelCall); d.Limit != 4 || !d.ResetAt.Equal(time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("Evaluate = %+v, want the quota that is reset at midnight", d)
	}
}

// An action may use more than one unit, all or none of them.
func TestUnits(t *testing.T) {
	h := open(t)
	s := metering.Subject{Agent: h.chain.Agent(), Action: creto.ConsumeQuota}
	h.set(t, s, 100, time.Hour)
	first, ok := h.take(t, h.chain, consume(json.Number("60")))
	if !ok || first.Reservation.Amount != 60 {
		t.Fatalf("Evaluate of 60 = %+v", first)
	}
	if d, ok := h.take(t, h.chain, consume(int64(41))); ok || d.Used != 60 || !strings.Contains(d.Reason, "has 40 left") {
		t.Errorf("Evaluate of 41 = %+v", d)
	}
	if d, ok := h.take(t, h.chain, consume(40.0)); !ok {
		t.Errorf("Evaluate of 40 = %+v", d)
	}
	h.quota.Refund(first.Reservation)
	if d, ok := h.take(t, h.chain, consume(60)); !ok {
		t.Errorf("Evaluate after a refund of 60 = %+v", d)
	}
	e, err := h.quota.Bind(t.Context(), h.chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, amount := range []any{0, -1, 1.5, "7", json.Number("1e3"), json.Number("99999999999999999999"), true, 1e300, int64(authz.MaxAmount + 1), json.Number("9223372036854775807")} {
		if held, d, err := e.Evaluate(t.Context(), consume(amount), true); !errors.Is(err, fault.AuthzInvalidRequest) || held != (authz.Reservation{}) {
			t.Errorf("Evaluate of %v = %+v, %+v, %v; want AuthzInvalidRequest", amount, held, d, err)
		}
	}
	if d, ok := h.take(t, h.chain, consume(json.Number("9007199254740991"))); ok {
		t.Errorf("Evaluate of the most there is = %+v", d)
	}
	// The log says how many.
	r := audittest.Record(creto.ConsumeQuota, 1)
	r.Who, r.Outcome, r.Detail = h.chain.Agent(), audit.Success, map[string]string{authz.AmountKey: "70"}
	if _, err := h.log.Log(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	h.reopen(t)
	if d, ok := h.take(t, h.chain, consume(31)); ok || d.Used != 70 {
		t.Errorf("after a restart, Evaluate = %+v", d)
	}
	for what, want := range map[string]int64{creto.ConsumeQuota: 70, creto.CallModel: 1} {
		if r.What = what; gate.Units(r) != want {
			t.Errorf("%s used %d units, want %d", what, gate.Units(r), want)
		}
	}
}

// Limits that come and go while actions are under way lose nothing and keep nothing.
func TestChangeUnderLoad(t *testing.T) {
	h := open(t)
	h.limit(t, 1000, time.Hour)
	done := make(chan struct{})
	var group sync.WaitGroup
	var held atomic.Int64
	for range 4 {
		group.Go(func() {
			e := h.bind(t)
			var mine []authz.Reservation
			for {
				select {
				case <-done:
					for _, r := range mine {
						h.quota.Refund(r)
					}
					return
				default:
				}
				got, _, err := e.Evaluate(t.Context(), modelCall, true)
				if err != nil {
					t.Error(err)
					return
				}
				if got != (authz.Reservation{}) {
					held.Add(1)
					mine = append(mine, got)
				}
				if len(mine) > 20 {
					h.quota.Refund(mine[0])
					mine = mine[1:]
				}
			}
		})
	}
	all := metering.Subject{Agent: h.chain.Agent(), Action: metering.AnyAction}
	for range 100 {
		h.limit(t, 1000, 2*time.Hour)
		h.set(t, all, 1000, 24*time.Hour)
		if _, err := h.quota.ClearLimit(t.Context(), all, 0); err != nil {
			t.Fatal(err)
		}
		h.clear(t, 2*time.Hour)
	}
	h.limit(t, 1000, 2*time.Hour)
	h.set(t, all, 1000, 24*time.Hour)
	close(done)
	group.Wait()
	limits, _, err := h.quota.Limits(t.Context())
	if err != nil || len(limits) != 3 || held.Load() == 0 {
		t.Fatalf("Limits = %v, %v, after %d reservations", limits, err, held.Load())
	}
	for _, l := range limits {
		if l.Used != 0 {
			t.Errorf("when everything is given back, %d of %s %s are used", l.Used, l.Limit, l.Action)
		}
	}
}

// Very many may be under way at once; each is settled once.
func TestManyHeld(t *testing.T) {
	h := open(t)
	h.limit(t, 10_000, time.Hour)
	e := h.bind(t)
	seen := make(map[uint64]bool)
	var held []authz.Reservation
	for {
		got, d, err := e.Evaluate(t.Context(), modelCall, true)
		if err != nil {
			t.Fatal(err)
		}
		if d != nil {
			break
		}
		if seen[got.ID] {
			t.Fatalf("the id %d came twice", got.ID)
		}
		seen[got.ID] = true
		held = append(held, got)
	}
	if len(held) != 10_000 {
		t.Fatalf("%d are held", len(held))
	}
	for i, r := range held {
		if i%2 == 0 {
			h.quota.Refund(r)
		} else {
			h.quota.Commit(r)
		}
	}
	for _, r := range held { // too late, and with ids that others have next
		h.quota.Refund(r)
		h.quota.Commit(authz.Reservation{ID: r.ID + 1<<24, Amount: 1})
		h.quota.Refund(authz.Reservation{ID: r.ID &^ (1<<24 - 1), Amount: 1})
	}
	if n := h.left(t); n != 5000 {
		t.Errorf("%d are left, want 5000", n)
	}
}

func TestCrowded(t *testing.T) {
	h := open(t)
	s := h.subject()
	for i := range metering.MaxBudgets - 1 {
		h.limit(t, 10, time.Duration(i+1)*time.Hour)
	}
	s.Human = h.chain.Human()
	h.set(t, s, 10, time.Hour)
	h.set(t, s, 20, time.Hour) // another amount is no other limit
	all := metering.Subject{Agent: h.chain.Agent(), Action: metering.AnyAction}
	if err := h.quota.SetLimit(t.Context(), all, metering.Limit{Amount: 1, Window: time.Hour}); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("SetLimit of one too many = %v, want FailedPrecondition", err)
	}
	s.Human.Name = "eve" // she has none yet
	h.set(t, s, 10, time.Hour)
	if n := h.left(t); n != 10 {
		t.Errorf("%d are left, want 10", n)
	}
}

// Each budget's windows have records of their own.
func TestSummaries(t *testing.T) {
	h := open(t)
	s := h.subject()
	h.limit(t, 3, time.Hour)
	h.limit(t, 5, 30*time.Minute)
	s.Human = h.chain.Human()
	h.set(t, s, 2, time.Hour)
	h.set(t, metering.Subject{Agent: h.chain.Agent(), Action: metering.AnyAction}, 9, time.Hour)
	h.act(t, 2, audit.Success, nil) // on behalf of nobody
	r := audittest.Record(creto.CallModel, 1)
	r.Who, r.OnBehalfOf, r.Outcome, r.Stamp = h.chain.Agent(), s.Human, audit.Success, creto.Timestamp{}
	if _, err := h.log.Log(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	h.clock.Advance(time.Hour)
	for range 2 {
		if err := h.quota.Summarize(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.reopen(t)
	}
	page, err := h.log.Query(t.Context(), audit.Filter{What: audit.EventQuotaChecked})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range page {
		got = append(got, e.Record.Resource+" "+e.Record.Detail["limit"]+" "+e.Record.Detail["from"]+" "+e.Record.Detail["used"]+e.Record.Detail["human"])
	}
	slices.Sort(got)
	want := []string{
		"Meter::* 9 2026-11-22T09:00:00Z 3", "Meter::call_model 2 2026-11-22T09:00:00Z 1" + s.Human.String(),
		"Meter::call_model 3 2026-11-22T09:00:00Z 3", "Meter::call_model 5 2026-11-22T09:30:00Z 3",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the records say %q, want %q", got, want)
	}
}

// counting is a clock that counts questions, and may take its time.
type counting struct {
	consensustest.Manual
	asked atomic.Int64
	stuck atomic.Bool
}

func (c *counting) Now(ctx context.Context) (creto.Timestamp, error) {
	c.asked.Add(1)
	if c.stuck.Load() {
		<-ctx.Done()
		return creto.Timestamp{}, fault.Wrap("test", ctx.Err())
	}
	return c.Manual.Now(ctx)
}

// While checks come often, the clock is asked once a tick; it is never ahead of the
// clock; and when the clock cannot tell the time, nobody else can.
func TestTicking(t *testing.T) {
	h := open(t)
	chain := h.chain
	synctest.Test(t, func(t *testing.T) {
		clock := &counting{}
		clock.Set(at)
		lender := fixed{Limits: []metering.BudgetTerm{{Subject: metering.Subject{Agent: chain.Agent(), Action: creto.CallModel}, Limit: metering.Limit{Amount: 1 << 40, Window: time.Hour}}}}
		b := metering.NewBorrower(&lender, clock, "b")
		ctx, stop := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() { _ = b.Run(ctx, slog.New(slog.DiscardHandler)) })
		e, err := b.Bind(t.Context(), chain)
		if err != nil {
			t.Fatal(err)
		}
		evaluate := func() error {
			held, _, err := e.Evaluate(t.Context(), modelCall, true)
			b.Commit(held)
			return err
		}
		for range 100 {
			if err := evaluate(); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		before := clock.asked.Load()
		for range 50 {
			for range 100 {
				if err := evaluate(); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if n := clock.asked.Load() - before; n < 45 || n > 60 {
			t.Errorf("in 50 ticks of 100 checks, the clock was asked %d times", n)
		}
		time.Sleep(100 * time.Millisecond)
		before = clock.asked.Load()
		time.Sleep(time.Second)
		if n := clock.asked.Load() - before; n != 0 {
			t.Errorf("while nobody asks, the clock is asked %d times", n)
		}
		for range 20 { // it begins again
			if err := evaluate(); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		clock.Fail(true)
		time.Sleep(2 * time.Millisecond)
		if err := evaluate(); !errors.Is(err, fault.ConsensusUnavailable) {
			t.Errorf("without time, Evaluate = %v", err)
		}
		clock.Fail(false)
		for range 20 {
			if err := evaluate(); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		clock.stuck.Store(true)
		time.Sleep(20 * time.Millisecond)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := e.Evaluate(short, modelCall, true); err == nil {
			t.Error("with a clock that hangs, Evaluate goes on")
		}
		clock.stuck.Store(false)
		stop()
		group.Wait()
		if r := lender.last; r.Want != 0 || r.Held != 5140 || r.Had != 1<<20+1 {
			t.Errorf("at its end the borrower keeps %+v, want what it used", r)
		}
	})
}

// fixed lends without end.
type fixed struct {
	Limits []metering.BudgetTerm
	last   metering.LeaseRequest
}

func (f *fixed) Terms(context.Context, creto.ID, creto.ID) (metering.Terms, error) {
	return metering.Terms{Limits: f.Limits}, nil
}

func (f *fixed) Lease(_ context.Context, r metering.LeaseRequest) (metering.Lease, error) {
	f.last = r
	held := r.Held
	if r.Want > 0 {
		held += r.Want + 1<<20
	}
	return metering.Lease{Start: 1, Held: held, TTL: metering.LeaseTTL, Limit: 1 << 40, Used: 1 << 20, Reset: time.Hour}, nil
}

func (f *fixed) Ping(context.Context) error { return nil }

// between runs something once, in the middle of what asks for the time or the log.
type between struct {
	consensus.Clock
	do func()
}

func (b *between) once() {
	if do := b.do; do != nil {
		b.do = nil
		do()
	}
}

func (b *between) Now(ctx context.Context) (creto.Timestamp, error) {
	b.once()
	return b.Clock.Now(ctx)
}

// records is an audit.Log that can be embedded.
type records interface{ audit.Log }

// asking has what is between come after the log's answer.
type asking struct {
	records
	*between
}

func (a asking) Ping(ctx context.Context) error { return a.records.Ping(ctx) }

func (a asking) Query(ctx context.Context, f audit.Filter) ([]audit.Entry, error) {
	page, err := a.records.Query(ctx, f)
	a.once()
	return page, err
}

// A check that a new limit overtakes is counted in it; so is an action whose record
// comes while the log is counted for it.
func TestOvertaken(t *testing.T) {
	h := open(t)
	for name, test := range map[string]struct {
		clock bool
		used  int64
	}{"a check": {true, 1}, "a record": {false, 1}} {
		t.Run(name, func(t *testing.T) {
			h.clock.Advance(100 * time.Hour)
			b := &between{Clock: h.clock}
			var clock consensus.Clock = h.clock
			var log audit.Log = asking{h.log, b}
			if test.clock {
				clock, log = b, h.log
			}
			q, err := metering.OpenQuota(t.Context(), h.db, clock, log)
			if err != nil {
				t.Fatal(err)
			}
			limit := func(window time.Duration) {
				if err := q.SetLimit(t.Context(), h.subject(), metering.Limit{Amount: 10, Window: window}); err != nil {
					t.Fatal(err)
				}
			}
			limit(2 * time.Hour)
			e, err := q.Bind(t.Context(), h.chain)
			if err != nil {
				t.Fatal(err)
			}
			if test.clock {
				b.do = func() { limit(time.Hour) }
				held, d, err := e.Evaluate(t.Context(), modelCall, true)
				if err != nil || held == (authz.Reservation{}) {
					t.Fatalf("Evaluate = %+v, %+v, %v", held, d, err)
				}
			} else {
				b.do = func() {
					r := audittest.Record(creto.CallModel, 7)
					now, err := h.clock.Now(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					r.Who, r.Outcome, r.Stamp = h.chain.Agent(), audit.Success, now
					if _, err := h.log.Log(t.Context(), r); err != nil {
						t.Fatal(err)
					}
				}
				limit(time.Hour)
			}
			limits, _, err := q.Limits(t.Context())
			if err != nil || limits[0].Window != time.Hour || limits[0].Used != test.used {
				t.Errorf("Limits = %+v, %v; want %d used of the new limit", limits, err, test.used)
			}
			for _, l := range limits {
				if _, err := q.ClearLimit(t.Context(), l.Subject, 0); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// A new limit counts what is held of its subject, and nothing else.
func TestHeldBySubject(t *testing.T) {
	h := open(t)
	forBob := nhitest.Chain(t, localpqc.New(), at, nhi.Everything(), "bob", "bot")
	h.limit(t, 5, time.Hour)
	if _, ok := h.take(t, forBob, modelCall); !ok {
		t.Fatal("it is denied")
	}
	agent, alice, bob := h.chain.Agent(), h.chain.Human(), forBob.Human()
	other := agent
	other.Name = "other"
	for i, test := range []struct {
		subject metering.Subject
		used    int64
	}{
		{metering.Subject{Agent: agent, Human: bob, Action: creto.CallModel}, 1},
		{metering.Subject{Agent: agent, Human: bob, Action: metering.AnyAction}, 1},
		{metering.Subject{Agent: agent, Action: metering.AnyAction}, 1},
		{metering.Subject{Agent: agent, Human: alice, Action: creto.CallModel}, 0},
		{metering.Subject{Agent: agent, Human: alice, Action: metering.AnyAction}, 0},
		{metering.Subject{Agent: agent, Action: creto.CallTool}, 0},
		{metering.Subject{Agent: other, Action: creto.CallModel}, 0},
	} {
		h.set(t, test.subject, 10, 2*time.Hour)
		limits, _, err := h.quota.Limits(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range limits {
			if l.Subject == test.subject && l.Window == 2*time.Hour && l.Used != test.used {
				t.Errorf("%d: %+v has %d used, want %d", i, l.Subject, l.Used, test.used)
			}
		}
	}
}
