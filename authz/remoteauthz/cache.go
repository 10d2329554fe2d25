package remoteauthz

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/call"
	"creto.dev/fault"
	"creto.dev/internal/canon"
	authzv1 "creto.dev/internal/gen/creto/authz/v1"
)

// CacheConfig says which decisions are kept.
type CacheConfig struct {
	// Entries is how many are kept at most; 0 means DefaultEntries, less than 0
	// keeps none.
	Entries int
	// TTL is how long one is kept; 0 means DefaultTTL.
	TTL time.Duration
	// Stale are the actions for which a kept Allow counts until its TTL also while
	// the service does not answer. Everything else is denied then.
	Stale []string
}

// The defaults of CacheConfig (R-AZ-23).
const (
	DefaultEntries = 10_000
	DefaultTTL     = time.Minute
)

// How the client stays sure of what it kept.
const (
	// hearEvery is how often the version of the policies is asked for while
	// decisions are kept.
	hearEvery = 200 * time.Millisecond
	// hearFor is how long an answer counts.
	hearFor = 800 * time.Millisecond
	// tenantIdle is after how long without a check a tenant is asked for no more.
	tenantIdle = time.Minute
)

// cache keeps Allows of policies, each under everything that it depends on (B-20):
// chain, action, resource, what policies read of the context, the version of the
// policies, the count of revocations and who was in which groups. What changes any
// of these is never answered from it.
type cache struct {
	kept    *otter.Cache[creto.Digest, authz.Decision] // nil keeps none
	clock   monotonic
	flights singleflight.Group
	stale   []string
	running atomic.Bool // Run hears of changes

	mu        sync.Mutex // guards what follows
	tenants   map[string]*tenant
	standings map[creto.Digest]creto.Digest // of chains, while some action may be stale
}

// tenant is what is known of a tenant's policies.
type tenant struct {
	heard atomic.Pointer[heard] // nil before the first answer
	asked atomic.Int64          // when it was last needed, by the cache's clock
}

// heard is one answer.
type heard struct {
	at          time.Time
	version     creto.Digest
	revocations uint64
	reads       []string
}

// monotonic is the cache's clock: the wall's may go back, and a grant must not live
// longer for it (B-18).
type monotonic struct{ start time.Time }

// NowNano implements otter.Clock.
func (m monotonic) NowNano() int64 { return int64(time.Since(m.start)) }

// Tick implements otter.Clock: expired entries are never returned, and make room
// when others need it.
func (m monotonic) Tick(time.Duration) <-chan time.Time { return nil }

func newCache(c CacheConfig) *cache {
	k := &cache{stale: c.Stale, clock: monotonic{time.Now()}, tenants: make(map[string]*tenant), standings: make(map[creto.Digest]creto.Digest)}
	if c.Entries < 0 {
		return k
	}
	if c.Entries == 0 {
		c.Entries = DefaultEntries
	}
	if c.TTL == 0 {
		c.TTL = DefaultTTL
	}
	k.kept = otter.Must(&otter.Options[creto.Digest, authz.Decision]{
		MaximumSize: c.Entries, ExpiryCalculator: otter.ExpiryWriting[creto.Digest, authz.Decision](c.TTL), Clock: k.clock,
	})
	return k
}

// Run keeps hearing which policies are in force, and whether somebody was revoked,
// until ctx ends. Without it no decision is kept.
func (a *Authorizer) Run(ctx context.Context) error {
	if a.cache.kept == nil {
		<-ctx.Done()
		return nil
	}
	a.cache.running.Store(true)
	defer a.cache.running.Store(false)
	tick := time.NewTicker(hearEvery)
	defer tick.Stop()
	for {
		for name, t := range a.cache.active() {
			a.hear(ctx, name, t)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// hear asks for a tenant's policies. Without an answer the one before grows old.
func (a *Authorizer) hear(ctx context.Context, name string, t *tenant) {
	began := time.Now() // what is answered was true after this
	out, err := do(ctx, a, call.Read("remoteauthz.Policies"), a.rpc.Policies, &authzv1.PoliciesRequest{Tenant: name})
	if err != nil {
		return
	}
	t.heard.Store(&heard{at: began, version: digestFrom(out.GetVersion()), revocations: out.GetRevocations(), reads: out.GetReads()})
}

// active returns the tenants that were asked for of late.
func (k *cache) active() map[string]*tenant {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, t := range k.tenants {
		if k.clock.NowNano()-t.asked.Load() > int64(tenantIdle) {
			delete(k.tenants, name)
		}
	}
	return maps.Clone(k.tenants)
}

// tenant returns what is known of a tenant's policies; nil if nothing is.
func (k *cache) tenant(name string) *heard {
	k.mu.Lock()
	t := k.tenants[name]
	if t == nil {
		t = &tenant{}
		k.tenants[name] = t
	}
	k.mu.Unlock()
	t.asked.Store(k.clock.NowNano())
	return t.heard.Load()
}

// place is where a decision is kept, and by which policies and groups it must be.
type place struct {
	key               creto.Digest
	version, standing creto.Digest
}

// answer is a decision, and the standing of the chain that it is by.
type answer struct {
	authz.Decision
	standing creto.Digest
}

// holds reports whether an answer depends on what its place says, and nothing else.
func (p place) holds(a answer) bool { return a.Version == p.version && a.standing == p.standing }

// place returns where the decision on a request is kept, if one may be used now.
func (k *cache) place(s *session, r *authz.Request) (place, bool) {
	if k.kept == nil || !k.running.Load() || len(r.Consents) > 0 || s.standing.IsZero() {
		return place{}, false
	}
	h := k.tenant(s.chain.Agent().Tenant)
	if h == nil || time.Since(h.at) > hearFor {
		return place{}, false
	}
	return placeOf(h, s, r)
}

// placeOf returns where a decision is kept under what was heard.
func placeOf(h *heard, s *session, r *authz.Request) (place, bool) {
	facts := make(map[string]any)
	for name, value := range r.Context {
		if slices.Contains(h.reads, name) || slices.Contains(h.reads, "*") {
			facts[name] = value
		}
	}
	text, err := factsOf(facts)
	if err != nil {
		return place{}, false
	}
	data, err := canon.Marshal([]any{s.digest, r.Action, r.Resource.Type, r.Resource.ID, text, h.version, h.revocations, s.standing})
	return place{creto.DigestOf(data), h.version, s.standing}, err == nil
}

// get returns what is kept.
func (k *cache) get(at place) (authz.Decision, bool) { return k.kept.GetIfPresent(at.key) }

// once returns ask for everybody who asks the same meanwhile, which keeps an Allow
// that holds in its place.
func (k *cache) once(at place, ask func(context.Context) (answer, error)) func(context.Context) (answer, error) {
	return func(ctx context.Context) (answer, error) {
		first := false
		made, err, _ := k.flights.Do(string(at.key[:]), func() (any, error) {
			first = true
			// Whoever asks first must not end it for the others; the policy bounds it.
			a, err := ask(context.WithoutCancel(ctx))
			if err == nil && a.Kind == authz.Allow && at.holds(a) {
				k.kept.Set(at.key, a.Decision)
			}
			return a, err
		})
		a, _ := made.(answer)
		if !first && err == nil && !at.holds(a) {
			return ask(ctx) // other policies may read what the two do not have in common
		}
		return a, err
	}
}

// stood remembers a session's standing.
func (k *cache) stood(s *session) {
	if len(k.stale) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for old := range k.standings {
		if len(k.standings) < maxChains {
			break
		}
		delete(k.standings, old)
	}
	k.standings[s.digest] = s.standing
}

// remembers gives a session the standing that it had, if the service does not
// answer and there is an action for which that counts.
func (k *cache) remembers(s *session, err error) bool {
	if len(k.stale) == 0 || !silent(err) {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var ok bool
	s.standing, ok = k.standings[s.digest]
	return ok
}

// silent reports whether the service did not answer.
func silent(err error) bool {
	return errors.Is(err, fault.AuthzUnavailable) || errors.Is(err, fault.AuthzTimeout)
}

// instead returns a kept Allow in the place of an answer that did not come, for an
// action that may be stale: under the policies and revocations that were last
// heard of.
func (k *cache) instead(s *session, r *authz.Request, d authz.Decision, err error) (authz.Decision, error) {
	if !silent(err) || k.kept == nil || !slices.Contains(k.stale, r.Action) || len(r.Consents) > 0 || s.standing.IsZero() {
		return d, err
	}
	h := k.tenant(s.chain.Agent().Tenant)
	if h == nil {
		return d, err
	}
	if at, ok := placeOf(h, s, r); ok {
		if kept, there := k.get(at); there {
			return kept, nil
		}
	}
	return d, err
}
