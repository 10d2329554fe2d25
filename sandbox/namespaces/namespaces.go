// Package namespaces runs sandboxes in namespaces of the host's kernel, with a
// filtered set of system calls and no capabilities (R-RUN-13). It needs Linux
// 5.12 and no privileges where the kernel allows unprivileged user namespaces;
// no other program takes part. It is a weaker wall than gVisor: a hole in the
// kernel's own system calls is a hole in it.
package namespaces

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"creto.dev/fault"
	"creto.dev/sandbox"
	"creto.dev/sandbox/guest"
	"creto.dev/sandbox/internal/launch"
)

type backend struct{}

var _ sandbox.Backend = backend{}

// New returns the backend. It opens nothing.
func New() sandbox.Backend { return backend{} }

func (backend) Isolation() sandbox.Isolation { return sandbox.Namespaces }

// Version returns the kernel's release, since the kernel is the engine.
func (backend) Version(context.Context) (string, error) {
	const op fault.Op = "namespaces.Version"
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fault.WrapAs(op, fault.Unavailable, err, "read the kernel's release")
	}
	return "linux " + string(uts.Release[:bytes.IndexByte(uts.Release[:], 0)]), nil
}

// Available makes the namespaces that Run makes, for a moment.
func (backend) Available(ctx context.Context) error {
	const op fault.Op = "namespaces.Available"
	cmd := exec.CommandContext(ctx, "true")
	cmd.SysProcAttr = attributes()
	// Fails where namespaces can be made but give no capabilities, as AppArmor
	// may have it.
	cmd.SysProcAttr.Chroot = "/"
	path, err := exec.LookPath("true")
	if err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "find the program true, to try namespaces with")
	}
	cmd.Path, cmd.Args, cmd.Env = path, []string{"true"}, []string{}
	if err := cmd.Run(); err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "%s", launch.Hint(err))
	}
	return nil
}

// overhead is the first process's: the Go runtime's threads and memory, and
// buffered requests.
var overhead = launch.Overhead{Processes: guest.OwnThreads, MemoryBytes: 64 << 20}

func (backend) Run(ctx context.Context, spec sandbox.Spec) (sandbox.Result, error) {
	const op fault.Op = "namespaces.Run"
	job, err := launch.New(op, spec, guest.ModeNamespaces)
	if err != nil {
		return sandbox.Result{ExitCode: -1}, err
	}
	message, err := job.Guest.Encode()
	if err != nil {
		return sandbox.Result{ExitCode: -1}, fault.Wrap(op, fmt.Errorf("encode the configuration: %w", err))
	}
	cmd := &exec.Cmd{
		Path: job.Spec.Executable, Args: []string{"creto", guest.Arg}, Env: []string{}, Dir: "/",
		SysProcAttr: attributes(),
	}
	return job.Run(ctx, cmd, [][]byte{message}, overhead, launch.Digest(message))
}

// attributes asks for new namespaces of every kind but time. The caller's user
// and group are the only ones mapped, to themselves: the command's files are
// the caller's. The ambient set carries the capabilities in these namespaces
// over the exec of a process that is not root; package guest drops them.
func attributes() *syscall.SysProcAttr {
	uid, gid := os.Geteuid(), os.Getegid()
	attr := &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETPCAP, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER},
	}
	if uid == 0 {
		// Root may drop its supplementary groups; others cannot, and without
		// a mapping these give nothing that the caller's own files do not.
		attr.GidMappingsEnableSetgroups = true
		attr.Credential = &syscall.Credential{Uid: 0, Gid: uint32(gid)}
	}
	return attr
}
