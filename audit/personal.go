package audit

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"maps"
	"slices"
	"strings"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
)

// A leaf is for ever, what it says of a person need not be (R-GAP-11). So a
// leaf names people by pseudonyms and keeps their names, and what was written
// about them, in one box for each person, sealed under a key that is derived
// from the person's own. Once that is destroyed the boxes are noise, and every
// proof still holds. The key of one record can be given away without those of
// others.
//
// Agents, workloads, actions and resources are no personal data; what an
// operator names after a person is.

// keyBytes is the length of a subject's and of a record's key.
const keyBytes = 32

// Subject is a person as the log knows them.
type Subject struct {
	// ID is the person's pseudonym in leaves; random.
	ID creto.UUID
	// Key is theirs, 32 random bytes. All their boxes depend on it.
	Key []byte
}

// Personal is what a leaf keeps of one person.
type Personal struct {
	Subject creto.UUID `cbor:"1,keyasint" json:"subject"`
	// Commitment is SHA-256 of a prefix and the record's key, so that no other
	// key opens the box to something else.
	Commitment []byte `cbor:"2,keyasint" json:"-"`
	// Box is AES-256-GCM of the fields under the record's key.
	Box []byte `cbor:"3,keyasint" json:"-"`
}

// personal is the content of a box.
type personal struct {
	Principal creto.ID          `cbor:"1,keyasint"`
	Why       string            `cbor:"2,keyasint,omitempty"`
	Detail    map[string]string `cbor:"3,keyasint,omitempty"`
}

// Domain separation of what is derived from keys.
const (
	recordKeyInfo    = "creto/audit/personal/v1\x00"
	commitmentPrefix = "creto/audit/commitment/v1\x00"
)

// pseudonymPrefix begins the names of pseudonyms. No principal may have such a
// name.
const pseudonymPrefix = "subject."

// humanResource begins resources that name a human.
const humanResource = "Human::"

// personalDetails are the details whose values say something about the person
// that a record is about. Values that are the SPIFFE id of a human are personal
// wherever they stand.
var personalDetails = []string{"known", "subject", "email", "label", "address", "client", "display_name"}

// Pseudonym returns the id by which leaves name principal.
func Pseudonym(principal creto.ID, subject creto.UUID) creto.ID {
	principal.Name = pseudonymPrefix + subject.String()
	return principal
}

// IsPseudonym reports whether id is one that [Pseudonym] makes: a person whose
// box is closed to the reader, or erased.
func IsPseudonym(id creto.ID) bool {
	rest, ok := strings.CutPrefix(id.Name, pseudonymPrefix)
	if !ok || id.Kind != creto.KindHuman {
		return false
	}
	_, err := creto.ParseUUID(rest)
	return err == nil
}

// RecordKey returns the key of a record's box: HKDF-Expand with SHA-256 (RFC 5869,
// whose section 3.3 lets a random key do without Extract) of the subject's key and
// the record's id.
//
// Errors: InvalidArgument (Permanent) for a key of another length.
func (s Subject) RecordKey(record RecordID) ([]byte, error) {
	const op fault.Op = "audit.RecordKey"
	if len(s.Key) != keyBytes {
		return nil, fault.New(op, fault.InvalidArgument, "the key of a subject has %d bytes, not %d", len(s.Key), keyBytes)
	}
	key, err := hkdf.Expand(sha256.New, s.Key, recordKeyInfo+string(record[:]), keyBytes)
	return key, fault.WrapAs(op, fault.Internal, err, "")
}

// People returns the humans that the record names, each once, the one whom its
// text is about first. A pseudonym is no name: it stays as it is, or who knows
// somebody's could have the record name them by another.
func (r Record) People() []creto.ID {
	var people []creto.ID
	add := func(id creto.ID) {
		if id.Kind == creto.KindHuman && !IsPseudonym(id) && !slices.Contains(people, id) {
			people = append(people, id)
		}
	}
	add(r.Who)
	add(r.OnBehalfOf)
	if name, ok := strings.CutPrefix(r.Resource, humanResource); ok {
		id := creto.ID{TrustDomain: r.Who.TrustDomain, Tenant: r.Who.Tenant, Kind: creto.KindHuman, Name: name}
		if id.Validate() == nil {
			add(id)
		}
	}
	for _, c := range r.Consents {
		add(human(c.Approver))
	}
	if len(r.Detail) > 0 {
		for _, key := range slices.Sorted(maps.Keys(r.Detail)) {
			add(human(r.Detail[key]))
		}
	}
	return people
}

// human returns the human whose SPIFFE id text is, or the zero ID.
func human(text string) creto.ID {
	if !strings.HasPrefix(text, "spiffe://") {
		return creto.ID{}
	}
	id, err := creto.ParseID(text)
	if err != nil || id.Kind != creto.KindHuman {
		return creto.ID{}
	}
	return id
}

// Seal returns the record as a leaf holds it: people by their pseudonyms, and
// what is personal in boxes. The same record and subjects give the same leaf. A
// record that names nobody stays as it is.
//
// Errors: those of subject; AuditValidationFailed (Permanent) if the record is
// sealed already.
func (r Record) Seal(subject func(creto.ID) (Subject, error)) (Record, error) {
	const op fault.Op = "audit.Seal"
	if r.Personal != nil {
		return Record{}, fault.New(op, fault.AuditValidationFailed, "the record is sealed already")
	}
	people := r.People()
	if len(people) == 0 {
		return r, nil
	}
	r.Detail = maps.Clone(r.Detail)
	r.Consents = slices.Clone(r.Consents)
	id := r.ID
	for i, person := range people {
		s, err := subject(person)
		if err != nil {
			return Record{}, err
		}
		content := personal{Principal: person}
		if i == 0 {
			content.Why, r.Why = r.Why, ""
			for _, key := range personalDetails {
				if value, ok := r.Detail[key]; ok {
					if content.Detail == nil {
						content.Detail = make(map[string]string)
					}
					content.Detail[key] = value
					delete(r.Detail, key)
				}
			}
		}
		r.rename(person, Pseudonym(person, s.ID))
		box, err := s.box(id, content)
		if err != nil {
			return Record{}, fault.Wrap(op, err)
		}
		r.Personal = append(r.Personal, box)
	}
	return r, nil
}

// rename replaces one person by another wherever the record names them.
func (r *Record) rename(from, to creto.ID) {
	if r.Who == from {
		r.Who = to
	}
	if r.OnBehalfOf == from {
		r.OnBehalfOf = to
	}
	if r.Resource == humanResource+from.Name && from.Tenant == r.Who.Tenant {
		r.Resource = humanResource + to.Name
	}
	text := from.String()
	for i := range r.Consents {
		if r.Consents[i].Approver == text {
			r.Consents[i].Approver = to.String()
		}
	}
	for key, value := range r.Detail {
		if value == text {
			r.Detail[key] = to.String()
		}
	}
}

func (s Subject) box(record RecordID, content personal) (Personal, error) {
	key, err := s.RecordKey(record)
	if err != nil {
		return Personal{}, err
	}
	plain, err := canon.Marshal(content)
	if err != nil {
		return Personal{}, err
	}
	aead, err := newAEAD(key)
	if err != nil {
		return Personal{}, err
	}
	// The key is of this record and person alone, so the nonce never repeats.
	box := aead.Seal(nil, make([]byte, aead.NonceSize()), plain, bound(record, s.ID))
	return Personal{Subject: s.ID, Commitment: commitment(key), Box: box}, nil
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fault.WrapAs("audit.newAEAD", fault.InvalidArgument, err, "the key of a record has %d bytes, not %d", len(key), keyBytes)
	}
	aead, err := cipher.NewGCM(block)
	return aead, fault.WrapAs("audit.newAEAD", fault.Internal, err, "")
}

func commitment(key []byte) []byte {
	sum := sha256.Sum256(append([]byte(commitmentPrefix), key...))
	return sum[:]
}

// bound is what a box is bound to, beside its key.
func bound(record RecordID, subject creto.UUID) []byte {
	return append(record[:], subject[:]...)
}

// Open returns the record with the content of those boxes put back for which
// key has the record's key; nil is none. The boxes stay in Personal.
//
// Errors: AuditProofVerificationFailed (Security) if a key is not the one that
// the leaf commits to, or a box does not hold what it should.
func (r Record) Open(key func(Personal) []byte) (Record, error) {
	const op fault.Op = "audit.Open"
	if len(r.Personal) == 0 {
		return r, nil
	}
	r.Detail = maps.Clone(r.Detail)
	r.Consents = slices.Clone(r.Consents)
	for i, box := range r.Personal {
		k := key(box)
		if k == nil {
			continue
		}
		content, err := box.open(r.ID, k)
		if err != nil {
			return Record{}, fault.Wrap(op, err)
		}
		// Renaming asks for the tenant of Who, which a pseudonym keeps.
		r.rename(Pseudonym(content.Principal, box.Subject), content.Principal)
		if i == 0 {
			if content.Why != "" {
				r.Why = content.Why
			}
			if len(content.Detail) > 0 && r.Detail == nil {
				r.Detail = make(map[string]string)
			}
			maps.Copy(r.Detail, content.Detail)
		}
	}
	return r, nil
}

func (p Personal) open(record RecordID, key []byte) (personal, error) {
	const op fault.Op = "audit.open"
	var content personal
	if len(key) != keyBytes || subtle.ConstantTimeCompare(commitment(key), p.Commitment) != 1 {
		return content, fault.New(op, fault.AuditProofVerificationFailed, "the key is not the one that the record commits to")
	}
	aead, err := newAEAD(key)
	if err != nil {
		return content, fault.WrapAs(op, fault.AuditProofVerificationFailed, err, "the key is none")
	}
	plain, err := aead.Open(nil, make([]byte, aead.NonceSize()), p.Box, bound(record, p.Subject))
	if err == nil {
		err = canon.Unmarshal(plain, &content)
	}
	if err != nil || content.Principal.Kind != creto.KindHuman {
		return content, fault.New(op, fault.AuditProofVerificationFailed, "a personal field does not open")
	}
	return content, nil
}

// Disclosure lets its holder open one person's box in one record.
type Disclosure struct {
	Index   int64      `cbor:"1,keyasint"` // of the leaf
	Subject creto.UUID `cbor:"2,keyasint"`
	Key     []byte     `cbor:"3,keyasint"`
}
