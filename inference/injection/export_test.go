package injection

import "regexp"

// Rules are the names of all rules.
func Rules() []string {
	var names []string
	for _, r := range ruleTable() {
		names = append(names, r.name)
	}
	return names
}

// Compile compiles every expression.
func Compile() error {
	for _, r := range ruleTable() {
		if _, err := regexp.Compile(r.pattern); err != nil {
			return err
		}
	}
	return nil
}

// Matched returns what the rules say of a text, without the classifier.
func (e *Embedded) Matched(text string, from Source) (Risk, []string) {
	var (
		n     normalised
		names []string
	)
	n.normalise(text)
	return e.rules.match(e.rules.newMatcher(), n.text, from, func(name string) { names = append(names, name) }), names
}

// Unfiltered is Matched with every expression over the whole text: what the
// prefilter must not lose.
func (e *Embedded) Unfiltered(text string, from Source) (Risk, []string) {
	var (
		n     normalised
		names []string
		total Risk
	)
	n.normalise(text)
	for i, r := range e.rules.table {
		if r.risk[from] == 0 {
			continue
		}
		if at := e.rules.patterns[i]().FindIndex(n.text); at != nil {
			risk := r.risk[from]
			if r.quotable && e.rules.quoted(n.text, at[0], at[1]) {
				risk = risk * 4 / 10
			}
			total = total.or(risk)
			names = append(names, r.name)
		}
	}
	return total, names
}

// Normalise returns the one form of a text, what was in tags, and how much was hidden.
func Normalise(text string) (plain, tags string, hidden int) {
	var n normalised
	n.normalise(text)
	return string(n.text), string(n.tags), n.hidden
}

// Classified is what the classifier alone says.
func (e *Embedded) Classified(text string, from Source) Risk {
	var (
		n normalised
		f features
	)
	n.normalise(text)
	f.read(n.text)
	h := &e.weights.heads[from]
	return h.risk(h.score(&f, from))
}

// Find returns the literals of a list that are in a text, as the automaton does.
func Find(literals []string, text string) map[string][]int {
	found := map[string][]int{}
	newAutomaton(literals).find([]byte(text), func(literal, end int) {
		found[literals[literal]] = append(found[literals[literal]], end)
	})
	return found
}

// Token returns a canary's token.
func (c *Canary) Token() string { return c.token }

// Or joins two risks.
func (r Risk) Or(other Risk) Risk { return r.or(other) }
