package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"creto.dev/fault"
)

// maxIDBytes bounds a run's ID, which becomes a host name.
const maxIDBytes = 63

// systemDirs are the host's own: neither they nor anything below them, nor
// what contains them, is a project.
func systemDirs() []string {
	return []string{"/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys", "/usr", "/var/run"}
}

// sharedDirs hold the directories of many owners: what lies below may be a
// project, they themselves are none.
func sharedDirs() []string {
	return []string{"/", "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/tmp", "/var", "/var/backups", "/var/cache", "/var/lib", "/var/log", "/var/mail", "/var/spool", "/var/tmp"}
}

// Validate reports every problem of s at once. It resolves symbolic links, so
// that a name cannot hide where it leads.
//
// Dir and each Write must be existing project directories: not the root, a
// directory of the system, one shared by many (/home, /tmp, /var/lib), a home
// directory itself, nor a hidden directory of a home (~/.ssh, ~/.config), for
// everything in Dir can be read and everything in Write changed. No Write may
// overlap DataDir or GatewayDir, and Dir may not lie in DataDir; if Dir
// contains DataDir, the latter is masked.
//
// Errors: InvalidArgument (Permanent).
func (s Spec) Validate() error {
	_, err := s.Resolve()
	return err
}

// Resolve validates s and returns a copy with absolute paths free of symbolic
// links, Write sorted without duplicates, and the defaults filled in. Backends
// begin with it.
//
// Errors: as [Spec.Validate].
func (s Spec) Resolve() (Spec, error) {
	const op fault.Op = "sandbox.Spec.Validate"
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if !validID(s.ID) {
		bad("id: %q is not 1 to %d of a-z, 0-9 and '-'", s.ID, maxIDBytes)
	}
	if err := s.Agent.Validate(); err != nil {
		bad("agent: %s", fault.Message(err))
	}
	if len(s.Command) == 0 || s.Command[0] == "" {
		bad("command: required")
	}
	for _, text := range slices.Concat(s.Command, s.Env) {
		if strings.ContainsRune(text, 0) {
			bad("command, env: %q holds a zero byte", text)
		}
	}
	for _, entry := range s.Env {
		if name, _, ok := strings.Cut(entry, "="); !ok || name == "" {
			bad("env: %q is not NAME=value", entry)
		}
	}
	errs = append(errs, s.Limits.validate()...)
	if s.Patience < 0 || s.Grace < 0 {
		bad("patience, grace: negative")
	}
	errs = append(errs, s.resolvePaths()...)
	if err := errors.Join(errs...); err != nil {
		return Spec{}, fault.New(op, fault.InvalidArgument, "%v", err)
	}
	s.Limits = s.Limits.withDefaults()
	return s, nil
}

// resolvePaths resolves s's paths in place.
func (s *Spec) resolvePaths() []error {
	var errs []error
	check := func(field, path string, rule func(string) error) string {
		real, err := realDir(path)
		if err == nil && rule != nil {
			err = rule(real)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
		return real
	}
	homes := homeDirs()
	project := func(dir string) error { return projectDir(dir, homes) }

	s.Dir = check("dir", s.Dir, project)
	s.GatewayDir = check("gateway dir", s.GatewayDir, nil)
	if s.DataDir != "" {
		s.DataDir = check("data dir", s.DataDir, nil)
	}
	writes := make([]string, 0, len(s.Write))
	for _, dir := range s.Write {
		writes = append(writes, check("write", dir, func(dir string) error {
			for _, other := range []struct{ what, dir string }{{"data", s.DataDir}, {"gateway's", s.GatewayDir}} {
				if other.dir != "" && (within(dir, other.dir) || within(other.dir, dir)) {
					return fmt.Errorf("%q overlaps the %s directory %q; choose another directory", dir, other.what, other.dir)
				}
			}
			return project(dir)
		}))
	}
	slices.Sort(writes)
	s.Write = slices.Compact(writes)
	if s.DataDir != "" && s.Dir != "" && within(s.Dir, s.DataDir) {
		errs = append(errs, fmt.Errorf("dir: %q lies in the data directory %q; choose a project directory", s.Dir, s.DataDir))
	}
	if s.Executable != "" && !filepath.IsAbs(s.Executable) {
		errs = append(errs, fmt.Errorf("executable: %q is not an absolute path", s.Executable))
	}
	return errs
}

func realDir(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%q is not an absolute path", path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("%q cannot be resolved (%w)", path, err)
	}
	if info, err := os.Stat(real); err != nil || !info.IsDir() {
		return "", fmt.Errorf("%q is not a directory", path)
	}
	return real, nil
}

func projectDir(dir string, homes []string) error {
	for _, system := range systemDirs() {
		if within(dir, system) || within(system, dir) {
			return fmt.Errorf("%q holds the system's files; choose a project directory", dir)
		}
	}
	if slices.Contains(sharedDirs(), dir) {
		return fmt.Errorf("%q is shared by many programs; choose a project directory", dir)
	}
	for _, home := range homes {
		if within(home, dir) {
			return fmt.Errorf("%q holds a home directory, with its keys and credentials; choose a project directory", dir)
		}
		if rest, ok := strings.CutPrefix(dir, home+"/"); ok && strings.HasPrefix(rest, ".") {
			return fmt.Errorf("%q is a hidden directory of a home, where keys and credentials are; choose a project directory", dir)
		}
	}
	return nil
}

// homeDirs returns the home directories that are known without a directory
// service: the caller's, root's and those below /home, symbolic links resolved.
func homeDirs() []string {
	homes := []string{"/root"}
	if home, err := os.UserHomeDir(); err == nil {
		homes = append(homes, home)
	}
	if u, err := user.Current(); err == nil {
		homes = append(homes, u.HomeDir)
	}
	if entries, err := os.ReadDir("/home"); err == nil {
		for _, e := range entries {
			homes = append(homes, "/home/"+e.Name())
		}
	}
	var real []string
	for _, home := range homes {
		// A service's home of "/" or of nowhere protects nothing.
		if path, err := filepath.EvalSymlinks(home); err == nil && path != "/" && filepath.IsAbs(path) {
			real = append(real, path)
		}
	}
	return real
}

// within reports whether path is dir or lies below it.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

func validID(id string) bool {
	return id != "" && len(id) <= maxIDBytes && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && id[0] != '-'
}

func (l Limits) validate() []error {
	var errs []error
	for _, f := range []struct {
		name       string
		value, min int64
	}{
		{"memory_bytes", l.MemoryBytes, 16 << 20},
		{"processes", int64(l.Processes), 16},
		{"open_files", int64(l.OpenFiles), 64},
		{"disk_bytes", l.DiskBytes, 1 << 20},
		{"cpu_millis", int64(l.CPUMillis), 10},
		{"wall_clock", int64(l.WallClock), 1},
	} {
		if f.value != 0 && f.value < f.min {
			errs = append(errs, fmt.Errorf("limits: %s: %d is below %d", f.name, f.value, f.min))
		}
	}
	return errs
}

func (l Limits) withDefaults() Limits {
	if l.MemoryBytes == 0 {
		l.MemoryBytes = DefaultMemoryBytes
	}
	if l.Processes == 0 {
		l.Processes = DefaultProcesses
	}
	if l.OpenFiles == 0 {
		l.OpenFiles = DefaultOpenFiles
	}
	if l.DiskBytes == 0 {
		l.DiskBytes = DefaultDiskBytes
	}
	return l
}
