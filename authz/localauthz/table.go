package localauthz

import (
	"encoding/binary"
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
	"creto.dev/authz/localauthz/program"
)

// actions are all actions with their resources, by number.
var actions = func() (all [creto.Actions]action) {
	for i, name := range creto.ActionNames() {
		resource, _ := creto.ResourceType(name)
		all[i] = action{
			name: name, resource: resource, uid: cedar.NewEntityUID(namespace+"Action", types.String(name)),
			resourceType: types.EntityType(namespace + resource),
		}
	}
	return all
}()

type action struct {
	name         string
	resource     string // its type
	uid          types.EntityUID
	resourceType types.EntityType
}

// sendMessage is the number of the one action whose resource can be one of its
// own principals.
var sendMessage = creto.ActionNumber(creto.SendMessage)

// table is what policies say of the principals of one chain: for each action and
// resource that they name, the policies in scope of each of them. Sessions share
// it whose principals match the same policies. Its parts are made when they are
// first asked for.
type table struct {
	snapshot *snapshot
	// classes holds the policies whose principals' scope includes each of the
	// principals.
	classes [][]int32
	cost    *atomic.Int64 // what it takes of the snapshot's budget
	actions [creto.Actions]atomic.Pointer[actionTable]
	mu      sync.Mutex // held while a part is made
}

// actionTable is a table's part of one action. Entries are found by the id of
// the resource, with open addressing; then by how the id begins, if policies ask
// that; what is not found is of other.
type actionTable struct {
	index
	table      *table
	beginnings []beginning
	// common is what all beginnings begin with, and keys are the eight bytes of each
	// after it.
	common string
	keys   []uint64
	other  entry
	// none says that there was no room: each check looks for its policies.
	none bool
}

// tables are those in use under one snapshot.
type tables struct {
	mu    sync.Mutex // guards kept
	kept  map[creto.Digest]weak.Pointer[table]
	seed  maphash.Seed
	used  atomic.Int64 // of limit
	limit int64        // maxNamed
}

// maxNamed bounds how many resources and beginnings, and policies that name them, are laid out
// for all sessions under one snapshot together: less than 100 MiB.
const maxNamed = 1 << 20

func newTables() *tables {
	return &tables{kept: make(map[creto.Digest]weak.Pointer[table]), seed: maphash.MakeSeed(), limit: maxNamed}
}

// of returns the table of a chain's principals. It lives as long as somebody
// holds it.
func (ts *tables) of(s *snapshot, principals []principal) *table {
	classes := make([][]int32, len(principals))
	var text []byte
	for i := range principals {
		p := &principals[i]
		classes[i] = s.program.Matching(p.entity.UID, p.parents)
		text = binary.LittleEndian.AppendUint32(text, uint32(len(classes[i])))
		for _, number := range classes[i] {
			text = binary.LittleEndian.AppendUint32(text, uint32(number))
		}
	}
	key := creto.DigestOf(text)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.kept[key].Value(); t != nil {
		return t
	}
	t := &table{snapshot: s, classes: classes, cost: new(atomic.Int64)}
	kept := weak.Make(t)
	ts.kept[key] = kept
	runtime.AddCleanup(t, func(cost *atomic.Int64) {
		ts.used.Add(-cost.Load())
		ts.mu.Lock()
		defer ts.mu.Unlock()
		if ts.kept[key] == kept {
			delete(ts.kept, key)
		}
	}, t.cost)
	return t
}

// of returns the part of an action.
func (t *table) of(number int) *actionTable {
	if at := t.actions[number].Load(); at != nil {
		return at
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if at := t.actions[number].Load(); at != nil {
		return at
	}
	at, cost := t.make(number)
	tables := t.snapshot.tables
	if tables.used.Add(cost) <= tables.limit {
		t.cost.Add(cost)
	} else {
		tables.used.Add(-cost)
		at = &actionTable{table: t, none: true}
	}
	t.actions[number].Store(at)
	return at
}

// ranked is one policy for one principal.
type ranked struct{ principal, policy int32 }

// scope is policies in scope of resources.
type scope []ranked

// make lays out an action, and returns what that costs.
func (t *table) make(number int) (at *actionTable, cost int64) {
	at = &actionTable{table: t}
	named, begun := make(map[string]struct{}), make(map[string]struct{})
	for i, class := range t.classes {
		for _, policy := range class {
			id, ok := t.snapshot.names(int(policy), number)
			switch {
			case !ok:
			case id == "":
				at.other.scope = append(at.other.scope, ranked{int32(i), policy})
				for _, b := range t.snapshot.program.Beginnings(int(policy)) {
					begun[b] = struct{}{}
					cost++
				}
			default:
				named[id] = struct{}{}
				cost++
			}
		}
	}
	cost += int64(len(named) + len(begun))
	at.begin(slices.Sorted(maps.Keys(begun)))
	at.other.of = program.SameBeginning
	at.other.compile(t, number)
	if len(named) == 0 {
		return at, cost
	}
	ids, seed := slices.Sorted(maps.Keys(named)), t.snapshot.tables.seed
	hashes := make([]uint64, len(ids))
	for i, id := range ids {
		hashes[i] = maphash.String(seed, id)
	}
	at.index = newIndex(hashes)
	for i, id := range ids {
		at.free(hashes[i]).set(tagOf(hashes[i]), &entry{id: id, scope: at.other.scope, of: program.OneResource})
	}
	for i, class := range t.classes {
		for _, policy := range class {
			if id, ok := t.snapshot.names(int(policy), number); ok && id != "" {
				e := at.find(maphash.String(seed, id), id).entry
				e.own = append(e.own, ranked{int32(i), policy})
			}
		}
	}
	return at, cost
}

// slot returns the slot of a resource; nil if no policy names it.
func (at *actionTable) slot(seed maphash.Seed, id string) *slot {
	if len(at.slots) == 0 {
		return nil
	}
	return at.index.find(maphash.String(seed, id), id)
}

// find returns the slot of a resource, or of its beginning; nil if policies know
// neither.
func (t *table) find(at *actionTable, id string) *slot {
	if s := at.slot(t.snapshot.tables.seed, id); s != nil {
		return s
	}
	return at.beginning(id)
}

// entry returns the entry of a slot; that of all other resources for nil.
func (t *table) entry(at *actionTable, number int, s *slot) *entry {
	if s == nil {
		return &at.other
	}
	if e := s.entry; e.ready.Load() {
		return e
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := s.entry; !e.ready.Load() {
		e.compile(t, number)
		if e.settled.kind == authz.Allow {
			s.policies = e.settled.policies
			s.allows.Store(true)
		}
	}
	return s.entry
}

// warm compiles the entries of resources that were asked for under other policies.
func (t *table) warm(at *actionTable, number int, before *actionTable, rest func()) {
	compile := func(s *slot) {
		if s.entry != nil && s.entry.ready.Load() {
			t.entry(at, number, t.find(at, s.entry.id))
			rest()
		}
	}
	for i := range before.slots {
		compile(&before.slots[i])
	}
	for i := range before.beginnings {
		compile(&before.beginnings[i].slot)
	}
}

const (
	// maskWords times 64 is how many conditions an entry may have.
	maskWords = 4
	// maxOutcomes is how many outcomes an entry remembers the form of.
	maxOutcomes = 16
)

// mask says which of an entry's conditions hold.
type mask [maskWords]uint64

// entry is all policies in scope of one action on one resource, for each of the
// chain's principals.
type entry struct {
	ready  atomic.Bool // compile is done
	denied bool        // whatever the conditions are
	wide   bool        // there are more conditions than fit in a mask
	// settled is the outcome if no condition has a say, and nobody denies.
	settled outcome
	checks  []condition
	permits [][]permit // of each principal
	// outcomes are those seen, by the conditions that held.
	outcomes atomic.Pointer[[]*outcome]

	id    string         // of its resource, or what its resources begin with
	of    program.Extent // which resources
	scope scope          // policies that name no resource
	own   []ranked       // those that name this one
}

// condition is the conditions of one policy for one principal, and of all
// policies with the same conditions if they do not read who asks.
type condition struct {
	policy    int32
	principal int32
	forbid    bool
}

// permit is a policy that permits: if the condition of this number holds, or
// always if it is negative.
type permit struct{ policy, condition int32 }

// outcome is what an entry's policies come to under one set of conditions. It is
// immutable.
type outcome struct {
	kind     authz.Kind // Deny: there is none
	policies []authz.Policy
	reason   string
	asks     *policy // whose oversight it is
	held     mask
}

// compile settles what no request can change, and lists what is left.
func (e *entry) compile(t *table, number int) {
	s := t.snapshot
	env := program.Env{Action: actions[number].uid, Resource: types.EntityUID{Type: actions[number].resourceType, ID: types.String(e.id)}, Itself: true}
	// Conditions that are the same for everybody, and for whatever policy, are
	// evaluated once.
	type once struct {
		conditions int
		forbid     bool
	}
	shared := make(map[once]int32)
	e.permits = make([][]permit, len(t.classes))
	all := slices.Concat(e.scope, e.own)
	slices.SortFunc(all, func(a, b ranked) int {
		if a.principal != b.principal {
			return int(a.principal - b.principal)
		}
		return int(a.policy - b.policy)
	})
	for _, r := range all {
		forbid := s.program.Forbids(int(r.policy))
		if verdict, settled := s.program.Settle(int(r.policy), &env, e.of); settled {
			if forbid && verdict != program.Unsatisfied {
				e.denied = true
			} else if !forbid && verdict == program.Satisfied {
				e.permits[r.principal] = append(e.permits[r.principal], permit{r.policy, -1})
			}
			continue
		}
		key := once{s.program.Conditions(int(r.policy)), forbid}
		at, known := shared[key]
		if !known {
			at = int32(len(e.checks))
			e.checks = append(e.checks, condition{policy: r.policy, principal: r.principal, forbid: forbid})
			if !s.program.ReadsPrincipal(int(r.policy)) {
				shared[key] = at
			}
		}
		if !forbid {
			e.permits[r.principal] = append(e.permits[r.principal], permit{r.policy, at})
		}
	}
	for _, permits := range e.permits {
		e.denied = e.denied || len(permits) == 0
	}
	e.denied = e.denied || len(t.classes) == 0
	e.wide = len(e.checks) > maskWords*64
	if len(e.checks) == 0 && !e.denied {
		e.settled = *s.outcome(e, mask{})
	}
	e.ready.Store(true)
}

// outcome returns what the permits come to when the conditions in held hold and
// no forbid does; nil if somebody in the chain has none.
func (s *snapshot) outcome(e *entry, held mask) *outcome {
	o := &outcome{held: held, kind: authz.Allow}
	for _, permits := range e.permits {
		var satisfied []*policy
		for _, p := range permits {
			if p.condition < 0 || held[p.condition/64]&(1<<(p.condition%64)) != 0 {
				satisfied = append(satisfied, s.policies[p.policy])
			}
		}
		if len(satisfied) == 0 {
			return nil
		}
		o.add(satisfied, nil)
	}
	return o
}

// remembered returns the outcome of an entry, and remembers it.
func (s *snapshot) remembered(e *entry, held mask) *outcome {
	seen := e.outcomes.Load()
	if seen != nil {
		for _, o := range *seen {
			if o.held == held {
				return o
			}
		}
	}
	o := s.outcome(e, held)
	if o == nil {
		return nil
	}
	for {
		var more []*outcome
		if seen != nil {
			more = slices.Clone(*seen)
		}
		if len(more) >= maxOutcomes {
			return o
		}
		more = append(more, o)
		if e.outcomes.CompareAndSwap(seen, &more) {
			return o
		}
		seen = e.outcomes.Load()
	}
}
