package consensustest

import (
	"context"
	"sync"
	"time"

	"creto.dev"
	"creto.dev/consensus"
	"creto.dev/fault"
)

// Manual is a clock that a test moves by hand. Its zero value stands at the
// Unix epoch. Safe for concurrent use.
type Manual struct {
	mu      sync.Mutex // guards what follows
	now     time.Time
	counter uint64
	events  map[consensus.EventID]creto.Timestamp
	down    bool
}

var _ consensus.Clock = (*Manual)(nil)

// Set moves the clock to t.
func (m *Manual) Set(t time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = t
}

// Advance moves the clock by d.
func (m *Manual) Advance(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.reading().Add(d)
}

// Fail makes every call return ConsensusUnavailable until it is undone.
func (m *Manual) Fail(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

// reading is where the clock stands. The caller holds mu.
func (m *Manual) reading() time.Time {
	if m.now.IsZero() {
		return time.Unix(0, 0)
	}
	return m.now
}

func (m *Manual) stamp() (creto.Timestamp, error) {
	if m.down {
		return creto.Timestamp{}, fault.New("consensustest.Now", fault.ConsensusUnavailable, "the clock was made to fail")
	}
	m.counter++
	return creto.Timestamp{Logical: creto.LogicalOf(1, m.counter), Physical: m.reading().UnixNano(), Source: creto.SourceConsensus, Node: "test"}, nil
}

// Now implements consensus.Clock.
func (m *Manual) Now(context.Context) (creto.Timestamp, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stamp()
}

// Register implements consensus.Clock.
func (m *Manual) Register(_ context.Context, id consensus.EventID) (creto.Timestamp, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.events[id]; ok && !m.down {
		return s, nil
	}
	s, err := m.stamp()
	if err != nil {
		return s, err
	}
	if m.events == nil {
		m.events = make(map[consensus.EventID]creto.Timestamp)
	}
	m.events[id] = s
	return s, nil
}

// OrderEvents implements consensus.Clock.
func (m *Manual) OrderEvents(_ context.Context, ids []consensus.EventID) ([]consensus.Ordered, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	const op fault.Op = "consensustest.OrderEvents"
	if m.down {
		return nil, fault.New(op, fault.ConsensusUnavailable, "the clock was made to fail")
	}
	distinct, err := consensus.Distinct(ids)
	if err != nil {
		return nil, err
	}
	var ordered []consensus.Ordered
	for _, id := range distinct {
		s, ok := m.events[id]
		if !ok {
			return nil, consensus.Unregistered(op, id)
		}
		ordered = append(ordered, consensus.Ordered{ID: id, Stamp: s})
	}
	consensus.Sort(ordered)
	return ordered, nil
}

// Ping implements consensus.Clock.
func (m *Manual) Ping(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return fault.New("consensustest.Ping", fault.ConsensusUnavailable, "the clock was made to fail")
	}
	return nil
}
