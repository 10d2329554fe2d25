package export_test

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	collectorlogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"creto.dev"
	"creto.dev/audit/export"
	"creto.dev/call"
	"creto.dev/fault"
)

func TestGoldenOTLP(t *testing.T) {
	r := export.Proto(t, origin, full())
	if got := hex.EncodeToString(r.GetTraceId()) + " " + hex.EncodeToString(r.GetSpanId()); got != "0af7651916cd43dd8448eb211c80319c b7ad6b7169203331" || r.GetFlags() != 1 {
		t.Errorf("the trace is %s, %d", got, r.GetFlags())
	}
	data, err := protojson.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var pretty bytes.Buffer // protojson's own spaces differ from build to build
	if err := json.Compact(&pretty, data); err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(pretty.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	if data, err = json.MarshalIndent(v, "", "  "); err != nil {
		t.Fatal(err)
	}
	golden(t, "otlp.json", append(data, '\n'))
	e := full()
	for trace, want := range map[string]bool{"0af7651916cd43dd8448eb211c80319c": true, strings.Repeat("0", 32): false, "x": false, "": false} {
		e.Record.Trace = trace
		if got := len(export.Proto(t, origin, e).GetTraceId()) == 16; got != want {
			t.Errorf("trace %q gives an id: %v, want %v", trace, got, want)
		}
	}
}

// receiver is a collector as far as OTLP/HTTP goes: it decodes with the
// protocol's own types.
type receiver struct {
	t       *testing.T
	records []*logspb.LogRecord
	answer  func(w http.ResponseWriter, n int) bool // false: nothing was stored
	calls   int
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.calls++
	if q.Method != http.MethodPost || q.URL.Path != "/v1/logs" || q.Header.Get("Content-Type") != "application/x-protobuf" || q.Header.Get("Content-Encoding") != "gzip" || q.Header.Get("X-Key") != "s3cret" {
		r.t.Errorf("%s %s with %v", q.Method, q.URL.Path, q.Header)
	}
	zip, err := gzip.NewReader(q.Body)
	if err != nil {
		r.t.Error(err)
		return
	}
	body, err := io.ReadAll(zip)
	if err != nil {
		r.t.Error(err)
		return
	}
	var in collectorlogs.ExportLogsServiceRequest
	if err := proto.Unmarshal(body, &in); err != nil || len(in.GetResourceLogs()) != 1 || len(in.GetResourceLogs()[0].GetScopeLogs()) != 1 {
		r.t.Errorf("not a request: %v", err)
		return
	}
	records := in.GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords()
	if r.answer == nil || r.answer(w, len(records)) {
		r.records = append(r.records, records...)
	}
}

func (r *receiver) run(t *testing.T, n int64) (export.Step, error) {
	t.Helper()
	server := httptest.NewServer(r)
	defer server.Close()
	d, err := export.NewCollector(origin, server.URL, map[string]creto.Secret{"X-Key": creto.NewSecret("s3cret")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	var all export.Step
	err = export.Run(t.Context(), &source{list: entries(0, n)}, d, &export.Memory{}, export.Options{
		Policy:   call.Policy{Attempts: 3, InitialDelay: time.Millisecond, MaxDelay: time.Millisecond},
		Progress: func(s export.Step) { all.Records += s.Records; all.Refused += s.Refused },
	})
	return all, err
}

func TestCollector(t *testing.T) {
	r := &receiver{t: t}
	if done, err := r.run(t, 2500); err != nil || done.Records != 2500 || len(r.records) != 2500 || r.calls < 3 {
		t.Fatalf("Run = %+v, %v; %d records in %d requests", done, err, len(r.records), r.calls)
	}
	for i, record := range r.records {
		if index := record.GetAttributes()[0]; index.GetKey() != "creto.index" || index.GetValue().GetIntValue() != int64(i) {
			t.Fatalf("record %d is %v", i, record)
		}
	}
}

// What a collector answers is done as OTLP has it.
func TestCollectorAnswers(t *testing.T) {
	partial, err := proto.Marshal(&collectorlogs.ExportLogsServiceResponse{PartialSuccess: &collectorlogs.ExportLogsPartialSuccess{RejectedLogRecords: 2, ErrorMessage: "too old"}})
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{t: t, answer: func(w http.ResponseWriter, _ int) bool { _, _ = w.Write(partial); return true }}
	if done, err := r.run(t, 5); err != nil || done.Records != 3 || done.Refused != 2 || r.calls != 1 {
		t.Errorf("a partial success is %+v, %v after %d calls; want 2 refused, and no other try", done, err, r.calls)
	}
	for _, test := range []struct {
		status, calls int
		code          fault.Code
	}{
		{http.StatusTooManyRequests, 3, fault.Unavailable}, {http.StatusServiceUnavailable, 3, fault.Unavailable}, {http.StatusBadGateway, 3, fault.Unavailable},
		{http.StatusBadRequest, 1, fault.FailedPrecondition}, {http.StatusUnauthorized, 1, fault.FailedPrecondition}, {http.StatusNotFound, 1, fault.FailedPrecondition},
		{http.StatusInternalServerError, 1, fault.FailedPrecondition}, {http.StatusTemporaryRedirect, 1, fault.FailedPrecondition},
	} {
		r := &receiver{t: t, answer: func(w http.ResponseWriter, _ int) bool {
			w.Header().Set("Location", "http://elsewhere.invalid/")
			w.WriteHeader(test.status)
			return false
		}}
		_, err := r.run(t, 5)
		if fault.CodeOf(err) != test.code || r.calls != test.calls || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%d = %v after %d calls, want %v after %d", test.status, err, r.calls, test.code, test.calls)
		}
	}
	// It waits as long as it is asked to, by the collector's clock.
	year := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	for after, date := range map[string]time.Time{"1": year, year.Add(time.Second).Format(http.TimeFormat): year} {
		began := time.Now()
		first := true
		r = &receiver{t: t, answer: func(w http.ResponseWriter, _ int) bool {
			if first {
				first = false
				w.Header().Set("Date", date.Format(http.TimeFormat))
				w.Header().Set("Retry-After", after)
				w.WriteHeader(http.StatusServiceUnavailable)
				return false
			}
			return true
		}}
		if _, err := r.run(t, 5); err != nil || time.Since(began) < time.Second || len(r.records) != 5 {
			t.Errorf("Run with Retry-After: %s = %v after %v with %d records", after, err, time.Since(began), len(r.records))
		}
	}
}

func TestCollectorURL(t *testing.T) {
	for where, ok := range map[string]bool{
		"https://collector.example":              true,
		"https://collector.example/otlp/v1/logs": true,
		"http://localhost:4318":                  true,
		"http://127.0.0.1:4318":                  true,
		"http://collector.example:4318":          false,
		"https://user:canary@collector.example":  false,
		"ftp://collector.example":                false,
		"https://":                               false,
		"https://colle ctor.example/canary%zz%":  false,
	} {
		_, err := export.NewCollector(origin, where, nil)
		if (err == nil) != ok || err != nil && (!errors.Is(err, fault.InvalidArgument) || strings.Contains(err.Error(), "canary")) {
			t.Errorf("NewCollector(%q) = %v, want ok %v", where, err, ok)
		}
	}
}
