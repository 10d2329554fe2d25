package injection

import "unicode/utf8"

// The classifier reads words, pairs of words and pieces of words, as numbers of
// hashBits bits: what they are is not kept, and two may share a number.
const (
	hashBits = 15
	buckets  = 1 << hashBits
)

// How many words the classifier looks at together, and how far the next look is.
// A document is looked at more closely: an attack is a sentence in it.
func windowOf(from Source) (words, step int) {
	if from == Document {
		return 48, 24
	}
	return 320, 160
}

// features are the numbers of a text, by word.
type features struct {
	hashes []uint16
	ends   []int // of each word's, in hashes
}

func (f *features) reset() { f.hashes, f.ends = f.hashes[:0], f.ends[:0] }

// FNV-1a's constants, by whose way words are hashed.
const (
	offset32 = 2166136261
	prime32  = 16777619
)

// bucket mixes a hash down to its number.
func bucket(h uint32) uint16 {
	h ^= h >> 15
	h *= 0x2c1b3c6d
	h ^= h >> 12
	h *= 0x297a2d39
	return uint16(h >> (32 - hashBits))
}

// read takes the features of a normalised text. Of letters beyond ASCII each is a
// word where scripts do without blanks, and a part of one elsewhere.
func (f *features) read(text []byte) {
	f.reset()
	var previous, before uint32
	word := uint32(offset32)
	var tail uint32 // the last bytes of the word, of which pieces are made
	length := 0
	end := func() {
		if length == 0 {
			return
		}
		f.hashes = append(f.hashes, bucket(word), bucket(word*31+previous), bucket(word*131+before+7))
		f.ends = append(f.ends, len(f.hashes))
		before, previous = previous, word
		word, tail, length = offset32, 0, 0
	}
	for i := 0; i < len(text); {
		c := text[i]
		if c < utf8.RuneSelf {
			i++
			if !isLetter(c) && (c < '0' || c > '9') {
				end()
				if c == '\n' || c == '?' || c == '!' || c == ':' || c == '"' || c == '[' || c == '<' || c == '*' || c == '#' {
					f.hashes = append(f.hashes, bucket(uint32(c)*prime32+previous)) // what stands before it
				}
				continue
			}
			word = (word ^ uint32(c)) * prime32
			tail = tail<<8 | uint32(c)
			if length++; length >= 4 {
				f.hashes = append(f.hashes, bucket(tail^0x5bd1e995))
			}
			continue
		}
		r, size := utf8.DecodeRune(text[i:])
		i += size
		switch {
		case r >= 0x2E80 && r <= 0xD7FF && !(r >= 0xAC00): // Han and Kana
			end()
			word, length = (offset32^uint32(r))*prime32, 1
			end()
		case r >= 0x2000 && r < 0x2E80: // punctuation and symbols
			end()
		default:
			word = (word ^ uint32(r)) * prime32
			tail = tail<<8 | uint32(r&0xff)
			if length++; length >= 3 {
				f.hashes = append(f.hashes, bucket(tail^0x5bd1e995))
			}
		}
	}
	end()
}

// windows calls look with the numbers of each window.
func (f *features) windows(from Source, look func(hashes []uint16)) {
	words, step := windowOf(from)
	for start := 0; ; start += step {
		first := 0
		if start > 0 {
			first = f.ends[start-1]
		}
		if start+words >= len(f.ends) {
			look(f.hashes[first:])
			return
		}
		look(f.hashes[first:f.ends[start+words-1]])
	}
}
