// Package journal is a durable queue in front of something slower: what is
// appended survives the death of the process at once, and a power cut after
// Sync, and waits until the consumer says that it has it.
//
// In front is a memory-mapped ring file. When the consumer falls behind and the
// ring is full, what waits there moves to spool files, up to a limit of bytes
// (R-OQ-2). Payloads have sequence numbers without holes; one that a damaged disk
// took is missed, and counted.
package journal

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"creto.dev"
	"creto.dev/fault"
)

// Config says where and how large.
type Config struct {
	// Dir holds the files; nobody else writes there. Required.
	Dir string
	// Slots is how many payloads the ring holds at most. 0 means 10,000
	// (R-AUD-19).
	Slots int
	// RingBytes is the ring's size, allocated on disk when it is made. 0 means
	// 32 MiB. A ring that exists keeps its size.
	RingBytes int64
	// SpoolBytes bounds the spool. 0 means 1 GiB, or a tenth of the free disk if
	// that is less; -1 means that there is none.
	SpoolBytes int64
	// Patience is how long the ring stays full, and nothing is released, before it
	// moves to the spool. 0 means 50 ms.
	Patience time.Duration
	// Scrub has Release overwrite payloads with zeros.
	Scrub bool
}

// The defaults, and the room that is left to others on the disk.
const (
	defaultSlots     = 10_000
	defaultRingBytes = 32 << 20
	defaultPatience  = 50 * time.Millisecond
	maxSpoolBytes    = 1 << 30
	freeShare        = 10
)

// ringName is the ring's file.
const ringName = "front.ring"

// Journal is an open queue. Append, Sync, Fill and the methods about gaps are
// safe for concurrent use; Pending and Release are the consumer's.
type Journal struct {
	cfg  Config
	file *os.File
	ring ring

	mu      sync.Mutex // guards what follows
	waiting fifo       // in the ring
	end     int64      // where the next frame goes, if it fits
	next    uint64     // sequence number of the next frame
	acked   uint64     // the consumer has everything up to here
	freed   chan struct{}
	spool   spool
	full    bool   // the spool has no room either
	run     []byte // to write several frames with, at once

	pressed chan struct{} // has room for one note that the ring is full
	synced  atomic.Uint64 // everything below is on disk
	syncMu  sync.Mutex    // one fdatasync at a time; the others share it
	broken  atomic.Bool
}

// Open opens the queue in a directory, or makes it. Resume must follow.
//
// Errors: Unavailable (Degraded) if the disk is full or cannot be used; DataLoss
// (Permanent) if the ring's file is none.
func Open(cfg Config) (*Journal, error) {
	const op fault.Op = "journal.Open"
	if cfg.Slots == 0 {
		cfg.Slots = defaultSlots
	}
	if cfg.RingBytes == 0 {
		cfg.RingBytes = defaultRingBytes
	}
	if cfg.Patience == 0 {
		cfg.Patience = defaultPatience
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the directory %s cannot be made", cfg.Dir)
	}
	j := &Journal{cfg: cfg, freed: make(chan struct{}), pressed: make(chan struct{}, 1)}
	var err error
	if j.file, err = os.OpenFile(filepath.Join(cfg.Dir, ringName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the front of the log cannot be opened; is its disk read-only?")
	}
	if err := j.mapRing(); err != nil {
		return nil, errors.Join(err, j.file.Close())
	}
	if j.spool, err = openSpool(cfg.Dir, j.ring.mark, cfg.SpoolBytes); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

// mapRing allocates and maps the ring. The blocks are taken here, so that a full
// disk shows now and never as SIGBUS.
func (j *Journal) mapRing() error {
	const op fault.Op = "journal.mapRing"
	info, err := j.file.Stat()
	if err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the front of the log cannot be read")
	}
	size := headerBytes + j.cfg.RingBytes
	fresh, err := j.unmade(info.Size())
	if err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the front of the log cannot be read")
	}
	if !fresh {
		size = info.Size()
	}
	if err := unix.Fallocate(int(j.file.Fd()), 0, 0, size); err != nil {
		if fresh { // a part of it would look like a ring
			_ = j.file.Truncate(0)
		}
		return fault.WrapAs(op, fault.Unavailable, err, "the front of the log needs %d MiB; is the disk full or read-only?", size>>20)
	}
	data, err := unix.Mmap(int(j.file.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the front of the log cannot be mapped")
	}
	j.ring = ring{head: data[:headerBytes], data: data[headerBytes:]}
	err = guard(func() error {
		if fresh {
			j.ring.format(creto.NewUUID(), size)
			j.ring.stampBoot()
		}
		return j.ring.check(size)
	})
	if err != nil {
		return err
	}
	j.ring.mark = frameMark(j.ring.id())
	if !fresh {
		return nil
	}
	// The file's name too must outlive a power cut, or all that is synced later
	// is in a file that nobody finds.
	if err := errors.Join(unix.Fdatasync(int(j.file.Fd())), syncPath(j.cfg.Dir), syncPath(filepath.Dir(j.cfg.Dir))); err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the front of the log cannot be written")
	}
	return nil
}

// unmade reports whether a ring's file of that size is none yet: empty, or left
// by a life that ended while it allocated it.
func (j *Journal) unmade(size int64) (bool, error) {
	head := make([]byte, atAcked)
	if size == 0 {
		return true, nil
	}
	if _, err := j.file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return bytes.Equal(head, make([]byte, atAcked)), nil
}

// ID names this queue. A queue that was deleted and made again has another.
func (j *Journal) ID() creto.UUID { return j.ring.id() }

// Acknowledged returns the newest sequence number that Release was told of. After
// a power cut it may be too small.
func (j *Journal) Acknowledged() uint64 { return j.ring.noted(atAcked) }

// Resume finds everything behind the sequence number that the consumer has last,
// and returns how many payloads are missing there: those that a power cut took
// before a Sync, or that a disk damaged. It is called once, before anything else.
//
// Errors: Unavailable (Degraded) if the disk cannot be read.
func (j *Journal) Resume(after uint64) (missing uint64, err error) {
	missing, newest, err := j.recover(after)
	if err != nil {
		j.broken.Store(true)
		return 0, err
	}
	// What was found is made durable before anybody builds on it.
	return missing, j.Sync(newest)
}

// recover is Resume before the sync.
func (j *Journal) recover(after uint64) (missing, newest uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	err = guard(func() error {
		missing, newest, err = j.find(after)
		return err
	})
	return missing, newest, err
}

// find is recover with mu held.
func (j *Journal) find(after uint64) (missing, newest uint64, err error) {
	found, newest, end := j.ring.frames(after)
	spooled, last, err := j.spool.load(after, found)
	if err != nil {
		return 0, 0, err
	}
	found = slices.DeleteFunc(found, func(s slot) bool { return s.sequence <= last })
	j.waiting = newFIFO(j.cfg.Slots)
	for _, f := range found {
		j.waiting.push(f)
	}
	j.end = end
	newest = max(newest, after, last)
	j.next, j.acked = newest+1, after
	if have := spooled + uint64(len(found)); newest-after > have {
		missing = newest - after - have
	}
	j.ring.note(atNewest, newest)
	j.ring.set(atPosition, uint64(j.begin()))
	j.ring.stampBoot()
	return missing, newest, nil
}

// Close unmaps the ring. The consumer must have ended; whoever still appends
// gets an error.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	j.broken.Store(true)
	if j.ring.head == nil {
		return j.file.Close()
	}
	whole := j.ring.head[: len(j.ring.head)+len(j.ring.data) : len(j.ring.head)+len(j.ring.data)]
	j.ring = ring{}
	return errors.Join(unix.Munmap(whole), j.file.Close())
}

// errBroken is what everybody gets once the disk failed.
func errBroken(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "the log is closed or its disk failed; repair the disk and restart creto")
}

// Sync returns when the payload of that sequence number is on disk. Callers at
// the same time share one fdatasync. A failed one breaks the queue: the kernel
// may have dropped the pages that it could not write.
//
// Errors: Unavailable (Degraded).
func (j *Journal) Sync(sequence uint64) error {
	const op fault.Op = "journal.Sync"
	if j.synced.Load() > sequence {
		return nil
	}
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	if j.synced.Load() > sequence {
		return nil
	}
	if j.broken.Load() {
		return errBroken(op)
	}
	j.mu.Lock()
	next := j.next
	j.mu.Unlock()
	if err := unix.Fdatasync(int(j.file.Fd())); err != nil {
		j.broken.Store(true)
		return fault.WrapAs(op, fault.Unavailable, err, "the log's disk failed; repair it and restart creto")
	}
	j.synced.Store(next)
	return nil
}

// Frame is one payload on its way to the consumer.
type Frame struct {
	Sequence uint64
	Payload  string // a part of what was read with it
}

// Pending returns up to limit of the oldest payloads, in order, and how many
// before or between them turned out to be damaged.
//
// Errors: Unavailable (Degraded) if the disk cannot be read.
func (j *Journal) Pending(limit int) (frames []Frame, missing uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken.Load() && j.ring.head == nil {
		return nil, 0, errBroken("journal.Pending")
	}
	if frames, missing, err = j.spool.read(limit, j.acked); err != nil || len(frames) > 0 {
		return frames, missing, err
	}
	more, damaged, err := j.read(0, limit)
	return more, missing + damaged, err
}

// Following is Pending for payloads behind a sequence number, of which nothing was
// released yet. There are none while some wait in the spool.
//
// Errors: those of Pending.
func (j *Journal) Following(after uint64, limit int) (frames []Frame, missing uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken.Load() && j.ring.head == nil {
		return nil, 0, errBroken("journal.Following")
	}
	if j.spool.waiting() > 0 {
		return nil, 0, nil
	}
	return j.read(sort.Search(j.waiting.len(), func(i int) bool { return j.waiting.at(i).sequence > after }), limit)
}

// read reads the ring from the i-th frame on. The caller holds mu.
func (j *Journal) read(i, limit int) (frames []Frame, missing uint64, err error) {
	limit = min(limit, j.waiting.len()-i)
	var payloads strings.Builder // one string, which they share
	ends := make([]int, 0, max(limit, 0))
	frames = make([]Frame, 0, max(limit, 0))
	err = guard(func() error {
		room := 0
		for k := range limit {
			room += j.waiting.at(i + k).length
		}
		payloads.Grow(room)
		for ; i < j.waiting.len() && len(frames) < limit; i++ {
			s := j.waiting.at(i)
			payload, ok := j.ring.read(s.at, s.sequence)
			if !ok {
				if j.waiting.lose(i) {
					missing++
				}
				continue
			}
			payloads.Write(payload)
			frames, ends = append(frames, Frame{Sequence: s.sequence}), append(ends, payloads.Len())
		}
		return nil
	})
	if err != nil {
		j.broken.Store(true)
	}
	begin := 0
	for k, end := range ends {
		frames[k].Payload, begin = payloads.String()[begin:end], end
	}
	return frames, missing, err
}

// Release forgets everything up to a sequence number, which the consumer has
// made durable.
//
// Errors: Unavailable (Degraded) if the disk failed.
func (j *Journal) Release(through uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ring.head == nil {
		return errBroken("journal.Release")
	}
	if err := j.drop(func(s slot) bool { return s.sequence <= through }); err != nil {
		return err
	}
	err := guard(func() error {
		if j.waiting.len() == 0 {
			j.end = 0 // the same pages again: the others need no memory
		}
		j.ring.note(atAcked, through)
		j.ring.set(atPosition, uint64(j.begin()))
		return nil
	})
	if err != nil {
		j.broken.Store(true)
		return err
	}
	j.acked = through
	err = j.spool.release(through)
	j.full = false
	j.notify()
	return err
}

// drop forgets the oldest frames, as long as which says so. The caller holds mu.
func (j *Journal) drop(which func(slot) bool) error {
	var begin, end int64
	for j.waiting.len() > 0 && which(j.waiting.first()) {
		s := j.waiting.pop()
		if s.at != end || end-begin > maxRun {
			if err := j.scrub(begin, end); err != nil {
				return err
			}
			begin = s.at
		}
		end = s.at + frameBytes(s.length)
	}
	return j.scrub(begin, end)
}

// scrub overwrites frames, if that is wanted, so that they are none.
func (j *Journal) scrub(begin, end int64) error {
	if !j.cfg.Scrub || begin == end {
		return nil
	}
	j.run = slices.Grow(j.run[:0], int(end-begin))[:end-begin]
	clear(j.run)
	return j.writeFile(j.run, begin)
}

// begin is where the oldest frame of the ring is, or the next will be.
func (j *Journal) begin() int64 {
	if j.waiting.len() == 0 {
		return j.end
	}
	return j.waiting.first().at
}

// notify wakes whoever waits for room. The caller holds mu.
func (j *Journal) notify() {
	close(j.freed)
	j.freed = make(chan struct{})
}

// Newest returns the newest sequence number that was given out.
func (j *Journal) Newest() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return max(j.next, 1) - 1
}

// Waiting returns how many payloads wait for the consumer.
func (j *Journal) Waiting() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.waiting.len() + j.spool.waiting()
}

// Fill returns how much of all the room is taken, from 0 to 1.
func (j *Journal) Fill() float64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.full {
		return 1
	}
	size := j.spool.limit
	if size == 0 { // no spool: slots or bytes of the ring, whatever is nearer
		ring := 0.0
		if n := j.waiting.len(); n > 0 {
			taken := (j.end - j.waiting.first().at + int64(len(j.ring.data))) % int64(len(j.ring.data))
			ring = max(float64(taken)/float64(len(j.ring.data)), float64(n)/float64(j.cfg.Slots))
		}
		return min(ring, 1)
	}
	return 1 - min(float64(j.spool.room())/float64(size), 1)
}

// Broken reports whether the disk failed, or the queue was closed.
func (j *Journal) Broken() bool { return j.broken.Load() }

// Run moves what waits in the ring to the spool when the ring has been full for a
// while, until ctx ends.
func (j *Journal) Run(ctx context.Context) {
	timer := time.NewTimer(j.cfg.Patience)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.pressed:
		}
		before := j.released()
		timer.Reset(j.cfg.Patience)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if j.released() == before { // else who appends waits for a consumer that works
			j.spill()
		}
	}
}

// released returns up to where the consumer has everything.
func (j *Journal) released() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.acked
}

// spillAbove is the share of slots or bytes above which a pressed ring is spilled.
const spillAbove = 0.5

// spill moves the ring's frames behind the spool's. Only once they are on disk
// there does the ring forget them.
func (j *Journal) spill() {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.waiting.len()
	taken := int64(0)
	for i := range n {
		taken += frameBytes(j.waiting.at(i).length)
	}
	if j.broken.Load() || float64(n) < spillAbove*float64(j.cfg.Slots) && float64(taken) < spillAbove*float64(len(j.ring.data)) {
		return // the consumer has come back meanwhile
	}
	err := guard(func() error {
		batch := make([]byte, 0, taken)
		for i := range n {
			s := j.waiting.at(i)
			batch = append(batch, j.ring.data[s.at:s.at+frameBytes(s.length)]...)
		}
		if !j.spool.fits(int64(len(batch))) {
			return fault.New("journal.spill", fault.ResourceExhausted, "the spool has no room")
		}
		return j.spool.append(batch, j.waiting.first().sequence, j.waiting.at(n-1).sequence, n)
	})
	if err != nil {
		j.full = true // Release, or a disk with room again, undoes it
		j.notify()
		return
	}
	j.full = false
	last := j.waiting.at(n - 1).sequence
	_ = j.drop(func(s slot) bool { return s.sequence <= last }) // the next call finds the journal broken
	_ = guard(func() error { j.ring.set(atPosition, uint64(j.begin())); return nil })
	j.notify()
}
