package provider

import (
	"encoding/binary"
	"math/bits"
)

// maxDepth is how deep values may be nested, as in encoding/json.
const maxDepth = 10_000

// validJSON reports whether text is one JSON value (RFC 8259), as json.Valid does: in
// a fraction of the time, which every request, answer and piece of one pays.
func validJSON(text []byte) bool {
	end := scanValue(text, space(text, 0), 0)
	return end >= 0 && space(text, end) == len(text)
}

// space returns where white space from i on ends.
func space(text []byte, i int) int {
	for i < len(text) && (text[i] == ' ' || text[i] == '\n' || text[i] == '\t' || text[i] == '\r') {
		i++
	}
	return i
}

// scanValue returns where the value that begins at i ends; -1 if there is none. It is
// inside of depth others.
func scanValue(text []byte, i, depth int) int {
	if i >= len(text) {
		return -1
	}
	switch c := text[i]; {
	case c == '"':
		return scanString(text, i)
	case c == '{' || c == '[':
		if depth == maxDepth {
			return -1
		}
		return scanInside(text, i, depth+1)
	case c == '-' || '0' <= c && c <= '9':
		return scanNumber(text, i)
	case c == 't':
		return scanWord(text, i, "true")
	case c == 'f':
		return scanWord(text, i, "false")
	case c == 'n':
		return scanWord(text, i, "null")
	}
	return -1
}

// scanInside is scanValue for an object or a list.
func scanInside(text []byte, i, depth int) int {
	object := text[i] == '{'
	closing := byte(']')
	if object {
		closing = '}'
	}
	if i = space(text, i+1); i < len(text) && text[i] == closing {
		return i + 1
	}
	for {
		if object {
			if i >= len(text) || text[i] != '"' {
				return -1
			}
			if i = scanString(text, i); i < 0 {
				return -1
			}
			if i = space(text, i); i >= len(text) || text[i] != ':' {
				return -1
			}
			i = space(text, i+1)
		}
		if i = scanValue(text, i, depth); i < 0 {
			return -1
		}
		if i = space(text, i); i >= len(text) {
			return -1
		}
		switch text[i] {
		case closing:
			return i + 1
		case ',':
			i = space(text, i+1)
		default:
			return -1
		}
	}
}

func scanWord(text []byte, i int, word string) int {
	if len(text)-i < len(word) || string(text[i:i+len(word)]) != word {
		return -1
	}
	return i + len(word)
}

func scanNumber(text []byte, i int) int {
	if text[i] == '-' {
		i++
	}
	switch {
	case i >= len(text):
		return -1
	case text[i] == '0':
		i++
	default:
		if i = digits(text, i); i < 0 {
			return -1
		}
	}
	if i < len(text) && text[i] == '.' {
		if i = digits(text, i+1); i < 0 {
			return -1
		}
	}
	if i < len(text) && (text[i] == 'e' || text[i] == 'E') {
		if i++; i < len(text) && (text[i] == '+' || text[i] == '-') {
			i++
		}
		i = digits(text, i)
	}
	return i
}

// digits returns where those from i on end; -1 if there are none.
func digits(text []byte, i int) int {
	begin := i
	for i < len(text) && '0' <= text[i] && text[i] <= '9' {
		i++
	}
	if i == begin {
		return -1
	}
	return i
}

// scanString is scanValue for a string.
func scanString(text []byte, i int) int {
	for i++; ; {
		if i = untilSpecial(text, i); i >= len(text) {
			return -1
		}
		switch c := text[i]; {
		case c == '"':
			return i + 1
		case c < ' ':
			return -1
		}
		if i++; i >= len(text) { // after a backslash
			return -1
		}
		switch text[i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			i++
		case 'u':
			if len(text)-i < 5 {
				return -1
			}
			for _, c := range text[i+1 : i+5] {
				if c |= 0x20; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
					return -1
				}
			}
			i += 5
		default:
			return -1
		}
	}
}

// The bits of eight bytes, and those that mark the first of them that is special.
const (
	ones = 0x0101010101010101
	high = 0x8080808080808080
)

// special marks, of eight bytes, the first that is a quote, a backslash or a control
// character (https://graphics.stanford.edu/~seander/bithacks.html#ZeroInWord); those
// above it may be marked too.
func special(word uint64) uint64 {
	quote, backslash := word^(ones*'"'), word^(ones*'\\')
	return (((word - ones*' ') & ^word) | ((quote - ones) & ^quote) | ((backslash - ones) & ^backslash)) & high
}

// untilSpecial returns the place of the first byte from i on that is a quote, a backslash or
// a control character, or the length of text.
func untilSpecial(text []byte, i int) int {
	for ; len(text)-i >= 8; i += 8 {
		if found := special(binary.LittleEndian.Uint64(text[i:])); found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(text) && text[i] >= ' ' && text[i] != '"' && text[i] != '\\' {
		i++
	}
	return i
}

// eight returns the first eight bytes of s.
func eight(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}
