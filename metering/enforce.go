package metering

import (
	"context"
	"errors"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/nhi"
)

// enforcer is what checks limits: of this node ([Quota]), or of another
// ([Borrower]). A check of an action that nothing limits reads a pointer; one that
// is limited takes from a window and holds that, without a lock and without an
// allocation.
type enforcer struct {
	time   ticking
	source source
	holds  holds

	mu       sync.Mutex                           // guards the maps
	accounts map[accountKey]weak.Pointer[account] // of who is bound, or holds something
	budgets  map[budgetKey]*budget
	rates    map[Subject]*rate
}

var (
	_ authz.Extension = (*enforcer)(nil)
	_ gate.Meter      = (*enforcer)(nil)
)

// source is where limits and what may be used of them come from.
type source interface {
	// learn finds out what limits an account, and sets its terms; old are those
	// that it had, or nil.
	learn(ctx context.Context, a *account, old *terms) (*terms, error)
	// supply is window.try for a budget whose current window did not have enough,
	// or is over. The window is the one that was asked.
	supply(ctx context.Context, b *budget, r request) (w *window, used int64, ok bool, err error)
}

type budgetKey struct {
	Subject
	window time.Duration
}

// accountKey is who acts for whom.
type accountKey struct{ agent, human creto.ID }

// account is what limits an agent for a human. There is one, so that whoever is
// bound sees a change at once.
type account struct {
	accountKey
	terms atomic.Pointer[terms]

	learning sync.Mutex
}

// terms are what limits an account, by action. They are immutable.
type terms struct {
	until int64 // Unix nanoseconds; then they are to be learnt anew
	end   int64 // until then they count if that fails
	of    [creto.Actions]term
}

// term is what limits one action.
type term struct {
	budgets []*budget
	rates   []*rate
}

// always is until for terms that are known in this process.
const always = math.MaxInt64

// consumeQuota is the one action that may ask for more than one unit.
var consumeQuota = creto.ActionNumber(creto.ConsumeQuota)

// open makes e ready.
func (e *enforcer) open(clock consensus.Clock, s source) {
	e.time.clock, e.time.wake = clock, make(chan struct{}, 1)
	e.source = s
	e.accounts, e.budgets, e.rates = make(map[accountKey]weak.Pointer[account]), make(map[budgetKey]*budget), make(map[Subject]*rate)
}

// account returns that of a chain.
func (e *enforcer) account(ctx context.Context, chain nhi.VerifiedChain) (*account, error) {
	k := accountKey{chain.Agent(), chain.Human()}
	e.mu.Lock()
	a := e.accounts[k].Value()
	if a == nil {
		a = &account{accountKey: k}
		e.accounts[k] = weak.Make(a)
		runtime.AddCleanup(a, e.drop, k)
	}
	e.mu.Unlock()
	_, err := e.terms(ctx, a)
	return a, err
}

// drop forgets an account that nobody has, unless there is another by now.
func (e *enforcer) drop(k accountKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.accounts[k].Value() == nil {
		delete(e.accounts, k)
	}
}

// terms returns what limits an account now.
func (e *enforcer) terms(ctx context.Context, a *account) (*terms, error) {
	t := a.terms.Load()
	if t != nil && t.until == always {
		return t, nil
	}
	return e.learnt(ctx, a)
}

func (e *enforcer) learnt(ctx context.Context, a *account) (*terms, error) {
	inForce := func() (*terms, bool, error) {
		t := a.terms.Load()
		if t == nil || t.until == always {
			return t, t != nil, nil
		}
		now, err := e.time.read(ctx)
		return t, now < t.until, err
	}
	if t, ok, err := inForce(); ok || err != nil {
		return t, err
	}
	a.learning.Lock()
	defer a.learning.Unlock()
	t, ok, err := inForce() // somebody else may have learnt them
	if ok || err != nil {
		return t, err
	}
	if t, err = e.source.learn(ctx, a, t); err != nil {
		return nil, err
	}
	return t, nil
}

// termsOf sorts limits by action.
func termsOf(k accountKey, until int64, budgets []*budget, rates []*rate) *terms {
	t := &terms{until: until}
	for _, action := range creto.ActionNames() {
		at := &t.of[creto.ActionNumber(action)]
		for _, b := range budgets {
			if b.covers(k.agent, k.human, action) {
				at.budgets = append(at.budgets, b)
			}
		}
		for _, r := range rates {
			if r.covers(k.agent, k.human, action) {
				at.rates = append(at.rates, r)
			}
		}
	}
	return t
}

// Name implements authz.Extension.
func (e *enforcer) Name() string { return "quota_enforcer" }

// Bind implements authz.Extension.
func (e *enforcer) Bind(ctx context.Context, chain nhi.VerifiedChain) (authz.Evaluator, error) {
	a, err := e.account(ctx, chain)
	if err != nil {
		return nil, err
	}
	return &evaluator{e, a}, nil
}

// Rates returns the extension that enforces rates, for behind this one.
func (e *enforcer) Rates() Rates { return Rates{e} }

// evaluator is the quota of one account.
type evaluator struct {
	e *enforcer
	a *account
}

// Evaluate implements authz.Evaluator: of several quotas all have room, or nothing
// is taken of any.
func (v *evaluator) Evaluate(ctx context.Context, r authz.Request, reserve bool) (held authz.Reservation, refusal *authz.Decision, err error) {
	action := creto.ActionNumber(r.Action)
	if action < 0 {
		return held, nil, unknown(r.Action)
	}
	ask := request{action: r.Action, index: action, units: 1, reserve: reserve}
	if action == consumeQuota { // also without a limit: the record says how many
		if ask.units, err = authz.Units(r.Action, r.Context); err != nil {
			return held, nil, err
		}
	}
	t := v.a.terms.Load()
	if t != nil && t.until == always && len(t.of[action].budgets) == 0 {
		return held, nil, nil
	}
	for range maxRounds {
		if t, err = v.e.terms(ctx, v.a); err != nil {
			return held, nil, err
		}
		if len(t.of[action].budgets) == 0 {
			return held, nil, nil
		}
		if ask.now, err = v.e.time.read(ctx); err != nil {
			return held, nil, err
		}
		id, refusal, err := v.e.enforce(ctx, v.a, t.of[action].budgets, &ask)
		switch {
		case errors.Is(err, errGone):
			v.a.terms.CompareAndSwap(t, nil)
			continue
		case err != nil:
			return held, nil, err
		case refusal != nil:
			return held, refusal, nil
		case id == 0:
			return held, nil, nil
		}
		held = authz.Reservation{ID: id, Amount: ask.units}
		if v.a.terms.Load() == t {
			return held, nil, nil
		}
		// The limits changed meanwhile, and who changed them may not have seen
		// what is held here.
		v.e.Refund(held)
		held = authz.Reservation{}
	}
	return held, nil, fault.New("metering.Evaluate", fault.AuthzUnavailable, "the limits of %s change all the time", v.a.agent.Name)
}

// maxRounds bounds how often one check begins anew because limits changed.
const maxRounds = 16

// errGone says that a budget was removed where it is kept.
var errGone = fault.New("metering", fault.NotFound, "the limit was removed")

// request is what is asked of budgets.
type request struct {
	action  string
	index   int // of action
	now     int64
	units   int64
	reserve bool
}

// enforce takes units of every budget and holds them under the id that it returns;
// without reserve it only looks whether there are enough. A refusal says which has
// not.
func (e *enforcer) enforce(ctx context.Context, a *account, budgets []*budget, r *request) (id uint64, refusal *authz.Decision, err error) {
	var taken [MaxBudgets]*window
	var seed int64
	for i, b := range budgets {
		w, used, ok := b.current.Load(), int64(0), false
		if w != nil && r.now < w.end.Load() {
			used, ok = w.try(r)
		}
		if !ok {
			w, used, ok, err = e.source.supply(ctx, b, *r)
		}
		if !ok || err != nil {
			giveBack(taken[:i], r)
			if err != nil {
				return 0, nil, err
			}
			return 0, refuse(budgets, b.exceeded(w, r), r), nil
		}
		taken[i], seed = w, used
	}
	if !r.reserve {
		return 0, nil, nil
	}
	x, id := e.holds.claim(uint64(seed))
	if x == nil {
		giveBack(taken[:len(budgets)], r)
		return 0, nil, fault.New("metering.enforce", fault.ResourceExhausted, "too many actions are under way at once")
	}
	x.amount, x.account, x.action = r.units, a, r.index
	x.put(taken[:len(budgets)])
	x.publish()
	return id, nil, nil
}

// giveBack undoes what was taken.
func giveBack(taken []*window, r *request) {
	for _, w := range taken {
		if r.reserve {
			w.used.Add(-r.units)
		}
	}
}

// refuse tells of the quota that is reset last, of those that have no room.
func refuse(budgets []*budget, d authz.Decision, r *request) *authz.Decision {
	for _, b := range budgets {
		w := b.current.Load()
		if w == nil {
			continue
		}
		if s := w.sum(); s.limit-s.used < r.units && s.reset.After(d.ResetAt) {
			d = b.exceeded(w, r)
		}
	}
	return &d
}

// Commit implements gate.Meter.
func (e *enforcer) Commit(r authz.Reservation) {
	if r.ID != 0 {
		e.holds.end(r.ID, stateFree)
	}
}

// Refund implements gate.Meter and authz.Extension. A window that is over takes
// nothing back.
func (e *enforcer) Refund(r authz.Reservation) {
	x, ok := e.holds.end(r.ID, stateClaimed)
	if !ok {
		return
	}
	for _, w := range x.took() {
		w.used.Add(-x.amount)
	}
	x.release()
}
