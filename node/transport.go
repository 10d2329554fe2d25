package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/audit/remoteaudit"
	"creto.dev/authz/localauthz"
	"creto.dev/authz/remoteauthz"
	"creto.dev/consensus/remoteconsensus"
	"creto.dev/fault"
	"creto.dev/internal/logkey"
	"creto.dev/internal/serve"
	"creto.dev/internal/wire"
	"creto.dev/metering/remotemetering"
	"creto.dev/nhi/remotenhi"
	"creto.dev/pqc/remotepqc"
)

// NodeGroup are the workloads that may call this node's contracts with their TLS
// certificate: other nodes.
const NodeGroup = "nodes"

// register has s serve the node's contracts.
func (n *Node) register(s grpc.ServiceRegistrar) {
	remotepqc.Register(s, n.pqc)
	remotenhi.Register(s, n.authority)
	remoteconsensus.Register(s, n.time.served, n.time.leading)
	remoteaudit.Register(s, n.log)
	remoteauthz.Register(s, remoteauthz.Server{
		Authorizer: localauthz.PolicySet{Authorizer: n.authorizer}, Authority: n.authority, Provider: n.pqc, Clock: n.clock,
	})
	if n.quota != nil {
		remotemetering.Register(s, n.quota)
	}
}

// authenticate says who calls a contract: over the socket the owner; over TLS a
// workload of the group "nodes" by its certificate; otherwise an administrator by
// the token of a session, where nobody in between can read it.
func (n *Node) authenticate(ctx context.Context, method string, p serve.Peer) (context.Context, error) {
	const op fault.Op = "node.authenticate"
	if p.Local {
		return creto.WithCaller(ctx, n.owner), nil
	}
	if p.TLS != nil {
		if id, ok := wire.PeerID(*p.TLS); ok {
			if err := n.isNode(ctx, id, p.TLS.PeerCertificates[0]); err != nil {
				return nil, fault.Wrap(op, err)
			}
			return creto.WithCaller(ctx, id), nil
		}
	}
	switch {
	case p.Token.IsZero():
		return nil, fault.New(op, fault.Unauthenticated, "%s needs a certificate of a node, or the token of a session: creto human login NAME --token", method)
	case !p.Private():
		return nil, fault.New(op, fault.Unauthenticated, "a token is taken over TLS only; replace this one, it has been sent in clear")
	}
	session, err := n.sessions.Find(ctx, p.Token.Reveal())
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	if err := n.mustBeIn(ctx, session.Human, AdminGroup); err != nil {
		return nil, fault.Wrap(op, err)
	}
	// Contracts know every tenant's principals.
	ctx = creto.WithCaller(ctx, session.Human)
	return ctx, n.platformOnly(ctx)
}

// isNode returns nil for the certificate of a workload that is a node. The
// connection may be older than what became of either.
func (n *Node) isNode(ctx context.Context, id creto.ID, certificate *x509.Certificate) error {
	const op fault.Op = "node.isNode"
	now, err := n.clock.Now(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if now.Time().After(certificate.NotAfter) {
		return fault.New(op, fault.Unauthenticated, "the certificate of %s ended at %s", id, certificate.NotAfter.UTC().Format(time.RFC3339))
	}
	if id.Kind != creto.KindWorkload || id.Tenant != n.owner.Tenant {
		return fault.New(op, fault.PermissionDenied, "%s is no workload of the tenant %q", id, n.owner.Tenant)
	}
	return n.mustBeIn(ctx, id, NodeGroup) // whether there is such a workload is not told (R-NHI-11)
}

// mustBeIn returns nil for members of a group.
func (n *Node) mustBeIn(ctx context.Context, id creto.ID, group string) error {
	const op fault.Op = "node.mustBeIn"
	groups, err := n.groups(ctx, id)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if !slices.Contains(groups, group) {
		return fault.New(op, fault.PermissionDenied, "%s is not in the group %q", id.Name, group)
	}
	return nil
}

// tlsFiles are the certificate, key and roots of the TCP port, read again when a
// file changes.
type tlsFiles struct {
	config TLSConfig
	log    *slog.Logger

	mu      sync.Mutex // guards what follows
	current wire.Credentials
	loaded  [3]fileStamp // what current was read from
	refused [3]fileStamp // what was wrong and is said to be
}

// fileStamp tells versions of a file apart.
type fileStamp struct {
	changed time.Time
	size    int64
}

// openTLS reads the files once, so that what is wrong with them shows at the
// start. It returns nil where there is no TLS.
//
// Errors: InvalidArgument (Permanent).
func openTLS(c TLSConfig, log *slog.Logger) (*tlsFiles, error) {
	if c.Cert == "" {
		return nil, nil //nolint:nilnil // as documented: no TLS
	}
	f := &tlsFiles{config: c, log: log}
	var err error
	f.loaded = f.stamps()
	f.current, err = f.read()
	return f, err
}

// stamps looks at the files. One that cannot be looked at has the zero stamp.
func (f *tlsFiles) stamps() (stamps [3]fileStamp) {
	for i, path := range []string{f.config.Cert, f.config.Key, f.config.ClientCA} {
		if info, err := os.Stat(path); err == nil {
			stamps[i] = fileStamp{info.ModTime(), info.Size()}
		}
	}
	return stamps
}

func (f *tlsFiles) read() (wire.Credentials, error) {
	const op fault.Op = "node.openTLS"
	var c wire.Credentials
	var err error
	if c.Certificate, err = tls.LoadX509KeyPair(f.config.Cert, f.config.Key); err != nil {
		return c, fault.WrapAs(op, fault.InvalidArgument, err, "tls.cert %s and tls.key %s are not a certificate and its key", f.config.Cert, f.config.Key)
	}
	if f.config.ClientCA == "" {
		return c, nil
	}
	text, err := os.ReadFile(f.config.ClientCA)
	if err != nil {
		return c, fault.WrapAs(op, fault.InvalidArgument, err, "tls.client_ca %s cannot be read", f.config.ClientCA)
	}
	c.Roots = x509.NewCertPool()
	if !c.Roots.AppendCertsFromPEM(text) {
		return c, fault.New(op, fault.InvalidArgument, "tls.client_ca %s holds no certificate", f.config.ClientCA)
	}
	return c, nil
}

// source is a wire.Source. Files that changed and are wrong are said to be, once,
// and those before stay in use: a certificate and its key are two writes.
func (f *tlsFiles) source() (wire.Credentials, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.stamps()
	if now == f.loaded || now == f.refused {
		return f.current, nil
	}
	c, err := f.read()
	if err != nil {
		f.refused = now
		f.log.LogAttrs(context.Background(), slog.LevelError, "new TLS files are wrong; those before stay in use", slog.String(logkey.Error, fault.Message(err)))
		return f.current, nil
	}
	f.current, f.loaded, f.refused = c, now, [3]fileStamp{}
	f.log.LogAttrs(context.Background(), slog.LevelInfo, "TLS files changed")
	return c, nil
}
