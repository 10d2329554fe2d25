package injection

import (
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// normalised is a text in the one form that rules and classifier read.
type normalised struct {
	// text is in lower case, without accents, invisible characters and lookalikes;
	// blanks are single, and lines are kept.
	text []byte
	// tags is what was written in tag characters (U+E0020 to U+E007E), which
	// people do not see and models read.
	tags []byte
	// hidden counts invisible characters inside words, and overrides of the
	// direction of writing.
	hidden int
}

// maxExpansion bounds what one character may become, in bytes: U+FDFA would be 33.
const maxExpansion = 16

// normalise writes the one form of s into n, whose memory is used again. Its cost
// is linear, and what it writes has at most maxExpansion bytes for each character.
func (n *normalised) normalise(s string) {
	n.text, n.tags, n.hidden = n.text[:0], n.tags[:0], 0
	w := writer{out: n.text}
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			i++
			w.ascii(lower[c])
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		i += size
		switch {
		case r == utf8.RuneError && size == 1:
			w.ascii(' ')
		case r == blackFlag: // flags of regions are written in tags
			for i < len(s) {
				tag, size := utf8.DecodeRuneInString(s[i:])
				if !isTag(tag) {
					break
				}
				i += size
			}
			w.ascii(' ')
		case isTag(r):
			if r >= firstTag+' ' && r < firstTag+0x7f {
				n.tags = append(n.tags, byte(r-firstTag))
			}
		case isDirection(r):
			n.hidden++
		case isInvisible(r):
			if i < len(s) && isLetter(s[i]) && w.inWord() {
				n.hidden++
			}
		case isMark(r):
		default:
			w.other(r)
		}
	}
	w.endWord()
	n.text = w.out
}

const (
	firstTag  = 0xE0000
	blackFlag = 0x1F3F4
)

func isTag(r rune) bool { return r >= firstTag && r <= firstTag+0x7f }

func isDirection(r rune) bool { return r >= 0x202A && r <= 0x202E || r >= 0x2066 && r <= 0x2069 }

func isInvisible(r rune) bool {
	switch {
	case r == 0xAD, r == 0x34F, r == 0x61C, r == 0x180E, r == 0xFEFF, r == 0x3164, r == 0x115F, r == 0x1160:
		return true
	case r >= 0x200B && r <= 0x200F, r >= 0x2060 && r <= 0x2065, r >= 0xFE00 && r <= 0xFE0F, r >= 0xE0100 && r <= 0xE01EF:
		return true
	}
	return false
}

// isMark reports whether r is written over or under another character of the
// scripts whose accents are dropped. Marks of other scripts are letters there.
func isMark(r rune) bool {
	return r >= 0x300 && r <= 0x36F || r >= 0x1AB0 && r <= 0x1AFF || r >= 0x1DC0 && r <= 0x1DFF || r >= 0x20D0 && r <= 0x20FF || r >= 0xFE20 && r <= 0xFE2F ||
		r >= 0x64B && r <= 0x65F
}

func isLetter(c byte) bool { c |= 0x20; return 'a' <= c && c <= 'z' }

// lower maps ASCII to what is written for it.
var lower = func() (table [utf8.RuneSelf]byte) {
	for c := range table {
		switch {
		case 'A' <= c && c <= 'Z':
			table[c] = byte(c) + 'a' - 'A'
		case c == '\n' || c > ' ' && c < 0x7f:
			table[c] = byte(c)
		default:
			table[c] = ' '
		}
	}
	return table
}()

// writer collects what was normalised.
type writer struct {
	out         []byte
	word        int // where the word under way begins
	latin, fake bool
}

func (w *writer) inWord() bool { return w.word < len(w.out) }

func (w *writer) ascii(c byte) {
	switch {
	case isLetter(c):
		w.latin = true
		w.out = append(w.out, c)
		return
	case '0' <= c && c <= '9':
		w.out = append(w.out, c)
		return
	}
	w.endWord()
	last := byte('\n')
	if len(w.out) > 0 {
		last = w.out[len(w.out)-1]
	}
	switch {
	case c == ' ' && (last == ' ' || last == '\n'):
	case c == '\n' && last == ' ':
		w.out[len(w.out)-1] = c
	case c == '\n' && last == '\n':
	default:
		w.out = append(w.out, c)
	}
	w.word = len(w.out)
}

// other writes a character beyond ASCII.
func (w *writer) other(r rune) {
	switch {
	case r >= 0x4E00 && r <= 0x9FFF, r >= 0xAC00 && r <= 0xD7A3, r >= 0x3041 && r <= 0x30FF: // the common ones have one form
		w.out = utf8.AppendRune(w.out, r)
		return
	case r >= 0x2018 && r <= 0x201B:
		w.ascii('\'')
		return
	case r >= 0x201C && r <= 0x201F:
		w.ascii('"')
		return
	case r == 0x2028 || r == 0x2029 || r == 0x85:
		w.ascii('\n')
		return
	}
	if plain, ok := drawn[r]; ok {
		w.ascii(plain)
		return
	}
	if r >= 0x1F1E6 && r <= 0x1F1FF { // regional indicators
		w.ascii(byte('a' + r - 0x1F1E6))
		return
	}
	var from, to [maxExpansion * 3]byte
	plain := utf8.AppendRune(from[:0], r)
	// The table alone tells most: a normal form is ten times as dear. Composed, it has
	// half the bytes at least.
	rest := norm.NFKD.Properties(plain).Decomposition()
	switch {
	case rest == nil:
		rest = plain
	case len(rest) <= 2*maxExpansion && !unicode.In(r, unicode.Latin, unicode.Greek, unicode.Cyrillic, unicode.Common):
		rest = norm.NFKC.Append(to[:0], plain...)
	}
	if len(rest) > maxExpansion {
		w.letter(r)
		return
	}
	for len(rest) > 0 {
		c, size := utf8.DecodeRune(rest)
		rest = rest[size:]
		switch {
		case c < utf8.RuneSelf:
			w.ascii(lower[c])
		case isMark(c) || isInvisible(c):
		default:
			w.letter(c)
		}
	}
}

// letter writes a character that has no simpler form.
func (w *writer) letter(r rune) {
	switch {
	case unicode.IsSpace(r):
		w.ascii(' ')
	case unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r):
		r = unicode.ToLower(r)
		if _, ok := lookalikes[r]; ok {
			w.fake = true
		}
		w.out = utf8.AppendRune(w.out, r)
	default:
		w.endWord()
		w.out = utf8.AppendRune(w.out, r)
		w.word = len(w.out)
	}
}

// endWord replaces lookalikes in a word that mixes them with Latin letters. A word
// of one script is left alone.
func (w *writer) endWord() {
	if w.latin && w.fake {
		word := w.out[w.word:]
		kept := w.out[:w.word]
		for i := 0; i < len(word); {
			r, size := utf8.DecodeRune(word[i:])
			if plain, ok := lookalikes[r]; ok {
				kept = append(kept, plain) // never longer than what it replaces
			} else {
				kept = append(kept, word[i:i+size]...)
			}
			i += size
		}
		w.out = kept
	}
	w.word, w.latin, w.fake = len(w.out), false, false
}

// lookalikes are letters of other scripts that are drawn as Latin ones, in lower
// case (Unicode's confusables.txt, those that occur in words).
var lookalikes = map[rune]byte{
	'а': 'a', 'в': 'b', 'е': 'e', 'к': 'k', 'м': 'm', 'н': 'h', 'о': 'o', 'р': 'p', 'с': 'c', 'т': 't', 'у': 'y', 'х': 'x', 'ѕ': 's', 'і': 'i', 'ј': 'j', 'ԁ': 'd',
	'ԛ': 'q', 'ԝ': 'w', 'һ': 'h', 'ӏ': 'l', 'г': 'r', 'п': 'n', 'ь': 'b', 'ѵ': 'v', 'ɡ': 'g',
	'α': 'a', 'β': 'b', 'γ': 'y', 'ε': 'e', 'η': 'n', 'ι': 'i', 'κ': 'k', 'ν': 'v', 'ο': 'o', 'ρ': 'p', 'σ': 'o', 'τ': 't', 'υ': 'u', 'χ': 'x', 'ω': 'w', 'ϲ': 'c', 'ϳ': 'j',
	'օ': 'o', 'ս': 'u', 'ո': 'n', 'հ': 'h', 'ց': 'g',
}

// drawn are characters that stand for Latin letters and have no decomposition:
// small capitals, and some of the enclosed.
var drawn = func() map[rune]byte {
	m := map[rune]byte{'ı': 'i', 'ł': 'l', 'ø': 'o', 'đ': 'd', 'Ł': 'l', 'Ø': 'o', 'Đ': 'd'}
	for i, r := range []rune("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘꞯʀꜱᴛᴜᴠᴡxʏᴢ") {
		if r >= utf8.RuneSelf {
			m[r] = byte('a' + i)
		}
	}
	for i := range rune(26) {
		m[0x1F150+i], m[0x1F170+i] = byte('a'+i), byte('a'+i) // negative circled, negative squared
	}
	return m
}()
