package metering

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

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

// Run keeps the time cheap, and records what each budget's windows came to: one
// quota_checked for a subject and window in which something was asked for, where a record of every
// check would be one of every action (R-AUD-27). What was refused has records of
// its own. It ends with ctx.
//
// It counts in the log, some time after the window's end, and a window that ended
// while nobody ran is counted at the next start; its record has the same id then,
// so there is one.
func (q *Quota) Run(ctx context.Context, log *slog.Logger) error {
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { q.time.run(running); return nil })
	group.Go(func() error { q.summarizing(running, log); return nil })
	return group.Wait()
}

func (q *Quota) summarizing(ctx context.Context, log *slog.Logger) {
	ticker := time.NewTicker(summaryEvery)
	defer ticker.Stop()
	done := make(map[budgetKey]time.Time)
	for {
		// It is asked again: nothing is lost by that.
		if err := q.summarize(ctx, done); err != nil && ctx.Err() == nil {
			log.LogAttrs(ctx, slog.LevelWarn, "what quotas came to is not recorded yet", slog.Any(logkey.Error, err))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// summarize records the windows that ended last, but for those in done.
func (q *Quota) summarize(ctx context.Context, done map[budgetKey]time.Time) error {
	now, err := q.time.ask(ctx)
	if err != nil {
		return err
	}
	q.mu.Lock()
	list := make([]*budget, 0, len(q.budgets))
	for _, b := range q.budgets {
		list = append(list, b)
	}
	q.mu.Unlock()
	slices.SortFunc(list, func(a, b *budget) int {
		return cmp.Or(compareSubjects(a.Subject, b.Subject), cmp.Compare(a.length, b.length))
	})
	for _, b := range list {
		k := budgetKey{b.Subject, b.length}
		// What happened at the window's end has its record a moment later.
		end := time.Unix(0, now).UTC().Add(-summarySlack).Truncate(b.length)
		if !end.After(done[k]) {
			continue
		}
		if err := q.summary(ctx, b, end.Add(-b.length), end); err != nil {
			return err
		}
		done[k] = end
	}
	return nil
}

// summary records one window, if anything was asked for in it.
func (q *Quota) summary(ctx context.Context, b *budget, start, end time.Time) error {
	const op fault.Op = "metering.summary"
	c := &count{budget: b, since: start.UnixNano(), until: end.UnixNano()}
	if _, err := q.tally(ctx, []*count{c}, 0); err != nil {
		return fault.Wrap(op, err)
	}
	if c.used == 0 && c.refused == 0 {
		return nil
	}
	b.mu.Lock()
	limit := b.amount
	b.mu.Unlock()
	from, to := start.Format(time.RFC3339), end.Format(time.RFC3339)
	name := "quota_checked\x00" + b.Agent.String() + "\x00" + b.Action + "\x00" + from + "\x00" + to
	detail := map[string]string{
		"from": from, "until": to, "used": strconv.FormatInt(c.used, 10), "refused": strconv.FormatInt(c.refused, 10), "limit": strconv.FormatInt(limit, 10),
	}
	if !b.Human.IsZero() {
		name += "\x00" + b.Human.String()
		detail["human"] = b.Human.String()
	}
	digest := creto.DigestOf([]byte(name))
	_, err := q.log.Log(ctx, audit.Record{
		ID: audit.RecordID(digest[:len(audit.RecordID{})]), Who: b.Agent, What: audit.EventQuotaChecked, Resource: "Meter::" + b.Action, Outcome: audit.Success, Detail: detail,
	})
	return fault.Wrap(op, err)
}
