package call

import (
	"context"
	"log/slog"
	"time"

	"creto.dev/fault"
	"creto.dev/internal/logkey"
)

// Event is one attempt that ended, or the choice of an alternative.
type Event struct {
	// Op is the operation.
	Op fault.Op
	// Attempt counts from 1.
	Attempt int
	// Duration is how long the attempt took.
	Duration time.Duration
	// Err is what it ended with; nil is success. Its code is a metric's label,
	// its text is for the local log only.
	Err error
	// Retry reports whether another attempt follows, after Wait.
	Retry bool
	Wait  time.Duration
	// Rejected reports that the breaker let no call through.
	Rejected bool
	// Circuit is the state into which the attempt brought the breaker; the zero
	// State if it changed nothing.
	Circuit State
	// Fallback reports that the alternative follows, because of Err.
	Fallback bool
}

// Recorder is told of every attempt, successes included, on the caller's
// goroutine: it must be quick and safe for concurrent use. It is where a
// histogram goes.
type Recorder interface {
	Record(ctx context.Context, e Event)
}

// Observer is who hears of calls. Its zero value is silent.
type Observer struct {
	// Log gets a line for each failed attempt and none for a success: Warn for
	// what a retry, a fallback or an operator deals with, Error for a defect,
	// Debug for what the caller did wrong.
	Log *slog.Logger
	// Recorder gets every attempt.
	Recorder Recorder
}

func (o Observer) observe(ctx context.Context, e Event) {
	if o.Recorder != nil {
		o.Recorder.Record(ctx, e)
	}
	if o.Log == nil {
		return
	}
	o.circuit(ctx, e)
	if e.Err == nil {
		return
	}
	level := severity(e.Err)
	switch {
	case e.Fallback:
		level = max(level, slog.LevelWarn)
	case e.Rejected: // that the circuit is open was said when it opened
		level = slog.LevelDebug
	}
	if !o.Log.Enabled(ctx, level) {
		return
	}
	code := fault.CodeOf(e.Err)
	attrs := []slog.Attr{
		slog.String(logkey.Op, string(e.Op)),
		slog.String(logkey.Code, code.String()),
		slog.String(logkey.Category, code.Category().String()),
		slog.Int(logkey.Attempt, e.Attempt),
		slog.Duration(logkey.Duration, e.Duration),
		slog.String(logkey.Error, e.Err.Error()),
	}
	switch {
	case e.Fallback:
		o.Log.LogAttrs(ctx, level, "call failed, falling back", attrs...)
	case e.Retry:
		attrs = append(attrs, slog.Duration(logkey.Wait, e.Wait))
		o.Log.LogAttrs(ctx, level, "call failed, trying again", attrs...)
	default:
		o.Log.LogAttrs(ctx, level, "call failed", attrs...)
	}
}

// circuit says that the breaker changed.
func (o Observer) circuit(ctx context.Context, e Event) {
	switch e.Circuit {
	case Open:
		o.Log.LogAttrs(ctx, slog.LevelWarn, "circuit opened", slog.String(logkey.Op, string(e.Op)))
	case Closed:
		o.Log.LogAttrs(ctx, slog.LevelInfo, "circuit closed", slog.String(logkey.Op, string(e.Op)))
	}
}

// severity is how loud a failed call is.
func severity(err error) slog.Level {
	code := fault.CodeOf(err)
	switch {
	case code.Kind() == fault.Internal || code.Kind() == fault.DataLoss:
		return slog.LevelError
	case code.Category() == fault.Permanent:
		return slog.LevelDebug
	}
	return slog.LevelWarn
}
