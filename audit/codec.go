package audit

import (
	"encoding/binary"
	"math"
	"slices"
	"unicode/utf8"

	"creto.dev"
)

// A record is encoded where its caller waits, and decoded and encoded again for
// each leaf of the tree, so its canonical bytes are written by hand: a tenth of the
// time and of the garbage of package canon, whose encoding of the same struct they
// are, byte for byte (TestCodec, FuzzCodec). Nothing else of Creto is written so
// (D-078).

// The major types of CBOR (RFC 8949, section 3.1).
const (
	cborUint  = 0 << 5
	cborInt   = 1 << 5
	cborBytes = 2 << 5
	cborText  = 3 << 5
	cborList  = 4 << 5
	cborMap   = 5 << 5
	cborFalse = 0xf4
	cborTrue  = 0xf5
)

// writer appends canonical CBOR. wrong is a text that is not UTF-8.
type writer struct {
	b     []byte
	bad   bool
	wrong string
}

func (w *writer) head(major byte, n uint64) {
	switch {
	case n < 24:
		w.b = append(w.b, major|byte(n))
	case n <= math.MaxUint8:
		w.b = append(w.b, major|24, byte(n))
	case n <= math.MaxUint16:
		w.b = binary.BigEndian.AppendUint16(append(w.b, major|25), uint16(n))
	case n <= math.MaxUint32:
		w.b = binary.BigEndian.AppendUint32(append(w.b, major|26), uint32(n))
	default:
		w.b = binary.BigEndian.AppendUint64(append(w.b, major|27), n)
	}
}

func (w *writer) key(k byte)     { w.b = append(w.b, k) } // keys are below 24
func (w *writer) uint(n uint64)  { w.head(cborUint, n) }
func (w *writer) bytes(b []byte) { w.head(cborBytes, uint64(len(b))); w.b = append(w.b, b...) }
func (w *writer) fields(n int)   { w.head(cborMap, uint64(n)) }
func (w *writer) list(n int)     { w.head(cborList, uint64(n)) }
func (w *writer) policy(p PolicyRef) {
	w.fields(2)
	w.key(1)
	w.text(p.ID)
	w.key(2)
	w.bytes(p.Digest[:])
}

// id writes what ID.String returns.
func (w *writer) id(id creto.ID) {
	if id.IsZero() {
		w.head(cborText, 0)
		return
	}
	const scheme = "spiffe://"
	w.head(cborText, uint64(len(scheme)+len(id.TrustDomain)+len(id.Tenant)+len(id.Kind)+len(id.Name)+3))
	w.b = append(append(append(w.b, scheme...), id.TrustDomain...), '/')
	w.b = append(append(w.b, id.Tenant...), '/')
	w.b = append(append(append(w.b, id.Kind...), '/'), id.Name...)
}

func (w *writer) int(n int64) {
	if n < 0 {
		w.head(cborInt, uint64(-1-n))
		return
	}
	w.uint(uint64(n))
}

func (w *writer) bool(v bool) {
	if v {
		w.b = append(w.b, cborTrue)
		return
	}
	w.b = append(w.b, cborFalse)
}

func (w *writer) text(s string) {
	if !utf8.ValidString(s) {
		w.bad, w.wrong = true, s
	}
	w.head(cborText, uint64(len(s)))
	w.b = append(w.b, s...)
}

// appendRecord appends the canonical encoding of r to b. ok is false if a text is
// not UTF-8, which is returned too.
func appendRecord(b []byte, r *Record) (out []byte, wrong string, ok bool) {
	w := writer{b: b}
	n := 6 // the fields that are always there
	for _, there := range [...]bool{
		!r.OnBehalfOf.IsZero(), !r.Chain.IsZero(), !r.Args.IsZero(), r.Why != "", r.Decision != nil, len(r.Consents) > 0, r.Usage != nil,
		r.Sandbox != "", r.Isolation != "", r.Trace != "", len(r.Detail) > 0, r.Signature != nil, r.SignatureStatus != "", len(r.Personal) > 0,
	} {
		if there {
			n++
		}
	}
	w.fields(n)
	w.key(1)
	w.bytes(r.ID[:])
	w.key(2)
	w.stamp(r.Stamp)
	w.key(3)
	w.id(r.Who)
	if !r.OnBehalfOf.IsZero() {
		w.key(4)
		w.id(r.OnBehalfOf)
	}
	w.digest(5, r.Chain)
	w.key(6)
	w.text(r.What)
	w.key(7)
	w.text(r.Resource)
	w.digest(8, r.Args)
	w.filled(9, r.Why)
	w.key(10)
	w.text(string(r.Outcome))
	if r.Decision != nil {
		w.key(11)
		w.decision(r.Decision)
	}
	if len(r.Consents) > 0 {
		w.key(12)
		w.list(len(r.Consents))
		for i := range r.Consents {
			w.consent(&r.Consents[i])
		}
	}
	if r.Usage != nil {
		w.key(13)
		w.usage(r.Usage)
	}
	w.filled(14, r.Sandbox)
	w.filled(15, r.Isolation)
	w.filled(16, r.Trace)
	if len(r.Detail) > 0 {
		w.key(17)
		w.words(r.Detail)
	}
	if r.Signature != nil {
		w.key(18)
		w.fields(3)
		w.key(1)
		w.text(string(r.Signature.Algorithm))
		w.key(2)
		w.bytes(r.Signature.Bytes)
		w.key(3)
		w.text(string(r.Signature.Key))
	}
	w.filled(19, r.SignatureStatus)
	if len(r.Personal) > 0 {
		w.key(20)
		w.list(len(r.Personal))
		for i := range r.Personal {
			w.fields(3)
			w.key(1)
			w.bytes(r.Personal[i].Subject[:])
			w.key(2)
			w.bytes(r.Personal[i].Commitment)
			w.key(3)
			w.bytes(r.Personal[i].Box)
		}
	}
	return w.b, w.wrong, !w.bad
}

// appendPersonal appends the canonical encoding of a box's content, likewise.
func appendPersonal(b []byte, p personal) (out []byte, wrong string, ok bool) {
	w := writer{b: b}
	w.fields(1 + one(p.Why != "") + one(len(p.Detail) > 0))
	w.key(1)
	w.id(p.Principal)
	w.filled(2, p.Why)
	if len(p.Detail) > 0 {
		w.key(3)
		w.words(p.Detail)
	}
	return w.b, w.wrong, !w.bad
}

// filled writes a text unless it is empty, and digest a digest unless it is zero.
func (w *writer) filled(key byte, s string) {
	if s != "" {
		w.key(key)
		w.text(s)
	}
}

func (w *writer) digest(key byte, d creto.Digest) {
	if !d.IsZero() {
		w.key(key)
		w.bytes(d[:])
	}
}

func (w *writer) stamp(s creto.Timestamp) {
	w.fields(4 + one(s.Uncertainty != 0))
	w.key(1)
	w.uint(s.Logical)
	w.key(2)
	w.int(s.Physical)
	w.key(3)
	w.text(string(s.Source))
	w.key(4)
	w.text(s.Node)
	if s.Uncertainty != 0 {
		w.key(5)
		w.int(s.Uncertainty)
	}
}

func (w *writer) decision(d *Decision) {
	w.fields(1 + one(d.Reason != "") + one(len(d.Policies) > 0) + one(!d.Version.IsZero()))
	w.key(1)
	w.text(d.Kind)
	w.filled(2, d.Reason)
	if len(d.Policies) > 0 {
		w.key(3)
		w.list(len(d.Policies))
		for _, p := range d.Policies {
			w.policy(p)
		}
	}
	w.digest(4, d.Version)
}

func (w *writer) consent(c *Consent) {
	w.fields(8)
	w.key(1)
	w.bytes(c.Request[:])
	w.key(2)
	w.text(c.ID)
	w.key(3)
	w.text(c.Approver)
	w.key(4)
	w.text(c.Channel)
	w.key(5)
	w.text(c.Verification)
	w.key(6)
	w.bool(c.Human)
	w.key(7)
	w.policy(c.Policy)
	w.key(8)
	w.int(c.ExpiresNS)
}

func (w *writer) usage(u *Usage) {
	w.fields(2 + one(u.Estimated))
	w.key(1)
	w.int(u.PromptTokens)
	w.key(2)
	w.int(u.CompletionTokens)
	if u.Estimated {
		w.key(3)
		w.bool(true)
	}
}

// words writes a map in the order of its keys' encodings: the shorter first.
func (w *writer) words(m map[string]string) {
	var room [16]string
	keys := room[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		if a < b {
			return -1
		}
		return 1 // no key is there twice
	})
	w.fields(len(keys))
	for _, k := range keys {
		w.text(k)
		w.text(m[k])
	}
}

func one(there bool) int {
	if there {
		return 1
	}
	return 0
}
