package audit

import (
	"golang.org/x/mod/sumdb/tlog"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
)

// surelyFits is how long a record may be and fit into a leaf whoever it names: what
// 23 bytes say of a person, the least there are, becomes 165 when they are sealed.
const surelyFits = 4 << 10

// Encode returns the record's canonical bytes: what waits for the tree, and the
// leaf if the record is sealed. What waits fits into a leaf, and names nobody by a
// pseudonym as who acted.
//
// Errors: AuditValidationFailed (Permanent).
func (r Record) Encode() ([]byte, error) {
	return r.Append(make([]byte, 0, usualBytes))
}

// Append is [Record.Encode] onto b.
//
// Errors: AuditValidationFailed (Permanent).
func (r Record) Append(b []byte) ([]byte, error) {
	const op fault.Op = "audit.Encode"
	switch {
	case r.ID.IsZero(), r.Stamp.IsZero(), r.What == "", r.Outcome == "", r.Who.IsZero():
		return nil, fault.New(op, fault.AuditValidationFailed, "a record needs an id, a stamp, who, what and an outcome")
	}
	if err := r.principals(); err != nil {
		return nil, fault.Wrap(op, err)
	}
	out, wrong, ok := appendRecord(b, &r)
	if !ok {
		return nil, fault.New(op, fault.AuditValidationFailed, "the record's text %q is not UTF-8", wrong)
	}
	limit, size := MaxRecordBytes, len(out)-len(b)
	if r.Personal != nil {
		limit = MaxLeafBytes
	}
	if size > limit {
		return nil, fault.New(op, fault.AuditValidationFailed, "the record is %d bytes, limit %d", size, limit)
	}
	if r.Personal == nil && size > surelyFits {
		return out, r.leafFits()
	}
	return out, nil
}

// usualBytes is what most records fit into.
const usualBytes = 768

// leafFits seals the record for nobody, to see how long its leaf is: one that is
// too long must be refused here, for the tree could only stop at it.
func (r Record) leafFits() error {
	nobody := Subject{Key: make([]byte, keyBytes)}
	sealed, err := r.Seal(func(creto.ID) (Subject, error) { return nobody, nil })
	if err != nil || sealed.Personal == nil {
		return err
	}
	_, err = sealed.Encode()
	return err
}

// principals finds who acted, or on whose behalf, and cannot have.
func (r Record) principals() error {
	const op fault.Op = "audit.principals"
	for _, id := range [...]creto.ID{r.Who, r.OnBehalfOf} {
		if id.IsZero() {
			continue
		}
		if err := id.Validate(); err != nil {
			return fault.WrapAs(op, fault.AuditValidationFailed, err, "%s", fault.Message(err))
		}
		if r.Personal == nil && IsPseudonym(id) {
			return fault.New(op, fault.AuditValidationFailed, "%s is how the log calls a person, and nobody's name", id.Name)
		}
	}
	return nil
}

// SigningBytes returns what an actor signs: the record without stamp and
// signature, its personal fields in clear.
//
// Errors: AuditValidationFailed (Permanent).
func (r Record) SigningBytes() ([]byte, error) {
	r.Stamp, r.Signature, r.SignatureStatus, r.Personal = creto.Timestamp{}, nil, "", nil
	data, wrong, ok := appendRecord(nil, &r)
	if !ok {
		return nil, fault.New("audit.SigningBytes", fault.AuditValidationFailed, "the record's text %q is not UTF-8", wrong)
	}
	return data, nil
}

// DecodeRecord reads a leaf.
//
// Errors: AuditValidationFailed (Permanent).
func DecodeRecord(leaf []byte) (Record, error) {
	var r Record
	err := canon.Unmarshal(leaf, &r)
	return r, fault.WrapAs("audit.DecodeRecord", fault.AuditValidationFailed, err, "not a record")
}

// LeafHash returns the hash of a leaf (RFC 6962, section 2.1).
func LeafHash(leaf []byte) [32]byte { return tlog.RecordHash(leaf) }

// DecodeTrusted is DecodeRecord for bytes of which a checksum or the tree vouches
// that Encode made them: it does not look for other encodings of the same record. The
// texts of the record of a string are parts of it.
//
// Errors: AuditValidationFailed (Permanent).
func DecodeTrusted[T string | []byte](leaf T) (Record, error) {
	var r Record
	err := decodeTrusted(string(leaf), &r)
	return r, fault.WrapAs("audit.DecodeTrusted", fault.AuditValidationFailed, err, "not a record")
}

// VerifyProof checks that leaf is at index in the tree of that size and root
// (R-AUD-5; nil is the only yes, B-1).
//
// Errors: AuditProofVerificationFailed (Security).
func VerifyProof(leaf []byte, index, size int64, root [32]byte, proof [][32]byte) error {
	hashes := make(tlog.RecordProof, len(proof))
	for i, h := range proof {
		hashes[i] = tlog.Hash(h)
	}
	err := tlog.CheckRecord(hashes, size, tlog.Hash(root), index, tlog.RecordHash(leaf))
	return fault.WrapAs("audit.VerifyProof", fault.AuditProofVerificationFailed, err, "the inclusion proof does not lead to the root")
}

// VerifyConsistency checks that the tree of size from and root fromRoot is the
// beginning of the one of size to (RFC 6962, section 2.1.2).
//
// Errors: AuditProofVerificationFailed (Security).
func VerifyConsistency(from int64, fromRoot [32]byte, to int64, toRoot [32]byte, proof [][32]byte) error {
	const op fault.Op = "audit.VerifyConsistency"
	if from == 0 && len(proof) == 0 {
		return nil // the empty tree is the beginning of every tree
	}
	hashes := make(tlog.TreeProof, len(proof))
	for i, h := range proof {
		hashes[i] = tlog.Hash(h)
	}
	err := tlog.CheckTree(hashes, to, tlog.Hash(toRoot), from, tlog.Hash(fromRoot))
	return fault.WrapAs(op, fault.AuditProofVerificationFailed, err, "the tree of %d records is not the beginning of the tree of %d", from, to)
}
