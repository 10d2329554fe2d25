package main

import (
	"bytes"
	"context"
	"encoding/json"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"

	"creto.dev/fault"
	"creto.dev/login/softkey"
)

// person stands for somebody at the console in the demo: real requests of a
// browser's kind, and a passkey in software, since nobody may be there.
type person struct {
	http   *http.Client
	origin string
	key    *softkey.Key
}

func newPerson(origin string) (*person, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, fault.WrapAs("creto.demo", fault.Internal, err, "")
	}
	key, err := softkey.New(origin)
	return &person{http: &http.Client{Jar: jar}, origin: origin, key: key}, err
}

// maxPageBytes bounds a page of the console.
const maxPageBytes = 1 << 20

// send sends a form, or gets a page, and returns what came.
func (p *person) send(ctx context.Context, method, address string, fields url.Values) ([]byte, error) {
	const op fault.Op = "creto.demo"
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader([]byte(fields.Encode())))
	if err != nil {
		return nil, fault.WrapAs(op, fault.Internal, err, "")
	}
	if method == http.MethodPost {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		request.Header.Set("Origin", p.origin)
	}
	response, err := p.http.Do(request)
	if err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the console does not answer")
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxPageBytes))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fault.New(op, fault.Internal, "%s %s: the console answers %d", method, address, response.StatusCode)
	}
	return body, fault.WrapAs(op, fault.CodeOf(err), err, "the console's answer is no page")
}

// hidden finds the hidden fields of a page's forms.
var hidden = regexp.MustCompile(`<input type="hidden" name="([a-z]+)" value="([^"]*)">`)

// fields returns those of the page at address that every form of it has.
func (p *person) fields(ctx context.Context, address string) (url.Values, error) {
	page, err := p.send(ctx, http.MethodGet, address, nil)
	fields := make(url.Values)
	for _, m := range hidden.FindAllSubmatch(page, -1) {
		if name := string(m[1]); name == "csrf" || name == "challenge" {
			fields.Set(name, html.UnescapeString(string(m[2])))
		}
	}
	return fields, err
}

// login uses a one-time login.
func (p *person) login(ctx context.Context, link string) error {
	u, err := url.Parse(link)
	if err != nil {
		return fault.WrapAs("creto.demo", fault.Internal, err, "the login is no URL")
	}
	_, err = p.send(ctx, http.MethodPost, p.origin+"/console/login", url.Values{"code": {u.Query().Get("code")}})
	return err
}

// ceremony does what the console's script does: it asks the node for options,
// the passkey for an answer, and sends that.
func (p *person) ceremony(ctx context.Context, page, action string, more url.Values, ask func([]byte) ([]byte, error)) error {
	fields, err := p.fields(ctx, page)
	if err != nil {
		return err
	}
	for name, values := range more {
		fields[name] = values
	}
	text, err := p.send(ctx, http.MethodPost, action+"/begin", fields)
	if err != nil {
		return err
	}
	var options struct {
		Ceremony  string          `json:"ceremony"`
		PublicKey json.RawMessage `json:"publicKey"`
	}
	if err := json.Unmarshal(text, &options); err != nil {
		return fault.WrapAs("creto.demo", fault.Internal, err, "the console's options cannot be read")
	}
	answer, err := ask(options.PublicKey)
	if err != nil {
		return err
	}
	fields.Set("ceremony", options.Ceremony)
	fields.Set("answer", string(answer))
	_, err = p.send(ctx, http.MethodPost, action, fields)
	return err
}

// enrol makes the passkey known to the node.
func (p *person) enrol(ctx context.Context) error {
	return p.ceremony(ctx, p.origin+"/console/account", p.origin+"/console/account/passkeys", url.Values{"name": {"the demo's passkey in software"}}, p.key.Create)
}

// confirm confirms the delegation shown at address.
func (p *person) confirm(ctx context.Context, address string) error {
	return p.ceremony(ctx, address, address, nil, p.key.Get)
}
