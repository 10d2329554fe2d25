package secretsource

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// Files is a directory with a file for each secret, such as a mounted Kubernetes
// secret or systemd's credentials directory. Nothing outside of it is read,
// symbolic links included.
type Files struct{ root *os.Root }

var _ nhi.SecretSource = (*Files)(nil)

// OpenFiles opens a directory. The caller closes it.
//
// Errors: Unavailable (Degraded) if it cannot be opened; FailedPrecondition
// (Permanent) if others may put files into it.
func OpenFiles(dir string) (*Files, error) {
	const op fault.Op = "secretsource.OpenFiles"
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the directory of secrets %s cannot be opened", dir)
	}
	info, err := root.Stat(".")
	if err != nil {
		return nil, errors.Join(fault.WrapAs(op, fault.Unavailable, err, "the directory of secrets %s cannot be read", dir), root.Close())
	}
	// In one with the sticky bit others may add files, but not replace ours;
	// whose a file is, is looked at when it is read.
	if info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 || !ours(info) {
		return nil, errors.Join(fault.New(op, fault.FailedPrecondition, "others may put files into the directory of secrets %s; chmod go-w, and make it this user's or root's", dir), root.Close())
	}
	return &Files{root}, nil
}

// ours reports whether a file is this user's or root's.
func ours(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && (stat.Uid == 0 || int64(stat.Uid) == int64(os.Geteuid()))
}

// Close gives the directory back.
func (f *Files) Close() error { return f.root.Close() }

// Secret implements nhi.SecretSource; locator is the file's path below the
// directory. One line break at the end is no part of the value. A file that
// others may read or that anybody else may write is refused.
func (f *Files) Secret(_ context.Context, locator string) (creto.Secret, error) {
	const op fault.Op = "secretsource.Files.Secret"
	if !isPath(locator) {
		return creto.Secret{}, fault.New(op, fault.NHISecretNotFound, "%.100q is no path of a secret", locator)
	}
	// Without O_NONBLOCK a named pipe would hold the caller up.
	file, err := f.root.OpenFile(locator, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return creto.Secret{}, fault.New(op, fault.NHISecretNotFound, "there is no file %s", locator)
	case err != nil: // a link that leads outside, too
		return creto.Secret{}, fault.WrapAs(op, fault.NHISecretAccessDenied, err, "its file cannot be opened")
	}
	defer func() { _ = file.Close() }() // it was only read
	info, err := file.Stat()
	switch {
	case err != nil:
		return creto.Secret{}, fault.WrapAs(op, fault.NHIUnavailable, err, "its file cannot be read")
	case !info.Mode().IsRegular():
		return creto.Secret{}, fault.New(op, fault.FailedPrecondition, "its file is no regular one")
	case info.Mode().Perm()&0o027 != 0 || !ours(info):
		return creto.Secret{}, fault.New(op, fault.FailedPrecondition, "its file can be read by others, or is theirs; chmod 600, and make it this user's or root's")
	case info.Size() > nhi.MaxSecretBytes+1:
		return creto.Secret{}, tooLarge(op)
	}
	value, err := io.ReadAll(io.LimitReader(file, nhi.MaxSecretBytes+2))
	if err != nil {
		return creto.Secret{}, fault.WrapAs(op, fault.NHIUnavailable, err, "its file cannot be read")
	}
	defer clear(value)
	if cut, ok := bytes.CutSuffix(value, []byte("\n")); ok {
		value = bytes.TrimSuffix(cut, []byte("\r"))
	}
	switch {
	case len(value) == 0:
		return creto.Secret{}, fault.New(op, fault.NHISecretNotFound, "the file %s is empty", locator)
	case len(value) > nhi.MaxSecretBytes:
		return creto.Secret{}, tooLarge(op)
	}
	return creto.NewSecret(string(value)), nil
}
