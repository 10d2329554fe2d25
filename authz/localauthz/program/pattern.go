package program

import (
	"encoding/json"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
)

// pattern is what like compares with: text that the wildcards between its parts
// stand for anything in.
type pattern struct {
	cedar         *types.Pattern // if its parts cannot be told
	exact         bool           // there is no wildcard, and prefix is all
	prefix        string
	middle        []string
	suffix        string
	shortestBytes int
}

// newPattern returns the pattern that Cedar writes as p.
func newPattern(p types.Pattern) pattern {
	parts, err := partsOf(p)
	if err != nil {
		return pattern{cedar: &p}
	}
	made := pattern{exact: len(parts) == 1, prefix: parts[0]}
	if !made.exact {
		made.middle, made.suffix = parts[1:len(parts)-1], parts[len(parts)-1]
	}
	for _, part := range parts {
		made.shortestBytes += len(part)
	}
	return made
}

// partsOf returns the text between wildcards, which cedar-go tells in JSON alone.
func partsOf(p types.Pattern) ([]string, error) {
	text, err := p.MarshalJSON()
	if err != nil {
		return nil, err
	}
	var components []any
	if err := json.Unmarshal(text, &components); err != nil {
		return nil, err
	}
	parts := []string{""}
	for _, c := range components {
		if literal, ok := c.(map[string]any); ok {
			text, _ := literal["Literal"].(string)
			parts[len(parts)-1] += text
		} else {
			parts = append(parts, "")
		}
	}
	return parts, nil
}

// isBeginning reports whether the pattern is a prefix that anything may follow.
func (p *pattern) isBeginning() bool {
	return p.cedar == nil && !p.exact && len(p.middle) == 0 && p.suffix == ""
}

// match reports whether s is of the pattern.
func (p *pattern) match(s string) bool {
	if p.cedar != nil {
		return p.cedar.Match(types.String(s))
	}
	if p.exact {
		return s == p.prefix
	}
	if len(s) < p.shortestBytes || !strings.HasPrefix(s, p.prefix) || !strings.HasSuffix(s, p.suffix) {
		return false
	}
	s = s[len(p.prefix) : len(s)-len(p.suffix)]
	for _, part := range p.middle {
		at := strings.Index(s, part)
		if at < 0 {
			return false
		}
		s = s[at+len(part):]
	}
	return true
}
