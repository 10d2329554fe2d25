package metering

import (
	"context"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/db"
)

// Lender has the limits that several nodes share, and lends parts of what may be
// used. What it has lent counts as used there until it is given back, so that all
// nodes together never use more than a limit, whatever becomes of any of them.
// Safe for concurrent use.
type Lender interface {
	// Terms returns what limits an agent for a human.
	//
	// Errors: InvalidArgument (Permanent), Unavailable (Degraded).
	Terms(ctx context.Context, agent, human creto.ID) (Terms, error)

	// Lease gives back what the borrower has too much of a budget's current window,
	// and lends more. What was lent is on disk before it is told of.
	//
	// Errors: NotFound (Permanent) if there is no such limit; FailedPrecondition
	// (Permanent) for a request that is older than one that was heard;
	// InvalidArgument (Permanent); those of consensus.Clock.Now; Unavailable
	// (Degraded).
	Lease(ctx context.Context, r LeaseRequest) (Lease, error)

	// Ping reports whether there is time to lend in. It lends nothing.
	Ping(ctx context.Context) error
}

// Terms are what limits an agent for a human.
type Terms struct {
	Limits []BudgetTerm
	Rates  []RateTerm
}

// BudgetTerm is a quota and whose use it counts.
type BudgetTerm struct {
	Subject
	Limit
}

// RateTerm is a rate and whose use it counts.
type RateTerm struct {
	Subject
	Rate
}

// LeaseRequest asks for a part of a budget.
type LeaseRequest struct {
	// Borrower names one life of one node.
	Borrower string
	// Sequence grows with each request of the borrower for this budget.
	Sequence uint64
	Subject
	// Window names the budget with the Subject: the length of its windows.
	Window time.Duration
	// Had is what the last answer said that the borrower has of the window that
	// began at Start, in Unix nanoseconds. Held, at most that, is what it keeps, what
	// it used included. It gives back whatever it was lent beyond that.
	Start int64
	Had   int64
	Held  int64
	// Want is the least that is of use; 0 lends nothing, and renews what is held.
	Want int64
}

// Validate reports whether r can be answered.
//
// Errors: InvalidArgument (Permanent).
func (r LeaseRequest) Validate() error {
	if r.Borrower == "" || len(r.Borrower) > maxBorrowerBytes || r.Held < 0 || r.Had < r.Held || r.Had > MaxLimit || r.Want < 0 || r.Want > MaxLimit {
		return fault.New("metering.Lease", fault.InvalidArgument, "a lease is for a borrower, and of no negative amount")
	}
	return r.Subject.Validate()
}

const maxBorrowerBytes = 1024

// Lease is what a borrower has of one window of a budget.
type Lease struct {
	// Start is the window's, in Unix nanoseconds of the lender's clock.
	Start int64
	// Held is all that the borrower has of the window, what it used included.
	Held int64
	// TTL is how long it may use that, counted from before it asked. Unless it
	// renews the lease or gives it back, what it has counts as used until the
	// window ends.
	TTL time.Duration
	// Limit and Used are the budget's, what is lent counting as used, and Reset is
	// how long its window lasts.
	Limit, Used int64
	Reset       time.Duration
}

// LeaseTTL is how long a lease lasts that is not renewed: how long a node goes on
// without the one that has the limits, and the longest that a change of limits
// takes to reach it.
const LeaseTTL = time.Minute

// lending is what is lent of a budget's window.
type lending struct {
	mu      sync.Mutex // held while that changes, here and in the database
	start   int64      // of the window
	lines   map[string]*line
	lent    int64
	orphans int64 // of lent, what an earlier life lent; whom is not known
}

// line is what one borrower has.
type line struct {
	held     int64
	sequence uint64
	until    int64
}

// outstanding returns what is lent of a window.
func (l *lending) outstanding(w *window) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.start != w.start {
		return 0
	}
	return l.lent
}

// Ping implements Lender.
func (q *Quota) Ping(ctx context.Context) error {
	_, err := q.time.read(ctx)
	return err
}

// Terms implements Lender.
func (q *Quota) Terms(_ context.Context, agent, human creto.ID) (Terms, error) {
	var t Terms
	q.mu.Lock()
	defer q.mu.Unlock()
	for k, b := range q.budgets {
		if k.Agent == agent && (k.Human.IsZero() || k.Human == human) {
			b.mu.Lock()
			t.Limits = append(t.Limits, BudgetTerm{k.Subject, Limit{Amount: b.amount, Window: k.window}})
			b.mu.Unlock()
		}
	}
	for s, r := range q.rates {
		if s.Agent == agent && (s.Human.IsZero() || s.Human == human) {
			t.Rates = append(t.Rates, RateTerm{s, *r.limit.Load()})
		}
	}
	return t, nil
}

// Lease implements Lender. A share is what is left, divided by four times as many
// as ask: the last of it goes out in small parts, so that little of it lies with
// nodes that do not need it.
func (q *Quota) Lease(ctx context.Context, r LeaseRequest) (Lease, error) {
	const op fault.Op = "metering.Lease"
	if err := r.Validate(); err != nil {
		return Lease{}, fault.Wrap(op, err)
	}
	q.mu.Lock()
	b := q.budgets[budgetKey{r.Subject, r.Window}]
	q.mu.Unlock()
	if b == nil {
		return Lease{}, fault.New(op, fault.NotFound, "%s has no quota on %s in %v", r.Agent.Name, r.Action, r.Window)
	}
	now, err := q.time.ask(ctx)
	if err != nil {
		return Lease{}, fault.Wrap(op, err)
	}
	l := &b.lending
	l.mu.Lock()
	defer l.mu.Unlock()
	w := b.at(now)
	if l.start != w.start {
		l.start, l.lines, l.lent, l.orphans = w.start, nil, 0, 0
	}
	x, err := l.line(w, r)
	if err != nil {
		return Lease{}, fault.Wrap(op, err)
	}
	units := w.lend(r.Want, l.active(r.Borrower, now))
	if units > 0 || x.held != l.had(r.Borrower) {
		if err := q.saveLoan(ctx, b, l.lent+units+x.held-l.had(r.Borrower)); err != nil {
			w.used.Add(-units)
			return Lease{}, err
		}
	}
	gaveBack := l.had(r.Borrower) - x.held
	w.used.Add(-gaveBack)
	l.lent += units - gaveBack
	x.held += units
	x.until = now + int64(LeaseTTL)
	if l.lines == nil {
		l.lines = make(map[string]*line)
	}
	l.lines[r.Borrower] = &x
	end := w.end.Load()
	return Lease{
		Start: w.start, Held: x.held, TTL: time.Duration(min(int64(LeaseTTL), end-now)),
		Limit: w.limit.Load(), Used: w.used.Load(), Reset: time.Duration(end - now),
	}, nil
}

// had returns what a borrower was lent.
func (l *lending) had(borrower string) int64 {
	if x := l.lines[borrower]; x != nil {
		return x.held
	}
	return 0
}

// line returns what a borrower keeps. What it says to have of this window, and this
// life of the lender does not know of, was lent by one before; should that not be
// so, it counts as used all the same.
func (l *lending) line(w *window, r LeaseRequest) (line, error) {
	const op fault.Op = "metering.Lease"
	x := line{sequence: r.Sequence}
	if r.Start == w.start {
		x.held = r.Held
	}
	old := l.lines[r.Borrower]
	switch {
	case old == nil:
		if x.held == 0 && r.Start != w.start {
			break
		}
		known := min(r.Had, l.orphans)
		more := x.held - known
		if more > MaxLimit-w.used.Load() {
			return x, fault.New(op, fault.InvalidArgument, "the borrower says to have %d, and nobody was lent so much", x.held)
		}
		l.orphans -= known
		if more > 0 {
			l.lent += more
			w.used.Add(more)
			known = x.held
		}
		if l.lines == nil {
			l.lines = make(map[string]*line)
		}
		l.lines[r.Borrower] = &line{held: known}
	case r.Sequence <= old.sequence:
		return x, fault.New(op, fault.FailedPrecondition, "a later request of this borrower was heard")
	case x.held > old.held:
		return x, fault.New(op, fault.InvalidArgument, "the borrower says to have %d, and was lent %d", x.held, old.held)
	}
	return x, nil
}

// active counts the borrowers whose leases run, this one included, and forgets those
// that have nothing.
func (l *lending) active(borrower string, now int64) int64 {
	n := int64(1)
	for name, x := range l.lines {
		switch {
		case name == borrower:
		case x.until > now:
			n++
		case x.held == 0:
			delete(l.lines, name)
		}
	}
	return n
}

// lend takes a share for one of n borrowers, of at least want; 0 if that is not
// left.
func (w *window) lend(want, n int64) int64 {
	for want > 0 {
		used := w.used.Load()
		left := w.limit.Load() - used
		if left < want {
			return 0
		}
		units := max(want, left/(4*n))
		if w.used.CompareAndSwap(used, used+units) {
			return units
		}
	}
	return 0
}

// saveLoan writes how much of a window is lent. The caller holds lending.mu.
func (q *Quota) saveLoan(ctx context.Context, b *budget, lent int64) error {
	_, err := q.db.ExecContext(ctx, `INSERT INTO quota_lease (agent, human, action, window_ns, start_ns, lent) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (agent, human, action, window_ns) DO UPDATE SET start_ns = excluded.start_ns, lent = excluded.lent`,
		b.Agent.String(), b.Human.String(), b.Action, int64(b.length), b.lending.start, lent)
	return db.Classify("metering.Lease", err)
}

// loadLoans counts what an earlier life lent as used. It may be in the log as well,
// where nodes share one: rather twice than not at all.
func (q *Quota) loadLoans(ctx context.Context) error {
	return q.each(ctx, "SELECT agent, human, action, window_ns, start_ns, lent FROM quota_lease", func(s Subject, window, start, lent int64) error {
		b := q.budgets[budgetKey{s, time.Duration(window)}]
		if b == nil {
			return nil
		}
		if w := b.current.Load(); w.start == start {
			w.used.Add(lent)
			b.lending.start, b.lending.lent, b.lending.orphans = start, lent, lent
		}
		return nil
	})
}
