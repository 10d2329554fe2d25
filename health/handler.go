package health

import (
	"net/http"
	"strconv"
)

// Handler serves GET and HEAD of
//
//	/livez   200 as long as the process answers; nothing is probed
//	/readyz  the critical checks; 503 if one of them is Unhealthy
//	/health  every check; 200 if the whole is Healthy or Degraded, else 503
//
// as JSON (R-HC-4, R-HC-6). The reasons of single checks are shown only to
// requests that authenticated accepts; nil accepts none.
func (c *Composite) Handler(authenticated func(*http.Request) bool) http.Handler {
	answer := func(w http.ResponseWriter, r *http.Request, report Report) {
		if authenticated == nil || !authenticated(r) {
			report = report.public()
		}
		status := http.StatusOK
		if !report.OK() {
			status = http.StatusServiceUnavailable
		}
		body := report.body()
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Content-Length", strconv.Itoa(len(body)))
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(status)
		_, _ = w.Write(body) // a prober that went away is no fault of ours
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, Report{Status: Status{State: Healthy}})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, c.Ready(r.Context()))
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, c.Report(r.Context()))
	})
	return mux
}
