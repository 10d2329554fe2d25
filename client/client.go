// Package client administers a running node from another process, over its
// Unix socket or over TCP with a token. The command line is its first user.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
	"creto.dev/nhi"
)

// SocketName is the administrator's socket in a node's data directory.
const SocketName = "creto.sock"

// TenantHeader names the tenant that a request over the socket is about.
const TenantHeader = "Creto-Tenant"

// maxResponseBytes bounds what a node may answer.
const maxResponseBytes = 256 << 20

// Client talks to one node. Safe for concurrent use.
type Client struct {
	http    *http.Client
	address string // as a person knows it
	base    string
	token   creto.Secret
	tenant  string
}

// New returns a client of the node at address: the path of a Unix socket, or a
// http:// or https:// URL, for which token is sent.
//
// Errors: InvalidArgument (Permanent).
func New(address string, token creto.Secret) (*Client, error) {
	// A redirect would carry the token, or another method, elsewhere.
	plain := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if strings.HasPrefix(address, "http://") || strings.HasPrefix(address, "https://") {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return nil, fault.New("client.New", fault.InvalidArgument, "%q is not an address such as http://localhost:7300", address)
		}
		return &Client{http: plain, address: address, base: strings.TrimSuffix(address, "/"), token: token}, nil
	}
	path := strings.TrimPrefix(address, "unix:")
	plain.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	return &Client{http: plain, address: path, base: "http://creto"}, nil
}

// For returns a client of the same node for the things of a tenant; "" is the
// tenant of whoever calls. Only the owner of the node's data directory may choose.
func (c *Client) For(tenant string) *Client {
	other := *c
	other.tenant = tenant
	return &other
}

// Close closes idle connections. Calls under way go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status is what a node says of itself.
type Status struct {
	Version     string       `json:"version"`
	PID         int          `json:"pid"`
	Listen      string       `json:"listen"`
	Console     string       `json:"console"`
	DataDir     string       `json:"data_dir"`
	Root        creto.Digest `json:"root"`
	TrustDomain string       `json:"trust_domain"`
	Tenant      string       `json:"tenant"`
}

// Tenant is a set of principals, policies and records that sees nothing of any
// other.
type Tenant struct {
	Name string `json:"name"`
	// PolicyDir holds its policies.
	PolicyDir string `json:"policy_dir,omitempty"`
}

// Agent is an agent and on whose behalf it acts.
type Agent struct {
	Name       string `json:"name"`
	ID         string `json:"id"`
	OnBehalfOf string `json:"on_behalf_of,omitempty"`
	Active     bool   `json:"active"`
	PolicyFile string `json:"policy_file,omitempty"`
	Policy     string `json:"policy,omitempty"`
	// Waits is the delegation that its human has yet to confirm.
	Waits *Delegation `json:"waits,omitempty"`
}

// Delegation is one that waits, or waited, for its human.
type Delegation struct {
	ID string `json:"id"`
	// State is pending, confirmed, declined or expired.
	State      string `json:"state"`
	Agent      string `json:"agent"`
	OnBehalfOf string `json:"on_behalf_of"`
	// URL is where the human confirms it, until Expires.
	URL     string    `json:"url"`
	Expires time.Time `json:"expires"`
}

// Revocation ends what agents were given, at once, and all below it. It names
// one thing.
type Revocation struct {
	// Delegation is an agent whose newest delegation ends; it stays registered
	// and can be delegated to again.
	Delegation string `json:"delegation,omitempty"`
	// OnBehalfOf is a human whose agents are all revoked, however far below.
	OnBehalfOf string `json:"on_behalf_of,omitempty"`
	// All revokes every agent of the tenant.
	All bool `json:"all,omitempty"`
}

// Revoked names the agents that lost what they were given directly.
type Revoked struct {
	Agents []string `json:"agents"`
}

// Key is a key of the node without its secret.
type Key struct {
	ID        string `json:"id"`
	Role      string `json:"role"`
	Owner     string `json:"owner"` // a SPIFFE id, or "platform"
	Algorithm string `json:"algorithm"`
	// Public is the public key as its algorithm encodes it; a certificate in
	// DER for a certificate authority.
	Public  []byte    `json:"public"`
	Created time.Time `json:"created"`
	// Retired is when it was replaced; what it signed until then still verifies.
	Retired time.Time `json:"retired,omitzero"`
}

// Keys are the public keys of a tenant, and, for the node's own tenant, of the
// platform with the fingerprint of its root.
type Keys struct {
	Root creto.Digest `json:"root"`
	Keys []Key        `json:"keys"`
}

// Fsck is what checking the stored log found.
type Fsck struct {
	// Size and Root are the tree's, the root computed from the records.
	Size int64  `json:"size"`
	Root string `json:"root"`
	// Records are those that are still in the database, Tiles those of all levels,
	// and Heads the ones seen earlier that were compared.
	Records int64 `json:"records"`
	Tiles   int64 `json:"tiles"`
	Heads   int   `json:"heads"`
	// Problems are what is wrong, the first MaxProblems of Found.
	Problems []Problem `json:"problems"`
	Found    int       `json:"found"`
}

// MaxProblems bounds how many problems are told.
const MaxProblems = 1000

// Problem is one thing that is wrong with the stored log.
type Problem struct {
	// Place is what it is with, such as record 7 or tile 0/3.
	Place  string `json:"place"`
	Reason string `json:"reason"`
}

// LogKeys are what the audit log's heads are verified with, as verifier keys of
// C2SP signed-note.
type LogKeys struct {
	Origin string `json:"origin"`
	// Ed25519 is what witnesses and monitors take; Composite what receipts hang
	// on.
	Ed25519   string `json:"ed25519"`
	Composite string `json:"composite"`
}

// KeyName names a key to replace: a role of the platform, or an agent.
type KeyName struct {
	Role  string `json:"role,omitempty"`
	Agent string `json:"agent,omitempty"`
}

// NewAgent asks for an agent.
type NewAgent struct {
	Name string `json:"name"`
	// OnBehalfOf is the name of a human, or agent:NAME.
	OnBehalfOf string `json:"on_behalf_of"`
	// Allow holds ACTION=RESOURCE-GLOB rules, Ask the same with the group to
	// ask behind a comma: ACTION=RESOURCE-GLOB,GROUP.
	Allow []string `json:"allow,omitempty"`
	Ask   []string `json:"ask,omitempty"`
	// Quota holds ACTION=AMOUNT/WINDOW, such as call_model=100/1h.
	Quota []string `json:"quota,omitempty"`
	// TTL is how long the delegation lasts. 0 means 90 days.
	TTL time.Duration `json:"ttl,omitempty"`
	// Actions and Resources bound what is passed on, whatever policies allow: a
	// pattern is exact text or a prefix and one '*', resources are Type::id.
	// None means everything.
	Actions   []string `json:"actions,omitempty"`
	Resources []string `json:"resources,omitempty"`
	// Depth is how many further agents may be delegated to below. nil means 4.
	Depth *uint `json:"depth,omitempty"`
	// Proof is "bootstrap" if who holds the data directory answers for the
	// human, who then need not confirm it; "" asks a human who can.
	Proof string `json:"proof,omitempty"`
	// Remote is set by the listener: the request came over TCP.
	Remote bool `json:"-"`
}

// Secret is a secret without its value.
type Secret struct {
	Name string `json:"name"`
	// From is where the value is: "store", or what the configuration says.
	From string `json:"from"`
	// Version counts how often a stored value was set.
	Version int64 `json:"version,omitempty"`
	// Owner set it; agents may have it, and none means that policy alone
	// decides.
	Owner  string    `json:"owner,omitempty"`
	Agents []string  `json:"agents"`
	Set    time.Time `json:"set,omitzero"`
}

// NewSecret stores a secret. Marshalled, its value is ***.
type NewSecret struct {
	Name   string       `json:"name"`
	Value  creto.Secret `json:"value"`
	Agents []string     `json:"agents,omitempty"`
}

// Human is a person.
type Human struct {
	Name   string   `json:"name"`
	ID     string   `json:"id"`
	Groups []string `json:"groups"`
	// Workload says that it is a program and no person.
	Workload bool `json:"workload,omitempty"`
}

// Member is a person or workload, and a group to leave.
type Member struct {
	Name     string `json:"name"`
	Workload bool   `json:"workload,omitempty"`
	// Group is what they leave; "" ends them altogether.
	Group string `json:"group,omitempty"`
}

// Token is an access token.
type Token struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// Check asks what an agent may do.
type Check struct {
	Agent    string         `json:"agent"`
	Action   string         `json:"action"`
	Resource string         `json:"resource"`
	Context  map[string]any `json:"context,omitempty"`
}

// Chain is a chain of delegation that an agent has, or had.
type Chain struct {
	Digest creto.Digest `json:"digest"`
	// Links are the delegations, the human's first.
	Links []ChainLink `json:"links"`
	// Groups are those of its principals now, by SPIFFE id.
	Groups map[string][]string `json:"groups"`
}

// ChainLink is one delegation.
type ChainLink struct {
	From  string    `json:"from"` // a SPIFFE id
	To    string    `json:"to"`
	Scope nhi.Scope `json:"scope"`
}

// Decision is the answer.
type Decision struct {
	Decision string         `json:"decision"`
	Reason   string         `json:"reason,omitempty"`
	Policies []string       `json:"policies,omitempty"`
	Ask      string         `json:"ask,omitempty"`
	Version  creto.Digest   `json:"policy_version"`
	Chain    []string       `json:"chain"`
	Context  map[string]any `json:"context,omitempty"`
	// Explanation says how it came to that.
	Explanation *authz.Explanation `json:"explanation,omitempty"`
}

// Approval is a request for a human's consent.
type Approval struct {
	ID         string            `json:"id"`
	State      string            `json:"state"`
	Agent      string            `json:"agent"`
	OnBehalfOf string            `json:"on_behalf_of"`
	Action     string            `json:"action"`
	Resource   string            `json:"resource"`
	Args       string            `json:"args"`
	Digest     creto.Digest      `json:"digest"`
	Policy     string            `json:"policy"`
	Approvers  string            `json:"approvers"`
	Quorum     int               `json:"quorum,omitempty"`    // of humans who are asked, one after the other
	Consented  []string          `json:"consented,omitempty"` // their names, of those who did before
	Context    map[string]string `json:"context,omitempty"`
	Created    time.Time         `json:"created"`
	Expires    time.Time         `json:"expires"`
	DecidedBy  string            `json:"decided_by,omitempty"`
	Reason     string            `json:"reason,omitempty"`
}

// Decide answers an approval as a person.
type Decide struct {
	Approve bool   `json:"approve"`
	As      string `json:"as"`
	Reason  string `json:"reason,omitempty"`
	// Auto says that a program decides, as the workload As.
	Auto bool `json:"auto,omitempty"`
	// Remote is set by the listener: the answer came over TCP.
	Remote bool `json:"-"`
}

// Run is a sandboxed run of an agent.
type Run struct {
	ID         string `json:"id"`
	GatewayDir string `json:"gateway_dir"`
}

// NewRun asks to start a program as an agent.
type NewRun struct {
	Agent     string   `json:"agent"`
	Isolation string   `json:"isolation"`
	Engine    string   `json:"engine"`
	Command   []string `json:"command"`
	Dir       string   `json:"dir"`
	Write     []string `json:"write,omitempty"`
	// PID is of the supervisor, whose death ends the run.
	PID int `json:"pid"`
}

// RunStarted and RunEnded report what became of it.
type RunStarted struct {
	StartNS    int64        `json:"start_ns"`
	Config     creto.Digest `json:"config"`
	Unenforced []string     `json:"unenforced,omitempty"`
}

// RunEnded reports how a run ended.
type RunEnded struct {
	ExitCode int    `json:"exit_code"`
	Error    string `json:"error,omitempty"`
}

// Receipt is a record and its place in the log.
type Receipt struct {
	Index  int64        `json:"index"`
	Record audit.Record `json:"record"`
	// Leaf is the leaf of the log's tree, where the query asked for it.
	Leaf []byte `json:"leaf,omitempty"`
}

// Proof proves that a record is in the log: RFC 6962 against a signed head.
type Proof struct {
	Index int64    `json:"index"`
	Size  int64    `json:"size"` // of the tree
	Leaf  []byte   `json:"leaf"`
	Proof [][]byte `json:"proof"`
	// Checkpoint is the signed note.
	Checkpoint string `json:"checkpoint"`
}

// Erasure names a human who is to be unreadable in the log from now on.
type Erasure struct {
	Human string `json:"human"`
}

// Erased is what became of an Erasure.
type Erased struct {
	// Pseudonym is what the log calls the human for ever.
	Pseudonym creto.ID `json:"pseudonym"`
}

// Query selects receipts, as audit.Filter does.
type Query struct {
	Agent    string // who acted
	Human    string // who acted, or on whose behalf
	What     string
	Resource string
	Outcome  string
	// Record is one record's id; nothing else counts then but Disclose.
	Record       string
	Since, Until time.Time
	Before       int64
	// Oldest has the page go by index from From on.
	Oldest bool
	From   int64
	Limit  int
	// Disclose has a bundle open what is personal in it.
	Disclose bool
	// Leaf has each record come with its leaf.
	Leaf bool
}

func (q Query) values() url.Values {
	v := url.Values{}
	set := func(key, value string) {
		if value != "" && value != "0" && value != "false" {
			v.Set(key, value)
		}
	}
	set("agent", q.Agent)
	set("human", q.Human)
	set("what", q.What)
	set("resource", q.Resource)
	set("outcome", q.Outcome)
	set("record", q.Record)
	for key, t := range map[string]time.Time{"since": q.Since, "until": q.Until} {
		if !t.IsZero() {
			v.Set(key, t.Format(time.RFC3339Nano))
		}
	}
	set("before", strconv.FormatInt(q.Before, 10))
	set("oldest", strconv.FormatBool(q.Oldest))
	set("from", strconv.FormatInt(q.From, 10))
	set("limit", strconv.Itoa(q.Limit))
	set("disclose", strconv.FormatBool(q.Disclose))
	set("leaf", strconv.FormatBool(q.Leaf))
	return v
}

// send sends one request. in is sent as JSON unless nil.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	const op fault.Op = "client.send"
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the request cannot be encoded")
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the request cannot be made")
	}
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.tenant != "" {
		request.Header.Set(TenantHeader, c.tenant)
	}
	if !c.token.IsZero() {
		request.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	response, err := c.http.Do(request)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil, fault.Wrap(op, err)
	}
	return response, fault.WrapAs(op, fault.Unavailable, err, "no node answers at %s", c.address)
}

// do calls the administrator's API.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	return c.call(ctx, method, "/api/v1"+path, in, out)
}

// call sends a request. out is filled from JSON, or is a *[]byte for the body as
// it is.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	const op fault.Op = "client.do"
	response, err := c.send(ctx, method, path, in)
	if err != nil {
		return fault.Wrap(op, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode >= http.StatusBadRequest {
		return fault.Wrap(op, faulthttp.Read(response))
	}
	if response.StatusCode != http.StatusOK {
		return fault.New(op, fault.Internal, "what answers at %s is no node of Creto: status %d", c.address, response.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxResponseBytes+1))
	if err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the node's answer broke off")
	}
	if len(data) > maxResponseBytes {
		return fault.New(op, fault.ResourceExhausted, "the node's answer is larger than %d MiB; ask for less", maxResponseBytes>>20)
	}
	switch target := out.(type) {
	case nil:
		return nil
	case *[]byte:
		*target = data
		return nil
	}
	return fault.WrapAs(op, fault.Internal, json.Unmarshal(data, out), "the node's answer cannot be read")
}
