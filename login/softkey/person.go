package softkey

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
	"time"

	"creto.dev/fault"
)

// Person stands for somebody at a node's console: real requests of a browser's
// kind, with the key in place of their passkey. Not safe for concurrent use.
type Person struct {
	http *http.Client
	key  *Key
}

// NewPerson returns somebody who has key and is logged in nowhere.
//
// Errors: none.
func NewPerson(key *Key) (*Person, error) {
	jar, err := cookiejar.New(nil)
	return &Person{http: &http.Client{Jar: jar, Timeout: pageTimeout}, key: key}, fault.WrapAs("softkey.NewPerson", fault.Internal, err, "")
}

// pageTimeout bounds one request.
const pageTimeout = 30 * time.Second

// maxPageBytes bounds a page of the console.
const maxPageBytes = 1 << 20

// send sends a form, or gets a page, and returns what came.
func (p *Person) send(ctx context.Context, method, address string, fields url.Values) ([]byte, error) {
	const op fault.Op = "softkey.send"
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader([]byte(fields.Encode())))
	if err != nil {
		return nil, fault.WrapAs(op, fault.Internal, err, "")
	}
	if method == http.MethodPost {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		request.Header.Set("Origin", p.key.Origin)
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
func (p *Person) fields(ctx context.Context, address string) (url.Values, error) {
	page, err := p.send(ctx, http.MethodGet, address, nil)
	fields := make(url.Values)
	for _, m := range hidden.FindAllSubmatch(page, -1) {
		if name := string(m[1]); name == "csrf" || name == "challenge" {
			fields.Set(name, html.UnescapeString(string(m[2])))
		}
	}
	return fields, err
}

// Login uses a one-time login, as creto human login prints it.
//
// Errors: Internal (Permanent) for what is none; Unavailable (Degraded).
func (p *Person) Login(ctx context.Context, link string) error {
	const op fault.Op = "softkey.Login"
	u, err := url.Parse(link)
	if err != nil {
		return fault.WrapAs(op, fault.Internal, err, "the login is no URL")
	}
	_, err = p.send(ctx, http.MethodPost, p.key.Origin+"/console/login", url.Values{"code": {u.Query().Get("code")}})
	return fault.Wrap(op, err)
}

// ceremony does what the console's script does: it asks the node for options,
// the passkey for an answer, and sends that.
func (p *Person) ceremony(ctx context.Context, page, action string, more url.Values, ask func([]byte) ([]byte, error)) error {
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
		return fault.WrapAs("softkey.ceremony", fault.Internal, err, "the console's options cannot be read")
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

// Enrol makes the key known to the node, under a name. It takes a fresh login.
//
// Errors: Internal (Permanent) if the console refuses; Unavailable (Degraded).
func (p *Person) Enrol(ctx context.Context, name string) error {
	origin := p.key.Origin
	return p.ceremony(ctx, origin+"/console/account", origin+"/console/account/passkeys", url.Values{"name": {name}}, p.key.Create)
}

// LoginWithKey logs in with the key.
//
// Errors: those of Enrol.
func (p *Person) LoginWithKey(ctx context.Context) error {
	return p.ceremony(ctx, p.key.Origin+"/console/login", p.key.Origin+"/console/login/passkey", nil, p.key.Get)
}

// Confirm confirms the delegation that the page at address shows.
//
// Errors: those of Enrol.
func (p *Person) Confirm(ctx context.Context, address string) error {
	return p.ceremony(ctx, address, address, nil, p.key.Get)
}
