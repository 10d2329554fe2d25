package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	product "creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/intake"
	"creto.dev/audit/localaudit"
	"creto.dev/authz"
	"creto.dev/authz/localauthz"
	"creto.dev/consensus"
	"creto.dev/consensus/localconsensus"
	"creto.dev/gate"
	"creto.dev/internal/db"
	"creto.dev/internal/journal"
	"creto.dev/internal/logkey"
	"creto.dev/metering"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/oversight"
	"creto.dev/pqc"
	"creto.dev/pqc/localpqc"
)

// How often the cases run: as often as half a minute in all allows.
const (
	manyTimes = 20_000
	hotTimes  = 400_000
	syncTimes = 1_500
	// drainInterval is how many records wait in the log's ring before they are
	// moved into the tree, between measurements.
	drainInterval = 4000
)

// house is a node's parts, all real, in a directory of their own.
type house struct {
	dir        string
	clock      consensus.Clock
	authority  *localnhi.Authority
	authorizer *localauthz.Authorizer
	log        *localaudit.Log
	quota      *metering.Quota
	gate       *gate.Gate
	token      string
	caller     *gate.Caller
	session    authz.Session
	policies   string
	close      func() error
}

// agentsOf names the agents of a chain of that many links, the acting one last.
func agentsOf(depth int) []string {
	return []string{"boss", "helper", "bot"}[3-depth:]
}

// policyText is a set of n policies: one for humans, one for the chain's
// agents, and the others for agents that have no part in it.
func policyText(n int) string {
	var text strings.Builder
	text.WriteString("permit (principal is Creto::Human, action, resource);\n" +
		`permit (principal is Creto::Agent, action == Creto::Action::"call_model", resource is Creto::Model) when { resource.id like "gpt-*" };` + "\n")
	for i := 2; i < n; i++ {
		fmt.Fprintf(&text, `permit (principal == Creto::Agent::"other-%d", action == Creto::Action::"http_request", resource == Creto::Url::"http://shop.test/%d") when { context.method == "GET" };`+"\n", i, i)
	}
	return text.String()
}

func build(ctx context.Context, policies, depth int, limited bool) (h *house, err error) {
	h = &house{policies: policyText(policies)}
	if h.dir, err = os.MkdirTemp("", "creto-bench-"); err != nil {
		return nil, err
	}
	h.close = func() error { return os.RemoveAll(h.dir) }
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	p, silent := localpqc.New(), slog.New(slog.DiscardHandler)
	d, err := db.Open(ctx, filepath.Join(h.dir, "creto.db"))
	if err != nil {
		return nil, err
	}
	h.close = func() error { return errors.Join(d.Close(), os.RemoveAll(h.dir)) }
	if h.clock, err = localconsensus.Open(ctx, d, "bench"); err != nil {
		return nil, err
	}
	kek, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		return nil, err
	}
	if h.authority, err = localnhi.Open(ctx, localnhi.Config{TrustDomain: "bench.local", Tenant: product.DefaultTenant}, d, p, h.clock, kek); err != nil {
		return nil, err
	}
	signer, err := h.authority.CheckpointSigner(ctx, "bench.local/log")
	if err != nil {
		return nil, err
	}
	if h.log, err = localaudit.Open(ctx, localaudit.Config{Intake: intake.Config{Journal: journal.Config{Dir: h.dir}}}, d, p, h.clock, signer, kek, silent); err != nil {
		return nil, err
	}
	h.close = func() error { return errors.Join(h.log.Close(), d.Close(), os.RemoveAll(h.dir)) }
	if h.quota, err = metering.OpenQuota(ctx, d, h.clock, h.log); err != nil {
		return nil, err
	}
	// As in a node: time ticks for who checks often.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ticking := make(chan error, 1)
	go func() { ticking <- h.quota.Run(running, silent) }()
	h.close = func() error {
		stop()
		return errors.Join(<-ticking, h.log.Close(), d.Close(), os.RemoveAll(h.dir))
	}
	dir := filepath.Join(h.dir, "policies")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "bench.cedar"), []byte(h.policies), 0o600); err != nil {
		return nil, err
	}
	h.authorizer, err = localauthz.Open(dir, product.DefaultTenant, h.authority.Groups, []authz.Extension{h.quota}, func(context.Context, localauthz.Change) {})
	if err != nil {
		return nil, err
	}
	desk, err := oversight.Open(ctx, oversight.Config{}, d, h.clock, h.log, h.authority.Groups, silent)
	if err != nil {
		return nil, err
	}
	h.gate = gate.New(h.authority, p, h.clock, h.authorizer, h.log, desk, h.quota, nil)
	return h, h.populate(ctx, depth, limited)
}

// populate makes the chain, its token and its quota.
func (h *house) populate(ctx context.Context, depth int, limited bool) error {
	above := h.authority.ID(product.KindHuman, "alice")
	err := h.authority.AddMember(ctx, above)
	if err != nil {
		return err
	}
	for _, name := range agentsOf(depth) {
		agent := h.authority.ID(product.KindAgent, name)
		if err := h.authority.AddAgent(ctx, agent); err != nil {
			return err
		}
		link, err := h.authority.Draft(ctx, above, agent, nhi.Grant{Scope: nhi.Everything(), TTL: 24 * time.Hour, MaxDepth: nhi.MaxChain})
		if err != nil {
			return err
		}
		if _, err := h.authority.Delegate(ctx, link, nhi.Proof{Kind: nhi.ProofBootstrap}); err != nil {
			return err
		}
		above = agent
	}
	if h.token, _, err = h.authority.IssueToken(ctx, above, localnhi.TokenRequest{}); err != nil {
		return err
	}
	if h.caller, err = h.gate.Open(ctx, nhi.Credential{Token: h.token}); err != nil {
		return err
	}
	if h.session, err = h.authorizer.Bind(ctx, h.caller.Chain()); err != nil || !limited {
		return err
	}
	return h.quota.SetLimit(ctx, metering.Subject{Agent: above, Action: product.CallModel}, metering.Limit{Amount: 1 << 60, Window: time.Hour})
}

// drain empties the log's ring.
func (h *house) drain(ctx context.Context) error {
	_, err := h.log.Query(ctx, audit.Filter{Limit: 1})
	return err
}

func allowed() product.Action {
	return product.Action{
		Name: product.CallModel, Resource: product.Resource{Type: "Model", ID: "gpt-4o"}, Args: []byte(`{"model":"gpt-4o","messages":[]}`),
		Context: map[string]any{"method": "POST", "path": "/v1/chat/completions"},
	}
}

func refused() product.Action {
	return product.Action{Name: product.NetworkEgress, Resource: product.Resource{Type: "Host", ID: "example.com:443"}}
}

func noop(context.Context) (gate.Result, error) { return gate.Result{}, nil }

func benchGate(ctx context.Context, r *report) error {
	for _, c := range []struct {
		policies, depth int
		quota           bool
	}{{10, 1, false}, {10, 1, true}, {10, 3, true}, {100, 1, true}, {100, 3, true}} {
		if err := benchAllow(ctx, r, c.policies, c.depth, c.quota); err != nil {
			return err
		}
	}
	h, err := build(ctx, 10, 1, true)
	if err != nil {
		return err
	}
	return errors.Join(benchParts(ctx, r, h), h.close())
}

// benchAllow measures the whole path around an act that does nothing, and the
// bare engine on the same policies.
func benchAllow(ctx context.Context, r *report, policies, depth int, quota bool) error {
	h, err := build(ctx, policies, depth, quota)
	if err != nil {
		return err
	}
	setting := fmt.Sprintf("policies=%d/depth=%d", policies, depth)
	action := allowed()
	note := "caller's cost; the ring is drained in between"
	name := "do/allow/" + setting + "/quota=off"
	if quota {
		name = "do/allow/" + setting + "/quota=on"
	}
	cases := []bench{{name: name, who: creto, n: manyTimes, interval: drainInterval, note: note,
		rest: func() error { return h.drain(ctx) },
		do: func() error {
			_, err := h.gate.Do(ctx, h.caller, action, noop)
			return err
		}}}
	if quota {
		request := authz.Request{Action: action.Name, Resource: action.Resource, Context: action.Context}
		cases = append(cases, bench{name: "authz/" + setting, who: creto, n: manyTimes, note: "Peek, with the quota",
			do: func() error {
				d, err := h.authorizer.Peek(ctx, h.session, request)
				if err == nil && d.Kind != authz.Allow {
					return errors.New(d.Reason)
				}
				return err
			}})
		peer, err := cedarPeer("authz/"+setting, h.policies, depth, action)
		if err != nil {
			return errors.Join(err, h.close())
		}
		cases = append(cases, peer)
	}
	return errors.Join(measureAll(ctx, r, cases), h.close())
}

func measureAll(ctx context.Context, r *report, cases []bench) error {
	for _, c := range cases {
		row, err := c.measure(ctx)
		if err != nil {
			return err
		}
		r.add(row)
	}
	return nil
}

// cedarPeer is the bare engine: one evaluation for each principal of the chain,
// on entities and a context that are there already.
func cedarPeer(name, policies string, depth int, action product.Action) (bench, error) {
	set, err := cedar.NewPolicySetFromBytes("bench.cedar", []byte(policies))
	if err != nil {
		return bench{}, err
	}
	context := make(cedar.RecordMap)
	for key, value := range action.Context {
		text, ok := value.(string)
		if !ok {
			return bench{}, fmt.Errorf("the context holds a %T", value)
		}
		context[types.String(key)] = types.String(text)
	}
	resource := cedar.NewEntityUID("Creto::Model", types.String(action.Resource.ID))
	entities := types.EntityMap{resource: {UID: resource, Attributes: cedar.NewRecord(cedar.RecordMap{"id": types.String(action.Resource.ID)})}}
	principals := []cedar.EntityUID{cedar.NewEntityUID("Creto::Human", "alice")}
	for _, agent := range agentsOf(depth) {
		principals = append(principals, cedar.NewEntityUID("Creto::Agent", types.String(agent)))
	}
	var requests []cedar.Request
	for _, p := range principals {
		entities[p] = types.Entity{UID: p}
		requests = append(requests, cedar.Request{
			Principal: p, Action: cedar.NewEntityUID("Creto::Action", types.String(action.Name)), Resource: resource, Context: cedar.NewRecord(context),
		})
	}
	return bench{name: name, who: "cedar-go", n: manyTimes, note: "one Authorize for each principal, everything built before", do: func() error {
		for _, request := range requests {
			if decision, _ := cedar.Authorize(set, entities, request); decision != cedar.Allow {
				return errors.New("denied")
			}
		}
		return nil
	}}, nil
}

// benchParts measures what the path consists of, and what one would use
// otherwise.
func benchParts(ctx context.Context, r *report, h *house) error {
	file, err := os.OpenFile(filepath.Join(h.dir, "peer.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	lines := slog.New(slog.NewJSONHandler(file, nil))
	line := func() error {
		e := example(h)
		lines.LogAttrs(ctx, slog.LevelInfo, "action",
			slog.String(logkey.RecordID, product.NewUUID().String()), slog.String(logkey.Agent, e.Who.String()), slog.String(logkey.Principal, e.OnBehalfOf.String()),
			slog.String(keyChain, e.Chain.String()), slog.String(logkey.Action, e.What), slog.String(logkey.Resource, e.Resource),
			slog.String(logkey.Digest, e.Args.String()), slog.String(logkey.Outcome, string(e.Outcome)), slog.String(logkey.Decision, e.Decision.Kind),
			slog.String(logkey.PolicyID, e.Decision.Policies[0].ID), slog.String(logkey.PolicyVersion, e.Decision.Version.String()))
		return nil
	}
	drain := func() error { return h.drain(ctx) }
	logs := func(outcome audit.Outcome) func() error {
		return func() error {
			e := example(h)
			e.ID, e.Outcome = product.NewUUID(), outcome
			_, err := h.log.Log(ctx, e)
			return err
		}
	}
	request := authz.Request{Action: product.CallModel}
	quota, err := h.quota.Bind(ctx, h.caller.Chain())
	if err != nil {
		return err
	}
	action := refused()
	cases := []bench{
		{name: "do/deny", who: creto, n: syncTimes, rest: drain, interval: drainInterval, note: "a durable record: its own fdatasync in " + filesystem(h.dir), do: func() error {
			if _, err := h.gate.Do(ctx, h.caller, action, noop); err == nil {
				return errors.New("allowed")
			}
			return nil
		}},
		{name: "open/warm", who: creto, n: hotTimes, do: func() error { _, err := h.gate.Open(ctx, nhi.Credential{Token: h.token}); return err }},
		{name: "resolve/warm", who: creto, n: hotTimes, note: "budget 1 µs, 0 allocations", do: func() error { _, err := h.authority.Resolve(ctx, nhi.Credential{Token: h.token}); return err }},
		{name: "consensus/now", who: creto, n: hotTimes, note: "budget 100 ns", do: func() error { _, err := h.clock.Now(ctx); return err }},
		{name: "quota/reserve+commit", who: creto, n: hotTimes, note: "budget 100 ns", do: func() error {
			held, _, err := quota.Evaluate(ctx, request, true)
			h.quota.Commit(held)
			return err
		}},
		{name: "audit/log", who: creto, n: manyTimes, rest: drain, interval: drainInterval, note: "budget 2 µs; survives the process; without the drain", do: logs(audit.Success)},
		{name: "audit/log", who: "slog-file", n: manyTimes, note: "the same facts as a JSON line, one write each; survives the process", do: line},
		{name: "audit/log+drain", who: creto, n: manyTimes, note: "with every 100 records moved into the Merkle tree and SQLite, as CPU and throughput; one transaction each", do: every(100, logs(audit.Success), drain)},
		{name: "audit/log-durable", who: creto, n: syncTimes, rest: drain, interval: drainInterval, note: "one caller: nobody to share the fdatasync with", do: logs(audit.Denied)},
		{name: "audit/log-durable", who: "slog-file", n: syncTimes, note: "the JSON line and an fdatasync", do: func() error {
			return errors.Join(line(), syscall.Fdatasync(int(file.Fd())))
		}},
	}
	if err := measureAll(ctx, r, cases); err != nil {
		return err
	}
	last := &r.Rows[len(r.Rows)-1]
	last.Note = joined(last.Note, fmt.Sprintf("in every sample of this report: %v of reading the clock", clockOverhead()))
	if first := &r.Rows[0]; first.Who == creto {
		first.RSS = rss()
		first.Note = joined(first.Note, "RSS is of the whole run, at its end")
	}
	return nil
}

// every does also after each n calls of do.
func every(n int, do, also func() error) func() error {
	count := 0
	return func() error {
		if count++; count%n == 0 {
			return errors.Join(do(), also())
		}
		return do()
	}
}

// keyChain is a fact that the product puts into no log line.
const keyChain = "chain"

// example is the record of an allowed model call.
func example(h *house) audit.Record {
	chain := h.caller.Chain()
	return audit.Record{
		Who: chain.Agent(), OnBehalfOf: chain.Human(), Chain: chain.Digest(), What: product.CallModel, Resource: "Model::gpt-4o",
		Args: chain.Digest(), Outcome: audit.Success,
		Decision: &audit.Decision{Kind: "allow", Version: chain.Digest(), Policies: []audit.PolicyRef{{ID: "bench#1", Digest: chain.Digest()}}},
	}
}

// filesystem names what dir is on, which is what fdatasync's price depends on.
func filesystem(dir string) string {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return fs.ErrInvalid.Error()
	}
	names := map[int64]string{0xef53: "ext4", 0x01021994: "tmpfs", 0x794c7630: "overlayfs", 0x9123683e: "btrfs", 0x58465342: "xfs"}
	if name, ok := names[int64(s.Type)]; ok { //nolint:unconvert // its width differs between machines
		return name
	}
	return fmt.Sprintf("a file system of type %#x", s.Type)
}
