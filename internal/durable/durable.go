// Package durable writes files that a crash leaves whole or not at all.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// pattern names what is being written, beside what it will be.
const pattern = ".new-*"

// Create writes a file that is not there yet, for its owner only. When it
// returns, the file survives a crash.
//
// Errors: the system's; os.ErrExist for a file that is there.
func Create(path string, data []byte) error {
	return write(path, data, os.Link) // unlike a rename, replaces nothing
}

// Replace is Create for a file that may be there: a crash leaves the old content
// or the new one.
//
// Errors: the system's.
func Replace(path string, data []byte) error { return write(path, data, os.Rename) }

// write makes data durable under another name and has publish give it its own.
func write(path string, data []byte, publish func(from, to string) error) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	file, err := os.CreateTemp(dir.Name(), pattern)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = publish(file.Name(), path)
	}
	if removed := os.Remove(file.Name()); !errors.Is(removed, os.ErrNotExist) {
		err = errors.Join(err, removed)
	}
	return errors.Join(err, dir.Sync())
}

// Sweep removes from a directory what crashes left of Create and Replace. Nobody
// else may be writing there.
//
// Errors: the system's.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ok, _ := filepath.Match(pattern, e.Name()); ok {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}
