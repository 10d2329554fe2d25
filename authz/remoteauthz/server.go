package remoteauthz

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/consensus"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	authzv1 "creto.dev/internal/gen/creto/authz/v1"
	"creto.dev/nhi"
	"creto.dev/pqc"
)

// PolicySet is an Authorizer that says what its decisions depend on. It has no
// extensions: quota and rate are of the process that asks.
type PolicySet interface {
	authz.Authorizer

	// Policies returns the version of a tenant's policies, and the names in a
	// request's context that one of them reads; "*" stands for all.
	Policies(tenant string) (version creto.Digest, reads []string)

	// Groups returns which groups each principal of a session's chain is in, as the
	// session's decisions have it. They stay as they are.
	Groups(s authz.Session) [][]string
}

// Server is what [Register] serves.
type Server struct {
	Authorizer PolicySet
	Authority  nhi.Authority
	Provider   pqc.Provider
	Clock      consensus.Clock
}

// Register has s serve policies. Who may ask is decided before (package serve).
func Register(s grpc.ServiceRegistrar, with Server) {
	authzv1.RegisterAuthorizerServiceServer(s, &server{Server: with, verifier: nhi.NewVerifier(with.Provider, maxChains), chains: make(map[creto.Digest]*known)})
}

const (
	// maxChains bounds the chains that are known; a forgotten one is bound anew.
	maxChains = 10_000
	// maxRequests bounds the requests of one call.
	maxRequests = 1000
	// maxStanding is how long a verified chain is taken for granted; a revocation
	// ends that at once.
	maxStanding = time.Second
)

type server struct {
	authzv1.UnimplementedAuthorizerServiceServer
	Server
	verifier *nhi.Verifier

	mu     sync.Mutex // guards chains
	chains map[creto.Digest]*known
}

// known is a chain that was bound.
type known struct {
	links []nhi.SignedLink

	mu    sync.Mutex // guards what follows
	chain nhi.VerifiedChain
	epoch uint64
	until time.Time
}

// Bind implements authzv1.AuthorizerServiceServer.
func (s *server) Bind(ctx context.Context, r *authzv1.BindRequest) (*authzv1.BindResponse, error) {
	k := &known{links: each(r.GetLinks(), linkFrom)}
	if len(k.links) == 0 {
		var err error
		if k, err = s.find(r.GetChain()); err != nil {
			return nil, err
		}
	}
	session, err := s.bind(ctx, k)
	if err != nil {
		return nil, err
	}
	standing, err := s.standing(session)
	if err != nil {
		return nil, err
	}
	digest := session.Chain().Digest()
	s.keep(digest, k)
	return &authzv1.BindResponse{Chain: digest[:], Standing: standing[:]}, nil
}

// keep makes a chain known.
func (s *server) keep(digest creto.Digest, k *known) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for old := range s.chains {
		if len(s.chains) < maxChains {
			break
		}
		delete(s.chains, old)
	}
	s.chains[digest] = k
}

// find returns a chain that was bound.
func (s *server) find(chain []byte) (*known, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.chains[digestFrom(chain)]; k != nil {
		return k, nil
	}
	return nil, fault.New("remoteauthz.find", fault.FailedPrecondition, "the chain %x is not known here: bind it", chain)
}

// standing returns the digest of the groups of everybody in a session's chain.
func (s *server) standing(session authz.Session) (creto.Digest, error) {
	var groups [][]string
	for _, of := range s.Authorizer.Groups(session) {
		groups = append(groups, slices.Sorted(slices.Values(of)))
	}
	data, err := canon.Marshal(groups)
	return creto.DigestOf(data), fault.Wrap("remoteauthz.standing", err)
}

// verified returns a chain that is in force now.
func (s *server) verified(ctx context.Context, k *known) (nhi.VerifiedChain, error) {
	const op fault.Op = "remoteauthz.verified"
	stamp, err := s.Clock.Now(ctx)
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	// The epoch is read first: what is revoked during the verification raises it.
	epoch, err := s.Authority.Epoch()
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	now := stamp.Time()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.chain.Valid() && k.epoch == epoch && now.Before(k.until) {
		return k.chain, nil
	}
	k.chain = nhi.VerifiedChain{}
	roots, err := s.Authority.Roots(ctx)
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	chain, err := s.verifier.Verify(ctx, k.links, roots, now, s.Authority)
	if err != nil {
		return nhi.VerifiedChain{}, fault.Wrap(op, err)
	}
	k.chain, k.epoch, k.until = chain, epoch, now.Add(maxStanding)
	if chain.NotAfter().Before(k.until) {
		k.until = chain.NotAfter()
	}
	return chain, nil
}

// session returns the session of a chain that was bound.
func (s *server) session(ctx context.Context, chain []byte) (authz.Session, error) {
	k, err := s.find(chain)
	if err != nil {
		return nil, err
	}
	return s.bind(ctx, k)
}

func (s *server) bind(ctx context.Context, k *known) (authz.Session, error) {
	verified, err := s.verified(ctx, k)
	if err != nil {
		return nil, err
	}
	return s.Authorizer.Bind(ctx, verified)
}

// Decide implements authzv1.AuthorizerServiceServer.
func (s *server) Decide(ctx context.Context, r *authzv1.DecideRequest) (*authzv1.DecideResponse, error) {
	const op fault.Op = "remoteauthz.Decide"
	if n := len(r.GetRequests()); n == 0 || n > maxRequests {
		return nil, fault.New(op, fault.AuthzInvalidRequest, "%d requests; ask for 1 to %d decisions", n, maxRequests)
	}
	session, err := s.session(ctx, r.GetChain())
	if err != nil {
		return nil, err
	}
	standing, err := s.standing(session)
	if err != nil {
		return nil, err
	}
	out := &authzv1.DecideResponse{Standing: standing[:]}
	for _, from := range r.GetRequests() {
		request, err := requestFrom(from)
		var d authz.Decision
		if err == nil {
			d, err = s.Authorizer.Peek(ctx, session, request)
		}
		out.Answers = append(out.Answers, answerOf(d, err))
	}
	return out, ctx.Err()
}

// List implements authzv1.AuthorizerServiceServer.
func (s *server) List(ctx context.Context, r *authzv1.ListRequest) (*authzv1.ListResponse, error) {
	session, err := s.session(ctx, r.GetChain())
	if err != nil {
		return nil, err
	}
	page, err := s.Authorizer.List(ctx, session, authz.Query{Action: r.GetAction(), After: grantFrom(r.GetAfter()), Limit: int(min(r.GetLimit(), maxRequests))})
	return &authzv1.ListResponse{Grants: each(page.Grants, grantOf), More: page.More}, err
}

// Policies implements authzv1.AuthorizerServiceServer.
func (s *server) Policies(_ context.Context, r *authzv1.PoliciesRequest) (*authzv1.PoliciesResponse, error) {
	epoch, err := s.Authority.Epoch()
	if err != nil {
		return nil, err
	}
	version, reads := s.Authorizer.Policies(r.GetTenant())
	return &authzv1.PoliciesResponse{Version: version[:], Revocations: epoch, Reads: reads}, nil
}

// Ping implements authzv1.AuthorizerServiceServer.
func (s *server) Ping(ctx context.Context, _ *authzv1.PingRequest) (*authzv1.PingResponse, error) {
	return &authzv1.PingResponse{}, s.Authorizer.Ping(ctx)
}
