package injection

import (
	"bytes"
	"regexp"
	"slices"
	"sync"
	"unicode/utf8"
)

// rule is a pattern of attacks. Its expression reads normalised text, and only
// around its literals, one of which is in everything that it matches.
type rule struct {
	name string
	// risk is what a match says in each source.
	risk     [Sources]Risk
	literals []string
	// near, if it is set, holds literals of which one too is in everything that it
	// matches: around literals that are common, it spares most of the reading.
	near    []string
	pattern string
	// quotable rules say less where the text speaks about attacks.
	quotable bool
}

// How far around a literal an expression reads, and how much of one text for each
// rule. Who repeats a literal more often than that has flooded is reason enough.
const (
	behind    = 160
	ahead     = 130
	maxWindow = 4 << 10
	maxRead   = 32 << 10
	floodName = "flood"
	floodRisk = 600
)

// rules is a table that is ready to be matched. Safe for concurrent use.
type rules struct {
	table     []rule
	patterns  []func() *regexp.Regexp // compiled when first needed
	automaton *automaton
	of        []uses // of a literal
	near      []int  // by rule: the group of literals that must be near; 0 is none
	groups    int
	// Speech about attacks, which is no attack.
	speech *automaton
}

// uses is what a literal is for.
type uses struct{ rules, groups []int }

// newRules prepares a table. It panics if that is wrong.
func newRules(table []rule) *rules {
	rs := &rules{table: table, near: make([]int, len(table)), groups: 1, speech: newAutomaton(speechAboutAttacks)}
	var literals []string
	number := map[string]int{}
	use := func(literal string) *uses {
		n, ok := number[literal]
		if !ok {
			n = len(literals)
			number[literal] = n
			literals = append(literals, literal)
			rs.of = append(rs.of, uses{})
		}
		return &rs.of[n]
	}
	groups := map[*string]int{} // a list that rules share is one group
	for i, r := range table {
		rs.patterns = append(rs.patterns, sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(r.pattern) }))
		for _, l := range r.literals {
			u := use(l)
			u.rules = append(u.rules, i)
		}
		if len(r.near) == 0 {
			continue
		}
		group, ok := groups[&r.near[0]]
		if !ok {
			group = rs.groups
			groups[&r.near[0]] = group
			rs.groups++
			for _, l := range r.near {
				u := use(l)
				u.groups = append(u.groups, group)
			}
		}
		rs.near[i] = group
	}
	rs.automaton = newAutomaton(literals)
	return rs
}

// span is a part of a text.
type span struct{ from, to int }

// matcher is the memory of one match.
type matcher struct {
	spans [][]span // by rule: where its expression must look
	near  [][]int  // by group: where its literals end
}

func (rs *rules) newMatcher() *matcher {
	return &matcher{spans: make([][]span, len(rs.table)), near: make([][]int, rs.groups)}
}

// match returns the risk of a normalised text, and calls report with each rule that
// says so. The cost is linear.
func (rs *rules) match(m *matcher, text []byte, from Source, report func(name string)) Risk {
	for i := range m.spans {
		m.spans[i] = m.spans[i][:0]
	}
	for i := range m.near {
		m.near[i] = m.near[i][:0]
	}
	rs.automaton.find(text, func(literal, end int) {
		u := &rs.of[literal]
		for _, g := range u.groups {
			m.near[g] = append(m.near[g], end)
		}
		for _, i := range u.rules {
			spans := m.spans[i]
			next := span{max(0, end-behind), min(len(text), end+ahead)}
			// Windows that touch are read as one, up to some size.
			if last := len(spans) - 1; last >= 0 && next.from <= spans[last].to && next.to-spans[last].from <= maxWindow {
				spans[last].to = next.to
			} else {
				m.spans[i] = append(spans, next)
			}
		}
	})
	total, flooded := Risk(0), false
	for i, spans := range m.spans {
		if len(spans) == 0 || rs.table[i].risk[from] == 0 {
			continue
		}
		risk, whole := rs.read(m, i, spans, text, from)
		if risk > 0 {
			total = total.or(risk)
			report(rs.table[i].name)
		}
		flooded = flooded || !whole
	}
	if flooded {
		total = total.or(floodRisk)
		report(floodName)
	}
	return total
}

// read looks for a rule where its literals are, and reports whether it read all
// that it had to.
func (rs *rules) read(m *matcher, i int, spans []span, text []byte, from Source) (risk Risk, whole bool) {
	full := rs.table[i].risk[from]
	read := 0
	for _, s := range spans {
		if g := rs.near[i]; g != 0 {
			at, _ := slices.BinarySearch(m.near[g], s.from)
			if at == len(m.near[g]) || m.near[g][at] > s.to {
				continue
			}
		}
		if read += s.to - s.from; read > maxRead {
			return risk, false
		}
		start := boundary(text, s.from)
		at := rs.patterns[i]().FindIndex(text[start:s.to])
		switch {
		case at == nil:
		case rs.table[i].quotable && rs.quoted(text, start+at[0], start+at[1]):
			risk = max(risk, full*4/10)
		default:
			return full, true
		}
	}
	return risk, true
}

// boundary returns the next place from i on where a character begins.
func boundary(text []byte, i int) int {
	for i < len(text) && !utf8.RuneStart(text[i]) {
		i++
	}
	return i
}

// quoted reports whether what stands from start to end is spoken about: the words
// around it are those of a talk about attacks, and it does not go on to command.
func (rs *rules) quoted(text []byte, start, end int) bool {
	around := text[max(0, start-120):min(len(text), end+90)]
	found := false
	rs.speech.find(around, func(int, int) { found = true })
	if found {
		return true
	}
	before, after := bytes.TrimRight(text[:start], " "), bytes.TrimLeft(text[end:], " .!")
	return len(before) > 0 && len(after) > 0 && bytes.IndexByte([]byte("\"'`"), before[len(before)-1]) >= 0 && bytes.IndexByte([]byte("\"'`"), after[0]) >= 0
}

// speechAboutAttacks are words of texts about attacks rather than of attacks.
var speechAboutAttacks = []string{
	"prompt injection", "prompt-injection", "jailbreak prompts", "jailbreak attempt", "jailbreak attack", "phrases like", "phrases such as", "phrase such as", "phrase like",
	"attackers", "an attacker", "the attacker", "adversar", "what does", "what is meant by", "guardrail", "owasp", "red team", "mitigat", "vulnerab", "classifier",
	"detect", "payload", "test case", "unit test", "why do people", "why would someone", "how do llms", "how do models", "research on", "paper on", "researchers",
}
