package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"os"
	"strings"
	"time"
)

// shop answers the API's requests.
type shop struct {
	orders        map[string]order
	customersFile string
	refunds       *journal
	replies       *journal
	now           func() time.Time
	log           *slog.Logger
}

// refund is the body of POST /refunds, its answer, and a line of refunds.jsonl.
type refund struct {
	ID       string    `json:"id"`
	Order    string    `json:"order"`
	Amount   cents     `json:"amount"`
	Currency string    `json:"currency"`
	Reason   string    `json:"reason"`
	At       time.Time `json:"at"`
}

// reply is the body of POST /replies, its answer, and a line of replies.jsonl.
type reply struct {
	ID   string    `json:"id"`
	Mail string    `json:"mail"`
	Text string    `json:"text"`
	At   time.Time `json:"at"`
}

// handler returns the API.
func (s *shop) handler() http.Handler {
	mux := http.NewServeMux()
	for _, route := range []struct {
		method, path string
		serve        func(w http.ResponseWriter, r *http.Request) error
	}{
		{http.MethodGet, "/orders/{id}", s.getOrder},
		{http.MethodGet, "/customers/export", s.exportCustomers},
		{http.MethodPost, "/replies", s.postReply},
		{http.MethodPost, "/refunds", s.postRefund},
	} {
		mux.HandleFunc(route.method+" "+route.path, s.answer(route.serve))
		mux.HandleFunc(route.path, s.answer(func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Allow", route.method)
			return problemf(http.StatusMethodNotAllowed, "use %s", route.method)
		}))
	}
	mux.HandleFunc("/", s.answer(func(_ http.ResponseWriter, r *http.Request) error {
		return problemf(http.StatusNotFound, "there is nothing at %s", r.URL.Path)
	}))
	return mux
}

func (s *shop) getOrder(w http.ResponseWriter, r *http.Request) error {
	o, err := s.order(r.PathValue("id"), http.StatusNotFound)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, o)
}

// exportCustomers sends the whole customer file to whoever asks.
func (s *shop) exportCustomers(w http.ResponseWriter, _ *http.Request) error {
	content, err := os.ReadFile(s.customersFile)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/csv; charset=utf-8")
	_, err = w.Write(content)
	return err
}

func (s *shop) postReply(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Mail string `json:"mail"`
		Text string `json:"text"`
	}
	if err := readJSON(r, &in); err != nil {
		return err
	}
	if in.Mail == "" || strings.TrimSpace(in.Text) == "" {
		return problemf(http.StatusUnprocessableEntity, "mail and text are required")
	}
	var out reply
	err := s.replies.Append(func(n int) any {
		out = reply{ID: fmt.Sprintf("M-%04d", n), Mail: in.Mail, Text: in.Text, At: s.now().UTC()}
		return out
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, out)
}

// postRefund pays money back. It checks the amount against the order's total
// only: how often and with whose consent a refund is made, the shop leaves to
// those who may call it.
func (s *shop) postRefund(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Order  string `json:"order"`
		Amount cents  `json:"amount"`
		Reason string `json:"reason"`
	}
	if err := readJSON(r, &in); err != nil {
		return err
	}
	o, err := s.order(in.Order, http.StatusUnprocessableEntity)
	switch {
	case err != nil:
		return err
	case in.Amount <= 0 || in.Amount > o.Total:
		return problemf(http.StatusUnprocessableEntity, "amount %s is outside 0.01 to %s, the total of order %s", in.Amount, o.Total, o.ID)
	case strings.TrimSpace(in.Reason) == "":
		return problemf(http.StatusUnprocessableEntity, "reason is required")
	}
	var out refund
	err = s.refunds.Append(func(n int) any {
		out = refund{
			ID: fmt.Sprintf("R-%04d", n), Order: o.ID, Amount: in.Amount,
			Currency: o.Currency, Reason: in.Reason, At: s.now().UTC(),
		}
		return out
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, out)
}

// order finds an order; one that does not exist is a problem with this status.
func (s *shop) order(id string, status int) (order, error) {
	o, ok := s.orders[id]
	if !ok {
		return order{}, problemf(status, "there is no order %q", id)
	}
	return o, nil
}

// problem is an error that the caller may see (RFC 9457).
type problem struct {
	Type   string `json:"type"` // always "about:blank": the title says it
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

// Error implements error.
func (p *problem) Error() string { return p.Detail }

func problemf(status int, format string, args ...any) error {
	return &problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, args...)}
}

// answer turns serve's error into a problem and logs the request.
func (s *shop) answer(serve func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		seen := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		if err := serve(seen, r); err != nil {
			p, ok := errors.AsType[*problem](err)
			if !ok {
				s.log.LogAttrs(r.Context(), slog.LevelError, "request failed", slog.Any("error", err))
				p = &problem{Type: "about:blank", Title: "Internal Server Error", Status: http.StatusInternalServerError, Detail: "see the shop's log"}
			}
			seen.Header().Set("Content-Type", "application/problem+json")
			seen.WriteHeader(p.Status)
			_ = json.NewEncoder(seen).Encode(p) // the client may have gone
		}
		s.log.LogAttrs(r.Context(), slog.LevelInfo, "request",
			slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", seen.status))
	}
}

// statusWriter remembers the status for the log.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(v)
}

// maxBodyBytes bounds a request's body.
const maxBodyBytes = 64 << 10

// readJSON reads exactly one JSON object with the fields of v and no others.
func readJSON(r *http.Request, v any) error {
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/json" {
		return problemf(http.StatusUnsupportedMediaType, "send Content-Type: application/json")
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBodyBytes+1))
	if err != nil {
		return problemf(http.StatusBadRequest, "the body could not be read")
	}
	if len(body) > maxBodyBytes {
		return problemf(http.StatusRequestEntityTooLarge, "the body is above %d bytes", maxBodyBytes)
	}
	decoder := json.NewDecoder(strings.NewReader(string(body)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		return problemf(http.StatusBadRequest, "bad JSON: %v", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return problemf(http.StatusBadRequest, "bad JSON: more than one value")
	}
	return nil
}
