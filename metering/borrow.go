package metering

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/logkey"
)

const (
	// termsTTL is how old a borrower's knowledge of limits may be while the lender
	// answers.
	termsTTL = 10 * time.Second
	// renewEvery is how often leases are renewed, and what was not used since is
	// given back.
	renewEvery = LeaseTTL / 4
	// dryFor is how long the lender is not asked again after it had nothing to
	// give, or did not answer.
	dryFor = 100 * time.Millisecond
	// farewell bounds how long giving everything back may take at the end.
	farewell = 2 * time.Second
)

// Borrower enforces the limits that another node has, in place of [Quota], on loans:
// a check goes to the lender only when what was lent is used up. While the lender
// cannot be reached, what is lent is used until it is used up or its time is over,
// then everything that is limited is denied. A node that dies takes with it, until
// the window ends, what it was lent and had not used.
//
// Rates are enforced by each node for itself.
type Borrower struct {
	enforcer
	lender Lender
	name   string // of this life of this node
}

var _ source = (*Borrower)(nil)

// NewBorrower returns a borrower for a node of that name. Run renews its leases and
// gives back what it does not need; without it every limit holds.
func NewBorrower(lender Lender, clock consensus.Clock, node string) *Borrower {
	q := &Borrower{lender: lender, name: node + "/" + creto.NewUUID().String()}
	q.open(clock, q)
	return q
}

// loan is what this node has of another's budget.
type loan struct {
	mu       sync.Mutex // held while the lender is asked
	sequence uint64
	dry      int64 // until then the lender is not asked
	failed   error // why, if it did not answer
	tooMuch  int64 // else for so much or more: it did not have that
	seen     int64 // what was used when it was renewed last
	had      int64 // what the lender said last that this node has
}

// learn implements source. While the lender does not answer, what is known counts
// for as long as a lease.
func (q *Borrower) learn(ctx context.Context, a *account, old *terms) (*terms, error) {
	const op fault.Op = "metering.Borrower.learn"
	now, err := q.time.ask(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	told, err := q.lender.Terms(ctx, a.agent, a.human)
	if err != nil {
		if old == nil || now >= old.end {
			return nil, fault.Wrap(op, err)
		}
		kept := *old
		kept.until = now + int64(time.Second)
		a.terms.Store(&kept)
		return &kept, nil
	}
	if len(told.Limits) > maxTerms || len(told.Rates) > maxTerms {
		return nil, fault.New(op, fault.AuthzUnavailable, "the lender tells of more limits than there can be")
	}
	var budgets []*budget
	var rates []*rate
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, x := range told.Limits {
		k := budgetKey{x.Subject, x.Window}
		if q.budgets[k] == nil {
			q.budgets[k] = &budget{Subject: x.Subject, length: x.Window}
		}
		budgets = append(budgets, q.budgets[k])
	}
	for _, x := range told.Rates {
		if q.rates[x.Subject] == nil {
			q.rates[x.Subject] = &rate{Subject: x.Subject}
		}
		limit := x.Rate
		q.rates[x.Subject].limit.Store(&limit)
		rates = append(rates, q.rates[x.Subject])
	}
	slices.SortFunc(budgets, func(a, b *budget) int {
		return cmp.Or(cmp.Compare(a.length, b.length), compareSubjects(a.Subject, b.Subject))
	})
	t := termsOf(a.accountKey, now+int64(termsTTL), budgets, rates)
	for _, x := range t.of {
		if len(x.budgets) > MaxBudgets || len(x.rates) > MaxBudgets {
			return nil, fault.New(op, fault.AuthzUnavailable, "the lender tells of more limits than there can be")
		}
	}
	t.end = now + int64(LeaseTTL)
	a.terms.Store(t)
	return t, nil
}

// maxTerms bounds what a lender may tell of one account.
const maxTerms = (creto.Actions + 1) * MaxBudgets

// supply implements source.
func (q *Borrower) supply(ctx context.Context, b *budget, r request) (*window, int64, bool, error) {
	l := &b.loan
	l.mu.Lock()
	defer l.mu.Unlock()
	now, err := q.time.read(ctx) // it may have taken time to get here
	if err != nil {
		return nil, 0, false, err
	}
	w := b.current.Load()
	inForce := w != nil && now < w.end.Load()
	if inForce {
		if used, ok := w.try(&r); ok { // somebody else has asked meanwhile
			return w, used, true, nil
		}
	}
	want := r.units
	if inForce {
		want = max(0, want-w.left())
	}
	if now < l.dry && (l.failed != nil || inForce && want >= l.tooMuch) {
		return w, 0, false, l.failed
	}
	if !r.reserve {
		want = 0
	}
	if w, err = q.lease(ctx, b, w, now, want); err != nil {
		if !errors.Is(err, errGone) {
			l.dry, l.failed = now+int64(dryFor), err
		}
		return nil, 0, false, err
	}
	l.dry, l.failed = 0, nil
	if !r.reserve {
		s := w.sum()
		return w, 0, r.units <= max(0, s.limit-s.used)+w.left(), nil
	}
	used, ok := w.try(&r)
	if !ok {
		l.dry, l.tooMuch = now+int64(dryFor), want
	}
	return w, used, ok, nil
}

// lease asks the lender for more, and brings the window up to date. The caller
// holds loan.mu.
func (q *Borrower) lease(ctx context.Context, b *budget, w *window, now, want int64) (*window, error) {
	const op fault.Op = "metering.Borrower.lease"
	b.loan.sequence++
	in := LeaseRequest{Borrower: q.name, Sequence: b.loan.sequence, Subject: b.Subject, Window: b.length, Want: want}
	if w != nil {
		in.Start, in.Had, in.Held = w.start, b.loan.had, w.limit.Load()
	}
	out, err := q.lender.Lease(ctx, in)
	switch {
	case errors.Is(err, fault.NotFound):
		q.forget(b)
		return nil, errGone
	case err != nil:
		return nil, fault.Wrap(op, err)
	case out.TTL < 0 || out.TTL > LeaseTTL || out.Held < 0 || out.Start == in.Start && out.Held < in.Held:
		return nil, fault.New(op, fault.AuthzUnavailable, "the lender answers what was not asked")
	}
	if w == nil || w.start != out.Start {
		w = newWindow(out.Start, now, 0, 0)
	}
	b.loan.had = out.Held
	w.said.Store(&said{limit: out.Limit, used: out.Used, reset: time.Unix(0, now).Add(out.Reset).UTC()})
	w.limit.Store(out.Held)
	w.end.Store(now + int64(out.TTL))
	b.current.Store(w)
	return w, nil
}

// forget drops a budget that its lender does not have any more.
func (q *Borrower) forget(b *budget) {
	q.mu.Lock()
	defer q.mu.Unlock()
	k := budgetKey{b.Subject, b.length}
	if q.budgets[k] == b {
		delete(q.budgets, k)
	}
}

// Run renews leases and gives back what was not used of them, until ctx ends; then
// it gives back all.
func (q *Borrower) Run(ctx context.Context, log *slog.Logger) error {
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { q.time.run(running); return nil })
	group.Go(func() error {
		ticker := time.NewTicker(renewEvery)
		defer ticker.Stop()
		for {
			select {
			case <-running.Done():
				last, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
				defer cancel()
				if err := q.renew(last, true); err != nil {
					log.LogAttrs(last, slog.LevelWarn, "what was lent is not given back, and counts as used", slog.Any(logkey.Error, err))
				}
				return nil
			case <-ticker.C:
			}
			if err := q.renew(running, false); err != nil && running.Err() == nil {
				log.LogAttrs(running, slog.LevelWarn, "the leases of quotas are not renewed", slog.Any(logkey.Error, err))
			}
		}
	})
	return group.Wait()
}

// renew renews the leases in use, and gives back what was not used since it was
// called last, or all.
func (q *Borrower) renew(ctx context.Context, all bool) error {
	q.mu.Lock()
	list := make([]*budget, 0, len(q.budgets))
	for _, b := range q.budgets {
		list = append(list, b)
	}
	q.mu.Unlock()
	var errs []error
	for _, b := range list {
		if err := q.renewOne(ctx, b, all); err != nil && !errors.Is(err, errGone) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (q *Borrower) renewOne(ctx context.Context, b *budget, all bool) error {
	b.loan.mu.Lock()
	defer b.loan.mu.Unlock()
	w := b.current.Load()
	if w == nil {
		return nil
	}
	now, err := q.time.ask(ctx)
	if err != nil {
		return err
	}
	used := w.used.Load()
	idle := used == b.loan.seen
	b.loan.seen = used
	if all || idle {
		n := w.left()
		if _, ok := w.take(n); ok && n > 0 { // nobody else takes them then
			w.limit.Add(-n)
			w.used.Add(-n)
		} else if idle || n == 0 {
			return nil // there is nothing to keep
		}
	}
	_, err = q.lease(ctx, b, w, now, 0)
	return err
}
