package gateway

import (
	"testing"

	"creto.dev"
)

func TestLoad(t *testing.T) {
	l := &load{agents: make(map[creto.ID]*share)}
	one, other := creto.ID{Name: "one"}, creto.ID{Name: "other"}
	var ones []*share
	for range maxRequests {
		s := l.enter(one)
		if s == nil {
			t.Fatal("a request within the bound was refused")
		}
		ones = append(ones, s)
	}
	first := l.enter(other)
	if l.enter(one) != nil || first == nil || !first.hold(maxBufferedBytes) || first.hold(1) {
		t.Error("the bounds are not each agent's own")
	}
	second := l.enter(other)
	if second.hold(1) {
		t.Error("another request of the agent's has room of its own")
	}
	first.leave(maxBufferedBytes)
	if !second.hold(1) {
		t.Error("what was given back cannot be used again")
	}
	second.leave(1)
	ones[0].leave(0)
	if l.enter(one) == nil {
		t.Error("a request that is over counts")
	}
	for _, s := range ones {
		s.leave(0)
	}
	if len(l.agents) != 0 {
		t.Errorf("nothing is under way, yet there is %v", l.agents)
	}
}
