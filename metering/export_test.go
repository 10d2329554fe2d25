package metering

import (
	"context"
	"time"
)

// Summarize records the windows that ended last, as Run does at its start.
func (q *Quota) Summarize(ctx context.Context) error {
	return q.summarize(ctx, make(map[budgetKey]time.Time))
}
