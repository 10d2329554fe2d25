// Package creto is the shared vocabulary of Creto: who acts ([ID]), what they
// do ([Action] on a [Resource]), when ([Timestamp]), and the [Digest] that
// names content. Every other package speaks in these types; this one knows
// only package fault and the standard library.
//
// Creto runs AI agents under authority. docs/architecture.md follows one
// action from token to receipt through the packages.
package creto

import (
	"crypto/rand"
	"crypto/sha3"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"creto.dev/fault"
)

// Kind says what sort of principal an ID names.
type Kind string

// The kinds of principals.
const (
	KindAgent    Kind = "agent"
	KindHuman    Kind = "human"
	KindWorkload Kind = "workload"
)

// DefaultTenant is the tenant of a node that was given none.
const DefaultTenant = "default"

// maxNameBytes bounds each part of an ID, as DNS bounds a label.
const maxNameBytes = 63

// ID names a principal inside a trust domain and tenant. Its text is a SPIFFE
// id: spiffe://<trust-domain>/<tenant>/<kind>/<name>. The zero ID names nobody
// and is valid nowhere. IDs are comparable.
type ID struct {
	TrustDomain string
	Tenant      string
	Kind        Kind
	Name        string
}

// String returns the SPIFFE id, or "" for the zero ID.
func (id ID) String() string {
	if id == (ID{}) {
		return ""
	}
	return "spiffe://" + id.TrustDomain + "/" + id.Tenant + "/" + string(id.Kind) + "/" + id.Name
}

// IsZero reports whether id names nobody.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it accepts what [ParseID]
// accepts, and "" as the zero ID.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*id = ID{}
		return nil
	}
	parsed, err := ParseID(string(text))
	if err == nil {
		*id = parsed
	}
	return err
}

// ParseID reads a SPIFFE id of Creto's form. Names are 1 to 63 of a–z, 0–9,
// '-', '_' and '.', beginning with a letter or digit; trust domains likewise.
//
// Errors: InvalidArgument (Permanent).
func ParseID(text string) (ID, error) {
	const op fault.Op = "creto.ParseID"
	rest, ok := strings.CutPrefix(text, "spiffe://")
	var parts [4]string
	n := 0
	for part := range strings.SplitSeq(rest, "/") {
		if n < len(parts) {
			parts[n] = part
		}
		n++
	}
	if !ok || n != len(parts) {
		return ID{}, fault.New(op, fault.InvalidArgument, "%q is not of the form spiffe://<trust-domain>/<tenant>/<kind>/<name>", text)
	}
	id := ID{TrustDomain: parts[0], Tenant: parts[1], Kind: Kind(parts[2]), Name: parts[3]}
	return id, id.Validate()
}

// Validate reports whether id names somebody.
//
// Errors: InvalidArgument (Permanent).
func (id ID) Validate() error {
	const op fault.Op = "creto.ID.Validate"
	switch id.Kind {
	case KindAgent, KindHuman, KindWorkload:
	default:
		return fault.New(op, fault.InvalidArgument, "%q is not a kind of principal; use agent, human or workload", id.Kind)
	}
	for _, part := range [...]struct{ what, name string }{{"trust domain", id.TrustDomain}, {"tenant", id.Tenant}, {"name", id.Name}} {
		if !validName(part.name) {
			return fault.New(op, fault.InvalidArgument, "%q is no %s: use 1 to %d of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit", part.name, part.what, maxNameBytes)
		}
	}
	return nil
}

func validName(s string) bool {
	if s == "" || len(s) > maxNameBytes {
		return false
	}
	for i, c := range []byte(s) {
		alnum := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return true
}

// Digest is a SHA3-256 digest (R-CRY-15). The zero Digest stands for absent
// content.
type Digest [32]byte

// digestPrefix names the algorithm in a digest's text.
const digestPrefix = "sha3-256:"

// DigestOf returns the digest of data.
func DigestOf(data []byte) Digest { return sha3.Sum256(data) }

// IsZero reports whether d stands for absent content.
func (d Digest) IsZero() bool { return d == Digest{} }

// String returns "sha3-256:" and 64 hexadecimal digits.
func (d Digest) String() string { return digestPrefix + hex.EncodeToString(d[:]) }

// MarshalBinary implements encoding.BinaryMarshaler: the 32 bytes.
func (d Digest) MarshalBinary() ([]byte, error) { return d[:], nil }

// UnmarshalBinary implements encoding.BinaryUnmarshaler.
func (d *Digest) UnmarshalBinary(data []byte) error { return fill("creto.Digest", d[:], data) }

// fill copies data to target if it has just that length.
func fill(op fault.Op, target, data []byte) error {
	if len(data) != len(target) {
		return fault.New(op, fault.InvalidArgument, "%d bytes instead of %d", len(data), len(target))
	}
	copy(target, data)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(text []byte) error {
	parsed, err := ParseDigest(string(text))
	if err == nil {
		*d = parsed
	}
	return err
}

// ParseDigest reads what [Digest.String] writes.
//
// Errors: InvalidArgument (Permanent).
func ParseDigest(text string) (Digest, error) {
	const op fault.Op = "creto.ParseDigest"
	var d Digest
	digits, ok := strings.CutPrefix(text, digestPrefix)
	if !ok || hex.DecodedLen(len(digits)) != len(d) || digits != strings.ToLower(digits) {
		return d, fault.New(op, fault.InvalidArgument, "%q is no digest; expected %s and 64 hexadecimal digits", text, digestPrefix)
	}
	if _, err := hex.Decode(d[:], []byte(digits)); err != nil {
		return Digest{}, fault.New(op, fault.InvalidArgument, "%q is no digest; expected %s and 64 hexadecimal digits", text, digestPrefix)
	}
	return d, nil
}

// UUID is a 128-bit identifier (RFC 9562), of version 4 or 7.
type UUID [16]byte

// NewUUIDAt returns a fresh identifier that begins with a time (version 7, with the
// fraction of a millisecond in its next 12 bits: RFC 9562, section 6.2, method 3), so
// that the identifiers of ever later times are only ever added to the end of an index.
// It tells whoever sees it that time, to a quarter of a microsecond.
func NewUUIDAt(t time.Time) UUID {
	u := NewUUID()
	ms := t.UnixMilli()
	for i := range 6 {
		u[i] = byte(ms >> (40 - 8*i))
	}
	fraction := (t.Nanosecond() % 1_000_000) << 12 / 1_000_000
	u[6], u[7] = 0x70|byte(fraction>>8), byte(fraction)
	return u
}

// NewUUID returns a fresh random identifier. It never fails: crypto/rand ends
// the process rather than return weak bytes.
func NewUUID() UUID {
	var u UUID
	_, _ = rand.Read(u[:]) // documented never to return an error
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

// IsZero reports whether u is absent.
func (u UUID) IsZero() bool { return u == UUID{} }

// String returns the usual text form.
func (u UUID) String() string {
	var text [36]byte
	at := 0
	for i, b := range u {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			text[at] = '-'
			at++
		}
		hex.Encode(text[at:], []byte{b})
		at += 2
	}
	return string(text[:])
}

// MarshalBinary implements encoding.BinaryMarshaler: the 16 bytes.
func (u UUID) MarshalBinary() ([]byte, error) { return u[:], nil }

// UnmarshalBinary implements encoding.BinaryUnmarshaler.
func (u *UUID) UnmarshalBinary(data []byte) error { return fill("creto.UUID", u[:], data) }

// MarshalText implements encoding.TextMarshaler.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *UUID) UnmarshalText(text []byte) error {
	parsed, err := ParseUUID(string(text))
	if err == nil {
		*u = parsed
	}
	return err
}

// ParseUUID reads what [UUID.String] writes.
//
// Errors: InvalidArgument (Permanent).
func ParseUUID(text string) (UUID, error) {
	var u UUID
	raw, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(raw) != len(u) || UUID(raw).String() != text {
		return u, fault.New("creto.ParseUUID", fault.InvalidArgument, "%q is no UUID", text)
	}
	return UUID(raw), nil
}

// Secret is text that must not be seen: it prints as *** wherever it is
// formatted, logged or marshalled. Only Reveal shows it.
//
// The text is behind a pointer because fmt calls no methods on unexported
// fields: a struct that holds a Secret prints an address.
type Secret struct{ text *string }

// NewSecret hides text.
func NewSecret(text string) Secret { return Secret{&text} }

// Reveal returns the hidden text. Call it where the text is used, not before.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether there is nothing hidden.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// redacted is what a secret prints as.
const redacted = "***"

// String hides the text.
func (Secret) String() string { return redacted }

// GoString hides the text from %#v.
func (Secret) GoString() string { return redacted }

// Format hides the text from every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue hides the text from log/slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the text from encoders.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText takes the text in, as from a configuration file.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))
	return nil
}
