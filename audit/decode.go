package audit

import (
	"errors"
	"math"

	"creto.dev"
	"creto.dev/pqc"
)

// errNoRecord is what the reader says of anything that appendRecord does not write.
var errNoRecord = errors.New("not the encoding of a record")

// reader reads what a writer wrote. Texts are parts of its one string: a record is
// decoded with few allocations where it would have some twenty.
type reader struct {
	s   string
	bad bool
}

func (r *reader) head(major byte) uint64 {
	if len(r.s) == 0 || r.s[0]&0xe0 != major {
		r.bad = true
		return 0
	}
	info := r.s[0] & 0x1f
	r.s = r.s[1:]
	if info < 24 {
		return uint64(info)
	}
	size := 1 << (info - 24)
	if info > 27 || len(r.s) < size {
		r.bad = true
		return 0
	}
	var n uint64
	for i := range size {
		n = n<<8 | uint64(r.s[i])
	}
	r.s = r.s[size:]
	return n
}

func (r *reader) raw(major byte) string {
	n := r.head(major)
	if n > uint64(len(r.s)) {
		r.bad = true
		return ""
	}
	out := r.s[:n]
	r.s = r.s[n:]
	return out
}

func (r *reader) text() string  { return r.raw(cborText) }
func (r *reader) bytes() []byte { return []byte(r.raw(cborBytes)) }
func (r *reader) uint() uint64  { return r.head(cborUint) }

func (r *reader) int() int64 {
	if len(r.s) > 0 && r.s[0]&0xe0 == cborInt {
		n := r.head(cborInt)
		r.bad = r.bad || n > math.MaxInt64
		return -1 - int64(n)
	}
	n := r.uint()
	r.bad = r.bad || n > math.MaxInt64
	return int64(n)
}

func (r *reader) bool() bool {
	if len(r.s) == 0 || r.s[0] != cborTrue && r.s[0] != cborFalse {
		r.bad = true
		return false
	}
	v := r.s[0] == cborTrue
	r.s = r.s[1:]
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
	text := r.text()
	if text == "" {
		return creto.ID{}
	}
	id, err := creto.ParseID(text)
	r.bad = r.bad || err != nil
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
	if n > uint64(len(r.s)/least) {
		r.bad = true
		return 0
	}
	return int(n)
}

// decodeTrusted reads bytes of which something else vouches that appendRecord wrote
// them: a checksum, or a hash of the tree.
//
// Errors: errNoRecord.
func decodeTrusted(data string, out *Record) error {
	r := &reader{s: data}
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
	if r.bad || len(r.s) > 0 {
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
	if n > uint64(len(r.s)/2) {
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
