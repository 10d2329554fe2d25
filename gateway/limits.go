package gateway

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"creto.dev"
	"creto.dev/metering"
)

// Limits tells what callers may still take. Package metering has it.
type Limits interface {
	// Left returns what an agent may still take of an action on behalf of a human.
	Left(ctx context.Context, agent, human creto.ID, action string) (metering.Left, error)
}

// standing is what a dialect's headers say beside an answer.
type standing struct {
	request string // the request's id
	took    time.Duration
	left    metering.Left // zero if nothing limits the caller, or nobody knows
}

// arrival is when a request came, and what its answer calls it.
type arrival struct {
	since   time.Time
	request string
}

// arrived names a request by its trace, if it has one.
func arrived(r *http.Request) arrival {
	id := creto.TraceOf(r.Context())
	if id == "" {
		id = creto.NewUUID().String()
	}
	return arrival{time.Now(), "req_" + id}
}

// announcement is the headers that vendors send with each answer: of the caller's own
// limits, never of the account that the provider knows.
type announcement struct {
	limits  Limits
	request *http.Request
	visit   *visit
	dialect dialect
}

// write adds them.
func (a announcement) write(h http.Header) {
	s := standing{request: a.visit.arrival.request, took: time.Since(a.visit.since)}
	if a.limits != nil {
		chain := a.visit.Caller.Chain()
		// Who cannot be told is told nothing.
		s.left, _ = a.limits.Left(a.request.Context(), chain.Agent(), chain.Human(), creto.CallModel)
	}
	a.dialect.announce(h, s)
}

// announce writes OpenAI's headers
// (https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers).
func (openAI) announce(h http.Header, s standing) {
	h.Set("X-Request-Id", s.request)
	h.Set("Openai-Processing-Ms", strconv.FormatInt(s.took.Milliseconds(), 10))
	if s.left.Limit > 0 {
		h.Set("X-Ratelimit-Limit-Requests", strconv.FormatInt(s.left.Limit, 10))
		h.Set("X-Ratelimit-Remaining-Requests", strconv.FormatInt(s.left.Units, 10))
		h.Set("X-Ratelimit-Reset-Requests", s.left.Reset.Round(time.Millisecond).String())
	}
}

// announce writes Anthropic's headers
// (https://docs.claude.com/en/api/rate-limits#response-headers).
func (anthropic) announce(h http.Header, s standing) {
	h.Set("Request-Id", s.request)
	if s.left.Limit > 0 {
		h.Set("Anthropic-Ratelimit-Requests-Limit", strconv.FormatInt(s.left.Limit, 10))
		h.Set("Anthropic-Ratelimit-Requests-Remaining", strconv.FormatInt(s.left.Units, 10))
		h.Set("Anthropic-Ratelimit-Requests-Reset", s.left.ResetAt.Format(time.RFC3339))
	}
}
