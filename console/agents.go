package console

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/login"
	"creto.dev/nhi"
)

// Agents are those that act for people.
type Agents interface {
	// Of lists the agents whose chain begins with human, by name: those in
	// force.
	Of(ctx context.Context, human creto.ID) ([]nhi.VerifiedChain, error)
	// Limits returns what bounds an agent on behalf of human, and what is left.
	Limits(ctx context.Context, human, agent creto.ID) ([]Limit, error)
	// Revoke ends everything that an agent of human's was given, and all below
	// it, at once.
	//
	// Errors: NHINotFound (Permanent), also for somebody else's.
	Revoke(ctx context.Context, human creto.ID, agent string) error
}

// Limit is a quota or a rate, for people.
type Limit struct {
	// Action is an action's name, or * for all.
	Action string
	// Text is the limit, such as 100/1h; Left of it until Reset, which a rate has
	// none of.
	Text  string
	Left  int64
	Reset time.Time
}

// agentsPage is who acts for the reader.
type agentsPage struct {
	Waiting []login.Delegation
	Agents  []agentView
}

// agentView is one agent's authority, for people.
type agentView struct {
	Name  string
	Via   []creto.ID // agents between the human and it
	Known string
	// Limits are nil where they are kept by another node.
	Limits []Limit
	grant
}

// grant is what a link, or a chain, passes on.
type grant struct {
	Actions, Resources []string
	// Spend is "" without a bound.
	Spend string
	Until time.Time
	// Depth is how many more links may follow.
	Depth uint
}

func grantOf(l nhi.Link) grant {
	g := grant{Actions: l.Scope.Actions, Resources: l.Scope.Resources, Until: time.Unix(l.NotAfter, 0), Depth: l.MaxDepth}
	if !l.Scope.Spend.IsZero() {
		g.Spend = l.Scope.Spend.String()
	}
	return g
}

func (c *Console) agents(w http.ResponseWriter, r *http.Request, s login.Session) {
	var view agentsPage
	chains, err := c.Agents.Of(r.Context(), s.Human)
	if err == nil {
		view.Waiting, err = c.Delegations.For(r.Context(), s.Human)
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	for _, chain := range chains {
		links, principals := chain.Links(), chain.Principals()
		last, err := links[len(links)-1].Link()
		if err != nil {
			c.fail(w, r, s, err)
			return
		}
		a := agentView{Name: chain.Agent().Name, Via: principals[1 : len(principals)-1], Known: chain.HumanProof().String(), grant: grantOf(last)}
		a.Until = chain.NotAfter()
		if a.Limits, err = c.Agents.Limits(r.Context(), s.Human, chain.Agent()); err != nil {
			c.fail(w, r, s, err)
			return
		}
		view.Agents = append(view.Agents, a)
	}
	c.render(w, r, http.StatusOK, "agents.html", page{Title: "Agents", Session: s, Tab: "agents", Data: view})
}

func (c *Console) revokeAgent(w http.ResponseWriter, r *http.Request, s login.Session) {
	if err := c.Agents.Revoke(r.Context(), s.Human, r.PathValue("name")); err != nil {
		c.fail(w, r, s, err)
		return
	}
	http.Redirect(w, r, "/console/agents", http.StatusSeeOther)
}

// delegationPage is what a human confirms, and how they can.
type delegationPage struct {
	login.Delegation
	Grant grant
	// Challenge is what their proof is over.
	Challenge creto.Digest
	// Key is the fingerprint of the agent's key.
	Key       creto.Digest
	Passkey   bool
	Providers []string
}

func (c *Console) delegation(w http.ResponseWriter, r *http.Request, s login.Session) {
	d, err := c.Delegations.Show(r.Context(), r.PathValue("id"))
	if err == nil && d.Link.Issuer != s.Human {
		_, err = c.Delegations.Mine(r.Context(), r.PathValue("id"), s.Human)
	}
	view := delegationPage{Delegation: d, Grant: grantOf(d.Link)}
	if err == nil {
		view.Challenge, err = d.Link.Challenge()
	}
	if err == nil {
		view.Key, err = nhi.Fingerprint(d.Link.SubjectKey)
	}
	if err == nil {
		view.Passkey, err = c.Passkeys.Usable(r.Context(), s.Human)
	}
	if err == nil {
		view.Providers, err = c.Providers.Usable(r.Context(), s.Human)
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	c.render(w, r, http.StatusOK, "delegation.html", page{Title: "Delegation", Session: s, Tab: "agents", Script: d.State == login.Pending, Data: view})
}

// asked returns the challenge of a delegation that waits for s's human, if it is
// the one that they saw.
func (c *Console) asked(r *http.Request, s login.Session) (creto.Digest, error) {
	d, err := c.Delegations.Mine(r.Context(), r.PathValue("id"), s.Human)
	if err != nil {
		return creto.Digest{}, err
	}
	challenge, err := d.Link.Challenge()
	if err == nil && challenge.String() != r.PostFormValue("challenge") {
		err = fault.New("console.asked", fault.FailedPrecondition, "the delegation is another than the one you saw")
	}
	return challenge, err
}

func (c *Console) beginConfirm(w http.ResponseWriter, r *http.Request, s login.Session) {
	challenge, err := c.asked(r, s)
	var options login.Options
	if err == nil {
		options, err = c.Passkeys.BeginConfirm(r.Context(), s.Human, c.newBrowser(w), challenge)
	}
	c.reply(w, r, options, err)
}

func (c *Console) confirm(w http.ResponseWriter, r *http.Request, s login.Session) {
	_, err := c.asked(r, s)
	var proof nhi.Proof
	if err == nil {
		proof, err = c.Passkeys.Confirm(r.Context(), s.Human, browser(r), r.PostFormValue("ceremony"), []byte(r.PostFormValue("answer")))
	}
	if err == nil {
		_, err = c.Delegations.Confirm(r.Context(), r.PathValue("id"), s.Human, proof)
	}
	c.reply(w, r, location(delegationPath(r.PathValue("id"))), err)
}

// confirmWith sends the human to an identity provider, to say once more who
// they are, for this.
func (c *Console) confirmWith(w http.ResponseWriter, r *http.Request, s login.Session) {
	challenge, err := c.asked(r, s)
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	c.toProvider(w, r, s, login.Asked{Purpose: login.ToConfirm, Human: s.Human, Challenge: challenge, Next: delegationPath(r.PathValue("id"))})
}

func (c *Console) decline(w http.ResponseWriter, r *http.Request, s login.Session) {
	if err := c.Delegations.Decline(r.Context(), r.PathValue("id"), s.Human); err != nil {
		c.fail(w, r, s, err)
		return
	}
	http.Redirect(w, r, delegationPath(r.PathValue("id")), http.StatusSeeOther)
}

func delegationPath(id string) string { return "/console/delegations/" + url.PathEscape(id) }
