// Package sandbox is the contract of the thing that runs an agent's program:
// unmodified, with no way out but the gateway.
//
// A [Backend] runs one [Spec] to its end. Inside, the program finds the host's
// /usr, /bin, /sbin and /lib* read-only, a synthesised /etc, an empty /tmp and
// home, its own processes in /proc, and its working directory under an overlay
// whose changes are discarded. It has no capabilities, no network and none of
// the caller's environment. Its model base URLs and HTTP_PROXY point at a
// forwarder inside the sandbox, which reaches the gateway's Unix socket.
//
// Backends are the packages beside this one; package sandbox/guest is the part
// that runs inside; sandbox/sandboxtest is what every backend must do.
package sandbox

import (
	"context"
	"io"
	"time"

	"creto.dev"
	"creto.dev/sandbox/guest"
)

// Isolation is the class of wall around a sandbox, strongest first: a policy
// may refuse the weaker (R-RUN-13).
type Isolation string

const (
	// GVisor: system calls are served by a kernel in user space.
	GVisor Isolation = "gvisor"
	// Namespaces: system calls reach the host's kernel, filtered.
	Namespaces Isolation = "namespaces"
)

// SocketName is the gateway's Unix socket inside [Spec].GatewayDir. The
// directory is mounted and not the file, so that a restarted server, which
// makes a new socket, is reached again.
const SocketName = guest.SocketName

// Backend runs sandboxes. Implementations are safe for concurrent use.
type Backend interface {
	// Isolation names the class of isolation, for policies and receipts.
	Isolation() Isolation

	// Version identifies the engine exactly, for receipts: its release and,
	// where it is a program of its own, the SHA-256 of that file (B-51).
	//
	// Errors: Unavailable (Degraded) if the engine is missing.
	Version(ctx context.Context) (string, error)

	// Available reports whether Run can work here, by trying what it needs.
	//
	// Errors: Unavailable (Degraded), with a text that says what to do.
	Available(ctx context.Context) error

	// Run runs spec's command in a new sandbox and blocks until it ended.
	// When Run returns, nothing of the sandbox is left: no process, mount,
	// cgroup or file. If ctx ends, the command gets SIGTERM and, after
	// spec.Grace, SIGKILL, and Run returns ctx's error beside the result. If
	// the calling process dies, so does the sandbox. A command that ran is
	// never an error: see Result.ExitCode.
	//
	// Errors: InvalidArgument (Permanent) as [Spec.Validate], or if the
	// command is not in the sandbox; Unavailable (Degraded) as Available;
	// SpawnFailed (Permanent) if the sandbox could not be built; Canceled,
	// DeadlineExceeded if ctx ended or Limits.WallClock was used up.
	Run(ctx context.Context, spec Spec) (Result, error)
}

// Spec is one run. Run does not change it and keeps no part of it.
type Spec struct {
	// ID names the run: 1 to 63 of a–z, 0–9 and '-'. Required; unique among
	// running sandboxes.
	ID string
	// Agent is on whose authority the command runs. Required (R-RUN-4, B-49).
	Agent creto.ID
	// Command is the program and its arguments, looked up inside. Required.
	Command []string
	// Dir is the working directory, an absolute path on the host. Inside it
	// has the same path, symbolic links resolved; changes are discarded,
	// except below Write. Required. [Spec.Validate] says what is refused.
	Dir string
	// Write lists directories of the host whose changes are kept. Inside they
	// have their own path, symbolic links resolved.
	Write []string
	// DataDir is the node's data directory. It is never readable inside.
	// Empty if the node has none.
	DataDir string
	// GatewayDir is the host's directory that holds the socket SocketName; it
	// should hold nothing else, for the program can read it. Required.
	GatewayDir string
	// Executable is the program run as the sandbox's first process, with the
	// argument guest.Arg: a static binary (CGO_ENABLED=0) that calls
	// guest.Main. Empty means this process's own executable.
	Executable string
	// Limits bounds what the command may use.
	Limits Limits
	// Env adds to or replaces the environment that Run makes. The caller's
	// environment is never passed on.
	Env []string
	// Stdin, Stdout and Stderr are the command's; nil is empty or discarded.
	// An *os.File is passed as it is, so that a terminal stays one: then the
	// terminal's interrupt reaches the command by itself, and the caller
	// should not end ctx for it. Otherwise the reader is copied by a
	// goroutine that may stay in Read after Run returned.
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Patience is how long a request waits for a gateway that is gone. 0 means
	// 10 minutes.
	Patience time.Duration
	// Grace is the time between SIGTERM and SIGKILL. 0 means 5 seconds.
	Grace time.Duration
	// Started, if not nil, is called once, as soon as the command runs, on a
	// goroutine of Run's. It should return soon.
	Started func(Started)
}

// Limits bounds a run (R-RUN-12). 0 means the default that each field names; a
// negative value is invalid.
type Limits struct {
	// MemoryBytes bounds memory, files in /tmp and the overlay included.
	// 0 means 4 GiB.
	MemoryBytes int64 `toml:"memory_bytes"`
	// Processes bounds processes and threads. 0 means 1024.
	Processes int `toml:"processes"`
	// OpenFiles bounds the files that one process has open. 0 means 8192.
	OpenFiles int `toml:"open_files"`
	// DiskBytes bounds each of the overlay's changes, /tmp and /dev/shm. They
	// live in memory. 0 means 2 GiB.
	DiskBytes int64 `toml:"disk_bytes"`
	// CPUMillis is processor time per second, in thousandths of a processor.
	// 0 means no bound.
	CPUMillis int `toml:"cpu_millis"`
	// WallClock bounds the whole run. 0 means no bound.
	WallClock time.Duration `toml:"wall_clock"`
}

// The defaults of [Limits].
const (
	DefaultMemoryBytes = 4 << 30
	DefaultProcesses   = 1024
	DefaultOpenFiles   = 8192
	DefaultDiskBytes   = 2 << 30
)

// Started tells how a sandbox came up.
type Started struct {
	// PID is the sandbox's first process, on the host.
	PID int
	// After is the time from Run's call to the command's start.
	After time.Duration
	// Config is the digest of the exact configuration: everything that the
	// sandbox was built from, in the backend's own encoding (B-50).
	Config creto.Digest
	// Unenforced names the limits that this host cannot enforce ("memory",
	// "processes", "cpu"), sorted: those that need a writable cgroup.
	Unenforced []string
}

// Result tells how a run ended.
type Result struct {
	Started
	// ExitCode is the command's exit code, or 128 plus the signal that ended
	// it.
	ExitCode int
	// Duration is the time from Run's call to the command's end.
	Duration time.Duration
}
