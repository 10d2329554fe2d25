// Package sandboxtest is what every sandbox backend must do: one suite, [Run],
// that the backends' tests call.
package sandboxtest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/sandbox"
)

// runTimeout bounds one sandbox of the suite.
const runTimeout = 60 * time.Second

// Require skips t with reason, or fails it where CRETO_TEST_REQUIRE=1 says that
// every engine is there.
func Require(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CRETO_TEST_REQUIRE") == "1" {
		t.Fatal("required: " + reason)
	}
	t.Skip(reason)
}

// ProbeEnv names a probe that is built already, for a suite that runs as a
// user who cannot build.
const ProbeEnv = "CRETO_TEST_PROBE"

// Probe builds the suite's helper, a static program, and returns its path. It
// serves as a sandbox's first process and as the programs in it.
func Probe(t testing.TB) string {
	t.Helper()
	if path := os.Getenv(ProbeEnv); path != "" {
		return path
	}
	path := filepath.Join(worldReadable(t), "probe")
	cmd := exec.Command("go", "build", "-o", path, "creto.dev/sandbox/sandboxtest/testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v\n%s", err, out)
	}
	return path
}

// worldReadable returns a temporary directory that other users may enter.
func worldReadable(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sandboxtest-") //nolint:usetesting // other users may not enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// suite is the state that cases share; it does not change after Run made it.
type suite struct {
	backend sandbox.Backend
	probe   string
}

// Run runs the suite on backend. Each case makes its own sandboxes.
func Run(t *testing.T, backend sandbox.Backend) {
	if err := backend.Available(t.Context()); err != nil {
		Require(t, err.Error())
	}
	s := &suite{backend: backend, probe: Probe(t)}
	for _, c := range []struct {
		name string
		run  func(*suite, *testing.T)
	}{
		{"describes itself", (*suite).describes},
		{"passes output and the exit code", (*suite).passesOutput},
		{"passes stdin", (*suite).passesStdin},
		{"passes files as stdio", (*suite).passesFiles},
		{"makes its own environment", (*suite).makesEnvironment},
		{"refuses what it cannot run", (*suite).refuses},
		{"shows the golden tree", (*suite).showsTree},
		{"hides the host", (*suite).hidesHost},
		{"runs the host's programs", (*suite).runsPrograms},
		{"discards changes", (*suite).discardsChanges},
		{"keeps changes below write", (*suite).keepsChanges},
		{"masks the data directory", (*suite).masksData},
		{"has no network", (*suite).hasNoNetwork},
		{"reaches no other socket of the host", (*suite).reachesNoSocket},
		{"gives no privilege", (*suite).givesNoPrivilege},
		{"leaks no descriptor", (*suite).leaksNoDescriptor},
		{"reaches the gateway in every form", (*suite).reachesGateway},
		{"sends a request again after a restart", (*suite).sendsAgain},
		{"streams answers", (*suite).streams},
		{"streams large bodies", (*suite).largeBodies},
		{"tunnels", (*suite).tunnels},
		{"ends with its context", (*suite).endsWithContext},
		{"ends at its wall clock", (*suite).endsAtWallClock},
		{"reports signals as exit codes", (*suite).reportsSignals},
		{"dies with its supervisor", (*suite).diesWithSupervisor},
		{"bounds processes", (*suite).boundsProcesses},
		{"bounds memory", (*suite).boundsMemory},
		{"reaps orphans", (*suite).reapsOrphans},
		{"runs many at once", (*suite).runsMany},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(s, t) })
	}
}

// spec returns a run of command in a fresh directory that holds the probe.
func (s *suite) spec(t testing.TB, command ...string) sandbox.Spec {
	t.Helper()
	dir, gateway := t.TempDir(), worldReadable(t) // whose short name leaves room for a socket's
	s.install(t, dir)
	return sandbox.Spec{
		ID: "t" + strings.ToLower(rand8()), Agent: creto.ID{TrustDomain: "test", Tenant: "default", Kind: creto.KindAgent, Name: "probe"},
		Command: command, Dir: dir, GatewayDir: gateway, Executable: s.probe,
		Grace: 2 * time.Second, Patience: 20 * time.Second,
	}
}

func (s *suite) install(t testing.TB, dir string) {
	t.Helper()
	data, err := os.ReadFile(s.probe)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "probe"), data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// output is what a run wrote, readable while it runs.
type output struct {
	mu   sync.Mutex // guards the fields below
	data bytes.Buffer
	wake chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.wake != nil {
		close(o.wake)
		o.wake = nil
	}
	return o.data.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.data.String()
}

// wait returns when the output contains text.
func (o *output) wait(t testing.TB, text string) {
	t.Helper()
	timeout := time.After(runTimeout)
	for {
		o.mu.Lock()
		found := strings.Contains(o.data.String(), text)
		if o.wake == nil {
			o.wake = make(chan struct{})
		}
		wake := o.wake
		o.mu.Unlock()
		if found {
			return
		}
		select {
		case <-wake:
		case <-timeout:
			t.Fatalf("output is %q, want it to contain %q", o, text)
		}
	}
}

// run runs spec to its end and returns its output, stdout and stderr together.
func (s *suite) run(t testing.TB, spec sandbox.Spec) (string, sandbox.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runTimeout)
	defer cancel()
	var out output
	if spec.Stdout == nil {
		spec.Stdout = &out
	}
	if spec.Stderr == nil {
		spec.Stderr = &out
	}
	result, err := s.backend.Run(ctx, spec)
	return out.String(), result, err
}

// ok is run for a command that must exit with code 0.
func (s *suite) ok(t testing.TB, spec sandbox.Spec) string {
	t.Helper()
	out, result, err := s.run(t, spec)
	if err != nil || result.ExitCode != 0 {
		t.Fatalf("Run(%q) = exit code %d, %v, output:\n%s", spec.Command, result.ExitCode, err, out)
	}
	return out
}

// sh returns a run of a shell script.
func (s *suite) sh(t testing.TB, script string) sandbox.Spec {
	t.Helper()
	return s.spec(t, "sh", "-c", script)
}

func wantInvalid(t testing.TB, err error, text string) {
	t.Helper()
	if !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("Run = %v, want InvalidArgument", err)
		return
	}
	if !strings.Contains(fault.Message(err), text) {
		t.Errorf("Run = %q, want the reason %q", fault.Message(err), text)
	}
}
