package nhi

import (
	"slices"
	"strings"

	"creto.dev"
)

// Scope bounds what a link passes on. A pattern is exact text, or a prefix
// followed by one '*'; "*" is everything.
type Scope struct {
	Actions   []string `cbor:"1,keyasint" json:"actions"`
	Resources []string `cbor:"2,keyasint" json:"resources"` // of Type::id
	// Spend bounds what may be spent under the link altogether; the zero
	// amount is no bound.
	Spend creto.Money `cbor:"3,keyasint,omitzero" json:"spend,omitzero"`
}

// Everything is the scope without bounds; policies still apply.
func Everything() Scope { return Scope{Actions: []string{"*"}, Resources: []string{"*"}} }

// Covers reports whether the scope includes action on resource.
func (s Scope) Covers(action, resource string) bool {
	return anyMatches(s.Actions, action) && anyMatches(s.Resources, resource)
}

// Coverage is what a chain's scopes leave of one action on resources of one
// type, resolved once for many questions. The zero Coverage covers nothing.
type Coverage struct {
	valid bool
	// links holds what ids each link covers; those that cover every id are left
	// out. A link without patterns covers none.
	links [][]string
	last  []string // of the last link, which covers no more than those above it
}

// Coverage returns what every link's scope includes of action on resources of a
// type.
func (c VerifiedChain) Coverage(action, resourceType string) Coverage {
	if !c.Valid() {
		return Coverage{}
	}
	coverage := Coverage{valid: true}
	for _, s := range c.scopes {
		var ids []string
		if anyMatches(s.Actions, action) {
			ids = idPatterns(s.Resources, resourceType)
		}
		if !slices.Contains(ids, "*") {
			coverage.links = append(coverage.links, ids)
		}
		coverage.last = ids
	}
	return coverage
}

// idPatterns returns the patterns of ids that patterns of resources come to for
// one type.
func idPatterns(patterns []string, resourceType string) []string {
	head := creto.Resource{Type: resourceType}.String()
	var ids []string
	for _, p := range patterns {
		prefix, wide := strings.CutSuffix(p, "*")
		if id, ok := strings.CutPrefix(p, head); ok {
			ids = append(ids, id)
		} else if wide && strings.HasPrefix(head, prefix) {
			ids = append(ids, "*")
		}
	}
	return ids
}

// Covers reports whether the resource of this id is covered.
func (c Coverage) Covers(id string) bool {
	if len(c.links) == 0 {
		return c.valid
	}
	for _, patterns := range c.links {
		if !anyMatches(patterns, id) {
			return false
		}
	}
	return true
}

// Patterns returns the ids that are covered: each exact, or a prefix followed by
// '*'. The caller must not change them.
func (c Coverage) Patterns() []string { return c.last }

// Everything reports whether every resource of the type is covered.
func (c Coverage) Everything() bool { return c.valid && len(c.links) == 0 }

func anyMatches(patterns []string, text string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, text) })
}

func matches(pattern, text string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(text, prefix)
	}
	return pattern == text
}

// Within reports whether everything that s covers is covered by parent.
func (s Scope) Within(parent Scope) bool {
	within := func(child, parent []string) bool {
		for _, pattern := range child {
			if !slices.ContainsFunc(parent, func(p string) bool { return patternWithin(pattern, p) }) {
				return false
			}
		}
		return true
	}
	return within(s.Actions, parent.Actions) && within(s.Resources, parent.Resources) && spendWithin(s.Spend, parent.Spend)
}

// patternWithin: a prefix pattern lies within an equal or shorter prefix
// pattern, exact text within whatever matches it.
func patternWithin(child, parent string) bool {
	prefix, wide := strings.CutSuffix(child, "*")
	parentPrefix, parentWide := strings.CutSuffix(parent, "*")
	if !wide {
		return matches(parent, child)
	}
	return parentWide && strings.HasPrefix(prefix, parentPrefix)
}

// spendWithin: under a bound everything is bounded, in the same currency.
func spendWithin(child, parent creto.Money) bool {
	if parent.IsZero() {
		return true
	}
	order, err := child.Compare(parent)
	return err == nil && order <= 0
}

// Bounds of a scope: what a person can read, and what can be compared with the
// link above it in no time.
const (
	maxPatterns     = 256
	maxPatternBytes = 1 << 10
)

// violation returns what is wrong with the scope itself, or "".
func (s Scope) violation() string {
	if len(s.Actions) > maxPatterns || len(s.Resources) > maxPatterns {
		return "has too many patterns"
	}
	if slices.ContainsFunc(slices.Concat(s.Actions, s.Resources), func(p string) bool { return len(p) > maxPatternBytes }) {
		return "has a pattern that is too long"
	}
	if !s.Spend.IsZero() && s.Spend.Sign() < 0 {
		return "allows to spend less than nothing"
	}
	return ""
}
