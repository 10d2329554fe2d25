package metering

import (
	"context"
	"time"
)

// Summarize records the windows that ended last, as Run does at its start.
func (q *Quota) Summarize(ctx context.Context) error {
	return q.summarize(ctx, make(map[budgetKey]time.Time))
}

// Renew renews leases as Run does, or as it does at its end.
func (q *Borrower) Renew(ctx context.Context, all bool) error { return q.renew(ctx, all) }
