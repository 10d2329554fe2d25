package journal

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"creto.dev/fault"
)

// spool holds what the ring could not, in files of frames, one a spill. It is
// always older than the ring.
type spool struct {
	dir      string
	mark     uint64 // of the ring's frames
	limit    int64
	bytes    int64
	segments []segment // by sequence numbers
	// loaded are the frames of the first segment that are not released.
	loaded []Frame
	at     string // the segment that loaded is of
}

// segment is one file of the spool.
type segment struct {
	path        string
	mark        uint64 // of its frames: those of a ring that is gone have another
	first, last uint64
	bytes       int64
	frames      int
}

// spoolPrefix begins the files' names; the first sequence number and the frames'
// mark follow.
const spoolPrefix = "spool-"

func openSpool(dir string, mark uint64, limit int64) (spool, error) {
	const op fault.Op = "journal.openSpool"
	s := spool{dir: dir, mark: mark, limit: max(limit, 0)}
	if limit == 0 {
		var disk unix.Statfs_t
		if err := unix.Statfs(dir, &disk); err != nil {
			return s, fault.WrapAs(op, fault.Unavailable, err, "the free space of %s cannot be read", dir)
		}
		s.limit = min(maxSpoolBytes, int64(disk.Bavail)*disk.Bsize/freeShare)
	}
	return s, nil
}

// load reads the files of an earlier life: how many frames they hold behind a
// sequence number, and the newest one. A file whose frames are all in the ring is of
// a spill that was interrupted, may have holes, and goes.
func (s *spool) load(after uint64, ring []slot) (frames, newest uint64, err error) {
	const op fault.Op = "journal.load"
	names, err := filepath.Glob(filepath.Join(s.dir, spoolPrefix+"*"))
	if err != nil {
		return 0, 0, fault.WrapAs(op, fault.Unavailable, err, "")
	}
	for _, name := range names {
		number, mark, _ := strings.Cut(strings.TrimPrefix(filepath.Base(name), spoolPrefix), "-")
		seg := segment{path: name}
		var ours error
		seg.first, err = strconv.ParseUint(number, 10, 64)
		if seg.mark, ours = strconv.ParseUint(mark, 16, 64); err != nil || ours != nil {
			continue // not ours
		}
		parsed, size, err := readSegment(seg)
		if err != nil {
			return 0, 0, err
		}
		if n := len(parsed); n == 0 || parsed[n-1].Sequence <= after || seg.mark == s.mark && hold(ring, max(seg.first, after+1), parsed[n-1].Sequence) {
			if err := os.Remove(name); err != nil {
				return 0, 0, fault.WrapAs(op, fault.Unavailable, err, "the spool cannot be written")
			}
			continue
		}
		// A life that was killed while it wrote this may not have synced it, and
		// the ring's frames are about to be overwritten.
		if err := syncPath(name); err != nil {
			return 0, 0, fault.WrapAs(op, fault.Unavailable, err, "the spool cannot be written")
		}
		seg.last, seg.bytes, seg.frames = parsed[len(parsed)-1].Sequence, size, len(parsed)
		s.segments = append(s.segments, seg)
		s.bytes += size
		newest = max(newest, seg.last)
	}
	if err := syncPath(s.dir); err != nil {
		return 0, 0, fault.WrapAs(op, fault.Unavailable, err, "the spool cannot be written")
	}
	slices.SortFunc(s.segments, func(a, b segment) int { return cmp.Compare(a.first, b.first) })
	// A spill that the process did not survive left its frames in the ring too,
	// and the next one wrote them again.
	seen := after
	for _, seg := range s.segments {
		parsed, _, err := readSegment(seg)
		if err != nil {
			return 0, 0, err
		}
		for _, f := range parsed {
			if f.Sequence > seen {
				frames++
				seen = f.Sequence
			}
		}
	}
	return frames, newest, s.release(after)
}

// hold reports whether slots, which are sorted, have every frame from first to last.
func hold(slots []slot, first, last uint64) bool {
	i, ok := slices.BinarySearchFunc(slots, first, func(s slot, n uint64) int { return cmp.Compare(s.sequence, n) })
	end := uint64(i) + last - first
	return ok && first <= last && end < uint64(len(slots)) && slots[end].sequence == last
}

// readSegment returns every frame of a file that is whole. Behind a damaged one
// it looks for the next.
func readSegment(seg segment) (frames []Frame, size int64, err error) {
	data, err := os.ReadFile(seg.path)
	if err != nil {
		return nil, 0, fault.WrapAs("journal.readSegment", fault.Unavailable, err, "the spool cannot be read")
	}
	for rest := data; len(rest) >= frameHeader; {
		sequence, payload, ok := parseFrame(rest, seg.mark)
		if !ok || sequence == 0 {
			rest = rest[frameAlign:]
			continue
		}
		frames = append(frames, Frame{Sequence: sequence, Payload: string(payload)})
		rest = rest[min(frameBytes(len(payload)), int64(len(rest))):]
	}
	return frames, int64(len(data)), nil
}

func (s *spool) fits(bytes int64) bool { return s.bytes+bytes <= s.limit }

// room returns how many bytes more it can hold, also as others fill the disk.
func (s *spool) room() int64 {
	room := max(s.limit-s.bytes, 0)
	var disk unix.Statfs_t
	if unix.Statfs(s.dir, &disk) == nil {
		room = min(room, int64(disk.Bavail)*disk.Bsize)
	}
	return room
}

// append writes frames into a file of their own and makes it durable.
func (s *spool) append(frames []byte, first, last uint64, n int) error {
	const op fault.Op = "journal.append"
	path := filepath.Join(s.dir, fmt.Sprintf("%s%020d-%016x", spoolPrefix, first, s.mark))
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = file.Write(frames)
		err = errors.Join(err, file.Sync(), file.Close())
	}
	if err == nil {
		err = syncPath(s.dir)
	}
	if err != nil {
		_ = os.Remove(path) // the ring still has them
		return fault.WrapAs(op, fault.Unavailable, err, "the spool cannot be written; is the disk full?")
	}
	s.segments = append(s.segments, segment{path: path, mark: s.mark, first: first, last: last, bytes: int64(len(frames)), frames: n})
	s.bytes += int64(len(frames))
	return nil
}

// syncPath makes a file durable, or the names in a directory.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// read returns up to limit frames behind a sequence number of the oldest segment,
// and how many it lacks.
func (s *spool) read(limit int, after uint64) (frames []Frame, missing uint64, err error) {
	for len(s.segments) > 0 {
		first := s.segments[0]
		if s.at != first.path {
			if s.loaded, _, err = readSegment(first); err != nil {
				return nil, 0, err
			}
			s.at = first.path
			if n := first.frames - len(s.loaded); n > 0 {
				missing = uint64(n)
			}
			s.skip(after)
		}
		if len(s.loaded) > 0 {
			return s.loaded[:min(limit, len(s.loaded))], missing, nil
		}
		if err := s.drop(); err != nil { // nothing of it can be read
			return nil, missing, err
		}
	}
	return nil, missing, nil
}

// release forgets what the consumer has.
func (s *spool) release(through uint64) error {
	for len(s.segments) > 0 {
		if first := s.segments[0]; first.last > through {
			if s.at != first.path {
				return nil
			}
			if s.skip(through); len(s.loaded) > 0 {
				return nil
			}
			// What is behind was damaged after it was written.
		}
		if err := s.drop(); err != nil {
			return err
		}
	}
	return nil
}

// skip forgets loaded frames up to a sequence number.
func (s *spool) skip(through uint64) {
	for len(s.loaded) > 0 && s.loaded[0].Sequence <= through {
		s.loaded = s.loaded[1:]
	}
}

// drop removes the oldest segment.
func (s *spool) drop() error {
	first := s.segments[0]
	if err := os.Remove(first.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.WrapAs("journal.drop", fault.Unavailable, err, "the spool cannot be written")
	}
	s.bytes -= first.bytes
	s.segments, s.loaded, s.at = s.segments[1:], nil, ""
	return nil
}

// waiting returns how many frames the spool holds.
func (s *spool) waiting() int {
	n := 0
	for _, seg := range s.segments {
		n += seg.frames
	}
	if len(s.segments) > 0 && s.at == s.segments[0].path {
		n += len(s.loaded) - s.segments[0].frames
	}
	return n
}
