package metering

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/internal/db"
)

// Quota keeps the limits of a node and enforces them inline, as extensions of
// authorization (R-AZ-8…10, R-MET-3, R-MET-10, B-17): itself for quotas, and
// [Quota.Rates]. What is used is held in memory and, after a restart, counted again
// from the audit log, which is the only record of it. What an action of gate used is
// said by gate.Units, now and then. Rates begin anew after a restart.
//
// Several quotas may bound one action: those of the action and of AnyAction, for
// whomever the agent acts and for one human, of any windows. All must have room, and
// what is taken is taken of all. Safe for concurrent use.
type Quota struct {
	enforcer
	db  *sql.DB
	log audit.Log

	setting sync.Mutex // held while limits change, in the database and here
}

var (
	_ source = (*Quota)(nil)
	_ Lender = (*Quota)(nil)
)

// OpenQuota reads the limits, and what was used of them from log. Run keeps the time
// cheap and records what windows came to; without it every limit holds.
//
// Errors: Unavailable (Degraded); DataLoss (Security) for a limit that cannot be
// read.
func OpenQuota(ctx context.Context, d *sql.DB, clock consensus.Clock, log audit.Log) (*Quota, error) {
	const op fault.Op = "metering.OpenQuota"
	q := &Quota{db: d, log: log}
	q.open(clock, q)
	if err := errors.Join(q.loadLimits(ctx), q.loadRates(ctx)); err != nil {
		return nil, fault.Wrap(op, err)
	}
	now, err := q.time.ask(ctx)
	if err != nil && len(q.budgets)+len(q.rates) > 0 {
		return nil, fault.Wrap(op, err)
	}
	agents := make(map[creto.ID][]*count)
	for _, b := range q.budgets {
		agents[b.Agent] = append(agents[b.Agent], &count{budget: b, since: startOf(now, b.length)})
	}
	for _, counts := range agents {
		if _, err := q.tally(ctx, counts, 0); err != nil {
			return nil, fault.Wrap(op, err)
		}
		for _, c := range counts {
			c.budget.current.Store(newWindow(c.since, c.since+int64(c.budget.length), c.budget.amount, c.used))
		}
	}
	return q, fault.Wrap(op, q.loadLoans(ctx))
}

// subjectFrom reads a subject as the database has it.
func subjectFrom(agent, human, action string) (Subject, error) {
	s := Subject{Action: action}
	err := errors.Join(s.Agent.UnmarshalText([]byte(agent)), s.Human.UnmarshalText([]byte(human)))
	return s, errors.Join(err, s.Validate())
}

func (q *Quota) loadLimits(ctx context.Context) error {
	return q.each(ctx, "SELECT agent, human, action, window_ns, amount, 0 FROM quota_limit", func(s Subject, window, amount, _ int64) error {
		l := Limit{Amount: amount, Window: time.Duration(window)}
		q.budgets[budgetKey{s, l.Window}] = &budget{Subject: s, length: l.Window, amount: amount}
		return l.Validate()
	})
}

func (q *Quota) loadRates(ctx context.Context) error {
	return q.each(ctx, "SELECT agent, human, action, period_ns, units, burst FROM rate_limit", func(s Subject, period, units, burst int64) error {
		l := Rate{Count: units, Period: time.Duration(period), Burst: burst}
		x := &rate{Subject: s}
		x.limit.Store(&l)
		q.rates[s] = x
		return l.Validate()
	})
}

// each reads rows of a subject and three numbers.
func (q *Quota) each(ctx context.Context, query string, add func(s Subject, a, b, c int64) error) error {
	const op fault.Op = "metering.load"
	rows, err := q.db.QueryContext(ctx, query)
	if err != nil {
		return db.Classify(op, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var agent, human, action string
		var a, b, c int64
		if err := rows.Scan(&agent, &human, &action, &a, &b, &c); err != nil {
			return db.Classify(op, err)
		}
		s, err := subjectFrom(agent, human, action)
		if err == nil {
			err = add(s, a, b, c)
		}
		if err != nil {
			return fault.WrapAs(op, fault.DataLoss, err, "the limit of %q on %s is damaged", agent, action)
		}
	}
	return db.Classify(op, rows.Err())
}

// count is what the log says of a budget.
type count struct {
	*budget
	since, until  int64 // Unix nanoseconds; until 0 is no end
	used, refused int64
}

// tally counts, in the log from an index on, for budgets of one agent. It returns
// the index that comes next.
func (q *Quota) tally(ctx context.Context, counts []*count, from int64) (next int64, err error) {
	f := audit.Filter{Actor: counts[0].Agent.String(), What: counts[0].Action, Oldest: true, From: from, Limit: audit.MaxPage}
	since := counts[0].since
	for _, c := range counts {
		since = min(since, c.since)
		if c.Action != f.What || c.Action == AnyAction {
			f.What = ""
		}
	}
	f.Since = time.Unix(0, since)
	if len(counts) == 1 && counts[0].until != 0 {
		f.Until = time.Unix(0, counts[0].until)
	}
	for {
		page, err := q.log.Query(ctx, f)
		if err != nil {
			return 0, err
		}
		for _, e := range page {
			f.From = e.Index + 1
			if _, action := creto.ResourceType(e.Record.What); !action {
				continue
			}
			for _, c := range counts {
				c.add(e.Record)
			}
		}
		if len(page) < f.Limit {
			return f.From, nil
		}
	}
}

func (c *count) add(r audit.Record) {
	at := r.Stamp.Physical
	if at < c.since || c.until != 0 && at >= c.until || !c.covers(r.Who, r.OnBehalfOf, r.What) {
		return
	}
	c.used = min(c.used+gate.Units(r), MaxLimit)
	if r.Event() == audit.EventQuotaExceeded {
		c.refused++
	}
}

// SetLimit limits how much of an action an agent may take in each window of that
// length, in place of the limit that there is for it. What was used already counts,
// and what is under way and held by another quota, twice rather than not at all; what
// is under way and was not limited counts after a restart. Limits of other windows stay
// beside it.
//
// Errors: InvalidArgument (Permanent); FailedPrecondition (Permanent) beyond
// MaxBudgets; Unavailable (Degraded).
func (q *Quota) SetLimit(ctx context.Context, s Subject, l Limit) error {
	const op fault.Op = "metering.SetLimit"
	if err := errors.Join(s.Validate(), l.Validate()); err != nil {
		return fault.Wrap(op, err)
	}
	q.setting.Lock()
	defer q.setting.Unlock()
	k := budgetKey{s, l.Window}
	q.mu.Lock()
	b := q.budgets[k]
	var full bool
	if b == nil {
		full = crowded(s, subjectsOf(q.budgets))
	}
	q.mu.Unlock()
	if full {
		return fault.New(op, fault.FailedPrecondition, "%s has %d quotas on %s already; remove one first", s.Agent.Name, MaxBudgets, s.Action)
	}
	save := func() error {
		_, err := q.db.ExecContext(ctx, `INSERT INTO quota_limit (agent, human, action, window_ns, amount) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (agent, human, action, window_ns) DO UPDATE SET amount = excluded.amount`, s.Agent.String(), s.Human.String(), s.Action, int64(l.Window), l.Amount)
		return db.Classify(op, err)
	}
	if b != nil { // its count is exact
		if err := save(); err != nil {
			return err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.amount = l.Amount
		b.current.Load().limit.Store(l.Amount)
		return nil
	}
	now, err := q.time.ask(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	b = &budget{Subject: s, length: l.Window, amount: l.Amount}
	c := &count{budget: b, since: startOf(now, l.Window)}
	next, err := q.tally(ctx, []*count{c}, 0)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if err := save(); err != nil {
		return err
	}
	w := newWindow(c.since, c.since+int64(l.Window), l.Amount, c.used)
	b.current.Store(w)
	q.mu.Lock()
	q.budgets[k] = b
	q.change(s)
	q.mu.Unlock()
	// From here on it is enforced. What began before has been recorded meanwhile,
	// or is held.
	q.holds.each(func(x *hold) { x.join(s, w, now) })
	c.used = 0
	if _, err := q.tally(ctx, []*count{c}, next); err != nil {
		return fault.Wrap(op, err)
	}
	w.used.Add(c.used)
	return nil
}

// join has a hold that began before a budget be counted in it.
func (x *hold) join(s Subject, w *window, now int64) {
	limited := s.Agent == x.account.agent && (s.Human.IsZero() || s.Human == x.account.human) && (s.Action == AnyAction || creto.ActionNumber(s.Action) == x.action)
	if !limited || slices.Contains(x.took(), w) {
		return
	}
	w.used.Add(x.amount)
	kept := slices.DeleteFunc(slices.Clone(x.took()), func(w *window) bool { return w.end.Load() <= now })
	x.put(append(kept, w)) // no more than MaxBudgets are not over
}

// subjectsOf returns the subjects of budgets, each as often as it has one.
func subjectsOf(budgets map[budgetKey]*budget) iter.Seq[Subject] {
	return func(yield func(Subject) bool) {
		for k := range budgets {
			if !yield(k.Subject) {
				return
			}
		}
	}
}

// crowded reports whether some action of an agent would have more than MaxBudgets
// limits with one more of s.
func crowded(s Subject, there iter.Seq[Subject]) bool {
	own := []Subject{s}
	for x := range there {
		if x.Agent == s.Agent {
			own = append(own, x)
		}
	}
	for _, action := range creto.ActionNames() {
		all, most := 0, 0 // for whomever it acts, and for one human
		forOne := make(map[creto.ID]int)
		for _, x := range own {
			switch {
			case x.Action != action && x.Action != AnyAction:
			case x.Human.IsZero():
				all++
			default:
				forOne[x.Human]++
				most = max(most, forOne[x.Human])
			}
		}
		if all+most > MaxBudgets {
			return true
		}
	}
	return false
}

// SetRate limits how fast an agent may take an action, in place of the rate that
// there is for it. What passed lately counts if there was one.
//
// Errors: as for SetLimit.
func (q *Quota) SetRate(ctx context.Context, s Subject, r Rate) error {
	const op fault.Op = "metering.SetRate"
	if err := errors.Join(s.Validate(), r.Validate()); err != nil {
		return fault.Wrap(op, err)
	}
	q.setting.Lock()
	defer q.setting.Unlock()
	q.mu.Lock()
	x := q.rates[s]
	full := x == nil && crowded(s, maps.Keys(q.rates))
	q.mu.Unlock()
	if full {
		return fault.New(op, fault.FailedPrecondition, "%s has %d rates on %s already; remove one first", s.Agent.Name, MaxBudgets, s.Action)
	}
	if _, err := q.db.ExecContext(ctx, `INSERT INTO rate_limit (agent, human, action, units, period_ns, burst) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (agent, human, action) DO UPDATE SET units = excluded.units, period_ns = excluded.period_ns, burst = excluded.burst`,
		s.Agent.String(), s.Human.String(), s.Action, r.Count, int64(r.Period), r.Burst); err != nil {
		return db.Classify(op, err)
	}
	if x != nil {
		x.limit.Store(&r)
		return nil
	}
	x = &rate{Subject: s}
	x.limit.Store(&r)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rates[s] = x
	q.change(s)
	return nil
}

// ClearLimit removes a subject's quota of a window, or of every window for 0, and
// returns how many there were.
//
// Errors: Unavailable (Degraded).
func (q *Quota) ClearLimit(ctx context.Context, s Subject, window time.Duration) (int, error) {
	q.setting.Lock()
	defer q.setting.Unlock()
	err := db.Tx(ctx, q.db, func(tx *sql.Tx) error {
		for _, table := range []string{"quota_limit", "quota_lease"} {
			query, args := "DELETE FROM "+table+" WHERE agent = $1 AND human = $2 AND action = $3", []any{s.Agent.String(), s.Human.String(), s.Action}
			if window != 0 {
				query, args = query+" AND window_ns = $4", append(args, int64(window))
			}
			if _, err := tx.ExecContext(ctx, query, args...); err != nil {
				return db.Classify("metering.ClearLimit", err)
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for k := range q.budgets {
		if k.Subject == s && (window == 0 || window == k.window) {
			q.budgets[k].current.Load().end.Store(0) // it is over
			delete(q.budgets, k)
			n++
		}
	}
	q.change(s)
	return n, nil
}

// ClearRate removes a subject's rate, and reports whether there was one.
//
// Errors: Unavailable (Degraded).
func (q *Quota) ClearRate(ctx context.Context, s Subject) (bool, error) {
	q.setting.Lock()
	defer q.setting.Unlock()
	if _, err := q.db.ExecContext(ctx, "DELETE FROM rate_limit WHERE agent = $1 AND human = $2 AND action = $3", s.Agent.String(), s.Human.String(), s.Action); err != nil {
		return false, db.Classify("metering.ClearRate", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	_, ok := q.rates[s]
	delete(q.rates, s)
	q.change(s)
	return ok, nil
}

// change gives the accounts of a subject their new terms. The caller holds mu.
func (q *Quota) change(s Subject) {
	for k, known := range q.accounts {
		if a := known.Value(); k.agent == s.Agent && a != nil && a.terms.Load() != nil {
			a.terms.Store(q.termsOf(k))
		}
	}
}

// termsOf returns what limits an account. The caller holds mu.
func (q *Quota) termsOf(k accountKey) *terms {
	var budgets []*budget
	for _, b := range q.budgets {
		if b.covers(k.agent, k.human, b.Action) {
			budgets = append(budgets, b)
		}
	}
	slices.SortFunc(budgets, func(a, b *budget) int { // the same order for all, and the scarcest first
		return cmp.Or(cmp.Compare(a.length, b.length), compareSubjects(a.Subject, b.Subject))
	})
	var rates []*rate
	for _, r := range q.rates {
		if r.covers(k.agent, k.human, r.Action) {
			rates = append(rates, r)
		}
	}
	slices.SortFunc(rates, func(a, b *rate) int { return compareSubjects(a.Subject, b.Subject) })
	return termsOf(k, always, budgets, rates)
}

func compareSubjects(a, b Subject) int {
	return cmp.Or(cmp.Compare(a.Agent.String(), b.Agent.String()), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Human.String(), b.Human.String()))
}

// learn implements source.
func (q *Quota) learn(_ context.Context, a *account, _ *terms) (*terms, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.termsOf(a.accountKey)
	a.terms.Store(t)
	return t, nil
}

// supply implements source: windows follow one another.
func (q *Quota) supply(_ context.Context, b *budget, r request) (*window, int64, bool, error) {
	w := b.at(r.now)
	used, ok := w.try(&r)
	return w, used, ok, nil
}

// LimitUse is a limit and what became of its current window.
type LimitUse struct {
	Subject
	Limit
	// Used counts what is held and what is lent, of which Lent is with other nodes.
	Used, Lent int64
	ResetAt    time.Time
}

// RateUse is a rate and how many units could pass now, at once.
type RateUse struct {
	Subject
	Rate
	Left int64
}

// Limits returns the limits there are, in the order of their subjects.
//
// Errors: those of consensus.Clock.Now.
func (q *Quota) Limits(ctx context.Context) ([]LimitUse, []RateUse, error) {
	now, err := q.time.ask(ctx)
	if err != nil {
		return nil, nil, err
	}
	q.mu.Lock()
	budgets, all := slices.Collect(maps.Values(q.budgets)), slices.Collect(maps.Values(q.rates))
	q.mu.Unlock()
	limits := make([]LimitUse, 0, len(budgets))
	for _, b := range budgets {
		w := b.at(now)
		s := w.sum()
		limits = append(limits, LimitUse{b.Subject, Limit{Amount: s.limit, Window: b.length}, s.used, b.lending.outstanding(w), s.reset})
	}
	slices.SortFunc(limits, func(a, b LimitUse) int {
		return cmp.Or(compareSubjects(a.Subject, b.Subject), cmp.Compare(a.Window, b.Window))
	})
	rates := make([]RateUse, 0, len(all))
	for _, r := range all {
		rates = append(rates, RateUse{r.Subject, *r.limit.Load(), r.left(now)})
	}
	slices.SortFunc(rates, func(a, b RateUse) int { return compareSubjects(a.Subject, b.Subject) })
	return limits, rates, nil
}
