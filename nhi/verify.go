package nhi

import (
	"bytes"
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	"creto.dev/pqc"
)

// VerifiedChain is a chain of delegation that [VerifyDelegation] accepted. Its
// zero value is denied everywhere. It is immutable.
type VerifiedChain struct{ *verified }

// verified is what a VerifiedChain stands on.
type verified struct {
	principals []creto.ID
	scopes     []Scope
	links      []SignedLink
	refs       []LinkRef
	digest     creto.Digest
	proof      Proof
	root       pqc.PublicKey // that signed the first link
	notBefore  time.Time
	notAfter   time.Time
}

// Valid reports whether c came from VerifyDelegation.
func (c VerifiedChain) Valid() bool { return c.verified != nil }

// Principals returns everyone in the chain, the human first and the acting
// agent last. The caller must not change it.
func (c VerifiedChain) Principals() []creto.ID {
	if !c.Valid() {
		return nil
	}
	return c.principals
}

// Human returns who the chain begins with.
func (c VerifiedChain) Human() creto.ID {
	if !c.Valid() {
		return creto.ID{}
	}
	return c.principals[0]
}

// Agent returns who acts.
func (c VerifiedChain) Agent() creto.ID {
	if !c.Valid() {
		return creto.ID{}
	}
	return c.principals[len(c.principals)-1]
}

// Root returns the key that signed the first link.
func (c VerifiedChain) Root() pqc.PublicKey {
	if !c.Valid() {
		return pqc.PublicKey{}
	}
	return c.root
}

// Contains reports whether id is anywhere in the chain.
func (c VerifiedChain) Contains(id creto.ID) bool { return slices.Contains(c.Principals(), id) }

// Digest names the chain.
func (c VerifiedChain) Digest() creto.Digest {
	if !c.Valid() {
		return creto.Digest{}
	}
	return c.digest
}

// Links returns the signed links. The caller must not change them.
func (c VerifiedChain) Links() []SignedLink {
	if !c.Valid() {
		return nil
	}
	return c.links
}

// Proof is the kind of proof of the human's presence.
func (c VerifiedChain) Proof() string { return c.HumanProof().Kind }

// HumanProof says how the human's presence was proven.
func (c VerifiedChain) HumanProof() Proof {
	if !c.Valid() {
		return Proof{}
	}
	return c.proof
}

// NotAfter is when the first of the links ends.
func (c VerifiedChain) NotAfter() time.Time {
	if !c.Valid() {
		return time.Time{}
	}
	return c.notAfter
}

// Spend returns the narrowest bound on spending, or the zero amount if there is
// none. Scopes narrow downwards, so that it is the last link's.
func (c VerifiedChain) Spend() creto.Money {
	if !c.Valid() {
		return creto.Money{}
	}
	return c.scopes[len(c.scopes)-1].Spend
}

// Covers reports whether every link's scope includes action on resource.
func (c VerifiedChain) Covers(action string, resource creto.Resource) bool {
	if !c.Valid() {
		return false
	}
	text := resource.String()
	return !slices.ContainsFunc(c.scopes, func(s Scope) bool { return !s.Covers(action, text) })
}

// VerifyDelegation checks every signature and rule of a chain and is the only
// maker of a VerifiedChain. now is when the chain must be in force. revocations
// may be nil where they cannot be known, as in an offline verification.
//
// Errors: NHIDelegationVerificationFailed (Security), naming the link, for
// whatever does not hold; those of revocations.
func VerifyDelegation(ctx context.Context, links []SignedLink, roots []pqc.PublicKey, p pqc.Provider, now time.Time, revocations Revocations) (VerifiedChain, error) {
	const op fault.Op = "nhi.VerifyDelegation"
	v, err := verify(links, roots, p)
	if err == nil {
		err = v.inForce(ctx, now, revocations)
	}
	if err != nil {
		return VerifiedChain{}, fault.Wrap(op, err)
	}
	return VerifiedChain{v}, nil
}

// refuse names the link that does not hold.
func refuse(op fault.Op, i int, issuer, subject creto.ID, reason string) error {
	return fault.New(op, fault.NHIDelegationVerificationFailed, "link %d of the chain, from %s to %s, %s", i+1, issuer, subject, reason)
}

// verify checks what never changes: signatures, and that each link passes on no
// more than the one above it. The signatures take nearly all of the time and are
// verified side by side.
func verify(links []SignedLink, roots []pqc.PublicKey, p pqc.Provider) (*verified, error) {
	const op fault.Op = "nhi.verify"
	if len(links) == 0 || len(links) > MaxChain {
		return nil, fault.New(op, fault.NHIDelegationVerificationFailed, "a chain of %d links; allowed are 1 to %d", len(links), MaxChain)
	}
	v := &verified{links: slices.Clone(links)}
	signers := make([]int, len(links)) // which key signed each link; -1 for none
	var checks sync.WaitGroup
	defer checks.Wait()
	keys := roots
	var above Link
	var broken error // what is wrong with the link after those in v.refs
	for i, signed := range links {
		by := keys
		checks.Go(func() {
			signers[i] = slices.IndexFunc(by, func(k pqc.PublicKey) bool {
				return p.Verify(pqc.PurposeDelegation, signed.Body, signed.Signature, k) == nil
			})
		})
		var link Link
		if link, broken = signed.Link(); broken != nil {
			break
		}
		reason := link.violation(above, i == 0)
		if reason == "" && i > 0 && link.Parent != v.refs[i-1].Digest {
			reason = "names another parent"
		}
		v.add(link, signed.Digest())
		if reason != "" {
			broken = refuse(op, i, link.Issuer, link.Subject, reason)
			break
		}
		above, keys = link, []pqc.PublicKey{link.SubjectKey}
	}
	checks.Wait()
	for i, ref := range v.refs {
		if signers[i] < 0 {
			return nil, refuse(op, i, ref.Issuer, ref.Subject, "is not signed by its issuer")
		}
	}
	if broken != nil {
		return nil, broken
	}
	v.root = roots[signers[0]]
	digests := make([]creto.Digest, len(v.refs))
	for i, ref := range v.refs {
		digests[i] = ref.Digest
	}
	var err error
	v.digest, err = chainDigest(digests)
	return v, err
}

// add takes the next link into account.
func (v *verified) add(link Link, digest creto.Digest) {
	notBefore, notAfter := time.Unix(link.NotBefore, 0), time.Unix(link.NotAfter, 0)
	if len(v.refs) == 0 {
		v.principals = append(v.principals, link.Issuer)
		v.proof, v.notBefore, v.notAfter = link.Proof, notBefore, notAfter
	}
	if notBefore.After(v.notBefore) {
		v.notBefore = notBefore
	}
	if notAfter.Before(v.notAfter) {
		v.notAfter = notAfter
	}
	v.principals = append(v.principals, link.Subject)
	v.scopes = append(v.scopes, link.Scope)
	v.refs = append(v.refs, link.ref(digest))
}

// inForce checks what changes with time.
func (v *verified) inForce(ctx context.Context, now time.Time, revocations Revocations) error {
	const op fault.Op = "nhi.inForce"
	if now.Before(v.notBefore) || !now.Before(v.notAfter) {
		return v.outOfForce(op, now)
	}
	if revocations == nil {
		return nil
	}
	i, err := revocations.Revoked(ctx, v.refs)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if i >= 0 {
		return refuse(op, i, v.refs[min(i, len(v.refs)-1)].Issuer, v.refs[min(i, len(v.refs)-1)].Subject, "has been revoked")
	}
	return nil
}

// outOfForce finds the link that is not in force at now.
func (v *verified) outOfForce(op fault.Op, now time.Time) error {
	for i, signed := range v.links {
		link, err := signed.Link()
		if err != nil {
			return err
		}
		switch {
		case now.Unix() < link.NotBefore:
			return refuse(op, i, link.Issuer, link.Subject, "is not in force yet")
		case now.Unix() >= link.NotAfter:
			return refuse(op, i, link.Issuer, link.Subject, "has expired")
		}
	}
	return fault.New(op, fault.NHIDelegationVerificationFailed, "the chain is not in force")
}

// ChainDigest names a chain by its links, verified or not.
//
// Errors: Internal (Permanent), never for a slice of digests.
func ChainDigest(links []SignedLink) (creto.Digest, error) {
	digests := make([]creto.Digest, len(links))
	for i, link := range links {
		digests[i] = link.Digest()
	}
	return chainDigest(digests)
}

func chainDigest(digests []creto.Digest) (creto.Digest, error) {
	encoded, err := canon.Marshal(digests)
	return creto.DigestOf(encoded), err
}

// defaultRemembered bounds a Verifier's memory: about 20 kB for a chain of 3.
const defaultRemembered = 1000

// Verifier is VerifyDelegation with a memory: a chain whose signatures were
// verified is compared byte for byte instead of verified again. Whether it is in
// force and not revoked is checked every time. Safe for concurrent use.
type Verifier struct {
	provider pqc.Provider
	size     int
	seed     maphash.Seed

	mu    sync.RWMutex // guards known
	known map[uint64]*verified
}

// NewVerifier returns a Verifier that remembers up to size chains; 0 means
// 1,000.
func NewVerifier(p pqc.Provider, size int) *Verifier {
	if size <= 0 {
		size = defaultRemembered
	}
	return &Verifier{provider: p, size: size, seed: maphash.MakeSeed(), known: make(map[uint64]*verified)}
}

// Verify is [VerifyDelegation].
func (m *Verifier) Verify(ctx context.Context, links []SignedLink, roots []pqc.PublicKey, now time.Time, revocations Revocations) (VerifiedChain, error) {
	const op fault.Op = "nhi.Verifier.Verify"
	key := m.key(links)
	m.mu.RLock()
	v := m.known[key]
	m.mu.RUnlock()
	if v == nil || !v.is(links, roots) {
		// A copy, since what is remembered must not change with the caller's.
		own := slices.Clone(links)
		for i, l := range links {
			own[i].Body, own[i].Signature.Bytes = bytes.Clone(l.Body), bytes.Clone(l.Signature.Bytes)
		}
		var err error
		if v, err = verify(own, roots, m.provider); err != nil {
			return VerifiedChain{}, fault.Wrap(op, err)
		}
		m.remember(key, v)
	}
	if err := v.inForce(ctx, now, revocations); err != nil {
		return VerifiedChain{}, fault.Wrap(op, err)
	}
	return VerifiedChain{v}, nil
}

// key finds a chain's place in memory; it proves nothing.
func (m *Verifier) key(links []SignedLink) uint64 {
	var h maphash.Hash
	h.SetSeed(m.seed)
	for _, link := range links {
		_, _ = h.Write(link.Body)            // never fails
		_, _ = h.Write(link.Signature.Bytes) // never fails
	}
	return h.Sum64()
}

// is reports whether v is the outcome for just these links under these roots.
func (v *verified) is(links []SignedLink, roots []pqc.PublicKey) bool {
	return slices.EqualFunc(v.links, links, func(a, b SignedLink) bool {
		return a.Signature.Algorithm == b.Signature.Algorithm && bytes.Equal(a.Body, b.Body) && bytes.Equal(a.Signature.Bytes, b.Signature.Bytes)
	}) && slices.ContainsFunc(roots, func(k pqc.PublicKey) bool {
		return k.Algorithm == v.root.Algorithm && bytes.Equal(k.Bytes, v.root.Bytes)
	})
}

// remember keeps v; when there are too many, whichever the map names first
// goes: a forgotten chain is only verified anew.
func (m *Verifier) remember(key uint64, v *verified) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for old := range m.known {
		if len(m.known) < m.size {
			break
		}
		delete(m.known, old)
	}
	m.known[key] = v
}
