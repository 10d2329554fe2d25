// Package node is the composition root: it opens every part of a Creto node
// from one configuration, wires them to each other, and runs them until it is
// told to stop. Programs may embed one: Open, Run, Close.
package node

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/localaudit"
	"creto.dev/audit/witness"
	"creto.dev/authz"
	"creto.dev/authz/localauthz"
	"creto.dev/client"
	"creto.dev/consensus"
	"creto.dev/console"
	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
	"creto.dev/gate"
	"creto.dev/gateway"
	"creto.dev/health"
	"creto.dev/inference/cache"
	"creto.dev/inference/injection"
	"creto.dev/inference/localinference"
	"creto.dev/inference/telemetry"
	"creto.dev/internal/db"
	"creto.dev/internal/logkey"
	"creto.dev/internal/otlp"
	"creto.dev/internal/serve"
	"creto.dev/internal/sts"
	"creto.dev/internal/wire"
	"creto.dev/login"
	"creto.dev/metering"
	"creto.dev/nhi/localnhi"
	"creto.dev/nhi/secretsource"
	"creto.dev/oversight"
	"creto.dev/pqc"
	"creto.dev/pqc/kek"
	"creto.dev/pqc/localpqc"
)

// BootstrapHuman is who holds the node's data directory.
const BootstrapHuman = "admin"

// The groups that are roles over TCP, each in its own tenant.
const (
	// AdminGroup may administer it.
	AdminGroup = "admins"
	// AuditorGroup may read: people, agents, keys, approvals and records.
	AuditorGroup = "auditors"
)

// Options say which node to open.
type Options struct {
	// DataDir holds everything the node writes. Required.
	DataDir string
	// Version is the program's, for its records.
	Version string
	Config  Config
	Log     *slog.Logger
}

// Node is one opened node.
type Node struct {
	options     Options
	origin      string // where browsers find the console
	lock        *os.File
	db          *sql.DB
	hold        *db.Hold // nil with SQLite, which the lock of the data directory holds
	pqc         pqc.Provider
	clock       consensus.Clock
	time        clocks
	authority   *localnhi.Authority
	log         runningLog
	tree        *localaudit.Log // nil if the log is elsewhere
	publisher   *witness.Publisher
	taints      *injection.Taints
	limits      limits
	quota       *metering.Quota // nil if the limits are another node's
	lender      metering.Lender // that node
	authorizer  *localauthz.Authorizer
	desk        *oversight.Desk
	gate        *gate.Gate
	models      *localinference.Router
	telemetry   *otlp.Pipeline // nil without a collector
	tracing     wire.Tracing
	calls       *telemetry.Telemetry // nil without a collector
	answers     *cache.Router        // nil where none are kept
	gateway     *gateway.Gateway
	sessions    *login.Sessions
	passkeys    *login.Passkeys
	providers   *login.Providers
	delegations *login.Delegations
	devices     *login.Devices
	console     *console.Console
	tokens      *sts.Service
	health      *health.Composite
	runs        *runs
	vault       *secretsource.Vault // nil without one
	server      *serve.Server
	tls         *tlsFiles // nil in clear
	exports     []*exporter
	owner       creto.ID
	policyDir   string
	// policyMistake is what is wrong with the policies on disk, if anything.
	policyMistake atomic.Pointer[string]
	rotating      sync.RWMutex // held for writing while a key of the platform is replaced
	requests      inflight
	closers       []func() error                // what Close calls, the last first
	background    []func(context.Context) error // what else Run runs
}

// Open opens every part of a node, and takes its port, in an order in which
// whatever is wrong shows before anything was changed for it.
//
// Errors: InvalidArgument (Permanent) for a configuration or a policy that is
// wrong; FailedPrecondition (Permanent) for a data directory that another
// process holds or that a newer version wrote; Unavailable (Degraded) for a disk
// or a port that cannot be used.
func Open(ctx context.Context, o Options) (*Node, error) {
	const op fault.Op = "node.Open"
	if err := o.Config.Validate(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	var err error
	if o.DataDir, err = filepath.Abs(o.DataDir); err != nil { // others see it too: creto run, for one
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the working directory is gone; give --data an absolute path")
	}
	n := &Node{options: o}
	for _, step := range []func(context.Context) error{
		n.openData, n.openTelemetry, n.openPlatform, n.openLogin, n.openSecurity, n.openEnablement, n.openDoors, n.announce,
	} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	return n, nil
}

// openData takes the data directory.
func (n *Node) openData(ctx context.Context) error {
	dir := n.options.DataDir
	for _, sub := range []string{"", keysDir, "policies", "run"} {
		err := os.MkdirAll(filepath.Join(dir, sub), 0o700)
		if err == nil && sub == "" {
			err = os.Chmod(dir, 0o700) // one that was there may have been open to others
		}
		if err != nil {
			return fault.WrapAs("node.openData", fault.Unavailable, err, "the data directory %s cannot be made; choose another with --data", dir)
		}
	}
	var err error
	if n.lock, err = lock(filepath.Join(dir, lockName)); err != nil {
		return err
	}
	n.onClose(n.lock.Close)
	if n.tls, err = openTLS(n.options.Config.TLS, n.options.Log); err != nil {
		return err
	}
	if n.server, err = serve.Listen(n.options.Config.Server.Listen, filepath.Join(dir, client.SocketName), n.options.Log); err != nil {
		return err
	}
	n.onClose(n.server.Close)
	n.origin = n.findOrigin()
	return n.openDatabase(ctx)
}

// onClose has Close call f, before what was opened earlier.
func (n *Node) onClose(f func() error) { n.closers = append(n.closers, f) }

// openPlatform opens cryptography, time, identity and the audit log.
func (n *Node) openPlatform(ctx context.Context) error {
	const op fault.Op = "node.openPlatform"
	cfg := n.options.Config
	if err := localpqc.SelfTest(); err != nil {
		return fault.Wrap(op, err)
	}
	n.pqc = localpqc.New()
	if err := n.openClock(ctx); err != nil {
		return fault.Wrap(op, err)
	}
	key, err := kek.Open(ctx, cfg.Keys, filepath.Join(n.options.DataDir, keysDir), n.pqc)
	if err != nil {
		return fault.Wrap(op, err)
	}
	secrets, err := n.secretSources()
	if err != nil {
		return fault.Wrap(op, err)
	}
	n.authority, err = localnhi.Open(ctx, localnhi.Config{
		TrustDomain: cfg.Identity.TrustDomain, Tenant: cfg.Identity.Tenant, Issuer: n.origin, TokenTTL: time.Duration(cfg.Identity.TokenTTL), Secrets: secrets,
	}, n.db, n.pqc, n.clock, key)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if err := n.publishRoot(); err != nil {
		return fault.Wrap(op, err)
	}
	return n.openLog(ctx, key)
}

// openSecurity opens policies and limits.
func (n *Node) openSecurity(ctx context.Context) error {
	const op fault.Op = "node.openSecurity"
	var err error
	n.owner = n.authority.ID(creto.KindHuman, BootstrapHuman)
	if err = n.authority.AddMember(ctx, n.owner, AdminGroup); err != nil {
		return fault.Wrap(op, err)
	}
	if err = n.openLimits(ctx); err != nil {
		return fault.Wrap(op, err)
	}
	n.policyDir = n.options.Config.Policy.Dir
	if n.policyDir == "" {
		n.policyDir = filepath.Join(n.options.DataDir, "policies")
		if err := writeBasePolicies(n.policyDir); err != nil {
			return fault.Wrap(op, err)
		}
	}
	n.authorizer, err = localauthz.Open(n.policyDir, n.owner.Tenant, n.groups, []authz.Extension{n.limits, n.limits.Rates()}, n.policyChanged)
	return fault.Wrap(op, err)
}

func (n *Node) policyChanged(ctx context.Context, c localauthz.Change) {
	r := audit.Record{
		Who: n.self(), What: audit.EventPolicyChanged, Resource: "Policies::" + n.policyDir, Outcome: audit.Success,
		Decision: &audit.Decision{Version: c.After}, Detail: policyDetail(c),
	}
	if c.Err != nil {
		text := fault.Message(c.Err)
		n.policyMistake.Store(&text)
		n.options.Log.LogAttrs(ctx, slog.LevelError, "policies are wrong; those before stay in force", slog.String(logkey.Error, text))
		r.Outcome, r.Why = audit.Failure, "the policies are wrong; those before stay in force"
	} else {
		n.policyMistake.Store(nil)
		if n.answers != nil {
			n.answers.Clear() // other policies may route to others
		}
		n.options.Log.LogAttrs(ctx, slog.LevelInfo, "policies changed", slog.String(logkey.PolicyVersion, c.After.String()), slog.Int(logkey.Policies, c.Policies))
	}
	if _, err := n.log.Log(ctx, r); err != nil {
		n.options.Log.LogAttrs(ctx, slog.LevelError, "a change of policies is not recorded", slog.Any(logkey.Error, err))
	}
}

// maxFilesBytes bounds the names of files in a record of changed policies.
const maxFilesBytes = 1 << 10

// policyDetail says in a record which policies were replaced by which, in whose
// node. What is wrong with policies is not in it: it may quote them.
func policyDetail(c localauthz.Change) map[string]string {
	detail := map[string]string{"node": nodeName(), "before": c.Before.String()}
	if c.Err != nil {
		return detail
	}
	detail["policies"], detail["policies_before"] = strconv.Itoa(c.Policies), strconv.Itoa(c.PoliciesBefore)
	for key, files := range map[string][]string{"added": c.Added, "removed": c.Removed, "edited": c.Edited} {
		if len(files) == 0 {
			continue
		}
		text := strings.ToValidUTF8(strings.Join(files, ", "), "\uFFFD")
		if len(text) > maxFilesBytes {
			text = strconv.Itoa(len(files)) + " files"
		}
		detail[key] = text
	}
	return detail
}

// ReloadPolicies takes the policies on disk into force now; by itself the node
// does so within a moment of a change.
//
// Errors: InvalidArgument (Permanent), naming file and line, for policies that
// are wrong, and Unavailable (Degraded) if they cannot be read; those before stay
// in force.
func (n *Node) ReloadPolicies(ctx context.Context) error {
	return fault.Wrap("node.ReloadPolicies", n.authorizer.Reload(ctx))
}

// openEnablement opens what uses the contracts: consent, the gate, models, the
// way out.
func (n *Node) openEnablement(ctx context.Context) error {
	const op fault.Op = "node.openEnablement"
	cfg := n.options.Config
	var err error
	n.desk, err = oversight.Open(ctx, oversight.Config{Timeout: time.Duration(cfg.Oversight.Timeout)}, n.db, n.clock, n.log, n.groups, n.options.Log)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if n.taints, err = injection.OpenTaints(ctx, n.db, n.clock, time.Duration(cfg.Inference.Injection.filled().TaintFor)); err != nil {
		return fault.Wrap(op, err)
	}
	n.gate = gate.New(n.authority, n.pqc, n.clock, withDecisionLog(ctx, n.authorizer, n.options.Log, cfg.Log.Decisions), n.log, n.desk, n.limits, n.taints)
	if err = n.openModels(ctx); err != nil {
		return fault.Wrap(op, err)
	}
	answering, err := n.openCache()
	if err != nil {
		return fault.Wrap(op, err)
	}
	n.gateway = gateway.New(gateway.Config{
		Hosts: cfg.Egress.Hosts, Timeout: time.Duration(cfg.Inference.Timeout), Credentials: cfg.credentials(), Injection: cfg.Inference.Injection.gateway(),
		Tracer: n.tracing.Tracer, Limits: n.limits, Semantic: cfg.Inference.Cache.semantic(),
	}, n.gate, n.tracedRouter(answering))
	n.onClose(func() error { n.gateway.Close(); return nil })
	n.runs, err = openRuns(ctx, n)
	return fault.Wrap(op, err)
}

// openDoors opens what people see.
func (n *Node) openDoors(ctx context.Context) error {
	const op fault.Op = "node.openDoors"
	err := n.openExports(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	n.console, err = console.New(n.origin, console.Parts{
		Sessions: n.sessions, Passkeys: n.passkeys, Providers: n.providers, Delegations: n.delegations, Devices: n.devices,
		Agents: agentsOf{n}, Desk: n.desk, Log: n.log,
	}, n.options.Log)
	if err != nil {
		return fault.Wrap(op, err)
	}
	n.tokens = sts.New(sts.Parts{Authority: n.authority, Clock: n.clock, Log: n.log, Administrator: n.introspector})
	n.health, err = health.New(n.options.Log, n.checks()...)
	return fault.Wrap(op, err)
}

// findOrigin returns where browsers find the console: as configured, but at the port
// that was really taken when that was left to the system or to --listen.
func (n *Node) findOrigin() string {
	cfg := n.options.Config
	if cfg.Console.Origin != Default().Console.Origin || cfg.Server.Listen == Default().Server.Listen && n.tls == nil {
		return cfg.Console.Origin
	}
	if n.tls != nil {
		return "https://" + localName(n.server.Address())
	}
	return "http://" + localName(n.server.Address())
}

// announce records the start.
func (n *Node) announce(ctx context.Context) error {
	_, err := n.log.Log(ctx, audit.Record{
		Who: n.self(), What: audit.EventNodeStarted, Resource: "Node::" + nodeName(), Outcome: audit.Success,
		Decision: &audit.Decision{Version: n.authorizer.Version()}, Detail: map[string]string{"version": n.options.Version},
	})
	return err
}

// Run runs the node until ctx ends, then drains what is under way. It is called
// once.
//
// Errors: the first part's that failed.
func (n *Node) Run(ctx context.Context) error {
	group, running := errgroup.WithContext(ctx)
	for _, run := range n.background {
		group.Go(func() error { return run(running) })
	}
	group.Go(func() error { return n.authorizer.Run(running) })
	group.Go(func() error { return n.desk.Run(running) })
	group.Go(func() error { return n.limits.Run(running, n.options.Log) })
	if n.vault != nil {
		group.Go(func() error { return n.vault.Run(running) })
	}
	// The log outlives whatever writes to it.
	logging, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	logged := make(chan error, 1)
	go func() { logged <- n.log.Run(logging) }()
	if n.publisher != nil {
		group.Go(func() error { return n.publisher.Run(running) })
	}
	group.Go(func() error { return n.runs.run(running) })
	group.Go(func() error {
		parts := serve.Parts{
			Admin: n, Administrator: n.administrator, Owner: n.ownerOf,
			Register: n.register, Authenticate: n.authenticate, Ready: func(ctx context.Context) bool { return n.health.Ready(ctx).OK() },
			Doors: n.requests.count(n.gateway.Doors(n.bearer)), Console: n.requests.count(n.console.Handler()),
			Tokens: n.requests.count(n.tokens.Handler()), Health: n.health.Handler(n.mayKnow),
			Log: n.requests.count(serve.TileServer(publishedLog{n}, n.mayReadLog)), Tracing: n.tracing,
		}
		if n.tls != nil {
			parts.TLS = n.tls.source
		}
		return n.server.Run(running, parts)
	})
	err := group.Wait()
	// Their listeners are closed and their contexts have ended; what is left
	// is to record what became of them.
	n.requests.wait()
	stop()
	return errors.Join(err, <-logged)
}

// Close gives everything back. Run must have returned, or not been called. A
// second call does nothing.
func (n *Node) Close() error {
	var errs []error
	for _, c := range slices.Backward(n.closers) {
		errs = append(errs, c())
	}
	n.closers = nil
	return errors.Join(errs...)
}

// inflight counts requests, so that the log outlives them: a server that has
// closed its connections does not wait for their handlers.
type inflight struct {
	mu     sync.RWMutex // read-locked while a request is served; guards closed
	closed bool
}

func (f *inflight) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.RLock()
		defer f.mu.RUnlock()
		if f.closed {
			faulthttp.Write(w, r, fault.New("node", fault.Unavailable, "the node is stopping"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// wait returns when no request is served any more, and lets no other begin.
func (f *inflight) wait() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
}

// bearer authenticates a program that holds an agent's token.
func (n *Node) bearer(r *http.Request) (gateway.Origin, error) {
	caller, err := n.gate.Open(r.Context(), n.credential(r))
	return gateway.Origin{Caller: caller}, err
}

// administrator authenticates a call of the API over TCP.
func (n *Node) administrator(r *http.Request) (creto.ID, error) {
	const op fault.Op = "node.administrator"
	id, err := n.console.Authenticated(r)
	if err != nil {
		return creto.ID{}, fault.Wrap(op, err)
	}
	err = n.mustBeIn(r.Context(), id, AdminGroup)
	if r.Method == http.MethodGet && errors.Is(err, fault.PermissionDenied) { // every call that reads, and no other, is a GET
		if n.mustBeIn(r.Context(), id, AuditorGroup) == nil {
			err = nil
		}
	}
	return id, fault.Wrap(op, err)
}

// mayKnow reports whether health may tell its reasons, which name the files and
// agents of every tenant.
func (n *Node) mayKnow(r *http.Request) bool {
	id, err := n.introspector(r)
	return err == nil && id.Tenant == n.owner.Tenant
}

// checks are the node's health checks, as critical as R-PAT-4 has them.
func (n *Node) checks() []health.Check {
	ping := func(name string, critical bool, probe func(context.Context) error, slow, down string) health.Check {
		return health.Check{Name: name, Critical: critical, Probe: func(ctx context.Context) health.Status {
			return health.Of(probe(ctx), slow, down)
		}}
	}
	list := []health.Check{
		ping("nhi", true, n.authority.Ping, "NHI service slow to respond", "NHI service unavailable"),
		{Name: "crypto", Critical: true, Probe: func(context.Context) health.Status { return cryptoHealth(n.pqc) }},
		ping("consensus", false, n.clock.Ping, "Consensus service slow", "Consensus service unavailable"),
		{Name: "audit", Probe: n.auditHealth},
		{Name: "authz", Critical: true, Probe: n.authzHealth},
	}
	if c := n.options.Config.Audit; n.publisher != nil && (len(c.Witnesses) > 0 || c.CheckpointFile != "") {
		list = append(list, health.Check{Name: "audit_published", Probe: func(context.Context) health.Status { return n.publisher.Status() }})
	}
	if len(n.exports) > 0 {
		list = append(list, health.Check{Name: "audit_exports", Probe: n.exportHealth})
	}
	if n.lender != nil {
		list = append(list, ping("metering", false, n.lender.Ping, "The node that keeps the limits is slow", "The node that keeps the limits is unavailable"))
	}
	if n.hold != nil {
		list = append(list, ping("database", true, n.hold.Check, "Database slow", "Database unavailable"))
	}
	if n.telemetry != nil {
		list = append(list, health.Check{Name: "telemetry", Probe: func(context.Context) health.Status { return n.telemetry.Status() }})
	}
	if len(n.models.Providers()) > 0 { // none configured is not reported (B-28)
		list = append(list, health.Check{Name: "inference", Probe: n.models.Status})
	}
	return list
}

// authzHealth is degraded while the policies on disk are not those in force: an
// administrator may believe that they are, and the next start will refuse them.
func (n *Node) authzHealth(ctx context.Context) health.Status {
	status := n.authorizer.Health(ctx)
	if text := n.policyMistake.Load(); text != nil && status.State == health.Healthy {
		return health.Status{State: health.Degraded, Reason: *text}
	}
	return status
}
