// Package kek opens the key-encryption key: the one secret under which a node's
// others are sealed (R-GAP-10). It is random and never changes; what protects it
// at rest can: a file's mode, a passphrase, or a key management service.
//
// The file kek in the keys directory holds it, wrapped or not, whatever the
// source, so that a change of source is the replacement of one file.
package kek

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"

	"creto.dev/fault"
	"creto.dev/internal/durable"
	"creto.dev/pqc"
)

// name is the file in the keys directory.
const name = "kek"

// Open returns the key-encryption key that is kept in dir, or makes it. Nobody
// else may be using dir. A key management service is asked once.
//
// Errors: FailedPrecondition (Permanent) because of CryptoDecryptionFailed if the
// passphrase or the KMS's key is not the one it was wrapped with: an administrator
// is told what to do, of which fault.Message would hide all; FailedPrecondition if
// the key is kept by another source than cfg says, or the KMS does not take it;
// DataLoss (Permanent) if the file is damaged; InvalidArgument (Permanent) for a
// bad configuration or too short a passphrase for a new key; Unavailable
// (Degraded) if the file or the KMS cannot be used.
func Open(ctx context.Context, cfg Config, dir string, p pqc.Provider) (pqc.SymmetricKey, error) {
	const op fault.Op = "kek.Open"
	if err := cfg.Validate(); err != nil {
		return pqc.SymmetricKey{}, fault.Wrap(op, err)
	}
	path := filepath.Join(dir, name)
	// A crash may have left a copy that is protected less than the key is now.
	if err := durable.Sweep(dir); err != nil {
		return pqc.SymmetricKey{}, fault.WrapAs(op, fault.Unavailable, err, "%s cannot be cleaned up", dir)
	}
	data, err := readPrivate(path, "the key-encryption key", maxFileBytes)
	if errors.Is(err, os.ErrNotExist) {
		key, err := create(ctx, cfg, path, p)
		return key, fault.Wrap(op, err)
	}
	if err != nil {
		return pqc.SymmetricKey{}, fault.Wrap(op, err)
	}
	key, err := unwrap(ctx, cfg, path, data, p)
	return key, fault.Wrap(op, err)
}

// Rewrap protects the key that is kept in dir as to says. It stays the same key,
// and what is sealed under it stays readable; a copy of the old file, as in a
// backup, keeps opening it by the old way. A crash leaves the key as it was or as
// it will be.
//
// Errors: those of Open, for either; NotFound (Permanent) if there is no key.
func Rewrap(ctx context.Context, from, to Config, dir string, p pqc.Provider) error {
	const op fault.Op = "kek.Rewrap"
	if err := to.Validate(); err != nil {
		return fault.Wrap(op, err)
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return fault.WrapAs(op, fault.NotFound, err, "there is no key-encryption key in %s yet; a node makes it when it starts first", dir)
	}
	key, err := Open(ctx, from, dir, p)
	if err != nil {
		return fault.Wrap(op, err)
	}
	data, err := wrap(ctx, to, key, path, p)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if err := durable.Replace(path, data); err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the key-encryption key %s cannot be written", path)
	}
	return nil
}

// readPrivate reads at most limit+1 bytes of a file that not everybody may read or
// write. Its group may: volumes of containers have one.
func readPrivate(path, what string, limit int64) ([]byte, error) {
	const op fault.Op = "kek.readPrivate"
	in, err := os.Open(path)
	if err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "%s %s cannot be read", what, path)
	}
	defer func() { _ = in.Close() }() // it was only read
	info, err := in.Stat()
	if err == nil && info.Mode().Perm()&0o007 != 0 {
		return nil, fault.New(op, fault.FailedPrecondition, "%s %s is open to everybody on this machine (mode %04o); if nobody used that, run: chmod 600 %s", what, path, info.Mode().Perm(), path)
	}
	var data []byte
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(in, limit+1))
	}
	return data, fault.WrapAs(op, fault.Unavailable, err, "%s %s cannot be read", what, path)
}

func create(ctx context.Context, cfg Config, path string, p pqc.Provider) (pqc.SymmetricKey, error) {
	const op fault.Op = "kek.create"
	key, err := p.GenerateSymmetricKey(pqc.AES256GCM)
	if err != nil {
		return pqc.SymmetricKey{}, fault.Wrap(op, err)
	}
	data, err := wrap(ctx, cfg, key, path, p)
	if err != nil {
		return pqc.SymmetricKey{}, fault.Wrap(op, err)
	}
	// What it seals is in the database with the next commit: it must be on disk
	// before that.
	if err := durable.Create(path, data); err != nil {
		return pqc.SymmetricKey{}, fault.WrapAs(op, fault.Unavailable, err, "the key-encryption key %s cannot be written", path)
	}
	return key, nil
}

// wrap returns the file for key, which it has opened again: a KMS may answer
// nonsense, and there is no second copy.
func wrap(ctx context.Context, cfg Config, key pqc.SymmetricKey, path string, p pqc.Provider) ([]byte, error) {
	const op fault.Op = "kek.wrap"
	var data []byte
	var err error
	switch cfg.source() {
	case SourcePassphrase:
		data, err = wrapWithPassphrase(cfg, key, p)
	case SourceKMS:
		data, err = wrapWithKMS(ctx, cfg, key)
	default:
		data = []byte(base64.StdEncoding.EncodeToString(key.Bytes) + "\n")
	}
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	again, err := unwrap(ctx, cfg, path, data, p)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	if again.ID != key.ID {
		return nil, fault.New(op, fault.CryptoInternal, "the key-encryption key does not come back as it was wrapped")
	}
	return data, nil
}

// notOpened is that a wrapped key does not open, with what to do about it.
func notOpened(op fault.Op, cause error, format string, args ...any) error {
	failed := fault.New(op, fault.CryptoDecryptionFailed, "the key-encryption key does not open")
	if cause != nil {
		failed = fault.WrapAs(op, fault.CryptoDecryptionFailed, cause, "the key-encryption key does not open")
	}
	return fault.WrapAs(op, fault.FailedPrecondition, failed, format, args...)
}

// unwrap reads the file's content. path is for messages.
func unwrap(ctx context.Context, cfg Config, path string, data []byte, p pqc.Provider) (pqc.SymmetricKey, error) {
	const op fault.Op = "kek.unwrap"
	f, err := parse(data)
	if err != nil {
		return pqc.SymmetricKey{}, fault.WrapAs(op, fault.DataLoss, err, "the key-encryption key %s is damaged; restore it from a backup", path)
	}
	if f.Source != cfg.source() {
		return pqc.SymmetricKey{}, fault.New(op, fault.FailedPrecondition,
			"the key-encryption key %s is kept by %q, but the configuration says %q; set keys.source back, or change how it is kept with: creto keys rewrap", path, f.Source, cfg.source())
	}
	var raw []byte
	switch f.Source {
	case SourcePassphrase:
		raw, err = unwrapWithPassphrase(cfg, f, path, p)
	case SourceKMS:
		raw, err = unwrapWithKMS(ctx, cfg, f, path)
	default:
		raw = f.Wrapped
	}
	if err != nil {
		return pqc.SymmetricKey{}, fault.Wrap(op, err)
	}
	key := pqc.NewSymmetricKey(pqc.AES256GCM, raw)
	if len(raw) != pqc.SymmetricKeySize || f.Source != SourceFile && key.ID != f.Key {
		return pqc.SymmetricKey{}, fault.New(op, fault.DataLoss, "the key-encryption key %s is damaged; restore it from a backup", path)
	}
	return key, nil
}
