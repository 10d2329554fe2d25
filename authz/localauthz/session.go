package localauthz

import (
	"context"
	"hash/maphash"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"weak"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"creto.dev"
	"creto.dev/authz"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// session is a chain that is ready to be checked. It finds what the policies say
// of it anew when they change.
//
// What every check reads comes first, in few cache lines, here and in the types
// that hang on it: among many sessions a check waits for memory more than for
// anything else.
type session struct {
	// evaluators are of the authorizer's extensions, in their order.
	evaluators []authz.Evaluator
	// covered has a bit for each action that the links' scopes include on every
	// resource.
	covered uint8
	parts   [creto.Actions]atomic.Pointer[part]

	chain      nhi.VerifiedChain
	principals []principal
	coverage   [creto.Actions]nhi.Coverage
	groups     [][]string // of the principals, as they were when it was bound
	bound      atomic.Pointer[bound]
	next       atomic.Pointer[bound] // under a book that is about to be in force
	imagined   bool                  // principals without a chain, for tools: never bound
}

// bound is a session under one book of policies. It is immutable.
type bound struct {
	book     *book
	snapshot *snapshot
	table    *table
	parts    [creto.Actions]*part // those that were made ahead
}

// part is what a check of one action needs of a bound session: one cache line.
type part struct {
	book     *book
	snapshot *snapshot
	*actionTable
	seed  maphash.Seed
	index index // of the actionTable
}

// principal is one of the chain, as policies see it.
type principal struct {
	id      creto.ID
	entity  types.Entity
	parents []types.EntityUID
}

// Chain implements authz.Session.
func (s *session) Chain() nhi.VerifiedChain { return s.chain }

// Get implements types.EntityGetter: the entities of a session are its
// principals.
func (s *session) Get(uid types.EntityUID) (types.Entity, bool) {
	for i := range s.principals {
		if e := &s.principals[i].entity; e.UID == uid {
			return *e, true
		}
	}
	return types.Entity{}, false
}

// Bind implements authz.Authorizer. It asks for the groups of everybody in the
// chain. While Run is running, a chain that was bound within its last tick is
// bound already.
func (a *Authorizer) Bind(ctx context.Context, chain nhi.VerifiedChain) (authz.Session, error) {
	const op fault.Op = "localauthz.Bind"
	if s := a.sessions.get(chain); s != nil {
		return s, nil
	}
	tick := a.sessions.tick.Load() // before the groups are asked for
	kept := a.sessions.kept(chain)
	same := kept != nil
	principals := chain.Principals()
	var groups [][]string
	for i, id := range principals {
		of, err := a.groups(ctx, id)
		if err != nil {
			return nil, fault.WrapAs(op, fault.AuthzUnavailable, err, "the groups of %q cannot be read", id.Name)
		}
		if same && slices.Equal(kept.session.groups[i], of) {
			continue
		}
		if groups == nil {
			groups = make([][]string, len(principals))
			if same {
				copy(groups, kept.session.groups[:i])
			}
		}
		same, groups[i] = false, slices.Clone(of)
	}
	if same {
		kept.tick.Store(tick)
		return kept.session, nil
	}
	s := newSession(chain, groups)
	var err error
	if s.evaluators, err = a.extensions.Bind(ctx, chain); err != nil {
		return nil, fault.Wrap(op, err)
	}
	a.live.add(s)
	s.rebind(a.current.Load())
	a.sessions.put(chain, s, tick)
	return s, nil
}

func newSession(chain nhi.VerifiedChain, groups [][]string) *session {
	s := &session{chain: chain, groups: groups}
	for i, id := range chain.Principals() {
		s.principals = append(s.principals, newPrincipal(id, groups[i]))
	}
	for i := range actions {
		s.coverage[i] = chain.Coverage(actions[i].name, actions[i].resource)
		if s.coverage[i].Everything() {
			s.covered |= 1 << i
		}
	}
	return s
}

// newPrincipal returns a principal as policies see it.
func newPrincipal(id creto.ID, groups []string) principal {
	p := principal{id: id, parents: []types.EntityUID{cedar.NewEntityUID(namespace+"Tenant", types.String(id.Tenant))}}
	for _, g := range groups {
		p.parents = append(p.parents, cedar.NewEntityUID(namespace+"Group", types.String(g)))
	}
	p.entity = types.Entity{UID: principalUID(id), Parents: cedar.NewEntityUIDSet(p.parents...), Attributes: cedar.NewRecord(cedar.RecordMap{
		"id": types.String(id.Name), "name": types.String(id.Name), "tenant": types.String(id.Tenant),
	})}
	return p
}

func principalUID(id creto.ID) cedar.EntityUID {
	var kind types.EntityType
	switch id.Kind {
	case creto.KindAgent:
		kind = namespace + "Agent"
	case creto.KindHuman:
		kind = namespace + "Human"
	case creto.KindWorkload:
		kind = namespace + "Workload"
	}
	return cedar.NewEntityUID(kind, types.String(id.Name))
}

// covers reports whether the links' scopes include an action on a resource.
func (s *session) covers(number int, id string) bool {
	return s.covered&(1<<number) != 0 || s.coverage[number].Covers(id)
}

// part returns what a check of an action needs under a book.
func (s *session) part(number int, b *book) *part {
	if p := s.parts[number].Load(); p != nil && p.book == b {
		return p
	}
	now := s.under(b)
	p := now.parts[number]
	if p == nil {
		p = now.part(number)
	}
	s.parts[number].Store(p)
	return p
}

func (b *bound) part(number int) *part {
	at := b.table.of(number)
	return &part{book: b.book, snapshot: b.snapshot, actionTable: at, seed: b.snapshot.tables.seed, index: at.index}
}

// under returns the session as it is under a book.
func (s *session) under(b *book) *bound {
	if now := s.bound.Load(); now != nil && now.book == b {
		return now
	}
	return s.rebind(b)
}

// rebind finds the session's policies in a book. Sessions whose principals match
// the same policies share them.
func (s *session) rebind(b *book) *bound {
	now := s.next.Load()
	if now == nil || now.book != b {
		now = s.in(b)
	}
	s.bound.Store(now)
	return now
}

func (s *session) in(b *book) *bound {
	snapshot := b.of(s.chain.Agent().Tenant)
	return &bound{book: b, snapshot: snapshot, table: snapshot.tables.of(snapshot, s.principals)}
}

// prepare finds, for the actions that were checked before, the session's policies
// in a book that is about to be in force, so that the first check under it need
// not. warm has the tables whose entries were compiled already.
func (s *session) prepare(b *book, warm map[*table]struct{}, rest func()) {
	next := s.in(b)
	_, done := warm[next.table]
	for number := range s.parts {
		before := s.parts[number].Load()
		if before == nil {
			continue
		}
		next.parts[number] = next.part(number)
		if !done {
			next.table.warm(next.parts[number].actionTable, number, before.actionTable, rest)
		}
	}
	warm[next.table] = struct{}{}
	s.next.Store(next)
}

// release lets go of what the session found in a book before b. A check that runs
// meanwhile may put it back, for the next one.
func (s *session) release(b *book) {
	if now := s.bound.Load(); now == nil || now.book != b {
		s.bound.CompareAndSwap(now, nil)
	}
	for i := range s.parts {
		if p := s.parts[i].Load(); p != nil && p.book != b {
			s.parts[i].CompareAndSwap(p, nil)
		}
	}
	if next := s.next.Load(); next != nil && next.book != b {
		s.next.CompareAndSwap(next, nil)
	}
}

// live are the sessions that somebody holds.
type live struct {
	mu       sync.Mutex // guards sessions
	sessions map[weak.Pointer[session]]struct{}
}

func (l *live) add(s *session) {
	w := weak.Make(s)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions == nil {
		l.sessions = make(map[weak.Pointer[session]]struct{})
	}
	l.sessions[w] = struct{}{}
	runtime.AddCleanup(s, l.remove, w)
}

func (l *live) remove(w weak.Pointer[session]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.sessions, w)
}

// each calls f with every session that is held.
func (l *live) each(f func(*session)) {
	l.mu.Lock()
	all := slices.Collect(maps.Keys(l.sessions))
	l.mu.Unlock()
	for _, w := range all {
		if s := w.Value(); s != nil {
			f(s)
		}
	}
}

// maxSessions bounds the chains that are kept bound.
const maxSessions = 4096

// sessions are the chains that were bound of late. After the tick that follows
// its Bind, none is used before its groups were asked for again; without ticks,
// none is ever.
type sessions struct {
	ticking atomic.Bool // while Run is running
	tick    atomic.Uint64
	byChain sync.Map // *keptSession by nhi.VerifiedChain
	count   atomic.Int64
}

type keptSession struct {
	session *session
	tick    atomic.Uint64 // when its groups were last asked for
}

func (k *sessions) get(chain nhi.VerifiedChain) *session {
	if !k.ticking.Load() {
		return nil
	}
	tick := k.tick.Load()
	if kept := k.kept(chain); kept != nil && kept.tick.Load() == tick {
		return kept.session
	}
	return nil
}

func (k *sessions) kept(chain nhi.VerifiedChain) *keptSession {
	found, ok := k.byChain.Load(chain)
	if !ok {
		return nil
	}
	return found.(*keptSession)
}

// put keeps a session. When there are too many all are forgotten: they are only
// bound anew.
func (k *sessions) put(chain nhi.VerifiedChain, s *session, tick uint64) {
	if !chain.Valid() {
		return
	}
	kept := &keptSession{session: s}
	kept.tick.Store(tick)
	if _, replaced := k.byChain.Swap(chain, kept); !replaced && k.count.Add(1) > maxSessions {
		k.byChain.Clear()
		k.count.Store(0)
	}
}
