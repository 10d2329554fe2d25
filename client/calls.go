package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
	"creto.dev/health"
)

// Status returns what the node says of itself.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, "GET", "/status", nil, &s)
}

// AddTenant makes a tenant, with its first administrator and base policies.
func (c *Client) AddTenant(ctx context.Context, name string) (t Tenant, err error) {
	return t, c.do(ctx, "POST", "/tenants", Tenant{Name: name}, &t)
}

// Tenants lists the tenants.
func (c *Client) Tenants(ctx context.Context) (list []Tenant, err error) {
	return list, c.do(ctx, "GET", "/tenants", nil, &list)
}

// AddAgent registers an agent, its delegation and its policy.
func (c *Client) AddAgent(ctx context.Context, a NewAgent) (agent Agent, err error) {
	return agent, c.do(ctx, "POST", "/agents", a, &agent)
}

// Delegation returns one that waits, or waited, for its human.
func (c *Client) Delegation(ctx context.Context, id string) (d Delegation, err error) {
	return d, c.do(ctx, "GET", "/delegations/"+url.PathEscape(id), nil, &d)
}

// Delegate passes authority on to an agent that is there, in place of what it
// was given before. Of a, the delegation counts.
func (c *Client) Delegate(ctx context.Context, a NewAgent) (agent Agent, err error) {
	return agent, c.do(ctx, "POST", "/agents/"+url.PathEscape(a.Name)+"/delegate", a, &agent)
}

// Agents lists the agents.
func (c *Client) Agents(ctx context.Context) (list []Agent, err error) {
	return list, c.do(ctx, "GET", "/agents", nil, &list)
}

// RevokeAgent ends everything an agent was given, and all below it.
func (c *Client) RevokeAgent(ctx context.Context, name string) error {
	return c.do(ctx, "POST", "/agents/"+url.PathEscape(name)+"/revoke", nil, nil)
}

// Revoke ends what agents were given.
func (c *Client) Revoke(ctx context.Context, r Revocation) (out Revoked, err error) {
	return out, c.do(ctx, "POST", "/revocations", r, &out)
}

// Fsck has the node check its stored log.
func (c *Client) Fsck(ctx context.Context) (f Fsck, err error) {
	return f, c.do(ctx, "GET", "/audit/fsck", nil, &f)
}

// LogKeys returns the keys of the audit log's heads.
func (c *Client) LogKeys(ctx context.Context) (keys LogKeys, err error) {
	return keys, c.do(ctx, "GET", "/keys/log", nil, &keys)
}

// Keys lists the public keys.
func (c *Client) Keys(ctx context.Context) (keys Keys, err error) {
	return keys, c.do(ctx, "GET", "/keys", nil, &keys)
}

// RotateKey replaces a key and returns the new one.
func (c *Client) RotateKey(ctx context.Context, name KeyName) (key Key, err error) {
	return key, c.do(ctx, "POST", "/keys/rotate", name, &key)
}

// SetSecret stores a secret, in place of the value that it had.
func (c *Client) SetSecret(ctx context.Context, s NewSecret) (secret Secret, err error) {
	revealed := struct {
		NewSecret
		Value string `json:"value"`
	}{s, s.Value.Reveal()}
	return secret, c.do(ctx, "POST", "/secrets", revealed, &secret)
}

// Secrets lists the secrets, without their values.
func (c *Client) Secrets(ctx context.Context) (list []Secret, err error) {
	return list, c.do(ctx, "GET", "/secrets", nil, &list)
}

// RemoveSecret destroys a stored secret.
func (c *Client) RemoveSecret(ctx context.Context, name string) error {
	return c.do(ctx, "DELETE", "/secrets/"+url.PathEscape(name), nil, nil)
}

// AddHuman registers a person, or adds groups to one.
func (c *Client) AddHuman(ctx context.Context, name string, groups []string) (h Human, err error) {
	return h, c.do(ctx, "POST", "/humans", Human{Name: name, Groups: groups}, &h)
}

// AddApprover registers a program that may answer for a group, as a demo's
// does. Its answers never count as a human's.
func (c *Client) AddApprover(ctx context.Context, name string, groups []string) (h Human, err error) {
	return h, c.do(ctx, "POST", "/humans", Human{Name: name, Groups: groups, Workload: true}, &h)
}

// Workloads lists the programs that are members of groups.
func (c *Client) Workloads(ctx context.Context) (list []Human, err error) {
	return list, c.do(ctx, "GET", "/workloads", nil, &list)
}

// RemoveMember takes a person or workload out of a group, or ends them: their
// logins, and every agent that acts for them.
func (c *Client) RemoveMember(ctx context.Context, m Member) error {
	return c.do(ctx, "POST", "/members/remove", m, nil)
}

// Humans lists the people.
func (c *Client) Humans(ctx context.Context) (list []Human, err error) {
	return list, c.do(ctx, "GET", "/humans", nil, &list)
}

// Login returns the URL of a one-time login for a person.
func (c *Client) Login(ctx context.Context, human string) (string, error) {
	var answer struct {
		URL string `json:"url"`
	}
	err := c.do(ctx, "POST", "/humans/"+url.PathEscape(human)+"/login", nil, &answer)
	return answer.URL, err
}

// Session returns the token of a session of a person, for CRETO_TOKEN: what a
// client sends over TCP.
func (c *Client) Session(ctx context.Context, human string) (t Token, err error) {
	return t, c.do(ctx, "POST", "/humans/"+url.PathEscape(human)+"/session", nil, &t)
}

// Check asks whether an agent may do something, without doing it.
func (c *Client) Check(ctx context.Context, check Check) (d Decision, err error) {
	return d, c.do(ctx, "POST", "/check", check, &d)
}

// Chain returns a chain of delegation that an agent has, or had, by its digest,
// as records name it.
func (c *Client) Chain(ctx context.Context, agent string, digest creto.Digest) (chain Chain, err error) {
	return chain, c.do(ctx, "GET", "/agents/"+url.PathEscape(agent)+"/chains/"+url.PathEscape(digest.String()), nil, &chain)
}

// Approvals lists requests for consent, in a state or all with "".
func (c *Client) Approvals(ctx context.Context, state string) (list []Approval, err error) {
	return list, c.do(ctx, "GET", "/approvals?"+url.Values{"state": {state}}.Encode(), nil, &list)
}

// Approval returns one.
func (c *Client) Approval(ctx context.Context, id string) (a Approval, err error) {
	return a, c.do(ctx, "GET", "/approvals/"+url.PathEscape(id), nil, &a)
}

// Decide answers one.
func (c *Client) Decide(ctx context.Context, id string, d Decide) (a Approval, err error) {
	return a, c.do(ctx, "POST", "/approvals/"+url.PathEscape(id), d, &a)
}

// StartRun asks for a run of an agent; the caller builds the sandbox.
func (c *Client) StartRun(ctx context.Context, r NewRun) (run Run, err error) {
	return run, c.do(ctx, "POST", "/runs", r, &run)
}

// RunStarted reports that the sandbox came up.
func (c *Client) RunStarted(ctx context.Context, id string, s RunStarted) error {
	return c.do(ctx, "POST", "/runs/"+url.PathEscape(id)+"/started", s, nil)
}

// EndRun reports that the run ended.
func (c *Client) EndRun(ctx context.Context, id string, e RunEnded) error {
	return c.do(ctx, "POST", "/runs/"+url.PathEscape(id)+"/end", e, nil)
}

// Receipts returns a page of records, the newest first.
func (c *Client) Receipts(ctx context.Context, q Query) (list []Receipt, err error) {
	return list, c.do(ctx, "GET", "/receipts?"+q.values().Encode(), nil, &list)
}

// Bundle returns the bundle of the records that q selects.
func (c *Client) Bundle(ctx context.Context, q Query) (data []byte, err error) {
	return data, c.do(ctx, "GET", "/bundle?"+q.values().Encode(), nil, &data)
}

// Log reads what a log has to be checked with: "checkpoint", or a path below
// "tile/" (C2SP tlog-tiles).
func (c *Client) Log(ctx context.Context, path string) (data []byte, err error) {
	return data, c.call(ctx, "GET", "/log/"+path, nil, &data)
}

// Proof returns what proves that a record is in the log.
func (c *Client) Proof(ctx context.Context, record string) (out Proof, err error) {
	return out, c.do(ctx, "GET", "/audit/records/"+url.PathEscape(record)+"/proof", nil, &out)
}

// Erase destroys the key of a human's personal fields in the log.
func (c *Client) Erase(ctx context.Context, e Erasure) (out Erased, err error) {
	return out, c.do(ctx, "POST", "/audit/erase", e, &out)
}

// Tail calls see with every record that q selects, from q.From on, as they come,
// until ctx ends, the node does, or see returns an error, which it returns.
func (c *Client) Tail(ctx context.Context, q Query, see func(Receipt) error) error {
	const op fault.Op = "client.Tail"
	response, err := c.send(ctx, "GET", "/api/v1/audit/tail?"+q.values().Encode(), nil)
	if err != nil {
		return fault.Wrap(op, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fault.Wrap(op, faulthttp.Read(response))
	}
	d := json.NewDecoder(response.Body)
	for {
		var r *Receipt
		if err := d.Decode(&r); err != nil {
			return fault.WrapAs(op, fault.Unavailable, err, "the node's answer broke off; go on with --from INDEX")
		}
		if r == nil {
			continue // nothing new, and the node is there
		}
		if err := see(*r); err != nil {
			return err
		}
	}
}

// maxReportBytes bounds a node's health report.
const maxReportBytes = 1 << 20

// Health returns the node's health and the HTTP status that it answers with.
func (c *Client) Health(ctx context.Context) (int, health.Report, error) {
	const op fault.Op = "client.Health"
	var report health.Report
	response, err := c.send(ctx, "GET", "/health", nil)
	if err != nil {
		return 0, report, fault.Wrap(op, err)
	}
	defer func() { _ = response.Body.Close() }()
	err = json.NewDecoder(io.LimitReader(response.Body, maxReportBytes)).Decode(&report)
	return response.StatusCode, report, fault.WrapAs(op, fault.Internal, err, "what %s answers is no report of a node's health", c.address)
}
