// Package export hands the audit log to others: as lines of JSON, CloudEvents,
// OCSF events or OpenTelemetry log records, to a file, a collector or a bucket.
//
// A record is exported in the order of the tree and no sooner than it is in it.
// Each has its index and its leaf's hash (RFC 6962), so that whoever holds it can
// ask the log for its proof. People's names and words are in it as far as the
// reader of the source may see them and they are not erased: what was handed out
// before an erasure is beyond the log's reach.
//
// A [Cursor] remembers what is delivered and what is being delivered, so that an
// interrupted export goes on with the very batch it was interrupted in. A bucket
// then has each record once, since a batch's name is its range; a file and a
// collector may see the last batch twice, and tell by the record's id.
package export

import (
	"context"
	"errors"
	"time"

	"creto.dev/audit"
	"creto.dev/call"
	"creto.dev/fault"
)

// Source is where records come from. Safe for concurrent use.
type Source interface {
	// Entries returns records with indexes from from on, in ascending order, at
	// most limit.
	Entries(ctx context.Context, from int64, limit int) ([]audit.Entry, error)
	// Wait returns when there may be a record at from or behind it.
	Wait(ctx context.Context, from int64) error
}

// Destination takes batches. It need not be safe for concurrent use.
type Destination interface {
	// Write delivers a batch, in ascending order and not empty. When it returns
	// nil, the batch survives this process as well as the destination can make it;
	// refused is how many of the records the destination took note of and will
	// never take. After an error the same batch may be written again.
	//
	// Errors: those that may pass (Transient, Degraded) are worth another try.
	Write(ctx context.Context, batch []audit.Entry) (refused int64, err error)
	// Close ends what Write began.
	Close() error
}

// Position is how far an export is.
type Position struct {
	// Next is the index of the first record that is not delivered.
	Next int64
	// Bound, where it is above Next, ends the batch that is being delivered.
	Bound int64
}

// Cursor keeps a position.
type Cursor interface {
	Load(ctx context.Context) (Position, error)
	Save(ctx context.Context, p Position) error
}

// Options say how an export runs. The zero value exports what is there and ends.
type Options struct {
	// Batch is the most records in one. 0 means DefaultBatch.
	Batch int
	// Follow waits for new records instead of ending, and tries again what may
	// pass until it does.
	Follow bool
	// Gather is how long to wait for a full batch when following. 0 is not at all.
	Gather time.Duration
	// Policy is how a batch is written. The zero Policy tries three times.
	Policy call.Policy
	// Whole says that the source has every record of the log: an index that it
	// leaves out was removed before it was exported.
	Whole bool
	// Progress, if any, hears of each step: records and refusals since the last
	// call, where the export is, and what is wrong, if anything is.
	Progress func(Step)
}

// Step is what [Options.Progress] hears.
type Step struct {
	Records, Refused int64
	Missing          int64 // that were gone already, where Options.Whole
	Next             int64
	Err              error // what is tried again; nil after a success
}

// DefaultBatch is the most records in one batch.
const DefaultBatch = 1000

// again is how long a following export waits after a failure that may pass and
// outlasted the policy.
const again = 15 * time.Second

// Run exports records until there are no more or, following, until ctx ends; it
// returns nil then, too.
//
// Errors: the source's and the cursor's; the destination's if it will not pass.
func Run(ctx context.Context, s Source, d Destination, c Cursor, o Options) error {
	r := &run{source: s, destination: d, cursor: c, Options: o}
	if r.Batch <= 0 {
		r.Batch = DefaultBatch
	}
	if r.Progress == nil {
		r.Progress = func(Step) {}
	}
	for {
		if o.Follow && ctx.Err() != nil {
			return nil
		}
		more, err := r.step(ctx)
		switch {
		case err == nil && !more:
			return nil
		case err == nil:
			continue
		case o.Follow && ctx.Err() != nil:
			return nil
		case !o.Follow || !passes(err):
			return err
		}
		r.Progress(Step{Next: r.position.Next, Err: err})
		if pause(ctx, again) != nil {
			return nil
		}
	}
}

// passes reports whether another try may help.
func passes(err error) bool {
	category := fault.CategoryOf(err)
	return category == fault.Transient || category == fault.Degraded
}

// run is one Run.
type run struct {
	Options
	source      Source
	destination Destination
	cursor      Cursor
	position    Position
}

// step exports one batch, and reports whether there may be another.
func (r *run) step(ctx context.Context) (more bool, err error) {
	const op fault.Op = "export.Run"
	if r.position, err = r.cursor.Load(ctx); err != nil {
		return false, fault.Wrap(op, err)
	}
	batch, err := r.batch(ctx)
	if err != nil {
		return false, err
	}
	if len(batch) == 0 {
		if r.position.Bound > r.position.Next { // it was of records that are gone
			if err := r.cursor.Save(ctx, Position{Next: r.position.Bound}); err != nil {
				return false, fault.Wrap(op, err)
			}
			if r.Whole {
				r.Progress(Step{Missing: r.position.Bound - r.position.Next, Next: r.position.Bound})
			}
			return true, nil
		}
		if !r.Follow {
			return false, nil
		}
		r.Progress(Step{Next: r.position.Next})
		return true, fault.Wrap(op, r.source.Wait(ctx, r.position.Next))
	}
	bound := batch[len(batch)-1].Index + 1
	if r.position.Bound != bound {
		if err := r.cursor.Save(ctx, Position{r.position.Next, bound}); err != nil {
			return false, fault.Wrap(op, err)
		}
	}
	// A batch is told from others by what it begins with: the key says that it
	// may be repeated.
	refused, err := call.Do(ctx, r.Policy, call.Write(op, batch[0].Record.ID.String()), func(ctx context.Context) (int64, error) {
		return r.destination.Write(ctx, batch)
	})
	if err != nil {
		return false, fault.Wrap(op, err)
	}
	if err := r.cursor.Save(ctx, Position{Next: bound}); err != nil {
		return false, fault.Wrap(op, err)
	}
	step := Step{Records: int64(len(batch)) - refused, Refused: refused, Next: bound}
	if r.Whole {
		step.Missing = bound - r.position.Next - int64(len(batch))
	}
	r.Progress(step)
	return true, nil
}

// batch returns the batch that was begun, or the next.
func (r *run) batch(ctx context.Context) ([]audit.Entry, error) {
	const op fault.Op = "export.Run"
	read := func() ([]audit.Entry, error) {
		batch, err := r.source.Entries(ctx, r.position.Next, r.Batch)
		return batch, fault.Wrap(op, err)
	}
	batch, err := read()
	if err != nil {
		return nil, err
	}
	if r.position.Bound > r.position.Next {
		n := len(batch)
		for n > 0 && batch[n-1].Index >= r.position.Bound {
			n--
		}
		return batch[:n], nil
	}
	if r.Follow && r.Gather > 0 && len(batch) > 0 && len(batch) < r.Batch {
		if err := pause(ctx, r.Gather); err != nil {
			return nil, fault.Wrap(op, err)
		}
		return read()
	}
	return batch, nil
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// LogSource is a log as a source: the records of every tenant.
type LogSource struct{ Log audit.Log }

// Entries implements Source.
func (s LogSource) Entries(ctx context.Context, from int64, limit int) ([]audit.Entry, error) {
	return s.Log.Query(ctx, audit.Filter{Oldest: true, From: from, Limit: min(limit, audit.MaxPage)})
}

// Wait implements Source.
func (s LogSource) Wait(ctx context.Context, from int64) error {
	_, err := s.Log.Wait(ctx, from)
	if errors.Is(err, fault.AuditTimeout) && ctx.Err() == nil {
		return nil // ask again
	}
	return err
}

// Memory is a cursor of this process alone. Its zero value begins with the first
// record.
type Memory struct{ Position Position }

// Load implements Cursor.
func (m *Memory) Load(context.Context) (Position, error) { return m.Position, nil }

// Save implements Cursor.
func (m *Memory) Save(_ context.Context, p Position) error {
	m.Position = p
	return nil
}
