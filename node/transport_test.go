package node_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/internal/wire"
	"creto.dev/internal/wire/wiretest"
	"creto.dev/nhi"
	"creto.dev/nhi/remotenhi"
	"creto.dev/node"
	"creto.dev/pqc"
	"creto.dev/pqc/remotepqc"
)

// writePEM writes a certificate and its key, the certificate first.
func writePEM(t *testing.T, dir string, c tls.Certificate) node.TLSConfig {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	paths := node.TLSConfig{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	for path, block := range map[string]*pem.Block{paths.Cert: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, paths.Key: {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

func writeRoot(t *testing.T, path string, ca wiretest.CA) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// services asks a node which services it has, which only who may call them learns.
func services(t *testing.T, c wire.Config) error {
	t.Helper()
	conn := wiretest.Dial(t, c)
	if state, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil || state.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", state, err)
	}
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		return err
	}
	err = stream.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
	if err == nil {
		_, err = stream.Recv()
	} else {
		_, err = stream.Recv() // says why
	}
	return err
}

func bearer(token string) func(context.Context) (creto.Secret, error) {
	return func(context.Context) (creto.Secret, error) { return creto.NewSecret(token), nil }
}

// Who may call the contracts of a node, by each way to it.
func TestAuthenticate(t *testing.T) {
	ca, dir := wiretest.NewCA(t), t.TempDir()
	member := func(kind creto.Kind, name string) creto.ID {
		return creto.ID{TrustDomain: "creto.local", Tenant: creto.DefaultTenant, Kind: kind, Name: name}
	}
	server := member(creto.KindWorkload, "this-node")
	clear := options(t, t.TempDir())
	secured := options(t, t.TempDir())
	secured.Config.TLS = writePEM(t, dir, ca.Issue(t, server, nil))
	secured.Config.TLS.ClientCA = filepath.Join(dir, "ca.pem")
	writeRoot(t, secured.Config.TLS.ClientCA, ca)

	type world struct {
		options                     node.Options
		address, admin, user, agent string
		tenant                      string // of an administrator of another tenant
	}
	open := func(o node.Options) world {
		_, c, stop := running(t, o)
		t.Cleanup(func() { c.Close(); stop() })
		ctx := t.Context()
		status, err := c.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range []client.Human{
			{Name: "anna", Groups: []string{node.AdminGroup}}, {Name: "bob"},
			{Name: "nina", Groups: []string{node.NodeGroup}},
			{Name: "other", Workload: true, Groups: []string{node.NodeGroup}}, {Name: "printer", Workload: true},
		} {
			if h.Workload {
				_, err = c.AddApprover(ctx, h.Name, h.Groups)
			} else {
				_, err = c.AddHuman(ctx, h.Name, h.Groups)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		w := world{options: o, address: status.Listen}
		if _, err := c.AddTenant(ctx, "acme"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.For("acme").AddApprover(ctx, "other", []string{node.NodeGroup}); err != nil {
			t.Fatal(err)
		}
		session, err := c.For("acme").Session(ctx, node.BootstrapHuman)
		if err != nil {
			t.Fatal(err)
		}
		w.tenant = session.Token
		for name, to := range map[string]*string{"anna": &w.admin, "bob": &w.user} {
			token, err := c.Session(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			*to = token.Token
		}
		if _, err := c.AddAgent(ctx, client.NewAgent{Name: "bot", OnBehalfOf: "anna"}); err != nil {
			t.Fatal(err)
		}
		token, err := c.Token(ctx, "bot", client.NewToken{})
		if err != nil {
			t.Fatal(err)
		}
		w.agent = token.Token
		return w
	}
	plain, tlsed := open(clear), open(secured)
	anonymous := func() (wire.Credentials, error) { return wire.Credentials{Roots: ca.Roots()}, nil }
	showing := func(id creto.ID) wire.Config {
		return wire.Config{Address: tlsed.address, Source: ca.Source(t, id), Peer: server}
	}
	withToken := func(c wire.Config, token string) wire.Config { c.Token = bearer(token); return c }
	hello := wire.Config{Address: tlsed.address, Source: anonymous, Peer: server}
	foreign := member(creto.KindWorkload, "other")
	foreign.TrustDomain = "elsewhere.test"
	theirs := member(creto.KindWorkload, "other")
	theirs.Tenant = "acme"
	for _, test := range []struct {
		name   string
		config wire.Config
		want   fault.Code
	}{
		{"the socket", wire.Config{Address: "unix:" + filepath.Join(clear.DataDir, client.SocketName)}, fault.OK},
		{"the socket beside TLS", wire.Config{Address: "unix:" + filepath.Join(secured.DataDir, client.SocketName)}, fault.OK},
		{"nobody", wire.Config{Address: plain.address}, fault.Unauthenticated},
		{"an administrator", withToken(wire.Config{Address: plain.address}, plain.admin), fault.OK},
		{"another human", withToken(wire.Config{Address: plain.address}, plain.user), fault.PermissionDenied},
		{"a tenant's administrator", withToken(wire.Config{Address: plain.address}, plain.tenant), fault.PermissionDenied},
		{"a tenant's administrator over TLS", withToken(hello, tlsed.tenant), fault.PermissionDenied},
		{"a tenant's node", showing(theirs), fault.PermissionDenied},
		{"an agent", withToken(wire.Config{Address: plain.address}, plain.agent), fault.Unauthenticated},
		{"a token of another node", withToken(wire.Config{Address: plain.address}, tlsed.admin), fault.Unauthenticated},
		{"nobody over TLS", hello, fault.Unauthenticated},
		{"an administrator over TLS", withToken(hello, tlsed.admin), fault.OK},
		{"another human over TLS", withToken(hello, tlsed.user), fault.PermissionDenied},
		{"a node", showing(member(creto.KindWorkload, "other")), fault.OK},
		{"a workload that is no node", showing(member(creto.KindWorkload, "printer")), fault.PermissionDenied},
		{"a workload that is no node, with a token", withToken(showing(member(creto.KindWorkload, "printer")), tlsed.admin), fault.PermissionDenied},
		{"a human in the group", showing(member(creto.KindHuman, "nina")), fault.PermissionDenied},
		{"an unknown workload", showing(member(creto.KindWorkload, "stranger")), fault.PermissionDenied},
		{"a node of elsewhere", showing(foreign), fault.PermissionDenied},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := services(t, test.config); fault.CodeOf(err) != test.want {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
	t.Run("the console", func(t *testing.T) {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Roots()}}
		defer transport.CloseIdleConnections()
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+tlsed.address+"/livez", nil)
		response, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if _ = response.Body.Close(); response.StatusCode != 200 || response.TLS == nil {
			t.Errorf("status %d", response.StatusCode)
		}
		c, err := client.New(filepath.Join(secured.DataDir, client.SocketName), creto.Secret{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if status, err := c.Status(t.Context()); err != nil || !strings.HasPrefix(status.Console, "https://localhost:") {
			t.Errorf("the console is at %s, %v", status.Console, err)
		}
	})
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// New files are used at the next handshake; wrong ones are said to be and the
// ones before stay.
func TestTLSFiles(t *testing.T) {
	dir := t.TempDir()
	first, second := wiretest.NewCA(t), wiretest.NewCA(t)
	server := wiretest.ID("this-node")
	o := options(t, t.TempDir())
	log := &lockedBuffer{}
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	o.Config.TLS = writePEM(t, dir, first.Issue(t, server, nil))
	_, c, stop := running(t, o)
	defer stop()
	defer c.Close()
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reachable := func(ca wiretest.CA) bool {
		conn := wiretest.Dial(t, wire.Config{Address: status.Listen, Source: func() (wire.Credentials, error) { return wire.Credentials{Roots: ca.Roots()}, nil }})
		_, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil && !errors.Is(err, fault.Unavailable) {
			t.Errorf("Check = %v", err)
		}
		return err == nil
	}
	if !reachable(first) || reachable(second) {
		t.Fatal("the first certificate is not the one in use")
	}
	if err := os.WriteFile(o.Config.TLS.Key, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if !reachable(first) {
			t.Fatal("a wrong key took the certificate out of use")
		}
	}
	if n := strings.Count(log.String(), "new TLS files are wrong"); n != 1 {
		t.Errorf("the log says %d times that the files are wrong", n)
	}
	time.Sleep(5 * time.Millisecond) // another mtime
	writePEM(t, dir, second.Issue(t, server, nil))
	if !reachable(second) || reachable(first) {
		t.Error("the second certificate is not in use")
	}
}

func TestTLSConfig(t *testing.T) {
	dir := t.TempDir()
	ca := wiretest.NewCA(t)
	good := writePEM(t, dir, ca.Issue(t, wiretest.ID("x"), nil))
	other := filepath.Join(dir, "other.pem")
	if err := os.WriteFile(other, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		listen string
		allow  bool
		tls    node.TLSConfig
		want   string // part of the message; "" if it opens
	}{
		{"all interfaces in clear", "0.0.0.0:0", false, node.TLSConfig{}, "server.allow_plaintext"},
		{"no host in clear", ":0", false, node.TLSConfig{}, "server.allow_plaintext"},
		{"another address in clear", "192.0.2.1:0", false, node.TLSConfig{}, "server.allow_plaintext"},
		{"a name in clear", "creto.example:7300", false, node.TLSConfig{}, "server.allow_plaintext"},
		{"IPv6 in clear", "[::]:0", false, node.TLSConfig{}, "server.allow_plaintext"},
		{"in clear, as it is meant", "0.0.0.0:0", true, node.TLSConfig{}, ""},
		{"with TLS", "0.0.0.0:0", false, good, ""},
		{"no key", "localhost:0", false, node.TLSConfig{Cert: good.Cert}, "tls.key"},
		{"no certificate", "localhost:0", false, node.TLSConfig{Key: good.Key}, "tls.cert"},
		{"roots alone", "localhost:0", false, node.TLSConfig{ClientCA: good.Cert}, "tls.cert"},
		{"a relative path", "localhost:0", false, node.TLSConfig{Cert: "cert.pem", Key: good.Key}, "absolute"},
		{"a file that is not there", "localhost:0", false, node.TLSConfig{Cert: filepath.Join(dir, "no"), Key: good.Key}, "tls.cert"},
		{"a key that is none", "localhost:0", false, node.TLSConfig{Cert: good.Cert, Key: other}, "tls.key"},
		{"roots that are none", "localhost:0", false, node.TLSConfig{Cert: good.Cert, Key: good.Key, ClientCA: other}, "tls.client_ca"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := options(t, t.TempDir())
			o.Config.Server = node.ServerConfig{Listen: test.listen, AllowPlaintext: test.allow}
			o.Config.TLS = test.tls
			n, err := node.Open(t.Context(), o)
			if n != nil {
				_ = n.Close()
			}
			if (err == nil) != (test.want == "") || err != nil && (!errors.Is(err, fault.InvalidArgument) || !strings.Contains(fault.Message(err), test.want)) {
				t.Errorf("Open = %v, want %q", err, test.want)
			}
		})
	}
}

// A node serves its contracts: to other processes as to itself.
func TestContracts(t *testing.T) {
	o := options(t, t.TempDir())
	_, c, stop := running(t, o)
	defer stop()
	defer c.Close()
	socket := filepath.Join(o.DataDir, client.SocketName)
	conn := wiretest.Dial(t, wire.Config{Address: "unix:" + socket})
	want := sha256.Sum256([]byte("x"))
	if got, err := remotepqc.New(conn, call.Policy{}).Hash(pqc.SHA256, []byte("x")); err != nil || !bytes.Equal(got, want[:]) {
		t.Errorf("Hash = %x, %v", got, err)
	}
	authority := remotenhi.New(conn, call.Policy{})
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	roots, err := authority.Roots(t.Context())
	if err != nil || len(roots) == 0 {
		t.Fatalf("Roots = %v, %v", roots, err)
	}
	if fingerprint, err := nhi.Fingerprint(roots[0]); err != nil || fingerprint != status.Root {
		t.Errorf("the root's fingerprint is %v, %v; want %v", fingerprint, err, status.Root)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := authority.Watch(ctx, func(uint64) { cancel() }); fault.CodeOf(err) != fault.Canceled {
		t.Errorf("Watch = %v", err)
	}

	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	r, _ := http.NewRequestWithContext(t.Context(), "POST", "http://x/creto.pqc.v1/hash", strings.NewReader(`{"algorithm":"sha-256","data":"eA=="}`))
	r.Header.Set("Content-Type", "application/json")
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if text, _ := io.ReadAll(response.Body); response.StatusCode != 200 || !strings.Contains(string(text), base64.StdEncoding.EncodeToString(want[:])) {
		t.Errorf("JSON: %d %s", response.StatusCode, text)
	}
}

// Contracts know every tenant's principals: neither the administrators nor the
// workloads of a tenant may call them, whatever group that tenant put them in. What
// became of a certificate counts on a connection that is older.
func TestContractsAreThePlatforms(t *testing.T) {
	ca, dir := wiretest.NewCA(t), t.TempDir()
	server := creto.ID{TrustDomain: "creto.local", Tenant: creto.DefaultTenant, Kind: creto.KindWorkload, Name: "this-node"}
	o := options(t, t.TempDir())
	o.Config.TLS = writePEM(t, dir, ca.Issue(t, server, nil))
	o.Config.TLS.ClientCA = filepath.Join(dir, "ca.pem")
	writeRoot(t, o.Config.TLS.ClientCA, ca)
	_, home, stop := running(t, o)
	defer stop()
	defer home.Close()
	ctx := t.Context()
	if _, err := home.AddTenant(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	acme := home.For("acme")
	for _, c := range []*client.Client{home, acme} {
		if _, err := c.AddApprover(ctx, "other", []string{node.NodeGroup}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := acme.AddHuman(ctx, "anna", []string{node.AdminGroup}); err != nil {
		t.Fatal(err)
	}
	token, err := acme.Session(ctx, "anna")
	if err != nil {
		t.Fatal(err)
	}
	status, err := home.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	peer := server
	peer.Name = "other"
	theirs := peer
	theirs.Tenant = "acme"
	anonymous := func() (wire.Credentials, error) { return wire.Credentials{Roots: ca.Roots()}, nil }
	for name, config := range map[string]wire.Config{
		"an administrator of a tenant": {Source: anonymous, Token: bearer(token.Token)},
		"a workload of a tenant":       {Source: ca.Source(t, theirs)},
	} {
		config.Address, config.Peer = status.Listen, server
		if err := services(t, config); fault.CodeOf(err) != fault.PermissionDenied {
			t.Errorf("%s: %v, want PermissionDenied", name, err)
		}
	}

	short := ca.Issue(t, peer, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(3 * time.Second) })
	conn := wiretest.Dial(t, wire.Config{Address: status.Listen, Peer: server, Source: func() (wire.Credentials, error) {
		return wire.Credentials{Certificate: short, Roots: ca.Roots()}, nil
	}})
	provider := remotepqc.New(conn, call.Policy{Attempts: 1})
	if _, err := provider.Hash(pqc.SHA256, []byte("x")); err != nil {
		t.Errorf("before the certificate ends: %v", err)
	}
	time.Sleep(time.Until(short.Leaf.NotAfter) + time.Second)
	if _, err := provider.Hash(pqc.SHA256, []byte("x")); fault.CodeOf(err) != fault.Unauthenticated {
		t.Errorf("after the certificate ended, on the old connection: %v, want Unauthenticated", err)
	}
}

// A node stops at once, also while another one watches it.
func TestStopWhileWatched(t *testing.T) {
	o := options(t, t.TempDir())
	_, c, stop := running(t, o)
	defer c.Close()
	conn := wiretest.Dial(t, wire.Config{Address: "unix:" + filepath.Join(o.DataDir, client.SocketName)})
	heard, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- remotenhi.New(conn, call.Policy{}).Watch(t.Context(), func(uint64) { heard <- struct{}{} })
	}()
	<-heard
	start := time.Now()
	stop()
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if err := <-ended; fault.CodeOf(err) != fault.NHIUnavailable {
		t.Errorf("the watch ended with %v", err)
	}
}
