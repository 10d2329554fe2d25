// Package localauthz decides in this process, on Cedar policies in a directory.
// A set of policies is parsed, checked and compiled as a whole, then swapped in
// atomically; a set with a mistake is refused and the one before stays.
//
// Every check evaluates the policies in force; no decision is remembered. What
// makes it take a fraction of a microsecond is that a session is bound before:
// its principals' policies are found once and laid out by action and resource
// ([Authorizer.Bind], table.go), and conditions are compiled (package program).
//
// localauthz.go holds the Authorizer, session.go what Bind prepares, table.go
// the policies of one chain, index.go how a check finds them, decide.go a check,
// policies.go the files, draft.go what is read of them.
package localauthz

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/health"
)

// GroupsOf returns the groups of a principal.
type GroupsOf func(ctx context.Context, id creto.ID) ([]string, error)

// Authorizer is the local authz.Authorizer.
type Authorizer struct {
	dir        string
	tenant     string
	groups     GroupsOf
	extensions authz.Extensions
	current    atomic.Pointer[book]
	reload     sync.Mutex // held from reading the files until they are in force
	desk       desk       // of reloads
	changed    func(context.Context, Change)
	sessions   sessions
	live       live
	latency    health.Latency
}

var _ authz.Authorizer = (*Authorizer)(nil)

// Open loads the policies of dir: every *.cedar file below it is tenant's, but
// for those below dir/tenants/NAME, which are of the tenant of that name. A
// tenant's policies speak of its own principals alone; one that has none permits
// nothing. extensions are asked in their order once policy allows. changed is
// called by Run and Reload when the directory's content changed.
//
// Errors: InvalidArgument (Permanent), naming file and line, for policies that
// are wrong; Unavailable (Degraded) if dir cannot be read.
func Open(dir, tenant string, groups GroupsOf, extensions []authz.Extension, changed func(context.Context, Change)) (*Authorizer, error) {
	a := &Authorizer{dir: dir, tenant: tenant, groups: groups, extensions: extensions, changed: changed}
	b, err := loadBook(dir, tenant, nil, &a.desk, func() {})
	if err != nil {
		return nil, err
	}
	a.current.Store(b)
	return a, nil
}

// Version returns the digest of the policies in force, of all tenants together.
// A decision names that of its tenant's.
func (a *Authorizer) Version() creto.Digest { return a.current.Load().version }

// Check implements authz.Authorizer.
func (a *Authorizer) Check(ctx context.Context, s authz.Session, r authz.Request) (d authz.Decision, err error) {
	began, measured := a.latency.Start()
	err = a.decide(ctx, s, &r, true, &d)
	if measured {
		a.latency.End(began)
	}
	return d, err
}

// Peek implements authz.Authorizer.
func (a *Authorizer) Peek(ctx context.Context, s authz.Session, r authz.Request) (d authz.Decision, err error) {
	err = a.decide(ctx, s, &r, false, &d)
	return d, err
}

// CheckBatch implements authz.Authorizer.
func (a *Authorizer) CheckBatch(ctx context.Context, s authz.Session, rs []authz.Request) ([]authz.Decision, error) {
	if _, ok := s.(*session); !ok {
		return nil, foreign("localauthz.CheckBatch")
	}
	decisions := make([]authz.Decision, len(rs))
	for i := range rs {
		d := &decisions[i]
		if err := a.decide(ctx, s, &rs[i], true, d); err != nil {
			*d = authz.Decision{Version: d.Version, Reason: fault.Message(err)}
		}
	}
	return decisions, nil
}

// Ping implements authz.Authorizer.
func (a *Authorizer) Ping(context.Context) error {
	if a.current.Load() == nil {
		return fault.New("localauthz.Ping", fault.AuthzUnavailable, "no policies are loaded")
	}
	return nil
}

const (
	// slowCheck is what 99 of 100 checks stay within while all is well.
	slowCheck = 10 * time.Microsecond
	// fewChecks is how many must have been measured to say so.
	fewChecks = 100
)

// Health reports whether policies are loaded, and degrades while checks are slow:
// more than 1 in 100 of the last minute's took over 10 µs (X-5, R-AZ-31). It
// makes no check of its own.
func (a *Authorizer) Health(ctx context.Context) health.Status {
	status := health.Of(a.Ping(ctx), "AuthZ slow", "AuthZ service unavailable")
	if p99, n := a.latency.Quantile(0.99); status.State == health.Healthy && n >= fewChecks && p99 > slowCheck {
		return health.Status{State: health.Degraded, Reason: "AuthZ slow: " + p99.String()}
	}
	return status
}

func foreign(op fault.Op) error {
	return fault.New(op, fault.AuthzInvalidRequest, "the session is another authorizer's")
}
