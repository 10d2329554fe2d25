package injection

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"unicode/utf8"
)

// What is decoded of one text: bounded, since it is judged once more.
const (
	maxVariants     = 8
	maxDecodedBytes = 16 << 10
	minBase64       = 24
	minHex          = 32
)

// decoder looks for texts inside a text.
type decoder struct {
	buffer []byte
	left   int // of maxDecodedBytes
	count  int // of maxVariants
}

// decode calls found with each text that s hides, which is valid until the next.
// Codes inside codes are not looked for.
func (d *decoder) decode(s string, n *normalised, found func(code string, decoded []byte)) {
	d.left, d.count = maxDecodedBytes, 0
	give := func(code string, decoded []byte) {
		if len(decoded) > d.left {
			decoded = decoded[:d.left]
		}
		if d.count == maxVariants || len(decoded) == 0 {
			return
		}
		d.count++
		d.left -= len(decoded)
		found(code, decoded)
	}
	if len(n.tags) > 0 {
		give("tags", n.tags)
	}
	d.runs(s, give)
	d.rot13(n.text, give)
	d.leet(n.text, give)
	d.spaced(s, give)
}

// runs finds base64 and hexadecimal.
func (d *decoder) runs(s string, give func(string, []byte)) {
	for i := 0; i < len(s) && d.count < maxVariants && d.left > 0; {
		if !inBase64(s[i]) {
			i++
			continue
		}
		start, isHex := i, true
		for i < len(s) && inBase64(s[i]) {
			isHex = isHex && inHex(s[i])
			i++
		}
		run := s[start:i]
		switch {
		case len(run) < minBase64:
		case isHex && len(run) >= minHex && len(run)%2 == 0:
			run = run[:min(len(run), 2*d.left)]
			d.buffer = append(d.buffer[:0], make([]byte, len(run)/2)...)
			if k, err := hex.Decode(d.buffer, []byte(run)); err == nil && readable(d.buffer[:k]) {
				give("hex", d.buffer[:k])
			}
		default:
			run = run[:min(len(run), d.left/3*4)]
			run = run[:len(run)&^3|len(run)&3]
			if len(run)%4 == 1 {
				run = run[:len(run)-1]
			}
			encoding := base64.RawStdEncoding
			if bytes.ContainsAny([]byte(run), "-_") {
				encoding = base64.RawURLEncoding
			}
			d.buffer = append(d.buffer[:0], make([]byte, encoding.DecodedLen(len(run)))...)
			if k, err := encoding.Decode(d.buffer, []byte(run)); err == nil && readable(d.buffer[:k]) {
				give("base64", d.buffer[:k])
			}
		}
	}
}

func inBase64(c byte) bool {
	return isLetter(c) || '0' <= c && c <= '9' || c == '+' || c == '/' || c == '-' || c == '_'
}

func inHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// readable reports whether bytes are a text with words.
func readable(b []byte) bool {
	if len(b) < 12 {
		return false
	}
	if !utf8.Valid(b[:max(0, len(b)-3)]) {
		return false
	}
	blanks, odd := 0, 0
	for _, c := range b {
		switch {
		case c == ' ' || c == '\n':
			blanks++
		case c < ' ' || c == 0x7f:
			odd++
		}
	}
	return blanks > 0 && odd*20 <= len(b)
}

// rotated are words of attacks as ROT13 writes them.
var rotated = [][]byte{
	[]byte("vtaber"), []byte("vafgehpgvba"), []byte("flfgrz"), []byte("cerivbhf"), []byte("cebzcg"), []byte("qvfertneq"), []byte("erirny"), []byte("cnffjbeq"),
}

// rot13 gives the text rotated, if it speaks like that.
func (d *decoder) rot13(text []byte, give func(string, []byte)) {
	text = text[:min(len(text), d.left)]
	known := 0
	for _, word := range rotated {
		if bytes.Contains(text, word) {
			known++
		}
	}
	if known < 2 {
		return
	}
	d.buffer = d.buffer[:0]
	for _, c := range text {
		if isLetter(c) {
			c = 'a' + (c-'a'+13)%26
		}
		d.buffer = append(d.buffer, c)
	}
	give("rot13", d.buffer)
}

// How many words must be written so.
const (
	minLeet   = 3
	minSpaced = 5
)

// leet gives the text with digits for letters undone, as in 1gn0r3.
func (d *decoder) leet(text []byte, give func(string, []byte)) {
	text = text[:min(len(text), d.left)]
	inside := 0
	for i := 1; i+1 < len(text); i++ {
		if letters[text[i]] != 0 && isLetter(text[i-1]) && isLetter(text[i+1]) {
			inside++
		}
	}
	if inside < minLeet {
		return
	}
	d.buffer = append(d.buffer[:0], text...)
	known := func(i int) bool { return i >= 0 && i < len(text) && (isLetter(text[i]) || letters[text[i]] != 0) }
	for i, c := range text {
		if letters[c] != 0 && (known(i-1) || known(i+1)) {
			d.buffer[i] = letters[c]
		}
	}
	give("leet", d.buffer)
}

// letters maps digits and signs to the letters that they are written for.
var letters = [256]byte{'0': 'o', '1': 'i', '3': 'e', '4': 'a', '5': 's', '7': 't', '8': 'b', '@': 'a', '$': 's', '!': 'i', '|': 'l'}

// spaced gives the text with letters joined that are set apart, as in i g n o r e;
// words are then set apart by more than one blank.
func (d *decoder) spaced(s string, give func(string, []byte)) {
	s = s[:min(len(s), d.left)]
	alone := func(i int) bool {
		return isLetter(s[i]) && (i == 0 || !isLetter(s[i-1])) && (i+1 == len(s) || !isLetter(s[i+1]))
	}
	run, most := 0, 0
	for i := range len(s) {
		switch {
		case alone(i):
			run++
			most = max(most, run)
		case isLetter(s[i]):
			run = 0
		}
	}
	if most < minSpaced {
		return
	}
	d.buffer = d.buffer[:0]
	for i := range len(s) {
		between := i > 0 && i+1 < len(s) && alone(i-1) && alone(i+1)
		if between && (s[i] == ' ' || s[i] == '.' || s[i] == '-' || s[i] == '_' || s[i] == '*') {
			continue
		}
		d.buffer = append(d.buffer, s[i])
	}
	give("spaced", d.buffer)
}
