package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/pqc"
)

// A checkpoint is a C2SP signed note with one signature line of ours, of
// algorithm byte 0xff: "— <origin> base64(key id || composite signature)".
//
// https://c2sp.org/signed-note and https://c2sp.org/tlog-checkpoint.

// keyIDBytes is the length of a note's key id.
const keyIDBytes = 4

// sigPrefix begins each signature line.
const sigPrefix = "— "

// SignCheckpoint makes the signed note of a head.
//
// Errors: those of pqc.Provider.Sign.
func SignCheckpoint(p pqc.Provider, key pqc.SigningKey, origin string, size int64, root [32]byte) (Checkpoint, error) {
	const op fault.Op = "audit.SignCheckpoint"
	public, err := p.Public(key)
	if err != nil {
		return Checkpoint{}, fault.Wrap(op, err)
	}
	text := checkpointText(origin, size, root)
	sig, err := p.Sign(pqc.PurposeCheckpoint, text, key)
	if err != nil {
		return Checkpoint{}, fault.Wrap(op, err)
	}
	return Checkpoint{Size: size, Root: root, Note: joinNote(text, origin, public, sig.Bytes)}, nil
}

// VerifyCheckpoint reads a note and checks its signature. Only the exact bytes
// that SignCheckpoint makes are accepted.
//
// Errors: AuditInvalidSignature (Security), AuditValidationFailed (Permanent).
func VerifyCheckpoint(p pqc.Provider, note []byte, origin string, key pqc.PublicKey) (Checkpoint, error) {
	const op fault.Op = "audit.VerifyCheckpoint"
	malformed := fault.New(op, fault.AuditValidationFailed, "the checkpoint is malformed")
	text, line, ok := bytes.Cut(note, []byte("\n\n"))
	lines := strings.Split(string(text), "\n")
	if !ok || len(lines) != 3 || lines[0] != origin {
		return Checkpoint{}, malformed
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	root, errRoot := base64.StdEncoding.DecodeString(lines[2])
	fields := strings.Fields(string(line))
	if err != nil || errRoot != nil || len(root) != 32 || size < 0 || len(fields) != 3 {
		return Checkpoint{}, malformed
	}
	blob, err := base64.StdEncoding.DecodeString(fields[2])
	if err != nil || len(blob) < keyIDBytes {
		return Checkpoint{}, malformed
	}
	c := Checkpoint{Size: size, Root: [32]byte(root), Note: slices.Clone(note)}
	signed := checkpointText(origin, size, c.Root)
	sig := pqc.Signature{Algorithm: key.Algorithm, Key: key.ID, Bytes: blob[keyIDBytes:]}
	if err := p.Verify(pqc.PurposeCheckpoint, signed, sig, key); err != nil {
		return Checkpoint{}, fault.WrapAs(op, fault.AuditInvalidSignature, err, "the checkpoint's signature does not hold")
	}
	if !bytes.Equal(note, joinNote(signed, origin, key, sig.Bytes)) {
		return Checkpoint{}, malformed
	}
	return c, nil
}

func checkpointText(origin string, size int64, root [32]byte) []byte {
	return []byte(origin + "\n" + strconv.FormatInt(size, 10) + "\n" + base64.StdEncoding.EncodeToString(root[:]) + "\n")
}

func joinNote(text []byte, origin string, key pqc.PublicKey, sig []byte) []byte {
	// The key id is a digest of name, algorithm byte and key (signed-note).
	seed := append([]byte(origin+"\n"), 0xff)
	seed = append(seed, key.Algorithm...)
	id := creto.DigestOf(append(seed, key.Bytes...))
	blob := binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(id[:keyIDBytes]))
	blob = append(blob, sig...)
	return append(slices.Clone(text), "\n"+sigPrefix+origin+" "+base64.StdEncoding.EncodeToString(blob)+"\n"...)
}
