package health_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev/fault"
	"creto.dev/health"
	"github.com/google/go-cmp/cmp"
)

func composite(t testing.TB, checks ...health.Check) *health.Composite {
	t.Helper()
	c, err := health.New(nil, checks...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func constant(name string, critical bool, s health.Status) health.Check {
	return health.Check{Name: name, Critical: critical, Probe: func(context.Context) health.Status { return s }}
}

var (
	good = health.Status{State: health.Healthy}
	slow = health.Status{State: health.Degraded, Reason: "slow"}
	down = health.Status{State: health.Unhealthy, Reason: "db.internal:5432 refused"}
)

func TestOverall(t *testing.T) {
	unhealthy := health.Status{State: health.Unhealthy, Reason: "One or more dependencies unhealthy"}
	degraded := health.Status{State: health.Degraded, Reason: "One or more dependencies degraded"}
	for _, tt := range []struct {
		name        string
		checks      []health.Check
		want, ready health.Status
	}{
		{"no checks", nil, good, good},
		{"all healthy", []health.Check{constant("a", true, good), constant("b", false, good)}, good, good},
		{"a critical one degraded", []health.Check{constant("a", true, slow), constant("b", false, good)}, degraded, degraded},
		{"a critical one unhealthy", []health.Check{constant("a", true, down), constant("b", true, slow)}, unhealthy, unhealthy},
		{"another one unhealthy only degrades", []health.Check{constant("a", true, good), constant("memory", false, down)}, degraded, good},
		{"another one degraded", []health.Check{constant("a", true, good), constant("memory", false, slow)}, degraded, good},
		{"the zero status is unhealthy", []health.Check{constant("a", true, health.Status{})}, unhealthy, unhealthy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := composite(t, tt.checks...)
			got := c.Report(t.Context())
			if got.Status != tt.want {
				t.Errorf("Report = %+v, want %+v", got.Status, tt.want)
			}
			if got := c.Ready(t.Context()); got.Status != tt.ready {
				t.Errorf("Ready = %+v, want %+v", got.Status, tt.ready)
			}
			for _, check := range tt.checks {
				want := health.Result{Status: check.Probe(t.Context()), Critical: check.Critical}
				if got.Checks[check.Name] != want {
					t.Errorf("check %q = %+v, want %+v", check.Name, got.Checks[check.Name], want)
				}
			}
		})
	}
}

func TestOf(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want health.Status
	}{
		{nil, good},
		{fault.New("a.B", fault.NHITimeout, "x"), health.Status{State: health.Degraded, Reason: "NHI service slow to respond"}},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), health.Status{State: health.Degraded, Reason: "NHI service slow to respond"}},
		{fault.New("a.B", fault.NHIUnavailable, "secret"), health.Status{State: health.Unhealthy, Reason: "NHI service unavailable"}},
		{errors.New("secret"), health.Status{State: health.Unhealthy, Reason: "NHI service unavailable"}},
	} {
		if got := health.Of(tt.err, "NHI service slow to respond", "NHI service unavailable"); got != tt.want {
			t.Errorf("Of(%v) = %+v, want %+v", tt.err, got, tt.want)
		}
	}
}

func TestNew(t *testing.T) {
	ok := constant("a", true, good)
	for name, checks := range map[string][]health.Check{
		"no name":  {constant("", true, good)},
		"no probe": {{Name: "a"}},
		"twice":    {ok, ok},
	} {
		if _, err := health.New(nil, checks...); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: New = %v, want InvalidArgument", name, err)
		}
	}
}

func TestConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var checks []health.Check
		for i := range 20 {
			checks = append(checks, health.Check{Name: fmt.Sprint(i), Critical: true, Probe: func(context.Context) health.Status {
				time.Sleep(900 * time.Millisecond)
				return good
			}})
		}
		start := time.Now()
		if got := composite(t, checks...).Report(t.Context()); got.State != health.Healthy {
			t.Errorf("Report = %+v, want healthy", got)
		}
		if took := time.Since(start); took != 900*time.Millisecond {
			t.Errorf("20 checks of 900ms took %v, want 900ms", took)
		}
	})
}

func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		c := composite(t, health.Check{Name: "a", Critical: true, Probe: func(context.Context) health.Status {
			runs.Add(1)
			time.Sleep(100 * time.Millisecond)
			return good
		}})
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { c.Report(t.Context()); c.Ready(t.Context()) })
		}
		wg.Wait()
		time.Sleep(999 * time.Millisecond)
		c.Report(t.Context())
		if got := runs.Load(); got != 1 {
			t.Errorf("100 reports within a second ran the probe %d times, want once", got)
		}
		time.Sleep(time.Millisecond)
		c.Report(t.Context())
		if got := runs.Load(); got != 2 {
			t.Errorf("after a second the probe ran %d times, want 2", got)
		}
	})
}

// TestHang holds that a probe that ignores its context costs one goroutine and
// one second a report, and is found well again when it is.
func TestHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		release := make(chan struct{})
		c := composite(t,
			health.Check{Name: "hung", Critical: true, Probe: func(context.Context) health.Status {
				runs.Add(1)
				<-release
				return good
			}},
			constant("fine", true, good))
		start := time.Now()
		before := runtime.NumGoroutine()
		for range 100 {
			got := c.Report(t.Context())
			if got.Checks["hung"].Status != (health.Status{State: health.Unhealthy, Reason: "no answer within 1s"}) || got.Checks["fine"].Status != good {
				t.Fatalf("Report = %+v", got)
			}
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("100 reports took %v; after the first second they should answer at once", took)
		}
		synctest.Wait()
		if grew := runtime.NumGoroutine() - before; runs.Load() != 1 || grew > 10 {
			t.Errorf("probe ran %d times, goroutines grew by %d; want 1 and hardly any", runs.Load(), grew)
		}
		close(release)
		synctest.Wait()
		if got := c.Report(t.Context()); got.OK() {
			t.Error("an answer after the limit counted as healthy")
		}
		time.Sleep(time.Second)
		if got := c.Report(t.Context()); got.State != health.Healthy {
			t.Errorf("Report = %+v, want healthy again", got)
		}
	})
}

func TestCallerGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := composite(t, health.Check{Name: "a", Critical: true, Probe: func(ctx context.Context) health.Status {
			select {
			case <-ctx.Done():
				return health.Status{State: health.Unhealthy, Reason: "canceled"}
			case <-time.After(500 * time.Millisecond):
				return good
			}
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		c.Report(ctx)
		if got := c.Report(t.Context()); got.State != health.Healthy {
			t.Errorf("Report = %+v; a caller that went away must not cut the probe short", got)
		}
	})
}

func TestPanic(t *testing.T) {
	for name, probe := range map[string]func(context.Context) health.Status{
		"panic":  func(context.Context) health.Status { panic("boom") },
		"goexit": func(context.Context) health.Status { runtime.Goexit(); return good },
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			c, err := health.New(slog.New(slog.NewTextHandler(&log, nil)), health.Check{Name: "a", Critical: true, Probe: probe})
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Report(t.Context()); got.OK() || strings.Contains(got.Checks["a"].Reason, "boom") {
				t.Errorf("Report = %+v, want unhealthy without the panic's text", got)
			}
			if name == "panic" && !strings.Contains(log.String(), "boom") {
				t.Errorf("log = %q, want the panic", log.String())
			}
		})
	}
}

func TestHandler(t *testing.T) {
	probed := false
	unhealthy := composite(t, constant("nhi", true, down), health.Check{Name: "memory", Probe: func(context.Context) health.Status {
		probed = true
		return slow
	}})
	degraded := composite(t, constant("nhi", true, good), constant("memory", false, down))
	admin := func(r *http.Request) bool { return r.Header.Get("Authorization") == "Bearer admin" }
	for _, tt := range []struct {
		name, method, path, token string
		c                         *health.Composite
		status                    int
		body                      string
	}{
		{"live whatever fails", "GET", "/livez", "", unhealthy, 200, `{"status":"healthy"}`},
		{"not ready", "GET", "/readyz", "", unhealthy, 503, `{"status":"unhealthy","reason":"One or more dependencies unhealthy","checks":{"nhi":{"status":"unhealthy","critical":true}}}`},
		{"ready without memory", "GET", "/readyz", "", degraded, 200, `{"status":"healthy","checks":{"nhi":{"status":"healthy","critical":true}}}`},
		{"degraded is 200", "GET", "/health", "", degraded, 200, `{"status":"degraded","reason":"One or more dependencies degraded","checks":{"memory":{"status":"unhealthy","critical":false},"nhi":{"status":"healthy","critical":true}}}`},
		{"unhealthy is 503", "GET", "/health", "Bearer admin", unhealthy, 503, `{"status":"unhealthy","reason":"One or more dependencies unhealthy","checks":{"memory":{"status":"degraded","reason":"slow","critical":false},"nhi":{"status":"unhealthy","reason":"db.internal:5432 refused","critical":true}}}`},
		{"a wrong token sees no reasons", "GET", "/health", "Bearer x", unhealthy, 503, `{"status":"unhealthy","reason":"One or more dependencies unhealthy","checks":{"memory":{"status":"degraded","critical":false},"nhi":{"status":"unhealthy","critical":true}}}`},
		{"post", "POST", "/health", "", degraded, 405, ""},
		{"head", "HEAD", "/readyz", "", unhealthy, 503, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, tt.path, nil)
			r.Header.Set("Authorization", tt.token)
			w := httptest.NewRecorder()
			tt.c.Handler(admin).ServeHTTP(w, r)
			if w.Code != tt.status {
				t.Errorf("status = %d, want %d", w.Code, tt.status)
			}
			if tt.method != "GET" {
				return
			}
			if diff := cmp.Diff(tt.body+"\n", w.Body.String()); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			var report health.Report
			if err := json.Unmarshal(w.Body.Bytes(), &report); err != nil {
				t.Errorf("the report does not read back: %v", err)
			}
			if tt.path != "/health" && probed {
				t.Error("/livez or /readyz probed what is not critical")
			}
		})
		if tt.path == "/health" {
			probed = false
		}
	}
	w := httptest.NewRecorder()
	unhealthy.Handler(nil).ServeHTTP(w, httptest.NewRequest("GET", "/health", nil))
	if strings.Contains(w.Body.String(), "refused") {
		t.Errorf("with no predicate the reasons are public: %s", w.Body)
	}
}

func ExampleComposite_Report() {
	checks, _ := health.New(nil, health.Check{Name: "memory", Probe: func(context.Context) health.Status {
		return health.Of(fault.New("memory.Ping", fault.MemoryUnavailable, "down"), "Memory service slow", "Memory service unavailable")
	}})
	report := checks.Report(context.Background())
	fmt.Println(report.State, report.OK())
	fmt.Println(report.Checks["memory"].Reason)
	// Output:
	// degraded true
	// Memory service unavailable
}
