package localauthz

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"creto.dev/authz/localauthz/program"
)

// place is where a policy is written. Its piece has a text of its own, so that no
// more of the file stays in memory.
type place struct {
	piece
	file     string
	position cedar.Position // in the file
}

// begins returns where in the piece the policy does.
func (p *place) begins() int { return p.position.Offset - p.at.Offset }

// lineOf returns the line and column in the file, in characters and both from 1, of
// an offset in the piece.
func (p *place) lineOf(offset int) (line, column int) {
	before := p.text[:min(offset, len(p.text))]
	start := bytes.LastIndexByte(before, '\n') + 1
	return p.inFile(1+bytes.Count(before, []byte("\n")), 1+utf8.RuneCount(before[start:]))
}

// clause is a piece of a policy's conditions that can be blamed by itself: an
// operand of && in a when, or of || in an unless.
type clause struct {
	text         string // as it is written
	line, column int
	unless       bool
	condition    *program.Condition
}

// maxParts bounds what is told of one policy.
const maxParts = 64

// partsOf takes a policy's conditions apart. Cedar's syntax tree says nothing of
// places, so they are looked for in the text; each is parsed again, and if they
// do not come to just the tree of the policy, its conditions are parts as wholes.
func partsOf(place *place, source *ast.Policy) []clause {
	bodies := bodiesOf(place.text, place.begins())
	var parts []clause
	for i, c := range source.Conditions {
		unless := bool(c.Condition == ast.ConditionUnless)
		var found []clause
		if len(bodies) == len(source.Conditions) {
			found = split(place, bodies[i], unless, c.Body)
		}
		if found == nil {
			found = whole(place, c.Body, unless)
		}
		parts = append(parts, found...)
	}
	return parts
}

// whole returns a condition as one part, in Cedar's own form.
func whole(place *place, body ast.IsNode, unless bool) []clause {
	c, err := program.NewCondition(body)
	if err != nil {
		return nil // Compile has refused it
	}
	return []clause{{text: textOf(body), line: place.position.Line, column: place.position.Column, unless: unless, condition: c}}
}

// textOf writes an expression in Cedar's own form.
func textOf(n ast.IsNode) string {
	var p cedar.Policy
	if err := p.UnmarshalCedar([]byte("permit (principal, action, resource);")); err != nil {
		return ""
	}
	tree := (*ast.Policy)(p.AST())
	tree.Conditions = []ast.ConditionType{{Condition: ast.ConditionWhen, Body: n}}
	_, text, _ := strings.Cut(string(p.MarshalCedar()), "when { ")
	return strings.TrimSuffix(strings.TrimSpace(text), " };")
}

// span is a piece of a text, from one offset to another.
type span struct{ from, to int }

// split returns the parts of one condition; nil if they are not found.
func split(p *place, body span, unless bool, tree ast.IsNode) []clause {
	text := p.text
	operator := "&&"
	if unless {
		operator = "||"
	}
	var parts []clause
	for _, s := range operands(text, body, operator) {
		c, err := program.ParseCondition(string(text[s.from:s.to]))
		if err != nil || len(parts) == maxParts {
			return nil
		}
		line, column := p.lineOf(s.from)
		parts = append(parts, clause{text: string(text[s.from:s.to]), line: line, column: column, unless: unless, condition: c})
	}
	var again []ast.IsNode
	for _, one := range parts {
		again = append(again, flat(one.condition.Source(), operator)...)
	}
	want := flat(tree, operator)
	if len(again) != len(want) {
		return nil
	}
	for i := range want {
		if !ast.Equal(ast.NewNode(want[i]), ast.NewNode(again[i])) {
			return nil
		}
	}
	return parts
}

// flat returns the operands of nested && or ||, from left to right.
func flat(n ast.IsNode, operator string) []ast.IsNode {
	switch v := n.(type) {
	case ast.NodeTypeAnd:
		if operator == "&&" {
			return append(flat(v.Left, operator), flat(v.Right, operator)...)
		}
	case ast.NodeTypeOr:
		if operator == "||" {
			return append(flat(v.Left, operator), flat(v.Right, operator)...)
		}
	}
	return []ast.IsNode{n}
}

// scanner walks over Cedar text outside of strings and comments.
type scanner struct {
	text     []byte
	at, end  int
	depth    int // of brackets
	trailing int // the end of what was last seen
}

// next returns the next character that is no space and in no string or comment,
// and its offset; a string is '"'. False is the end.
func (s *scanner) next() (c byte, at int, ok bool) {
	for s.at < s.end {
		c, at = s.text[s.at], s.at
		s.at++
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			continue
		case c == '/' && s.at < s.end && s.text[s.at] == '/':
			for s.at < s.end && s.text[s.at] != '\n' {
				s.at++
			}
			continue
		case c == '"':
			for s.at < s.end && s.text[s.at] != '"' {
				if s.text[s.at] == '\\' {
					s.at++
				}
				s.at++
			}
			s.at = min(s.at+1, s.end)
		case c == '(' || c == '[' || c == '{':
			s.depth++
		case c == ')' || c == ']' || c == '}':
			s.depth--
		}
		s.trailing = s.at
		return c, at, true
	}
	return 0, 0, false
}

func letter(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
}

// word returns the word that begins at an offset, and goes behind it.
func (s *scanner) word(at int) string {
	for s.at < s.end && letter(s.text[s.at]) {
		s.at++
	}
	s.trailing = s.at
	return string(s.text[at:s.at])
}

// bodiesOf returns what is between the braces of each when and unless of the
// policy that begins at an offset.
func bodiesOf(text []byte, offset int) []span {
	s := scanner{text: text, at: min(offset, len(text)), end: len(text)}
	var bodies []span
	for {
		c, at, ok := s.next()
		switch {
		case !ok || c == ';' && s.depth == 0:
			return bodies
		case s.depth != 0 || !letter(c):
			continue
		}
		if word := s.word(at); word != "when" && word != "unless" {
			continue
		}
		if c, at, ok = s.next(); !ok || c != '{' {
			continue
		}
		for ok && s.depth > 0 {
			_, _, ok = s.next()
		}
		bodies = append(bodies, span{at + 1, s.at - 1})
	}
}

// operands returns the operands of an operator, "&&" or "||", that stands in no
// brackets; brackets around a whole operand are taken off. An expression with an
// operator that binds less is one operand.
func operands(text []byte, body span, operator string) []span {
	s := scanner{text: text, at: body.from, end: body.to}
	var found []span
	start, end, brackets := -1, 0, false // brackets: the operand so far is one pair
	whole := span{-1, 0}
	flush := func() {
		if brackets {
			found = append(found, operands(text, span{start + 1, end - 1}, operator)...)
		} else if start >= 0 {
			found = append(found, span{start, end})
		}
		start = -1
	}
	for {
		depth := s.depth
		c, at, ok := s.next()
		if !ok {
			break
		}
		if whole.from < 0 {
			whole.from = at
		}
		whole.to = s.trailing
		if depth == 0 && (c == '&' || c == '|') && s.at < s.end && s.text[s.at] == c {
			s.at++
			if string([]byte{c, c}) == operator {
				flush()
				continue
			}
			if operator == "&&" { // || binds less
				return rest(text, whole, body)
			}
		}
		if depth == 0 && letter(c) && s.word(at) == "if" && start < 0 {
			return rest(text, whole, body)
		}
		if start < 0 {
			start, brackets = at, c == '('
		} else if depth == 0 {
			brackets = false
		}
		end = s.trailing
		whole.to = s.trailing
	}
	flush()
	return found
}

// rest returns everything of a body from the beginning of an expression on.
func rest(text []byte, from, body span) []span {
	s := scanner{text: text, at: body.from, end: body.to}
	for {
		if _, _, ok := s.next(); !ok {
			return []span{{from.from, s.trailing}}
		}
	}
}
