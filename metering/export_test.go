package metering

import (
	"context"
	"time"
)

// Summarize records the windows that ended last, as Run does at its start.
func (q *Quota) Summarize(ctx context.Context) error {
	return q.summarize(ctx, make(map[budgetKey]time.Time))
}

// Accounts returns how many are known.
func (q *Quota) Accounts() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.accounts)
}

// Lines returns of how many borrowers of a budget something is known.
func (q *Quota) Lines(s Subject, window time.Duration) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := &q.budgets[budgetKey{s, window}].lending
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lines)
}

// Renew renews leases as Run does, or as it does at its end.
func (q *Borrower) Renew(ctx context.Context, all bool) error { return q.renew(ctx, all) }
