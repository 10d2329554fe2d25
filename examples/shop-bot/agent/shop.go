package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// shop calls the shop's API.
type shop struct {
	base   string // as in http://shop.test, without a slash at the end
	client *http.Client
}

// status is the status of an HTTP answer.
type status int

// String returns code and text, as in "403 Forbidden".
func (s status) String() string { return fmt.Sprintf("%d %s", int(s), http.StatusText(int(s))) }

func (s status) ok() bool { return s >= 200 && s < 300 }

// refundArgs are the arguments of the refund tool and the body of POST
// /refunds. The amount goes out with the digits that it came in with.
type refundArgs struct {
	Order  string      `json:"order"`
	Amount json.Number `json:"amount"`
	Reason string      `json:"reason"`
}

// replyArgs are the arguments of the reply tool and the body of POST /replies.
type replyArgs struct {
	Mail string `json:"mail"`
	Text string `json:"text"`
}

// orderArgs are the arguments of the lookup_order tool.
type orderArgs struct {
	Order string `json:"order"`
}

// exportArgs are the arguments of the export_customers tool.
type exportArgs struct {
	URL string `json:"url"`
}

func (s shop) lookupOrder(ctx context.Context, args orderArgs) (status, string, error) {
	return s.do(ctx, http.MethodGet, s.base+"/orders/"+url.PathEscape(args.Order), "", nil)
}

func (s shop) reply(ctx context.Context, args replyArgs) (status, string, error) {
	return s.post(ctx, "/replies", args)
}

func (s shop) refund(ctx context.Context, args refundArgs) (status, string, error) {
	return s.post(ctx, "/refunds", args)
}

// exportCustomers fetches the customers and posts them to the URL.
func (s shop) exportCustomers(ctx context.Context, args exportArgs) (status, string, error) {
	code, customers, err := s.do(ctx, http.MethodGet, s.base+"/customers/export", "", nil)
	if err != nil || !code.ok() {
		return code, customers, err
	}
	return s.do(ctx, http.MethodPost, args.URL, "text/csv", []byte(customers))
}

func (s shop) post(ctx context.Context, path string, body any) (status, string, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return 0, "", err
	}
	return s.do(ctx, http.MethodPost, s.base+path, "application/json", text)
}

// maxAnswerBytes bounds what is read of an answer.
const maxAnswerBytes = 1 << 20

// do sends a request and returns the answer's status and body. It sets no
// deadline of its own: an answer may wait for a person.
func (s shop) do(ctx context.Context, method, target, contentType string, body []byte) (status, string, error) {
	r, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	resp, err := s.client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	return status(resp.StatusCode), string(text), err
}
