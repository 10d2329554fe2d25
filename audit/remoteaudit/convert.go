package remoteaudit

import (
	"time"

	"creto.dev/audit"
	"creto.dev/fault"
	auditv1 "creto.dev/internal/gen/creto/audit/v1"
)

// defaultPage is audit.Filter's.
const defaultPage = 50

func queryOf(f audit.Filter) *auditv1.QueryRequest {
	return &auditv1.QueryRequest{
		Tenant: f.Tenant, Actor: f.Actor, Human: f.Human, What: f.What, Resource: f.Resource, Outcome: string(f.Outcome),
		Since: bound(f.Since), Until: bound(f.Until), Before: f.Before, Oldest: f.Oldest, From: f.From, Limit: int32(f.Limit),
	}
}

func filterFrom(r *auditv1.QueryRequest) audit.Filter {
	f := audit.Filter{
		Tenant: r.GetTenant(), Actor: r.GetActor(), Human: r.GetHuman(), What: r.GetWhat(), Resource: r.GetResource(), Outcome: audit.Outcome(r.GetOutcome()),
		Before: r.GetBefore(), Oldest: r.GetOldest(), From: r.GetFrom(), Limit: int(r.GetLimit()),
	}
	if r.Since != nil {
		f.Since = time.Unix(0, r.GetSince())
	}
	if r.Until != nil {
		f.Until = time.Unix(0, r.GetUntil())
	}
	return f
}

// entryOf returns an entry with the keys of its boxes.
func entryOf(e audit.Entry, keys []audit.Disclosure) *auditv1.Entry {
	out := &auditv1.Entry{Index: e.Index, Leaf: e.Leaf}
	for _, box := range e.Record.Personal {
		var key []byte
		for _, k := range keys {
			if k.Subject == box.Subject {
				key = k.Key
			}
		}
		out.Keys = append(out.Keys, key)
	}
	return out
}

// entryFrom reads an entry and opens what its keys open.
func entryFrom(op fault.Op, x *auditv1.Entry) (audit.Entry, error) {
	e := audit.Entry{Index: x.GetIndex(), Leaf: x.GetLeaf()}
	r, err := audit.DecodeRecord(e.Leaf)
	if err != nil {
		return audit.Entry{}, fault.WrapAs(op, fault.AuditInternal, err, "the audit log gives what is no record")
	}
	e.Record, err = r.Open(func(box audit.Personal) []byte {
		for i := range r.Personal {
			if r.Personal[i].Subject == box.Subject && i < len(x.GetKeys()) && len(x.GetKeys()[i]) > 0 {
				return x.GetKeys()[i]
			}
		}
		return nil
	})
	return e, fault.Wrap(op, err)
}

func hashesOf(hashes [][32]byte) [][]byte {
	out := make([][]byte, len(hashes))
	for i := range hashes {
		out[i] = hashes[i][:]
	}
	return out
}

func hashesFrom(op fault.Op, raw [][]byte) ([][32]byte, error) {
	hashes := make([][32]byte, len(raw))
	for i, h := range raw {
		if len(h) != len(hashes[i]) {
			return nil, fault.New(op, fault.AuditInternal, "the audit log gives a hash of %d bytes", len(h))
		}
		hashes[i] = [32]byte(h)
	}
	return hashes, nil
}
