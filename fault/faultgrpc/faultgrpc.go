// Package faultgrpc carries faults over gRPC (R-ERR-8): the interceptors of a
// server write them, those of a client read them, and the fault that comes out
// has the code, message and waiting time of the one that went in.
//
// A fault is a google.rpc.Status whose details are an ErrorInfo of the domain
// creto.dev, whose reason is the code's name (NHI_TOKEN_EXPIRED), and a RetryInfo
// where the fault says how long to wait. What crosses is [fault.Message], never the
// text of a foreign cause.
package faultgrpc

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"creto.dev/fault"
)

// Domain is the domain of every ErrorInfo that reports a fault.
const Domain = "creto.dev"

const (
	// maxMessageBytes bounds a message, sent or received.
	maxMessageBytes = 8 << 10
	// maxRetryAfter bounds a waiting time that the other side may ask for.
	maxRetryAfter = 24 * time.Hour
)

// Status returns err as it crosses the wire. A nil err is OK. An error that is
// no fault keeps nothing but its code: Canceled or DeadlineExceeded for the end
// of a context, what [Read] would make of it for another gRPC status, else
// Internal.
func Status(err error) *status.Status {
	if err == nil {
		return status.New(codes.OK, "")
	}
	code, message := fault.CodeOf(err), fault.Message(err)
	if foreign, ok := foreignStatus(err); ok {
		code = codeOfStatus(foreign.Code())
		message = code.String()
	}
	if code.GRPCStatus() == uint32(codes.OK) { // a bare fault.OK is a mistake of the callee's
		code, message = fault.Internal, fault.Internal.String()
	}
	st := status.New(codes.Code(code.GRPCStatus()), clean(message))
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: Domain, Reason: reason(code)}}
	if wait := fault.RetryAfter(err); wait > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	}
	with, err := st.WithDetails(details...)
	if err != nil { // these messages always marshal
		return st
	}
	return with
}

// foreignStatus returns the gRPC status in err's chain, if err is no fault.
func foreignStatus(err error) (*status.Status, bool) {
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return nil, false
	}
	s, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err)
	if !ok {
		return nil, false
	}
	return s.GRPCStatus(), true
}

// Read returns the fault that err, what a gRPC call of op ended with, stands for.
// nil stays nil. ctx is the call's: where it has ended, a status that the
// transport made of that is Canceled or DeadlineExceeded, as it would be without
// a wire between.
//
// Errors: every code that [Status] writes. A status that is no fault of ours, or
// whose code does not go with its reason, counts as its number alone: Unavailable
// (Degraded) for a transport that broke or a peer that gave up, and Internal
// (Permanent) for what is unknown, so that nothing is retried by accident. Its
// text stays local.
func Read(ctx context.Context, op fault.Op, err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return fault.Wrap(op, err)
	}
	code, ours := fault.Internal, false
	var wait time.Duration
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if known, ok := codeOfReason(d.GetReason()); ok && d.GetDomain() == Domain && codes.Code(known.GRPCStatus()) == st.Code() {
				code, ours = known, true
			}
		case *errdetails.RetryInfo:
			if asked := d.GetRetryDelay(); asked.IsValid() {
				wait = max(0, min(asked.AsDuration(), maxRetryAfter))
			}
		}
	}
	var out error
	switch {
	case ours:
		out = fault.New(op, code, "%s", clean(st.Message()))
	case ended(ctx, st.Code()):
		out = fault.WrapAs(op, fault.CodeOf(ctx.Err()), errors.Join(ctx.Err(), err), "%s", fault.CodeOf(ctx.Err()))
	default:
		code = codeOfStatus(st.Code())
		out = fault.WrapAs(op, code, err, "%s", code)
	}
	if wait > 0 {
		out = fault.After(out, wait)
	}
	return out
}

// ended reports whether a status of that number is what the end of ctx made of
// the call.
func ended(ctx context.Context, number codes.Code) bool {
	return ctx.Err() != nil && (number == codes.Canceled || number == codes.DeadlineExceeded || number == codes.Unavailable)
}

// codeOfStatus is what a status means when nothing else says it.
func codeOfStatus(number codes.Code) fault.Code {
	switch number {
	case codes.InvalidArgument, codes.OutOfRange:
		return fault.InvalidArgument
	case codes.DeadlineExceeded:
		return fault.DeadlineExceeded
	case codes.NotFound:
		return fault.NotFound
	case codes.AlreadyExists:
		return fault.AlreadyExists
	case codes.PermissionDenied:
		return fault.PermissionDenied
	case codes.ResourceExhausted:
		return fault.ResourceExhausted
	case codes.FailedPrecondition:
		return fault.FailedPrecondition
	case codes.Aborted:
		return fault.Aborted
	case codes.Unimplemented:
		return fault.Unimplemented
	case codes.Canceled, codes.Unavailable:
		// A call that was canceled and not by us: the other side went away.
		return fault.Unavailable
	case codes.DataLoss:
		return fault.DataLoss
	case codes.Unauthenticated:
		return fault.Unauthenticated
	}
	return fault.Internal
}

// reason is a code's name in the form that ErrorInfo demands.
func reason(code fault.Code) string {
	return strings.ToUpper(strings.ReplaceAll(code.String(), ".", "_"))
}

// codeOfReason finds the code of that reason.
func codeOfReason(text string) (fault.Code, bool) {
	for _, code := range fault.Codes() {
		if code != fault.OK && reason(code) == text {
			return code, true
		}
	}
	return fault.Internal, false
}

// clean bounds a message and takes out what a terminal would act on, or what would
// show it in another order or on other lines than it has.
func clean(text string) string {
	if len(text) > maxMessageBytes {
		text = text[:maxMessageBytes]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, text)
}
