package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Tree describes the sandbox's file system. Paths are absolute; sources are on
// the host, the others inside.
type Tree struct {
	// Links are symbolic links, path to target.
	Links map[string]string
	// Files are small files, path to content.
	Files map[string]string
	// ReadOnly are directories and files of the host, under their own path.
	ReadOnly []string
	// Overlay is a directory of the host whose changes are discarded; empty
	// for none.
	Overlay string
	// Write are directories of the host whose changes are kept.
	Write []string
	// Masked are directories shown empty and unreadable.
	Masked []string
	// Gateway is the host's directory shown as GatewayPath.
	Gateway string
	// DiskBytes bounds each file system in memory.
	DiskBytes int64
	// Base is, for ModeStage, an empty directory of the host on which the
	// tree is built, in this mount namespace only.
	Base string `json:",omitempty"`
}

// The fixed places inside.
const (
	GatewayPath = "/run/creto"
	HomePath    = "/tmp/home"
	// SocketName is the gateway's socket in GatewayPath.
	SocketName = "gateway.sock"
)

// Below a tree's base.
const (
	rootDir    = "root"    // the sandbox's root
	changesDir = "changes" // the overlay's file system in memory
	lowerDir   = "lower"   // the overlay's lower directory, bound
	mergedDir  = "merged"  // the overlay, for ModeStage
	oldDir     = "old"     // the host's root, for ModeNamespaces
)

const (
	// quiet are the flags of every mount: nothing in a sandbox gains
	// privileges from a file, nor reaches a device by one.
	quiet = unix.MS_NOSUID | unix.MS_NODEV
	// rootBytes bounds the root's own small files.
	rootBytes = 16 << 20
)

// builder builds a tree below base, with the host's root at host.
type builder struct {
	base, host string
	tree       Tree
}

func (b builder) inside(path string) string { return filepath.Join(b.base, rootDir, path) }
func (b builder) source(path string) string { return filepath.Join(b.host, path) }

// static builds what every engine shares: the root, its files and links, and
// the host's read-only directories.
func (b builder) static() error {
	root := b.inside("/")
	if err := mkdir(root); err != nil {
		return err
	}
	if err := tmpfs(root, rootBytes, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/etc", "/proc", "/run", GatewayPath, "/sys", "/tmp"} {
		if err := mkdir(b.inside(dir)); err != nil {
			return err
		}
	}
	for path, content := range b.tree.Files {
		if err := os.MkdirAll(filepath.Dir(b.inside(path)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(b.inside(path), []byte(content), 0o644); err != nil {
			return err
		}
	}
	for path, target := range b.tree.Links {
		if err := os.Symlink(target, b.inside(path)); err != nil {
			return err
		}
	}
	for _, path := range b.tree.ReadOnly {
		if err := bind(b.source(path), root, path, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
	}
	return nil
}

// overlay mounts the working directory's overlay at target.
func (b builder) overlay(target string) error {
	changes, lower := filepath.Join(b.base, changesDir), filepath.Join(b.base, lowerDir)
	upper, work := filepath.Join(changes, "upper"), filepath.Join(changes, "work")
	if err := mkdir(changes, lower); err != nil {
		return err
	}
	if err := tmpfs(changes, b.tree.DiskBytes, 0o700); err != nil {
		return err
	}
	if err := mkdir(upper, work); err != nil {
		return err
	}
	source := b.source(b.tree.Overlay)
	// The overlay's root takes its owner and mode from upper.
	var info unix.Stat_t
	if err := unix.Stat(source, &info); err != nil {
		return &os.PathError{Op: "stat", Path: b.tree.Overlay, Err: err}
	}
	if err := os.Chmod(upper, os.FileMode(info.Mode&0o777)); err != nil {
		return err
	}
	if err := os.Chown(upper, int(info.Uid), int(info.Gid)); err != nil && !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	// Bound to a plain name, since an overlay's options cannot quote all.
	if err := unix.Mount(source, lower, "", unix.MS_BIND, ""); err != nil {
		if errors.Is(err, syscall.EINVAL) {
			return fmt.Errorf("the working directory %q contains mount points, which an overlay cannot show; choose a directory below or beside them, or pass it as one whose changes are kept", b.tree.Overlay)
		}
		return fmt.Errorf("bind %q: %w", b.tree.Overlay, err)
	}
	options := "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work + ",userxattr"
	if err := unix.Mount("overlay", target, "overlay", quiet, options); err != nil {
		return fmt.Errorf("overlay on %q: %w (the kernel must be 5.11 or newer, and its file system usable as a lower layer)", b.tree.Overlay, err)
	}
	return nil
}

// dynamic mounts, below root, what lies over the host's read-only part: the
// working directory, the directories that are kept, the masks, the gateway.
func (b builder) dynamic() error {
	root := b.inside("/")
	if b.tree.Overlay != "" {
		target, err := mountpoint(root, b.tree.Overlay, true)
		if err != nil {
			return err
		}
		if err := b.overlay(target); err != nil {
			return err
		}
	}
	for _, path := range b.tree.Write {
		if err := bind(b.source(path), root, path, 0); err != nil {
			return err
		}
	}
	for _, path := range b.tree.Masked {
		target, err := mountpoint(root, path, true)
		if err != nil {
			return err
		}
		if err := tmpfs(target, 4096, 0o000); err != nil {
			return err
		}
		if err := restrict(target, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
	}
	if err := unix.Mount(b.source(b.tree.Gateway), b.inside(GatewayPath), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the gateway's directory: %w", err)
	}
	return restrict(b.inside(GatewayPath), unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOEXEC)
}

// stage builds the static part and the overlay for another engine, and becomes
// that engine's program.
func stage(config Config, control io.Reader) error {
	b := builder{base: config.Tree.Base, host: "/", tree: config.Tree}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := b.static(); err != nil {
		return err
	}
	if b.tree.Overlay != "" {
		target := filepath.Join(b.base, mergedDir)
		if err := mkdir(target); err != nil {
			return err
		}
		if err := b.overlay(target); err != nil {
			return err
		}
	}
	for _, path := range slices.Concat(b.tree.Write, b.tree.Masked, []string{config.Dir}) {
		if _, err := mountpoint(b.inside("/"), path, true); err != nil {
			return err
		}
	}
	if err := awaitGo(control); err != nil {
		return err
	}
	// The engine gets the pipes, the link and the executable.
	if err := closeOnExec(StageFDs); err != nil {
		return err
	}
	return &os.PathError{Op: "exec", Path: config.Exec[0], Err: unix.Exec(config.Exec[0], config.Exec, os.Environ())}
}

// StageRoot returns where ModeStage builds the root's static part.
func StageRoot(base string) string { return filepath.Join(base, rootDir) }

// StageOverlay returns where ModeStage mounts the working directory's overlay.
func StageOverlay(base string) string { return filepath.Join(base, mergedDir) }

// bind shows source, with everything mounted below it, at path below root.
func bind(source, root, path string, attributes uint64) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	target, err := mountpoint(root, path, info.IsDir())
	if err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %q: %w", path, err)
	}
	return restrict(target, attributes)
}

// restrict adds attributes, and nosuid and nodev, to target and the mounts
// below it. Unlike a remount it clears none, so that it works where an outer
// namespace locked some.
func restrict(target string, attributes uint64) error {
	attr := unix.MountAttr{Attr_set: attributes | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("restrict mount %q: %w (the kernel must be 5.12 or newer)", target, err)
	}
	return nil
}

func tmpfs(target string, size int64, mode os.FileMode) error {
	options := fmt.Sprintf("size=%d,mode=%o", size, mode)
	if err := unix.Mount("tmpfs", target, "tmpfs", quiet, options); err != nil {
		return fmt.Errorf("tmpfs on %q: %w", target, err)
	}
	return nil
}

// mountpoint makes path below root, if needed, and returns it. It follows no
// symbolic link: one in a directory that programs may change could lead a
// mount astray.
func mountpoint(root, path string, dir bool) (string, error) {
	at := root
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for i, part := range parts {
		at = filepath.Join(at, part)
		info, err := os.Lstat(at)
		switch last := i == len(parts)-1; {
		case err == nil && info.Mode()&os.ModeSymlink != 0:
			return "", fmt.Errorf("%q leads over a symbolic link", path)
		case err == nil:
		case !errors.Is(err, os.ErrNotExist):
			return "", err
		case last && !dir:
			if err := os.WriteFile(at, nil, 0o644); err != nil {
				return "", err
			}
		default:
			if err := os.Mkdir(at, 0o755); err != nil {
				return "", err
			}
		}
	}
	return at, nil
}

func mkdir(dirs ...string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}
