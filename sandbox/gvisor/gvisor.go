// Package gvisor runs sandboxes with runsc, gVisor's runtime, on the systrap
// platform: the command's system calls are served by a kernel in user space
// (R-RUN-3). It drives the program runsc, found by path, $PATH or in the
// directory where `go install` puts it, and needs root.
package gvisor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"creto.dev/fault"
	"creto.dev/sandbox"
	"creto.dev/sandbox/guest"
	"creto.dev/sandbox/internal/launch"
)

// Config locates the engine. The zero value works.
type Config struct {
	// Path is the program runsc. Empty means the one in $PATH, or else in
	// ~/go/bin.
	Path string `toml:"runsc_path"`
}

// Validate reports whether c can work.
func (c Config) Validate() error {
	if c.Path != "" && !filepath.IsAbs(c.Path) {
		return fmt.Errorf("runsc_path: %q is not an absolute path", c.Path)
	}
	return nil
}

type backend struct {
	config Config

	mu       sync.Mutex // guards the fields below
	measured identity   // of the file that version describes
	version  string
}

// identity tells whether a file is still the one that was hashed.
type identity struct {
	path           string
	device, inode  uint64
	size, modified int64
}

var _ sandbox.Backend = (*backend)(nil)

// New returns the backend. It opens nothing: a missing engine is reported by
// Available and by each use.
func New(config Config) sandbox.Backend { return &backend{config: config} }

func (*backend) Isolation() sandbox.Isolation { return sandbox.GVisor }

// install says how to get runsc.
const install = "install it with: CGO_ENABLED=0 go install gvisor.dev/gvisor/runsc@go, or set runsc_path"

// find returns the path of runsc.
func (b *backend) find() (string, error) {
	if b.config.Path != "" {
		info, err := os.Stat(b.config.Path)
		if err == nil && (info.IsDir() || info.Mode()&0o111 == 0) {
			err = syscall.EACCES
		}
		return b.config.Path, err
	}
	if path, err := exec.LookPath("runsc"); err == nil {
		return filepath.Abs(path)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", exec.ErrNotFound
	}
	return exec.LookPath(filepath.Join(home, "go", "bin", "runsc"))
}

// Version returns runsc's release and the SHA-256 of its file.
func (b *backend) Version(ctx context.Context) (string, error) {
	const op fault.Op = "gvisor.Version"
	path, err := b.find()
	if err != nil {
		return "", fault.WrapAs(op, fault.Unavailable, err, "runsc is not there; %s", install)
	}
	file, err := os.Open(path)
	if err != nil {
		return "", fault.WrapAs(op, fault.Unavailable, err, "read %q", path)
	}
	defer file.Close()
	var info unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &info); err != nil {
		return "", fault.WrapAs(op, fault.Unavailable, err, "read %q", path)
	}
	id := identity{path, info.Dev, info.Ino, info.Size, info.Mtim.Nano()}
	b.mu.Lock()
	known, version := b.measured == id, b.version
	b.mu.Unlock()
	if known {
		return version, nil
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", fault.WrapAs(op, fault.Unavailable, err, "read %q", path)
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fault.WrapAs(op, fault.Unavailable, err, "%q does not run; %s", path, install)
	}
	release, _, _ := strings.Cut(string(out), "\n")
	version = fmt.Sprintf("%s sha256:%s", strings.TrimSpace(release), hex.EncodeToString(hash.Sum(nil)))
	b.mu.Lock()
	b.measured, b.version = id, version
	b.mu.Unlock()
	return version, nil
}

// Available reports whether runsc is there and this process may use it.
func (b *backend) Available(ctx context.Context) error {
	const op fault.Op = "gvisor.Available"
	if os.Geteuid() != 0 {
		return fault.New(op, fault.Unavailable, "gVisor sandboxes need root here; run as root, or use the namespaces isolation")
	}
	_, err := b.Version(ctx)
	return fault.Wrap(op, err)
}

// overhead is what gVisor itself takes on the host: threads of its kernel and
// of systrap's stubs (several for each of the command's), and their memory.
var overhead = launch.Overhead{Processes: 1024, MemoryBytes: 256 << 20}

func (b *backend) Run(ctx context.Context, spec sandbox.Spec) (sandbox.Result, error) {
	const op fault.Op = "gvisor.Run"
	none := sandbox.Result{ExitCode: -1}
	job, err := launch.New(op, spec, guest.ModeGVisor)
	if err != nil {
		return none, err
	}
	runsc, err := b.find()
	if err != nil {
		return none, fault.WrapAs(op, fault.Unavailable, err, "runsc is not there; %s", install)
	}
	if os.Geteuid() != 0 {
		return none, fault.New(op, fault.Unavailable, "gVisor sandboxes need root here; run as root, or use the namespaces isolation")
	}
	executable, err := os.Open(job.Spec.Executable)
	if err != nil {
		return none, fault.WrapAs(op, fault.SpawnFailed, err, "open the sandbox's first program")
	}
	defer executable.Close()

	state, err := newState()
	if err != nil {
		return none, fault.WrapAs(op, fault.SpawnFailed, err, "make the sandbox's state directory")
	}
	defer state.close()
	bundle, err := json.Marshal(bundle(job, state))
	if err != nil {
		return none, fault.Wrap(op, fmt.Errorf("encode the bundle: %w", err))
	}
	if err := os.WriteFile(filepath.Join(state.dir, "config.json"), bundle, 0o600); err != nil {
		return none, fault.WrapAs(op, fault.SpawnFailed, err, "write the sandbox's bundle")
	}

	theirs, closeLink, err := openLink(job.Spec.GatewayDir)
	if err != nil {
		return none, fault.WrapAs(op, fault.SpawnFailed, err, "open the sandbox's link to the gateway")
	}
	defer closeLink()

	stage := job.Guest
	stage.Mode, stage.Tree.Base = guest.ModeStage, state.base
	stage.Exec = append(append([]string{runsc}, state.flags()...),
		"run", "--bundle", state.dir, "--pass-fd=3:3", "--pass-fd=4:4", fmt.Sprintf("--pass-fd=5:%d", guest.LinkFD), "--exec-fd=6", job.Spec.ID)
	first, err := stage.Encode()
	if err != nil {
		return none, fault.Wrap(op, fmt.Errorf("encode the configuration: %w", err))
	}
	second, err := job.Guest.Encode()
	if err != nil {
		return none, fault.Wrap(op, fmt.Errorf("encode the configuration: %w", err))
	}
	cmd := &exec.Cmd{
		Path: job.Spec.Executable, Args: []string{"creto", guest.Arg}, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Dir: "/",
		ExtraFiles:  []*os.File{theirs, executable},
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS},
	}
	result, err := job.Run(ctx, cmd, [][]byte{first, second}, overhead, launch.Digest(bundle, second))
	if deleteErr := state.delete(context.WithoutCancel(ctx), runsc, job.Spec.ID); deleteErr != nil && err == nil {
		err = fault.WrapAs(op, fault.SpawnFailed, deleteErr, "delete the sandbox's state")
	}
	if err != nil && errors.Is(err, fault.SpawnFailed) {
		if text := state.lastError(); text != "" {
			err = fault.WrapAs(op, fault.SpawnFailed, err, "runsc: %s", text)
		}
	}
	return result, err
}

// openLink returns the sandbox's end of a link to the gateway's socket in dir,
// which is served until the returned function is called.
func openLink(dir string) (*os.File, func(), error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	var d net.Dialer
	done := make(chan struct{})
	go func() {
		defer close(done)
		guest.ServeLink(conn, func(ctx context.Context) (net.Conn, error) {
			return d.DialContext(ctx, "unix", filepath.Join(dir, sandbox.SocketName))
		})
	}()
	return theirs, func() {
		theirs.Close()
		conn.Close()
		<-done
	}, nil
}

// state is a run's directory on the host.
type state struct {
	dir  string // the bundle
	root string // runsc's state
	base string // where the tree is mounted, in runsc's mount namespace only
	log  string
	lock *os.File
}

// statePattern names state directories, so that those of dead supervisors can
// be told and swept.
const statePattern = "creto-gvisor-"

func newState() (*state, error) {
	sweep()
	dir, err := os.MkdirTemp("", statePattern)
	if err != nil {
		return nil, err
	}
	s := &state{dir: dir, root: filepath.Join(dir, "state"), base: filepath.Join(dir, "base"), log: filepath.Join(dir, "runsc.log")}
	// Held until this process ends: sweep leaves a locked directory alone.
	s.lock, err = os.Open(dir)
	if err == nil {
		err = unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = errors.Join(os.Mkdir(s.root, 0o700), os.Mkdir(s.base, 0o700))
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// sweepAge keeps sweep away from a directory that is about to be locked.
const sweepAge = time.Minute

// sweep removes what dead supervisors left. Their sandboxes died with them.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), statePattern+"*")) // the pattern is well formed
	for _, dir := range dirs {
		file, err := os.Open(dir)
		if err != nil {
			continue
		}
		info, err := file.Stat()
		if err == nil && time.Since(info.ModTime()) > sweepAge && unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir)
		}
		file.Close()
	}
}

func (s *state) close() {
	_ = os.RemoveAll(s.dir)
	if s.lock != nil {
		s.lock.Close()
	}
}

// flags are runsc's global flags: no network, no host devices, the systrap
// platform (KVM is often nested and slow), the host's Unix sockets closed.
func (s *state) flags() []string {
	return []string{
		"--root=" + s.root, "--platform=systrap", "--network=none", "--host-uds=none", "--ignore-cgroups",
		"--overlay2=none", "--allow-suid=false", "--log=" + s.log, "--log-format=text",
	}
}

// deleteTimeout bounds runsc delete.
const deleteTimeout = 20 * time.Second

// delete removes runsc's record of the sandbox, and what might still run, after
// every run (B-48). A clean end has already removed it.
func (s *state) delete(ctx context.Context, runsc, id string) error {
	left, err := os.ReadDir(s.root)
	if err == nil && !containerLeft(left) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, runsc, append(s.flags(), "delete", "--force", id)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("runsc delete: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func containerLeft(entries []os.DirEntry) bool {
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".state") {
			return true
		}
	}
	return false
}

// lastError returns the last line that runsc logged as an error.
func (s *state) lastError() string {
	data, err := os.ReadFile(s.log)
	if err != nil {
		return ""
	}
	last := ""
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "E"); ok || strings.HasPrefix(line, "W") && last == "" {
			last = strings.TrimSpace(text)
		}
	}
	return last
}
