package cache

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"creto.dev/inference"
)

// entryBytes is about what an entry takes beside its pieces, and pieceBytes what a
// piece does beside its bytes; likeBytes is what being found by likeness takes.
const (
	entryBytes = 512
	pieceBytes = 24
	likeBytes  = 256
)

// largestShare is the part of the memory that one answer may take.
const largestShare = 8

// entry is an answer, encoded: nobody who gets it can change it for others.
type entry struct {
	provider, model string // who gave it, and as what
	pieces          [][]byte
	key             key
	until           time.Time
	like            *likeness // by which it is found too; nil if it is not

	size int64 // guarded by the store's mu
}

// weigh returns about how many bytes e takes. It is called with the lock held, or
// before e is in the store.
func (e *entry) weigh() int64 {
	n := int64(entryBytes)
	for _, p := range e.pieces {
		n += int64(len(p)) + pieceBytes
	}
	if l := e.like; l != nil {
		n += likeBytes + int64(len(l.text)+len(l.said.plain)+len(l.said.marks)+len(l.said.words)+len(l.vector.space)+4*len(l.vector.at))
	}
	return n
}

// hit is an entry that was found, and how.
type hit struct {
	*entry
	how        string
	similarity string
}

// served says who gave the answer.
func (h hit) served(m *inference.RequestMetadata) {
	if m.Served != nil {
		*m.Served = inference.Served{Provider: h.provider, Model: h.model, Cache: h.how, Similarity: h.similarity}
	}
}

// store keeps entries, and lets those go that nobody asked for the longest.
type store struct {
	limit   int64
	maxPart int // entries that may be alike

	mu    sync.Mutex // guards what follows, and the vectors of entries
	bytes int64
	lives uint64 // grows when everything is forgotten
	found map[key]*list.Element
	order *list.List       // of *entry, the one that was asked for last in front
	parts map[key][]*entry // by the part of their likeness, the newest last
}

func newStore(limit int64, maxPart int) *store {
	return &store{limit: limit, maxPart: maxPart, found: map[key]*list.Element{}, order: list.New(), parts: map[key][]*entry{}}
}

// largest returns how many bytes one answer may take.
func (s *store) largest() int64 { return s.limit / largestShare }

// life returns a number that changes when everything is forgotten.
func (s *store) life() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lives
}

// get returns an entry that is not over. It is not to be changed.
func (s *store) get(k key) (*entry, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.found[k]
	if !ok {
		return nil, false
	}
	e := at.Value.(*entry) // the list holds nothing else
	if !time.Now().Before(e.until) {
		s.drop(at)
		return nil, false
	}
	s.order.MoveToFront(at)
	return e, true
}

// put keeps e, unless everything was forgotten since life or it is too large.
func (s *store) put(life uint64, e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.size = e.weigh()
	if life != s.lives || len(e.pieces) == 0 || e.size > s.largest() {
		return
	}
	if before, ok := s.found[e.key]; ok {
		s.drop(before)
	}
	s.found[e.key] = s.order.PushFront(e)
	if l := e.like; l != nil {
		part := append(s.parts[l.part], e)
		if len(part) > s.maxPart {
			part = slices.Delete(part, 0, 1) // it is found by its key alone
		}
		s.parts[l.part] = part
	}
	s.bytes += e.size
	s.shrink()
}

// shrink is called with the lock held.
func (s *store) shrink() {
	for s.bytes > s.limit {
		s.drop(s.order.Back())
	}
}

// drop is called with the lock held.
func (s *store) drop(at *list.Element) {
	e := s.order.Remove(at).(*entry) // the list holds nothing else
	delete(s.found, e.key)
	s.bytes -= e.size
	if e.like == nil {
		return
	}
	part := s.parts[e.like.part]
	if i := slices.Index(part, e); i >= 0 {
		part = slices.Delete(part, i, i+1)
		s.parts[e.like.part] = part
	}
	if len(part) == 0 {
		delete(s.parts, e.like.part)
	}
}

// clear forgets everything, and what is on its way.
func (s *store) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lives++
	s.bytes = 0
	clear(s.found)
	clear(s.parts)
	s.order.Init()
}

// candidate is an entry that may be alike, and its vector, if that is known.
type candidate struct {
	entry  *entry
	vector vector
}

// alike returns the entries whose words agree with l, the newest first.
func (s *store) alike(l *likeness, paraphrases bool) []candidate {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []candidate
	for _, e := range slices.Backward(s.parts[l.part]) {
		if now.Before(e.like.until) && now.Before(e.until) && agree(l.said, e.like.said, paraphrases) {
			found = append(found, candidate{e, e.like.vector})
		}
	}
	return found
}

// learn keeps the vectors of entries that are still there.
func (s *store) learn(vectors map[*entry]vector) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e, v := range vectors {
		if at, ok := s.found[e.key]; ok && at.Value == any(e) {
			e.like.vector = v
			s.bytes -= e.size
			e.size = e.weigh()
			s.bytes += e.size
		}
	}
	s.shrink()
}
