package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// scratch is where the tree is first built: any directory will do, since a
// file system in memory covers it, in this mount namespace only.
const scratch = "/tmp"

// enter builds config's tree and makes it the root, in the namespaces that
// this process was started in. The kernel drops everything mounted with the
// last process of the namespace, however it ends.
func enter(config Config) error {
	if os.Getpid() != 1 {
		return errors.New("not the first process of a process namespace")
	}
	// What the caller's umask hides must not decide what the command reads.
	unix.Umask(0o022)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := tmpfs(scratch, rootBytes, 0o755); err != nil {
		return err
	}
	if err := mkdir(filepath.Join(scratch, oldDir)); err != nil {
		return err
	}
	if err := unix.PivotRoot(scratch, filepath.Join(scratch, oldDir)); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	b := builder{base: "/", host: "/" + oldDir, tree: config.Tree}
	if err := b.static(); err != nil {
		return err
	}
	if err := b.kernelFiles(); err != nil {
		return err
	}
	if err := b.dynamic(); err != nil {
		return err
	}
	if err := os.Mkdir(b.inside(HomePath), 0o700); err != nil {
		return err
	}
	// The second pivot leaves the host behind: the old root is stacked on the
	// new one and detached from there (pivot_root(2), "pivot_root(".", ".")").
	if err := os.Chdir(b.inside("/")); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &attr); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	if err := unix.Sethostname([]byte(config.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	return loopback()
}

// devices are the device files that programs expect and that give nothing
// away.
func devices() []string { return []string{"full", "null", "random", "tty", "urandom", "zero"} }

// kernelFiles mounts /proc, /dev and /tmp.
func (b builder) kernelFiles() error {
	if err := tmpfs(b.inside("/tmp"), b.tree.DiskBytes, 0o1777); err != nil {
		return err
	}
	if err := tmpfs(b.inside("/dev"), 64<<10, 0o755); err != nil {
		return err
	}
	for _, name := range devices() {
		target := b.inside("/dev/" + name)
		if err := os.WriteFile(target, nil, 0o644); err != nil {
			return err
		}
		// Not restrict: a device behind nodev cannot be opened.
		if err := unix.Mount(b.source("/dev/"+name), target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /dev/%s: %w", name, err)
		}
	}
	for path, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1",
		"/dev/stderr": "/proc/self/fd/2", "/dev/ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, b.inside(path)); err != nil {
			return err
		}
	}
	if err := mkdir(b.inside("/dev/pts"), b.inside("/dev/shm")); err != nil {
		return err
	}
	if err := unix.Mount("devpts", b.inside("/dev/pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	if err := tmpfs(b.inside("/dev/shm"), b.tree.DiskBytes, 0o1777); err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, b.inside("/dev"), 0, &attr); err != nil {
		return fmt.Errorf("make /dev read-only: %w", err)
	}
	return b.proc()
}

// proc mounts this process namespace's /proc and covers what an OCI runtime
// covers (runtime-tools, "DefaultMaskedPaths" and "ReadonlyPaths" of Docker).
func (b builder) proc() error {
	proc := b.inside("/proc")
	if err := unix.Mount("proc", proc, "proc", quiet|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w (in a container whose own /proc is partly covered the kernel refuses this; start that one with an uncovered /proc)", err)
	}
	for _, name := range []string{"acpi", "asound", "interrupts", "kcore", "keys", "kallsyms", "kpagecount", "kpageflags", "kpagecgroup", "latency_stats", "sched_debug", "scsi", "slabinfo", "timer_list", "timer_stats", "vmallocinfo"} {
		path := filepath.Join(proc, name)
		info, err := os.Lstat(path)
		if err != nil {
			continue // this kernel has none
		}
		if info.IsDir() {
			if err := tmpfs(path, 4096, 0o555); err != nil {
				return err
			}
			if err := restrict(path, unix.MOUNT_ATTR_RDONLY); err != nil {
				return err
			}
			continue
		}
		if err := unix.Mount(b.source("/dev/null"), path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mask /proc/%s: %w", name, err)
		}
	}
	for _, name := range []string{"acpi", "bus", "fs", "irq", "mtrr", "pressure", "scsi", "sys", "sysrq-trigger"} {
		path := filepath.Join(proc, name)
		if err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			if errors.Is(err, syscall.ENOENT) {
				continue
			}
			return fmt.Errorf("protect /proc/%s: %w", name, err)
		}
		if err := restrict(path, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOEXEC); err != nil {
			return err
		}
	}
	return nil
}

// loopback brings lo up: the one network interface of a new namespace.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}
