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
