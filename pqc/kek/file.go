package kek

import (
	"bytes"
	"encoding/base64"

	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/pqc"
)

// file is what is kept: of SourceFile a line of base64 with the key, of the
// others the canonical encoding of this.
type file struct {
	Version uint   `cbor:"1,keyasint"`
	Source  Source `cbor:"2,keyasint"`
	// Key names the key that is wrapped.
	Key pqc.KeyID `cbor:"3,keyasint"`
	// Stretch is set for SourcePassphrase.
	Stretch stretch `cbor:"4,keyasint,omitzero"`
	// Wrapped is the key, sealed as its source does.
	Wrapped []byte `cbor:"5,keyasint"`
}

// fileVersion is the version of file's encoding.
const fileVersion = 1

// maxFileBytes bounds the file: a KMS's ciphertext takes some hundred bytes.
const maxFileBytes = 16 << 10

// parse reads the file. The key in it is not checked yet.
//
// Errors: InvalidArgument (Permanent).
func parse(data []byte) (file, error) {
	const op fault.Op = "kek.parse"
	if len(data) == 0 || len(data) > maxFileBytes {
		return file{}, fault.New(op, fault.InvalidArgument, "%d bytes; allowed are 1 to %d", len(data), maxFileBytes)
	}
	if data[0] < 0x80 { // no canonical struct begins with a letter
		raw, err := base64.StdEncoding.Strict().DecodeString(string(bytes.TrimSpace(data)))
		if err != nil || len(raw) != pqc.SymmetricKeySize {
			return file{}, fault.New(op, fault.InvalidArgument, "no line of base64 with %d bytes", pqc.SymmetricKeySize)
		}
		return file{Version: fileVersion, Source: SourceFile, Wrapped: raw}, nil
	}
	var f file
	if err := canon.Unmarshal(data, &f); err != nil {
		return file{}, fault.Wrap(op, err)
	}
	switch {
	case f.Version != fileVersion:
		return file{}, fault.New(op, fault.InvalidArgument, "version %d; this creto knows %d", f.Version, fileVersion)
	case f.Source == SourcePassphrase:
		return f, fault.Wrap(op, f.Stretch.validate())
	case f.Source == SourceKMS && f.Stretch.IsZero():
		return f, nil
	}
	return file{}, fault.New(op, fault.InvalidArgument, "source %q is none that is wrapped, or has what is not its own", f.Source)
}

// associated is what a wrapped key is bound to: all of the file but the key.
func (f file) associated() ([]byte, error) {
	f.Wrapped = nil
	return canon.Marshal(f)
}
