package verifier_test

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// item is one item of CBOR: where it and its content begin and where it ends.
type item struct {
	start, content, end int
	major               byte
	n                   uint64
	children            []item
}

// parse reads canonical CBOR, whose form the caller made.
func parse(data []byte, at int) item {
	x := item{start: at, major: data[at] >> 5}
	switch info := data[at] & 31; info {
	case 24:
		x.n, at = uint64(data[at+1]), at+1
	case 25:
		x.n, at = uint64(binary.BigEndian.Uint16(data[at+1:])), at+2
	case 26:
		x.n, at = uint64(binary.BigEndian.Uint32(data[at+1:])), at+4
	case 27:
		x.n, at = binary.BigEndian.Uint64(data[at+1:]), at+8
	default:
		x.n = uint64(info)
	}
	at++
	x.content = at
	switch x.major {
	case 2, 3:
		at += int(x.n)
	case 4, 5:
		count := x.n
		if x.major == 5 {
			count *= 2
		}
		for range count {
			child := parse(data, at)
			x.children = append(x.children, child)
			at = child.end
		}
	}
	x.end = at
	return x
}

// head encodes the beginning of an item; wide in more bytes than are needed.
func head(major byte, n uint64, wide bool) []byte {
	size := 0
	for _, s := range []int{1, 2, 4, 8} {
		if n >= 24 && (s == 8 || n < 1<<(8*s)) {
			size = s
			break
		}
	}
	if wide {
		size = max(1, 2*size)
	}
	if size == 0 {
		return []byte{major<<5 | byte(n)}
	}
	if size > 8 {
		size = 8
	}
	out := []byte{major<<5 | map[int]byte{1: 24, 2: 25, 4: 26, 8: 27}[size]}
	return append(out, binary.BigEndian.AppendUint64(nil, n)[8-size:]...)
}

// variants are encodings near to data, each wrong in one place or saying
// something else there.
func variants(data []byte) map[string][]byte {
	all := make(map[string][]byte)
	var visit func(x item, path string)
	visit = func(x item, path string) {
		put := func(name string, parts ...[]byte) {
			all[path+" "+name] = slices.Concat(data[:x.start], slices.Concat(parts...), data[x.end:])
		}
		whole, content := data[x.start:x.end], data[x.content:x.end]
		put("wide", head(x.major, x.n, true), content)
		put("tagged", []byte{0xc0}, whole)
		for name, other := range map[string][]byte{
			"null": {0xf6}, "undefined": {0xf7}, "true": {0xf5}, "false": {0xf4}, "zero": {0}, "minus one": {0x20}, "no text": {0x60}, "no bytes": {0x40},
			"no list": {0x80}, "no map": {0xa0}, "float": {0xf9, 0, 0}, "simple": {0xf8, 0x20}, "reserved": {0x1c}, "break": {0xff}, "bad text": {0x61, 0xff},
			"a mark": {0x63, 0xef, 0xbb, 0xbf}, "a surrogate": {0x63, 0xed, 0xa0, 0x80}, "2⁶⁴-1": {0x1b, 255, 255, 255, 255, 255, 255, 255, 255},
			"2⁶³": {0x1b, 128, 0, 0, 0, 0, 0, 0, 0}, "-2⁶³": {0x3b, 127, 255, 255, 255, 255, 255, 255, 255}, "-2⁶³-1": {0x3b, 128, 0, 0, 0, 0, 0, 0, 0},
			"-2⁶⁴": {0x3b, 255, 255, 255, 255, 255, 255, 255, 255}, "endless": {0x9b, 255, 255, 255, 255, 255, 255, 255, 255}, "endless bytes": {0x5b, 127, 255, 255, 255, 255, 255, 255, 255},
		} {
			put(name, other)
		}
		switch x.major {
		case 0:
			put("one more", head(0, x.n+1, false))
		case 2, 3:
			put("a byte more", head(x.major, x.n+1, false), content, []byte{'x'})
			if x.n > 0 {
				put("a byte less", head(x.major, x.n-1, false), content[:len(content)-1])
				put("another byte", data[x.start:x.content], content[:len(content)-1], []byte{content[len(content)-1] ^ 1})
			}
			put("in pieces", []byte{x.major<<5 | 31}, whole, []byte{0xff})
			put("of the other type", head(x.major^1, x.n, false), content)
		case 4:
			put("without end", []byte{0x9f}, content, []byte{0xff})
			put("a zero more", head(4, x.n+1, false), content, []byte{0})
			if len(x.children) > 0 {
				last := x.children[len(x.children)-1]
				put("without its last", head(4, x.n-1, false), data[x.content:last.start])
				put("its last twice", head(4, x.n+1, false), content, data[last.start:last.end])
			}
			if len(x.children) > 1 {
				a, b := x.children[0], x.children[1]
				put("its first two changed", data[x.start:x.content], data[b.start:b.end], data[a.start:a.end], data[b.end:x.end])
			}
		case 5:
			put("without end", []byte{0xbf}, content, []byte{0xff})
			put("one key more", head(5, x.n+1, false), content, []byte{0x18, 99, 0})
			put("one text key more", head(5, x.n+1, false), content, []byte{0x61, 'z', 0})
			for i := 0; i < len(x.children); i += 2 {
				k, v := x.children[i], x.children[i+1]
				put(fmt.Sprintf("without pair %d", i/2), head(5, x.n-1, false), data[x.content:k.start], data[v.end:x.end])
				put(fmt.Sprintf("pair %d twice", i/2), head(5, x.n+1, false), data[x.content:v.end], data[k.start:v.end], data[v.end:x.end])
				if i+2 < len(x.children) {
					next := x.children[i+3]
					put(fmt.Sprintf("pair %d and the next changed", i/2), data[x.start:k.start], data[v.end:next.end], data[k.start:v.end], data[next.end:x.end])
				}
			}
		}
		for i, child := range x.children {
			visit(child, fmt.Sprintf("%s/%d", path, i))
		}
	}
	visit(parse(data, 0), "")
	return all
}
