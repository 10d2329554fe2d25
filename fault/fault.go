// Package fault is how Creto says that something went wrong.
//
// A fault has a [Code], which says what happened, and through it a [Category],
// which says what to do: retry, give up, deny, or fall back. The table in
// codes.go holds every code with its category, whether a retry may help, and
// its HTTP and gRPC status (requirements §2–9 and R-ERR-1…9).
//
// A fault's message is written for the caller and may cross a wire. The text
// of a foreign cause may not: it can hold secrets, and is for the local log.
package fault

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Op names the operation that failed, as package.Method.
type Op string

// Category says what a caller does about a fault. The zero value is Permanent,
// so that nothing is retried by accident.
type Category uint8

const (
	// Permanent: fail at once; the same call will fail again.
	Permanent Category = iota
	// Transient: the same call may succeed later; retry with backoff.
	Transient
	// Security: deny, log and alert; never retry, never fall back.
	Security
	// Degraded: a dependency is down; fall back or break the circuit.
	Degraded
)

// String returns the category's lower-case name.
func (c Category) String() string {
	switch c {
	case Transient:
		return "transient"
	case Security:
		return "security"
	case Degraded:
		return "degraded"
	}
	return "permanent"
}

// Error is one fault. Build it with [New] or [Wrap]; read it with errors.Is
// against a [Code], [CodeOf] and [CategoryOf]. It is immutable.
type Error struct {
	op         Op
	code       Code
	message    string
	retryAfter time.Duration
	cause      error
}

// New returns a fault whose message is safe to show to the caller. A %w verb
// is not accepted: foreign causes go through [Wrap].
func New(op Op, code Code, format string, args ...any) error {
	return &Error{op: op, code: code, message: fmt.Sprintf(format, args...)}
}

// Wrap adds op to err and keeps its code. An err that is not a fault becomes
// one: a context's end is Canceled or DeadlineExceeded, everything else is
// Internal. Wrap(op, nil) is nil.
func Wrap(op Op, err error) error {
	if err == nil {
		return nil
	}
	return &Error{op: op, code: CodeOf(err), retryAfter: RetryAfter(err), cause: err}
}

// WrapAs classifies a foreign error: it becomes a fault of the given code with
// a message that is safe to show. err's own text stays local. WrapAs of a nil
// err is nil.
func WrapAs(op Op, code Code, err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{op: op, code: code, message: fmt.Sprintf(format, args...), cause: err}
}

// After returns err with the time to wait before the next try. It has no
// effect on the category.
func After(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &Error{code: CodeOf(err), retryAfter: d, cause: err}
}

// Error is for the local log: it names the operations and holds the text of
// every cause. What a client may see is [Message].
func (e *Error) Error() string {
	text := e.message
	if e.cause != nil {
		if text != "" {
			text += ": "
		}
		text += e.cause.Error()
	}
	if text == "" {
		text = e.code.String()
	}
	if e.op == "" {
		return text
	}
	return string(e.op) + ": " + text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// Is reports whether target is e's code or its kind, so that
// errors.Is(err, fault.Unavailable) holds for fault.NHIUnavailable too.
func (e *Error) Is(target error) bool {
	code, ok := target.(Code)
	return ok && (e.code == code || e.code.Kind() == code)
}

// Code returns what happened.
func (e *Error) Code() Code { return e.code }

// CodeOf returns err's code: that of the outermost fault in its chain, else
// Canceled or DeadlineExceeded for a context's end, else Internal. A bare Code
// is its own code. CodeOf(nil) is OK.
func CodeOf(err error) Code {
	if err == nil {
		return OK
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.code
	}
	if c, ok := errors.AsType[Code](err); ok {
		return c
	}
	switch {
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	}
	return Internal
}

// CategoryOf returns the category of err's code; an unknown error is
// Permanent.
func CategoryOf(err error) Category { return CodeOf(err).Category() }

// Retryable reports whether the same call may succeed later. It is independent
// of the category (R-ERR-7).
func Retryable(err error) bool { return err != nil && CodeOf(err).Retryable() }

// RetryAfter returns how long the failing side asked to wait; 0 means that it
// did not say.
func RetryAfter(err error) time.Duration {
	for err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return 0
		}
		if e.retryAfter > 0 {
			return e.retryAfter
		}
		err = e.cause
	}
	return 0
}

// constantMessage is all that a caller learns of why something did not decrypt:
// a reason would be a decryption oracle (B-10).
const constantMessage = "decryption failed"

// Message returns what a client may see: the messages of the faults in err's
// chain, outermost first, and never the text of a foreign cause. The detail of
// an Internal fault, and of whatever caused it, is never shown (R-NHI-20); that
// of a failed decryption is always the same (B-10).
func Message(err error) string {
	if err == nil {
		return ""
	}
	switch code := CodeOf(err); {
	case code.Kind() == Internal:
		return Internal.String()
	case undecrypted(code):
		return constantMessage
	}
	var text string
	for at := err; at != nil; {
		e, ok := errors.AsType[*Error](at)
		if !ok || e.code.Kind() == Internal || undecrypted(e.code) {
			break
		}
		if e.message != "" {
			if text != "" {
				text += ": "
			}
			text += e.message
		}
		at = e.cause
	}
	if text == "" {
		return CodeOf(err).String()
	}
	return text
}

// undecrypted reports whether c says that something did not decrypt.
func undecrypted(c Code) bool {
	return c == CryptoDecryptionFailed || c == CryptoKeyDecapsulationFailed || c == CryptoInvalidCiphertext
}
