package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"creto.dev/internal/durable"
)

// only expects that a directory holds one file of this content, for its owner.
func only(t *testing.T, path, want string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || string(data) != want {
		t.Errorf("the file holds %q, %v; want %q", data, err, want)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v; want 0600", info.Mode(), err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v; want one file", entries, err)
	}
}

func TestCreateAndReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := durable.Create(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	only(t, path, "one")
	if err := durable.Create(path, []byte("two")); !errors.Is(err, os.ErrExist) {
		t.Errorf("Create of a file that is there = %v, want ErrExist", err)
	}
	only(t, path, "one")
	if err := durable.Replace(path, []byte("two")); err != nil {
		t.Fatal(err)
	}
	only(t, path, "two")
	if err := durable.Replace(filepath.Join(path, "below"), nil); err == nil {
		t.Error("Replace of a file below a file succeeds")
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"file", ".new-123", ".new-4"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("one"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.Sweep(dir); err != nil {
		t.Fatal(err)
	}
	only(t, filepath.Join(dir, "file"), "one")
	if err := durable.Sweep(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Sweep of no directory = %v, want ErrNotExist", err)
	}
}
