package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"creto.dev/fault"
	"creto.dev/health"
	"creto.dev/internal/durable"
	"creto.dev/pqc"
	"creto.dev/pqc/kek"
	"creto.dev/pqc/localpqc"
	"creto.dev/receipt"
)

// RootFile holds the root's fingerprint in a data directory: what creto verify
// trusts when it is told nothing.
const RootFile = keysDir + "/root.fingerprint"

// keysDir is below the data directory.
const keysDir = "keys"

// logOrigin is what the audit log's heads are signed under.
func (n *Node) logOrigin() string { return n.options.Config.Identity.TrustDomain + "/log" }

// keys are what bundles are verified with.
func (n *Node) keys(ctx context.Context) (receipt.Keys, error) {
	root, _, err := n.authority.Root()
	if err != nil {
		return receipt.Keys{}, err
	}
	certificates, err := n.authority.Certificates(ctx, n.logOrigin())
	return receipt.Keys{Root: root, Certificates: certificates}, err
}

// publishRoot writes the root's fingerprint where verifiers look for it.
func (n *Node) publishRoot() error {
	_, fingerprint, err := n.authority.Root()
	if err != nil {
		return err
	}
	path := filepath.Join(n.options.DataDir, RootFile)
	return fault.WrapAs("node.publishRoot", fault.Unavailable, os.WriteFile(path, []byte(fingerprint.String()+"\n"), 0o600), "%s cannot be written", path)
}

// lockName is below the data directory.
const lockName = "creto.lock"

// lock makes sure that one process uses a data directory.
func lock(path string) (*os.File, error) {
	const op fault.Op = "node.lock"
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the data directory %s cannot be written; choose another with --data", filepath.Dir(path))
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path) // best effort: who to look for
		return nil, errors.Join(fault.WrapAs(op, fault.FailedPrecondition, err,
			"the data directory %s is in use by another creto (process %s); stop that one, or choose another with --data", filepath.Dir(path), strings.TrimSpace(string(holder))), file.Close())
	}
	if err := file.Truncate(0); err == nil {
		_, err = fmt.Fprintf(file, "%d\n", os.Getpid())
		if err != nil {
			return nil, errors.Join(fault.WrapAs(op, fault.Unavailable, err, "the lock %s cannot be written", path), file.Close())
		}
	}
	return file, nil
}

// RewrapKey changes what protects the key-encryption key of a data directory: see
// kek.Rewrap. No node may be running.
//
// Errors: those of kek.Rewrap; FailedPrecondition (Permanent) if one is running.
func RewrapKey(ctx context.Context, dataDir string, from, to kek.Config) error {
	const op fault.Op = "node.RewrapKey"
	held, err := lock(filepath.Join(dataDir, lockName))
	if err != nil {
		return fault.Wrap(op, err)
	}
	err = kek.Rewrap(ctx, from, to, filepath.Join(dataDir, keysDir), localpqc.New())
	return fault.Wrap(op, errors.Join(err, held.Close()))
}

// basePolicies are written once; they belong to the administrator then.
const basePolicies = `// What holds for everybody. Edit freely: a change takes effect at once.
// What one agent may do is in agents/NAME.cedar.

// A person may do anything; an agent acts for a person within this, and only as
// far as its own permits and its delegation go.
@id("base/humans")
permit (principal is Creto::Human, action, resource);

// Starting a sandbox gives an agent nothing: the only way out of one is the
// gateway, where each action is decided on.
@id("base/sandbox")
permit (principal is Creto::Agent, action == Creto::Action::"spawn_sandbox", resource);
`

func writeBasePolicies(dir string) error {
	const op fault.Op = "node.writeBasePolicies"
	path := filepath.Join(dir, "base.cedar")
	if err := os.MkdirAll(filepath.Join(dir, "agents"), 0o700); err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "%s cannot be made", dir)
	}
	err := durable.Create(path, []byte(basePolicies))
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return fault.WrapAs(op, fault.Unavailable, err, "%s cannot be written", path)
}

// nodeName names this node in stamps and records.
func nodeName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "node"
	}
	return name
}

// localName turns an address that is listened on into one that a browser on
// this machine can open: a passkey's party cannot be an IP address.
func localName(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsLoopback() || ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

// cryptoHealth is R-CRY-34: there is no Degraded. The known answers of
// localpqc.SelfTest were computed at the start.
func cryptoHealth(p pqc.Provider) health.Status {
	failed := health.Status{State: health.Unhealthy, Reason: "Crypto round-trip failed"}
	key, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		return failed
	}
	probe, associated := []byte("health check"), []byte("creto/health/v1")
	sealed, err := p.Encrypt(probe, associated, key)
	if err != nil {
		return health.Status{State: health.Unhealthy, Reason: "Crypto encryption failed"}
	}
	opened, err := p.Decrypt(sealed, associated, key)
	if err != nil || !bytes.Equal(opened, probe) {
		return failed
	}
	return health.Status{State: health.Healthy}
}
