package metering

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"creto.dev"
)

// crowded agrees with one that looks at every pair, and is asked of many in time.
func TestCrowded(t *testing.T) {
	id := func(kind creto.Kind, name string) creto.ID {
		return creto.ID{TrustDomain: "test.local", Tenant: creto.DefaultTenant, Kind: kind, Name: name}
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	subject := func(agents, humans int) Subject {
		s := Subject{Agent: id(creto.KindAgent, fmt.Sprint(r.IntN(agents))), Action: AnyAction}
		if r.IntN(2) == 0 {
			s.Human = id(creto.KindHuman, fmt.Sprint(r.IntN(humans)))
		}
		if r.IntN(4) > 0 {
			s.Action = creto.ActionNames()[r.IntN(2)]
		}
		return s
	}
	naive := func(s Subject, there []Subject) bool {
		there = append(slices.Clone(there), s)
		for _, action := range creto.ActionNames() {
			for _, whose := range there {
				n := 0
				for _, x := range there {
					if x.covers(s.Agent, whose.Human, action) {
						n++
					}
				}
				if n > MaxBudgets {
					return true
				}
			}
		}
		return false
	}
	refused := 0
	for range 50 {
		var there []Subject
		for range 60 {
			s := subject(2, 3)
			got, want := crowded(s, slices.Values(there)), naive(s, there)
			if got != want {
				t.Fatalf("seed %d: crowded(%v) beside %v = %v, want %v", seed, s, there, got, want)
			}
			if got {
				refused++
				continue
			}
			there = append(there, s)
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
	many := make([]Subject, 100_000)
	for i := range many {
		many[i] = Subject{Agent: id(creto.KindAgent, "0"), Human: id(creto.KindHuman, fmt.Sprint(i)), Action: creto.CallModel}
	}
	began := time.Now()
	crowded(subject(1, 1), slices.Values(many))
	if took := time.Since(began); took > 5*time.Second { // every pair would take minutes
		t.Errorf("beside %d it takes %v", len(many), took)
	}
}
