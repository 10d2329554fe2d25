package namespaces_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"creto.dev/sandbox/namespaces"
	"creto.dev/sandbox/sandboxtest"
)

func TestBackend(t *testing.T) { sandboxtest.Run(t, namespaces.New()) }

// TestUnprivileged runs TestBackend again as a user with no privileges.
func TestUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("TestBackend is unprivileged already")
	}
	dir, err := os.MkdirTemp("", "unprivileged-") //nolint:usetesting // other users may not enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	const nobody = 65534
	probe, binary, tmp := filepath.Join(dir, "probe"), filepath.Join(dir, "test"), filepath.Join(dir, "tmp")
	duplicate(t, sandboxtest.Probe(t), probe)
	duplicate(t, "/proc/self/exe", binary)
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o755, probe: 0o755, binary: 0o755} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(tmp, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, "-test.run=^TestBackend$", "-test.v")
	cmd.Dir = tmp
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "TMPDIR=" + tmp, sandboxtest.ProbeEnv + "=" + probe}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	t.Logf("as nobody:\n%s", out)
	if err != nil {
		t.Errorf("the suite, run as nobody: %v", err)
	}
}

func duplicate(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err == nil {
		_, err = io.Copy(out, in)
	}
	if err == nil {
		err = out.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkRun is the whole of a run that does nothing.
func BenchmarkRun(b *testing.B) { sandboxtest.Bench(b, namespaces.New()) }
