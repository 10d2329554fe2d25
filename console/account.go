package console

import (
	"net/http"

	"creto.dev/fault"
	"creto.dev/login"
)

// accountPage is how the reader is known.
type accountPage struct {
	Passkeys   []login.Passkey
	Identities []login.Identity
	Providers  []string
}

func (c *Console) account(w http.ResponseWriter, r *http.Request, s login.Session) {
	passkeys, err := c.Passkeys.List(r.Context(), s.Human)
	var identities []login.Identity
	if err == nil {
		identities, err = c.Providers.List(r.Context(), s.Human)
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	c.render(w, r, http.StatusOK, "account.html", page{
		Title: "Account", Session: s, Tab: "account", Script: true, Data: accountPage{Passkeys: passkeys, Identities: identities, Providers: c.Providers.Names()},
	})
}

func (c *Console) beginEnrol(w http.ResponseWriter, r *http.Request, s login.Session) {
	options, err := c.Passkeys.BeginEnrol(r.Context(), s, c.newBrowser(w))
	c.reply(w, r, options, err)
}

func (c *Console) enrol(w http.ResponseWriter, r *http.Request, s login.Session) {
	err := c.Passkeys.Enrol(r.Context(), s, browser(r), r.PostFormValue("ceremony"), r.PostFormValue("name"), []byte(r.PostFormValue("answer")))
	c.reply(w, r, location("/console/account"), err)
}

// changePasskey renames or removes one. Whoever had the removed one may be
// logged in with it: the other sessions end.
func (c *Console) changePasskey(w http.ResponseWriter, r *http.Request, s login.Session) {
	var err error
	switch r.PostFormValue("change") {
	case "rename":
		err = c.Passkeys.Rename(r.Context(), s.Human, r.PathValue("id"), r.PostFormValue("name"))
	case "remove":
		if err = c.Passkeys.Remove(r.Context(), s, r.PathValue("id"), r.PostFormValue("last") == "yes"); err != nil {
			break
		}
		err = c.endOthers(r, s)
	default:
		err = fault.New("console.changePasskey", fault.InvalidArgument, "choose rename or remove")
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	http.Redirect(w, r, "/console/account", http.StatusSeeOther)
}
