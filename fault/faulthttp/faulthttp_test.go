package faulthttp_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
	"github.com/google/go-cmp/cmp"
)

const secret = "password=hunter2"

// serve answers one request with err and returns the response as a client
// sees it.
func serve(err error) *http.Response {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	w := httptest.NewRecorder()
	faulthttp.Write(w, r, err)
	return w.Result()
}

func TestRoundTrip(t *testing.T) {
	for _, code := range fault.Codes() {
		if code == fault.OK {
			continue
		}
		t.Run(code.String(), func(t *testing.T) {
			sent := fault.After(fault.WrapAs("a.B", code, errors.New(secret), "no %q here", "thing"), 1500*time.Millisecond)
			resp := serve(sent)
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(body), secret) {
				t.Errorf("body holds the foreign cause: %s", body)
			}
			if resp.StatusCode != code.HTTPStatus() || resp.Header.Get("Retry-After") != "2" || resp.Header.Get("Content-Type") != faulthttp.MediaType {
				t.Errorf("status, headers = %d, %v", resp.StatusCode, resp.Header)
			}
			resp.Body = io.NopCloser(bytes.NewReader(body))
			got := faulthttp.Read(resp)
			if fault.CodeOf(got) != code || fault.RetryAfter(got) != 1500*time.Millisecond || fault.Message(got) != fault.Message(sent) {
				t.Errorf("Read = %v, %v, %q, want %v, 1.5s, %q", fault.CodeOf(got), fault.RetryAfter(got), fault.Message(got), code, fault.Message(sent))
			}
		})
	}
}

func TestWrite(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r = r.WithContext(creto.WithTrace(r.Context(), "4bf92f3577b34da6a3ce929d0e0e4736"))
	w := httptest.NewRecorder()
	w.Header().Set("Content-Encoding", "gzip")
	w.Header().Set("ETag", `"x"`)
	faulthttp.Write(w, r, fault.After(fault.New("a.B", fault.NHITokenExpired, "token expired\x1b[31m"), 2*time.Second))
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"type": "https://creto.dev/fault/nhi.token_expired", "title": "token expired", "status": 401.0,
		"detail": "token expired [31m", "code": "nhi.token_expired", "retryable": false, "retry_after": 2.0,
		"request_id": "4bf92f3577b34da6a3ce929d0e0e4736",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
	h := w.Header()
	if h.Get("Content-Encoding") != "" || h.Get("ETag") != "" || h.Get("WWW-Authenticate") != "Bearer" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("headers = %v", h)
	}
}

func TestWriteRequestIDOfListener(t *testing.T) {
	w := httptest.NewRecorder()
	w.Header().Set(faulthttp.RequestIDHeader, "abc")
	faulthttp.Write(w, httptest.NewRequest(http.MethodGet, "/", nil), fault.NotFound)
	if !strings.Contains(w.Body.String(), `"request_id":"abc"`) {
		t.Errorf("body = %s, want request_id abc", w.Body)
	}
}

func TestWriteOfNoFault(t *testing.T) {
	for _, err := range []error{nil, fault.OK, errors.New(secret), fault.New("a.B", fault.Internal, secret)} {
		resp := serve(err)
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusInternalServerError || strings.Contains(string(body), secret) {
			t.Errorf("Write(%v) answered %d %s", err, resp.StatusCode, body)
		}
	}
}

func TestReadForeign(t *testing.T) {
	problem := func(code string) string { return fmt.Sprintf(`{"code":%q,"detail":"d"}`, code) }
	huge := `{"code":"not_found","detail":"` + strings.Repeat("x", 1<<20) + `"}`
	for _, tt := range []struct {
		name, contentType, body string
		status                  int
		header                  http.Header
		want                    fault.Code
		wait                    time.Duration
	}{
		{name: "html", status: 502, contentType: "text/html", body: "<h1>" + secret, want: fault.Unavailable},
		{name: "no body", status: 404, want: fault.NotFound},
		{name: "malformed", status: 403, contentType: faulthttp.MediaType, body: `{"code":`, want: fault.PermissionDenied},
		{name: "wrong type", status: 403, contentType: faulthttp.MediaType, body: `{"code":7}`, want: fault.PermissionDenied},
		{name: "huge", status: 404, contentType: faulthttp.MediaType, body: huge, want: fault.NotFound},
		{name: "unknown code", status: 409, contentType: faulthttp.MediaType, body: problem("x.y"), want: fault.FailedPrecondition},
		{name: "code of another status", status: 403, contentType: faulthttp.MediaType, body: problem("unavailable"), want: fault.PermissionDenied},
		{name: "ok in an error", status: 500, contentType: faulthttp.MediaType, body: problem("ok"), want: fault.Internal},
		{name: "parameters", status: 403, contentType: faulthttp.MediaType + "; charset=utf-8", body: problem("authz.denied"), want: fault.AuthzDenied},
		{name: "seconds", status: 429, header: http.Header{"Retry-After": {"7"}}, want: fault.RateLimited, wait: 7 * time.Second},
		{name: "date", status: 503, header: http.Header{"Retry-After": {"Wed, 21 Oct 2026 07:28:10 GMT"}, "Date": {"Wed, 21 Oct 2026 07:28:00 GMT"}}, want: fault.Unavailable, wait: 10 * time.Second},
		{name: "past date", status: 503, header: http.Header{"Retry-After": {"Wed, 21 Oct 2020 07:28:10 GMT"}, "Date": {"Wed, 21 Oct 2026 07:28:00 GMT"}}, want: fault.Unavailable},
		{name: "absurd wait", status: 503, header: http.Header{"Retry-After": {"2000000000"}}, want: fault.Unavailable, wait: 24 * time.Hour},
		{name: "absurd wait in the body", status: 503, contentType: faulthttp.MediaType, body: `{"code":"unavailable","retry_after":1e300}`, want: fault.Unavailable},
		{name: "timeout", status: 504, want: fault.DeadlineExceeded},
		{name: "unknown 4xx", status: 418, want: fault.InvalidArgument},
		{name: "unknown 5xx", status: 599, want: fault.Internal},
		{name: "unauthenticated", status: 401, want: fault.Unauthenticated},
		{name: "not implemented", status: 501, want: fault.Unimplemented},
		{name: "full", status: 507, want: fault.ResourceExhausted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{"Content-Type": {tt.contentType}}
			for k, v := range tt.header {
				h[k] = v
			}
			err := faulthttp.Read(&http.Response{StatusCode: tt.status, Header: h, Body: io.NopCloser(strings.NewReader(tt.body))})
			if fault.CodeOf(err) != tt.want || fault.RetryAfter(err) != tt.wait {
				t.Errorf("Read = %v, %v, want %v, %v", fault.CodeOf(err), fault.RetryAfter(err), tt.want, tt.wait)
			}
			if strings.Contains(fault.Message(err), secret) {
				t.Errorf("Message = %q: it holds the foreign body", fault.Message(err))
			}
		})
	}
	for _, status := range []int{200, 204, 301} {
		if err := faulthttp.Read(&http.Response{StatusCode: status}); err != nil {
			t.Errorf("Read of %d = %v, want nil", status, err)
		}
	}
}

func ExampleWrite() {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	faulthttp.Write(w, r, fault.New("example.Op", fault.NHINotFound, "no agent %q", "bob"))
	fmt.Print(w.Code, " ", w.Body)
	// Output:
	// 404 {"type":"https://creto.dev/fault/nhi.not_found","title":"not found","status":404,"detail":"no agent \"bob\"","code":"nhi.not_found","retryable":false}
}

func FuzzRead(f *testing.F) {
	f.Add(404, []byte(`{"code":"not_found","detail":"x","retry_after":1.5}`), "3")
	f.Add(500, []byte(`[]`), "Wed, 21 Oct 2026 07:28:10 GMT")
	f.Fuzz(func(t *testing.T, status int, body []byte, wait string) {
		err := faulthttp.Read(&http.Response{
			StatusCode: status,
			Header:     http.Header{"Content-Type": {faulthttp.MediaType}, "Retry-After": {wait}},
			Body:       io.NopCloser(bytes.NewReader(body)),
		})
		if (err == nil) != (status < 400) {
			t.Fatalf("Read of status %d = %v", status, err)
		}
		if wait := fault.RetryAfter(err); wait < 0 || wait > 24*time.Hour {
			t.Fatalf("RetryAfter = %v", wait)
		}
	})
}
