package gateway

import (
	"testing"

	"creto.dev"
)

func TestLoad(t *testing.T) {
	l := &load{agents: make(map[creto.ID]share)}
	one, other := creto.ID{Name: "one"}, creto.ID{Name: "other"}
	for range maxRequests {
		if !l.add(one, 1, 0) {
			t.Fatal("a request within the bound was refused")
		}
	}
	if l.add(one, 1, 0) || !l.add(other, 1, maxBufferedBytes) || l.add(other, 0, 1) {
		t.Error("the bounds are not each agent's own")
	}
	l.add(other, -1, -maxBufferedBytes)
	if !l.add(other, 1, 1) {
		t.Error("what was given back cannot be used again")
	}
	l.add(other, -1, -1)
	l.add(one, -maxRequests, 0)
	if len(l.agents) != 0 {
		t.Errorf("nothing is under way, yet there is %v", l.agents)
	}
}
