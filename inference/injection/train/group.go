package main

import (
	"hash/fnv"
	"strings"
	"unicode"
)

// Texts are near-duplicates if they share this part of the shingles of the shorter
// one.
const (
	shingleWords = 4
	sharedPart   = 0.25
	// commonShingle is in so many texts that it says nothing.
	commonShingle = 60
)

// group puts near-duplicates, over all sets, into one group each: what one was
// trained on must not be measured with the other. Lines of seeds stay together.
func group(sets []*set) {
	var items []*item
	parent := []int{}
	of := map[string]int{} // the first text of a line of seeds
	for _, s := range sets {
		for i := range s.items {
			n := len(items)
			items, parent = append(items, &s.items[i]), append(parent, n)
			if strings.HasPrefix(s.name, "seeds/") {
				key := s.name + string(rune(s.items[i].group))
				if first, ok := of[key]; ok {
					parent[n] = first
				} else {
					of[key] = n
				}
			}
		}
	}
	var find func(int) int
	find = func(i int) int {
		if parent[i] != i {
			parent[i] = find(parent[i])
		}
		return parent[i]
	}
	shingles := make([]map[uint64]bool, len(items))
	in := map[uint64][]int{}
	for i, it := range items {
		shingles[i] = shinglesOf(it.text)
		for s := range shingles[i] {
			in[s] = append(in[s], i)
		}
	}
	for i := range items {
		shared := map[int]int{}
		for s := range shingles[i] {
			if len(in[s]) <= commonShingle {
				for _, j := range in[s] {
					shared[j]++
				}
			}
		}
		for j, n := range shared {
			if least := min(len(shingles[i]), len(shingles[j])); j != i && float64(n) >= sharedPart*float64(least) {
				parent[find(i)] = find(j)
			}
		}
	}
	// A group's number is a hash of its least text, so that it does not hang on the
	// order of files.
	least := map[int]string{}
	for i, it := range items {
		if root := find(i); least[root] == "" || it.text < least[root] {
			least[root] = it.text
		}
	}
	for i, it := range items {
		h := fnv.New32a()
		_, _ = h.Write([]byte(least[find(i)]))
		it.group = int(h.Sum32() >> 1)
	}
}

func shinglesOf(text string) map[uint64]bool {
	words := strings.FieldsFunc(strings.ToLower(text), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	out := map[uint64]bool{}
	for i := range max(1, len(words)-shingleWords+1) {
		h := fnv.New64a()
		_, _ = h.Write([]byte(strings.Join(words[i:min(len(words), i+shingleWords)], " ")))
		out[h.Sum64()] = true
	}
	return out
}
