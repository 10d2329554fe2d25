package console

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"path"
	"strings"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/login"
)

// browserCookie names the cookie that ties the two halves of a ceremony to one
// browser. It is sent with the answer of an identity provider too, which comes
// from another site.
const browserCookie = "creto_browser"

// maxFormBytes bounds a form.
const maxFormBytes = 64 << 10

// newBrowser names this browser anew, for one ceremony.
func (c *Console) newBrowser(w http.ResponseWriter) string {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // documented never to return an error
	name := base64.RawURLEncoding.EncodeToString(raw[:])
	http.SetCookie(w, &http.Cookie{Name: browserCookie, Value: name, Path: "/console", HttpOnly: true, Secure: c.secure, SameSite: http.SameSiteLaxMode})
	return name
}

// browser returns the name that newBrowser gave; "" for none, which no ceremony
// has.
func browser(r *http.Request) string {
	cookie, err := r.Cookie(browserCookie)
	if err != nil {
		return ""
	}
	return cookie.Value
}

// loginPage is what the page of a login needs.
type loginPage struct {
	// Code is a one-time login's; it has the page to itself.
	Code string
	// Next is where to go afterwards.
	Next string
	// Providers are the identity providers.
	Providers []string
}

// askLogin shows the ways to log in, and leads back to where r was going.
func (c *Console) askLogin(w http.ResponseWriter, r *http.Request, status int, notice string) {
	next := "/console"
	if r.Method == http.MethodGet {
		next = localPath(r.URL.RequestURI())
	}
	c.render(w, r, status, "login.html", page{Title: "Log in", Notice: notice, Script: true, Data: loginPage{Next: next, Providers: c.Providers.Names()}})
}

// localPath returns where to go after a login: a page of the console, and never
// another site.
func localPath(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" || strings.Contains(text, "\\") ||
		path.Clean(u.Path) != u.Path || !strings.HasPrefix(u.Path, "/console/") || strings.HasPrefix(u.Path, "/console/log") {
		return "/console"
	}
	return (&url.URL{Path: u.Path, RawQuery: u.Query().Encode()}).String()
}

// showLogin shows a button: a program that follows links before their reader
// does cannot spend the code.
func (c *Console) showLogin(w http.ResponseWriter, r *http.Request) {
	code := r.FormValue("code")
	c.render(w, r, http.StatusOK, "login.html", page{Title: "Log in", Script: code == "", Data: loginPage{Code: code, Next: "/console", Providers: c.Providers.Names()}})
}

func (c *Console) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	token, err := c.Sessions.Login(r.Context(), r.PostFormValue("code"))
	if err != nil {
		c.askLogin(w, r, fault.CodeOf(err).HTTPStatus(), fault.Message(err))
		return
	}
	session, err := c.Sessions.Find(r.Context(), token)
	if err == nil {
		_, err = c.Log.Log(r.Context(), audit.Record{
			Who: session.Human, What: audit.EventLoggedIn, Resource: "Human::" + session.Human.Name, Outcome: audit.Success, Detail: map[string]string{"method": string(session.Method)},
		})
	}
	if err == nil {
		err = c.hold(w, r, token)
	}
	if err != nil {
		c.fail(w, r, login.Session{}, err)
		return
	}
	http.Redirect(w, r, "/console", http.StatusSeeOther)
}

// hold gives a browser the token of its new session, and ends the one it had.
func (c *Console) hold(w http.ResponseWriter, r *http.Request, token string) error {
	if cookie, err := r.Cookie(cookieName); err == nil {
		if err := c.Sessions.End(r.Context(), cookie.Value); err != nil {
			return err
		}
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: token, Path: "/", HttpOnly: true, Secure: c.secure, SameSite: http.SameSiteStrictMode, MaxAge: int(login.SessionTTL.Seconds()),
	})
	return nil
}

func (c *Console) logout(w http.ResponseWriter, r *http.Request, s login.Session) {
	if cookie, err := r.Cookie(cookieName); err == nil {
		if err := c.Sessions.End(r.Context(), cookie.Value); err != nil {
			c.fail(w, r, s, err)
			return
		}
	}
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", HttpOnly: true, Secure: c.secure, SameSite: http.SameSiteStrictMode, MaxAge: -1})
	http.Redirect(w, r, "/console/login", http.StatusSeeOther)
}

// reply answers a script.
func (c *Console) reply(w http.ResponseWriter, r *http.Request, answer any, err error) {
	status := http.StatusOK
	if err != nil {
		status, answer = fault.CodeOf(err).HTTPStatus(), map[string]string{"message": fault.Message(err)}
		c.complain(r, err)
	}
	c.answer(w, status, answer)
}

// answer writes JSON.
func (c *Console) answer(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // a reader who left needs no answer
}

// location sends a script's page elsewhere.
func location(to string) map[string]string { return map[string]string{"location": to} }

func (c *Console) beginPasskeyLogin(w http.ResponseWriter, r *http.Request) {
	options, err := c.Passkeys.BeginLogin(r.Context(), c.newBrowser(w))
	c.reply(w, r, options, err)
}

func (c *Console) passkeyLogin(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	human, err := c.Passkeys.Login(r.Context(), browser(r), r.PostFormValue("ceremony"), []byte(r.PostFormValue("answer")))
	if err == nil {
		err = c.enter(w, r, human, login.MethodPasskey)
	}
	c.reply(w, r, location(localPath(r.PostFormValue("next"))), err)
}

// enter makes a session for a human who was just known by method.
func (c *Console) enter(w http.ResponseWriter, r *http.Request, human creto.ID, method login.Method) error {
	token, _, err := c.Sessions.New(r.Context(), human, method)
	if err != nil {
		return err
	}
	return c.hold(w, r, token)
}
