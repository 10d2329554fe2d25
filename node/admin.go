package node

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/authz/localauthz"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/internal/durable"
	"creto.dev/internal/serve"
	"creto.dev/login"
	"creto.dev/metering"
	"creto.dev/nhi"
	"creto.dev/oversight"
	"creto.dev/receipt"
)

var _ serve.Admin = (*Node)(nil)

// defaultDelegation is how long a delegation lasts that is given no end.
const defaultDelegation = 90 * 24 * time.Hour

// Status implements serve.Admin.
func (n *Node) Status(ctx context.Context) (client.Status, error) {
	_, root, err := n.authority.Root()
	if err != nil {
		return client.Status{}, err
	}
	return client.Status{
		Version: n.options.Version, PID: os.Getpid(), Listen: n.server.Address(), Console: n.origin + "/console",
		DataDir: n.options.DataDir, Root: root, TrustDomain: n.options.Config.Identity.TrustDomain,
		Tenant: creto.CallerOf(ctx).Tenant,
	}, nil
}

// AddAgent implements serve.Admin. Everything that can be wrong is found before
// anything is changed.
func (n *Node) AddAgent(ctx context.Context, in client.NewAgent) (client.Agent, error) {
	const op fault.Op = "node.AddAgent"
	id := n.id(ctx, creto.KindAgent, in.Name)
	if err := id.Validate(); err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	issuer, err := n.issuer(ctx, in.OnBehalfOf)
	if err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	if _, err := n.waitsFor(ctx, issuer, in); err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	rules := make([]localauthz.Rule, 0, len(in.Allow)+len(in.Ask))
	for _, text := range in.Allow {
		rules = append(rules, localauthz.Rule{Text: text})
	}
	for _, text := range in.Ask {
		i := strings.LastIndexByte(text, ',')
		if i < 0 || text[i+1:] == "" {
			return client.Agent{}, fault.New(op, fault.InvalidArgument, "%q names nobody to ask; write ACTION=RESOURCE-GLOB,GROUP", text)
		}
		rules = append(rules, localauthz.Rule{Text: text[:i], Ask: text[i+1:]})
	}
	policy, err := localauthz.PolicyText(id, rules)
	if err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	limits, err := n.parseQuotas(in.Quota)
	if err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	grant, err := grantOf(in)
	if err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	agents, err := n.authority.Principals(ctx, creto.CallerOf(ctx).Tenant, creto.KindAgent)
	if err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	again := false // it was added before, and its human has not confirmed it
	for _, p := range agents {
		if again = p.ID == id && p.Active && p.OnBehalfOf.IsZero(); again {
			break
		}
		if p.ID == id {
			state := "already"
			if !p.Active {
				state = "already, and it is revoked; names are not used twice"
			}
			return client.Agent{}, fault.New(op, fault.AlreadyExists, "there is an agent %q %s", in.Name, state)
		}
	}
	// The policy comes first: while there is no such agent it permits nothing,
	// and it can be taken back.
	file := n.policyFile(id)
	undo := func() error { return os.Remove(file) }
	if same, err := os.ReadFile(file); again && err == nil && string(same) == policy {
		undo = func() error { return nil }
	} else if err := writePolicy(file, policy); err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	if err := n.reload(ctx); err != nil {
		return client.Agent{}, errors.Join(fault.Wrap(op, err), undo())
	}
	if !again {
		if err := n.authority.AddAgent(ctx, id); err != nil {
			return client.Agent{}, errors.Join(fault.Wrap(op, err), undo())
		}
	}
	for _, l := range limits {
		if err := n.setLimit(ctx, metering.Subject{Agent: id, Action: l.action}, l.Limit); err != nil {
			return client.Agent{}, fault.Wrap(op, err)
		}
	}
	waits, err := n.delegateFor(ctx, issuer, id, grant, login.Shown{Policy: policy, Quotas: in.Quota}, in)
	if err != nil {
		return client.Agent{}, fault.Wrap(op, err)
	}
	return client.Agent{Name: in.Name, ID: id.String(), OnBehalfOf: issuer.Name, Active: true, PolicyFile: file, Policy: policy, Waits: waits}, nil
}

// writePolicy writes a policy that is not there yet; one that is belongs to
// whoever wrote it.
func writePolicy(path, text string) error {
	const op fault.Op = "node.writePolicy"
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "%s cannot be made", filepath.Dir(path))
	}
	err := durable.Create(path, []byte(text))
	if errors.Is(err, os.ErrExist) {
		return fault.New(op, fault.AlreadyExists, "%s exists already and was left as it is; move it away, or choose another name", path)
	}
	return fault.WrapAs(op, fault.Unavailable, err, "%s cannot be written", path)
}

// issuer finds who delegates: a human's name, or agent:NAME.
func (n *Node) issuer(ctx context.Context, name string) (creto.ID, error) {
	const op fault.Op = "node.issuer"
	if name == "" {
		return creto.CallerOf(ctx), nil
	}
	id := n.id(ctx, creto.KindHuman, name)
	if agent, ok := strings.CutPrefix(name, "agent:"); ok {
		id = n.id(ctx, creto.KindAgent, agent)
	}
	if err := n.authority.Known(ctx, id); err != nil {
		if errors.Is(err, fault.NHINotFound) && id.Kind == creto.KindHuman {
			return id, fault.New(op, fault.NHINotFound, "there is no human %q; add one with: creto human add %s", name, name)
		}
		return id, fault.Wrap(op, err)
	}
	return id, nil
}

// adminEvent records what an administrator did. chain, if it is valid, is the
// one that the event is about.
func (n *Node) adminEvent(ctx context.Context, what, resource string, chain nhi.VerifiedChain) error {
	r := audit.Record{Who: creto.CallerOf(ctx), What: what, Resource: resource, Outcome: audit.Success}
	if chain.Valid() {
		r.Detail = map[string]string{"chain": chain.Digest().String(), "on_behalf_of": chain.Human().String(), "proof": chain.Proof()}
	}
	_, err := n.log.Log(ctx, r)
	return err
}

// Agents implements serve.Admin.
func (n *Node) Agents(ctx context.Context) ([]client.Agent, error) {
	list, err := n.authority.Principals(ctx, creto.CallerOf(ctx).Tenant, creto.KindAgent)
	if err != nil {
		return nil, err
	}
	agents := make([]client.Agent, 0, len(list))
	for _, p := range list {
		agents = append(agents, client.Agent{
			Name: p.ID.Name, ID: p.ID.String(), OnBehalfOf: p.OnBehalfOf.Name, Active: p.Active,
			PolicyFile: n.policyFile(p.ID),
		})
	}
	return agents, nil
}

// RevokeAgent implements serve.Admin.
func (n *Node) RevokeAgent(ctx context.Context, name string) error {
	if err := n.authority.Revoke(ctx, n.id(ctx, creto.KindAgent, name)); err != nil {
		return err
	}
	return n.adminEvent(ctx, audit.EventDelegationRevoked, "Agent::"+name, nhi.VerifiedChain{})
}

// AddHuman implements serve.Admin.
func (n *Node) AddHuman(ctx context.Context, h client.Human) (client.Human, error) {
	id, kind := n.id(ctx, creto.KindHuman, h.Name), "Human::"
	if h.Workload {
		id.Kind, kind = creto.KindWorkload, "Workload::"
	}
	if err := n.authority.AddMember(ctx, id, h.Groups...); err != nil {
		return client.Human{}, err
	}
	groups, err := n.authority.Groups(ctx, id)
	if err != nil {
		return client.Human{}, err
	}
	return client.Human{Name: h.Name, ID: id.String(), Groups: groups}, n.adminEvent(ctx, audit.EventHumanAdded, kind+h.Name, nhi.VerifiedChain{})
}

// Humans implements serve.Admin.
func (n *Node) Humans(ctx context.Context) ([]client.Human, error) {
	return n.members(ctx, creto.KindHuman)
}

// Workloads implements serve.Admin.
func (n *Node) Workloads(ctx context.Context) ([]client.Human, error) {
	return n.members(ctx, creto.KindWorkload)
}

func (n *Node) members(ctx context.Context, kind creto.Kind) ([]client.Human, error) {
	list, err := n.authority.Principals(ctx, creto.CallerOf(ctx).Tenant, kind)
	if err != nil {
		return nil, err
	}
	members := make([]client.Human, 0, len(list))
	for _, p := range list {
		if p.Active {
			members = append(members, client.Human{Name: p.ID.Name, ID: p.ID.String(), Groups: p.Groups, Workload: kind == creto.KindWorkload})
		}
	}
	return members, nil
}

// RemoveMember implements serve.Admin. Who ends is gone at once, with their
// logins and every agent that acts for them. The bootstrap administrator stays:
// without one nobody could administer the tenant.
func (n *Node) RemoveMember(ctx context.Context, m client.Member) error {
	const op fault.Op = "node.RemoveMember"
	kind := creto.KindHuman
	if m.Workload {
		kind = creto.KindWorkload
	}
	id := n.id(ctx, kind, m.Name)
	if m.Name == BootstrapHuman && kind == creto.KindHuman && (m.Group == "" || m.Group == AdminGroup) {
		return fault.New(op, fault.FailedPrecondition, "%s is the administrator of last resort and stays", m.Name)
	}
	resource := string(kind[0]-'a'+'A') + string(kind[1:]) + "::" + m.Name
	if m.Group != "" {
		if err := n.authority.Leave(ctx, id, m.Group); err != nil {
			return fault.Wrap(op, err)
		}
		// The resource is the person and nothing else, or the log could not seal it.
		_, err := n.log.Log(ctx, audit.Record{
			Who: creto.CallerOf(ctx), What: audit.EventGroupLeft, Resource: resource, Outcome: audit.Success, Detail: map[string]string{"group": m.Group},
		})
		return fault.Wrap(op, err)
	}
	if err := n.authority.Revoke(ctx, id); err != nil {
		return fault.Wrap(op, err)
	}
	return n.adminEvent(ctx, audit.EventHumanRemoved, resource, nhi.VerifiedChain{})
}

// Login implements serve.Admin.
func (n *Node) Login(ctx context.Context, human string, method login.Method) (string, error) {
	id := n.id(ctx, creto.KindHuman, human)
	if err := n.authority.Known(ctx, id); err != nil {
		return "", err
	}
	code, err := n.sessions.NewLogin(ctx, id, method)
	if err != nil {
		return "", err
	}
	return n.origin + "/console/login?code=" + url.QueryEscape(code), n.adminEvent(ctx, audit.EventLoginIssued, "Human::"+human, nhi.VerifiedChain{})
}

// Session implements serve.Admin.
func (n *Node) Session(ctx context.Context, human string) (client.Token, error) {
	id := n.id(ctx, creto.KindHuman, human)
	if err := n.authority.Known(ctx, id); err != nil {
		return client.Token{}, err
	}
	token, expires, err := n.sessions.New(ctx, id, login.MethodToken)
	if err != nil {
		return client.Token{}, err
	}
	return client.Token{Token: token, Expires: expires}, n.adminEvent(ctx, audit.EventLoginIssued, "Human::"+human, nhi.VerifiedChain{})
}

// BootstrapLogin returns a one-time login for who holds the data directory.
func (n *Node) BootstrapLogin(ctx context.Context) (string, error) {
	return n.Login(creto.WithCaller(ctx, n.owner), BootstrapHuman, login.MethodBootstrap)
}

// Check implements serve.Admin: what an agent may do and why, without doing it.
func (n *Node) Check(ctx context.Context, c client.Check) (client.Decision, error) {
	const op fault.Op = "node.Check"
	chain, err := n.authority.Chain(ctx, n.id(ctx, creto.KindAgent, c.Agent))
	if err != nil {
		return client.Decision{}, fault.Wrap(op, err)
	}
	resource, err := creto.ParseResource(c.Action, c.Resource)
	if err != nil {
		return client.Decision{}, fault.Wrap(op, err)
	}
	session, err := n.authorizer.Bind(ctx, chain)
	if err != nil {
		return client.Decision{}, fault.Wrap(op, err)
	}
	d, explanation, err := n.authorizer.Explain(ctx, session, authz.Request{Action: c.Action, Resource: resource, Context: c.Context})
	if err != nil {
		return client.Decision{}, fault.Wrap(op, err)
	}
	out := client.Decision{Decision: d.Kind.String(), Reason: d.Reason, Ask: d.Approvers, Version: d.Version, Context: c.Context, Explanation: &explanation}
	for _, p := range d.Policies {
		out.Policies = append(out.Policies, p.ID)
	}
	for _, p := range chain.Principals() {
		out.Chain = append(out.Chain, string(p.Kind)+":"+p.Name)
	}
	return out, nil
}

// Chain implements serve.Admin.
func (n *Node) Chain(ctx context.Context, agent string, digest creto.Digest) (client.Chain, error) {
	const op fault.Op = "node.Chain"
	links, err := n.authority.ChainByDigest(ctx, n.id(ctx, creto.KindAgent, agent), digest)
	if err != nil {
		return client.Chain{}, fault.Wrap(op, err)
	}
	out := client.Chain{Digest: digest, Groups: make(map[string][]string)}
	for _, signed := range links {
		link, err := signed.Link()
		if err != nil {
			return client.Chain{}, fault.Wrap(op, err)
		}
		out.Links = append(out.Links, client.ChainLink{From: link.Issuer.String(), To: link.Subject.String(), Scope: link.Scope})
		for _, id := range []creto.ID{link.Issuer, link.Subject} {
			if out.Groups[id.String()], err = n.groups(ctx, id); err != nil {
				return client.Chain{}, fault.Wrap(op, err)
			}
		}
	}
	return out, nil
}

func approval(r oversight.Request) client.Approval {
	return client.Approval{
		ID: r.ID, State: string(r.State), Agent: r.Agent.Name, OnBehalfOf: r.OnBehalfOf.Name, Action: r.Action, Resource: r.Resource,
		Args: string(r.Args), Digest: r.Digest, Policy: r.Policy.ID, Approvers: r.Approvers, Context: r.Context,
		Quorum: r.Quorum, Consented: names(r.Consented),
		Created: r.Created, Expires: r.Expires, DecidedBy: r.DecidedBy.Name, Reason: r.Reason,
	}
}

// names returns the names of principals.
func names(ids []creto.ID) []string {
	var names []string
	for _, id := range ids {
		names = append(names, id.Name)
	}
	return names
}

// Approvals implements serve.Admin.
func (n *Node) Approvals(ctx context.Context, state string) ([]client.Approval, error) {
	list, err := n.desk.List(ctx, oversight.State(state))
	if err != nil {
		return nil, err
	}
	out := make([]client.Approval, 0, len(list))
	for _, r := range list {
		out = append(out, approval(r))
	}
	return out, nil
}

// Approval implements serve.Admin.
func (n *Node) Approval(ctx context.Context, id string) (client.Approval, error) {
	r, err := n.desk.Show(ctx, id)
	return approval(r), err
}

// Decide implements serve.Admin. Who holds the socket may say for whom the
// answer is; package serve lets nobody else. A program that decides is a
// workload and never counts as a human.
func (n *Node) Decide(ctx context.Context, id string, d client.Decide) (client.Approval, error) {
	decision := oversight.Decision{By: creto.CallerOf(ctx), Approve: d.Approve, Reason: d.Reason, Channel: oversight.ChannelCLI}
	switch {
	case d.Remote:
		decision.Channel = oversight.ChannelAPI
	case d.Auto:
		decision.By, decision.Channel = n.id(ctx, creto.KindWorkload, d.As), oversight.ChannelAuto
	case d.As != "":
		decision.By = n.id(ctx, creto.KindHuman, d.As)
	}
	r, err := n.desk.Decide(ctx, id, decision)
	return approval(r), err
}

// Receipts implements serve.Admin.
func (n *Node) Receipts(ctx context.Context, q client.Query) ([]client.Receipt, error) {
	entries, err := n.entries(ctx, q)
	if err != nil {
		return nil, err
	}
	out := make([]client.Receipt, 0, len(entries))
	for _, e := range entries {
		r := client.Receipt{Index: e.Index, Record: e.Record}
		if q.Leaf {
			r.Leaf = e.Leaf
		}
		out = append(out, r)
	}
	return out, nil
}

// filter returns the records of the caller's tenant that q selects.
func (n *Node) filter(ctx context.Context, q client.Query) audit.Filter {
	return audit.Filter{
		Tenant: creto.CallerOf(ctx).Tenant, Actor: q.Agent, Human: q.Human, What: q.What, Resource: q.Resource, Outcome: audit.Outcome(q.Outcome),
		Since: q.Since, Until: q.Until, Before: q.Before, Oldest: q.Oldest, From: q.From, Limit: q.Limit,
	}
}

// entry returns a record of the caller's tenant.
func (n *Node) entry(ctx context.Context, record string) (audit.Entry, error) {
	const op fault.Op = "node.entry"
	tenant := creto.CallerOf(ctx).Tenant
	if index, err := strconv.ParseInt(record, 10, 64); err == nil && index >= 0 {
		page, err := n.log.Query(ctx, audit.Filter{Tenant: tenant, Oldest: true, From: index, Limit: 1})
		if err == nil && (len(page) == 0 || page[0].Index != index) {
			err = fault.New(op, fault.AuditNotFound, "there is no record at %d", index)
		}
		if err != nil {
			return audit.Entry{}, err
		}
		return page[0], nil
	}
	id, err := creto.ParseUUID(record)
	if err != nil {
		return audit.Entry{}, fault.New(op, fault.InvalidArgument, "%q is neither a record's id nor its index", record)
	}
	e, err := n.log.Entry(ctx, id)
	if err == nil && e.Record.Who.Tenant != tenant {
		err = fault.New(op, fault.AuditNotFound, "there is no record %s", id)
	}
	return e, err
}

// Proof implements serve.Admin.
func (n *Node) Proof(ctx context.Context, record string) (client.Proof, error) {
	const op fault.Op = "node.Proof"
	e, err := n.entry(ctx, record)
	if err != nil {
		return client.Proof{}, err
	}
	head, err := n.log.Checkpoint(ctx)
	if err != nil {
		return client.Proof{}, fault.Wrap(op, err)
	}
	proof, err := n.log.Proof(ctx, e.Index, head.Size)
	if err != nil {
		return client.Proof{}, fault.Wrap(op, err)
	}
	out := client.Proof{Index: e.Index, Size: head.Size, Leaf: e.Leaf, Checkpoint: string(head.Note)}
	for _, h := range proof {
		out.Proof = append(out.Proof, h[:])
	}
	return out, nil
}

// Tail implements serve.Admin.
func (n *Node) Tail(ctx context.Context, q client.Query, see func(client.Receipt) error) error {
	f := n.filter(ctx, q)
	f.Limit = 0
	return audit.Follow(ctx, n.log, f, func(e audit.Entry) error { return see(client.Receipt{Index: e.Index, Record: e.Record}) })
}

// Erase implements serve.Admin. Who is erased must have been removed: who may
// still act would be in the log again at once.
func (n *Node) Erase(ctx context.Context, e client.Erasure) (client.Erased, error) {
	const op fault.Op = "node.Erase"
	caller := creto.CallerOf(ctx)
	human := creto.ID{TrustDomain: n.options.Config.Identity.TrustDomain, Tenant: caller.Tenant, Kind: creto.KindHuman, Name: e.Human}
	if err := human.Validate(); err != nil {
		return client.Erased{}, fault.Wrap(op, err)
	}
	active, err := n.Humans(ctx)
	if err != nil {
		return client.Erased{}, fault.Wrap(op, err)
	}
	if slices.ContainsFunc(active, func(h client.Human) bool { return h.Name == e.Human }) {
		return client.Erased{}, fault.New(op, fault.FailedPrecondition, "%s can still act; first run: creto human remove %s", e.Human, e.Human)
	}
	tree, err := n.ownTree(op)
	if err != nil {
		return client.Erased{}, err
	}
	pseudonym, err := tree.Erase(ctx, human, caller)
	return client.Erased{Pseudonym: pseudonym}, err
}

func (n *Node) entries(ctx context.Context, q client.Query) ([]audit.Entry, error) {
	if q.Record == "" {
		return n.log.Query(ctx, n.filter(ctx, q))
	}
	e, err := n.entry(ctx, q.Record)
	if err != nil {
		return nil, err
	}
	return []audit.Entry{e}, nil
}

// Bundle implements serve.Admin.
func (n *Node) Bundle(ctx context.Context, q client.Query) ([]byte, error) {
	// What signs the heads of a log elsewhere hangs on that node's root.
	if _, err := n.ownTree("node.Bundle"); err != nil {
		return nil, err
	}
	entries, err := n.entries(ctx, q)
	if err != nil {
		return nil, err
	}
	n.rotating.RLock() // the keys and the checkpoint belong together
	defer n.rotating.RUnlock()
	keys, err := n.keys(ctx)
	if err != nil {
		return nil, err
	}
	var disclose receipt.Disclose
	if q.Disclose {
		disclose = n.log.Disclose
	}
	return receipt.Make(ctx, n.log, n.authority.ChainByDigest, keys, disclose, entries)
}
