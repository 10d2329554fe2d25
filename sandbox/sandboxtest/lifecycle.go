package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/sandbox"
)

func (s *suite) describes(t *testing.T) {
	if isolation := s.backend.Isolation(); isolation != sandbox.GVisor && isolation != sandbox.Namespaces {
		t.Errorf("Isolation() = %q", isolation)
	}
	for range 2 {
		if version, err := s.backend.Version(t.Context()); err != nil || version == "" {
			t.Errorf("Version() = %q, %v", version, err)
		}
	}
}

func (s *suite) passesOutput(t *testing.T) {
	spec := s.sh(t, "echo out; echo err >&2; exit 42")
	var stdout, stderr output
	spec.Stdout, spec.Stderr = &stdout, &stderr
	var started []sandbox.Started
	spec.Started = func(s sandbox.Started) { started = append(started, s) }
	_, result, err := s.run(t, spec)
	if err != nil || result.ExitCode != 42 || stdout.String() != "out\n" || stderr.String() != "err\n" {
		t.Errorf("Run = %d, %v, %q, %q, want 42, nil, out, err", result.ExitCode, err, stdout.String(), stderr.String())
	}
	if len(started) != 1 || started[0].PID <= 1 || started[0].After <= 0 || started[0].Config.IsZero() {
		t.Errorf("Started was called with %+v", started)
	}
	if result.After <= 0 || result.Duration < result.After || result.Config != started[0].Config {
		t.Errorf("Result = %+v", result)
	}
}

func (s *suite) passesStdin(t *testing.T) {
	spec := s.spec(t, "cat")
	spec.Stdin = strings.NewReader(strings.Repeat("some text\n", 20_000))
	if out := s.ok(t, spec); len(out) != 200_000 {
		t.Errorf("cat prints %d bytes, want 200000", len(out))
	}
	if out := s.ok(t, s.spec(t, "cat")); out != "" {
		t.Errorf("with no stdin, cat prints %q", out)
	}
}

// passesFiles has regular files that others write too.
func (s *suite) passesFiles(t *testing.T) {
	spec := s.sh(t, "cat; echo inside")
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, []byte("text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stdin, err := os.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	fmt.Fprintln(stdout, "before")
	spec.Stdin, spec.Stdout = stdin, stdout
	s.ok(t, spec)
	fmt.Fprintln(stdout, "after")
	if data, err := os.ReadFile(out); string(data) != "before\ntext\ninside\nafter\n" {
		t.Errorf("the file holds %q, %v", data, err)
	}
}

func (s *suite) makesEnvironment(t *testing.T) {
	t.Setenv("CRETO_TEST_SECRET", "secret")
	spec := s.spec(t, "env")
	spec.Env = []string{"EXTRA=1", "LANG=C"}
	lines := strings.Split(strings.TrimSpace(s.ok(t, spec)), "\n")
	for _, want := range []string{
		"OPENAI_BASE_URL=http://127.0.0.1:8790/v1", "OPENAI_API_BASE=http://127.0.0.1:8790/v1", "ANTHROPIC_BASE_URL=http://127.0.0.1:8790",
		"HTTP_PROXY=http://127.0.0.1:8790", "https_proxy=http://127.0.0.1:8790", "NO_PROXY=", "no_proxy=",
		"OPENAI_API_KEY=creto-sandbox", "HOME=/tmp/home", "EXTRA=1", "LANG=C", "PWD=" + spec.Dir,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("the environment lacks %q:\n%s", want, strings.Join(lines, "\n"))
		}
	}
	for _, line := range lines {
		if strings.Contains(line, "secret") {
			t.Errorf("the caller's environment shows: %q", line)
		}
	}
}

func (s *suite) refuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*sandbox.Spec)
		reason string
	}{
		{"no agent", func(s *sandbox.Spec) { s.Agent = creto.ID{} }, "agent"},
		{"no id", func(s *sandbox.Spec) { s.ID = "" }, "id"},
		{"bad id", func(s *sandbox.Spec) { s.ID = "../x" }, "id"},
		{"no command", func(s *sandbox.Spec) { s.Command = nil }, "command"},
		{"unknown command", func(s *sandbox.Spec) { s.Command = []string{"no-such-program"} }, "no-such-program"},
		{"unknown path", func(s *sandbox.Spec) { s.Command = []string{"./no-such-program"} }, "no-such-program"},
		{"relative dir", func(s *sandbox.Spec) { s.Dir = "x" }, "absolute"},
		{"root", func(s *sandbox.Spec) { s.Dir = "/" }, "choose a project directory"},
		{"system", func(s *sandbox.Spec) { s.Dir = "/usr/lib" }, "choose a project directory"},
		{"shared", func(s *sandbox.Spec) { s.Dir = "/tmp" }, "choose a project directory"},
		{"data dir", func(s *sandbox.Spec) { s.DataDir = s.Dir }, "data directory"},
		{"write over data", func(s *sandbox.Spec) { s.DataDir = filepath.Join(s.Dir, "data"); s.Write = []string{s.Dir} }, "overlaps"},
		{"write in data", func(s *sandbox.Spec) { s.DataDir = s.GatewayDir; s.Write = []string{s.GatewayDir} }, "overlaps"},
		{"bad env", func(s *sandbox.Spec) { s.Env = []string{"x"} }, "env"},
		{"bad limit", func(s *sandbox.Spec) { s.Limits.Processes = -1 }, "processes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := s.sh(t, "echo ran")
			if err := os.Mkdir(filepath.Join(spec.Dir, "data"), 0o700); err != nil {
				t.Fatal(err)
			}
			c.change(&spec)
			out, _, err := s.run(t, spec)
			wantInvalid(t, err, c.reason)
			if out != "" {
				t.Errorf("the command ran: %q", out)
			}
		})
	}
}

func (s *suite) givesNoPrivilege(t *testing.T) {
	if out := s.ok(t, s.spec(t, "./probe", "syscalls")); out != "done\n" {
		t.Errorf("not everything failed:\n%s", out)
	}
	// A set-user-id copy of the probe and the host's own such programs.
	spec := s.sh(t, "./probe status; ./setuid status; su -c id root </dev/null; true")
	if err := os.Link(filepath.Join(spec.Dir, "probe"), filepath.Join(spec.Dir, "setuid")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(spec.Dir, "setuid"), 0o755|os.ModeSetuid|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	out := s.ok(t, spec)
	for line := range strings.Lines(out) {
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if ok && (strings.HasPrefix(name, "Cap") && strings.Trim(value, "0") != "" || name == "NoNewPrivs" && value != "1") {
			t.Errorf("inside: %s", line)
		}
	}
	if n := strings.Count(out, "NoNewPrivs"); n != 2 {
		t.Errorf("status printed %d times, want 2:\n%s", n, out)
	}
}

// leaksNoDescriptor has one open that programs would inherit.
func (s *suite) leaksNoDescriptor(t *testing.T) {
	fd, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// 3 is ls's own.
	if out := s.ok(t, s.spec(t, "ls", "/proc/self/fd")); out != "0\n1\n2\n3\n" {
		t.Errorf("the command has the descriptors %q", strings.Fields(out))
	}
}

func (s *suite) endsWithContext(t *testing.T) {
	for _, c := range []struct {
		name, how, want string
		code            int
	}{
		{"politely", "polite", "terminated\n", 7},
		{"by force", "stubborn", "terminated\n", 137},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := s.spec(t, "./probe", "signals", c.how)
			var out output
			spec.Stdout, spec.Stderr = &out, &out
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stop := sync.WaitGroup{}
			stop.Go(func() {
				out.wait(t, "ready\n")
				cancel()
			})
			result, err := s.backend.Run(ctx, spec)
			stop.Wait()
			if !errors.Is(err, fault.Canceled) || result.ExitCode != c.code || !strings.Contains(out.String(), c.want) {
				t.Errorf("Run = %d, %v, output %q, want %d, Canceled, %q", result.ExitCode, err, out.String(), c.code, c.want)
			}
			s.nothingLeft(t, spec.ID)
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.backend.Run(ctx, s.sh(t, "echo ran")); !errors.Is(err, fault.Canceled) {
		t.Errorf("Run with an ended context = %v, want Canceled", err)
	}
}

func (s *suite) endsAtWallClock(t *testing.T) {
	spec := s.spec(t, "sleep", "600")
	spec.Limits.WallClock = 2 * time.Second
	if _, result, err := s.run(t, spec); !errors.Is(err, fault.DeadlineExceeded) || result.ExitCode != 143 {
		t.Errorf("Run = %d, %v, want 143, DeadlineExceeded", result.ExitCode, err)
	}
}

func (s *suite) reportsSignals(t *testing.T) {
	for signal, want := range map[string]int{"TERM": 143, "KILL": 137, "SEGV": 139} {
		if _, result, err := s.run(t, s.sh(t, "kill -"+signal+" $$")); err != nil || result.ExitCode != want {
			t.Errorf("kill -%s $$: Run = %d, %v, want %d", signal, result.ExitCode, err, want)
		}
	}
}

// diesWithSupervisor kills a supervisor with SIGKILL and looks for what is left.
func (s *suite) diesWithSupervisor(t *testing.T) {
	spec := s.spec(t)
	mounts := read(t, "/proc/self/mountinfo")
	cmd := exec.Command(s.probe, "supervise", string(s.backend.Isolation()), spec.Dir, spec.GatewayDir, "sh", "-c", "sleep 600 & setsid sleep 600 & echo up; sleep 600")
	cmd.Env = append(os.Environ(), "TMPDIR="+worldReadable(t))
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.wait(t, "up\n")
	family := descendants(cmd.Process.Pid)
	if len(family) < 2 {
		t.Errorf("the supervisor has %d descendants", len(family))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = cmd.Process.Wait() // cmd.Wait would wait for the output's end, which is what is checked
	for deadline := time.Now().Add(10 * time.Second); ; {
		left := slices.DeleteFunc(slices.Clone(family), func(pid int) bool { return !alive(pid) })
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes %v are left", left)
		}
		<-time.After(10 * time.Millisecond)
	}
	if after := read(t, "/proc/self/mountinfo"); after != mounts {
		t.Errorf("mounts changed from\n%s\nto\n%s", mounts, after)
	}
	s.nothingLeft(t, fmt.Sprintf("probe-%d", cmd.Process.Pid))
}

// descendants returns the processes below pid, by the kernel's own list.
func descendants(pid int) []int {
	var all []int
	tasks, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children") // well formed
	for _, path := range tasks {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(data)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(append(all, child), descendants(child)...)
			}
		}
	}
	return all
}

func alive(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// nothingLeft looks for processes and mounts of the run id.
func (s *suite) nothingLeft(t testing.TB, id string) {
	t.Helper()
	if mounts := read(t, "/proc/self/mountinfo"); strings.Contains(mounts, id) {
		t.Errorf("a mount of %s is left:\n%s", id, mounts)
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline") // well formed
	for _, path := range commands {
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), id) {
			t.Errorf("a process of %s is left: %s %q", id, path, data)
		}
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (s *suite) boundsProcesses(t *testing.T) {
	spec := s.spec(t, "./probe", "spawn", "2000")
	spec.Limits.Processes = 64
	out, result, err := s.run(t, spec)
	if slices.Contains(result.Unenforced, "processes") {
		Require(t, "root has no writable control group for processes")
	}
	if err != nil {
		t.Fatalf("Run = %v", err)
	}
	n, convErr := strconv.Atoi(strings.TrimSpace(out))
	switch {
	case result.ExitCode == 0 && (convErr != nil || n == 0 || n > 600):
		t.Errorf("the command started %q processes, with a limit of 64", out)
	case result.ExitCode != 0:
		t.Logf("the sandbox ended at its limit with exit code %d", result.ExitCode)
	}
}

func (s *suite) boundsMemory(t *testing.T) {
	spec := s.spec(t, "python3", "-c", "x = b'x' * (1 << 30); print(len(x))")
	spec.Limits.MemoryBytes = 128 << 20
	out, result, err := s.run(t, spec)
	if slices.Contains(result.Unenforced, "memory") {
		t.Skip("this user has no writable control group for memory, and the backend says so")
	}
	if err != nil || result.ExitCode == 0 {
		t.Errorf("Run = %d, %v, output %q, want the command killed", result.ExitCode, err, out)
	}
	spec = s.sh(t, "head -c 300M /dev/zero > /tmp/big; head -c 300M /dev/zero > big; true")
	spec.Limits.DiskBytes = 16 << 20
	if out := s.ok(t, spec); strings.Count(out, "No space left on device") != 2 {
		t.Errorf("the disk limit does not hold: %s", out)
	}
}

func (s *suite) reapsOrphans(t *testing.T) {
	out := s.ok(t, s.sh(t, `for i in 1 2 3 4 5; do sh -c 'sh -c true & sh -c true &' ; done; sleep 0.3; grep -l "^State:.Z" /proc/[0-9]*/status | wc -l`))
	if out != "0\n" {
		t.Errorf("%s zombies are left", out)
	}
}

func (s *suite) runsMany(t *testing.T) {
	var all sync.WaitGroup
	for i := range 4 {
		spec := s.sh(t, fmt.Sprintf("echo run %d; exit %d", i, i))
		all.Go(func() {
			out, result, err := s.run(t, spec)
			if err != nil || result.ExitCode != i || out != fmt.Sprintf("run %d\n", i) {
				t.Errorf("Run %d = %d, %v, %q", i, result.ExitCode, err, out)
			}
		})
	}
	all.Wait()
}
