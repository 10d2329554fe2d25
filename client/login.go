package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/fault"
)

// DeviceLogin is a login of a command line that waits for its human (RFC 8628).
type DeviceLogin struct {
	// Code is what Token asks with; it is a secret.
	Code string `json:"device_code"`
	// UserCode is what the human compares, at URL or URLWithCode.
	UserCode    string `json:"user_code"`
	URL         string `json:"verification_uri"`
	URLWithCode string `json:"verification_uri_complete"`
	// ExpiresSeconds is how long it waits, IntervalSeconds how long to wait
	// between two questions.
	ExpiresSeconds  int `json:"expires_in"`
	IntervalSeconds int `json:"interval"`
}

// BeginLogin begins a login over TCP. what says what asks, for the human.
//
// Errors: Unavailable (Degraded) if no node answers.
func (c *Client) BeginLogin(ctx context.Context, what string) (d DeviceLogin, err error) {
	status, err := c.form(ctx, "/console/device/begin", url.Values{"client_id": {what}}, &d)
	if err == nil && (status != http.StatusOK || d.Code == "" || d.IntervalSeconds < 1) {
		err = fault.New("client.BeginLogin", fault.Unavailable, "what answers at %s gives no logins", c.address)
	}
	return d, err
}

// AwaitLogin waits until the human has answered, and returns the session's
// token.
//
// Errors: PermissionDenied (Security) if they refused; DeadlineExceeded
// (Transient) if they did not answer in time; Unavailable (Degraded).
func (c *Client) AwaitLogin(ctx context.Context, d DeviceLogin) (Token, error) {
	const op fault.Op = "client.AwaitLogin"
	ticker := time.NewTicker(time.Duration(d.IntervalSeconds) * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return Token{}, fault.Wrap(op, ctx.Err())
		case <-ticker.C:
		}
		var answer struct {
			Token          string    `json:"access_token"`
			Expires        time.Time `json:"expires"`
			ExpiresSeconds int       `json:"expires_in"`
			Error          string    `json:"error"`
		}
		_, err := c.form(ctx, "/console/device/token", url.Values{"device_code": {d.Code}}, &answer)
		switch {
		case err != nil:
			return Token{}, fault.Wrap(op, err)
		case answer.Token != "":
			return Token{Token: answer.Token, Expires: answer.Expires}, nil
		case answer.Error == "authorization_pending":
		case answer.Error == "access_denied":
			return Token{}, fault.New(op, fault.PermissionDenied, "the login was refused in the browser")
		case answer.Error == "expired_token":
			return Token{}, fault.New(op, fault.DeadlineExceeded, "nobody confirmed the login in time; begin again")
		default:
			return Token{}, fault.New(op, fault.Unavailable, "what answers at %s gives no logins", c.address)
		}
	}
}

// EndLogin ends the session of the client's token.
//
// Errors: Unavailable (Degraded) if no node answers.
func (c *Client) EndLogin(ctx context.Context) error {
	_, err := c.form(ctx, "/console/device/end", nil, &struct{}{})
	return err
}

// form sends a form, and decodes whatever JSON answers.
func (c *Client) form(ctx context.Context, path string, fields url.Values, out any) (int, error) {
	const op fault.Op = "client.form"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, strings.NewReader(fields.Encode()))
	if err != nil {
		return 0, fault.WrapAs(op, fault.InvalidArgument, err, "the request cannot be made")
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if !c.token.IsZero() {
		request.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	response, err := c.http.Do(request)
	if err != nil {
		return 0, fault.WrapAs(op, fault.Unavailable, err, "no node answers at %s", c.address)
	}
	defer func() { _ = response.Body.Close() }()
	err = json.NewDecoder(io.LimitReader(response.Body, maxReportBytes)).Decode(out)
	return response.StatusCode, fault.WrapAs(op, fault.Unavailable, err, "what answers at %s is no node of Creto", c.address)
}

// WithToken returns a client of the same node with another token.
func (c *Client) WithToken(token creto.Secret) *Client {
	with := *c
	with.token = token
	return &with
}
