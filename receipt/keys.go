package receipt

import (
	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// maxRoots bounds how often a trust domain's root can have been replaced.
const maxRoots = 64

// own is how many of the certificates, the first ones, are for the log's keys.
func (k Keys) own() int {
	if len(k.Certificates) > 1 {
		if c, err := k.Certificates[1].Certificate(); err == nil && c.Role == nhi.RoleCheckpointEd25519 {
			return 2
		}
	}
	return min(1, len(k.Certificates))
}

// roots returns the keys that may have signed the links of humans, and the
// fingerprint that all of them hang on: pinned, or that of the root that signs
// now if nothing is pinned. A root that was replaced and its successor certify
// each other, so that whoever pinned one trusts them all.
func (k Keys) roots(p pqc.Provider, pinned creto.Digest) ([]pqc.PublicKey, creto.Digest, error) {
	const op fault.Op = "receipt.roots"
	if len(k.Certificates) > 2*maxRoots {
		return nil, creto.Digest{}, broken(op, nil, "key: %d certificates; allowed are %d", len(k.Certificates), 2*maxRoots)
	}
	current, err := nhi.Fingerprint(k.Root)
	if err != nil {
		return nil, creto.Digest{}, fault.Wrap(op, err)
	}
	if pinned.IsZero() {
		pinned = current
	}
	var trusted []pqc.PublicKey
	trust := func(key pqc.PublicKey) {
		for _, known := range trusted {
			if known.ID == key.ID {
				return
			}
		}
		trusted = append(trusted, key)
	}
	if pinned == current {
		trust(k.Root)
	}
	crossed := k.Certificates[k.own():]
	// A pinned root that signs no more is found as the subject of what its
	// successor signed.
	for _, signed := range crossed {
		if c, err := signed.Certificate(); err == nil && c.Role == nhi.RoleRoot {
			if fingerprint, err := nhi.Fingerprint(c.Key); err == nil && fingerprint == pinned {
				trust(c.Key)
			}
		}
	}
	if len(trusted) == 0 {
		return nil, creto.Digest{}, broken(op, nil, "key: the bundle hangs on the root %s, not on the trusted %s", current, pinned)
	}
	for left := crossed; len(left) > 0; {
		var rest []nhi.SignedCertificate
		for _, signed := range left {
			if key, ok := certifiedBy(p, signed, trusted); ok {
				trust(key)
				continue
			}
			rest = append(rest, signed)
		}
		if len(rest) == len(left) {
			return nil, creto.Digest{}, broken(op, nil, "key: a root is certified by none that is trusted")
		}
		left = rest
	}
	for _, key := range trusted {
		if key.ID == k.Root.ID {
			return trusted, pinned, nil
		}
	}
	return nil, creto.Digest{}, broken(op, nil, "key: the bundle hangs on the root %s, not on the trusted %s", current, pinned)
}

// certifiedBy returns the root that signed certifies, if one of trusted signed it.
func certifiedBy(p pqc.Provider, signed nhi.SignedCertificate, trusted []pqc.PublicKey) (pqc.PublicKey, bool) {
	for _, by := range trusted {
		if by.ID != signed.Signature.Key {
			continue
		}
		if c, err := signed.Verify(p, by); err == nil && c.Version == 1 && c.Role == nhi.RoleRoot {
			return c.Key, true
		}
	}
	return pqc.PublicKey{}, false
}
