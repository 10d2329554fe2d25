package nhi

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/pqc"
)

// ordered asks several authorities of one trust domain in order.
type ordered struct {
	roots []pqc.PublicKey
	list  []*ranked
	seen  atomic.Uint64 // the newest epoch that any of them told
}

// ranked is one of them.
type ranked struct {
	Authority
	known atomic.Bool // that it is of the trust domain
}

var _ Authority = (*ordered)(nil)

// NewOrdered returns an authority that asks the first of list, and the next
// only when one is unavailable or too slow (R-OQ-1). All must be of the trust
// domain that roots stand for, and one that is behind the newest revocation
// epoch that any of them told is passed over: it could bring back what was
// revoked. A denial is final: nobody else is asked.
func NewOrdered(roots []pqc.PublicKey, list ...Authority) Authority {
	o := &ordered{roots: slices.Clone(roots)}
	for _, a := range list {
		o.list = append(o.list, &ranked{Authority: a})
	}
	return o
}

// ask calls the first authority that may answer and can.
func ask[T any](ctx context.Context, o *ordered, op fault.Op, call func(Authority) (T, error)) (T, error) {
	var zero T
	var errs []error
	for _, r := range o.list {
		err := o.vet(ctx, r)
		if err == nil {
			var out T
			if out, err = call(r.Authority); err == nil {
				return out, nil
			}
		}
		errs = append(errs, err)
		if c := fault.CategoryOf(err); c != fault.Transient && c != fault.Degraded || ctx.Err() != nil {
			return zero, fault.Wrap(op, err)
		}
	}
	return zero, fault.WrapAs(op, fault.NHIUnavailable, errors.Join(append(errs, fault.NHIUnavailable)...), "no identity authority answers")
}

// vet refuses an authority that is behind, or of another trust domain.
func (o *ordered) vet(ctx context.Context, r *ranked) error {
	const op fault.Op = "nhi.vet"
	epoch, err := r.Epoch()
	if err != nil {
		return fault.Wrap(op, err)
	}
	if !o.note(epoch) {
		return fault.New(op, fault.NHIUnavailable, "an identity authority is behind: it does not know the newest revocations")
	}
	if r.known.Load() {
		return nil
	}
	roots, err := r.Roots(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	if !slices.ContainsFunc(roots, func(k pqc.PublicKey) bool {
		return slices.ContainsFunc(o.roots, func(own pqc.PublicKey) bool { return k.Algorithm == own.Algorithm && slices.Equal(k.Bytes, own.Bytes) })
	}) {
		return fault.New(op, fault.SecurityViolation, "an identity authority is of another trust domain: it has other root keys")
	}
	r.known.Store(true)
	return nil
}

// note reports whether epoch is no older than the newest, and remembers it.
func (o *ordered) note(epoch uint64) bool {
	for {
		seen := o.seen.Load()
		if epoch <= seen {
			return epoch == seen
		}
		if o.seen.CompareAndSwap(seen, epoch) {
			return true
		}
	}
}

func (o *ordered) Resolve(ctx context.Context, c Credential) (Identity, error) {
	return ask(ctx, o, "nhi.Ordered.Resolve", func(a Authority) (Identity, error) { return a.Resolve(ctx, c) })
}

func (o *ordered) Recheck(ctx context.Context, who Identity) error {
	_, err := ask(ctx, o, "nhi.Ordered.Recheck", func(a Authority) (struct{}, error) { return struct{}{}, a.Recheck(ctx, who) })
	return err
}

func (o *ordered) Revoked(ctx context.Context, links []LinkRef) (int, error) {
	return ask(ctx, o, "nhi.Ordered.Revoked", func(a Authority) (int, error) { return a.Revoked(ctx, links) })
}

func (o *ordered) DelegationChain(ctx context.Context, agent creto.ID) ([]SignedLink, error) {
	return ask(ctx, o, "nhi.Ordered.DelegationChain", func(a Authority) ([]SignedLink, error) { return a.DelegationChain(ctx, agent) })
}

func (o *ordered) PublicKeys(ctx context.Context, agent creto.ID) (PublicKeys, error) {
	return ask(ctx, o, "nhi.Ordered.PublicKeys", func(a Authority) (PublicKeys, error) { return a.PublicKeys(ctx, agent) })
}

func (o *ordered) Sign(ctx context.Context, who Identity, purpose pqc.Purpose, message []byte) (pqc.Signature, error) {
	return ask(ctx, o, "nhi.Ordered.Sign", func(a Authority) (pqc.Signature, error) { return a.Sign(ctx, who, purpose, message) })
}

func (o *ordered) DelegatedSecrets(ctx context.Context, who Identity, refs []SecretRef) ([]creto.Secret, error) {
	return ask(ctx, o, "nhi.Ordered.DelegatedSecrets", func(a Authority) ([]creto.Secret, error) { return a.DelegatedSecrets(ctx, who, refs) })
}

func (o *ordered) Groups(ctx context.Context, id creto.ID) ([]string, error) {
	return ask(ctx, o, "nhi.Ordered.Groups", func(a Authority) ([]string, error) { return a.Groups(ctx, id) })
}

func (o *ordered) Roots(ctx context.Context) ([]pqc.PublicKey, error) {
	return ask(ctx, o, "nhi.Ordered.Roots", func(a Authority) ([]pqc.PublicKey, error) { return a.Roots(ctx) })
}

// Epoch returns the first answer that is not behind.
func (o *ordered) Epoch() (uint64, error) {
	const op fault.Op = "nhi.Ordered.Epoch"
	var last error = fault.NHIUnavailable
	for _, r := range o.list {
		epoch, err := r.Epoch()
		if err == nil && o.note(epoch) {
			return epoch, nil
		}
		if err != nil {
			last = err
		}
	}
	return 0, fault.WrapAs(op, fault.NHIUnavailable, last, "no identity authority has been heard lately")
}

// Watch listens to the first, and to the next when one falls silent.
func (o *ordered) Watch(ctx context.Context, seen func(epoch uint64)) error {
	const op fault.Op = "nhi.Ordered.Watch"
	var errs []error
	for _, r := range o.list {
		err := r.Watch(ctx, func(epoch uint64) {
			if o.note(epoch) {
				seen(epoch)
			}
		})
		if ctx.Err() != nil {
			return fault.Wrap(op, ctx.Err())
		}
		errs = append(errs, err)
	}
	return fault.WrapAs(op, fault.NHIUnavailable, errors.Join(append(errs, fault.NHIUnavailable)...), "no identity authority can be heard")
}

func (o *ordered) Ping(ctx context.Context) error {
	_, err := ask(ctx, o, "nhi.Ordered.Ping", func(a Authority) (struct{}, error) { return struct{}{}, a.Ping(ctx) })
	return err
}
