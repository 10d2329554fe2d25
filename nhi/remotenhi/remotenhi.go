// Package remotenhi is an nhi.Authority in another process, over gRPC: [New] is the
// client, [Register] the server.
//
// Revocations cross at once. That none is missed is what the client makes sure of:
// it asks for the revocation epoch every nhi.WatchInterval, and an answer is as old
// as its question. When the newest question that was answered is older than
// nhi.WatchTimeout, the epoch is unknown and nothing proceeds; so what was revoked
// is refused everywhere within that time, whatever the network does.
package remotenhi

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/call"
	"creto.dev/fault"
	nhiv1 "creto.dev/internal/gen/creto/nhi/v1"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// Authority is the authority at the other end of a connection. Its Run must run:
// until the other end was heard, and whenever it is not, [Authority.Epoch] fails.
type Authority struct {
	rpc    nhiv1.AuthorityServiceClient
	policy call.Policy

	mu   sync.Mutex // serializes writing word
	word atomic.Pointer[word]
}

// word is the last that was heard.
type word struct {
	epoch uint64
	at    time.Time // when the newest answered question was asked; zero if none was
}

var _ nhi.Authority = (*Authority)(nil)

// DefaultTimeout bounds each attempt of a call where the policy does not.
const DefaultTimeout = time.Second

// New returns the authority at the other end of conn, which the caller closes.
// policy is of each call but the watch.
func New(conn grpc.ClientConnInterface, policy call.Policy) *Authority {
	if policy.Timeout == 0 {
		policy.Timeout = DefaultTimeout
	}
	a := &Authority{rpc: nhiv1.NewAuthorityServiceClient(conn), policy: policy}
	a.word.Store(&word{})
	return a
}

// pause is how long Run waits before it listens again.
const pause = 50 * time.Millisecond

// Run listens to the authority until ctx ends, again and again. It returns nil.
func (a *Authority) Run(ctx context.Context) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for ctx.Err() == nil {
		_ = a.Watch(ctx, func(uint64) {}) // that it ended is what Epoch says
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// Epoch implements nhi.Authority.
func (a *Authority) Epoch() (uint64, error) {
	w := a.word.Load()
	if w.at.IsZero() || time.Since(w.at) >= nhi.WatchTimeout {
		return 0, fault.New("remotenhi.Epoch", fault.NHIUnavailable, "the identity authority has not been heard for %v", nhi.WatchTimeout)
	}
	return w.epoch, nil
}

// hear takes an epoch, and when it was asked for, if it was. It refuses one that
// is older than another that was heard: whoever says it could bring back what was
// revoked.
func (a *Authority) hear(epoch uint64, asked time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	last := a.word.Load()
	if epoch < last.epoch {
		return fault.New("remotenhi.hear", fault.NHIUnavailable, "the identity authority is behind: it tells epoch %d after %d", epoch, last.epoch)
	}
	if asked.Before(last.at) {
		asked = last.at
	}
	a.word.Store(&word{epoch, asked})
	return nil
}

// maxOpen is how many questions may be open: more than fit into WatchTimeout.
const maxOpen = 16

// Watch implements nhi.Authority. It has a stream of its own.
//
// Errors: NHIUnavailable (Degraded) when the authority cannot be heard, or is
// behind; Canceled or DeadlineExceeded with ctx.
func (a *Authority) Watch(ctx context.Context, seen func(epoch uint64)) error {
	const op fault.Op = "remotenhi.Watch"
	listening, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	silence := time.AfterFunc(nhi.WatchTimeout, cancel)
	defer silence.Stop()
	stream, err := a.rpc.Watch(listening)
	if err != nil {
		return a.unheard(ctx, op, err)
	}
	var mu sync.Mutex // guards asked and sent
	var asked [maxOpen]time.Time
	var sent uint64
	asking.Go(func() {
		tick := time.NewTicker(nhi.WatchInterval)
		defer tick.Stop()
		for beat := uint64(1); ; beat++ {
			mu.Lock()
			asked[beat%maxOpen], sent = time.Now(), beat // before it is sent
			mu.Unlock()
			if stream.Send(&nhiv1.WatchRequest{Beat: beat}) != nil {
				return // receiving says why
			}
			select {
			case <-tick.C:
			case <-listening.Done():
				return
			}
		}
	})
	last, first := uint64(0), true
	for {
		in, err := stream.Recv()
		if err != nil {
			return a.unheard(ctx, op, err)
		}
		var at time.Time
		if beat := in.GetBeat(); beat != 0 {
			mu.Lock()
			if beat <= sent && sent-beat < maxOpen {
				at = asked[beat%maxOpen]
			}
			mu.Unlock()
			if at.IsZero() {
				return fault.New(op, fault.NHIUnavailable, "the identity authority answers what was not asked")
			}
		}
		if err := a.hear(in.GetEpoch(), at); err != nil {
			return fault.Wrap(op, err)
		}
		if !at.IsZero() {
			silence.Reset(max(0, nhi.WatchTimeout-time.Since(at)))
		}
		if epoch := in.GetEpoch(); first || epoch > last {
			seen(epoch)
			last, first = epoch, false
		}
	}
}

// unheard is why a watch ended.
func (a *Authority) unheard(ctx context.Context, op fault.Op, err error) error {
	switch {
	case ctx.Err() != nil:
		return fault.Wrap(op, ctx.Err())
	case errors.Is(err, io.EOF), errors.Is(err, fault.Canceled), errors.Is(err, fault.Unavailable):
		return fault.WrapAs(op, fault.NHIUnavailable, errors.Join(err, fault.NHIUnavailable), "the identity authority cannot be heard")
	}
	return fault.Wrap(op, err)
}

// do makes one call. On an error the answer is nil, whose fields read as empty.
func do[In, Out any](ctx context.Context, a *Authority, o call.Operation, method func(context.Context, *In, ...grpc.CallOption) (*Out, error), in *In) (*Out, error) {
	out, err := call.Do(ctx, a.policy, o, func(ctx context.Context) (*Out, error) { return method(ctx, in) })
	return out, classify(err)
}

// classify gives what the wire fails with the contract's codes.
func classify(err error) error {
	const op fault.Op = "remotenhi"
	switch fault.CodeOf(err) {
	case fault.Unavailable, fault.CircuitOpen:
		return fault.WrapAs(op, fault.NHIUnavailable, err, "the identity authority is not available")
	case fault.DeadlineExceeded:
		return fault.WrapAs(op, fault.NHITimeout, err, "the identity authority did not answer in time")
	}
	return err
}

// incomplete is an answer that lacks what it must have.
func incomplete(op fault.Op) error {
	return fault.New(op, fault.NHIInternal, "the identity authority's answer is not what was asked for")
}

// Resolve implements nhi.Authority. A credential with a DPoP proof is sent once
// only: the authority refuses it the second time.
func (a *Authority) Resolve(ctx context.Context, c nhi.Credential) (nhi.Identity, error) {
	const op fault.Op = "remotenhi.Resolve"
	o := call.Read(op)
	if c.DPoP != "" {
		o = call.Write(op, "")
	}
	out, err := do(ctx, a, o, a.rpc.Resolve, &nhiv1.ResolveRequest{Credential: credentialOf(c)})
	if err != nil {
		return nhi.Identity{}, err
	}
	who := identityFrom(out.GetWho())
	if who.ID.Validate() != nil || who.Human.Validate() != nil || who.Chain.IsZero() || who.ExpiresAt.IsZero() {
		return nhi.Identity{}, incomplete(op)
	}
	return who, nil
}

// Recheck implements nhi.Authority.
func (a *Authority) Recheck(ctx context.Context, who nhi.Identity) error {
	_, err := do(ctx, a, call.Read("remotenhi.Recheck"), a.rpc.Recheck, &nhiv1.RecheckRequest{Who: identityOf(who)})
	return err
}

// Revoked implements nhi.Revocations.
func (a *Authority) Revoked(ctx context.Context, links []nhi.LinkRef) (int, error) {
	const op fault.Op = "remotenhi.Revoked"
	out, err := do(ctx, a, call.Read(op), a.rpc.Revoked, &nhiv1.RevokedRequest{Links: each(links, linkRefOf)})
	if err != nil {
		return 0, err
	}
	index := int(out.GetIndex())
	if index < -1 || index >= len(links) {
		return 0, incomplete(op)
	}
	return index, nil
}

// DelegationChain implements nhi.Authority.
func (a *Authority) DelegationChain(ctx context.Context, agent creto.ID) ([]nhi.SignedLink, error) {
	const op fault.Op = "remotenhi.DelegationChain"
	out, err := do(ctx, a, call.Read(op), a.rpc.DelegationChain, &nhiv1.DelegationChainRequest{Agent: idOf(agent)})
	if err == nil && len(out.GetLinks()) == 0 {
		err = incomplete(op)
	}
	return each(out.GetLinks(), signedLinkFrom), err
}

// PublicKeys implements nhi.Authority.
func (a *Authority) PublicKeys(ctx context.Context, agent creto.ID) (nhi.PublicKeys, error) {
	const op fault.Op = "remotenhi.PublicKeys"
	out, err := do(ctx, a, call.Read(op), a.rpc.PublicKeys, &nhiv1.PublicKeysRequest{Agent: idOf(agent)})
	if err == nil && len(out.GetSigning()) == 0 {
		err = incomplete(op)
	}
	if err != nil {
		return nhi.PublicKeys{}, err
	}
	return publicKeysFrom(out), nil
}

// Sign implements nhi.Authority.
func (a *Authority) Sign(ctx context.Context, who nhi.Identity, purpose pqc.Purpose, message []byte) (pqc.Signature, error) {
	const op fault.Op = "remotenhi.Sign"
	out, err := do(ctx, a, call.Read(op), a.rpc.Sign, &nhiv1.SignRequest{Who: identityOf(who), Purpose: string(purpose), Message: message})
	if err == nil && len(out.GetSignature().GetBytes()) == 0 {
		err = incomplete(op)
	}
	if err != nil {
		return pqc.Signature{}, err
	}
	return signatureFrom(out.GetSignature()), nil
}

// DelegatedSecrets implements nhi.Authority.
func (a *Authority) DelegatedSecrets(ctx context.Context, who nhi.Identity, refs []nhi.SecretRef) ([]creto.Secret, error) {
	const op fault.Op = "remotenhi.DelegatedSecrets"
	names := each(refs, func(r nhi.SecretRef) string { return string(r) })
	out, err := do(ctx, a, call.Read(op), a.rpc.DelegatedSecrets, &nhiv1.DelegatedSecretsRequest{Who: identityOf(who), Refs: names})
	if err == nil && len(out.GetValues()) != len(refs) {
		err = incomplete(op)
	}
	if err != nil {
		return nil, err
	}
	return each(out.GetValues(), creto.NewSecret), nil
}

// Groups implements nhi.Authority.
func (a *Authority) Groups(ctx context.Context, id creto.ID) ([]string, error) {
	out, err := do(ctx, a, call.Read("remotenhi.Groups"), a.rpc.Groups, &nhiv1.GroupsRequest{Id: idOf(id)})
	return out.GetGroups(), err
}

// Roots implements nhi.Authority.
func (a *Authority) Roots(ctx context.Context) ([]pqc.PublicKey, error) {
	const op fault.Op = "remotenhi.Roots"
	out, err := do(ctx, a, call.Read(op), a.rpc.Roots, &nhiv1.RootsRequest{})
	if err == nil && len(out.GetKeys()) == 0 {
		err = incomplete(op)
	}
	return each(out.GetKeys(), publicFrom), err
}

// Ping implements nhi.Authority.
func (a *Authority) Ping(ctx context.Context) error {
	_, err := do(ctx, a, call.Read("remotenhi.Ping"), a.rpc.Ping, &nhiv1.PingRequest{})
	return err
}
