package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/call"
	"creto.dev/consensus"
	"creto.dev/consensus/etcdconsensus"
	"creto.dev/consensus/localconsensus"
	"creto.dev/consensus/remoteconsensus"
	"creto.dev/fault"
	"creto.dev/internal/logkey"
	"creto.dev/internal/wire"
)

// clocks are where a node has its time from.
type clocks struct {
	// served is what others get of it: never a stamp that this node only made up.
	served consensus.Clock
	// leading answers other nodes of one etcd cluster; nil if this is of none.
	leading consensus.Clock

	local    *localconsensus.Clock // nil without one
	guard    *consensus.Guard      // nil with a local one
	fallback *consensus.Fallback   // nil with a local one
}

// openClock opens the node's time: its own, another node's, or a cluster's.
func (n *Node) openClock(ctx context.Context) error {
	const op fault.Op = "node.openClock"
	cfg := n.options.Config.Integrations.Consensus
	endpoint, err := cfg.endpoint()
	if err != nil {
		return fault.Wrap(op, err)
	}
	switch endpoint.kind {
	case clockEmbedded:
		// A clock in this process needs no policy and has no fallback: what stops
		// it, its database, stops the node (D-071).
		local, err := localconsensus.Open(ctx, n.db, nodeName())
		if err != nil {
			return fault.Wrap(op, err)
		}
		n.onClose(local.Close)
		n.background = append(n.background, local.Run)
		n.time.local, n.clock = local, local
		n.time.served = local
	case clockRemote:
		conn, err := n.dialNode(endpoint.addresses[0])
		if err != nil {
			return fault.Wrap(op, err)
		}
		n.onClose(conn.Close)
		n.guarded(ctx, remoteconsensus.New(conn, cfg.once()))
	case clockEtcd:
		if err := n.openEtcdClock(ctx, endpoint); err != nil {
			return fault.Wrap(op, err)
		}
	}
	if n.hold != nil {
		n.clock, n.time.served = heldClock{n.clock, n.hold}, heldClock{n.time.served, n.hold}
	}
	return nil
}

// guarded makes guard the node's clock, with the fallback that is configured.
func (n *Node) guarded(ctx context.Context, guard *consensus.Guard) {
	cfg := n.options.Config.Integrations.Consensus
	n.time.guard, n.time.served = guard, guard
	policy := cfg.CallPolicy()
	if cfg.FallbackToLocalTimestamp {
		policy.Breaker = nil // the fallback is one, and it notices at once when the service is back
	}
	n.time.fallback = consensus.NewFallback(guard, consensus.FallbackConfig{
		Node: nodeName(), Policy: policy, Local: cfg.FallbackToLocalTimestamp, Report: n.clockEpisode,
	})
	n.clock = n.time.fallback
	n.background = append(n.background, n.time.fallback.Run)
	n.awaitClock(ctx)
}

// clockPatience is how long a node waits at its start for time that is not its
// own: longer than an election.
const clockPatience = 10 * time.Second

// awaitClock waits until the clock answers, so that the first stamps of a node are
// no local ones without need. If it does not answer, the fallback does, or the
// start fails with what needs time first.
func (n *Node) awaitClock(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, clockPatience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := n.time.guard.Ping(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.options.Log.LogAttrs(ctx, slog.LevelWarn, "the time service does not answer", slog.Any(logkey.Error, err))
			return
		}
	}
}

// openEtcdClock makes this node one of a cluster's.
func (n *Node) openEtcdClock(ctx context.Context, endpoint clockEndpoint) error {
	cfg := n.options.Config.Integrations.Consensus
	secure, err := cfg.Etcd.tls(endpoint.secure)
	if err != nil {
		return err
	}
	address := cfg.Etcd.Advertise
	if address == "" {
		address = n.server.Address()
	}
	clock, err := etcdconsensus.Open(etcdconsensus.Etcd{
		Endpoints: endpoint.addresses, TLS: secure, Username: cfg.Etcd.Username, Password: cfg.Etcd.Password,
	}, etcdconsensus.Config{
		Node: nodeName(), Address: address, Prefix: cfg.Etcd.Prefix, LeaseTTL: time.Duration(cfg.Etcd.LeaseTTL),
		Forward: func(address string) (etcdconsensus.Forwarder, error) {
			conn, err := n.dialNode(address)
			if err != nil {
				return nil, err
			}
			return forwarder{remoteconsensus.NewForwarder(conn, cfg.once()), conn}, nil
		},
	})
	if err != nil {
		return err
	}
	n.onClose(clock.Close)
	last, err := localconsensus.Last(ctx, n.db)
	if err != nil {
		return err
	}
	if err := clock.Raise(last); err != nil {
		return err
	}
	// What opens next needs time already, so it runs from here on, until Close.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ran := make(chan error, 1)
	go func() { ran <- clock.Run(running) }()
	n.onClose(func() error { stop(); return <-ran })
	n.guarded(ctx, consensus.NewGuard(clock))
	n.time.leading = clock.Leading()
	return nil
}

// forwarder is a connection to the node that leads.
type forwarder struct {
	consensus.Batcher
	io.Closer
}

// dialNode connects to another node's contracts, with this one's certificate.
func (n *Node) dialNode(address string) (*grpc.ClientConn, error) {
	c := wire.Config{Address: address, Tracing: n.tracing}
	if n.tls != nil && !strings.HasPrefix(address, "unix:") {
		c.Source = n.tls.source
	}
	return wire.Dial(c)
}

// observeClock tells the clock of the newest stamp in the log, so that what comes
// is later, also if the node took its time elsewhere before.
func (n *Node) observeClock(ctx context.Context) error {
	const op fault.Op = "node.observeClock"
	page, err := n.log.Query(ctx, audit.Filter{Limit: 1})
	if err != nil {
		return fault.Wrap(op, err)
	}
	if len(page) == 0 {
		return nil
	}
	newest := page[0].Record.Stamp
	if n.time.local != nil {
		return fault.Wrap(op, n.time.local.Raise(ctx, newest))
	}
	own, err := localconsensus.Last(ctx, n.db)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if newest.Logical > own.Logical {
		// It is of the same service: one that gives less was restored from a
		// backup. What this node gave by itself, another need not follow.
		n.time.guard.Observe(newest)
	}
	n.time.fallback.Observe(newest)
	return nil
}

// clockEpisode records that this node gives local stamps, and what they are
// between when that is over (R-CON-14).
func (n *Node) clockEpisode(ctx context.Context, e consensus.Episode) error {
	place := func(s creto.Timestamp) string {
		if s.IsZero() {
			return "none"
		}
		return strconv.FormatUint(s.Logical, 10) + "@" + strconv.FormatInt(s.Physical, 10)
	}
	r := audit.Record{
		Who: n.self(), What: audit.EventClockDegraded, Resource: "Clock::" + e.Node, Outcome: audit.Failure,
		Why:    "consensus cannot be reached (" + e.Cause.String() + "): stamps are local and say so",
		Detail: map[string]string{"node": e.Node, "first": place(e.First), "after": place(e.Before)},
	}
	if !e.After.IsZero() {
		r.What, r.Outcome, r.Why = audit.EventClockAnchored, audit.Success, "consensus is back: the local stamps were given between two of its own"
		r.Detail["last"], r.Detail["before"], r.Detail["count"] = place(e.Last), place(e.After), strconv.FormatUint(e.Count, 10)
	}
	level := slog.LevelWarn
	if r.Outcome == audit.Success {
		level = slog.LevelInfo
	}
	n.options.Log.LogAttrs(ctx, level, "consensus", slog.String(logkey.Reason, r.Why))
	_, err := n.log.Log(ctx, r)
	return err
}

// The kinds of places where time comes from.
const (
	clockEmbedded = iota
	clockRemote
	clockEtcd
)

// clockEndpoint is what ConsensusConfig.Endpoint says.
type clockEndpoint struct {
	kind      int
	addresses []string // host:port, or one unix:PATH
	secure    bool
}

// endpoint reads Endpoint.
//
// Errors: InvalidArgument (Permanent).
func (c ConsensusConfig) endpoint() (clockEndpoint, error) {
	const forms = "use embedded://, grpc://host:port or unix:///path of another node, or etcd://host:port,host:port (etcds:// with TLS)"
	if c.Endpoint == "" || c.Endpoint == "embedded://" {
		return clockEndpoint{kind: clockEmbedded}, nil
	}
	wrong := fault.New("node.ConsensusConfig", fault.InvalidArgument, "%q is no place for time: %s", c.Endpoint, forms)
	scheme, rest, ok := strings.Cut(c.Endpoint, "://")
	if !ok {
		return clockEndpoint{}, wrong
	}
	e := clockEndpoint{addresses: strings.Split(rest, ","), secure: scheme == "etcds"}
	switch scheme {
	case "unix":
		if !strings.HasPrefix(rest, "/") {
			return clockEndpoint{}, wrong
		}
		return clockEndpoint{kind: clockRemote, addresses: []string{"unix:" + rest}}, nil
	case "grpc":
		e.kind = clockRemote
		if len(e.addresses) != 1 {
			return clockEndpoint{}, wrong
		}
	case "etcd", "etcds":
		e.kind = clockEtcd
	default:
		return clockEndpoint{}, wrong
	}
	k := configChecker{}
	for _, address := range e.addresses {
		k.hostPort("", address, false)
	}
	if len(k.found) > 0 {
		return clockEndpoint{}, wrong
	}
	return e, nil
}

// once is the policy without retries, for what is behind a fallback that has them.
func (c ConsensusConfig) once() call.Policy {
	return call.Policy{Timeout: time.Duration(c.TimeoutMS) * time.Millisecond, Attempts: 1}
}

// tls returns the configuration of connections to etcd; nil in clear.
//
// Errors: InvalidArgument (Permanent) for files that cannot be read.
func (c EtcdConfig) tls(secure bool) (*tls.Config, error) {
	const op fault.Op = "node.EtcdConfig"
	if !secure {
		return nil, nil //nolint:nilnil // as documented: in clear
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12} // etcd 3.4 may be built by a Go without 1.3
	if c.CAFile != "" {
		text, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fault.WrapAs(op, fault.InvalidArgument, err, "integrations.consensus.etcd.ca_file %s cannot be read", c.CAFile)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(text) {
			return nil, fault.New(op, fault.InvalidArgument, "integrations.consensus.etcd.ca_file %s holds no certificate", c.CAFile)
		}
	}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fault.WrapAs(op, fault.InvalidArgument, err, "integrations.consensus.etcd.cert %s and key %s are not a certificate and its key", c.Cert, c.Key)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// consensus checks where time comes from.
func (k *configChecker) consensus(c ConsensusConfig) {
	const section = "integrations.consensus."
	k.policy("consensus", c.RemoteConfig)
	endpoint, err := c.endpoint()
	if err != nil {
		k.addf(section+"endpoint", "%s", fault.Message(err))
		return
	}
	d := Default().Integrations.Consensus.Etcd
	if endpoint.kind != clockEtcd {
		given := c.Etcd
		if given.Password.IsZero() {
			given.Password = d.Password // "" is none
		}
		if given != d {
			k.addf(section+"etcd", "is for an endpoint etcd://host:port only")
		}
		return
	}
	k.absolute(section+"etcd.ca_file", c.Etcd.CAFile)
	k.absolute(section+"etcd.cert", c.Etcd.Cert)
	k.absolute(section+"etcd.key", c.Etcd.Key)
	k.within(section+"etcd.lease_ttl", c.Etcd.LeaseTTL, 2*time.Second, time.Minute)
	if !strings.HasPrefix(c.Etcd.Prefix, "/") || !strings.HasSuffix(c.Etcd.Prefix, "/") {
		k.addf(section+"etcd.prefix", "%q does not begin and end with /", c.Etcd.Prefix)
	}
	if c.Etcd.Advertise != "" {
		k.hostPort(section+"etcd.advertise", c.Etcd.Advertise, false)
	}
	if (c.Etcd.Username == "") != c.Etcd.Password.IsZero() {
		k.addf(section+"etcd.password", "a username and a password go together")
	}
	if (c.Etcd.Cert == "") != (c.Etcd.Key == "") {
		k.addf(section+"etcd.key", "a certificate and its key go together")
	}
	if !endpoint.secure && (c.Etcd.CAFile != "" || c.Etcd.Cert != "") {
		k.addf(section+"endpoint", "certificates are for etcds://, which is with TLS")
	}
}

// warnings are what is allowed and yet unwise.
func (c ConsensusConfig) warnings() []string {
	endpoint, err := c.endpoint()
	if err != nil || endpoint.kind != clockEtcd || endpoint.secure {
		return nil
	}
	for _, address := range endpoint.addresses {
		if inTheClear(&url.URL{Scheme: "http", Host: address}) {
			return []string{fmt.Sprintf("time comes from etcd at %s in the clear, where others can change it; use etcds://", address)}
		}
	}
	return nil
}
