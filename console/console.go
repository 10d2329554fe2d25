// Package console is the web page for people: what waits for their consent, who
// acts for them, and what happened. It is rendered on the server and needs no
// script, but for what only a browser's script can do: passkeys.
package console

import (
	"bytes"
	"crypto/subtle"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/logkey"
	"creto.dev/login"
	"creto.dev/oversight"
)

//go:embed templates/*.html static/*
var files embed.FS

// cookieName names the session's cookie.
const cookieName = "creto_session"

// Parts are what a console shows and does. All are required.
type Parts struct {
	Sessions    *login.Sessions
	Passkeys    *login.Passkeys
	Providers   *login.Providers
	Delegations *login.Delegations
	Devices     *login.Devices
	Agents      Agents
	Desk        *oversight.Desk
	Log         audit.Log
}

// Console serves the pages below /console.
type Console struct {
	Parts
	origin    string
	slog      *slog.Logger
	secure    bool // the origin is https, so cookies are for it alone
	templates *template.Template
}

// New returns a console that people see at origin.
//
// Errors: Internal (Permanent) if the embedded pages are wrong.
func New(origin string, parts Parts, logger *slog.Logger) (*Console, error) {
	const op fault.Op = "console.New"
	templates, err := template.New("").Funcs(template.FuncMap{
		"when": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
		"text": func(text any) []span { return spans(fmt.Sprintf("%s", text)) },
		"odd":  func(text any) bool { return len(spans(fmt.Sprintf("%s", text))) > 1 },
	}).ParseFS(files, "templates/*.html")
	if err != nil {
		return nil, fault.WrapAs(op, fault.Internal, err, "")
	}
	u, err := url.Parse(origin)
	if err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "console.origin %q is no URL", origin)
	}
	return &Console{Parts: parts, origin: origin, slog: logger, secure: u.Scheme == "https", templates: templates}, nil
}

// span is a piece of text that others wrote: as it is, or the names of
// characters that a reader would not see.
type span struct {
	Text   string
	Hidden bool
}

// spans takes text apart, so that what is shown is all that is there: characters
// that control, reverse, join or hide others are named and marked.
func spans(text string) []span {
	var list []span
	start := 0
	for i, r := range text {
		size := utf8.RuneLen(r)
		name := fmt.Sprintf("U+%04X", r)
		if r == utf8.RuneError {
			if _, size = utf8.DecodeRuneInString(text[i:]); size == 1 {
				name = fmt.Sprintf("0x%02X", text[i])
			}
		}
		if visible(r) && !strings.HasPrefix(name, "0x") {
			continue
		}
		if start < i {
			list = append(list, span{Text: text[start:i]})
		}
		list = append(list, span{Text: name, Hidden: true})
		start = i + size
	}
	if start < len(text) || len(list) == 0 {
		list = append(list, span{Text: text[start:]})
	}
	return list
}

func visible(r rune) bool {
	const blankBraille = 0x2800
	return r == '\n' || r == '\t' ||
		unicode.IsPrint(r) && r != blankBraille && !unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// Handler returns the console's handler.
func (c *Console) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /console/static/{file}", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFileFS(w, r, files, "static/"+r.PathValue("file"))
	})
	mux.Handle("GET /console/verifier/", verifierFiles())
	mux.HandleFunc("GET /console/verify", c.verify)
	mux.HandleFunc("GET /console/login", c.showLogin)
	mux.HandleFunc("POST /console/login", c.login)
	mux.HandleFunc("POST /console/logout", c.with(c.logout))
	mux.HandleFunc("POST /console/login/passkey/begin", c.beginPasskeyLogin)
	mux.HandleFunc("POST /console/login/passkey", c.passkeyLogin)
	mux.HandleFunc("GET /console/account", c.with(c.account))
	mux.HandleFunc("POST /console/account/passkeys/begin", c.with(c.beginEnrol))
	mux.HandleFunc("POST /console/account/passkeys", c.with(c.enrol))
	mux.HandleFunc("POST /console/account/passkeys/{id}", c.with(c.changePasskey))
	mux.HandleFunc("POST /console/login/oidc/{provider}", c.providerLogin)
	mux.HandleFunc("GET /console/login/oidc/{provider}/callback", c.providerAnswer)
	mux.HandleFunc("POST /console/account/oidc/{provider}", c.with(c.linkIdentity))
	mux.HandleFunc("POST /console/account/identities/unlink", c.with(c.unlinkIdentity))
	mux.HandleFunc("POST /console/device/begin", c.deviceBegin)
	mux.HandleFunc("POST /console/device/token", c.deviceToken)
	mux.HandleFunc("POST /console/device/end", c.deviceEnd)
	mux.HandleFunc("GET /console/device", c.with(c.device))
	mux.HandleFunc("POST /console/device", c.with(c.answerDevice))
	mux.HandleFunc("GET /console/agents", c.with(c.agents))
	mux.HandleFunc("POST /console/agents/{name}/revoke", c.with(c.revokeAgent))
	mux.HandleFunc("GET /console/delegations/{id}", c.with(c.delegation))
	mux.HandleFunc("POST /console/delegations/{id}/begin", c.with(c.beginConfirm))
	mux.HandleFunc("POST /console/delegations/{id}", c.with(c.confirm))
	mux.HandleFunc("POST /console/delegations/{id}/oidc/{provider}", c.with(c.confirmWith))
	mux.HandleFunc("POST /console/delegations/{id}/decline", c.with(c.decline))
	mux.HandleFunc("GET /console", c.with(c.home))
	mux.Handle("GET /console/{$}", http.RedirectHandler("/console", http.StatusMovedPermanently))
	mux.HandleFunc("GET /console/approvals/{id}", c.with(c.show))
	mux.HandleFunc("POST /console/approvals/{id}", c.with(c.decide))
	mux.HandleFunc("GET /console/activity", c.with(c.activity))
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, r, login.Session{}, fault.New("console", fault.PermissionDenied, "the form was sent by another site; open the console yourself"))
	}))
	return headers(protection.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		// No such page, or not with this method; the multiplexer knows which.
		wrong := &statusOnly{header: w.Header()}
		handler.ServeHTTP(wrong, r)
		c.render(w, r, wrong.status, "message.html", page{Title: http.StatusText(wrong.status), Notice: "There is no page for " + r.Method + " " + r.URL.Path + "."})
	})))
}

// statusOnly is a response of which the header and the status count.
type statusOnly struct {
	header http.Header
	status int
}

// Header implements http.ResponseWriter.
func (s *statusOnly) Header() http.Header { return s.header }

// Write implements http.ResponseWriter.
func (s *statusOnly) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader implements http.ResponseWriter.
func (s *statusOnly) WriteHeader(status int) { s.status = status }

// policy is the content security policy of every answer, and scripted is what it
// is extended by where a page has a button for a passkey.
const (
	policy   = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
	scripted = policy + "; script-src 'self'; connect-src 'self'"
)

// headers forbid what the pages do not need: scripts, frames, foreign content,
// and the sending of an address with its login code to another site. To this
// one it is sent, or browsers would hide the origin of a form from it.
func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("Referrer-Policy", "same-origin")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// page is what every template gets.
type page struct {
	Title   string
	Session login.Session
	Tab     string
	Refresh int    // seconds; 0 for none
	Script  bool   // the one for passkeys
	Module  string // another script, which talks to nobody
	Onward  string // where the page leads by itself; "" for nowhere
	Data    any
	Notice  string
}

func (c *Console) render(w http.ResponseWriter, r *http.Request, status int, name string, p page) {
	var out bytes.Buffer
	if err := c.templates.ExecuteTemplate(&out, name, p); err != nil {
		c.slog.LogAttrs(r.Context(), slog.LevelError, "page cannot be rendered", slog.Any(logkey.Error, err))
		http.Error(w, "this page cannot be shown; the node's log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	switch {
	case p.Script:
		w.Header().Set("Content-Security-Policy", scripted)
	case p.Module != "":
		w.Header().Set("Content-Security-Policy", offline)
	}
	w.WriteHeader(status)
	_, _ = out.WriteTo(w) // a reader who left needs no answer
}

// complain logs what a person must look at.
func (c *Console) complain(r *http.Request, err error) {
	if fault.CodeOf(err).Kind() == fault.Internal || fault.CategoryOf(err) == fault.Degraded {
		c.slog.LogAttrs(r.Context(), slog.LevelError, "console request failed", slog.Any(logkey.Error, err))
	}
}

func (c *Console) fail(w http.ResponseWriter, r *http.Request, s login.Session, err error) {
	c.complain(r, err)
	c.render(w, r, fault.CodeOf(err).HTTPStatus(), "message.html", page{Title: "That did not work", Session: s, Notice: fault.Message(err)})
}

// with runs a page for who is logged in, and checks the form's token.
func (c *Console) with(next func(http.ResponseWriter, *http.Request, login.Session)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		cookie, err := r.Cookie(cookieName)
		if err != nil {
			c.askLogin(w, r, http.StatusUnauthorized, "")
			return
		}
		session, err := c.Sessions.Find(r.Context(), cookie.Value)
		if errors.Is(err, fault.Unauthenticated) {
			c.askLogin(w, r, http.StatusUnauthorized, "Your session has ended.")
			return
		}
		if err != nil {
			c.fail(w, r, login.Session{}, err)
			return
		}
		if r.Method == http.MethodPost {
			r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
			if subtle.ConstantTimeCompare([]byte(r.PostFormValue("csrf")), []byte(session.CSRF)) != 1 {
				c.fail(w, r, session, fault.New("console.with", fault.PermissionDenied, "the form is not from this session; open the page again"))
				return
			}
		}
		next(w, r.WithContext(creto.WithCaller(r.Context(), session.Human)), session)
	}
}

// Authenticated returns who is logged in with a request, by cookie or by the
// session's token as a bearer token.
//
// Errors: Unauthenticated (Permanent).
func (c *Console) Authenticated(r *http.Request) (creto.ID, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		cookie, err := r.Cookie(cookieName)
		if err != nil {
			return creto.ID{}, fault.New("console.Authenticated", fault.Unauthenticated, "log in, or send the token of a session: creto human login NAME --token")
		}
		token = cookie.Value
	}
	session, err := c.Sessions.Find(r.Context(), token)
	return session.Human, err
}
