package gvisor

import (
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"creto.dev/sandbox/guest"
	"creto.dev/sandbox/internal/launch"
)

// bundle describes job to runsc. The static part of the tree is one read-only
// root, prepared by guest.ModeStage; what changes is mounted apart, so that
// gVisor does not cache what the host may change: the gateway's directory and
// the directories that are kept.
func bundle(job *launch.Job, state *state) specs.Spec {
	tree := job.Guest.Tree
	memory := func(path, mode string) specs.Mount {
		return specs.Mount{Destination: path, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=" + mode, fmt.Sprintf("size=%d", tree.DiskBytes)}}
	}
	bind := func(source, path string, options ...string) specs.Mount {
		return specs.Mount{Destination: path, Type: "bind", Source: source, Options: append([]string{"rbind", "nosuid", "nodev"}, options...)}
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "nodev", "noexec"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "nosuid", "mode=755", "size=65536"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec"}},
		// Instead of gVisor's own, so that engines show the same tree.
		{Destination: "/sys", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "mode=555", "size=4096"}},
		memory("/dev/shm", "1777"),
		memory("/tmp", "1777"),
	}
	if tree.Overlay != "" {
		mounts = append(mounts, bind(guest.StageOverlay(state.base), tree.Overlay, "rw"))
	}
	for _, dir := range tree.Write {
		mounts = append(mounts, bind(dir, dir, "rw"))
	}
	for _, dir := range tree.Masked {
		mounts = append(mounts, specs.Mount{Destination: dir, Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "mode=000", "size=4096"}})
	}
	mounts = append(mounts, bind(tree.Gateway, guest.GatewayPath, "ro", "noexec"))

	config := job.Guest
	return specs.Spec{
		Version:  "1.1.0",
		Root:     &specs.Root{Path: guest.StageRoot(state.base), Readonly: true},
		Hostname: config.Hostname,
		Process: &specs.Process{
			Terminal: config.Terminal,
			User:     specs.User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())},
			Args:     []string{"creto", guest.Arg},
			Env:      []string{},
			Cwd:      "/",
			// The zero Capabilities: none in any set.
			Capabilities:    &specs.LinuxCapabilities{},
			NoNewPrivileges: true,
			Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Hard: config.OpenFiles, Soft: config.OpenFiles},
				{Type: "RLIMIT_CORE"},
			},
		},
		Mounts: mounts,
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
		},
	}
}
