package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"creto.dev/fault"
	"creto.dev/inference"
	"golang.org/x/sync/singleflight"
)

const (
	// tokenTimeout bounds one request for a token, on whoever's behalf.
	tokenTimeout = 30 * time.Second
	// tokenMargin is how long before its end a token is replaced; a quarter of
	// its life for one that lives shorter than four times that.
	tokenMargin = 5 * time.Minute
	// maxTokenLife bounds what a token endpoint may claim.
	maxTokenLife = 24 * time.Hour
)

// token is an access token (RFC 6749, section 1.4).
type token struct {
	value string
	// renew is when a new one is asked for; expires when this one is of no use.
	renew, expires time.Time
}

// tokens keeps one access token until shortly before it expires. Calls that need
// a new one at the same time share one request for it. Safe for concurrent use.
type tokens struct {
	fetch func(ctx context.Context, op fault.Op) (value string, life time.Duration, err error)
	now   func() time.Time
	group singleflight.Group

	mu   sync.Mutex // guards kept
	kept token
}

// get returns a token that is good now.
func (t *tokens) get(ctx context.Context, op fault.Op) (string, error) {
	kept := t.current()
	now := t.now()
	if now.Before(kept.renew) {
		return kept.value, nil
	}
	// Who came first may leave; the others still want it.
	shared := context.WithoutCancel(ctx)
	result := t.group.DoChan("", func() (any, error) {
		if kept := t.current(); t.now().Before(kept.renew) {
			return kept.value, nil // another request was over in between
		}
		ctx, cancel := context.WithTimeout(shared, tokenTimeout)
		defer cancel()
		began := t.now()
		value, life, err := t.fetch(ctx, op)
		if err != nil {
			return "", err
		}
		life = min(max(life, 0), maxTokenLife)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.kept = token{value, began.Add(life - min(tokenMargin, life/4)), began.Add(life)}
		return value, nil
	})
	select {
	case <-ctx.Done():
		return "", broken(ctx, op, ctx.Err())
	case r := <-result:
		if r.Err != nil {
			if now.Before(kept.expires) {
				return kept.value, nil // it is old, and still good
			}
			return "", r.Err
		}
		value, _ := r.Val.(string)
		return value, nil
	}
}

func (t *tokens) current() token {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kept
}

// forget drops the token of an Authorization that was refused, unless there is
// another by now.
func (t *tokens) forget(authorization string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if authorization == "Bearer "+t.kept.value {
		t.kept = token{}
	}
}

// bearer adds the token to a request.
func (t *tokens) bearer(ctx context.Context, op fault.Op, h http.Header) error {
	value, err := t.get(ctx, op)
	if err == nil {
		h.Set("Authorization", "Bearer "+value)
	}
	return err
}

// requestToken asks a token endpoint (RFC 6749, section 4.4.2 and RFC 7523,
// section 2.1, whose requests differ in the form only).
func requestToken(ctx context.Context, op fault.Op, client *http.Client, endpoint string, form url.Values) (value string, life time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return "", 0, fault.Wrap(op, err)
	}
	req.GetBody = nil
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "creto")
	resp, err := client.Do(req)
	if err != nil {
		return "", 0, broken(ctx, op, err)
	}
	defer func() { _ = resp.Body.Close() }() // it was only read
	defer drain(resp.Body)
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	if err != nil {
		return "", 0, broken(ctx, op, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", 0, tokenFault(op, resp.StatusCode, resp.Header, body)
	}
	o := parseObject(body, "")
	value = o.str("access_token")
	seconds := o.integer("expires_in")
	if o.err != nil || value == "" || strings.ContainsAny(value, "\r\n\x00") || seconds < 0 {
		return "", 0, fault.New(op, fault.InferenceProviderError, "the token endpoint's answer holds no token")
	}
	return value, time.Duration(min(seconds, int64(maxTokenLife/time.Second))) * time.Second, nil
}

// tokenFault is what a refusal of the token endpoint means (RFC 6749, section
// 5.2). What it says beside the code may quote the request, and is dropped.
func tokenFault(op fault.Op, status int, header http.Header, body []byte) error {
	var said struct {
		Error string `json:"error"`
	}
	_ = json.Unmarshal(body, &said) // else the status alone must do
	cause := fmt.Errorf("the token endpoint answered %d, error %.64q", status, said.Error)
	code, message := fault.InferenceProviderError, "the token endpoint refused this node's credentials"
	switch {
	case status == http.StatusTooManyRequests:
		code, message = fault.InferenceRateLimited, "the token endpoint limits the rate of requests"
	case status >= http.StatusInternalServerError || said.Error == "temporarily_unavailable":
		code, message = fault.InferenceProviderUnavailable, fmt.Sprintf("the token endpoint answered %d", status)
	case status < http.StatusBadRequest:
		message = fmt.Sprintf("the token endpoint answered %d", status)
	}
	err := fault.WrapAs(op, code, cause, "%s", message)
	if code == fault.InferenceProviderError && status >= http.StatusBadRequest {
		return fault.Wrap(op, errors.Join(err, inference.ErrKeyRefused))
	}
	if wait := retryAfter(header); wait > 0 && fault.Retryable(err) {
		err = fault.After(err, wait)
	}
	return err
}

// tokenEndpoint checks the address of a token endpoint.
func tokenEndpoint(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("token url: not an address such as https://login.example/token")
	}
	return nil
}
