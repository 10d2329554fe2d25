package console

import (
	"net/http"
	"net/url"
	"strings"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/login"
	"creto.dev/oversight"
)

// refreshSeconds is how often the list of what waits is read again.
const refreshSeconds = 5

// recentRequests bounds the list of what was decided.
const recentRequests = 20

func (c *Console) home(w http.ResponseWriter, r *http.Request, s login.Session) {
	all, err := c.Desk.List(r.Context(), "")
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

func (c *Console) show(w http.ResponseWriter, r *http.Request, s login.Session) {
	request, err := c.Desk.Show(r.Context(), r.PathValue("id"))
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	c.render(w, r, http.StatusOK, "approval.html", page{Title: "Approval", Session: s, Tab: "approvals", Data: request})
}

func (c *Console) decide(w http.ResponseWriter, r *http.Request, s login.Session) {
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
	request, err := c.Desk.Show(r.Context(), r.PathValue("id"))
	if err == nil && request.Digest.String() != r.PostFormValue("digest") {
		err = fault.New("console.decide", fault.FailedPrecondition, "the request is another than the one you saw")
	}
	if err == nil {
		_, err = c.Desk.Decide(r.Context(), r.PathValue("id"), decision)
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	http.Redirect(w, r, "/console/approvals/"+url.PathEscape(r.PathValue("id")), http.StatusSeeOther)
}

// pageSize is how many records a page of activity shows.
const pageSize = 50

func (c *Console) activity(w http.ResponseWriter, r *http.Request, s login.Session) {
	entries, err := c.Log.Query(r.Context(), audit.Filter{Tenant: creto.CallerOf(r.Context()).Tenant, Limit: pageSize})
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	c.render(w, r, http.StatusOK, "activity.html", page{Title: "Activity", Session: s, Tab: "activity", Refresh: refreshSeconds, Data: entries})
}
