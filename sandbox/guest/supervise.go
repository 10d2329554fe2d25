package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// supervise is the first process's life: it gives up every privilege, starts
// the forwarder and the command, and returns the command's exit code.
func supervise(config Config, control *os.File, status statusWriter) (int, error) {
	// The pipes, and whatever the supervisor's own parent left open: a
	// directory of the host would be a way out.
	if err := closeOnExec(firstOwnFD); err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, passed()...)
	if err := limit(config); err != nil {
		return 0, err
	}
	ln, err := net.Listen("tcp", Addr)
	if err != nil {
		return 0, fmt.Errorf("listen for the forwarder: %w", err)
	}
	forwarder := &Forwarder{Dial: dialGateway, Patience: config.Patience}
	if config.Mode == ModeGVisor {
		link, err := openLink()
		if err != nil {
			return 0, err
		}
		forwarder.Dial = link.dial
	}
	child, err := start(config, status)
	if err != nil || child == 0 {
		return setupExit, err
	}
	status.report(Status{Started: true})
	// Ends with the process, as every goroutine here.
	go func() { _ = forwarder.Serve(ln) }()
	go passSignals(control, child)

	ended := make(chan int)
	go func() { ended <- reap(child) }()
	for {
		select {
		case code := <-ended:
			status.report(Status{Exited: &code})
			return code, nil
		case s := <-signals:
			forwardSignal(s, child, config.Terminal)
		}
	}
}

// firstOwnFD is the first descriptor behind stdio, all of which the command
// does not get.
const firstOwnFD = 3

// closeOnExec keeps all descriptors from first on from programs started later.
func closeOnExec(first uint) error {
	if err := unix.CloseRange(first, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep descriptors from the command: %w", err)
	}
	return nil
}

func dialGateway(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", filepath.Join(GatewayPath, SocketName))
}

// OwnThreads is room for this process's threads beside the command's processes.
const OwnThreads = 32

// limit sets the limits that a process carries. They hold for the command and
// what it starts.
func limit(config Config) error {
	for resource, value := range map[int]uint64{
		unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: config.OpenFiles, unix.RLIMIT_NPROC: config.Processes + OwnThreads, unix.RLIMIT_MEMLOCK: 8 << 20,
	} {
		var now syscall.Rlimit
		if err := syscall.Getrlimit(resource, &now); err != nil {
			return fmt.Errorf("read limit %d: %w", resource, err)
		}
		// Lowering needs no privilege; nothing is raised.
		value = min(value, now.Max)
		if err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: value, Max: value}); err != nil {
			return fmt.Errorf("set limit %d to %d: %w", resource, value, err)
		}
	}
	return nil
}

// start confines this process and starts the command from a thread that is
// confined further and then thrown away.
func start(config Config, status statusWriter) (int, error) {
	path, missing := lookPath(config)
	if missing != "" {
		status.report(Status{Missing: missing})
		return 0, nil
	}
	type outcome struct {
		pid int
		err error
	}
	done := make(chan outcome)
	go func() {
		// Never unlocked: the thread ends with this goroutine and its filter.
		runtime.LockOSThread()
		if err := confine(config); err != nil {
			done <- outcome{err: err}
			return
		}
		if config.Mode == ModeNamespaces && len(config.Tree.Write) > 0 {
			// For this thread alone, so that the first process connects freely.
			listener, err := install(brokerFilter(), unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
			if err != nil {
				done <- outcome{err: err}
				return
			}
			broker, err := newBroker(int(listener), config.Tree)
			if err != nil {
				done <- outcome{err: err}
				return
			}
			go broker.serve()
		}
		pid, err := syscall.ForkExec(path, config.Command, &syscall.ProcAttr{Dir: config.Dir, Env: config.Env, Files: []uintptr{0, 1, 2}})
		if err != nil {
			err = fmt.Errorf("start %q: %w", config.Command[0], err)
		}
		done <- outcome{pid, err}
	}()
	o := <-done
	return o.pid, o.err
}

// confine takes from this process, and for good from the calling thread's
// children, what privileges are left. The caller is locked to its thread.
func confine(config Config) error {
	if config.Mode == ModeNamespaces {
		// The group was joined after the clone, so that /proc/self/cgroup
		// would name it and what is above.
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("unshare the control group namespace: %w", err)
		}
		for c := range uintptr(unix.CAP_LAST_CAP + 1) {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, syscall.EINVAL) {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
		if err := allThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL); err != nil {
			return fmt.Errorf("clear ambient capabilities: %w", err)
		}
		if err := dropCapabilities(); err != nil {
			return err
		}
	}
	// Hides /proc/1 from the command, and this process from its debuggers.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid tracing: %w", err)
	}
	if config.Mode == ModeGVisor {
		// The runtime forbade new privileges. The filter still matters, for
		// user namespaces would hand out capabilities over gVisor's kernel;
		// the first process does without, as threads are slow to reach here.
		_, err := install(filter(), 0)
		return err
	}
	if err := allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	_, err := install(filter(), unix.SECCOMP_FILTER_FLAG_TSYNC)
	return err
}

func allThreads(trap, a1, a2 uintptr) error {
	if _, _, number := syscall.AllThreadsSyscall6(trap, a1, a2, 0, 0, 0, 0); number != 0 {
		if number == syscall.ENOTSUP {
			return fmt.Errorf("%w: the executable uses cgo; build it with CGO_ENABLED=0", number)
		}
		return number
	}
	return nil
}

// lookPath finds the command inside. missing says where it was not found.
func lookPath(config Config) (path, missing string) {
	command := config.Command[0]
	if strings.Contains(command, "/") {
		path = command
		if !filepath.IsAbs(path) {
			path = filepath.Join(config.Dir, path)
		}
		if err := executable(path); err != nil {
			return "", fmt.Sprintf("%q cannot be run inside the sandbox: %v", path, err)
		}
		return path, ""
	}
	var search string
	for _, entry := range config.Env {
		if value, ok := strings.CutPrefix(entry, "PATH="); ok {
			search = value
		}
	}
	for dir := range strings.SplitSeq(search, ":") {
		if path = filepath.Join(dir, command); filepath.IsAbs(path) && executable(path) == nil {
			return path, ""
		}
	}
	return "", fmt.Sprintf("%q is in none of the sandbox's directories %s", command, search)
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return errors.Unwrap(err)
	}
	if info.IsDir() {
		return syscall.EISDIR
	}
	return unix.Access(path, unix.X_OK)
}

// reap waits for every process that ends, until child does.
func reap(child int) int {
	for {
		var state syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &state, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return setupExit // child is ours: cannot happen
		case pid != child:
		case state.Signaled():
			return 128 + int(state.Signal())
		default:
			return state.ExitStatus()
		}
	}
}

// passSignals reads the supervisor's signals. At its end the supervisor is
// gone, and so must be everything here: with the first process goes the rest.
func passSignals(control io.Reader, child int) {
	b := make([]byte, 1)
	for {
		if _, err := io.ReadFull(control, b); err != nil {
			os.Exit(128 + int(syscall.SIGKILL))
		}
		_ = syscall.Kill(child, syscall.Signal(b[0]))
	}
}

// passed are the signals that reach the command through this process. (Others
// that a first process has no handler for do nothing to it.)
func passed() []os.Signal {
	return []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTSTP, syscall.SIGWINCH}
}

// forwardSignal passes a signal on to the command. What a terminal sends goes
// to the whole foreground group, the command included, by itself.
func forwardSignal(s os.Signal, child int, terminal bool) {
	number, ok := s.(syscall.Signal)
	switch number {
	case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP, syscall.SIGWINCH:
		ok = ok && !terminal
	}
	if ok {
		_ = syscall.Kill(child, number)
	}
}
