package localauthz

import (
	"fmt"
	"iter"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go"
)

// maxMistakes is how many policies of a file that cannot be read are each named.
const maxMistakes = 20

// piece is one policy of a file, with what is written before it.
type piece struct {
	text []byte
	at   cedar.Position // where text begins
	line int            // where the policy does
}

// pieces yields the policies of a file one by one: cedar-go would read a long file
// into one array, and the runtime stops everybody, checks too, while that moves.
// Policies end with a semicolon that is neither in a string nor in a comment.
func pieces(text []byte) iter.Seq[piece] {
	return func(yield func(piece) bool) {
		next := piece{at: cedar.Position{Line: 1, Column: 1}}
		line, lineStart := 1, 0
		begun, quoted, comment := false, false, false
		for i := 0; i < len(text); i++ {
			c := text[i]
			opens := c == '/' && i+1 < len(text) && text[i+1] == '/'
			if !begun && !comment && !opens && c > ' ' {
				begun, next.line = true, line
			}
			switch {
			case c == '\n':
				line++
				comment, lineStart = false, i+1
			case comment:
			case quoted && c == '\\':
				i++
			case c == '"':
				quoted = !quoted
			case !quoted && opens:
				comment = true
			case !quoted && c == ';':
				next.text = text[next.at.Offset : i+1]
				if !yield(next) {
					return
				}
				begun = false
				next = piece{at: cedar.Position{Offset: i + 1, Line: line, Column: 1 + utf8.RuneCount(text[lineStart:i+1])}}
			}
		}
		if next.text = text[next.at.Offset:]; len(next.text) > 0 {
			yield(next)
		}
	}
}

// parse returns the policy, whose position is that in the piece; nil if there are but
// comments.
func (p piece) parse(name string) (*cedar.Policy, error) {
	if len(p.text) > maxPolicyBytes {
		return nil, fmt.Errorf("%s:%d: the policy has more than %d bytes", name, p.line, maxPolicyBytes)
	}
	list, err := cedar.NewPolicyListFromBytes(name, p.text)
	switch {
	case err != nil:
		return nil, p.mistake(name, err)
	case len(list) == 0:
		return nil, nil
	case len(list) > 1: // cedar-go ends policies elsewhere than pieces does
		return nil, fmt.Errorf("%s:%d: there are %d policies where one ends", name, p.line, len(list))
	}
	return list[0], nil
}

// locate returns where in the file a position in the piece is.
func (p piece) locate(name string, at cedar.Position) cedar.Position {
	line, column := p.inFile(at.Line, at.Column)
	return cedar.Position{Filename: name, Offset: p.at.Offset + at.Offset, Line: line, Column: column}
}

// inFile returns where in the file a line and column of the piece are.
func (p piece) inFile(line, column int) (lineInFile, columnInFile int) {
	if line == 1 {
		column += p.at.Column - 1
	}
	return p.at.Line + line - 1, column
}

// parseError is how cedar-go says what it did not expect, and where.
var parseError = regexp.MustCompile(`at <input>:(\d+):(\d+) "(.*)": (.*)$`)

// mistake says it in the form that editors and people know.
func (p piece) mistake(name string, err error) error {
	m := parseError.FindStringSubmatch(err.Error())
	if m == nil {
		return fmt.Errorf("%s:%d: %w", name, p.line, err)
	}
	found, why := fmt.Sprintf("%q", m[3]), m[4]
	if m[3] == "" {
		found = "the end"
	}
	if _, want, ok := strings.Cut(why, " want "); ok {
		why = "expected " + want
	}
	line, _ := strconv.Atoi(m[1]) // it is digits
	column, _ := strconv.Atoi(m[2])
	line, column = p.inFile(line, column)
	return fmt.Errorf("%s:%d:%d: at %s: %s", name, line, column, found, why)
}
