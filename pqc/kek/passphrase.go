package kek

import (
	"bytes"
	"crypto/rand"

	"golang.org/x/crypto/argon2"

	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/pqc"
)

// stretch is how argon2id (RFC 9106) makes a key of a passphrase.
type stretch struct {
	Passes    uint32 `cbor:"1,keyasint"`
	MemoryKiB uint32 `cbor:"2,keyasint"`
	Lanes     uint8  `cbor:"3,keyasint"`
	Salt      []byte `cbor:"4,keyasint"`
}

// The parameters for new keys: the second recommendation of RFC 9106, section 4,
// for where 2 GiB are not to be had.
const (
	passes    = 3
	memoryKiB = 64 << 10
	lanes     = 4
	saltBytes = 16
)

// What is read may ask for at most this much, lest a changed file take all
// memory, and for at least this much, lest it make guessing cheap. The latter is
// what OWASP's Password Storage Cheat Sheet asks for.
const (
	maxPasses    = 64
	minMemoryKiB = 19 << 10
	maxMemoryKiB = 4 << 20
	maxLanes     = 64
)

// IsZero is for the encoder's omitzero: a struct with a slice has no == to use.
func (s stretch) IsZero() bool {
	return s.Passes == 0 && s.MemoryKiB == 0 && s.Lanes == 0 && s.Salt == nil
}

func (s stretch) validate() error {
	if s.Passes < 2 || s.Passes > maxPasses || s.MemoryKiB < minMemoryKiB || s.MemoryKiB > maxMemoryKiB ||
		s.Lanes < 1 || s.Lanes > maxLanes || len(s.Salt) != saltBytes {
		return fault.New("kek.stretch.validate", fault.InvalidArgument, "%d passes over %d KiB in %d lanes with %d bytes of salt are out of bounds", s.Passes, s.MemoryKiB, s.Lanes, len(s.Salt))
	}
	return nil
}

// key returns the key that wraps the key-encryption key. Its id depends on the
// passphrase and is not kept.
func (s stretch) key(passphrase []byte) pqc.SymmetricKey {
	return pqc.NewSymmetricKey(pqc.AES256GCM, argon2.IDKey(passphrase, s.Salt, s.Passes, s.MemoryKiB, s.Lanes, pqc.SymmetricKeySize))
}

// maxPassphraseBytes bounds the passphrase file.
const maxPassphraseBytes = 4 << 10

func (c Config) passphrase() ([]byte, error) {
	const op fault.Op = "kek.passphrase"
	if !c.Passphrase.IsZero() {
		return []byte(c.Passphrase.Reveal()), nil
	}
	text, err := readPrivate(c.PassphraseFile, "the passphrase file", maxPassphraseBytes)
	switch {
	case err != nil:
		return nil, fault.Wrap(op, err)
	case len(text) > maxPassphraseBytes:
		return nil, fault.New(op, fault.InvalidArgument, "the passphrase file %s has more than %d bytes", c.PassphraseFile, maxPassphraseBytes)
	}
	text = bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	if len(text) == 0 {
		return nil, fault.New(op, fault.InvalidArgument, "the passphrase file %s is empty", c.PassphraseFile)
	}
	return text, nil
}

func wrapWithPassphrase(cfg Config, key pqc.SymmetricKey, p pqc.Provider) ([]byte, error) {
	const op fault.Op = "kek.wrapWithPassphrase"
	passphrase, err := cfg.passphrase()
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	if n := len(bytes.TrimSpace(passphrase)); n < minPassphrase {
		return nil, fault.New(op, fault.InvalidArgument, "the passphrase has %d bytes; at least %d are needed, as nothing else protects the key", n, minPassphrase)
	}
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt) // documented never to return an error
	f := file{Version: fileVersion, Source: SourcePassphrase, Key: key.ID, Stretch: stretch{passes, memoryKiB, lanes, salt}}
	associated, err := f.associated()
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	wrapped, err := p.Encrypt(key.Bytes, associated, f.Stretch.key(passphrase))
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	f.Wrapped = wrapped.Bytes
	return canon.Marshal(f)
}

func unwrapWithPassphrase(cfg Config, f file, path string, p pqc.Provider) ([]byte, error) {
	const op fault.Op = "kek.unwrapWithPassphrase"
	passphrase, err := cfg.passphrase()
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	associated, err := f.associated()
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	key := f.Stretch.key(passphrase)
	raw, err := p.Decrypt(pqc.EncryptedData{Algorithm: key.Algorithm, Key: key.ID, Bytes: f.Wrapped}, associated, key)
	if err == nil {
		return raw, nil
	}
	return nil, notOpened(op, err, "the passphrase does not open the key-encryption key %s; give the one it was wrapped with last (keys.passphrase, keys.passphrase_file), or restore the file from a backup if it was damaged", path)
}
