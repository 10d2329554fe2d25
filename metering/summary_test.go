package metering_test

import (
	"maps"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/authz"
)

// A window has one record of what it came to, however often and by whomever it is
// counted; one in which nothing was asked for has none.
func TestSummary(t *testing.T) {
	h := open(t)
	h.limit(t, 3, time.Hour)
	log := func(outcome audit.Outcome, decision string) {
		stamp, err := h.clock.Now(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r := audittest.Record(creto.CallModel, 1)
		r.Who, r.Stamp, r.Outcome, r.Decision = h.chain.Agent(), stamp, outcome, &audit.Decision{Kind: decision}
		if _, err := h.log.Log(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		log(audit.Success, authz.Allow.String())
	}
	log(audit.Failure, authz.Allow.String()) // refunded
	log(audit.Denied, authz.QuotaExceeded.String())
	log(audit.Denied, authz.QuotaExceeded.String())
	log(audit.Denied, authz.Deny.String())
	summaries := func() []audit.Entry {
		t.Helper()
		page, err := h.log.Query(t.Context(), audit.Filter{What: audit.EventQuotaChecked})
		if err != nil {
			t.Fatal(err)
		}
		return page
	}
	if err := h.quota.Summarize(t.Context()); err != nil || len(summaries()) != 0 {
		t.Fatalf("a window that has not ended has %d records, %v", len(summaries()), err)
	}
	h.clock.Advance(time.Hour)
	for range 3 {
		if err := h.quota.Summarize(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.reopen(t)
	}
	page := summaries()
	if len(page) != 1 {
		t.Fatalf("%d records of one window", len(page))
	}
	want := map[string]string{"from": "2026-11-22T09:00:00Z", "until": "2026-11-22T10:00:00Z", "used": "3", "refused": "2", "limit": "3"}
	if r := page[0].Record; !maps.Equal(r.Detail, want) || r.Who != h.chain.Agent() || r.Resource != "Meter::"+creto.CallModel {
		t.Errorf("the record says %+v of %s, want %v", r.Detail, r.Who, want)
	}
	h.clock.Advance(time.Hour)
	if err := h.quota.Summarize(t.Context()); err != nil || len(summaries()) != 1 {
		t.Errorf("after an empty window there are %d records, %v", len(summaries()), err)
	}
	h.clock.Advance(59 * time.Second)
	if err := h.quota.Summarize(t.Context()); err != nil || len(summaries()) != 1 {
		t.Errorf("%d records, %v", len(summaries()), err)
	}
}
