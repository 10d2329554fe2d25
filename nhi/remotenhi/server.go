package remotenhi

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/fault"
	nhiv1 "creto.dev/internal/gen/creto/nhi/v1"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// Register has s serve a. Whoever may call it is a part of the platform: it signs
// for every agent and gives out what agents were delegated. Who may is decided
// before (package serve).
func Register(s grpc.ServiceRegistrar, a nhi.Authority) {
	nhiv1.RegisterAuthorityServiceServer(s, server{authority: a})
}

type server struct {
	nhiv1.UnimplementedAuthorityServiceServer
	authority nhi.Authority
}

// Resolve implements nhiv1.AuthorityServiceServer.
func (s server) Resolve(ctx context.Context, r *nhiv1.ResolveRequest) (*nhiv1.ResolveResponse, error) {
	who, err := s.authority.Resolve(ctx, credentialFrom(r.GetCredential()))
	return &nhiv1.ResolveResponse{Who: identityOf(who)}, err
}

// Recheck implements nhiv1.AuthorityServiceServer.
func (s server) Recheck(ctx context.Context, r *nhiv1.RecheckRequest) (*nhiv1.RecheckResponse, error) {
	return &nhiv1.RecheckResponse{}, s.authority.Recheck(ctx, identityFrom(r.GetWho()))
}

// Revoked implements nhiv1.AuthorityServiceServer.
func (s server) Revoked(ctx context.Context, r *nhiv1.RevokedRequest) (*nhiv1.RevokedResponse, error) {
	index, err := s.authority.Revoked(ctx, each(r.GetLinks(), linkRefFrom))
	return &nhiv1.RevokedResponse{Index: int32(index)}, err // no message holds as many links
}

// DelegationChain implements nhiv1.AuthorityServiceServer.
func (s server) DelegationChain(ctx context.Context, r *nhiv1.DelegationChainRequest) (*nhiv1.DelegationChainResponse, error) {
	links, err := s.authority.DelegationChain(ctx, idFrom(r.GetAgent()))
	return &nhiv1.DelegationChainResponse{Links: each(links, signedLinkOf)}, err
}

// PublicKeys implements nhiv1.AuthorityServiceServer.
func (s server) PublicKeys(ctx context.Context, r *nhiv1.PublicKeysRequest) (*nhiv1.PublicKeysResponse, error) {
	keys, err := s.authority.PublicKeys(ctx, idFrom(r.GetAgent()))
	return publicKeysOf(keys), err
}

// Sign implements nhiv1.AuthorityServiceServer.
func (s server) Sign(ctx context.Context, r *nhiv1.SignRequest) (*nhiv1.SignResponse, error) {
	sig, err := s.authority.Sign(ctx, identityFrom(r.GetWho()), pqc.Purpose(r.GetPurpose()), r.GetMessage())
	return &nhiv1.SignResponse{Signature: signatureOf(sig)}, err
}

// DelegatedSecrets implements nhiv1.AuthorityServiceServer.
func (s server) DelegatedSecrets(ctx context.Context, r *nhiv1.DelegatedSecretsRequest) (*nhiv1.DelegatedSecretsResponse, error) {
	refs := each(r.GetRefs(), func(text string) nhi.SecretRef { return nhi.SecretRef(text) })
	secrets, err := s.authority.DelegatedSecrets(ctx, identityFrom(r.GetWho()), refs)
	if err != nil {
		return nil, err
	}
	return &nhiv1.DelegatedSecretsResponse{Values: each(secrets, creto.Secret.Reveal)}, nil
}

// Groups implements nhiv1.AuthorityServiceServer.
func (s server) Groups(ctx context.Context, r *nhiv1.GroupsRequest) (*nhiv1.GroupsResponse, error) {
	groups, err := s.authority.Groups(ctx, idFrom(r.GetId()))
	return &nhiv1.GroupsResponse{Groups: groups}, err
}

// Roots implements nhiv1.AuthorityServiceServer.
func (s server) Roots(ctx context.Context, _ *nhiv1.RootsRequest) (*nhiv1.RootsResponse, error) {
	keys, err := s.authority.Roots(ctx)
	return &nhiv1.RootsResponse{Keys: each(keys, publicOf)}, err
}

// Ping implements nhiv1.AuthorityServiceServer.
func (s server) Ping(ctx context.Context, _ *nhiv1.PingRequest) (*nhiv1.PingResponse, error) {
	return &nhiv1.PingResponse{}, s.authority.Ping(ctx)
}

// Watch implements nhiv1.AuthorityServiceServer.
func (s server) Watch(stream grpc.BidiStreamingServer[nhiv1.WatchRequest, nhiv1.WatchResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	var mu sync.Mutex // guards sending
	send := func(epoch, beat uint64) error {
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(&nhiv1.WatchResponse{Epoch: epoch, Beat: beat})
	}
	newest, ended := make(chan uint64, 1), make(chan error, 1)
	watching.Go(func() {
		ended <- s.authority.Watch(ctx, func(epoch uint64) {
			select { // the newest takes the place of one that waits to be sent
			case <-newest:
			default:
			}
			newest <- epoch
		})
	})
	watching.Go(func() {
		for {
			select {
			case epoch := <-newest:
				if send(epoch, 0) != nil {
					return // the other side left, which receiving notices
				}
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		in, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		select {
		case err := <-ended: // it cannot be heard itself
			return err
		default:
		}
		epoch, err := s.authority.Epoch()
		if err != nil {
			return err
		}
		if in.GetBeat() == 0 {
			return fault.New("remotenhi.Watch", fault.InvalidArgument, "beats count from 1")
		}
		if err := send(epoch, in.GetBeat()); err != nil {
			return err
		}
	}
}
