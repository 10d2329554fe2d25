// Package receipt makes and verifies bundles: records of what happened with
// everything that proves them, in one file that needs no network and no server.
//
// A bundle is one canonical CBOR map. The same inputs give the same bytes, and
// any other byte anywhere makes verification fail and name the part.
package receipt

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"fmt"
	"slices"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// Version is the version of a bundle's encoding.
const Version = 1

// Receipt is a record's leaf and the proof that it is in the log.
type Receipt struct {
	Leaf  []byte   `cbor:"1,keyasint"`
	Index int64    `cbor:"2,keyasint"`
	Proof [][]byte `cbor:"3,keyasint"`
}

// Keys are what a bundle's signatures are verified with.
type Keys struct {
	// Root is the key that signs now.
	Root pqc.PublicKey `cbor:"1,keyasint"`
	// Certificates are first the root's word for the key that signs the log's
	// heads, and for its Ed25519 one, which bundles of the first days do not
	// have; then those of the roots for each other, as the authority gives them.
	Certificates []nhi.SignedCertificate `cbor:"2,keyasint"`
}

// Bundle is a set of receipts with what proves them.
type Bundle struct {
	Version    uint             `cbor:"1,keyasint"`
	Receipts   []Receipt        `cbor:"2,keyasint"` // by index
	Links      []nhi.SignedLink `cbor:"3,keyasint"` // by digest
	Checkpoint []byte           `cbor:"4,keyasint"`
	Keys       Keys             `cbor:"5,keyasint"`
	// Disclosures open what is personal in the records; without one it stays
	// sealed. By index and subject.
	Disclosures []audit.Disclosure `cbor:"6,keyasint,omitempty"`
}

// ChainByDigest returns the links of a chain that a record names.
type ChainByDigest func(ctx context.Context, who creto.ID, chain creto.Digest) ([]nhi.SignedLink, error)

// Disclose returns the keys of what is personal in an entry.
type Disclose func(ctx context.Context, e audit.Entry) ([]audit.Disclosure, error)

// Make returns the bundle of some entries of log. disclose has its readers see
// what is personal; nil leaves that sealed.
//
// Errors: InvalidArgument (Permanent) without entries; those of the log, of
// chains and of disclose.
func Make(ctx context.Context, log audit.Log, chains ChainByDigest, keys Keys, disclose Disclose, entries []audit.Entry) ([]byte, error) {
	const op fault.Op = "receipt.Make"
	if len(entries) == 0 {
		return nil, fault.New(op, fault.InvalidArgument, "there is no record to prove")
	}
	checkpoint, err := log.Checkpoint(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	b := Bundle{Version: Version, Checkpoint: checkpoint.Note, Keys: keys}
	links := make(map[creto.Digest]nhi.SignedLink)
	for _, e := range entries {
		proof, err := log.Proof(ctx, e.Index, checkpoint.Size)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		r := Receipt{Leaf: e.Leaf, Index: e.Index}
		for _, h := range proof {
			r.Proof = append(r.Proof, h[:])
		}
		b.Receipts = append(b.Receipts, r)
		if disclose != nil {
			keys, err := disclose(ctx, e)
			if err != nil {
				return nil, fault.Wrap(op, err)
			}
			b.Disclosures = append(b.Disclosures, keys...)
		}
		if e.Record.Chain.IsZero() {
			continue
		}
		chain, err := chains(ctx, e.Record.Who, e.Record.Chain)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		for _, link := range chain {
			links[link.Digest()] = link
		}
	}
	slices.SortFunc(b.Receipts, func(a, b Receipt) int { return int(a.Index - b.Index) })
	b.Receipts = slices.CompactFunc(b.Receipts, func(a, b Receipt) bool { return a.Index == b.Index })
	for _, link := range links {
		b.Links = append(b.Links, link)
	}
	slices.SortFunc(b.Links, compareLinks)
	slices.SortFunc(b.Disclosures, compareDisclosures)
	b.Disclosures = slices.CompactFunc(b.Disclosures, func(a, b audit.Disclosure) bool { return compareDisclosures(a, b) == 0 })
	data, err := canon.Marshal(b)
	return data, fault.Wrap(op, err)
}

func compareLinks(a, b nhi.SignedLink) int {
	x, y := a.Digest(), b.Digest()
	return bytes.Compare(x[:], y[:])
}

func compareDisclosures(a, b audit.Disclosure) int {
	return cmp.Or(cmp.Compare(a.Index, b.Index), bytes.Compare(a.Subject[:], b.Subject[:]))
}

// Parse reads a bundle without verifying anything.
//
// Errors: InvalidArgument (Permanent).
func Parse(data []byte) (Bundle, error) {
	const op fault.Op = "receipt.Parse"
	var b Bundle
	if err := canon.Unmarshal(data, &b); err != nil {
		return Bundle{}, fault.WrapAs(op, fault.InvalidArgument, err, "bundle: it is none, or was changed")
	}
	if b.Version != Version {
		return Bundle{}, fault.New(op, fault.InvalidArgument, "bundle: version %d; this creto knows %d", b.Version, Version)
	}
	return b, nil
}

// Verified is what a bundle proves.
type Verified struct {
	// Records are what the leaves say, with what is personal as far as the
	// bundle discloses it.
	Records []audit.Entry
	// Chains holds the chain behind each record, in the same order; the zero
	// chain where a record has none.
	Chains []nhi.VerifiedChain
	Origin string
	Size   int64
	// Root is the fingerprint of the key that everything hangs on. Trusted
	// says that it is the one the caller pinned.
	Root    creto.Digest
	Trusted bool
}

// Verify checks a whole bundle. root is the fingerprint that the caller trusts;
// the zero digest trusts nobody, and leaves Trusted false.
//
// Errors: InvalidArgument (Permanent) for what is no bundle; SecurityViolation
// (Security), naming the record or the part, for what does not hold.
func Verify(ctx context.Context, p pqc.Provider, data []byte, root creto.Digest) (Verified, error) {
	const op fault.Op = "receipt.Verify"
	b, err := Parse(data)
	if err != nil {
		return Verified{}, fault.Wrap(op, err)
	}
	v := Verified{}
	var roots []pqc.PublicKey
	if roots, v.Root, err = b.Keys.roots(p, root); err != nil {
		return Verified{}, err
	}
	v.Trusted = !root.IsZero()
	head, err := b.head(p)
	if err != nil {
		return Verified{}, err
	}
	v.Size, v.Origin = head.size, head.origin
	chains, err := b.chains()
	if err != nil {
		return Verified{}, err
	}
	verifier := nhi.NewVerifier(p, len(b.Links)) // many records share a chain
	used := make(map[creto.Digest]bool)
	spent := make(map[string]int)
	last := int64(-1)
	keys := b.Disclosures
	for i, r := range b.Receipts {
		entry, err := r.entry(head)
		if err == nil {
			entry.Record, keys, err = disclosed(entry, keys)
		}
		if err != nil {
			return Verified{}, broken(op, err, "record %d at index %d: %s", i+1, r.Index, fault.Message(err))
		}
		if r.Index <= last {
			return Verified{}, broken(op, nil, "record %d at index %d: out of order", i+1, r.Index)
		}
		last = r.Index
		chain, err := chains.verify(ctx, verifier, roots, entry.Record, used)
		if err != nil {
			return Verified{}, broken(op, err, "record %d at index %d (%s): %s", i+1, r.Index, entry.Record.What, fault.Message(err))
		}
		// An approval counts once. A refusal spends none.
		for _, c := range entry.Record.Consents {
			if before := spent[c.ID]; before > 0 && entry.Record.Outcome != audit.Denied {
				return Verified{}, broken(op, nil, "record %d at index %d (%s): its consent was spent by record %d", i+1, r.Index, entry.Record.What, before)
			}
			if entry.Record.Outcome != audit.Denied {
				spent[c.ID] = i + 1
			}
		}
		v.Records = append(v.Records, entry)
		v.Chains = append(v.Chains, chain)
	}
	if len(v.Records) == 0 {
		return Verified{}, fault.New(op, fault.InvalidArgument, "bundle: it holds no record")
	}
	for i, link := range b.Links {
		if !used[link.Digest()] {
			return Verified{}, broken(op, nil, "link %d: no record of the bundle needs it", i+1)
		}
		if i > 0 && compareLinks(b.Links[i-1], link) >= 0 {
			return Verified{}, broken(op, nil, "link %d: out of order", i+1)
		}
	}
	if len(keys) > 0 {
		return Verified{}, broken(op, nil, "disclosure: of the %d one opens nothing of a record, or is out of order", len(b.Disclosures))
	}
	return v, nil
}

func broken(op fault.Op, cause error, format string, args ...any) error {
	if cause == nil {
		return fault.New(op, fault.SecurityViolation, format, args...)
	}
	// The causes here are our own faults; their messages are in the format.
	return fault.New(op, fault.SecurityViolation, "%s", fmt.Sprintf(format, args...))
}

// head is what the checkpoint vouches for.
type head struct {
	origin string
	size   int64
	root   [32]byte
}

// head verifies the keys and the checkpoint.
func (b Bundle) head(p pqc.Provider) (head, error) {
	const op fault.Op = "receipt.head"
	if len(b.Keys.Certificates) == 0 {
		return head{}, broken(op, nil, "key: the log's key has no certificate")
	}
	cert, err := b.Keys.Certificates[0].Verify(p, b.Keys.Root)
	if err != nil || cert.Version != 1 || cert.Role != nhi.RoleCheckpoint {
		return head{}, broken(op, err, "key: the log's key is not certified by the root")
	}
	keys := audit.LogKeys{Origin: cert.Name, Key: cert.Key}
	if b.Keys.own() > 1 {
		plain, err := b.Keys.Certificates[1].Verify(p, b.Keys.Root)
		if err != nil || plain.Version != 1 || plain.Name != cert.Name || plain.Key.Algorithm != audit.NoteEd25519 || len(plain.Key.Bytes) != ed25519.PublicKeySize {
			return head{}, broken(op, err, "key: the log's Ed25519 key is not certified by the root")
		}
		keys.Ed25519 = plain.Key.Bytes
	}
	checkpoint, err := audit.VerifyCheckpoint(p, b.Checkpoint, keys)
	if err != nil {
		return head{}, broken(op, err, "checkpoint: %s", fault.Message(err))
	}
	// A bundle proves each of its bytes, and whoever reads it knows no witness.
	if len(checkpoint.Others) > 0 {
		return head{}, broken(op, nil, "checkpoint: it has lines that nothing vouches for")
	}
	return head{origin: cert.Name, size: checkpoint.Size, root: checkpoint.Root}, nil
}

func (r Receipt) entry(h head) (audit.Entry, error) {
	const op fault.Op = "receipt.entry"
	proof := make([][32]byte, len(r.Proof))
	for i, hash := range r.Proof {
		if len(hash) != len(proof[i]) {
			return audit.Entry{}, fault.New(op, fault.SecurityViolation, "its proof is malformed")
		}
		proof[i] = [32]byte(hash)
	}
	if err := audit.VerifyProof(r.Leaf, r.Index, h.size, h.root, proof); err != nil {
		return audit.Entry{}, err
	}
	record, err := audit.DecodeRecord(r.Leaf)
	if err != nil {
		return audit.Entry{}, err
	}
	return audit.Entry{Record: record, Index: r.Index, Leaf: r.Leaf}, record.CheckConsents()
}

// disclosed opens what the next of the keys are for, and returns the rest of
// them.
func disclosed(e audit.Entry, keys []audit.Disclosure) (audit.Record, []audit.Disclosure, error) {
	n := 0
	for n < len(keys) && keys[n].Index == e.Index && (n == 0 || compareDisclosures(keys[n-1], keys[n]) < 0) {
		n++
	}
	mine, used := keys[:n], 0
	r, err := e.Record.Open(func(box audit.Personal) []byte {
		i := slices.IndexFunc(mine, func(d audit.Disclosure) bool { return d.Subject == box.Subject })
		if i < 0 {
			return nil
		}
		used++
		return mine[i].Key
	})
	if err == nil && used != n {
		err = fault.New("receipt.disclosed", fault.SecurityViolation, "a disclosure is of nobody in it")
	}
	return r, keys[n:], err
}

// chains are the chains that the links of a bundle make, by digest; unverified.
type chains map[creto.Digest][]nhi.SignedLink

// chains puts the links together. Each link ends one chain.
func (b Bundle) chains() (chains, error) {
	const op fault.Op = "receipt.chains"
	type parsed struct {
		signed nhi.SignedLink
		parent creto.Digest
	}
	links := make(map[creto.Digest]parsed, len(b.Links))
	for i, signed := range b.Links {
		link, err := signed.Link()
		if err != nil {
			return nil, broken(op, err, "link %d: %s", i+1, fault.Message(err))
		}
		links[signed.Digest()] = parsed{signed, link.Parent}
	}
	all := make(chains, len(b.Links))
	for _, leaf := range b.Links {
		var chain []nhi.SignedLink
		at, ok := links[leaf.Digest()]
		for ok && len(chain) <= nhi.MaxChain {
			chain = append(chain, at.signed)
			at, ok = links[at.parent]
		}
		slices.Reverse(chain)
		digest, err := nhi.ChainDigest(chain)
		if err != nil {
			return nil, fault.Wrap(op, err)
		}
		all[digest] = chain
	}
	return all, nil
}

// verify verifies the chain that a record names, as it was in force when the
// record was made. One that was revoked by then cannot be known: its record
// would not be in the log.
func (c chains) verify(ctx context.Context, v *nhi.Verifier, roots []pqc.PublicKey, r audit.Record, used map[creto.Digest]bool) (nhi.VerifiedChain, error) {
	const op fault.Op = "receipt.verify"
	if r.Chain.IsZero() {
		return nhi.VerifiedChain{}, nil
	}
	links, ok := c[r.Chain]
	if !ok {
		return nhi.VerifiedChain{}, fault.New(op, fault.SecurityViolation, "the bundle lacks the links of its chain")
	}
	chain, err := v.Verify(ctx, links, roots, r.Stamp.Time(), nil)
	switch {
	case err != nil:
		return nhi.VerifiedChain{}, err
	case chain.Digest() != r.Chain:
		return nhi.VerifiedChain{}, fault.New(op, fault.SecurityViolation, "its links make another chain than it names")
	case chain.Agent() != r.Who:
		return nhi.VerifiedChain{}, fault.New(op, fault.SecurityViolation, "it names another agent than its chain")
	case chain.Human() != r.OnBehalfOf && !audit.IsPseudonym(r.OnBehalfOf): // a pseudonym says less than the chain
		return nhi.VerifiedChain{}, fault.New(op, fault.SecurityViolation, "it names another human than its chain")
	}
	for _, link := range links {
		used[link.Digest()] = true
	}
	return chain, nil
}
