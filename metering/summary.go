package metering

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/logkey"
)

// summaryEvery is how often Run looks for windows that have ended, and
// summarySlack how long after its end a window is counted: an action is stamped a
// moment before its record is in the log.
const (
	summaryEvery = 30 * time.Second
	summarySlack = time.Minute
)

// Run records what each budget's windows came to: one quota_checked for an agent,
// action and window in which something was asked for, where a record of every
// check would be one of every action (R-AUD-27). What was refused has records of
// its own. It ends with ctx.
//
// It counts in the log, some time after the window's end, and a window that ended
// while nobody ran is counted at the next start; its record has the same id then,
// so there is one.
func (q *Quota) Run(ctx context.Context, log *slog.Logger) error {
	tick := time.NewTicker(summaryEvery)
	defer tick.Stop()
	done := make(map[key]time.Time)
	for {
		// It is asked again: nothing is lost by that.
		if err := q.summarize(ctx, done); err != nil && ctx.Err() == nil {
			log.LogAttrs(ctx, slog.LevelWarn, "what quotas came to is not recorded yet", slog.Any(logkey.Error, err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// summarize records the windows that ended last, but for those in done.
func (q *Quota) summarize(ctx context.Context, done map[key]time.Time) error {
	now, err := q.clock.Now(ctx)
	if err != nil {
		return err
	}
	q.mu.Lock()
	limits := make(map[key]Limit, len(q.budgets))
	for k, b := range q.budgets {
		limits[k] = b.Limit
	}
	q.mu.Unlock()
	for _, k := range slices.SortedFunc(maps.Keys(limits), compareKeys) {
		limit := limits[k]
		// What happened at the window's end has its record a moment later.
		end := now.Time().Add(-summarySlack).Truncate(limit.Window)
		if !end.After(done[k]) {
			continue
		}
		if err := q.summary(ctx, k, limit, end.Add(-limit.Window), end); err != nil {
			return err
		}
		done[k] = end
	}
	return nil
}

func compareKeys(a, b key) int {
	return cmp.Or(cmp.Compare(a.agent.String(), b.agent.String()), cmp.Compare(a.action, b.action))
}

// summary records one window, if anything was asked for in it.
func (q *Quota) summary(ctx context.Context, k key, limit Limit, start, end time.Time) error {
	const op fault.Op = "metering.summary"
	used, refused, err := q.count(ctx, k, start, end)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if used == 0 && refused == 0 {
		return nil
	}
	from, to := start.UTC().Format(time.RFC3339), end.UTC().Format(time.RFC3339)
	digest := creto.DigestOf([]byte("quota_checked\x00" + k.agent.String() + "\x00" + k.action + "\x00" + from + "\x00" + to))
	_, err = q.log.Log(ctx, audit.Record{
		ID: audit.RecordID(digest[:len(audit.RecordID{})]), Who: k.agent, What: audit.EventQuotaChecked, Resource: "Meter::" + k.action, Outcome: audit.Success,
		Detail: map[string]string{
			"from": from, "until": to, "used": strconv.FormatInt(used, 10), "refused": strconv.FormatInt(refused, 10), "limit": strconv.FormatInt(limit.Amount, 10),
		},
	})
	return fault.Wrap(op, err)
}
