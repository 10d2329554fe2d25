package audit

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"hash"
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
	var z Sealer
	k, err := z.of(creto.ID{}, s)
	if err != nil {
		return nil, err
	}
	key := recordKey(k.mac, record)
	return key[:], nil
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
	if r.detailsOfPeople() {
		for _, key := range slices.Sorted(maps.Keys(r.Detail)) {
			add(human(r.Detail[key]))
		}
	}
	return people
}

// detailsArePersonal reports whether a detail may be, by its key or by its value.
func (r Record) detailsArePersonal() bool {
	for _, key := range personalDetails {
		if _, ok := r.Detail[key]; ok {
			return true
		}
	}
	return r.detailsOfPeople()
}

// detailsOfPeople reports whether a detail may be the SPIFFE id of a human.
func (r Record) detailsOfPeople() bool {
	for _, value := range r.Detail {
		if strings.HasPrefix(value, "spiffe://") {
			return true
		}
	}
	return false
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

// Seal is [Sealer.Seal] for one record.
func (r Record) Seal(subject func(creto.ID) (Subject, error)) (Record, error) {
	var z Sealer
	return z.Seal(r, r.People(), subject)
}

// Sealer seals many records. The zero Sealer is ready; it keeps what depends on
// subjects' keys, so it should not outlive a batch. Not safe for concurrent use.
type Sealer struct {
	known map[creto.UUID]known
	plain []byte // the content of the last box
}

// known is what depends on a subject alone.
type known struct {
	mac       hash.Hash // keyed with the subject's key
	principal creto.ID
	pseudonym creto.ID
}

// Seal returns a record as a leaf holds it: people, as People returns them, by their
// pseudonyms, and what is personal in boxes. The same record and subjects give the
// same leaf. A record that names nobody stays as it is.
//
// Errors: those of subject; AuditValidationFailed (Permanent) if the record is
// sealed already.
func (z *Sealer) Seal(r Record, people []creto.ID, subject func(creto.ID) (Subject, error)) (Record, error) {
	const op fault.Op = "audit.Seal"
	if r.Personal != nil {
		return Record{}, fault.New(op, fault.AuditValidationFailed, "the record is sealed already")
	}
	if len(people) == 0 {
		return r, nil
	}
	if r.detailsArePersonal() { // or it stays as it is
		r.Detail = maps.Clone(r.Detail)
	}
	r.Consents = slices.Clone(r.Consents)
	r.Personal = make([]Personal, 0, len(people))
	for i, person := range people {
		s, err := subject(person)
		if err != nil {
			return Record{}, err
		}
		content := personal{Principal: person}
		if i == 0 {
			content.Why, r.Why = r.Why, ""
			content.Detail = r.takePersonal()
		}
		k, err := z.of(person, s)
		if err != nil {
			return Record{}, fault.Wrap(op, err)
		}
		r.rename(person, k.pseudonym)
		box, err := z.box(r.ID, k.mac, s.ID, content)
		if err != nil {
			return Record{}, fault.Wrap(op, err)
		}
		r.Personal = append(r.Personal, box)
	}
	return r, nil
}

// takePersonal returns the details that are personal, and removes them.
func (r *Record) takePersonal() map[string]string {
	var taken map[string]string
	for _, key := range personalDetails {
		value, ok := r.Detail[key]
		if !ok {
			continue
		}
		if taken == nil {
			taken = make(map[string]string)
		}
		taken[key] = value
		delete(r.Detail, key)
	}
	return taken
}

// rename replaces one person by another wherever the record names them.
func (r *Record) rename(from, to creto.ID) {
	if r.Who == from {
		r.Who = to
	}
	if r.OnBehalfOf == from {
		r.OnBehalfOf = to
	}
	if rest, ok := strings.CutPrefix(r.Resource, humanResource); ok && rest == from.Name && from.Tenant == r.Who.Tenant {
		r.Resource = humanResource + to.Name
	}
	if len(r.Consents) == 0 && !r.detailsOfPeople() {
		return
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

// of returns what depends on a subject alone.
func (z *Sealer) of(principal creto.ID, s Subject) (known, error) {
	k, ok := z.known[s.ID]
	if ok && k.principal == principal {
		return k, nil
	}
	if len(s.Key) != keyBytes {
		return known{}, fault.New("audit.RecordKey", fault.InvalidArgument, "the key of a subject has %d bytes, not %d", len(s.Key), keyBytes)
	}
	if z.known == nil {
		z.known = make(map[creto.UUID]known)
	}
	k = known{hmac.New(sha256.New, s.Key), principal, Pseudonym(principal, s.ID)}
	z.known[s.ID] = k
	return k, nil
}

// recordKey is RecordKey, given the HMAC that is keyed with the subject's key.
func recordKey(mac hash.Hash, record RecordID) (key [keyBytes]byte) {
	// The first block of HKDF-Expand is all of it: HMAC(key, info || 1).
	info := append(append(append(make([]byte, 0, len(recordKeyInfo)+len(record)+1), recordKeyInfo...), record[:]...), 1)
	mac.Reset()
	_, _ = mac.Write(info) // never fails
	mac.Sum(key[:0])
	return key
}

func (z *Sealer) box(record RecordID, mac hash.Hash, subject creto.UUID, content personal) (Personal, error) {
	key := recordKey(mac, record)
	var wrong string
	var ok bool
	if z.plain, wrong, ok = appendPersonal(z.plain[:0], content); !ok {
		return Personal{}, fault.New("audit.box", fault.AuditValidationFailed, "the record's text %q is not UTF-8", wrong)
	}
	aead, err := newAEAD(key[:])
	if err != nil {
		return Personal{}, err
	}
	out := make([]byte, sha256.Size, sha256.Size+len(z.plain)+aead.Overhead())
	bound := commitment(key[:])
	copy(out, bound[:])
	// The key is of this record and person alone, so the nonce never repeats.
	box := aead.Seal(out[sha256.Size:], make([]byte, aead.NonceSize()), z.plain, boundTo(record, subject))
	return Personal{Subject: subject, Commitment: out[:sha256.Size:sha256.Size], Box: box}, nil
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fault.WrapAs("audit.newAEAD", fault.InvalidArgument, err, "the key of a record has %d bytes, not %d", len(key), keyBytes)
	}
	aead, err := cipher.NewGCM(block)
	return aead, fault.WrapAs("audit.newAEAD", fault.Internal, err, "")
}

func commitment(key []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(commitmentPrefix), key...))
}

// boundTo is what a box is bound to, beside its key.
func boundTo(record RecordID, subject creto.UUID) []byte {
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
	if want := commitment(key); len(key) != keyBytes || subtle.ConstantTimeCompare(want[:], p.Commitment) != 1 {
		return content, fault.New(op, fault.AuditProofVerificationFailed, "the key is not the one that the record commits to")
	}
	aead, err := newAEAD(key)
	if err != nil {
		return content, fault.WrapAs(op, fault.AuditProofVerificationFailed, err, "the key is none")
	}
	plain, err := aead.Open(nil, make([]byte, aead.NonceSize()), p.Box, boundTo(record, p.Subject))
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
