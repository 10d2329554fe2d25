package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	product "creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/localauthz"
	"creto.dev/authz/remoteauthz"
	"creto.dev/call"
	"creto.dev/metering"
	"creto.dev/nhi"
	"creto.dev/nhi/localnhi"
	"creto.dev/pqc/localpqc"
)

// What authorization is measured on.
const (
	authzChains = 64 // of callers, each with teams of its own
	hotProbes   = 64
	spread      = 4096
	// checkTimes are so many that what the machine does for some 10 ms is not what
	// the median tells.
	checkTimes = 400_000
	// agreeProbes are how many requests all contestants must answer alike first.
	agreeProbes = 120
	// peerTime is about how long one case of a peer takes.
	peerTime = 250 * time.Millisecond
)

// rule is one policy, in terms that every contestant can say.
type rule struct {
	forbid   bool
	team     int
	action   string
	resource product.Resource
	prefix   bool // the resource's id is a beginning
}

// probe is a request of one of the chains.
type probe struct {
	id      int // its place in the estate's, so that peers find what they built for it; -1 if it has none
	chain   int
	request authz.Request
}

// estate is a set of rules, the chains that they speak of, and requests. Each
// resource is permitted to five teams and forbidden to the last of them, and the
// principals of a chain are each in another team, so that nobody's rule is enough
// for anybody else.
type estate struct {
	rules  []rule
	teams  int
	depth  int
	chains int
	all    []probe // all are allowed
}

// kinds are the actions, with the type of their resources.
var kinds = []struct{ action, resource string }{{product.CallModel, "Model"}, {product.CallTool, "Tool"}, {product.AccessSecret, "Secret"}}

const (
	rulesPerResource = 6
	// shelfEvery is how many resources there are to one that is a shelf: all whose
	// ids begin as it does.
	shelfEvery = 8
)

func newEstate(n, depth, chains int) *estate {
	resources := n / rulesPerResource
	e := &estate{teams: max(rulesPerResource, resources/8), depth: depth, chains: chains}
	for j := range resources {
		kind := kinds[j%len(kinds)]
		r := rule{action: kind.action, resource: product.Resource{Type: kind.resource, ID: fmt.Sprintf("resource-%d", j)}}
		if j%shelfEvery == shelfEvery-1 {
			r.resource.ID, r.prefix = fmt.Sprintf("shelf-%d/", j), true
		}
		for k := range rulesPerResource - 1 {
			r.team = (j + k) % e.teams
			e.rules = append(e.rules, r)
		}
		r.forbid = true
		e.rules = append(e.rules, r)
	}
	// The rest is of nobody; but where there are too few resources for one in eight
	// to be a shelf it is one, so that estates of all sizes are asked for the same.
	rest := len(e.rules)
	for i := rest; i < n; i++ {
		r := rule{team: e.teams, action: product.CallModel, resource: product.Resource{Type: "Model", ID: fmt.Sprintf("other-%d", i)}}
		if resources < shelfEvery {
			r = rule{team: i - rest, action: product.CallModel, resource: product.Resource{Type: "Model", ID: "shelf-0/"}, prefix: true}
		}
		e.rules = append(e.rules, r)
	}
	for i := range spread {
		chain := i % chains
		// Resources whose first team is that of the chain's first principal.
		first := e.team(chain, 0)
		for first >= resources {
			first -= e.teams
		}
		count := (resources - first + e.teams - 1) / e.teams
		asked := (first + i/chains%count*e.teams) * rulesPerResource
		if resources < shelfEvery && i/chains%shelfEvery == shelfEvery-1 {
			asked = rest
		}
		e.all = append(e.all, probe{i, chain, e.request(asked, i)})
	}
	return e
}

// request asks for what the nth rule names, in bytes of its own, as requests come.
func (e *estate) request(rule, suffix int) authz.Request {
	r := e.rules[rule]
	if r.resource.ID = strings.Clone(r.resource.ID); r.prefix {
		r.resource.ID += fmt.Sprint(suffix)
	}
	return authz.Request{Action: r.action, Resource: r.resource}
}

// team is whose the nth principal of a chain is.
func (e *estate) team(chain, principal int) int {
	resources := len(e.rules) / rulesPerResource
	return (chain%min(e.teams, resources) + principal) % e.teams
}

// principals names those of a chain, the human first.
func principals(chain, depth int) []string {
	names := []string{fmt.Sprintf("human-%d", chain)}
	for i := range max(depth, 1) {
		names = append(names, fmt.Sprintf("agent-%d-%d", chain, i))
	}
	return names
}

// groups returns the teams of a principal by name.
func (e *estate) groups() map[string]string {
	groups := make(map[string]string)
	for chain := range e.chains {
		for i, name := range principals(chain, e.depth) {
			groups[name] = fmt.Sprintf("team-%d", e.team(chain, i))
		}
	}
	return groups
}

// groupsOf is how an authorizer asks for them.
func (e *estate) groupsOf() localauthz.GroupsOf {
	teams := e.groups()
	return func(_ context.Context, id product.ID) ([]string, error) { return []string{teams[id.Name]}, nil }
}

// cedarText writes the rules as policies, each with the condition too if there is
// one.
func (e *estate) cedarText(condition string) string {
	var text strings.Builder
	for _, r := range e.rules {
		effect, conditions := "permit", slices.DeleteFunc([]string{condition}, func(s string) bool { return s == "" })
		if r.forbid {
			effect = "forbid"
		}
		resource := fmt.Sprintf("== Creto::%s::%q", r.resource.Type, r.resource.ID)
		if r.prefix {
			resource = "is Creto::" + r.resource.Type
			conditions = append(conditions, fmt.Sprintf("resource.id like %q", r.resource.ID+"*"))
		}
		fmt.Fprintf(&text, "%s (principal in Creto::Group::\"team-%d\", action == Creto::Action::%q, resource %s)", effect, r.team, r.action, resource)
		if len(conditions) > 0 {
			fmt.Fprintf(&text, " when { %s }", strings.Join(conditions, " && "))
		}
		text.WriteString(";\n")
	}
	return text.String()
}

// decider is a contestant: it says whether a request is allowed. Not safe for
// concurrent use.
type decider func(probe) (bool, error)

// fleet is the chains of a depth, verified, in a node's parts.
type fleet struct {
	house  *house
	chains []nhi.VerifiedChain
}

// openFleet makes the chains, and gives the agents quotas that they never reach.
func openFleet(ctx context.Context, depth, chains int) (c *fleet, err error) {
	// The parts' own policies are not used.
	c = &fleet{}
	if c.house, err = build(ctx, 10, 1, false); err != nil {
		return nil, err
	}
	for chain := range chains {
		if err := c.add(ctx, principals(chain, depth)); err != nil {
			return nil, errors.Join(err, c.house.close())
		}
	}
	return c, nil
}

// add makes a chain and verifies it.
func (c *fleet) add(ctx context.Context, names []string) error {
	authority := c.house.authority
	above := authority.ID(product.KindHuman, names[0])
	if err := authority.AddMember(ctx, above); err != nil {
		return err
	}
	for _, name := range names[1:] {
		agent := authority.ID(product.KindAgent, name)
		if err := authority.AddAgent(ctx, agent); err != nil {
			return err
		}
		link, err := authority.Draft(ctx, above, agent, nhi.Grant{Scope: nhi.Everything(), TTL: 24 * time.Hour, MaxDepth: nhi.MaxChain})
		if err != nil {
			return err
		}
		if _, err := authority.Delegate(ctx, link, nhi.Proof{Kind: nhi.ProofBootstrap}); err != nil {
			return err
		}
		above = agent
	}
	token, _, err := authority.IssueToken(ctx, above, localnhi.TokenRequest{})
	if err != nil {
		return err
	}
	caller, err := c.house.gate.Open(ctx, nhi.Credential{Token: token})
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		if err := c.house.quota.SetLimit(ctx, metering.Subject{Agent: above, Action: kind.action}, metering.Limit{Amount: 1 << 40, Window: time.Hour}); err != nil {
			return err
		}
	}
	c.chains = append(c.chains, caller.Chain())
	return nil
}

// checker decides with Creto.
type checker struct {
	authorizer *localauthz.Authorizer
	chains     []nhi.VerifiedChain
	sessions   []authz.Session
	quota      *metering.Quota // nil without
	held       []authz.Reservation
	stop       func() // ends what runs beside, as in a node
}

func (c *fleet) checker(ctx context.Context, e *estate, policies string, limited bool) (*checker, error) {
	h := &checker{chains: c.chains}
	var extensions []authz.Extension
	if limited {
		h.quota = c.house.quota
		extensions = append(extensions, h.quota)
	}
	dir, err := os.MkdirTemp(c.house.dir, "authz-")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "bench.cedar"), []byte(policies), 0o600); err != nil {
		return nil, err
	}
	h.authorizer, err = localauthz.Open(dir, product.DefaultTenant, e.groupsOf(), extensions, func(context.Context, localauthz.Change) {})
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { _ = h.authorizer.Run(running) }) // it returns nil
	h.stop = func() { cancel(); group.Wait() }
	for _, chain := range c.chains {
		s, err := h.authorizer.Bind(ctx, chain)
		if err != nil {
			h.stop()
			return nil, err
		}
		h.sessions = append(h.sessions, s)
	}
	return h, nil
}

// session decides from a session that is bound already.
func (h *checker) session(ctx context.Context) decider {
	return func(p probe) (bool, error) {
		d, err := h.authorizer.Check(ctx, h.sessions[p.chain], p.request)
		return h.answer(d, err)
	}
}

// strings decides from a chain as it came: it is bound for each request.
func (h *checker) strings(ctx context.Context) decider {
	return func(p probe) (bool, error) {
		s, err := h.authorizer.Bind(ctx, h.chains[p.chain])
		if err != nil {
			return false, err
		}
		d, err := h.authorizer.Check(ctx, s, p.request)
		return h.answer(d, err)
	}
}

func (h *checker) answer(d authz.Decision, err error) (bool, error) {
	if d.Reservation != (authz.Reservation{}) {
		h.held = append(h.held, d.Reservation)
	}
	return d.Kind == authz.Allow, err
}

// settle commits what was reserved since.
func (h *checker) settle() error {
	for _, r := range h.held {
		h.quota.Commit(r)
	}
	h.held = h.held[:0]
	return nil
}

// sizes are how many policies there are.
var sizes = []int{10, 100, 1000, 10_000}

// settleEvery is how many reservations are held at most, as if so many actions were
// under way.
const settleEvery = 1024

// benchAuthz compares full evaluations with those of engines on the same policies.
// depth=0 is an agent under a human's own link, depth=3 two agents between them.
func benchAuthz(ctx context.Context, r *report) error {
	for _, depth := range []int{0, 3} {
		c, err := openFleet(ctx, depth, authzChains)
		if err != nil {
			return err
		}
		for _, n := range sizes {
			if err := benchEstate(ctx, r, c, newEstate(n, depth, authzChains)); err != nil {
				return errors.Join(fmt.Errorf("%d policies, depth %d: %w", n, depth, err), c.house.close())
			}
		}
		if depth > 0 {
			if err := benchFlat(ctx, r, c, depth); err != nil {
				return errors.Join(err, c.house.close())
			}
		}
		if err := c.house.close(); err != nil {
			return err
		}
	}
	return nil
}

func benchEstate(ctx context.Context, r *report, c *fleet, e *estate) error {
	for _, limited := range []bool{true, false} {
		h, err := c.checker(ctx, e, e.cedarText(""), limited)
		if err != nil {
			return err
		}
		err = benchCreto(ctx, r, e, h)
		h.stop() // peers have nothing beside them
		if err == nil && !limited {
			err = benchPeers(ctx, r, e, h.session(ctx))
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(benchSwap(ctx, r, c, e), benchConditions(ctx, r, c, e), benchWire(ctx, r, c, e))
}

// setting names the size of an estate.
func (e *estate) setting() string { return fmt.Sprintf("n=%d/depth=%d", len(e.rules), e.depth) }

func benchCreto(ctx context.Context, r *report, e *estate, h *checker) error {
	setting := e.setting()
	off := ""
	if h.quota == nil {
		off = "/quota=off"
	}
	for _, pattern := range []string{"hot", "spread"} {
		for _, c := range []struct {
			name string
			do   decider
			note string
		}{
			{"session", h.session(ctx), "Check from a session; budget 168 ns, 0 allocations"},
			{"strings", h.strings(ctx), "Bind and Check; budget 250 ns"},
		} {
			b := contest(c.name+"/"+setting+"/"+pattern+off, creto, c.note, e.probes(pattern), c.do)
			b.rest, b.interval = h.settle, settleEvery
			if err := measureAll(ctx, r, []bench{b}); err != nil {
				return err
			}
		}
	}
	if h.quota == nil {
		return benchCores(ctx, r, e, h)
	}
	return nil
}

// probes are the requests of a pattern.
func (e *estate) probes(pattern string) []probe {
	probes := slices.Clone(e.all)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(probes), func(i, j int) { probes[i], probes[j] = probes[j], probes[i] })
	if pattern == "hot" {
		probes = probes[:hotProbes]
	}
	return probes
}

// contest measures one contestant on probes that are all allowed, in turn.
func contest(name, who, note string, probes []probe, do decider) bench {
	next := 0
	return bench{name: name, who: who, note: note, n: checkTimes, do: func() error {
		p := probes[next%len(probes)] // a power of 2
		next++
		if ok, err := do(p); err != nil || !ok {
			return fmt.Errorf("%s on %s is denied: %w", p.request.Action, p.request.Resource, err)
		}
		return nil
	}}
}

// condition is what every policy asks of the context in the cases context/….
const condition = `context.method == "POST" && context.amount < 1000`

// requestContext is what an action comes with.
func requestContext() map[string]any {
	return map[string]any{
		"method": "POST", "path": "/v1/orders", "amount": json.Number("250"), "isolation": "gvisor",
		"body": map[string]any{"currency": "EUR", "items": []any{json.Number("1"), json.Number("2")}},
	}
}

// benchConditions measures policies that read a context, as JSON was decoded.
func benchConditions(ctx context.Context, r *report, c *fleet, e *estate) error {
	h, err := c.checker(ctx, e, e.cedarText(condition), true)
	if err != nil {
		return err
	}
	defer h.stop()
	facts := requestContext()
	check := h.session(ctx)
	b := contest("context/"+e.setting()+"/spread", creto, "Check from a session; every policy reads two values", e.probes("spread"), func(p probe) (bool, error) {
		p.request.Context = facts
		return check(p)
	})
	b.rest, b.interval = h.settle, settleEvery
	return measureAll(ctx, r, []bench{b})
}

// wireChecks is how many decisions cross a wire.
const wireChecks = 4000

// benchWire measures policies in another process, on loopback: each asked for, and
// kept by who asked.
func benchWire(ctx context.Context, r *report, c *fleet, e *estate) (err error) {
	h, err := c.checker(ctx, e, e.cedarText(""), false)
	if err != nil {
		return err
	}
	defer h.stop()
	conn, closeWire, err := overWire(ctx, func(s grpc.ServiceRegistrar) {
		remoteauthz.Register(s, remoteauthz.Server{
			Authorizer: localauthz.PolicySet{Authorizer: h.authorizer}, Authority: c.house.authority, Provider: localpqc.New(), Clock: c.house.clock,
		})
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeWire()) }()
	running, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	for _, kept := range []bool{false, true} {
		name, note, n, entries := "grpc/", "Check; gRPC on loopback; deadline 10 ms", wireChecks, -1
		if kept {
			name, note, n, entries = "grpc-kept/", "Check; the client keeps decisions, each under all that it depends on", checkTimes, 0
		}
		// The deadline is for a machine that does nothing else.
		a := remoteauthz.New(conn, remoteauthz.Config{Policy: call.Policy{Timeout: time.Second}, Cache: remoteauthz.CacheConfig{Entries: entries}})
		group.Go(func() { _ = a.Run(running) }) // it returns nil
		var sessions []authz.Session
		for _, chain := range c.chains {
			s, err := a.Bind(ctx, chain)
			if err != nil {
				return err
			}
			sessions = append(sessions, s)
		}
		b := contest(name+e.setting()+"/hot/quota=off", creto, note, e.probes("hot"), func(p probe) (bool, error) {
			d, err := a.Check(ctx, sessions[p.chain], p.request)
			return d.Kind == authz.Allow, err
		})
		b.n = n
		if err := measureAll(ctx, r, []bench{b}); err != nil {
			return err
		}
	}
	return nil
}
