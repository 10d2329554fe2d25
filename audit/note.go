package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/pqc"
)

// A checkpoint is a C2SP tlog-checkpoint in a signed note, "— <name> base64(key
// id || signature)" a line: the log's plain Ed25519 signature, which every
// witness and monitor knows; its composite signature, of algorithm byte 0xff,
// which holds against a quantum adversary too and is what receipts hang on; and
// then the cosignatures of witnesses, which come and go.
//
// https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint and
// https://c2sp.org/tlog-cosignature.

// NoteEd25519 is plain Ed25519 (RFC 8032), as signed notes have it. It is no
// algorithm of package pqc, whose Ed25519 has a purpose: what a key of this name
// signs is a note and nothing else.
const NoteEd25519 pqc.Algorithm = "ed25519-note"

// The algorithm bytes of signed-note.
const (
	noteEd25519   = 0x01
	noteComposite = 0xff
)

// keyIDBytes is the length of a note's key id.
const keyIDBytes = 4

// maxNoteBytes bounds a checkpoint with its cosignatures: a hundred lines, the
// most that the note's reader takes, of the smallest kind, or forty of ML-DSA.
const maxNoteBytes = 256 << 10

// LogKeys are what a log's heads are verified with.
type LogKeys struct {
	// Origin names the log.
	Origin string
	// Key is its composite key. Required.
	Key pqc.PublicKey
	// Ed25519 is its key of that kind; nil if it is not known, as in bundles
	// from before there was one.
	Ed25519 ed25519.PublicKey
}

// VKeys returns the keys as signed-note verifier keys, the Ed25519 one first,
// which is what other programs take; "" if it is not known.
func (k LogKeys) VKeys() (plain, composite string) {
	text := func(id []byte, typed []byte) string {
		return k.Origin + "+" + strconv.FormatUint(uint64(binary.BigEndian.Uint32(id))|1<<32, 16)[1:] + "+" + base64.StdEncoding.EncodeToString(typed)
	}
	if k.Ed25519 != nil {
		plain = text(k.plainID(), append([]byte{noteEd25519}, k.Ed25519...))
	}
	return plain, text(k.compositeID(), k.typedComposite())
}

// plainID is a digest of name, algorithm byte and key, as signed-note has it.
func (k LogKeys) plainID() []byte {
	id := sha256.Sum256(append([]byte(k.Origin+"\n\x01"), k.Ed25519...))
	return id[:keyIDBytes]
}

// compositeID is likewise, but a SHA3-256: the byte 0xff leaves it open.
func (k LogKeys) compositeID() []byte {
	id := creto.DigestOf(append([]byte(k.Origin+"\n"), k.typedComposite()...))
	return id[:keyIDBytes]
}

func (k LogKeys) typedComposite() []byte {
	return append(append([]byte{noteComposite}, k.Key.Algorithm...), k.Key.Bytes...)
}

// Signer signs the heads of one log. Safe for concurrent use.
type Signer struct {
	provider pqc.Provider
	key      pqc.SigningKey
	plain    ed25519.PrivateKey
	keys     LogKeys
}

// NewSigner returns the signer of the log called origin. The two keys have
// nothing to do with each other: the composite's own half signs nothing else
// (draft-ietf-lamps-pq-composite-sigs, section 11).
//
// Errors: InvalidArgument (Permanent) for an origin that no note can have, or a
// plain key of a wrong length; those of pqc.Provider.Public.
func NewSigner(p pqc.Provider, key pqc.SigningKey, plain ed25519.PrivateKey, origin string) (*Signer, error) {
	const op fault.Op = "audit.NewSigner"
	if origin == "" || strings.ContainsAny(origin, "+ \t\r\n") {
		return nil, fault.New(op, fault.InvalidArgument, "%q cannot name a log: no spaces and no +", origin)
	}
	if len(plain) != ed25519.PrivateKeySize {
		return nil, fault.New(op, fault.InvalidArgument, "the log's Ed25519 key has %d bytes instead of %d", len(plain), ed25519.PrivateKeySize)
	}
	public, err := p.Public(key)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	return &Signer{p, key, plain, LogKeys{Origin: origin, Key: public, Ed25519: plain.Public().(ed25519.PublicKey)}}, nil
}

// Keys returns what verifies what s signs.
func (s *Signer) Keys() LogKeys { return s.keys }

// Sign makes the signed note of a head.
//
// Errors: those of pqc.Provider.Sign.
func (s *Signer) Sign(size int64, root [32]byte) (Checkpoint, error) {
	text := headText(s.keys.Origin, size, root)
	sig, err := s.provider.Sign(pqc.PurposeCheckpoint, text, s.key)
	if err != nil {
		return Checkpoint{}, fault.Wrap("audit.Signer.Sign", err)
	}
	return Checkpoint{Size: size, Root: root, Note: s.keys.join(text, ed25519.Sign(s.plain, text), sig.Bytes)}, nil
}

// SignRecord signs a record that is the log's own.
//
// Errors: those of Record.SigningBytes and of pqc.Provider.Sign.
func (s *Signer) SignRecord(r Record) (pqc.Signature, error) {
	message, err := r.SigningBytes()
	if err != nil {
		return pqc.Signature{}, err
	}
	sig, err := s.provider.Sign(pqc.PurposeRecord, message, s.key)
	return sig, fault.Wrap("audit.Signer.SignRecord", err)
}

// VerifyCheckpoint reads a note and checks the log's own signatures: the
// composite one, and the Ed25519 one if the key is known. Both must be there in
// the exact bytes, and the order, that Sign makes. Other lines, such as those of
// witnesses, are returned as Others and not verified.
//
// Errors: AuditInvalidSignature (Security), AuditValidationFailed (Permanent).
func VerifyCheckpoint(p pqc.Provider, data []byte, keys LogKeys) (Checkpoint, error) {
	const op fault.Op = "audit.VerifyCheckpoint"
	malformed := fault.New(op, fault.AuditValidationFailed, "the checkpoint is malformed")
	if len(data) > maxNoteBytes {
		return Checkpoint{}, malformed
	}
	composite := noteVerifier{keys.Origin, keys.compositeID(), func(text, sig []byte) bool {
		return p.Verify(pqc.PurposeCheckpoint, text, pqc.Signature{Algorithm: keys.Key.Algorithm, Key: keys.Key.ID, Bytes: sig}, keys.Key) == nil
	}}
	known := []note.Verifier{composite}
	if keys.Ed25519 != nil {
		known = append(known, noteVerifier{keys.Origin, keys.plainID(), func(text, sig []byte) bool { return ed25519.Verify(keys.Ed25519, text, sig) }})
	}
	n, err := note.Open(data, note.VerifierList(known...))
	switch {
	case isSignature(err):
		return Checkpoint{}, fault.WrapAs(op, fault.AuditInvalidSignature, err, "the checkpoint's signature does not hold")
	case err != nil:
		return Checkpoint{}, malformed
	case len(n.Sigs) != len(known):
		return Checkpoint{}, fault.New(op, fault.AuditInvalidSignature, "the checkpoint lacks a signature of its log")
	}
	c, err := ParseHead(data, keys.Origin)
	if err != nil {
		return Checkpoint{}, malformed
	}
	// The order of the lines is not the reader's to choose.
	var sigs [2][]byte
	for _, s := range n.Sigs {
		blob, err := base64.StdEncoding.DecodeString(s.Base64)
		if err != nil {
			return Checkpoint{}, malformed
		}
		i := 0
		if s.Hash == composite.KeyHash() {
			i = 1
		}
		sigs[i] = blob[keyIDBytes:]
	}
	c.Note = keys.join([]byte(n.Text), sigs[0], sigs[1])
	own := bytes.SplitAfter(c.Note, []byte("\n"))
	for _, line := range bytes.SplitAfter(data, []byte("\n")) {
		if bytes.Equal(line, own[0]) {
			own = own[1:]
		} else {
			c.Others = append(c.Others, line...)
		}
	}
	if len(own) > 0 {
		return Checkpoint{}, malformed
	}
	return c, nil
}

func isSignature(err error) bool {
	if _, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
		return true
	}
	_, ok := errors.AsType[*note.InvalidSignatureError](err)
	return ok
}

// ParseHead reads what a checkpoint says and verifies nothing.
//
// Errors: AuditValidationFailed (Permanent) for a note that is no head, in its
// one form, of the log called origin.
func ParseHead(data []byte, origin string) (Checkpoint, error) {
	malformed := fault.New("audit.ParseHead", fault.AuditValidationFailed, "the checkpoint is malformed")
	text, _, ok := bytes.Cut(data, []byte("\n\n"))
	lines := strings.Split(string(text), "\n")
	if !ok || len(lines) != 3 {
		return Checkpoint{}, malformed
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	root, errRoot := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || errRoot != nil || len(root) != 32 || size < 0 {
		return Checkpoint{}, malformed
	}
	c := Checkpoint{Size: size, Root: [32]byte(root), Note: slices.Clone(data)}
	if !bytes.HasPrefix(data, append(headText(origin, size, c.Root), '\n')) {
		return Checkpoint{}, malformed
	}
	return c, nil
}

func headText(origin string, size int64, root [32]byte) []byte {
	return []byte(origin + "\n" + strconv.FormatInt(size, 10) + "\n" + base64.StdEncoding.EncodeToString(root[:]) + "\n")
}

// join makes the note of a head with the log's own lines.
func (k LogKeys) join(text, plain, composite []byte) []byte {
	line := func(id, sig []byte) string {
		return "— " + k.Origin + " " + base64.StdEncoding.EncodeToString(slices.Concat(id, sig)) + "\n"
	}
	joined := string(text) + "\n"
	if k.Ed25519 != nil {
		joined += line(k.plainID(), plain)
	}
	return []byte(joined + line(k.compositeID(), composite))
}

// noteVerifier is a key as package note takes it.
type noteVerifier struct {
	name   string
	id     []byte
	verify func(text, sig []byte) bool
}

// Name implements note.Verifier.
func (v noteVerifier) Name() string { return v.name }

// KeyHash implements note.Verifier.
func (v noteVerifier) KeyHash() uint32 { return binary.BigEndian.Uint32(v.id) }

// Verify implements note.Verifier.
func (v noteVerifier) Verify(text, sig []byte) bool { return v.verify(text, sig) }
