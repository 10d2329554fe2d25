package cache

import (
	"container/list"
	"sync"
	"time"

	"creto.dev/inference"
)

// entryBytes is about what an entry takes beside its pieces, and pieceBytes what a
// piece does beside its bytes.
const (
	entryBytes = 512
	pieceBytes = 24
)

// largestShare is the part of the memory that one answer may take.
const largestShare = 8

// entry is an answer, encoded: nobody who gets it can change it for others.
type entry struct {
	provider, model string // who gave it, and as what
	pieces          [][]byte

	key   key
	until time.Time
	size  int64
}

// served says who gave the answer.
func (e *entry) served(m *inference.RequestMetadata) {
	if m.Served != nil {
		*m.Served = inference.Served{Provider: e.provider, Model: e.model, Cache: inference.CacheHit}
	}
}

// store keeps entries, and lets those go that nobody asked for the longest.
type store struct {
	limit int64

	mu    sync.Mutex // guards what follows
	bytes int64
	lives uint64 // grows when everything is forgotten
	found map[key]*list.Element
	order *list.List // of *entry, the one that was asked for last in front
}

func newStore(limit int64) *store {
	return &store{limit: limit, found: map[key]*list.Element{}, order: list.New()}
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
func (s *store) put(k key, life uint64, e *entry, ttl time.Duration) {
	e.key, e.until, e.size = k, time.Now().Add(ttl), entryBytes
	for _, p := range e.pieces {
		e.size += int64(len(p)) + pieceBytes
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if life != s.lives || len(e.pieces) == 0 || e.size > s.largest() {
		return
	}
	if before, ok := s.found[k]; ok {
		s.drop(before)
	}
	s.found[k] = s.order.PushFront(e)
	for s.bytes += e.size; s.bytes > s.limit; {
		s.drop(s.order.Back())
	}
}

// drop is called with the lock held.
func (s *store) drop(at *list.Element) {
	e := s.order.Remove(at).(*entry) // the list holds nothing else
	delete(s.found, e.key)
	s.bytes -= e.size
}

// clear forgets everything, and what is on its way.
func (s *store) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lives++
	s.bytes = 0
	clear(s.found)
	s.order.Init()
}
