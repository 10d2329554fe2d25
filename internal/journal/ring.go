package journal

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"creto.dev"
	"creto.dev/fault"
)

// The ring's file is a header of one page and the ring.
//
// A frame is length, checksum, sequence number, mark and payload, padded to 8
// bytes. The checksum covers the sequence number, so a frame of an earlier lap is
// never taken for a new one. The mark is the ring's own and random: a payload is
// what some client says, and recovery looks for frames wherever others were
// damaged or overwritten, so without it a payload could hold frames of its own.
const (
	headerBytes = 4096
	frameHeader = 24
	frameAlign  = 8
	// skipMark in place of a length says that the next frame begins at the ring's
	// start.
	skipMark = ^uint32(0)
	// maxFrame bounds what recovery takes for a length.
	maxFrame = 1 << 20
)

// The header's fields. All but the first three are hints: the consumer's word and
// the frames themselves are what counts.
const (
	atMagic    = 0
	atID       = 8
	atSize     = 24
	atSum      = 32 // of what is before
	atAcked    = 40
	atPosition = 48
	atNewest   = 56
	atGapCount = 64
	atGapFirst = 72
	atGapLast  = 80
	atBoot     = 88 // 16 bytes: which start of the kernel wrote last
	bootBytes  = 16
	// Of what was counted: up to where a record tells of it, and up to where the
	// record that is under way will.
	atGapTold    = 104
	atGapTelling = 112
	// What the two sequence numbers are once more, inverted: this far behind them.
	toCopy = 128
)

var magic = [8]byte{'C', 'R', 'E', 'T', 'O', 'J', '0', '2'}

// castagnoli has hardware support.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ring is the mapped file.
type ring struct {
	head []byte // with the capacity of both
	data []byte
	mark uint64 // what makes a frame one of this ring
}

// guard runs do, and turns a page that cannot be read or written any more into
// an error. Without it the kernel's SIGBUS would end the process.
func guard(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(interface{ Addr() uintptr }); !ok { // what the runtime panics with for a bad page
				panic(r)
			}
			err = fault.New("journal.guard", fault.Unavailable, "the log's disk failed under its memory map; repair it and restart creto")
		}
	}()
	return do()
}

func frameBytes(payload int) int64 {
	return int64(frameHeader+payload+frameAlign-1) &^ (frameAlign - 1)
}

func (r ring) get(at int) uint64        { return binary.LittleEndian.Uint64(r.head[at:]) }
func (r ring) set(at int, value uint64) { binary.LittleEndian.PutUint64(r.head[at:], value) }

// note and noted keep a sequence number twice. The lesser of the two is the one that
// no flipped bit raised: who believes too small a one asks for too much, and finds
// what is there.
func (r ring) note(at int, sequence uint64) {
	r.set(at, sequence)
	r.set(at+toCopy, ^sequence)
}

func (r ring) noted(at int) uint64 { return min(r.get(at), ^r.get(at+toCopy)) }

func (r ring) format(id creto.UUID, size int64) {
	copy(r.head[atMagic:], magic[:])
	copy(r.head[atID:], id[:])
	r.set(atSize, uint64(size))
	r.set(atSum, uint64(crc32.Checksum(r.head[:atSum], castagnoli)))
}

func (r ring) check(size int64) error {
	if !bytes.Equal(r.head[:len(magic)], magic[:]) || r.get(atSize) != uint64(size) || r.get(atSum) != uint64(crc32.Checksum(r.head[:atSum], castagnoli)) {
		return fault.New("journal.check", fault.DataLoss, "the front of the log (%s) is damaged: keep a copy for an inquiry, then remove it; what it held is lost", ringName)
	}
	return nil
}

func (r ring) id() creto.UUID { return creto.UUID(r.head[atID : atID+16]) }

// frameMark returns the mark of a ring's frames: the random half of its id.
func frameMark(id creto.UUID) uint64 { return binary.LittleEndian.Uint64(id[8:]) }

// bootID tells one start of the kernel from the next.
func bootID() []byte {
	id := make([]byte, bootBytes)
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	copy(id, strings.ReplaceAll(string(text), "-", ""))
	return id
}

func (r ring) stampBoot() { copy(r.head[atBoot:atBoot+bootBytes], bootID()) }

func (r ring) sameBoot() bool { return bytes.Equal(r.head[atBoot:atBoot+bootBytes], bootID()) }

func (r ring) skip(at int64) { binary.LittleEndian.PutUint32(r.data[at:], skipMark) }

func (r ring) write(at int64, sequence uint64, payload []byte) {
	fillFrame(r.data[at:at+frameHeader+int64(len(payload))], r.mark, sequence, payload)
}

// fillFrame makes a frame, of exactly its length without padding.
func fillFrame(frame []byte, mark, sequence uint64, payload []byte) {
	copy(frame[frameHeader:], payload)
	binary.LittleEndian.PutUint64(frame[8:], sequence)
	binary.LittleEndian.PutUint64(frame[16:], mark)
	binary.LittleEndian.PutUint32(frame[4:], crc32.Checksum(frame[8:], castagnoli))
	binary.LittleEndian.PutUint32(frame, uint32(len(payload)))
}

// read returns the payload of the frame at a place, if it is the one of that
// sequence number. It lies in the ring.
func (r ring) read(at int64, sequence uint64) ([]byte, bool) {
	got, payload, ok := parseFrame(r.data[at:], r.mark)
	return payload, ok && got == sequence
}

func (r ring) countLost(at int64) {
	if r.get(atGapCount) == max(r.get(atGapTold), r.get(atGapTelling)) {
		r.set(atGapFirst, uint64(at))
	}
	r.set(atGapCount, r.get(atGapCount)+1)
	r.set(atGapLast, uint64(at))
}

// parseFrame reads the frame with which data begins, if it has the mark.
func parseFrame(data []byte, mark uint64) (sequence uint64, payload []byte, ok bool) {
	if len(data) < frameHeader {
		return 0, nil, false
	}
	length := int64(binary.LittleEndian.Uint32(data))
	if length > maxFrame || frameHeader+length > int64(len(data)) {
		return 0, nil, false
	}
	frame := data[:frameHeader+length]
	if binary.LittleEndian.Uint64(frame[16:]) != mark || binary.LittleEndian.Uint32(frame[4:]) != crc32.Checksum(frame[8:], castagnoli) {
		return 0, nil, false
	}
	return binary.LittleEndian.Uint64(frame[8:]), frame[frameHeader:], true
}

// frames returns every frame behind a sequence number, in order; the newest
// sequence number that was ever given out, as far as can be told; and where the
// next frame goes.
func (r ring) frames(after uint64) (found []slot, newest uint64, end int64) {
	newest = r.noted(atNewest)
	position := int64(r.get(atPosition))
	if position >= 0 && position <= int64(len(r.data)) && position%frameAlign == 0 {
		found, end = r.walk(position)
	}
	last := after
	if n := len(found); n > 0 {
		last = found[n-1].sequence
	}
	// The walk ends at the newest frame unless something in between is damaged,
	// or a power cut left the header older than the frames.
	if !r.sameBoot() || last < newest || len(found) > 0 && found[0].sequence > after+1 {
		found, end = r.scan(after)
	}
	found = slices.DeleteFunc(found, func(s slot) bool { return s.sequence <= after })
	if n := len(found); n > 0 {
		newest = max(newest, found[n-1].sequence)
	}
	return found, newest, end
}

// walk follows the frames from a place on as long as each is the next.
func (r ring) walk(at int64) (found []slot, end int64) {
	size := int64(len(r.data))
	for {
		begin := at
		if size-begin < frameHeader || binary.LittleEndian.Uint32(r.data[begin:]) == skipMark {
			begin = 0
		}
		sequence, payload, ok := parseFrame(r.data[begin:], r.mark)
		if n := len(found); !ok || n > 0 && sequence != found[n-1].sequence+1 {
			return found, at
		}
		found = append(found, slot{sequence: sequence, at: begin, length: len(payload)})
		at = begin + frameBytes(len(payload))
	}
}

// scan looks for frames everywhere.
func (r ring) scan(after uint64) (found []slot, end int64) {
	for at := int64(0); at+frameHeader <= int64(len(r.data)); {
		sequence, payload, ok := parseFrame(r.data[at:], r.mark)
		if !ok || sequence == 0 {
			at += frameAlign
			continue
		}
		if sequence > after {
			found = append(found, slot{sequence: sequence, at: at, length: len(payload)})
		}
		at += frameBytes(len(payload))
	}
	slices.SortFunc(found, func(a, b slot) int { return cmp.Compare(a.sequence, b.sequence) })
	if n := len(found); n > 0 {
		end = found[n-1].at + frameBytes(found[n-1].length)
	}
	return found, end
}

// slot is a frame's place in the ring.
type slot struct {
	sequence uint64
	at       int64
	length   int  // of the payload
	lost     bool // it is damaged, and that was counted
}

// fifo is a queue of slots that never allocates again.
type fifo struct {
	slots []slot
	head  int
	n     int
}

func newFIFO(capacity int) fifo { return fifo{slots: make([]slot, capacity)} }

func (f *fifo) len() int      { return f.n }
func (f *fifo) first() slot   { return f.slots[f.head] }
func (f *fifo) at(i int) slot { return f.slots[(f.head+i)%len(f.slots)] }

// lose notes that the i-th was found damaged, and reports whether that is new.
func (f *fifo) lose(i int) bool {
	s := &f.slots[(f.head+i)%len(f.slots)]
	known := s.lost
	s.lost = true
	return !known
}

func (f *fifo) push(s slot) {
	if f.n == len(f.slots) { // an earlier life had more slots
		grown := make([]slot, 2*f.n+1)
		for i := range f.n {
			grown[i] = f.at(i)
		}
		f.slots, f.head = grown, 0
	}
	f.slots[(f.head+f.n)%len(f.slots)] = s
	f.n++
}

func (f *fifo) pop() slot {
	s := f.slots[f.head]
	f.head = (f.head + 1) % len(f.slots)
	f.n--
	return s
}
