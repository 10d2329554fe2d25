package console

import (
	"net/http"

	"creto.dev/login"
	"creto.dev/receipt/verifier"
)

// offline is the content security policy of the page that verifies bundles: its
// script may load, and nothing that it reads can be sent anywhere.
const offline = "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"

// verify shows the page on which a bundle is verified, all of it in the browser.
// It is for everybody: what it shows is what they bring.
func (c *Console) verify(w http.ResponseWriter, r *http.Request) {
	var session login.Session
	if cookie, err := r.Cookie(cookieName); err == nil {
		if found, err := c.Sessions.Find(r.Context(), cookie.Value); err == nil {
			session = found
		}
	}
	c.render(w, r, http.StatusOK, "verify.html", page{Title: "Verify", Session: session, Tab: "verify", Module: "/console/static/verify.mjs"})
}

// verifierFiles serves the second verifier, which the page runs.
func verifierFiles() http.Handler {
	return http.StripPrefix("/console/verifier/", http.FileServerFS(verifier.Files))
}
