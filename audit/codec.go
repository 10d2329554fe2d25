package audit

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"unicode/utf8"

	"creto.dev"
	"creto.dev/pqc"
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

// errNoRecord is what the reader says of anything that appendRecord does not write.
var errNoRecord = errors.New("not the encoding of a record")

// reader reads what a writer wrote.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) head(major byte) uint64 {
	if len(r.b) == 0 || r.b[0]&0xe0 != major {
		r.bad = true
		return 0
	}
	info := r.b[0] & 0x1f
	r.b = r.b[1:]
	if info < 24 {
		return uint64(info)
	}
	size := 1 << (info - 24)
	if info > 27 || len(r.b) < size {
		r.bad = true
		return 0
	}
	var n uint64
	for _, x := range r.b[:size] {
		n = n<<8 | uint64(x)
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) raw(major byte) []byte {
	n := r.head(major)
	if n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) text() string  { return string(r.raw(cborText)) }
func (r *reader) bytes() []byte { return append([]byte{}, r.raw(cborBytes)...) }
func (r *reader) uint() uint64  { return r.head(cborUint) }

func (r *reader) int() int64 {
	if len(r.b) > 0 && r.b[0]&0xe0 == cborInt {
		n := r.head(cborInt)
		r.bad = r.bad || n > math.MaxInt64
		return -1 - int64(n)
	}
	n := r.uint()
	r.bad = r.bad || n > math.MaxInt64
	return int64(n)
}

func (r *reader) bool() bool {
	if len(r.b) == 0 || r.b[0] != cborTrue && r.b[0] != cborFalse {
		r.bad = true
		return false
	}
	v := r.b[0] == cborTrue
	r.b = r.b[1:]
	return v
}

func (r *reader) fill(to []byte) {
	b := r.raw(cborBytes)
	if len(b) != len(to) {
		r.bad = true
		return
	}
	copy(to, b)
}

func (r *reader) id() creto.ID {
	var id creto.ID
	if id.UnmarshalText(r.raw(cborText)) != nil {
		r.bad = true
	}
	return id
}

// each reads the fields of a struct.
func (r *reader) each(field func(key uint64)) {
	for n := r.head(cborMap); n > 0 && !r.bad; n-- {
		field(r.uint())
	}
}

// length reads the length of a list whose elements have at least so many bytes.
func (r *reader) length(least int) int {
	n := r.head(cborList)
	if n > uint64(len(r.b)/least) {
		r.bad = true
		return 0
	}
	return int(n)
}

// decodeTrusted reads bytes of which something else vouches that appendRecord wrote
// them: a checksum, or a hash of the tree. It shares no memory with them.
//
// Errors: errNoRecord.
func decodeTrusted(data []byte, out *Record) error {
	r := &reader{b: data}
	r.each(func(key uint64) {
		switch key {
		case 1:
			r.fill(out.ID[:])
		case 2:
			r.stamp(&out.Stamp)
		case 3:
			out.Who = r.id()
		case 4:
			out.OnBehalfOf = r.id()
		case 5:
			r.fill(out.Chain[:])
		case 6:
			out.What = r.text()
		case 7:
			out.Resource = r.text()
		case 8:
			r.fill(out.Args[:])
		case 9:
			out.Why = r.text()
		case 10:
			out.Outcome = Outcome(r.text())
		case 11:
			out.Decision = r.decision()
		case 12:
			out.Consents = make([]Consent, r.length(8))
			for i := range out.Consents {
				r.consent(&out.Consents[i])
			}
		case 13:
			out.Usage = r.usage()
		case 14:
			out.Sandbox = r.text()
		case 15:
			out.Isolation = r.text()
		case 16:
			out.Trace = r.text()
		case 17:
			out.Detail = r.words()
		case 18:
			out.Signature = r.signature()
		case 19:
			out.SignatureStatus = r.text()
		case 20:
			out.Personal = make([]Personal, r.length(4))
			for i := range out.Personal {
				r.personal(&out.Personal[i])
			}
		default:
			r.bad = true
		}
	})
	if r.bad || len(r.b) > 0 {
		return errNoRecord
	}
	return nil
}

func (r *reader) stamp(s *creto.Timestamp) {
	r.each(func(key uint64) {
		switch key {
		case 1:
			s.Logical = r.uint()
		case 2:
			s.Physical = r.int()
		case 3:
			s.Source = creto.Source(r.text())
		case 4:
			s.Node = r.text()
		case 5:
			s.Uncertainty = r.int()
		default:
			r.bad = true
		}
	})
}

func (r *reader) policy(p *PolicyRef) {
	r.each(func(key uint64) {
		switch key {
		case 1:
			p.ID = r.text()
		case 2:
			r.fill(p.Digest[:])
		default:
			r.bad = true
		}
	})
}

func (r *reader) decision() *Decision {
	d := new(Decision)
	r.each(func(key uint64) {
		switch key {
		case 1:
			d.Kind = r.text()
		case 2:
			d.Reason = r.text()
		case 3:
			d.Policies = make([]PolicyRef, r.length(3))
			for i := range d.Policies {
				r.policy(&d.Policies[i])
			}
		case 4:
			r.fill(d.Version[:])
		default:
			r.bad = true
		}
	})
	return d
}

func (r *reader) consent(c *Consent) {
	r.each(func(key uint64) {
		switch key {
		case 1:
			r.fill(c.Request[:])
		case 2:
			c.ID = r.text()
		case 3:
			c.Approver = r.text()
		case 4:
			c.Channel = r.text()
		case 5:
			c.Verification = r.text()
		case 6:
			c.Human = r.bool()
		case 7:
			r.policy(&c.Policy)
		case 8:
			c.ExpiresNS = r.int()
		default:
			r.bad = true
		}
	})
}

func (r *reader) usage() *Usage {
	u := new(Usage)
	r.each(func(key uint64) {
		switch key {
		case 1:
			u.PromptTokens = r.int()
		case 2:
			u.CompletionTokens = r.int()
		case 3:
			u.Estimated = r.bool()
		default:
			r.bad = true
		}
	})
	return u
}

func (r *reader) words() map[string]string {
	n := r.head(cborMap)
	if n > uint64(len(r.b)/2) {
		r.bad = true
		return nil
	}
	m := make(map[string]string, n)
	for ; n > 0 && !r.bad; n-- {
		k := r.text()
		m[k] = r.text()
	}
	return m
}

func (r *reader) signature() *pqc.Signature {
	s := new(pqc.Signature)
	r.each(func(key uint64) {
		switch key {
		case 1:
			s.Algorithm = pqc.Algorithm(r.text())
		case 2:
			s.Bytes = r.bytes()
		case 3:
			s.Key = pqc.KeyID(r.text())
		default:
			r.bad = true
		}
	})
	return s
}

func (r *reader) personal(p *Personal) {
	r.each(func(key uint64) {
		switch key {
		case 1:
			r.fill(p.Subject[:])
		case 2:
			p.Commitment = r.bytes()
		case 3:
			p.Box = r.bytes()
		default:
			r.bad = true
		}
	})
}
