package localaudit

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"creto.dev/fault"
)

// A frame is length, checksum, sequence number and payload, padded to 8 bytes.
// The checksum covers the sequence number, so a frame of an earlier lap of the
// ring is never taken for a new one.
const (
	frameHeader = 16
	frameAlign  = 8
	// skip in place of a length says that the next frame begins at the ring's
	// start.
	skip = ^uint32(0)
)

// castagnoli has hardware support.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// front is a memory-mapped ring file in front of the tree. What is copied into
// it belongs to the kernel, so it survives the death of the process; sync makes
// it survive a power cut.
type front struct {
	file  *os.File
	ring  []byte
	slots int // the most frames waiting

	mu       sync.Mutex // guards what follows
	end      int64      // position behind the newest frame; grows for ever
	begin    int64      // position of the oldest frame that is not in the tree
	sequence uint64     // of the newest frame
	waiting  int        // frames between begin and end
	freed    chan struct{}

	written atomic.Uint64 // sequence, for sync
	synced  atomic.Uint64
	syncMu  sync.Mutex // one fdatasync at a time; the others share it
	broken  atomic.Bool
}

// openFront maps file, sized on disk so that a full disk shows here and never
// as SIGBUS, and finds the frames behind the given place.
func openFront(path string, size int64, slots int, sequence uint64, position int64) (*front, error) {
	const op fault.Op = "localaudit.openFront"
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.WrapAs(op, fault.AuditUnavailable, err, "the audit front cannot be opened")
	}
	info, err := file.Stat()
	if err == nil && info.Size() > 0 {
		size = info.Size() // positions count in laps of the size it was made with
	}
	if err == nil {
		err = unix.Fallocate(int(file.Fd()), 0, 0, size)
	}
	var ring []byte
	if err == nil {
		ring, err = unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		_ = file.Close()
		return nil, fault.WrapAs(op, fault.AuditUnavailable, err, "the audit front needs %d MiB; is the disk full?", size>>20)
	}
	f := &front{file: file, ring: ring, slots: slots, begin: position, end: position, sequence: sequence, freed: make(chan struct{})}
	for {
		_, next, ok := f.read(f.end, f.sequence+1)
		if !ok {
			break
		}
		f.end = next
		f.sequence++
		f.waiting++
	}
	f.written.Store(f.sequence)
	return f, nil
}

func (f *front) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken.Store(true)
	if err := unix.Munmap(f.ring); err != nil {
		return err
	}
	f.ring = nil
	return f.file.Close()
}

// append copies payload into the ring and returns its sequence number. It waits
// for room until ctx ends.
func (f *front) append(ctx context.Context, payload []byte) (uint64, error) {
	const op fault.Op = "localaudit.append"
	need := int64(frameHeader+len(payload)+frameAlign-1) &^ (frameAlign - 1)
	for {
		f.mu.Lock()
		if f.broken.Load() {
			f.mu.Unlock()
			return 0, fault.New(op, fault.AuditUnavailable, "the audit log is closed or its disk failed; restart creto")
		}
		size := int64(len(f.ring))
		offset := f.end % size
		pad := int64(0)
		if offset+need > size {
			pad = size - offset
		}
		if f.waiting < f.slots && f.end-f.begin+pad+need <= size {
			if pad > 0 {
				if pad >= frameHeader {
					binary.LittleEndian.PutUint32(f.ring[offset:], skip)
				}
				f.end += pad
			}
			f.sequence++
			f.write(f.end%size, f.sequence, payload)
			f.end += need
			f.waiting++
			sequence := f.sequence
			f.written.Store(sequence)
			f.mu.Unlock()
			return sequence, nil
		}
		freed := f.freed
		f.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return 0, fault.New(op, fault.AuditUnavailable, "the audit log is full: its database does not keep up")
		}
	}
}

func (f *front) write(offset int64, sequence uint64, payload []byte) {
	frame := f.ring[offset : offset+frameHeader+int64(len(payload))]
	copy(frame[frameHeader:], payload)
	binary.LittleEndian.PutUint64(frame[8:], sequence)
	binary.LittleEndian.PutUint32(frame[4:], crc32.Checksum(frame[8:], castagnoli))
	binary.LittleEndian.PutUint32(frame, uint32(len(payload)))
}

// read returns the payload of the frame with that sequence number at position,
// and the position behind it. The payload lies in the ring.
func (f *front) read(position int64, sequence uint64) (payload []byte, next int64, ok bool) {
	size := int64(len(f.ring))
	offset := position % size
	if size-offset < frameHeader || binary.LittleEndian.Uint32(f.ring[offset:]) == skip {
		position += size - offset
		offset = 0
	}
	length := int64(binary.LittleEndian.Uint32(f.ring[offset:]))
	if offset+frameHeader+length > size {
		return nil, 0, false
	}
	frame := f.ring[offset : offset+frameHeader+length]
	if binary.LittleEndian.Uint64(frame[8:]) != sequence ||
		binary.LittleEndian.Uint32(frame[4:]) != crc32.Checksum(frame[8:], castagnoli) {
		return nil, 0, false
	}
	return frame[frameHeader:], position + (frameHeader+length+frameAlign-1)&^(frameAlign-1), true
}

// frame is a payload on its way to the tree.
type frame struct {
	payload  []byte // in the ring, until release
	sequence uint64
	next     int64
}

// pending returns up to limit frames behind the given place.
func (f *front) pending(sequence uint64, position int64, limit int) []frame {
	newest := f.written.Load()
	var frames []frame
	for len(frames) < limit && sequence < newest {
		payload, next, ok := f.read(position, sequence+1)
		if !ok {
			break
		}
		sequence++
		frames = append(frames, frame{payload: payload, sequence: sequence, next: next})
		position = next
	}
	return frames
}

// release frees n frames, up to position, for new ones.
func (f *front) release(position int64, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begin = position
	f.waiting -= n
	close(f.freed)
	f.freed = make(chan struct{})
}

// sync returns when the frame of that sequence number is on disk. Callers at
// the same time share one fdatasync. A failed one breaks the front: the kernel
// may have dropped the pages that it could not write.
func (f *front) sync(sequence uint64) error {
	const op fault.Op = "localaudit.sync"
	if f.synced.Load() >= sequence {
		return nil
	}
	f.syncMu.Lock()
	defer f.syncMu.Unlock()
	if f.synced.Load() >= sequence {
		return nil
	}
	if f.broken.Load() {
		return fault.New(op, fault.AuditUnavailable, "the audit log is closed or its disk failed; restart creto")
	}
	newest := f.written.Load()
	if err := unix.Fdatasync(int(f.file.Fd())); err != nil {
		f.broken.Store(true)
		return fault.WrapAs(op, fault.AuditUnavailable, err, "the audit log's disk failed; restart creto")
	}
	f.synced.Store(newest)
	return nil
}
