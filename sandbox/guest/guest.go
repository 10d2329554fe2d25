// Package guest is the part of a sandbox that runs inside it: the first
// process, which builds the file system where the kernel is the host's, gives
// up every privilege, starts the [Forwarder] and the command, passes signals
// on, reaps orphans and reports the end.
//
// The same static binary that starts a sandbox also runs in it. Its main
// function begins with
//
//	if guest.Called(os.Args) {
//		guest.Main()
//	}
//
// before it does anything else, and so does TestMain's helper in tests. Nobody
// else calls Main: it expects the pipes of package sandbox's backends.
package guest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// Arg is the first argument of a process that is to become a sandbox's first.
const Arg = "sandbox-init"

// Called reports whether args, as in os.Args, ask for [Main].
func Called(args []string) bool { return len(args) > 1 && args[1] == Arg }

// The file descriptors that the first process gets beside its stdio.
const (
	// ControlFD brings the Config as Config.Encode makes it, then Go, then one
	// byte for each signal to pass on. Its end means that the supervisor died.
	ControlFD = 3
	// StatusFD takes one JSON Status a line.
	StatusFD = 4
)

// StageFDs is the first descriptor that ModeStage's program does not get: stdio,
// the two above, and two of the engine's own.
const StageFDs = 7

// Addr is where the forwarder listens. The sandbox has a loopback of its own,
// so the port is free.
const Addr = "127.0.0.1:8790"

// Mode says who calls Main, which decides what is left to do.
type Mode string

const (
	// ModeNamespaces: in new namespaces of the host's kernel, with every
	// capability in them; builds the tree, enters it and gives all up.
	ModeNamespaces Mode = "namespaces"
	// ModeGVisor: inside gVisor, which has built and confined everything.
	ModeGVisor Mode = "gvisor"
	// ModeStage: on the host in a mount namespace of its own, as root; builds
	// the tree for another engine and becomes that engine's program.
	ModeStage Mode = "stage"
)

// Config is what the first process is told.
type Config struct {
	Mode     Mode
	Hostname string
	// Command, Env and Dir are the command's. Env is complete.
	Command []string
	Env     []string
	Dir     string
	// Terminal says that stdin is a terminal: its signals reach the command
	// without help.
	Terminal bool
	// Patience is the forwarder's.
	Patience  time.Duration
	OpenFiles uint64
	Processes uint64
	Tree      Tree
	// Exec is the program that ModeStage becomes.
	Exec []string `json:",omitempty"`
}

// Status is one report of the first process. Exactly one field is set.
type Status struct {
	// Started: the command runs.
	Started bool `json:",omitempty"`
	// Exited: the command ended with that exit code.
	Exited *int `json:",omitempty"`
	// Missing: the command is not in the sandbox. The text says where it was
	// looked for.
	Missing string `json:",omitempty"`
	// Failed: the sandbox could not be built.
	Failed string `json:",omitempty"`
}

// statusWriter reports to the supervisor.
type statusWriter struct{ w io.Writer }

func (s statusWriter) report(status Status) {
	line, _ := json.Marshal(status) // of strings and ints: cannot fail
	_, _ = s.w.Write(append(line, '\n'))
}

// setupExit is the exit code of a first process that could not do its work;
// the reason is in its Status.
const setupExit = 125

// Main runs the sandbox's first process and never returns.
func Main() {
	control := os.NewFile(ControlFD, "control")
	status := statusWriter{os.NewFile(StatusFD, "status")}
	code, err := run(control, status)
	if err != nil {
		status.report(Status{Failed: err.Error()})
		code = setupExit
	}
	os.Exit(code)
}

func run(control *os.File, status statusWriter) (int, error) {
	config, err := readConfig(control)
	if err != nil {
		return 0, fmt.Errorf("read the configuration: %w", err)
	}
	switch config.Mode {
	case ModeStage:
		return 0, stage(config, control)
	case ModeNamespaces:
		if err := enter(config); err != nil {
			return 0, err
		}
	case ModeGVisor:
		if err := os.Mkdir(HomePath, 0o700); err != nil {
			return 0, err
		}
	default:
		return 0, fmt.Errorf("unknown mode %q", config.Mode)
	}
	if err := awaitGo(control); err != nil {
		return 0, err
	}
	return supervise(config, control, status)
}

// Go is the byte that follows each Config on ControlFD, once this process is in
// its control group: until then it starts no other, which would not be.
const Go = 0

func awaitGo(control io.Reader) error {
	b := []byte{0xff}
	if _, err := io.ReadFull(control, b); err != nil || b[0] != Go {
		return fmt.Errorf("wait for the supervisor: got %d, %w", b[0], err)
	}
	return nil
}

// maxConfigBytes bounds the configuration's line.
const maxConfigBytes = 8 << 20

// readConfig reads exactly the configuration, since what follows belongs
// to other readers: the signal pump, or the program that ModeStage becomes.
func readConfig(r io.Reader) (Config, error) {
	var config Config
	var size [8]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return config, err
	}
	var n int
	if _, err := fmt.Sscanf(string(size[:]), "%08x", &n); err != nil || n > maxConfigBytes {
		return config, fmt.Errorf("%q is no length", size)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return config, err
	}
	return config, json.Unmarshal(data, &config)
}

// Encode returns config as the first process reads it.
func (c Config) Encode() ([]byte, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return append(fmt.Appendf(nil, "%08x", len(data)), data...), nil
}
