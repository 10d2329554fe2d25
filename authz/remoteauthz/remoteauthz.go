// Package remoteauthz asks the policies of another process, over gRPC: [New] is the
// client, [Register] the server.
//
// Only policies are asked there. The client asks the extensions, quota and rate,
// itself, after each Allow, so that a decision which it kept spends quota like any
// other (B-19).
package remoteauthz

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/health"
	authzv1 "creto.dev/internal/gen/creto/authz/v1"
	"creto.dev/nhi"
)

// DefaultDeadline bounds a call where the policy does not (R-NUM-3).
const DefaultDeadline = 10 * time.Millisecond

// Config says how an Authorizer asks.
type Config struct {
	// Policy is around every call; without Deadline and Timeout the Deadline is
	// DefaultDeadline.
	Policy call.Policy
	// Extensions are asked in their order once policy allows.
	Extensions authz.Extensions
	// Cache keeps decisions.
	Cache CacheConfig
}

// Authorizer is the remote authz.Authorizer. Run keeps what it kept valid.
type Authorizer struct {
	rpc        authzv1.AuthorizerServiceClient
	policy     call.Policy
	extensions authz.Extensions
	cache      *cache
	latency    health.Latency
}

var _ authz.Authorizer = (*Authorizer)(nil)

// New returns the authorizer at the other end of conn, which the caller closes.
func New(conn grpc.ClientConnInterface, c Config) *Authorizer {
	if c.Policy.Timeout == 0 && c.Policy.Deadline == 0 {
		c.Policy.Deadline = DefaultDeadline
	}
	return &Authorizer{rpc: authzv1.NewAuthorizerServiceClient(conn), policy: c.Policy, extensions: c.Extensions, cache: newCache(c.Cache)}
}

// do makes one call. On an error the answer is nil, whose fields read as empty.
func do[In, Out any](ctx context.Context, a *Authorizer, o call.Operation, method func(context.Context, *In, ...grpc.CallOption) (*Out, error), in *In) (*Out, error) {
	began := time.Now()
	defer func() { a.latency.End(began) }()
	return call.Do(ctx, a.policy, o, func(ctx context.Context) (*Out, error) {
		out, err := method(ctx, in)
		return out, named(err)
	})
}

// named gives what happens to every call the contract's name.
func named(err error) error {
	const op fault.Op = "remoteauthz"
	switch fault.CodeOf(err) {
	case fault.DeadlineExceeded:
		return fault.WrapAs(op, fault.AuthzTimeout, errors.Join(err, fault.AuthzTimeout), "the authorization service is slow")
	case fault.Unavailable:
		return fault.WrapAs(op, fault.AuthzUnavailable, errors.Join(err, fault.AuthzUnavailable), "the authorization service cannot be reached")
	}
	return err
}

// session is a chain that the other end knows.
type session struct {
	chain      nhi.VerifiedChain
	digest     creto.Digest
	standing   creto.Digest // of groups; see the proto
	evaluators []authz.Evaluator
}

// Chain implements authz.Session.
func (s *session) Chain() nhi.VerifiedChain { return s.chain }

// Bind implements authz.Authorizer. It asks the other end, so that a session knows
// who was in which groups when it was bound.
func (a *Authorizer) Bind(ctx context.Context, chain nhi.VerifiedChain) (authz.Session, error) {
	const op fault.Op = "remoteauthz.Bind"
	s := &session{chain: chain}
	if !chain.Valid() {
		return s, nil
	}
	s.digest = chain.Digest()
	evaluators, err := a.extensions.Bind(ctx, chain)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	s.evaluators = evaluators
	out, err := do(ctx, a, call.Read(op), a.rpc.Bind, &authzv1.BindRequest{Chain: s.digest[:]})
	if errors.Is(err, fault.FailedPrecondition) {
		out, err = a.introduce(ctx, s)
	}
	switch {
	case err == nil:
		s.standing = digestFrom(out.GetStanding())
		a.cache.stood(s)
		return s, nil
	case a.cache.remembers(s, err):
		return s, nil
	}
	return nil, err
}

// introduce shows the other end the links of a chain.
func (a *Authorizer) introduce(ctx context.Context, s *session) (*authzv1.BindResponse, error) {
	const op fault.Op = "remoteauthz.Bind"
	return do(ctx, a, call.Read(op), a.rpc.Bind, &authzv1.BindRequest{Links: each(s.chain.Links(), linkOf)})
}

// Check implements authz.Authorizer.
func (a *Authorizer) Check(ctx context.Context, s authz.Session, r authz.Request) (authz.Decision, error) {
	return a.decide(ctx, s, &r, true)
}

// Peek implements authz.Authorizer.
func (a *Authorizer) Peek(ctx context.Context, s authz.Session, r authz.Request) (authz.Decision, error) {
	return a.decide(ctx, s, &r, false)
}

func (a *Authorizer) decide(ctx context.Context, s authz.Session, r *authz.Request, reserve bool) (authz.Decision, error) {
	const op fault.Op = "remoteauthz.Check"
	own, ok := s.(*session)
	if !ok {
		return authz.Decision{}, foreign(op)
	}
	facts, err := written(r)
	if err != nil {
		return authz.Decision{}, err
	}
	if !own.chain.Valid() {
		return unverified(), nil
	}
	d, err := a.policies(ctx, own, r, facts)
	if err != nil || d.Kind != authz.Allow {
		return d, fault.Wrap(op, err)
	}
	err = a.extensions.Evaluate(ctx, own.evaluators, r, reserve, &d)
	return d, fault.Wrap(op, err)
}

func foreign(op fault.Op) error {
	return fault.New(op, fault.AuthzInvalidRequest, "the session is another authorizer's")
}

func unverified() authz.Decision {
	return authz.Decision{Reason: "the caller has no verified chain of delegation"}
}

// written refuses a malformed request before it goes anywhere, and writes its
// context.
func written(r *authz.Request) ([]byte, error) {
	if err := (creto.Action{Name: r.Action, Resource: r.Resource}).Validate(); err != nil {
		return nil, fault.WrapAs("remoteauthz.Check", fault.AuthzInvalidRequest, err, "%s", fault.Message(err))
	}
	return factsOf(r.Context)
}

// policies returns what policies say: as it was said a moment ago, if all that it
// depends on is the same, or by asking.
func (a *Authorizer) policies(ctx context.Context, s *session, r *authz.Request, facts []byte) (authz.Decision, error) {
	place, usable := a.cache.place(s, r)
	if usable {
		if d, ok := a.cache.get(place); ok {
			return d, nil
		}
	}
	ask := func(ctx context.Context) (answer, error) {
		out, err := a.ask(ctx, s, []*authzv1.Request{requestOf(r, facts)})
		if err != nil {
			return answer{}, err
		}
		d, err := answerFrom(out.GetAnswers()[0])
		return answer{d, digestFrom(out.GetStanding())}, err
	}
	if usable {
		ask = a.cache.once(place, ask)
	}
	said, err := ask(ctx)
	return a.cache.instead(s, r, said.Decision, err)
}

// ask asks for decisions, one for each request, and binds the chain anew if the other
// end forgot it.
func (a *Authorizer) ask(ctx context.Context, s *session, rs []*authzv1.Request) (*authzv1.DecideResponse, error) {
	const op fault.Op = "remoteauthz.Check"
	in := &authzv1.DecideRequest{Chain: s.digest[:], Requests: rs}
	out, err := do(ctx, a, call.Read(op), a.rpc.Decide, in)
	if errors.Is(err, fault.FailedPrecondition) {
		if _, err = a.introduce(ctx, s); err == nil {
			out, err = do(ctx, a, call.Read(op), a.rpc.Decide, in)
		}
	}
	if err != nil {
		return nil, err
	}
	if got := len(out.GetAnswers()); got != len(rs) {
		return nil, fault.New(op, fault.AuthzInternal, "the authorization service gives %d answers to %d questions", got, len(rs))
	}
	return out, nil
}

// CheckBatch implements authz.Authorizer. Policies are asked in one call.
func (a *Authorizer) CheckBatch(ctx context.Context, s authz.Session, rs []authz.Request) ([]authz.Decision, error) {
	const op fault.Op = "remoteauthz.CheckBatch"
	own, ok := s.(*session)
	if !ok {
		return nil, foreign(op)
	}
	decisions := make([]authz.Decision, len(rs))
	var asked []int // the places of those that are sent
	var questions []*authzv1.Request
	for i := range rs {
		facts, err := written(&rs[i])
		switch {
		case err != nil:
			decisions[i].Reason = fault.Message(err)
		case !own.chain.Valid():
			decisions[i] = unverified()
		default:
			asked, questions = append(asked, i), append(questions, requestOf(&rs[i], facts))
		}
	}
	var answers []*authzv1.Answer
	for some := range slices.Chunk(questions, maxRequests) {
		out, err := a.ask(ctx, own, some)
		if err != nil {
			return nil, fault.Wrap(op, err) // and nothing was reserved
		}
		answers = append(answers, out.GetAnswers()...)
	}
	for n, answer := range answers {
		i := asked[n]
		d, err := answerFrom(answer)
		if err == nil && d.Kind == authz.Allow {
			err = a.extensions.Evaluate(ctx, own.evaluators, &rs[i], true, &d)
		}
		if err != nil {
			d = authz.Decision{Version: d.Version, Reason: fault.Message(err)}
		}
		decisions[i] = d
	}
	return decisions, nil
}

// List implements authz.Authorizer.
func (a *Authorizer) List(ctx context.Context, s authz.Session, q authz.Query) (authz.Page, error) {
	const op fault.Op = "remoteauthz.List"
	own, ok := s.(*session)
	if !ok {
		return authz.Page{}, foreign(op)
	}
	if _, known := creto.ResourceType(q.Action); !known {
		return authz.Page{}, fault.New(op, fault.AuthzInvalidRequest, "%q is no action", q.Action)
	}
	if !own.chain.Valid() {
		return authz.Page{}, nil
	}
	in := &authzv1.ListRequest{Chain: own.digest[:], Action: q.Action, Limit: uint32(min(max(q.Limit, 0), maxRequests))}
	if q.After != (authz.Grant{}) {
		in.After = grantOf(q.After)
	}
	out, err := do(ctx, a, call.Read(op), a.rpc.List, in)
	if errors.Is(err, fault.FailedPrecondition) {
		if _, err = a.introduce(ctx, own); err == nil {
			out, err = do(ctx, a, call.Read(op), a.rpc.List, in)
		}
	}
	return authz.Page{Grants: each(out.GetGrants(), grantFrom), More: out.GetMore()}, err
}

// Ping implements authz.Authorizer.
func (a *Authorizer) Ping(ctx context.Context) error {
	_, err := do(ctx, a, call.Read("remoteauthz.Ping"), a.rpc.Ping, &authzv1.PingRequest{})
	return err
}

const (
	// slowCall is what 99 of 100 calls stay within while all is well.
	slowCall = 5 * time.Millisecond
	// fewCalls is how many must have been made to say so.
	fewCalls = 20
)

// Health reports whether the other end answers, and degrades while it is slow: more
// than 1 in 100 calls of the last minute took over 5 ms (X-5, R-AZ-31).
func (a *Authorizer) Health(ctx context.Context) health.Status {
	status := health.Of(a.Ping(ctx), "AuthZ slow", "AuthZ service unavailable")
	if p99, n := a.latency.Quantile(0.99); status.State == health.Healthy && n >= fewCalls && p99 > slowCall {
		return health.Status{State: health.Degraded, Reason: "AuthZ slow: " + p99.String()}
	}
	return status
}
