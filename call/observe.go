package call

import (
	"context"
	"log/slog"
	"time"

	"creto.dev/fault"
	"creto.dev/internal/logkey"
)

// Event is one attempt that ended.
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
	if o.Log == nil || e.Err == nil {
		return
	}
	level := severity(e.Err)
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
	if e.Retry {
		attrs = append(attrs, slog.Duration(logkey.Wait, e.Wait))
		o.Log.LogAttrs(ctx, level, "call failed, trying again", attrs...)
		return
	}
	o.Log.LogAttrs(ctx, level, "call failed", attrs...)
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
