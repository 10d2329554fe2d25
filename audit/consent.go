package audit

import (
	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
)

// Question is what a human is asked to consent to, exactly. Its digest is what
// the consent, the signature of the human and the receipt are bound to
// (R-OVS-12).
type Question struct {
	ID       string       `cbor:"1,keyasint"`
	Tenant   string       `cbor:"2,keyasint"`
	Agent    creto.ID     `cbor:"3,keyasint"`
	Chain    creto.Digest `cbor:"4,keyasint"`
	Action   string       `cbor:"5,keyasint"`
	Resource string       `cbor:"6,keyasint"`
	Args     creto.Digest `cbor:"7,keyasint"`
	Policy   PolicyRef    `cbor:"8,keyasint"`
	// ExpiresNS is in Unix nanoseconds.
	ExpiresNS int64 `cbor:"9,keyasint"`
}

// Digest returns the digest of the question's canonical bytes.
//
// Errors: Internal (Permanent), never for a well-formed question.
func (q Question) Digest() (creto.Digest, error) {
	data, err := canon.Marshal(q)
	return creto.DigestOf(data), err
}

// CheckConsents reports whether the record's consents were given for just this
// action. A record without consent passes.
//
// Errors: SecurityViolation (Security).
func (r Record) CheckConsents() error {
	const op fault.Op = "audit.CheckConsents"
	for _, c := range r.Consents {
		digest, err := Question{
			ID: c.ID, Tenant: r.Who.Tenant, Agent: r.Who, Chain: r.Chain, Action: r.What, Resource: r.Resource,
			Args: r.Args, Policy: c.Policy, ExpiresNS: c.ExpiresNS,
		}.Digest()
		if err != nil {
			return fault.Wrap(op, err)
		}
		if digest != c.Request {
			return fault.New(op, fault.SecurityViolation, "the consent is to another request than what was done")
		}
	}
	return nil
}
