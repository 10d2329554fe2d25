package audittest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Unable skips a test that cannot run here, or fails it if CRETO_TEST_REQUIRE is 1.
func Unable(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CRETO_TEST_REQUIRE") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// Disk is an ext4 file system in a file, which stands for a disk: what the file
// holds is what is on the disk.
type Disk struct {
	File string
	Dir  string // where it is mounted
}

// NewDisk makes and mounts one of some MiB, which is gone with the test. Without
// the rights or the programs for that the test is skipped.
func NewDisk(t testing.TB, mib int64) *Disk {
	t.Helper()
	if os.Geteuid() != 0 {
		Unable(t, "only root mounts file systems")
	}
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		Unable(t, "there is no mkfs.ext4")
	}
	d := &Disk{File: filepath.Join(t.TempDir(), "disk"), Dir: t.TempDir()}
	if err := os.WriteFile(d.File, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.File, mib<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), mkfs, "-q", "-m", "0", d.File).CombinedOutput(); err != nil { //nolint:gosec // a file of the test's
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	d.Mount(t)
	t.Cleanup(func() { _ = unix.Unmount(d.Dir, unix.MNT_DETACH) })
	return d
}

// Mount mounts it, as after a start of the machine.
func (d *Disk) Mount(t testing.TB) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", d.File, d.Dir).CombinedOutput(); err != nil { //nolint:gosec // files of the test's
		Unable(t, "no file can be mounted here: %v: %s", err, out)
	}
}

// Unmount unmounts it as soon as nobody uses it.
func (d *Disk) Unmount(t testing.TB) {
	t.Helper()
	for try := 0; ; try++ {
		err := unix.Unmount(d.Dir, 0)
		if err == nil {
			return
		}
		if try == 100 {
			t.Fatal(err)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Abort makes the file system read-only, as it makes itself when the disk fails.
func (d *Disk) Abort(t testing.TB) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "remount,abort", d.Dir).CombinedOutput(); err != nil { //nolint:gosec // a directory of the test's
		Unable(t, "no file system can be aborted here: %v: %s", err, out)
	}
}

// Tmpfs mounts a file system of some MiB in memory, which is gone with the test,
// and returns where.
func Tmpfs(t testing.TB, mib int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		Unable(t, "only root mounts file systems")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+strconv.FormatInt(mib, 10)+"m"); err != nil {
		Unable(t, "no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}
