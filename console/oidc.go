package console

import (
	"net/http"
	"path"

	"creto.dev/fault"
	"creto.dev/login"
)

// onward is a page that leads elsewhere: a redirect after a form may not leave
// this site, and one after an identity provider's answer would come without
// the session's cookie.
type onward struct {
	To, Where string
}

// toProvider sends a browser to an identity provider.
func (c *Console) toProvider(w http.ResponseWriter, r *http.Request, s login.Session, asked login.Asked) {
	name := r.PathValue("provider")
	to, err := c.Providers.Begin(r.Context(), name, c.newBrowser(w), asked)
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	c.render(w, r, http.StatusOK, "onward.html", page{Title: "Continue", Session: s, Onward: to, Data: onward{To: to, Where: name}})
}

func (c *Console) providerLogin(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	c.toProvider(w, r, login.Session{}, login.Asked{Purpose: login.ToLogin, Next: localPath(r.PostFormValue("next"))})
}

func (c *Console) linkIdentity(w http.ResponseWriter, r *http.Request, s login.Session) {
	if !s.Fresh {
		c.fail(w, r, s, fault.New("console.linkIdentity", fault.PermissionDenied, "log in again first: your login is older than %d minutes", int(login.FreshFor.Minutes())))
		return
	}
	c.toProvider(w, r, s, login.Asked{Purpose: login.ToLink, Human: s.Human, Next: "/console/account"})
}

func (c *Console) unlinkIdentity(w http.ResponseWriter, r *http.Request, s login.Session) {
	err := c.Providers.Unlink(r.Context(), s, r.PostFormValue("issuer"), r.PostFormValue("subject"))
	if err == nil {
		err = c.endOthers(r, s)
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	http.Redirect(w, r, "/console/account", http.StatusSeeOther)
}

// providerAnswer is where an identity provider sends a browser back to. The
// session's cookie does not come along; the ceremony knows what was asked, and
// the browser by another cookie.
func (c *Console) providerAnswer(w http.ResponseWriter, r *http.Request) {
	answer, err := c.Providers.End(r.Context(), r.PathValue("provider"), browser(r), r.URL.Query())
	if err == nil {
		switch answer.Purpose {
		case login.ToConfirm:
			err = c.confirmByProvider(r, answer)
		case login.ToLogin:
			var token string
			if token, _, err = c.Sessions.NewSince(r.Context(), answer.Human, login.MethodOIDC, answer.AuthenticatedAt); err == nil {
				err = c.hold(w, r, token)
			}
		}
	}
	if err != nil {
		c.fail(w, r, login.Session{}, err)
		return
	}
	c.render(w, r, http.StatusOK, "onward.html", page{Title: "Continue", Onward: answer.Next, Data: onward{To: answer.Next, Where: "the console"}})
}

// confirmByProvider makes a delegation with what a provider said of its human.
func (c *Console) confirmByProvider(r *http.Request, answer login.Answer) error {
	proof, err := answer.Evidence.Proof()
	if err != nil {
		return err
	}
	_, err = c.Delegations.Confirm(r.Context(), path.Base(answer.Next), answer.Human, proof)
	return err
}

// endOthers ends the sessions of whoever else may be logged in as s's human.
func (c *Console) endOthers(r *http.Request, s login.Session) error {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return fault.New("console.endOthers", fault.Unauthenticated, "you are not logged in")
	}
	return c.Sessions.EndOthers(r.Context(), s.Human, cookie.Value)
}
