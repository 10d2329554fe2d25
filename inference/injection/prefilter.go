package injection

import "math"

// automaton finds which of many literals are in a text, in one pass and about two
// nanoseconds a byte (Aho and Corasick, 1975), as a table of all transitions.
type automaton struct {
	class   [256]uint8 // of a byte; 0 is in no literal
	classes int
	next    []uint16 // by state times classes plus class; the state is multiplied already
	first   []int32  // by state: index into hits, or -1
	hits    []literalHit
}

// literalHit is a literal that ends in a state, and the next one that does.
type literalHit struct {
	literal int
	next    int32
}

// newAutomaton returns the automaton of some literals. It panics if they have too
// many states, which is a mistake in the table of rules.
func newAutomaton(literals []string) *automaton {
	a := &automaton{classes: 1}
	for _, l := range literals {
		for _, c := range []byte(l) {
			if a.class[c] == 0 {
				a.class[c] = uint8(a.classes)
				a.classes++
			}
		}
	}
	type node struct {
		children map[uint8]int
		fail     int
	}
	nodes := []*node{{children: map[uint8]int{}}}
	a.first = []int32{-1}
	for i, l := range literals {
		at := 0
		for _, c := range []byte(l) {
			child, ok := nodes[at].children[a.class[c]]
			if !ok {
				child = len(nodes)
				nodes = append(nodes, &node{children: map[uint8]int{}})
				a.first = append(a.first, -1)
				nodes[at].children[a.class[c]] = child
			}
			at = child
		}
		a.hits = append(a.hits, literalHit{i, a.first[at]})
		a.first[at] = int32(len(a.hits) - 1)
	}
	if len(nodes)*a.classes > math.MaxUint16*8 || len(nodes) > math.MaxUint16 {
		panic("injection: the literals of the rules have too many states")
	}
	a.next = make([]uint16, len(nodes)*a.classes)
	// Breadth first: a state's fallback is shorter, and complete before it.
	queue := []int{0}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		fail := nodes[at].fail
		if at != 0 { // what ends in the fallback ends here too
			if a.first[at] < 0 {
				a.first[at] = a.first[fail]
			} else {
				last := a.first[at]
				for a.hits[last].next >= 0 {
					last = a.hits[last].next
				}
				a.hits[last].next = a.first[fail]
			}
		}
		for c := range a.classes {
			child, ok := nodes[at].children[uint8(c)]
			switch {
			case ok:
				if at != 0 {
					nodes[child].fail = int(a.next[fail*a.classes+c])
				}
				a.next[at*a.classes+c] = uint16(child)
				queue = append(queue, child)
			case at != 0:
				a.next[at*a.classes+c] = a.next[fail*a.classes+c]
			}
		}
	}
	return a
}

// find calls found for each literal in text with where it ends.
func (a *automaton) find(text []byte, found func(literal, end int)) {
	state := 0
	for i, c := range text {
		state = int(a.next[state*a.classes+int(a.class[c])])
		for h := a.first[state]; h >= 0; h = a.hits[h].next {
			found(a.hits[h].literal, i+1)
		}
	}
}
