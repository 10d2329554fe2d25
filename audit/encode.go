package audit

import (
	"slices"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
)

// Encode returns the record's canonical bytes: what waits for the tree, and the
// leaf if the record is sealed.
//
// Errors: AuditValidationFailed (Permanent).
func (r Record) Encode() ([]byte, error) {
	const op fault.Op = "audit.Encode"
	switch {
	case r.ID.IsZero(), r.Stamp.IsZero(), r.What == "", r.Outcome == "", r.Who.IsZero():
		return nil, fault.New(op, fault.AuditValidationFailed, "a record needs an id, a stamp, who, what and an outcome")
	}
	if text, ok := r.invalidText(); ok {
		return nil, fault.New(op, fault.AuditValidationFailed, "the record's text %q is not UTF-8", text)
	}
	leaf, err := canon.Marshal(r)
	if err != nil {
		return nil, fault.WrapAs(op, fault.AuditValidationFailed, err, "the record cannot be encoded")
	}
	limit := MaxRecordBytes
	if r.Personal != nil {
		limit = MaxLeafBytes
	}
	if len(leaf) > limit {
		return nil, fault.New(op, fault.AuditValidationFailed, "the record is %d bytes, limit %d", len(leaf), limit)
	}
	return leaf, nil
}

// invalidText finds text that no reader would accept as CBOR text.
func (r Record) invalidText() (string, bool) {
	texts := []string{r.What, r.Resource, r.Why, string(r.Outcome), r.Sandbox, r.Isolation, r.Trace, r.SignatureStatus, r.Stamp.Node, string(r.Stamp.Source)}
	for key, value := range r.Detail {
		texts = append(texts, key, value)
	}
	if r.Decision != nil {
		texts = append(texts, r.Decision.Kind, r.Decision.Reason)
		for _, p := range r.Decision.Policies {
			texts = append(texts, p.ID)
		}
	}
	for _, c := range r.Consents {
		texts = append(texts, c.ID, c.Approver, c.Channel, c.Verification, c.Policy.ID)
	}
	i := slices.IndexFunc(texts, func(s string) bool { return !utf8.ValidString(s) })
	if i < 0 {
		return "", false
	}
	return texts[i], true
}

// SigningBytes returns what an actor signs: the record without stamp and
// signature, its personal fields in clear.
//
// Errors: AuditValidationFailed (Permanent).
func (r Record) SigningBytes() ([]byte, error) {
	r.Stamp, r.Signature, r.SignatureStatus, r.Personal = creto.Timestamp{}, nil, "", nil
	data, err := canon.Marshal(r)
	return data, fault.WrapAs("audit.SigningBytes", fault.AuditValidationFailed, err, "the record cannot be encoded")
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
