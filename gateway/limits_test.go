package gateway_test

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/gateway"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/metering"
)

// answered sends a request and returns what came, with the body read.
func (h *house) answered(t testing.TB, body, path string) (*http.Response, string) {
	t.Helper()
	_, reader := h.raw(t, post(body, path))
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(text)
}

// door is one for models, and most of what is asked there: it lacks its last brace.
type door struct {
	path, body string
	anthropic  bool
}

// doors are the paths of the doors, with a request that is fine; %s is for more of it.
var doors = []door{
	{"/v1/chat/completions", hello, false},
	{"/v1/responses", `{"model":"echo-1","input":"hello"`, false},
	{"/v1/embeddings", `{"model":"echo-1","input":"hello"`, false},
	{"/v1/messages", message, true},
}

// Each answer says what is left, in its vendor's headers, and what is refused for a
// limit of ours when to come back.
func TestLimitHeaders(t *testing.T) {
	for _, door := range doors {
		h := open(t, gateway.Config{}, []inference.Model{&inferencetest.Fake{}}, anyModel)
		names := []string{"X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests"}
		if door.anthropic {
			names = []string{"Anthropic-Ratelimit-Requests-Limit", "Anthropic-Ratelimit-Requests-Remaining", "Anthropic-Ratelimit-Requests-Reset"}
		}
		// reset reads when all is there again.
		reset := func(text string) time.Duration {
			d, err := time.ParseDuration(text)
			if door.anthropic {
				var at time.Time
				at, err = time.Parse(time.RFC3339, text)
				d = time.Until(at)
			}
			if err != nil {
				t.Errorf("%s: reset is %q: %v", door.path, text, err)
			}
			return d
		}
		check := func(response *http.Response, limit, left string) {
			t.Helper()
			id := response.Header.Get("X-Request-Id")
			if door.anthropic {
				id = response.Header.Get("Request-Id")
			}
			if !strings.HasPrefix(id, "req_") || door.anthropic != (response.Header.Get("Openai-Processing-Ms") == "") {
				t.Errorf("%s: headers %v", door.path, response.Header)
			}
			if response.Header.Get(names[0]) != limit || response.Header.Get(names[1]) != left {
				t.Errorf("%s: %s of %s left, want %s of %s", door.path, response.Header.Get(names[1]), response.Header.Get(names[0]), left, limit)
			}
			if limit != "" {
				if d := reset(response.Header.Get(names[2])); d <= -time.Second || d > time.Hour {
					t.Errorf("%s: reset in %v", door.path, d)
				}
			} else if response.Header.Get(names[2]) != "" {
				t.Errorf("%s: a reset of no limit", door.path)
			}
		}
		response, _ := h.answered(t, door.body+"}", door.path)
		check(response, "", "")

		subject := metering.Subject{Agent: h.bot, Action: creto.CallModel}
		if err := h.quota.SetLimit(t.Context(), subject, metering.Limit{Amount: 2, Window: time.Hour}); err != nil {
			t.Fatal(err)
		}
		// What was used before counts.
		response, _ = h.answered(t, door.body+"}", door.path)
		check(response, "2", "0")
		response, text := h.answered(t, door.body+"}", door.path)
		check(response, "2", "0")
		if response.StatusCode != http.StatusTooManyRequests || response.Header.Get("Retry-After") == "" || response.Header.Get("X-Should-Retry") != "false" {
			t.Errorf("%s: a spent quota is answered %d %v", door.path, response.StatusCode, response.Header)
		}
		if door.anthropic && typeIn(t, text) != "rate_limit_error" || !door.anthropic && codeIn(text) != "insufficient_quota" {
			t.Errorf("%s: a spent quota is %s", door.path, text)
		}
		if _, err := h.quota.ClearLimit(t.Context(), subject, 0); err != nil {
			t.Fatal(err)
		}
		if err := h.quota.SetRate(t.Context(), subject, metering.Rate{Count: 1, Period: time.Hour, Burst: 1}); err != nil {
			t.Fatal(err)
		}
		response, _ = h.answered(t, door.body+"}", door.path)
		check(response, "1", "0")
		response, text = h.answered(t, door.body+"}", door.path)
		check(response, "1", "0")
		if response.StatusCode != http.StatusTooManyRequests || response.Header.Get("Retry-After") != "3600" || response.Header.Get("X-Should-Retry") != "true" {
			t.Errorf("%s: a rate is answered %d %v", door.path, response.StatusCode, response.Header)
		}
		if door.anthropic && typeIn(t, text) != "rate_limit_error" || !door.anthropic && codeIn(text) != "rate_limit_exceeded" {
			t.Errorf("%s: a rate is %s", door.path, text)
		}
		events := ""
		for _, r := range h.records(t, creto.CallModel, 5) {
			events += r.Event() + " "
			if r.Outcome == audit.Denied != (r.Event() == audit.EventQuotaExceeded || strings.Contains(r.Why, "rate")) {
				t.Errorf("%s: recorded %+v", door.path, r)
			}
		}
		if !strings.Contains(events, audit.EventQuotaExceeded) {
			t.Errorf("%s: recorded were %s", door.path, events)
		}
	}
}

// Who asks at a node that borrows its limits is told of the limit, of what that node has
// of it, and refused when all nodes have used it.
func TestBorrowedLimitHeaders(t *testing.T) {
	for _, door := range doors {
		h := open(t, gateway.Config{Limits: borrowing{}}, []inference.Model{&inferencetest.Fake{}}, anyModel)
		limit, left := "X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests"
		if door.anthropic {
			limit, left = "Anthropic-Ratelimit-Requests-Limit", "Anthropic-Ratelimit-Requests-Remaining"
		}
		subject := metering.Subject{Agent: h.bot, Action: creto.CallModel}
		if err := h.quota.SetLimit(t.Context(), subject, metering.Limit{Amount: 3, Window: time.Hour}); err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			response, text := h.answered(t, door.body+"}", door.path)
			if n := strconv.Itoa(max(0, 2-i)); response.Header.Get(limit) != "3" || response.Header.Get(left) != n {
				t.Errorf("%s, call %d: %q of %q left, want %s of 3", door.path, i, response.Header.Get(left), response.Header.Get(limit), n)
			}
			if spent := i >= 3; (response.StatusCode == http.StatusTooManyRequests) != spent || (response.Header.Get("Retry-After") != "") != spent {
				t.Errorf("%s, call %d: %d %v %s", door.path, i, response.StatusCode, response.Header, text)
			}
		}
	}
}

// What a provider says of its account is not passed on.
func TestLimitsOfOthers(t *testing.T) {
	m := upstream(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Ratelimit-Limit-Requests", "10000")
		w.Header().Set("X-Ratelimit-Remaining-Tokens", "7")
		w.Header().Set("X-Request-Id", "theirs")
		_, _ = io.WriteString(w, `{"id":"1","model":"echo-1","created":1,"choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`)
	})
	h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
	response, _ := h.answered(t, hello+"}", "/v1/chat/completions")
	for name := range response.Header {
		if strings.HasPrefix(name, "X-Ratelimit") {
			t.Errorf("%s: %s", name, response.Header.Get(name))
		}
	}
	if response.StatusCode != http.StatusOK || response.Header.Get("X-Request-Id") == "theirs" {
		t.Errorf("answer %d %v", response.StatusCode, response.Header)
	}
}
