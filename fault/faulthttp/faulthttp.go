// Package faulthttp carries faults over HTTP as problem details (RFC 9457,
// R-ERR-8): a server calls [Write], a client calls [Read], and the fault that
// comes out has the code, message and waiting time of the one that went in.
//
// What crosses is [fault.Message], never the text of a foreign cause.
package faulthttp

import (
	"encoding/json"
	"io"
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"creto.dev"
	"creto.dev/fault"
)

// MediaType is the content type of a problem (RFC 9457, section 3).
const MediaType = "application/problem+json"

// RequestIDHeader names the header in which a listener puts the id of a request
// before any handler runs.
const RequestIDHeader = "X-Request-Id"

// typePrefix makes a code into the URI that RFC 9457 wants as a problem's type.
const typePrefix = "https://creto.dev/fault/"

const (
	// maxProblemBytes bounds what Read takes from a server.
	maxProblemBytes = 64 << 10
	// maxDetailBytes bounds a message, sent or received.
	maxDetailBytes = 8 << 10
	// maxRetryAfter bounds a waiting time that a server may ask for.
	maxRetryAfter = 24 * time.Hour
)

// problem is the body (RFC 9457, section 3.1, and our extension members).
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	// Code is the name of a fault.Code.
	Code string `json:"code"`
	// Retryable reports whether the same request may succeed later.
	Retryable bool `json:"retryable"`
	// RetryAfter is in seconds, to the millisecond.
	RetryAfter float64 `json:"retry_after,omitempty"`
	// RequestID is the trace that the server's log knows the request by.
	RequestID string `json:"request_id,omitempty"`
}

// Write answers r with err. It sets the status, Content-Type and, where err says
// how long to wait, Retry-After (RFC 9110, section 10.2.3; whole seconds, rounded
// up); it drops headers that described another body. A nil err is a mistake of
// the caller's and answered as Internal. request_id is the trace of r's context,
// or else what the listener put into the response's [RequestIDHeader].
//
// Write does not log: err is logged where it stops travelling, with its cause.
func Write(w http.ResponseWriter, r *http.Request, err error) {
	code := fault.CodeOf(err)
	if code == fault.OK || code.HTTPStatus() < http.StatusBadRequest {
		code, err = fault.Internal, fault.Internal
	}
	p := problem{
		Type:      typePrefix + code.String(),
		Title:     title(code),
		Status:    code.HTTPStatus(),
		Detail:    clean(fault.Message(err)),
		Code:      code.String(),
		Retryable: code.Retryable(),
		RequestID: requestID(w, r),
	}
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Encoding", "Content-Disposition", "Etag", "Last-Modified"} {
		h.Del(name)
	}
	if wait := fault.RetryAfter(err); wait > 0 {
		p.RetryAfter = float64(wait.Round(time.Millisecond).Milliseconds()) / 1000
		h.Set("Retry-After", strconv.FormatInt(int64(math.Ceil(wait.Seconds())), 10))
	}
	// RFC 9110, section 15.5.2, demands a challenge with every 401.
	if p.Status == http.StatusUnauthorized && h.Get("WWW-Authenticate") == "" {
		h.Set("WWW-Authenticate", "Bearer")
	}
	h.Set("Content-Type", MediaType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	body, _ := json.Marshal(p) // strings, bools and finite numbers always marshal
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // a client that went away is no fault of ours
}

// Read returns the fault that resp reports, or nil for a status below 400. A
// body that is no problem of ours, or whose code does not go with the status,
// counts for nothing: the status alone decides. Read takes at most 64 KiB of the
// body and does not close it.
//
// Errors: every code that [Write] writes; for other servers the code that the
// status stands for, where an unknown one is Internal, so that nothing is
// retried by accident.
func Read(resp *http.Response) error {
	const op fault.Op = "faulthttp.Read"
	if resp.StatusCode < http.StatusBadRequest {
		return nil
	}
	code, detail, wait := codeOfStatus(resp.StatusCode), "", RetryAfter(resp.Header)
	if p, ok := readProblem(resp); ok {
		if known, ok := fault.ParseCode(p.Code); ok && known.HTTPStatus() == resp.StatusCode {
			code, detail = known, clean(p.Detail)
		}
		if p.RetryAfter > 0 && p.RetryAfter <= maxRetryAfter.Seconds() {
			wait = time.Duration(math.Round(p.RetryAfter*1000)) * time.Millisecond
		}
	}
	if detail == "" {
		detail = "the server answered " + strconv.Itoa(resp.StatusCode)
	}
	err := fault.New(op, code, "%s", detail)
	if wait > 0 {
		err = fault.After(err, wait)
	}
	return err
}

func readProblem(resp *http.Response) (problem, bool) {
	var p problem
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || media != MediaType || resp.Body == nil {
		return p, false
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProblemBytes+1))
	if err != nil || len(body) > maxProblemBytes {
		return p, false
	}
	return p, json.Unmarshal(body, &p) == nil
}

// RetryAfter returns how long the server that sent h asks to wait, at most a day;
// 0 if it does not say. Of the header's two forms (RFC 9110, section 10.2.3) a
// date counts from the response's own Date, so that the clocks of both ends need
// not agree.
func RetryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	var wait time.Duration
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if until, err := http.ParseTime(text); err == nil {
		if now, err := http.ParseTime(h.Get("Date")); err == nil {
			wait = until.Sub(now)
		}
	}
	return max(0, min(wait, maxRetryAfter))
}

// codeOfStatus is what a status means when nothing else says it.
func codeOfStatus(status int) fault.Code {
	switch status {
	case http.StatusUnauthorized:
		return fault.Unauthenticated
	case http.StatusForbidden:
		return fault.PermissionDenied
	case http.StatusNotFound, http.StatusGone:
		return fault.NotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return fault.FailedPrecondition
	case http.StatusTooManyRequests:
		return fault.RateLimited
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return fault.DeadlineExceeded
	case http.StatusNotImplemented:
		return fault.Unimplemented
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return fault.Unavailable
	case http.StatusInsufficientStorage:
		return fault.ResourceExhausted
	}
	if status < http.StatusInternalServerError {
		return fault.InvalidArgument
	}
	return fault.Internal
}

// title is the code in words, as RFC 9457 wants it: the same for every
// occurrence of a type.
func title(code fault.Code) string {
	name := code.String()
	return strings.ReplaceAll(name[strings.IndexByte(name, '.')+1:], "_", " ")
}

// clean bounds a message and takes out what a terminal would act on, or what would
// show it in another order or on other lines than it has.
func clean(text string) string {
	if len(text) > maxDetailBytes {
		text = text[:maxDetailBytes]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, text)
}

func requestID(w http.ResponseWriter, r *http.Request) string {
	if r != nil {
		if id := creto.TraceOf(r.Context()); id != "" {
			return id
		}
	}
	return w.Header().Get(RequestIDHeader)
}
