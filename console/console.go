// Package console is the web page for people: what waits for their consent, and
// what happened. It is rendered on the server and needs no script.
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
	"creto.dev/oversight"
)

//go:embed templates/*.html static/*
var files embed.FS

// cookieName names the session's cookie.
const cookieName = "creto_session"

// Console serves the pages below /console.
type Console struct {
	sessions  *Sessions
	desk      *oversight.Desk
	log       audit.Log
	slog      *slog.Logger
	secure    bool // the origin is https, so cookies are for it alone
	templates *template.Template
}

// New returns a console that people see at origin.
//
// Errors: Internal (Permanent) if the embedded pages are wrong.
func New(origin string, sessions *Sessions, desk *oversight.Desk, log audit.Log, logger *slog.Logger) (*Console, error) {
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
	return &Console{sessions: sessions, desk: desk, log: log, slog: logger, secure: u.Scheme == "https", templates: templates}, nil
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
	mux.HandleFunc("GET /console/login", c.showLogin)
	mux.HandleFunc("POST /console/login", c.login)
	mux.HandleFunc("POST /console/logout", c.with(c.logout))
	mux.HandleFunc("GET /console", c.with(c.home))
	mux.Handle("GET /console/{$}", http.RedirectHandler("/console", http.StatusMovedPermanently))
	mux.HandleFunc("GET /console/approvals/{id}", c.with(c.show))
	mux.HandleFunc("POST /console/approvals/{id}", c.with(c.decide))
	mux.HandleFunc("GET /console/activity", c.with(c.activity))
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, r, Session{}, fault.New("console", fault.PermissionDenied, "the form was sent by another site; open the console yourself"))
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

// headers forbid what the pages do not need: scripts, frames, foreign content,
// and the sending of an address with its login code to another site. To this
// one it is sent, or browsers would hide the origin of a form from it.
func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// page is what every template gets.
type page struct {
	Title   string
	Session Session
	Tab     string
	Refresh int // seconds; 0 for none
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
	w.WriteHeader(status)
	_, _ = out.WriteTo(w) // a reader who left needs no answer
}

func (c *Console) fail(w http.ResponseWriter, r *http.Request, s Session, err error) {
	code := fault.CodeOf(err)
	if code.Kind() == fault.Internal || fault.CategoryOf(err) == fault.Degraded {
		c.slog.LogAttrs(r.Context(), slog.LevelError, "console request failed", slog.Any(logkey.Error, err))
	}
	c.render(w, r, code.HTTPStatus(), "message.html", page{Title: "That did not work", Session: s, Notice: fault.Message(err)})
}

// with runs a page for who is logged in, and checks the form's token.
func (c *Console) with(next func(http.ResponseWriter, *http.Request, Session)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		cookie, err := r.Cookie(cookieName)
		if err != nil {
			c.render(w, r, http.StatusUnauthorized, "login.html", page{Title: "Log in"})
			return
		}
		session, err := c.sessions.Find(r.Context(), cookie.Value)
		if errors.Is(err, fault.Unauthenticated) {
			c.render(w, r, http.StatusUnauthorized, "login.html", page{Title: "Log in", Notice: "Your session has ended."})
			return
		}
		if err != nil {
			c.fail(w, r, Session{}, err)
			return
		}
		if r.Method == http.MethodPost {
			r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
			if subtle.ConstantTimeCompare([]byte(r.PostFormValue("csrf")), []byte(session.CSRF)) != 1 {
				c.fail(w, r, session, fault.New("console.with", fault.PermissionDenied, "the form is not from this session; open the page again"))
				return
			}
		}
		next(w, r.WithContext(creto.WithCaller(r.Context(), session.Human)), session)
	}
}

// showLogin shows a button: a program that follows links before their reader
// does cannot spend the code.
func (c *Console) showLogin(w http.ResponseWriter, r *http.Request) {
	c.render(w, r, http.StatusOK, "login.html", page{Title: "Log in", Data: r.FormValue("code")})
}

func (c *Console) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	token, err := c.sessions.Login(r.Context(), r.PostFormValue("code"))
	if err != nil {
		c.render(w, r, fault.CodeOf(err).HTTPStatus(), "login.html", page{Title: "Log in", Notice: fault.Message(err)})
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: token, Path: "/", HttpOnly: true, Secure: c.secure, SameSite: http.SameSiteStrictMode, MaxAge: int(sessionTTL.Seconds()),
	})
	http.Redirect(w, r, "/console", http.StatusSeeOther)
}

func (c *Console) logout(w http.ResponseWriter, r *http.Request, s Session) {
	if cookie, err := r.Cookie(cookieName); err == nil {
		if err := c.sessions.End(r.Context(), cookie.Value); err != nil {
			c.fail(w, r, s, err)
			return
		}
	}
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", HttpOnly: true, Secure: c.secure, SameSite: http.SameSiteStrictMode, MaxAge: -1})
	http.Redirect(w, r, "/console/login", http.StatusSeeOther)
}

// refreshSeconds is how often the list of what waits is read again.
const refreshSeconds = 5

// recentRequests bounds the list of what was decided.
const recentRequests = 20

func (c *Console) home(w http.ResponseWriter, r *http.Request, s Session) {
	all, err := c.desk.List(r.Context(), "")
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	var lists struct{ Pending, Done []oversight.Request }
	for _, request := range all {
		if request.State == oversight.Pending {
			lists.Pending = append(lists.Pending, request)
		} else {
			lists.Done = append([]oversight.Request{request}, lists.Done...)
		}
	}
	lists.Done = lists.Done[:min(len(lists.Done), recentRequests)]
	c.render(w, r, http.StatusOK, "home.html", page{Title: "Approvals", Session: s, Tab: "approvals", Refresh: refreshSeconds, Data: lists})
}

func (c *Console) show(w http.ResponseWriter, r *http.Request, s Session) {
	request, err := c.desk.Show(r.Context(), r.PathValue("id"))
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	c.render(w, r, http.StatusOK, "approval.html", page{Title: "Approval", Session: s, Tab: "approvals", Data: request})
}

func (c *Console) decide(w http.ResponseWriter, r *http.Request, s Session) {
	decision := oversight.Decision{By: s.Human, Channel: oversight.ChannelConsole, Reason: strings.TrimSpace(r.PostFormValue("reason"))}
	switch r.PostFormValue("decision") {
	case "approve":
		decision.Approve = true
	case "deny":
	default:
		c.fail(w, r, s, fault.New("console.decide", fault.InvalidArgument, "choose approve or deny"))
		return
	}
	// What was shown must be what is decided.
	request, err := c.desk.Show(r.Context(), r.PathValue("id"))
	if err == nil && request.Digest.String() != r.PostFormValue("digest") {
		err = fault.New("console.decide", fault.FailedPrecondition, "the request is another than the one you saw")
	}
	if err == nil {
		_, err = c.desk.Decide(r.Context(), r.PathValue("id"), decision)
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	http.Redirect(w, r, "/console/approvals/"+url.PathEscape(r.PathValue("id")), http.StatusSeeOther)
}

// pageSize is how many records a page of activity shows.
const pageSize = 50

func (c *Console) activity(w http.ResponseWriter, r *http.Request, s Session) {
	entries, err := c.log.Query(r.Context(), audit.Filter{Limit: pageSize})
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	c.render(w, r, http.StatusOK, "activity.html", page{Title: "Activity", Session: s, Tab: "activity", Refresh: refreshSeconds, Data: entries})
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
	session, err := c.sessions.Find(r.Context(), token)
	return session.Human, err
}
